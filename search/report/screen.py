"""The picture of a running search, below its event lines: a table of the running trials, the best so far, the time left.

    records (the tails of metrics.jsonl) -> Running, one row per trial -> Picture -> render -> rich

Only an interactive terminal gets it (minbert_core.terminal.Screen); otherwise there are only the plain lines.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

TAIL_BYTES = 32_768  # of the end of a metrics.jsonl: some dozens of records


@dataclass(frozen=True)
class Running:
    """The row of a running trial."""

    number: int
    text: str  # its recipe, unless it is multitask, and its searched parameters
    at: str  # the last point evaluated, `3/9`; before the first, the progress of its pretraining, `mlm 43%`
    examples: int
    budget: int  # in examples
    speed: float | None  # examples per second; None: not yet measured
    score: float | None  # at the last evaluation
    seconds: float | None  # running time so far; None: no record yet
    gpu: str = ""  # `97 % 12.3 GB`, on a GPU


@dataclass(frozen=True)
class Picture:
    """A search at one moment."""

    running: list[Running]
    best: str
    progress: str


def read_tail(path: Path, num_bytes: int = TAIL_BYTES) -> list[dict[str, Any]]:
    """Return the last complete records of a metrics.jsonl that is being written; [] if it cannot be read now."""
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - num_bytes)
            file.seek(start)
            lines = file.read().split(b"\n")
        return [json.loads(line) for line in lines[1 if start else 0 : -1]]
    except (OSError, ValueError):  # missing so far, or incomplete over a network; it is read again in a second
        return []


def look(
    number: int, text: str, records: list[dict[str, Any]], budget: int, full: int, moment_ms: int | None = None
) -> Running:
    """Build a trial's row from its last records. moment_ms: the present time if it is running, so that its clock continues.

    budget: the examples of a full trial, the mean of all branches. A trial that was evaluated shows its own.
    """
    last = records[-1] if records else {}
    dev: dict[str, Any] = next((record for record in reversed(records) if record["kind"] == "dev"), {})
    train: dict[str, Any] = next((record for record in reversed(records) if record["kind"] == "train"), {})
    seconds = last.get("seconds")
    if last and moment_ms is not None:
        seconds = last["seconds"] + max(0, moment_ms - last["time_ms"]) / 1000
    gpu = (
        f"{train['system/gpu_percent']:.0f} % {train['system/peak_memory_gb']:.1f} GB" if "system/gpu_percent" in train else ""
    )
    at = f"{dev['rung']}/{full}" if dev else ""
    budget = round(dev["examples"] * full / dev["rung"]) if dev else budget
    speed = train.get("train/examples_per_second")
    if last.get("kind") == "pretrain" and "made" not in last:
        at = f"{last['stage']} waits" if "waits" in last else f"{last['stage']} {last['pretrain/share']:.0%}"
        speed = last.get("pretrain/examples_per_second")
    return Running(number, text, at, last.get("examples", 0), budget, speed, dev.get("dev/score"), seconds, gpu)


def render(picture: Picture, height: int) -> RenderableType:
    """Render the picture in at most `height` lines, for a width of 80 columns or more. Parameters that do not fit are cut."""
    with_gpu = any(row.gpu for row in picture.running)
    table = Table(box=None, pad_edge=False, header_style="dim", expand=True)
    table.add_column("trial", no_wrap=True)
    table.add_column("parameters", no_wrap=True, overflow="ellipsis", ratio=1, min_width=8)
    table.add_column("at", no_wrap=True)
    table.add_column("", width=8)
    table.add_column("examples", no_wrap=True, justify="right")
    table.add_column("ex/s", no_wrap=True, justify="right")
    table.add_column("dev", no_wrap=True, justify="right")
    table.add_column("time", no_wrap=True, justify="right")
    if with_gpu:
        table.add_column("gpu", no_wrap=True, justify="right")
    shown = picture.running[: max(1, height - 5)]  # minus heading, number of omitted rows, best, progress, one free line
    for row in shown:
        cells: list[RenderableType] = [f"{row.number:03d}", Text(row.text), row.at]
        cells.append(ProgressBar(total=max(row.budget, 1), completed=min(row.examples, row.budget), width=8))
        cells.append(f"{count(row.examples)}/{count(row.budget)}")
        cells.append("" if row.speed is None else f"{row.speed:.0f}")
        cells.append("" if row.score is None else f"{row.score:.4f}")
        cells.append("starts" if row.seconds is None else clock(row.seconds))
        table.add_row(*cells, *([row.gpu] if with_gpu else []))
    lines: list[RenderableType] = [table] if shown else []
    if len(picture.running) > len(shown):
        lines.append(Text(f"… and {len(picture.running) - len(shown)} more", style="dim"))
    lines += [Text(text, no_wrap=True, overflow="ellipsis") for text in (picture.best, picture.progress) if text]
    return Group(*lines)


def count(number: int) -> str:
    """Format a count in about four characters: `950`, `9.0k`, `400k`, `1.2M`."""
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number / size:.1f}{unit}" if number < 10 * size else f"{number / size:.0f}{unit}"
    return str(number)


def clock(seconds: float) -> str:
    """Format a duration as `0:45`, `12:05`, `3:05:00`."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
