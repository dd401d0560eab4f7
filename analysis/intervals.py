"""How certain a score is: 95 % intervals of a configuration's mean score and of the difference of two, and their p-values.

    scores of k seeds, influence of each row on them -> components of variance -> interval, p -> Holm's correction

A score of configuration c, seed s varies because other seeds and other rows are possible. In the linear model

    score_cs = mu_c + a_cs + mean over rows i of (r_ci + e_csi)

a is the effect of the seed, r that of the row, e their interaction: the rows whose answers flip from seed to seed. The mean
over k seeds of B rows has the variance  var(a)/k + var(r)/B + var(e)/(kB).  The rows are the same for all configurations, so r
is subtracted row by row in a difference. The seeds are not paired: a shared seed gives two configurations the same order of
rows and, where their heads agree, the same start. The correlation that remains makes a difference less variable than assumed,
never more, whereas pairing halves the degrees of freedom, of which two or three seeds have few.

`benchmarks/intervals.py` simulates how often these verdicts are false. Knows nothing of searches: numbers in, numbers out.
Legend: B rows of a task, T tasks, k seeds of a configuration, Q nodes of a quadrature.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import special
from scipy.optimize import brentq

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
NORMAL = float(special.ndtri((1 + CONFIDENCE) / 2))
NODES = 100  # Gauss-Legendre in the root of the quantile, since the tail is at quantile 0: t tests to four digits
ROUNDING = 1e-12  # of scores of order 1: standard errors and differences up to it are 0

_NODES_Q, _WEIGHTS_Q = np.polynomial.legendre.leggauss(NODES)
_QUANTILES_Q, _WEIGHTS_Q = ((1 + _NODES_Q) / 2) ** 2, _WEIGHTS_Q * (1 + _NODES_Q) / 2


@dataclass(frozen=True)
class Scores:
    """Scores of one configuration, and how much each row moves each of them.

    values_k: a score per seed. influences_TkB: an array per task, of the influence of each row on the score (that on the
    task's metric times the weight of the task in the score), mean 0 over the rows.
    """

    values_k: Floats
    influences_TkB: Sequence[Floats]

    @property
    def num_seeds(self) -> int:
        return len(self.values_k)

    @property
    def mean(self) -> float:
        return float(self.values_k.mean())

    @cached_property
    def rows_TB(self) -> list[Floats]:
        """Influence of each row on the mean over the seeds."""
        return [influences_kB.mean(axis=0) for influences_kB in self.influences_TkB]

    @cached_property
    def seed_variance(self) -> float:
        """Variance of a score over seeds on these rows, var(a) + var(e)/B, with k - 1 degrees of freedom."""
        return float(self.values_k.var(ddof=1))

    @cached_property
    def flip_variance(self) -> float:
        """The part of `seed_variance` that is flips of rows, var(e)/B: from all rows, so it is known well."""
        k = self.num_seeds
        return sum(
            _error(influences_kB - rows_B) / (k - 1)
            for influences_kB, rows_B in zip(self.influences_TkB, self.rows_TB, strict=True)
        )


@dataclass(frozen=True)
class Estimate:
    """A mean score or a difference of two, its 95 % interval, and the two-sided p-value of the hypothesis that it is 0.

    p is None where a configuration has one seed: the interval then covers other rows only, and decides nothing.
    """

    mean: float
    low: float
    high: float
    p: float | None


def estimate(scores: Scores) -> Estimate:
    """Estimate the mean score of a configuration."""
    return _estimate(scores.mean, scores.rows_TB, [scores])


def compare(candidate: Scores, baseline: Scores) -> Estimate:
    """Estimate the candidate's mean score minus the baseline's, paired row by row; both are scored on the same rows."""
    rows_TB = [one_B - other_B for one_B, other_B in zip(candidate.rows_TB, baseline.rows_TB, strict=True)]
    return _estimate(candidate.mean - baseline.mean, rows_TB, [candidate, baseline])


def _estimate(mean: float, rows_TB: Sequence[Floats], sides: Sequence[Scores]) -> Estimate:
    """Estimate the interval and the p-value of a mean or a difference of means from its components of variance.

    rows: sum over tasks of var_i(rows_i)/B, minus the flips in it, var(e)/(kB) per side; that leaves var(r)/B, known from B
    rows. seeds: sum over sides of S^2/k, where S^2 estimates var(a) + var(e)/B and is pooled over the sides, with k - 1 degrees
    of freedom each. Pooling assumes that the seeds of both sides differ about equally; the variance of one side's two seeds
    would have a single degree of freedom.
    """
    rows, seeds, freedom = sum(_error(rows_B) for rows_B in rows_TB), 0.0, 0
    decides = all(side.num_seeds > 1 for side in sides)
    if decides:
        rows = max(0.0, rows - sum(side.flip_variance / side.num_seeds for side in sides))
        freedom = sum(side.num_seeds - 1 for side in sides)
        pooled = sum((side.num_seeds - 1) * side.seed_variance for side in sides) / freedom
        seeds = pooled * sum(1 / side.num_seeds for side in sides)
    if rows + seeds <= ROUNDING**2:
        return Estimate(mean, mean, mean, float(abs(mean) <= ROUNDING) if decides else None)
    largest = 2 * (math.sqrt(rows) * NORMAL + (math.sqrt(seeds) * t_quantile(freedom) if decides else 0.0))
    half = brentq(lambda distance: p_value(distance, rows, seeds, freedom) - (1 - CONFIDENCE), 0, largest, xtol=1e-9)
    return Estimate(mean, mean - half, mean + half, p_value(abs(mean), rows, seeds, freedom) if decides else None)


def p_value(distance: float, rows: float, seeds: float, freedom: int) -> float:
    """Compute the two-sided p-value of a distance from 0 whose variance is `rows`, which is known, plus the estimate `seeds`.

    Given the estimate, the variance of the seeds is distributed as seeds * freedom / chi^2(freedom) (its posterior under the
    prior 1/variance, and its fiducial distribution); the p-value is the normal one, averaged over that. Without rows this is
    Student's t test, without seeds the normal one. In between it is conservative, where Satterthwaite's degrees of freedom let
    up to 13 % of errors through for two seeds. Source: Box & Tiao 1973, section 2.5, for the combination of Fisher 1935.
    """
    variance_Q = rows + seeds * _ratios(freedom) if seeds else np.full(NODES, rows)
    return float(2 * _WEIGHTS_Q @ special.ndtr(-distance / np.sqrt(variance_Q)))


@cache
def _ratios(freedom: int) -> Floats:
    """Compute freedom / chi^2 at the quantiles of the quadrature."""
    return np.asarray(freedom / 2 / special.gammaincinv(freedom / 2, _QUANTILES_Q))


def t_quantile(freedom: float) -> float:
    """Return how many standard errors a 95 % interval reaches to each side, by Student's t with these degrees of freedom."""
    return float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2))


def _error(influences_B: Floats) -> float:
    """Compute the squared standard error of a mean of B influences with mean 0, summed over the seeds if there are several."""
    size = influences_B.shape[-1]
    return float((influences_B**2).sum() / (size * max(1, size - 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number, in the order given: the smallest of m times m, the next times m - 1, and so on.

    A corrected value is never below that of a smaller one, nor above 1. Where those up to .05 count as differences, at most
    5 % of such families contain a false one. Source: Holm 1979, section 3.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.maximum.accumulate(np.minimum(1.0, p[order] * np.arange(p.size, 0, -1)))
    return [float(value) for value in corrected]
