"""best_to_test and the table of runs, on a small search that was run without Ray; retraining itself goes through Ray."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import best_to_test
from analysis.best_to_test import main
from analysis.contenders import read_contenders
from analysis.selection import FRESH
from analysis.test_split import tokenise_test_split
from minbert_core.config import TrialConfig
from minbert_core.data.tasks import TASKS
from minbert_core.data.toy import toy_folder
from minbert_core.evaluate import check_submission, metric
from minbert_core.files import cache_folder
from minbert_core.inputs import open_inputs
from minbert_core.model import load_model, predict_logits
from search.plan.folder import lock
from search.results import open_search

Capture = pytest.CaptureFixture[str]
Tracked = Callable[..., dict[str, list[Any]]]
TRAINED = TrialConfig().train_on


def ledger(runs: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (runs / "small" / "test" / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]


def test_retraining_reports_dev_and_test_beside_the_claim(
    one_ray: None, toy_runs: Path, tracked: Tracked, capsys: Capture
) -> None:
    command = ["--search", "small", "--runs", str(toy_runs), "--top", "2", "--seeds", "2", "--gpus", "0"]
    assert main(command) == 0
    output = capsys.readouterr().out
    folder = toy_runs / "small" / "test"
    selection = json.loads((folder / "selection.json").read_text(encoding="utf-8"))
    assert selection["tried"] == 4
    assert all(seed >= FRESH for seed in selection["seeds"])
    searched = [trial.config().seed for trial in open_search(toy_runs / "small").trials]
    assert max(searched) < FRESH
    tested = {*selection["selected"], selection["baseline"]}
    assert selection["baseline"] == 0
    (opening,) = ledger(toy_runs)
    assert len(opening["models"]) == 2 * len(tested)
    table = (folder / "table.md").read_text(encoding="utf-8")
    assert table.rstrip() in output
    text = " ".join(table.split())
    assert "dev, claimed" in text
    assert "chosen on dev among 4 configurations" in text
    assert "Compared on test, by norm" in text
    assert "the baseline (000)" in text
    assert table.count(" ± ") >= 10 * len(tested)  # three tasks and two overall scores, on dev and on test
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert {entry["trial"] for entry in results["configurations"]} == tested
    for task in TRAINED:
        for split, num_rows in (("dev", 40), ("test", 10)):
            path = folder / "predictions" / f"{task}-{split}-output.csv"
            ids = [line.split(" , ")[0] for line in path.read_text(encoding="utf-8").splitlines()[1:]]
            assert len(ids) == num_rows
            assert check_submission(path, TASKS[task], ids) == []
    tex = (folder / "table.tex").read_text(encoding="utf-8")
    for entry in results["configurations"]:
        for split in ("dev", "test"):
            for column in (*TRAINED, "norm", "mean"):
                assert f"{entry[split][column]['mean']:.4f}".replace("0.", ".", 1) in tex
    assert "table.tex (booktabs; holds a caption as a comment), figure.svg, figure.png, figure.pdf" in table
    assert all((folder / f"figure.{ending}").stat().st_size for ending in ("svg", "png", "pdf"))
    runs = tracked(toy_runs)
    assert len(runs["search"]) == 1
    assert len(runs["trial"]) == 2 * len(tested)
    for run in runs["trial"]:
        model = results["models"][run.info.run_name]
        assert next(metric.key for metric in run.data.to_proto().metrics) == "dev/score"  # it colours MLflow's charts
        assert {run.data.metrics[f"{split}/norm"] == pytest.approx(model[split]["norm"]) for split in ("dev", "test")} == {True}
    # the same command again trains nothing twice, enters nothing twice, and opens the test split a second time on the record
    before = (folder / "selection.json").read_bytes()
    assert main(command) == 0
    assert capsys.readouterr().out.count("was trained before") == 2 * len(tested)
    assert (folder / "selection.json").read_bytes() == before
    assert [line["selection_sha256"] for line in ledger(toy_runs)] == [opening["selection_sha256"]] * 2
    again = tracked(toy_runs)
    assert {run.info.run_id for run in again["search"]} == {run.info.run_id for run in runs["search"]}
    assert {run.info.run_id for run in again["trial"]} == {run.info.run_id for run in runs["trial"]}
    assert {run.info.status for run in again["trial"]} == {"FINISHED"}
    stored = {
        entry["trial"]: entry for entry in json.loads((folder / "results.json").read_text(encoding="utf-8"))["configurations"]
    }
    assert stored == {entry["trial"]: entry for entry in results["configurations"]}


def test_per_branch_tests_the_best_of_each_in_a_folder_of_its_own(
    one_ray: None, tmp_path: Path, make_search: Callable[..., Path], tracked: Tracked, capsys: Capture
) -> None:
    config = {"data": "toy", "encoder": "tiny", "budget": {"examples": 60}, "smoothness": {"choice": ["none", "r_drop"]}}
    runs = tmp_path / "runs"
    folder = make_search(runs, "small", config, stops=False) / "test" / "per-smoothness"
    command = ["--search", "small", "--runs", str(runs), "--gpus", "0", "--seeds", "1", "--no-baseline"]
    assert main([*command, "--per", "smoothness"]) == 0
    output = capsys.readouterr().out
    selection = json.loads((folder / "selection.json").read_bytes())
    best = {branch["branch"]: branch["best"] for branch in selection["per"]["branches"]}
    assert selection["selected"] == [best["none"], best["r_drop"]]
    assert selection["per"]["reference"] == "none"
    assert (folder / "table.md").read_text(encoding="utf-8").rstrip() in output
    assert f"{best['none']:03d} (reference)" in (folder / "table.tex").read_text(encoding="utf-8")
    results = json.loads((folder / "results.json").read_bytes())
    assert {(of["first"], of["second"]) for of in results["comparisons"]} == {(best["r_drop"], best["none"])}
    assert results["per"] == selection["per"]
    assert {path.name for path in folder.parent.iterdir()} == {"per-smoothness", "retrained", "logits", "ledger.jsonl"}
    assert [line["selection"] for line in ledger(runs)] == ["per-smoothness/selection.json"]
    assert len(tracked(runs, "small-test-per-smoothness")["trial"]) == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--top", "2"], "--per tests one configuration per branch, so --top has no meaning with it."),
        (["--no-retrain"], "--no-retrain has one seed"),
        ([], "`--per` takes a choice, and small has none: its space searches ranges only: optimizer/lr."),
    ],
)
def test_what_does_not_go_with_per_is_refused(toy_runs: Path, capsys: Capture, options: list[str], sentence: str) -> None:
    assert main(["--search", "small", "--runs", str(toy_runs), "--gpus", "0", "--per", "smoothness", *options]) == 2
    assert sentence in capsys.readouterr().err


def test_kept_weights_are_tested_as_they_are(one_ray: None, real_like: tuple[Path, Path], capsys: Capture) -> None:
    runs, _ = real_like
    # without a name: the newest finished search that is not toy
    assert main(["--runs", str(runs), "--no-retrain", "--no-baseline", "--top", "1", "--gpus", "0"]) == 0
    output = capsys.readouterr().out
    assert "baseline  left out" in output
    assert "no labels" in output  # of the test split; its predictions are written all the same
    search = open_search(runs / "small")
    best = min(search.trials, key=lambda trial: (trial.rung != 3, -trial.score))
    _, config = load_model(runs / "small" / "best")
    inputs = open_inputs(config)
    logits = np.load(runs / "small" / "test" / "logits" / f"{best.number:03d}-kept" / "sst-dev.npy")
    assert inputs.dev["sst"].labels is not None
    assert metric(TASKS["sst"], logits, inputs.dev["sst"].labels) == best.best["dev/sst"]
    for task in TRAINED:
        path = runs / "small" / "test" / "predictions" / f"{task}-test-output.csv"
        assert len(path.read_text(encoding="utf-8").splitlines()) == 11


def test_the_selection_is_frozen_before_a_test_file_is_opened(
    one_ray: None, real_like: tuple[Path, Path], tmp_path: Path, tracked: Tracked, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(real_like[0], runs, symlinks=True)
    shutil.rmtree(runs / "small" / "test", ignore_errors=True)
    seen: list[bool] = []

    def stand_in(*_: object) -> None:
        seen.append((runs / "small" / "test" / "selection.json").exists())
        raise ValueError("the test split was asked for")

    monkeypatch.setattr(best_to_test, "open_test_splits", stand_in)
    assert main(["--runs", str(runs), "--no-retrain", "--gpus", "0"]) == 2
    assert seen == [True]
    assert tracked(runs)["search"][0].info.status == "FAILED"


def test_a_dry_run_opens_and_writes_nothing(real_like: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(real_like[0], runs, symlinks=True)
    shutil.rmtree(runs / "small" / "test", ignore_errors=True)
    assert main(["--runs", str(runs), "--dry-run", "--gpus", "0"]) == 0
    output = capsys.readouterr().out
    assert "no test file was opened" in output
    assert "baseline  000" in output
    assert "before; ledger.jsonl" not in output
    assert not (runs / "small" / "test").exists()
    (runs / "small" / "test").mkdir()
    (runs / "small" / "test" / "ledger.jsonl").write_text("{}\n{}\n")
    assert main(["--runs", str(runs), "--dry-run", "--gpus", "0"]) == 0
    assert "opened    the test files, for this search: 2 times before; ledger.jsonl" in capsys.readouterr().out


def test_a_missing_test_file_is_told_before_anything_is_frozen_or_trained(
    real_like: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    runs, data = tmp_path / "runs", tmp_path / "data"
    shutil.copytree(real_like[0], runs, symlinks=True)
    shutil.rmtree(runs / "small" / "test", ignore_errors=True)
    shutil.copytree(real_like[1], data)
    (data / TASKS["para"].files["test"]).unlink()
    assert main(["--runs", str(runs), "--data", str(data), "--gpus", "0"]) == 2
    assert f"There is no test file quora-test-student.csv in {data}." in capsys.readouterr().err
    assert not (runs / "small" / "test").exists()


def test_a_toy_search_is_taken_only_by_name(toy_runs: Path, capsys: Capture) -> None:
    assert main(["--runs", str(toy_runs)]) == 2
    assert "no finished search on real data" in capsys.readouterr().err


def test_a_running_search_is_refused(toy_runs: Path, capsys: Capture) -> None:
    with lock(toy_runs / "small"):
        assert main(["--search", "small", "--runs", str(toy_runs), "--gpus", "0"]) == 3
    assert "still running" in capsys.readouterr().err


def test_bad_input_gets_a_sentence(toy_runs: Path, capsys: Capture) -> None:
    assert main(["--search", "smal", "--runs", str(toy_runs)]) == 2
    assert "There is no search 'smal'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["--search", "small", "--runs", str(toy_runs), "--top", "0"])
    assert "--top: must be a whole number of 1 or more. Got '0'." in capsys.readouterr().err
    assert main(["--search", "small", "--runs", str(toy_runs), "--gpus", "64"]) == 3
    assert "This works here" in capsys.readouterr().err


def test_ensembles_and_a_configuration_of_ones_own_are_tested_next_to_the_searchs(
    one_ray: None,
    tmp_path: Path,
    make_search: Callable[..., Path],
    make_encoder: Callable[[Path, Path], None],
    capsys: Capture,
) -> None:
    config = {"data": "toy", "encoder": "tiny", "budget": {"examples": 60}}
    runs = tmp_path / "runs"
    folder = make_search(runs, "small", config, num_trials=3, stops=False) / "test"
    words = (toy_folder(cache_folder()) / "vocab.txt").read_text(encoding="utf-8").splitlines()
    specials = [word for word in words if word.startswith("[")]
    vocabulary = tmp_path / "vocab.txt"  # the same words with other numbers
    vocabulary.write_text("\n".join([*specials, *reversed(words[len(specials) :])]) + "\n", encoding="utf-8")
    make_encoder(tmp_path / "other", vocabulary)
    own = f"encoder: {tmp_path / 'other'}\ntasks: {{all: {{pooling: max}}}}\nsmoothness: r_drop\n"
    (tmp_path / "mine.yaml").write_text(own, encoding="utf-8")
    command = ["--search", "small", "--runs", str(runs), "--gpus", "0", "--seeds", "2", "--top", "2", "--no-baseline"]
    assert main([*command, "--config", str(tmp_path / "mine.yaml")]) == 0
    output = capsys.readouterr().out
    assert "given     mine.yaml: not chosen on dev" in output
    selection = json.loads((folder / "selection.json").read_bytes())
    assert selection["contenders"] == ["mine.yaml"]
    given = selection["trials"][-1]
    assert (given["claimed"], given["config"]["budget"]["examples"]) == ({}, 60)
    results = json.loads((folder / "results.json").read_bytes())
    assert [entry["trial"] for entry in results["configurations"]] == [*selection["selected"], -1]
    names = [f"{number:03d}" for number in selection["selected"]]
    ensembles = {entry["name"]: entry for entry in results["ensembles"]}
    assert set(ensembles) == {f"{name}-ensemble" for name in [*names, "mine", "finalists"]}
    assert len(ensembles["finalists-ensemble"]["members"]) == 4
    assert all("mine" not in member for member in ensembles["finalists-ensemble"]["members"])
    # each has the course's files, and the ensemble's answers are those of the averaged logits
    models = [f"{name}-seed{seed}" for name in [*names, "mine"] for seed in (0, 1)]
    assert {path.name for path in (folder / "predictions").iterdir() if path.is_dir()} == {*models, *ensembles}
    first = f"{names[0]}-ensemble"
    logits = np.mean([np.load(folder / "logits" / f"{names[0]}-seed{seed}" / "sst-test.npy") for seed in (0, 1)], axis=0)
    lines = (folder / "predictions" / first / "sst-test-output.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert [int(line.split(" , ")[1]) for line in lines] == logits.argmax(axis=1).tolist()
    labels = open_inputs(open_search(runs / "small").trials[0].config()).dev["sst"].labels
    assert labels is not None
    logits = np.mean([np.load(folder / "logits" / f"{names[0]}-seed{seed}" / "sst-dev.npy") for seed in (0, 1)], axis=0)
    assert ensembles[first]["dev"]["sst"]["mean"] == pytest.approx(metric(TASKS["sst"], logits, labels))
    table = (folder / "table.md").read_text(encoding="utf-8")
    assert f"{names[0]}, ensemble of 2 seeds" in table
    assert "mine (given)" in table
    assert len(ledger(runs)) == 1
    # each model read the test texts by its own vocabulary
    model, own_config = load_model(folder / "retrained" / "mine-seed0" / "best")
    inputs = open_inputs(own_config)
    split = tokenise_test_split(inputs.data_folder, TASKS["sst"], inputs.tokenizer, cache_folder() / "tokens")
    expected = predict_logits(model, "sst", split, own_config.max_length, inputs.specials, "float32")
    assert np.load(folder / "logits" / "mine-seed0" / "sst-test.npy") == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["007", "finalists", "mine.v2", "my own"])
def test_a_configuration_whose_name_would_stand_for_something_else_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{name}.yaml") + r": its name becomes .* Rename the file\."):
        read_contenders([tmp_path / f"{name}.yaml"], TrialConfig(), {})


def test_a_configuration_of_ones_own_is_trained_in_the_searchs_precision_and_micro_batches(tmp_path: Path) -> None:
    like = TrialConfig.model_validate(
        {"machine": {"precision": "float32", "micro_batch_tokens": 900, "threads": 3}, "data": "toy"}
    )
    (tmp_path / "mine.yaml").write_text("encoder: tiny\n", encoding="utf-8")
    (tmp_path / "other.yaml").write_text("encoder: tiny\nmachine: {precision: bfloat16}\n", encoding="utf-8")
    found = [trial.config().machine for trial in read_contenders([tmp_path / "mine.yaml", tmp_path / "other.yaml"], like, {})]
    assert [(of.precision, of.micro_batch_tokens, of.threads) for of in found] == [("float32", 900, 1), ("bfloat16", 900, 1)]


@pytest.mark.parametrize(
    ("text", "options", "sentence"),
    [
        ("seed: 3", ["--no-retrain"], "--config adds a configuration to train, but --no-retrain trains nothing."),
        ("data: elsewhere", [], "all models must answer the same rows, so `data` must be the search's, toy. Got elsewhere."),
        ("train_on: [sst]", [], "`train_on` must hold the search's tasks, sst, para, sts, as the search declares them."),
        ("smoothnes: smart", [], "mine.yaml:1: "),
        ("trials: 3", [], "`trials` belongs to a search space"),
    ],
)
def test_a_configuration_of_ones_own_that_cannot_be_compared_is_refused(
    toy_runs: Path, tmp_path: Path, capsys: Capture, text: str, options: list[str], sentence: str
) -> None:
    (tmp_path / "mine.yaml").write_text(text + "\n", encoding="utf-8")
    command = [
        "--search",
        "small",
        "--runs",
        str(toy_runs),
        "--gpus",
        "0",
        "--dry-run",
        "--config",
        str(tmp_path / "mine.yaml"),
    ]
    assert main([*command, *options]) == 2
    assert sentence in capsys.readouterr().err
