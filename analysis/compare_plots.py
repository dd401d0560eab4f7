"""Drawings of compare.py: distributions per target, the best to expect per budget, the Pareto front of the tasks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.groups import Group, expected_best
from analysis.pareto import Point
from analysis.plots import COLOURS, GREY, MARKS, Plot, label, legend, panels, unit
from analysis.sources import facts_of
from analysis.table import Table
from search.space.domains import GOLDEN

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def _title(table: Table) -> str:
    return " and ".join(table.searches)


def draw_distributions(table: Table, groups: Sequence[Group], rung: int) -> Plot:
    """Draw a panel per target: the trials of each group as points, quartiles as a box."""
    facts = facts_of(table)
    title = f"{_title(table)}: how the groups' trials score at rung {rung}, after equal examples"
    figure, axes = panels(title, len(table.targets), 2, 0.8 + 0.34 * len(groups))
    for each, target in zip(axes, table.targets, strict=True):
        for y, group in enumerate(reversed(groups)):
            _strip(each, y, np.array([value for _, value in group.evaluated(rung, target)]))
        names = [f"{group.name} ({len(group.evaluated(rung, target))})" for group in reversed(groups)]
        each.set_yticks(range(len(groups)), names, fontsize=7.5, parse_math=False)
        each.set_ylim(-0.6, len(groups) - 0.4)
        each.locator_params(axis="x", nbins=5)
        label(each, unit(target, facts.objective, facts.metrics), "", target)
    figure.supxlabel("points: trials; box: quartiles and median; in brackets: trials", fontsize=7.5, x=0.01, ha="left")
    return Plot("distributions", figure, distribution_rows(table, groups, rung))


def distribution_rows(table: Table, groups: Sequence[Group], rung: int) -> list[dict[str, Any]]:
    """Return a row per target, group and trial."""
    return [
        {"group": group.name, "trial": trial.number, "rung": rung, "target": target, "value": value}
        for target in table.targets
        for group in reversed(groups)
        for trial, value in group.evaluated(rung, target)
    ]


def _strip(axes: Axes, y: int, values: np.ndarray[Any, Any]) -> None:
    if values.size > 1:
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        axes.barh(y, high - low, 0.5, left=low, color="white", edgecolor=GREY, linewidth=0.9)
        axes.plot([middle, middle], [y - 0.25, y + 0.25], color=COLOURS[1], linewidth=2)
    jitter = 0.36 * ((np.arange(values.size) * GOLDEN) % 1 - 0.5)
    axes.plot(values, y + jitter, "o", color=COLOURS[0], markersize=4, alpha=0.75, markeredgewidth=0)


def draw_budgets(table: Table, groups: Sequence[Group], rung: int) -> Plot:
    """Draw the best score to expect of each group over the examples and the seconds that its trials take up to the rung."""
    facts, rows = facts_of(table), budget_rows(groups, rung)
    title = f"{_title(table)}: the best score to expect of each group, by budget (trials up to rung {rung})"
    figure, axes = panels(title, 2, 2, 2.6)
    for each, measure in zip(axes, ("examples", "seconds"), strict=True):
        for i, group in enumerate(groups):
            own = [row for row in rows if (row["group"], row["unit"]) == (group.name, measure)]
            if own:
                budget, curve = [row["budget"] for row in own], [row["expected best"] for row in own]
                each.plot(budget, curve, color=COLOURS[i % len(COLOURS)], linewidth=1.6, label=group.name)
                each.plot(budget[-1], curve[-1], MARKS[i % len(MARKS)], color=COLOURS[i % len(COLOURS)], markersize=5)
        label(
            each, f"{measure}, all trials together", f"best {unit('score', facts.objective, facts.metrics)}", f"equal {measure}"
        )
    legend(figure, axes)
    return Plot("budgets", figure, rows)


def budget_rows(groups: Sequence[Group], rung: int) -> list[dict[str, Any]]:
    """Return the best score to expect of each group, at 40 budgets up to what its trials have cost until the rung."""
    rows = []
    for measure in ("examples", "seconds"):
        for group in groups:
            known = group.evaluated(rung, "score")
            costs = [next(e[measure] for e in trial.evaluations if e["rung"] == rung) for trial, _ in known]
            values = np.array([value for _, value in known])
            rows += [
                {"group": group.name, "unit": measure, "budget": float(number * np.mean(costs)),
                 "expected best": expected_best(values, float(number))}
                for number in (np.linspace(1, len(known), 40) if known else [])
            ]  # fmt: skip
    return rows


def draw_front(table: Table, groups: Sequence[Group], points: Sequence[Point]) -> Plot:
    """Draw a panel per pair of tasks: all trials at their best evaluation, filled where they are on the Pareto front."""
    facts, tasks = facts_of(table), table.tasks
    pairs = list(combinations(tasks, 2))
    title = f"{_title(table)}: where the tasks trade off; filled: on the Pareto front of {', '.join(tasks)}"
    figure, axes = panels(title, len(pairs), min(3, len(pairs)), 2.5)
    for each, (first, second) in zip(axes, pairs, strict=True):
        for i, group in enumerate(groups):
            own = [point for point in points if point.trial in group.trials]
            for is_best in (False, True):
                x, y = ([p.scores[task] for p in own if p.is_best == is_best] for task in (first, second))
                colour = COLOURS[i % len(COLOURS)]
                fill = colour if is_best else "none"
                name = group.name if is_best else None
                each.plot(x, y, MARKS[i % len(MARKS)], color=colour, markerfacecolor=fill, markersize=5, label=name)
        label(each, unit(first, facts.objective, facts.metrics), unit(second, facts.objective, facts.metrics))
    legend(figure, axes)
    return Plot("front", figure, front_rows(points))


def front_rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Return the points as rows: one per trial, at its best evaluation."""
    return [
        {"search": point.trial.search, "trial": point.trial.number, "rung": point.rung, **point.scores, "front": point.is_best}
        for point in points
    ]
