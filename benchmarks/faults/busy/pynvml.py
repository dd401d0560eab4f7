"""A stand-in for NVIDIA's driver on a node of logical GPUs: others use 37 of 80 GB of GPU 0."""

from types import SimpleNamespace

nvmlMemory_v2 = 2


class NVMLError(Exception):
    """As in pynvml."""


def nvmlInit() -> None:
    """Do nothing."""


def nvmlShutdown() -> None:
    """Do nothing."""


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    return index


def nvmlDeviceGetMemoryInfo(handle: int, version: int) -> SimpleNamespace:
    return SimpleNamespace(used=0 if handle else 37_000_000_000, total=80_000_000_000)
