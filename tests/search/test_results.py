"""The table of searches: its rows, their order, its columns and their types, on trials that are written down by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from search.plan.folder import NEEDED, PlanRecord, lock
from search.report.narrate import table
from search.results import COLUMNS, Search, as_table, open_search, read
from search.study.trials import TrialResult

RADIUS = "smoothness/smart/radius"
CONFIG = "data: toy\nencoder: tiny\n"

BARE = dict.fromkeys(NEEDED, "") | {"trials": 1, "encoders": {}, "train_on": [], "fingerprints": {}}  # a plan.json


def trial(
    folder: Path, number: int, status: Any, scores: list[float], params: dict[str, Any], baseline: int | None = None
) -> TrialResult:
    """A trial with an evaluation at 1/9, 3/9, 9/9, as many as there are scores."""
    own = folder / "trials" / f"{number:03d}"
    own.mkdir(parents=True)
    (own / "config.yaml").write_text(CONFIG)
    records = [
        {"kind": "dev", "rung": rung, "examples": 10 * rung, "passes": 20 * rung, "seconds": 1.5 * rung, "time_ms": rung}
        | {f"dev/{name}": score for name in ("score", "sst", "norm", "mean")}
        for rung, score in zip((1, 3, 9), scores, strict=False)
    ]
    return TrialResult(number, status, "", params, baseline, own, records)


@pytest.fixture
def search(tmp_path: Path) -> Search:
    trials = [
        trial(tmp_path, 0, "completed", [0.5, 0.6, 0.55], {"optimizer/lr": 1e-3, "smoothness": "none", "warm": 0}, baseline=0),
        trial(
            tmp_path,
            1,
            "stopped",
            [0.9],
            {"optimizer/lr": 2e-3, "smoothness": "smart", "smoothness/smart/radius": 0.1, "warm": 1},
        ),
        trial(tmp_path, 2, "completed", [0.5, 0.6, 0.7], {"optimizer/lr": 3e-3, "smoothness": "none", "warm": 2}),
        trial(tmp_path, 3, "failed", [0.5, 0.6, 0.8], {"optimizer/lr": 4e-3, "smoothness": "none", "warm": 3}),
        trial(tmp_path, 4, "running", [], {"optimizer/lr": 5e-3, "smoothness": "none", "warm": 4}),
    ]
    plan = PlanRecord(**dict.fromkeys(NEEDED, "") | {"train_on": ["sst"]})
    return Search(tmp_path, plan, trials)


def test_the_rows_stand_in_the_order_of_the_ranking(search: Search) -> None:
    numbers = as_table([search])["trial"].to_pylist()
    assert numbers == [2, 0, 1, 4, 3]
    printed = [line.split()[1] for line in table(search.trials, ["sst"])[2:]]
    assert printed == [f"{number:03d}" for number in numbers]


def test_a_row_says_what_a_trial_is_what_it_scored_and_where_it_lies(search: Search) -> None:
    _, row, *_ = as_table([search]).to_pylist()
    assert row == {
        "search": search.name,
        "trial": 0,
        "score": 0.6,
        "status": "completed",
        "reason": "",
        "baseline": 0,
        "recipe": "multitask",
        "rung": 9,
        "seconds": 13.5,
        "examples": 90,
        "passes": 180,
        "folder": str(search.folder / "trials" / "000"),
        "optimizer/lr": 1e-3,
        "smoothness": "none",
        "warm": 0,
        RADIUS: None,
        **{f"best/{name}": 0.6 for name in ("score", "sst", "norm", "mean")},
        **{f"last/{name}": 0.55 for name in ("score", "sst", "norm", "mean")},
    }


def test_what_a_trial_has_not_is_null(search: Search) -> None:
    running = next(row for row in as_table([search]).to_pylist() if row["status"] == "running")
    metrics = {f"{label}/{name}" for label in ("best", "last") for name in ("score", "sst", "norm", "mean")}
    assert {name for name, value in running.items() if value is None} == {"score", "baseline", RADIUS} | metrics


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2, None], "int64"),
        ([1, 2.5, None], "double"),
        ([True, False, None], "bool"),
        (["none", 0.1, None], "string"),
        ([True, 1, None], "string"),
    ],
)
def test_numbers_are_numbers_and_a_choice_that_mixes_is_words(tmp_path: Path, values: list[Any], kind: str) -> None:
    trials = [trial(tmp_path, i, "running", [], {} if value is None else {"x": value}) for i, value in enumerate(values)]
    column = as_table([Search(tmp_path, PlanRecord(**dict.fromkeys(NEEDED, "")), trials)])["x"]
    assert str(column.type) == kind
    assert column.to_pylist() == [*(values[:2] if kind != "string" else map(str, values[:2])), None]


def test_a_data_frame_has_numbers_where_the_table_has(search: Search) -> None:
    frame = as_table([search]).to_pandas()
    assert frame.loc[frame["status"] == "completed", "score"].mean() == pytest.approx(0.65)
    assert frame["examples"].sum() == 90 * 3 + 10
    assert frame.groupby("smoothness")["score"].max().to_dict() == pytest.approx({"none": 0.8, "smart": 0.9})


def test_a_search_without_a_trial_has_every_column_that_all_trials_have(tmp_path: Path) -> None:
    (tmp_path / "fresh").mkdir()
    (tmp_path / "fresh" / "plan.json").write_text(json.dumps(BARE))
    rows = read("fresh", runs=tmp_path)
    assert (rows.num_rows, rows.column_names) == (0, list(COLUMNS))
    assert not (tmp_path / "fresh" / "study.journal").exists()  # looked at, nothing written


def test_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"There is no search 'smart' in /.*\."):
        read("smart", runs=tmp_path)
    with pytest.raises(ValueError, match=r"There is no search in /.*\. Start one: python -m search\.run"):
        read(runs=tmp_path)


def test_a_search_whose_lock_is_held_runs(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(BARE))
    assert not open_search(tmp_path).is_running()
    assert not (tmp_path / "lock").exists()  # to ask changes nothing: the folder may be read-only
    with lock(tmp_path):
        assert open_search(tmp_path).is_running()
    assert not open_search(tmp_path).is_running()
