"""The study's journal, and the sampler's view of it: a waiting trial counts as a stopped one, an earlier search's trials count.

Optuna has no state for a trial that waits for others. As a running one it would be missing from the sampler's model, and TPE's
constant liar would take it for a bad one. As a pruned one, which it may become, it counts with the score that it has.

A trial scheduler that forecasts scores (freeze_thaw) lets the sampler see waiting and stopped trials as completed, with their
forecasts: else TPE would rank them by how far they were trained. A sampler that knows completed trials only (`counts_stopped`)
sees them so in any case, without a forecast with their last score.

The trials of an earlier search (`--from NAME`, plan.json) are older than the first of this one: their numbers are below 0.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.space.domains import Domain
from search.study.journal import CheckedFile


class StudyStorage(JournalStorage):
    """A journal file whose `get_all_trials`, through which Optuna and its samplers see the study, shows that view."""

    def __init__(self, journal: Path, counts_stopped: bool = False) -> None:
        super().__init__(CheckedFile(str(journal)))
        self.counts_stopped = counts_stopped
        self.waiting: Collection[int] = ()  # the numbers of the trials that wait
        self.forecasts: Callable[[], Mapping[int, float]] = no_forecasts  # a trial's number -> its expected score at its end
        self.earlier: list[FrozenTrial] = []  # of an earlier search

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        forecasts = self.forecasts()
        if not self.waiting and not self.counts_stopped and not forecasts:
            earlier = [trial for trial in self.earlier if states is None or trial.state in states]
            return earlier + super().get_all_trials(study_id, deepcopy, states)
        recorded = self.earlier + super().get_all_trials(study_id, deepcopy)
        return as_the_sampler_sees(recorded, self.waiting, states, self.counts_stopped, forecasts)

    def recorded_trials(self, study_id: int) -> list[FrozenTrial]:
        """Return the trials in their recorded states. They are Optuna's own objects and must not be changed."""
        return super().get_all_trials(study_id, deepcopy=False)


def no_forecasts() -> Mapping[int, float]:
    return {}


def as_the_sampler_sees(
    recorded: list[FrozenTrial],
    waiting: Container[int],
    states: Container[TrialState] | None,
    counts_stopped: bool = False,
    forecasts: Mapping[int, float] = MappingProxyType({}),
) -> list[FrozenTrial]:
    """Return the trials with the waiting ones as stopped; only those in `states`, unless it is None.

    forecasts: of these and of stopped ones, which count as completed with them. counts_stopped: so do all stopped ones, those
    without a forecast with their last score.
    """
    trials = [_as_pruned(trial) if trial.number in waiting else trial for trial in recorded]
    if counts_stopped or forecasts:
        trials = [_as_completed(trial, forecasts.get(trial.number), counts_stopped) for trial in trials]
    return [trial for trial in trials if states is None or trial.state in states]


def _as_completed(trial: FrozenTrial, forecast: float | None, counts_stopped: bool) -> FrozenTrial:
    """Return a stopped trial as completed with its forecast or, if it counts, its last score; any other as it is."""
    known = trial.intermediate_values if counts_stopped else {}
    score = known[max(known)] if known else math.nan
    if forecast is not None and trial.user_attrs.get("status") != "failed":  # it forecasts what a sound trial would reach
        score = forecast
    if trial.state != TrialState.PRUNED or not math.isfinite(score):
        return trial
    completed = copy.copy(trial)
    completed.state = TrialState.COMPLETE
    completed.value = score
    return completed


def _as_pruned(trial: FrozenTrial) -> FrozenTrial:
    pruned = copy.copy(trial)
    pruned.state = TrialState.PRUNED
    return pruned


def frozen_trials(earlier: Sequence[Mapping[str, Any]], domains: Mapping[str, Domain]) -> list[FrozenTrial]:
    """Return the trials of an earlier search, as plan.json has them, as Optuna's, numbered from -n to -1.

    earlier: per trial its params in this space, its scores by rung, and whether it was completed.
    """
    trials = []
    for i, known in enumerate(earlier):
        scores = {int(rung): score for rung, score in known["scores"].items()}
        trial = create_trial(
            state=TrialState.COMPLETE if known["completed"] else TrialState.PRUNED,
            value=max(scores.values()) if known["completed"] else None,
            params=known["params"],
            distributions={name: domains[name].distribution for name in known["params"]},
            intermediate_values=scores,
        )
        trial.number = trial._trial_id = i - len(earlier)
        trials.append(trial)
    return trials
