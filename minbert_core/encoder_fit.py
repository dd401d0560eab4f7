"""Check that an encoder has the word embeddings, positions and segments that its tokenizer and a config need.

Without these checks each fault is an IndexError in the middle of a trial, at the first row that needs too much.
"""

from __future__ import annotations

from collections.abc import Iterator

from minbert_core.config import TrialConfig, pretraining_texts
from minbert_core.data.tokens import Tokenizer
from minbert_core.encoder import EncoderShape


def check_encoder(config: TrialConfig, shape: EncoderShape, tokenizer: Tokenizer) -> None:
    """Raise ValueError, with one line per fault, if the encoder is too small for its tokenizer or for `config`."""
    if faults := list(_faults(config, shape, tokenizer)):
        raise ValueError("\n".join(faults))


def _faults(config: TrialConfig, shape: EncoderShape, tokenizer: Tokenizer) -> Iterator[str]:
    if tokenizer.vocab_size > shape.vocab_size:
        yield (
            f"The tokenizer of {config.encoder.checkpoint} has {tokenizer.vocab_size:,} tokens, but its encoder has word "
            f"embeddings for {shape.vocab_size:,} (`vocab_size` in config.json). Use the encoder's own tokenizer."
        )
    if config.max_length > shape.max_position_embeddings:
        positions = shape.max_position_embeddings
        yield f"`max_length` must be at most the encoder's {positions} positions. Got {config.max_length}."
    if shape.type_vocab_size < 2:
        for path, remedy in _needing_segments(config):
            yield (
                f"`{path}` puts two sentences into one sequence, which needs 2 segments. The encoder of "
                f"{config.encoder.checkpoint} has 1 (`type_vocab_size` in config.json). {remedy}"
            )


def _needing_segments(config: TrialConfig) -> Iterator[tuple[str, str]]:
    """Yield each setting that lets the encoder read a pair as one sequence, and what to do instead."""
    for name in config.train_on:
        plan = config.task(name)
        if plan.task.is_pair and plan.pair_encoding.kind == "cross":
            yield f"tasks/{name}/pair_encoding/cross", "Use a pair encoding of kind 'bi', or another encoder."
    for stage in config.pretraining:
        pairs = [name for name in pretraining_texts(config, stage) if name in config.known_tasks
                 and config.known_tasks[name].is_pair]  # fmt: skip
        if stage.pair_encoding == "cross" and (pairs or not stage.reads_single):
            remedy = "Set its `pair_encoding` to 'bi'" if stage.reads_single else "Remove this stage"
            yield f"stages/{config.stages.index(stage)}/{stage.kind}", f"{remedy}, or use another encoder."
