"""The cost of a trial on this machine, measured by some real steps of every stage, some of the evaluation, and one save.

    Ray worker: measure(config as plain values) -> Cost;   estimate.py computes a search's cost from several
    Ray actor:  Sharer(config as plain values) -> memory, speed;   packing.py decides from them how many trials share a GPU

`measure` runs as a trial does: in a fresh process with the trial's share of cores and GPU, next to as many others as the search
runs at a time. It writes to a temporary folder, which is removed when it returns or the driver is interrupted.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minbert_core.config import TrialConfig
from minbert_core.config_checks import load_config
from minbert_core.inputs import Inputs, open_inputs
from minbert_core.machine import tokens_per_pass, usage
from minbert_core.methods.stages import StagePlan
from minbert_core.methods.task_schedules import examples_per_step as mean_examples_per_step
from minbert_core.model import save_model
from minbert_core.seeds import seed_of
from minbert_core.train.bench import Bench
from minbert_core.train.loop import NUM_LOGS, STEPS_PER_MEASURE
from minbert_core.train.pretrained import Pretrained, find
from minbert_core.train.pretraining import PretrainingRun
from minbert_core.train.step import Stepper
from minbert_core.train.trial import evaluate_dev, save_snapshot
from search.cluster.inputs import Supplies
from search.plan.relocated import relocated_config

STAGE_SECONDS = 3  # of timed steps per stage, shared by its kinds of step; each kind is timed at least once
MOST_STEPS = 30  # timed per kind of step; a small encoder takes many per second
EVALUATION_SECONDS = 0.5  # per task
MOST_PASSES = 8  # per evaluation
FIRST_TOKENS = 256  # of the first evaluation pass; small because it takes BERT-base on one core a second
PEAK_SECONDS = 1  # of steps per stage before a Sharer's peak memory is read


@dataclass(frozen=True)
class Cost:
    """The cost of one trial. Seconds are wall time, next to as many other trials as ran during the measurement."""

    train_seconds: float  # of its whole budget
    evaluation_seconds: float  # of one evaluation: dev of all tasks, and the saves
    start_seconds: float  # until its first step: process, imports, inputs, model
    memory_gb: float  # the peak; of GPU memory on a GPU
    snapshot_bytes: int
    best_bytes: int
    pretraining: dict[str, float] = field(default_factory=dict)  # seconds per pretraining that is not cached, by its name


def measure(document: dict[str, Any], asked_at: float, scratch: Path, supplies: Supplies | None = None) -> Cost:
    """Measure the cost of the trial whose config is `document`; its process was requested at asked_at (`time.time()`).

    scratch: the driver's folder for files, used if this process sees it (in a cluster it may not). supplies: what it then reads
    Raises the exceptions of a trial: no such folder, out of memory.
    """
    from ray import tune  # noqa: F401 — a trial's process imports it, which takes a second

    bench = _built(document, supplies or Supplies())
    config, inputs = bench.config, bench.inputs
    start_seconds = max(0.0, time.time() - asked_at)
    train_seconds, saves = 0.0, []
    for stage, examples in zip(config.stage_plans(), config.stage_examples(inputs.sizes), strict=True):
        stepper = _stepper(bench, stage)
        train_seconds += examples * _seconds_per_example(bench, stepper, STAGE_SECONDS, MOST_STEPS)
        saves.append(_save(bench, stepper, scratch if scratch.is_dir() else None))
    seconds, snapshot_bytes, best_bytes = (max(column) for column in zip(*saves, strict=True))
    missing = [one for one in find(config, inputs) if not one.is_cached]
    return Cost(
        train_seconds=train_seconds,
        evaluation_seconds=seconds + sum(_dev_seconds(bench, task) for task in inputs.dev),
        start_seconds=start_seconds,
        memory_gb=usage(bench.device)["system/peak_memory_gb"],
        snapshot_bytes=int(snapshot_bytes),
        best_bytes=int(best_bytes),
        pretraining={one.name: _pretraining_seconds(one, config, inputs) for one in missing},
    )


def _pretraining_seconds(one: Pretrained, config: TrialConfig, inputs: Inputs) -> float:
    """Measure the seconds that a further pretraining takes, from some of its steps and its evaluations of held-out texts."""
    # in a chain, too, each is measured from the trial's encoder
    run = PretrainingRun(config, inputs, replace(one, before=inputs.encoder_folder), 0)
    began = time.monotonic()
    run.evaluate()
    evaluation_seconds = time.monotonic() - began

    def step() -> None:
        run.shown = 0  # else a short run would end
        run.step()

    step_seconds = _seconds_per_call(step, STAGE_SECONDS, MOST_STEPS, run.device)
    return step_seconds * run.total / one.stage.batch_size + 2 * evaluation_seconds


def _built(document: dict[str, Any], supplies: Supplies) -> Bench:
    """Build a trial from its config as plain values."""
    config = relocated_config(load_config(document), supplies.fetched())
    return Bench.of(config, open_inputs(config))


def _stepper(bench: Bench, stage: StagePlan) -> Stepper:
    """Build a stage's stepper. If the stage begins with fresh heads, they are drawn again."""
    seed = seed_of(bench.config.seed, "measure")
    for task in stage.tasks if stage.fresh_heads else ():
        bench.model.renew_head(task, seed)
    return Stepper(bench.model, stage, bench.config.loss_weights, seed, bench.precision)


