"""Promotion, one of the trial schedulers: pause at each rung, and continue once among the best."""

from __future__ import annotations

import bisect
from collections.abc import Container, Mapping, Sequence
from typing import ClassVar, Literal

from minbert_core.settings.models import Variant
from search.methods.decisions import CONTINUE, PAUSE, STOP, WAITS, Arrival, Scheduler, too_few


class PromotionScheduler:
    """Asynchronous successive halving by promotion: a trial pauses at its rung, and continues once it is among the best.

    Of n peers that have been at a rung, the best n // reduction are promoted, whenever they have become so. A trial that so
    many others beat that it can no longer be among them is stopped at once; so is the rest, once no other trial can arrive.
    Departures from Algorithm 2: a trial that is promoted at its own point continues without a pause; a rung at which no other
    trial can arrive promotes at least one, so that a group of few peers has a winner; trials are stopped, as above, since the
    number of trials is known.
    """

    why_waits = WAITS

    def __init__(self, rungs: Sequence[int], num_trials: int) -> None:
        self.rungs, self.num_trials = tuple(rungs), num_trials
        self.reduction = self.rungs[1] // self.rungs[0]
        self.law = f"not among the best 1/{self.reduction} of its rung"
        # rung -> peers -> (-score, number) of those that have been there, best first; of equal scores the lower number
        self._orders: dict[int, dict[str, list[tuple[float, int]]]] = {rung: {} for rung in self.rungs}
        self._entered: set[tuple[int, int]] = set()  # (trial, rung)
        self._last: dict[int, int] = {}  # number -> the last rung that it has reached
        self._verdicts: dict[int, str] = {}
        self._lost: set[int] = set()

    def decide(self, arrival: Arrival) -> str:
        number, rung = arrival.number, arrival.rung
        if (number, rung) in self._entered:  # a resumed search enters its points again; the first score counts
            return self.verdict(number)
        self._entered.add((number, rung))
        order = self._orders[rung].setdefault(arrival.peers, [])
        bisect.insort(order, (-arrival.score, number))
        self._last[number] = rung
        self._verdicts[number] = CONTINUE if arrival.exempt or rung == self.rungs[-1] else PAUSE
        self._change(order[: len(order) // self.reduction], rung, CONTINUE)
        self._settle()
        return self.verdict(number)

    def lost(self, number: int) -> None:
        self._lost.add(number)
        self._settle()

    def verdict(self, number: int) -> str:
        return self._verdicts.get(number, CONTINUE)

    def choose(self, may_begin: bool, candidates: Container[int]) -> int | None:
        return None  # those that continue have a verdict

    def forecasts(self) -> Mapping[int, float]:
        return {}

    def _change(self, trials: Sequence[tuple[float, int]], rung: int, verdict: str) -> None:
        """Decide about those of the trials that wait at the rung."""
        for _, number in trials:
            if self._last[number] == rung and self._verdicts[number] == PAUSE:
                self._verdicts[number] = verdict

    def _settle(self) -> None:
        """Stop the waiting trials that have no chance, from the lowest rung up: it depends on how many can still arrive."""
        coming = max(0, self.num_trials - len(self._last.keys() | self._lost))
        for rung in self.rungs[:-1]:
            for order in self._orders[rung].values():
                if not coming:
                    self._change(order[: max(1, len(order) // self.reduction)], rung, CONTINUE)
                self._change(order[max(1, (len(order) + coming) // self.reduction) :], rung, STOP)
            there = (number for number, last in self._last.items() if last == rung and number not in self._lost)
            coming += sum(self._verdicts[number] != STOP for number in there)


class Promotion(Variant):
    """Asynchronous successive halving, Li et al. 2020 (arXiv 1810.05934), Algorithm 2, which promotes; rungs kept per recipe.

    A trial pauses at its rung. A free slot first continues a trial that is among the best 1/reduction, else begins a new one.
    """

    kind: Literal["promotion"] = "promotion"
    stops: ClassVar[bool] = True
    is_geometric: ClassVar[bool] = True
    least_rungs: ClassVar[int] = 2

    def build(self, rungs: Sequence[int], num_trials: int) -> Scheduler:
        return PromotionScheduler(rungs, num_trials)

    def most_waiting(self, num_trials: int) -> int:
        return num_trials

    def describe(self, rungs: Sequence[int]) -> str:
        return f"trials pause at each rung, and the best 1/{rungs[1] // rungs[0]} there continue"

    def warning(self, rungs: Sequence[int], num_trials: int, num_baselines: int, num_recipes: int) -> str:
        return too_few(rungs, num_trials, num_recipes)
