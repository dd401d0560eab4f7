"""Tables on a terminal: they fit, and what is needed stays."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from search.report.draw import drawn
from search.report.narrate import table
from search.report.words import markdown
from search.study.trials import TrialResult


@pytest.mark.parametrize(("width", "lacks"), [(80, {"last", "ex/s"}), (160, set())])
def test_a_table_fits_the_terminal_and_keeps_every_trial_and_parameter(
    trial: Callable[..., TrialResult], width: int, lacks: set[str]
) -> None:
    params = {"optimizer/lr": 3e-5, "smoothness": "smart", "smoothness/smart/radius": 0.0123, "tasks/all/pooling": "mean"}
    trials = [trial(i, 0.5 + i / 100, params=params) for i in range(12)]
    stream = io.StringIO()
    for each in drawn(["", *table(trials, ["sst", "sts"])], width):
        Console(file=stream, width=width).print(each)
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= width
    head = text.splitlines()[1].split()
    assert lacks.isdisjoint(head)
    assert {"trial", "score", "sst", "sts", "at", "parameters"} <= set(head)
    assert all(f"{i:03d}" in text for i in range(2, 12))
    assert all(f"{word} " in f"{text.replace(chr(10), ' ')} " for word in ("lr=3e-05", "smoothness=smart", "radius=0.0123"))
    assert text.rstrip().endswith("(2 more in the trials' folders and in MLflow)")


def shown(row: dict[str, str]) -> str:
    """The table of one row at 80 columns, without its white space."""
    stream = io.StringIO()
    for each in drawn(markdown([list(row), list(row.values())]), 80):
        Console(file=stream, width=80).print(each)
    return "".join(stream.getvalue().split())


def test_an_optional_column_is_left_out_even_if_it_is_the_last() -> None:
    text = shown({"parameter": "p" * 60, "x cheapest": "1.25", "passes per example": "3.75"})
    assert "1.25" in text
    assert "3.75" not in text


def test_a_bar_in_a_cell_divides_no_column() -> None:
    row = {"trial": "003", "minutes": "1.5", "parameters": "failed: expected int | None, got a|b"}
    assert markdown([list(row), list(row.values())])[2] == r"| 003   | 1.5     | failed: expected int \| None, got a\|b |"
    assert shown(row).endswith("0031.5failed:expectedint|None,gota|b")


def test_a_cell_that_does_not_fit_is_folded_and_not_cut() -> None:
    text = shown({"group": "g" * 50, "target": "t" * 40, "verdict": "unsure"})
    assert (text.count("g"), text.count("t"), "unsure" in text) == (50 + 2, 40 + 3, True)  # with the headings' letters
