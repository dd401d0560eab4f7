"""The study of a search: what is asked, told, restored after a crash, and kept. No cluster: records are written by hand."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState

from minbert_core.config_checks import read_config
from minbert_core.train.folder import read_records, state_file
from minbert_core.train.trial import save_snapshot
from search.methods.asha import RungScheduler
from search.methods.decisions import Arrival, Scheduler, peers
from search.methods.top_k import TopK
from search.space.space import Space, make_space
from search.study.gather import read_results
from search.study.journal import mend_journal
from search.study.repair import repair
from search.study.study import Study
from search.study.trials import TrialResult, ranked, stopped_at

RUNGS = (1, 3, 9)
PEERS = peers("multitask", {"stage": 0})
DOCUMENT: dict[str, Any] = {
    "baselines": [{}, {"gradient": "pcgrad"}],
    "config": {
        "data": "toy",
        "encoder": "tiny",
        "budget": {"examples": 900},
        "optimizer": {"lr": {"log_uniform": [1e-4, 1e-2]}},
        "gradient": {"choice": ["sum", "pcgrad"]},
    },
}


@pytest.fixture
def space() -> Space:
    return make_space("quick", DOCUMENT)


@pytest.fixture
def plain() -> Space:
    """The same without baselines."""
    return make_space("quick", {"config": DOCUMENT["config"]})


@pytest.fixture
def open_study(tmp_path: Path) -> Callable[[Space], Study]:
    def open_(space: Space) -> Study:
        (tmp_path / "trials").mkdir(exist_ok=True)
        repair(tmp_path, space, seed=7)
        return Study(tmp_path, space, seed=7)

    return open_


class Clock:
    now_ms = 1_750_000_000_000

    def tick(self) -> int:
        self.now_ms += 1000
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


def dev(rung: int, score: float, time_ms: int) -> dict[str, Any]:
    return {"kind": "dev", "rung": rung, "examples": rung * 100, "seconds": rung * 1.0, "time_ms": time_ms, "dev/score": score}


def write(trial: TrialResult, records: list[dict[str, Any]], snapshot: int | None = None, best: bool = True) -> None:
    """What a worker leaves in its folder: metrics.jsonl, best/, and a snapshot that holds the first `snapshot` records."""
    (trial.folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if best:
        (trial.folder / "best").mkdir(exist_ok=True)
        (trial.folder / "best" / "heads.safetensors").write_text(f"weights of {trial.number}")
    if snapshot is not None:
        save_snapshot(state_file(trial.folder), {"counters": {}}, records[:snapshot])


def ended(study: Study, score: float, clock: Clock, rung: int = 9) -> TrialResult:
    """A new trial that went as far as `rung`."""
    trial = study.ask()
    write(trial, [dev(p, score, clock.tick()) for p in RUNGS if p <= rung], snapshot=1)
    return study.tell(trial.number, *(("completed", "completed") if rung == 9 else ("stopped", stopped_at(rung, RUNGS))))


def restore(study: Study, scheduler: Scheduler) -> list[TrialResult]:
    return study.restore(scheduler, {trial.number: trial.records for trial in study.results()})


# ------------------------------------------------------------------------------------------------------------------ ask


def test_a_new_trial_has_a_folder_with_its_config(open_study: Callable[[Space], Study], plain: Space) -> None:
    trial = open_study(plain).ask()
    config = read_config(trial.folder / "config.yaml")
    assert trial.folder.name == "000"
    assert trial.status == "running"
    assert config.optimizer.lr == trial.params["optimizer/lr"]
    assert config.gradient.kind == trial.params["gradient"]


def test_baselines_do_not_count_as_random_trials_of_tpe(tmp_path: Path, clock: Clock) -> None:
    """Two baselines, then two random draws, as many as `startup`; the model chooses from the fifth trial on."""

    def rates(startup: int) -> list[float]:
        folder = tmp_path / str(startup)
        (folder / "trials").mkdir(parents=True)
        study = Study(folder, make_space("quick", {**DOCUMENT, "sampler": {"kind": "tpe", "startup": startup}}), seed=7)
        return [ended(study, score, clock).params["optimizer/lr"] for score in (0.5, 0.4, 0.6, 0.3, 0.2)]

    random, modelled = rates(100), rates(2)
    assert modelled[:4] == random[:4]
    assert modelled[4] != random[4]


def test_a_trials_seed_follows_from_the_searchs_seed_and_its_number(tmp_path: Path, plain: Space) -> None:
    def seeds(folder: str, seed: int) -> list[int]:
        (tmp_path / folder).mkdir()
        study = Study(tmp_path / folder, plain, seed)
        return [study.ask().config().seed for _ in range(3)]

    first = seeds("a", 7)
    assert seeds("b", 7) == first
    assert len(set(first)) == 3
    assert not set(seeds("c", 8)) & set(first)


def test_baselines_come_first_and_once_also_when_the_study_is_opened_again(
    open_study: Callable[[Space], Study], space: Space
) -> None:
    first = open_study(space).ask()
    study = open_study(space)
    second, third = study.ask(), study.ask()
    assert [trial.baseline for trial in (first, second, third)] == [0, 1, None]
    assert first.params["gradient"] == "sum"
    assert second.config().gradient.kind == "pcgrad"


def test_a_baselines_own_settings_outside_the_domains_reach_its_config(open_study: Callable[[Space], Study]) -> None:
    space = make_space("quick", {"config": DOCUMENT["config"], "baselines": [{"max_length": 32}]})
    assert open_study(space).ask().config().max_length == 32


def test_a_resumed_search_does_not_suggest_its_first_points_again(open_study: Callable[[Space], Study], plain: Space) -> None:
    first = open_study(plain).ask()
    assert open_study(plain).ask().params["optimizer/lr"] != first.params["optimizer/lr"]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_sampler_draws_the_same_points_from_the_same_seed(tmp_path: Path, sampler: str) -> None:
    def rates(folder: str, seed: int) -> list[float]:
        (tmp_path / folder).mkdir()
        study = Study(tmp_path / folder, make_space("quick", {"config": DOCUMENT["config"], "sampler": sampler}), seed)
        return [study.ask().params["optimizer/lr"] for _ in range(3)]

    assert rates("a", 7) == rates("b", 7)
    assert rates("c", 8) != rates("d", 7)


def test_a_random_sampler_draws_whatever_came_of_the_others(tmp_path: Path, clock: Clock) -> None:
    space = make_space("quick", {"config": DOCUMENT["config"], "sampler": "random"})

    def rates(folder: str, score: float) -> list[float]:
        (tmp_path / folder).mkdir()
        study = Study(tmp_path / folder, space, 7)
        return [ended(study, score * number, clock).params["optimizer/lr"] for number in range(12)]

    assert rates("better and better", 0.01) == rates("worse and worse", -0.01)


def test_a_grid_gives_each_combination_once_after_a_resume_too(open_study: Callable[[Space], Study]) -> None:
    """One that never began (its driver was killed between Optuna's record and the folder) is given again."""
    choices = {"gradient": {"choice": ["sum", "pcgrad"]}, "max_length": {"choice": [32, 64]}}
    space = make_space("quick", {"config": choices, "sampler": "grid"})
    first = open_study(space)
    given = [first.ask().params for _ in range(2)]
    first.study.ask()
    again = open_study(space)
    restore(again, RungScheduler(RUNGS))
    given += [again.ask().params for _ in range(2)]
    assert given == space.combinations()


# ----------------------------------------------------------------------------------------------------------------- tell


def test_a_completed_trials_value_is_its_best_evaluation(
    open_study: Callable[[Space], Study], plain: Space, clock: Clock
) -> None:
    study = open_study(plain)
    trial = study.ask()
    write(trial, [dev(rung, score, clock.tick()) for rung, score in zip(RUNGS, (0.5, 0.7, 0.6), strict=True)])
    told = study.tell(trial.number, "completed", "completed")
    [known] = study.study.get_trials()
    assert (known.state, known.value) == (TrialState.COMPLETE, 0.7)
    assert (told.score, told.last["dev/score"], told.rung) == (0.7, 0.6, 9)


def test_optuna_dashboard_finds_the_name_of_the_score_and_the_scores_of_the_tasks(
    open_study: Callable[[Space], Study], plain: Space, clock: Clock
) -> None:
    study = open_study(plain)
    trial = study.ask()
    scores = [(0.5, 0.2), (0.7, 0.4), (0.6, float("nan"))]
    records = [dev(rung, score, clock.tick()) | {"dev/sst": sst} for rung, (score, sst) in zip(RUNGS, scores, strict=True)]
    write(trial, records)
    study.tell(trial.number, "completed", "completed")
    [known] = open_study(plain).study.get_trials()
    assert open_study(plain).study.metric_names == ["dev/score"]
    assert known.user_attrs["dev/sst"] == 0.4  # of the best evaluation
    assert "dev/score" not in known.user_attrs  # it is the value


@pytest.mark.parametrize(
    ("status", "reason", "state"),
    [
        ("stopped", "stopped at 1/9: below the best 1/3 of its rung", TrialState.PRUNED),
        ("failed", "not finite: The loss of sst became nan.", TrialState.PRUNED),
        ("failed", "CorpusError: There is no file.", TrialState.FAIL),
        ("failed", "out of memory: step 1 does not fit", TrialState.PRUNED),
    ],
)
def test_how_a_trial_ended_decides_whether_the_sampler_learns_of_it(
    open_study: Callable[[Space], Study], plain: Space, status: Any, reason: str, state: TrialState
) -> None:
    study = open_study(plain)
    told = study.tell(study.ask().number, status, reason)
    assert study.study.get_trials()[0].state == state
    assert (told.status, told.reason) == (status, reason)


# -------------------------------------------------------------------------------------------------------------- restore


def test_restore_leaves_finished_trials_and_goes_on_with_running_ones(
    open_study: Callable[[Space], Study], plain: Space, clock: Clock
) -> None:
    study = open_study(plain)
    ended(study, 0.6, clock)
    trial = study.ask()
    write(trial, [dev(1, 0.7, clock.tick())], snapshot=1)
    config = (trial.folder / "config.yaml").read_bytes()

    study = open_study(plain)
    [goes_on] = restore(study, RungScheduler(RUNGS))
    assert (goes_on.number, goes_on.rung, goes_on.params) == (trial.number, 1, trial.params)
    assert (trial.folder / "config.yaml").read_bytes() == config
    assert [result.status for result in study.results()] == ["completed", "running"]
    assert study.study.get_trials()[1].intermediate_values == {1: 0.7}


@pytest.mark.parametrize("snapshot", [1, 2])
def test_restored_records_are_those_of_the_snapshot(
    open_study: Callable[[Space], Study], plain: Space, clock: Clock, snapshot: int
) -> None:
    study = open_study(plain)
    trial = study.ask()
    records = [dev(1, 0.7, clock.tick()), {"kind": "train", "examples": 150, "seconds": 1.5, "time_ms": clock.tick()}]
    write(trial, records, snapshot)
    path = trial.folder / "metrics.jsonl"
    if snapshot == 1:  # longer than the snapshot, its last line cut short by the crash
        path.write_text(path.read_text()[:-20])
    else:  # shorter: the snapshot comes first
        path.write_text("")

    study = open_study(plain)
    [goes_on] = restore(study, RungScheduler(RUNGS))
    assert goes_on.records == records[:snapshot]
    assert read_records(path) == records[:snapshot]


def test_a_trial_that_never_began_does_not_count_and_its_baseline_comes_again(
    open_study: Callable[[Space], Study], space: Space
) -> None:
    open_study(space).study.ask()  # killed between the study's word and the folder

    study = open_study(space)
    assert restore(study, RungScheduler(RUNGS)) == []
    assert study.results() == []
    assert [study.ask().baseline for _ in range(3)] == [0, 1, None]
    assert [trial.number for trial in study.results()] == [0, 1, 2]


def test_an_unreadable_snapshot_is_put_aside_and_the_trial_begins_anew(
    open_study: Callable[[Space], Study], plain: Space, clock: Clock
) -> None:
    study = open_study(plain)
    trial = study.ask()
    write(trial, [dev(1, 0.7, clock.tick())], snapshot=1)
    study.report(trial.number, read_records(trial.folder / "metrics.jsonl"))
    path = state_file(trial.folder)
    path.write_bytes(path.read_bytes()[:100])

    study = open_study(plain)
    scheduler = RungScheduler(RUNGS)
    [goes_on] = restore(study, scheduler)
    assert (goes_on.number, goes_on.records) == (trial.number, [])
    assert not path.exists()
    assert path.with_name("unreadable.pt").exists()
    assert scheduler.decide(Arrival(9, PEERS, False, 1, 0.1)) == "CONTINUE"  # its old point is in no rung


def test_a_trial_whose_snapshot_holds_the_last_point_is_completed_without_running(
    open_study: Callable[[Space], Study], plain: Space, clock: Clock
) -> None:
    study = open_study(plain)
    write(study.ask(), [dev(rung, 0.7, clock.tick()) for rung in RUNGS], snapshot=3)

    study = open_study(plain)
    assert restore(study, RungScheduler(RUNGS)) == []
    [trial] = study.results()
    assert (trial.status, trial.score) == ("completed", 0.7)
    assert (study.folder / "best" / "heads.safetensors").samefile(trial.folder / "best" / "heads.safetensors")
    assert not (trial.folder / "state").exists()


def test_a_trial_that_its_rung_would_have_stopped_is_told_so(
    open_study: Callable[[Space], Study], plain: Space, clock: Clock
) -> None:
    study = open_study(plain)
    ended(study, 0.8, clock)
    write(study.ask(), [dev(1, 0.3, clock.tick())], snapshot=1)  # saved; killed before it was reported

    study = open_study(plain)
    assert restore(study, RungScheduler(RUNGS)) == []
    reason = "stopped at 1/9: below the best 1/3 of its rung"
    assert [(trial.status, trial.reason) for trial in study.results()][1] == ("stopped", reason)


def test_restore_tells_the_scheduler_who_failed(open_study: Callable[[Space], Study], plain: Space, clock: Clock) -> None:
    study = open_study(plain)
    write(study.ask(), [dev(1, 0.7, clock.tick())], snapshot=1)
    study.tell(study.ask().number, "failed", "CorpusError: There is no file.")

    scheduler = TopK(k=1).build(RUNGS, 2)
    assert [trial.number for trial in restore(open_study(plain), scheduler)] == [0]
    assert scheduler.verdict(0) == "CONTINUE"  # else it would wait for ever


def test_a_driver_killed_while_it_tells_an_end_tells_it_again(
    open_study: Callable[[Space], Study], plain: Space, clock: Clock
) -> None:
    study = open_study(plain)
    trial = study.ask()
    write(trial, [dev(rung, 0.7, clock.tick()) for rung in RUNGS], snapshot=3)
    study._set(trial.number, "status", "completed")  # and no further

    study = open_study(plain)
    assert study.result(trial.number).status == "running"
    restore(study, RungScheduler(RUNGS))
    assert study.study.get_trials()[0].state == TrialState.COMPLETE


def test_restoring_twice_is_restoring_once(open_study: Callable[[Space], Study], space: Space, clock: Clock) -> None:
    study = open_study(space)
    ended(study, 0.8, clock)
    write(study.ask(), [dev(rung, 0.7, clock.tick()) for rung in RUNGS], snapshot=3)
    write(study.ask(), [dev(1, 0.85, clock.tick())], snapshot=1)
    study.study.ask()

    def restored() -> tuple[list[int], list[TrialResult], list[str]]:
        study, scheduler = open_study(space), RungScheduler(RUNGS)
        numbers = [trial.number for trial in restore(study, scheduler)]
        return numbers, study.results(), [scheduler.decide(Arrival(50 + i, PEERS, False, 1, i / 10)) for i in range(10)]

    first = restored()
    assert first[0] == [2]
    assert restored() == first


def test_refilled_rungs_decide_as_those_of_a_search_that_was_never_interrupted(
    open_study: Callable[[Space], Study], space: Space, clock: Clock
) -> None:
    study, scheduler, random = open_study(space), RungScheduler(RUNGS), np.random.default_rng(3)
    records: dict[int, list[dict[str, Any]]] = {}
    alive: list[TrialResult] = []
    for _ in range(60):  # three at a time, each step one of them reaches its next point
        while len(alive) < 3:
            alive.append(study.ask())
            records[alive[-1].number] = []
        trial = alive[random.integers(3)]
        own = records[trial.number]
        own.append(dev(RUNGS[len(own)], float(random.random()), clock.tick()))
        rung, score = own[-1]["rung"], own[-1]["dev/score"]
        write(trial, own, snapshot=len(own), best=False)
        stops = scheduler.decide(Arrival(trial.number, PEERS, trial.baseline is not None, rung, score)) == "STOP"
        if stops or rung == 9:
            alive.remove(trial)
            study.tell(trial.number, "stopped" if stops else "completed", "")

    restored = RungScheduler(RUNGS)
    unfinished = restore(open_study(space), restored)
    assert [trial.number for trial in unfinished] == sorted(trial.number for trial in alive)
    for number in range(1000, 1060):
        point = (number, PEERS, False, RUNGS[int(random.integers(3))], float(random.random()))
        assert restored.decide(Arrival(*point)) == scheduler.decide(Arrival(*point))


def test_rungs_are_refilled_in_order_of_time_not_of_number(
    open_study: Callable[[Space], Study], plain: Space, clock: Clock
) -> None:
    study = open_study(plain)
    slow, fast = study.ask(), study.ask()
    write(fast, [dev(1, 0.3, clock.tick())], snapshot=1)  # alone in its rung then: it went on
    write(slow, [dev(1, 0.8, clock.tick())], snapshot=1)
    assert [trial.number for trial in restore(open_study(plain), RungScheduler(RUNGS))] == [0, 1]


def test_a_journal_with_a_left_lock_and_a_cut_line_is_mended(
    open_study: Callable[[Space], Study], space: Space, clock: Clock, tmp_path: Path
) -> None:
    ended(open_study(space), 0.8, clock)
    journal = tmp_path / "study.journal"
    with journal.open("ab") as file:
        file.write(b'{"op_code": 4, "worker_')
    os.symlink("/gone/study.journal", tmp_path / "study.journal.lock")  # a folder moved meanwhile: Optuna would wait for ever

    mend_journal(tmp_path)
    study = open_study(space)
    assert study.ask().baseline == 1
    assert len(open_study(space).results()) == 2


# ----------------------------------------------------------------------------------------------------- weights, ranking


def test_the_best_three_keep_their_weights_and_ended_trials_no_state(
    open_study: Callable[[Space], Study], plain: Space, clock: Clock
) -> None:
    study = open_study(plain)
    for score in (0.5, 0.9, 0.7, 0.6):
        ended(study, score, clock)
    running = study.ask()
    write(running, [dev(1, 0.99, clock.tick())], snapshot=1)
    best = study.keep_best()
    assert best is not None
    assert best.number == 1
    kept = [(trial.folder / "best").exists() for trial in study.results()]
    assert kept == [False, True, True, True, True]
    assert [(trial.folder / "state").exists() for trial in study.results()] == [False] * 4 + [True]


def test_a_moved_search_can_be_read(open_study: Callable[[Space], Study], plain: Space, clock: Clock, tmp_path: Path) -> None:
    study = open_study(plain)
    ended(study, 0.8, clock)
    study.keep_best()
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    tmp_path.rename(moved)
    assert (moved / "best" / "heads.safetensors").read_text() == "weights of 0"
    [trial] = read_results(moved, "quick")
    assert (trial.status, trial.score) == ("completed", 0.8)
    assert restore(Study(moved, plain, 7), RungScheduler(RUNGS)) == []


def test_best_follows_the_best(open_study: Callable[[Space], Study], plain: Space, clock: Clock) -> None:
    study = open_study(plain)
    assert study.keep_best() is None
    for score in (0.5, 0.9):
        ended(study, score, clock)
        study.keep_best()
    assert (study.folder / "best" / "heads.safetensors").read_text() == "weights of 1"


def test_trials_are_ranked_within_the_fullest_rung(open_study: Callable[[Space], Study], plain: Space, clock: Clock) -> None:
    study = open_study(plain)
    ended(study, 0.9, clock, rung=1)
    ended(study, 0.5, clock)
    ended(study, 0.6, clock)
    assert [trial.number for trial in ranked(study.results())] == [2, 1]


def test_a_failed_trial_is_never_the_best(open_study: Callable[[Space], Study], plain: Space, clock: Clock) -> None:
    study = open_study(plain)
    ended(study, 0.5, clock, rung=3)
    trial = study.ask()
    write(trial, [dev(rung, 0.9, clock.tick()) for rung in RUNGS])
    study.tell(trial.number, "failed", "not finite: The loss of sst became nan.")
    best = study.keep_best()
    assert best is not None
    assert best.number == 0
