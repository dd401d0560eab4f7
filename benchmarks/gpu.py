"""Row 13: the figures for a GPU, at the size of BERT-base, in bfloat16, batches of 16, 32 and 128; empty if there is no GPU.

The weights are random, because only time is measured. ENCODER gives the tokenizer. The peer is `BertModel` (sdpa) on padded
random batches under bfloat16 autocast, with fused AdamW. Written without a GPU, not yet run on one (2026-11).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import torch

from benchmarks import methods, ours, peers
from benchmarks.contestants import Contestant
from benchmarks.rounds import Figure, Row, alternate, milliseconds, ratio
from minbert_core.checkpoints import save_encoder
from minbert_core.encoder import EncoderShape, new_encoder
from minbert_core.model import TOKENIZER_FILES

BASE = EncoderShape(vocab_size=30_522, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072)
BATCHES = (16, 32, 128)
GOALS: dict[str, tuple[tuple[Literal[">=", "<="], float], str]] = {
    "step against BertModel, padded, both bfloat16": ((">=", 2.5), "x"),
    "of the GPU's bfloat16 matmul rate": ((">=", 50.0), "%"),
    "pcgrad, time relative to the sum": (("<=", 1.04), "x"),
    "gradvac, time relative to the sum": (("<=", 1.04), "x"),
    "SMART, time relative to the plain step": (("<=", 2.55), "x"),
    "Bregman teacher, time": (("<=", 1.33), "x"),
    "dev evaluation against BertModel": ((">=", 6.0), "x"),
}


def rows(data: Path, encoder: Path, rounds: int) -> Iterator[Row]:
    """Yield a row for each goal; without a GPU, one empty row for all."""
    if not torch.cuda.is_available():
        yield Row(13, "; ".join(GOALS), "BERT-base, one GPU", (">=", 2.5), None, why="no GPU here")
        return
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        save_encoder(new_encoder(BASE, 0, 0.1, 0.1), base)
        for name in TOKENIZER_FILES:
            if (encoder / name).exists():
                shutil.copyfile(encoder / name, base / name)
        for batch in BATCHES:
            for task, encoding in ours.WORKLOADS:
                yield from _step(data, base, rounds, task, encoding, batch)
            yield from _methods(data, base, rounds, batch)
        yield _evaluation(data, base, rounds)


def _row(what: str, setting: str, figure: Figure, details: dict[str, float]) -> Row:
    goal, unit = GOALS[what]
    return Row(13, what, f"BERT-base, {setting}, {torch.cuda.get_device_name()}", goal, figure, unit, details=details)


def _step(data: Path, base: Path, rounds: int, task: str, encoding: str, batch: int) -> Iterator[Row]:
    setting = f"{task} {encoding}, batch {batch}"
    config = ours.document(data, base, (task,), encoding, batch, ours.machine(1, "bfloat16", "cuda"))
    with ExitStack() as stack:
        peer = stack.enter_context(Contestant(peers.training_step, data, base, task, encoding, batch, 1, False, "cuda"))
        step = stack.enter_context(Contestant(ours.training_step, config))
        probe = stack.enter_context(Contestant(ours.matmul_probe, 1))
        times = alternate(
            {"ours": step, "peer": peer, "probe": probe}, rounds, calls=ours.NUM_BATCHES, warm_up=ours.NUM_BATCHES
        )
    details = milliseconds(times)
    yield _row("step against BertModel, padded, both bfloat16", setting, ratio(times, "peer", "ours"), details)
    yield _row("of the GPU's bfloat16 matmul rate", setting, ours.share_of_probe(config, times), details)


def _methods(data: Path, base: Path, rounds: int, batch: int) -> Iterator[Row]:
    plain = ours.document(data, base, peers.TASKS, "cross", batch, ours.machine(1, "bfloat16", "cuda"))
    with ExitStack() as stack:
        contestants = {
            name: stack.enter_context(Contestant(ours.training_step, plain | extra)) for name, extra in methods.METHODS.items()
        }
        times = alternate(contestants, rounds, calls=ours.NUM_BATCHES, warm_up=ours.NUM_BATCHES)
        peaks = {f"{name}_peak_gb": contestant.peak_gb for name, contestant in contestants.items()}
    for what, name in (
        ("pcgrad, time relative to the sum", "pcgrad"),
        ("gradvac, time relative to the sum", "gradvac"),
        ("SMART, time relative to the plain step", "smart"),
        ("Bregman teacher, time", "bregman"),
    ):
        yield _row(what, f"three tasks of {batch}", ratio(times, name, "sum"), milliseconds(times) | peaks)


def _evaluation(data: Path, base: Path, rounds: int) -> Row:
    config = ours.document(data, base, peers.TASKS, "cross", 32, ours.machine(1, "bfloat16", "cuda"))
    with Contestant(peers.evaluation, data, base, "cuda") as peer, Contestant(ours.evaluation, config) as own:
        times = alternate({"peer": peer, "ours": own}, rounds, warm_up=1)
    figure = ratio(times, "peer", "ours")
    return _row("dev evaluation against BertModel", "sst, para, sts cross-encoded, both bfloat16", figure, milliseconds(times))
