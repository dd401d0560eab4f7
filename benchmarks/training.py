"""Rows 1 to 4: a training step on the CPU against `BertModel`; how much of the machine's rate it uses; bfloat16.

The peer of row 1 pads random batches to the longest; that of row 2 buckets by length and multiplies through oneDNN, which
changes the training (length and label correlate), as a careful user would. Both have fused AdamW. Ours packs the same
random rows. All sides are timed in turns, each in its own process; a round is the same four batches for all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmarks import ours, peers
from benchmarks.contestants import Contestant
from benchmarks.rounds import Figure, Row, alternate, milliseconds, ratio

SETTINGS = ((16, 1), (16, 2), (32, 1), (32, 2))  # (batch size, threads)


def rows(data: Path, encoder: Path, rounds: int) -> Iterator[Row]:
    """Rows 1, 2, 3 and 4 of each workload, batch size and number of threads; then the geometric mean of row 2."""
    careful: list[float] = []
    for batch, threads in SETTINGS:
        for task, encoding in ours.WORKLOADS:
            for row in _workload(data, encoder, rounds, task, encoding, batch, threads):
                if row.number == 2 and row.figure:
                    careful.append(row.figure.median)
                yield row
    mean = math.exp(sum(map(math.log, careful)) / len(careful))
    figure = Figure(mean, min(careful), max(careful))
    yield Row(2, "step against the careful BertModel", "geometric mean of all", (">=", 1.2), figure)


def _workload(data: Path, encoder: Path, rounds: int, task: str, encoding: str, batch: int, threads: int) -> Iterator[Row]:
    setting = f"{task} {encoding}, batch {batch}, {threads} thread{'s' * (threads > 1)}"
    why = ours.without_bfloat16()
    precisions = {"ours": "float32"} | ({} if why else {"ours_bf16": "bfloat16"})
    configs = {
        name: ours.document(data, encoder, (task,), encoding, batch, ours.machine(threads, precision))
        for name, precision in precisions.items()
    }
    with ExitStack() as stack:

        def start(*arguments: object) -> Contestant:
            return stack.enter_context(Contestant(*arguments, threads=threads))  # type: ignore[arg-type]

        contestants = {name: start(ours.training_step, config) for name, config in configs.items()}
        peer = (data, encoder, task, encoding, batch, threads)
        contestants |= {"peer": start(peers.training_step, *peer, False), "careful": start(peers.training_step, *peer, True)}
        probe = start(ours.matmul_probe, threads)
        times = alternate({**contestants, "probe": probe}, rounds, calls=ours.NUM_BATCHES, warm_up=ours.NUM_BATCHES // 2)
    details = milliseconds(times)
    yield Row(1, "step against BertModel, padded", setting, (">=", 4.0), ratio(times, "peer", "ours"), details=details)
    yield Row(2, "step against the careful BertModel", setting, (">=", 1.1), ratio(times, "careful", "ours"), details=details)
    share = ours.share_of_probe(configs["ours"], times)
    yield Row(3, "of the machine's float32 matmul rate", setting, (">=", 60.0), share, unit="%", details=details)
    figure = None if why else ratio(times, "peer", "ours_bf16")
    yield Row(4, "bfloat16 step against row 1's peer", setting, (">=", 5.5), figure, details=details, why=why)
