"""Stages: a trial trains in one or more of them, each with a share of its budget, its own LR schedule and a fresh optimiser.

    the trial's own settings, as a StagePlan -> stage.plan(trial) -> what this stage does

The list of stages is the trial's recipe: linear probing then fine-tuning (LP-FT) is `[linear_probe, multitask]`, Para first is
`[{kind: single_task, task: para, share: 0.3}, multitask]`. The only file of the families that knows others: a stage holds their
settings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field

from minbert_core.methods.gradients import GradientMethod, Sum
from minbert_core.methods.optimizer import Optimizer
from minbert_core.methods.proximal import NoProximal, Proximal
from minbert_core.methods.smoothness import NoSmoothness, Smoothness
from minbert_core.methods.task_schedules import RoundRobin, TaskSchedule
from minbert_core.settings import BARE_NAME, Variant

Share = Annotated[
    float | None,
    Field(
        gt=0,
        le=1,
        json_schema_extra={"unit": "of the trial's budget"},
        description="the stage's share; stages without one split what the others leave",
    ),
]
OwnOptimizer = Annotated[Optimizer | None, Field(description="replaces the trial's optimizer in this stage; null inherits it")]
OwnSchedule = Annotated[
    TaskSchedule | None, Field(description="replaces the trial's task_schedule in this stage; null inherits it")
]
OwnGradient = Annotated[
    GradientMethod | None, Field(description="replaces the trial's gradient method in this stage; null inherits it")
]
OwnSmoothness = Annotated[
    Smoothness | None,
    Field(description="replaces the trial's smoothness in this stage; null inherits it, `none` turns it off"),
]
OwnProximal = Annotated[
    Proximal | None, Field(description="replaces the trial's proximal in this stage; null inherits it, `none` turns it off")
]
ProbeRate = Annotated[
    float,
    Field(gt=0, le=1, json_schema_extra={"unit": "a step"}, description="peak learning rate of the heads in this stage"),
]


@dataclass(frozen=True)
class StagePlan:
    """What one stage does, everything resolved. The trial's own settings are one, too: that of a plain stage."""

    name: str
    tasks: tuple[str, ...]
    optimizer: Optimizer
    task_schedule: TaskSchedule
    gradient: GradientMethod
    smoothness: Smoothness
    proximal: Proximal
    trains_encoder: bool = True
    fresh_heads: bool = False  # the stage begins with newly drawn heads
    share: float = 1.0  # of the trial's budget


class Multitask(Variant):
    """All tasks of `train_on` together, encoder and heads trained (Caruana 1997)."""

    kind: Literal["multitask"] = "multitask"
    share: Share = None
    optimizer: OwnOptimizer = None
    task_schedule: OwnSchedule = None
    gradient: OwnGradient = None
    smoothness: OwnSmoothness = None
    proximal: OwnProximal = None

    def plan(self, trial: StagePlan) -> StagePlan:
        """All tasks, with what is overridden here."""
        return replace(
            trial,
            name=self.kind,
            optimizer=self.optimizer or trial.optimizer,
            task_schedule=self.task_schedule or trial.task_schedule,
            gradient=self.gradient or trial.gradient,
            smoothness=self.smoothness or trial.smoothness,
            proximal=self.proximal or trial.proximal,
        )


class SingleTask(Variant):
    """One task alone, encoder and its head trained: Para first (Kehoe & Ravella 2024), or one of several in a row."""

    kind: Literal["single_task"] = "single_task"
    task: str = Field(description="the task's name, one of train_on")
    share: Share = None
    optimizer: OwnOptimizer = None
    smoothness: OwnSmoothness = None
    proximal: OwnProximal = None

    def plan(self, trial: StagePlan) -> StagePlan:
        """Its task alone: nothing to schedule, nothing to merge."""
        return replace(
            trial,
            name=f"{self.kind}-{self.task}",
            tasks=(self.task,),
            optimizer=self.optimizer or trial.optimizer,
            task_schedule=RoundRobin(),
            gradient=Sum(),
            smoothness=self.smoothness or trial.smoothness,
            proximal=self.proximal or trial.proximal,
        )


class LinearProbe(Variant):
    """The heads alone, on the frozen encoder: the LP of LP-FT (Kumar et al. 2022, arXiv 2202.10054).

    The encoder is used as in evaluation, without dropout; gradient method, smoothness and proximal have nothing to act on.
    """

    kind: Literal["linear_probe"] = "linear_probe"
    share: Share = None
    lr: ProbeRate = 1e-3
    task_schedule: OwnSchedule = None

    def plan(self, trial: StagePlan) -> StagePlan:
        """Heads alone, from where they are."""
        return _frozen(trial, self.kind, self.lr, self.task_schedule, fresh_heads=False)


class HeadsOnly(Variant):
    """The heads again, on the encoder as the stages before have left it (the last stage of Liu & Maniku 2023).

    As linear_probe, but it can draw new heads first: theirs may have followed an encoder that has moved on.
    """

    kind: Literal["heads_only"] = "heads_only"
    share: Share = None
    lr: ProbeRate = 1e-3
    fresh: bool = Field(False, description="true: the stage begins with newly drawn heads")
    task_schedule: OwnSchedule = None

    def plan(self, trial: StagePlan) -> StagePlan:
        """Heads alone, newly drawn if `fresh`."""
        return _frozen(trial, self.kind, self.lr, self.task_schedule, self.fresh)


Stage = Annotated[Multitask | SingleTask | LinearProbe | HeadsOnly, Field(discriminator="kind"), BARE_NAME]


def _frozen(trial: StagePlan, name: str, lr: float, task_schedule: TaskSchedule | None, fresh_heads: bool) -> StagePlan:
    """The plan of a stage that trains heads alone, at the rate `lr`."""
    return replace(
        trial,
        name=name,
        optimizer=trial.optimizer.model_copy(update={"lr": lr, "head_lr_factor": 1.0}),
        task_schedule=task_schedule or trial.task_schedule,
        gradient=Sum(),
        smoothness=NoSmoothness(),
        proximal=NoProximal(),
        trains_encoder=False,
        fresh_heads=fresh_heads,
    )


def shares(stages: Sequence[Stage]) -> list[float]:
    """Each stage's share of the budget, summing to 1: as given, the absent ones splitting what is left.

    Raises ValueError where the given shares exceed 1, leave nothing for the absent ones, or fall short with none absent.
    """
    given = [stage.share for stage in stages if stage.share is not None]
    total, absent = math.fsum(given), len(stages) - len(given)
    is_whole = math.isclose(total, 1, abs_tol=1e-6)  # 1/3 written as 0.333333 three times is a whole
    if not stages:
        raise ValueError("`stages` is empty; a trial needs at least one stage.")
    if absent and (total > 1 or is_whole):
        raise ValueError(f"The shares in `stages` sum to {total:g} and leave nothing for the {absent} without one.")
    if not absent and not is_whole:
        law = "more than the whole" if total > 1 else "less than the whole, and every stage has one"
        raise ValueError(f"The shares in `stages` must sum to 1. They sum to {total:g}: {law}.")
    left = (1 - total) / absent if absent else 0.0
    return [left if stage.share is None else stage.share for stage in stages]
