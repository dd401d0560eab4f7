"""The record of a search in Weights & Biases: a run per trial, grouped by search, next to MLflow's record.

    search.run --wandb        WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE=offline and WANDB_API_KEY mean what they always mean

The x of a curve is the number of examples. `runs/NAME/wandb` holds W&B's own files and `sent.json`, the x that each trial has
reached, so a retried trial or a resumed search sends no point twice. A thread makes the calls, because a server may be slow. A
fault ends this record, not the search.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from minbert_core.files import message, replaced
from search.report.words import describe
from search.study.trials import TrialResult
from search.tracking.runs import points_of

if TYPE_CHECKING:
    from wandb import Run

FOLDER = "wandb"  # in that of the search
PROJECT = "minbert"  # unless WANDB_PROJECT names one
CLOSE_SECONDS = 30.0  # for the last points to arrive; after an interrupt, someone waits for the prompt
CLOSE_SECONDS_KILLED = 5.0


def wandb_fault() -> str | None:
    """Return a sentence if W&B cannot be used here; None if it can."""
    os.environ.setdefault("WANDB_SILENT", "true")  # it would write into the live table of the trials
    try:
        import wandb
    except ImportError:
        return "--wandb needs W&B's package. Install it: pip install wandb."
    if os.environ.get("WANDB_MODE", "online") == "online" and not wandb.login(prompt=False, verify=False):
        return "W&B has no API key here. Type `wandb login`, or set WANDB_MODE=offline and `wandb sync` the runs later."
    return None


class WandbRuns:
    """The listener of a search that logs to W&B. Its methods return at once, except `close`."""

    def __init__(self, folder: Path, name: str, search_id: str, say: Callable[[str], None]) -> None:
        """search_id: distinguishes searches of one name in a project."""
        self.folder, self.name, self.search_id, self.say = folder / FOLDER, name, search_id[:8], say
        self.open: dict[int, Run] = {}
        self.sent: dict[str, dict[str, Any]] = {}  # trial -> x, the examples of its last point; ended
        self.calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self.thread = threading.Thread(target=self._serve, name="wandb", daemon=True)
        self.thread.start()

    # ---- the events of a search

    def pretrained(self, record: dict[str, Any]) -> None:
        """Do nothing: only trials have a run."""

    def replay(self, trials: list[TrialResult]) -> None:
        for trial in trials:
            if trial.status == "running":
                self.started(trial, resumed=True)
            else:
                self.ended(trial)

    def started(self, trial: TrialResult, resumed: bool) -> None:
        self.calls.put(lambda: self._log(trial))

    def reported(self, trial: TrialResult, new: list[dict[str, Any]]) -> None:
        self.calls.put(lambda: self._log(trial))

    def paused(self, trial: TrialResult, why: str) -> None:
        """Do nothing: its run stays open until it continues or the search ends."""

    def retried(self, trial: TrialResult, why: str) -> None:
        """Do nothing: what it measures again is sent already."""

    def ended(self, trial: TrialResult) -> None:
        self.calls.put(lambda: self._end(trial))

    def close(self, was_interrupted: bool) -> None:
        """Close the runs of trials that have not ended, and wait a while for the last points to be sent."""
        self.calls.put(self._close_all)
        self.calls.put(None)
        seconds = CLOSE_SECONDS_KILLED if was_interrupted else CLOSE_SECONDS
        self.thread.join(seconds)
        if self.thread.is_alive():
            self.say(f"W&B had not received everything after {seconds:g} s. `wandb sync` sends the rest from {self.folder}.")

    # ---- the thread

    def _serve(self) -> None:
        """Make the queued calls until `close`; after the first fault, which is said, make none."""
        try:
            self._read_sent()
            while (call := self.calls.get()) is not None:
                call()
        except Exception as error:  # noqa: BLE001  W&B raises errors of its own; the search continues whatever they are
            self.say(f"W&B's record ends here: {message(error)} Training continues.")
            while self.calls.get() is not None:
                pass

    def _log(self, trial: TrialResult) -> None:
        """Send the points of a trial that lie beyond those sent before."""
        if trial.number not in self.open:
            self.open[trial.number] = self._begin(trial)
        run, sent = self.open[trial.number], self._sent(trial)["x"]
        points = [point for record in trial.records for point in points_of(record) if point[2] > sent]
        for x, at_x in groupby(sorted(points, key=_x), key=_x):
            run.log({"examples": x, **{key: value for key, value, *_ in at_x}})
            self._note(trial, x, ended=False)

    def _begin(self, trial: TrialResult) -> Run:
        """Open the run of a trial. One of an interrupted search continues under its id."""
        import wandb

        quiet = wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True, x_disable_stats=True)
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
        if run.project_url and not self.sent and not self.open:  # the first one; none offline
            self.say(f"W&B: {run.project_url}, group {self.name}")
        return run

    def _end(self, trial: TrialResult) -> None:
        """Send the rest of a trial, its best scores and its reason, and close its run."""
        if self._sent(trial)["ended"]:
            return
        self._log(trial)
        scores = trial.best if trial.points else {}
        best = {f"best/{key.removeprefix('dev/')}": value for key, value in scores.items() if key.startswith("dev/")}
        run = self.open.pop(trial.number)
        run.summary.update({**best, "status": trial.status, "reason": trial.reason})
        run.finish(exit_code=int(trial.status == "failed"))
        self._note(trial, self._sent(trial)["x"], ended=True)

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
        return self.sent.get(str(trial.number), {"x": -1, "ended": False})

    def _note(self, trial: TrialResult, x: int, ended: bool) -> None:
        self.sent[str(trial.number)] = {"x": x, "ended": ended}
        with replaced(self.folder / "sent.json") as draft:
            draft.write_text(json.dumps(self.sent), encoding="utf-8")


def _x(point: tuple[str, float, int, int]) -> int:
    return point[2]


def wants_wandb(folder: Path, asked: bool) -> bool:
    """Return whether a search logs to W&B: the user asks for it now, or did so when the search began."""
    return asked or (folder / FOLDER / "sent.json").exists()