# ------------------------------------------------------------------------------------------------------- sharing a GPU


@dataclass(frozen=True)
class Memory:
    """The memory of a trial and of its device, in GB: of the GPU, or on the CPU of the machine."""

    peak_gb: float
    free_gb: float  # as it would be without this trial
    total_gb: float


class Sharer:
    """A trial that trains on demand, next to others on the same GPU. Its process lives from one timing to the next.

    Raises the exceptions of a trial: no such folder, out of memory.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document

    def begin(self) -> Memory:
        """Build the trial and warm it up with some steps of every stage and some of the evaluation."""
        self.bench = _built(self.document, Supplies())
        self._seconds_per_example(PEAK_SECONDS, MOST_STEPS)
        for task in self.bench.inputs.dev:
            _dev_seconds(self.bench, task)
        peak_gb = usage(self.bench.device)["system/peak_memory_gb"]
        return Memory(peak_gb, *_free_and_total_gb(self.bench.device))

    def rate(self, begins_at: float, seconds: float) -> float:
        """Measure examples per second during `seconds` from begins_at (`time.time()`), which all that share the GPU have."""
        time.sleep(max(0.0, begins_at - time.time()))
        return 1 / self._seconds_per_example(seconds / len(self.bench.config.stage_plans()), math.inf)

    def _seconds_per_example(self, stage_seconds: float, most_steps: float) -> float:
        """Measure the mean over the stages, each weighted by its share of the trial."""
        config, sizes, mean = self.bench.config, self.bench.inputs.sizes, 0.0
        for stage, examples in zip(config.stage_plans(), config.stage_examples(sizes), strict=True):
            seconds = _seconds_per_example(self.bench, _stepper(self.bench, stage), stage_seconds, most_steps)
            mean += examples / config.num_examples(sizes) * seconds
        return mean


def _free_and_total_gb(device: torch.device) -> tuple[float, float]:
    """Return the memory that trials on a device may share, and all of it; on the CPU both are all of the machine's."""
    if device.type != "cuda":
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
        return total, total
    free, whole = torch.cuda.mem_get_info(device)
    return (free + torch.cuda.memory_reserved(device)) / 1e9, whole / 1e9


# ---------------------------------------------------------------------------------------------------------------- steps


def _seconds_per_example(bench: Bench, stepper: Stepper, stage_seconds: float, most_steps: float) -> float:
    """Measure seconds of wall time per example of a stage. Its kinds of step are weighted by their share of the steps."""
    stage, inputs = stepper.stage, bench.inputs
    sizes = {task: inputs.sizes[task] for task in stage.tasks}
    batch_sizes = {task: bench.model.plans[task].batch_size for task in stage.tasks}
    shares = stage.task_schedule.step_shares(sizes, batch_sizes)
    examples_per_step = mean_examples_per_step(stage.task_schedule, sizes, batch_sizes)
    logs_per_step = NUM_LOGS * examples_per_step / bench.config.num_examples(inputs.sizes)
    run = _Run(bench, stepper, min(logs_per_step, 1 / STEPS_PER_MEASURE))
    seconds = stage_seconds / len(shares)
    times = {tasks: _seconds_per_call(partial(run.step, tasks), seconds, most_steps, bench.device) for tasks in shares}
    return sum(share * times[tasks] for tasks, share in shares.items()) / examples_per_step


