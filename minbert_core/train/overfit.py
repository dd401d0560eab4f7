"""The sanity check of a new head or loss: can it learn a few examples by heart?  If not, it is broken, and no search helps.

    config, inputs -> few_of -> the same N examples in train and dev -> train until every task knows them -> a verdict per task

The config's encoder, pair encoding, pooling, shared layer, head, loss, gradient method and loss weights are kept. The rest is
set so that a sound configuration passes: all N examples in each step, no dropout, no decay, one stage, and neither adapter,
smoothness nor proximal term.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from minbert_core.config import TINY, TaskPlan, TrialConfig
from minbert_core.config_checks import load_config
from minbert_core.data.tokens import pack
from minbert_core.inputs import Inputs, build_encoder, open_inputs
from minbert_core.methods.task_schedules import example_rows
from minbert_core.model import build_model
from minbert_core.seeds import seed_of
from minbert_core.settings.paths import as_written, lay_over
from minbert_core.terminal import Screen
from minbert_core.train.report import Report
from minbert_core.train.trial import Record, train

MOST_STEPS, EVALUATE_EVERY = 400, 20
LEARNED = 0.99  # of accuracy, or of r
# A loss may teach less than the labels hold (`classes` the nearest of six, `cosine_embedding` similar or not). Then r is below
# 1 although everything is learned, and a loss near 0 shows it. Seen on 16 pairs of STS: .99 and .77 (2026-11).
COARSE, LOSS_LEFT = 0.5, 0.02
# With these, MiniLM and the tiny encoder learned 16 of each of the course's tasks in 20 to 160 steps, under nine sets of heads,
# losses and gradient methods, MiniLM under five of them (2026-11). For larger encoders they are assumed, not measured.
RATE, TINY_RATE = 1e-4, 1e-3
HEAD_RATE = 1e-3


@dataclass(frozen=True)
class Verdict:
    """The result of one task: its metric at the last evaluation, its first and last loss, the steps until it knew all examples.

    `learned_after` is None if it did not learn them; `unreached` names the parameters that its gradient does not reach.
    """

    plan: TaskPlan
    num_examples: int
    steps: int
    learned_after: int | None = None
    value: float = math.nan
    losses: tuple[float, float] = (math.nan, math.nan)
    unreached: str = ""

    def __str__(self) -> str:
        task, head, loss = self.plan.task, self.plan.head.kind, self.plan.loss.kind
        where = f"tasks/{task.name}/head ({head}) and tasks/{task.name}/loss ({loss})"
        if self.unreached:
            return f"{task.name} cannot learn: no gradient reaches {self.unreached}; look at {where}"
        if self.learned_after is not None:
            return f"{task.name} learned its {self.num_examples} examples after {self.learned_after} steps"
        first, last = self.losses
        fell = f"its loss went from {first:.3g} to {last:.3g}"
        return f"{task.name} did not: {measure(self.plan)} {self.value:.2f} after {self.steps} steps, {fell}; look at {where}"


def measure(plan: TaskPlan) -> str:
    """Name the measure: accuracy or r, even if ties or absent classes keep the task's own metric below 1."""
    return "r" if plan.task.kind == "regression" else "accuracy"


