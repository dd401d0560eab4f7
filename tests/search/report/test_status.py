"""`--status`: a search as it is seen from elsewhere, and that looking changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from search import run
from search.plan.folder import lock
from search.report.status import find_driver, rests
from search.space.space import read_space
from search.study.study import Study
from search.study.trials import TrialResult

QUICK = """\
about: Which rate?
trials: 3
config:
  data: toy
  encoder: tiny
  budget: {examples: 900}
  optimizer: {lr: {log_uniform: [1e-4, 1e-2]}}
"""


@pytest.fixture(scope="module")
def written_down(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """Where a search was written down and has not begun a trial; made once, for it builds the model."""
    here = tmp_path_factory.mktemp("here")
    (here / "quick.yaml").write_text(QUICK)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setattr(torch.cuda, "device_count", lambda: 0)
        patch.setattr(run, "run_search", lambda *_, **__: run.INTERRUPTED)
        assert run.main(["--space", "quick.yaml", "--gpus", "0"]) == run.INTERRUPTED
    return here


@pytest.fixture
def folder(written_down: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its folder, in a place of its own, where the command is typed."""
    shutil.copytree(written_down, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here" / "runs" / "quick"


@pytest.fixture
def study(folder: Path) -> Study:
    return Study(folder, read_space(folder.parents[1] / "quick.yaml"), 0)


def record(rung: int, score: float, seconds_ago: float = 0) -> dict[str, Any]:
    scores = {f"dev/{name}": score for name in ("score", "norm", "mean", "sst", "para", "sts")}
    time_ms = (time.time_ns() // 1_000_000) - int(1000 * seconds_ago)
    return {"kind": "dev", "rung": rung, "examples": 100 * rung, "passes": 0, "seconds": 6.0, "time_ms": time_ms} | scores


def begin(study: Study, *records: dict[str, Any]) -> TrialResult:
    """A trial that has measured `records` and goes on."""
    trial = study.ask()
    (trial.folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    return trial


@pytest.fixture
def status(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[], dict[str, str]]:
    """The lines that --status prints, by their first word."""

    def ask() -> dict[str, str]:
        capsys.readouterr()
        assert run.main(["--status", "quick"]) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        assert "\x1b" not in printed.out
        return {line.split()[0]: line.rstrip() for line in printed.out.splitlines() if line.strip()}

    return ask


def test_a_running_search_is_shown_with_its_trials(folder: Path, study: Study, status: Callable[[], dict[str, str]]) -> None:
    study.tell(begin(study, record(9, 0.75)).number, "completed", "completed")
    begin(study, record(1, 0.4))
    begin(study, record(1, 0.3, seconds_ago=600))  # it waits for others, or for time
    with lock(folder):
        lines = status()
    assert lines["search"] == "search    quick: Which rate?"
    assert lines["driver"] == f"driver    pid {os.getpid()} on {socket.gethostname()} runs"
    assert lines["trials"].startswith("trials    1 of 3 ended, 1 running, 1 waiting to resume, about ")
    assert lines["|"].startswith("| 002 ")  # the last row of the ranking
    assert "1/9" in lines["001"]
    assert "100/900" in lines["001"]
    assert lines["002"].endswith("0:06"), "its time does not stand still"
    assert lines["follow"] == "follow    tail -f runs/quick/log.txt"
    assert lines["dashboard"].split()[2] == "runs/quick/study.journal"


def test_an_interrupted_search_names_the_command_that_goes_on(study: Study, status: Callable[[], dict[str, str]]) -> None:
    begin(study, record(1, 0.4))
    lines = status()
    assert lines["driver"].endswith("has ended")
    assert lines["trials"] == "trials    0 of 3 ended, 0 running, 1 waiting to resume"
    assert lines["resume"] == "resume    python -m search.run --resume quick"


def test_a_search_copied_without_its_database_says_so_in_place_of_the_line_that_opens_it(
    folder: Path, status: Callable[[], dict[str, str]]
) -> None:
    database = folder.parent.with_name("mlflow.db")
    way = "Copy it too, or log the search again: python -m search.run --resume quick"
    assert status()["compare"] == f"compare   there is no {database}. {way}"
    database.touch()
    assert f"sqlite:///{database}" in status()["compare"]


def test_a_finished_search_names_the_next_command(study: Study, status: Callable[[], dict[str, str]]) -> None:
    for _ in range(3):
        study.tell(begin(study, record(9, 0.5)).number, "completed", "completed")
    study.keep_best()
    assert status()["next"] == "next      python analysis/best_to_test.py --search quick"


def test_a_search_before_its_first_trial_has_a_status(status: Callable[[], dict[str, str]]) -> None:
    assert status()["trials"] == "trials    0 of 3 ended, 0 running"


def test_looking_writes_nothing_and_leaves_the_lock_alone(
    folder: Path, study: Study, status: Callable[[], dict[str, str]]
) -> None:
    begin(study, record(1, 0.4))

    def everything() -> dict[Path, tuple[int, float]]:
        root = folder.parents[1]
        return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in root.rglob("*")}

    before = everything()
    status()
    assert everything() == before
    opened: list[Any] = []
    sys.addaudithook(lambda event, arguments: opened.append(arguments) if event == "fcntl.flock" else None)
    status()
    assert opened == []


def test_an_unknown_name_is_refused_with_the_known_ones(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--status", "quik"]) == 2
    assert capsys.readouterr().err == (f"There is no search 'quik' in {folder.parent}; did you mean 'quick'? Known: quick.\n")


def test_a_process_that_has_another_ones_number_is_no_driver(folder: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        (folder / "lock").write_text(f"pid {other.pid} on {socket.gethostname()}")
        assert find_driver(folder) == (f"none; pid {other.pid} on {socket.gethostname()} has ended", False)
        other.kill()
    assert not find_driver(folder)[1]


def test_a_driver_on_another_machine_is_judged_by_what_it_wrote_last(folder: Path) -> None:
    (folder / "lock").write_text("pid 7 on elsewhere")
    (folder / "log.txt").write_text("")
    said, drives = find_driver(folder)
    assert said.startswith("pid 7 on elsewhere, which cannot be checked from here; the search last wrote ")
    assert drives
    os.utime(folder / "log.txt", (0, time.time() - 7200))
    assert not find_driver(folder)[1]


def test_a_trial_rests_when_it_has_long_written_nothing_after_a_point(tmp_path: Path) -> None:
    now_ms = time.time_ns() // 1_000_000

    def trial(*records: dict[str, Any]) -> TrialResult:
        return TrialResult(0, "running", "", {}, None, tmp_path, list(records))

    assert rests(trial(record(1, 0.5, seconds_ago=120)), now_ms)
    assert not rests(trial(record(1, 0.5, seconds_ago=30)), now_ms)
    assert not rests(trial(record(1, 0.5, seconds_ago=500) | {"seconds": 3600.0}), now_ms)  # a slow one
    assert not rests(trial(record(1, 0.5), record(1, 0.5, seconds_ago=500) | {"kind": "train"}), now_ms)
    assert not rests(trial(), now_ms)
