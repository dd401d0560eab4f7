"""The answer to a search's question: the best of each branch where all have had the same training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from search.report.answer import answer_lines, bests, branches_of
from search.study.trials import TrialResult


def points(trial: TrialResult, *scores: float) -> TrialResult:
    """The trial with an evaluation per score, at rungs 1, 3 and 9."""
    record = trial.records[0]
    records = [record | {"rung": rung, "dev/score": score} for rung, score in zip((1, 3, 9), scores, strict=False)]
    return replace(trial, records=records)


def test_branches_are_compared_at_the_highest_rung_that_all_have_earned(trial: Callable[..., TrialResult]) -> None:
    none, smart = {"smoothness": "none"}, {"smoothness": "smart"}
    trials = [
        points(trial(0, params=none, baseline=0), 0.5, 0.6, 0.7),
        points(trial(1, params=smart, baseline=1), 0.3, 0.4, 0.9),  # it ran to the end because it is a baseline
        points(trial(2, params=none), 0.55, 0.6, 0.8),
        points(trial(3, params=smart, status="stopped"), 0.45),
        points(trial(4, params=smart, status="failed"), 0.99),
    ]
    found = bests(branches_of(trials, "smoothness"))
    assert [(of.label, of.num_trials, of.rung, of.number, of.score) for of in found] == [
        ("none", 2, 1, 2, 0.55),
        ("smart", 2, 1, 3, 0.45),
    ]
    assert answer_lines(trials, ["smoothness"], 9) == [
        "smoothness at 1/9: none .5500 (002, best of 2 trials), smart .4500",
        "  (003, best of 2 trials)",
    ]


def test_a_choice_with_one_branch_has_no_answer(trial: Callable[..., TrialResult]) -> None:
    trials = [trial(0, params={"smoothness": "none"}), trial(1, None, params={"smoothness": "smart"})]
    assert answer_lines(trials, ["smoothness"], 9) == []
