"""The plan that `python -m minbert_core.train` prints before it trains. A search's plan consists of the same sentences.

config, inputs -> plan_lines      search/plan/summary.py uses data_sentence, dropped_rows, truncated_rows, evaluation_points
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence

from minbert_core.config import TrialConfig
from minbert_core.data.corpus import Dropped
from minbert_core.inputs import Inputs
from minbert_core.machine import without_bfloat16
from minbert_core.methods.task_schedules import examples_per_step
from minbert_core.settings.paths import as_written, flatten
from minbert_core.train.pretrained import find
from minbert_core.words import counted, shown

NO_DEV = "is trained on, too, so no dev score can be shown; the model is that of the last step"
SHOWN_APART = ("data", "encoder/checkpoint", "machine")  # paths with lines of their own in the plan


def plan_lines(config: TrialConfig, inputs: Inputs, source: str) -> list[str]:
    """Return the plan of one training as the user reads it. source: the config's file."""
    total, points = config.num_examples(inputs.sizes), config.budget.points
    metrics = ", ".join(f"{name} {config.known_tasks[name].metric}" for name in config.train_on)
    objective = config.objective if isinstance(config.objective, str) else dict(config.objective.weights)
    machine = config.machine
    threads = f", {machine.threads} thread{'s' * (machine.threads > 1)}" if machine.device == "cpu" else ""
    best = f"the best is that of the highest {shown(objective).strip(chr(39))}"
    return [
        f"config    {source}",
        *(f"          {line}" for line in _settings(config)),
        f"data      {data_sentence(config, inputs)}",
        *(f"data      {line}" for line in (*dropped_rows(config, inputs, at_most=1), *inputs.notes())),
        f"encoder   {config.encoder.checkpoint}",
        *(f"pretrain  {one.describe(config)}" for one in find(config, inputs)),
        f"machine   {machine.device}, {machine.precision}{threads}",
        f"budget    {total:,} examples, about {num_steps(config, inputs.sizes):,} steps",
        f"dev       {f'at {evaluation_points(total, points)} examples: {metrics}; {best}' if inputs.dev else NO_DEV}",
        *(
            f"warning   {line}"
            for line in (*inputs.constant_labels(), *truncated_rows(config, inputs), *without_bfloat16(machine))
        ),
    ]


def _settings(config: TrialConfig, width: int = 110) -> list[str]:
    """Return what a config sets, as `path=value` in lines of about `width` characters."""
    flat = {path: value for path, value in flatten(as_written(config)).items() if not path.startswith(SHOWN_APART)}
    # a line may not break at a space inside a value
    words = [f"{path}={shown(value).strip(chr(39)).replace(' ', chr(160))}" for path, value in flat.items()]
    lines = textwrap.wrap(" ".join(words) or "(all defaults)", width, break_long_words=False, break_on_hyphens=False)
    return [line.replace(chr(160), " ") for line in lines]


def num_steps(config: TrialConfig, sizes: Mapping[str, int]) -> int:
    """Return about how many steps a trial takes over all its stages, given the rows of each task's train split."""
    steps = 0.0
    for stage, examples in zip(config.stage_plans(), config.stage_examples(sizes), strict=True):
        batch_sizes = {name: config.task(name).batch_size for name in stage.tasks}
        steps += examples / examples_per_step(stage.task_schedule, {name: sizes[name] for name in stage.tasks}, batch_sizes)
    return math.ceil(round(steps, 6))


# ------------------------------------------------------------------------------- sentences of a training and of a search


def data_sentence(config: TrialConfig, inputs: Inputs) -> str:
    """Return `/home/me/data (train/dev rows: sst 8,544/1,101, …)`."""
    if not inputs.dev:
        rows = ", ".join(f"{name} {len(inputs.train[name]):,}" for name in config.train_on)
        return f"{inputs.data_folder} (rows of train and dev together: {rows})"
    rows = ", ".join(f"{name} {len(inputs.train[name]):,}/{len(inputs.dev[name]):,}" for name in config.train_on)
    return f"{inputs.data_folder} (train/dev rows: {rows})"


def evaluation_points(examples: int, rungs: Sequence[int]) -> str:
    """Return the examples after which a trial with this budget is evaluated: `44,445, 133,334, 400,000`."""
    return ", ".join(f"{math.ceil(examples * rung / rungs[-1]):,}" for rung in rungs)


def dropped_rows(config: TrialConfig, inputs: Inputs, at_most: int | None = None, rest: str = "") -> list[str]:
    """Return a sentence for each file with dropped rows: `1 row of sts-dev.csv left out: line 12 (empty: similarity)`.

    at_most: rows that the sentence names; None: all. rest: where the others are named.
    """
    sentences = []
    for name in config.train_on:
        has_ids = config.known_tasks[name].id_column is not None
        for split in (splits[name] for splits in (inputs.train, inputs.dev) if name in splits):
            if not split.dropped:
                continue
            named = [_named(row, has_ids) for row in split.dropped[:at_most]]
            if len(split.dropped) > len(named):
                named.append(f"{len(split.dropped) - len(named)} more{rest}")
            sentences.append(f"{counted(len(split.dropped), 'row')} of {split.source} left out: {'; '.join(named)}")
    return sentences


def _named(row: Dropped, has_ids: bool) -> str:
    """Return a dropped row's line, the start of its id (where the file has ids) and the reason."""
    identity = f"{row.id if len(row.id) <= 8 else row.id[:8] + '…'}, " if has_ids else ""
    return f"line {row.line} ({identity}{row.reason})"


def truncated_rows(config: TrialConfig, inputs: Inputs) -> Iterator[str]:
    """Yield a sentence for each task in which 1 % of the rows or more are longer than `max_length`."""
    for name, split in inputs.train.items():
        percent = 100 * split.num_longer(config.task(name).pair_encoding.kind, config.max_length) / len(split)
        if percent >= 1:
            yield f"{name}: {percent:.0f} % of the rows are longer than max_length {config.max_length} and are cut."
