"""The output of `python -m minbert_core.train`: a line per evaluation, progress with the time left, the next commands.

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

UNSCORED = "trained on train and dev, so there is no dev score"
MOST_LINES = 16  # of progress per run, in addition to those of its evaluations


def evaluation(record: Record, config: TrialConfig) -> str:
    """Render a dev record: `sst 0.512  para 0.812  sts 0.845  norm 0.7423  mean 0.7230  score 0.7423`."""
    noted = {name: " (constant)" if record.get(f"constant/{name}") else "" for name in config.train_on}
    tasks = [f"{name} {record[f'dev/{name}']:.3f}{note}" for name, note in noted.items()]
    return "  ".join([*tasks, *(f"{key} {record[f'dev/{key}']:.4f}" for key in ("norm", "mean", "score"))])


def best_of(records: list[Record]) -> Record:
    """Return the best evaluation, the first among equals. Its model is the one that is kept."""
    return max((record for record in records if record["kind"] == "dev"), key=lambda record: float(record["dev/score"]))


def seconds_left(records: list[Record], total: int, num_points: int, dev_rows: int) -> float | None:
    """Estimate the time left from the mean rates of steps and evaluations so far; None before the first record.

    Until an evaluation is measured, a row of dev counts as a third of an example in training, which also goes backward.
    """
    records = [record for record in records if record["kind"] != "pretrain"]
    if not records:
        return None
    pairs = zip([None, *records], records, strict=False)
    evaluations = [now["seconds"] - (before["seconds"] if before else 0) for before, now in pairs if now["kind"] == "dev"]
    seconds, examples = float(records[-1]["seconds"]), int(records[-1]["examples"])
    per_example = (seconds - sum(evaluations)) / examples
    per_evaluation = sum(evaluations) / len(evaluations) if evaluations else dev_rows * per_example / 3
    return float(max(0, total - examples) * per_example + (num_points - len(evaluations)) * per_evaluation)


def pretraining_told(record: Record) -> str:
    """Render a pretrain record: `mlm 43 %  12,000 texts  loss 2.913  310 texts/s  5 min left`; at the end its result."""
    kind, name = record["stage"], f"{record['stage']} {record['key'][:8]}"
    if "waits" in record:
        return f"{name} is being trained by another process; waiting for it"
    if "made" not in record:
        done, speed, loss = (record[f"pretrain/{key}"] for key in ("share", "examples_per_second", f"{kind}_loss"))
        rate = f"{speed:.0f} texts/s  {duration(record['seconds_left'])} left"
        return f"{kind} {100 * done:.0f} %  {record['pretrain/examples']:,} texts  loss {loss:.3f}  {rate}"
    how = "trained in" if record["made"] else "found in the cache, trained in"
    figures = [
        f"{what} {record[f'pretrain/{kind}_held_out_{what}_before']:.3f} -> {record[f'pretrain/{kind}_held_out_{what}']:.3f}"
        for what in ("loss", "accuracy")
    ]
    return f"{name} {how} {duration(record['pretrain/seconds'])}; on held-out texts {', '.join(figures)}"


class Report:
    """The progress of one training, from its records: lines to print, and the live line of a terminal."""

    def __init__(self, config: TrialConfig, inputs: Inputs, records: list[Record]) -> None:
        """`records` is the list that training appends to."""
        self.config, self.records = config, records
        self.total, self.dev_rows = config.num_examples(inputs.sizes), sum(map(len, inputs.dev.values()))
        self.is_live = is_watched(sys.stdout, os.environ)  # then only the live line shows progress
        self.last_printed = -1  # the interval of the budget, of MOST_LINES, in which the last line of progress was printed
        self.since = time.monotonic()  # of the last record

    def lines(self, record: Record) -> list[str]:
        """Render the lines to print for a new record, with the time: each evaluation, and progress now and then."""
        self.since = time.monotonic()
        hour = f"[{time.strftime('%T')}]"
        if record["kind"] == "pretrain":
            return self._pretraining_lines(record, hour)
        if record["kind"] == "dev":
            best = "  best so far" * (best_of(self.records) is record)
            at = f"{record['rung']}/{self.config.budget.points[-1]} ({record['examples']:,} examples)"
            return [f"{hour} dev at {at}: {evaluation(record, self.config)}{best}"]
        if record["kind"] == "rung":
            return [f"{hour} {record['rung']}/{self.config.budget.points[-1]} ({record['examples']:,} examples): saved"]
        interval = record["examples"] * MOST_LINES // self.total
        if self.is_live or interval == self.last_printed:
            return []
        self.last_printed = interval
        return [f"{hour} {self.progress()}"]

    def _pretraining_lines(self, record: Record, hour: str) -> list[str]:
        if "made" in record:
            self.last_printed = -1
            return [f"{hour} {pretraining_told(record)}", *(f"{hour} {note}" for note in record["notes"])]
        interval = int(record.get("pretrain/share", 0) * MOST_LINES)
        if self.is_live or interval == self.last_printed:
            return []
        self.last_printed = interval
        return [f"{hour} {pretraining_told(record)}"]

    def progress(self) -> str:
        """Render `12 %  step 1,000  48,000/400,000 examples  loss sst 1.213 para 0.431  312 ex/s  12 min left`."""
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
        """Render the live line."""
        return Text(self.progress(), no_wrap=True, overflow="ellipsis")


def closing_lines(config: TrialConfig, records: list[Record], folder: Path) -> list[str]:
    """Render the result, where it is, and the next commands."""
    last, is_scored = records[-1], config.rows == "train"
    best = best_of(records) if is_scored else last
    at = f"{best['rung']}/{config.budget.points[-1]}"
    model = near(folder / "best")
    is_toy, has_single = config.data == TOY, any(not config.known_tasks[name].is_pair for name in config.train_on)
    sentences = ["a sentence"] if has_single else ["a sentence", "another"]
    words: list[Any] = ["--data", near(Path(config.data)), "--encoder", near(Path(config.encoder.checkpoint))]
    space = ["spaces/quickstart.yaml"] if is_toy else ["spaces/smart.yaml", *words]
    is_course = set(config.train_on) >= set(TrialConfig().train_on)  # the shipped spaces search these tasks
    return [
        f"best      at {at}: {evaluation(best, config) if is_scored else UNSCORED}",
        f"took      {duration(last['seconds'])}, {last['examples']:,} examples, {last['step']:,} steps",
        f"folder    {folder}: best/ is the model, metrics.jsonl its training",
        f"predict   {shlex.join(['python', '-m', 'minbert_core.predict', model, *sentences])}",
        *([f"search    {shlex.join(['python', '-m', 'search.run', '--space', *space])}"] if is_course else []),
    ]


def near(path: Path) -> str:
    """Return a path as typed from here: relative if it is below this folder, else absolute."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
