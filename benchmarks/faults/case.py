"""A fault as a row of the table: its name, what is expected, and the function that injects it and checks the outcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmarks.faults.harness import SPACE, Lab, Search


@dataclass(frozen=True)
class Case:
    """One row of the table. `run` returns what was seen, and raises Unmet where something does not hold."""

    name: str
    expected: str
    run: Callable[[Search, Lab], str]
    times: int = 1
    space: str = SPACE

    def at_most(self, times: int) -> Case:
        return replace(self, times=min(times, self.times))
