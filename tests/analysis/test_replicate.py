"""A paper's rows beside ours: what may be called a replication, what noise a difference lies in, and the command itself."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.replicate import choose_rows, cut, main
from analysis.replication import DEV_ROWS, ENCODER, SHAPE, TRAIN_ROWS, Circumstances, noise_around, replication_lines
from search import papers
from search.papers import Row
from search.report.words import short
from search.results import open_search

Capture = pytest.CaptureFixture[str]
TASKS = ("sst", "para", "sts")
THEIRS = Circumstances(
    encoder=ENCODER,
    shape=SHAPE,
    data="data",
    train_rows={task: TRAIN_ROWS[task] for task in TASKS},
    dev_rows={task: DEV_ROWS[task] for task in TASKS},
    part=1,
    num_seeds=2,
)
ROWS = [
    Row("base", "table 1, Baseline", {"dev": {"sst": 0.5, "norm": 0.6}}),
    Row("best", "table 1, their best", {"dev": {"sst": 0.52, "norm": 0.65}, "test": {"sst": 0.51}}),
]


def figures(*values: float) -> dict[str, Any]:
    """As results.json has them; the interval reaches .03 beyond the values."""
    mean = sum(values) / len(values)
    deviation = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5 if len(values) > 1 else None
    return {"mean": mean, "deviation": deviation, "interval": [min(values) - 0.03, max(values) + 0.03], "values": list(values)}


MEASURED = {
    "base": {"dev": {"sst": figures(0.49, 0.51), "norm": figures(0.59, 0.61)}, "test": {}},
    "best": {"dev": {"sst": figures(0.53, 0.55), "norm": figures(0.70, 0.70)}, "test": {"sst": figures(0.52, 0.54)}},
}


def table(circumstances: Circumstances, rows: Sequence[Row] = ROWS, measured: Mapping[str, Any] = MEASURED) -> list[list[str]]:
    """The cells of the report's table, its head left out."""
    lines = [line for line in replication_lines("P0", rows, measured, circumstances, {}) if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


# ------------------------------------------------------------------------------------------------------- what it is called


def test_under_the_papers_circumstances_it_is_a_replication() -> None:
    assert THEIRS.reasons() == []
    assert "A replication, in encoder, data and budget." in replication_lines("P0", ROWS, MEASURED, THEIRS, {})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"encoder": "/models/mini", "shape": (384, 6, 30_522)}, "the encoder is /models/mini, theirs bert-base-uncased"),
        ({"encoder": "google-bert/bert-base-cased"}, "the encoder is google-bert/bert-base-cased, theirs bert-base-uncased"),
        ({"train_rows": {"sst": 8_544, "para": 14_172}}, "para has 14,172 train rows, theirs 141,498"),
        ({"dev_rows": {**DEV_ROWS, "para": 40_429}}, "para has 40,429 dev rows, theirs 20,212"),
        ({"part": 0.05}, "each row was trained for 0.05 of its budget"),
    ],
)
def test_each_other_circumstance_is_told_and_makes_it_none(changes: dict[str, Any], reason: str) -> None:
    circumstances = replace(THEIRS, **changes)
    assert circumstances.reasons() == [reason]
    assert f"Not a replication: {reason}." in replication_lines("P0", ROWS, MEASURED, circumstances, {})


def test_a_folder_of_the_right_shape_and_tasks_of_ones_own_are_no_reason() -> None:
    rows = {**THEIRS.train_rows, "yelp": 2_500}
    assert replace(THEIRS, encoder="/models/bert-base-uncased", train_rows=rows).reasons() == []


# --------------------------------------------------------------------------------------------------------------- the table


