"""Loss weights: the factor of each task's loss and penalties, and so of its gradient, before the tasks' gradients are merged.

    state, this step's losses -> weights -> backward, merge, update -> follow: the state moves, for the steps to come

A variant that reads the losses of a step for its weights follows them in this step. Any other follows the losses of the step
before, which are there by then, so that the host does not wait for a GPU.

`kinds` maps the tasks of the stage, in order, to their kinds; `losses` maps those of the step to their losses, without
penalties. A variant keeps what it remembers in `state`, by task, float64 on the CPU. A snapshot holds it; a stage starts with
an empty one.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from minbert_core.data.tasks import TaskKind
from minbert_core.settings.models import BARE_NAME, Variant

Kinds = dict[str, TaskKind]
Numbers = dict[str, float]  # by task
State = dict[str, Tensor]

BETAS, ADAM_EPS = (0.9, 0.999), 1e-8  # Kingma & Ba 2015 (arXiv 1412.6980), Algorithm 1
LOSS_EPS = 1e-8  # added to a loss before its logarithm, and what it must exceed to have one; FAMO's released code


def softmax(values: Numbers) -> Numbers:
    """Return exp(value) divided by their sum."""
    largest = max(values.values(), default=0.0)
    powers = {task: math.exp(value - largest) for task, value in values.items()}
    return {task: power / sum(powers.values()) for task, power in powers.items()}


def learned(state: State, task: str) -> float:
    """Return the learned number of a task, 0 at first."""
    return float(state[task][0]) if task in state else 0.0


def learn(state: State, task: str, gradient: float, lr: float) -> None:
    """Take one step of Adam on a task's number; its entry is (number, first moment, second moment, steps)."""
    value, first, second, steps = state[task].tolist() if task in state else (0.0, 0.0, 0.0, 0.0)
    steps += 1
    first = BETAS[0] * first + (1 - BETAS[0]) * gradient
    second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
    first_hat, second_hat = first / (1 - BETAS[0] ** steps), second / (1 - BETAS[1] ** steps)
    value -= lr * first_hat / (math.sqrt(second_hat) + ADAM_EPS)
    state[task] = torch.tensor([value, first, second, steps], dtype=torch.float64)


class LossWeightsVariant(Variant):
    """The defaults of loss weights; a variant declares only what differs, and `of(kinds, losses, state)` -> task's weight."""

    needs_several_tasks: ClassVar[bool] = False  # it compares the tasks of one step
    reads_losses: ClassVar[bool] = False  # it weighs by this step's losses: after the backward passes, so it weighs gradients
    follows_losses: ClassVar[bool] = False  # `follow` moves its state by each step's losses
    looks_again: ClassVar[bool] = False  # `follow` also gets the losses after the update: one more pass, same batches and masks

    @property
    def tasks_named(self) -> tuple[str, ...]:
        """The tasks that its knobs name."""
        return ()

    def follow(self, kinds: Kinds, losses: Numbers, losses_after: Numbers, progress: float, state: State) -> None:
        """Move `state` after a step; by default it stays."""


class Static(LossWeightsVariant):
    """A constant factor for each task; 1 where none is given.  With none at all, the plain sum of Caruana 1997."""

    kind: Literal["static"] = "static"
    weights: dict[str, PositiveFloat] = Field(
        {}, json_schema_extra={"unit": "times the loss"}, description="task name -> factor; 1 where absent"
    )

    def of(self, kinds: Kinds, losses: Numbers, state: State) -> Numbers:
        return {task: self.weights.get(task, 1.0) for task in kinds}

    @property
    def tasks_named(self) -> tuple[str, ...]:
        return tuple(self.weights)


class Uncertainty(LossWeightsVariant):
    """Homoscedastic uncertainty (Kendall et al. 2018, arXiv 1705.07115, eq. 7 to 10): e^-s L + s/2, summed over tasks.

    s = log sigma^2 is learned, one per task, by its own gradient, without weight decay, which would pull sigma to 1. The L of a
    regression counts half, as for the Gaussian. Departures: s has its own Adam and rate (theirs was one optimiser for all; a
    rate that fine-tunes BERT would not move it), and the factor depends on the kind of task, whatever its loss. Penalties get
    the weight of their task's loss; s does not see them.
    """

    kind: Literal["uncertainty"] = "uncertainty"
    lr: float = Field(
        1e-2,
        gt=0,
        le=1,
        json_schema_extra={"unit": "per step"},
        description="rate of the log variances, constant; 0.01 is assumed, not measured (2026-11)",
    )
    follows_losses: ClassVar[bool] = True

    def of(self, kinds: Kinds, losses: Numbers, state: State) -> Numbers:
        return {task: self._factor(kind) * math.exp(-learned(state, task)) for task, kind in kinds.items()}

    def follow(self, kinds: Kinds, losses: Numbers, losses_after: Numbers, progress: float, state: State) -> None:
        """s moves along d/ds of factor e^-s L + s/2, for the tasks of the step."""
        for task, loss in losses.items():
            gradient = 0.5 - self._factor(kinds[task]) * math.exp(-learned(state, task)) * loss
            learn(state, task, gradient, self.lr)

    @staticmethod
    def _factor(kind: TaskKind) -> float:
        return 0.5 if kind == "regression" else 1.0


