"""How benchmarks measure: turns, ratios within a round, goals; that their peers are imported only where they are measured."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import pytest

from benchmarks.__main__ import line
from benchmarks.contestants import Contestant
from benchmarks.rounds import Figure, Row, alternate, ratio

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "__main__")


def test_the_order_of_the_contestants_turns_from_round_to_round():
    called: list[str] = []
    contestants = {name: partial(called.append, name) for name in "abc"}
    alternate(contestants, rounds=4, warm_up=0)
    assert "".join(called) == "abcbcacababc"


def test_a_round_has_as_many_calls_in_a_row_as_asked_after_a_warm_up_that_is_not_counted():
    called: list[str] = []
    times = alternate({name: partial(called.append, name) for name in "ab"}, rounds=2, calls=3, warm_up=1)
    assert "".join(called) == "ab" + "aaabbb" + "bbbaaa"
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 2, "b": 2}


def test_a_ratio_is_taken_within_a_round_so_that_a_slow_round_changes_nothing():
    times = {"ours": [1.0, 10.0, 1.0], "peer": [2.0, 20.0, 3.0]}
    assert ratio(times, "peer", "ours") == Figure(median=2.0, low=2.0, high=3.0)


@pytest.mark.parametrize(
    ("sign", "median", "is_met"), [(">=", 4.0, True), (">=", 3.9, False), ("<=", 4.0, True), ("<=", 4.1, False)]
)
def test_a_row_is_met_where_its_median_reaches_the_goal(sign: Literal[">=", "<="], median: float, is_met: bool):
    row = Row(1, "what", "setting", (sign, 4), Figure(median, low=0.0, high=9.0))
    assert row.is_met is is_met


def test_a_row_without_a_figure_is_neither_met_nor_missed():
    assert Row(1, "what", "setting", (">=", 4), None, why="there is no GPU here").is_met is None


def test_a_benchmark_imports_its_peers_only_when_it_runs():
    imports = "".join(f"import benchmarks.{name}\n" for name in MODULES)
    peers = "print(*{'transformers', 'torchjd', 'accelerate'} & set(sys.modules))"
    command = [sys.executable, "-c", f"import sys\n{imports}{peers}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("", 0), done.stdout + done.stderr


# ------------------------------------------------------------------------------------------------------- the command


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )


def test_what_a_benchmark_lacks_is_one_sentence(tmp_path: Path) -> None:
    done = command("--data", str(tmp_path), "--encoder", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == (
        f"{tmp_path} does not hold the course's files (ids-sst-train.csv …). Name their folder with --data.\n"
    )


def test_a_row_that_this_machine_cannot_tell_stays_empty_and_says_why() -> None:
    row = Row(13, "a step", "one GPU", (">=", 2.5), None, why="no GPU here")
    assert row.is_met is None
    assert line(row) == "| 13 | a step | one GPU | ≥ 2.5 x | no GPU here | | |"


def test_a_row_shows_goal_median_and_range() -> None:
    row = Row(1, "a step", "sst", (">=", 4.0), Figure(2.345, 2.2, 2.5))
    assert line(row) == "| 1 | a step | sst | ≥ 4 x | 2.35 | 2.2 – 2.5 | no |"


def process_number(number: int) -> Callable[[], int]:
    return lambda: os.getpid() if number else 1 // number


def test_a_contestant_answers_from_a_process_of_its_own_and_its_fault_is_raised_here() -> None:
    with Contestant(process_number, 1) as contestant:
        assert contestant() == contestant() != os.getpid()
        assert contestant.peak_gb > 0.001
    with Contestant(process_number, 0) as contestant, pytest.raises(RuntimeError, match="ZeroDivisionError"):
        contestant()
