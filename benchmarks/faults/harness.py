"""A small search to be broken: the command in its own process and folder, its processes, its records, what must hold of them.

Lab.search -> Search.start -> (a fault) -> Search.end -> Search.start("--resume") -> check_whole, check_same, check_mlflow
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from minbert_core.data.toy import toy_folder
from minbert_core.model import load_model
from search.plan.folder import read_plan
from search.study.gather import read_results
from search.study.trials import TrialResult
from search.tracking.runs import NOT_METRICS
from search.tracking.store import prepare_store, sqlite_uri

ROOT = Path(__file__).resolve().parents[2]
INJECTED = Path(__file__).parent / "injected"
MARK = "MINBERT_FAULTS"  # an environment variable by which all processes of a search are known, those of a killed driver too
NAME = "small"
SPACE = """\
about: A small search to break.
trials: 6
sampler: {kind: tpe, startup: 2}
rungs: [1, 3, 9]
baselines: [{}]
config:
  data: toy
  encoder: tiny
  budget: {examples: 6000}
  tasks: {all: {pooling: {choice: [pooler, mean]}}}
  optimizer: {lr: {log_uniform: [3e-4, 1e-2]}}
  machine: {threads: 1}
"""
ONE_SLOT = ("--cpus-per-trial", "2")  # one trial at a time on two cores, so that the whole course of a search is determined
UNSTABLE = {"time_ms", "seconds", "train/examples_per_second", "system/peak_memory_gb"}  # figures that no run repeats


class Unmet(AssertionError):
    """Something that had to hold after a fault and did not."""


class Omitted(Exception):
    """A fault that cannot be injected here."""


def require(holds: bool, sentence: str) -> None:
    """Raise Unmet with the sentence unless it holds."""
    if not holds:
        raise Unmet(sentence)


@dataclass
class Lab:
    """The place of the faults: a cache with the toy corpus, an empty store to copy, and searches that nothing broke."""

    root: Path
    seed: int = 0
    data: Path | None = None  # the course's files, and a pretrained encoder; without them one fault is omitted
    encoder: Path | None = None
    random: random.Random = field(init=False)
    references: dict[str, list[TrialResult]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)  # of a reference, from its first record to its end
    num_searches: int = 0
    num_writes: int = 0  # of the driver of a search that nothing broke; 0: not counted yet

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.cache, self.store = self.root / "cache", self.root / "mlflow.db"
        toy_folder(self.cache / "minbert")
        prepare_store(sqlite_uri(self.store))

    def search(self, space: str = SPACE) -> Search:
        """Prepare a search in a new folder."""
        self.num_searches += 1
        folder = self.root / f"{self.num_searches:03d}"
        folder.mkdir()
        (folder / f"{NAME}.yaml").write_text(space, encoding="utf-8")
        shutil.copy(self.store, folder / "mlflow.db")
        return Search(folder, self.cache, space)

    def reference(self, space: str = SPACE, *options: str) -> list[TrialResult]:
        """Return the trials of a search that nothing broke, with one slot. It runs once per space."""
        if space not in self.references:
            whole = self.search(space)
            whole.start("--space", f"{NAME}.yaml", *ONE_SLOT, *options)
            require(
                whole.end(1800 if options else 300) == 0,
                f"the search that nothing broke ended with {whole.code}:\n{whole.text[-2000:]}",
            )
            self.references[space] = whole.trials()
            records = [record["time_ms"] for trial in self.references[space] for record in trial.records]
            self.seconds[space] = (max(records) - min(records)) / 1000
            whole.remove()
        return self.references[space]


class Search:
    """One search in its own folder. Every `start` is another process; `resume` continues the same search."""

    def __init__(self, folder: Path, cache: Path, space: str) -> None:
        self.here, self.cache, self.space, self.marks = folder, cache, space, folder / "marks"
        self.marks.mkdir(exist_ok=True)
        self.folder = folder / "runs" / NAME
        self.mark = f"{folder}-{time.time_ns()}"
        self.process: subprocess.Popen[str] | None = None
        self.text, self.code = "", -1

    # ---------------------------------------------------------------------------------------------------- the command

    def start(
        self,
        *options: str,
        fault: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        before: Sequence[str] = (),
        command: Sequence[str] = ("-m", "search.run"),
    ) -> None:
        """Type the command. fault: what its processes suffer (injected/sitecustomize.py). before: a command that runs it."""
        path = [str(INJECTED)] * bool(fault) + [str(ROOT)]
        own = {MARK: self.mark, "XDG_CACHE_HOME": str(self.cache), "PYTHONPATH": os.pathsep.join(path), "COLUMNS": "200"}
        own["RAY_worker_niceness"] = "0"  # Ray's own is 15: what else runs here would be served first
        if fault:
            own["FAULT"] = json.dumps({"marks": str(self.marks), **fault})
        self.text = ""
        self.process = subprocess.Popen(
            [*before, sys.executable, *command, *options, *(() if "--gpus" in options else ("--gpus", "0"))],
            cwd=self.here,
            env={**os.environ, **own, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        self.reader.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self.text += line

    def until(self, holds: Callable[[], Any], what: str, timeout_seconds: float = 180) -> Any:
        """Wait until something holds, and return it."""
        deadline = time.monotonic() + timeout_seconds
        while not (value := holds()):
            require(
                self.running(),
                f"the search ended with {self.process and self.process.poll()} before {what}:\n{self.text[-1500:]}",
            )
            require(time.monotonic() < deadline, f"{what} did not happen within {timeout_seconds:.0f} s:\n{self.text[-1500:]}")
            time.sleep(0.05)
        return value

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def end(self, timeout_seconds: float = 300) -> int:
        """Wait for the end of the command and return its exit code."""
        assert self.process is not None, "nothing was started"
        try:
            self.code = self.process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self.kill_all()
            raise Unmet(f"the command did not end within {timeout_seconds:.0f} s:\n{self.text[-1500:]}") from None
        self.reader.join(5)
        require("Traceback" not in self.text, f"a traceback:\n{self.text[-3000:]}")
        return self.code

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send the driver a signal."""
        assert self.process is not None, "nothing was started"
        self.process.send_signal(number)

    def resume(self, *options: str, code: int = 0, timeout_seconds: float = 300) -> None:
        """Resume the search to its end."""
        self.start("--resume", NAME, *options)
        require(self.end(timeout_seconds) == code, f"--resume ended with {self.code} instead of {code}:\n{self.text[-2000:]}")

    # ---------------------------------------------------------------------------------------------------- its processes

    def processes(self) -> Iterator[psutil.Process]:
        """Find every process of the search, those of a driver that is gone too."""
        return marked(MARK, {self.mark})

    def named(self, word: str) -> list[psutil.Process]:
        """Return the processes whose program has this name."""
        with_word = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if word in Path(process.cmdline()[0]).name:
                    with_word.append(process)
        return with_word

    def workers(self) -> dict[int, psutil.Process]:
        """Return the processes that train, by the number of their trial."""
        return training(self.processes())

    def left(self, timeout_seconds: float = 10) -> list[str]:
        """Return the processes that are left after a while; none, as soon as none is."""
        deadline = time.monotonic() + timeout_seconds
        while (left := list(self.processes())) and time.monotonic() < deadline:
            time.sleep(0.1)
        names = []
        for process in left:
            with contextlib.suppress(psutil.Error):
                names.append(process.name())
        return names

    def kill_all(self) -> None:
        for process in list(self.processes()):
            with contextlib.suppress(psutil.Error):
                process.kill()

    def remove(self) -> None:
        self.kill_all()
        shutil.rmtree(self.here, ignore_errors=True)

    # ------------------------------------------------------------------------------------------------------ its records

    def trials(self) -> list[TrialResult]:
        return read_results(self.folder, read_plan(self.folder).space_name)

    def records(self, number: int, kind: str = "train") -> list[dict[str, Any]]:
        """Return a trial's whole records so far, also while it writes."""
        path = self.folder / "trials" / f"{number:03d}" / "metrics.jsonl"
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        return [record for record in records if record["kind"] == kind]

    def num_records(self) -> int:
        """Count the records of all trials so far."""
        return sum(path.read_bytes().count(b"\n") for path in self.folder.glob("trials/*/metrics.jsonl"))

    def trains(self, steps: int = 1) -> int | None:
        """Return a trial that is at least at this step and still runs, or None."""
        for number in self.workers():
            records = self.records(number)
            if records and records[-1]["step"] >= steps:
                return number
        return None

    def retrained(self) -> int:
        """Count the training records that were made more than once: the work that a fault cost."""
        again = 0
        for log in self.folder.glob("trials/*/log.txt"):
            lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith('{"kind": "train"')]
            steps = Counter(json.loads(line)["step"] for line in lines)
            again += sum(count - 1 for count in steps.values())
        return again


