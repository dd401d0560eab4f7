"""Formats for the search's tables and lines: parameters, scores, Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Map each path to its last word, `optimizer/lr` -> `lr`, or to its last two if another path ends in the same word."""
    paths = list(paths)
    last = {path: path.rpartition("/")[2] for path in paths}
    words = list(last.values())
    return {path: word if words.count(word) == 1 else "/".join(path.split("/")[-2:]) for path, word in last.items()}


def describe(params: dict[str, Any]) -> str:
    """Describe the searched parameters of a trial briefly: `smoothness=smart lr=3.2e-05`."""
    names = short_names(params)
    values = {name: f"{value:.3g}" if isinstance(value, float) else str(value) for name, value in params.items()}
    return " ".join(f"{names[name]}={value}" for name, value in values.items())


def differing_first(params: dict[str, Any], others: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Order parameters: those first in which other trials have had another value, or which they lack."""
    others = list(others)
    return dict(sorted(params.items(), key=lambda item: all(other.get(item[0]) == item[1] for other in others)))


def short(value: float, sign: str = "", digits: int = 4) -> str:
    """Format a score without the zero before the point: `.4750`; `+.0123` with the sign "+"."""
    text = f"{round(value, digits) + 0.0:{sign}.{digits}f}"  # + 0.0: no -0
    return text.replace("0.", ".", 1) if text.lstrip("+-").startswith("0.") else text


def rounded(value: float) -> str:
    """Format a quantity with about three digits and without an exponent: `0.0123`, `12.3`, `1,234`."""
    return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


def scores(record: dict[str, Any], tasks: Iterable[str]) -> str:
    """Format the scores of a dev record, `0.7203 (sst .441 para .812 sts .845)`, for those of the tasks that it has."""
    each = " ".join(f"{task} {short(record[f'dev/{task}'], digits=3)}" for task in tasks if f"dev/{task}" in record)
    return f"{record['dev/score']:.4f} ({each})"


def markdown(rows: list[list[str]]) -> list[str]:
    """Format rows, of which the first is the heading, as the lines of a Markdown table that is aligned as plain text too.

    A `|` in a cell is written as Markdown has it there, with a backslash before it.
    """
    rows = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
