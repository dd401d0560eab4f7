"""Groups of trials and the differences between them: searches, branches of a choice, recipes, or single trials.

    table ─► groups ─► values at one rung, which is an equal number of examples
                 ├──► difference of the means, and of matched pairs: trials whose other parameters are as equal as possible
                 └──► the best score to expect of as many trials as a budget pays for, in examples or in seconds

Sources: Welch 1947 for the means; Dodge et al. 2019, Show Your Work, equation 3, for the expected best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from analysis.forest import Floats
from analysis.intervals import CONFIDENCE, ROUNDING, t_quantile
from analysis.table import Parameter, Table, Trial
from minbert_core.words import did_you_mean

FEW = 3  # trials or pairs, below which there is no interval
RESAMPLES = 400


@dataclass(frozen=True)
class Group:
    """Trials that are compared with others, in the order of their numbers."""

    name: str
    trials: list[Trial]

    def evaluated(self, rung: int, target: str) -> list[tuple[Trial, float]]:
        """Return the trials that have the metric at the rung, with its value."""
        found = ((trial, trial.at(rung, target)) for trial in self.trials)
        return [(trial, value) for trial, value in found if value is not None and math.isfinite(value)]


@dataclass(frozen=True)
class Difference:
    """A group's mean minus the reference's: its 95 % interval and p-value, which are None with too few trials or pairs."""

    group: str
    target: str
    mean: float | None
    low: float | None
    high: float | None
    p: float | None
    size: int  # trials of both groups, or pairs


@dataclass(frozen=True)
class ExpectedBest:
    """The best score to expect of a group at a budget, which pays for `trials` of its trials, with its 95 % interval."""

    group: str
    budget: float
    trials: float
    best: float
    low: float
    high: float


def group_by(table: Table, path: str | None) -> list[Group]:
    """Group by search (None), by `recipe`, or by the choice at `path`, which may be given by its last words.

    Raises ValueError: not a choice of these searches, or fewer than two groups.
    """
    if path is None:
        groups = [Group(name, table.of(name).trials) for name in table.searches]
    elif path == "recipe":
        groups = _labelled(table, lambda trial: trial.recipe)
    else:
        full = choice_at(table, path)
        groups = _labelled(table, lambda trial: trial.params.get(full.path), list(map(str, full.labels)))
    if len(groups) < 2:
        names = groups[0].name if groups else "none"
        hint = "Name several searches, or a choice with --by PATH." if path is None else "All trials took the same branch."
        raise ValueError(f"A comparison needs two groups of trials. Got {names}. {hint}")
    return groups


def _labelled(table: Table, label: Callable[[Trial], str | None], order: Sequence[str] = ()) -> list[Group]:
    labels = [found for trial in table.trials if (found := label(trial)) is not None]
    names = dict.fromkeys([*(known for known in order if known in labels), *labels])
    return [Group(name, [trial for trial in table.trials if label(trial) == name]) for name in names]


def choice_at(table: Table, path: str) -> Parameter:
    """Find a choice by its path or by the last words of it."""
    known = {of.path: of for facts in table.searches.values() for of in facts.parameters.values() if of.labels}
    ending = [name for name in known if name == path or name.endswith(f"/{path}")]
    if len(ending) != 1:
        raise ValueError(
            f"`--by` takes `recipe` or a choice that was searched. Unknown choice '{path}'{did_you_mean(path, known)}"
        )
    return known[ending[0]]


def pick(table: Table, numbers: Sequence[int]) -> list[Group]:
    """Return a group per trial number.  Raises ValueError: no such trial, or several searches."""
    if len(table.searches) > 1:
        raise ValueError("`--trials` takes the trials of one search. Name one search.")
    known = {trial.number: trial for trial in table.trials}
    if missing := [number for number in numbers if number not in known]:
        raise ValueError(
            f"There is no trial {missing[0]:03d} in {next(iter(table.searches))}. Its trials: 000 to {max(known):03d}."
        )
    return [Group(f"{number:03d}", [known[number]]) for number in numbers]


# ---------------------------------------------------------------------------------------------------------- differences


def difference(group: Group, reference: Group, rung: int, target: str) -> Difference:
    """Compare the means of two groups, whose variances may differ (Welch)."""
    ours, theirs = ([value for _, value in of.evaluated(rung, target)] for of in (group, reference))
    size = len(ours) + len(theirs)
    if min(len(ours), len(theirs)) < FEW:
        mean = float(np.mean(ours) - np.mean(theirs)) if ours and theirs else None
        return Difference(group.name, target, mean, None, None, None, size)
    mean = float(np.mean(ours) - np.mean(theirs))
    errors = np.array([np.var(values, ddof=1) / len(values) for values in (ours, theirs)])
    freedom = np.array([len(ours) - 1, len(theirs) - 1])
    total = float(errors.sum())
    joint = total**2 / float((errors**2 / freedom).sum()) if total > ROUNDING**2 else 1.0
    return Difference(group.name, target, mean, *_t_test(mean, math.sqrt(total), joint), size)


def matched(group: Group, reference: Group, rung: int, target: str, others: Sequence[Parameter]) -> Difference:
    """Compare pairs of trials, one of each group, whose `others` are together as equal as possible, so that what else was
    searched counts less."""
    ours, theirs = group.evaluated(rung, target), reference.evaluated(rung, target)
    if not ours or not theirs:
        return Difference(group.name, target, None, None, None, None, 0)
    distances = np.array([[_distance(a, b, others) for b, _ in theirs] for a, _ in ours])
    rows, columns = optimize.linear_sum_assignment(distances)
    gaps = np.array([ours[i][1] - theirs[j][1] for i, j in zip(rows, columns, strict=True)])
    mean = float(gaps.mean())
    if gaps.size < FEW:
        return Difference(group.name, target, mean, None, None, None, gaps.size)
    error = float(gaps.std(ddof=1)) / math.sqrt(gaps.size)
    return Difference(group.name, target, mean, *_t_test(mean, error, gaps.size - 1), gaps.size)


def _t_test(mean: float, error: float, freedom: float) -> tuple[float, float, float]:
    """Return the 95 % interval of a mean and its two-sided p-value, by Student's t; without an error both are certain."""
    if error <= ROUNDING:
        return mean, mean, 1.0 if abs(mean) <= ROUNDING else 0.0
    half = t_quantile(freedom) * error
    return mean - half, mean + half, float(2 * special.stdtr(freedom, -abs(mean) / error))


