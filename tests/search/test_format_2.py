"""A search that an earlier version wrote, in format 2, with rungs still called `part` in its records: it keeps loading.

format_2/old is `python -m search.run --space spaces/quickstart.yaml --trials 40` of commit 896a68c,
interrupted after six trials: plan.json, space.yaml and study.journal whole, of each trial its config and its dev records.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from search.plan.folder import check_format, read_plan
from search.results import read
from search.space.space import read_space

RUNS = Path(__file__).parent / "format_2"


def test_its_trials_are_read_with_their_rungs_scores_and_parameters() -> None:
    table = read("old", runs=RUNS).select(["trial", "status", "rung", "score", "optimizer/lr"]).to_pylist()
    assert [row["trial"] for row in table] == [0, 1, 5, 3, 4, 2]
    assert [(row["status"], row["rung"]) for row in table[:4]] == [("completed", 9)] * 2 + [("running", 1), ("stopped", 1)]
    assert table[0]["score"] == pytest.approx(0.663002, abs=1e-6)
    assert table[0]["optimizer/lr"] == pytest.approx(0.0017320508)


def test_it_may_be_resumed_and_its_space_means_what_it_meant() -> None:
    check_format(read_plan(RUNS / "old"))  # raises Refused for a format that cannot be resumed
    assert len(read_space(RUNS / "old" / "space.yaml").baselines) == 1
