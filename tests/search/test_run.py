"""The command line of a search, in process: what it refuses, what it writes down, and how it ends."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch

from search import drive, run
from search.plan.folder import lock, read_plan, write_plan
from search.plan.plan import Plan, make_plan
from search.plan.resources import Resources
from search.space.space import make_space, read_space
from search.study.trials import TrialResult
from search.tracking.store import store_uri
from tests.search.searching import mlflow_runs

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
        ("--space quick.yaml --encoder=", 2, r"--encoder: must not be empty\."),
        ("--space quick.yaml --trials ²", 2, r"--trials: must be a whole number of 1 or more\. Got '²'\."),
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
        ("--space quick.yaml --address head:x", 2, r"--address: must be HOST:PORT or auto\. Got 'head:x'\."),
        ("--space quick.yaml --address 127.0.0.1:9", 3, r"No Ray cluster answers at 127\.0\.0\.1:9 \(Connection refused\)\."),
        ("--space quick.yaml --storage bucket/minbert", 2, r"--storage: must be a URI that begins with one of s3://, gs://"),
        ("--space quick.yaml --storage s3://me:pw@b", 2, r"must hold no password and no token, .* Got 's3://\*\*\*@b'\."),
        ("--space quick.yaml --storage s3://b?token=pw", 2, r"must hold no password and no token, .* Got 's3://b\?\*\*\*'\."),
        ("--space quick.yaml --storage file:///proc/x", 3, r"The storage at file:///proc/x is at fault: .*\. Credentials are"),
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

    tracker: Any = SimpleNamespace(submit=lambda *_: None, close=close, error="The disk is full.", experiment="1")
    shown: list[str] = []
    narrator: Any = SimpleNamespace(tasks=["sst"], show=shown.extend)
    uri, again = store_uri(here / "runs"), "python -m search.run --resume quick"
    assert drive.close(here / "runs" / "quick", plan, [result], narrator, tracker, interrupted, uri, again) == code
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
    for command in ("best_to_test.py --search quick", "export.py "):
        assert any(command in line for line in shown) == (completed and not interrupted)


def test_print_writes_the_composed_space_as_a_file_that_runs_by_itself(here: Path, typed: Callable[..., Typed]) -> None:
    (here / "wide.yaml").write_text("extends: quick.yaml\ntrials: 9\n")
    done = typed("--space", "wide.yaml", "--set", "optimizer/lr=2e-5", "--set", "gradient={choice: [sum, pcgrad]}", "--print")
    assert (done.code, done.err) == (0, "")
    (here / "alone" / "s.yaml").parent.mkdir()
    (here / "alone" / "s.yaml").write_text(done.out)
    document = read_space(here / "alone" / "s.yaml").document
    assert (document["trials"], document["config"]["optimizer"]) == (9, {"lr": 2e-5})
    assert document["config"]["gradient"] == {"choice": ["sum", "pcgrad"]}
    assert not (here / "runs").exists()
    assert "Give it with --space FILE" in typed("--resume", "quick", "--print").err
