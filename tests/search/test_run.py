"""The command line of a search: what it refuses, in process; and whole searches with Ray, as a user starts and breaks them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import psutil
import pytest
import ray
import torch

from minbert_core.config_checks import read_config
from minbert_core.model import load_model
from search import drive, run
from search.plan.folder import lock, read_plan, write_plan
from search.plan.plan import Plan, make_plan
from search.plan.resources import Resources
from search.space.space import make_space, read_space
from search.study.gather import read_results
from search.study.pulse import read_process
from search.study.trials import TrialResult
from search.tracking.store import store_uri

ROOT = Path(__file__).resolve().parents[2]
SPACES = ROOT / "spaces"
QUICK = """\
about: Which rate?
trials: 3
config:
  data: toy
  encoder: tiny
  budget: {examples: 600}
  optimizer: {lr: {log_uniform: [1e-4, 1e-2]}}
"""


@pytest.fixture
def here(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command is typed: a folder with quick.yaml, on a machine without GPUs."""
    (tmp_path / "quick.yaml").write_text(QUICK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return tmp_path


class Typed:
    """A command typed: its exit code, and what it printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
        try:
            self.code = run.main(list(arguments))
        except SystemExit as leave:  # argparse's own way out
            self.code = int(leave.code or 0)
        self.out, self.err = capsys.readouterr()


@pytest.fixture
def typed(here: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Typed]:
    return lambda *arguments: Typed(capsys, arguments)


@pytest.fixture
def begun(here: Path, typed: Callable[..., Typed], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a search that was interrupted in its first trial; none will run either."""
    monkeypatch.setattr(run, "run_search", lambda *_, **__: run.INTERRUPTED)
    assert typed("--space", "quick.yaml").code == run.INTERRUPTED
    (here / "runs" / "quick" / "trials" / "000").mkdir()
    return here / "runs" / "quick"


# -------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ("--space nowhere.yaml", 2, r"Cannot read nowhere\.yaml: No such file or directory\."),
        ("--space quick.yaml --set optimizer/rate=1", 2, r"--set optimizer/rate=1: Unknown key `optimizer/rate`\."),
        ("--space quick.yaml --set optimizer/lr", 2, r"--set takes path=value, as in --set optimizer/lr=2e-5\. Got"),
        ("--space quick.yaml --set gradient=pcgrat", 2, r"Unknown `gradient` kind 'pcgrat'; did you mean 'pcgrad'\?"),
        ("--space quick.yaml --data nowhere --encoder .", 2, r"The data folder /.*/nowhere does not exist\. With `--data DIR`"),
        ("--space quick.yaml --data . --encoder ./none", 2, r"The encoder folder none does not exist\."),
        ("--space quick.yaml --trials 0", 2, r"--trials: must be a whole number of 1 or more\. Got '0'\."),
        ("--space quick.yaml --hours 0", 2, r"--hours: must be a number above 0, as in 1\.5\. Got '0'\."),
        ("--space quick.yaml --hours 2h", 2, r"--hours: must be a number above 0, as in 1\.5\. Got '2h'\."),
        ("--space quick.yaml --hours inf", 2, r"--hours: must be a number above 0, as in 1\.5\. Got 'inf'\."),
        ("--space quick.yaml --gpus many", 2, r"--gpus: must be a whole number or auto\. Got 'many'\."),
        ("--space quick.yaml --gpus-per-trial 1.5", 2, r"--gpus-per-trial: must be above 0 and at most 1: a trial or model"),
        ("--space quick.yaml --gpus-per-trial 0", 2, r"--gpus-per-trial: must be above 0 and at most 1"),
        ("--space quick.yaml --seed -1", 2, r"--seed: must be a whole number of 0 or more\. Got '-1'\."),
        ("--space quick.yaml --name a/b", 2, r"--name: may consist of a-z, 0-9, _ and -\. Got 'a/b'\."),
        ("--space quick.yaml --name=-x", 2, r"--name: must not begin with -, as options do\. Got '-x'\."),
        ("--space quick.yaml --resume=--x", 2, r"--resume: must not begin with -, as options do\. Got '--x'\."),
        ("--space quick.yaml --retries=-1", 2, r"--retries: must be a whole number of 0 or more\. Got '-1'\."),
        ("--space quick.yaml --patience 0", 2, r"--patience: must be a number above 0, as in 1\.5\. Got '0'\."),
        ("--space quick.yaml --retry-failed", 2, r"--retry-failed runs the failed trials of a search again\. Give it with --r"),
        ("--space quick.yaml --cpus-per-trial 5000", 3, r"--cpus-per-trial 5000 asks for more than this machine's \d+ cores\."),
        ("--space quick.yaml --address head:x", 2, r"--address: must be HOST:PORT\. Got 'head:x'\."),
        ("--space quick.yaml --address 127.0.0.1:9", 3, r"No Ray cluster answers at 127\.0\.0\.1:9 \(Connection refused\)\."),
        ("", 2, r"Give --space FILE \(a new search\), --resume NAME \(resume one\), or both"),
        ("--space quick.yaml --resume a/b", 2, r"The search's name, given with --resume, may consist of a-z, .* Got 'a/b'\."),
        ("--space quick.yaml --resume quick --name quick", 2, r"--resume already names the search\. Omit --name"),
        ("--resume quick", 2, r"There is no search 'quick' in /.*/runs\."),
        ("--space quick.yaml --tracking-uri mlruns", 2, r"--tracking-uri: MLflow 3 no longer logs to folders\. Got 'mlruns'\."),
        ("--space quick.yaml --tracking-uri http://127.0.0.1:9", 3, r"No MLflow server answers at http://127\.0\.0\.1:9 \(Con"),
        ("--space q.yaml --tracking_uri postgresql://me:pw@h", 2, r"unrecognized arguments: .* postgresql://\*\*\*@h\n"),
        ("--space q.yaml --tracking-uri http://h/?token=pw", 2, r"no password and no token\. Got 'http://h/\?\*\*\*'\."),
        ("--status quick", 2, r"There is no search 'quick' in /.*/runs\."),
    ],
)
def test_what_cannot_run_is_refused_in_a_sentence(
    typed: Callable[..., Typed], here: Path, arguments: str, code: int, sentence: str
) -> None:
    refused = typed(*shlex.split(arguments))
    assert refused.code == code
    assert re.search(sentence, refused.err), refused.err
    assert "Traceback" not in refused.err
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("cache", "runs", "sentence"),
    [
        (
            "file/c",
            "runs",
            r"Cannot write {}/c/minbert/.*: Not a directory\. Set XDG_CACHE_HOME to a folder that you can w",
        ),
        ("c", "file/r", r"Cannot write {}/r/quick: Not a directory\. Use --runs to give a folder that you can write\."),
    ],
)
def test_a_place_that_cannot_be_written_is_named_with_the_way_out(
    typed: Callable[..., Typed], here: Path, monkeypatch: pytest.MonkeyPatch, cache: str, runs: str, sentence: str
) -> None:
    (here / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / cache))
    refused = typed("--space", "quick.yaml", "--runs", runs)
    assert refused.code == 3
    assert re.match(sentence.format(here / "file"), refused.err), refused.err
    assert refused.err.count("\n") == 1


