"""How scores grow from one point to the next, learned from the trials of the search itself: a forecast of a trial's last score.

    enter: a score and the one before it -> a line per step, with an offset per group of peers -> last: mean and deviation

A freeze-thaw model (Swersky, Snoek & Adams 2014, arXiv 1406.3896) with a Markov chain in place of their Gaussian process: the
score at a point, given the one before, is normal around a line. So the last score is normal, too, and its mean and deviation
follow step by step. Sums are all that is kept, so a point costs the same in a search of ten trials and of a thousand.
Where few trials have taken a step, it is shrunk towards the step before it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

RECENT = 32  # first scores that stand for a new trial's: the sampler improves
UNKNOWN = 0.1  # deviation of first scores while there are fewer than two: assumed, of scores in [0, 1]
SMALLEST = 1e-6  # deviation
SHRINKAGE = 2.0  # trials that a prior counts as


class Forecast(NamedTuple):
    """A normal last score."""

    mean: float
    deviation: float

    def gain(self, best: float) -> float:
        """Compute the expected improvement over `best`, Jones et al. 1998, equation 15."""
        z = (self.mean - best) / self.deviation
        density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        return self.deviation * (z * _share_below(z) + density)

    def chance(self, best: float) -> float:
        """Compute the probability to exceed `best`."""
        return _share_below((self.mean - best) / self.deviation)


def _share_below(z: float) -> float:
    return math.erfc(-z / math.sqrt(2)) / 2


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
    offsets: Mapping[str, float] = field(default_factory=dict)

    def then(self, before: Forecast, group: str) -> Forecast:
        """Return the score after the step, given that before it."""
        grown = self.growth + self.offsets.get(group, 0.0) + self.slope * (before.mean - self.center)
        return Forecast(before.mean + grown, math.hypot((1 + self.slope) * before.deviation, self.deviation))


class CurveModel:
    """The growth of the scores of a search over its points, of which there are `num_points`."""

    def __init__(self, num_points: int) -> None:
        self._firsts: list[float] = []
        self._steps: list[dict[str, Sums]] = [{} for _ in range(num_points - 1)]
        self._lines: list[Line] | None = None  # None: to be fitted again

    def enter_first(self, score: float) -> None:
        """Enter a trial's score at its first point."""
        self._firsts.append(score)
        self._lines = None

    def enter_step(self, index: int, group: str, before: float, score: float) -> None:
        """Enter a trial's step from point `index`, where it was in `group`, to the next one."""
        self._steps[index].setdefault(group, Sums()).add(before, score - before)
        self._lines = None

    def last(self, index: int, group: str, score: float) -> Forecast:
        """Forecast the last score of a trial that is at point `index`."""
        return self._grown(Forecast(score, 0.0), index, group)

    def last_of_new(self) -> Forecast:
        """Forecast the last score of a trial that has not begun."""
        recent = self._firsts[-RECENT:]
        mean = sum(recent) / len(recent) if recent else 0.0
        return self._grown(Forecast(mean, self._spread()), 0, "")

    def _grown(self, forecast: Forecast, index: int, group: str) -> Forecast:
        for line in self._fitted()[index:]:
            forecast = line.then(forecast, group)
        return Forecast(forecast.mean, max(SMALLEST, forecast.deviation))

    def _spread(self) -> float:
        """Return the deviation of the recent first scores."""
        recent = self._firsts[-RECENT:]
        if len(recent) < 2:
            return UNKNOWN
        mean = sum(recent) / len(recent)
        return max(SMALLEST, math.sqrt(sum((score - mean) ** 2 for score in recent) / (len(recent) - 1)))

    def _fitted(self) -> list[Line]:
        if self._lines is None:
            spread, self._lines = self._spread(), []
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
        return Line(growth, 0.0, 0.0, deviation)
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
    variance = (max(0.0, squares) + SHRINKAGE * deviation**2) / (num + SHRINKAGE)
    return Line(common, center, slope, max(SMALLEST, math.sqrt(variance)), offsets)
