"""What a trial of a config costs on this machine: some real steps of every stage, some of the evaluation, one save.

    Ray worker: measure(config as plain values) -> Cost;   estimate.py makes a search's cost of several
    Ray actor:  Sharer(config as plain values) -> memory, speed;   packing.py makes of them how many trials share a GPU

`measure` is run as a trial is: a fresh process with the trial's share of cores and GPU, beside as many others as the search has
trials at a time. What it writes goes to a temporary folder that is gone when it returns, or when the driver is interrupted.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minbert_core.config import TrialConfig
from minbert_core.config_checks import load_config
from minbert_core.data.tokens import PackedBatch, pack_parts
from minbert_core.inputs import Inputs, open_inputs
from minbert_core.machine import prepare, resolve_precision, usage
from minbert_core.methods.stages import StagePlan
from minbert_core.methods.task_schedules import example_rows, examples_per_step
from minbert_core.model import TOKENS_A_PASS, MultitaskBert, save_model
from minbert_core.seeds import seed_of
from minbert_core.train.pretraining import Maker, Pretrained, find
from minbert_core.train.step import Stepper
from minbert_core.train.trial import LOGS_A_TRIAL, STEPS_A_MEASURE, evaluate_dev, model_to_train, save_snapshot

STAGE_SECONDS = 3  # of timed steps in each stage, shared by its kinds of step; each is timed once at least
MOST_STEPS = 30  # timed of each kind; a small encoder's are many in a second
EVALUATION_SECONDS = 0.5  # a task
MOST_PASSES = 8  # of an evaluation
FIRST_TOKENS = 256  # of the first evaluation pass, small because a BERT-base on one core takes a second for it
PEAK_SECONDS = 1  # of steps in each stage of a Sharer before its peak is read


@dataclass(frozen=True)
class Cost:
    """Of one trial. Seconds are of wall time, beside as many other trials as ran while it was measured."""

    train_seconds: float  # of its whole budget
    evaluation_seconds: float  # of one evaluation: dev of all tasks, and what is saved then
    start_seconds: float  # until its first step: the process, imports, inputs, the model
    memory_gb: float  # the peak, of GPU memory on a GPU
    snapshot_bytes: int
    best_bytes: int
    pretraining: dict[str, float] = field(default_factory=dict)  # seconds of each that is yet to be made, by its name


def measure(document: dict[str, Any], asked_at: float, scratch: Path) -> Cost:
    """The cost of the trial whose config `document` is; asked_at: when its process was asked for, by `time.time()`.

    scratch: the driver's folder for what is written, used where this process sees it (in a cluster it may not).
    Raises what a trial would: no such folder, out of memory.
    """
    from ray import tune  # noqa: F401 — a trial's process imports it, which takes a second

    config, device, precision, inputs, model = _built(document)
    start_seconds = max(0.0, time.time() - asked_at)
    train_seconds, saves = 0.0, []
    for stage, examples in zip(config.stage_plans(), config.stage_examples(inputs.sizes), strict=True):
        stepper = _stepper(model, stage, config, precision)
        seconds = _seconds_an_example(stepper, stage, config, inputs, STAGE_SECONDS, MOST_STEPS)
        train_seconds += examples * seconds
        saves.append(_save(model, stepper, config, inputs, scratch if scratch.is_dir() else None))
    seconds, snapshot_bytes, best_bytes = (max(column) for column in zip(*saves, strict=True))
    return Cost(
        train_seconds=train_seconds,
        evaluation_seconds=seconds + sum(_dev_seconds(model, name, config, inputs) for name in inputs.dev),
        start_seconds=start_seconds,
        memory_gb=usage(device)["system/peak_memory_gb"],
        snapshot_bytes=int(snapshot_bytes),
        best_bytes=int(best_bytes),
        pretraining={one.name: _pretraining_seconds(one, config, inputs) for one in find(config, inputs) if not one.is_made},
    )


def _pretraining_seconds(one: Pretrained, config: TrialConfig, inputs: Inputs) -> float:
    """Seconds that a further pretraining takes, by some steps of it and the evaluations of what is held out."""
    maker = Maker(config, inputs, replace(one, before=inputs.encoder_folder), 0)  # of a chain each from the trial's encoder
    began = time.monotonic()
    maker.evaluate()
    evaluation_seconds = time.monotonic() - began

    def step() -> None:
        maker.shown = 0  # else a short one would be over
        maker.step()

    step_seconds = _seconds_a_call(step, STAGE_SECONDS, MOST_STEPS, maker.device)
    return step_seconds * maker.total / one.stage.batch_size + 2 * evaluation_seconds


def _built(document: dict[str, Any]) -> tuple[TrialConfig, torch.device, str, Inputs, MultitaskBert]:
    """A trial's config, device, precision, inputs and model."""
    config = load_config(document)
    device = prepare(config.machine)
    inputs = open_inputs(config)
    model = model_to_train(config, inputs).to(device)
    return config, device, resolve_precision(config.machine.precision, device), inputs, model


def _stepper(model: MultitaskBert, stage: StagePlan, config: TrialConfig, precision: str) -> Stepper:
    """A stage's stepper, its heads drawn again where the stage begins with fresh ones."""
    for task in stage.tasks if stage.fresh_heads else ():
        model.renew_head(task, seed_of(config.seed, "measure"))
    return Stepper(model, stage, config.loss_weights, seed_of(config.seed, "measure"), precision)


