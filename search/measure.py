"""What a trial of a config costs on this machine: some real steps of every stage, some of the evaluation, one save.

    Ray worker: measure(config as plain values) -> Cost;   estimate.py makes a search's cost of several

It is run as a trial is: a fresh process with the trial's share of cores and GPU, beside as many others as the search has trials
at a time. What it writes goes to a temporary folder that is gone when it returns, or when the driver is interrupted.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minbert_core.config import TrialConfig, load_config, seed_of
from minbert_core.data.tokens import PackedBatch, pack, pack_parts
from minbert_core.inputs import Inputs, build_encoder, open_inputs
from minbert_core.machine import prepare, resolve_precision, usage
from minbert_core.methods.stages import StagePlan
from minbert_core.methods.task_schedules import example_rows
from minbert_core.model import TOKENS_A_PASS, MultitaskBert, build_model, save_model
from minbert_core.step import Stepper
from minbert_core.train import LOGS_A_TRIAL, save_snapshot

STAGE_SECONDS = 3  # of timed steps in each stage, shared by its kinds of step; each is timed once at least
MOST_STEPS = 30  # timed of each kind; a small encoder's are many in a second
EVALUATION_SECONDS = 0.5  # a task
MOST_PASSES = 8  # of an evaluation
FIRST_TOKENS = 256  # of the first evaluation pass, small because a BERT-base on one core takes a second for it
SCHEDULE_SAMPLES = 500  # of a stage's steps, to see how often each tuple of tasks comes


@dataclass(frozen=True)
class Cost:
    """Of one trial. Seconds are of wall time, beside as many other trials as ran while it was measured."""

    train_seconds: float  # of its whole budget
    evaluation_seconds: float  # of one evaluation: dev of all tasks, and what is saved then
    start_seconds: float  # until its first step: the process, imports, inputs, the model
    memory_gb: float  # the peak, of GPU memory on a GPU
    snapshot_bytes: int
    best_bytes: int


def measure(document: dict[str, Any], asked_at: float, scratch: Path) -> Cost:
    """The cost of the trial whose config `document` is; asked_at: when its process was asked for, by `time.time()`.

    scratch: the driver's folder for what is written, used where this process sees it (in a cluster it may not).
    Raises what a trial would: no such folder, out of memory.
    """
    from ray import tune  # noqa: F401 — a trial's process imports it, which takes a second

    config = load_config(document)
    device = prepare(config.machine)
    precision = resolve_precision(config.machine.precision, device)
    inputs = open_inputs(config)
    model = build_model(config, build_encoder(config, inputs)).to(device)
    start_seconds = max(0.0, time.time() - asked_at)
    total, train_seconds, saves = config.num_examples(inputs.sizes), 0.0, []
    for stage in config.stage_plans():
        stepper = Stepper(model, stage, config.loss_weights.weight, seed_of(config.seed, "measure"), precision)
        examples = stage.share * total
        train_seconds += examples * _seconds_an_example(stepper, stage, config, inputs, examples)
        saves.append(_save(model, stepper, config, inputs, scratch if scratch.is_dir() else None))
    seconds, snapshot_bytes, best_bytes = (max(column) for column in zip(*saves, strict=True))
    return Cost(
        train_seconds=train_seconds,
        evaluation_seconds=seconds + sum(_dev_seconds(model, name, config, inputs, precision) for name in inputs.dev),
        start_seconds=start_seconds,
        memory_gb=usage(device)["system/peak_memory_gb"],
        snapshot_bytes=int(snapshot_bytes),
        best_bytes=int(best_bytes),
    )


# ---------------------------------------------------------------------------------------------------------------- steps


def kinds_of_step(
    stage: StagePlan, sizes: dict[str, int], batch_sizes: dict[str, int], examples: float, seed: int
) -> Counter[tuple[str, ...]]:
    """How often each tuple of tasks comes among steps drawn evenly from a stage of `examples`."""
    tasks_a_step = stage.task_schedule.tasks_per_step(len(sizes))
    num_steps = examples / (sum(batch_sizes.values()) / len(batch_sizes) * tasks_a_step)
    # each at a random place of its interval: at even distances, a schedule with a period would show one phase only
    places = (np.arange(SCHEDULE_SAMPLES) + np.random.default_rng(0).random(SCHEDULE_SAMPLES)) / SCHEDULE_SAMPLES
    return Counter(
        stage.task_schedule.tasks_of_step(int(place * num_steps), float(place), sizes, batch_sizes, seed) for place in places
    )


def _seconds_an_example(stepper: Stepper, stage: StagePlan, config: TrialConfig, inputs: Inputs, examples: float) -> float:
    """Seconds of wall time an example of this stage, whose kinds of step are weighed by how often they come."""
    sizes = {name: inputs.sizes[name] for name in stage.tasks}
    batch_sizes = {name: stepper.model.plans[name].batch_size for name in stage.tasks}
    drawn = dict.fromkeys(stage.tasks, 0)
    steps = 0

    def step(names: tuple[str, ...]) -> None:
        nonlocal steps
        batches = {}
        for name in names:
            batches[name] = _batch(stepper.model, name, config, inputs, drawn[name])
            drawn[name] += batch_sizes[name]
        is_log = int(steps * logs_a_step) < int((steps + 1) * logs_a_step)
        stepper.step(steps, batches, progress=0.5, measure=is_log)
        steps += 1

    kinds = kinds_of_step(stage, sizes, batch_sizes, examples, config.seed)
    total = sum(count * sum(batch_sizes[name] for name in names) for names, count in kinds.items())
    # in a trial of few steps, the figures that are measured a hundred times cost something
    logs_a_step = LOGS_A_TRIAL * total / kinds.total() / config.num_examples(inputs.sizes)
    device = next(stepper.model.parameters()).device
    times = {names: _seconds_a_call(lambda n=names: step(n), STAGE_SECONDS / len(kinds), device) for names in kinds}  # type: ignore[misc]
    return sum(count * times[names] for names, count in kinds.items()) / total


def _seconds_a_call(call: Callable[[], None], at_least: float, device: torch.device) -> float:
    """The mean over calls in a row that take `at_least` seconds, one to MOST_STEPS; one before them is not counted."""
    call()  # allocates the optimiser's moments and the buffers of the matrix products
    _wait(device)
    began, calls = time.monotonic(), 0
    while calls == 0 or (calls < MOST_STEPS and time.monotonic() - began < at_least):
        call()
        calls += 1
    _wait(device)
    return (time.monotonic() - began) / calls


def _batch(model: MultitaskBert, name: str, config: TrialConfig, inputs: Inputs, start: int) -> list[PackedBatch]:
    """A batch as `train` draws it: packed, in parts where it is more tokens than one pass may hold."""
    plan, split, limit = model.plans[name], inputs.train[name], config.machine.micro_batch_tokens
    device = next(model.parameters()).device
    rows = example_rows(seed_of(config.seed, "measure", name), len(split), start, plan.batch_size)
    parts = pack_parts(split, rows, plan.pair_encoding.kind, config.max_length, inputs.specials, limit)
    return [part.to(device) for part in parts]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --------------------------------------------------------------------------------------------------- evaluation and saves


def _dev_seconds(model: MultitaskBert, name: str, config: TrialConfig, inputs: Inputs, precision: str) -> float:
    """Seconds to evaluate one task's dev split: passes that grow to the size of an evaluation's, by the rate of the largest."""
    split, encoding = inputs.dev[name], model.plans[name].pair_encoding.kind
    device = next(model.parameters()).device
    order = np.random.default_rng(0).permutation(len(split))
    ends = np.cumsum(split.lengths(encoding, config.max_length)[order])
    rates: dict[int, list[float]] = {}
    began, tokens = time.monotonic(), FIRST_TOKENS
    for _ in range(MOST_PASSES):
        if rates and time.monotonic() - began > EVALUATION_SECONDS:
            break
        rows = order[: np.searchsorted(ends, tokens) + 1]
        before = time.monotonic()
        with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            batch = pack(split, rows, encoding, config.max_length, inputs.specials).to(device)
            model(name, batch).logits_BK.cpu()
        rates.setdefault(tokens, []).append((time.monotonic() - before) / float(ends[len(rows) - 1]))
        tokens = min(2 * tokens, TOKENS_A_PASS)
    return float(ends[-1] * np.mean(rates[max(rates)]))


def _save(
    model: MultitaskBert, stepper: Stepper, config: TrialConfig, inputs: Inputs, scratch: Path | None
) -> tuple[float, int, int]:
    """(seconds, bytes of a snapshot, bytes of `best`) where both are written, as after an evaluation that is the best."""
    with tempfile.TemporaryDirectory(dir=scratch, prefix="minbert-measure-") as temporary:
        snapshot, best = Path(temporary) / "snapshot.pt", Path(temporary) / "best"
        began = time.monotonic()
        save_snapshot(snapshot, {"counters": {}, "model": model.state_dict(), **stepper.state()}, [])
        save_model(model, config, best, inputs.encoder_folder)
        seconds = time.monotonic() - began
        return seconds, snapshot.stat().st_size, sum(path.stat().st_size for path in best.rglob("*") if path.is_file())
