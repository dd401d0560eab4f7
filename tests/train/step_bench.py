"""A model, a stepper over it, and batches, for the tests of a step; and its losses, penalties and merges written out again.

B examples, D hidden size, K outputs, N packed tokens, P shared parameters, T tasks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from minbert_core.config import TrialConfig
from minbert_core.data.tokens import PackedBatch, pack
from minbert_core.encoder import Masks
from minbert_core.inputs import Inputs, build_encoder, open_inputs
from minbert_core.model import MultitaskBert, build_model
from minbert_core.seeds import seed_of
from minbert_core.train.passes import Batch
from minbert_core.train.step import Stepper
from minbert_core.train.task_losses import StepReport

Tiny = Callable[..., TrialConfig]


Batches = dict[str, PackedBatch]


SEED = 11
APART = 1  # tokens of a pass: fewer than any example has


NO_DROPOUT = {
    "encoder": {"hidden_dropout": 0, "attention_dropout": 0},
    "tasks": {"all": {"head": {"kind": "linear", "dropout": 0}}},
}


class Bench:
    """A model, a stepper over it, and batches of its tasks."""

    def __init__(self, config: TrialConfig, precision: str = "float32") -> None:
        self.inputs: Inputs = open_inputs(config)
        self.config = config
        self.model = build_model(config, build_encoder(config, self.inputs))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():  # fresh heads are so small that hardly any gradient reaches the encoder
            for parameter in self.model.heads.parameters():
                parameter.normal_(0, 0.3, generator=generator)
        self.stepper = Stepper(self.model, config.stage_plans()[0], config.loss_weights, SEED, precision)

    def batches(self, *tasks: str, first: int = 0, size: int = 8) -> Batches:
        """`size` rows from `first` on of each task's train split; of all tasks where none is named."""
        rows_B = np.arange(first, first + size)
        encodings = {name: self.model.plans[name].pair_encoding.kind for name in tasks or self.config.train_on}
        return {n: pack(self.inputs.train[n], rows_B, e, 64, self.inputs.specials) for n, e in encodings.items()}

    def parts(self, *sizes: int) -> dict[str, Batch]:
        """The first rows of each task's train split as one batch, in parts of so many examples."""
        ends = np.cumsum(sizes)
        split = [self.batches(first=int(end - size), size=size) for size, end in zip(sizes, ends, strict=True)]
        return {task: [batches[task] for batches in split] for task in self.config.train_on}

    def step(
        self,
        number: int = 0,
        batches: Batches | None = None,
        progress: float = 0.1,
        measure: bool = False,
        parts: dict[str, Batch] | None = None,
        limit: int | None = None,
    ) -> StepReport:
        """A step over whole batches or `parts`, at the peak of the rate unless `progress` says otherwise.

        limit: the most tokens of a pass; APART gives every part a pass of its own, with its own dropout masks.
        """
        whole = {task: [batch] for task, batch in (batches or self.batches()).items()}
        return self.stepper.step(number, self.stepper.passes(number, parts or whole, limit), progress, measure)

    def merged_P(self) -> Tensor:
        """The shared gradient that the optimiser read, in the order of the groups; 0 where there is none."""
        parameters = self.stepper.shared.parameters
        gradients = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
        return torch.cat([torch.zeros(0), *gradients])

    def copy(self) -> MultitaskBert:
        return copy.deepcopy(self.model)


HALF_RANGE = 2.5  # of STS, whose labels go from 0 to 5: what an error of it is measured in


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sst": lambda logits_BK, labels_B: functional.cross_entropy(logits_BK, labels_B.long()),
    "para": lambda logits_BK, labels_B: functional.binary_cross_entropy_with_logits(logits_BK[:, 0], labels_B),
    "sts": lambda logits_BK, labels_B: (((logits_BK[:, 0] - labels_B) / HALF_RANGE) ** 2).mean(),
}


