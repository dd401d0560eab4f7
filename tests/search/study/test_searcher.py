"""Between Ray and the study, without Ray: what it does is done by hand here, event by event, and a kill is to stop doing it."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from minbert_core.train.folder import read_records, state_file, write_records
from minbert_core.train.trial import save_snapshot
from search.methods.decisions import WAITS
from search.space.space import make_space
from search.study.failures import CONSTRAINT
from search.study.repair import repair
from search.study.retries import reopen_failed
from search.study.searcher import (
    DIED,
    NO_TIME,
    StopOnRequest,
    StudySearcher,
    TuneScheduler,
    failure_reason,
    seconds_to_next_point,
)
from search.study.study import Study
from search.study.trials import TrialResult

RUNGS = (1, 3, 9)
CONFIG: dict[str, Any] = {
    "data": "toy",
    "encoder": "tiny",
    "budget": {"examples": 900},
    "optimizer": {"lr": {"log_uniform": [1e-4, 1e-2]}},
}


class Heard:
    """A listener that notes what it is told."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def started(self, trial: TrialResult, resumed: bool) -> None:
        self.events.append(f"started {trial.number}" + " again" * resumed)

    def reported(self, trial: TrialResult, new: list[dict[str, Any]]) -> None:
        self.events.append(f"reported {trial.number} at {trial.rung}")
        assert new[-1] == trial.last

    def paused(self, trial: TrialResult, why: str) -> None:
        self.events.append(f"paused {trial.number} at {trial.rung}: {why}")
        assert trial.status == "running"

    def retried(self, trial: TrialResult, why: str) -> None:
        self.events.append(f"retried {trial.number} from {trial.rung}: {why}")
        assert trial.status == "running"

    def ended(self, trial: TrialResult) -> None:
        self.events.append(f"ended {trial.number} {trial.status}")


@dataclass
class Workers:
    """What happens in workers, whichever driver they have: `scores` at (number, rung), and how often each was measured."""

    scores: Callable[[int, int], float]
    crash: frozenset[int] = frozenset()  # trials that die before their first point
    part_seconds: float = 1.0
    start_seconds: float = 0.0
    measured: Counter[tuple[int, int]] = field(default_factory=Counter)
    seconds: float = 0.0  # spent by all
    clock: Iterator[int] = field(default_factory=lambda: itertools.count(1_750_000_000_000))

    def next_point(self, order: dict[str, Any]) -> dict[str, Any]:
        """Go on from the snapshot to the next point, save, and report."""
        folder, number = Path(order["folder"]), order["number"]
        records = read_records(folder / "metrics.jsonl")
        before = records[-1]["rung"] if records else 0
        rung = next(known for known in RUNGS if known > before)
        self.measured[number, rung] += 1
        self.seconds += (rung - before) * self.part_seconds + self.start_seconds
        score, seconds = self.scores(number, rung), rung * self.part_seconds
        dev = {"kind": "dev", "rung": rung, "examples": rung * 100, "seconds": seconds, "time_ms": next(self.clock)}
        records.append(dev | {"dev/score": score})
        save_snapshot(state_file(folder), {"counters": {}}, records)
        write_records(folder / "metrics.jsonl", records)
        report = {"number": number, "recipe": "multitask", "exempt": order["exempt"], "rung": rung}
        return report | {"score": score, "records": records[-1:]}


class Driver:
    """A driver's process on the search in `folder`: opened anew, it goes on with what it finds."""

    def __init__(
        self, folder: Path, workers: Workers, num_trials: int, slots: int = 2, hours_seconds: float = math.inf, **settings: Any
    ) -> None:
        (folder / "trials").mkdir(exist_ok=True)
        space = make_space("quick", {"config": CONFIG, "trials": num_trials, **settings})
        self.workers, self.slots, self.heard, self.ids = workers, slots, Heard(), itertools.count()
        repairs = repair(folder, space, 7)
        self.study = Study(folder, space, seed=7)
        scheduler = space.settings.trial_scheduler.build(RUNGS, num_trials)
        end = workers.seconds + hours_seconds
        self.seconds_left = lambda: end - workers.seconds
        unfinished = self.study.restore(scheduler, repairs.records)
        self.searcher = StudySearcher(self.study, scheduler, num_trials, unfinished, self.heard, self.seconds_left)
        self.scheduler = TuneScheduler(scheduler, RUNGS, self.seconds_left)
        self.live: dict[str, dict[str, Any]] = {}  # Ray's id -> the order
        self.is_finished = False

    def kill(self) -> None:
        """Let the process of the trial that has waited longest die without a word."""
        ray_id = next(iter(self.live))
        del self.live[ray_id]
        self.searcher.on_trial_complete(ray_id, error=True)

    def step(self, dies_before_the_report: bool = False) -> bool:
        """Fill a free slot, else let the trial reach its next point that has waited longest.  False: the search is over."""
        if len(self.live) < self.slots and not self.is_finished:
            ray_id = str(next(self.ids))
            order = self.searcher.suggest(ray_id)
            if isinstance(order, dict):
                self.live[ray_id] = order
                return True
            self.is_finished = order == "FINISHED"  # Ray never asks again
            assert self.live or self.is_finished, "Ray would wait for ever"
        if not self.live:
            self.searcher.pause_the_rest()
            return False
        ray_id = next(iter(self.live))
        order = self.live.pop(ray_id)
        if order["number"] in self.workers.crash:
            self.searcher.on_trial_complete(ray_id, error=True)
            return True
        report = self.workers.next_point(order)
        if dies_before_the_report:
            return False
        if self.scheduler.on_trial_result(None, None, report) == "STOP":  # of that report the searcher hears at the end only
            self.searcher.on_trial_complete(ray_id, report)
            return True
        self.searcher.on_trial_result(ray_id, report)
        if report["rung"] == RUNGS[-1]:
            self.searcher.on_trial_complete(ray_id, report)
        else:
            self.live[ray_id] = order
        return True

    def run(self) -> list[TrialResult]:
        while self.step():
            pass
        return self.study.results()


