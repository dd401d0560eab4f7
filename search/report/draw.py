"""Tables on a terminal: Markdown rows drawn by rich at the terminal's width. Logs, pipes and notes keep the Markdown."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from minbert_core.terminal import Screen

OPTIONAL = ("last", "ex/s", "mean", "norm", "passes per example", "GPU-min", "minutes", "status")  # the least needed first
ORDINARY = {"completed", "stopped"}  # statuses that the rung shows too
FOLDED = 24  # characters that the last column needs, whose text is folded
GAP = 2  # characters between columns


def drawn(lines: Iterable[str], width: int) -> Iterator[RenderableType]:
    """Draw the Markdown tables among the lines; other lines stay text. Columns that do not fit are left out, OPTIONAL first."""
    for is_table, group in itertools.groupby(lines, key=lambda line: line.startswith("|")):
        if is_table:
            head, _, *rows = (line.strip("|").split(" | ") for line in group)  # in a cell it is ` \| `
            yield _table([[cell.strip().replace(r"\|", "|") for cell in row] for row in (head, *rows)], width)
        else:
            yield from map(Text, group)


def show(lines: list[str]) -> None:
    """Print lines on stdout: Markdown tables drawn if it is a terminal, else as they are."""
    Screen(lambda _: "").draw(lambda width: drawn(lines, width), lines)


def _table(rows: list[list[str]], width: int) -> Table:
    rows = _fitting(rows, width)
    fits = _needed(rows) <= width
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, GAP - 1, 0, 0), show_edge=False, header_style="dim")
    for i, name in enumerate(rows[0]):
        is_last = i == len(rows[0]) - 1
        table.add_column(name, no_wrap=fits and not is_last, overflow="fold")  # what does not fit is folded, never cut
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    return table


def _fitting(rows: list[list[str]], width: int) -> list[list[str]]:
    """Leave out optional columns until the others fit."""
    for name in OPTIONAL:
        if _needed(rows) <= width:
            break
        i = rows[0].index(name) if name in rows[0] else None
        if i is not None and (name != "status" or {row[i] for row in rows[1:]} <= ORDINARY):
            rows = [[*row[:i], *row[i + 1 :]] for row in rows]
    return rows


def _needed(rows: list[list[str]]) -> int:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return sum(widths[:-1]) + min(FOLDED, widths[-1]) + GAP * (len(widths) - 1)
