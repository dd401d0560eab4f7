"""The record of a search in Weights & Biases: a run per trial, grouped by search, next to MLflow's record.

    search.run --wandb        WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE=offline and WANDB_API_KEY mean what they always mean

The x of a curve is the number of examples. `runs/NAME/wandb` holds W&B's own files and `sent.json`, the number of records that
each trial has sent, so a retried trial or a resumed search sends none twice. A thread makes the calls, because a server may be
slow. A fault ends this record, not the search.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from minbert_core.files import message, replaced
from search.report.words import describe
from search.study.listeners import OtherRecord
from search.study.trials import TrialResult
from search.tracking.runs import points_of

if TYPE_CHECKING:
    from wandb import Run

FOLDER = "wandb"  # in that of the search
PROJECT = "minbert"  # unless WANDB_PROJECT names one
ANSWER_SECONDS = 20.0  # for a server that does not answer; the end of a process waits as long for W&B's own process
CLOSE_SECONDS = 30.0  # for the last points to arrive; after an interrupt, someone waits for the prompt
CLOSE_SECONDS_KILLED = 5.0
NEW = {"records": 0, "ended": False}  # of a trial, in sent.json


def wandb_fault() -> str | None:
    """Return a sentence if W&B cannot be used here; None if it can."""
    os.environ.setdefault("WANDB_SILENT", "true")  # it would write into the live table of the trials
    try:
        import wandb
    except ImportError:
        return "--wandb needs W&B's package. Install it: pip install wandb."
    try:
        if wandb.setup().settings.mode != "online" or wandb.login(prompt=False, verify=False):
            return None
    except wandb.errors.Error as error:
        return f"W&B cannot be used: {error}"
    return "W&B has no API key here. Type `wandb login`, or set WANDB_MODE=offline and `wandb sync` the runs later."


def wants_wandb(folder: Path, asked: bool) -> bool:
    """Return whether a search logs to W&B: the user asks for it now, or did so when the search began."""
    return asked or (folder / FOLDER).exists()


class WandbRuns(OtherRecord):
    """The listener of a search that logs to W&B. Its methods return at once, except `close`."""

    def __init__(self, folder: Path, name: str, search_id: str, say: Callable[[str], None]) -> None:
        """search_id: distinguishes searches of one name in a project."""
        self.folder, self.name, self.search_id, self.say = folder / FOLDER, name, search_id[:8], say
        self.open: dict[int, Run] = {}
        self.sent: dict[str, dict[str, Any]] = {}
        self.calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self.thread = threading.Thread(target=self._serve, name="wandb", daemon=True)
        self.thread.start()

    # ---- the events of a search

    def started(self, trial: TrialResult, resumed: bool) -> None:
        self.calls.put(lambda: self._log(trial))

    def reported(self, trial: TrialResult, new: list[dict[str, Any]]) -> None:
        self.calls.put(lambda: self._log(trial))

    def ended(self, trial: TrialResult) -> None:
        self.calls.put(lambda: self._end(trial))

    def close(self, was_interrupted: bool) -> None:
        """Close the runs of trials that have not ended, and wait a while for the last points to be sent."""
        self.calls.put(self._close_all)
        self.calls.put(None)
        seconds = CLOSE_SECONDS_KILLED if was_interrupted else CLOSE_SECONDS
        self.thread.join(seconds)
        if self.thread.is_alive():
            again = f"wandb sync --include-online {self.folder}/*run-*"
            self.say(f"W&B had not received everything after {seconds:g} s. This sends the rest: {again}")

    # ---- the thread

    def _serve(self) -> None:
        """Make the queued calls until `close`; after the first fault, which is said, make none."""
        try:
            self._read_sent()
            while (call := self.calls.get()) is not None:
                call()
        except Exception as error:  # noqa: BLE001  W&B raises errors of its own; the search continues whatever they are
            self.say(f"W&B's record ends here: {message(error) or type(error).__name__} Training continues.")
            while self.calls.get() is not None:
                pass

    def _log(self, trial: TrialResult) -> None:
        """Send the records of a trial that were not sent before. A retried trial repeats its last ones, in the same order."""
        if trial.number not in self.open:
            self.open[trial.number] = self._begin(trial)
        num_sent = self._sent(trial)["records"]
        for record in trial.records[num_sent:]:
            x = {} if record["kind"] == "pretrain" else {"examples": record["examples"]}  # its own x is among its points
            self.open[trial.number].log({**x, **{key: value for key, value, *_ in points_of(record)}})
        self._note(trial, max(num_sent, len(trial.records)), ended=False)

    def _begin(self, trial: TrialResult) -> Run:
        """Open the run of a trial. One of an interrupted search continues under its id."""
        import wandb

        quiet = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,
            init_timeout=ANSWER_SECONDS,
            finish_timeout=CLOSE_SECONDS,
        )
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=self.name,
            name=f"{trial.number:03d} {describe(trial.params)}"[:100],
            id=f"{self.name}-{self.search_id}-{trial.number:03d}",
            config={**trial.params, "trial": trial.number, "baseline": trial.baseline, "recipe": trial.recipe},
            dir=str(self.folder.parent),  # W&B adds the folder `wandb`
            resume="allow",
            reinit="create_new",  # several trials run at a time
            settings=quiet,
        )
        run.define_metric("*", step_metric="examples")
        run.define_metric("pretrain/*", step_metric="pretrain/examples")
        if not self.sent and not self.open and not run.offline:  # the first one
            self.say(f"W&B: {run.project_url}, group {self.name}")
        return run

    def _end(self, trial: TrialResult) -> None:
        """Send the rest of a trial, its best scores and its reason, and close its run."""
        if self._sent(trial)["ended"] and trial.number not in self.open:  # open: a failed trial that ran again
            return
        self._log(trial)
        scores = trial.best if trial.points else {}
        best = {f"best/{key.removeprefix('dev/')}": value for key, value in scores.items() if key.startswith("dev/")}
        run = self.open.pop(trial.number)
        run.summary.update({**best, "status": trial.status, "reason": trial.reason})
        run.finish(exit_code=int(trial.status == "failed"))
        self._note(trial, self._sent(trial)["records"], ended=True)

    def _close_all(self) -> None:
        for run in self.open.values():
            run.finish()
        self.open.clear()

    # ---- sent.json

    def _read_sent(self) -> None:
        self.folder.mkdir(exist_ok=True)
        path = self.folder / "sent.json"
        self.sent = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def _sent(self, trial: TrialResult) -> dict[str, Any]:
        return self.sent.get(str(trial.number), NEW)

    def _note(self, trial: TrialResult, num_records: int, ended: bool) -> None:
        self.sent[str(trial.number)] = {"records": num_records, "ended": ended}
        with replaced(self.folder / "sent.json") as draft:
            draft.write_text(json.dumps(self.sent), encoding="utf-8")
