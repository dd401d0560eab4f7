"""What a model gets wrong: figures one can check by hand, a saved model asked again, and two models on the same rows."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.answers import Answers, choose_tasks, dev_answers, open_model
from analysis.disagreements import disagreement, most_disputed
from analysis.error_plots import draw_all
from analysis.error_report import task_lines
from analysis.errors import main
from analysis.mistakes import by_label, by_length, calibration, class_rows, confusion, errors, line, worst
from minbert_core.data.tasks import TASKS, Task
from search.results import open_search

Capture = pytest.CaptureFixture[str]
THREE = replace(TASKS["sst"], outputs=3, label_range=(0, 2), classes=("bad", "fair", "good"))


def made(task: Task, labels: Sequence[float], logits: Sequence[Sequence[float]], lengths: Sequence[int] = ()) -> Answers:
    """Answers out of nothing; rows are named 0, 1 …"""
    size = len(labels)
    texts = [tuple(f"text {i}" for _ in task.text_columns) for i in range(size)]
    return Answers(
        "made",
        task,
        [str(i) for i in range(size)],
        texts,
        np.array(labels, dtype=np.float64),
        np.array(logits, dtype=np.float32),
        np.array(lengths or [5] * size),
        np.zeros(size, dtype=bool),
    )


def sure_of(answers: Sequence[int], confidence: float) -> list[list[float]]:
    """Logits of three classes that give each answer this probability."""
    other = np.log((1 - confidence) / 2)
    return [[float(np.log(confidence)) if c == answer else float(other) for c in range(3)] for answer in answers]


def test_precision_and_recall_are_those_of_the_confusion_matrix() -> None:
    answers = made(THREE, [0, 0, 0, 1, 1, 2], sure_of([0, 0, 1, 1, 0, 2], 0.9))
    assert confusion(answers).tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]
    bad, fair, good = class_rows(answers)
    assert (bad.labelled, bad.answered, bad.precision, bad.recall) == (3, 3, pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert (fair.precision, fair.recall, fair.f1, good.f1) == (0.5, 0.5, 0.5, 1.0)
    low, high = bad.recall_interval
    assert 0 < low < 2 / 3 < high < 1


def test_a_class_without_rows_has_no_interval_and_no_error() -> None:
    answers = made(THREE, [0, 0, 1, 1], sure_of([0, 1, 1, 1], 0.9))
    absent = class_rows(answers)[2]
    assert (absent.labelled, absent.answered, absent.recall, absent.recall_interval) == (0, 0, 0, None)
    assert "| good " in "\n".join(task_lines(answers, 1))


def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    half_right = made(THREE, [0, 1, 0, 1], sure_of([0, 0, 0, 0], 0.9))
    found = calibration(half_right)
    assert found.ece == pytest.approx(0.4)
    assert [(each.size, each.accuracy) for each in found.bins] == [(4, 0.5)]
    assert (found.bins[0].low, found.num_bins) == (0.9, 10)


def test_a_calibrated_model_is_not_blamed_for_chance() -> None:
    generator = np.random.default_rng(1)
    right = generator.random(300) < 0.8
    calibrated = made(THREE, [0 if of else 1 for of in right], sure_of([0] * 300, 0.8))
    found = calibration(calibrated)
    assert 0 < found.ece < found.chance < 0.1
    assert "no miscalibration can be shown" in " ".join(task_lines(calibrated, 1))


def test_errors_of_values_see_neither_scale_nor_offset() -> None:
    labels = [0.0, 1.0, 3.0, 5.0]
    plain = made(TASKS["sts"], labels, [[0.5], [1.0], [2.0], [5.0]])
    scaled = made(TASKS["sts"], labels, [[105.0], [110.0], [120.0], [150.0]])
    assert errors(plain) == pytest.approx(errors(scaled), abs=1e-4)
    assert float(errors(plain).mean()) == pytest.approx(0, abs=1e-6)
    slope, offset = line(made(TASKS["sts"], labels, [[2 * label + 1] for label in labels]))
    assert (slope, offset) == (pytest.approx(0.5), pytest.approx(-0.5))


def test_answers_that_fall_as_labels_rise_count_as_constant() -> None:
    answers = made(TASKS["sts"], [0.0, 2.0, 4.0], [[3.0], [2.0], [1.0]])
    assert line(answers) == (0.0, 2.0)
    assert [group.bias for group in by_label(answers)] == [2.0, 0.0, -2.0]


def test_every_row_is_in_one_group_by_length() -> None:
    lengths = [3, 3, 3, 4, 9, 9, 12, 30]
    answers = made(THREE, [0] * 8, sure_of([0, 0, 0, 0, 1, 1, 1, 1], 0.6), lengths)
    groups = by_length(answers)
    assert sum(group.size for group in groups) == 8
    assert groups[0].name.startswith("3")
    assert (groups[0].value, groups[-1].value) == (1.0, 0.0)
    equal = by_length(made(THREE, [0, 1], sure_of([0, 0], 0.6), [7, 7]))
    assert [(group.name, group.size) for group in equal] == [("7", 2)]


def test_the_worst_row_gave_its_label_the_least_probability() -> None:
    answers = made(THREE, [0, 0, 0], [*sure_of([0], 0.9), *sure_of([1], 0.95), *sure_of([2], 0.5)])
    assert [each.id for each in worst(answers, 2)] == ["1", "2"]
    assert worst(answers, 1)[0].answer == "fair"
    values = made(TASKS["sts"], [0.0, 1.0, 2.0, 5.0], [[0.0], [1.0], [5.0], [5.0]])
    assert worst(values, 1)[0].id == "2"


def test_a_binary_task_of_ones_own_has_both_probabilities() -> None:
    task = replace(
        TASKS["para"], name="reviews", text_columns=("review",), course_text=None, classes=("no", "yes"), metric="f1"
    )
    answers = made(task, [0, 1, 1], [[-2.0], [3.0], [-1.0]])
    assert answers.shares_BC.sum(axis=1) == pytest.approx([1, 1, 1])
    assert answers.shares_BC[1, 1] == pytest.approx(1 / (1 + np.exp(-3)))
    assert confusion(answers).tolist() == [[1, 0], [1, 1]]
    lines = task_lines(answers, 1)
    assert lines[0] == "reviews: F1 .6667 on 3 dev rows"
    assert "- label yes, answer no with .73; the label has .27  (id 2)" in lines


def test_of_many_classes_the_confused_pairs_are_listed() -> None:
    task = replace(TASKS["sst"], outputs=20, label_range=(0, 19), classes=tuple(f"class {i}" for i in range(20)))
    labels = [i % 20 for i in range(60)]
    logits = [[9.0 if c == (3 if label == 7 else label) else 0.0 for c in range(20)] for label in labels]
    lines = task_lines(made(task, labels, logits), 1)
    assert any(line.split("|")[1:4] == [" class 7 ", " class 3 ", " 3    "] for line in lines)
    assert max(map(len, lines)) <= 80
    assert [plot.name for plot in draw_all([made(task, labels, logits)])] == ["confusion", "reliability", "lengths"]


# ------------------------------------------------------------------------------------------------------------ two models


def test_two_models_are_counted_row_by_row() -> None:
    labels = [0, 0, 0, 1, 1, 2]
    first = made(THREE, labels, sure_of([0, 0, 0, 1, 0, 0], 0.9))
    second = made(THREE, labels, sure_of([0, 0, 1, 0, 1, 0], 0.6))
    found = disagreement(first, second)
    assert (found.both, found.first, found.second, found.neither) == (2, 2, 1, 1)
    assert (found.same, found.p) == (0.5, 1.0)
    assert found.difference.mean == pytest.approx(1 / 6)
    assert found.difference.p is None  # one seed each
    assert {one.id for one, _ in most_disputed(first, second, 9)} == {"2", "3", "4"}


def test_models_with_other_rows_are_refused() -> None:
    first = made(THREE, [0, 1], sure_of([0, 1], 0.9))
    with pytest.raises(ValueError, match="both must have the same dev rows of sst"):
        disagreement(first, replace(first, labels_B=np.array([1.0, 1.0])))


# ----------------------------------------------------------------------------------------------------------- the command


def test_a_saved_model_answers_as_its_trial_did_and_every_figure_has_its_numbers(
    toy_runs: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert main([str(toy_runs / "small"), "--to", str(tmp_path / "figures"), "--formats", "svg", "--worst", "2"]) == 0
    output = capsys.readouterr().out
    best = max(open_search(toy_runs / "small").trials, key=lambda trial: trial.score)
    assert f" -> best (trial {best.number:03d})\n" in output
    for task in ("sst", "para", "sts"):
        assert f"{best.best[f'dev/{task}']:.4f}".lstrip("0") in output.split(f"\n{task}: ")[1].splitlines()[0]
    assert "The 2 worst rows" in output
    assert max(len(line) for line in output.splitlines() if not line.startswith(("model", "dev", "figures", "rows"))) <= 80
    for name in ("confusion", "reliability", "scatter", "histogram", "labels", "lengths"):
        assert (tmp_path / "figures" / f"{name}.svg").stat().st_size
        assert len((tmp_path / "figures" / f"{name}.csv").read_text(encoding="utf-8").splitlines()) > 1
    with (tmp_path / "figures" / "answers.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 40
    right = [row["label"] == row["answer"] for row in rows if row["task"] == "sst"]
    assert np.mean(right) == pytest.approx(best.best["dev/sst"])


def test_two_models_of_a_search_are_compared(toy_runs: Path, tmp_path: Path, capsys: Capture) -> None:
    models = [str(path) for path in sorted((toy_runs / "small" / "trials").glob("*/best"))[:2]]
    assert main([*models, "--tasks", "sst", "sts", "--to", str(tmp_path), "--formats", "png", "--worst", "1"]) == 0
    output = capsys.readouterr().out
    assert "the first minus the second" in output
    assert "only the second" in output
    assert "para:" not in output
    assert (tmp_path / "disagreement.png").stat().st_size
    assert main([models[0], models[0], "--tasks", "sst", "--to", str(tmp_path)]) == 0
    assert "They give the same answer to every row." in capsys.readouterr().out


def test_the_time_left_falls_to_nothing(toy_runs: Path) -> None:
    model = open_model(toy_runs / "small")
    told: list[str] = []
    found = list(dev_answers(model, choose_tasks([model], ["sst", "sts"]), told.append))
    assert [of.task.name for of in found] == ["sst", "sts"]
    assert told[0].startswith(f"{model.name}: sst, 40 dev rows: ")
    assert told[-1].endswith("about 0 s left")


def test_what_is_no_model_gets_a_sentence(toy_runs: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "There is no folder" in capsys.readouterr().err
    assert main([str(toy_runs)]) == 2
    assert "is not a saved model" in capsys.readouterr().err
    small = str(toy_runs / "small")
    assert main([small, small, small]) == 2
    assert "takes one model, or two to compare. Got 3." in capsys.readouterr().err
    assert main([small, "--tasks", "stss"]) == 2
    assert "Unknown task 'stss'; did you mean 'sts'? Known: para, sst, sts." in capsys.readouterr().err
    (tmp_path / "trials").mkdir()
    assert main([str(tmp_path)]) == 3
    assert "has no model yet" in capsys.readouterr().err


def test_data_that_changed_since_the_search_are_refused(real_like: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    runs, data = real_like
    shutil.copytree(data, tmp_path / "data")
    dev = tmp_path / "data" / TASKS["sts"].files["dev"]
    dev.write_bytes(dev.read_bytes().replace(b"a ", b"the "))
    assert main([str(runs / "small"), "--data", str(tmp_path / "data")]) == 3
    assert "differs from the search's data (sts-dev)" in capsys.readouterr().err
