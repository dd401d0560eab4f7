"""Freeze-thaw, one of the trial schedulers: continue the paused trial that promises the most, or begin a new one.

    a point -> CurveModel -> a forecast of every paused trial's last score -> choose: expected improvement per second

Legend: N trials that can be chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from minbert_core.settings.models import Variant
from search.methods.curve_model import CurveModel, Floats, chance, expected_gain
from search.methods.decisions import CONTINUE, PAUSE, STOP, Arrival, Scheduler

ENOUGH_RUNGS = 5  # with 3 it needs as much as ASHA, with 9 less (LOG.md, November 28th); 5 is assumed
SOME_SECONDS = 1e-3  # in place of a cost of 0


class Frozen(NamedTuple):
    """A trial at its last point."""

    place: int  # of its rung
    peers: str
    score: float
    part_seconds: float


class FreezeThawScheduler:
    """Freeze-thaw: every trial pauses at every rung, and a free slot goes to what promises the most per second.

    The choice is between the paused trials and a new one. What a trial promises is the expected improvement of its last score
    over the best that was completed (until then, the best that is forecast), per second that it is expected to take: to its
    next point, and from there to its end with its chance to become the best, since else it is given up. A trial whose chance
    is below `chance` is stopped, which frees its snapshot. A trial that is chosen at its own point continues without a pause.
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
        self._completed = -math.inf  # the best last score

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
        if before is None:
            self.model.enter_first(arrival.score)
        else:
            self.model.enter_step(before.place, before.peers, before.score, arrival.score)
        self._trials[number] = Frozen(index, arrival.peers, arrival.score, arrival.seconds / arrival.rung)
        if arrival.rung == self.rungs[-1]:
            self._completed = max(self._completed, arrival.score)
        if arrival.exempt or arrival.rung == self.rungs[-1]:
            self._free.add(number)
        numbers, mean_N, deviation_N = self._forecasts()
        is_hopeless_N = chance(mean_N, deviation_N, self._completed) < self.chance
        self._stopped.update(numbers[i] for i in np.flatnonzero(is_hopeless_N))
        if self.verdict(number) == PAUSE and self._promising(self._num_begun < self.num_trials) == number:
            self._trains.add(number)
        return self.verdict(number)

    def lost(self, number: int) -> None:
        self._free.add(number)

    def verdict(self, number: int) -> str:
        if number in self._stopped:
            return STOP
        return CONTINUE if number not in self._trials or number in self._free | self._trains else PAUSE

    def choose(self, may_begin: bool) -> int | None:
        number = self._promising(may_begin)
        if number is not None:
            self._trains.add(number)
        return number

    @property
    def _num_begun(self) -> int:
        return max(self._trials, default=-1) + 1  # numbers are given in the order of the beginnings

    def _forecasts(self) -> tuple[list[int], Floats, Floats]:
        """Forecast the last scores of the trials that can be chosen: their numbers, means and deviations."""
        chosen = self._free | self._trains | self._stopped
        numbers = [number for number in self._trials if number not in chosen]
        return numbers, *self.model.last([self._trials[number][:3] for number in numbers])

    def _promising(self, may_begin: bool) -> int | None:
        """Return the trial that promises the most per second; None if that is a new one, or there is none."""
        numbers, mean_N, deviation_N = self._forecasts()
        if not numbers:
            return None
        best = self._completed if math.isfinite(self._completed) else float(mean_N.max())
        places = np.array([self._trials[number].place for number in numbers])
        per_part_N = np.array([max(self._trials[number].part_seconds, SOME_SECONDS) for number in numbers])
        gain_N = self._gain_per_part(mean_N, deviation_N, best, places) / per_part_N
        first = int(np.argmax(gain_N))
        return None if may_begin and self._gain_of_new(best) >= gain_N[first] else numbers[first]

    def _gain_of_new(self, best: float) -> float:
        mean, deviation = map(np.array, self.model.last_of_new())
        seconds = sum(trial.part_seconds for trial in self._trials.values()) / len(self._trials)
        return float(self._gain_per_part(mean, deviation, best, np.array(-1))) / max(seconds, SOME_SECONDS)

    def _gain_per_part(self, mean: Floats, deviation: Floats, best: float, place: NDArray[np.int64]) -> Floats:
        """Compute what trials promise per part of the budget that they are expected to take. place: of a rung; -1: before all.

        Both sides of the choice are charged alike. When a new trial was charged less, new ones were begun without end.
        """
        rungs = np.array([0, *self.rungs])
        to_next, rest = rungs[place + 2] - rungs[place + 1], rungs[-1] - rungs[place + 2]
        gain: Floats = expected_gain(mean, deviation, best) / (to_next + chance(mean, deviation, best) * rest)
        return gain


class FreezeThaw(Variant):
    """Freeze-thaw, after Swersky, Snoek & Adams 2014 (arXiv 1406.3896): pause everything, continue what promises the most.

    Departures: the learning curves are a Markov chain (search/methods/curve_model.py); the choice is by expected improvement
    per expected second, not by entropy; only the sampler knows the points of the space.
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