def by_number(*scores: float) -> Callable[[int, int], float]:
    return lambda number, rung: scores[number]


def statuses(trials: list[TrialResult]) -> dict[int, tuple[str, int]]:
    return {trial.number: (trial.status, trial.rung) for trial in trials}


# --------------------------------------------------------------------------------------------- killed, beside one that was not


TPE: dict[str, Any] = {"kind": "tpe", "startup": 3}
METHODS: list[tuple[Any, Any]] = [
    (TPE, "asha"),
    (TPE, {"kind": "asha", "veto": True}),
    (TPE, {"kind": "asha", "compare_at": "cost"}),
    (TPE, "promotion"),
    (TPE, {"kind": "top_k", "k": 2}),
    (TPE, "freeze_thaw"),
    (TPE | {"group": True}, "asha"),
    ({"kind": "gp", "startup": 3}, "asha"),
]


@pytest.mark.parametrize(("sampler", "scheduler"), METHODS)
def test_a_search_that_is_killed_again_and_again_is_the_search_that_was_not(
    tmp_path: Path, sampler: Any, scheduler: Any
) -> None:
    """Same points, same decisions, same scores: the sampler suggests from the study's state, the rungs hold what arrived."""

    def score(number: int, rung: int) -> float:
        return float(np.random.default_rng(number).random()) + rung / 100

    settings = {"sampler": sampler, "trial_scheduler": scheduler}
    (tmp_path / "whole").mkdir()
    whole = Driver(tmp_path / "whole", Workers(score), 8, slots=1, **settings).run()
    (tmp_path / "killed").mkdir()
    workers, random = Workers(score), np.random.default_rng(0)
    while True:
        driver = Driver(tmp_path / "killed", workers, 8, slots=1, **settings)
        if not all(driver.step() for _ in range(random.integers(1, 5))):
            break
        if driver.live:
            driver.step(dies_before_the_report=True)
    killed = driver.study.results()

    def facts(trials: list[TrialResult]) -> list[Any]:
        return [(t.number, t.params, t.status, t.reason, {r: p["dev/score"] for r, p in t.points.items()}) for t in trials]

    assert facts(killed) == facts(whole)
    repeats = sampler["kind"] == "gp"  # it may suggest an end of the range twice
    assert len({trial.params["optimizer/lr"] for trial in whole}) >= 8 - repeats


def test_rungs_are_refilled_in_the_order_of_arrival_not_of_measurement(tmp_path: Path) -> None:
    """The slow report: measured first, received second, so that it was compared with the other."""
    driver = Driver(tmp_path, Workers(by_number(0.5, 0.9)), 2)
    orders = [driver.searcher.suggest("a"), driver.searcher.suggest("b")]
    early, late = (driver.workers.next_point(order) for order in orders)
    assert driver.scheduler.on_trial_result(None, None, late) == "CONTINUE"
    driver.searcher.on_trial_result("b", late)
    assert driver.scheduler.on_trial_result(None, None, early) == "STOP"
    driver.searcher.on_trial_complete("a", early)
    again = Driver(tmp_path, driver.workers, 2)
    assert again.study.study.get_trials()[1].user_attrs["point/1"]["arrival"] == 0
    assert again.scheduler.scheduler.verdict(0) == "STOP"
    assert again.scheduler.scheduler.verdict(1) == "CONTINUE"


# ---------------------------------------------------------------------------------------------------------- a trial's way


