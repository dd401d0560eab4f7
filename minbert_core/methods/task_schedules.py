"""Task schedules: which tasks give a batch to which step, what an epoch is, and in which order examples come.

Flow: schedule -> tuple of task names a step -> one batch of each -> losses.
Everything here is a pure function of (seed, how far we are): a trial that goes on from its state draws what it would have
drawn, and a repeat draws the same. All batches are full: each task is an endless stream of reshuffled passes.

`sizes` and `batch_sizes` map each task in training to its rows and to the examples of its batch, in the order of `train_on`;
`step` counts the stage's steps from 0, `progress` is the stage's, in [0, 1].
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from minbert_core.settings import BARE_NAME, Variant


def example_rows(seed: int, size: int, start: int, count: int) -> np.ndarray:
    """Rows start .. start + count of an endless stream over range(size), int64, shape (count,).

    Every pass over the `size` rows is a fresh random permutation; pass k is drawn from (seed, k) alone.
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


def task_probabilities(sizes: dict[str, int], alpha: float) -> np.ndarray:
    """p_i in proportion to N_i^alpha, shape (T,), in the order of `sizes`.  alpha 1: by size; 0: uniform."""
    sizes_T = np.array(list(sizes.values()), dtype=np.float64)
    powers_T = (sizes_T / sizes_T.max()) ** alpha
    shares_T: np.ndarray = powers_T / powers_T.sum()
    return shares_T


