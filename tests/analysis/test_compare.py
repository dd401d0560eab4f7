"""Comparisons: matched pairs find what other parameters hide, budgets count, and the tasks' disagreement has a known answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.compare import comparison, main, report
from analysis.compare_plots import draw_budgets, draw_distributions, draw_front
from analysis.groups import Group, difference, equal_budget, expected_best, group_by, matched, pick
from analysis.pareto import effects, front
from analysis.table import Table, Trial

Capture = pytest.CaptureFixture[str]
Made = Callable[..., Table]
GAIN = {"sum": 0.0, "pcgrad": 0.05, "gradvac": 0.0}


def by_dropout(params: dict[str, Any], _: object) -> float:
    return params["dropout"] + GAIN[params["gradient"]]


def test_matched_pairs_find_a_difference_that_other_parameters_hide_from_the_means(made_up: Made) -> None:
    table = made_up(60, by_dropout)
    plain, surgery, _ = group_by(table, "gradient")
    means = difference(surgery, plain, 1, "score")
    assert means.p > 0.05
    others = [of for of in table.searches["made"].parameters.values() if of.path == "dropout"]
    pairs = matched(surgery, plain, 1, "score", others)
    assert (pairs.size, pairs.p < 0.05, pairs.mean > 0) == (20, True, True)
    assert pairs.low < pairs.mean < pairs.high


def test_trials_of_equal_parameters_are_paired_with_each_other() -> None:
    def trials(values: dict[float, float]) -> list[Trial]:
        return [
            Trial("s", i, "completed", None, "m", 1, 1, {"dropout": x}, [{"rung": 1, "dev/score": y}])
            for i, (x, y) in enumerate(values.items())
        ]

    from analysis.table import Parameter

    one, other = Group("a", trials({0.1: 1.0, 0.5: 2.0, 0.9: 3.0})), Group("b", trials({0.9: 2.9, 0.1: 0.9, 0.5: 1.9}))
    found = matched(one, other, 1, "score", [Parameter("dropout", "uniform", (), 0.0, 1.0)])
    assert found.size == 3
    assert found.mean == pytest.approx(0.1)


def test_the_expected_best_is_that_of_all_draws() -> None:
    values = np.array([3.0, 1.0, 2.0])
    assert expected_best(values, 1) == pytest.approx(2)
    pairs = [max(a, b) for a in values for b in values]
    assert expected_best(values, 2) == pytest.approx(np.mean(pairs))
    assert expected_best(values, 500) == pytest.approx(3)


def test_a_budget_of_seconds_pays_for_fewer_trials_of_a_slow_group(made_up: Made) -> None:
    table = made_up(30, lambda params, _: params["dropout"])
    slow = [
        replace(trial, evaluations=[{**entry, "seconds": 3 * entry["seconds"]} for entry in trial.evaluations])
        for trial in table.trials
    ]
    groups = [Group("fast", table.trials), Group("slow", slow)]
    examples, seconds = (equal_budget(groups, 1, "score", unit) for unit in ("examples", "seconds"))
    assert [round(of.trials, 3) for of in examples] == [30, 30]
    assert [round(of.trials, 3) for of in seconds] == [30, 10]
    assert examples[0].best == examples[1].best == seconds[0].best > seconds[1].best


def test_the_front_holds_what_no_other_trial_beats() -> None:
    scores = [(0.9, 0.1), (0.1, 0.9), (0.5, 0.5), (0.4, 0.5)]
    trials = [
        Trial("s", i, "completed", None, "m", 1, 1, {}, [{"rung": 1, "dev/score": 0.5, "dev/sst": a, "dev/sts": b}])
        for i, (a, b) in enumerate(scores)
    ]
    assert [point.is_best for point in front(trials, ["sst", "sts"])] == [True, True, True, False]
    assert front([replace(trials[0], status="failed")], ["sst", "sts"]) == []


def test_a_choice_that_helps_one_task_and_hurts_another_is_named(made_up: Made) -> None:
    def noisy(sign: float) -> Callable[..., float]:
        return lambda params, generator: sign * (params["gradient"] == "pcgrad") + 0.1 * generator.random()

    table = made_up(30, noisy(1), sts=noisy(-1))
    verdicts = {(of.path, of.change): of.verdict for of in effects(table, 1)}
    assert verdicts["gradient", "sum -> pcgrad"] == "disagree: sst up, sts down"
    assert verdicts["dropout", "rising"] == "cannot say"


def test_the_report_fits_80_columns_and_its_figures_hold_every_trial(made_up: Made) -> None:
    table = made_up(30, by_dropout)
    groups = group_by(table, "gradient")
    found = comparison(table, groups, by="gradient")
    text = report(found)
    assert text[0] == "Score at rung 1, after 100 examples per trial"
    assert max(map(len, text)) <= 80
    assert len(draw_distributions(table, groups, 1).rows) == 30 * 3
    assert {row["unit"] for row in draw_budgets(table, groups, 1).rows} == {"examples", "seconds"}
    assert len(draw_front(table, groups, found.points).rows) == 30


def test_groups_of_one_trial_are_too_few_for_a_verdict(toy_runs: Path, tmp_path: Path, capsys: Capture) -> None:
    place = ["--runs", str(toy_runs), "--to", str(tmp_path), "--formats", "svg"]
    assert main(["small", *place, "--trials", "0", "2"]) == 0
    output = capsys.readouterr().out
    assert "too few" in output
    assert {path.name for path in tmp_path.iterdir()} >= {"distributions.svg", "budgets.csv", "front.csv"}


def test_what_cannot_be_compared_is_refused_in_a_sentence(made_up: Made, toy_runs: Path, capsys: Capture) -> None:
    table = made_up(6, by_dropout)
    with pytest.raises(ValueError, match=r"needs two groups of trials. Got made. Name several searches, or a choice with --by"):
        group_by(table, None)
    with pytest.raises(ValueError, match=r"Unknown choice 'gradien'; did you mean 'gradient'\?"):
        group_by(table, "gradien")
    with pytest.raises(ValueError, match=r"There is no trial 009 in made. Its trials: 000 to 005."):
        pick(table, [0, 9])
    assert main(["small", "--runs", str(toy_runs), "--by", "lr", "--trials", "0", "1"]) == 2
    assert "Give one of them" in capsys.readouterr().err
