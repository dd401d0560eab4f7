"""Measure how long MLflow takes to record a large search, and what `--resume` costs when MLflow holds all or half of it.

    python benchmarks/tracking.py [--trials N] [--uri URI]

The benchmark sends N trials (300) x 100 records x 20 metrics through `search.report.record.Recorder`, in three reports per
trial, to a fresh SQLite file unless a store is named. Then it replays all trials, as `--resume` does, and once more after half
of the runs were deleted. It prints the seconds that the driver's own thread worked, and those until everything was written.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: Python put benchmarks/ on the path, not the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from search.report.record import Recorder
from search.study.trials import TrialResult
from search.tracking.runs import SearchRecord
from search.tracking.store import store_uri
from search.tracking.tracker import Tracker

RECORDS, METRICS, RUNGS = 100, 20, (1, 3, 9)


def record_search(uri: str, folder: Path, trials: list[TrialResult]) -> tuple[float, float]:
    """Record a whole search at `uri`; return the seconds that the driver worked, and those until all was written."""
    began = time.monotonic()
    recorder = new_recorder(uri, folder, resume=False)
    for trial in trials:
        recorder.started(replace(trial, status="running", records=[]), resumed=False)
        for rung in RUNGS:
            known = trial.records[: RECORDS * rung // RUNGS[-1]]
            recorder.reported(replace(trial, status="running", records=known), known)
        recorder.ended(trial)
    return _written(recorder, began)


def replay_search(uri: str, folder: Path, trials: list[TrialResult]) -> tuple[float, float]:
    """Replay a search, as `--resume` does; return the same two figures."""
    began = time.monotonic()
    recorder = new_recorder(uri, folder, resume=True)
    recorder.replay(trials)
    return _written(recorder, began)


def new_recorder(uri: str, folder: Path, resume: bool) -> Recorder:
    """Start a recorder for the search `benchmark`."""
    recorder = Recorder(folder, ["sst"], RUNGS[-1], Tracker(SearchRecord(uri, "benchmark", resume=resume)))
    recorder.tracker.start()
    return recorder


def _written(recorder: Recorder, began: float) -> tuple[float, float]:
    worked = time.monotonic() - began
    if not recorder.tracker.close("FINISHED", timeout_seconds=1200):
        sys.exit(str(recorder.tracker.error))
    return worked, time.monotonic() - began


def make_trials(folder: Path, count: int) -> list[TrialResult]:
    """Make stand-ins for ended trials, each with its own config."""
    trials = []
    for number in range(count):
        own = folder / "trials" / f"{number:03d}"
        own.mkdir(parents=True)
        (own / "config.yaml").write_text(f"data: toy\nencoder: tiny\nseed: {number}\n")
        records = [_record(number, i) for i in range(RECORDS)]
        trials.append(TrialResult(number, "completed", "completed", {"optimizer/lr": 1e-4 + number}, None, own, records))
    return trials


def _record(number: int, i: int) -> dict[str, Any]:
    rung = next((rung for rung in RUNGS if i == RECORDS * rung // RUNGS[-1] - 1), None)
    head = {"kind": "train", "step": i, "examples": 48 * (i + 1), "time_ms": 1_000 * i + 1, "seconds": float(i)}
    if rung is not None:
        head |= {"kind": "dev", "rung": rung, "dev/score": number / (i + 1), "dev/sst": 0.5}
    return head | {f"train/metric_{k}": float(k + i) for k in range(METRICS - 1)}


def delete_half(uri: str) -> None:
    """Delete every second run of the benchmark's experiment."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("benchmark")
    assert experiment is not None, "recorded before"
    for run in client.search_runs([experiment.experiment_id], "tags.role = 'trial'", max_results=1000):
        if int(run.data.tags["trial_number"]) % 2:
            client.delete_run(run.info.run_id)


def main() -> None:
    """Record the search, replay it twice, and print the times."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=300, metavar="N", help="trials to record (default 300)")
    parser.add_argument("--uri", metavar="URI", help="MLflow store (default: a fresh SQLite file)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        uri = options.uri or store_uri(folder / "runs")
        trials = make_trials(folder, options.trials)
        _print("recorded", *record_search(uri, folder, trials))
        _print("resumed", *replay_search(uri, folder, trials))
        delete_half(uri)
        _print("resumed, half was deleted", *replay_search(uri, folder, trials))


def _print(name: str, worked: float, written: float) -> None:
    print(f"{name:<26} driver {worked:6.2f} s, all written after {written:6.2f} s", flush=True)


if __name__ == "__main__":
    main()
