"""Drawings of curves.py: dev metrics and losses over the examples, rank correlations per rung, conflicts between tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.conflicts import COSINE, SHARE, pairs_of, series
from analysis.plots import COLOURS, GREY, MARKS, Plot, label, legend, panels, unit
from analysis.rungs import RankCorrelation, last_rung
from analysis.sources import facts_of
from analysis.table import Table, Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMED = 5  # trials that reached the end, best first, which have colours and names of their own
EXAMPLES = "examples shown"


def named_trials(table: Table) -> list[Trial]:
    """Return the best trials of the last rung, which the figures name."""
    last = last_rung(table.trials)
    there = [trial for trial in table.trials if trial.rung == last and trial.status != "failed"]
    return sorted(there, key=lambda trial: -float(trial.at(last) or 0))[:NAMED]


def draw_curves(table: Table) -> Plot:
    """Draw a panel per target: each trial's dev metric over the examples, with a cross where it was stopped."""
    facts = facts_of(table)
    title = f"{facts.name}: learning curves on dev; grey trials were stopped or are not among the best {NAMED}"
    figure, axes = panels(title, len(table.targets), 2, 2.4)
    named = named_trials(table)
    for each, target in zip(axes, table.targets, strict=True):
        for trial in sorted(table.trials, key=lambda trial: trial in named):
            known = [(e["examples"], e[f"dev/{target}"]) for e in trial.evaluations if f"dev/{target}" in e]
            _line(each, trial, np.array(known).reshape(-1, 2).T, named, "o")
        label(each, EXAMPLES, unit(target, facts.objective, facts.metrics), target)
    _end_marks(axes[0])
    legend(figure, axes, 7)
    return Plot("curves", figure, curve_rows(table))


def _end_marks(axes: Axes) -> None:
    axes.plot([], [], "x", color=GREY, label="stopped")
    axes.plot([], [], "*", color=GREY, label="failed")


def _line(axes: Axes, trial: Trial, points: np.ndarray[Any, Any], named: Sequence[Trial], mark: str) -> None:
    """Draw one trial: coloured and named if it is among the best, else grey."""
    if not points.size:
        return
    i = named.index(trial) if trial in named else None
    colour, width = (GREY, 0.7) if i is None else (COLOURS[i], 1.6)
    name = None if i is None else f"{trial.number:03d}"
    axes.plot(*points, "-" + mark, color=colour, linewidth=width, markersize=3, alpha=0.6 if i is None else 1, label=name)
    end = {"stopped": "x", "failed": "*"}.get(trial.status)
    if end and mark:
        axes.plot(*points[:, -1], end, color=colour, markersize=6)


def curve_rows(table: Table) -> list[dict[str, Any]]:
    """Return the evaluations as rows."""
    return [
        {"trial": trial.number, "status": trial.status, "recipe": trial.recipe, **entry}
        for trial in table.trials
        for entry in trial.evaluations
    ]


def draw_losses(table: Table) -> Plot:
    """Draw a panel per task: the mean training loss between two records, over the examples."""
    facts = facts_of(table)
    title = f"{facts.name}: training losses per task, for the trials that the learning curves name"
    return _of_records(table, "losses", title, facts.tasks, lambda task: f"train/{task}_loss", "mean loss")


def draw_conflicts(table: Table) -> Plot:
    """Draw for each pair of tasks the cosine of their gradients and the share of conflicting steps, over the examples."""
    facts = facts_of(table)
    title = f"{facts.name}: how much the gradients of two tasks conflict; below 0 they point apart"
    prefixed = [prefix + pair for pair in pairs_of(table.trials) for prefix in (COSINE, SHARE)]
    plot = _of_records(table, "conflicts", title, prefixed, lambda key: key, "")
    for axes, key in zip(plot.figure.axes, prefixed, strict=True):
        is_cosine = key.startswith(COSINE)
        pair = key.removeprefix(COSINE).removeprefix(SHARE)
        label(axes, EXAMPLES, "mean cosine" if is_cosine else "share of conflicting steps", pair)
        axes.set_ylim((-1.05, 1.05) if is_cosine else (-0.03, 1.03))
        axes.axhline(0, color=GREY, linewidth=0.8)
    return plot


def _of_records(table: Table, name: str, title: str, panel_names: Sequence[str], key: Callable[[str], str], axis: str) -> Plot:
    """Draw a panel per name: a figure of the training records of every trial."""
    figure, axes = panels(title, len(panel_names), 2, 2.2)
    named, rows = named_trials(table), []
    for each, panel in zip(axes, panel_names, strict=True):
        for trial in sorted(table.trials, key=lambda trial: trial in named):
            x, y = series(trial, key(panel))
            _line(each, trial, np.stack([x, y]), named, "")
            rows += [
                {"trial": trial.number, "figure": key(panel), "examples": int(a), "value": float(b)}
                for a, b in zip(x, y, strict=True)
            ]
        label(each, EXAMPLES, axis, panel)
    legend(figure, axes, 7)
    return Plot(name, figure, rows)


def draw_correlations(correlations: Sequence[RankCorrelation], table: Table) -> Plot:
    """Draw each rung's rank correlation with the end, per target, with intervals: a panel per recipe with enough trials."""
    facts, recipes = facts_of(table), list(dict.fromkeys(of.recipe for of in correlations if of.spearman is not None))
    title = f"{facts.name}: how well the order of the trials at a rung predicts that at a later one"
    figure, axes = panels(title, len(recipes), 2, 2.4)
    for each, recipe in zip(axes, recipes, strict=True):
        for i, target in enumerate(table.targets):
            own = [of for of in correlations if (of.recipe, of.target) == (recipe, target) and of.spearman is not None]
            x = np.array([of.rung for of in own], dtype=np.float64) + 0.06 * (i - (len(table.targets) - 1) / 2)
            y, low, high = (
                np.array([getattr(of, name) for of in own], dtype=np.float64) for name in ("spearman", "low", "high")
            )
            mark: dict[str, Any] = {
                "fmt": "-" + MARKS[i % len(MARKS)],
                "color": COLOURS[i % len(COLOURS)],
                "capsize": 3,
                "markersize": 5,
            }
            each.errorbar(x, y, np.maximum(0, [y - low, high - y]), label=target, **mark)
        each.axhline(0, color=GREY, linewidth=0.8)
        each.set_ylim(-1.05, 1.05)
        own_last = next(of.last for of in correlations if of.recipe == recipe)
        sizes = sorted({of.num_trials for of in correlations if of.recipe == recipe})
        label(
            each, "rung", "Spearman's rank correlation", f"{recipe}, with rung {own_last}; {'-'.join(map(str, sizes))} trials"
        )
        rungs = sorted({of.rung for of in correlations if of.recipe == recipe})
        each.set_xticks(rungs)
        each.set_xlim(min(rungs) - 0.6, max(rungs) + 0.6)
    legend(figure, axes, 7)
    return Plot("rungs", figure, [vars(of) for of in correlations])
