"""Scores of a split: known values, both overall scores, the course's files to the byte."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from minbert_core import evaluate
from minbert_core.config import Objective, TrialConfig
from minbert_core.data.corpus import read_split
from minbert_core.data.tasks import TASKS, Task
from minbert_core.evaluate import (
    check_submission,
    metric,
    overall,
    prediction_text,
    score,
    submission_text,
)
from minbert_core.inputs import open_inputs
from minbert_core.model import predictions

Tiny = Callable[..., TrialConfig]
SST, PARA, STS, CFIMDB = (TASKS[name] for name in ("sst", "para", "sts", "cfimdb"))


def column(*values: float) -> np.ndarray:
    """Logits of a task of one output, shape (B, 1)."""
    return np.array(values, dtype=np.float32)[:, None]


# ------------------------------------------------------------------------------------------------------------------ metrics


def test_accuracy_by_hand() -> None:
    logits_BK = np.array([[0, 0, 9, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 3, 0, 2, 0]], dtype=np.float32)
    assert predictions(SST, logits_BK).tolist() == [2, 0, 4, 1]
    assert metric(SST, logits_BK, np.array([2.0, 0.0, 3.0, 1.0])) == 0.75
    assert metric(PARA, column(2, -1, 3, -4), np.array([1.0, 1.0, 1.0, 0.0])) == 0.75


def test_pearson_by_hand() -> None:
    # centred: (-1, 0, 1) and (-2, 1, 1): 3 / sqrt(2 * 6)
    assert metric(STS, column(1, 2, 3), np.array([0.0, 3.0, 3.0])) == pytest.approx(3 / 12**0.5)
    assert metric(STS, column(1, 2, 3), np.array([3.0, 2.0, 1.0])) == pytest.approx(-1)
    assert metric(STS, column(11, 21, 31), np.array([1.0, 2.0, 3.0])) == pytest.approx(1)  # any scale


def own(**changed: Any) -> Task:
    """A task of one's own: kind, metric, classes and what follows from them."""
    return replace(SST, name="mine", course_text=None, **changed)


def test_f1_by_hand() -> None:
    task, labels_B = own(kind="binary", outputs=1, metric="f1"), np.array([1.0, 1.0, 1.0, 0.0, 0.0])
    assert metric(task, column(1, 1, -1, 1, -1), labels_B) == pytest.approx(
        2 * 2 / (3 + 3)
    )  # two hits, three answered, three there
    assert metric(task, column(-1, -1, -1, -1, -1), np.zeros(5)) == 0
    logits_BK = np.eye(3, dtype=np.float32)[[0, 1, 1]]
    macro = own(outputs=3, metric="macro_f1")
    # class 0: 1 of 1 and 2; class 1: 1 of 2 and 1; class 2 is neither answered nor there
    assert metric(macro, logits_BK, np.array([0.0, 0.0, 1.0])) == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)


def test_spearman_is_the_correlation_of_ranks() -> None:
    task = own(kind="regression", outputs=1, metric="spearman")
    assert metric(task, column(1, 10, 100), np.array([0.0, 0.1, 5.0])) == pytest.approx(1)
    answers, labels_B = np.array([3.0, 1.0, 1.0, 2.0, 5.0]), np.array([2.0, 0.0, 1.0, 4.0, 4.0])
    assert metric(task, column(*answers), labels_B) == pytest.approx(scipy.stats.spearmanr(answers, labels_B).statistic)
    assert metric(task, column(2, 2, 2), np.array([1.0, 2.0, 4.0])) == 0


def test_half_a_probability_rounds_to_zero() -> None:
    """numpy rounds half to even, and so does the course's evaluation."""
    assert predictions(PARA, column(0.0, -0.0, 1e-3, -1e-3)).tolist() == [0, 0, 1, 0]
    assert np.round(1 / (1 + np.exp(-0.0))) == 0


def test_sts_answers_are_not_rounded_or_clipped() -> None:
    assert predictions(STS, column(-0.25, 2.5, 7.75)).tolist() == [-0.25, 2.5, 7.75]


@pytest.mark.parametrize("values", [(2.0, 2.0, 2.0), (2.0, 2.0 + 1e-7, 2.0)])
def test_constant_predictions_correlate_with_nothing(values: tuple[float, ...]) -> None:
    """Pearson's r is 0/0 there; within float32 noise of a constant it would be noise."""
    assert metric(STS, column(*values), np.array([1.0, 2.0, 4.0])) == 0
    assert metric(STS, column(1, 2, 3), np.array([2.0, 2.0, 2.0])) == 0


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_logit_that_is_not_finite_gives_nan(broken: float) -> None:
    """argmax and > would turn nan into class 0, and the trial would go on."""
    assert np.isnan(metric(PARA, column(1, broken), np.array([1.0, 0.0])))
    assert np.isnan(metric(STS, column(1, broken), np.array([1.0, 0.0])))


