"""Trackers on real SQLite stores, and MLflow's pages as a reader would find them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search.tracking.runs import SearchRecord
from search.tracking.store import store_uri
from search.tracking.tracker import Tracker


@pytest.fixture(scope="session")
def laid_out(store: Path) -> Path:
    """A database that MLflow has laid out, to copy."""
    return store


@pytest.fixture
def uri(laid_out: Path, tmp_path: Path) -> str:
    shutil.copy(laid_out, tmp_path / "mlflow.db")
    return store_uri(tmp_path / "runs")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def track(uri: str, tmp_path: Path, said: list[str]) -> Callable[..., Tracker]:
    (tmp_path / "plan.json").write_text("{}")
    (tmp_path / "config.yaml").write_text("seed: 0\n")

    def start(resume: bool = False, **changed: Any) -> Tracker:
        settings: dict[str, Any] = {
            "note": "Does it pay?",
            "tags": {"version": "0.1.0"},
            "params": {"trials": 3},
            "datasets": {"sst-train": "ab12"},
            "artifact_files": [tmp_path / "plan.json"],
        }
        settings |= {"uri": uri, "name": "smart", "resume": resume}
        tracker = Tracker(SearchRecord(**settings | changed), said.append)
        tracker.start()
        return tracker

    return start
