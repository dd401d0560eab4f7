"""The trial schedulers, without a cluster: points go in, CONTINUE, STOP or PAUSE comes out."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
from ray.tune.schedulers import ASHAScheduler

from search.methods.asha import Asha, RungScheduler
from search.methods.decisions import Arrival, Scheduler, of_tasks, peers
from search.methods.halving import expected_ends, expected_full_trials
from search.methods.promotion import Promotion
from search.methods.top_k import TopK, TopKScheduler
from search.methods.trial_schedulers import NoStopping

RUNGS = (1, 3, 9)


def enter(
    scheduler: Scheduler, number: int, score: float, rung: int = 1, recipe: str = "multitask", exempt: bool = False
) -> str:
    return scheduler.decide(Arrival(number, recipe, exempt, rung, score))


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


def test_trials_of_a_recipe_that_are_in_different_stages_at_a_rung_are_not_compared() -> None:
    """At 3/9 a trial with a share of .4 for Para has not seen STS yet; one with a share of .2 trains all tasks by then"""
    scheduler, recipe = RungScheduler(RUNGS), "single_task-para+multitask"
    for number in (0, 1):
        scheduler.decide(Arrival(number, peers(recipe, {"stage": 0}), False, 1, 0.4))
    scheduler.decide(Arrival(0, peers(recipe, {"stage": 1}), False, 3, 0.7))
    assert scheduler.decide(Arrival(1, peers(recipe, {"stage": 0}), False, 3, 0.5)) == "CONTINUE"
    scheduler.decide(Arrival(2, peers(recipe, {"stage": 1}), False, 1, 0.6))
    assert scheduler.decide(Arrival(2, peers(recipe, {"stage": 1}), False, 3, 0.6)) == "STOP"
    assert scheduler.decide(Arrival(1, peers(recipe, {"stage": 0}), False, 3, 0.5)) == "CONTINUE"  # entered again


def test_a_baseline_is_never_stopped_but_its_points_count() -> None:
    scheduler = RungScheduler(RUNGS)
    enter(scheduler, 0, 0.9)
    assert enter(scheduler, 1, 0.2, exempt=True) == "CONTINUE"
    # among 0.9 and 0.2 the cutoff is 0.667; without the baseline it were 0.9
    assert enter(scheduler, 2, 0.7) == "CONTINUE"


def test_a_point_entered_again_counts_once() -> None:
    scheduler = RungScheduler(RUNGS)
    enter(scheduler, 0, 0.2)
    enter(scheduler, 0, 0.9)  # told again after a resume: its first value stays
    assert enter(scheduler, 1, 0.3) == "CONTINUE"
    assert enter(scheduler, 0, 0.9, rung=3) == "CONTINUE"


def test_a_rung_holds_the_value_of_its_point_not_the_best_so_far() -> None:
    scheduler = RungScheduler(RUNGS)
    for number, (first, second) in enumerate(((0.9, 0.5), (0.9, 0.6))):
        enter(scheduler, number, first, rung=1)
        enter(scheduler, number, second, rung=3)
    enter(scheduler, 2, 0.95, rung=1)
    assert enter(scheduler, 2, 0.55, rung=3) == "STOP"  # the cutoff is 0.567, although its best is 0.95
    enter(scheduler, 3, 0.95, rung=1)
    assert enter(scheduler, 3, 0.58, rung=3) == "CONTINUE"


def test_the_last_point_stops_nobody_from_outside() -> None:
    scheduler = RungScheduler(RUNGS)
    for number, score in enumerate((0.9, 0.1)):
        for rung in (1, 3):
            enter(scheduler, number, 0.5, rung=rung)
        assert enter(scheduler, number, score, rung=9) == "CONTINUE"


def test_a_single_rung_is_no_halving() -> None:
    scheduler = RungScheduler((1,))
    assert {enter(scheduler, number, score) for number, score in enumerate((0.9, 0.1, 0.5))} == {"CONTINUE"}


@pytest.mark.parametrize("rungs", [(1, 3, 9), (1, 2, 4, 8), (3, 9, 27), (1, 3, 9, 27, 81)])
def test_decisions_are_those_of_rays_own_scheduler(rungs: tuple[int, ...]) -> None:
    @dataclass(frozen=True)
    class Entry:
        trial_id: str

    grace, reduction = rungs[0], rungs[1] // rungs[0]
    theirs: Any = ASHAScheduler("rung", "score", "max", max_t=rungs[-1], grace_period=grace, reduction_factor=reduction)
    ours, random, alive = RungScheduler(rungs), np.random.default_rng(0), dict.fromkeys(range(60), 0)
    for number in alive:
        theirs.on_trial_add(None, Entry(str(number)))
    decisions = []
    while alive:  # a random trial reaches its next rung, as asynchronous workers do
        number = int(random.choice(list(alive)))
        rung, score = rungs[alive[number]], float(random.random())
        decision = enter(ours, number, score, rung)
        theirs_decision = theirs.on_trial_result(None, Entry(str(number)), {"rung": rung, "score": score})
        last = rung == rungs[-1]
        assert decision == ("CONTINUE" if last else theirs_decision)
        decisions.append(decision)
        alive[number] += 1
        if last or decision == "STOP":
            del alive[number]
    assert decisions.count("STOP") > 20


def test_at_equal_cost_a_dear_trial_must_have_reached_what_the_others_had_in_its_time() -> None:
    """The dear one is the best of its rung, but by then the others had trained twice as far"""

    def decisions(compare_at: Literal["examples", "cost"]) -> list[str]:
        scheduler = Asha(compare_at=compare_at).build(RUNGS, 3)
        for number, scores in enumerate(((0.3, 0.7), (0.35, 0.75))):
            for rung, score in zip((1, 3), scores, strict=True):
                scheduler.decide(Arrival(number, "multitask", False, rung, score, {}, 10.0 * rung))
        dear = scheduler.decide(Arrival(2, "multitask", False, 1, 0.4, {}, 20.0))
        cheap = scheduler.decide(Arrival(3, "multitask", False, 1, 0.4, {}, 5.0))
        return [dear, cheap]

    assert decisions("examples") == ["CONTINUE", "CONTINUE"]
    # after 20 s the others had .5 and .55, half way between two points; after 5 s they had none
    assert decisions("cost") == ["STOP", "CONTINUE"]


# ---------------------------------------------------------------------------------------------------------------- top_k


def top_k(k: int, num_trials: int) -> Scheduler:
    return TopK(k=k).build(RUNGS, num_trials)


def test_top_k_chooses_once_every_trial_has_been_at_the_first_rung() -> None:
    scheduler = top_k(2, 4)
    scores = (0.5, 0.8, 0.7, 0.6)
    assert [enter(scheduler, number, score) for number, score in enumerate(scores)] == ["PAUSE", "PAUSE", "PAUSE", "STOP"]
    assert [scheduler.verdict(number) for number in range(4)] == ["STOP", "CONTINUE", "CONTINUE", "STOP"]


def test_a_trial_that_k_others_beat_is_stopped_without_waiting_for_the_rest() -> None:
    scheduler = top_k(2, 9)
    assert [enter(scheduler, number, score) for number, score in enumerate((0.5, 0.6, 0.4, 0.7))][2:] == ["STOP", "PAUSE"]
    assert [scheduler.verdict(number) for number in range(4)] == ["STOP", "PAUSE", "STOP", "PAUSE"]


def test_top_k_does_not_wait_for_a_trial_that_failed() -> None:
    scheduler = top_k(1, 2)
    assert enter(scheduler, 0, 0.5) == "PAUSE"
    scheduler.lost(1)
    assert scheduler.verdict(0) == "CONTINUE"


def test_a_baseline_neither_waits_nor_takes_a_place_of_the_k() -> None:
    scheduler = top_k(1, 3)
    assert enter(scheduler, 0, 0.9, exempt=True) == "CONTINUE"
    assert enter(scheduler, 1, 0.2) == "PAUSE"
    assert enter(scheduler, 2, 0.1) == "STOP"
    assert scheduler.verdict(1) == "CONTINUE"


def test_who_was_chosen_runs_to_the_end_whatever_comes() -> None:
    scheduler = top_k(1, 2)
    enter(scheduler, 0, 0.5)
    enter(scheduler, 1, 0.4)
    assert enter(scheduler, 0, 0.1, rung=3) == "CONTINUE"
    more = top_k(1, 4)  # resumed with more trials, two of which are better
    for number, rung, score in ((0, 1, 0.5), (1, 1, 0.4), (0, 3, 0.1), (2, 1, 0.8), (3, 1, 0.9)):
        enter(more, number, score, rung=rung)
    assert [more.verdict(number) for number in range(4)] == ["CONTINUE", "STOP", "STOP", "CONTINUE"]


def test_the_best_k_do_not_depend_on_the_order_of_arrival() -> None:
    scores = {0: 0.5, 1: 0.7, 2: 0.7, 3: 0.6, 4: 0.7}  # of three equal ones the lower numbers are chosen
    for order in itertools.permutations(scores):
        scheduler = top_k(2, 5)
        for number in order:
            enter(scheduler, number, scores[number])
        assert [number for number in scores if scheduler.verdict(number) == "CONTINUE"] == [1, 2]


# ----------------------------------------------------------------------------------------------------------------- veto


def test_with_a_veto_a_trial_that_is_good_at_any_one_task_continues() -> None:
    for veto, decisions in ((False, ["STOP", "STOP"]), (True, ["CONTINUE", "STOP"])):
        scheduler = Asha(veto=veto).build(RUNGS, 3)
        scheduler.decide(Arrival(0, "multitask", False, 1, 0.6, {"dev/sst": 0.5, "dev/sts": 0.7}))
        one_sided, worse = {"dev/sst": 0.55, "dev/sts": 0.1}, {"dev/sst": 0.4, "dev/sts": 0.3}
        found = [scheduler.decide(Arrival(i, "multitask", False, 1, 0.3, tasks)) for i, tasks in ((1, one_sided), (2, worse))]
        assert found == decisions


def test_the_tasks_of_a_record_are_its_metrics_without_the_overall_scores() -> None:
    record = {"kind": "dev", "rung": 1, "dev/score": 0.5, "dev/norm": 0.5, "dev/mean": 0.4, "dev/sst": 0.3, "dev/mine": 0.2}
    assert of_tasks(record) == {"dev/sst": 0.3, "dev/mine": 0.2}


# ------------------------------------------------------------------------------------------------------------ promotion


def promotion(num_trials: int) -> Scheduler:
    return Promotion().build(RUNGS, num_trials)


def test_a_trial_is_promoted_once_it_is_among_the_best_third_of_its_rung() -> None:
    scheduler = promotion(30)
    scores = (0.5, 0.8, 0.7, 0.9, 0.6, 0.65)
    # of three the best one is 001; of six the best two are 003 and 001
    decisions = [enter(scheduler, number, score) for number, score in enumerate(scores)]
    assert decisions == ["PAUSE", "PAUSE", "PAUSE", "CONTINUE", "PAUSE", "PAUSE"]
    assert [scheduler.verdict(number) for number in range(6)] == ["PAUSE", "CONTINUE", "PAUSE", "CONTINUE", "PAUSE", "PAUSE"]


def test_a_paused_trial_that_can_no_longer_be_among_the_best_is_stopped_at_once() -> None:
    scheduler = promotion(6)  # two of six will continue
    for number, score in enumerate((0.5, 0.6, 0.7)):
        enter(scheduler, number, score)
    assert [scheduler.verdict(number) for number in range(3)] == ["STOP", "PAUSE", "CONTINUE"]


def test_once_a_rung_is_complete_its_other_trials_are_stopped_and_a_group_of_two_has_a_winner() -> None:
    scheduler = promotion(3)
    enter(scheduler, 0, 0.5, recipe="a")
    enter(scheduler, 1, 0.6, recipe="a")
    assert [scheduler.verdict(number) for number in range(2)] == ["STOP", "PAUSE"]  # the third may be of this group
    enter(scheduler, 2, 0.1, recipe="b")
    assert [scheduler.verdict(number) for number in range(3)] == ["STOP", "CONTINUE", "CONTINUE"]


def test_promotion_does_not_wait_for_failed_trials() -> None:
    scheduler = promotion(3)
    enter(scheduler, 0, 0.5)
    enter(scheduler, 1, 0.6)
    scheduler.lost(2)
    assert [scheduler.verdict(number) for number in range(2)] == ["STOP", "CONTINUE"]
    scheduler.lost(1)  # on its way: the rung above has nobody to wait for
    assert scheduler.verdict(0) == "STOP"


def test_promotion_never_pauses_a_baseline_but_its_points_count() -> None:
    scheduler = promotion(9)
    assert enter(scheduler, 0, 0.1, exempt=True) == "CONTINUE"
    assert enter(scheduler, 1, 0.5) == "PAUSE"
    assert enter(scheduler, 2, 0.4) == "PAUSE"
    assert scheduler.verdict(1) == "CONTINUE"  # the best of three


@pytest.mark.parametrize("num_trials", [1, 2, 5, 12, 40])
def test_a_search_with_promotion_ends_with_every_trial_decided(num_trials: int) -> None:
    """In any order of arrival, with failures: each trial has ended, at least one at the last rung."""
    for seed in range(10):
        random, scheduler = np.random.default_rng(seed), promotion(num_trials)
        last, lost = dict.fromkeys(range(num_trials), 0), set()
        while training := [n for n in last if n not in lost and last[n] != 9 and scheduler.verdict(n) == "CONTINUE"]:
            number = int(random.choice(training))
            if random.random() < 0.05 and num_trials > 2:
                scheduler.lost(number)
                lost.add(number)
                continue
            last[number] = next(rung for rung in RUNGS if rung > last[number])
            enter(scheduler, number, float(random.random()), last[number], recipe=str(number % 2), exempt=number == 0)
        assert {scheduler.verdict(n) for n in last if n not in lost and last[n] != 9} <= {"STOP"}
        assert 9 in last.values() or lost


def test_points_entered_again_in_the_order_of_arrival_give_the_same_verdicts() -> None:
    random, scheduler, points = np.random.default_rng(0), promotion(20), []
    last = dict.fromkeys(range(20), 0)
    while training := [n for n in last if last[n] != 9 and scheduler.verdict(n) == "CONTINUE"]:
        number = int(random.choice(training))
        last[number] = next(rung for rung in RUNGS if rung > last[number])
        points.append((number, "multitask", False, last[number], float(random.random())))
        scheduler.decide(Arrival(*points[-1]))
        again = promotion(20)
        for point in points:
            again.decide(Arrival(*point))
        assert [again.verdict(n) for n in last] == [scheduler.verdict(n) for n in last]


# ----------------------------------------------------------------------------------------------------------------- cost


@pytest.mark.parametrize(("num_recipes", "full_trials"), [(1, 5.2), (2, 6.2), (4, 7.7), (6, 8.8)])
def test_the_expected_cost_of_twelve_trials_grows_with_the_recipes(num_recipes: int, full_trials: float) -> None:
    assert expected_full_trials(12, 0, num_recipes, RUNGS, Asha()) == pytest.approx(full_trials, abs=0.6)


def test_promotion_is_expected_to_continue_a_third_of_each_rung() -> None:
    assert expected_ends(27, 0, 1, RUNGS, Promotion()) == pytest.approx([18, 6, 3], abs=3)


@pytest.mark.parametrize("trial_scheduler", [Asha(), Promotion(), TopK()])
def test_baselines_cost_full_trials(trial_scheduler: Asha | Promotion | TopK) -> None:
    assert expected_full_trials(5, 5, 1, RUNGS, trial_scheduler) == 5


def test_top_k_ends_k_trials_and_the_baselines_at_the_last_rung_and_all_others_at_the_first() -> None:
    assert expected_ends(12, 2, 3, RUNGS, TopK(k=3)) == [7, 0, 5]
    assert expected_ends(4, 2, 1, RUNGS, TopK(k=3)) == [0, 0, 4]


def test_stopped_trials_are_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each verdict of top_k looks at all trials, and a plan simulates a search fifty times."""
    asked = 0
    verdict = TopKScheduler.verdict

    def counted(self: TopKScheduler, number: int) -> str:
        nonlocal asked
        asked += 1
        return verdict(self, number)

    monkeypatch.setattr(TopKScheduler, "verdict", counted)
    expected_ends(200, 0, 1, RUNGS, TopK(k=3), repeats=1)
    assert asked < 200 * (2 + 3)  # its own, and those of the three that wait


def test_without_stopping_every_trial_runs_to_its_end() -> None:
    scheduler = NoStopping().build(RUNGS, 3)
    assert {enter(scheduler, number, score, rung) for number, score in enumerate((0.9, 0.1, 0.5)) for rung in RUNGS} == {
        "CONTINUE"
    }
    assert expected_full_trials(5, 0, 1, RUNGS, NoStopping()) == 5