def test_a_replication_stands_under_what_was_published_with_the_difference() -> None:
    assert table(THEIRS) == [
        ["base", "dev, published", ".500", ".600"],
        ["", "dev, measured", ".5000 ± .0141", ".6000 ± .0141"],
        ["", "difference", "+.0000 (seeds)", "+.0000 (seeds)"],
        ["best", "dev, published", ".520", ".650"],
        ["", "dev, measured", ".5400 ± .0141", ".7000 ± .0000"],
        ["", "difference", "+.0200 (seeds)", "+.0500 (neither)"],
        ["", "test, published", ".510", ""],
        ["", "test, measured", ".5300 ± .0141", "no labels"],
        ["", "difference", "+.0200 (seeds)", ""],
    ]


def test_what_is_none_is_compared_with_the_papers_first_row_alone() -> None:
    cells = table(replace(THEIRS, part=0.5))
    assert not any("difference" in row for row in cells)
    assert cells[4:6] == [
        ["", "from base, published", "+.020", "+.050"],
        ["", "from base, measured", "+.0400 ± .0000", "+.1000 ± .0141"],
    ]


def test_a_row_without_figures_is_told_and_left_out() -> None:
    lines = replication_lines("P0", ROWS, {"best": MEASURED["best"]}, replace(THEIRS, part=0.5), {"base": "ValueError: no"})
    assert "base is missing: ValueError: no" in lines
    assert not any("from base" in line for line in lines if line.startswith("|"))


def test_where_a_paper_prints_no_score_norm_and_mean_are_ours() -> None:
    rows = [Row("a", "", {"dev": {"sst": 0.5}}), Row("b", "", {"dev": {"sst": 0.5}})]
    of = {"dev": {"sst": figures(0.5), "norm": figures(0.6), "mean": figures(0.55), "score": figures(0.5)}}
    assert table(replace(THEIRS, num_seeds=1), rows, {"a": of, "b": of})[:2] == [
        ["a", "dev, published", ".500", "", ""],
        ["", "dev, measured", ".5000", ".6000", ".5500"],
    ]


@pytest.mark.parametrize(
    ("published", "noise"),
    [
        (0.5430, "seeds"),  # 2.7764 s sqrt(1.2) = .04301 around .5, by a t table
        (0.5431, "rows"),
        (0.5601, "neither"),
    ],
)
def test_a_difference_lies_in_the_seeds_noise_or_the_rows_or_neither(published: float, noise: str) -> None:
    of = {"mean": 0.5, "deviation": 0.0141421, "interval": [0.44, 0.56], "values": [0.48, 0.5, 0.5, 0.5, 0.52]}
    assert noise_around(published, of) == noise


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_one_perfect_replication_in_twenty_is_denied_whatever_the_seeds(num_seeds: int) -> None:
    """Published and measured runs are draws of one distribution, and the dev split explains nothing."""
    random, trials, denied = np.random.default_rng(num_seeds), 2000, 0
    for published, *values in random.normal(0.5, 0.02, (trials, 1 + num_seeds)).tolist():
        mean = statistics.fmean(values)
        of = {"mean": mean, "deviation": statistics.stdev(values), "interval": [mean, mean], "values": values}
        denied += noise_around(published, of) == "neither"
    assert 0.035 <= denied / trials <= 0.065  # .05 with three standard errors of the simulation


def test_one_seed_tells_nothing_of_seeds() -> None:
    of = {"mean": 0.5, "deviation": None, "interval": [0.46, 0.54], "values": [0.5]}
    assert [noise_around(figure, of) for figure in (0.5, 0.55)] == ["rows", "neither"]


# --------------------------------------------------------------------------------------------------------------- what runs


def test_the_rows_named_run_behind_the_papers_first() -> None:
    known = [Row(name, "", {}) for name in ("first", "second", "third")]
    assert choose_rows(known, None) == known
    assert [row.name for row in choose_rows(known, ["third"])] == ["first", "third"]
    with pytest.raises(ValueError, match="This paper has no row 'thrd'; did you mean 'third'"):
        choose_rows(known, ["thrd"])
    with pytest.raises(ValueError, match=r"first is the row that the others are compared with\. Name at least one other row"):
        choose_rows(known, ["first"])