def test_trials_to_continue_come_first_then_new_ones_then_none(tmp_path: Path) -> None:
    workers = Workers(by_number(0.5, 0.6))
    first = Driver(tmp_path, workers, 2, slots=1)
    first.step()
    first.step()
    second = Driver(tmp_path, workers, 2)
    orders = [second.searcher.suggest("a"), second.searcher.suggest("b")]
    assert [order["number"] for order in orders] == [0, 1]
    assert orders[0]["folder"] == str(tmp_path / "trials" / "000")
    assert second.heard.events == ["started 0 again", "started 1"]
    assert second.searcher.suggest("c") is None  # the end of one of them may let another go on
    assert len(second.study.results()) == 2


def test_a_point_that_stops_a_trial_is_told_once(tmp_path: Path) -> None:
    driver = Driver(tmp_path, Workers(lambda number, rung: 0.9 if number == 0 else 0.5), 2, slots=1)
    driver.run()
    assert driver.heard.events[-4:] == ["ended 0 completed", "started 1", "reported 1 at 1", "ended 1 stopped"]
    trial = driver.study.study.get_trials()[1]
    assert (trial.state, trial.intermediate_values) == (TrialState.PRUNED, {1: 0.5})
    assert driver.study.results()[1].reason == "stopped at 1/9: below the best 1/3 of its rung"


def test_best_follows_each_evaluation_of_trials_that_still_run(tmp_path: Path) -> None:
    scores = {(0, 1): 0.5, (1, 1): 0.6, (0, 3): 0.4}

    def evaluated(number: int, rung: int) -> float:
        model = tmp_path / "trials" / f"{number:03d}" / "best"
        model.mkdir(exist_ok=True)
        (model / "heads.safetensors").write_text(f"{number} at {rung}")
        return scores[number, rung]

    driver = Driver(tmp_path, Workers(evaluated), 2, baselines=[{}, {"seed": 1}])
    weights, published = tmp_path / "best" / "heads.safetensors", []
    for _ in range(5):
        driver.step()
        published.append(weights.read_text() if weights.exists() else "")
    assert published == ["", "", "0 at 1", "1 at 1", "0 at 3"]  # 000 in the end: of a fuller rung


def test_a_trial_that_ran_to_its_end_is_completed(tmp_path: Path) -> None:
    driver = Driver(tmp_path, Workers(lambda number, rung: {1: 0.5, 3: 0.7, 9: 0.6}[rung]), 1)
    [trial] = driver.run()
    assert (trial.status, trial.score) == ("completed", 0.7)
    assert driver.heard.events == ["started 0", *(f"reported 0 at {rung}" for rung in RUNGS), "ended 0 completed"]


def test_a_crashed_trial_is_told_failed_with_its_reason(tmp_path: Path) -> None:
    driver = Driver(tmp_path, Workers(by_number(0.5), crash=frozenset({0})), 1)
    driver.step()
    (tmp_path / "trials" / "000" / "failure.txt").write_text("NotFiniteError: The loss of sst became nan.")
    [trial] = driver.run()
    assert driver.heard.events == ["started 0", "ended 0 failed"]
    assert trial.reason == "not finite: The loss of sst became nan."


def test_a_trial_whose_snapshot_was_unreadable_is_told_as_it_comes_now(tmp_path: Path) -> None:
    workers = Workers(by_number(0.5))
    first = Driver(tmp_path, workers, 1)
    first.step()
    first.step()
    state_file(tmp_path / "trials" / "000").write_bytes(b"cut short")
    workers.scores = by_number(0.2)
    driver = Driver(tmp_path, workers, 1)
    driver.run()
    assert driver.heard.events[:2] == ["started 0 again", "reported 0 at 1"]
    assert driver.study.study.get_trials()[0].intermediate_values == {1: 0.2, 3: 0.2, 9: 0.2}


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("NotFiniteError: The loss of sst became nan.\nmore", "not finite: The loss of sst became nan."),
        ("CorpusError: There is no file sts-dev.csv.", "CorpusError: There is no file sts-dev.csv."),
        (None, "its process died without an error (killed, perhaps out of memory)"),
    ],
)
def test_a_failures_reason_is_one_line(tmp_path: Path, written: str | None, reason: str) -> None:
    if written is not None:
        (tmp_path / "failure.txt").write_text(written)
    assert failure_reason(tmp_path) == reason
    assert not (tmp_path / "failure.txt").exists()  # it is told once


def test_an_interrupt_ends_all_and_stops_no_single_trial() -> None:
    asked = [False]
    stopper = StopOnRequest(lambda: asked[0], lambda: None)
    assert not stopper.stop_all()
    asked[0] = True
    assert stopper.stop_all()
    assert not stopper("a", {})


# -------------------------------------------------------------------------------------------------------------- retries


