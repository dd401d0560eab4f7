"""How long MLflow takes to be told a large search, and to be told it again as `--resume` does.

    python benchmarks/tracking.py [URI]

64 trials x 100 records x 20 metrics through `search.tracking.tracker.Tracker`, with three reports per trial, into a fresh
SQLite file unless a store is named. Prints the seconds that the driver was held up, and those until everything was written.
"""

from __future__ import annotations

import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: Python put benchmarks/ on the path, where the packages are not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from search.tracking.runs import Runs, SearchRecord
from search.tracking.tracker import Tracker

TRIALS, RECORDS, METRICS = 64, 100, 20


def tell(uri: str, folder: Path, resume: bool) -> tuple[float, float]:
    """Seconds (of the driver, until all is written) to tell the whole search to `uri`."""
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
    told = time.monotonic() - began
    if not tracker.close("FINISHED", timeout_seconds=600):
        sys.exit(str(tracker.error))
    return told, time.monotonic() - began


def _record(number: int) -> dict[str, Any]:
    own = {"kind": "train", "step": number, "examples": 48 * number, "time_ms": 1_000 * number + 1}
    return own | {f"train/metric_{i}": float(i + number) for i in range(METRICS)}


def main() -> None:
    """Tell it, tell it again, print."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        uri = sys.argv[1] if len(sys.argv) > 1 else f"sqlite:///{folder / 'mlflow.db'}"
        for what, resume in (("told", False), ("told again", True)):
            held, written = tell(uri, folder, resume)
            print(f"{what:<11} driver {held:6.2f} s, all written after {written:6.2f} s")


if __name__ == "__main__":
    main()
