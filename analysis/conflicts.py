"""Conflicts between tasks: cosines of their gradients and the share of conflicting steps, over time and against the outcome.

Trials record them where the gradient method computes them (pcgrad, gradvac and others; sum does not).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from analysis.forest import Floats
from analysis.rungs import correlation
from analysis.table import Trial

PARTS = 4  # of the training
COSINE, SHARE, NORM = "train/cosine_", "train/conflicts_", "train/gradient_norm"
OF_GROUPS = "train/group_cosine/"  # per parameter group, `sst_para/layer.3`: the mean since the evaluation before


@dataclass(frozen=True)
class Conflict:
    """Two tasks' conflict in the trials that recorded it: means over each quarter of the training, and over all of it.

    outcome: Spearman's correlation between a trial's share of conflicting steps up to the rung that all have reached and its
    score there, with its 95 % interval and p-value; None with too few trials.
    """

    pair: str
    num_trials: int
    cosines: list[float | None]
    shares: list[float | None]
    outcome: tuple[float, float, float, float] | None


def pairs_of(trials: Sequence[Trial]) -> list[str]:
    """Return the pairs of tasks that a trial has recorded, as `sst_para`."""
    keys = dict.fromkeys(key for trial in trials for record in trial.training for key in record)
    return [key.removeprefix(COSINE) for key in keys if key.startswith(COSINE)]


def conflicts(trials: Sequence[Trial], rung: int) -> list[Conflict]:
    """Return a row per pair of tasks; rung: the one up to which the outcome is compared."""
    total = max((record["examples"] for trial in trials for record in trial.training), default=0)
    return [_conflict(trials, pair, total, rung) for pair in pairs_of(trials)]


def _conflict(trials: Sequence[Trial], pair: str, total: int, rung: int) -> Conflict:
    own = [trial for trial in trials if any(COSINE + pair in record for record in trial.training)]
    edges = list(pairwise(np.linspace(0, total, PARTS + 1)))
    means = [[_mean(own, prefix + pair, low, high) for low, high in edges] for prefix in (COSINE, SHARE)]
    known = [
        (share, value)
        for t in own
        if (value := t.at(rung)) is not None and (share := _until(t, SHARE + pair, rung)) is not None
    ]
    x, y = np.array(known, dtype=np.float64).reshape(-1, 2).T
    return Conflict(pair, len(own), means[0], means[1], correlation(x, y))


def _mean(trials: Sequence[Trial], key: str, low: float, high: float) -> float | None:
    """Average a figure over the records after `low` and up to `high` examples: first per trial, then over the trials."""
    of_trials = [[r[key] for r in trial.training if key in r and low < r["examples"] <= high] for trial in trials]
    means = [float(np.mean(values)) for values in of_trials if values]
    return float(np.mean(means)) if means else None


def _until(trial: Trial, key: str, rung: int) -> float | None:
    end = next(entry["examples"] for entry in trial.evaluations if entry["rung"] == rung)
    return _mean([trial], key, 0, end)


def group_cosines(trials: Sequence[Trial]) -> dict[str, dict[str, float]]:
    """Return the mean cosine per parameter group and pair of tasks, over the trials that recorded it: group -> pair -> cosine.

    Each trial counts as much, and in it each stretch between two evaluations by its examples.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for trial in trials:
        known = [record for record in trial.training if any(key.startswith(OF_GROUPS) for key in record)]
        examples = np.diff([0, *(record["examples"] for record in known)])
        for key in dict.fromkeys(key for record in known for key in record if key.startswith(OF_GROUPS)):
            pair, group = key.removeprefix(OF_GROUPS).split("/")
            weighted = [(record[key], count) for record, count in zip(known, examples, strict=True) if key in record]
            cosines, counts = zip(*weighted, strict=True)
            found.setdefault((group, pair), []).append(float(np.average(cosines, weights=counts)))
    groups = list(dict.fromkeys(group for group, _ in found))
    return {name: {pair: float(np.mean(of)) for (group, pair), of in found.items() if group == name} for name in groups}


def series(trial: Trial, key: str) -> tuple[Floats, Floats]:
    """Return the examples and the values of a figure of a trial's training records."""
    known = [(record["examples"], record[key]) for record in trial.training if key in record]
    x, y = np.array(known, dtype=np.float64).reshape(-1, 2).T
    return x, y
