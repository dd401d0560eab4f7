"""The trials' folders as the driver sees them: where their processes work, or mirrored from a storage (mirror.py)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from minbert_core.train.folder import UNREADABLE, read_snapshot, state_file, write_records
from minbert_core.train.trial import Record
from search.cluster.inputs import Supplies


class TrialFiles(Protocol):
    """The files of the trials of a search. `folder` is a trial's in runs/NAME."""

    def at_work(self, supplies: Supplies) -> contextlib.AbstractContextManager[None]: ...
    def route(self, folder: Path) -> dict[str, Any] | None: ...
    def arrive(self, folder: Path) -> None: ...
    def trusted_records(self, folder: Path) -> list[Record]: ...
    def bring_best(self, folder: Path) -> None: ...
    def clear(self, folder: Path) -> None: ...


class OneDisk:
    """Folders on a disk that the trials' processes see too: there is nothing to bring."""

    @contextlib.contextmanager
    def at_work(self, supplies: Supplies) -> Iterator[None]:
        yield

    def route(self, folder: Path) -> dict[str, Any] | None:
        (folder / "alive").unlink(missing_ok=True)  # of its last process, whose node is not that of the next
        return None

    def arrive(self, folder: Path) -> None:
        pass

    def trusted_records(self, folder: Path) -> list[Record]:
        """Reset a trial's records to those of its snapshot. A damaged or foreign one is set aside; the trial starts again."""
        records: list[Record] = []
        try:
            _, records = read_snapshot(folder)
        except ValueError:
            path = state_file(folder)
            path.replace(path.with_name(UNREADABLE))
        write_records(folder / "metrics.jsonl", records)
        return records

    def bring_best(self, folder: Path) -> None:
        pass

    def clear(self, folder: Path) -> None:
        pass
