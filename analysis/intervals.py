"""How sure a score is: 95 % bootstrap intervals over rows and seeds, of a configuration's metrics and of differences of two.

    answers of all models -> resampled rows -> metrics of each resample -> means over resampled seeds -> percentiles

The rows of each task are drawn with replacement, independently between tasks and the same for all models; so are the seeds,
the same for all configurations. A difference is therefore paired in both. Knows nothing of searches: numbers in, numbers out.

Legend: J models (a configuration trained with a seed), B rows of a task, R resamples, T tasks, k seeds of a configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from minbert_core.data.tasks import Metric
from minbert_core.evaluate import is_constant

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

CONFIDENCE, RESAMPLES, SEED = 0.95, 2000, 0
RESAMPLES_A_PASS = 100  # bounds the memory: 20,000 rows of Quora make 16 MB of indices a pass


@dataclass(frozen=True)
class Answers:
    """What J models answered to the same B rows of a task, and what is true. num_classes is for macro_f1 alone."""

    metric: Metric
    answers_JB: Floats
    labels_B: Floats
    num_classes: int = 1

    def resampled(self, rows_RB: Indices) -> Floats:
        """The metric of each model on each resample of the rows, shape (R, J)."""
        counts_RB = count(rows_RB)
        if self.metric == "accuracy":
            return accuracies(self.answers_JB == self.labels_B, counts_RB)
        if self.metric in ("f1", "macro_f1"):
            labels = [1] if self.metric == "f1" else range(self.num_classes)
            each = [f1s(self.answers_JB == label, self.labels_B == label, counts_RB) for label in labels]
            means_RJ: Floats = np.stack(each).mean(axis=0)
            return means_RJ
        correlate = rank_correlations if self.metric == "spearman" else correlations
        return np.stack([correlate(answers_B, self.labels_B, counts_RB) for answers_B in self.answers_JB], axis=1)


@dataclass(frozen=True)
class Quantity:
    """A number whose interval is wanted: `offset` + the weighted metrics of one configuration, a mean over its seeds.

    models: of its k seeds, the models' places in J. minus: the same seeds of another configuration, which is subtracted; or
    empty. weights_T: a weight a task; norm and mean are such sums.
    """

    models: Sequence[int]
    weights_T: Sequence[float]
    offset: float = 0.0
    minus: Sequence[int] = ()

    def of(self, metrics_RJT: Floats, seeds_Rk: Indices) -> Floats:
        """Its value in each resample, shape (R,)."""
        metrics_RkT = metrics_RJT[:, list(self.models)]
        if self.minus:
            metrics_RkT = metrics_RkT - metrics_RJT[:, list(self.minus)]
        values_Rk = metrics_RkT @ np.asarray(self.weights_T, dtype=np.float64)
        values_R: Floats = np.take_along_axis(values_Rk, seeds_Rk, axis=1).mean(axis=1) + self.offset
        return values_R


def intervals(tasks: Sequence[Answers], quantities: Sequence[Quantity]) -> list[tuple[float, float]]:
    """The 95 % percentile interval of each quantity, from 2,000 resamples of rows and seeds; the same at each call.

    A configuration of one seed is resampled in its rows alone. Of k seeds, the part of the variance that is theirs comes out
    (k - 1)/k of what it is, as with every bootstrap of so few: where seeds differ much, two or three make it too narrow.
    Sources: Efron & Tibshirani 1993, chapter 13 (percentiles); Owen 2007, The pigeonhole bootstrap (rows crossed with seeds).
    """
    sizes = [task.labels_B.size for task in tasks]
    several = sorted({len(quantity.models) for quantity in quantities} - {1})

    def values(*samples: Indices, axis: int) -> Floats:
        """All quantities in R resamples, shape (quantities, R); samples: rows a task, then seeds for each number of them."""
        assert axis == -1, "scipy resamples along the last axis"
        metrics_RJT = np.stack([task.resampled(rows) for task, rows in zip(tasks, samples, strict=False)], axis=2)
        seeds = dict(zip(several, samples[len(tasks) :], strict=True))
        seeds[1] = np.zeros((len(metrics_RJT), 1), dtype=np.int64)
        return np.stack([quantity.of(metrics_RJT, seeds[len(quantity.models)]) for quantity in quantities])

    found = bootstrap(
        [np.arange(size) for size in (*sizes, *several)],
        values,
        n_resamples=RESAMPLES,
        batch=RESAMPLES_A_PASS,
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return [(float(low), float(high)) for low, high in zip(found.low, found.high, strict=True)]


def count(rows_RB: Indices) -> Floats:
    """How often each of the B rows was drawn, shape (R, B): a sum over drawn rows is then a product with these counts."""
    num_resamples, size = rows_RB.shape
    places = rows_RB + size * np.arange(num_resamples)[:, None]
    return np.bincount(places.ravel(), minlength=rows_RB.size).reshape(rows_RB.shape).astype(np.float64)


def accuracies(correct_JB: NDArray[np.bool_], counts_RB: Floats) -> Floats:
    """The share of correct answers of each model in each resample, shape (R, J)."""
    shares_RJ: Floats = counts_RB @ correct_JB.T.astype(np.float64) / correct_JB.shape[1]  # sums of whole numbers: exact
    return shares_RJ


def f1s(answered_JB: NDArray[np.bool_], right_B: NDArray[np.bool_], counts_RB: Floats) -> Floats:
    """F1 of one class, of each model in each resample, shape (R, J); 0 where the class is neither answered nor there."""
    together_RJ = counts_RB @ answered_JB.T.astype(np.float64) + (counts_RB @ right_B.astype(np.float64))[:, None]
    hits_RJ = counts_RB @ (answered_JB & right_B).T.astype(np.float64)
    scores_RJ: Floats = np.divide(2 * hits_RJ, together_RJ, out=np.zeros_like(hits_RJ), where=together_RJ > 0)
    return scores_RJ


def rank_correlations(x_B: Floats, y_B: Floats, counts_RB: Floats) -> Floats:
    """Spearman's r of x and y in each resample, shape (R,): Pearson's of the ranks that they have in that resample."""
    if is_constant(x_B) or is_constant(y_B):
        return np.zeros(len(counts_RB))
    middle = (x_B.size + 1) / 2  # the mean rank of any sample of that size
    x_RB, y_RB = (ranks(values_B, counts_RB) - middle for values_B in (x_B, y_B))
    xx_R, yy_R, xy_R = (np.einsum("RB,RB,RB->R", counts_RB, a, b) for a, b in ((x_RB, x_RB), (y_RB, y_RB), (x_RB, y_RB)))
    variances_R = xx_R * yy_R
    found_R: Floats = np.divide(xy_R, np.sqrt(variances_R), out=np.zeros(len(counts_RB)), where=variances_R > 0)
    return found_R


def ranks(values_B: Floats, counts_RB: Floats) -> Floats:
    """The rank from 1 of each value in each resample, equal ones at the mean of theirs, shape (R, B)."""
    _, places_B = np.unique(values_B, return_inverse=True)
    order = np.argsort(places_B, kind="stable")
    firsts = np.flatnonzero(np.diff(places_B[order], prepend=-1))
    times_RU = np.add.reduceat(counts_RB[:, order], firsts, axis=1)  # of each value that differs
    ranks_RU = np.cumsum(times_RU, axis=1) - times_RU + (times_RU + 1) / 2
    ranks_RB: Floats = ranks_RU[:, places_B]
    return ranks_RB


def correlations(x_B: Floats, y_B: Floats, counts_RB: Floats) -> Floats:
    """Pearson's r of x and y in each resample, shape (R,); 0 where one of them is constant, as the metric has it.

    Through moments, of values centred beforehand: what is left to cancel is small. One model at a time, so that equal
    answers give equal bits.
    """
    if is_constant(x_B) or is_constant(y_B):
        return np.zeros(len(counts_RB))
    x_B, y_B, size = x_B - x_B.mean(), y_B - y_B.mean(), x_B.size
    x_R, y_R, xx_R, yy_R, xy_R = (counts_RB @ of_B / size for of_B in (x_B, y_B, x_B * x_B, y_B * y_B, x_B * y_B))
    variances_R = (xx_R - x_R**2) * (yy_R - y_R**2)
    least = np.finfo(np.float64).eps * xx_R * yy_R  # below it a variance is rounding: one row drawn B times
    return np.divide(xy_R - x_R * y_R, np.sqrt(variances_R), out=np.zeros(len(counts_RB)), where=variances_R > least)
