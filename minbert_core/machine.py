"""The machine under a trial: device, threads, precision, its share of a GPU, and what of it is used.

All that is particular to hardware and belongs to no method stands here.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import platform
import resource
import sys
import time
from collections.abc import Iterator
from typing import Literal

import torch

from minbert_core.config import Machine

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, KEPT_BYTES = -1, -3, 1 << 30  # of glibc's malloc.h
FASTER = 1.05  # by less than this, a route is not worth other last digits than torch's default gives
AS_EXACT = 4.0  # times the default's error; bfloat16 in float32's place would be a thousand times off


def prepare(machine: Machine) -> torch.device:
    """The device of a trial; its threads, matrix products, allocator and cap of GPU memory set for this process.

    Beyond its cap a trial runs out of memory by itself, instead of taking down those that share the GPU.
    """
    torch.set_num_threads(machine.threads)
    device = torch.device(resolve_device(machine.device))
    # on a GPU "medium" would round to TF32 or bfloat16, silently
    torch.set_float32_matmul_precision("medium" if machine.matmul == "onednn" and device.type == "cpu" else "highest")
    if device.type == "cpu":
        torch.set_flush_denormal(True)  # AdamW's means of a word unseen for 900 steps are denormal, and slow to compute with
        _keep_freed_memory()
    elif machine.gpu_share < 1:
        torch.cuda.set_per_process_memory_fraction(machine.gpu_share)
    return device


def _keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next one; elsewhere nothing is done.

    By default blocks of megabytes go back to the system at once, and are faulted in again page by page in every step: 17,000
    faults in one of MiniLM on three batches of 16, 3 % of its time, and more where faults are dear. The peak stays the same.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            mallopt(option, KEPT_BYTES)


def fastest_matmul(device: torch.device, threads: int) -> Literal["torch", "onednn"]:
    """What multiplies float32 matrices fastest here at full accuracy, by a probe of 50 ms.

    oneDNN is reached by a switch that lets it round to bfloat16 where the hardware makes that fast (AMX): so nothing is
    assumed. Measured: 1.9 times the default's rate on AMD Zen 5, 1.1 times on Zen 4, with the same error.
    """
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return "torch"
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator) for shape in ((256, 768), (768, 768)))
    exact = x.double() @ weight.double()
    errors, seconds = {}, dict.fromkeys(("highest", "medium"), math.inf)
    before = torch.get_float32_matmul_precision(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(6):  # taking turns, so that what else runs here meets both; the first call of each warms up
            for route in seconds:
                torch.set_float32_matmul_precision(route)
                began = time.perf_counter()
                product = x @ weight
                seconds[route] = min(seconds[route], time.perf_counter() - began)
                errors[route] = float((product - exact).abs().max())
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.set_num_threads(before[1])
    is_exact = errors["medium"] <= AS_EXACT * errors["highest"]
    return "onednn" if is_exact and seconds["highest"] > FASTER * seconds["medium"] else "torch"


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Multiply float32 matrices by torch's own kernels within the block, whatever route the trial takes elsewhere.

    For small products in large batches oneDNN takes twenty times as long, and it may round them to bfloat16.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def resolve_device(device: str) -> str:
    """`auto` -> cuda where there is a GPU, else cpu."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def resolve_precision(precision: str, device: torch.device) -> str:
    """`auto` -> bfloat16 on a GPU that computes in it, else float32."""
    if precision != "auto":
        return precision
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"


def in_precision(precision: str, device: torch.device) -> torch.autocast:
    """The context of a pass through the encoder: under `bfloat16` its matrix products are in bfloat16, weights stay float32.

    It holds the pass only. Readouts, losses and divergences come after it, in the float32 of the logits.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def usage(device: torch.device) -> dict[str, float]:
    """`system/peak_memory_gb` of this process (of GPU memory on a GPU, else resident), and there `system/gpu_percent` now.

    The percentage is left out where the driver does not tell it (a slice of a GPU, some containers).
    """
    if device.type != "cuda":
        unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
        return {"system/peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}
    from pynvml import NVMLError

    figures = {"system/peak_memory_gb": torch.cuda.max_memory_reserved(device) / 1e9}
    with contextlib.suppress(NVMLError):
        figures["system/gpu_percent"] = float(torch.cuda.utilization(device))
    return figures