def overfit_config(config: TrialConfig, num_examples: int) -> TrialConfig:
    """Change `config` to what is checked on `num_examples` per task."""
    tasks: dict[str, Any] = {}
    for name in config.train_on:
        plan = config.task(name)
        no_dropout = {"dropout": 0.0} if "dropout" in type(plan.head).model_fields else {}
        written = {key: as_written(getattr(plan, key)) for key in ("pair_encoding", "pooling", "head", "loss")}
        tasks[name] = written | {"head": written["head"] | no_dropout, "batch_size": num_examples}
    rate = TINY_RATE if config.encoder.checkpoint == TINY else RATE
    optimizer = {"lr": rate, "head_lr_factor": HEAD_RATE / rate, "lr_schedule": "constant", "warmup": 0.05, "weight_decay": 0.0}
    changed = {
        "encoder": {"hidden_dropout": 0.0, "attention_dropout": 0.0},
        "tasks": tasks,
        "budget": {
            "examples": MOST_STEPS * num_examples * len(tasks),
            "points": list(range(1, MOST_STEPS // EVALUATE_EVERY + 1)),
        },
        "optimizer": optimizer,
        "own_tasks": {
            name: {"metric": "pearson" if own.kind == "regression" else "accuracy"} for name, own in config.own_tasks.items()
        },
    }
    if "dropout" in type(config.shared_layer).model_fields:
        changed["shared_layer"] = {"dropout": 0.0}
    kept = {key: value for key, value in as_written(config).items() if key not in ("tasks", "budget", "optimizer", *DROPPED)}
    return load_config(lay_over(kept, changed))


DROPPED = ("task_schedule", "stages", "smoothness", "proximal", "adapter")  # of the config, for the default


def few_of(config: TrialConfig, inputs: Inputs, num_examples: int) -> Inputs:
    """Select the first examples of each task that training would draw, for both train and dev.

    Raises ValueError if a task has fewer, or if they all have the same label.
    """
    few = {}
    for name, split in inputs.train.items():
        if len(split) < num_examples:
            raise ValueError(f"--overfit {num_examples}: task {name} has only {len(split)} examples.")
        few[name] = split.only(example_rows(seed_of(config.seed, "rows", name), len(split), 0, num_examples))
        labels = few[name].labels
        assert labels is not None, "train splits are read with labels"
        if np.ptp(labels) == 0:
            law = f"the examples drawn of {name} all have the label {labels[0]:g}, so there is nothing to learn"
            raise ValueError(f"--overfit {num_examples}: {law}. Take more of them.")
    return replace(inputs, train=few, dev=few)


def unreached(config: TrialConfig, inputs: Inputs) -> dict[str, str]:
    """Name the parameters that each task's gradient does not reach (`the encoder`, a weight of its head), if there are any.

    A gradient of zero counts as reached (a head may begin with weights of zero); detached or unused parameters have none.
    """
    model = build_model(config, build_encoder(config, inputs))
    unreached_parts = {}
    for name, split in inputs.train.items():
        plan = model.plans[name]
        batch = pack(split, np.arange(len(split)), plan.pair_encoding.kind, config.max_length, inputs.specials)
        output = model(name, batch)
        loss = plan.loss(
            output.features_BF if plan.loss.reads_features else output.logits_BK, batch.labels_B, plan.task.label_range
        )
        own = {f"`{key.removeprefix(f'{name}.')}` of its head": p for key, p in model.own_parameters(name, with_encoder=True)}
        encoder = dict(model.encoder.named_parameters())
        gradients: dict[str, torch.Tensor | None] = dict.fromkeys((*encoder, *own))
        if loss.requires_grad:
            grads = torch.autograd.grad(loss, [*encoder.values(), *own.values()], allow_unused=True)
            gradients = dict(zip(gradients, grads, strict=True))
        missed = [] if any(gradients[key] is not None for key in encoder) else ["the encoder"]
        missed += [key for key in own if gradients[key] is None]
        if missed:
            unreached_parts[name] = ", ".join(missed)
    return unreached_parts


def run_overfit(config: TrialConfig, num_examples: int, source: str) -> bool:
    """Check that each task can learn `num_examples` by heart, and print which cannot; return whether all can.

    Raises ValueError (see `few_of`) and NotFiniteError.
    """
    inputs, config = few_of(config, open_inputs(config), num_examples), overfit_config(config, num_examples)
    optimizer = config.optimizer
    print(f"overfit   {num_examples} examples of each task, trained on and evaluated on; nothing is written")
    print(f"config    {source}: its encoder, heads, losses, loss weights and gradient method ({config.gradient.kind})")
    for plan in map(config.task, config.train_on):
        encoding = f"{plan.pair_encoding.kind}, " if plan.task.is_pair else ""
        print(f"          {plan.task.name}: {encoding}{plan.pooling.kind}, head {plan.head.kind}, loss {plan.loss.kind}")
    print(f"data      {inputs.data_folder}\nencoder   {config.encoder.checkpoint}")
    print(f"assumed   no dropout, smoothness or proximal term; a constant rate of {optimizer.lr:g}, of the heads {HEAD_RATE:g}")
    print(f"until     accuracy or r of each task is {LEARNED}; {MOST_STEPS} steps at most", flush=True)
    if missed := unreached(config, inputs):
        verdicts = [Verdict(config.task(name), num_examples, 0, unreached=what) for name, what in missed.items()]
    else:
        records: list[Record] = []
        report = Report(config, inputs, records)
        with Screen(report.render) as screen:
            for record, verdicts in overfit(config, inputs):
                records.append(record)
                report.since = time.monotonic()
                if record["kind"] == "dev":
                    values = "  ".join(f"{verdict.plan.task.name} {verdict.value:.3f}" for verdict in verdicts)
                    screen.print(f"{values}  |  {report.progress()} at most")
    print("", *verdicts, sep="\n")
    return all(verdict.learned_after is not None for verdict in verdicts)


def overfit(config: TrialConfig, inputs: Inputs) -> Iterator[tuple[Record, list[Verdict]]]:
    """Train until every task has learned its examples, or for MOST_STEPS; yield (record, current verdicts).

    `config` and `inputs` are those of `overfit_config` and `few_of`.  Raises NotFiniteError.
    """
    num_examples = {name: len(split) for name, split in inputs.train.items()}
    verdicts = {name: Verdict(config.task(name), number, 0) for name, number in num_examples.items()}
    for progress in train(config, inputs):
        record = progress.record
        for name, verdict in verdicts.items():
            if record["kind"] == "train":
                loss = record[f"train/{name}_loss"]
                first = loss if math.isnan(verdict.losses[0]) else verdict.losses[0]
                verdicts[name] = replace(verdict, losses=(first, loss))
                continue
            value, (first, last) = record[f"dev/{name}"], verdict.losses
            is_coarse = verdict.plan.task.kind == "regression" and value >= COARSE and last <= LOSS_LEFT * first
            after = record["step"] if value >= LEARNED or is_coarse else None
            verdicts[name] = replace(verdict, value=value, learned_after=verdict.learned_after or after, steps=record["step"])
        yield record, list(verdicts.values())
        if all(verdict.learned_after is not None for verdict in verdicts.values()):
            return