# ----------------------------------------------------------------------------------------------------------- overall scores


def test_both_overall_scores_and_how_they_differ() -> None:
    metrics = {"sst": 0.5, "para": 0.8, "sts": 0.6}
    both = overall(metrics, TASKS, "norm")
    assert both["norm"] == pytest.approx((0.5 + 0.8 + 0.8) / 3)
    assert both["mean"] == pytest.approx(1.9 / 3)
    assert both["norm"] - both["mean"] == pytest.approx((1 - 0.6) / 6)  # both scores exist in print
    assert overall({"sst": 0.5}, TASKS, "norm") == {"norm": 0.5, "mean": 0.5}


def test_a_task_that_the_objective_does_not_weigh_is_in_no_overall_score() -> None:
    metrics = {"sst": 0.5, "mine": 0.9, "sts": 0.6}
    tasks = TASKS | {"mine": own(metric="accuracy")}
    assert overall(metrics, tasks, Objective(weights={"sst": 2, "sts": 1})) == pytest.approx({"norm": 0.65, "mean": 0.55})
    assert overall(metrics, tasks, "norm")["mean"] == pytest.approx(2 / 3)
    rank = tasks | {"mine": own(kind="regression", metric="spearman")}
    assert score(metrics, rank, "mine") == pytest.approx(0.95)


def test_the_file_of_an_own_task_names_its_classes_and_quotes_what_needs_it() -> None:
    task = own(classes=("bad", "so, so"), outputs=2)
    assert prediction_text(task, ["7", 'a"b'], np.array([1.0, 0.0])) == 'id,prediction\n7,"so, so"\n"a""b",bad\n'
    numbers = own(kind="regression", classes=(), outputs=1)
    assert prediction_text(numbers, ["1"], np.array([2.5])) == "id,prediction\n1,2.5\n"


@pytest.mark.parametrize(
    ("objective", "value"),
    [
        ("norm", 2.1 / 3),
        ("mean", 1.9 / 3),
        ("sst", 0.5),
        ("sts", 0.8),  # (r + 1) / 2
        (Objective(weights={"sst": 1.0}), 0.5),
        (Objective(weights={"sst": 1.0, "sts": 3.0}), (0.5 + 3 * 0.8) / 4),
        (Objective(weights={"sst": 2.0, "para": 2.0, "sts": 2.0}), 2.1 / 3),
    ],
    ids=str,
)
def test_every_form_of_objective(objective: str | Objective, value: float) -> None:
    assert score({"sst": 0.5, "para": 0.8, "sts": 0.6}, TASKS, objective) == pytest.approx(value)


# -------------------------------------------------------------------------------------------------------------- predictions


def test_dev_is_not_train(tiny: Tiny) -> None:
    """The skeleton's multitask loader reads dev with split='train'."""
    inputs = open_inputs(tiny())
    for name, split in inputs.dev.items():
        assert split.ids == read_split(inputs.data_folder, TASKS[name], "dev").ids
        assert not set(split.ids) & set(inputs.train[name].ids)


def test_dev_metric_of_sts_is_of_real_labels(tiny: Tiny) -> None:
    """Labels truncated to integers have r = .98 with themselves: no model is measured right with them."""
    inputs = open_inputs(tiny())
    split = inputs.dev["sts"]
    assert split.labels is not None
    assert split.labels.tolist() == read_split(inputs.data_folder, STS, "dev").labels
    assert (split.labels % 1 != 0).mean() > 0.5
    assert metric(STS, split.labels.astype(np.float32)[:, None], split.labels) == pytest.approx(1)


# --------------------------------------------------------------------------------------------------------- submission files


def test_submission_files_to_the_byte() -> None:
    assert submission_text(SST, ["a7d575c9ed86ea9633660c67e"], np.array([4.0])).encode() == (
        b"id \t Predicted_Sentiment \na7d575c9ed86ea9633660c67e , 4 \n"
    )
    assert submission_text(PARA, ["fbfddc56315fb8a39e7608fa0", "b"], np.array([0.0, 1.0])).encode() == (
        b"id \t Predicted_Is_Paraphrase \nfbfddc56315fb8a39e7608fa0 , 0.0 \nb , 1.0 \n"
    )
    assert submission_text(CFIMDB, ["c916d7750936543cf3a109be1", "b"], np.array([1.0, 0.0])).encode() == (
        b"id \t Predicted_Sentiment \nc916d7750936543cf3a109be1 , 1 \nb , 0 \n"
    )
    value = float(np.float32(1.4337977170944214))
    assert submission_text(STS, ["876d0172eef5db7776e39c5de"], np.array([value])).encode() == (
        b"id \t Predicted_Similiary \n876d0172eef5db7776e39c5de , 1.4337977170944214 \n"
    )