# ------------------------------------------------------------------------------------------------------- sharing a GPU


@dataclass(frozen=True)
class Memory:
    """Of a trial and of the device under it, in GB: of the GPU, on the CPU of the machine."""

    peak_gb: float
    free_gb: float  # as it would be without this trial
    total_gb: float


class Sharer:
    """A trial that trains while it is told to, beside others on the same GPU; its process stays from one timing to the next.

    Raises what a trial would: no such folder, out of memory.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document

    def begin(self) -> Memory:
        """Build the trial and warm it up: some steps of every stage, some of the evaluation."""
        self.config, self.device, self.precision, self.inputs, self.model = _built(self.document)
        self._seconds_an_example(PEAK_SECONDS, MOST_STEPS)
        for name in self.inputs.dev:
            _dev_seconds(self.model, name, self.config, self.inputs)
        return Memory(usage(self.device)["system/peak_memory_gb"], *_free_and_total_gb(self.device))

    def rate(self, begins_at: float, seconds: float) -> float:
        """Examples a second in the `seconds` from begins_at (by `time.time()`) on, the same for all that share the GPU."""
        time.sleep(max(0.0, begins_at - time.time()))
        return 1 / self._seconds_an_example(seconds / len(self.config.stage_plans()), math.inf)

    def _seconds_an_example(self, stage_seconds: float, most_steps: float) -> float:
        """The mean over the stages, each weighed by its share of the trial."""
        config, total, mean = self.config, self.config.num_examples(self.inputs.sizes), 0.0
        for stage, examples in zip(config.stage_plans(), config.stage_examples(self.inputs.sizes), strict=True):
            stepper = _stepper(self.model, stage, config, self.precision)
            seconds = _seconds_an_example(stepper, stage, config, self.inputs, stage_seconds, most_steps)
            mean += examples / total * seconds
        return mean


def _free_and_total_gb(device: torch.device) -> tuple[float, float]:
    """What the trials on a device may take between them, and all that it has; of the CPU's memory, all."""
    if device.type != "cuda":
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
        return total, total
    free, whole = torch.cuda.mem_get_info(device)
    return (free + torch.cuda.memory_reserved(device)) / 1e9, whole / 1e9


# ---------------------------------------------------------------------------------------------------------------- steps


def _seconds_an_example(
    stepper: Stepper,
    stage: StagePlan,
    config: TrialConfig,
    inputs: Inputs,
    stage_seconds: float,
    most_steps: float,
) -> float:
    """Seconds of wall time an example of this stage, whose kinds of step are weighed by how often they come."""
    sizes = {name: inputs.sizes[name] for name in stage.tasks}
    batch_sizes = {name: stepper.model.plans[name].batch_size for name in stage.tasks}
    drawn = dict.fromkeys(stage.tasks, 0)
    steps = 0
    met: set[tuple[str, ...]] = set()

    def step(names: tuple[str, ...]) -> None:
        nonlocal steps
        batches = {}
        for name in names:
            batches[name] = _batch(stepper.model, name, config, inputs, drawn[name])
            drawn[name] += batch_sizes[name]
        # the first of a kind is not timed, so it always measures: what a few steps would not come to is executed, too
        is_measured = names not in met or int(steps * measures_a_step) < int((steps + 1) * measures_a_step)
        met.add(names)
        stepper.step(steps, batches, progress=0.5, measure=is_measured)
        steps += 1

    shares = stage.task_schedule.step_shares(sizes, batch_sizes)
    examples_a_step = examples_per_step(stage.task_schedule, sizes, batch_sizes)
    logs_a_step = LOGS_A_TRIAL * examples_a_step / config.num_examples(inputs.sizes)
    measures_a_step = min(logs_a_step, 1 / STEPS_A_MEASURE)  # of figures that cost something
    device = next(stepper.model.parameters()).device
    each = stage_seconds / len(shares)
    times = {names: _seconds_a_call(lambda n=names: step(n), each, most_steps, device) for names in shares}  # type: ignore[misc]
    return sum(share * times[names] for names, share in shares.items()) / examples_a_step


def _seconds_a_call(call: Callable[[], None], at_least: float, most_calls: float, device: torch.device) -> float:
    """The mean over calls in a row that take `at_least` seconds, one to most_calls; one before them is not counted."""
    call()  # allocates the optimiser's moments and the buffers of the matrix products
    _wait(device)
    began, calls = time.monotonic(), 0
    while calls == 0 or (calls < most_calls and time.monotonic() - began < at_least):
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


def _dev_seconds(model: MultitaskBert, name: str, config: TrialConfig, inputs: Inputs) -> float:
    """Seconds to evaluate one task's dev split, by a trial's own evaluation of parts of it.

    The parts grow to the size of one pass; the rate is that of the largest.
    """
    split, encoding = inputs.dev[name], model.plans[name].pair_encoding.kind
    order = np.random.default_rng(0).permutation(len(split))
    ends = np.cumsum(split.lengths(encoding, config.max_length)[order])
    rates: dict[int, list[float]] = {}
    began, tokens = time.monotonic(), FIRST_TOKENS
    for _ in range(MOST_PASSES):
        if rates and time.monotonic() - began > EVALUATION_SECONDS:
            break
        rows = order[: max(1, np.searchsorted(ends, tokens))]
        part = replace(inputs, dev={name: split.only(rows)})
        before = time.monotonic()
        evaluate_dev(model, config, part)
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
