"""Several listeners of one search: the terminal with its log, and MLflow."""

from __future__ import annotations

from typing import Any, Protocol

from search.study.searcher import Listener
from search.study.trials import TrialResult


class SearchListener(Listener, Protocol):
    """A recipient of all events of a search: those of its trials, and those before its first trial."""

    def pretrained(self, record: dict[str, Any]) -> None: ...
    def replay(self, trials: list[TrialResult]) -> None: ...


class OtherRecord:
    """A record of the trials in addition to MLflow's, which is closed at the end of the search.

    By default pretraining and pauses leave no trace in it, and a retried trial measures again what it has.
    """

    def pretrained(self, record: dict[str, Any]) -> None:
        """Do nothing."""

    def replay(self, trials: list[TrialResult]) -> None:
        """Take over the trials of an interrupted search."""
        for trial in trials:
            if trial.status == "running":
                self.started(trial, resumed=True)
            else:
                self.ended(trial)

    def started(self, trial: TrialResult, resumed: bool) -> None:
        raise NotImplementedError

    def reported(self, trial: TrialResult, new: list[dict[str, Any]]) -> None:
        raise NotImplementedError

    def paused(self, trial: TrialResult, why: str) -> None:
        """Do nothing."""

    def retried(self, trial: TrialResult, why: str) -> None:
        """Do nothing."""

    def ended(self, trial: TrialResult) -> None:
        raise NotImplementedError

    def close(self, was_interrupted: bool) -> None:
        raise NotImplementedError


class Listeners:
    """Several listeners as one. Each event goes to each of them, in order."""

    def __init__(self, *listeners: SearchListener) -> None:
        self.listeners = listeners

    def pretrained(self, record: dict[str, Any]) -> None:
        for listener in self.listeners:
            listener.pretrained(record)

    def replay(self, trials: list[TrialResult]) -> None:
        for listener in self.listeners:
            listener.replay(trials)

    def started(self, trial: TrialResult, resumed: bool) -> None:
        for listener in self.listeners:
            listener.started(trial, resumed)

    def reported(self, trial: TrialResult, new: list[dict[str, Any]]) -> None:
        for listener in self.listeners:
            listener.reported(trial, new)

    def paused(self, trial: TrialResult, why: str) -> None:
        for listener in self.listeners:
            listener.paused(trial, why)

    def retried(self, trial: TrialResult, why: str) -> None:
        for listener in self.listeners:
            listener.retried(trial, why)

    def ended(self, trial: TrialResult) -> None:
        for listener in self.listeners:
            listener.ended(trial)
