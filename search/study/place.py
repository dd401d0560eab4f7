"""The place where a trial's process works: the trial's own folder, or, without a shared disk, a scratch folder on its node.

Order -> place_of -> Here: runs/NAME/trials/007, on a disk that the driver sees
                  -> Away: a scratch folder; files come from the storage and go there, news go to the board (away.py)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from search.cluster.board import Poster
from search.study.messages import Order, Route
from search.study.pulse import Pulse

if TYPE_CHECKING:  # a worker imports torch only after its first sign of life
    from minbert_core.config import TrialConfig
    from minbert_core.inputs import Inputs
    from minbert_core.train.trial import Progress, Record


class Place(Protocol):
    """The folder in which a trial's process trains, and what it owes to the driver."""

    folder: Path

    def relocated(self, given: dict[str, str]) -> dict[str, str]: ...
    def bring_pretrained(self, config: TrialConfig, inputs: Inputs) -> None: ...
    def pulse(self, node: str) -> Pulse | Poster: ...
    def keep(self, progress: Progress, records: list[Record]) -> None: ...
    def end(self, records: list[Record]) -> None: ...
    def fail(self, reason: str) -> None: ...


class Here:
    """The trial's own folder, on a disk that the driver sees."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def relocated(self, given: dict[str, str]) -> dict[str, str]:
        return given

    def bring_pretrained(self, config: TrialConfig, inputs: Inputs) -> None:
        pass

    def pulse(self, node: str) -> Pulse | Poster:
        return Pulse(self.folder, node)

    def keep(self, progress: Progress, records: list[Record]) -> None:
        pass

    def end(self, records: list[Record]) -> None:
        pass

    def fail(self, reason: str) -> None:
        (self.folder / "failure.txt").write_text(reason, encoding="utf-8")


@contextlib.contextmanager
def place_of(order: Order) -> Iterator[Place]:
    """Prepare the place of a trial. A scratch folder is removed afterwards.  Raises StorageFault."""
    if order.route is None:
        yield Here(Path(order.folder))
        return
    from search.study.away import Away, scratch

    route = Route(**order.route)
    with scratch(f"{route.search}-{route.attempt}/{route.trial}") as folder:
        yield Away(route, folder)
