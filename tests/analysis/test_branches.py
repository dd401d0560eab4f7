"""The question of a space: which trial stands for each branch, which branch is the reference, what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from analysis.branches import Question, ask
from search.plan.folder import NEEDED, PlanRecord
from search.results import Search
from search.study.trials import TrialResult

SPACE = """
baselines: [{smoothness: none}]
config:
  optimizer: {lr: {log_uniform: [1e-5, 1e-4]}, head_lr_factor: {choice: [1, 10]}}
  tasks: {pairs: {pair_encoding: {choice: [bi, cross]}}}
  stages: {choice: [[linear_probe, multitask], [multitask]]}
  smoothness: {choice: [{kind: smart, radius: {log_uniform: [1e-3, 1e-1]}}, none, r_drop]}
together:
  recipe: [{name: slow, set: {seed: 1}}, {name: fast, set: {seed: 2}}]
"""
MakeTrial = Callable[..., TrialResult]


@pytest.fixture
def trial(tmp_path: Path) -> MakeTrial:
    """trial(number, branch, {part: dev score}, …): a trial of nine parts, stopped unless it reached the last."""

    def make(number: int, branch: Any, scores: Mapping[int, float], path: str = "smoothness", **changed: Any) -> TrialResult:
        folder = tmp_path / f"{number:03d}"
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text("data: toy\nencoder: tiny\nbudget: {points: [1, 3, 9]}\n")
        records = [{"kind": "dev", "rung": rung, "dev/score": score} for rung, score in scores.items()]
        status = changed.get("status", "completed" if 9 in scores else "stopped")
        reason = changed.get("reason", status)
        return TrialResult(number, status, reason, {path: branch}, changed.get("baseline"), folder, records)

    return make


@pytest.fixture
def search(tmp_path: Path) -> Callable[..., Search]:
    def make(*trials: TrialResult, space: str = SPACE) -> Search:
        (tmp_path / "space.yaml").write_text(space)
        return Search(tmp_path, PlanRecord(**dict.fromkeys(NEEDED, "")), list(trials))

    return make


def best(question: Question) -> dict[Any, int | None]:
    return {branch.label: branch.best and branch.best.number for branch in question.branches}


def test_each_branch_is_tested_at_its_best_trial_though_a_rung_stopped_it(
    trial: MakeTrial, search: Callable[..., Search]
) -> None:
    question = ask(
        search(
            trial(0, "none", {1: 0.5, 9: 0.6}, baseline=0),
            trial(1, "none", {1: 0.5, 9: 0.7}),
            trial(2, "smart", {1: 0.4, 3: 0.45}),
            trial(3, "smart", {1: 0.49}),  # a lower rung than its branch has reached
            trial(4, "smart", {1: 0.4}, status="failed"),
        ),
        "smoothness",
    )
    assert best(question) == {"none": 1, "smart": 2, "r_drop": None}
    assert [found.number for found in question.best_trials] == [1, 2]
    efforts = {branch.label: branch.effort for branch in question.branches if branch.best}
    assert efforts == {"none": "best of 2 trials", "smart": "best of 2 trials, 1 failed; stopped at 3/9 in the search"}


def test_a_baseline_that_no_rung_stops_does_not_hide_a_better_trial_that_was_stopped(
    trial: MakeTrial, search: Callable[..., Search]
) -> None:
    baseline, other = trial(0, "none", {1: 0.40, 3: 0.50, 9: 0.60}, baseline=0), trial(2, "smart", {1: 0.7})
    for at_rung, expected in ((0.51, 1), (0.49, 0)):
        question = ask(search(baseline, trial(1, "none", {1: 0.3, 3: at_rung}), other), "smoothness")
        assert best(question)["none"] == expected
    assert best(ask(search(baseline, other), "smoothness"))["none"] == 0


@pytest.mark.parametrize(
    ("path", "branches", "expected"),
    [
        ("smoothness", ["smart", "none"], "none"),  # the config's default
        ("tasks/pairs/pair_encoding", ["bi", "cross"], "cross"),
        ("optimizer/head_lr_factor", [10, 1], 1),
        ("together/recipe", ["fast", "slow"], "slow"),  # which has no default: the first of the choice
        ("stages", ["linear_probe-multitask", "multitask"], "multitask"),
    ],
)
def test_the_reference_is_the_plain_branch_of_any_choice(
    trial: MakeTrial, search: Callable[..., Search], path: str, branches: list[Any], expected: Any
) -> None:
    trials = [trial(number, branch, {9: 0.5}, path) for number, branch in enumerate(branches)]
    assert ask(search(*trials), path).reference.label == expected


def test_a_choice_may_be_named_as_the_tables_name_it(trial: MakeTrial, search: Callable[..., Search]) -> None:
    trials = [trial(number, branch, {9: 0.5}, "together/recipe") for number, branch in enumerate(("fast", "slow"))]
    assert ask(search(*trials), "recipe").path == "together/recipe"


def test_the_reference_is_the_branch_of_the_first_baseline_before_the_default(
    trial: MakeTrial, search: Callable[..., Search]
) -> None:
    later, first = trial(0, "none", {9: 0.5}, baseline=1), trial(1, "r_drop", {9: 0.5}, baseline=0)
    assert ask(search(later, first), "smoothness").reference.label == "r_drop"
    assert ask(search(later, first), "smoothness").best_trials == [first, later]


def test_a_reference_without_a_trial_to_retrain_gives_way_to_the_next(trial: MakeTrial, search: Callable[..., Search]) -> None:
    failed = trial(0, "none", {}, baseline=0, status="failed", reason="not finite")
    question = ask(search(failed, trial(1, "r_drop", {9: 0.5}), trial(2, "smart", {9: 0.5})), "smoothness")
    assert question.reference.label == "smart"  # the first of the choice


def test_branches_without_a_trial_to_retrain_are_named_with_the_reason(trial: MakeTrial, search: Callable[..., Search]) -> None:
    failed = [trial(number, "none", {1: 0.5}, status="failed", reason="not finite") for number in (3, 4)]
    for trials, missing in (
        ([], "no trial took it"),
        (failed[:1], "its only trial failed: not finite"),
        (failed, "all its 2 trials failed: not finite"),
        ([*failed, trial(5, "none", {1: 0.5}, status="running")], "of its 3 trials none has ended with a score"),
    ):
        question = ask(search(trial(0, "r_drop", {9: 0.5}), trial(1, "smart", {9: 0.5}), *trials), "smoothness")
        assert {branch.label: branch.missing for branch in question.unanswered} == {"none": missing}


def test_one_branch_with_a_trial_to_retrain_is_refused(trial: MakeTrial, search: Callable[..., Search]) -> None:
    failed = trial(1, "smart", {}, status="failed", reason="out of memory")
    with pytest.raises(ValueError, match=r"two or more branches\. .* has 1 to retrain\. smart: its only .*; r_drop: no trial"):
        ask(search(trial(0, "none", {9: 0.5}), failed), "smoothness")


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("smothness", r"Unknown choice 'smothness'; did you mean .smoothness.\? Known: optimizer/head_lr_factor, smoothness, "),
        ("gradient", "`--per` takes a choice that .* has searched. Unknown choice 'gradient'"),
        ("optimizer/lr", r"`optimizer/lr` is a number, log_uniform \[1e-05, 0.0001\]. Known choices: optimizer/head"),
    ],
)
def test_a_path_that_is_not_a_choice_gets_a_sentence_with_the_choices(
    search: Callable[..., Search], path: str, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        ask(search(), path)


def test_a_search_without_a_choice_has_nothing_to_compare(search: Callable[..., Search]) -> None:
    space = "config: {optimizer: {lr: {log_uniform: [1e-5, 1e-4]}}}"
    with pytest.raises(ValueError, match="has none: its space searches ranges only: optimizer/lr"):
        ask(search(space=space), "smoothness")
