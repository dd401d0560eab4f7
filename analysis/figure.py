"""A figure for a report: the score that the search claimed, and the scores of fresh seeds, on dev and on test.

    claim (diamond)   dev (disc)   test (square): each a mean, its 95 % interval, one tick per seed;   one row per configuration

Colours of Okabe & Ito 2008, which colour-blind readers can distinguish; the shapes serve black-and-white prints.
"""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.latex import METRICS, names
from analysis.results import SPLITS, Results
from analysis.selection import Selection

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, DPI = 6.5, 150  # the width of a page's text, in inches; dots per inch of the PNG
NAME, NAME_LINES = 36, 3  # characters per line, and lines, of a configuration's name
COLOURS = {"claimed": "#555555", "dev": "#0072B2", "test": "#D55E00"}
SHAPES = {"claimed": "D", "dev": "o", "test": "s"}


def write_figure(selection: Selection, results: Results, folder: Path) -> list[Path]:
    """Write figure.svg, figure.png (for slides and pages) and figure.pdf (for LaTeX) to `folder`; return their paths."""
    figure = draw(selection, results)
    paths = [folder / f"figure.{ending}" for ending in ("svg", "png", "pdf")]
    for path in paths:
        figure.savefig(path, dpi=DPI)
    return paths


def draw(selection: Selection, results: Results) -> Figure:
    """Draw the figure, without a display and without pyplot's global state."""
    from matplotlib.figure import Figure  # takes a second, needed only at the end of a test

    called = {number: _wrapped(" ".join(name)) for number, name in names(selection, results).items()}
    series = [
        "claimed",
        *(split for split in SPLITS if all("score" in of.get(split, {}) for of in results.configurations.values())),
    ]
    lines = max(len(label.splitlines()) for label in called.values())
    height = 1.2 + len(called) * max(0.16 * len(series), 0.14 * lines + 0.08)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    for row, number in enumerate(called):
        if selection.reference and number == selection.reference.number:
            axes.axhspan(row - 0.5, row + 0.5, color="#f0f0f0", zorder=0)
        for place, what in enumerate(series):
            y = row + 0.8 * ((place + 0.5) / len(series) - 0.5)
            _mark(axes, selection, results, number, what, y)
    axes.set_yticks(range(len(called)), list(called.values()), fontsize=7.5, parse_math=False)
    axes.set_ylim(len(called) - 0.5, -0.5)  # the first on top
    axes.set_xlabel(_axis(selection, series), fontsize=8)
    axes.tick_params(axis="x", labelsize=7.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    shown = dict(zip(labels, handles, strict=True))  # one per series, not one per row
    figure.legend(shown.values(), shown, loc="outside upper center", ncols=len(series), fontsize=8, frameon=False)
    return figure


def _mark(axes: Axes, selection: Selection, results: Results, number: int, what: str, y: float) -> None:
    """Draw a claim, or a split's mean with its interval and seeds, at the height y."""
    colour, shape = COLOURS[what], SHAPES[what]
    if what == "claimed":
        (claim,) = (trial.score for trial in selection.trials if trial.number == number)
        if not math.isfinite(claim):  # a contender
            return
        axes.plot(claim, y, shape, color=colour, markersize=5, markerfacecolor="white", label="dev, claimed by the search")
        return
    found = results.configurations[number][what]["score"]
    axes.plot([found.low, found.high], [y, y], "-", color=colour, linewidth=1.4, solid_capstyle="butt")
    if len(found.values) > 1:
        axes.plot(found.values, [y] * len(found.values), "|", color=colour, markersize=8, markeredgewidth=0.9)
    who = "fresh seeds" if len(selection.seeds) > 1 else "a fresh seed" if selection.seeds else "kept weights"
    axes.plot(found.mean, y, shape, color=colour, markersize=5, markeredgecolor="white", label=f"{what}, {who}")


def _axis(selection: Selection, series: list[str]) -> str:
    """Label the axis: `norm on dev`, and what the marks mean."""
    config = selection.config
    objective = config.objective if isinstance(config.objective, str) else "weighted score"
    if objective in config.known_tasks:
        task = config.known_tasks[objective]
        objective += f" ({'(r + 1)/2 of ' if task.is_correlation else ''}{METRICS[task.metric]})"
    where = " and ".join(series[1:])
    drawn = "rows and seeds; ticks: the seeds" if len(selection.seeds) > 1 else "rows"
    lines = [f"{objective} on {where}", f"bars: 95 % intervals over {drawn}"]
    if len(selection.trials) > 1:  # of two whose bars overlap, one may still beat the other on the same rows
        lines.append("judge two by their paired difference, not by whether bars overlap")
    return "\n".join(lines)


def _wrapped(name: str) -> str:
    """Wrap a name to at most NAME_LINES lines of NAME characters; `…` marks a cut."""
    return "\n".join(textwrap.wrap(name, NAME, max_lines=NAME_LINES, placeholder=" …", break_on_hyphens=False))
