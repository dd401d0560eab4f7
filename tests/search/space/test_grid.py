"""A grid: its combinations, and the spaces that have none."""

from __future__ import annotations

from typing import Any

import pytest

from minbert_core.settings.faults import SettingsError
from search.space.space import make_space

GRID: dict[str, Any] = {
    "sampler": "grid",
    "together": {
        "row": [
            {"name": "a", "set": {"gradient": "pcgrad"}},
            {"name": "b", "set": {"gradient": "sum", "tasks/all/pooling": {"choice": ["cls", "mean"]}}},
        ]
    },
}


def test_a_grid_has_each_combination_once_in_the_order_in_which_they_are_written() -> None:
    space = make_space("g", GRID)
    assert space.combinations() == [
        {"together/row": "a"},  # the pooling is of the other branch alone
        {"together/row": "b", "tasks/all/pooling": "cls"},
        {"together/row": "b", "tasks/all/pooling": "mean"},
    ]
    assert space.num_trials == 3
    assert make_space("g", {**GRID, "trials": 2}).num_trials == 2
    assert make_space("g", {**GRID, "sampler": "random"}).num_trials == 32


@pytest.mark.parametrize(
    ("over", "sentence"),
    [
        ({"config": {"optimizer": {"lr": {"log_uniform": [1e-5, 1e-4]}}}},
         "`optimizer/lr`: `sampler` grid takes every combination, but log_uniform [1e-05, 0.0001] has infinitely many values. "
         "List those to try: choice: [1e-05, …]."),
        ({"baselines": [{}]},
         "`sampler` grid takes every combination, so a baseline is one of them or outside the space. Remove `baselines`."),
        ({"trials": 4},
         "`trials` must be at most 3, the number of combinations of the grid. Got 4. Remove `trials` to try all."),
    ],
)  # fmt: skip
def test_what_is_no_grid_is_refused(over: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        make_space("g", {**GRID, **over})
    assert str(caught.value) == sentence


def test_of_a_grid_every_combination_is_checked_not_pairs_alone() -> None:
    """Each two of the three go together, all three do not: 3 x 0.35 is more than the whole."""
    stages = [{"kind": "single_task", "task": task, "share": {"choice": [0.1, 0.35]}} for task in ("sst", "para", "sts")]
    document = {"config": {"stages": [*stages, "multitask"]}}
    make_space("pairs", {**document, "sampler": "random"})
    with pytest.raises(SettingsError, match=r"sum to 1\.05"):
        make_space("all", {**document, "sampler": "grid"})


def test_a_grid_beyond_what_can_be_checked_is_refused() -> None:
    many = {"choice": list(range(1, 41))}
    config = {"tasks": {"sst": {"batch_size": many}, "para": {"batch_size": many}}}
    with pytest.raises(SettingsError, match=r"takes at most 1,000 combinations. This space has 1,600. Use random."):
        make_space("g", {"sampler": "grid", "config": config})
