"""ASHA, one of the trial schedulers: at each rung, stop what is not among the best of those that were there before."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from minbert_core.settings.models import Variant
from search.methods.decisions import CONTINUE, STOP, Arrival, Scheduler, too_few


class RungScheduler:
    """Asynchronous successive halving: stops a trial below the best 1/reduction of the peers that were at its rung before it.

    With one set of rungs for all, recipes that start slowly would be stopped by those that start fast. A rung holds the score
    of the point itself, not the best score so far. Decisions equal those of Ray's ASHAScheduler with one instance per group of
    peers. Ray's own class is not used because it expects Ray's trials, and a resumed trial has a new id there.
    With a veto, a trial continues if it is not below them on the score or on any one task. At equal cost, it is compared with
    what its peers had reached after as many seconds, between two of their points by a straight line.
    """

    why_waits = ""  # no trial waits

    def __init__(self, rungs: Sequence[int], veto: bool = False, at_cost: bool = False) -> None:
        self.rungs, self.veto, self.at_cost = tuple(rungs), veto, at_cost
        self.reduction = self.rungs[1] // self.rungs[0] if len(self.rungs) > 1 else 2
        of = "its peers at equal cost" if at_cost else "its rung"
        self.law = f"below the best 1/{self.reduction} of {of}{' on the score and on every task' if veto else ''}"
        # (peers, rung) -> "" for the score or a task -> values in the order of arrival
        self._scores: defaultdict[tuple[str, int], defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        # peers -> trial -> (seconds, values) of its points
        self._curves: defaultdict[str, dict[int, list[tuple[float, dict[str, float]]]]] = defaultdict(dict)
        self._entered: set[tuple[int, int]] = set()  # (trial, rung)
        self._verdicts: dict[int, str] = {}

    def decide(self, arrival: Arrival) -> str:
        """Enter a trial's score at a rung and return CONTINUE or STOP. Exempt trials and those at the last rung continue."""
        number, rung = arrival.number, arrival.rung
        if (number, rung) in self._entered:  # a resumed search enters its points again; the first score counts
            return self.verdict(number)
        self._entered.add((number, rung))
        values = {"": arrival.score, **(arrival.tasks if self.veto else {})}
        is_below = all(self._is_below(value, self._earlier(arrival, name)) for name, value in values.items())
        for name, value in values.items():
            self._scores[arrival.peers, rung][name].append(value)
        self._curves[arrival.peers].setdefault(number, []).append((arrival.seconds, values))
        stops = is_below and not arrival.exempt and rung < self.rungs[-1]  # at the last rung a trial ends by itself
        self._verdicts[number] = STOP if stops else CONTINUE
        return self._verdicts[number]

    def _earlier(self, arrival: Arrival, name: str) -> Sequence[float]:
        """Return what the peers had before, at the rung or at the same cost. One that ended earlier keeps its last value."""
        if not self.at_cost:
            return self._scores[arrival.peers, arrival.rung][name]
        others = (curve for other, curve in self._curves[arrival.peers].items() if other != arrival.number)
        begun = [curve for curve in others if curve[0][0] <= arrival.seconds]
        return [
            float(np.interp(arrival.seconds, [at for at, _ in curve], [values[name] for _, values in curve])) for curve in begun
        ]

    def _is_below(self, value: float, earlier: Sequence[float]) -> bool:
        return bool(earlier) and bool(value < np.nanpercentile(earlier, (1 - 1 / self.reduction) * 100))

    def lost(self, number: int) -> None:
        """Do nothing: no trial waits for another."""

    def verdict(self, number: int) -> str:
        return self._verdicts.get(number, CONTINUE)

    def choose(self, may_begin: bool, candidates: Container[int]) -> int | None:
        return None

    def forecasts(self) -> Mapping[int, float]:
        return {}


class Asha(Variant):
    """Asynchronous successive halving, Li et al. 2018 (arXiv 1810.05934), stopping variant, rungs kept per recipe.

    Departures: `veto` and `compare_at: cost`.
    """

    kind: Literal["asha"] = "asha"
    veto: bool = Field(
        False, description="also continue a trial that is among the best 1/reduction of its rung on any one task"
    )
    compare_at: Literal["examples", "cost"] = Field(
        "examples",
        description="what peers are compared at: equal examples, or equal seconds, where a costly method must earn its cost",
    )
    stops: ClassVar[bool] = True  # a trial may end at a rung because of its score there
    is_geometric: ClassVar[bool] = True  # the rungs grow by one factor, which says how many continue
    least_rungs: ClassVar[int] = 1  # with one rung, every trial runs to its end

    def build(self, rungs: Sequence[int], num_trials: int) -> Scheduler:
        return RungScheduler(rungs, self.veto, self.compare_at == "cost")

    def most_waiting(self, num_trials: int) -> int:
        """Return the largest number of trials paused at the same time, whose snapshots are kept."""
        return 0

    def describe(self, rungs: Sequence[int]) -> str:
        """Describe the scheduler for the plan; empty if it stops no trial."""
        any_task = ", on the score or on any one task," if self.veto else ""
        cost = ", compared at equal seconds," if self.compare_at == "cost" else ""
        return f"the best 1/{rungs[1] // rungs[0]}{any_task}{cost} continue at each rung" if len(rungs) > 1 else ""

    def warning(self, rungs: Sequence[int], num_trials: int, num_baselines: int, num_recipes: int) -> str:
        """Return a sentence if the settings may not do what was intended, else an empty string."""
        return too_few(rungs, num_trials, num_recipes)
