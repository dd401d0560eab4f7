"""The way of measuring: contestants take turns in one process, so that a slow moment of the machine affects all of them.

    alternate({"ours": step, "peer": other}, rounds=7) -> seconds of each in each round -> ratio("peer", "ours")

A figure is the median over the rounds of the ratio within a round; its spread is the range of all rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Times = dict[str, list[float]]  # contestant -> seconds, one entry per round


@dataclass(frozen=True)
class Figure:
    """A median with its range over the rounds."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Figure:
        return Figure(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Row:
    """One line of the table: a figure and its goal.

    `setting`: workload, batch size, threads, in words. `figure` is None if this machine cannot measure it; `why` says why.
    """

    number: int  # in the table of LOG.md; rows with the same number answer one question
    what: str
    setting: str
    goal: tuple[Literal[">=", "<="], float]
    figure: Figure | None
    unit: str = "x"
    why: str = ""
    details: dict[str, float] = field(default_factory=dict)  # medians behind the figure, with their unit in the name

    @property
    def is_met(self) -> bool | None:
        """True if the median reaches the goal; None without a figure."""
        if self.figure is None:
            return None
        sign, value = self.goal
        return self.figure.median >= value if sign == ">=" else self.figure.median <= value


def alternate(contestants: Mapping[str, Callable[[], object]], rounds: int, calls: int = 1, warm_up: int = 2) -> Times:
    """Measure the seconds of wall time per call of each contestant in each round of `calls` calls; the order rotates.

    warm_up: calls of each contestant before the first round, which allocate memory.
    """
    for contestant in contestants.values():
        for _ in range(warm_up):
            contestant()
    times: Times = {name: [] for name in contestants}
    names = list(contestants)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            began = time.perf_counter()
            for _ in range(calls):
                contestants[name]()
            times[name].append((time.perf_counter() - began) / calls)
    return times


def ratio(times: Times, numerator: str, denominator: str) -> Figure:
    """Divide the seconds of one contestant by those of another, within each round."""
    return Figure.of([above / below for above, below in zip(times[numerator], times[denominator], strict=True)])


def milliseconds(times: Times) -> dict[str, float]:
    """Return the median of each contestant, under its name with `_ms`."""
    return {f"{name}_ms": 1000 * statistics.median(values) for name, values in times.items()}
