"""What the analyses print: paragraphs at the width of a terminal, and intervals. `search.report.draw` draws the tables."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from search.report.words import short

COLUMNS = 80


def folded(text: str, indent: str = "", width: int = COLUMNS) -> list[str]:
    """Fold a paragraph at the width of a terminal; indent: of every line but the first."""
    return textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False)


def joined(paragraphs: Iterable[Sequence[str]]) -> list[str]:
    """Join paragraphs, each followed by an empty line; empty ones are left out."""
    return [line for paragraph in paragraphs if paragraph for line in [*paragraph, ""]]


def span(low: float, high: float, sign: str = "", digits: int = 3) -> str:
    """Format an interval: `.471 to .530`."""
    return f"{short(low, sign, digits)} to {short(high, sign, digits)}"


def p_value(p: float) -> str:
    """Format a p-value: `p = .021`, `p < .001`."""
    return "p < .001" if p < 0.001 else f"p = {short(p, digits=3)}"
