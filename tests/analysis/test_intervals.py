"""The bootstrap: known widths, coverage on simulated data, pairing, and what it costs."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from analysis.intervals import Answers, Quantity, correlations, count, intervals
from minbert_core.data.tasks import TASKS, Metric, TaskKind
from minbert_core.evaluate import metric

Floats = NDArray[np.float64]


def right_or_wrong(correct_JB: NDArray[np.bool_]) -> Answers:
    """A binary task whose labels are all 1: an answer is right where it is 1."""
    return Answers("accuracy", correct_JB.astype(np.float64), np.ones(correct_JB.shape[1]))


def scores(num_models: int, size: int, noise: float, random: np.random.Generator) -> Answers:
    labels_B = random.uniform(0, 5, size)
    return Answers("pearson", labels_B + noise * random.standard_normal((num_models, size)), labels_B)


def test_the_interval_of_an_accuracy_is_close_to_the_binomial_one() -> None:
    correct_B = np.arange(1000) % 5 > 0  # .8
    ((low, high),) = intervals([right_or_wrong(correct_B[None])], [Quantity([0], [1.0])])
    half = 1.96 * np.sqrt(0.8 * 0.2 / 1000)
    assert low == pytest.approx(0.8 - half, abs=0.003)
    assert high == pytest.approx(0.8 + half, abs=0.003)


def test_the_interval_of_a_correlation_is_close_to_fishers() -> None:
    task = scores(1, 900, 1.0, np.random.default_rng(3))
    ((low, high),) = intervals([task], [Quantity([0], [1.0])])
    z, half = np.arctanh(np.corrcoef(task.answers_JB[0], task.labels_B)[0, 1]), 1.96 / np.sqrt(897)
    expected = np.tanh([z - half, z + half])
    assert [low, high] == pytest.approx(
        expected.tolist(), abs=0.006
    )  # labels are uniform, Fisher's normal; .006 is a quarter of it


def test_intervals_cover_the_truth_nineteen_times_in_twenty() -> None:
    random, truth, trials = np.random.default_rng(0), 0.7, 200
    covered = 0
    for _ in range(trials):
        ((low, high),) = intervals([right_or_wrong(random.random((1, 300)) < truth)], [Quantity([0], [1.0])])
        covered += low <= truth <= high
    assert 0.91 <= covered / trials <= 0.985  # .95 with two and a half standard errors of the simulation


def test_intervals_over_seeds_cover_the_mean_of_all_seeds() -> None:
    """Seeds that differ by .1, far more than the rows leave open: an interval over the rows alone would often miss the mean."""
    random, num_seeds, trials = np.random.default_rng(1), 8, 60
    covered = 0
    for _ in range(trials):
        right = np.clip(0.7 + 0.1 * random.standard_normal(num_seeds), 0, 1)
        task = right_or_wrong(random.random((num_seeds, 300)) < right[:, None])
        ((low, high),) = intervals([task], [Quantity(range(num_seeds), [1.0])])
        covered += low <= 0.7 <= high
    assert covered / trials >= 0.8  # not .95: eight seeds are few


def test_a_resampled_correlation_is_numpys_own() -> None:
    random = np.random.default_rng(0)
    x_B, y_B = 1000 + random.standard_normal(50), random.uniform(0, 5, 50)
    rows_RB = random.integers(0, 50, (20, 50))
    expected = [np.corrcoef(x_B[rows], y_B[rows])[0, 1] for rows in rows_RB]
    assert correlations(x_B, y_B, count(rows_RB)) == pytest.approx(expected, abs=1e-12)


def test_a_resampled_accuracy_is_the_share_of_right_answers_among_the_drawn_rows() -> None:
    random = np.random.default_rng(0)
    task = right_or_wrong(random.random((3, 40)) < 0.6)
    rows_RB = random.integers(0, 40, (10, 40))
    expected = [[float(answers_B[rows].mean()) for answers_B in task.answers_JB] for rows in rows_RB]
    assert task.resampled(rows_RB) == pytest.approx(np.array(expected), abs=1e-12)


@pytest.mark.parametrize("metric_name", ["f1", "macro_f1", "spearman"])
def test_every_other_metric_is_resampled_as_it_is_computed(metric_name: Metric) -> None:
    random, size, num_classes = np.random.default_rng(5), 60, 3
    classes = {"f1": 2, "macro_f1": num_classes, "spearman": 7}[metric_name]  # few values: many ties
    labels_B = random.integers(0, classes, size).astype(np.float64)
    answers_JB = random.integers(0, classes, (2, size)).astype(np.float64)
    rows_RB = random.integers(0, size, (4, size))
    found_RJ = Answers(metric_name, answers_JB, labels_B, num_classes).resampled(rows_RB)
    kind: TaskKind = "regression" if metric_name == "spearman" else "binary" if metric_name == "f1" else "classification"
    task = dataclasses.replace(TASKS["sst"], kind=kind, metric=metric_name, outputs=num_classes)
    for rows_B, of_J in zip(rows_RB, found_RJ, strict=True):
        for answers_B, value in zip(answers_JB[:, rows_B], of_J, strict=True):
            one_hot_BK = np.eye(num_classes)[answers_B.astype(int) % num_classes]
            logits_BK = one_hot_BK if kind == "classification" else answers_B[:, None] - (0.5 if kind == "binary" else 0)
            assert value == pytest.approx(metric(task, logits_BK.astype(np.float32), labels_B[rows_B]))


def test_correlations_with_what_is_constant_are_zero() -> None:
    labels_B = np.arange(10.0)
    drawn = count(np.random.default_rng(0).integers(0, 10, (5, 10)))
    assert correlations(np.full(10, 3.3), labels_B, drawn).tolist() == [0.0] * 5
    one_row = count(np.full((1, 10), 4))
    assert correlations(labels_B**2, labels_B, one_row).tolist() == [0.0]


def test_equal_models_differ_by_exactly_nothing() -> None:
    random = np.random.default_rng(0)
    once, pearson = random.random((2, 500)) < 0.7, scores(2, 300, 1.0, random)
    tasks = [
        right_or_wrong(np.concatenate([once, once])),
        Answers("pearson", np.concatenate([pearson.answers_JB, pearson.answers_JB]), pearson.labels_B),
    ]
    assert intervals(tasks, [Quantity([0, 1], [0.5, 0.25], minus=[2, 3])]) == [(0.0, 0.0)]


def test_pairing_shrinks_the_interval_of_a_difference() -> None:
    """Two models that err on mostly the same rows: each is known to .05, their difference far better."""
    random = np.random.default_rng(0)
    hard_B = random.random(1000) < 0.2
    correct = np.stack([~hard_B, ~hard_B & (random.random(1000) < 0.98)])
    one, other, paired = intervals(
        [right_or_wrong(correct)], [Quantity([0], [1.0]), Quantity([1], [1.0]), Quantity([0], [1.0], minus=[1])]
    )
    unpaired_width = np.hypot(one[1] - one[0], other[1] - other[0])
    assert paired[1] - paired[0] < unpaired_width / 2
    assert paired[0] > 0  # and the small difference is seen, which the two intervals would hide
    assert one[0] < other[1]


def test_pairing_the_seeds_shrinks_it_too() -> None:
    random = np.random.default_rng(0)
    seed_effects = np.array([0.6, 0.7, 0.8, 0.9])
    first = random.random((4, 2000)) < seed_effects[:, None]
    second = first & (random.random((4, 2000)) < 0.99)
    task = right_or_wrong(np.concatenate([first, second]))
    same, crossed = intervals(
        [task], [Quantity([0, 1, 2, 3], [1.0], minus=[4, 5, 6, 7]), Quantity([0, 1, 2, 3], [1.0], minus=[7, 6, 5, 4])]
    )
    assert same[1] - same[0] < (crossed[1] - crossed[0]) / 3


def test_tasks_and_offset_enter_as_a_weighted_sum() -> None:
    random = np.random.default_rng(0)
    tasks = [right_or_wrong(random.random((1, 200)) < 0.6), scores(1, 200, 1.0, random)]
    wanted = [Quantity([0], [1.0, 0.0]), Quantity([0], [0.0, 0.5], 0.5), Quantity([0], [0.5, 0.25], 0.25)]
    accuracy, r, both = intervals(tasks, wanted)
    centre = (sum(accuracy) + sum(r)) / 4
    assert sum(both) / 2 == pytest.approx(centre, abs=0.005)
    assert both[1] - both[0] < (accuracy[1] - accuracy[0] + r[1] - r[0]) / 2  # errors of two tasks are independent


def test_the_same_question_gets_the_same_answer() -> None:
    task = scores(2, 100, 1.0, np.random.default_rng(0))
    quantity = Quantity([0, 1], [1.0])
    assert intervals([task], [quantity]) == intervals([task], [quantity])


def test_four_configurations_of_five_seeds_on_three_tasks_take_seconds() -> None:
    random, started = np.random.default_rng(0), time.process_time()
    tasks = [right_or_wrong(random.random((20, 3000)) < 0.8) for _ in range(2)] + [scores(20, 3000, 1.0, random)]
    groups = [range(start, start + 5) for start in (0, 5, 10, 15)]
    weights = ([1, 0, 0], [0, 1, 0], [0, 0, 1], [1 / 3, 1 / 3, 1 / 3], [1 / 3, 1 / 3, 1 / 6])
    quantities = [Quantity(group, weight) for group in groups for weight in weights]
    quantities += [Quantity(a, weights[3], minus=b) for a in groups for b in groups if a != b]
    assert len(intervals(tasks, quantities)) == 32
    assert time.process_time() - started < 10  # of one split; both must stay below 20 s
