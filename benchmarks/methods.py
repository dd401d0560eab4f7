"""Rows 5 to 7: the cost of PCGrad, GradVac, SMART and the Bregman teacher relative to our plain step, in time and memory.

A step has three tasks, cross-encoded. Each method runs in its own process, so that its peak memory can be measured. The details
hold the figures of public implementations (torchjd, smart-pytorch, on BertModel) relative to their plain sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import ours, peers
from benchmarks.contestants import Contestant
from benchmarks.rounds import Figure, Row, Times, alternate, milliseconds, ratio
from minbert_core.config_checks import load_config
from minbert_core.inputs import open_inputs
from minbert_core.train.bench import model_to_train
from minbert_core.train.shared_gradients import SharedGradients

METHODS: dict[str, dict[str, Any]] = {
    "sum": {},
    "pcgrad": {"gradient": "pcgrad"},
    "gradvac": {"gradient": "gradvac"},
    "smart": {"smoothness": "smart"},
    "bregman": {"proximal": "bregman"},
}
BATCHES = (16, 32)


def rows(data: Path, encoder: Path, rounds: int) -> Iterator[Row]:
    """Yield rows 5, 6 and 7: time and memory, one thread."""
    for batch in BATCHES:
        plain = ours.document(data, encoder, peers.TASKS, "cross", batch, ours.machine(1))
        with ExitStack() as stack:
            contestants = {
                name: stack.enter_context(Contestant(ours.training_step, plain | extra)) for name, extra in METHODS.items()
            }
            times = alternate(contestants, rounds, calls=ours.NUM_BATCHES // 2)
            peaks = {name: contestant.peak_gb for name, contestant in contestants.items()}
        yield from _rows(
            times, peaks, _gradient_gb(plain), f"three tasks of {batch}, 1 thread", _peers(data, encoder, batch, rounds)
        )


def _rows(times: Times, peaks: dict[str, float], gradient_gb: float, setting: str, peer: dict[str, float]) -> Iterator[Row]:
    details = milliseconds(times) | peer
    most = 2 * gradient_gb + 0.02 * peaks["sum"]  # of T = 3 tasks: T - 1 more copies of the shared gradient, and 2 %
    for name in ("pcgrad", "gradvac"):
        yield Row(5, f"{name}, time relative to the sum", setting, ("<=", 1.04), ratio(times, name, "sum"), details=details)
        extra = peaks[name] - peaks["sum"]
        yield Row(5, f"{name}, memory beyond the sum", setting, ("<=", 1000 * most), _exact(1000 * extra), unit="MB")
    yield Row(6, "SMART, time relative to the plain step", setting, ("<=", 2.55), ratio(times, "smart", "sum"), details=details)
    memory = {f"{name}_peak_mb": 1000 * peak for name, peak in peaks.items()}
    figure = _exact(peaks["smart"] / peaks["sum"])
    yield Row(6, "SMART, memory relative to the plain step", setting, ("<=", 1.25), figure, details=memory)
    yield Row(7, "Bregman teacher, time", setting, ("<=", 1.33), ratio(times, "bregman", "sum"), details=details)


def _exact(value: float) -> Figure:
    return Figure(value, value, value)


def _gradient_gb(document: dict[str, Any]) -> float:
    """Return the size of one copy of the shared gradient."""
    config = load_config(document)
    encoder = model_to_train(config, open_inputs(config)).encoder
    return SharedGradients(encoder.parameter_groups(), 1, next(encoder.parameters()).device).rows_TP.nbytes / 1e9


def _peers(data: Path, encoder: Path, batch: int, rounds: int) -> dict[str, float]:
    """Return the public implementations' times as multiples of their plain sum."""
    with ExitStack() as stack:
        contestants = {
            name: stack.enter_context(Contestant(peers.method_step, data, encoder, batch, name)) for name in peers.METHODS
        }
        times = alternate(contestants, min(2, rounds), warm_up=1)
    names = {"pcgrad": "torchjd_pcgrad_x", "gradvac": "torchjd_gradvac_x", "smart": "smart_pytorch_x"}
    return {label: ratio(times, name, "sum").median for name, label in names.items()}
