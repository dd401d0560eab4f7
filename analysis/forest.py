"""A random forest of scores over parameters: does it predict unseen trials, and which two parameters interact most?

    trials ─► encode ─► forest ─► out-of-bag predictions, correlated with the scores
                          └─────► partial dependence on one and on two parameters ─► the part that their sum does not explain

Legend: N trials, C columns (one per range, one per label of a choice), M points and rows of a partial dependence.
Sources: Breiman 2001, Random forests; Friedman & Popescu 2008, section 8.1 (the interaction statistic); Freedman & Lane 1983.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from analysis.table import Parameter, Trial

if TYPE_CHECKING:
    from sklearn.ensemble import RandomForestRegressor

Floats = NDArray[np.float64]
TREES, POINTS, OUT_OF_BAG_TREES = 24, 24, 100
SHUFFLES = 19  # so that a result that exceeds them all has p = .05
LEVEL = 1 / (SHUFFLES + 1)
LEAST = 0.02  # a forest is made of steps, so that of a plain sum it finds up to .01 (measured, 60 trials)


@dataclass(frozen=True)
class Interaction:
    """The two parameters that interact most: the share of the variance that their joint effect has beyond their own effects."""

    first: str
    second: str
    share: float
    p: float

    @property
    def is_certain(self) -> bool:
        return self.p <= LEVEL and self.share >= LEAST


def encode(trials: Sequence[Trial], parameters: Sequence[Parameter]) -> tuple[Floats, list[list[int]]]:
    """Return the parameters as numbers, shape (N, C), and the columns of each: logarithms of log ranges, a column per label."""
    columns: list[Floats] = []
    groups: list[list[int]] = []
    for parameter in parameters:
        values = [trial.params[parameter.path] for trial in trials]
        if parameter.labels:
            new = [np.array([value == label for value in values], dtype=np.float64) for label in dict.fromkeys(values)]
        else:
            numbers = np.array(values, dtype=np.float64)
            new = [np.log(numbers) if parameter.kind == "log_uniform" and numbers.min() > 0 else numbers]
        groups.append(list(range(len(columns), len(columns) + len(new))))
        columns += new
    return np.stack(columns, axis=1), groups


def explains(x_NC: Floats, y_N: Floats, seed: int) -> bool:
    """Return whether a forest predicts trials that its trees have not seen.

    Its predictions must correlate with the scores, p <= .05 one-sided. Those of noise correlate negatively if at all, since a
    tree that has not seen a high score expects less than the mean.
    """
    predicted_N = _forest(x_NC, y_N, seed, OUT_OF_BAG_TREES, oob_score=True).oob_prediction_
    return np.ptp(predicted_N) > 0 and bool(stats.pearsonr(predicted_N, y_N, alternative="greater").pvalue <= LEVEL)


def _forest(x_NC: Floats, y_N: Floats, seed: int, num_trees: int = TREES, oob_score: bool = False) -> RandomForestRegressor:
    from sklearn.ensemble import RandomForestRegressor  # takes a second

    return RandomForestRegressor(num_trees, random_state=seed, oob_score=oob_score, max_features=0.7).fit(x_NC, y_N)


def strongest_interaction(
    trials: Sequence[Trial], parameters: Sequence[Parameter], y_N: Floats, seed: int = 0
) -> Interaction | None:
    """Find the pair that interacts most, and its p-value; None with fewer than two parameters.

    The p-value is against scores without interaction: the sum of the parameters' own effects plus the shuffled rest (Freedman
    & Lane).
    """
    if len(parameters) < 2 or np.ptp(y_N) == 0:
        return None
    generator = np.random.default_rng(seed)
    x_NC, groups = encode(trials, parameters)
    forest = _forest(x_NC, y_N, seed)
    rows = generator.permutation(len(x_NC))[:POINTS]
    shares = _interactions(forest, x_NC[rows], groups, float(y_N.var()))
    pair = max(shares, key=lambda pair: shares[pair])
    additive_N = y_N.mean() + sum(_dependence(forest, x_NC, x_NC[rows], group) for group in groups)
    exceeding = 0
    for _ in range(SHUFFLES):
        y_star_N = additive_N + generator.permutation(y_N - additive_N)
        null = _interactions(_forest(x_NC, y_star_N, seed), x_NC[rows], groups, float(y_star_N.var()))
        exceeding += max(null.values()) >= shares[pair]
    names = (parameters[pair[0]].path, parameters[pair[1]].path)
    return Interaction(*names, shares[pair], (1 + exceeding) / (1 + SHUFFLES))


def _interactions(
    forest: RandomForestRegressor, x_MC: Floats, groups: list[list[int]], variance: float
) -> dict[tuple[int, int], float]:
    """Compute for each pair of parameters the variance of its joint effect that its single effects leave, as a share."""
    alone = [_dependence(forest, x_MC, x_MC, group) for group in groups]
    found = {}
    for i, j in combinations(range(len(groups)), 2):
        joint_M = _dependence(forest, x_MC, x_MC, [*groups[i], *groups[j]])
        found[i, j] = float(((joint_M - alone[i] - alone[j]) ** 2).mean() / max(variance, 1e-12))
    return found


def _dependence(forest: RandomForestRegressor, points_NC: Floats, rows_MC: Floats, columns: list[int]) -> Floats:
    """Compute the partial dependence on some columns at each point, averaged over the rows and centred, shape (N,)."""
    grid_NMC = np.repeat(rows_MC[None], len(points_NC), axis=0)
    grid_NMC[:, :, columns] = points_NC[:, None, columns]
    predicted_N = forest.predict(grid_NMC.reshape(-1, rows_MC.shape[1])).reshape(len(points_NC), -1).mean(axis=1)
    return np.asarray(predicted_N - predicted_N.mean())
