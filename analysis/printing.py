"""What the analyses print: paragraphs at the width of a terminal, intervals, tables that fit.

In a pipe or a file a table is Markdown, as wide as it needs. On a terminal that is narrower, its columns continue on a second,
indented line per row: a table that wraps anywhere cannot be read.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from minbert_core.terminal import knows_codes
from search.report.words import short

COLUMNS = 80
INDENT, GAP = 4, 2  # of the second line; between columns


def folded(text: str, indent: str = "", width: int = COLUMNS) -> list[str]:
    """Fold a paragraph at the width of a terminal; indent: of every line but the first."""
    return textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False)


def joined(paragraphs: Iterable[Sequence[str]]) -> list[str]:
    """Join paragraphs, each followed by an empty line; empty ones are left out."""
    return [line for paragraph in paragraphs if paragraph for line in [*paragraph, ""]]


def span(low: float, high: float, sign: str = "", digits: int = 3) -> str:
    """Format an interval: `.471 to .530`."""
    return f"{short(low, sign, digits)} to {short(high, sign, digits)}"


def show(lines: Sequence[str]) -> None:
    """Print a report; on a terminal, tables that are wider than it are folded."""
    width = shutil.get_terminal_size((COLUMNS, 24)).columns if knows_codes(sys.stdout, os.environ) else None
    print("\n".join(lines if width is None else fitted(lines, width)), flush=True)


def fitted(lines: Sequence[str], width: int) -> list[str]:
    """Fold the Markdown tables among the lines that are wider than `width`; all other lines stay as they are."""
    found: list[str] = []
    for is_table, block in groupby(lines, key=lambda line: line.startswith(("| ", "|-"))):
        rows = list(block)
        found += _folded_table(rows, width) if is_table and max(map(len, rows)) > width else rows
    return found


def _folded_table(lines: Sequence[str], width: int) -> list[str]:
    """Fold a table: each row is one line per group of columns; empty columns, and lines without a cell, are left out."""
    heading, _, *rows = ([cell.strip() for cell in line[2:-2].split(" | ")] for line in lines)
    kept = [i for i in range(len(heading)) if any(row[i] for row in rows)]
    widths = [max(len(row[i]) for row in (heading, *rows)) for i in kept]
    groups = list(_column_groups(kept, widths, width))
    laid_out = [_laid_out([row[i] for i in kept], groups, widths, width) for row in (heading, *rows)]
    return [*laid_out[0], "-" * width, *(line for row in laid_out[1:] for line in row)]


def _column_groups(kept: Sequence[int], widths: Sequence[int], width: int) -> Iterator[list[int]]:
    """Yield the positions of the columns of each line, as many as fit."""
    group: list[int] = []
    room, is_first = width, True
    for place in range(len(kept)):
        needed = widths[place] + (GAP if group else 0)
        if group and needed > room:
            yield group
            group, is_first = [], False
        if not group:
            room, needed = width - (0 if is_first else INDENT), widths[place]
        group.append(place)
        room -= needed
    yield group


def _laid_out(cells: Sequence[str], groups: Sequence[Sequence[int]], widths: Sequence[int], width: int) -> list[str]:
    lines = []
    for number, group in enumerate(groups):
        indent = " " * (INDENT if number else 0)
        text = (" " * GAP).join(cells[place].ljust(widths[place]) for place in group).rstrip()
        if len(indent + text) > width:  # a single column that is wider than the terminal
            lines += textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent + "  ")
        elif text or not number:
            lines.append(indent + text)
    return lines
