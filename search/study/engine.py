"""Ray, started for one search or joined."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minbert_core.commands import Refused
from search.plan.resources import Resources, only_these

STOPS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGUSR1})  # signals that end a search so that it can be resumed


def start_ray(resources: Resources, address: str) -> None:
    """Start a private Ray instance (address `local`) with `resources`, or join the cluster at `address`, without output.

    Raises Refused if Ray does not start.
    """
    import logging

    import ray

    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    local: dict[str, Any] = {}
    if address == "local":
        temporary = tempfile.gettempdir()
        # a socket's path adds 80 characters and may have 107 in all (103 on macOS)
        scratch = Path(temporary if len(temporary) < 20 else "/tmp") / f"minbert-ray-{os.getuid()}"
        local = {"num_cpus": resources.cpus, "num_gpus": resources.gpus, "include_dashboard": False, "_temp_dir": str(scratch)}
        local["object_store_memory"] = 100 * 1024**2  # for reports only; data is passed as paths
    try:
        with only_these(resources.taken), _unheard(signal.SIGUSR1):
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except Exception as error:  # Ray raises plain Exception if its processes are not ready within 30 s
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Refused(f"Ray did not start. Is this machine overloaded, or its disk full? Ray's message: {reason}") from error


@contextlib.contextmanager
def _unheard(number: signal.Signals) -> Iterator[None]:
    """Block a signal within the block. Processes started there never receive it, though Slurm sends it to a whole step."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
