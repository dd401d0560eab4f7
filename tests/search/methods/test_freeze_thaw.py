"""Freeze-thaw: the forecast of a trial's last score, and what a free slot continues."""

from __future__ import annotations

import math

import numpy as np
import pytest

from search.methods.curve_model import SHRINKAGE, CurveModel, chance, expected_gain
from search.methods.decisions import Arrival, Scheduler
from search.methods.freeze_thaw import FreezeThaw
from search.methods.halving import expected_full_trials

RUNGS = (1, 2, 3)
ALL = range(100)  # candidates


def freeze_thaw(num_trials: int) -> Scheduler:
    return FreezeThaw().build(RUNGS, num_trials)


def enter(scheduler: Scheduler, number: int, rung: int, score: float, seconds: float = 0.0, exempt: bool = False) -> str:
    return scheduler.decide(Arrival(number, "multitask", exempt, rung, score, {}, seconds or 10.0 * rung))


# ----------------------------------------------------------------------------------------------------------- the forecast


def last(model: CurveModel, place: int, group: str, score: float) -> tuple[float, float]:
    """The mean and the deviation of one trial's last score."""
    [mean], [deviation] = model.last([(place, group, score)])
    return float(mean), float(deviation)


def test_the_expected_improvement_of_a_normal_score_has_its_known_values() -> None:
    mean, deviation = np.array([0.5, 0.9, 0.1]), np.array([0.2, 1e-6, 1e-3])
    assert expected_gain(mean, deviation, 0.5) == pytest.approx([0.2 / math.sqrt(2 * math.pi), 0.4, 0.0])
    random = np.random.default_rng(0).normal(0.5, 0.2, 400_000)
    assert expected_gain(mean, deviation, 0.6)[0] == pytest.approx(np.maximum(random - 0.6, 0).mean(), rel=0.02)
    assert chance(mean, deviation, 0.6)[0] == pytest.approx((random > 0.6).mean(), rel=0.02)


def test_a_forecast_adds_the_growth_of_the_steps_that_are_left() -> None:
    model = CurveModel(3)
    for i in range(400):
        first = 0.4 + 0.2 * (i % 2)
        model.enter_first(first)
        model.enter_step(0, "multitask", first, first + 0.1)
        model.enter_step(1, "multitask", first + 0.1, first + 0.15)
    mean, deviation = last(model, 0, "multitask", 0.6)
    assert mean == pytest.approx(0.75, abs=2e-3)
    assert deviation < 0.02
    assert last(model, 2, "multitask", 0.7) == (0.7, 1e-6)


def test_scores_that_drift_to_their_mean_are_forecast_to_do_so() -> None:
    model, random = CurveModel(2), np.random.default_rng(0)
    for _ in range(500):
        quality = random.normal(0.5, 0.1)
        first, second = quality + random.normal(0, [0.1, 0.1])
        model.enter_first(first)
        model.enter_step(0, "multitask", first, second)
    mean, deviation = last(model, 0, "multitask", 0.7)
    assert mean == pytest.approx(0.6, abs=0.02)  # half of what is above the mean is noise
    assert deviation == pytest.approx(math.sqrt(0.5 * 0.1**2 + 0.1**2), rel=0.1)


def test_two_steps_are_forecast_as_one_after_the_other() -> None:
    model, random = CurveModel(3), np.random.default_rng(0)
    curves = np.cumsum(random.normal([0.4, 0.2, 0.1], [0.1, 0.05, 0.02], (2000, 3)), axis=1)
    curves[:, 2] -= 0.5 * (curves[:, 1] - 0.6)
    for first, second, third in curves.tolist():
        model.enter_first(first)
        model.enter_step(0, "multitask", first, second)
        model.enter_step(1, "multitask", second, third)
    # the second score is .7 on average for a first one of .5; of what is above .6 half is lost
    mean, deviation = last(model, 0, "multitask", 0.5)
    assert mean == pytest.approx(0.75, abs=0.01)
    assert deviation == pytest.approx(math.hypot(0.5 * 0.05, 0.02), rel=0.05)
    assert model.last_of_new() == pytest.approx((curves[-32:, 0].mean() / 2 + 0.5, math.hypot(0.05, 0.025, 0.02)), rel=0.2)


def test_a_group_that_grows_faster_has_an_offset_that_few_trials_do_not_prove() -> None:
    model = CurveModel(2)
    for _ in range(50):
        model.enter_step(0, "fast", 0.5, 0.7)
        model.enter_step(0, "slow", 0.5, 0.5)
    model.enter_step(0, "once", 0.5, 0.9)
    fast, slow, once = (last(model, 0, group, 0.5)[0] for group in ("fast", "slow", "once"))
    assert (fast, slow) == pytest.approx((0.7, 0.5), abs=0.01)
    common, _ = last(model, 0, "never seen", 0.5)
    assert once == pytest.approx(common + (0.9 - common) / (1 + SHRINKAGE))


