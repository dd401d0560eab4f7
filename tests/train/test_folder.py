"""The files of a training: what is refused, what is set aside, and what a reader of records may conclude."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from minbert_core.config import TrialConfig
from minbert_core.config_checks import read_config
from minbert_core.inputs import open_inputs
from minbert_core.settings.paths import as_written
from minbert_core.settings.yaml import dump_yaml
from minbert_core.train.folder import (
    RecordsError,
    append_record,
    read_records,
    read_snapshot,
    recorded_or_saved,
    snapshot_or_start,
    state_file,
    train_in,
    write_records,
)
from minbert_core.train.trial import ForeignSnapshotError, load_snapshot, save_snapshot

OWN = {"examples": 8, "seconds": 0.5, "time_ms": 1_750_000_000_000}
RECORDS: list[dict[str, Any]] = [
    {"kind": "train", "step": 1, **OWN, "train/sst_loss": 0.1},
    {"kind": "dev", "step": 1, **OWN, "rung": 1, "dev/score": 0.5},
    {"kind": "train", "step": 2, **OWN, "train/sst_loss": float("nan")},
]


def written(folder: Path, config: TrialConfig) -> None:
    (folder / "config.yaml").write_text(dump_yaml(as_written(config)))


# -------------------------------------------------------------------------------------------------------------- snapshots


def test_a_training_saves_its_identity_and_resumes_from_no_snapshot_of_another_config(
    tiny: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    config = tiny()
    written(tmp_path, config)
    next(train_in(tmp_path, config, open_inputs(config), None, []))
    assert read_config(tmp_path / "config.yaml").identity == config.identity
    save_snapshot(state_file(tmp_path), {"counters": {}}, RECORDS[:2], config.identity)
    assert read_snapshot(tmp_path)[1] == RECORDS[:2]
    before = state_file(tmp_path).read_bytes()
    other = tiny(seed=1)
    written(tmp_path, other)
    sentence = rf"snapshot\.pt belongs to a trial with another config \(identity {config.identity}, not {other.identity}\)\."
    for read in (read_snapshot, snapshot_or_start):
        with pytest.raises(ForeignSnapshotError, match=sentence):
            read(tmp_path)
    assert state_file(tmp_path).read_bytes() == before


def test_a_snapshot_in_training_has_the_identity_of_its_config(tiny: Callable[..., TrialConfig], tmp_path: Path) -> None:
    config = tiny(budget={"examples": 48, "points": [1]})
    list(train_in(tmp_path, config, open_inputs(config), None, []))
    load_snapshot(state_file(tmp_path), config.identity)
    with pytest.raises(ForeignSnapshotError):
        load_snapshot(state_file(tmp_path), "another")


def test_a_snapshot_of_an_earlier_version_has_no_identity_and_is_read(tmp_path: Path) -> None:
    state_file(tmp_path).parent.mkdir()
    torch.save({"counters": {"part": 1}, "format": 2, "records": RECORDS[:1]}, state_file(tmp_path))
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    assert read_snapshot(tmp_path) == ({"counters": {"rung": 1}}, RECORDS[:1])


def test_a_config_that_cannot_be_read_is_not_held_against_the_snapshot(tmp_path: Path) -> None:
    """Its own reader says so; to set the snapshot aside would lose it for a fault of another file."""
    save_snapshot(state_file(tmp_path), {"counters": {}}, RECORDS[:1], "0123456789abcdef")
    (tmp_path / "config.yaml").write_text("sead: 1\n")
    assert read_snapshot(tmp_path)[1] == RECORDS[:1]


def test_a_damaged_snapshot_is_set_aside_and_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_snapshot(state_file(tmp_path), {"counters": {}}, RECORDS)
    damaged = bytearray(state_file(tmp_path).read_bytes())
    damaged[len(damaged) // 2] ^= 8
    state_file(tmp_path).write_bytes(damaged)
    assert snapshot_or_start(tmp_path) == (None, [])
    assert "Training starts from the beginning. The file is kept as unreadable.pt." in capsys.readouterr().out
    assert (tmp_path / "state" / "unreadable.pt").read_bytes() == damaged


# ---------------------------------------------------------------------------------------------------------------- records


def test_a_cut_last_line_is_left_out_and_replaced_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_records(path) == []
    write_records(path, RECORDS[:2])
    path.write_bytes(path.read_bytes()[:-1])
    assert read_records(path) == RECORDS[:2]  # only its line end is missing
    path.write_bytes(path.read_bytes()[:-1])
    assert read_records(path) == RECORDS[:1]
    append_record(path, RECORDS[1])
    assert read_records(path) == RECORDS[:2]


def test_what_a_power_loss_leaves_of_a_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(json.dumps(RECORDS[0]).encode() + b"\n" + bytes(100))
    assert read_records(path) == RECORDS[:1]


@pytest.mark.parametrize(
    ("line", "law"),
    [
        (b'{"kind": "tra', 'a line must be a JSON object. Got \'{"kind": "tra\'.'),
        (b"[1, 2]", "a line must be a JSON object. Got '[1, 2]'."),
        (b"", "a line must be a JSON object. Got ''."),
        (b'{"kind": "\xff"}', "a line must be a JSON object."),
        (b"[" * 100_000, "a line must be a JSON object."),
        (b'{"kind": ' + b"9" * 5000 + b"}", "a line must be a JSON object."),
        (b'{"kind": "train"}', "a record must have `examples`."),
        (json.dumps({"kind": 3, **OWN}).encode(), "`kind` must be a name. Got 3."),
        (json.dumps({"kind": "dev", **OWN, "rung": 1}).encode(), "a record must have `dev/score`."),
        (json.dumps(RECORDS[1] | {"rung": "1"}).encode(), "`rung` must be a whole number from 0 on. Got '1'."),
        (json.dumps(RECORDS[1] | {"dev/score": float("nan")}).encode(), "`dev/score` must be a finite number. Got nan."),
        (json.dumps(RECORDS[1] | {"seconds": None}).encode(), "`seconds` must be a finite number. Got null."),
    ],
)
def test_a_damaged_line_is_named_and_the_rest_is_not_taken_for_the_whole(tmp_path: Path, line: bytes, law: str) -> None:
    path = tmp_path / "metrics.jsonl"
    write_records(path, RECORDS[:1])
    path.write_bytes(path.read_bytes() + line + b"\n" + json.dumps(RECORDS[1]).encode() + b"\n")
    with pytest.raises(RecordsError, match=rf"metrics\.jsonl:2: the file is damaged: {re.escape(law)}"):
        read_records(path)


def test_records_that_the_file_lost_are_those_of_the_snapshot(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("damaged\n")
    with pytest.raises(RecordsError):
        recorded_or_saved(tmp_path)
    save_snapshot(state_file(tmp_path), {"counters": {}}, RECORDS[:2])
    assert recorded_or_saved(tmp_path) == RECORDS[:2]
