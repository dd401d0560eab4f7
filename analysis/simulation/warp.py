"""Each output's recorded values as normal scores, and back: a Gaussian process knows no ceiling, and recorded scores have one.

Without it, 1 drawn configuration in 8 was better than all that were recorded, by up to three times the deviation between them.

Source: normal scores by Hazen's plotting positions, (rank - 1/2) / N.
Legend: N recorded configurations, P points, K outputs.
"""

from __future__ import annotations

import numpy as np
from scipy import special, stats

from analysis.simulation.points import Floats

TAIL = 1.0  # deviations next to an end, whose slope continues beyond it


class Warp:
    """A monotone map for each of K outputs, through the recorded values. normal_NK: their normal scores; ties share one."""

    def __init__(self, values_NK: Floats) -> None:
        ranks_NK = stats.rankdata(values_NK, axis=0)
        self.normal_NK: Floats = special.ndtri((ranks_NK - 0.5) / len(values_NK))
        columns = zip(self.normal_NK.T, values_NK.T, strict=True)
        self._knots = [_with_tails(np.unique(normal_N), np.unique(values_N)) for normal_N, values_N in columns]

    def values(self, normal_PK: Floats) -> Floats:
        """Map normal scores back to values, shape (P, K)."""
        columns = zip(normal_PK.T, self._knots, strict=True)
        return np.stack([np.interp(normal_P, *knots) for normal_P, knots in columns], axis=1)


def _with_tails(normal_N: Floats, values_N: Floats) -> tuple[Floats, Floats]:
    """Continue the map far beyond both ends, with its mean slope in the TAIL next to each."""
    low, high = normal_N[0], normal_N[-1]
    inner_low, inner_high = np.interp([low + TAIL, high - TAIL], normal_N, values_N)
    far = 100.0
    below = values_N[0] - far / TAIL * (inner_low - values_N[0])
    above = values_N[-1] + far / TAIL * (values_N[-1] - inner_high)
    return np.array([low - far, *normal_N, high + far]), np.array([below, *values_N, above])
