"""Going on with a search: where it was moved, and by the command that starts it, too; with Ray where a search is broken off."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from minbert_core.commands import REFUSED, WRONG, Refused
from minbert_core.inputs import open_inputs
from minbert_core.train.trial import train
from search import run
from search.cluster.storage import Storage
from search.options import SearchOptions, parser
from search.plan.folder import lock, read_plan
from search.plan.plan import Plan
from search.plan.relocated import relocated_config
from search.plan.summary import plan_lines
from search.study.gather import read_results
from search.study.repair import Repairs
from search.study.snapshots import newest_snapshot
from search.tracking.store import store_uri
from tests.search.searching import Search, mlflow_runs, searches

ROOT = Path(__file__).resolve().parents[3]
QUICK = """\
about: Which rate?
trials: 1
config:
  budget: {examples: 5000}
  optimizer: {lr: {log_uniform: [1e-4, 1e-2]}}
"""
FOLDERS = ("--data", "data", "--encoder", "encoder")
Type = Callable[..., tuple[int, str, str]]


@pytest.fixture
def typing_place(tmp_path: Path, data: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command is typed: quick.yaml, data and encoder lie there; no GPU does."""
    (tmp_path / "quick.yaml").write_text(QUICK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return tmp_path


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Plan, bool]]:
    """The plans of the searches that would have run, none of which does, and whether each was resumed."""
    found: list[tuple[Plan, bool]] = []

    def run_search(folder: Path, plan: Plan, options: SearchOptions, clock: Any, repairs: Repairs | None = None) -> int:
        found.append((plan, repairs is not None))
        (folder / "trials" / "000").mkdir(exist_ok=True)
        return run.INTERRUPTED

    monkeypatch.setattr(run, "run_search", run_search)
    return found


@pytest.fixture
def typed(typing_place: Path, capsys: pytest.CaptureFixture[str]) -> Type:
    """typed("--resume", "quick"): exit code, stdout, stderr."""

    def typed(*arguments: str) -> tuple[int, str, str]:
        code = run.main(list(arguments))
        return code, *capsys.readouterr()

    return typed


# ------------------------------------------------------------------------------------------------------ start or resume


START = ("--space", "quick.yaml", "--resume", "job", *FOLDERS)


def test_one_command_starts_a_search_and_goes_on_with_it(
    typed: Type, typing_place: Path, plans: list[tuple[Plan, bool]]
) -> None:
    assert typed(*START)[0] == run.INTERRUPTED
    record = read_plan(typing_place / "runs" / "job")
    assert typed(*START)[0] == run.INTERRUPTED
    assert [(plan.name, resumed) for plan, resumed in plans] == [("job", False), ("job", True)]
    assert read_plan(typing_place / "runs" / "job") == replace(record, moved={})
    assert [path.name for path in (typing_place / "runs").iterdir()] == ["job"]


def test_a_start_that_was_killed_before_its_plan_is_begun_again(
    typed: Type, typing_place: Path, plans: list[tuple[Plan, bool]]
) -> None:
    folder = typing_place / "runs" / "job"
    (folder / "trials").mkdir(parents=True)
    with lock(folder):
        assert typed(*START)[0] == REFUSED  # by whom is still at it
    assert typed(*START)[0] == run.INTERRUPTED
    assert [resumed for _, resumed in plans] == [False]


def test_a_requeued_start_that_was_interrupted_in_its_pretraining_is_resumed(
    typed: Type, typing_place: Path, plans: list[tuple[Plan, bool]]
) -> None:
    assert typed(*START)[0] == run.INTERRUPTED
    folder = typing_place / "runs" / "job"
    (folder / "trials" / "000").rmdir()
    (folder / "pretraining.jsonl").touch()
    assert typed(*START)[0] == run.INTERRUPTED
    assert [resumed for _, resumed in plans] == [False, True]


def test_a_search_of_an_earlier_format_is_shown_and_not_resumed(
    typed: Type, typing_place: Path, plans: list[tuple[Plan, bool]]
) -> None:
    assert typed(*START)[0] == run.INTERRUPTED
    path = typing_place / "runs" / "job" / "plan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
    code, _, said = typed("--resume", "job")
    assert (code, len(plans)) == (REFUSED, 1)
    assert re.search(r"The search job has format 1, .* Use the version that began it \(commit \w+\), or start again", said)
    assert typed("--status", "job")[0] == 0


