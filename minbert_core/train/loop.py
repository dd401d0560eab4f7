"""The common parts of the training loops of trials and pretrainings: when logs and saves are due, mean losses, speed, a step.

for batch: losses -> Meter.add;  is_log_due -> Meter.flush -> a record;  SaveTimer.is_due -> a snapshot
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import torch
from torch import Tensor

NUM_LOGS = 100  # records per trial or pretraining, about
STEPS_PER_MEASURE = 30  # at least, but once per trial: SMART's |grad R_s| of three tasks takes almost two steps (2026-11)
SAVE_EVERY_SECONDS = 300


def log_number(done: int, total: int) -> int:
    """Return how many logs are due by `done` of `total` examples."""
    return done * NUM_LOGS // total


def is_log_due(before: int, now: int, total: int) -> bool:
    """Return whether a log became due between two numbers of examples."""
    return log_number(before, total) < log_number(now, total)


def is_measure_due(before: int, now: int, examples_per_step: int, total: int) -> bool:
    """Return whether a log became due that has figures which cost a step: every log of a long trial, fewer of a short one."""
    logs_per_measure = min(NUM_LOGS, math.ceil(STEPS_PER_MEASURE * examples_per_step * NUM_LOGS / total))
    return log_number(before, total) // logs_per_measure < log_number(now, total) // logs_per_measure


class SaveTimer:
    """The time since the last save."""

    def __init__(self) -> None:
        self.saved_at = time.monotonic()

    def is_due(self) -> bool:
        return time.monotonic() - self.saved_at > SAVE_EVERY_SECONDS

    def restart(self) -> None:
        self.saved_at = time.monotonic()


class Meter:
    """Mean losses and examples per second since the last log. The host waits for the losses only when a log is due."""

    def __init__(self, examples: int) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.examples, self.since = examples, time.monotonic()

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Add the losses of a step, 0-d tensors."""
        for name, loss in losses.items():
            self.sums[name] = self.sums[name] + loss if name in self.sums else loss
            self.counts[name] = self.counts.get(name, 0) + 1

    def flush(self, examples: int) -> tuple[dict[str, float], float]:
        """Return the mean losses and the examples per second since the last flush, and begin again."""
        means = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        speed = (examples - self.examples) / max(time.monotonic() - self.since, 1e-9)
        self.sums, self.counts, self.examples = {}, {}, examples
        self.restart()
        return means, speed

    def restart(self) -> None:
        """Exclude the time that has passed (an evaluation, a save) from the speed."""
        self.since = time.monotonic()


def step_at_rate(optimizer: torch.optim.Optimizer, lr_factor: float) -> None:
    """Step the optimiser, each parameter group at its own rate times `lr_factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * lr_factor
    optimizer.step()
