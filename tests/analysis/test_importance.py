"""Importance: a parameter that explains everything is found, shuffled scores explain nothing, and few trials get no answer."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from analysis.anova import ALL, MIN_TRIALS, branches, fanova, ped_anova, sample
from analysis.forest import strongest_interaction
from analysis.importance import importances, main, report
from analysis.importance_plots import draw_marginals, draw_shares
from analysis.table import Table

Capture = pytest.CaptureFixture[str]
Made = Callable[..., Table]


def of(table: Table, target: str = "score") -> object:
    return sample(table, ALL, table.trials, target, 1)


def test_a_parameter_that_explains_everything_has_importance_1(made_up: Made) -> None:
    known = of(made_up(36, lambda params, _: params["dropout"]))
    for found in (ped_anova(known), fanova(known)):
        assert found.doubt == ""
        assert found.shares[0].path == "dropout"
        assert found.shares[0].share > 0.9
        assert found.num_trials == 36
    assert ped_anova(known).shares[0].matters
    assert not any(share.matters for share in ped_anova(known).shares[1:])


def test_a_parameter_of_one_branch_is_found_within_it_and_overall(made_up: Made) -> None:
    table = made_up(60, lambda params, _: params.get("gradient/gradvac/beta", 0.3))
    groups = branches(table)
    assert list(groups) == ["gradient=gradvac"]
    within = fanova(sample(table, "gradient=gradvac", groups["gradient=gradvac"], "score", 1))
    assert (within.shares[0].path, within.doubt, within.num_trials) == ("gradient/gradvac/beta", "", 20)
    assert within.shares[0].share > 0.9
    overall = ped_anova(of(table))
    assert "gradient/gradvac/beta" in [share.path for share in overall.shares if share.matters]


@pytest.mark.parametrize("seed", range(3))
def test_of_scores_that_no_parameter_moves_nothing_is_said(made_up: Made, seed: int) -> None:
    noise = iter(np.random.default_rng(seed).random(36))
    known = of(made_up(36, lambda *_: float(next(noise))))
    assert ped_anova(known).doubt.startswith("cannot say")
    assert fanova(known).doubt.startswith("cannot say")


def test_few_trials_or_equal_scores_get_a_reason_and_no_figure(made_up: Made) -> None:
    few = ped_anova(of(made_up(MIN_TRIALS - 1, lambda params, _: params["dropout"])))
    assert few.doubt == "not enough trials to say: 9 at rung 1, 10 are needed"
    assert few.shares == []
    assert fanova(of(made_up(12, lambda *_: 0.5))).doubt == "nothing to explain: all trials have the same value"


def test_the_pair_that_interacts_is_found_and_that_of_a_sum_is_not(made_up: Made) -> None:
    def strongest(table: Table) -> object:
        known = of(table)
        parameters = [parameter for parameter in known.parameters if "beta" not in parameter.path]
        return strongest_interaction(known.trials, parameters, known.values)

    def crossed(params: dict[str, float], _: object) -> float:
        return params["dropout"] * (1 if params["gradient"] == "sum" else -1)

    pair = strongest(made_up(60, crossed))
    assert ({pair.first, pair.second}, pair.is_certain) == ({"dropout", "gradient"}, True)
    assert not strongest(made_up(60, lambda params, _: params["dropout"] + np.log10(params["optimizer/lr"]) / 3)).is_certain


def test_the_report_names_rung_and_trials_and_fits_80_columns(made_up: Made) -> None:
    table = made_up(30, lambda params, _: params["dropout"], sts=lambda params, _: -params["dropout"])
    found = importances(table, targets=["score", "sts"])
    text = report(found)
    assert text[0].startswith("score at rung 1, 30 trials: ")
    assert any("| dropout" in line and "matters" in line for line in text)
    assert any("gradient=gradvac" in line for line in text)
    assert max(map(len, text)) <= 80
    plot = draw_shares(found.overall, found.facts)
    assert len(plot.figure.axes) == len(found.overall) == 2
    assert {row["target"] for row in plot.rows} == {"score", "sts"}
    marginals = draw_marginals(found.samples[0], found.facts)
    assert [axes.get_xlabel() for axes in marginals.figure.axes] == [
        "optimizer/lr (log scale)", "dropout (value)", "gradient (choice)", "gradient/gradvac/beta (value)"
    ]  # fmt: skip
    assert len(marginals.rows) == 30


def test_a_failed_and_a_running_trial_count_at_the_rungs_that_they_reached(made_up: Made) -> None:
    table = made_up(12, lambda params, _: params["dropout"])
    trials = [replace(table.trials[0], status="failed"), replace(table.trials[1], evaluations=[]), *table.trials[2:]]
    assert ped_anova(of(replace(table, trials=trials))).num_trials == 11


def test_a_search_of_few_trials_gets_sentences_and_figures(toy_runs: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["small", "--runs", str(toy_runs), "--to", str(tmp_path), "--formats", "svg"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("small: which rate?\n")
    assert "Not enough trials to say: 4 at rung 3, 10 are needed." in output
    assert f"figures   {tmp_path}" in output
    assert ElementTree.parse(tmp_path / "marginals.svg").getroot().tag.endswith("svg")
    with (tmp_path / "marginals.csv").open(encoding="utf-8") as file:
        assert sorted(row["trial"] for row in csv.DictReader(file)) == ["0", "1", "2", "3"]


def test_what_cannot_be_answered_is_refused_in_a_sentence(toy_runs: Path, tmp_path: Path, capsys: Capture) -> None:
    place = ["--runs", str(toy_runs), "--to", str(tmp_path)]
    assert main(["small", *place, "--rung", "2"]) == 2
    assert "No trial was evaluated at rung 2. Known: 1, 3." in capsys.readouterr().err
    assert main(["small", *place, "--target", "stss"]) == 2
    assert "Unknown metric 'stss'; did you mean 'sts'?" in capsys.readouterr().err
