"""The rungs, without a cluster: points go in, STOP or CONTINUE comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from ray.tune.schedulers import ASHAScheduler

from search.rungs import RungScheduler, expected_full_trials

RUNGS = (1, 3, 9)


def enter(
    scheduler: RungScheduler, number: int, score: float, part: int = 1, recipe: str = "multitask", exempt: bool = False
) -> str:
    return scheduler.decide(number, recipe, exempt, part, score)


def test_a_trial_below_the_best_third_of_its_rung_is_stopped() -> None:
    scheduler = RungScheduler(RUNGS)
    # the cutoff is the 2/3 percentile of those before: none, 0.5, then 0.5 + 2/3 * 0.3 = 0.7, then 0.69 + 1/3 * 0.11 = 0.727
    decisions = [enter(scheduler, number, score) for number, score in enumerate((0.5, 0.8, 0.69, 0.73))]
    assert decisions == ["CONTINUE", "CONTINUE", "STOP", "CONTINUE"]


def test_each_recipe_has_rungs_of_its_own() -> None:
    scheduler = RungScheduler(RUNGS)
    enter(scheduler, 0, 0.9, recipe="multitask")
    assert enter(scheduler, 1, 0.1, recipe="linear_probe+multitask") == "CONTINUE"
    assert enter(scheduler, 2, 0.1, recipe="multitask") == "STOP"


def test_a_baseline_is_never_stopped_but_its_points_count() -> None:
    scheduler = RungScheduler(RUNGS)
    enter(scheduler, 0, 0.9)
    assert enter(scheduler, 1, 0.2, exempt=True) == "CONTINUE"
    # among 0.9 and 0.2 the cutoff is 0.667; without the baseline it were 0.9
    assert enter(scheduler, 2, 0.7) == "CONTINUE"


def test_a_trial_that_goes_on_under_a_new_id_of_rays_counts_once() -> None:
    @dataclass
    class RayTrial:
        trial_id: str

    def report(scheduler: RungScheduler, ray_id: str, number: int, part: int, score: float) -> str:
        result = {"number": number, "recipe": "multitask", "exempt": False, "part": part, "score": score}
        return scheduler.on_trial_result(None, RayTrial(ray_id), result)

    scheduler = RungScheduler(RUNGS)
    report(scheduler, "a", 0, 1, 0.2)
    report(scheduler, "b", 0, 1, 0.9)  # the same trial, told again after a resume: its first value stays
    assert report(scheduler, "c", 1, 1, 0.3) == "CONTINUE"
    assert report(scheduler, "d", 0, 3, 0.9) == "CONTINUE"


def test_a_rung_holds_the_value_of_its_point_not_the_best_so_far() -> None:
    scheduler = RungScheduler(RUNGS)
    for number, (first, second) in enumerate(((0.9, 0.5), (0.9, 0.6))):
        enter(scheduler, number, first, part=1)
        enter(scheduler, number, second, part=3)
    enter(scheduler, 2, 0.95, part=1)
    assert enter(scheduler, 2, 0.55, part=3) == "STOP"  # the cutoff is 0.567, although its best is 0.95
    enter(scheduler, 3, 0.95, part=1)
    assert enter(scheduler, 3, 0.58, part=3) == "CONTINUE"


def test_the_last_point_stops_nobody_from_outside() -> None:
    scheduler = RungScheduler(RUNGS)
    for number, score in enumerate((0.9, 0.1)):
        for part in (1, 3):
            enter(scheduler, number, 0.5, part=part)
        assert enter(scheduler, number, score, part=9) == "CONTINUE"


def test_a_single_rung_is_no_halving() -> None:
    scheduler = RungScheduler((1,))
    assert {enter(scheduler, number, score) for number, score in enumerate((0.9, 0.1, 0.5))} == {"CONTINUE"}


@pytest.mark.parametrize("rungs", [(1, 3, 9), (1, 2, 4, 8), (3, 9, 27), (1, 3, 9, 27, 81)])
def test_decisions_are_those_of_rays_own_scheduler(rungs: tuple[int, ...]) -> None:
    @dataclass(frozen=True)
    class Entry:
        trial_id: str

    grace, reduction = rungs[0], rungs[1] // rungs[0]
    theirs: Any = ASHAScheduler("part", "score", "max", max_t=rungs[-1], grace_period=grace, reduction_factor=reduction)
    ours, random, alive = RungScheduler(rungs), np.random.default_rng(0), dict.fromkeys(range(60), 0)
    for number in alive:
        theirs.on_trial_add(None, Entry(str(number)))
    decisions = []
    while alive:  # a random trial reaches its next rung, as asynchronous workers do
        number = int(random.choice(list(alive)))
        part, score = rungs[alive[number]], float(random.random())
        decision = enter(ours, number, score, part)
        theirs_decision = theirs.on_trial_result(None, Entry(str(number)), {"part": part, "score": score})
        last = part == rungs[-1]
        assert decision == ("CONTINUE" if last else theirs_decision)
        decisions.append(decision)
        alive[number] += 1
        if last or decision == "STOP":
            del alive[number]
    assert decisions.count("STOP") > 20


@pytest.mark.parametrize(("num_recipes", "full_trials"), [(1, 4.1), (2, 5.2), (4, 7.3), (6, 8.9)])
def test_the_expected_cost_of_twelve_trials_grows_with_the_recipes(num_recipes: int, full_trials: float) -> None:
    assert expected_full_trials(12, 0, num_recipes, RUNGS) == pytest.approx(full_trials, abs=0.6)


def test_baselines_cost_full_trials() -> None:
    assert expected_full_trials(5, 5, 1, RUNGS) == 5