def batches_of(sizes: dict[str, int], batch_sizes: dict[str, int]) -> list[int]:
    """How many batches a task needs to show each of its examples, in the order of `sizes`; the last may begin a new pass."""
    return [-(-size // batch_sizes[task]) for task, size in sizes.items()]


class RoundRobin(Variant):
    """Each step takes one batch of every task; an epoch ends with the shortest task, as `zip` does (Liu & Maniku 2023)."""

    kind: Literal["round_robin"] = "round_robin"

    def tasks_of_step(
        self, step: int, progress: float, sizes: dict[str, int], batch_sizes: dict[str, int], seed: int
    ) -> tuple[str, ...]:
        return tuple(sizes)

    def tasks_per_step(self, num_tasks: int) -> int:
        return num_tasks

    def epoch_examples(self, sizes: dict[str, int], batch_sizes: dict[str, int]) -> int:
        return min(batches_of(sizes, batch_sizes)) * sum(batch_sizes[task] for task in sizes)


class Mix(Variant):
    """Each step takes one batch of every task; an epoch ends with the longest task, shorter ones start over.

    The `max_size_cycle` of Lightning's CombinedLoader, as Li & Tang 2023 used it: the tasks' batch sizes do the mixing
    (theirs: 2 of SST, 24 of Quora, 2 of STS). Step by step it is round_robin; only what `epochs` means differs.
    """

    kind: Literal["mix"] = "mix"

    def tasks_of_step(
        self, step: int, progress: float, sizes: dict[str, int], batch_sizes: dict[str, int], seed: int
    ) -> tuple[str, ...]:
        return tuple(sizes)

    def tasks_per_step(self, num_tasks: int) -> int:
        return num_tasks

    def epoch_examples(self, sizes: dict[str, int], batch_sizes: dict[str, int]) -> int:
        return max(batches_of(sizes, batch_sizes)) * sum(batch_sizes[task] for task in sizes)


class Proportional(Variant):
    """Each step takes one batch of one task, task i with probability in proportion to N_i^alpha.

    Annealed where alpha_end is set (Stickland & Murray 2019, arXiv 1902.02671, section 4.1: from 1 to 0.2). Departure: alpha
    moves with every step, not once an epoch. An epoch draws as many examples as all tasks hold.
    """

    kind: Literal["proportional"] = "proportional"
    alpha: float = Field(
        1.0, ge=0, le=1, json_schema_extra={"unit": "exponent"}, description="alpha, over the task's size: 1 by size, 0 uniform"
    )
    alpha_end: float | None = Field(
        None,
        ge=0,
        le=1,
        json_schema_extra={"unit": "exponent"},
        description="alpha at the end of the stage, reached linearly; null keeps it",
    )

    def tasks_of_step(
        self, step: int, progress: float, sizes: dict[str, int], batch_sizes: dict[str, int], seed: int
    ) -> tuple[str, ...]:
        alpha_end = self.alpha if self.alpha_end is None else self.alpha_end
        probabilities_T = task_probabilities(sizes, self.alpha + (alpha_end - self.alpha) * progress)
        return (str(np.random.default_rng((seed, step)).choice(list(sizes), p=probabilities_T)),)

    def tasks_per_step(self, num_tasks: int) -> int:
        return 1

    def epoch_examples(self, sizes: dict[str, int], batch_sizes: dict[str, int]) -> int:
        return sum(sizes.values())


class Sequential(Variant):
    """Each task's turn in the order of `train_on`, one task a step; an epoch is one turn of each.

    A full pass each at share 1: Li & Tang 2023 (Para, SST, STS; with one optimiser a task, `optimizer/per_task`), Kehoe &
    Ravella 2024 (SST, STS, Para). A budget below an epoch never reaches the last tasks; a lower share makes epochs shorter, and
    a task goes on in its pass where its last turn has left it.
    """

    kind: Literal["sequential"] = "sequential"
    share: float = Field(
        1.0, gt=0, le=1, json_schema_extra={"unit": "of the rows"}, description="a task's turn; 1 is a full pass"
    )

    def tasks_of_step(
        self, step: int, progress: float, sizes: dict[str, int], batch_sizes: dict[str, int], seed: int
    ) -> tuple[str, ...]:
        ends = np.cumsum(self._turns(sizes, batch_sizes))
        return (list(sizes)[int(np.searchsorted(ends, step % ends[-1], side="right"))],)

    def tasks_per_step(self, num_tasks: int) -> int:
        return 1

    def epoch_examples(self, sizes: dict[str, int], batch_sizes: dict[str, int]) -> int:
        turns = self._turns(sizes, batch_sizes)
        return sum(turn * batch_sizes[task] for turn, task in zip(turns, sizes, strict=True))

    def _turns(self, sizes: dict[str, int], batch_sizes: dict[str, int]) -> list[int]:
        """Steps of each task's turn, at least one."""
        return batches_of({task: max(1, round(self.share * size)) for task, size in sizes.items()}, batch_sizes)


class Drop(Variant):
    """Each step takes one batch of one task, all alike likely: "drop round robin" (Liu & Maniku 2023).

    An epoch is as many steps as the shortest task has batches. Departure: theirs draws a batch of every task, throws all but
    one away and reshuffles after each epoch; ours draws none in vain, and reshuffles a task once it has been shown whole.
    """

    kind: Literal["drop"] = "drop"

    def tasks_of_step(
        self, step: int, progress: float, sizes: dict[str, int], batch_sizes: dict[str, int], seed: int
    ) -> tuple[str, ...]:
        return (list(sizes)[int(np.random.default_rng((seed, step)).integers(len(sizes)))],)

    def tasks_per_step(self, num_tasks: int) -> int:
        return 1

    def epoch_examples(self, sizes: dict[str, int], batch_sizes: dict[str, int]) -> int:
        """In the mean over draws, rounded: a step's batch is as large as its task's."""
        return round(min(batches_of(sizes, batch_sizes)) * sum(batch_sizes[task] for task in sizes) / len(sizes))


class Alternate(Variant):
    """Each step takes one batch of one task, in turn: the "sequential round robin" of Liu & Maniku 2023, Algorithm 1.

    Every batch has an update of its own, where round_robin makes one of the tasks' batches together; an epoch is the same, and
    ends with the shortest task.
    """

    kind: Literal["alternate"] = "alternate"

    def tasks_of_step(
        self, step: int, progress: float, sizes: dict[str, int], batch_sizes: dict[str, int], seed: int
    ) -> tuple[str, ...]:
        return (list(sizes)[step % len(sizes)],)

    def tasks_per_step(self, num_tasks: int) -> int:
        return 1

    def epoch_examples(self, sizes: dict[str, int], batch_sizes: dict[str, int]) -> int:
        return min(batches_of(sizes, batch_sizes)) * sum(batch_sizes[task] for task in sizes)


TaskSchedule = Annotated[
    RoundRobin | Mix | Proportional | Sequential | Drop | Alternate, Field(discriminator="kind"), BARE_NAME
]
