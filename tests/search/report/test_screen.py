"""The picture of a running search, as a console records it; and when a terminal gets it."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from search.report.screen import Picture, Running, clock, count, look, read_tail, render

ROOT = Path(__file__).resolve().parents[3]
NOW = 1_750_000_100_000


def row(number: int, **changed: Any) -> Running:
    known: dict[str, Any] = {"text": "smoothness=smart lr=3.2e-05", "at": "3/9", "examples": 120_000, "budget": 400_000}
    return Running(number, **known | {"speed": 812.4, "score": 0.72034, "seconds": 725.0} | changed)


def drawn(picture: Picture, width: int, height: int = 24) -> list[str]:
    console = Console(width=width, height=height, record=True, file=io.StringIO(), force_terminal=True)
    console.print(render(picture, height))
    return console.export_text().splitlines()


def test_a_row_says_what_a_trial_is_doing() -> None:
    heading, line, best, progress = drawn(Picture([row(7)], "best 003 0.7203", "3/10 done"), width=120)
    assert heading.split() == ["trial", "parameters", "at", "examples", "ex/s", "dev", "time"]
    assert re.sub("[━╸╺]+", "bar", line).split() == [
        *["007", "smoothness=smart", "lr=3.2e-05", "3/9", "bar", "120k/400k", "812", "0.7203", "12:05"],
    ]
    assert (best, progress) == ("best 003 0.7203", "3/10 done")


@pytest.mark.parametrize("width", [80, 100, 200])
def test_no_line_is_wider_than_the_terminal_and_only_the_words_are_cut(width: int) -> None:
    long = "linear_probe+multitask " + " ".join(f"parameter_{i}=0.123" for i in range(20))
    picture = Picture([row(i, text=long, gpu="100 % 134.5 GB") for i in range(3)], long, long)
    lines = drawn(picture, width)
    assert len(lines) == 6
    assert all(len(line) <= width for line in lines)
    for line in lines[1:4]:
        assert re.search(r"^00\d +linear_.*… .*120k/400k +812 +0\.7203 +12:05 +100 % 134\.5 GB", line), line


def test_what_is_not_yet_known_is_left_empty() -> None:
    new = row(4, at="", examples=0, speed=None, score=None, seconds=None)
    assert re.sub("[━╸╺]+", "bar", drawn(Picture([new], "", ""), 100)[1]).split()[3:] == ["bar", "0/400k", "starts"]


def test_more_trials_than_lines_are_counted() -> None:
    lines = drawn(Picture([row(i) for i in range(64)], "best", "progress"), 80, height=12)
    assert len(lines) == 11
    assert lines[-3:] == ["… and 57 more", "best", "progress"]


def test_the_bar_grows_with_the_examples() -> None:
    def done(examples: int) -> int:
        console = Console(width=100, file=(screen := io.StringIO()), force_terminal=True, no_color=True)
        console.print(render(Picture([row(0, examples=examples, budget=800)], "", ""), 24))
        return screen.getvalue().count("━")

    assert [done(examples) for examples in (0, 400, 800, 816)] == [0, 4, 8, 8]


def dev(rung: int, examples: int, score: float) -> dict[str, Any]:
    return {"kind": "dev", "rung": rung, "examples": examples, "seconds": 10.0, "time_ms": NOW - 5000, "dev/score": score}


def train(examples: int, **more: Any) -> dict[str, Any]:
    own = {"kind": "train", "examples": examples, "seconds": 60.0, "time_ms": NOW - 5000, "train/examples_per_second": 40.0}
    return own | more


def test_a_row_is_read_off_the_last_records() -> None:
    seen = look(3, "lr=1", [dev(1, 100, 0.4), train(200)], budget=900, full=9, moment_ms=NOW)
    assert seen == Running(3, "lr=1", "1/9", 200, 900, 40.0, 0.4, 65.0)
    assert look(3, "lr=1", [train(200)], budget=900, full=9).seconds == 60.0  # its time stands still
    assert look(3, "lr=1", [], budget=900, full=9) == Running(3, "lr=1", "", 0, 900, None, None, None)


def test_a_trial_that_was_evaluated_shows_its_own_budget() -> None:
    """Branches may have budgets of their own; the one given is their mean."""
    assert look(3, "", [dev(3, 100, 0.4)], budget=900, full=9).budget == 300


def test_gpu_use_and_memory_are_shown_where_there_is_a_gpu() -> None:
    figures = {"system/peak_memory_gb": 12.34}
    assert look(0, "", [train(1, **figures)], 1, 9).gpu == ""
    assert look(0, "", [train(1, **figures, **{"system/gpu_percent": 97.0})], 1, 9).gpu == "97 % 12.3 GB"


def test_a_tail_holds_whole_records_only(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_tail(path) == []
    path.write_text("".join(json.dumps({"step": i}) + "\n" for i in range(100)) + '{"step": 10')
    assert [record["step"] for record in read_tail(path)] == list(range(100))
    assert [record["step"] for record in read_tail(path, num_bytes=60)] == [97, 98, 99]


@pytest.mark.parametrize(("number", "text"), [(950, "950"), (9_000, "9.0k"), (400_000, "400k"), (1_250_000, "1.2M")])
def test_counts_are_short(number: int, text: str) -> None:
    assert count(number) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.9, "0:00"), (45, "0:45"), (725, "12:05"), (11_100, "3:05:00")])
def test_times_are_those_of_a_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_a_trial_that_pretrains_shows_how_far_that_is() -> None:
    own = {"kind": "pretrain", "stage": "mlm", "examples": 0, "seconds": 0.0, "time_ms": NOW - 5_000}
    going = look(3, "", [own | {"pretrain/share": 0.43, "pretrain/examples_per_second": 120.0}], 400_000, 9, NOW)
    assert (going.at, going.speed, going.examples, going.seconds) == ("mlm 43%", 120.0, 0, 5.0)
    assert look(3, "", [own | {"waits": True}], 400_000, 9, NOW).at == "mlm waits"
    assert look(3, "", [own | {"made": True, "pretrain/share": 1.0}], 400_000, 9, NOW).at == ""
