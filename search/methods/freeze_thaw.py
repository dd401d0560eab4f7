"""Freeze-thaw, one of the trial schedulers: continue the paused trial that promises the most, or begin a new one.

    a point -> CurveModel -> a forecast of every paused trial's score at its end -> choose: expected improvement per second

A trial's score is that of its best evaluation so far, as in the ranking of the search, so the curves never fall.
Legend: N trials that can be chosen, R points.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from minbert_core.settings.models import Variant
from search.methods.curve_model import SMALLEST, CurveModel, Floats, chance, expected_gain
from search.methods.decisions import CONTINUE, PAUSE, STOP, Arrival, Scheduler

ENOUGH_RUNGS = 5  # assumed: a forecast needs steps to learn from
SOME_SECONDS = 1e-3  # in place of a cost of 0


class Frozen(NamedTuple):
    """A trial at its last point."""

    place: int  # of its rung
    peers: str
    score: float  # the best so far
    part_seconds: float


class FreezeThawScheduler:
    """Freeze-thaw: every trial pauses at every rung, and a free slot goes to what promises the most per second.

    The choice is between the paused trials and a new one. A trial is trained to see what it will come to, and is given up if
    that is not enough. To train to a point ahead moves the forecast of its score at its end, by an amount that is known
    beforehand in distribution. What the trial promises there is the expected improvement of the forecast over the best that
    was completed (until then, the best that is forecast), per second that it is expected to take: to that point, and from there
    to its end with the chance that the forecast exceeds the best. It counts at the point where it promises the most.

    A trial whose chance to become the best is below `chance` is stopped, which frees its snapshot; not in a stage in which no
    trial has been completed, since nothing is known of its next stage. A trial that is chosen at its own point continues
    without a pause.
    """

    why_waits = "others promise more per second"

    def __init__(self, rungs: Sequence[int], num_trials: int, chance: float) -> None:
        self.rungs, self.num_trials, self.chance = tuple(rungs), num_trials, chance
        self.law = f"its chance to become the best is below {100 * chance:g} %"
        self.model = CurveModel(len(self.rungs))
        self._trials: dict[int, Frozen] = {}
        self._free: set[int] = set()  # exempt, completed or lost: not to be chosen
        self._trains: set[int] = set()  # chosen, or continued at its own point
        self._stopped: set[int] = set()
        self._completed = -math.inf  # the best score of a completed trial
        self._last_peers: set[str] = set()  # of the completed trials at their last points

    def decide(self, arrival: Arrival) -> str:
        number, index = arrival.number, self.rungs.index(arrival.rung)
        before = self._trials.get(number)
        if before is not None and before.place >= index:  # a resumed search enters its points again; the first score counts
            return self.verdict(number)
        self._trains.discard(number)
        # it trained on; a resumed search, which does not know whom it had chosen, may have judged it in the meantime
        self._stopped.discard(number)
        if not math.isfinite(arrival.score):
            self._stopped.add(number)
            return self.verdict(number)
        score = arrival.score if before is None else max(before.score, arrival.score)
        if before is None:
            self.model.enter_first(score)
        else:
            self.model.enter_step(before.place, before.peers, before.score, score)
        self._trials[number] = Frozen(index, arrival.peers, score, arrival.seconds / arrival.rung)
        if arrival.rung == self.rungs[-1]:
            self._completed = max(self._completed, score)
            self._last_peers.add(arrival.peers)
        if arrival.exempt or arrival.rung == self.rungs[-1]:
            self._free.add(number)
        numbers, mean_N, deviation_N = self._forecasts(self._trials)
        is_hopeless_N = chance(mean_N, deviation_N, self._completed) < self.chance
        hopeless = [numbers[i] for i in np.flatnonzero(is_hopeless_N)]
        self._stopped.update(one for one in hopeless if self._trials[one].peers in self._last_peers)
        if self.verdict(number) == PAUSE and self._promising(self._num_begun < self.num_trials, self._trials) == number:
            self._trains.add(number)
        return self.verdict(number)

    def lost(self, number: int) -> None:
        self._free.add(number)

    def verdict(self, number: int) -> str:
        if number in self._stopped:
            return STOP
        return CONTINUE if number not in self._trials or number in self._free | self._trains else PAUSE

    def choose(self, may_begin: bool, candidates: Container[int]) -> int | None:
        number = self._promising(may_begin, candidates)
        if number is not None:
            self._trains.add(number)
        return number

    def forecasts(self) -> Mapping[int, float]:
        numbers = [number for number, trial in self._trials.items() if trial.place < len(self.rungs) - 1]
        mean_N, _ = self.model.last([self._trials[number][:3] for number in numbers])
        return dict(zip(numbers, mean_N.tolist(), strict=True))

    @property
    def _num_begun(self) -> int:
        return max(self._trials, default=-1) + 1  # numbers are given in the order of the beginnings

    def _forecasts(self, candidates: Container[int]) -> tuple[list[int], Floats, Floats]:
        """Forecast the scores at the end of the candidates that can be chosen: their numbers, means and deviations."""
        chosen = self._free | self._trains | self._stopped
        numbers = [number for number in self._trials if number in candidates and number not in chosen]
        return numbers, *self.model.last([self._trials[number][:3] for number in numbers])

    def _promising(self, may_begin: bool, candidates: Container[int]) -> int | None:
        """Return the candidate that promises the most per second; None if that is a new trial, or there is none."""
        numbers, mean_N, deviation_N = self._forecasts(candidates)
        if not numbers:
            return None
        best = self._completed if math.isfinite(self._completed) else float(mean_N.max())
        trials = [self._trials[number] for number in numbers]
        per_part_N = np.array([max(trial.part_seconds, SOME_SECONDS) for trial in trials])
        places_N, groups = np.array([trial.place for trial in trials]), [trial.peers for trial in trials]
        gain_N = self._gain_per_part(mean_N, deviation_N, best, places_N, groups) / per_part_N
        first = int(np.argmax(gain_N))
        return None if may_begin and self._gain_of_new(best) >= gain_N[first] else numbers[first]

    def _gain_of_new(self, best: float) -> float:
        mean, deviation = self.model.last_of_new()
        seconds = sum(trial.part_seconds for trial in self._trials.values()) / len(self._trials)
        [gain] = self._gain_per_part(np.array([mean]), np.array([deviation]), best, np.array([-1]), [""])
        return float(gain) / max(seconds, SOME_SECONDS)

    def _gain_per_part(
        self, mean_N: Floats, deviation_N: Floats, best: float, places_N: NDArray[np.int64], groups: Sequence[str]
    ) -> Floats:
        """Compute what trials promise per part of the budget, at the point where they promise the most, shape (N,).

        places: of their rungs; -1: before all. With the whole deviation in place of what a point reveals, new trials were
        begun without end.
        """
        left_by_group = {group: self.model.deviations(group) for group in dict.fromkeys(groups)}
        left_NR = np.array([left_by_group[group] for group in groups])  # deviation that is left at a point
        revealed_NR = np.sqrt(np.maximum(deviation_N[:, None] ** 2 - left_NR**2, SMALLEST**2))
        rungs_R, begun_N = np.array(self.rungs), np.array([0, *self.rungs])[places_N + 1]
        gain_NR = expected_gain(mean_N[:, None], revealed_NR, best)
        parts_NR = rungs_R - begun_N[:, None] + chance(mean_N[:, None], revealed_NR, best) * (rungs_R[-1] - rungs_R)
        is_ahead_NR = rungs_R > begun_N[:, None]
        promise_N: Floats = (gain_NR / np.where(is_ahead_NR, parts_NR, np.inf)).max(axis=1)
        return promise_N


class FreezeThaw(Variant):
    """Freeze-thaw, after Swersky, Snoek & Adams 2014 (arXiv 1406.3896): pause everything, continue what promises the most.

    Departures: the learning curves are a Markov chain (search/methods/curve_model.py); the choice is by expected improvement
    of the forecast per expected second, not by entropy; only the sampler knows the points of the space.
    """

    kind: Literal["freeze_thaw"] = "freeze_thaw"
    chance: float = Field(0.02, gt=0, le=0.5, description="chance to become the best below which a trial is stopped")
    stops: ClassVar[bool] = True
    is_geometric: ClassVar[bool] = False
    least_rungs: ClassVar[int] = 2

    def build(self, rungs: Sequence[int], num_trials: int) -> Scheduler:
        return FreezeThawScheduler(rungs, num_trials, self.chance)

    def most_waiting(self, num_trials: int) -> int:
        return num_trials

    def describe(self, rungs: Sequence[int]) -> str:
        return f"what promises the most per second continues; with a chance below {100 * self.chance:g} %, a trial is stopped"

    def warning(self, rungs: Sequence[int], num_trials: int, num_baselines: int, num_recipes: int) -> str:
        if len(rungs) >= ENOUGH_RUNGS:
            return ""
        return f"freeze_thaw decides at each rung, and {len(rungs)} are few. Use more, such as [1, 2, 3, 4, 5, 6, 7, 8, 9]."
