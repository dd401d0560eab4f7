"""best_to_test and the table of runs, on a small search that was run without Ray; retraining itself goes through Ray."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from analysis import best_to_test
from analysis.best_to_test import main
from analysis.runs import all_searches, open_search, read_trials
from analysis.runs import main as runs_main
from analysis.selection import FRESH
from minbert_core.checkpoints import save_encoder
from minbert_core.config import read_config
from minbert_core.data.tasks import TASKS
from minbert_core.data.toy import write_toy_corpus
from minbert_core.encoder import TINY, new_encoder
from minbert_core.evaluate import check_submission, metric
from minbert_core.inputs import open_inputs
from minbert_core.model import load_model, save_model
from minbert_core.train import train
from search.plan import Resources, lock, make_plan
from search.rungs import RungScheduler
from search.space import make_space
from search.study import Study, stopped_at
from search.trainable import write_records

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).resolve().parents[2]


def small_search(runs: Path, name: str, config: dict[str, object], num_trials: int = 4) -> Path:
    """A finished search of a few tiny trials in `runs/name`, run in this process: the same study, records and folders."""
    space = make_space(
        "small",
        {"about": "which rate?", "trials": num_trials, "rungs": [1, 3], "baselines": [{}], "config": {
            **config, "budget": {"examples": 600}, "optimizer": {"lr": {"log_uniform": [1e-4, 3e-3]}}}},
    )  # fmt: skip
    plan = make_plan(name, space, 0, None, Resources(1, 0, 1, 0))
    folder = runs / name
    (folder / "trials").mkdir(parents=True)
    (folder / "plan.json").write_text(json.dumps(plan.document([])), encoding="utf-8")
    with lock(folder):
        study, scheduler = Study(folder, plan.space, 0), RungScheduler((1, 3))
        for _ in range(num_trials):
            trial = study.ask()
            records, status, reason = [], "completed", "completed"
            for progress in train(trial.config(), plan.inputs):
                records.append(progress.record)
                if progress.improved:
                    save_model(progress.model, trial.config(), trial.folder / "best", plan.inputs.encoder_folder)
                if progress.part is None:
                    continue
                study.report(trial.number, progress.part, progress.record["dev/score"])
                exempt = trial.baseline is not None
                if scheduler.decide(trial.number, "multitask", exempt, progress.part, progress.record["dev/score"]) == "STOP":
                    status, reason = "stopped", stopped_at(progress.part, (1, 3))
                    break
            write_records(trial.folder / "metrics.jsonl", records)
            study.tell(trial.number, status, reason)
        study.keep_best()
    return folder


@pytest.fixture(scope="module")
def toy_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("toy") / "runs"
    small_search(runs, "small", {"data": "toy", "encoder": "tiny"})
    return runs


@pytest.fixture(scope="module")
def real_like(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(runs, data): a search on a folder in the course's layout whose test files have no labels."""
    place = tmp_path_factory.mktemp("real")
    data, encoder = place / "data", place / "encoder"
    write_toy_corpus(data)
    for task in TASKS.values():
        path = data / task.files["test"]
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
        column = rows[0].index(task.label_column)
        path.write_text(
            "".join("\t".join(cell for i, cell in enumerate(row) if i != column) + "\n" for row in rows), encoding="utf-8"
        )
    words = len((data / "vocab.txt").read_text(encoding="utf-8").splitlines())
    save_encoder(new_encoder(dataclasses.replace(TINY, vocab_size=words), 0, 0.1, 0.1), encoder)
    shutil.copy(data / "vocab.txt", encoder)
    small_search(place / "runs", "small", {"data": str(data), "encoder": str(encoder)})
    return place / "runs", data


