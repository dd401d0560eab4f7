"""Events as a driver reports them, and MLflow's pages as a reader would find them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from search.tracking.runs import Runs
from search.tracking.tracker import Tracker

START = 1_750_000_000_000  # some moment, in ms


def record(examples: int, kind: str = "dev", **metrics: float) -> dict[str, Any]:
    named = {key.replace("_", "/", 1): value for key, value in metrics.items()}
    return {"kind": kind, "step": examples // 16, "examples": examples, "time_ms": START + examples, "seconds": 1.0} | named


def begin(tracker: Tracker, number: int, folder: Path) -> None:
    tracker.submit(
        Runs.trial_started, number, f"{number:03d} smart", {"optimizer/lr": 2e-05}, folder / "config.yaml", {}, time_ms=START
    )


def pages(uri: str) -> tuple[Any, dict[int, Any], Any]:
    """The parent run, the children by number, and a client."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("smart")
    assert experiment is not None
    runs = list(client.search_runs([experiment.experiment_id], max_results=1000))
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {int(run.data.tags["trial_number"]): run for run in runs if "mlflow.parentRunId" in run.data.tags}
    assert len(parents) == 1
    assert len(children) == len(runs) - 1, "a trial has two runs"
    return parents[0], children, client


def history(uri: str, number: int, key: str) -> list[tuple[int, float]]:
    _, children, client = pages(uri)
    return [(point.step, point.value) for point in client.get_metric_history(children[number].info.run_id, key)]
