"""The clock of records and runs: wall-clock time in milliseconds since 1970, as a record's `time_ms` and MLflow hold it."""

from __future__ import annotations

import time


def now_ms() -> int:
    """Return the current time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000
