"""What a search cost, and a branch of it, by sums that one can do in one's head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search.report.answer import BranchBest
from search.report.costs import BranchCost, branch_costs, branch_table, read_choices, total_cost, training_seconds
from search.study.trials import TrialResult

START = 1_750_000_000_000  # some moment, in ms


@pytest.fixture
def trial(tmp_path: Path) -> Callable[..., TrialResult]:
    """trial(number, seconds, passes, params): 1,000 examples, one evaluation, ended `ended` seconds after the START."""

    def make(number: int, seconds: float, passes: int, params: dict[str, Any], **changed: Any) -> TrialResult:
        folder = tmp_path / str(number)
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(changed.pop("config", "data: toy\nencoder: tiny\n"))
        record = {"kind": "dev", "rung": 9, "examples": 1000, "passes": passes, "seconds": seconds}
        record |= {"time_ms": START + 1000 * changed.pop("ended", seconds), "dev/score": changed.pop("score", 0.5)}
        status = changed.pop("status", "completed")
        return TrialResult(number, status, status, params, None, folder, [record])

    return make


@pytest.fixture
def trials(trial: Callable[..., TrialResult]) -> list[TrialResult]:
    return [
        trial(0, 1.0, 1000, {"smoothness": "none", "lr": 0.1}, score=0.4),
        trial(1, 3.0, 1000, {"smoothness": "none", "lr": 0.2}, score=0.6),
        trial(2, 5.2, 3000, {"smoothness": "smart", "smoothness/smart/norm": "linf", "lr": 0.3}, score=0.9, status="failed"),
    ]


def test_a_branch_costs_what_its_trials_cost_an_example(trials: list[TrialResult]) -> None:
    assert branch_costs(trials, ["smoothness", "smoothness/smart/norm"]) == [
        BranchCost("smoothness", "none", 2, BranchBest("none", 2, 9, 1, 0.6), 2.0, 1.0),
        BranchCost("smoothness", "smart", 1, None, 5.2, 3.0),  # its only trial failed: a cost, no score
        BranchCost("smoothness/smart/norm", "linf", 1, None, 5.2, 3.0),
    ]


def test_the_table_names_how_many_times_the_cheapest(trials: list[TrialResult]) -> None:
    lines = branch_table(trials, ["smoothness"])
    heading, _, none, smart = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    assert heading == ["parameter", "branch", "trials", "best", "at", "ms per example", "x cheapest", "passes per example"]
    assert none == ["smoothness", "none", "2", "0.6000", "9", "2", "1.00", "1.00"]
    assert smart == ["smoothness", "smart", "1", "", "", "5.2", "2.60", "3.00"]


def test_recipes_are_compared_where_there_are_several(trial: Callable[..., TrialResult]) -> None:
    probed = "data: toy\nencoder: tiny\nstages: [{kind: linear_probe, share: 0.5}, {kind: multitask}]\n"
    trials = [trial(0, 2.0, 1000, {}), trial(1, 1.0, 1000, {}, config=probed)]
    assert [(cost.parameter, cost.branch) for cost in branch_costs(trials, [])] == [
        ("recipe", "linear_probe+multitask"),
        ("recipe", "multitask"),
    ]
    assert branch_table(trials[:1], []) == []


def test_a_choice_that_tells_the_recipe_is_shown_once(trial: Callable[..., TrialResult]) -> None:
    probed = "data: toy\nencoder: tiny\nstages: [{kind: linear_probe, share: 0.5}, {kind: multitask}]\n"
    plain, first = {"together/recipe": "plain"}, {"together/recipe": "lp_ft"}
    trials = [trial(0, 2.0, 1000, plain), trial(1, 1.0, 1000, first, config=probed), trial(2, 1.0, 1000, plain)]
    assert {cost.parameter for cost in branch_costs(trials, ["together/recipe"])} == {"together/recipe"}


def test_a_trial_that_measured_nothing_costs_nothing(tmp_path: Path) -> None:
    dead = TrialResult(0, "failed", "it died", {"smoothness": "none"}, None, tmp_path, [])
    assert branch_costs([dead], ["smoothness"]) == []
    assert total_cost([dead], 1, 0) == "0 s of training, 0 core-hours, 0 examples, 0 passes"


def test_hours_by_the_clock_count_parallel_trials_once_and_a_break_not_at_all(trial: Callable[..., TrialResult]) -> None:
    together = [trial(0, 10, 1, {}, ended=10), trial(1, 10, 1, {}, ended=14)]
    assert training_seconds(together) == pytest.approx(14)
    later = trial(2, 10, 1, {}, ended=10)
    later.records.append(later.records[0] | {"seconds": 15.0, "time_ms": START + 3_600_000})  # it went on after an hour
    assert training_seconds([later]) == pytest.approx(15)


def test_a_search_costs_gpu_hours_or_core_hours(trial: Callable[..., TrialResult]) -> None:
    trials = [trial(0, 3600, 2000, {}), trial(1, 3600, 1000, {})]
    assert total_cost(trials, 2, 0) == "60 min of training, 4.0 core-hours, 2,000 examples, 3,000 passes"
    assert total_cost(trials, 2, 0.25) == "60 min of training, 0.5 GPU-hours, 2,000 examples, 3,000 passes"


def test_a_pretraining_is_charged_once_and_named_however_many_share_it(trial: Callable[..., TrialResult]) -> None:
    trials = [trial(number, 3600, 1000, {}) for number in range(3)]
    record = {"kind": "pretrain", "stage": "mlm", "key": "3f2a9c01ab", "pretrain/seconds": 1800.0, "made": False}
    own = {"seconds": 0.0, "examples": 0, "passes": 0, "time_ms": START}
    for one in trials[1:]:
        one.records.insert(0, record | own)
    trials[2].records.insert(0, record | own | {"made": True})  # it was stopped after that, and found its own
    assert total_cost(trials, 2, 0) == (
        "60 min of training, 7.0 core-hours, 3,000 examples, 3,000 passes; "
        "further pretraining mlm 3f2a9c01: 30 min, trained once by trial 002, shared by 2 trials"
    )
    assert total_cost(trials[:2], 2, 0).endswith("30 min, trained before this search, shared by 1 trial")
    assert total_cost(trials[:2], 2, 0).startswith("60 min of training, 4.0 core-hours")
    before = [record | {"pretrain/share": 0.5}, record | {"made": True}]
    assert total_cost(trials[:2], 2, 0, before).startswith("60 min of training, 5.0 core-hours")
    assert total_cost(trials[:2], 2, 0, before).endswith("30 min, trained once, before the trials, shared by 1 trial")


def test_the_choices_of_a_search_are_read_off_its_folder(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(
        "config:\n  optimizer: {lr: {log_uniform: [1e-5, 1e-4]}}\n"
        "  gradient: {choice: [sum, {kind: gradvac, beta: {uniform: [0, 1]}}]}\n"
        "together:\n  how:\n    - {name: a, set: {seed: 1}}\n    - {name: b, set: {seed: 2}}\n"
    )
    assert sorted(read_choices(tmp_path)) == ["gradient", "together/how"]