def test_a_part_of_a_budget_is_that_of_every_stage() -> None:
    document = {
        "config": {"stages": [{"kind": "heads_only", "epochs": 10}]},
        "together": {"row": [{"name": "a", "set": {}}, {"name": "b", "set": {"stages": [{"epochs": 20}, {"epochs": 4}]}}]},
    }
    before = json.dumps(document)
    half = cut(document, [Row("b", "", {})], 0.5)
    assert half["config"]["stages"] == [{"kind": "heads_only", "epochs": 5}]
    assert half["together"]["row"] == [{"name": "b", "set": {"stages": [{"epochs": 10}, {"epochs": 2}]}}]
    assert json.dumps(document) == before
    assert cut(document, [Row("a", "", {}), Row("b", "", {})], 1) == document


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--paper", "P9"], "There is no paper 'P9'. Known: P1, P2, P2_YELP, P3, P4, P4_SINGLE."),
        (["--paper", "P3", "--rows", "gs"], "This paper has no row 'gs'"),
        (["--paper", "P3", "--data", "/nowhere"], "The data folder /nowhere does not exist."),
    ],
)
def test_what_is_wrong_is_told_before_anything_starts(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: Capture
) -> None:
    assert main([*arguments, "--runs", str(tmp_path / "runs")]) == 2
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------- end to end

PAPER = """
about: Nobody 2026. Does it work?
objective: mean
sampler: grid
trial_scheduler: none
rungs: [1, 2]
config:
  encoder: bert-base-uncased
  tasks: {all: {batch_size: 8}}
  optimizer: {lr: 1e-3}
together:
  row:
    - name: base
      about: table 1, Baseline
      published: {dev: {sst: 0.3, para: 0.6, sts: 0.1, mean: 0.333}}
      set: {stages: [{kind: multitask, epochs: 2}]}
    - name: better
      about: table 1, PCGrad
      published: {dev: {sst: 0.4, para: 0.7, sts: 0.3, mean: 0.467}, test: {sst: 0.41}}
      set: {stages: [{kind: multitask, epochs: 4}], gradient: pcgrad}
"""


def test_a_papers_rows_are_searched_retrained_tested_and_tabled(
    tmp_path: Path, small_toy_cache: Path, store: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    from mlflow import MlflowClient

    (tmp_path / "p0.yaml").write_text(PAPER, encoding="utf-8")
    shutil.copy(store, tmp_path / "mlflow.db")
    monkeypatch.setattr(papers, "PAPERS", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(small_toy_cache))
    monkeypatch.chdir(tmp_path)
    command = ["--paper", "P0", "--data", "toy", "--encoder", "tiny", "--part", "0.5", "--seeds", "1", "--gpus", "0"]
    command += ["--cpus-per-trial", "2"]  # one process at a time trains both rows
    assert main(command) == 0
    search = open_search(tmp_path / "runs" / "p0-part-0_5")
    assert {trial.params["together/row"]: trial.config().stages[0].epochs for trial in search.trials} == {
        "base": 1,
        "better": 2,
    }
    text = (search.folder / "replicate.md").read_text(encoding="utf-8")
    assert text.strip() in capsys.readouterr().out
    assert "Not a replication: the encoder is tiny, theirs bert-base-uncased; sst has 120 train rows" in text
    assert "for 0.5 of its budget" in " ".join(text.split())
    results = json.loads((search.folder / "test" / "results.json").read_text(encoding="utf-8"))
    means = {entry["params"]["together/row"]: entry["dev"]["mean"]["mean"] for entry in results["configurations"]}
    for row, mean in means.items():
        (line,) = [cells for cells in _rows(text) if cells[:2] == [row, "dev, measured"]]
        assert line[-1] == short(mean)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("p0-part-0_5-replicate")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics["better/dev_mean"] == pytest.approx(means["better"])
    assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"replicate.md", "results.json"}


def _rows(text: str) -> list[list[str]]:
    """The cells of a table, the first of each row carried down."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")]
    label = ""
    return [[label := cells[0] or label, *cells[1:]] for cells in rows]
