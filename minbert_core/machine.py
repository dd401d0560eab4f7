"""The machine that runs a trial: device, threads, precision, share of a GPU, and usage.

This file holds all code that depends on the hardware and does not belong to a method.
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
from torch import Tensor

from minbert_core.config import NO_MPS, Machine

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, KEPT_BYTES = -1, -3, 1 << 30  # from glibc's malloc.h
FASTER = 1.05  # the least speedup that justifies results whose last digits differ from torch's default
TOKENS_PER_PASS = 4096  # of an evaluation on a CPU: products at the full rate, little memory; assumed, not measured (2026-11)
TOKENS_PER_MULTIPROCESSOR = 128  # rows of a common tile of a GPU's matrix product; assumed, not measured (2026-11)
AS_EXACT = 4.0  # times the default's error; bfloat16 in place of float32 has a thousand times the error


def prepare(machine: Machine) -> torch.device:
    """Set up this process for a trial (threads, matrix products, allocator, limit of GPU memory); return the device.

    A trial that exceeds its limit runs out of memory by itself, and the trials that share the GPU continue.
    """
    torch.set_num_threads(machine.threads)
    device = torch.device(resolve_device(machine.device))
    # "medium" would silently round to TF32 or bfloat16 on a GPU
    torch.set_float32_matmul_precision("medium" if machine.matmul == "onednn" and device.type == "cpu" else "highest")
    if device.type == "cpu":
        torch.set_flush_denormal(True)  # AdamW's means of a word unseen for 900 steps are denormal, and slow
        _keep_freed_memory()
    else:
        choose_attention_kernel()
        if machine.gpu_share < 1:
            torch.cuda.set_per_process_memory_fraction(machine.gpu_share)
    return device


def choose_attention_kernel() -> None:
    """Keep torch from taking cuDNN's attention on a GPU in this process, which it prefers on recent ones.

    cuDNN builds a plan for each shape of a batch, and packed batches have a new one every step. Some of its kernels round the
    dropout rate to sixteenths (pytorch #174245), and others return NaN gradients with a mask (#196678). Not measured here.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def _keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step; other C libraries are not changed.

    By default blocks of megabytes are returned to the system immediately, and each step faults them in again page by page. A
    step of MiniLM on three batches of 16 has 17,000 such faults, 3 % of its time, and more on machines where faults are slow.
    The peak of memory is the same.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            mallopt(option, KEPT_BYTES)


def fastest_matmul(device: torch.device, threads: int) -> Literal["torch", "onednn"]:
    """Find the fastest way to multiply float32 matrices at full accuracy on this machine, with a probe of 50 ms.

    The switch that enables oneDNN also allows it to round to bfloat16 if the hardware makes that fast (AMX), so the probe
    checks the error, too. Measured: 1.9 times the default's rate on AMD Zen 5, 1.1 times on Zen 4, with the same error.
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
        for _ in range(6):  # in turns, so that other load affects both; the first call of each is a warm-up
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
    """Multiply float32 matrices with torch's own kernels inside the block, even if the trial uses oneDNN.

    oneDNN takes twenty times as long for small products in large batches, and it may round them to bfloat16.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def tokens_per_pass(device: torch.device) -> int:
    """Return the number of tokens of a pass of an evaluation: enough for products at the full rate, little of the memory.

    A GPU gets TOKENS_PER_MULTIPROCESSOR for each of its multiprocessors: 5,120 on a T4, 13,824 on an A100, 16,896 on an H100.
    The number depends on the card only, not on what is free, so that an evaluation repeats.
    """
    if device.type != "cuda":
        return TOKENS_PER_PASS
    return TOKENS_PER_MULTIPROCESSOR * int(torch.cuda.get_device_properties(device).multi_processor_count)


def resolve_device(device: str) -> str:
    """Replace `auto` by cuda if there is a GPU, or else by cpu, also on a Mac.  Raises ValueError for another device."""
    if device.partition(":")[0] not in ("auto", "cpu", "cuda"):
        raise ValueError(f"`device` {NO_MPS} Got {device}.")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def resolve_precision(precision: str, device: torch.device) -> str:
    """Replace `auto` by bfloat16 on a GPU that supports it in hardware, or else by float32."""
    if precision != "auto":
        return precision
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"


def without_bfloat16(machine: Machine) -> list[str]:
    """Return a sentence if trials train on a GPU in float32 because it has no bfloat16 (T4, V100), or else nothing."""
    if (machine.device, machine.precision) != ("cuda", "float32") or not torch.cuda.is_available():
        return []
    if resolve_precision("auto", torch.device("cuda")) == "bfloat16":
        return []
    return [
        f"{torch.cuda.get_device_name()} has no bfloat16, and float16 is not supported: products are float32. Its tensor cores "
        "stay idle, and activations take twice the memory."
    ]


def in_precision(precision: str, device: torch.device) -> torch.autocast:
    """Return the context for a pass through the encoder. With `bfloat16`, matrix products are bfloat16 and weights float32.

    Only the pass belongs inside. Readouts, losses and divergences follow outside, in the float32 of the logits.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


class Arriving:
    """Values on their way to the host, which does not wait for them until it reads them."""

    def __init__(self, values: Tensor) -> None:
        self._values = values.to("cpu", non_blocking=True)
        self._event = torch.cuda.Event() if values.is_cuda else None
        if self._event:
            self._event.record()

    def read(self) -> list[float]:
        """Return the values of a vector. The host waits for what the device had to do when they were sent, not for more."""
        if self._event:
            self._event.synchronize()
        values: list[float] = self._values.tolist()
        return values


def usage(device: torch.device) -> dict[str, float]:
    """Measure `system/peak_memory_gb` of this process (GPU memory on a GPU, else resident), and a GPU's `system/gpu_percent`.

    The percentage is omitted if the driver does not report it (a slice of a GPU, some containers), or without nvidia-ml-py.
    """
    if device.type != "cuda":
        unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
        return {"system/peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}
    figures = {"system/peak_memory_gb": torch.cuda.max_memory_reserved(device) / 1e9}
    with contextlib.suppress(ModuleNotFoundError):
        from pynvml import NVMLError

        with contextlib.suppress(NVMLError, RuntimeError):  # torch turns some of the driver's errors into its own
            figures["system/gpu_percent"] = float(torch.cuda.utilization(device))
    return figures
