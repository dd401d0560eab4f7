"""The record of a running search in MLflow: every event of its trials and of pretraining, passed to a `Tracker`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minbert_core.clock import now_ms
from minbert_core.config import OVERALL
from minbert_core.train.folder import read_records
from search.plan.folder import PRETRAINING
from search.report.words import describe
from search.study.trials import TrialResult, ranked
from search.tracking.runs import Record, Runs
from search.tracking.tracker import Tracker


@dataclass(eq=False)
class _Known:
    """A trial, as last heard of. The tracker reads its records when it writes, so a queue that waits holds no copies."""

    trial: TrialResult

    def __iter__(self) -> Iterator[Record]:
        return iter(self.trial.records)


class Recorder:
    """The listener of a search that records in MLflow."""

    def __init__(self, folder: Path, tasks: list[str], full: int, tracker: Tracker) -> None:
        self.folder, self.tasks, self.full, self.tracker = folder, tasks, full, tracker
        self.trials: dict[int, _Known] = {}

    def pretrained(self, record: dict[str, Any]) -> None:
        """Record a measurement of pretraining before the trials."""
        self.tracker.submit(Runs.pretrained, [record])

    def replay(self, trials: list[TrialResult]) -> None:
        """Take over the trials of an interrupted search. The tracker writes what MLflow lacks of them."""
        if pretrained := read_records(self.folder / PRETRAINING):
            self.tracker.submit(Runs.pretrained, pretrained)
        for trial in sorted(trials, key=_last_ms):
            self._begin(trial, trial.records[0]["time_ms"] if trial.records else now_ms())
            if trial.status != "running":
                self._end(trial)

    def started(self, trial: TrialResult, resumed: bool) -> None:
        self._begin(trial, now_ms())

    def reported(self, trial: TrialResult, new: list[dict[str, Any]]) -> None:
        self._measure(trial)

    def paused(self, trial: TrialResult, why: str) -> None:
        """End the run of a paused trial as FINISHED, because KILLED would show a red cross. Later it is RUNNING again."""
        self._measure(trial)
        reason = f"paused at {trial.rung}/{self.full}: {why}"
        self.tracker.submit(Runs.trial_ended, trial.number, "FINISHED", reason, _last_ms(trial))

    def retried(self, trial: TrialResult, why: str) -> None:
        """Do nothing: the trial's run stays RUNNING, and what it measures again is known."""

    def ended(self, trial: TrialResult) -> None:
        """End the run of a trial. The last records of a failed trial come without a report."""
        self._measure(trial)
        self._end(trial)

    def _begin(self, trial: TrialResult, time_ms: int) -> None:
        self.tracker.submit(_start, trial, time_ms)
        self._measure(trial)

    def _measure(self, trial: TrialResult) -> None:
        known = self.trials.setdefault(trial.number, _Known(trial))
        known.trial = trial
        self.tracker.submit(Runs.records, trial.number, known)

    def _end(self, trial: TrialResult) -> None:
        ended_ms, is_failed = _last_ms(trial), trial.status == "failed"
        self.tracker.submit(Runs.trial_ended, trial.number, "FAILED" if is_failed else "FINISHED", trial.reason, ended_ms)
        trials = [known.trial for known in self.trials.values()]
        num_done = sum(trial.status != "running" for trial in trials)
        if best := ranked(trials):
            dev = best[0].best
            metrics = {f"best/{key}": dev[f"dev/{key}"] for key in ("score", *self.tasks, *OVERALL) if f"dev/{key}" in dev}
            self.tracker.submit(Runs.best, num_done, metrics | {"trials_done": num_done}, ended_ms)


def _start(runs: Runs, trial: TrialResult, time_ms: int) -> None:
    """Start the run of a trial; in the tracker's thread, because a trial's recipe is read from its config."""
    tags = {"recipe": trial.recipe} | ({"baseline": str(trial.baseline)} if trial.baseline is not None else {})
    name = f"{trial.number:03d} {describe(trial.params)}"[:100]
    runs.trial_started(trial.number, name, trial.params, trial.folder / "config.yaml", tags, time_ms)


def _last_ms(trial: TrialResult) -> int:
    return int(trial.records[-1]["time_ms"]) if trial.records else now_ms()
