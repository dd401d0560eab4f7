"""Curves: rank correlations and costs with known answers, conflicts over time, and what cannot be said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.conflicts import conflicts, group_cosines
from analysis.curve_plots import draw_conflicts, draw_correlations, draw_curves, draw_losses
from analysis.curves import conflict_lines, curves, main, report
from analysis.rungs import compared_rung, correlation, rank_correlations, stops
from analysis.table import Table, Trial

Capture = pytest.CaptureFixture[str]
Made = Callable[..., Table]


def trial(number: int, scores: list[float], status: str = "completed", training: list[dict[str, float]] | None = None) -> Trial:
    """A trial with an evaluation per score, after 100 examples and 10 seconds each."""
    entries = [
        {"rung": i + 1, "examples": 100 * (i + 1), "seconds": 10.0 * (i + 1), "dev/score": score}
        for i, score in enumerate(scores)
    ]
    return Trial("s", number, status, None, "multitask", 10.0 * len(scores), 100 * len(scores), {}, entries, training or [])


def test_a_rung_that_orders_the_trials_as_the_end_does_has_correlation_1(made_up: Made) -> None:
    table = made_up(20, lambda params, _: params["dropout"], rungs=(1, 3, 9))
    found = [of for of in rank_correlations(table) if of.target == "score"]
    assert [(of.rung, of.last, of.num_trials) for of in found] == [(1, 9, 20), (3, 9, 20)]
    assert found[0].spearman == pytest.approx(1)
    assert found[0].kendall == pytest.approx(1)
    assert "Was rung 1 right? Yes" in "\n".join(report(curves(table)))


def test_a_rung_that_says_nothing_about_the_end_is_called_wrong(made_up: Made) -> None:
    table = made_up(60, lambda _, generator: generator.random(), rungs=(1, 9))
    assert "Was rung 1 right? No" in "\n".join(report(curves(table)))


def test_every_recipe_gets_an_answer_of_its_own(made_up: Made) -> None:
    table = made_up(20, lambda params, _: params["dropout"], rungs=(1, 9))
    few = [replace(trial, recipe="lp_ft") for trial in table.trials[:3]]
    said = " ".join(" ".join(report(curves(replace(table, trials=[*table.trials[3:], *few])))).split())
    assert f"Was rung 1 right for {table.trials[0].recipe}? Yes" in said
    assert "Was rung 1 right for lp_ft? Cannot say: 3 trials reached rung 9, 5 are needed." in said
    flat = made_up(20, lambda *_: 0.5, rungs=(1, 9))
    assert "Was rung 1 right? Cannot say: all scores are equal." in "\n".join(report(curves(flat)))


def test_the_interval_is_that_of_bonett_and_wright() -> None:
    x = np.arange(28.0)
    y = np.concatenate([x[::2], x[1::2]])
    r, low, high, _ = correlation(x, y)
    error = np.sqrt((1 + r**2 / 2) / 25)
    assert (low, high) == pytest.approx((np.tanh(np.arctanh(r) - 1.959964 * error), np.tanh(np.arctanh(r) + 1.959964 * error)))
    assert correlation(x[:4], y[:4]) is None
    assert correlation(x, np.zeros(28)) is None


def test_where_few_trials_reached_the_end_an_earlier_rung_stands_for_it() -> None:
    trials = [trial(i, [0.1 * i, 0.1 * i], "stopped") for i in range(5)] + [trial(9, [0.9, 0.9, 0.9])]
    assert compared_rung(trials) == 2
    assert compared_rung(trials[-1:]) == 3


def test_a_later_first_rung_costs_what_the_stopped_trials_would_have_trained_more() -> None:
    trials = [trial(0, [0.5, 0.6, 0.9]), trial(1, [0.7], "stopped"), trial(2, [0.4, 0.5], "stopped"), trial(3, [0.8], "failed")]
    first, second, third = stops(trials)
    assert (first.reached, first.stopped, first.extra_examples) == (4, [1], 0)
    assert (first.winner, first.rank) == (0, 3)
    assert (second.stopped, second.extra_examples, second.extra_seconds) == ([2], 100, 10.0)
    assert (third.rank, third.extra_examples, third.extra_seconds) == (1, 200 + 100, 30.0)


def test_a_later_rung_costs_each_trial_by_its_own_budget() -> None:
    short, long = trial(0, [0.5, 0.6]), trial(1, [0.4], "stopped")
    long.evaluations[0] |= {"examples": 400, "seconds": 80.0}
    _, second = stops([short, long])
    assert (second.extra_examples, second.extra_seconds) == (400, 80.0)


def test_conflicts_are_averaged_per_quarter_and_correlated_with_the_score() -> None:
    def records(share: float) -> list[dict[str, float]]:
        cosines = {25: -0.5, 50: -0.1, 75: 0.1, 100: 0.5}
        return [{"examples": at, "train/cosine_sst_sts": c, "train/conflicts_sst_sts": share} for at, c in cosines.items()]

    trials = [trial(i, [1 - i / 10], training=records(i / 10)) for i in range(6)]
    (found,) = conflicts([*trials, trial(9, [0.5])], 1)
    assert (found.pair, found.num_trials) == ("sst_sts", 6)
    assert found.cosines == pytest.approx([-0.5, -0.1, 0.1, 0.5])
    assert found.shares == pytest.approx([0.25] * 4)
    assert found.outcome[0] == pytest.approx(-1)


def test_cosines_per_group_weigh_stretches_by_their_examples_and_trials_equally(made_up: Made) -> None:
    def record(examples: int, **cosines: float) -> dict[str, float]:
        return {"examples": examples} | {f"train/group_cosine/sst_sts/{group}": value for group, value in cosines.items()}

    first = [record(100, low=0.3, high=-0.4), {"examples": 200, "train/sst_loss": 1.0}, record(300, low=0.0, high=-0.1)]
    trials = [trial(0, [0.5], training=first), trial(1, [0.6], training=[record(100, low=0.5)]), trial(2, [0.7])]
    wanted = {"low": {"sst_sts": pytest.approx(0.3)}, "high": {"sst_sts": pytest.approx(-0.2)}}
    assert group_cosines(trials) == wanted
    table = made_up(3, lambda params, _: params["dropout"], rungs=(1, 3))
    of_pair = {"examples": 100, "train/cosine_sst_sts": 0.1, "train/conflicts_sst_sts": 0.2}
    given = [replace(one, training=[of_pair | record(100, low=0.25)]) for one in table.trials]
    lines = conflict_lines(curves(replace(table, trials=given)))
    assert lines[-1].split() == ["|", "low", "|", "+.25", "|"]


def test_figures_hold_every_evaluation_and_every_record(made_up: Made) -> None:
    table = made_up(12, lambda params, _: params["dropout"], rungs=(1, 3))
    records = [{"examples": 50, "train/sst_loss": 0.7, "train/cosine_sst_sts": 0.2, "train/conflicts_sst_sts": 0.1}]
    table = replace(table, trials=[replace(one, training=records) for one in table.trials])
    plot = draw_curves(table)
    assert [axes.get_xlabel() for axes in plot.figure.axes] == ["examples shown"] * 3
    assert len(plot.rows) == 24
    assert len(draw_losses(table).rows) == 12
    assert [axes.get_ylabel() for axes in draw_conflicts(table).figure.axes] == ["mean cosine", "share of conflicting steps"]
    assert len(draw_correlations(rank_correlations(table), table).rows) == 3
    assert max(map(len, report(curves(table)))) <= 80


def test_a_search_gets_its_curves_from_its_name(toy_runs: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["small", "--runs", str(toy_runs), "--to", str(tmp_path), "--formats", "svg"]) == 0
    output = capsys.readouterr().out
    assert "Was rung 1 right? Cannot say: 4 trials reached rung 3, 5 are needed." in output
    assert "Conflicts between tasks: not recorded." in output
    assert {path.name for path in tmp_path.iterdir()} == {"curves.svg", "curves.csv", "losses.svg", "losses.csv"}


def test_a_search_of_one_trial_with_one_evaluation_gets_sentences(made_up: Made) -> None:
    text = report(curves(made_up(1, lambda params, _: params["dropout"])))
    assert "How well a rung predicts the end: cannot say, no trial has two evaluations." in text
