"""Influence of each row on a metric: the metric's error, linearised, is the mean of its rows' influences.

    answers of J models to B rows, their labels -> metric -> influences, shape (J, B), mean 0 over the rows

The variance of a metric over samples of rows is then the variance of its influences divided by B, and two models' metrics have
the covariance of their influences, divided by B: no resampling is needed.
Sources: Hampel 1974, The influence curve; Efron & Tibshirani 1993, section 21.3 (the infinitesimal jackknife).

Legend: J models (one configuration trained with one seed each), B rows of one task.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from minbert_core.data.tasks import Metric
from minbert_core.evaluate import is_constant

Floats = NDArray[np.float64]


def influences(metric: Metric, answers_JB: Floats, labels_B: Floats, num_classes: int = 1) -> Floats:
    """Compute the influence of each row on each model's metric, shape (J, B).

    num_classes is read by macro_f1 only. A metric that no row can move (all answers right, or all the same) has influence 0.
    """
    match metric:
        case "accuracy":
            correct_JB = (answers_JB == labels_B).astype(np.float64)
            return np.asarray(correct_JB - correct_JB.mean(axis=1, keepdims=True))
        case "f1":
            return _of_f1(answers_JB == 1, labels_B == 1)
        case "macro_f1":
            of_each = [_of_f1(answers_JB == label, labels_B == label) for label in range(num_classes)]
            return np.asarray(np.mean(of_each, axis=0))
    of_correlation = _of_pearson if metric == "pearson" else _of_spearman
    found = [np.zeros(labels_B.size) if is_constant(x_B) or is_constant(labels_B) else of_correlation(x_B, labels_B)
             for x_B in answers_JB]  # fmt: skip
    return np.stack(found)


def _of_f1(answered_JB: NDArray[np.bool_], right_B: NDArray[np.bool_]) -> Floats:
    """Compute the influence on F1 = h/t, h = mean(2 answered right), t = mean(answered + right), which is (h_i - F1 t_i)/t."""
    hits_JB = 2.0 * (answered_JB & right_B)
    together_JB = answered_JB.astype(np.float64) + right_B
    together_J1 = together_JB.mean(axis=1, keepdims=True)
    safe_J1 = np.where(together_J1 > 0, together_J1, 1.0)  # neither answered nor there: all influences are 0
    return np.asarray((hits_JB - hits_JB.mean(axis=1, keepdims=True) / safe_J1 * together_JB) / safe_J1)


def _of_pearson(x_B: Floats, y_B: Floats) -> Floats:
    """Compute the influence on Pearson's r: xy - r (x^2 + y^2)/2 of standardised x and y.

    Source: Devlin, Gnanadesikan & Kettenring 1975, equation 2.3.
    """
    x_B, y_B = ((values_B - values_B.mean()) / values_B.std() for values_B in (x_B, y_B))
    return np.asarray(x_B * y_B - (x_B * y_B).mean() * (x_B**2 + y_B**2) / 2)


def _of_spearman(x_B: Floats, y_B: Floats) -> Floats:
    """Compute the influence on Spearman's r = c_xy / sqrt(c_xx c_yy), where c are covariances of mid-ranks.

    With u and v the ranks divided by B, minus 1/2, c_xy = mean(u v). A row enters it through its own product and through the
    ranks of all rows above it. Source: Croux & Dehon 2010, section 2; ties have their mid-rank.
    """
    u_B, v_B = _mid_ranks(x_B), _mid_ranks(y_B)

    def of_covariance(a_B: Floats, b_B: Floats, rank_a_B: Floats, rank_b_B: Floats) -> Floats:
        own_B = rank_a_B * rank_b_B
        raw_B = own_B + _mean_above(a_B, rank_b_B) + _mean_above(b_B, rank_a_B)
        return np.asarray(raw_B - raw_B.mean())

    xx, yy, r = (u_B**2).mean(), (v_B**2).mean(), (u_B * v_B).mean() / np.sqrt((u_B**2).mean() * (v_B**2).mean())
    of_xy_B = of_covariance(x_B, y_B, u_B, v_B) / np.sqrt(xx * yy)
    of_xx_B, of_yy_B = of_covariance(x_B, x_B, u_B, u_B) / xx, of_covariance(y_B, y_B, v_B, v_B) / yy
    return np.asarray(of_xy_B - r * (of_xx_B + of_yy_B) / 2)


def _mid_ranks(values_B: Floats) -> Floats:
    """Compute the share of rows below each value plus half the share equal to it, minus 1/2."""
    ordered_B = np.sort(values_B)
    below_B, up_to_B = (np.searchsorted(ordered_B, values_B, side) for side in ("left", "right"))
    return np.asarray((below_B + up_to_B) / (2 * values_B.size) - 0.5)


def _mean_above(values_B: Floats, weights_B: Floats) -> Floats:
    """Average over all rows the weights of greater values and half those of equal values, shape (B,)."""
    order = np.argsort(values_B, kind="stable")
    ordered_B, sums = values_B[order], np.concatenate([[0.0], np.cumsum(weights_B[order])])
    below_B, up_to_B = (np.searchsorted(ordered_B, values_B, side) for side in ("left", "right"))
    return np.asarray((sums[-1] - (sums[below_B] + sums[up_to_B]) / 2) / values_B.size)
