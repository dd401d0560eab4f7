"""Row 13: the figures for a GPU, at the size of BERT-base, in bfloat16; empty if there is no GPU.

The weights are random, because only time is measured. ENCODER gives the tokenizer. The peer is `BertModel` on padded random
batches under bfloat16 autocast, with fused AdamW: with sdpa, and with flash attention where that package is installed. Both
sides run in one process, in turns; a call is STEPS steps, and only then the host waits for the GPU, as in a training.
Written without a GPU, and run on a CPU only, at a small size (2026-11).
"""

from __future__ import annotations

import gc
import importlib.util
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import ours, peers
from benchmarks.gpu_checks import can_run
from benchmarks.rounds import Figure, Row, Times, alternate, milliseconds, ratio
from minbert_core.checkpoints import save_encoder
from minbert_core.encoder import EncoderShape, new_encoder
from minbert_core.model import TOKENIZER_FILES

BASE = EncoderShape(vocab_size=30_522, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072)
STEP_GOALS = {16: 2.0, 32: 2.5, 128: 3.0}  # batch size -> times as fast as the peer
METHOD_BATCH = 32
WORKLOADS = (("sst", "single"), ("para", "cross"))
METHODS: dict[str, dict[str, Any]] = {
    "pcgrad": {"gradient": "pcgrad"},
    "gradvac": {"gradient": "gradvac"},
    "cagrad": {"gradient": "cagrad"},
    "smart": {"smoothness": "smart"},
    "bregman": {"proximal": "bregman"},
}
SURGERY = ("pcgrad", "gradvac", "cagrad")  # they need each task's gradient, and so a pass per task
STEPS = 4 * ours.NUM_BATCHES
LARGEST = 5  # costs that a profile names
Step = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """Where and on what all rows are measured."""

    data: Path
    base: Path  # the encoder
    rounds: int
    device: str

    def document(self, tasks: tuple[str, ...], encoding: str, batch: int, **changes: Any) -> dict[str, Any]:
        """Return the config of a trial."""
        machine = ours.machine(1, "bfloat16", self.device)
        return ours.document(self.data, self.base, tasks, encoding, batch, machine) | changes

    def together(self, batch: int, **changes: Any) -> dict[str, Any]:
        """Return the config of a trial on three tasks."""
        return self.document(peers.TASKS, "cross", batch, **changes)

    def times(self, contestants: dict[str, Step]) -> Times:
        """Measure the seconds of a step of each contestant."""
        times = alternate({name: self._many(step) for name, step in contestants.items()}, self.rounds, warm_up=1)
        return {name: [seconds / STEPS for seconds in of_rounds] for name, of_rounds in times.items()}

    def _many(self, step: Step) -> Step:
        def call() -> None:
            for _ in range(STEPS):
                step()
            self.wait()

        return call

    def wait(self) -> None:
        """Wait until the device has done what it was sent."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def row(self, what: str, where: str, goal: tuple[Literal[">=", "<="], float], figure: Figure, **further: Any) -> Row:
        """Return a row that names the device."""
        name = torch.cuda.get_device_name() if self.device == "cuda" else self.device
        return Row(13, what, f"BERT-base, {where}, {name}", goal, figure, **further)


def rows(data: Path, encoder: Path, rounds: int, ended_early: Callable[[str, Exception], None] | None = None) -> Iterator[Row]:
    """Yield the rows, the most decisive first; without a GPU, one empty row for all.

    ended_early: is given the name of a group of rows that fails, and its error, and the other groups are measured; without it
    the error is raised.
    """
    if not torch.cuda.is_available():
        yield Row(
            13, "step against BertModel, and all else of a GPU", "BERT-base, one GPU", (">=", 2.5), None, why="no GPU here"
        )
        return
    with tempfile.TemporaryDirectory() as temporary:
        base = random_base(Path(temporary), encoder, BASE)
        for part in (steps, methods, evaluation, compiled):
            try:
                yield from part(Setting(data, base, rounds, "cuda"))
            except Exception as error:
                if ended_early is None:
                    raise
                ended_early(part.__name__, error)
            gc.collect()
            torch.cuda.empty_cache()


def random_base(folder: Path, encoder: Path, shape: EncoderShape) -> Path:
    """Write an encoder of this shape with random weights, and the tokenizer of another; return its folder."""
    save_encoder(new_encoder(shape, 0, 0.1, 0.1), folder)
    for name in TOKENIZER_FILES:
        if (encoder / name).exists():
            shutil.copyfile(encoder / name, folder / name)
    return folder


def steps(setting: Setting) -> Iterator[Row]:
    """Yield a step's time against the peer's for each batch size, and its share of the device's rate for the largest."""
    probe = ours.matmul_probe(1, setting.device)

    def probed() -> None:
        probe()
        setting.wait()

    kernels = ["sdpa", *(["flash_attention_2"] if importlib.util.find_spec("flash_attn") else [])]
    for batch, goal in STEP_GOALS.items():
        for task, encoding in WORKLOADS:
            config, where = setting.document((task,), encoding, batch), f"{task} {encoding}, batch {batch}"
            arguments = (setting.data, setting.base, task, encoding, batch, 1, False, setting.device)
            contestants = {"ours": ours.training_step(config)}
            contestants |= {kernel: peers.training_step(*arguments, attention=kernel) for kernel in kernels}
            times = setting.times(contestants)
            times |= alternate({"probe": probed}, setting.rounds)
            for kernel in kernels:
                figure = ratio(times, kernel, "ours")
                yield setting.row(f"step against BertModel, {kernel}", where, (">=", goal), figure, details=milliseconds(times))
            if batch == max(STEP_GOALS):
                share = ours.share_of_probe(config, times)
                yield setting.row("of the device's bfloat16 matmul rate", where, (">=", 50.0), share, unit="%")


