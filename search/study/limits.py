"""The passes that held: the experience of a trial that ran out of memory, for later trials of the same size in its search.

    records with train/micro_batch_tokens -> Limits.note -> Limits.proposed -> with_passes -> config.yaml of a new trial

The proposal is in the config before the trial begins, so the config by itself still repeats the trial.
"""

from __future__ import annotations

import json
from typing import Any

from minbert_core.config import TrialConfig
from minbert_core.train.trial import Record
from search.study.trials import TrialResult

HELD = "train/micro_batch_tokens"  # of a train record, once memory did not suffice for the config's passes
PASSES = "micro_batch_tokens"  # in the study's note about a config, if the search has proposed it


def footprint(config: TrialConfig) -> str:
    """Return the settings that decide how much memory a pass over so many tokens needs. Trials with the same have one size.

    Batch sizes are not among them, because the limit is that of a pass; nor are numbers such as a radius or a rate.
    """
    stages = [
        [stage.trains_encoder, stage.smoothness.kind, stage.proximal.kind, stage.gradient.kind, stage.optimizer.per_task]
        for stage in config.stage_plans()
    ]
    dropout = config.encoder.hidden_dropout > 0, config.encoder.attention_dropout > 0
    encodings = {name: config.task(name).pair_encoding.kind for name in config.train_on}
    machine = config.machine.device, config.machine.precision, config.machine.gpu_share
    parts = [config.encoder.checkpoint, dropout, config.max_length, config.adapter.kind, encodings, stages, machine]
    return json.dumps(parts)


def reported(records: list[Record]) -> list[Record]:
    """Return the records up to the last evaluation. Only these had reached the search before a resume."""
    last = max((i for i, record in enumerate(records) if record["kind"] == "dev"), default=-1)
    return records[: last + 1]


def with_passes(config: TrialConfig, tokens: int | None) -> TrialConfig:
    """Return the config with passes of at most so many tokens; None: unchanged."""
    if tokens is None:
        return config
    machine: Any = config.machine.model_copy(update={"micro_batch_tokens": tokens})
    return config.model_copy(update={"machine": machine})


class Limits:
    """The most tokens per pass that held, by footprint, in this search so far."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def note(self, trial: TrialResult, records: list[Record]) -> None:
        """Learn from records of a trial that it has reported."""
        if held := [int(record[HELD]) for record in records if HELD in record]:
            size = footprint(trial.config())
            self.known[size] = min(*held, self.known.get(size, held[0]))

    def proposed(self, config: TrialConfig) -> int | None:
        """Return the most tokens per pass for a new trial; None if its own passes are as small, or none of its size failed.

        A trial with further pretraining keeps its own: the cache finds a pretraining by its passes, too.
        """
        limit, own = self.known.get(footprint(config)), config.machine.micro_batch_tokens
        if limit is None or config.pretraining or (own is not None and own <= limit):
            return None
        return limit