class _Run:
    """Steps of a stage as a trial takes them, and the number of examples drawn so far."""

    def __init__(self, bench: Bench, stepper: Stepper, measures_per_step: float) -> None:
        self.bench, self.stepper, self.measures_per_step = bench, stepper, measures_per_step
        self.drawn = dict.fromkeys(stepper.stage.tasks, 0)
        self.steps = 0
        self.known: set[tuple[str, ...]] = set()  # kinds of step

    def step(self, tasks: tuple[str, ...]) -> None:
        """Take a step on the next batch of each of `tasks`."""
        batches = {}
        for task in tasks:
            batches[task] = self.bench.draw(task, seed_of(self.bench.config.seed, "measure", task), self.drawn[task])
            self.drawn[task] += self.bench.model.plans[task].batch_size
        # the first step of a kind is not timed, so it always measures: a few steps may not come to a measurement otherwise
        is_due = int(self.steps * self.measures_per_step) < int((self.steps + 1) * self.measures_per_step)
        is_measured = tasks not in self.known or is_due
        self.known.add(tasks)
        passes = self.stepper.passes(self.steps, batches, self.bench.config.machine.micro_batch_tokens)
        self.stepper.step(self.steps, passes, progress=0.5, measure=is_measured)
        self.steps += 1


def _seconds_per_call(call: Callable[[], None], at_least: float, most_calls: float, device: torch.device) -> float:
    """Measure the mean over consecutive calls that take `at_least` seconds, 1 to most_calls, after one that does not count."""
    call()  # allocates the optimiser's moments and the buffers of the matrix products
    _wait(device)
    began, calls = time.monotonic(), 0
    while calls == 0 or (calls < most_calls and time.monotonic() - began < at_least):
        call()
        calls += 1
    _wait(device)
    return (time.monotonic() - began) / calls


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --------------------------------------------------------------------------------------------------- evaluation and saves


def _dev_seconds(bench: Bench, task: str) -> float:
    """Estimate the seconds to evaluate one task's dev split, by a trial's own evaluation of parts of it.

    The parts grow to the size of one pass; the rate is that of the largest.
    """
    config, split, encoding = bench.config, bench.inputs.dev[task], bench.model.plans[task].pair_encoding.kind
    order = np.random.default_rng(0).permutation(len(split))
    ends = np.cumsum(split.lengths(encoding, config.max_length)[order])
    rates: dict[int, list[float]] = {}
    began, tokens = time.monotonic(), FIRST_TOKENS
    for _ in range(MOST_PASSES):
        if rates and time.monotonic() - began > EVALUATION_SECONDS:
            break
        rows = order[: max(1, np.searchsorted(ends, tokens))]
        part = replace(bench.inputs, dev={task: split.only(rows)})
        before = time.monotonic()
        evaluate_dev(bench.model, config, part)
        rates.setdefault(tokens, []).append((time.monotonic() - before) / float(ends[len(rows) - 1]))
        tokens = min(2 * tokens, tokens_per_pass(bench.device))
    return float(ends[-1] * np.mean(rates[max(rates)]))


def _save(bench: Bench, stepper: Stepper, scratch: Path | None) -> tuple[float, int, int]:
    """Write a snapshot and `best`, as after the best evaluation so far; return (seconds, bytes of each)."""
    with tempfile.TemporaryDirectory(dir=scratch, prefix="minbert-measure-") as temporary:
        snapshot, best = Path(temporary) / "snapshot.pt", Path(temporary) / "best"
        began = time.monotonic()
        save_snapshot(snapshot, {"counters": {}, "model": bench.model.state_dict(), **stepper.state()}, [])
        save_model(bench.model, bench.config, best, bench.inputs.encoder_folder)
        seconds = time.monotonic() - began
        return seconds, snapshot.stat().st_size, sum(path.stat().st_size for path in best.rglob("*") if path.is_file())
