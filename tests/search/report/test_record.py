"""The runs that MLflow should show of a search, from the search's events; no store is involved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search.report.record import Recorder
from search.study.trials import TrialResult
from search.tracking.runs import Runs, SearchRecord

TASKS = ["sst", "sts"]


class Direct:
    """A tracker without a thread and a store: it makes each call at once."""

    def __init__(self) -> None:
        self.runs = Runs(SearchRecord("sqlite:////none.db", "smart"))

    def submit(self, method: Callable[..., None], *arguments: Any, **keywords: Any) -> None:
        method(self.runs, *arguments, **keywords)


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path, TASKS, 9, Direct())  # type: ignore[arg-type]


@pytest.fixture
def runs(recorder: Recorder) -> Runs:
    return recorder.tracker.runs  # type: ignore[attr-defined,no-any-return]


def test_mlflow_hears_of_a_trial_from_begin_to_end(recorder: Recorder, runs: Runs, trial: Callable[..., TrialResult]) -> None:
    recorder.started(trial(0, None, status="running"), resumed=False)
    assert runs.trials[0].points() == []
    recorder.reported(trial(0, 0.6, rung=1, status="running"), [{}])
    assert ("dev/score", 0.6, 100, 1_750_000_000_000) in runs.trials[0].points()
    assert runs.points == []
    recorder.ended(trial(0, 0.6))
    run = runs.trials[0]
    assert (run.name, run.params, run.config_file.name) == ("000 lr=3.21e-05", {"optimizer/lr": 3.21e-5}, "config.yaml")
    assert run.tags == {"recipe": "multitask"}
    assert (run.status, run.stop_reason, run.ended_ms) == ("FINISHED", "completed", 1_750_000_000_000)
    best = {"best/score": 0.6, "best/sst": 0.441, "best/sts": -0.02, "best/norm": 0.6, "best/mean": 0.4, "trials_done": 1}
    assert {key: value for key, value, *_ in runs.points} == best
    assert {step for _, _, step, _ in runs.points} == {1}


@pytest.mark.parametrize(("status", "in_mlflow"), [("completed", "FINISHED"), ("stopped", "FINISHED"), ("failed", "FAILED")])
def test_only_a_fault_is_failed_in_mlflow(
    recorder: Recorder, runs: Runs, trial: Callable[..., TrialResult], status: str, in_mlflow: str
) -> None:
    recorder.started(trial(0, None, status="running"), resumed=False)
    recorder.ended(trial(0, status=status, reason="because"))
    assert (runs.trials[0].status, runs.trials[0].stop_reason) == (in_mlflow, "because")


def test_a_paused_trial_is_finished_in_mlflow_until_it_resumes(
    recorder: Recorder, runs: Runs, trial: Callable[..., TrialResult]
) -> None:
    recorder.started(trial(0, None, status="running"), resumed=False)
    recorder.paused(trial(0, rung=1, status="running"), "no time left")
    assert (runs.trials[0].status, runs.trials[0].stop_reason) == ("FINISHED", "paused at 1/9: no time left")
    recorder.started(trial(0, rung=1, status="running"), resumed=True)
    assert (runs.trials[0].status, runs.trials[0].stop_reason) == ("RUNNING", "")


def test_the_best_is_the_highest_score_at_the_highest_rung_of_a_trial_that_did_not_fail(
    recorder: Recorder, runs: Runs, trial: Callable[..., TrialResult]
) -> None:
    for known in (trial(0, 0.9, rung=1, status="stopped"), trial(1, 0.5), trial(2, 0.8, status="failed"), trial(3, 0.6)):
        recorder.started(known, resumed=False)
        recorder.ended(known)
    assert [value for key, value, *_ in runs.points if key == "best/score"] == [0.9, 0.5, 0.5, 0.6]


def test_many_reports_of_a_trial_are_one_source_of_measurements(
    recorder: Recorder, runs: Runs, trial: Callable[..., TrialResult]
) -> None:
    for rung in (1, 3, 9):
        recorder.started(trial(0, None, status="running"), resumed=True)
        recorder.reported(trial(0, 0.6, rung=rung, status="running"), [{}])
    assert len(runs.trials[0].sources) == 1


def test_a_resumed_search_makes_the_same_runs(
    recorder: Recorder, runs: Runs, trial: Callable[..., TrialResult], tmp_path: Path
) -> None:
    record = {"kind": "pretrain", "key": "3f2a", "pretrain/examples": 5, "examples": 0, "time_ms": 1, "seconds": 1.0}
    record |= {"pretrain/mlm_loss": 2.0}
    (tmp_path / "pretraining.jsonl").write_text(json.dumps(record) + "\n")
    recorder.replay([trial(0, 0.6), trial(1, 0.5, rung=1, status="running"), trial(2, None, status="failed")])
    assert {number: run.status for number, run in runs.trials.items()} == {0: "FINISHED", 1: "RUNNING", 2: "FAILED"}
    assert ("dev/score", 0.5, 100, 1_750_000_000_000) in runs.trials[1].points()
    assert ("pretrain/3f2a/mlm_loss", 2.0, 5, 1) in runs.points
    assert [value for key, value, *_ in runs.points if key == "trials_done"] == [1, 2]