def marked(variable: str, values: Collection[str]) -> Iterator[psutil.Process]:
    """Yield the live processes in whose environment a variable has one of these values."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(variable) in values and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def training(processes: Iterable[psutil.Process]) -> dict[int, psutil.Process]:
    """Return those of the processes that train, which hold a trial's log open, by the number of the trial."""
    found = {}
    for process in processes:
        with contextlib.suppress(psutil.Error):
            for path in (Path(file.path) for file in process.open_files()):
                if path.name == "log.txt" and path.parent.parent.name == "trials":
                    found[int(path.parent.name)] = process
    return found


# ------------------------------------------------------------------------------------------------------------ what must hold


def check_whole(search: Search, num_trials: int, failed: tuple[int, ...] = ()) -> None:
    """Check that each trial is there once, ended, with records without a hole or a repeat, and that the best model loads."""
    trials = search.trials()
    require([trial.number for trial in trials] == list(range(num_trials)), f"trials {[trial.number for trial in trials]}")
    folders = sorted(path.name for path in (search.folder / "trials").iterdir())
    require(folders == [f"{number:03d}" for number in range(num_trials)], f"folders {folders}")
    identities = Counter(trial.config().identity for trial in trials)
    require(max(identities.values()) == 1, "two trials have the same config")
    for trial in trials:
        name = f"trial {trial.number:03d}"
        expected = {"failed"} if trial.number in failed else {"completed", "stopped"}
        require(trial.status in expected, f"{name} is {trial.status}: {trial.reason}")
        for kind in ("train", "dev"):
            steps = [record["step"] for record in trial.records if record["kind"] == kind]
            require(steps == sorted(set(steps)), f"{name}: {kind} steps {steps} repeat or go back")
        if trial.status == "completed":
            require(list(trial.points) == [1, 3, 9], f"{name} is completed with rungs {list(trial.points)}")
    load_model(search.folder / "best")


