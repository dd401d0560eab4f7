"""A search's folder as the mirror of a storage: what a trial's process has put there arrives, and nothing stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from minbert_core.train.trial import load_snapshot, save_snapshot
from search.cluster.board import Board, News
from search.cluster.storage import Storage
from search.study.mirror import Mirror
from search.study.snapshots import STATE, fetch_snapshot, newest_snapshot, num_attempts, send_snapshot

PROCESS = {"host": "node-1", "pid": 7, "node": "f00"}


def record(examples: int) -> dict[str, Any]:
    return {"kind": "train", "step": examples, "examples": examples, "passes": examples, "time_ms": 1, "seconds": 1.0}


@pytest.fixture
def trial(tmp_path: Path) -> Storage:
    return Storage(f"file://{tmp_path}/bucket") / "small-1" / "trials/007"


@pytest.fixture
def mirror(tmp_path: Path) -> Mirror:
    (tmp_path / "runs" / "small" / "trials" / "007").mkdir(parents=True)
    return Mirror(tmp_path / "runs" / "small", f"file://{tmp_path}/bucket", "small-1")


def send(trial: Storage, tmp_path: Path, attempt: int, records: list[dict[str, Any]]) -> None:
    save_snapshot(tmp_path / "snapshot.pt", {"model": {"w": torch.ones(3)}}, records, "its config")
    send_snapshot(trial, attempt, tmp_path / "snapshot.pt", records)


def test_the_newest_snapshot_counts_and_keeps_its_identity_and_checksum(trial: Storage, tmp_path: Path) -> None:
    assert (newest_snapshot(trial), num_attempts(trial)) == ("", 0)
    send(trial, tmp_path, 1, [record(10), record(20)])
    send(trial, tmp_path, 2, [record(10)])  # the process that continues has had less
    assert trial.names(STATE) == ["0002-000001.jsonl", "0002-000001.pt"]
    fetch_snapshot(trial, newest_snapshot(trial), tmp_path / "there.pt")
    assert load_snapshot(tmp_path / "there.pt", "its config")[1] == [record(10)]
    with pytest.raises(ValueError, match="belongs to a trial with another config"):
        load_snapshot(tmp_path / "there.pt", "another")


def test_records_without_their_snapshot_do_not_count(trial: Storage, mirror: Mirror, tmp_path: Path) -> None:
    send(trial, tmp_path, 1, [record(10)])
    trial.write(f"{STATE}/0001-000002.jsonl", b"")  # the process was killed before its snapshot followed
    folder = mirror.folder / "trials" / "007"
    assert mirror.trusted_records(folder) == [record(10)]
    assert (folder / "metrics.jsonl").read_text() == json.dumps(record(10)) + "\n"


def test_a_snapshot_with_damaged_records_is_not_resumed_from(trial: Storage, mirror: Mirror, tmp_path: Path) -> None:
    send(trial, tmp_path, 1, [record(10)])
    trial.write(f"{STATE}/0001-000001.jsonl", b'{"kind": "train"')
    assert mirror.trusted_records(mirror.folder / "trials" / "007") == []
    assert newest_snapshot(trial) == ""


def test_the_best_model_is_brought_once_and_nothing_of_an_ended_trial_stays(
    trial: Storage, mirror: Mirror, tmp_path: Path
) -> None:
    trial.write("best/3/heads", b"of rung 3")
    folder = mirror.folder / "trials" / "007"
    mirror.bring_best(folder)
    assert (folder / "best" / "heads").read_bytes() == b"of rung 3"
    trial.delete("best/3")
    mirror.bring_best(folder)  # it has been brought
    mirror.clear(folder)
    assert (Storage(f"file://{tmp_path}/bucket") / "small-1").names("trials") == []


def test_the_board_adds_up_the_news_of_a_process_until_they_are_taken() -> None:
    board = Board()
    assert not board.post(News("trials/007", 1, PROCESS, [record(10)], "a line\n", model="1"))
    board.post(News("trials/007", 1, PROCESS, [record(20)], "another\n"))
    board.post(News("trials/007", 2, PROCESS))
    first, second = board.take()
    assert (first.records, first.log, first.model) == ([record(10), record(20)], "a line\nanother\n", "1")
    assert (second.attempt, board.take()) == (2, [])
    board.stop()
    assert board.post(News("trials/007", 2, PROCESS))