def test_a_resume_that_is_refused_writes_nothing(typed: Type, typing_place: Path, plans: list[tuple[Plan, bool]]) -> None:
    """Trial 000 has trained, and no file knows what it is. The plan would have changed: by --trials, and by the command."""
    assert typed(*START)[0] == run.INTERRUPTED
    folder = typing_place / "runs" / "job"
    (folder / "trials" / "000" / "metrics.jsonl").touch()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}
    code, _, said = typed("--resume", "job", "--trials", "9")
    assert (code, len(plans)) == (WRONG, 1)
    assert "trials/000 belongs to no trial that is known" in said
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"} == before


@pytest.mark.parametrize("name", ["--resume", "--name"])
def test_a_corrected_space_is_taken_after_a_start_that_failed_before_any_trial(
    typed: Type, typing_place: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fail(folder: Path, *_: object, **__: object) -> int:
        with pytest.raises(FileNotFoundError):  # the study of the start before
            (folder / "study.journal").read_text()
        (folder / "study.journal").write_text("{}")
        raise Refused("Ray did not start.")

    monkeypatch.setattr(run, "run_search", fail)
    for extra in ([], ["--set", "max_length=64", "--seed", "3"]):
        code, _, said = typed("--space", "quick.yaml", name, "job", *FOLDERS, *extra)
        assert (code, said) == (REFUSED, "Ray did not start.\n")
    assert read_plan(typing_place / "runs" / "job").seed == 3
    assert "max_length: 64" in (typing_place / "runs" / "job" / "space.yaml").read_text()


def test_a_search_keeps_its_space_and_seed(typed: Type, typing_place: Path, plans: list[tuple[Plan, bool]]) -> None:
    typed(*START)
    assert "quick.yaml, with --set, now differs from it" in typed(*START, "--set", "max_length=64")[2]
    code, _, said = typed(*START, "--seed", "7")
    assert (code, said) == (REFUSED, "The search job keeps its seed 0. Got --seed 7. Omit it.\n")
    (typing_place / "quick.yaml").write_text(QUICK.replace("1e-2", "1e-1"))
    code, _, said = typed(*START)
    assert code == REFUSED
    assert said.startswith("The search job keeps the space that it began with. quick.yaml, with --set, now differs from it.")
    assert typed("--resume", "job", "--set", "max_length=64")[0] == WRONG
    assert typed("--resume", "job", "--seed", "0")[0] == WRONG
    assert [resumed for _, resumed in plans] == [False]


def _in_a_job(place: Path, script: str, stands_in: dict[str, str], **job: object) -> subprocess.CompletedProcess[str]:
    """Run a Slurm script of the examples with stand-ins for Slurm's own commands, and for those that it starts."""
    bin_folder = place / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    (bin_folder / "activate").write_text(f'PATH="{bin_folder}:$PATH"\n')
    for name, text in stands_in.items():
        (bin_folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (bin_folder / name).chmod(0o755)
    job |= {"SLURM_SUBMIT_DIR": place, "SLURM_JOB_ID": 7, "SLURM_CPUS_PER_TASK": 8, "SLURM_GPUS_ON_NODE": 4}
    environment = os.environ | {name: str(value) for name, value in job.items()} | {"USER": "me"}
    return subprocess.run(
        ["bash", ROOT / "examples" / "slurm" / script], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("code", "state", "requeued"),
    [(130, "RUNNING", True), (130, "COMPLETING", False), (0, "RUNNING", False), (3, "RUNNING", False)],
)
def test_the_slurm_example_starts_or_resumes_and_requeues_what_was_interrupted_but_not_cancelled(
    tmp_path: Path, code: int, state: str, requeued: bool
) -> None:
    database = 'touch "${!###sqlite:///}"'  # of its last argument
    stands_in = {"srun": f'printf "%s\\n" "$@" > srun.txt; {database}; exit {code}', "scontrol": 'echo "$@" > requeued.txt'}
    stands_in["squeue"] = f"echo {state}"
    ended = _in_a_job(tmp_path, "one_node.sbatch", stands_in, SLURM_TMPDIR=tmp_path / "local")
    assert (ended.returncode, ended.stderr) == (code, "")
    _, *command = (tmp_path / "srun.txt").read_text().splitlines()
    assert command[:3] == ["python", "-m", "search.run"]
    options = parser().parse_args(command[3:])
    assert (options.space, options.resume, options.gpus) == (Path("spaces/smart.yaml"), "smart", "4")
    assert (tmp_path / "requeued.txt").exists() == requeued
    assert (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize(("signalled", "code", "requeued"), [(True, 130, True), (False, 0, False), (False, 3, False)])
def test_the_slurm_example_of_several_nodes_starts_ray_with_a_token_and_ends_it_with_the_search(
    tmp_path: Path, signalled: bool, code: int, requeued: bool
) -> None:
    """Run with stand-ins: `ray start` waits until it is ended, the search until it is told to, and the head's port answers."""
    run = 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"'  # srun, without its own options
    both = f'until [ "$(cat {tmp_path}/ray.txt 2>/dev/null | wc -l)" = 2 ]; do sleep 0.05; done; sleep 0.2'  # the script waits
    tell = "kill -USR1 $PPID" if signalled else ":"
    stands_in = {
        "srun": run,
        "scontrol": f'[ "$1" = show ] && printf "n1\\nn2\\n" || echo "$@" > {tmp_path}/requeued.txt',
        "squeue": "echo RUNNING",
        "timeout": "exit 0",
        "ray": f'echo "$@" "$RAY_AUTH_MODE" "$(stat -c %a "$RAY_AUTH_TOKEN_PATH")" >> {tmp_path}/ray.txt; exec sleep 60',
        "python": f'printf "%s\\n" "$@" > {tmp_path}/python.txt; trap "exit 130" USR1; {both}; {tell}; sleep 1; exit {code}',
    }
    began = time.monotonic()
    ended = _in_a_job(
        tmp_path, "several_nodes.sbatch", stands_in, SLURM_TMPDIR=tmp_path, SLURM_JOB_NODELIST="n[1-2]", SLURM_JOB_NUM_NODES=2
    )
    assert (ended.returncode, ended.stderr) == (code, "")
    assert time.monotonic() - began < 30  # Ray was ended
    head, node = sorted((tmp_path / "ray.txt").read_text().splitlines(), key=lambda line: "--head" not in line)
    assert "--head --port=20140" in head
    assert "--address=n1:20140" in node
    ports = "--node-manager-port=20141 --object-manager-port=20142"
    assert all(f"--block {ports} " in line and line.endswith(" token 600") for line in (head, node))
    command = (tmp_path / "python.txt").read_text().splitlines()
    options = parser().parse_args(command[2:])
    assert (options.address, options.resume, options.gpus) == ("n1:20140", "smart", "auto")
    assert not list(tmp_path.glob(".ray-token*"))
    assert (tmp_path / "requeued.txt").exists() == requeued


# ---------------------------------------------------------------------------------------------------------------- moved


def move(start: Path) -> Path:
    """The search, its data and its encoder, moved elsewhere; the new folder, in which nothing has its old name."""
    target = start / "elsewhere"
    target.mkdir()
    shutil.move(start / "runs", target / "searches")
    shutil.move(start / "data", target / "corpora")
    shutil.move(start / "encoder", target / "bert")
    return target


MOVED = ("--runs", "elsewhere/searches", "--data", "elsewhere/corpora", "--encoder", "elsewhere/bert")


def test_a_moved_search_is_the_same_search(typed: Type, typing_place: Path, plans: list[tuple[Plan, bool]]) -> None:
    typed(*START)
    before = read_plan(typing_place / "runs" / "job")
    target = move(typing_place)
    code, _, said = typed("--resume", "job", "--runs", "elsewhere/searches")
    assert (code, said.count("\n")) == (REFUSED, 1)
    assert f"was in {typing_place / 'data'}, which is not here. Give its folder: --data DIR" in said
    assert typed("--resume", "job", *MOVED)[0] == run.INTERRUPTED
    (first, _), (plan, _) = plans
    assert plan.config == first.config
    assert plan.fingerprints() == before.fingerprints
    assert plan.inputs.data_folder == target / "corpora"
    assert plan.inputs.encoder_folder == target / "bert"
    told = [line.split(None, 1)[1] for line in plan_lines(plan) if line.startswith(("data", "encoder"))]
    assert told[0].startswith(f"{target / 'corpora'} (")
    assert told[1] == str(target / "bert")
    assert plan.space.document == first.space.document
    record = read_plan(target / "searches" / "job")
    now = {str(typing_place / "data"): str(target / "corpora"), str(typing_place / "encoder"): str(target / "bert")}
    assert record == replace(before, moved=now)
    assert typed("--resume", "job", "--runs", "elsewhere/searches")[0] == run.INTERRUPTED  # it is remembered
    assert typed(*START[:4], *MOVED)[0] == run.INTERRUPTED  # and so is what start-or-resume began with


# ------------------------------------------------------------------------------------------------------------- with Ray


@pytest.fixture
def started(typing_place: Path) -> Iterator[Callable[..., Search]]:
    yield from searches(typing_place)


def numbers(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The dev records without the times."""
    return [
        {key: value for key, value in record.items() if key not in ("seconds", "time_ms") and not key.startswith("system/")}
        for record in records
        if record["kind"] == "dev"
    ]


def test_a_search_that_slurm_stops_cleanly_and_somebody_moves_comes_out_as_if_it_had_run_through(
    started: Callable[..., Search], typing_place: Path, store: Path
) -> None:
    """Its trials' snapshots pass through a storage, as on a cluster without a shared disk."""
    shutil.copy(store, typing_place / "mlflow.db")
    stopped = started(*START, "--gpus", "0", "--storage", f"file://{typing_place}/bucket")
    stopped.wait_for(r" 000 at 1/9 ")
    asked = time.monotonic()
    stopped.signal_all(signal.SIGUSR1)
    stopped.wait_for("stopping; the trials' states are being saved")
    assert time.monotonic() - asked < 10
    stopped.process.send_signal(signal.SIGINT)  # impatience
    assert stopped.end() == 130, stopped.text
    assert "Traceback" not in stopped.text
    assert "already stopping" in stopped.text
    deadline = time.monotonic() + 30
    while (left := stopped.processes()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []
    [trial] = read_results(typing_place / "runs" / "job", "quick")
    assert trial.status == "running"  # it is not taken for failed
    [bucket] = (typing_place / "bucket").glob("job-*")
    assert newest_snapshot(Storage(f"file://{bucket}") / "trials/000").startswith("0001-")
    assert not (trial.folder / "state").exists()
    parent, children = mlflow_runs(typing_place, "job")
    assert (parent.info.status, children[0].info.status) == ("KILLED", "KILLED")
    [line] = [line for line in stopped.output if line.startswith("resume    ")]
    assert line.split()[1:] == ["python", "-m", "search.run", "--resume", "job"]
    target = move(typing_place)
    (target / "mlflow.db").unlink(missing_ok=True)

    resumed = started(*START[:4], *MOVED, "--gpus", "0")
    assert resumed.end() == 0, resumed.text
    assert "000 resumed from" in resumed.text
    folder = target / "searches" / "job"
    [first] = read_results(folder, "quick")
    assert first.status == "completed"
    inputs = open_inputs(relocated_config(first.config(), read_plan(folder).moved))
    whole = [progress.record for progress in train(first.config(), inputs)]
    assert numbers(first.records) == numbers(json.loads(json.dumps(whole)))
    assert "resumes after" in (first.folder / "log.txt").read_text()
    assert not list(bucket.glob("trials/*"))
    assert (folder / "best" / "heads.safetensors").samefile(first.folder / "best" / "heads.safetensors")

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store_uri(target / "searches"))
    experiment = client.get_experiment_by_name("job")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.tags.get("trial_number", "") for run in runs) == ["", "0"]
    points = client.get_metric_history(next(r for r in runs if r.data.tags.get("trial_number") == "0").info.run_id, "dev/score")
    assert len(points) == 3  # what the old place's store had is told anew
