"""How scores grow from one point to the next, learned from the trials of the search itself: a forecast of a trial's last score.

    enter: a score and the one before it -> a line per step, with an offset per group of peers -> last: mean and deviation

A freeze-thaw model (Swersky, Snoek & Adams 2014, arXiv 1406.3896) with a Markov chain in place of their Gaussian process: the
score at a point, given the one before, is normal around a line. So the last score is normal, too, and its mean and deviation
follow step by step. Sums are all that is kept, so a point costs the same in a search of ten trials and of a thousand.
Where few trials have taken a step, it is shrunk towards the step before it.

Legend: N trials, R points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]

RECENT = 32  # first scores that stand for a new trial's: the sampler improves
UNKNOWN = 0.1  # deviation of first scores while there are fewer than two: assumed, of scores in [0, 1]
SMALLEST = 1e-6  # deviation
SHRINKAGE = 2.0  # trials that a prior counts as


def expected_gain(mean: Floats, deviation: Floats, best: float) -> Floats:
    """Compute the expected improvement of normal scores over `best`, Jones et al. 1998, equation 15."""
    z = (mean - best) / deviation
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    gain: Floats = deviation * (z * special.ndtr(z) + density)
    return gain


def chance(mean: Floats, deviation: Floats, best: float) -> Floats:
    """Compute the probability of normal scores to exceed `best`."""
    share: Floats = special.ndtr((mean - best) / deviation)
    return share


@dataclass
class Sums:
    """The trials of one group that have taken a step: their number, and sums over the score before (y) and the growth (d)."""

    num: int = 0
    y: float = 0.0
    d: float = 0.0
    yy: float = 0.0
    yd: float = 0.0
    dd: float = 0.0

    def add(self, y: float, d: float) -> None:
        self.num += 1
        self.y += y
        self.d += d
        self.yy += y * y
        self.yd += y * d
        self.dd += d * d


@dataclass(frozen=True)
class Line:
    """The growth in one step: `growth` plus the offset of the group at the score `center`, with `slope` around it."""

    growth: float
    center: float
    slope: float
    deviation: float
    offsets: Mapping[str, float]
    unknown: float  # variance of the offset of a group that has none yet
    doubt: float  # variance of the line itself, as a share of deviation²

    def variance(self, group: str) -> float:
        """Return the variance of a trial's next score around the forecast."""
        return self.deviation**2 * (1 + self.doubt) + (0.0 if group in self.offsets else self.unknown)


class Rest(NamedTuple):
    """The last score, given one before it: normal around a line."""

    intercept: float
    slope: float
    deviation: float


