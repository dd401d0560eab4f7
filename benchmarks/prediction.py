"""Row 11: the time of one answer, from text to answer, compared with BertModel with a linear head.

Ours is called through its public function, `load(folder).predict([...])`. Both sides tokenise the same dev texts in the
same order. The model is trained on one task of sentences and one of pairs, so that each input is one pass for both.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.peers import BertAnswers, Input, texts
from benchmarks.rounds import Row, Times, alternate, ratio
from minbert_core.config_checks import load_config
from minbert_core.inputs import build_encoder, open_inputs
from minbert_core.model import build_model, load, save_model

CALLS = {1: 40, 32: 8}  # a block, by batch size
INPUTS = {"sentence": "sst", "pair": "para"}
Ask = Callable[[Sequence[Input]], object]


def rows(data: Path, encoder: Path, rounds: int) -> Iterator[Row]:
    """Yield the ratio of the medians, peer to ours, for one sentence, one pair and 32; the details hold 95th percentiles."""
    with tempfile.TemporaryDirectory() as folder:
        _save(data, encoder, Path(folder) / "model")
        ours = load(Path(folder) / "model", device="cpu")
        for what, task in INPUTS.items():
            examples: list[Input] = [(t[0], t[1]) if len(t) == 2 else t[0] for t in texts(data, task, "dev")[0]]
            contestants: dict[str, Ask] = {"ours": ours.predict, "peer": BertAnswers(encoder, ours.tasks[task].outputs)}
            for batch_size, goal, aside in ((1, 1.5, ""), (32, 1.0, "; no goal")):
                latencies = _latencies(contestants, examples, batch_size, rounds)
                yield Row(
                    number=11,
                    what=f"prediction, {what}, p50",
                    setting=f"{encoder.name}, {task} dev, batch {batch_size}, 1 thread, tokenising included{aside}",
                    goal=(">=", goal),
                    figure=ratio(_medians(latencies), "peer", "ours"),
                    details=_quantiles(latencies),
                )


def _save(data: Path, encoder: Path, folder: Path) -> None:
    """Save a model as a trial does, with the peer's pooler and fresh heads: its answers take the same time."""
    document = {"data": str(data), "encoder": str(encoder), "train_on": list(INPUTS.values()), "machine": {"device": "cpu"}}
    config = load_config({**document, "tasks": {"all": {"pooling": "pooler"}}})
    inputs = open_inputs(config)
    save_model(build_model(config, build_encoder(config, inputs)), config, folder, inputs.encoder_folder)


def _latencies(
    contestants: dict[str, Ask], examples: Sequence[Input], batch_size: int, rounds: int
) -> dict[str, list[list[float]]]:
    """Measure the seconds of each call of each round; both get the same texts in the same order, new ones in each round."""
    found: dict[str, list[list[float]]] = {name: [] for name in contestants}
    with _one_thread():
        blocks = {
            name: partial(_block, ask, examples, batch_size, np.random.default_rng(0), found[name])
            for name, ask in contestants.items()
        }
        alternate(blocks, rounds, warm_up=1)
    return {name: seconds[1:] for name, seconds in found.items()}


def _block(ask: Ask, examples: Sequence[Input], batch_size: int, draw: np.random.Generator, found: list[list[float]]) -> None:
    seconds = []
    for picked in draw.integers(len(examples), size=(CALLS[batch_size], batch_size)).tolist():
        batch = [examples[i] for i in picked]
        began = time.perf_counter()
        ask(batch)
        seconds.append(time.perf_counter() - began)
    found.append(seconds)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run the block with one torch thread, and tokenizers in the caller's thread."""
    before, parallel = torch.get_num_threads(), os.environ.get("TOKENIZERS_PARALLELISM")
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        torch.set_num_threads(before)
        os.environ.pop("TOKENIZERS_PARALLELISM")
        if parallel is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = parallel


def _medians(latencies: dict[str, list[list[float]]]) -> Times:
    return {name: [float(np.median(seconds)) for seconds in blocks] for name, blocks in latencies.items()}


def _quantiles(latencies: dict[str, list[list[float]]]) -> dict[str, float]:
    return {
        f"{name}_p{percent}_ms": 1000 * float(np.percentile(np.concatenate(blocks), percent))
        for name, blocks in latencies.items()
        for percent in (50, 95)
    }