def check_same(search: Search, reference: list[TrialResult]) -> None:
    """Check that the search made the trials, decisions and figures of one that nothing broke, to the digit."""
    for seen, whole in zip(search.trials(), reference, strict=True):
        name = f"trial {seen.number:03d}"
        require(seen.params == whole.params, f"{name} has {seen.params} instead of {whole.params}")
        require((seen.status, seen.reason) == (whole.status, whole.reason), f"{name}: {seen.reason} instead of {whole.reason}")
        require(
            len(seen.records) == len(whole.records), f"{name} has {len(seen.records)} records instead of {len(whole.records)}"
        )
        for own, other in zip(_figures(seen), _figures(whole), strict=True):
            differing = [
                f"{key} {own.get(key)} / {other.get(key)}"
                for key in own.keys() | other.keys()
                if own.get(key) != other.get(key)
            ]
            require(not differing, f"{name}, step {own['step']}: {', '.join(differing)}")


def _figures(trial: TrialResult) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key not in UNSTABLE} for record in trial.records]


def check_mlflow(search: Search) -> None:
    """Check that MLflow has one run per trial, ended as the trial did, with each of its figures once."""
    with contextlib.closing(sqlite3.connect(search.here / "mlflow.db")) as database:
        of_trials = "FROM runs JOIN tags ON tags.run_uuid = runs.run_uuid WHERE tags.key = 'trial_number'"
        rows = database.execute(f"SELECT runs.run_uuid, runs.status, tags.value {of_trials}").fetchall()
        runs = {int(number): (uuid, status) for uuid, status, number in rows}
        require(len(rows) == len(runs), f"MLflow has two runs of one trial: {_told_apart(database)}")
        for trial in search.trials():
            require(trial.number in runs, f"MLflow lacks trial {trial.number:03d}")
            uuid, status = runs[trial.number]
            expected = {"failed": "FAILED"}.get(trial.status, "FINISHED")
            require(status == expected, f"MLflow says {status} of trial {trial.number:03d}, which is {trial.status}")
            points = database.execute("SELECT key, step FROM metrics WHERE run_uuid = ?", (uuid,)).fetchall()
            require(len(points) == len(set(points)), f"MLflow has points of trial {trial.number:03d} twice")
            lacking = _points(trial) - set(points)
            require(not lacking, f"MLflow lacks {len(lacking)} points of trial {trial.number:03d}")


def _told_apart(database: sqlite3.Connection) -> str:
    """Return number, status, start and parent of the trials' runs."""
    tags = "JOIN tags AS {0} ON {0}.run_uuid = runs.run_uuid AND {0}.key = '{1}'"
    joined = f"{tags.format('number', 'trial_number')} {tags.format('parent', 'mlflow.parentRunId')}"
    query = f"SELECT number.value, runs.status, runs.start_time, parent.value FROM runs {joined} ORDER BY runs.start_time"
    return "; ".join(f"{number} {status} {start} in {parent[:6]}" for number, status, start, parent in database.execute(query))


def _points(trial: TrialResult) -> set[tuple[str, int]]:
    return {
        (key, record["examples"])
        for record in trial.records
        if record["kind"] != "pretrain"
        for key, value in record.items()
        if key not in NOT_METRICS and math.isfinite(value)
    }


def check_gone(search: Search) -> None:
    """Check that no process of the search is left after 10 s."""
    require(not (left := search.left()), f"left after 10 s: {', '.join(left)}")


def check_all(search: Search, lab: Lab, failed: tuple[int, ...] = ()) -> None:
    """Check everything that must hold of a search with one slot that ended after a fault."""
    reference = lab.reference(search.space)
    check_whole(search, len(reference), failed)
    check_same(search, reference)
    check_mlflow(search)