def masked(
    model: MultitaskBert,
    task: str,
    batch: PackedBatch,
    number: int = 0,
    part: int = 0,
    noise_ND: Tensor | None = None,
    view: int = 0,
) -> Tensor:
    """Logits under the step's own dropout masks, (B, K)."""
    seed = seed_of(SEED, "masks", number, task, part, *([view] if view else []))
    return model(task, batch, Masks(seed), noise_ND).logits_BK


def loss_of(model: MultitaskBert, task: str, batch: PackedBatch, number: int = 0, part: int = 0) -> Tensor:
    """The plain loss of one task under the step's own dropout masks, written out here again."""
    return LOSSES[task](masked(model, task, batch, number, part), batch.labels_B)


def shared_P(model: MultitaskBert) -> list[nn.Parameter]:
    return [parameter for group in model.encoder.parameter_groups().values() for parameter in group]


def task_gradients(model: MultitaskBert, batches: Batches, number: int = 0) -> tuple[Tensor, dict[str, list[Tensor]]]:
    """Each task's own gradient of the shared parameters, (T, P), and of its head."""
    rows, heads = [], {}
    for task, batch in batches.items():
        model.zero_grad()
        loss_of(model, task, batch, number).backward()
        rows.append(torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in shared_P(model)]))
        heads[task] = [p.grad.clone() for p in model.heads[task].parameters() if p.grad is not None]
    return torch.stack(rows), heads


def close(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> bool:
    return bool((one - other).norm() <= tolerance * other.norm())


def pcgrad_by_hand(rows_TP: Tensor, orders: Tensor) -> Tensor:
    """Algorithm 1 of Yu et al. 2020 on the vectors themselves."""
    total_P = torch.zeros_like(rows_TP[0])
    for i, order in enumerate(orders.tolist()):
        projected_P = rows_TP[i].clone()
        for j in order:
            inner = projected_P @ rows_TP[j]
            if inner < 0:
                projected_P -= inner / rows_TP[j].square().sum() * rows_TP[j]
        total_P += projected_P
    return total_P


def opposed(bench: Bench) -> Bench:
    """Tasks that conflict: the heads of para and sts read the same direction with opposite signs."""
    with torch.no_grad():
        bench.model.heads["sts"].layers[0].weight.copy_(-3 * bench.model.heads["para"].layers[0].weight)
    return bench


def smart(**knobs: float) -> dict[str, Any]:
    return {"kind": "smart", **knobs}


def r_drop(weight: float = 0.5) -> dict[str, Any]:
    return {"kind": "r_drop", "weight": weight}


def bregman(**knobs: float | None) -> dict[str, Any]:
    return {"kind": "bregman", **knobs}


def class_divergence(p_BK: Tensor, q_BK: Tensor) -> Tensor:
    """KL(P||Q) + KL(Q||P) of two softmaxes, mean over the batch."""
    p_BK, q_BK = p_BK.softmax(1), q_BK.softmax(1)
    return (p_BK * (p_BK / q_BK).log() + q_BK * (q_BK / p_BK).log()).sum(1).mean()


def two_classes(logits_B1: Tensor) -> Tensor:
    """A Bernoulli as a softmax: of the logit and of 0."""
    return torch.cat([logits_B1, torch.zeros_like(logits_B1)], dim=1)


DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sst": class_divergence,
    "para": lambda p_B1, q_B1: class_divergence(two_classes(p_B1), two_classes(q_B1)),
    "sts": lambda p_B1, q_B1: ((p_B1 - q_B1) / HALF_RANGE).square().mean(),
}


def moved(bench: Bench, size: float = 0.01) -> Bench:
    """A student that has left its teacher, as it would in some steps."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in bench.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=size)
    return bench


SIZES = (3, 1, 4)  # one part is a single example, which has no correlation


COSINE = {"pair_encoding": "bi", "head": {"kind": "cosine", "offset": -2.5}, "loss": "cosine_embedding"}
