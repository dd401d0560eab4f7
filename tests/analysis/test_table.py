"""The table under every analysis: a file says what the searches say, and what cannot be read is said in a sentence."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from analysis.runs import main
from analysis.table import Facts, Parameter, Trial, open_table
from search.results import open_search


def test_a_table_holds_every_evaluation_and_every_training_record(toy_runs: Path) -> None:
    table = open_table(["small"], toy_runs)
    for trial in open_search(toy_runs / "small").trials:
        (row,) = (row for row in table.trials if row.number == trial.number)
        assert [entry["rung"] for entry in row.evaluations] == list(trial.points) == [1, 3]
        assert row.at(3, "sst") == trial.points[3]["dev/sst"]
        assert row.at(2) is None
        seconds = {r["kind"]: r["seconds"] for r in trial.records if r["step"] == trial.points[3]["step"]}
        assert row.evaluations[1]["evaluation_seconds"] == seconds["dev"] - seconds["train"] > 0
        assert row.training == [
            {k: v for k, v in record.items() if k in row.training[0]} for record in trial.records if record["kind"] == "train"
        ]
        assert row.params == trial.params
    facts = table.searches["small"]
    assert facts.metrics == {"sst": "accuracy", "para": "accuracy", "sts": "pearson"}
    assert facts.parameters == {"optimizer/lr": Parameter("optimizer/lr", "log_uniform", (), 1e-4, 3e-3)}
    assert table.notes() == []


def test_a_file_gives_the_same_table_as_the_searches(toy_runs: Path, tmp_path: Path) -> None:
    path = tmp_path / "small.parquet"
    assert main(["small", "--runs", str(toy_runs), "--out", str(path)]) == 0
    assert open_table([str(path)], tmp_path) == open_table(["small"], toy_runs)


def test_a_search_that_is_in_two_files_is_told_apart(toy_runs: Path, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("before.parquet", "after.parquet")]
    for path in paths:
        main(["small", "--runs", str(toy_runs), "--out", str(path)])
    assert list(open_table([str(path) for path in paths], tmp_path).searches) == ["small", "after:small"]


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.parquet"
    with pytest.raises(ValueError, match=r"There is no file .*other.parquet. Write it: python analysis/runs.py NAME --out"):
        open_table([str(path)], tmp_path)
    path.write_text("trial,score\n")
    with pytest.raises(ValueError, match=r"other.parquet is not a Parquet file"):
        open_table([str(path)], tmp_path)
    pyarrow.parquet.write_table(pa.table({"trial": [1]}), path)
    with pytest.raises(ValueError, match=r"cannot be analysed: it lacks the facts about its searches. Write it again"):
        open_table([str(path)], tmp_path)


@pytest.mark.parametrize(("cell", "label"), [(1.0, "1"), (0.5, "0.5"), ("True", "True"), (True, "True"), ("none", "none")])
def test_a_cell_means_the_label_whatever_type_its_column_has(cell: object, label: str) -> None:
    labels = (True, False, "none") if not isinstance(cell, float) else (1, 0.5)
    assert Parameter("head", "choice", labels).label(cell) == label


def test_a_search_that_has_not_ended_says_so() -> None:
    facts = Facts("smart", "", 4, True, False, "norm", {}, {})
    trials = [
        Trial("smart", i, status, None, "multitask", 1, 1, {}) for i, status in enumerate(["completed", "running", "failed"])
    ]
    assert facts.state(trials) == (
        "smart: 2 of 4 trials have ended, and it is still running; 1 of 3 trials failed; they count up to their "
        "last evaluation."
    )
