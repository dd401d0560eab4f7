"""A format: the packages that it needs, which tasks it can hold, how it is written, and how far its answers are from ours.

Each as_*.py declares one; analysis/export.py goes through them in the order of its list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from analysis.export_to.source import Source


@dataclass(frozen=True)
class Format:
    """One format. A part is a folder of the export that stands alone: one per task, or one for all tasks."""

    name: str  # of --as, and of the folder
    packages: tuple[str, ...]  # import names, beyond the project's own dependencies
    is_per_task: bool
    tolerance: float  # the largest absolute difference that is accepted
    compared: str  # what is compared
    why_not: Callable[[Source, str], str]  # (source, task) -> a sentence; "" if the format can hold the task
    write: Callable[[Source, Sequence[str], Path], None]  # (source, tasks, folder of the part)
    compare: Callable[[Source, Sequence[str], Path], dict[str, float]]  # the same, reloaded -> task -> largest difference
    library: str  # name for the model card
    usage: Callable[[Source, Sequence[str], str], str]  # (source, tasks, path of the part) -> lines of code that use it

    def missing(self) -> list[str]:
        """List the packages that are not installed."""
        return [package for package in self.packages if find_spec(package) is None]

    def parts(self, tasks: Sequence[str]) -> dict[str, list[str]]:
        """Return the folders to write inside the format's, each with its tasks."""
        return {task: [task] for task in tasks} if self.is_per_task else {".": list(tasks)}
