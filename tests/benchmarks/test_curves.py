"""The recording of learning curves: parts of several machines in one file."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from analysis.table import FORMAT, METADATA, read_parquet
from benchmarks import curves_elsewhere
from benchmarks.curve_data import reduced_data
from benchmarks.curves import _parser, search_words, with_earlier
from minbert_core.checkpoints import save_encoder
from minbert_core.data.toy import toy_folder
from minbert_core.encoder import TINY, new_encoder


def part(num: int, seconds: float, **columns: Any) -> pa.Table:
    """The table of a part, whose trials each take `seconds` for 10 passes and are evaluated after half of them."""
    rows = [
        {
            "search": "curves-2",
            "trial": i,
            "seconds": seconds,
            "passes": 10,
            "status": "completed",
            "evaluations": [{"rung": 1, "seconds": seconds / 2, "evaluation_seconds": seconds / 4}],
        }
        for i in range(num)
    ]
    facts = {"searches": {"curves-2": {"name": "curves-2", "planned": num}}, "format": FORMAT}
    return pa.Table.from_pylist([row | columns for row in rows]).replace_schema_metadata({METADATA: json.dumps(facts)})


def test_parts_are_one_search_at_the_speed_of_the_first(tmp_path: Path) -> None:
    out = tmp_path / "curves.parquet"
    pyarrow.parquet.write_table(with_earlier(out, part(2, 8.0, lr=0.1), 1), out)
    pyarrow.parquet.write_table(with_earlier(out, part(3, 2.0, radius=0.5), 2), out)
    rows = read_parquet(out).to_pylist()
    assert [row["trial"] for row in rows] == [0, 1, 1000, 1001, 1002]
    assert {row["search"] for row in rows} == {"curves"}
    assert [row["seconds"] for row in rows] == [8.0] * 5
    assert {tuple(row["evaluations"][0].values()) for row in rows} == {(1, 4.0, 2.0)}
    assert [(row["lr"], row["radius"]) for row in rows] == [(0.1, None)] * 2 + [(None, 0.5)] * 3
    [facts] = json.loads(read_parquet(out).schema.metadata[METADATA])["searches"].values()
    assert facts == {"name": "curves", "planned": 5}


def test_a_part_that_has_grown_replaces_itself_only(tmp_path: Path) -> None:
    out = tmp_path / "curves.parquet"
    for rows, number in ((part(1, 8.0), 1), (part(2, 2.0), 2), (part(3, 2.0), 2), (part(2, 8.0), 1)):
        pyarrow.parquet.write_table(with_earlier(out, rows, number), out)
    assert [row["trial"] for row in read_parquet(out).to_pylist()] == [0, 1, 1000, 1001, 1002]


def test_a_part_without_a_whole_curve_yet_changes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "curves.parquet"
    pyarrow.parquet.write_table(with_earlier(out, part(2, 8.0), 1), out)
    assert [row["trial"] for row in with_earlier(out, part(3, 2.0, status="running"), 2).to_pylist()] == [0, 1]


def test_a_recording_that_has_begun_keeps_its_space_and_its_seed(tmp_path: Path) -> None:
    options = _parser().parse_args(["--data", "d", "--encoder", "e", "--runs", str(tmp_path), "--part", "2", "--hours", "3"])
    new = search_words(options, tmp_path)
    assert new[new.index("--seed") + 1] == "1"
    assert new[new.index("--set") + 1] == "budget/examples=6000"
    (tmp_path / "curves-2" / "trials" / "000").mkdir(parents=True)
    begun = search_words(options, tmp_path)
    assert begun == new[: len(begun)]
    assert not {"--space", "--seed", "--set"} & set(begun)
    assert begun[:2] == ["--resume", "curves-2"]


def test_the_dev_files_are_reduced_to_evenly_spaced_rows(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for stem in ("ids-sst", "quora", "sts"):
        (data / f"{stem}-train.csv").write_text("head\n")
        (data / f"{stem}-dev.csv").write_text("head\n" + "".join(f"{i}\n" for i in range(10)))
    reduced = reduced_data(data, tmp_path / "reduced", 4)
    assert (reduced / "sts-dev.csv").read_text() == "head\n0\n2\n5\n7\n"
    assert (reduced / "sts-train.csv").resolve() == data / "sts-train.csv"


def test_curves_of_a_machine_without_ray_are_those_of_a_search_of_ours(
    tmp_path: Path, small_toy_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(small_toy_cache))
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: SimpleNamespace(Pool=ThreadPool))
    data = toy_folder(small_toy_cache / "minbert")
    words = len((data / "vocab.txt").read_text(encoding="utf-8").splitlines())
    save_encoder(new_encoder(replace(TINY, vocab_size=words), 0, 0.1, 0.1), tmp_path / "encoder")
    shutil.copy(data / "vocab.txt", tmp_path / "encoder")
    folder, records, out = (str(tmp_path / name) for name in ("curves-3", "records", "curves.parquet"))
    inputs = ["--data", str(data), "--encoder", str(tmp_path / "encoder"), "--dev-rows", "20"]
    drawn = ["draw", folder, *inputs, "--part", "3", "--trials", "2", "--examples", "480"]
    assert curves_elsewhere.main(drawn) == 0
    assert curves_elsewhere.main(drawn) == 2
    assert "curves-3 exists. Its trials are drawn" in capsys.readouterr().err
    there = ["train", folder, *inputs, "--to", records, "--device", "cpu", "--at-once", "1"]
    assert curves_elsewhere.main([*there, "--minutes", "0"]) == 0
    assert not list(Path(records).glob("*/metrics.jsonl"))
    assert curves_elsewhere.main(there) == 0
    shutil.rmtree(tmp_path / "records" / "000")  # it was not whole in time
    assert curves_elsewhere.main(["gather", folder, records, "--part", "3", "--out", out]) == 0
    (tmp_path / "records" / "001").rename(tmp_path / "records" / "007")
    assert curves_elsewhere.main(["gather", folder, records, "--part", "3", "--out", out]) == 2
    assert "has records of 007, which" in capsys.readouterr().err
    rows = read_parquet(Path(out)).to_pylist()
    assert [(row["trial"], row["status"]) for row in rows] == [(2001, "completed")]
    assert all([entry["rung"] for entry in row["evaluations"]] == [*range(1, 10)] for row in rows)
