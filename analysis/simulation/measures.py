"""What a simulation measures: regret over the budget, the budget that reaches random search's best, the best that were stopped.

Regret is how far the model that the search would return now falls short of the best configuration, trained to the end, both
without the noise of seeds: a configuration that leads after little training still has to be trained. All intervals are 95 %
percentile intervals of the bootstrap over repetitions; a method and the reference share the repetitions.

Legend: N repetitions, G points of the budget, B bootstrap samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from analysis.intervals import CONFIDENCE
from analysis.simulation.points import Floats
from analysis.simulation.run import Simulated

NUM_POINTS, NUM_SAMPLES = 240, 1000  # of the budget; of the bootstrap
THIRD = NUM_POINTS // 3 - 1  # the index of a third of the budget


class Span(NamedTuple):
    """A figure with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Measures:
    """The answer about one method.

    reached: the share of the budget; infinite if it is not enough. reached_B: that of each bootstrap sample, which are the same
    repetitions for all methods.
    """

    name: str
    reached: Span
    regret_third: Span
    regret_end: Span
    lost_best: Span  # share of the repetitions
    num_trials: float
    num_whole: float
    reached_B: Floats
    regret_G: Floats
    low_G: Floats
    high_G: Floats


def shares() -> Floats:
    """Return the points of the budget, (0, 1]."""
    return np.arange(1, NUM_POINTS + 1) / NUM_POINTS


def regrets(simulated: Simulated, end_seconds: float) -> Floats:
    """Compute the regret of each repetition at each point of the budget, shape (N, G)."""
    found = []
    for replay, best, mean in zip(simulated.replays, simulated.bests, simulated.means, strict=True):
        known = np.array([mean, *replay.truths])  # before the first evaluation: a random configuration at the first rung
        found.append(best - known[np.searchsorted(replay.times, shares() * end_seconds, side="right")])
    return np.array(found)


def measure(simulated: Simulated, reference: Simulated, end_seconds: float, seed: int = 0) -> Measures:
    """Measure a method against random search on the same curves."""
    own_NG, other_NG = regrets(simulated, end_seconds), regrets(reference, end_seconds)
    num = len(own_NG)
    weights_BN = np.random.default_rng(seed).multinomial(num, [1 / num] * num, size=NUM_SAMPLES) / num
    own_BG, level_B = weights_BN @ own_NG, weights_BN @ other_NG[:, -1]
    lost_N = np.array([replay.lost_best for replay in simulated.replays], dtype=np.float64)
    regret_G, level = own_NG.mean(axis=0), other_NG[:, -1].mean()
    low_G, high_G = np.quantile(own_BG, _ENDS, axis=0)
    reached_B = _reached(own_BG, level_B[:, None])
    return Measures(
        simulated.method.name,
        Span(_reached(regret_G[None], level)[0], *_ends(reached_B)),
        Span(regret_G[THIRD], low_G[THIRD], high_G[THIRD]),
        Span(regret_G[-1], low_G[-1], high_G[-1]),
        Span(lost_N.mean(), *_ends(weights_BN @ lost_N)),
        float(np.mean([replay.num_trials for replay in simulated.replays])),
        float(np.mean([replay.num_whole for replay in simulated.replays])),
        reached_B,
        regret_G,
        low_G,
        high_G,
    )


def needs_more(one: Measures, other: Measures) -> bool:
    """Return whether a method needs more than another beyond chance. Not to reach it counts as just more than the budget."""
    one_B, other_B = (np.minimum(each.reached_B, 1 + 1 / NUM_POINTS) for each in (one, other))
    return bool(np.quantile(one_B - other_B, _ENDS[0]) > 0)


_ENDS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)


def _ends(values_B: Floats) -> tuple[float, float]:
    low, high = np.quantile(values_B, _ENDS, method="inverted_cdf")  # of samples, since some may be infinite
    return float(low), float(high)


def _reached(regrets_BG: Floats, level: Floats | float) -> Floats:
    """Return the share of the budget from which on the regret is at most `level`, shape (B,)."""
    is_there_BG = regrets_BG <= level + 1e-12
    stays_BG = np.logical_and.accumulate(is_there_BG[:, ::-1], axis=1)[:, ::-1]
    return np.where(stays_BG[:, -1], shares()[stays_BG.argmax(axis=1)], np.inf)
