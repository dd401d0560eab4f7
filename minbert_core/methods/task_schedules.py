"""Task schedules: which tasks contribute a batch to a step, the length of an epoch, and the order of the examples.

Flow: schedule -> tuple of task names per step -> one batch of each -> losses.
Everything here is a pure function of (seed, progress): a resumed trial draws what it would have drawn, and a repeated one draws
the same. All batches are full: each task is an endless stream of reshuffled passes.

`rounds` is how often every task has had its turn by the end of a stage; 0 if the schedule has no turns. Inside a round some
tasks have been shown less than others and a score means little, so every rung must be at the end of a round
(search/methods/trial_schedulers.py checks it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveInt

from minbert_core.settings.models import BARE_NAME, Variant

ROUNDING = 1e-9  # in rounds: more than floats lose, far less than a step; without it a turn could end a step late
StepShares = dict[tuple[str, ...], float]  # the tasks of a step -> the share of a stage's steps that take them; sums to 1


@dataclass(frozen=True)
class StepAt:
    """A step of a stage: all that a schedule may use to choose the step's tasks.

    `sizes` and `batch_sizes` map each task in training to its rows and to the examples per batch, in the order of `train_on`.
    """

    step: int  # of the stage, from 0
    progress: float  # of the stage, in examples, in [0, 1]
    sizes: dict[str, int]
    batch_sizes: dict[str, int]
    seed: int  # of the stage

    def generator(self) -> np.random.Generator:
        """Create the generator of this step, from (seed, step) only."""
        return np.random.default_rng((self.seed, self.step))


def example_rows(seed: int, size: int, start: int, count: int) -> np.ndarray:
    """Return rows start .. start + count of an endless stream over range(size), int64, shape (count,).

    Every pass over the `size` rows is a fresh random permutation; pass k is drawn only from (seed, k).
    """
    assert size > 0, "a stream needs at least one example"
    pieces = [np.empty(0, dtype=np.int64)]
    while count > 0:
        number, offset = divmod(start, size)
        piece = _permutation(seed, size, number)[offset : offset + count]
        pieces.append(piece)
        start, count = start + len(piece), count - len(piece)
    return np.concatenate(pieces)


@lru_cache(maxsize=16)  # one pass of each of a few tasks; a pass of Quora is 1 MB
def _permutation(seed: int, size: int, number: int) -> np.ndarray:
    rows: np.ndarray = np.random.default_rng((seed, number)).permutation(size)
    return rows


def task_probabilities(sizes: dict[str, int], batch_sizes: dict[str, int], alpha: float) -> np.ndarray:
    """Return each task's probability of a batch, shape (T,), so that its examples are in proportion to N_i^alpha.

    p_i is in proportion to N_i^alpha / b_i, b_i being the examples of a batch.  alpha 1: by size; 0: uniform.
    """
    sizes_T, batch_sizes_T = _array(sizes), _array({task: batch_sizes[task] for task in sizes})
    weights_T = (sizes_T / sizes_T.max()) ** alpha / (batch_sizes_T / batch_sizes_T.max())
    probabilities_T: np.ndarray = weights_T / weights_T.sum()
    return probabilities_T


def _array(numbers: dict[str, int]) -> np.ndarray:
    return np.array(list(numbers.values()), dtype=np.float64)


def batches_of(sizes: dict[str, int], batch_sizes: dict[str, int]) -> list[int]:
    """Return how many batches each task needs for all its examples, in the order of `sizes`. The last may begin a new pass."""
    return [-(-size // batch_sizes[task]) for task, size in sizes.items()]


def _shares(examples: Mapping[str, float], batch_sizes: dict[str, int]) -> StepShares:
    """Return each task's share of the steps where its share of the examples is in proportion to `examples`."""
    steps = {task: number / batch_sizes[task] for task, number in examples.items()}
    return {(task,): number / sum(steps.values()) for task, number in steps.items()}


