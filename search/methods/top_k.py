"""Top-k, one of the trial schedulers: evaluate every trial once, and run the best k to the end."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field, PositiveInt

from minbert_core.settings.models import Variant
from search.methods.decisions import CONTINUE, PAUSE, STOP, WAITS, Arrival, Scheduler


class TopKScheduler:
    """Top-k selection: the best k at the first rung run to the end, once all `num_trials` have reached it or failed.

    A trial that k others beat can no longer be among the best k, so it is stopped at once. So at most k trials wait, and only
    their snapshots are kept. Of equal scores the lower number wins. A trial that fails later is not replaced.
    """

    why_waits = WAITS

    def __init__(self, rungs: Sequence[int], k: int, num_trials: int) -> None:
        self.k, self.num_trials = k, num_trials
        self.law = f"not among the best {k} of the first rung"
        self._firsts: dict[int, tuple[int, float]] = {}  # number -> (rung, score) of the first point; not for exempt trials
        self._free: set[int] = set()  # exempt, or selected before
        self._lost: set[int] = set()

    def decide(self, arrival: Arrival) -> str:
        number, rung = arrival.number, arrival.rung
        if arrival.exempt or rung > self._firsts.setdefault(number, (rung, arrival.score))[0]:
            self._free.add(number)
        return self.verdict(number)

    def lost(self, number: int) -> None:
        self._lost.add(number)

    def verdict(self, number: int) -> str:
        if number in self._free or number not in self._firsts:
            return CONTINUE
        if sum(self._order(other) < self._order(number) for other in self._firsts) >= self.k:
            return STOP
        arrived = self._firsts.keys() | self._free | self._lost
        return CONTINUE if len(arrived) >= self.num_trials else PAUSE

    def choose(self, may_begin: bool, candidates: Container[int]) -> int | None:
        return None  # those that continue have a verdict

    def forecasts(self) -> Mapping[int, float]:
        return {}

    def _order(self, number: int) -> tuple[float, int]:
        return -self._firsts[number][1], number


class TopK(Variant):
    """One evaluation, then the top k ("1-Epoch", Egele et al. 2023, arXiv 2307.15422).

    Every trial runs to the first rung. The best k of all recipes together continue to the end without further selection, and so
    do the baselines, in addition to the k.
    """

    kind: Literal["top_k"] = "top_k"
    k: PositiveInt = Field(3, description="trials that continue after the first rung, not counting baselines")
    stops: ClassVar[bool] = True
    is_geometric: ClassVar[bool] = True
    least_rungs: ClassVar[int] = 2

    def most_waiting(self, num_trials: int) -> int:
        return self.k

    def build(self, rungs: Sequence[int], num_trials: int) -> Scheduler:
        return TopKScheduler(rungs, self.k, num_trials)

    def describe(self, rungs: Sequence[int]) -> str:
        return f"the best {self.k} at {rungs[0]}/{rungs[-1]} continue to the end"

    def warning(self, rungs: Sequence[int], num_trials: int, num_baselines: int, num_recipes: int) -> str:
        if num_trials - num_baselines > self.k:
            return ""
        return f"top_k continues {self.k} of {num_trials - num_baselines} trials, so it stops none."
