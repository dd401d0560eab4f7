"""Row 8: an evaluation of the dev splits of all three tasks, against `BertModel` in the order of the files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmarks import ours, peers
from benchmarks.contestants import Contestant
from benchmarks.rounds import Row, alternate, milliseconds, ratio


def rows(data: Path, encoder: Path, rounds: int) -> Iterator[Row]:
    """Yield one row per precision; the peer pads batches of 32, which are tokenised before."""
    why = ours.without_bfloat16()
    precisions = ("float32",) if why else ("float32", "bfloat16")
    with ExitStack() as stack:
        contestants = {"peer": stack.enter_context(Contestant(peers.evaluation, data, encoder))}
        for precision in precisions:
            config = ours.document(data, encoder, peers.TASKS, "cross", 16, ours.machine(1, precision))
            contestants[precision] = stack.enter_context(Contestant(ours.evaluation, config))
        times = alternate(contestants, min(3, rounds), warm_up=0)
    for precision in ("float32", "bfloat16"):
        setting = f"sst, para, sts cross-encoded, {precision}, 1 thread"
        figure = ratio(times, "peer", precision) if precision in precisions else None
        yield Row(8, "dev evaluation against BertModel", setting, (">=", 6.0), figure, details=milliseconds(times), why=why)