def test_a_trial_whose_process_died_resumes_from_its_snapshot_under_its_number(tmp_path: Path) -> None:
    workers = Workers(by_number(0.5))
    driver = Driver(tmp_path, workers, 1, baselines=[{}])
    for _ in range(3):
        driver.step()
    driver.kill()
    [trial] = driver.run()
    assert (trial.status, trial.rung, trial.deaths) == ("completed", 9, 1)
    assert set(workers.measured.values()) == {1}, "nothing is measured twice"
    died = "retried 0 from 3: died (killed, perhaps out of memory); attempt 2 of 2"
    assert driver.heard.events[3:5] == [died, "started 0 again"]


@pytest.mark.parametrize("retries", [0, 1, 2])
def test_a_process_that_dies_once_too_often_fails_its_trial_and_keeps_its_snapshot(tmp_path: Path, retries: int) -> None:
    driver = Driver(tmp_path, Workers(by_number(0.5)), 1)
    driver.searcher.retries = retries
    driver.step()
    driver.step()
    for _ in range(retries):
        driver.kill()
        driver.step()
    driver.kill()
    [trial] = driver.run()
    assert (trial.status, trial.reason, trial.deaths) == ("failed", DIED, retries + 1)
    assert state_file(trial.folder).exists()


def test_the_deaths_of_a_trial_are_counted_over_a_crash_of_the_driver(tmp_path: Path) -> None:
    workers = Workers(by_number(0.5))
    driver = Driver(tmp_path, workers, 1)
    driver.step()
    driver.kill()
    again = Driver(tmp_path, workers, 1)
    again.step()
    again.kill()
    assert statuses(again.run()) == {0: ("failed", 0)}


def test_a_trial_that_is_lost_with_its_node_is_not_blamed_however_often(tmp_path: Path) -> None:
    workers = Workers(by_number(0.5))
    driver = Driver(tmp_path, workers, 1)
    driver.searcher.lost_node = lambda folder: f"the node of {folder.name}"
    for _ in range(4):
        driver.step()
        driver.kill()
    driver.searcher.lost_node = lambda _: ""
    driver.step()
    driver.kill()  # its own fault, the first
    [trial] = driver.run()
    assert (trial.status, trial.deaths) == ("completed", 1)


def test_no_more_trials_begin_than_there_is_room_for_now(tmp_path: Path) -> None:
    driver, room = Driver(tmp_path, Workers(by_number(0.5, 0.5, 0.5)), 3), 1
    driver.searcher.num_slots = lambda: room
    assert isinstance(driver.searcher.suggest("a"), dict)
    assert driver.searcher.suggest("b") is None
    room = 2  # a node has joined
    assert isinstance(driver.searcher.suggest("b"), dict)
    assert driver.searcher.suggest("c") is None


def test_a_point_that_was_saved_but_not_reported_is_not_measured_again(tmp_path: Path) -> None:
    """The process died between its snapshot and its report: of 001, that point stops the trial; of 000, it is the last."""
    workers = Workers(lambda number, rung: 0.9 - number / 2)
    driver = Driver(tmp_path, workers, 2, slots=1)
    for num_steps in (3, 1):  # 000 has reported 1 and 3, 001 nothing
        for _ in range(num_steps):
            driver.step()
        workers.next_point(next(iter(driver.live.values())))
        driver.kill()
    assert statuses(driver.study.results()) == {0: ("completed", 9), 1: ("stopped", 1)}
    assert driver.heard.events[-2:] == ["reported 1 at 1", "ended 1 stopped"]
    assert set(workers.measured.values()) == {1}


def test_the_end_of_a_process_after_an_interrupt_or_the_death_of_ray_ends_no_trial(tmp_path: Path) -> None:
    workers = Workers(by_number(0.5))
    driver = Driver(tmp_path, workers, 1)
    driver.step()
    driver.searcher.is_halted = lambda: True
    driver.kill()
    assert driver.searcher.suggest("after") == "FINISHED"
    [trial] = driver.study.results()
    assert (trial.status, trial.deaths) == ("running", 0)
    assert statuses(Driver(tmp_path, workers, 1).run()) == {0: ("completed", 9)}


@pytest.mark.parametrize("reason", ["", "NotFiniteError: The loss of sst became nan.", "ValueError: no"])
def test_failed_trials_run_again_if_that_is_asked_for(tmp_path: Path, reason: str) -> None:
    workers = Workers(by_number(0.5, 0.5))
    driver = Driver(tmp_path, workers, 2, slots=1)
    driver.searcher.retries = 0
    driver.step()
    driver.step()
    if reason:
        (tmp_path / "trials" / "000" / "failure.txt").write_text(reason)
    driver.kill()
    driver.run()
    assert statuses(driver.study.results()) == {0: ("failed", 1), 1: ("completed", 9)}
    assert reopen_failed(tmp_path) == 1
    assert reopen_failed(tmp_path) == 0
    again = Driver(tmp_path, workers, 2, slots=1)
    assert (again.study.result(0).status, again.study.result(0).deaths) == ("running", 0)
    assert again.study.result(0).params == driver.study.result(0).params
    assert statuses(again.run()) == {0: ("completed", 9), 1: ("completed", 9)}
    assert workers.measured[0, 1] == (2 if reason else 1), "what died resumes from its snapshot, other failures start again"