@pytest.mark.parametrize("task", [SST, PARA, STS, CFIMDB], ids=lambda task: task.name)
def test_what_is_written_passes_the_validator(task: evaluate.Task, tmp_path: Path) -> None:
    """Numbers that Python writes with an exponent, too."""
    answers = {"sst": [0, 4, 2, 1], "para": [0, 1, 1, 0], "sts": [1e-5, -3.2e-9, 1e17, 2.5], "cfimdb": [1, 0, 1, 1]}[task.name]
    ids = ["b1", "a2", "c3", "user-4"]
    path = tmp_path / "out.csv"
    path.write_text(submission_text(task, ids, np.array(answers, dtype=np.float64)), newline="")
    assert check_submission(path, task, ids) == []
    assert check_submission(path, task, sorted(ids)) == []  # the order of rows is free


GOOD = b"id \t Predicted_Sentiment \naa , 4 \nbb , 0 \n"
GOOD_PARA = b"id \t Predicted_Is_Paraphrase \naa , 1.0 \nbb , 0.0 \n"
GOOD_STS = b"id \t Predicted_Similiary \naa , 1.5 \nbb , -0.5 \n"


@pytest.mark.parametrize(
    ("task", "data", "fault"),
    [
        (SST, GOOD.replace(b"id \t ", b"id\t"), r"out\.csv:1: the header must be 'id \\t Predicted_Sentiment '"),
        (SST, GOOD_PARA, r"out\.csv:1: the header must be"),
        (STS, GOOD_STS.replace(b"Similiary", b"Similarity"), r"out\.csv:1: the header must be 'id \\t Predicted_Similiary '"),
        (SST, GOOD.replace(b"bb , 0 \n", b""), r"2 ids are expected once each\. Got 1 valid rows, 1 missing, 0 unknown"),
        (SST, GOOD.replace(b"bb", b"cc"), r"Got 2 valid rows, 1 missing, 1 unknown"),
        (SST, GOOD + b"cc , 1 \n", r"Got 3 valid rows, 0 missing, 1 unknown, 0 repeated"),
        (SST, GOOD + b"bb , 1 \n", r"Got 3 valid rows, 0 missing, 0 unknown, 1 repeated"),
        (SST, GOOD.replace(b", 4", b", 5"), r"out\.csv:2: the class must be in \[0, 4\]\. Got 5\."),
        (CFIMDB, GOOD, r"out\.csv:2: the class must be in \[0, 1\]\. Got 4\."),
        (SST, GOOD.replace(b", 4", b", 4.0"), r"out\.csv:2: a row must be '<id> , <value> '\. Got 'aa , 4\.0 '\."),
        (SST, GOOD.replace(b"4 \n", b"4\n"), r"out\.csv:2: a row must be '<id> , <value> '\. Got 'aa , 4'\."),
        (SST, GOOD.replace(b"aa , 4", b"aa,4"), r"out\.csv:2: a row must be"),
        (SST, GOOD.replace(b"\n", b"\r\n"), r"out\.csv:2: a row must be .* Got 'aa , 4 \\r'\."),
        (SST, GOOD.removesuffix(b"\n"), r"out\.csv: the last line has no line end\."),
        (SST, GOOD + b"\n", r"out\.csv:4: a row must be '<id> , <value> '\. Got ''\."),
        (SST, b"", r"out\.csv:1: the header must be .* Got ''\."),
        (SST, GOOD.replace(b"bb", b"b\xff"), r"Got 2 valid rows, 1 missing, 1 unknown"),
        (PARA, GOOD_PARA.replace(b"1.0", b"1"), r"out\.csv:2: a row must be '<id> , <value> '\. Got 'aa , 1 '\."),
        (PARA, GOOD_PARA.replace(b"1.0", b"0.7"), r"out\.csv:2: a row must be"),
        (STS, GOOD_STS.replace(b"1.5", b"nan"), r"out\.csv:2: a row must be '<id> , <value> '\. Got 'aa , nan '\."),
    ],
    ids=str,
)
def test_the_validator_finds_the_fault(task: evaluate.Task, data: bytes, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_bytes(data)
    faults = "\n".join(check_submission(path, task, ["aa", "bb"]))
    with pytest.raises(AssertionError, match=fault):  # `match` says what was found instead
        raise AssertionError(faults)


def test_sound_files_have_no_fault(tmp_path: Path) -> None:
    for task, data in ((SST, GOOD), (PARA, GOOD_PARA), (STS, GOOD_STS)):
        (tmp_path / "out.csv").write_bytes(data)
        assert check_submission(tmp_path / "out.csv", task, ["aa", "bb"]) == []
