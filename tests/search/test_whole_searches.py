"""Whole searches with Ray, as a user starts, kills and resumes them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from minbert_core.model import load_model
from search.plan.folder import read_plan
from search.study.gather import read_results
from search.study.pulse import read_process
from search.study.trials import TrialResult
from tests.search.searching import ROOT, TINY, Search, mlflow_runs, searches

SPACES = ROOT / "spaces"


@pytest.fixture
def search(tmp_path: Path, cache: Path, store: Path) -> Iterator[Callable[..., Search]]:
    shutil.copy(store, tmp_path / "mlflow.db")
    yield from searches(tmp_path)


def parts(trial: TrialResult) -> list[int]:
    return [record["rung"] for record in trial.records if record["kind"] == "dev"]


def assert_whole(folder: Path, num_trials: int) -> list[TrialResult]:
    """A finished search's folder: numbers without a gap, records without a hole or a repeat, weights that load."""
    trials = read_results(folder, read_plan(folder).space_name)
    assert [trial.number for trial in trials] == list(range(num_trials))
    assert sorted(path.name for path in (folder / "trials").iterdir()) == [f"{number:03d}" for number in range(num_trials)]
    for trial in trials:
        assert (trial.folder / "config.yaml").exists()
        assert (trial.folder / "log.txt").exists()
        assert not (trial.folder / "state").exists()
        if trial.status != "failed":
            assert parts(trial) == [1, 3, 9][: len(parts(trial))]
            assert trial.status == ("completed" if parts(trial)[-1] == 9 else "stopped")
            for kind in ("train", "dev"):
                examples = [record["examples"] for record in trial.records if record["kind"] == kind]
                assert examples == sorted(set(examples))
            assert trial.config().seed != 0
    assert load_model(folder / "best")[1] in [trial.config() for trial in trials]
    assert len(list(folder.glob("trials/*/best"))) <= 3
    log = (folder / "log.txt").read_text()
    assert f"\n{num_trials} trials: " in log
    assert "\n| trial " in log
    return trials


def assert_healthy(here: Path, name: str, trials: list[TrialResult]) -> None:
    """MLflow's pages of a search that is done."""
    parent, children = mlflow_runs(here, name)
    assert parent.info.status == "FINISHED"
    assert sorted(children) == [trial.number for trial in trials]
    for trial in trials:
        child = children[trial.number]
        assert child.info.status == ("FAILED" if trial.status == "failed" else "FINISHED")
        assert child.data.tags["stop_reason"] == trial.reason
        assert child.data.params == {path: str(value) for path, value in trial.params.items()}
        if trial.points:
            assert child.data.metrics["dev/score"] == pytest.approx(trial.last["dev/score"])
    best = max(trial.score for trial in trials if trial.status == "completed")
    assert parent.data.metrics["best/score"] <= best + 1e-9
    assert parent.data.metrics["trials_done"] == len(trials)


@pytest.mark.parametrize(("name", "num_baselines"), [("full", 3)])  # quickstart: below
def test_the_baselines_of_a_shipped_space_and_one_trial_more_finish(
    search: Callable[..., Search], tmp_path: Path, name: str, num_baselines: int
) -> None:
    num_trials = num_baselines + 1
    space = str(SPACES / f"{name}.yaml")
    one = search("--space", space, *TINY, "--trials", str(num_trials), "--set", "budget/examples=600")
    assert one.end() == 0, one.text
    trials = assert_whole(tmp_path / "runs" / name, num_trials)
    assert_healthy(tmp_path, name, trials)
    assert [trial.baseline for trial in trials] == [*range(num_baselines), None]
    for trial in trials[:num_baselines]:
        assert (trial.status, parts(trial)) == ("completed", [1, 3, 9])  # a baseline runs to the end
    # quiet: the plan, then our own lines, then the table; no box, progress bar or warning of anybody else's
    events = one.text[one.text.index("\nmlflow ") :].strip().splitlines()[1:]
    closing = next(i for i, line in enumerate(events) if not line)
    event = re.compile(r"\[\d\d:\d\d:\d\d\] 00[0-3] (started|at|completed|stopped)")
    assert all(event.match(line) for line in events[:closing]), one.text
    assert events[closing + 1].startswith(f"{num_trials} trials: ")
    assert events[-1] == f"next      python analysis/best_to_test.py --search {name}"


