"""Drawings of errors.py: confusion, reliability, values against labels, their histogram, errors by length, two models.

Each takes the answers of one or more tasks and draws a panel per task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.answers import Answers
from analysis.disagreements import Disagreement
from analysis.forest import Floats
from analysis.mistakes import Bin, Group, by_label, by_length, calibration, confusion, line, places
from analysis.options import BINS
from analysis.plots import COLOURS, FAINT, GREY, UNITS, Plot, label, legend, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = 16  # characters of a class's name on an axis
MOST_COUNTED = 12  # classes; the cells of more are too small for their numbers
Rows = list[dict[str, Any]]


def draw_all(answers: Sequence[Answers], num_bins: int = BINS) -> list[Plot]:
    """Draw every figure that fits the tasks of one model."""
    classes = [of for of in answers if not of.is_regression]
    values = [of for of in answers if of.is_regression]
    plots = []
    if classes:
        what = "which answer the rows of each label get on dev"
        plots.append(_per_task("confusion", what, classes, 3.0, _confusion))
        what = "how often an answer of some confidence is right on dev; points below the line are overconfident"
        plots.append(_per_task("reliability", what, classes, 2.7, partial(_reliability, num_bins=num_bins)))
    if values:
        plots.append(_per_task("scatter", "which value each dev row gets, and its label", values, 3.2, _scatter))
        what = "how often each label and each answer occurs on dev; answers beyond the ends are in the last bins"
        plots.append(_per_task("histogram", what, values, 2.5, _histogram))
        plots.append(_per_task("labels", "at which labels the errors on dev are large", values, 2.4, _by_label))
    return [*plots, _per_task("lengths", "whether long rows of dev are harder than short ones", answers, 2.4, _by_length)]


def _per_task(name: str, what: str, answers: Sequence[Answers], height: float, draw: Callable[[Axes, Answers], Rows]) -> Plot:
    """Draw a panel per task. draw: draws one, and returns its numbers."""
    figure, axes = panels(f"{answers[0].model}: {what}", len(answers), 2, height)
    pairs = zip(axes, answers, strict=True)
    rows = [{"task": of.task.name, **row} for each, of in pairs for row in draw(each, of)]
    legend(figure, axes, 3)
    return Plot(name, figure, rows)


def _confusion(axes: Axes, of: Answers) -> Rows:
    """Draw the share of each label's rows that got each answer, with the number of rows in each cell."""
    counts_CC, classes = confusion(of), of.task.classes
    shares_CC = counts_CC / np.maximum(1, counts_CC.sum(axis=1, keepdims=True))
    names = [name if len(name) <= NAME else name[: NAME - 1] + "…" for name in classes]
    image = axes.imshow(shares_CC, cmap="cividis", vmin=0, vmax=1)
    axes.grid(visible=False)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    for (i, j), share in np.ndenumerate(shares_CC) if len(names) <= MOST_COUNTED else ():
        colour = "black" if share > 0.55 else "white"
        axes.text(j, i, f"{counts_CC[i, j]:,}", ha="center", va="center", fontsize=7, color=colour)
    accuracy = float((of.answers_B == of.labels_B).mean())
    label(axes, "answer", "label", f"{of.task.name}: {accuracy:.3f} of {len(of):,} right")
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label("share of the label's rows (fraction)", fontsize=7.5)
    bar.ax.tick_params(labelsize=7)
    return [
        {"label": classes[i], "answer": classes[j], "rows": int(count), "share": float(shares_CC[i, j])}
        for (i, j), count in np.ndenumerate(counts_CC)
    ]


def _reliability(axes: Axes, of: Answers, num_bins: int) -> Rows:
    """Draw the bins as points with intervals, and as bars at the bottom the share of the rows that each holds."""
    found = calibration(of, num_bins)
    for each in found.bins:
        axes.bar((each.low + each.high) / 2, each.size / len(of), (each.high - each.low) * 0.9, color=FAINT, zorder=0)
    axes.bar(0, 0, color=FAINT, label="share of all rows")
    axes.plot([0, 1], [0, 1], "--", color=GREY, linewidth=0.9, label="perfectly calibrated")
    _with_intervals(axes, [b.confidence for b in found.bins], [b.accuracy for b in found.bins], found.bins, "share right")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    about = f"{of.task.name}: ECE {found.ece:.3f}, chance up to {found.chance:.3f}"
    label(axes, "confidence in the answer (probability)", "share right (fraction)", about)
    return [_row(asdict(each)) for each in found.bins]


def _with_intervals(axes: Axes, x: Sequence[float], y: Sequence[float], of: Sequence[Bin | Group], name: str) -> None:
    """Draw points with their intervals; an unknown interval, of a single value, has no width."""
    low, high = np.nan_to_num(np.array([each.interval for each in of]), posinf=np.nan).T
    ends = np.maximum(0, np.nan_to_num([y - low, high - y]))
    axes.errorbar(x, y, ends, fmt="o", color=COLOURS[0], markersize=4, capsize=2, linewidth=1, label=f"{name}, 95 % interval")


def _row(fields: dict[str, Any]) -> dict[str, Any]:
    """Turn the fields of a bin or a group into a row of numbers."""
    low, high = fields.pop("interval")
    return {**fields, "95 % from": low, "95 % to": high}