@pytest.mark.parametrize("num", [3, 6, 30])
def test_a_forecast_from_few_trials_is_as_uncertain_as_it_is_wrong(num: int) -> None:
    """The deviation is that of the errors, a third more at most, and one in 20 at most is too low by twice as much."""
    random, z = np.random.default_rng(0), []
    for _ in range(400):
        model, scores = CurveModel(3), random.normal([0.5, 0.1, 0.1], [0.1, 0.03, 0.03], (num + 1, 3)).cumsum(axis=1)
        for first, second, third in scores[:num].tolist():
            model.enter_first(first)
            model.enter_step(0, "multitask", first, second)
            model.enter_step(1, "multitask", second, third)
        mean, deviation = last(model, 0, "multitask", float(scores[num, 0]))
        z.append((scores[num, 2] - mean) / deviation)
    assert 0.6 < np.std(z) < 1.15
    assert np.mean(np.array(z) > 2) < 0.05


def test_a_stage_that_is_new_at_a_step_adds_what_groups_differ_by() -> None:
    model = CurveModel(3)
    for i in range(40):
        group, growth = ("fast", "slow")[i % 2], (0.2, 0.0)[i % 2]
        model.enter_first(0.5)
        model.enter_step(0, group, 0.5, 0.5)
        model.enter_step(1, group, 0.5, 0.5 + growth)
    assert last(model, 1, "new", 0.5)[1] > 0.09 > 0.05 > last(model, 1, "fast", 0.5)[1]


def test_what_is_unknown_is_uncertain() -> None:
    known, unknown = CurveModel(3), CurveModel(3)
    for first in (0.4, 0.6):
        for model in (known, unknown):
            model.enter_first(first)
        known.enter_step(0, "multitask", first, first + 0.1)
    assert last(known, 0, "multitask", 0.5)[1] < last(unknown, 0, "multitask", 0.5)[1]
    assert unknown.last_of_new()[1] > last(unknown, 0, "multitask", 0.5)[1]


# -------------------------------------------------------------------------------------------------------------- the choice


def seasoned(num_trials: int) -> Scheduler:
    """A scheduler that has seen five trials to the end: from .4 to .6 on, they grew by .05 and .15, in either order."""
    scheduler = freeze_thaw(num_trials)
    for number in range(5):
        first, growth = 0.4 + 0.05 * number, (0.05, 0.15)[number % 2]
        for rung, score in zip(RUNGS, (first, first + growth, first + 0.2), strict=True):
            enter(scheduler, number, rung, score, exempt=True)
    return scheduler


def test_the_most_promising_trial_continues_once_all_have_begun() -> None:
    scheduler = seasoned(8)
    assert [enter(scheduler, number, 1, score) for number, score in ((5, 0.43), (6, 0.44))] == ["PAUSE", "PAUSE"]
    assert scheduler.choose(True, ALL) is None  # others have begun better
    assert enter(scheduler, 7, 1, 0.435) == "PAUSE"
    assert scheduler.choose(False, {5, 7}) == 7  # for the more promising one there is no time
    assert scheduler.choose(False, ALL) == 6
    assert scheduler.verdict(6) == "CONTINUE"
    assert scheduler.choose(False, ALL) == 5  # for a third slot


def test_the_first_trials_run_to_the_end_so_that_others_can_be_compared() -> None:
    scheduler = freeze_thaw(20)
    assert [enter(scheduler, 0, rung, 0.5 + 0.1 * rung) for rung in RUNGS] == ["CONTINUE"] * 3


def test_new_trials_are_not_begun_without_end() -> None:
    """A new trial is charged as the others are: its first point, and what follows with its chance to become the best."""
    random, rungs = np.random.default_rng(0), tuple(range(1, 10))
    scheduler = FreezeThaw().build(rungs, 100)
    quality, reached = random.normal(0.5, 0.1, 100), [0] * 100
    begun = 0
    while 9 not in reached:
        number = scheduler.choose(True, ALL)
        number, begun = (begun, begun + 1) if number is None else (number, begun)
        while scheduler.verdict(number) == "CONTINUE" and reached[number] < 9:
            reached[number] += 1
            enter(scheduler, number, reached[number], quality[number] + 0.02 * reached[number] + float(random.normal(0, 0.03)))
    assert begun <= 10