FAILING = """\
trials: 3
baselines: [{}, {optimizer/head_lr_factor: 1e30}]
config:
  data: toy
  encoder: tiny
  budget: {examples: 600}
  optimizer: {lr: 1e-3, head_lr_factor: {choice: [1, 1e30]}}
"""
CRASH = """\
import os, sys
from dataclasses import replace

def die(event, arguments):
    if event == "open" and str(arguments[0]).endswith("trials/002/config.yaml"):
        os._exit(137)

if any("default_worker" in word for word in sys.orig_argv):
    sys.addaudithook(die)
"""


def test_a_trial_that_fails_fails_alone_and_says_why(search: Callable[..., Search], tmp_path: Path) -> None:
    (tmp_path / "failing.yaml").write_text(FAILING)
    (tmp_path / "sitecustomize.py").write_text(CRASH)
    one = search("--space", "failing.yaml", *TINY, PYTHONPATH=str(tmp_path))
    assert one.end() == 0, one.text
    trials = assert_whole(tmp_path / "runs" / "failing", 3)
    assert [trial.status for trial in trials] == ["completed", "failed", "failed"]
    assert re.match(r"not finite: The loss of \w+ became (inf|nan) by step", trials[1].reason)
    assert trials[2].reason == "its process died without an error (killed, perhaps out of memory)"
    assert_healthy(tmp_path, "failing", trials)
    assert "failed: not finite" in one.text


LONG = ["--space", str(SPACES / "quickstart.yaml"), *TINY, "--set", "budget/examples=6000"]


