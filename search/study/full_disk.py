"""A full disk, or a storage at fault, pauses a search: no trial starts or ends any more, and `--resume` continues all of them.

The driver notices it when a write fails, or when a trial failed and could not write why: its failure.txt is empty then.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from minbert_core.files import NO_SPACE
from search.cluster.storage import StorageFault


class DiskWatch:
    """The first fault of a full disk or of the storage that the driver, or a trial of it, met. Then nothing may be written."""

    def __init__(self) -> None:
        self.fault: OSError | None = None

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Note a full disk or a storage at fault within the block instead of raising it. Other faults are raised."""
        try:
            yield
        except OSError as error:
            if error.errno not in NO_SPACE and not isinstance(error, StorageFault):
                raise
            self.fault = self.fault or error

    def is_full_for(self, trial_folder: Path) -> bool:
        """Return whether a trial failed because of a full disk or of the storage, and note it."""
        reason = trial_folder / "failure.txt"
        if not reason.exists():
            return False
        text = reason.read_text(encoding="utf-8", errors="replace")
        if text.startswith(StorageFault.__name__):
            self.fault = self.fault or StorageFault(text.partition(": ")[2])
            return True
        is_full = not text or f"[Errno {errno.ENOSPC}]" in text or f"[Errno {errno.EDQUOT}]" in text or NO_ROOM in text
        if is_full:
            self.fault = self.fault or OSError(errno.ENOSPC, NO_ROOM, str(trial_folder))
        return is_full


NO_ROOM = "No space left on device"
