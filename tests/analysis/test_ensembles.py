"""Ensembles: their logits are averages, their jackknife is that of a mean where it must be, and rows of train are left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analysis.ensembles import WHOLE, jackknife_logits, jackknifed, paired
from analysis.intervals import Scores, estimate
from analysis.overlap import seen_rows
from analysis.retrain import Job
from minbert_core.data.tasks import TASKS
from minbert_core.data.tokens import TokenisedTexts

KEY = ("sst", "dev")


def models(values: dict[tuple[int, int], float]) -> dict[Job, dict[tuple[str, str], np.ndarray]]:
    """(configuration, seed) -> logits of one row that are all this value."""
    return {Job(number, seed, Path()): {KEY: np.full((1, 5), value, np.float32)} for (number, seed), value in values.items()}


def test_an_ensemble_averages_logits_and_its_parts_lack_one_seed_of_every_configuration() -> None:
    parts = jackknife_logits(models({(3, 0): 1, (3, 1): 2, (3, 2): 6, (5, 0): 0, (5, 2): 1}))
    assert {part: float(of[KEY][0, 0]) for part, of in parts.items()} == {WHOLE: 2, 0: 3, 1: 2, 2: 1}
    assert parts[WHOLE][KEY].dtype == np.float32


def test_an_ensemble_of_one_seed_has_no_parts() -> None:
    assert list(jackknife_logits(models({(3, 0): 1, (5, 0): 3}))) == [WHOLE]


def test_the_jackknife_of_a_mean_is_the_law_of_means() -> None:
    """A score that is linear in the seeds: its pseudo-values are the seeds' scores, rows included."""
    generator = np.random.default_rng(0)
    values_k, influences_kB = generator.normal(0.7, 0.02, 4), generator.normal(0, 1, (4, 30))
    influences_kB -= influences_kB.mean(axis=1, keepdims=True)
    without = [np.delete(np.arange(4), seed) for seed in range(4)]
    whole = Scores(
        np.array([values_k.mean(), *(values_k[of].mean() for of in without)]),
        [np.array([influences_kB.mean(axis=0), *(influences_kB[of].mean(axis=0) for of in without)])],
    )
    found = jackknifed(whole)
    assert found.values_k == pytest.approx(values_k)
    assert found.influences_TkB[0] == pytest.approx(influences_kB)
    ours, theirs = estimate(found), estimate(Scores(values_k, [influences_kB]))
    assert (ours.mean, ours.low, ours.high) == pytest.approx((theirs.mean, theirs.low, theirs.high))
    # such an ensemble does not differ from the mean of the single models that it is made of, and this is certain
    difference = estimate(paired(found, Scores(values_k, [influences_kB])))
    assert (difference.mean, difference.low, difference.high) == pytest.approx((0, 0, 0), abs=1e-12)
    assert difference.p == 1


def test_the_pseudo_values_of_any_score_average_to_it() -> None:
    found = jackknifed(Scores(np.array([0.8, 0.7, 0.75, 0.6]), [np.zeros((4, 2))]))
    assert found.num_seeds == 3
    assert found.mean == pytest.approx(0.8)
    single = Scores(np.array([0.8]), [np.zeros((1, 2))])
    assert jackknifed(single) is single


def texts(rows: list[tuple[list[int], ...]]) -> TokenisedTexts:
    """Rows of word pieces, without a tokenizer."""
    pieces = []
    for column in zip(*rows, strict=True):
        offsets = np.cumsum([0, *map(len, column)])
        pieces.append((np.array([piece for of in column for piece in of], np.int64), offsets))
    return TokenisedTexts(TASKS["sts" if len(rows[0]) == 2 else "sst"], pieces, None)


def test_a_pair_is_seen_in_either_order_and_only_as_a_whole() -> None:
    train = texts([([1, 2], [3]), ([4], [5])])
    asked = texts([([3], [1, 2]), ([1, 2], [5]), ([4], [5]), ([1], [2, 3])])
    assert seen_rows(asked, train).tolist() == [True, False, True, False]
    assert seen_rows(texts([([1, 2],), ([1],)]), texts([([1, 2],)])).tolist() == [True, False]