def examples_per_step(schedule: TaskSchedule, sizes: dict[str, int], batch_sizes: dict[str, int]) -> float:
    """Return how many examples a step draws, in the mean over a stage."""
    shares = schedule.step_shares(sizes, batch_sizes)
    return sum(share * sum(batch_sizes[task] for task in tasks) for tasks, share in shares.items())


class RoundRobin(Variant):
    """Each step takes one batch of every task; an epoch ends with the shortest task, as `zip` does (Liu & Maniku 2023)."""

    kind: Literal["round_robin"] = "round_robin"
    rounds: ClassVar[int] = 0

    def tasks_of_step(self, at: StepAt) -> tuple[str, ...]:
        return tuple(at.sizes)

    def tasks_per_step(self, num_tasks: int) -> int:
        return num_tasks

    def step_shares(self, sizes: dict[str, int], batch_sizes: dict[str, int]) -> StepShares:
        return {tuple(sizes): 1.0}

    def epoch_examples(self, sizes: dict[str, int], batch_sizes: dict[str, int]) -> int:
        return min(batches_of(sizes, batch_sizes)) * sum(batch_sizes[task] for task in sizes)


class Mix(Variant):
    """Each step takes one batch of every task; an epoch ends with the longest task, shorter ones start over.

    The `max_size_cycle` of Lightning's CombinedLoader, as Li & Tang 2023 used it: the tasks' batch sizes do the mixing
    (theirs: 2 of SST, 24 of Quora, 2 of STS). Step by step it is round_robin; only what `epochs` means differs.
    """

    kind: Literal["mix"] = "mix"
    rounds: ClassVar[int] = 0

    def tasks_of_step(self, at: StepAt) -> tuple[str, ...]:
        return tuple(at.sizes)

    def tasks_per_step(self, num_tasks: int) -> int:
        return num_tasks

    def step_shares(self, sizes: dict[str, int], batch_sizes: dict[str, int]) -> StepShares:
        return {tuple(sizes): 1.0}

    def epoch_examples(self, sizes: dict[str, int], batch_sizes: dict[str, int]) -> int:
        return max(batches_of(sizes, batch_sizes)) * sum(batch_sizes[task] for task in sizes)


class Proportional(Variant):
    """Each step takes one batch of one task, drawn so that the examples of task i are in proportion to N_i^alpha.

    Annealed where alpha_end is set (Stickland & Murray 2019, arXiv 1902.02671, section 4.1: from 1 to 0.2). Departure: alpha
    moves with every step, not once an epoch. An epoch draws as many examples as all tasks hold.
    """

    kind: Literal["proportional"] = "proportional"
    alpha: float = Field(
        1.0,
        ge=0,
        le=1,
        json_schema_extra={"unit": "exponent"},
        description="alpha, of the task's size: 1 is by size, 0 uniform",
    )
    alpha_end: float | None = Field(
        None,
        ge=0,
        le=1,
        json_schema_extra={"unit": "exponent"},
        description="alpha at the end of the stage, reached linearly; null keeps alpha",
    )
    rounds: ClassVar[int] = 0

    def tasks_of_step(self, at: StepAt) -> tuple[str, ...]:
        probabilities_T = task_probabilities(at.sizes, at.batch_sizes, self._alpha_at(at.progress))
        return (str(at.generator().choice(list(at.sizes), p=probabilities_T)),)

    def tasks_per_step(self, num_tasks: int) -> int:
        return 1

    def step_shares(self, sizes: dict[str, int], batch_sizes: dict[str, int]) -> StepShares:
        ones = dict.fromkeys(sizes, 1)  # equal batches: shares of the examples, of which progress is the share too
        over_progress = [task_probabilities(sizes, ones, self._alpha_at(progress)) for progress in np.linspace(0, 1, 101)]
        examples_T = np.mean(over_progress, axis=0)
        return _shares(dict(zip(sizes, examples_T.tolist(), strict=True)), batch_sizes)

    def epoch_examples(self, sizes: dict[str, int], batch_sizes: dict[str, int]) -> int:
        return sum(sizes.values())

    def _alpha_at(self, progress: float) -> float:
        alpha_end = self.alpha if self.alpha_end is None else self.alpha_end
        return self.alpha + (alpha_end - self.alpha) * progress


