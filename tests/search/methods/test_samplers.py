"""Samplers that are seeded before each trial."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from search.methods.samplers import Gp, Random, Tpe


def suggested(sampler: optuna.samplers.BaseSampler, num_told: int = 0) -> list[float]:
    """Three suggestions of a study with `num_told` trials before them."""
    study = optuna.create_study(sampler=sampler)
    for i in range(num_told):
        study.add_trial(
            optuna.trial.create_trial(
                value=float(7 * i % 5), params={"x": i / 10}, distributions={"x": optuna.distributions.FloatDistribution(0, 1)}
            )
        )
    return [study.ask().suggest_float("x", 0, 1) for _ in range(3)]


@pytest.mark.parametrize("num_told", [0, 9], ids=["random start", "model"])
@pytest.mark.parametrize("setting", [Tpe(startup=4), Gp(startup=4), Random()], ids=["tpe", "gp", "random"])
def test_a_seeded_sampler_suggests_what_a_new_one_with_this_seed_does(setting: Any, num_told: int) -> None:
    """The generators that are seeded are private in Optuna 5.0; another version may keep them elsewhere."""
    used = setting.build(list, 0)
    first = suggested(used, num_told)
    setting.seed(used, 7)
    again = suggested(used, num_told)
    new = setting.build(list, 0)
    setting.seed(new, 7)
    assert again == suggested(new, num_told) != first


def test_a_configuration_is_repeated_twice_if_that_is_asked_for() -> None:
    sampler = Random(repeat_every=3).build(list, 0)
    study = optuna.create_study(sampler=sampler)
    points = []
    for number in range(12):
        Random().seed(sampler, number)
        trial = study.ask()
        points.append(trial.suggest_float("x", 0, 1))
        if number == 1:
            trial.set_user_attr("void", True)  # it never began, so it cannot be repeated
    assert [points.index(point) for point in points] == [0, 1, 0, 3, 4, 0, 6, 7, 3, 9, 10, 3]