def methods(setting: Setting) -> Iterator[Row]:
    """Yield the time of each method relative to the sum, which is one pass for all tasks, and to a sum of passes per task."""
    contestants = {"sum": ours.training_step(setting.together(METHOD_BATCH))}
    contestants["sum per task"] = ours.training_step(setting.together(METHOD_BATCH), together=False)
    runnable = {name: of for name, of in METHODS.items() if can_run(name)}
    contestants |= {name: ours.training_step(setting.together(METHOD_BATCH, **of)) for name, of in runnable.items()}
    times, where = setting.times(contestants), f"three tasks of {METHOD_BATCH}"
    details = milliseconds(times)
    for name in filter(can_run, SURGERY):
        yield setting.row(f"{name}, relative to the sum", where, ("<=", 1.10), ratio(times, name, "sum"), details=details)
        figure = ratio(times, name, "sum per task")
        yield setting.row(f"{name}, relative to a sum of passes per task", where, ("<=", 1.10), figure, details=details)
    yield setting.row("SMART, relative to the sum", where, ("<=", 2.7), ratio(times, "smart", "sum"), details=details)
    yield setting.row(
        "Bregman teacher, relative to the sum", where, ("<=", 1.33), ratio(times, "bregman", "sum"), details=details
    )


def evaluation(setting: Setting) -> Iterator[Row]:
    """Yield the time of the peer's evaluation of three dev splits over ours."""
    own = ours.evaluation(setting.together(METHOD_BATCH))
    peer = peers.evaluation(setting.data, setting.base, setting.device)
    times = alternate({"peer": peer, "ours": own}, setting.rounds, warm_up=1)
    what, where = "dev evaluation against BertModel", "sst, para, sts cross-encoded"
    yield setting.row(what, where, (">=", 6.0), ratio(times, "peer", "ours"), details=milliseconds(times))


def compiled(setting: Setting) -> Iterator[Row]:
    """Yield the time of a step whose layers torch has compiled, relative to one as it is, with the seconds of compiling.

    It decides whether trials should compile: a trial of 400,000 examples has 4,167 steps of three times 32.
    """
    contestants = {"as it is": ours.training_step(setting.together(METHOD_BATCH))}
    contestants["compiled"] = ours.training_step(setting.together(METHOD_BATCH), is_compiled=True)
    began = time.monotonic()
    contestants["compiled"]()
    setting.wait()
    first = time.monotonic() - began
    times = setting.times(contestants)
    details = milliseconds(times) | {"first_step_s": first}
    figure = ratio(times, "compiled", "as it is")
    yield setting.row(
        "layers compiled, relative to as they are", f"three tasks of {METHOD_BATCH}", ("<=", 0.9), figure, details=details
    )


def largest_costs(setting: Setting) -> list[tuple[str, float, float]]:
    """Profile steps on three tasks: the largest costs, each with its milliseconds per step, and its share in percent."""
    step = ours.training_step(setting.together(METHOD_BATCH))
    for _ in range(STEPS):
        step()
    setting.wait()
    on_gpu = setting.device == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as found:
        for _ in range(ours.NUM_BATCHES):
            step()
        setting.wait()
    events = [
        (event.key, event.self_device_time_total if on_gpu else event.self_cpu_time_total)
        for event in found.key_averages()
        if not on_gpu or event.device_type.name == "CUDA"  # else a launch may count its kernel's time again
    ]
    total = sum(microseconds for _, microseconds in events) or 1.0
    largest = sorted(events, key=lambda event: -event[1])[:LARGEST]
    return [(name, taken / 1000 / ours.NUM_BATCHES, 100 * taken / total) for name, taken in largest]
