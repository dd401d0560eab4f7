"""The estimator: known widths and p-values, its limits, what is paired, Holm's correction."""

from __future__ import annotations

import time

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from analysis.influence import influences
from analysis.intervals import Scores, compare, estimate, holm, p_value

Floats = NDArray[np.float64]


def accuracy(correct_kB: NDArray[np.bool_]) -> Scores:
    """The scores of k seeds on a task whose labels are all 1."""
    correct_kB = np.atleast_2d(correct_kB)
    return Scores(
        correct_kB.mean(axis=1), [influences("accuracy", correct_kB.astype(np.float64), np.ones(correct_kB.shape[1]))]
    )


def without_rows(values_k: list[float]) -> Scores:
    """Scores that no row can move: all variance is the seeds'."""
    return Scores(np.array(values_k), [np.zeros((len(values_k), 10))])


def test_the_interval_of_one_seed_is_the_binomial_one_of_its_rows() -> None:
    found = estimate(accuracy(np.arange(1000) % 5 > 0))  # .8
    half = stats.norm.ppf(0.975) * np.sqrt(0.8 * 0.2 / 999)
    assert (found.low, found.high) == pytest.approx((0.8 - half, 0.8 + half))


def test_the_interval_of_a_correlation_is_close_to_fishers() -> None:
    random = np.random.default_rng(3)
    labels_B = random.standard_normal(900)
    answers_B = labels_B + random.standard_normal(900)
    r = float(np.corrcoef(answers_B, labels_B)[0, 1])
    found = estimate(Scores(np.array([r]), [influences("pearson", answers_B[None], labels_B)]))
    expected = np.tanh(np.arctanh(r) + np.array([-1.96, 1.96]) / np.sqrt(897))
    assert [found.low, found.high] == pytest.approx(expected.tolist(), abs=0.004)  # a tenth of its half width


def test_where_rows_move_nothing_the_comparison_is_students_t_test() -> None:
    one, other = [0.71, 0.74, 0.70, 0.75], [0.70, 0.66, 0.69]
    found, expected = compare(without_rows(one), without_rows(other)), stats.ttest_ind(one, other)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-5)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)), abs=1e-6)


@pytest.mark.parametrize("freedom", [1, 2, 4, 8])
@pytest.mark.parametrize("distance", [0.5, 2.0, 4.3, 12.7])
def test_a_p_value_without_rows_is_that_of_t_and_without_seeds_that_of_the_normal(freedom: int, distance: float) -> None:
    assert p_value(distance, 0.0, 1.0, freedom) == pytest.approx(2 * stats.t.sf(distance, freedom), rel=1e-3)
    assert p_value(distance, 1.0, 0.0, freedom) == pytest.approx(2 * stats.norm.sf(distance))
    assert 2 * stats.norm.sf(distance) < p_value(distance, 0.5, 0.5, freedom)


def test_where_rows_move_nothing_the_interval_is_students() -> None:
    found = estimate(without_rows([0.70, 0.72]))
    half = 12.7062 * 0.01  # t of one degree of freedom; the deviation is .02/sqrt(2), its error .01
    assert (found.low, found.high) == pytest.approx((0.71 - half, 0.71 + half), abs=1e-6)


def test_flips_are_counted_once() -> None:
    """Seeds that differ only in which rows flip: no row is harder than another, so all of the variance is between seeds."""
    k, size, right = 4, 20_000, 0.7
    scores = accuracy(np.random.default_rng(0).random((k, size)) < right)
    assert scores.flip_variance == pytest.approx(right * (1 - right) / size, rel=0.02)
    scores = Scores(right + np.sqrt(scores.flip_variance) * np.array([-1, -1, 1, 1]) * np.sqrt(3 / 4), scores.influences_TkB)
    found = estimate(scores)
    half = stats.t.ppf(0.975, k - 1) * np.sqrt(right * (1 - right) / (k * size))
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.02)


def test_one_seed_gives_an_interval_and_no_p_value() -> None:
    random = np.random.default_rng(0)
    one, two = accuracy(random.random((1, 500)) < 0.9), accuracy(random.random((2, 500)) < 0.5)
    for found in (estimate(one), compare(one, two), compare(two, one), compare(one, one)):
        assert found.p is None
    assert compare(one, two).low > 0


def test_a_p_value_is_below_one_in_twenty_where_the_interval_lies_beside_zero() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        found = compare(accuracy(random.random((3, 200)) < 0.66), accuracy(random.random((2, 200)) < 0.60))
        assert found.p is not None
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


@pytest.mark.parametrize("num_seeds", [(2, 2), (2, 3)])
def test_equal_models_differ_by_nothing(num_seeds: tuple[int, int]) -> None:
    """2 and 3 seeds: means of equal numbers that differ in their last bit are no difference."""
    correct_B = np.random.default_rng(0).random(499) < 0.7
    one, other = (accuracy(np.tile(correct_B, (k, 1))) for k in num_seeds)
    found = compare(one, other)
    assert (found.mean, found.low, found.high) == pytest.approx((0, 0, 0), abs=1e-12)
    assert found.p == 1


def test_pairing_the_rows_shrinks_the_interval_of_a_difference() -> None:
    """Two models that err on mostly the same rows: each is known to .025, their difference far better."""
    random = np.random.default_rng(0)
    hard_B = random.random(1000) < 0.2
    one, other = accuracy(~hard_B), accuracy(~hard_B & (random.random(1000) < 0.98))
    paired = compare(one, other)
    unpaired_width = np.hypot(*(found.high - found.low for found in (estimate(one), estimate(other))))
    assert paired.high - paired.low < unpaired_width / 2
    assert paired.low > 0  # the small difference is seen, which the two intervals hide
    assert estimate(one).low < estimate(other).high


def test_the_order_of_the_seeds_changes_nothing() -> None:
    random = np.random.default_rng(0)
    first_kB, second_kB = random.random((2, 3, 300)) < 0.7
    same, crossed = (compare(accuracy(first_kB), accuracy(second_kB[order])) for order in ([0, 1, 2], [2, 0, 1]))
    assert (same.low, same.high, same.p) == pytest.approx((crossed.low, crossed.high, crossed.p))


def test_tasks_of_other_rows_add_their_variances() -> None:
    random = np.random.default_rng(0)
    tasks = [influences("accuracy", (random.random((1, size)) < 0.6).astype(float), np.ones(size)) for size in (2000, 3000)]
    halves = []
    for weights in ((0.5, 0.0), (0.0, 0.5), (0.5, 0.5)):
        found = estimate(Scores(np.array([0.6]), [weight * of_kB for weight, of_kB in zip(weights, tasks, strict=True)]))
        halves.append(found.high - found.mean)
    assert halves[2] == pytest.approx(np.hypot(*halves[:2]), rel=1e-3)


def test_holms_correction_is_known_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_comparisons_of_twenty_models_on_20_000_rows_take_a_second() -> None:
    random, started = np.random.default_rng(0), time.process_time()
    configurations = [accuracy(random.random((5, 20_000)) < 0.8) for _ in range(4)]
    assert len([compare(one, other) for one in configurations for other in configurations]) == 16
    assert time.process_time() - started < 5
