"""What `python -m minbert_core.train` prints: a line per evaluation, progress with the time left, the next commands.

records -> Report.lines (printed), Report.render (the live line)      -> closing_lines
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from minbert_core.config import TOY, TrialConfig
from minbert_core.inputs import Inputs
from minbert_core.terminal import is_watched
from minbert_core.train.trial import Record
from minbert_core.words import duration

MOST_LINES = 16  # of progress in a run, beside those of its evaluations


def evaluation(record: Record, config: TrialConfig) -> str:
    """`sst 0.512  para 0.812  sts 0.845  norm 0.7423  mean 0.7230  score 0.7423` of a dev record."""
    noted = {name: " (constant)" if record.get(f"constant/{name}") else "" for name in config.train_on}
    tasks = [f"{name} {record[f'dev/{name}']:.3f}{note}" for name, note in noted.items()]
    return "  ".join([*tasks, *(f"{key} {record[f'dev/{key}']:.4f}" for key in ("norm", "mean", "score"))])


def best_of(records: list[Record]) -> Record:
    """The best evaluation, the first of equals: the one whose weights are kept."""
    return max((record for record in records if record["kind"] == "dev"), key=lambda record: float(record["dev/score"]))


def seconds_left(records: list[Record], total: int, num_points: int, dev_rows: int) -> float | None:
    """The time that the rest will take, at the mean rates of steps and of evaluations so far; None before the first record.

    Until one is measured, a row of dev counts as a third of an example in training, which has a backward pass besides.
    """
    records = [record for record in records if record["kind"] != "pretrain"]
    if not records:
        return None
    pairs = zip([None, *records], records, strict=False)
    evaluations = [now["seconds"] - (before["seconds"] if before else 0) for before, now in pairs if now["kind"] == "dev"]
    seconds, examples = float(records[-1]["seconds"]), int(records[-1]["examples"])
    each = (seconds - sum(evaluations)) / examples
    mean = sum(evaluations) / len(evaluations) if evaluations else dev_rows * each / 3
    return float(max(0, total - examples) * each + (num_points - len(evaluations)) * mean)


def pretraining_told(record: Record) -> str:
    """A pretrain record in a line: `mlm 43 %  12,000 texts  loss 2.913  310 texts/s  5 min left`; at the end its result."""
    kind, name = record["stage"], f"{record['stage']} {record['key'][:8]}"
    if "waits" in record:
        return f"{name} is being made by another process, which is waited for"
    if "made" not in record:
        done, speed, loss = (record[f"pretrain/{key}"] for key in ("share", "examples_per_second", f"{kind}_loss"))
        rate = f"{speed:.0f} texts/s  {duration(record['seconds_left'])} left"
        return f"{kind} {100 * done:.0f} %  {record['pretrain/examples']:,} texts  loss {loss:.3f}  {rate}"
    how = "made in" if record["made"] else "found in the cache, made in"
    figures = [
        f"{what} {record[f'pretrain/{kind}_held_out_{what}_before']:.3f} -> {record[f'pretrain/{kind}_held_out_{what}']:.3f}"
        for what in ("loss", "accuracy")
    ]
    return f"{name} {how} {duration(record['pretrain/seconds'])}; on held-out texts {', '.join(figures)}"


class Report:
    """The course of one training, from its records: what is worth a line now, and the line that a terminal shows meanwhile."""

    def __init__(self, config: TrialConfig, inputs: Inputs, records: list[Record]) -> None:
        """`records` is the list that training appends to."""
        self.config, self.records = config, records
        self.total, self.dev_rows = config.num_examples(inputs.sizes), sum(map(len, inputs.dev.values()))
        self.is_live = is_watched(sys.stdout, os.environ)  # then the live line has the progress, and no other line
        self.told = -1  # the part of the budget, in MOST_LINES, that the last line of progress was in
        self.since = time.monotonic()  # the last record came

    def lines(self, record: Record) -> list[str]:
        """The lines that a new record is worth, with the hour: an evaluation always, progress now and then."""
        self.since = time.monotonic()
        hour = f"[{time.strftime('%T')}]"
        if record["kind"] == "pretrain":
            return self._pretraining_lines(record, hour)
        if record["kind"] == "dev":
            best = "  best so far" * (best_of(self.records) is record)
            at = f"{record['rung']}/{self.config.budget.points[-1]} ({record['examples']:,} examples)"
            return [f"{hour} dev at {at}: {evaluation(record, self.config)}{best}"]
        part = record["examples"] * MOST_LINES // self.total
        if self.is_live or part == self.told:
            return []
        self.told = part
        return [f"{hour} {self.progress()}"]

    def _pretraining_lines(self, record: Record, hour: str) -> list[str]:
        if "made" in record:
            self.told = -1
            return [f"{hour} {pretraining_told(record)}", *(f"{hour} {note}" for note in record["notes"])]
        part = int(record.get("pretrain/share", 0) * MOST_LINES)
        if self.is_live or part == self.told:
            return []
        self.told = part
        return [f"{hour} {pretraining_told(record)}"]

    def progress(self) -> str:
        """`12 %  step 1,000  48,000/400,000 examples  loss sst 1.213 para 0.431  312 ex/s  12 min left`."""
        train = next((record for record in reversed(self.records) if record["kind"] == "train"), None)
        if train is None:
            return pretraining_told(self.records[-1]) if self.records else "begins …"
        last = self.records[-1]
        losses = [f"{name} {train[key]:.3f}" for name in self.config.train_on if (key := f"train/{name}_loss") in train]
        left = seconds_left(self.records, self.total, len(self.config.budget.points), self.dev_rows)
        assert left is not None, "there is a record"
        left = max(0.0, left - (time.monotonic() - self.since))
        done = f"{min(100 * last['examples'] // self.total, 100)} %  step {last['step']:,}"
        speed = f"{train['train/examples_per_second']:.0f} ex/s  {duration(left)} left"
        return f"{done}  {last['examples']:,}/{self.total:,} examples  loss {' '.join(losses)}  {speed}"

    def render(self, height: int) -> RenderableType:
        """The live line."""
        return Text(self.progress(), no_wrap=True, overflow="ellipsis")


def closing_lines(config: TrialConfig, records: list[Record], folder: Path) -> list[str]:
    """What came out, where it lies, and what to do with it."""
    best, last = best_of(records), records[-1]
    at = f"{best['rung']}/{config.budget.points[-1]}"
    model = near(folder / "best")
    is_toy, has_single = config.data == TOY, any(not config.known_tasks[name].is_pair for name in config.train_on)
    sentences = ["a sentence"] if has_single else ["a sentence", "another"]
    words: list[Any] = ["--data", near(Path(config.data)), "--encoder", near(Path(config.encoder.checkpoint))]
    space = ["spaces/quickstart.yaml"] if is_toy else ["spaces/smart.yaml", *words]
    course = set(config.train_on) >= set(TrialConfig().train_on)  # what the shipped spaces search
    return [
        f"best      at {at}: {evaluation(best, config)}",
        f"took      {duration(last['seconds'])}, {last['examples']:,} examples, {last['step']:,} steps",
        f"folder    {folder}: best/ is the model, metrics.jsonl the course of its training",
        f"predict   {shlex.join(['python', '-m', 'minbert_core.predict', model, *sentences])}",
        *([f"search    {shlex.join(['python', '-m', 'search.run', '--space', *space])}"] if course else []),
    ]


def near(path: Path) -> str:
    """A path as it is typed from here: below this folder relative, elsewhere absolute."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
