"""The messages that Ray carries between the driver and a trial's process: an order there, a report per evaluation back.

    StudySearcher.suggest -> Order -> run_trial -> Report -> TuneScheduler, StudySearcher

Ray carries dictionaries of plain values, and adds its own keys to a report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Route:
    """The way of a trial's files between its process and a driver whose disk the process does not see (cluster/storage.py)."""

    uri: str
    search: str  # the folder of the search in the storage
    trial: str  # the folder of the trial in that: trials/007
    attempt: int  # the number of the trial's processes, this one included
    snapshot: str  # to resume from; "": start
    board: str
    inputs: dict[str, str]  # a folder that the trial's config names -> its place in the storage


@dataclass(frozen=True)
class Order:
    """The trial that a process is to start or resume."""

    number: int
    folder: str
    exempt: bool  # from being stopped
    relocated: dict[str, str]  # a folder that its config names -> its place here
    route: dict[str, Any] | None = None  # of a Route, for a process that does not see the driver's folders


@dataclass(frozen=True)
class Report:
    """A trial's evaluation at a rung, with all records since the last report, the dev record last."""

    number: int
    recipe: str
    exempt: bool
    rung: int
    score: float
    records: list[dict[str, Any]]

    @classmethod
    def received(cls, result: Mapping[str, Any]) -> Report:
        """Read a report from a result of Ray's."""
        return cls(**{field.name: result[field.name] for field in fields(cls)})


def as_dict(message: Order | Report | Route) -> dict[str, Any]:
    """Return the dictionary that Ray carries."""
    return {field.name: getattr(message, field.name) for field in fields(message)}
