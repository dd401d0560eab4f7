"""The next step's batch, prepared by another thread while a GPU works on this one's.

    take(step 7) -> begin(step 8) -> the GPU is sent step 7 -> take(step 8), which is there -> …

A step is a pure function of its seed and number, and so is its batch: prepared ahead or at its turn, it is the same. A step
that was foreseen wrongly, because memory did not suffice, is prepared at its turn.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

import torch

from minbert_core.memory import is_out_of_memory

Step = TypeVar("Step")  # all that a batch depends on, comparable
Batch = TypeVar("Batch")


class Ahead(Generic[Step, Batch]):
    """Batches by step, each from `prepare(step)`, which runs once at a time.

    On the CPU nothing is prepared ahead: the thread would take a core from the training, or from another trial.
    """

    def __init__(self, prepare: Callable[[Step], Batch], device: torch.device) -> None:
        self.prepare = prepare
        self.pool = ThreadPoolExecutor(1, "batches") if device.type == "cuda" else None
        self.begun: tuple[Step, Future[Batch]] | None = None

    def take(self, step: Step) -> Batch:
        """Return the batch of a step.  Raises what `prepare` raises."""
        begun, self.begun = self.begun, None
        if begun is not None and begun[0] == step:
            try:
                return begun[1].result()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise  # else again, at its turn: the copy was made while the step before held all its memory
        elif begun is not None:
            wait([begun[1]])
        return self.prepare(step)

    def begin(self, step: Step) -> None:
        """Let the other thread prepare the batch of a step, which should be taken next."""
        if self.pool is not None:
            self.begun = step, self.pool.submit(self.prepare, step)

    def close(self) -> None:
        """End the thread."""
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
