"""Our side of the training benchmarks: steps exactly as in a trial, packing included."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.rounds import Figure, Times
from minbert_core.checkpoints import load_encoder
from minbert_core.config_checks import load_config
from minbert_core.data.tokens import Integers
from minbert_core.inputs import open_inputs
from minbert_core.machine import fastest_matmul
from minbert_core.train.ahead import Ahead
from minbert_core.train.bench import Bench
from minbert_core.train.passes import Pass, passes_of
from minbert_core.train.step import Stepper
from minbert_core.train.trial import evaluate_dev

WORKLOADS = (("sst", "single"), ("para", "cross"), ("para", "bi"), ("sts", "cross"), ("sts", "bi"))
MOST_COST = 4  # of a product in bfloat16, in products in float32
NUM_BATCHES = 4  # taken in turn, one per step; a round is all of them


def document(
    data: Path, encoder: Path, tasks: tuple[str, ...], encoding: str, batch: int, machine: dict[str, Any]
) -> dict[str, Any]:
    """Return a trial's config: BERT's own pooler, as its peers have it, with dropout .1, AdamW and clipping."""
    pairs = {} if encoding == "single" else {"pairs": {"pair_encoding": encoding}}
    return {
        "data": str(data),
        "encoder": str(encoder),
        "train_on": list(tasks),
        "tasks": {"all": {"batch_size": batch, "pooling": "pooler"}, **pairs},
        "machine": machine,
    }


def even_rows(lengths: Integers, batch: int) -> list[Integers]:
    """Draw the rows of NUM_BATCHES random batches that together have the length distribution of the corpus."""
    order = np.argsort(lengths, kind="stable")
    places = (np.arange(NUM_BATCHES * batch) + 0.5) / (NUM_BATCHES * batch) * len(order)
    rows = np.random.default_rng(0).permutation(order[places.astype(int)])
    return list(rows.reshape(NUM_BATCHES, batch))


def machine(threads: int, precision: str = "float32", device: str = "cpu") -> dict[str, Any]:
    """Return the machine settings that a search would choose here."""
    route = fastest_matmul(torch.device(device), threads)
    return {"device": device, "threads": threads, "precision": precision, "matmul": route}


def training_step(config: dict[str, Any], together: bool = True, is_compiled: bool = False) -> Callable[[], object]:
    """Build a step of the trial that `config` describes: packing the next batch of each task, and training on it.

    together: whether tasks share a pass where they may.  is_compiled: whether torch compiles the encoder's layers, at the first
    step. On a GPU the batch is prepared ahead, as in a trial, and the host does not wait for the step's end.
    """
    trial = load_config(config)
    bench = Bench.of(trial, open_inputs(trial))
    if is_compiled:
        torch._dynamo.config.specialize_float = True  # else dropout rates and epsilons become tensors that the host reads
        for layer in bench.model.encoder.layers:
            layer.compile(dynamic=True)
    [stage] = trial.stage_plans()
    stepper = Stepper(bench.model, stage, trial.loss_weights, 0, bench.precision)
    rows = {
        task: even_rows(bench.inputs.train[task].lengths(plan.pair_encoding.kind, trial.max_length), plan.batch_size)
        for task, plan in bench.model.plans.items()
    }

    def passes(number: int) -> list[Pass]:
        batches = {task: bench.pack(task, batches_of_task[number % NUM_BATCHES]) for task, batches_of_task in rows.items()}
        if together:
            return stepper.passes(number, batches)
        return passes_of(number, batches, bench.model, together, precision=bench.precision)

    ahead, numbers = Ahead(passes, bench.device), itertools.count()

    def step() -> None:
        number = next(numbers)
        ready = ahead.take(number)
        ahead.begin(number + 1)
        stepper.step(number, ready, 0.5, measure=False)

    return step


def evaluation(config: dict[str, Any]) -> Callable[[], object]:
    """Build an evaluation of the dev splits of all tasks, as in a trial."""
    trial = load_config(config)
    bench = Bench.of(trial, open_inputs(trial))
    return lambda: evaluate_dev(bench.model, trial, bench.inputs)


def forward_work(config: dict[str, Any]) -> float:
    """Count the floating-point operations of a mean batch's forward pass: products and attention over real tokens.

    If only [CLS] is read, the part of the last layer that is skipped is not counted.
    """
    trial = load_config(config)
    inputs = open_inputs(trial)
    shape = load_encoder(inputs.encoder_folder, 0, 0).shape
    [task] = trial.train_on
    plan, split = trial.task(task), inputs.train[task]
    counts = split.lengths(plan.pair_encoding.kind, trial.max_length)
    counts = counts[np.concatenate(even_rows(counts, plan.batch_size))]
    sequences = plan.vectors * plan.batch_size
    tokens, lengths = float(counts.sum()) / NUM_BATCHES, float(counts.mean()) / plan.vectors
    hidden, wide = shape.hidden_size, shape.intermediate_size
    asks = 2 * (2 * hidden * hidden + 2 * hidden * wide) + 4 * lengths * hidden  # query, output, feed-forward, attention
    asked = 2 * 2 * hidden * hidden
    assert plan.pooling.reads_only_first, "the pooler reads [CLS]"
    full = (shape.num_hidden_layers - 1) * tokens * (asks + asked)
    return full + tokens * asked + sequences * asks


PROBES = {"cpu": ((1024, 384, 1536), 30), "cuda": ((8192, 768, 3072), 300)}  # shape of a layer's product, how many per call


def matmul_probe(threads: int, device: str = "cpu") -> Callable[[], object]:
    """Build a step of matrix products of a layer's shape: float32 by the fastest route on the CPU, bfloat16 on a GPU."""
    (rows, inner, columns), repeats = PROBES[device]
    x, weight = torch.randn(rows, inner, device=device), torch.randn(inner, columns, device=device)
    torch.set_num_threads(threads)
    if device == "cuda":
        x, weight = x.bfloat16(), weight.bfloat16()
    elif fastest_matmul(torch.device(device), threads) == "onednn":
        torch.set_float32_matmul_precision("medium")

    def step() -> None:
        for _ in range(repeats):
            x @ weight

    return step


def without_bfloat16() -> str:
    """Return why nothing is measured in bfloat16 on this CPU; "" where it can be.

    Without its instructions, as on AMD before Zen 4, a bfloat16 product takes 40 times as long as one in float32.
    """
    x, weight = torch.randn(256, 384), torch.randn(384, 1536)
    seconds = dict.fromkeys((torch.float32, torch.bfloat16), math.inf)
    for _ in range(4):  # the first of each is a warm-up
        for dtype in seconds:
            left, right = x.to(dtype), weight.to(dtype)
            began = time.perf_counter()
            left @ right
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - began)
    times = seconds[torch.bfloat16] / seconds[torch.float32]
    return "" if times < MOST_COST else f"a bfloat16 product takes {times:.0f} times as long as a float32 one here"


def share_of_probe(config: dict[str, Any], times: Times) -> Figure:
    """Compute model-FLOPs utilisation in percent: a step's work, forward and twice that backward, over the probe's rate."""
    shape, repeats = PROBES[config["machine"]["device"]]
    work, probed = 3 * forward_work(config), 2 * math.prod(shape) * repeats
    rounds = zip(times["ours"], times["probe"], strict=True)
    return Figure.of([100 * work / taken / (probed / free) for taken, free in rounds])