def _scatter(axes: Axes, of: Answers) -> Rows:
    """Draw each row's value over its label, and the line on which answers are put before their errors are taken."""
    low, high = of.task.label_range
    slope, offset = line(of)
    _points(axes, of.labels_B, of.answers_B, COLOURS[0], "a row")
    axes.plot([low, high], [low, high], "--", color=GREY, linewidth=0.9, label="answer = label")
    if slope:
        ends = np.array([of.answers_B.min(), of.answers_B.max()])
        axes.plot(slope * ends + offset, ends, "-", color=COLOURS[1], linewidth=1.5, label="label expected of an answer")
    axes.set_xlim(low - 0.03 * (high - low), high + 0.03 * (high - low))
    about = f"{of.task.name}: {UNITS[of.task.metric]} {of.value:.3f}, {len(of):,} rows"
    label(axes, f"label ({_unit(of)})", f"answer ({_unit(of)})", about)
    pairs = zip(of.ids, of.labels_B.tolist(), of.answers_B.tolist(), strict=True)
    return [{"id": id_, "label": y, "answer": x} for id_, y, x in pairs]


def _unit(of: Answers) -> str:
    low, high = of.task.label_range
    return f"points, {low:g} to {high:g}"


def _points(axes: Axes, x: Floats, y: Floats, colour: str, name: str) -> None:
    axes.plot(x, y, "o", color=colour, markersize=2.5, alpha=0.4, markeredgewidth=0, label=name)


def _histogram(axes: Axes, of: Answers) -> Rows:
    """Draw how many rows have each label and each answer, in bins of a tenth of the label range."""
    low, high = of.task.label_range
    edges, width = np.linspace(low, high, BINS + 1), (high - low) / BINS
    counts = [np.histogram(np.clip(values, low, high), edges)[0] for values in (of.labels_B, of.answers_B)]
    for i, (count, name) in enumerate(zip(counts, ("labels", "answers"), strict=True)):
        axes.bar(edges[:-1] + width * (0.3 + 0.4 * i), count, 0.38 * width, color=COLOURS[i], label=name)
    axes.grid(visible=False, axis="x")
    label(axes, f"value ({_unit(of)})", "rows (number)", f"{of.task.name}, {len(of):,} rows")
    bins = zip(edges[:-1].tolist(), edges[1:].tolist(), *(count.tolist() for count in counts), strict=True)
    return [{"from": start, "to": end, "labels": labels, "answers": answers} for start, end, labels, answers in bins]


def _by_label(axes: Axes, of: Answers) -> Rows:
    return _of_groups(axes, of, by_label(of), f"label ({_unit(of)}); in brackets rows")


def _by_length(axes: Axes, of: Answers) -> Rows:
    return _of_groups(axes, of, by_length(of), "length (tokens); in brackets rows")


def _of_groups(axes: Axes, of: Answers, groups: Sequence[Group], x: str) -> Rows:
    """Draw the share right, or the mean absolute error, of each group of rows."""
    name, y = (
        ("mean absolute error", "mean absolute error (points)")
        if of.is_regression
        else ("share right", "share right (fraction)")
    )
    _with_intervals(axes, range(len(groups)), [group.value for group in groups], groups, name)
    axes.set_xticks(range(len(groups)), [f"{group.name}\n({group.size:,})" for group in groups])
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.set_ylim(0, axes.get_ylim()[1] if of.is_regression else 1.02)
    label(axes, x, y, of.task.name)
    return [_row(asdict(group)) for group in groups]


# ------------------------------------------------------------------------------------------------------------ two models


def draw_disagreement(pairs: Sequence[tuple[Answers, Answers]], found: Sequence[Disagreement]) -> Plot:
    """Draw a panel per task: each row's answer of one model over the other's; of classes, the probability of the label."""
    first, second = pairs[0]
    title = f"{first.model} (across) and {second.model} (up): on which dev rows they disagree, those far from the line"
    figure, axes = panels(title, len(pairs), 2, 3.0)
    rows: Rows = []
    for each, (one, other), of in zip(axes, pairs, found, strict=True):
        x, y = (places(model) if model.is_regression else model.label_shares_B for model in (one, other))
        differ = np.abs(x - y) > of.near if one.is_regression else one.answers_B != other.answers_B
        _points(each, x[~differ], y[~differ], GREY, "about the same answer")
        _points(each, x[differ], y[differ], COLOURS[1], "another answer")
        low, high = one.task.label_range if one.is_regression else (0, 1)
        each.plot([low, high], [low, high], "--", color=GREY, linewidth=0.9, label="equal")
        what = f"answer ({_unit(one)})" if one.is_regression else "probability of the label"
        label(each, f"first: {what}", f"second: {what}", f"{of.task}: {int(differ.sum()):,} of {of.size:,} rows differ")
        values = zip(one.ids, x.tolist(), y.tolist(), differ.tolist(), strict=True)
        rows += [{"task": of.task, "id": id_, "first": a, "second": b, "differ": d} for id_, a, b, d in values]
    legend(figure, axes)
    return Plot("disagreement", figure, rows)
