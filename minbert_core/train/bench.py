"""A trial's workbench: config, inputs and model, on the device and in the precision in which it trains, and its batches.

config, inputs -> Bench.of -> draw or pack -> Stepper.step      a trial, its cost measurement and the benchmarks use it
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from minbert_core.config import TrialConfig
from minbert_core.data.tokens import Integers, pack_parts
from minbert_core.inputs import Inputs, build_encoder
from minbert_core.machine import prepare, resolve_precision
from minbert_core.methods.task_schedules import example_rows
from minbert_core.model import MultitaskBert, build_model
from minbert_core.train.passes import Batch


@dataclass(frozen=True)
class Bench:
    """A trial's model with all that its steps and evaluations need."""

    config: TrialConfig
    inputs: Inputs
    model: MultitaskBert
    device: torch.device
    precision: str

    @staticmethod
    def of(config: TrialConfig, inputs: Inputs) -> Bench:
        """Set up the machine and build a fresh model."""
        device = prepare(config.machine)
        precision = resolve_precision(config.machine.precision, device)
        return Bench(config, inputs, model_to_train(config, inputs).to(device), device, precision)

    def rows(self, task: str, seed: int, start: int) -> Integers:
        """Draw the rows of the batch that begins at example `start` of a task's endless stream of reshuffled passes."""
        return example_rows(seed, len(self.inputs.train[task]), start, self.model.plans[task].batch_size)

    def draw(self, task: str, seed: int, start: int) -> Batch:
        """Draw and pack the batch that begins at example `start`."""
        return self.pack(task, self.rows(task, seed, start))

    def pack(self, task: str, rows: Integers, limit: int | None = None) -> Batch:
        """Pack rows of a task's train split as a batch on the host, in parts if it has more than `limit` tokens.

        limit None: the config's.
        """
        encoding, split = self.model.plans[task].pair_encoding.kind, self.inputs.train[task]
        limit = limit or self.config.machine.micro_batch_tokens
        return pack_parts(split, rows, encoding, self.config.max_length, self.inputs.specials, limit)


def model_to_train(config: TrialConfig, inputs: Inputs) -> MultitaskBert:
    """Build the model from which a trial starts. It trains only the word embeddings of its corpus."""
    model = build_model(config, build_encoder(config, inputs))
    model.encoder.train_words(inputs.token_ids)
    return model
