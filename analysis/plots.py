"""Figures with their numbers: what the drawings share. No display is needed, and pyplot's global state is not used.

Colours of Okabe & Ito 2008, which colour-blind readers can tell apart; marks differ too, for black-and-white prints.
"""

from __future__ import annotations

import csv
import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, DPI = 7.0, 150  # inches; dots per inch of the PNG
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKS = ("o", "s", "^", "D", "v", "P", "X")
GREY, FAINT = "#777777", "#dddddd"
UNITS = {"accuracy": "accuracy", "f1": "F1", "macro_f1": "macro F1", "pearson": "Pearson r", "spearman": "Spearman r"}


@dataclass(frozen=True)
class Plot:
    """A figure, the name of its files, and its numbers as rows of a table."""

    name: str
    figure: Figure
    rows: list[dict[str, Any]] = field(repr=False)


def write_plots(plot: Plot, folder: Path, formats: Sequence[str]) -> None:
    """Write NAME.svg and so on, and NAME.csv with the numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    for ending in formats:
        plot.figure.savefig(folder / f"{plot.name}.{ending}", dpi=DPI)
    columns = list(dict.fromkeys(key for row in plot.rows for key in row))
    with (folder / f"{plot.name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(plot.rows)


def panels(title: str, count: int, columns: int, height: float, width: float = WIDTH) -> tuple[Figure, list[Axes]]:
    """Return a figure with a title and `count` panels, `height` inches each."""
    from matplotlib.figure import Figure  # takes a second

    columns = min(columns, max(1, count))
    rows = math.ceil(max(1, count) / columns)
    lines = textwrap.wrap(title, int(width * 12))
    figure = Figure(figsize=(width, rows * height + 0.2 + 0.2 * len(lines)), layout="constrained")
    figure.suptitle("\n".join(lines), fontsize=10, x=0.01, ha="left")
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    for each in axes:
        each.tick_params(labelsize=7.5)
        each.grid(color=FAINT, linewidth=0.6)
        each.set_axisbelow(True)
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def label(axes: Axes, x: str, y: str, title: str = "") -> None:
    """Label both axes; units are part of the text."""
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    if title:
        axes.set_title(title, fontsize=8.5, loc="left")


def legend(figure: Figure, axes: Iterable[Axes], columns: int = 4) -> None:
    """Put one legend for all panels below the figure, with each name once."""
    shown: dict[str, Any] = {}
    for each in axes:
        handles, names = each.get_legend_handles_labels()
        shown |= dict(zip(names, handles, strict=True))
    if shown:
        figure.legend(list(shown.values()), list(shown), loc="outside lower left", ncols=columns, fontsize=8, frameon=False)


def unit(target: str, objective: str, metrics: dict[str, str]) -> str:
    """Return the label of an axis with a dev metric: `norm on dev`, `sst, accuracy on dev`."""
    if target in metrics:
        return f"{target}, {UNITS.get(metrics[target], metrics[target])} on dev"
    return f"{objective if target == 'score' else target} on dev"
