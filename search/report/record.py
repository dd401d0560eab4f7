"""The record of a running search in MLflow: every event of its trials and of pretraining, passed to a `Tracker`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from minbert_core.clock import now_ms
from minbert_core.config import OVERALL
from minbert_core.train.folder import read_records
from search.plan.folder import PRETRAINING
from search.report.words import describe
from search.study.study import TrialResult, ranked
from search.tracking.runs import Runs
from search.tracking.tracker import Tracker


class Recorder:
    """The listener of a search that records in MLflow."""

    def __init__(self, folder: Path, tasks: list[str], full: int, tracker: Tracker, say: Callable[[str], None]) -> None:
        self.folder, self.tasks, self.full, self.tracker, self.say = folder, tasks, full, tracker, say
        self.warned = False
        self.trials: dict[int, TrialResult] = {}

    def pretrained(self, record: dict[str, Any]) -> None:
        """Record a measurement of pretraining before the trials."""
        self.tracker.submit(Runs.pretrained, [record])

    def replay(self, trials: list[TrialResult]) -> None:
        """Record the trials of an interrupted search again; what MLflow has stays."""
        if pretrained := read_records(self.folder / PRETRAINING):
            self.tracker.submit(Runs.pretrained, pretrained)
        for trial in trials:
            self.trials[trial.number] = trial
            started_ms = trial.records[0]["time_ms"] if trial.records else now_ms()
            self.tracker.submit(Runs.trial_started, *_run(trial), time_ms=started_ms)
            if trial.status == "running":
                self.tracker.submit(Runs.records, trial.number, trial.records)
            else:
                self._end(trial)

    def started(self, trial: TrialResult, resumed: bool) -> None:
        self.trials[trial.number] = trial
        self.tracker.submit(Runs.trial_started, *_run(trial), time_ms=now_ms())

    def reported(self, trial: TrialResult, new: list[dict[str, Any]]) -> None:
        self.trials[trial.number] = trial
        self.tracker.submit(Runs.records, trial.number, new)

    def paused(self, trial: TrialResult, why: str) -> None:
        """End the run of a paused trial as FINISHED, because KILLED would show a red cross. Later it is RUNNING again."""
        self.trials[trial.number] = trial
        reason = f"paused at {trial.rung}/{self.full}: {why}"
        self.tracker.submit(Runs.trial_ended, trial.number, "FINISHED", reason, _last_ms(trial))

    def ended(self, trial: TrialResult) -> None:
        """End a trial's run. When MLflow has failed, report that once."""
        self.trials[trial.number] = trial
        self._end(trial)
        if self.tracker.error and not self.warned:
            self.warned = True
            self.say(f"MLflow: {self.tracker.error} The search continues. metrics.jsonl keeps all, and --resume logs it again.")

    def _end(self, trial: TrialResult) -> None:
        # all records once more: the last ones of a failed trial came without a report
        self.tracker.submit(Runs.records, trial.number, trial.records)
        ended_ms, is_failed = _last_ms(trial), trial.status == "failed"
        self.tracker.submit(Runs.trial_ended, trial.number, "FAILED" if is_failed else "FINISHED", trial.reason, ended_ms)
        if best := ranked(self.trials.values()):
            dev, num_done = best[0].best, sum(other.status != "running" for other in self.trials.values())
            metrics = {f"best/{key}": dev[f"dev/{key}"] for key in ("score", *self.tasks, *OVERALL) if f"dev/{key}" in dev}
            self.tracker.submit(Runs.best, num_done, metrics | {"trials_done": num_done}, ended_ms)


def _run(trial: TrialResult) -> tuple[int, str, dict[str, Any], Path, dict[str, str]]:
    """Return a trial's number, and its run's name, params, config file and tags."""
    tags = {"recipe": trial.recipe} | ({"baseline": str(trial.baseline)} if trial.baseline is not None else {})
    name = f"{trial.number:03d} {describe(trial.params)}"[:100]
    return trial.number, name, trial.params, trial.folder / "config.yaml", tags


def _last_ms(trial: TrialResult) -> int:
    return int(trial.records[-1]["time_ms"]) if trial.records else now_ms()
