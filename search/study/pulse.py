"""A trial's signs of life, and its order to stop: two files, which also work across nodes with a shared disk.

driver -> runs/NAME/stop -> Pulse -> the trial saves its state and ends
worker -> Pulse -> trials/NNN/alive -> the driver's watchdog
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

LOOK_SECONDS = 0.5  # between two touches of the file, and two looks for the order


@dataclass(frozen=True)
class Process:
    """The process of a trial."""

    host: str
    pid: int
    node: str  # Ray's id of its node


class Pulse:
    """A function that training calls at each step: it shows that the trial is alive, and returns whether it is to stop."""

    def __init__(self, folder: Path, node: str) -> None:
        """`folder` is the trial's; its log must be locked by this process."""
        self.alive, self.order = folder / "alive", stop_file(folder.parent.parent)
        self.alive.write_text(json.dumps(asdict(Process(socket.gethostname(), os.getpid(), node))), encoding="utf-8")
        self.is_stopped, self.next = False, 0.0

    def __call__(self) -> bool:
        now = time.monotonic()
        if now >= self.next and not self.is_stopped:
            self.next = now + LOOK_SECONDS
            self.alive.touch()
            self.is_stopped = self.order.exists()
        return self.is_stopped


def stop_file(folder: Path) -> Path:
    """Return the file in a search's folder that orders its trials to save their states and end."""
    return folder / "stop"


def read_process(folder: Path) -> Process | None:
    """Return the process that trains in a trial's folder; None if there is none yet."""
    try:
        return Process(**json.loads((folder / "alive").read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):  # not there yet, or not whole
        return None


def last_beat(folder: Path) -> int | None:
    """Return a number that changes with each sign of life; None if there is none yet."""
    try:
        return (folder / "alive").stat().st_mtime_ns
    except FileNotFoundError:
        return None