def test_a_tilde_is_the_home_folder_wherever_a_path_is_typed(
    typed: Callable[..., Typed], here: Path, data: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.setattr(run, "run_search", lambda *_, **__: 0)
    (here / "base.yaml").write_text(QUICK)
    (here / "quick.yaml").write_text("extends: ~/base.yaml\n")
    paths = ["--space=~/quick.yaml", "--runs=~/found", "--data=~/data", "--encoder=~/encoder"]
    done = typed(*paths, "--tracking-uri=sqlite:///~/my.db")
    assert (done.code, done.err) == (0, "")
    plan = read_plan(here / "found" / "quick")
    assert (plan.data, plan.tracking_uri) == (str(data), f"sqlite:///{here}/my.db")
    assert not (here / "~").exists()


def test_every_typo_of_a_space_is_named_with_its_line(typed: Callable[..., Typed], here: Path) -> None:
    (here / "quick.yaml").write_text(QUICK.replace("trials: 3", "trails: 3").replace("optimizer:", "optimiser:"))
    refused = typed("--space", "quick.yaml")
    assert refused.code == 2
    assert "quick.yaml:2: Unknown key `trails` in a space; did you mean 'trials'?" in refused.err


GPUS = ["--space", "quick.yaml", "--set", "optimizer/lr={choice: [1e-3, 1e-4]}", "--trials", "4"]


def test_too_many_gpus_are_refused_with_a_line_that_works_here(
    typed: Callable[..., Typed], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = typed(*GPUS, "--gpus", "4")
    assert refused.code == 3
    sentence, line, how_long = refused.err.strip().splitlines()
    assert sentence.startswith("--gpus 4 asks for more than this machine has (no GPU). This works here, ")
    words = shlex.split(line)
    assert words == ["python", "-m", "search.run", *GPUS, "--gpus", "0"]
    assert how_long == "(--dry-run first estimates the time.)"
    monkeypatch.setattr(run, "run_search", lambda *_, **__: 0)
    assert typed(*words[3:]).code == 0


def test_a_used_name_is_refused(typed: Callable[..., Typed], begun: Path) -> None:
    refused = typed("--space", "quick.yaml", "--name", "quick")
    assert refused.code == 3
    assert "The name 'quick' is used" in refused.err
    typed("--space", "quick.yaml")
    assert read_plan(begun.with_name("quick-2")).name == "quick-2"


@pytest.mark.parametrize(
    "arguments",
    [
        "--space nowhere.yaml",
        "--space quick.yaml --set optimizer/rate=1",
        "--space quick.yaml --gpus 4",
        "--space quick.yaml --data nowhere --encoder .",
        "--space quick.yaml --trials 1 --set baselines=[{},{}]",
        "--space quick.yaml --name quick",
        "--resume quick --trials 2",
        "--resume nobody",
    ],
)
@pytest.mark.usefixtures("begun")
def test_a_dry_run_refuses_what_a_run_would_in_the_same_words(typed: Callable[..., Typed], arguments: str) -> None:
    real, dry = typed(*shlex.split(arguments)), typed(*shlex.split(arguments), "--dry-run")
    assert real.code == dry.code > 0
    assert real.err == dry.err.replace(" --dry-run", "")  # which the line that works repeats, too


def test_a_dry_run_prints_plan_and_samples_and_starts_nothing(
    typed: Callable[..., Typed], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "measured_lines", lambda *_: ["estimate"])  # tests/search/cost measures
    dry = typed("--space", str(SPACES / "quickstart.yaml"), "--dry-run")
    assert dry.code == 0
    words = [line.split()[0] for line in dry.out.splitlines() if not line.startswith(" ")]
    assert words[:8] == ["search", "data", "encoder", "machine", "objective", "budget", "trials", "searched"]
    assert words.count("baseline") == 1
    assert words.count("sample") == 3
    assert "estimate" in words
    assert "examples per full trial, about" in dry.out
    folder = here / "runs" / "quickstart"
    assert dry.out.splitlines()[-1] == f"Nothing was started. Without --dry-run the search goes to {folder}."
    assert [path.name for path in here.iterdir()] == ["quick.yaml"]


def test_ctrl_c_before_anything_started_leaves_nothing(
    typed: Callable[..., Typed], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "make_plan", interrupted)
    stopped = typed("--space", "quick.yaml")
    assert (stopped.code, stopped.err) == (130, "Interrupted before anything started.\n")
    assert not (here / "runs").exists()


# ---------------------------------------------------------------------------------------------------- record and resume


def test_a_searchs_record_is_whole_before_its_first_trial(begun: Path) -> None:
    plan = read_plan(begun)
    assert (plan.command, plan.trials) == (["--space", "quick.yaml"], 3)
    space = read_space(begun / "space.yaml")
    assert list(space.domains()) == ["optimizer/lr"]
    assert space.document["config"]["machine"] == {"device": "cpu", "threads": 1, "precision": "float32"}


def test_folders_in_the_record_are_absolute(
    typed: Callable[..., Typed], here: Path, data: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "run_search", lambda *_, **__: 0)
    assert typed("--space", "quick.yaml", "--data", "data", "--encoder", "encoder").code == 0
    plan = read_plan(here / "runs" / "quick")
    assert (plan.data, plan.encoder) == (str(data), str(encoder))


def test_a_search_over_encoders_goes_on_from_anywhere(
    typed: Callable[..., Typed], here: Path, data: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[Plan] = []
    monkeypatch.setattr(run, "run_search", lambda folder, plan, *_, **__: plans.append(plan) or 0)
    shutil.copytree(encoder, here / "other")
    choice = "encoder/checkpoint={choice: [./encoder, ./other]}"
    assert typed("--space", "quick.yaml", "--data", "data", "--set", choice).code == 0
    monkeypatch.chdir("/")
    assert typed("--resume", "quick", "--runs", str(here / "runs")).code == 0
    for plan in plans:
        taken = plan.space.sample(lambda name, domain: domain.middle("./other")).config()
        assert taken.encoder.checkpoint == str(here / "other")


def test_a_resume_may_raise_the_trials_and_no_more(typed: Callable[..., Typed], begun: Path) -> None:
    before = (begun / "space.yaml").read_bytes()
    assert typed("--resume", "quick").code == run.INTERRUPTED
    assert read_plan(begun).trials == 3
    assert typed("--resume", "quick", "--trials", "5").code == run.INTERRUPTED
    assert read_plan(begun).trials == 5
    fewer = typed("--resume", "quick", "--trials", "4")
    assert (fewer.code, fewer.err) == (2, "--trials may only be raised. The search has 5. Got 4.\n")
    assert (begun / "space.yaml").read_bytes() == before


def test_the_store_that_was_asked_for_is_kept_until_another_is(
    typed: Callable[..., Typed], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "run_search", lambda *_, **__: 0)
    folder = here / "runs" / "quick"
    assert typed("--space", "quick.yaml", "--tracking-uri", "sqlite:///elsewhere/store.db").code == 0
    before = read_plan(folder)
    assert before.tracking_uri == f"sqlite:///{here}/elsewhere/store.db"
    assert typed("--resume", "quick").code == 0
    assert read_plan(folder) == before
    assert typed("--resume", "quick", "--tracking-uri", "sqlite:///other.db").code == 0
    assert read_plan(folder) == replace(before, tracking_uri=f"sqlite:///{here}/other.db")


def test_a_search_that_runs_cannot_be_resumed(typed: Callable[..., Typed], begun: Path) -> None:
    with lock(begun):
        refused = typed("--resume", "quick")
    assert refused.code == 3
    assert f"is running already (pid {os.getpid()} on " in refused.err


def test_changed_data_refuse_a_resume(
    typed: Callable[..., Typed], data: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "run_search", lambda *_, **__: 0)
    typed("--space", "quick.yaml", "--data", "data", "--encoder", "encoder")
    path = data / "ids-sst-dev.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    refused = typed("--resume", "quick")
    assert refused.code == 3
    assert refused.err.startswith(f"The data in {data} differs from the search's data (sst-dev), so its trials could not be")


def test_a_record_of_a_newer_version_is_refused(typed: Callable[..., Typed], begun: Path) -> None:
    write_plan(begun, replace(read_plan(begun), format=99))
    refused = typed("--resume", "quick")
    assert refused.code == 2
    assert "has format 99. This version reads up to" in refused.err


def test_a_search_goes_on_on_the_hardware_it_began_on(
    typed: Callable[..., Typed], begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_plan(begun, replace(read_plan(begun), gpus=1, gpus_per_trial=1.0))
    refused = typed("--resume", "quick")
    assert refused.code == 3
    assert "started on GPUs and would now resume on the CPU" in refused.err

    write_plan(begun, replace(read_plan(begun), gpus=0, gpus_per_trial=0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert typed("--resume", "quick").code == run.INTERRUPTED  # on the CPU, as it began
    assert "started on the CPU and would now resume on GPUs" in typed("--resume", "quick", "--gpus", "1").err


def test_a_ray_that_does_not_start_is_refused_and_the_search_can_go_on(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> None:
        raise Exception("The current node timed out during startup.\nmore")

    monkeypatch.setattr(ray, "init", fail)
    refused = Typed(capsys, ("--space", "quick.yaml", "--runs", "elsewhere/runs"))
    assert refused.code == 3
    assert refused.err.startswith("Ray did not start. Is this machine overloaded")
    assert refused.err.endswith("Ray's message: The current node timed out during startup.\n")
    assert "resume    python -m search.run --resume quick --runs elsewhere/runs" in refused.out.splitlines()
    assert mlflow_runs(here / "elsewhere", "quick")[0].info.status == "FAILED"


def test_a_search_logs_to_the_store_that_was_asked_for(
    typed: Callable[..., Typed], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> None:
        raise Exception("no")

    monkeypatch.setattr(ray, "init", fail)
    refused = typed("--space", "quick.yaml", "--tracking-uri", "sqlite:///elsewhere/store.db")
    assert refused.code == 3
    uri = f"sqlite:///{here}/elsewhere/store.db"
    assert f"--backend-store-uri {uri} " in refused.out
    assert not (here / "mlflow.db").exists()
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    [parent] = client.search_runs([client.get_experiment_by_name("quick").experiment_id])
    assert parent.data.tags["search_id"] == read_plan(here / "runs" / "quick").id
    rows = {found.dataset.name: json.loads(found.dataset.profile)["num_rows"] for found in parent.inputs.dataset_inputs}
    sizes = {"train": 2000, "dev": 400}
    assert rows == {f"{task}-{split}": sizes[split] for task in ("sst", "para", "sts") for split in sizes}


@pytest.mark.parametrize(
    ("trial", "recorded", "interrupted", "code", "status"),
    [
        ("completed", True, False, 0, "FINISHED"),
        ("failed", True, False, 1, "FAILED"),
        ("completed", False, False, 4, "FINISHED"),
        ("failed", False, False, 1, "FAILED"),
        ("completed", True, True, 130, "KILLED"),
        ("completed", False, True, 130, "KILLED"),
        ("paused at 1/9", True, False, 0, "FINISHED"),
        ("paused at 1/9", False, False, 4, "FINISHED"),
        ("paused at 0/9", True, False, 1, "FAILED"),
        ("paused at 1/9", True, True, 130, "KILLED"),
    ],
)
def test_the_exit_code_says_how_a_search_ended(
    here: Path, capsys: pytest.CaptureFixture[str], trial: str, recorded: bool, interrupted: bool, code: int, status: str
) -> None:
    plan = make_plan("quick", make_space("quick", read_space(here / "quick.yaml").document), 0, 1, Resources(1, 0, 1, 0))
    completed, paused = trial == "completed", trial.startswith("paused")
    names = ("norm", "mean", "score", "sst")
    dev = {"kind": "dev", "rung": 1, "examples": 67, "passes": 67, "seconds": 1.0, "time_ms": 1}
    dev |= {f"dev/{name}": 0.5 for name in names}
    known: Any = "running" if paused else trial
    (here / "config.yaml").write_text("data: toy\nencoder: tiny\n")
    result = TrialResult(0, known, "", {}, None, here, [dev] if trial == "paused at 1/9" else [])
    ends: list[str] = []

    def close(status: str) -> bool:
        ends.append(status)
        return recorded

    tracker: Any = SimpleNamespace(submit=lambda *_: None, close=close, error="The disk is full.")
    shown: list[str] = []
    narrator: Any = SimpleNamespace(tasks=["sst"], show=shown.extend)
    assert (
        drive.close(here / "runs" / "quick", plan, [result], narrator, tracker, interrupted, store_uri(here / "runs")) == code
    )
    assert ends == [status]
    err = capsys.readouterr().err
    assert ("The disk is full." in err) == (not recorded)
    assert ("but MLflow lacks some records. This logs them again: python -m search.run --resume quick" in err) == (not recorded)
    [row] = [line for line in shown if line.startswith("| 000")]
    assert f"| {'paused' if paused else trial}" in row
    goes_on = interrupted or paused
    assert any(line.startswith("resume    python -m search.run --resume quick") for line in shown) == goes_on
    sentence = "paused    1 trial, and 0 not started: no time was left for another evaluation"
    assert (sentence in shown) == (paused and not interrupted)
    assert any(line.startswith("reasons ") for line in shown) == (trial == "failed")
    assert any("best_to_test.py --search quick" in line for line in shown) == (completed and not interrupted)


# ------------------------------------------------------------------------------------------------ whole searches, with Ray


class Search:
    """`python -m search.run` in a process of its own, in a folder of its own; Ray's processes belong to its session."""

    def __init__(self, here: Path, *arguments: str, **environment: str) -> None:
        path = os.pathsep.join(filter(None, [environment.pop("PYTHONPATH", ""), str(ROOT)]))
        self.output: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "search.run", *arguments],
            cwd=here,
            env=os.environ | {"PYTHONPATH": path, "COLUMNS": "200"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    @property
    def stdout(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    def wait_for(self, pattern: str) -> str:
        """The next line that matches."""
        for line in self.stdout:
            self.output.append(line)
            if re.search(pattern, line):
                return line
        raise AssertionError(f"no line {pattern!r} in:\n{''.join(self.output)}")

    def end(self) -> int:
        """The exit code, once it has ended."""
        self.output += self.stdout
        return self.process.wait(timeout=60)

    @property
    def text(self) -> str:
        return "".join(self.output)

    def processes_left(self) -> list[int]:
        left = []
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = status.read_text().rpartition(")")[2].split()  # state, parent, group, session, …
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == self.process.pid and fields[0] != "Z":
                left.append(int(status.parent.name))
        return left


@pytest.fixture
def search(tmp_path: Path, cache: Path, store: Path) -> Iterator[Callable[..., Search]]:
    shutil.copy(store, tmp_path / "mlflow.db")
    started: list[Search] = []

    def start(*arguments: str, **environment: str) -> Search:
        started.append(Search(tmp_path, *arguments, **environment))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()
        one.stdout.close()
        for number in one.processes_left():  # of a killed driver, some of Ray's linger
            os.kill(number, signal.SIGKILL)


TINY = ["--data", "toy", "--encoder", "tiny", "--gpus", "0"]


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
    assert load_model(folder / "best")[1] == read_config((folder / "best").resolve().parent / "config.yaml")
    assert len(list(folder.glob("trials/*/best"))) <= 3
    log = (folder / "log.txt").read_text()
    assert f"\n{num_trials} trials: " in log
    assert "\n| trial " in log
    return trials


def mlflow_runs(here: Path, name: str) -> tuple[Any, dict[int, Any]]:
    """The parent run and the children by trial number, of which there is one each."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store_uri(here / "runs"))
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    [parent] = [found for found in runs if found.data.tags["role"] == "search"]
    children = [found for found in runs if found.data.tags["role"] == "trial"]
    numbers = {int(found.data.tags["trial_number"]): found for found in children}
    assert len(numbers) == len(children)
    assert all(found.data.tags["mlflow.parentRunId"] == parent.info.run_id for found in children)
    return parent, numbers


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
    while (left := stopped.processes_left()) and time.monotonic() < deadline:
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