def test_a_trial_that_runs_again_keeps_nothing_of_the_failed_one_but_its_point(tmp_path: Path) -> None:
    """It failed beyond a point, which the sampler was told to avoid. It starts again, and is stopped before that point."""
    scores = iter([0.5, 0.6, 0.7, 0.8, 0.9, 0.1])
    workers = Workers(lambda number, rung: next(scores))
    driver = Driver(tmp_path, workers, 2, slots=1)
    for _ in range(4):  # 000 is begun and completed
        driver.step()
    for _ in range(3):  # 001 reports 1 and 3
        driver.step()
    driver.searcher.retries = 0
    (tmp_path / "trials" / "001" / "failure.txt").write_text("DoesNotFitError: out of memory")
    driver.kill()
    assert statuses(driver.study.results()) == {0: ("completed", 9), 1: ("failed", 3)}
    assert CONSTRAINT in driver.study._entry(1).system_attrs
    assert reopen_failed(tmp_path) == 1
    again = Driver(tmp_path, workers, 2, slots=1)
    entry = again.study._entry(1)
    assert (entry.intermediate_values, set(entry.user_attrs)) == ({}, {"config"})
    assert CONSTRAINT not in entry.system_attrs
    assert statuses(again.run()) == {0: ("completed", 9), 1: ("stopped", 1)}
    assert repair(tmp_path, again.study.space, 7).records[1] == again.study.result(1).records


def test_a_trial_whose_process_was_ended_because_it_hung_is_retried_and_fails_with_that_reason(tmp_path: Path) -> None:
    driver = Driver(tmp_path, Workers(by_number(0.5)), 1)
    driver.step()
    for _ in range(2):
        driver.searcher.hung[0] = "it reported nothing for 6 min"
        driver.kill()
        driver.step()
    [trial] = driver.run()
    assert (trial.status, trial.reason) == ("failed", "it reported nothing for 6 min")
    assert driver.heard.events[1] == "retried 0 from 0: was ended: it reported nothing for 6 min; attempt 2 of 2"


# ---------------------------------------------------------------------------------------------------------------- top_k

TOP_2: dict[str, Any] = {"trial_scheduler": {"kind": "top_k", "k": 2}, "baselines": [{}]}
SCORES = by_number(0.1, 0.5, 0.8, 0.6, 0.7, 0.4, 0.9)
CHOSEN = {
    **dict.fromkeys((0, 2, 6), ("completed", 9)),  # the baseline and the best two of the others
    **dict.fromkeys((1, 3, 4), ("stopped", 1)),
    5: ("failed", 0),
}


def test_a_waiting_trial_without_time_for_its_next_point_is_not_chosen(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"trial_scheduler": "freeze_thaw", "sampler": "random"}
    driver = Driver(tmp_path, Workers(by_number(0.5, 0.4, 0.3)), 3, slots=1, hours_seconds=4.5, **settings)
    driver.run()
    waiting = set(driver.study.waiting)
    assert waiting
    assert not driver.searcher.to_continue
    assert {driver.searcher.scheduler.verdict(number) for number in waiting} == {"PAUSE"}


def test_the_best_k_go_on_from_where_they_waited_and_the_others_are_told_stopped(tmp_path: Path) -> None:
    workers = Workers(SCORES, crash=frozenset({5}))
    driver = Driver(tmp_path, workers, 7, **TOP_2)
    trials = driver.run()
    assert statuses(trials) == CHOSEN
    assert {trial.reason for trial in trials if trial.status == "stopped"} == {
        "stopped at 1/9: not among the best 2 of the first rung"
    }
    events = driver.heard.events
    assert f"paused 2 at 1: {WAITS}" in events
    assert events.index("started 2 again") > events.index("reported 6 at 1")
    assert "paused 0" not in str(events)
    assert set(workers.measured.values()) == {1}
    assert [(trial.folder / "state").exists() for trial in trials] == [False] * 7


def test_at_most_k_trials_wait_with_their_snapshots(tmp_path: Path) -> None:
    driver = Driver(tmp_path, Workers(SCORES), 7, slots=1, **TOP_2)
    most = 0
    while driver.step():
        others = [trial for trial in driver.study.results() if trial.number != 0 and not driver.live]
        most = max(most, sum((trial.folder / "state").exists() for trial in others))
    assert most == 2


