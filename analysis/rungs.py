"""Was the first rung right? Rank correlations between each rung and the end, who was stopped where, what a later rung costs.

Only trials that reached the end can be compared with it. The search chose them by their early scores, so their range there is
narrow, and the correlations are lower than those of all trials would be.
Source of the intervals: Bonett & Wright 2000, equations 2 and 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from analysis.forest import Floats
from analysis.intervals import CONFIDENCE
from analysis.table import Table, Trial

MIN_TRIALS = 5  # below, an interval of a rank correlation covers nearly everything


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's and Kendall's correlation of a metric at a rung and at the end, with Spearman's 95 % interval.

    All are None with fewer than MIN_TRIALS trials, or if all have the same value.
    """

    recipe: str
    target: str
    rung: int
    last: int
    num_trials: int
    spearman: float | None
    low: float | None
    high: float | None
    kendall: float | None


@dataclass(frozen=True)
class Stop:
    """What happened at a rung: the trials evaluated there, those that ended there, and the rank of the eventual best."""

    rung: int
    reached: int
    stopped: list[int]
    winner: int | None
    rank: int | None  # of the winner among those that reached the rung, 1 is first
    extra_examples: int  # if this had been the first rung, and every trial that was stopped before had gone on to it
    extra_seconds: float


def last_rung(trials: Sequence[Trial]) -> int:
    """Return the highest rung that a trial was evaluated at; 0 if none was."""
    return max((trial.rung for trial in trials), default=0)


def compared_rung(trials: Sequence[Trial]) -> int:
    """Return the rung that stands for the end: the highest that MIN_TRIALS trials have reached, else the last."""
    rungs = rungs_of(trials)
    reached = [rung for rung in rungs[1:] if sum(trial.rung >= rung for trial in trials) >= MIN_TRIALS]
    return max(reached, default=last_rung(trials))


def rungs_of(trials: Sequence[Trial]) -> list[int]:
    """Return all rungs at which a trial was evaluated."""
    return sorted({entry["rung"] for trial in trials for entry in trial.evaluations})


def rank_correlations(table: Table) -> list[RankCorrelation]:
    """Correlate each rung with the end, per recipe and target."""
    found = []
    for recipe in dict.fromkeys(trial.recipe for trial in table.trials):
        trials = [trial for trial in table.trials if trial.recipe == recipe]
        last = compared_rung(trials)
        for target in table.targets:
            found += [_correlate(recipe, trials, target, rung, last) for rung in rungs_of(trials) if rung < last]
    return found


def _correlate(recipe: str, trials: Sequence[Trial], target: str, rung: int, last: int) -> RankCorrelation:
    pairs = [(trial.at(rung, target), trial.at(last, target)) for trial in trials]
    known = np.array([(a, b) for a, b in pairs if a is not None and b is not None], dtype=np.float64).reshape(-1, 2)
    figures = correlation(*known.T)
    kendall = None if figures is None else float(stats.kendalltau(*known.T).statistic)
    spearman, low, high, _ = figures or (None, None, None, None)
    return RankCorrelation(recipe, target, rung, last, len(known), spearman, low, high, kendall)


def correlation(x: Floats, y: Floats) -> tuple[float, float, float, float] | None:
    """Compute Spearman's correlation, its 95 % interval and its p-value; None with too few values, or values all equal."""
    if x.size < MIN_TRIALS or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    test = stats.spearmanr(x, y)
    r = float(test.statistic)
    half = float(special.ndtri((1 + CONFIDENCE) / 2)) * math.sqrt((1 + r**2 / 2) / (x.size - 3))
    z = math.atanh(min(max(r, -1 + 1e-12), 1 - 1e-12))
    return r, math.tanh(z - half), math.tanh(z + half), float(test.pvalue)


def stops(trials: Sequence[Trial]) -> list[Stop]:
    """Return a row per rung of one search."""
    winner = max((t for t in trials if t.status != "failed" and t.rung == last_rung(trials)), key=_best, default=None)
    return [_stop(trials, rung, winner) for rung in rungs_of(trials)]


def _best(trial: Trial) -> float:
    return max(float(entry["dev/score"]) for entry in trial.evaluations)


def _stop(trials: Sequence[Trial], rung: int, winner: Trial | None) -> Stop:
    there = {trial.number: value for trial in trials if (value := trial.at(rung)) is not None}
    ended = [trial.number for trial in trials if trial.status == "stopped" and trial.rung == rung]
    own = there.get(winner.number) if winner else None
    rank = None if own is None else 1 + sum(value > own for value in there.values())
    # each by its own budget and speed: the branches of a space may differ in both
    lacking = [(rung / trial.rung - 1, trial.evaluations[-1]) for trial in trials if _was_stopped_before(trial, rung)]
    examples = round(sum(share * last["examples"] for share, last in lacking))
    seconds = sum(share * last["seconds"] for share, last in lacking)
    return Stop(rung, len(there), ended, winner.number if winner else None, rank, examples, seconds)


def _was_stopped_before(trial: Trial, rung: int) -> bool:
    return trial.status == "stopped" and bool(trial.evaluations) and trial.rung < rung
