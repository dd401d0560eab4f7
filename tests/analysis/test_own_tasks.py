"""Tasks of one's own, searched and tested: beside a course task or alone, counted in the objective or not."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.best_to_test import main
from analysis.runs import main as runs_main
from minbert_core.data.corpus import read_split
from minbert_core.data.tasks import TASKS
from minbert_core.data.toy import write_toy_corpus
from search.results import open_search

MakeSearch = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
REVIEWS = {"kind": "binary", "text": "review", "label": "verdict", "labels": ["bad", "good"], "metric": "f1"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all searches of this file, of their data and their MLflow store, which takes seconds to create."""
    return tmp_path_factory.mktemp("own")


@pytest.fixture(scope="module")
def data(place: Path) -> Path:
    """The toy corpus, and its film reviews as JSONL: 120 rows to train on and cut dev from, 40 labelled ones to test."""
    folder = place / "data"
    write_toy_corpus(folder)
    for split, name in (("train", "reviews.jsonl"), ("dev", "held-out.jsonl")):
        rows = read_split(folder, TASKS["cfimdb"], split)
        assert rows.labels is not None
        lines = [
            {"review": text, "verdict": REVIEWS["labels"][int(label)]}
            for (text,), label in zip(rows.texts, rows.labels, strict=True)
        ]
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def encoder(place: Path, data: Path, make_encoder: Callable[[Path, Path], None]) -> Path:
    make_encoder(place / "encoder", data / "vocab.txt")
    return place / "encoder"


def best_to_test(folder: Path, *options: str) -> Any:
    """results.json after best_to_test on the weights that the search in `folder` has kept."""
    command = ["--search", folder.name, "--runs", str(folder.parent), "--no-retrain", "--gpus", "0", *options]
    assert main(command) == 0
    return json.loads((folder / "test" / "results.json").read_text(encoding="utf-8"))


def predictions(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_task_of_ones_own_alone_is_searched_and_tested(
    one_ray: None, place: Path, data: Path, encoder: Path, make_search: MakeSearch, capsys: Capture
) -> None:
    own = {"reviews": REVIEWS | {"files": {"train": "reviews.jsonl", "test": "held-out.jsonl"}, "dev_share": 0.2}}
    config = {"data": str(data), "encoder": str(encoder), "own_tasks": own, "train_on": ["reviews"]}
    folder = make_search(place / "runs", "mine", config, num_trials=2)
    record = open_search(folder).trials[0].best
    assert record["dev/reviews"] == record["dev/norm"] == record["dev/score"]
    results = best_to_test(folder, "--top", "1", "--no-baseline")
    table = (folder / "test" / "table.md").read_text(encoding="utf-8")
    assert "no labels" not in table
    (tested,) = results["configurations"]
    assert tested["dev"]["reviews"]["mean"] == pytest.approx(tested["claimed"]["reviews"])
    rows = predictions(folder / "test" / "predictions" / "reviews-test-output.csv")
    assert [row["id"] for row in rows] == [str(i) for i in range(1, 41)]
    assert {row["prediction"] for row in rows} <= {"bad", "good"}
    truth = [json.loads(line)["verdict"] for line in (data / "held-out.jsonl").read_text(encoding="utf-8").splitlines()]
    hits = sum(row["prediction"] == label == "good" for row, label in zip(rows, truth, strict=True))
    named = sum(row["prediction"] == "good" for row in rows) + truth.count("good")
    assert tested["test"]["reviews"]["mean"] == pytest.approx(2 * hits / named)
    assert len(predictions(folder / "test" / "predictions" / "reviews-dev-output.csv")) == 24


def test_an_auxiliary_task_is_measured_but_not_counted(
    one_ray: None, place: Path, data: Path, encoder: Path, make_search: MakeSearch, capsys: Capture
) -> None:
    config: dict[str, Any] = {"data": str(data), "encoder": str(encoder), "train_on": ["sst", "reviews"]}
    config |= {"own_tasks": {"reviews": REVIEWS | {"files": {"train": "reviews.jsonl"}}}}
    folder = make_search(place / "runs", "aided", config, num_trials=2, objective={"weights": {"sst": 1}})
    record = open_search(folder).trials[0].best
    assert record["dev/norm"] == record["dev/score"] == record["dev/sst"] != record["dev/reviews"]
    results = best_to_test(folder, "--top", "1", "--no-baseline")
    output = capsys.readouterr().out
    assert "none of reviews on test: it names no test file" in output
    made = {path.name for path in (folder / "test" / "predictions").iterdir() if path.is_file()}
    assert made == {"sst-dev-output.csv", "sst-test-output.csv", "reviews-dev-output.csv"}
    assert "reviews" not in results["configurations"][0]["test"]
    assert {"sst", "norm", "score"} <= set(results["configurations"][0]["test"])


def test_whether_an_auxiliary_task_helps_is_searched_and_tested(
    one_ray: None, place: Path, data: Path, encoder: Path, make_search: MakeSearch, capsys: Capture
) -> None:
    config: dict[str, Any] = {"data": str(data), "encoder": str(encoder), "train_on": {"choice": [["sst"], ["sst", "reviews"]]}}
    config |= {"own_tasks": {"reviews": REVIEWS | {"files": {"train": "reviews.jsonl"}}}}
    folder = make_search(place / "runs", "asks", config, num_trials=3, stops=False, objective="sst")
    trials = open_search(folder).trials
    assert {trial.config().train_on for trial in trials} == {("sst",), ("sst", "reviews")}
    assert json.loads((folder / "plan.json").read_text(encoding="utf-8"))["train_on"] == ["sst", "reviews"]
    assert "reviews-train" in json.loads((folder / "plan.json").read_text(encoding="utf-8"))["fingerprints"]
    assert runs_main(["asks", "--runs", str(place / "runs")]) == 0
    assert "| reviews |" in capsys.readouterr().out
    results = best_to_test(folder, "--top", "3")
    assert {len(entry["dev"]) for entry in results["configurations"]} == {len(results["configurations"][0]["dev"])}
    assert "reviews" not in results["configurations"][0]["dev"]  # not all of them have it
    assert (folder / "test" / "predictions" / "sst-test-output.csv").exists()


def test_an_overall_score_over_other_tasks_in_each_trial_is_refused(
    place: Path, data: Path, encoder: Path, make_search: MakeSearch
) -> None:
    config = {"data": str(data), "encoder": str(encoder), "train_on": {"choice": [["sst"], ["sst", "cfimdb"]]}}
    with pytest.raises(ValueError, match=r"Trials differ in `train_on`, so `objective` norm would cover"):
        make_search(place / "runs", "unfair", config)
