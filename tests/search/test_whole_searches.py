"""Whole searches with Ray, as a user starts, kills and resumes them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from search.run import main
from search.study.gather import read_results
from search.study.pulse import read_process
from tests.search.searching import ROOT, TINY, Search, assert_healthy, assert_whole, mlflow_runs, searches

SPACES = ROOT / "spaces"


@pytest.fixture
def search(tmp_path: Path, cache: Path, store: Path) -> Iterator[Callable[..., Search]]:
    shutil.copy(store, tmp_path / "mlflow.db")
    yield from searches(tmp_path)


FAILING = """\
trials: 2
rungs: [1, 3, 9]
baselines: [{}, {optimizer/head_lr_factor: 1e30}]
config:
  budget: {examples: 6000}
  machine: {threads: 1}
  optimizer: {lr: 1e-3, head_lr_factor: {choice: [1, 1e30]}}
"""


def test_a_trial_fails_alone_a_dead_worker_is_retried_and_a_dead_raylet_fails_no_trial(
    search: Callable[..., Search], tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "failing"
    (tmp_path / "failing.yaml").write_text(FAILING)
    died = search("--space", "failing.yaml", *TINY, "--cpus-per-trial", "2")  # one trial at a time
    died.wait_for(r" 000 at 1/9 ")
    process = read_process(folder / "trials" / "000")
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    died.wait_for(r"000 died \(killed, perhaps out of memory\); attempt 2 of 2 resumes from [13]/9")
    [raylet] = [child for child in psutil.Process(died.process.pid).children() if child.name() == "raylet"]
    raylet.kill()
    assert died.end() == 3, died.text
    assert "Ray has died (its raylet)" in died.text
    assert "Traceback" not in died.text
    assert "failed" not in {trial.status for trial in read_results(folder, "failing")}
    assert mlflow_runs(tmp_path, "failing")[0].info.status == "KILLED"

    resumed = search("--resume", "failing")
    assert resumed.end() == 0, resumed.text
    assert "failed: not finite" in resumed.text
    trials = assert_whole(folder, 2)
    assert [(trial.status, trial.deaths) for trial in trials] == [("completed", 1), ("failed", 0)]
    assert re.match(r"not finite: The loss of \w+ became (inf|nan) by step", trials[1].reason)
    assert_healthy(tmp_path, "failing", trials)


PRETRAINED = """\
about: Do trials begin with what was made before them?
trials: 2
rungs: [1]
config:
  budget: {examples: 240}
  stages: [{kind: mlm, texts: [sst], epochs: 1, seed: 7}, multitask]
  optimizer: {lr: {log_uniform: [1e-4, 1e-2]}}
"""


def test_pretraining_comes_before_the_first_trial_and_after_ctrl_c_it_resumes(
    search: Callable[..., Search], tmp_path: Path, cache: Path
) -> None:
    folder = tmp_path / "runs" / "pretrained"
    (tmp_path / "pretrained.yaml").write_text(PRETRAINED)
    stopped = search("--space", "pretrained.yaml", *TINY)
    stopped.wait_for(r"\] mlm \d+ %  .* left$")
    stopped.process.send_signal(signal.SIGINT)
    assert stopped.end() == 130, stopped.text
    assert "Traceback" not in stopped.text
    assert list(folder.glob("trials/*")) == []
    assert len(list((cache / "minbert" / "pretrained").glob("*.state"))) == 1

    resumed = search("--resume", "pretrained")
    assert resumed.end() == 0, resumed.text
    assert resumed.text.index("] mlm ") < resumed.text.index(" trained in ") < resumed.text.index("] 000 started")
    assert re.search(r"further pretraining mlm \w{8}: .*, trained once, before the trials, shared by 2 trials", resumed.text)
    kept = [json.loads(line) for line in (folder / "pretraining.jsonl").read_text().splitlines()]
    texts = [record["pretrain/examples"] for record in kept]
    assert texts == sorted(texts)
    for trial in read_results(folder, "pretrained"):
        [record] = [record for record in trial.records if record["kind"] == "pretrain"]
        assert not record["made"]


def test_a_search_out_of_time_pauses_its_trials_and_prints_the_line_that_goes_on(
    search: Callable[..., Search], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # from 1/81 to the end it is 80 times as far as to 1/81, and more than is left of these 30 seconds on any machine
    budget = ["--set", "rungs=[1, 81]", "--set", "budget/examples=243_000", "--set", "trial_scheduler=none"]
    one = search("--space", str(SPACES / "quickstart.yaml"), *TINY, "--trials", "1", *budget, "--hours", str(30 / 3600))
    assert one.end() == 0, one.text
    folder = tmp_path / "runs" / "quickstart"
    trials = read_results(folder, "quickstart")
    assert {(trial.status, trial.rung) for trial in trials} == {("running", 1)}
    assert "paused    1 trial, and 0 not started: no time was left for another evaluation\n" in one.text

    def assert_paused() -> None:
        parent, children = mlflow_runs(tmp_path, "quickstart")
        assert parent.info.status == "FINISHED"
        assert {child.info.status for child in children.values()} == {"FINISHED"}
        reasons = {child.data.tags["stop_reason"] for child in children.values()}
        assert reasons == {"paused at 1/81: no time left for its next point"}

    assert_paused()
    before = [(path, path.stat().st_mtime_ns) for path in sorted(folder.glob("trials/*/state/snapshot.pt"))]
    assert len(before) == len(trials)
    [line] = [line for line in one.output if line.startswith("resume    ")]
    monkeypatch.chdir(tmp_path)
    assert main([*shlex.split(line)[4:], "--hours", "1e-6"]) == 0  # no time at all, so no Ray either
    assert [(path, path.stat().st_mtime_ns) for path in sorted(folder.glob("trials/*/state/snapshot.pt"))] == before
    assert_paused()