@pytest.mark.parametrize("num_steps", range(0, 27, 3))
def test_a_driver_killed_at_any_moment_loses_nothing_and_repeats_nothing(tmp_path: Path, num_steps: int) -> None:
    workers = Workers(SCORES, crash=frozenset({5}))
    killed = Driver(tmp_path, workers, 7, **TOP_2)
    for _ in range(num_steps):
        killed.step()
    killed.step(dies_before_the_report=num_steps % 2 == 0)
    trials = Driver(tmp_path, workers, 7, **TOP_2).run()
    assert statuses(trials) == CHOSEN
    assert set(workers.measured.values()) == {1}
    assert len(workers.measured) == 12  # six trials at the first rung, three at the others


def test_a_driver_killed_while_it_tells_who_is_not_chosen_tells_the_rest(tmp_path: Path) -> None:
    driver = Driver(tmp_path, Workers(by_number(0.7, 0.6, 0.8, 0.9)), 4, trial_scheduler={"kind": "top_k", "k": 2})
    while "reported 3 at 1" not in driver.heard.events:
        driver.step()
    journal = tmp_path / "study.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    told = [i for i, line in enumerate(lines) if json.loads(line).get("user_attr", {}).get("status") == "stopped"]
    journal.write_bytes(b"".join(lines[: told[-1]]))  # 000 had waited until then
    trials = Driver(tmp_path, driver.workers, 4, trial_scheduler={"kind": "top_k", "k": 2}).run()
    assert statuses(trials) == {0: ("stopped", 1), 1: ("stopped", 1), 2: ("completed", 9), 3: ("completed", 9)}


def test_more_trials_after_the_choice_are_chosen_from_with_those_before(tmp_path: Path) -> None:
    workers, top_1 = Workers(by_number(0.5, 0.6, 0.4, 0.7)), {"trial_scheduler": {"kind": "top_k", "k": 1}}
    assert statuses(Driver(tmp_path, workers, 2, **top_1).run()) == {0: ("stopped", 1), 1: ("completed", 9)}
    more = statuses(Driver(tmp_path, workers, 4, **top_1).run())
    assert more == {0: ("stopped", 1), 1: ("completed", 9), 2: ("stopped", 1), 3: ("completed", 9)}
    assert set(workers.measured.values()) == {1}


def test_the_sampler_learns_of_trials_that_wait(tmp_path: Path) -> None:
    """All wait here; were they unknown to it, or bad because they run, the rates would go on to be spread evenly."""
    settings = {"sampler": {"kind": "tpe", "startup": 10}, "trial_scheduler": {"kind": "top_k", "k": 100}}
    driver = Driver(tmp_path, Workers(lambda number, rung: 0), 100, slots=1, **settings)

    def score(number: int, rung: int) -> float:  # best at a rate of 1e-3, the middle of its range
        return -abs(math.log10(driver.study.result(number).params["optimizer/lr"]) + 3)

    driver.workers.scores = score
    while len(driver.study.waiting) < 40:
        driver.step()
    away = [abs(score(number, 1)) for number in range(40)]
    assert np.mean(away[:10]) > 0.3
    assert np.mean(away[20:]) < 0.3
    assert {trial.status for trial in driver.study.results()} == {"running"}


# ------------------------------------------------------------------------------------------------------------ promotion

PROMOTED: dict[str, Any] = {"trial_scheduler": "promotion", "baselines": [{}]}
# of seven, with the baseline, two are promoted at the first rung, and of three at the second one
ENDS = {0: ("completed", 9), 6: ("completed", 9), 2: ("stopped", 3), 5: ("failed", 0)} | dict.fromkeys(
    (1, 3, 4), ("stopped", 1)
)


def test_a_paused_trial_is_promoted_later_and_continues_from_its_snapshot(tmp_path: Path) -> None:
    workers = Workers(by_number(0.1, 0.8, 0.5))
    driver = Driver(tmp_path, workers, 3, **PROMOTED)
    assert statuses(driver.run()) == {0: ("completed", 9), 1: ("completed", 9), 2: ("stopped", 1)}
    events = driver.heard.events
    assert events.index(f"paused 1 at 1: {WAITS}") < events.index("reported 2 at 1") < events.index("started 1 again")
    assert set(workers.measured.values()) == {1}
    assert not any((trial.folder / "state").exists() for trial in driver.study.results())


@pytest.mark.parametrize("num_steps", range(0, 24, 3))
def test_promotion_holds_when_the_driver_is_killed_at_any_moment(tmp_path: Path, num_steps: int) -> None:
    workers = Workers(SCORES, crash=frozenset({5}))
    killed = Driver(tmp_path, workers, 7, **PROMOTED)
    for _ in range(num_steps):
        killed.step()
    killed.step(dies_before_the_report=num_steps % 2 == 0)
    assert statuses(Driver(tmp_path, workers, 7, **PROMOTED).run()) == ENDS
    assert set(workers.measured.values()) == {1}