def test_a_killed_search_goes_on_where_it_was(search: Callable[..., Search], tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "quickstart"
    killed = search(*LONG, "--trials", "2")
    number = killed.wait_for(r" at 1/9 ").split()[1]
    killed.process.kill()
    killed.process.wait()
    configs = {path: path.read_bytes() for path in folder.glob("trials/*/config.yaml")}
    assert len(configs) >= 1

    # at once: the killed driver's workers may still run; and a trial more than before
    resumed = search("--resume", "quickstart", "--trials", "3")
    assert resumed.end() == 0, resumed.text
    trials = assert_whole(folder, 3)
    assert_healthy(tmp_path, "quickstart", trials)
    assert {path: path.read_bytes() for path in configs} == configs
    assert re.search(r"\] resumed; [01] of 3 trials have ended, [12] continue\n", resumed.text)
    assert re.search(rf"{number} resumed from [13]/9", resumed.text)
    assert re.search(r"resumes after [1-9]\d+ examples", (folder / "trials" / number / "log.txt").read_text())
    assert "Traceback" not in resumed.text


def test_a_dead_worker_is_retried_and_a_dead_raylet_fails_no_trial(search: Callable[..., Search], tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "quickstart"
    died = search(*LONG, "--trials", "2")
    number = died.wait_for(r" at 1/9 ").split()[1]
    process = read_process(folder / "trials" / number)
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    died.wait_for(rf"{number} died \(killed, perhaps out of memory\); attempt 2 of 2 resumes from [13]/9")
    [raylet] = [child for child in psutil.Process(died.process.pid).children() if child.name() == "raylet"]
    raylet.kill()
    assert died.end() == 3, died.text
    assert "Ray has died (its raylet)" in died.text
    assert "Traceback" not in died.text
    assert "failed" not in {trial.status for trial in read_results(folder, "quickstart")}
    assert mlflow_runs(tmp_path, "quickstart")[0].info.status == "KILLED"

    resumed = search("--resume", "quickstart")
    assert resumed.end() == 0, resumed.text
    trials = assert_whole(folder, 2)
    assert trials[int(number)].deaths == 1
    assert_healthy(tmp_path, "quickstart", trials)


def test_ctrl_c_stops_cleanly_and_prints_the_line_that_goes_on(search: Callable[..., Search], tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "quickstart"
    stopped = search(*LONG, "--trials", "2")
    stopped.wait_for(r" at 1/9 ")
    asked = time.monotonic()
    stopped.process.send_signal(signal.SIGINT)
    stopped.wait_for("stopping; the trials' states are being saved")
    assert time.monotonic() - asked < 5
    stopped.process.send_signal(signal.SIGINT)  # impatience
    assert stopped.end() == 130, stopped.text
    assert "Traceback" not in stopped.text
    assert "already stopping" in stopped.text
    deadline = time.monotonic() + 10
    while (left := stopped.processes()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []

    trials = read_results(folder, "quickstart")
    assert "running" in {trial.status for trial in trials}
    parent, children = mlflow_runs(tmp_path, "quickstart")
    assert parent.info.status == "KILLED"
    killed = {number for number, child in children.items() if child.info.status == "KILLED"}
    assert killed == {trial.number for trial in trials if trial.status == "running"}
    assert any((trial.folder / "state" / "snapshot.pt").exists() for trial in trials)

    [line] = [line for line in stopped.output if line.startswith("resume    ")]
    assert line.split()[1:] == ["python", "-m", "search.run", "--resume", "quickstart"]


PRETRAINED = """\
about: Do trials begin with what was made before them?
trials: 2
rungs: [1]
config:
  budget: {examples: 240}
  stages: [{kind: mlm, texts: [sst], epochs: 3, seed: 7}, multitask]
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


def test_the_best_k_of_the_first_rung_go_on_to_the_end(search: Callable[..., Search], tmp_path: Path) -> None:
    settings = ["--set", "trial_scheduler={kind: top_k, k: 1}", "--set", "rungs=[1, 3, 9]", "--set", "sampler=random"]
    one = search("--space", str(SPACES / "quickstart.yaml"), *TINY, "--trials", "3", "--set", "budget/examples=600", *settings)
    assert one.end() == 0, one.text
    assert "1 baseline runs to the end; the best 1 at 1/9 continue to the end; expected cost: 2.1 full trials" in one.text
    trials = assert_whole(tmp_path / "runs" / "quickstart", 3)
    assert_healthy(tmp_path, "quickstart", trials)
    at_first = {trial.number: trial.points[1]["dev/score"] for trial in trials if trial.baseline is None}
    best = max(at_first, key=lambda number: at_first[number])
    assert {trial.number for trial in trials if trial.status == "completed"} == {0, best}
    assert {trial.reason for trial in trials if trial.status == "stopped"} == {
        "stopped at 1/9: not among the best 1 of the first rung"
    }


def test_a_search_out_of_time_pauses_its_trials_and_prints_the_line_that_goes_on(
    search: Callable[..., Search], tmp_path: Path
) -> None:
    # from 1/81 to the end it is 80 times as far as to 1/81, and more than is left of these 30 seconds on any machine
    budget = ["--set", "rungs=[1, 81]", "--set", "budget/examples=243_000", "--set", "trial_scheduler=none"]
    one = search("--space", str(SPACES / "quickstart.yaml"), *TINY, "--trials", "2", *budget, "--hours", str(30 / 3600))
    assert one.end() == 0, one.text
    folder = tmp_path / "runs" / "quickstart"
    trials = read_results(folder, "quickstart")
    assert {(trial.status, trial.rung) for trial in trials} == {("running", 1)}
    assert re.search(
        r"^paused    [12] trials?, and [01] not started: no time was left for another evaluation$", one.text, re.MULTILINE
    )

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
    again = search(*shlex.split(line)[4:], "--hours", "1e-6")  # no time at all
    assert again.end() == 0, again.text
    assert [(path, path.stat().st_mtime_ns) for path in sorted(folder.glob("trials/*/state/snapshot.pt"))] == before
    assert_paused()