class CurveModel:
    """The growth of the scores of a search over its points, of which there are `num_points`."""

    def __init__(self, num_points: int) -> None:
        self._firsts: list[float] = []
        self._steps: list[dict[str, Sums]] = [{} for _ in range(num_points - 1)]
        self._lines: list[Line] | None = None  # None: to be fitted again
        self._rests: dict[tuple[int, str], Rest] = {}  # of the fitted lines: (point, group) -> all steps from there

    def enter_first(self, score: float) -> None:
        """Enter a trial's score at its first point."""
        self._firsts.append(score)
        self._lines = None

    def enter_step(self, index: int, group: str, before: float, score: float) -> None:
        """Enter a trial's step from point `index`, where it was in `group`, to the next one."""
        self._steps[index].setdefault(group, Sums()).add(before, score - before)
        self._lines = None

    def last(self, trials: Sequence[tuple[int, str, float]]) -> tuple[Floats, Floats]:
        """Forecast the last scores of trials: means and deviations, each of shape (N,).

        trials: of each the place of its point, its group there, and its score.
        """
        rests = np.array([self._rest(place, group) for place, group, _ in trials]).reshape(-1, 3)
        return rests[:, 0] + rests[:, 1] * np.array([score for *_, score in trials]), rests[:, 2]

    def deviations(self, group: str) -> Floats:
        """Return the deviation of the last score given the score at each point, shape (R,), of a trial in this group."""
        return np.array([self._rest(place, group).deviation for place in range(len(self._steps) + 1)])

    def last_of_new(self) -> tuple[float, float]:
        """Forecast the last score of a trial that has not begun: its mean and deviation."""
        recent = self._firsts[-RECENT:]
        mean, rest = sum(recent) / len(recent) if recent else 0.0, self._rest(0, "")
        return rest.intercept + rest.slope * mean, math.hypot(rest.slope * self._spread(), rest.deviation)

    def _rest(self, index: int, group: str) -> Rest:
        """Return all steps from a point on as one."""
        lines, key = self._fitted(), (index, group)
        if key not in self._rests:
            intercept, slope, variance = 0.0, 1.0, 0.0
            for line in lines[index:]:
                own = 1 + line.slope
                intercept = own * intercept + line.growth + line.offsets.get(group, 0.0) - line.slope * line.center
                slope, variance = own * slope, own**2 * variance + line.variance(group)
            self._rests[key] = Rest(intercept, slope, max(SMALLEST, math.sqrt(variance)))
        return self._rests[key]

    def _spread(self) -> float:
        """Return the deviation of the recent first scores."""
        recent = self._firsts[-RECENT:]
        if len(recent) < 2:
            return UNKNOWN
        mean = sum(recent) / len(recent)
        return max(SMALLEST, math.sqrt(sum((score - mean) ** 2 for score in recent) / (len(recent) - 1)))

    def _fitted(self) -> list[Line]:
        if self._lines is None:
            spread, self._lines, self._rests = self._spread(), [], {}
            growth, deviation = spread, spread  # before anything is known of the first step
            for groups in self._steps:
                line = _fit(groups, growth, deviation, spread)
                self._lines.append(line)
                growth, deviation = line.growth / 2, line.deviation  # what an unknown step is taken for
        return self._lines


def _fit(groups: Mapping[str, Sums], growth: float, deviation: float, spread: float) -> Line:
    """Fit the line of a step: a common slope within the groups, shrunk to 0, and offsets of the groups, shrunk to 0.

    growth and deviation: of the prior, which counts as SHRINKAGE trials. spread: of the scores, the scale of the slope's prior.
    """
    num = sum(sums.num for sums in groups.values())
    if not num:
        return Line(growth, 0.0, 0.0, deviation, {}, 0.0, _doubt(0, 0))
    center, mean = (sum(getattr(sums, key) for sums in groups.values()) / num for key in ("y", "d"))
    within_yy = sum(sums.yy - sums.y**2 / sums.num for sums in groups.values())
    within_yd = sum(sums.yd - sums.y * sums.d / sums.num for sums in groups.values())
    slope = within_yd / (within_yy + SHRINKAGE * spread**2)
    common = (num * mean + SHRINKAGE * growth) / (num + SHRINKAGE)
    offsets, squares = {}, 0.0
    for group, sums in groups.items():
        above = sums.d / sums.num - common - slope * (sums.y / sums.num - center)
        offsets[group] = offset = above * sums.num / (sums.num + SHRINKAGE)
        own_yy, own_yd = sums.yy - sums.y**2 / sums.num, sums.yd - sums.y * sums.d / sums.num
        own_dd = sums.dd - sums.d**2 / sums.num
        squares += own_dd - 2 * slope * own_yd + slope**2 * own_yy + sums.num * (above - offset) ** 2
    used = 1 + sum(sums.num / (sums.num + SHRINKAGE) for sums in groups.values())  # by the slope and the offsets
    variance = (max(0.0, squares) + SHRINKAGE * deviation**2) / max(SHRINKAGE, num + SHRINKAGE - used)
    unknown = sum(offset**2 for offset in offsets.values()) / len(offsets)
    return Line(common, center, slope, max(SMALLEST, math.sqrt(variance)), offsets, unknown, _doubt(num, len(groups)))


def _doubt(num: int, num_groups: int) -> float:
    """Return the variance of a fitted line itself, on average over its points, as a share of that around it."""
    return (1 + num_groups) / (num + SHRINKAGE)
