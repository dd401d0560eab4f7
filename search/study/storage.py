"""The study's journal, and the sampler's view of it, in which a waiting trial counts as a stopped one.

Optuna has no state for a trial that waits for others. As a running one it would be missing from the sampler's model, and TPE's
constant liar would take it for a bad one. As a pruned one, which it may become, it counts with the score that it has.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Container
from pathlib import Path

from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, TrialState

from search.study.journal import CheckedFile


class StudyStorage(JournalStorage):
    """A journal file whose `get_all_trials`, through which Optuna and its samplers see the study, shows that view."""

    def __init__(self, journal: Path) -> None:
        super().__init__(CheckedFile(str(journal)))
        self.waiting: Collection[int] = ()  # the numbers of the trials that wait

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        if not self.waiting:
            return super().get_all_trials(study_id, deepcopy, states)
        return as_the_sampler_sees(super().get_all_trials(study_id, deepcopy), self.waiting, states)

    def recorded_trials(self, study_id: int) -> list[FrozenTrial]:
        """Return the trials in their recorded states. They are Optuna's own objects and must not be changed."""
        return super().get_all_trials(study_id, deepcopy=False)


def as_the_sampler_sees(
    recorded: list[FrozenTrial], waiting: Container[int], states: Container[TrialState] | None
) -> list[FrozenTrial]:
    """Return the trials with the waiting ones as stopped; only those in `states`, unless it is None."""
    trials = [_as_pruned(trial) if trial.number in waiting else trial for trial in recorded]
    return [trial for trial in trials if states is None or trial.state in states]


def _as_pruned(trial: FrozenTrial) -> FrozenTrial:
    pruned = copy.copy(trial)
    pruned.state = TrialState.PRUNED
    return pruned
