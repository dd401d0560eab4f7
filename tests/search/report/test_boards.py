"""TensorBoard's files: every point of a trial once, also after a resume, and a fault that stops nothing but them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from search.report.boards import Boards
from search.study.trials import TrialResult

Make = Callable[..., TrialResult]


def events(folder: Path) -> list[Event]:
    """The events of a trial's only file: TFRecords, that is length, its checksum, bytes, their checksum."""
    [path] = folder.iterdir()
    data, found, at = path.read_bytes(), [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 8], "little")
        found.append(Event.FromString(data[at + 12 : at + 12 + size]))
        at += 16 + size
    return found


def points(folder: Path) -> list[tuple[str, float, int]]:
    values = [(value, event.step) for event in events(folder) for value in event.summary.value]
    return [(value.tag, round(value.simple_value, 4), step) for value, step in values if "_hparams_" not in value.tag]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def boards(tmp_path: Path, said: list[str]) -> Boards:
    return Boards(tmp_path, said.append)


def test_a_trial_has_every_point_once_while_it_runs_when_it_ends_and_after_a_resume(
    boards: Boards, trial: Make, tmp_path: Path, said: list[str]
) -> None:
    first, last = trial(7, 0.5, rung=1, status="running"), trial(7, 0.6)
    whole = last.__class__(**vars(last) | {"records": first.records + last.records})
    folder = tmp_path / "tensorboard" / "007"
    boards.started(trial(7, None, status="running"), resumed=False)
    for _ in range(2):  # as of a trial that was retried
        boards.reported(first, first.records)
    [file] = folder.iterdir()
    assert ("dev/score", 0.5, 100) in points(folder)
    assert len(points(folder)) == 7
    boards.ended(whole)
    assert [*folder.iterdir()] == [file]  # it has grown
    assert [point for point in points(folder) if point[0] == "dev/score"] == [("dev/score", 0.5, 100), ("dev/score", 0.6, 900)]
    assert any("_hparams_/experiment" in value.tag for event in events(folder) for value in event.summary.value)
    written = points(folder)
    Boards(tmp_path, said.append).replay([whole])
    assert points(folder) == written
    assert not said


def test_a_fault_is_said_once_and_reaches_nobody(boards: Boards, trial: Make, tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "tensorboard").touch()
    for number in range(2):
        boards.started(trial(number, None, status="running"), resumed=False)
        boards.ended(trial(number))
    [sentence] = said
    assert sentence.endswith("TensorBoard's files end here. Training continues; --resume writes them.")


def test_trials_that_failed_or_had_no_parameter_are_written_too(boards: Boards, trial: Make, tmp_path: Path) -> None:
    changed: dict[str, Any] = {"params": {"gradient": "sum", "optimizer/lr": 1e-3}}
    boards.ended(trial(0, None, status="failed", **changed))
    boards.ended(trial(1, params={}))
    assert points(tmp_path / "tensorboard" / "000") == []
    assert len(points(tmp_path / "tensorboard" / "001")) == 7
