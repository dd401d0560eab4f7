"""Measure how long MLflow takes to record a large search, and to record it again, as `--resume` does.

    python benchmarks/tracking.py [URI]

The benchmark sends 64 trials x 100 records x 20 metrics through `search.tracking.tracker.Tracker`, in three batches per trial,
to a fresh SQLite file unless a store is named. It prints the seconds that the driver waited, and those until everything was
written.
"""

from __future__ import annotations

import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: Python put benchmarks/ on the path, not the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from search.tracking.runs import Runs, SearchRecord
from search.tracking.tracker import Tracker

TRIALS, RECORDS, METRICS = 64, 100, 20


def record_search(uri: str, folder: Path, resume: bool) -> tuple[float, float]:
    """Record a whole search at `uri`; return the seconds that the driver waited, and those until all was written."""
    config = folder / "config.yaml"
    config.write_text("data: toy\n")
    began = time.monotonic()
    tracker = Tracker(SearchRecord(uri, "benchmark", resume=resume))
    tracker.start()
    for trial in range(TRIALS):
        tracker.submit(Runs.trial_started, trial, f"{trial:03d}", {"optimizer/lr": 1e-4}, config, {}, time_ms=1)
        records = [_record(number) for number in range(RECORDS)]
        for start, end in pairwise((0, RECORDS // 9, RECORDS // 3, RECORDS)):
            tracker.submit(Runs.records, trial, records[start:end])
        tracker.submit(Runs.trial_ended, trial, "FINISHED", "completed", 1_000 * RECORDS)
    waited = time.monotonic() - began
    if not tracker.close("FINISHED", timeout_seconds=600):
        sys.exit(str(tracker.error))
    return waited, time.monotonic() - began


def _record(number: int) -> dict[str, Any]:
    head = {"kind": "train", "step": number, "examples": 48 * number, "time_ms": 1_000 * number + 1}
    return head | {f"train/metric_{i}": float(i + number) for i in range(METRICS)}


def main() -> None:
    """Record the search twice, and print the times."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        uri = sys.argv[1] if len(sys.argv) > 1 else f"sqlite:///{folder / 'mlflow.db'}"
        for name, resume in (("recorded", False), ("again", True)):
            waited, written = record_search(uri, folder, resume)
            print(f"{name:<11} driver {waited:6.2f} s, all written after {written:6.2f} s")


if __name__ == "__main__":
    main()