class Sequential(Variant):
    """One task per step, each in its turn, in the order of `train_on`; a round is one turn of each.

    The rounds are equal parts of the stage. A turn is in proportion to the task's rows, and continues the pass where the last
    turn ended. With as many rounds as epochs each turn is a full pass, to within a batch: Li & Tang 2023 (Para, SST, STS; with
    one optimiser per task, `optimizer/per_task`), Kehoe & Ravella 2024 (SST, STS, Para).
    """

    kind: Literal["sequential"] = "sequential"
    rounds: PositiveInt = Field(
        9,  # each of the default rungs, at 1, 3 and 9 of 9 parts of the budget, is the end of a round
        json_schema_extra={"unit": "rounds"},
        description="turns of each task per stage; with as many as epochs, each turn is a full pass",
    )

    def tasks_of_step(self, at: StepAt) -> tuple[str, ...]:
        ends_T = np.cumsum(list(at.sizes.values()))
        share_of_round = (at.progress * self.rounds + ROUNDING) % 1
        return (list(at.sizes)[int(np.searchsorted(ends_T / ends_T[-1], share_of_round, side="right"))],)

    def tasks_per_step(self, num_tasks: int) -> int:
        return 1

    def step_shares(self, sizes: dict[str, int], batch_sizes: dict[str, int]) -> StepShares:
        return _shares(sizes, batch_sizes)

    def epoch_examples(self, sizes: dict[str, int], batch_sizes: dict[str, int]) -> int:
        return sum(turn * batch_sizes[task] for turn, task in zip(batches_of(sizes, batch_sizes), sizes, strict=True))


class Drop(Variant):
    """Each step takes one batch of one task, all equally likely: "drop round robin" (Liu & Maniku 2023).

    An epoch has as many steps as the shortest task has batches. Departure: theirs draws a batch of every task, discards all but
    one, and reshuffles after each epoch. Ours draws only the one, and reshuffles a task after each full pass.
    """

    kind: Literal["drop"] = "drop"
    rounds: ClassVar[int] = 0

    def tasks_of_step(self, at: StepAt) -> tuple[str, ...]:
        return (list(at.sizes)[int(at.generator().integers(len(at.sizes)))],)

    def tasks_per_step(self, num_tasks: int) -> int:
        return 1

    def step_shares(self, sizes: dict[str, int], batch_sizes: dict[str, int]) -> StepShares:
        return {(task,): 1 / len(sizes) for task in sizes}

    def epoch_examples(self, sizes: dict[str, int], batch_sizes: dict[str, int]) -> int:
        """Return the mean over draws, rounded, because batch sizes differ by task."""
        return round(min(batches_of(sizes, batch_sizes)) * sum(batch_sizes[task] for task in sizes) / len(sizes))


class Alternate(Variant):
    """Each step takes one batch of one task, in turn: the "sequential round robin" of Liu & Maniku 2023, Algorithm 1.

    Every batch has its own update; round_robin has one update for the batches of all tasks. An epoch is the same, and ends with
    the shortest task.
    """

    kind: Literal["alternate"] = "alternate"
    rounds: ClassVar[int] = 0

    def tasks_of_step(self, at: StepAt) -> tuple[str, ...]:
        return (list(at.sizes)[at.step % len(at.sizes)],)

    def tasks_per_step(self, num_tasks: int) -> int:
        return 1

    def step_shares(self, sizes: dict[str, int], batch_sizes: dict[str, int]) -> StepShares:
        return {(task,): 1 / len(sizes) for task in sizes}

    def epoch_examples(self, sizes: dict[str, int], batch_sizes: dict[str, int]) -> int:
        return min(batches_of(sizes, batch_sizes)) * sum(batch_sizes[task] for task in sizes)


TaskSchedule = Annotated[
    RoundRobin | Mix | Proportional | Sequential | Drop | Alternate, Field(discriminator="kind"), BARE_NAME
]
