"""The runs in W&B, offline: every point once, also after a retry and a resume, and a fault that stops nothing but them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from search.report.weights_and_biases import WandbRuns, wandb_fault
from search.study.trials import TrialResult

wandb = pytest.importorskip("wandb", reason="the extra wandb is not installed")
Make = Callable[..., TrialResult]
ROOT = Path(__file__).resolve().parents[3]
A_SECOND = 1.1  # W&B names the folder of a run by the second in which it was opened
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
    time.sleep(A_SECOND)
    for _ in range(2):  # resumed, then resumed again after its end
        resumed = WandbRuns(tmp_path, "small", "abc", said.append)
        resumed.replay([whole])
        resumed.close(was_interrupted=False)
        assert points(tmp_path, 7) == [(100, 0.5), (900, 0.6)]
    assert not said


def test_a_record_that_arrives_later_at_the_same_x_and_one_of_pretraining_hide_nothing(trial: Make, tmp_path: Path) -> None:
    whole = trial(7, 0.6)
    pretrain = {"kind": "pretrain", "examples": 0, "time_ms": 1, "pretrain/examples": 5000, "pretrain/mlm_loss": 2.0}
    known = [pretrain, *whole.records]
    assert known[-1]["kind"] == "dev"
    for part in (known[:-1], known):  # interrupted between the training record and the evaluation, then resumed
        runs = WandbRuns(tmp_path, "small", "abc", [].append)
        runs.started(replace(whole, records=part, status="running"), resumed=True)
        runs.close(was_interrupted=True)
        time.sleep(A_SECOND)
    assert points(tmp_path, 7) == [(900, 0.6)]


def test_a_failed_trial_that_runs_again_ends_again(trial: Make, tmp_path: Path) -> None:
    failed = trial(7, 0.6, status="failed")
    runs = WandbRuns(tmp_path, "small", "abc", [].append)
    runs.ended(failed)
    time.sleep(A_SECOND)
    runs.started(replace(failed, status="running"), resumed=True)
    runs.ended(failed)
    runs.close(was_interrupted=False)
    files = sorted(tmp_path.glob("wandb/offline-run-*-007/*.wandb"))
    ends = [record.exit.exit_code for file in files for record in records(file) if record.HasField("exit")]
    assert ends == [1, 1]
    assert points(tmp_path, 7) == [(900, 0.6)]


def test_a_server_that_does_not_answer_holds_no_process(tmp_path: Path) -> None:
    """W&B's own exit handler would wait for the uploads."""
    lines = [
        "from pathlib import Path",
        "from search.report import weights_and_biases as ours",
        "from search.study.trials import TrialResult",
        "ours.ANSWER_SECONDS = ours.CLOSE_SECONDS = ours.CLOSE_SECONDS_KILLED = 2.0",
        "runs = ours.WandbRuns(Path('.').absolute(), 'small', 'abc', print)",
        "runs.started(TrialResult(0, 'running', '', {}, None, Path('.'), [], noted_recipe='multitask'), False)",
        "runs.close(True)",
    ]
    own = {"WANDB_MODE": "online", "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40, "PYTHONPATH": str(ROOT)}
    others = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}  # the other tests' W&B process
    ended = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=tmp_path, env=others | own, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    assert "W&B had not received everything after 2 s" in ended.stdout or "W&B's record ends here" in ended.stdout


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
