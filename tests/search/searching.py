"""A search in a process of its own, as a user types it, for the tests that break it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from minbert_core.model import load_model
from search.plan.folder import read_plan
from search.study.gather import read_results
from search.study.trials import TrialResult
from search.tracking.store import store_uri

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--data", "toy", "--encoder", "tiny", "--gpus", "0"]


class Search:
    """`python -m search.run`. Ray's processes belong to its session."""

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

    @property
    def text(self) -> str:
        return "".join(self.output)

    def wait_for(self, pattern: str) -> str:
        """Return the next line that matches."""
        for line in self.stdout:
            self.output.append(line)
            if re.search(pattern, line):
                return line
        raise AssertionError(f"no line {pattern!r} in:\n{self.text}")

    def end(self) -> int:
        """Return the exit code, once it has ended."""
        self.output += self.stdout
        return self.process.wait(timeout=120)

    def processes(self) -> list[int]:
        """Return the live processes of its session."""
        live = []
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = status.read_text().rpartition(")")[2].split()  # state, parent, group, session, …
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == self.process.pid and fields[0] != "Z":
                live.append(int(status.parent.name))
        return live

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to each of its processes, as Slurm does with all of a step's."""
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)


def searches(here: Path) -> Iterator[Callable[..., Search]]:
    """Yield what starts a search in `here`. At the end all their processes are killed, those of a killed driver's Ray too."""
    started: list[Search] = []

    def start(*arguments: str, **environment: str) -> Search:
        started.append(Search(here, *arguments, **environment))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()
        one.stdout.close()
        one.signal_all(signal.SIGKILL)


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


def rungs(trial: TrialResult) -> list[int]:
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
            assert rungs(trial) == [1, 3, 9][: len(rungs(trial))]
            assert trial.status == ("completed" if rungs(trial)[-1] == 9 else "stopped")
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