def test_retraining_reports_dev_and_test_beside_the_claim(toy_runs: Path, capsys: Capture) -> None:
    assert main(["--search", "small", "--runs", str(toy_runs), "--top", "1", "--seeds", "2", "--gpus", "0"]) == 0
    output = capsys.readouterr().out
    folder = toy_runs / "small" / "test"
    selection = json.loads((folder / "selection.json").read_text(encoding="utf-8"))
    assert selection["tried"] == 4
    assert all(seed >= FRESH for seed in selection["seeds"])
    searched = [trial.config().seed for trial in open_search(toy_runs / "small").trials]
    assert max(searched) < FRESH
    (line,) = (folder / "ledger.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(json.loads(line)["models"]) == 2
    table = (folder / "table.md").read_text(encoding="utf-8")
    assert "dev, claimed" in table
    assert "chosen on dev among 4 configurations" in table
    assert table.count(" ± ") >= 10  # three tasks and two overall scores, on dev and on test
    assert table.rstrip() in output
    for task in TASKS.values():
        for split in ("dev", "test"):
            path = folder / "predictions" / f"{task.name}-{split}-output.csv"
            ids = [line.split(" , ")[0] for line in path.read_text(encoding="utf-8").splitlines()[1:]]
            assert len(ids) == 400
            assert check_submission(path, task, ids) == []
    # the same command again trains nothing twice, and opens the test split a second time on the record
    assert main(["--search", "small", "--runs", str(toy_runs), "--top", "1", "--seeds", "2", "--gpus", "0"]) == 0
    assert capsys.readouterr().out.count("was trained before") == 2
    assert len((folder / "ledger.jsonl").read_text(encoding="utf-8").splitlines()) == 2


def test_a_retrained_model_differs_from_its_trial_in_the_seed_alone(toy_runs: Path) -> None:
    for folder in sorted((toy_runs / "small" / "test" / "retrained").iterdir()):
        config = read_config(folder / "config.yaml")
        trial = next(t for t in open_search(toy_runs / "small").trials if f"{t.number:03d}" == folder.name[:3])
        assert config.model_copy(update={"seed": 0, "machine": trial.config().machine}) == trial.config().model_copy(
            update={"seed": 0}
        )


def test_kept_weights_are_tested_as_they_are(real_like: tuple[Path, Path], capsys: Capture) -> None:
    runs, _ = real_like
    # without a name: the newest finished search that is not toy
    assert main(["--runs", str(runs), "--no-retrain", "--top", "1", "--gpus", "0"]) == 0
    output = capsys.readouterr().out
    assert "no labels" in output  # of the test split; its predictions are written all the same
    search = open_search(runs / "small")
    best = min(search.trials, key=lambda trial: (trial.part != 3, -trial.score))
    _, config = load_model(runs / "small" / "best")
    inputs = open_inputs(config)
    logits = np.load(runs / "small" / "test" / "logits" / f"{best.number:03d}-seed0" / "sst-dev.npy")
    assert metric(TASKS["sst"], logits, inputs.dev["sst"].labels) == best.best["dev/sst"]
    for task in TASKS.values():
        path = runs / "small" / "test" / "predictions" / f"{task.name}-test-output.csv"
        assert len(path.read_text(encoding="utf-8").splitlines()) == 401


def test_the_selection_is_frozen_before_a_test_file_is_opened(
    real_like: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(real_like[0], runs, symlinks=True)
    shutil.rmtree(runs / "small" / "test", ignore_errors=True)
    seen: list[bool] = []

    def stand_in(*_: object) -> None:
        seen.append((runs / "small" / "test" / "selection.json").exists())
        raise ValueError("the test split was asked for")

    monkeypatch.setattr(best_to_test, "_open_test", stand_in)
    assert main(["--runs", str(runs), "--no-retrain", "--gpus", "0"]) == 2
    assert seen == [True]


def test_a_dry_run_opens_and_writes_nothing(real_like: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(real_like[0], runs, symlinks=True)
    shutil.rmtree(runs / "small" / "test", ignore_errors=True)
    assert main(["--runs", str(runs), "--dry-run", "--gpus", "0"]) == 0
    assert "no test file was opened" in capsys.readouterr().out
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
    assert main(["--search", "small", "--runs", str(toy_runs), "--top", "0"]) == 2
    assert "must be 1 or more" in capsys.readouterr().err
    assert main(["--search", "small", "--runs", str(toy_runs), "--gpus", "64"]) == 3
    assert "This works here" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["analysis/best_to_test.py"], ["-m", "analysis.best_to_test"], ["analysis/runs.py"]])
def test_it_starts_as_a_file_and_as_a_module(command: list[str]) -> None:
    done = subprocess.run([sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: python analysis/" in done.stdout


def test_the_table_of_runs_has_a_row_a_trial_and_a_column_a_parameter(toy_runs: Path, tmp_path: Path, capsys: Capture) -> None:
    rows = read_trials(all_searches(toy_runs))
    assert rows.num_rows == 4
    assert {"search", "trial", "status", "best/norm", "last/norm", "optimizer/lr"} <= set(rows.column_names)
    assert runs_main(["small", "--runs", str(toy_runs), "--out", str(tmp_path / "trials.parquet")]) == 0
    assert "(baseline)" in capsys.readouterr().out
    assert (tmp_path / "trials.parquet").exists()
