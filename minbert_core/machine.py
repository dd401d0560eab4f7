"""The machine under a trial: device, threads, precision, its share of a GPU, and what of it is used.

All that is particular to hardware and belongs to no method stands here.
"""

from __future__ import annotations

import contextlib
import resource
import sys

import torch

from minbert_core.config import Machine


def prepare(machine: Machine) -> torch.device:
    """The device of a trial, its threads and its cap of GPU memory set for this process.

    Beyond its cap a trial runs out of memory by itself, instead of taking down those that share the GPU.
    """
    torch.set_num_threads(machine.threads)
    device = torch.device(resolve_device(machine.device))
    if device.type == "cuda" and machine.gpu_share < 1:
        torch.cuda.set_per_process_memory_fraction(machine.gpu_share)
    return device


def resolve_device(device: str) -> str:
    """`auto` -> cuda where there is a GPU, else cpu."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def resolve_precision(precision: str, device: torch.device) -> str:
    """`auto` -> bfloat16 on a GPU that computes in it, else float32."""
    if precision != "auto":
        return precision
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"


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
