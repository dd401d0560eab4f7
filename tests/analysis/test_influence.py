"""Influences: against the metric itself with one row more, and against the limits of each metric."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from analysis.influence import influences
from minbert_core.data.tasks import TASKS, Metric, TaskKind
from minbert_core.evaluate import metric

Floats = NDArray[np.float64]
KINDS: dict[Metric, TaskKind] = {
    "accuracy": "classification",
    "f1": "binary",
    "macro_f1": "classification",
    "pearson": "regression",
    "spearman": "regression",
}


def measured(name: Metric, answers_B: Floats, labels_B: Floats) -> float:
    """The metric as the project computes it."""
    task = dataclasses.replace(TASKS["sst"], kind=KINDS[name], metric=name, outputs=3)
    one_hot_BK = np.eye(3)[answers_B.astype(int) % 3]
    logits_BK = one_hot_BK if KINDS[name] == "classification" else answers_B[:, None] - 0.5 * (KINDS[name] == "binary")
    return metric(task, logits_BK.astype(np.float32), labels_B)


def drawn(name: Metric, size: int) -> tuple[Floats, Floats]:
    """Answers and labels that agree about half the time; few values, so there are ties."""
    random = np.random.default_rng(5)
    num_values = {"f1": 2, "accuracy": 3, "macro_f1": 3}.get(name, 6)
    labels_B = random.integers(0, num_values, size).astype(np.float64)
    answers_B = np.where(random.random(size) < 0.5, labels_B, random.integers(0, num_values, size)).astype(np.float64)
    return answers_B, labels_B


@pytest.mark.parametrize("name", KINDS)
def test_an_influence_is_what_a_little_more_of_a_row_adds_to_the_metric(name: Metric) -> None:
    """With 200 copies of all rows and one copy more of row i, the metric grows by influence_i / (200 B)."""
    answers_B, labels_B = drawn(name, 12)
    before, weight = measured(name, answers_B, labels_B), 200 * answers_B.size
    copies_of = np.repeat(answers_B, 200), np.repeat(labels_B, 200)
    expected = [
        weight * (measured(name, np.append(copies_of[0], answer), np.append(copies_of[1], label)) - before)
        for answer, label in zip(answers_B, labels_B, strict=True)
    ]
    assert influences(name, answers_B[None], labels_B, 3)[0] == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("name", KINDS)
def test_influences_have_mean_zero_and_one_line_per_model(name: Metric) -> None:
    answers_B, labels_B = drawn(name, 40)
    found_JB = influences(name, np.stack([answers_B, labels_B, answers_B]), labels_B, 3)
    assert found_JB.shape == (3, 40)
    assert found_JB.mean(axis=1) == pytest.approx(np.zeros(3), abs=1e-12)
    assert (found_JB[0] == found_JB[2]).all()


@pytest.mark.parametrize("name", KINDS)
def test_no_row_moves_a_metric_whose_answers_are_all_right(name: Metric) -> None:
    _, labels_B = drawn(name, 40)
    assert influences(name, labels_B[None], labels_B, 3)[0] == pytest.approx(np.zeros(40), abs=1e-12)


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_constant_answers_have_no_influence(name: Metric) -> None:
    assert influences(name, np.full((1, 5), 3.3), np.arange(5.0)).tolist() == [[0.0] * 5]


def test_a_class_that_is_neither_answered_nor_there_has_no_influence() -> None:
    assert influences("f1", np.zeros((1, 4)), np.zeros(4)).tolist() == [[0.0] * 4]