def test_more_trials_are_promoted_with_those_that_were_stopped_before(tmp_path: Path) -> None:
    workers = Workers(by_number(0.5, 0.6, 0.4, 0.9, 0.8, 0.7))
    settings = {"trial_scheduler": "promotion"}
    assert statuses(Driver(tmp_path, workers, 3, **settings).run()) == {
        0: ("stopped", 1),
        1: ("completed", 9),
        2: ("stopped", 1),
    }
    more = statuses(Driver(tmp_path, workers, 6, **settings).run())
    assert (more[1], more[3]) == (("completed", 9), ("completed", 9))
    assert "running" not in {status for status, _ in more.values()}
    assert set(workers.measured.values()) == {1}


def test_a_search_with_freeze_thaw_ends_with_every_trial_decided_and_the_best_run_to_its_end(tmp_path: Path) -> None:
    def score(number: int, rung: int) -> float:
        return 0.3 + 0.5 * float(np.random.default_rng(number).random()) + rung / 100

    workers = Workers(score, crash=frozenset({5}))
    driver = Driver(tmp_path, workers, 12, trial_scheduler="freeze_thaw", baselines=[{}])
    trials = driver.run()
    best = max((number for number in range(12) if number != 5), key=lambda number: score(number, 9))
    assert statuses(trials)[best] == ("completed", 9)
    assert {status for number, (status, _) in statuses(trials).items() if number != 5} == {"completed", "stopped"}
    assert sum(status == "completed" for status, _ in statuses(trials).values()) < 8
    assert any("promise more per second" in event for event in driver.heard.events)
    assert set(workers.measured.values()) == {1}


def test_frozen_trials_continue_on_another_day(tmp_path: Path) -> None:
    workers = Workers(by_number(0.5, 0.6, 0.7, 0.4))
    settings = {"trial_scheduler": "freeze_thaw", "slots": 1}
    first = Driver(tmp_path, workers, 4, hours_seconds=4.5, **settings)
    assert {status for status, _ in statuses(first.run()).values()} == {"running"}
    second = Driver(tmp_path, workers, 4, **settings)
    assert second.searcher.has_more()
    assert statuses(second.run())[2] == ("completed", 9)
    assert set(workers.measured.values()) == {1}


# ---------------------------------------------------------------------------------------------------------------- hours

ONE_AFTER_ANOTHER: dict[str, Any] = {"slots": 1, "baselines": [{}, {}, {}]}  # baselines run to the end: 9 seconds each


@pytest.mark.parametrize(
    ("rung", "seconds", "expected"),
    [(1, 10.0, 20.0), (3, 30.0, 60.0), (3, 15.0, 30.0), (9, 90.0, 0.0)],
)
def test_a_trial_is_expected_to_go_on_at_its_own_pace(rung: int, seconds: float, expected: float) -> None:
    assert seconds_to_next_point(rung, seconds, RUNGS) == expected


def test_a_trial_that_would_not_reach_its_next_point_in_time_pauses_and_others_begin_that_do(tmp_path: Path) -> None:
    workers = Workers(by_number(0.5, 0.6, 0.7))
    driver = Driver(tmp_path, workers, 3, hours_seconds=5.5, **ONE_AFTER_ANOTHER)
    trials = driver.run()
    # 000 is at 3/9 after 3 s, and would need 6 more; 001 and 002 are at 1/9 after 4 and 5 s, and would need 2 more
    assert statuses(trials) == {0: ("running", 3), 1: ("running", 1), 2: ("running", 1)}
    assert workers.seconds == 5
    assert [event for event in driver.heard.events if "paused" in event] == [
        f"paused {number} at {rung}: {NO_TIME}" for number, rung in ((0, 3), (1, 1), (2, 1))
    ]
    assert all((trial.folder / "state" / "snapshot.pt").exists() for trial in trials)


def test_no_trial_begins_that_would_not_reach_its_first_point_in_time(tmp_path: Path) -> None:
    driver = Driver(tmp_path, Workers(by_number(0.5, 0.6, 0.7)), 3, hours_seconds=1.5, **ONE_AFTER_ANOTHER)
    assert statuses(driver.run()) == {0: ("running", 1)}  # nothing was known: it began


def test_the_start_of_a_process_is_counted_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers(by_number(0.5, 0.6, 0.7), start_seconds=5)
    monkeypatch.setattr(time, "monotonic", lambda: workers.seconds)
    driver = Driver(tmp_path, workers, 3, hours_seconds=11.5, **ONE_AFTER_ANOTHER)
    driver.step()
    driver.step()
    workers.start_seconds = 0  # the process is there
    assert statuses(driver.run()) == {0: ("running", 3)}  # at 8 seconds; 3.5 more do for a first point, but not for 5 before it


def test_nothing_begins_once_the_time_is_up(tmp_path: Path) -> None:
    driver = Driver(tmp_path, Workers(by_number(0.5)), 1, hours_seconds=0)
    assert not driver.searcher.has_more()
    assert driver.run() == []