def examples_at(group: Group, rung: int) -> int:
    """Return the examples that a trial of the group had been shown at the rung, the median; 0 if none was evaluated there."""
    shown = [entry["examples"] for trial in group.trials for entry in trial.evaluations if entry["rung"] == rung]
    return int(np.median(shown)) if shown else 0


def _distance(one: Trial, other: Trial, parameters: Sequence[Parameter]) -> float:
    """Sum the differences of the parameters: of a range as a part of it, of choices and absent parameters 0 or 1."""
    return sum(_gap(one.params.get(of.path), other.params.get(of.path), of) for of in parameters)


def _gap(one: object, other: object, parameter: Parameter) -> float:
    if parameter.labels or one is None or other is None:
        return float(one != other)
    a, b, low, high = (float(value) for value in (one, other, parameter.low, parameter.high))  # type: ignore[arg-type]
    if parameter.kind == "log_uniform" and min(a, b, low) > 0:
        a, b, low, high = map(math.log, (a, b, low, high))
    return abs(a - b) / (high - low)


# -------------------------------------------------------------------------------------------------------- equal budgets


def equal_budget(groups: Sequence[Group], rung: int, target: str, unit: str, seed: int = 0) -> list[ExpectedBest]:
    """Compute the best value to expect of each group at the largest budget that every group has spent up to the rung.

    unit: `examples` or `seconds`. Groups without a trial at the rung are omitted.
    """
    costs = {group.name: _costs(group, rung, target, unit) for group in groups}
    known = [group for group in groups if costs[group.name].size and costs[group.name].sum() > 0]
    budget = min((float(costs[group.name].sum()) for group in known), default=0.0)
    generator = np.random.default_rng(seed)
    return [_expected(group, rung, target, costs[group.name], budget, generator) for group in known]


def _costs(group: Group, rung: int, target: str, unit: str) -> Floats:
    """Return what each trial had cost at the rung."""
    entries = [next(e for e in trial.evaluations if e["rung"] == rung) for trial, _ in group.evaluated(rung, target)]
    return np.array([float(entry[unit]) for entry in entries])


def _expected(
    group: Group, rung: int, target: str, cost: Floats, budget: float, generator: np.random.Generator
) -> ExpectedBest:
    values = np.array([value for _, value in group.evaluated(rung, target)])
    number = budget / float(cost.mean())
    drawn = generator.integers(values.size, size=(RESAMPLES, values.size))
    bests = [expected_best(values[row], budget / float(cost[row].mean())) for row in drawn]
    low, high = np.quantile(bests, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return ExpectedBest(group.name, budget, number, expected_best(values, number), float(low), float(high))


def expected_best(values: Floats, number: float) -> float:
    """Compute the expected maximum of `number` draws with replacement; a fraction of a draw counts as a power does."""
    ordered = np.sort(values)
    up_to = np.arange(ordered.size + 1) / ordered.size
    return float((np.diff(up_to ** max(number, 1e-9))) @ ordered)
