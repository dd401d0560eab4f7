"""The blocks of a page: sentences, tables, code, pictures and figures. The template has one macro for each kind.

The printed answers of the analyses become blocks too, so that page and terminal say the same.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from analysis.printing import COLUMNS

Rows = Sequence[Mapping[str, Any]]
WORDY = 24  # characters of a cell that may be broken into lines: more than a number with its interval has


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    kind: ClassVar = "heading"
    text: str


@dataclass(frozen=True)
class Paragraph:
    """A sentence or several."""

    kind: ClassVar = "paragraph"
    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    kind: ClassVar = "bullets"
    items: list[str]


@dataclass(frozen=True)
class Grid:
    """A table of text. With a title it is folded away until the reader opens it."""

    kind: ClassVar = "grid"
    head: list[str]
    rows: list[list[str]]
    title: str = ""

    @property
    def is_wordy(self) -> bool:
        """Whether the last column holds sentences, which need a line of their own on a phone."""
        return any(row and len(row[-1]) > WORDY for row in self.rows)


@dataclass(frozen=True)
class Code:
    """Commands or a file, shown as they are. With a title they are folded away."""

    kind: ClassVar = "code"
    text: str
    title: str = ""


@dataclass(frozen=True)
class Picture:
    """An SVG file, drawn for white paper."""

    kind: ClassVar = "picture"
    svg: bytes
    title: str

    @property
    def source(self) -> str:
        """The address that holds the whole picture."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg).decode()}"


@dataclass(frozen=True)
class Panel:
    """One drawing of a figure: a Vega-Lite specification, without its colours and fonts, and a title."""

    spec: dict[str, Any]
    title: str = ""


@dataclass(frozen=True)
class Figure:
    """Drawings under one title that says what is to be seen, and their numbers, which are shown as a table below them.

    min_width: pixels below which the figure scrolls sideways instead of shrinking.
    """

    kind: ClassVar = "figure"
    title: str
    panels: list[Panel]
    rows: Rows = field(repr=False)
    note: str = ""
    min_width: int = 0

    @property
    def numbers(self) -> Grid:
        """The table of the numbers."""
        return numbers(self.rows)


Block = Heading | Paragraph | Bullets | Grid | Code | Picture | Figure


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading, and an entry in its contents."""

    name: str  # of its anchor
    title: str
    blocks: list[Block]


def numbers(rows: Rows) -> Grid:
    """Return rows as a folded table, one column per key, in the order of their first occurrence."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return Grid(columns, [[cell(row.get(column)) for column in columns] for row in rows], f"The numbers ({len(rows):,} rows)")


def cell(value: Any) -> str:
    """Format a value for a table of numbers: four significant digits, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def blocks(lines: Iterable[str], width: float = COLUMNS) -> list[Block]:
    """Turn printed lines into blocks: Markdown tables, lists of `- ` items, and paragraphs. width: that of folded lines."""
    made: list[Block] = []
    for kind, group in itertools.groupby(_unfolded(lines, width), _kind):
        if kind == "row":
            made.append(_grid(list(group)))
        elif kind == "item":
            made.append(Bullets([line[2:] for line in group]))
        else:
            made += [Paragraph(line) for line in group if line]
    return made


def _kind(line: str) -> str:
    return "row" if line.startswith("|") else "item" if line.startswith("- ") else "sentence"


def _unfolded(lines: Iterable[str], width: float) -> Iterator[str]:
    """Undo the folding of lines: one was folded if it is indented, or if its first word had no room on the line before."""
    whole, before = "", ""
    for line in lines:
        is_text = bool(line and before) and line[0] not in "|-" and before[0] != "|"
        if is_text and (line.startswith("  ") or len(before) + 1 + len(line.split()[0]) > width):
            whole += f" {line.strip()}"
        else:
            yield whole
            whole = line
        before = line
    yield whole


def _grid(lines: list[str]) -> Grid:
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return Grid(cells[0], cells[2:])
