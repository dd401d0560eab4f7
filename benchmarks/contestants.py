"""A contestant in its own process, so that one side's settings (allocator, matmul route, threads) do not help the other.

step = Contestant(make, *arguments)      the process starts, builds, and waits
step()                                   makes one call in that process; `peak_gb` is its peak memory
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

Step = Callable[[], object]


class Contestant:
    """A process with `threads` threads that calls the step built by `make(*arguments)`; `make` is importable by name."""

    def __init__(self, make: Callable[..., Step], *arguments: Any, threads: int = 1) -> None:
        self._pipe, child = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(target=_serve, args=(child, make, arguments), daemon=True)
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read when the child imports torch
        try:
            self._process.start()
        finally:
            os.environ.pop("OMP_NUM_THREADS")
            os.environ.update({} if before is None else {"OMP_NUM_THREADS": before})
        child.close()
        self._receive()

    def __call__(self) -> Any:
        self._pipe.send("step")
        return self._receive()

    @property
    def peak_gb(self) -> float:
        """The peak memory of the process: of its GPU if it used one, else resident, libraries included."""
        self._pipe.send("peak")
        return float(self._receive())

    def _receive(self) -> Any:
        failed, value = self._pipe.recv()
        if failed:
            raise RuntimeError(f"A contestant failed:\n{value}")
        return value

    def __enter__(self) -> Contestant:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection, make: Callable[..., Step], arguments: tuple[Any, ...]) -> None:
    try:
        step = make(*arguments)
        pipe.send((False, None))
        while True:
            asked = pipe.recv()
            pipe.send((False, step() if asked == "step" else _peak_gb()))
    except (EOFError, KeyboardInterrupt):
        return
    except Exception:  # noqa: BLE001 — the driver raises any error
        pipe.send((True, traceback.format_exc()))


def _peak_gb() -> float:
    import torch

    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