class Dwa(LossWeightsVariant):
    """Dynamic weight average (Liu et al. 2019, arXiv 1803.10704, eq. 7): K softmax(w / T) over the K tasks.

    w_k = L_k(t-1) / L_k(t-2): a task whose loss falls more slowly than the others' gets more weight. L_k(t) is the mean over
    the steps of period t. In the first two periods all weights are 1, and w_k is 1 until a task has two means. Departures:
    a period is a share of the stage; theirs was an epoch, whose length depends on the schedule. The end of a period is noticed
    at the first step after it, so weights change from the second step on.
    """

    kind: Literal["dwa"] = "dwa"
    temperature: float = Field(
        2.0, gt=0, json_schema_extra={"unit": "of the ratio of losses"}, description="T: the larger, the more alike the weights"
    )
    period: float = Field(
        0.1,
        gt=0,
        le=1,
        json_schema_extra={"unit": "of the stage"},
        description="length of a period, over which losses are averaged and weights stay; 0.1 is one of ten epochs",
    )
    follows_losses: ClassVar[bool] = True

    def of(self, kinds: Kinds, losses: Numbers, state: State) -> Numbers:
        ratios = {}
        for task in kinds:
            _, _, last, before = state[task].tolist() if task in state else (0.0, 0.0, math.nan, math.nan)
            ratios[task] = last / before / self.temperature if before > 0 else 1 / self.temperature  # nan is not above 0
        return {task: len(kinds) * share for task, share in softmax(ratios).items()}

    def follow(self, kinds: Kinds, losses: Numbers, losses_after: Numbers, progress: float, state: State) -> None:
        """Entries are (sum, number of steps, mean of the last period, of the one before); "/period" counts the periods."""
        number, known = math.floor(progress / self.period), float(state.get("/period", torch.tensor(0.0)))
        for task in kinds:
            total, steps, last, before = state[task].tolist() if task in state else (0.0, 0.0, math.nan, math.nan)
            if number > known and steps:
                total, steps, last, before = 0.0, 0.0, total / steps, last
            if task in losses:
                total, steps = total + losses[task], steps + 1
            state[task] = torch.tensor([total, steps, last, before], dtype=torch.float64)
        state["/period"] = torch.tensor(float(max(number, known)), dtype=torch.float64)


class Famo(LossWeightsVariant):
    """Fast adaptive multitask optimisation (Liu et al. 2023, arXiv 2306.03792), Algorithm 1.

    With z = softmax(xi), the weight of a task is z_i / L_i, so that logarithms of losses fall. After the update xi moves
    against the fall of log L on the same batches, so the tasks that fell least gain. Departures: the weights sum to T and not
    to 1, so that equal losses start as the plain sum, and the clip of a gradient means the same as elsewhere; penalties get the
    weight of their task, and xi does not see them. As in the released code, 1e-8 is added to a loss, and xi has Adam and L2
    decay. A logarithm needs a loss above 0. A task whose loss is at most 1e-8 (a correlation over constant labels, cosines
    within their margin) has nothing to learn from the batch. It weighs 1, the others weigh as if it were absent, and the xi of
    a task moves only between two losses above 1e-8. In the released code such a task takes all weight but 1e-8 of it.
    """

    kind: Literal["famo"] = "famo"
    lr: float = Field(
        0.025, gt=0, le=1, json_schema_extra={"unit": "per step"}, description="beta: Adam's rate of the logits xi; as released"
    )
    decay: float = Field(
        0.01,
        ge=0,
        json_schema_extra={"unit": "per step"},
        description="gamma: decay of xi towards 0, so of z towards equal weights; as released",
    )
    needs_several_tasks: ClassVar[bool] = True
    reads_losses: ClassVar[bool] = True
    follows_losses: ClassVar[bool] = True
    looks_again: ClassVar[bool] = True

    def of(self, kinds: Kinds, losses: Numbers, state: State) -> Numbers:
        shares = softmax({task: learned(state, task) for task, loss in losses.items() if loss > LOSS_EPS})
        rates = {task: share / (losses[task] + LOSS_EPS) for task, share in shares.items()}
        weights = {task: len(rates) * rate / sum(rates.values()) for task, rate in rates.items()}
        return dict.fromkeys(losses, 1.0) | weights

    def follow(self, kinds: Kinds, losses: Numbers, losses_after: Numbers, progress: float, state: State) -> None:
        """The gradient at xi is that of softmax(xi) . (log L - log L after), and of the decay."""
        seen = [task for task, loss in losses.items() if min(loss, losses_after[task]) > LOSS_EPS]
        falls = {task: math.log((losses[task] + LOSS_EPS) / (losses_after[task] + LOSS_EPS)) for task in seen}
        shares = softmax({task: learned(state, task) for task in falls})
        mean_fall = sum(shares[task] * fall for task, fall in falls.items())
        for task, fall in falls.items():
            learn(state, task, shares[task] * (fall - mean_fall) + self.decay * learned(state, task), self.lr)


LossWeights = Annotated[Static | Uncertainty | Dwa | Famo, Field(discriminator="kind"), BARE_NAME]
