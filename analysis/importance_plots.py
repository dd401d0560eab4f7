"""Drawings of importance.py: the shares with their intervals, and the trials over each parameter."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.anova import Explained, Sample
from analysis.intervals import t_quantile
from analysis.plots import COLOURS, GREY, Plot, label, panels, unit
from analysis.table import Facts, Parameter
from search.report.words import short_names
from search.space.domains import GOLDEN

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 12  # panels of marginal plots
PARTS = 4  # of a range, each with the mean of its trials
FEW = 3  # trials of which no mean is drawn


def draw_shares(overall: list[Explained], facts: Facts) -> Plot:
    """Draw a panel per target: the share of each parameter, its interval, filled where it exceeds shuffled scores."""
    order = [share.path for share in reversed(overall[0].shares)]
    names = short_names(order)
    title = f"{facts.name}: which parameters separate the best trials from the others, at rung {overall[0].rung}"
    figure, axes = panels(title, len(overall), 2, 0.9 + 0.22 * max(4, len(order)))
    for each, of in zip(axes, overall, strict=True):
        _bars(each, of, order)
        each.set_yticks(range(len(order)), [names[path] for path in order], fontsize=7.5, parse_math=False)
        label(each, "share of the importance (fraction)", "", f"{of.target}, {of.num_trials} trials")
    figure.supxlabel(
        "filled: exceeds shuffled scores; hollow: cannot say; lines: 95 % bootstrap intervals", fontsize=7.5, x=0.01, ha="left"
    )
    return Plot("importance", figure, share_rows(overall))


def _bars(axes: Axes, of: Explained, order: list[str]) -> None:
    found = {share.path: share for share in of.shares}
    for y, path in enumerate(order):
        if share := found.get(path):
            fill = COLOURS[0] if share.matters else "white"
            axes.barh(y, share.share, 0.62, color=fill, edgecolor=COLOURS[0], linewidth=0.9)
            axes.plot([share.low, share.high], [y, y], color="black", linewidth=1.1)
    if of.doubt:
        axes.text(0.98, 0.04, of.doubt.partition(":")[0], transform=axes.transAxes, fontsize=8, color=GREY, ha="right")
    axes.set_xlim(0, 1.02)


def share_rows(explained: list[Explained]) -> list[dict[str, Any]]:
    """Return the numbers as rows: one per target and parameter."""
    return [
        {"method": of.method, "group": of.group, "target": of.target, "rung": of.rung, "trials": of.num_trials,
         "parameter": share.path, "share": share.share, "low": share.low, "high": share.high, "p": share.p, "doubt": of.doubt}
        for of in explained for share in of.shares
    ]  # fmt: skip


def draw_marginals(of: Sample, facts: Facts) -> Plot:
    """Draw a panel per parameter: the trials as points, and means with 95 % intervals of labels or of parts of a range."""
    shown = of.parameters[:MOST]
    title = f"{facts.name}: each trial over each parameter, at rung {of.rung} ({len(of.trials)} trials)"
    figure, axes = panels(title, len(shown), 2, 2.1)
    for each, parameter in zip(axes, shown, strict=True):
        taken = [(t.params[parameter.path], y) for t, y in zip(of.trials, of.values, strict=True) if parameter.path in t.params]
        each.set_ylim(*_limits(of.values))
        if parameter.labels:
            _over_labels(each, parameter, taken)
        else:
            _over_range(each, parameter, taken)
        label(each, f"{parameter.path} ({_unit_of(parameter)})", unit(of.target, facts.objective, facts.metrics))
    figure.supxlabel(
        "points: trials; orange: mean and its 95 % interval (three or more trials)", fontsize=7.5, x=0.01, ha="left"
    )
    return Plot("marginals", figure, marginal_rows(of))


def _limits(values: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Return one range for the axes of all panels, so that they can be compared."""
    margin = 0.08 * float(np.ptp(values)) + 1e-3
    return float(values.min()) - margin, float(values.max()) + margin


def _unit_of(parameter: Parameter) -> str:
    return "choice" if parameter.labels else "log scale" if parameter.kind == "log_uniform" else "value"


def _over_labels(axes: Axes, parameter: Parameter, taken: list[tuple[Any, float]]) -> None:
    labels = [str(known) for known in parameter.labels if any(value == str(known) for value, _ in taken)]
    for x, known in enumerate(labels):
        values = np.array([y for value, y in taken if value == known])
        axes.plot(
            x + 0.36 * ((np.arange(values.size) * GOLDEN) % 1 - 0.5),
            values,
            "o",
            color=COLOURS[0],
            markersize=4,
            alpha=0.75,
            markeredgewidth=0,
        )
        _mean(axes, x, values)
    axes.set_xticks(range(len(labels)), [f"{known}" for known in labels], fontsize=7.5, parse_math=False)
    axes.set_xlim(-0.6, len(labels) - 0.4)
    axes.grid(visible=False, axis="x")


def _over_range(axes: Axes, parameter: Parameter, taken: list[tuple[Any, float]]) -> None:
    x, y = (np.array(values, dtype=np.float64) for values in zip(*taken, strict=True))
    axes.plot(x, y, "o", color=COLOURS[0], markersize=4, alpha=0.75, markeredgewidth=0)
    is_log = parameter.kind == "log_uniform" and x.min() > 0
    if is_log:
        axes.set_xscale("log")
    ends = (np.geomspace if is_log else np.linspace)(x.min(), x.max(), PARTS + 1)
    for low, high in pairwise(ends):
        inside = (x >= low) & ((x < high) | (high == ends[-1]))
        centre = float(np.sqrt(low * high) if is_log else (low + high) / 2)
        _mean(axes, centre, y[inside])


def _mean(axes: Axes, x: float, values: np.ndarray[Any, Any]) -> None:
    if values.size >= FEW:
        half = t_quantile(values.size - 1) * values.std(ddof=1) / np.sqrt(values.size)
        axes.errorbar(x, values.mean(), half, fmt="D", color=COLOURS[1], markersize=5, capsize=3, linewidth=1.3, zorder=5)


def marginal_rows(of: Sample) -> list[dict[str, Any]]:
    """Return the points as rows: one per trial."""
    return [{"trial": trial.number, **trial.params, of.target: float(y)} for trial, y in zip(of.trials, of.values, strict=True)]