def test_a_trial_that_is_the_most_promising_at_its_own_point_does_not_pause() -> None:
    scheduler = freeze_thaw(2)
    enter(scheduler, 0, 1, 0.5)
    assert enter(scheduler, 1, 1, 0.8) == "CONTINUE"
    assert enter(scheduler, 1, 2, 0.85) == "CONTINUE"


def test_of_two_equal_trials_the_cheaper_one_continues() -> None:
    scheduler = freeze_thaw(2)
    enter(scheduler, 0, 1, 0.5, seconds=30.0)
    assert enter(scheduler, 1, 1, 0.5, seconds=10.0) == "CONTINUE"


def test_a_trial_without_a_chance_is_stopped_and_a_baseline_never() -> None:
    scheduler = freeze_thaw(12)
    for number in range(4):
        for rung in RUNGS:
            enter(scheduler, number, rung, 0.6 + 0.1 * rung + 0.01 * number, exempt=True)
    assert enter(scheduler, 4, 1, 0.1) == "STOP"
    assert scheduler.law == "its chance to become the best is below 2 %"
    assert enter(scheduler, 5, 1, 0.1, exempt=True) == "CONTINUE"
    assert enter(scheduler, 6, 1, math.nan) == "STOP"
    assert scheduler.choose(False, ALL) is None


def test_a_trial_whose_next_stage_nobody_has_completed_is_not_stopped() -> None:
    for group, decision in (("multitask", "STOP"), ("para_first stage 0", "PAUSE")):
        scheduler = freeze_thaw(12)
        for number in range(4):
            for rung in RUNGS:
                enter(scheduler, number, rung, 0.6 + 0.1 * rung + 0.01 * number, exempt=True)
        assert scheduler.decide(Arrival(4, group, False, 1, 0.1, {}, 10.0)) == decision


def test_a_trial_counts_with_its_best_evaluation() -> None:
    """It falls at its end, and the search keeps the model of its second point."""
    scheduler = freeze_thaw(8)
    for number in range(4):
        for rung, score in zip(RUNGS, (0.4, 0.9, 0.6), strict=True):
            enter(scheduler, number, rung, score + 0.001 * number, exempt=True)
    assert enter(scheduler, 4, 1, 0.4) != "STOP"
    assert enter(scheduler, 4, 2, 0.65) == "STOP"
    assert scheduler.forecasts() == pytest.approx({4: 0.65}, abs=0.02)


def test_a_trial_that_failed_is_not_chosen() -> None:
    scheduler = freeze_thaw(2)
    enter(scheduler, 0, 1, 0.5)
    scheduler.lost(0)
    assert scheduler.choose(False, ALL) is None


def test_points_that_are_entered_again_in_their_order_give_the_same_state() -> None:
    random, scheduler, again = np.random.default_rng(0), freeze_thaw(40), freeze_thaw(40)
    qualities = random.normal(0.5, 0.2, 40).tolist()
    arrivals: list[Arrival] = []
    reached = [0] * 40
    begun = 0
    for _ in range(30):
        number = scheduler.choose(True, ALL)
        number, begun = (begun, begun + 1) if number is None else (number, begun)
        while scheduler.verdict(number) == "CONTINUE" and reached[number] < 3:
            reached[number] += 1
            score = 0.1 * reached[number] + qualities[number] + float(random.normal(0, 0.02))
            arrivals.append(Arrival(number, "multitask", False, reached[number], score, {}, 10.0 * reached[number]))
            scheduler.decide(arrivals[-1])
    for arrival in (*arrivals, *arrivals[:5]):
        again.decide(arrival)
    verdicts = [[of.verdict(number) for number in range(begun)] for of in (scheduler, again)]
    assert {"STOP", "PAUSE", "CONTINUE"} == set(verdicts[0])
    assert verdicts[0] == verdicts[1]
    assert again.choose(False, ALL) == scheduler.choose(False, ALL) is not None


def test_a_trial_that_trained_on_is_judged_by_its_new_point() -> None:
    """A resumed search enters points without knowing which trials were chosen, and may find one hopeless that was training"""
    scheduler = freeze_thaw(12)
    for number in range(4):
        for rung in RUNGS:
            enter(scheduler, number, rung, 0.6 + 0.1 * rung + 0.01 * number, exempt=True)
    assert enter(scheduler, 4, 1, 0.1) == "STOP"
    enter(scheduler, 4, 2, 0.95)
    assert scheduler.verdict(4) != "STOP"


def test_freeze_thaw_is_expected_to_cost_less_than_full_trials() -> None:
    rungs = tuple(range(1, 10))
    assert 40 / 9 < expected_full_trials(40, 0, 1, rungs, FreezeThaw()) < 20
    assert expected_full_trials(3, 3, 1, rungs, FreezeThaw()) == 3
