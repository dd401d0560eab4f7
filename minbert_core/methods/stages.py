"""Stages: a trial trains in one or more of them, each with a share of its budget, its own LR schedule and a fresh optimiser.

A stage may override what the trial sets for its families, else it inherits; the list of stage kinds is the trial's recipe.
The only file of the families that knows others: a stage holds their settings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from minbert_core.methods.gradients import GradientMethod
from minbert_core.methods.optimizer import Optimizer
from minbert_core.methods.smoothness import Smoothness
from minbert_core.methods.task_schedules import TaskSchedule
from minbert_core.settings import BARE_NAME, Variant


class Multitask(Variant):
    """All tasks of `train_on` together, encoder and heads trained (Caruana 1997)."""

    kind: Literal["multitask"] = "multitask"
    share: float | None = Field(
        None, gt=0, le=1, description="share of the trial's budget, in (0, 1]; stages without one split what the others leave"
    )
    optimizer: Optimizer | None = Field(None, description="replaces the trial's optimizer in this stage; null inherits it")
    task_schedule: TaskSchedule | None = Field(
        None, description="replaces the trial's task_schedule in this stage; null inherits it"
    )
    gradient: GradientMethod | None = Field(
        None, description="replaces the trial's gradient method in this stage; null inherits it"
    )
    smoothness: Smoothness | None = Field(
        None, description="replaces the trial's smoothness in this stage; null inherits it, `none` turns it off"
    )


Stage = Annotated[Multitask, BARE_NAME]


def shares(stages: Sequence[Multitask]) -> list[float]:
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
