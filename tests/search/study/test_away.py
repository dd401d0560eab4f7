"""A trial whose process shares no disk with the driver: a whole search through a storage, interrupted and resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minbert_core.inputs import open_inputs
from minbert_core.train.trial import train
from search.cluster.storage import Storage
from search.study.away import scratch
from search.study.gather import read_results
from search.study.snapshots import newest_snapshot
from tests.search.searching import Search, searches

SPACE = """\
about: Which rate?
trials: 1
config:
  budget: {examples: 4000}
  optimizer: {lr: {log_uniform: [1e-4, 1e-2]}}
"""


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Search]]:
    yield from searches(tmp_path)


def figures(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The dev records without the times."""
    clocks = ("seconds", "time_ms", "system/peak_memory_gb")
    return [{name: record[name] for name in record if name not in clocks} for record in records if record["kind"] == "dev"]


def test_a_search_through_a_storage_is_resumed_as_if_it_had_run_through(
    started: Callable[..., Search], tmp_path: Path, store: Path, data: Path, encoder: Path
) -> None:
    shutil.copy(store, tmp_path / "mlflow.db")
    (tmp_path / "rate.yaml").write_text(SPACE)
    own = "--data", str(data), "--encoder", str(encoder), "--gpus", "0", "--storage", f"file://{tmp_path}/bucket"
    stopped = started("--space", "rate.yaml", *own)
    stopped.wait_for(r" 000 at 1/9 ")
    stopped.process.send_signal(signal.SIGINT)
    assert stopped.end() == 130, stopped.text
    folder = tmp_path / "runs" / "rate" / "trials" / "000"
    [bucket] = (tmp_path / "bucket").glob("rate-*")
    assert newest_snapshot(Storage(f"file://{bucket}") / "trials/000").startswith("0001-")
    assert not (folder / "state").exists()
    resumed = started("--resume", "rate", "--gpus", "0")
    assert resumed.end() == 0, resumed.text
    [trial] = read_results(tmp_path / "runs" / "rate", "rate")
    assert trial.status == "completed"
    config = trial.config()
    whole = [progress.record for progress in train(config, open_inputs(config))]
    assert figures(trial.records) == figures(json.loads(json.dumps(whole)))
    assert "resumes after" in (folder / "log.txt").read_text()
    assert (tmp_path / "runs" / "rate" / "best" / "heads.safetensors").exists()
    assert not list(bucket.glob("trials/*"))


def test_a_scratch_folder_of_a_killed_process_is_removed_by_the_next(cache: Path) -> None:
    place = cache / "minbert" / "scratch"
    with scratch("small-1/trials/007") as folder:
        (folder / "log.txt").touch()
        killed = shutil.copytree(folder, place / "small-1" / "trials" / "006")
        os.utime(killed / "log.txt", (1, 1))
        with scratch("small-1/trials/008") as other:
            assert (folder.exists(), killed.exists(), other.exists()) == (True, False, True)
    assert not (place / "small-1").exists()
