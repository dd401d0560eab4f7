"""The command that compares searches: what it prints, the files it writes, what it refuses."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest

from analysis.runs import main
from analysis.table import NESTED
from search.results import open_search, read

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).resolve().parents[2]


def test_the_ranking_of_a_search_is_printed_with_its_baseline_marked(toy_runs: Path, capsys: Capture) -> None:
    assert main(["small", "--runs", str(toy_runs)]) == 0
    output = capsys.readouterr().out
    assert output.startswith("small: which rate? (4 of 4 trials)\n| trial ")
    assert "(baseline)" in output


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_a_file_holds_all_trials_and_columns_in_the_format_of_its_suffix(
    toy_runs: Path, tmp_path: Path, suffix: str, capsys: Capture
) -> None:
    path = tmp_path / f"trials.{suffix}"
    assert main(["--runs", str(toy_runs), "--out", str(path)]) == 0
    assert capsys.readouterr().out.endswith(f"wrote {path}\n")
    table = read("small", runs=toy_runs)
    with path.open(encoding="utf-8") as file:
        if suffix == "parquet":
            assert pyarrow.parquet.read_table(path).drop_columns(list(NESTED)).equals(table)
        elif suffix == "jsonl":
            rows = [json.loads(line) for line in file]
            assert [{key: row[key] for key in table.column_names} for row in rows] == table.to_pylist()
        else:
            rows = list(csv.DictReader(file))
            assert [float(row["optimizer/lr"]) for row in rows] == table["optimizer/lr"].to_pylist()
            assert list(rows[0]) == table.column_names


@pytest.mark.parametrize("rows", ["evaluations", "training"])
def test_a_file_may_hold_one_row_per_evaluation_or_training_record(toy_runs: Path, tmp_path: Path, rows: str) -> None:
    path = tmp_path / "rows.csv"
    assert main(["--runs", str(toy_runs), "--out", str(path), "--rows", rows]) == 0
    with path.open(encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    trials = open_search(toy_runs / "small").trials
    kind, figure = ("dev", "dev/score") if rows == "evaluations" else ("train", "train/sst_loss")
    of_trials = {trial.number: [record for record in trial.records if record["kind"] == kind] for trial in trials}
    assert len(written) == sum(map(len, of_trials.values()))
    first = next(row for row in written if row["trial"] == "2")
    assert float(first[figure]) == of_trials[2][0][figure]
    assert float(first["optimizer/lr"]) == trials[2].params["optimizer/lr"]


def test_a_suffix_that_names_no_format_is_refused_before_anything_is_read(tmp_path: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["nobody", "--runs", str(tmp_path), "--out", "trials.xlsx"])
    assert "--out: must end in .parquet, .csv, .jsonl, which says the format. Got 'trials.xlsx'." in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_said_in_a_sentence(toy_runs: Path, tmp_path: Path, capsys: Capture) -> None:
    for suffix in ("parquet", "csv", "jsonl"):
        path = tmp_path / "nowhere" / f"trials.{suffix}"
        assert main(["--runs", str(toy_runs), "--out", str(path)]) == 3
        assert f"Cannot write {path}: No such file or directory." in capsys.readouterr().err


def test_what_is_not_there_is_said_in_a_sentence(toy_runs: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["smal", "--runs", str(toy_runs)]) == 2
    assert "There is no search 'smal'" in capsys.readouterr().err
    assert main(["--runs", str(tmp_path)]) == 2
    assert f"There is no search in {tmp_path}. Start one: " in capsys.readouterr().err


def test_it_starts_as_a_file() -> None:
    done = subprocess.run([sys.executable, "analysis/runs.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: python analysis/runs.py" in done.stdout
