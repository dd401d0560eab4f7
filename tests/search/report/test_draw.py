"""Tables on a terminal: they fit, and what is needed stays."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from search.report.draw import drawn
from search.report.narrate import table
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
