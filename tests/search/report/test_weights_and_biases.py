"""The runs in W&B, offline: every point once, also after a retry and a resume, and a fault that stops nothing but them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from search.report.weights_and_biases import WandbRuns, wandb_fault
from search.study.trials import TrialResult

wandb = pytest.importorskip("wandb", reason="the extra wandb is not installed")
Make = Callable[..., TrialResult]
BLOCK, HEADER = 32768, 7  # of W&B's files: LevelDB's log format, after a header of seven bytes


def records(file: Path) -> Iterator[Any]:
    """The records of a run's file."""
    proto = import_module("wandb.proto.wandb_internal_pb2")
    data, at, parts = file.read_bytes(), HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if kind in (1, 4):  # a whole record, or its last part
            record = proto.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def points(folder: Path, number: int) -> list[tuple[float, float]]:
    """The x and the score of each logged evaluation of a trial, in all files of its run."""
    found = []
    for file in sorted(folder.glob(f"wandb/offline-run-*-{number:03d}/*.wandb")):
        for record in records(file):
            values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            if "dev/score" in values:
                found.append((values["examples"], values["dev/score"]))
    return found


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def test_a_trial_has_every_point_once_also_after_a_retry_and_a_resume(trial: Make, tmp_path: Path) -> None:
    said: list[str] = []
    first, last = trial(7, 0.5, rung=1, status="running"), trial(7, 0.6)
    whole = last.__class__(**vars(last) | {"records": first.records + last.records})
    runs = WandbRuns(tmp_path, "small", "abc", said.append)
    runs.started(trial(7, None, status="running"), resumed=False)
    runs.reported(first, first.records)
    runs.reported(first, first.records)  # measured again by a retry
    runs.close(was_interrupted=True)
    assert points(tmp_path, 7) == [(100, 0.5)]
    for _ in range(2):  # resumed, then resumed again after its end
        resumed = WandbRuns(tmp_path, "small", "abc", said.append)
        resumed.replay([whole])
        resumed.close(was_interrupted=False)
        assert points(tmp_path, 7) == [(100, 0.5), (900, 0.6)]
    assert not said


def test_a_fault_is_said_once_and_reaches_nobody(trial: Make, tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "wandb").touch()
    runs = WandbRuns(tmp_path, "small", "abc", said.append)
    for number in range(2):
        runs.started(trial(number, None, status="running"), resumed=False)
        runs.ended(trial(number))
    runs.close(was_interrupted=False)
    [sentence] = said
    assert sentence.startswith("W&B's record ends here: ")
    assert sentence.endswith(" Training continues.")


def test_without_a_key_an_online_search_is_refused_before_it_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    wandb.teardown()
    fault = wandb_fault()
    wandb.teardown()
    assert fault is not None
    assert fault.startswith("W&B has no API key here.")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert wandb_fault() is None
    assert os.environ["WANDB_SILENT"] == "true"
