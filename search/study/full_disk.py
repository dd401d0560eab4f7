"""A full disk, which pauses a search: no trial starts or ends any more, and `--resume` continues all of them.

The driver notices it when a write fails, or when a trial failed and could not write why: its failure.txt is empty then.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from minbert_core.files import NO_SPACE


class DiskWatch:
    """The first fault of a full disk that the driver, or a trial of it, met. After it nothing may be written."""

    def __init__(self) -> None:
        self.fault: OSError | None = None

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Note a full disk within the block instead of raising it. Other faults are raised."""
        try:
            yield
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            self.fault = self.fault or error

    def is_full_for(self, trial_folder: Path) -> bool:
        """Return whether a trial failed because of a full disk, and note it."""
        reason = trial_folder / "failure.txt"
        if not reason.exists():
            return False
        text = reason.read_text(encoding="utf-8", errors="replace")
        is_full = not text or f"[Errno {errno.ENOSPC}]" in text or f"[Errno {errno.EDQUOT}]" in text or NO_ROOM in text
        if is_full:
            self.fault = self.fault or OSError(errno.ENOSPC, NO_ROOM, str(trial_folder))
        return is_full


NO_ROOM = "No space left on device"
