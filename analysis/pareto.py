"""Where tasks disagree: the trials that no other beats on every task, and the choices that help one task and hurt another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from analysis.forest import Floats
from analysis.groups import FEW, Group, difference
from analysis.intervals import CONFIDENCE, holm
from analysis.table import Parameter, Table, Trial

LEVEL = 1 - CONFIDENCE


@dataclass(frozen=True)
class Point:
    """A trial at its best evaluation, by score. `is_best`: no other is as good on every task and better on one."""

    trial: Trial
    rung: int
    scores: dict[str, float]
    is_best: bool


def front(trials: Sequence[Trial], tasks: Sequence[str]) -> list[Point]:
    """Place the trials that have all tasks, failed ones excepted, and mark the Pareto front."""
    found = []
    for trial in trials:
        best = max(trial.evaluations, key=lambda entry: entry["dev/score"], default={})
        if trial.status != "failed" and all(f"dev/{task}" in best for task in tasks) and best:
            found.append((trial, best["rung"], np.array([best[f"dev/{task}"] for task in tasks])))
    return [
        Point(
            trial,
            rung,
            dict(zip(tasks, map(float, own), strict=True)),
            not any(_dominates(other, own) for _, _, other in found),
        )
        for trial, rung, own in found
    ]


def _dominates(one: Floats, other: Floats) -> bool:
    return bool((one >= other).all() and (one > other).any())


@dataclass(frozen=True)
class Effect:
    """The effect of one change of one parameter on each task at a rung, with corrected p-values."""

    path: str
    change: str  # `sum -> pcgrad`, or `rising`
    effects: dict[str, float]  # differences of means; for a range, rank correlations
    p: dict[str, float]

    @property
    def verdict(self) -> str:
        """Whether tasks disagree: at least one gains and one loses, beyond chance."""
        certain = {task: np.sign(self.effects[task]) for task in self.effects if self.p[task] <= LEVEL}
        if len(set(certain.values())) > 1:
            gains, losses = ([task for task in certain if certain[task] == sign] for sign in (1, -1))
            return f"disagree: {', '.join(gains)} up, {', '.join(losses)} down"
        if len(certain) == len(self.effects):
            return "agree"
        return "cannot say" if not certain else f"only {', '.join(certain)} for certain"


def effects(table: Table, rung: int) -> list[Effect]:
    """Compute the effect of each parameter on each task: each pair of a choice's labels, and the rise of a range.

    The p-values are corrected for all effects on all tasks (Holm). Parameters with too few trials are omitted.
    """
    tasks = table.tasks
    raw: list[tuple[str, str, dict[str, tuple[float, float]]]] = []
    for parameter in {of.path: of for facts in table.searches.values() for of in facts.parameters.values()}.values():
        raw += _of_choice(table, parameter, tasks, rung) if parameter.labels else _of_range(table, parameter, tasks, rung)
    flat = holm([p for _, _, found in raw for _, p in found.values()])
    corrected = iter(flat)
    return [
        Effect(path, change, {t: e for t, (e, _) in found.items()}, {task: next(corrected) for task in found})
        for path, change, found in raw
    ]


def _of_choice(
    table: Table, choice: Parameter, tasks: Sequence[str], rung: int
) -> list[tuple[str, str, dict[str, tuple[float, float]]]]:
    groups = [Group(name, [t for t in table.trials if t.params.get(choice.path) == name]) for name in map(str, choice.labels)]
    found = []
    for first, second in combinations(groups, 2):
        gaps = {task: difference(second, first, rung, task) for task in tasks}
        known = {task: (gap.mean, gap.p) for task, gap in gaps.items() if gap.mean is not None and gap.p is not None}
        if len(known) > 1:
            found.append((choice.path, f"{first.name} -> {second.name}", known))
    return found


def _of_range(
    table: Table, parameter: Parameter, tasks: Sequence[str], rung: int
) -> list[tuple[str, str, dict[str, tuple[float, float]]]]:
    known = {}
    for task in tasks:
        pairs = [
            (t.params[parameter.path], v)
            for t in table.trials
            if parameter.path in t.params and (v := t.at(rung, task)) is not None
        ]
        x, y = np.array(pairs).T if pairs else (np.zeros(0), np.zeros(0))
        if x.size > FEW and np.ptp(x) > 0 and np.ptp(y) > 0:
            test = stats.spearmanr(x, y)
            known[task] = (float(test.statistic), float(test.pvalue))
    return [(parameter.path, "rising", known)] if len(known) > 1 else []