def test_a_trial_that_took_longer_than_expected_pauses_at_the_point_it_reaches(tmp_path: Path) -> None:
    workers = Workers(by_number(0.5, 0.6))
    driver = Driver(tmp_path, workers, 2, hours_seconds=3.5, **ONE_AFTER_ANOTHER | {"baselines": [{}]})
    driver.step()
    driver.step()
    workers.part_seconds = 10  # another load on the machine
    trials = driver.run()
    assert statuses(trials) == {0: ("running", 3)}
    assert driver.heard.events[-1] == f"paused 0 at 3: {NO_TIME}"


def test_paused_trials_go_on_under_their_numbers_and_repeat_nothing(tmp_path: Path) -> None:
    workers = Workers(by_number(0.5, 0.6, 0.7))
    for _ in range(3):  # each time 10 seconds of the 27
        driver = Driver(tmp_path, workers, 3, hours_seconds=10, **ONE_AFTER_ANOTHER)
        assert driver.searcher.has_more()
        trials = driver.run()
    assert statuses(trials) == dict.fromkeys(range(3), ("completed", 9))
    assert set(workers.measured.values()) == {1}
    assert [trial.state for trial in driver.study.study.get_trials()] == [TrialState.COMPLETE] * 3


def test_what_is_left_over_for_want_of_time_is_told(tmp_path: Path) -> None:
    workers = Workers(by_number(0.5, 0.6, 0.7))
    Driver(tmp_path, workers, 3, hours_seconds=5.5, **ONE_AFTER_ANOTHER).run()
    driver = Driver(tmp_path, workers, 3, hours_seconds=2.5, **ONE_AFTER_ANOTHER)
    driver.run()
    # 2 seconds more do for 001; to go on from 3/9 each would need 6
    events = driver.heard.events
    assert events[:3] == ["started 1 again", "reported 1 at 3", f"paused 1 at 3: {NO_TIME}"]
    assert sorted(events[3:]) == [f"paused 0 at 3: {NO_TIME}", f"paused 2 at 1: {NO_TIME}"]


def test_a_stop_is_a_stop_also_when_the_time_is_up(tmp_path: Path) -> None:
    driver = Driver(tmp_path, Workers(by_number(0.9, 0.1)), 2, slots=1, hours_seconds=10.5)
    assert statuses(driver.run()) == {0: ("completed", 9), 1: ("stopped", 1)}


def test_trials_that_wait_for_others_wait_on_when_the_time_is_up(tmp_path: Path) -> None:
    workers = Workers(SCORES, crash=frozenset({5}))
    first = Driver(tmp_path, workers, 7, hours_seconds=6.5, **TOP_2)
    assert {status for status, _ in statuses(first.run()).values()} == {"running", "stopped"}
    second = Driver(tmp_path, workers, 7, **TOP_2)
    assert second.heard.events[0].endswith(WAITS)
    assert statuses(second.run()) == CHOSEN
    assert set(workers.measured.values()) == {1}


# ----------------------------------------------------------------------------------------------------------- a full disk


@pytest.mark.parametrize("write", ["write_config", "write_entry"])
def test_a_full_disk_pauses_the_search_and_no_trial_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str) -> None:
    """In an ask, and in a report: nothing more is written, no trial is started, and all continue later."""
    workers = Workers(by_number(0.5, 0.9, 0.7))
    driver = Driver(tmp_path, workers, 3, slots=1)
    driver.step()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path))

    while write == "write_config" and driver.live:
        driver.step()
    with monkeypatch.context() as patch:
        patch.setattr(f"search.study.study.{write}", full)
        if write == "write_config":
            assert driver.searcher.suggest("asked") == Searcher.FINISHED
        else:
            driver.step()
    assert driver.searcher.disk.fault is not None
    assert driver.searcher.suggest("later") == (None if driver.searcher.running else Searcher.FINISHED)
    assert "failed" not in {trial.status for trial in driver.study.results()}
    trials = Driver(tmp_path, workers, 3, slots=1).run()
    assert statuses(trials) == {0: ("completed", 9), 1: ("completed", 9), 2: ("stopped", 1)}


def test_a_trial_that_could_not_write_for_a_full_disk_stays_running(tmp_path: Path) -> None:
    driver = Driver(tmp_path, Workers(by_number(0.5)), 1, slots=1)
    driver.step()
    (tmp_path / "trials" / "000" / "failure.txt").write_text("")  # created, but there was no room for its text
    driver.searcher.on_trial_complete(next(iter(driver.live)), error=True)
    assert driver.searcher.disk.fault is not None
    assert driver.study.result(0).status == "running"
    driver.searcher.watchdog.looked -= 60
    driver.searcher.end_hanging()  # as Ray's loop asks once more: the watchdog has forgotten the trial
    assert statuses(Driver(tmp_path, driver.workers, 1).run()) == {0: ("completed", 9)}
