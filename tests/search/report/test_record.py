"""What reaches MLflow of a search; the tracker is one that takes notes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search.report.record import Recorder
from search.study.study import TrialResult

TASKS = ["sst", "sts"]


class Notes:
    """A stand-in for a Tracker that keeps (method, arguments) of every call."""

    error: str | None = None

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def submit(self, method: Callable[..., None], *arguments: Any, **_: Any) -> None:
        self.calls.append((method.__name__, arguments))

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def recorder(tmp_path: Path, notes: Notes, said: list[str]) -> Recorder:
    return Recorder(tmp_path, TASKS, 9, notes, said.append)  # type: ignore[arg-type]


def test_mlflow_hears_of_a_trial_from_begin_to_end(recorder: Recorder, notes: Notes, trial: Callable[..., TrialResult]) -> None:
    recorder.started(trial(0, None, status="running"), resumed=False)
    recorder.reported(trial(0, 0.6, rung=1, status="running"), [{}])
    recorder.ended(trial(0, 0.6))
    assert notes.names() == ["trial_started", "records", "records", "trial_ended", "best"]
    number, name, params, config, tags = notes.calls[0][1]
    assert (number, name, params, config.name) == (0, "000 lr=3.21e-05", {"optimizer/lr": 3.21e-5}, "config.yaml")
    assert tags == {"recipe": "multitask"}
    step, metrics, _ = notes.calls[-1][1]
    assert step == 1
    best = {"best/score": 0.6, "best/sst": 0.441, "best/sts": -0.02, "best/norm": 0.6, "best/mean": 0.4}
    assert metrics == best | {"trials_done": 1}


@pytest.mark.parametrize(("status", "in_mlflow"), [("completed", "FINISHED"), ("stopped", "FINISHED"), ("failed", "FAILED")])
def test_only_a_fault_is_failed_in_mlflow(
    recorder: Recorder, notes: Notes, trial: Callable[..., TrialResult], status: str, in_mlflow: str
) -> None:
    recorder.ended(trial(0, status=status, reason="because"))
    assert dict(notes.calls)["trial_ended"][1:3] == (in_mlflow, "because")


def test_a_paused_trial_is_finished_in_mlflow_with_the_reason(
    recorder: Recorder, notes: Notes, trial: Callable[..., TrialResult]
) -> None:
    recorder.paused(trial(0, rung=1, status="running"), "no time left")
    assert notes.calls[-1][1][1:3] == ("FINISHED", "paused at 1/9: no time left")


def test_a_resumed_search_records_everything_again(
    recorder: Recorder, notes: Notes, trial: Callable[..., TrialResult], tmp_path: Path
) -> None:
    (tmp_path / "pretraining.jsonl").write_text(json.dumps({"kind": "pretrain", "key": "3f2a"}) + "\n")
    recorder.replay([trial(0, 0.6), trial(1, 0.5, rung=1, status="running"), trial(2, None, status="failed")])
    numbers = {name: [arguments[0] for called, arguments in notes.calls if called == name] for name in notes.names()}
    assert numbers["pretrained"] == [[{"kind": "pretrain", "key": "3f2a"}]]
    assert numbers["trial_started"] == [0, 1, 2]
    assert numbers["records"] == [0, 1, 2]
    assert numbers["trial_ended"] == [0, 2]


def test_a_dead_mlflow_is_said_once(
    recorder: Recorder, notes: Notes, said: list[str], trial: Callable[..., TrialResult]
) -> None:
    notes.error = "MLflow stopped recording: disk full"
    recorder.ended(trial(0))
    recorder.ended(trial(1))
    [line] = said
    assert "disk full" in line
    assert "--resume logs it again" in line
