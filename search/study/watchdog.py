"""The watchdog: it ends the process of a trial that hangs, so that the trial is retried and its slot is free.

trials/NNN/alive -> Watchdog.look, every second -> the silent ones -> end_process -> Ray reports a death -> StudySearcher
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from minbert_core.words import duration
from search.cluster.nodes import pinned
from search.study.pulse import last_beat, read_process

LOOK_SECONDS = 1.0
TIMES_USUAL = 10  # a trial hangs once it has been silent for so many of its longest intervals


@dataclass
class _Heard:
    beat: int | None  # the last sign of life
    num_beats: int = 0  # of this attempt
    silent: float = 0.0  # seconds
    longest: float = 0.0  # interval so far, in seconds


class Watchdog:
    """Knows how long each running trial has been silent: at a step, in an evaluation, in its start.

    Only time in which the driver itself was running counts: not that of a machine or a terminal that was suspended.
    """

    def __init__(self, patience_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.patience, self.clock = patience_seconds, clock
        self.looked, self.heard = clock(), dict[int, _Heard]()

    def begin(self, number: int, folder: Path) -> None:
        """Begin to listen to a trial that is about to start or resume."""
        self.heard[number] = _Heard(last_beat(folder))

    def is_training(self, number: int) -> bool:
        """Return whether a trial is beyond its start: the first sign of life precedes its imports, the next its first step."""
        return number in self.heard and self.heard[number].num_beats > 1

    def forget(self, number: int) -> None:
        self.heard.pop(number, None)

    def look(self, folders: Iterable[tuple[int, Path]]) -> dict[int, float]:
        """Return the trials that hang, and for how many seconds each has been silent. Each is returned once."""
        passed = self.clock() - self.looked
        if passed < LOOK_SECONDS:
            return {}
        self.looked += passed
        hanging = {}
        for number, folder in folders:
            heard, beat = self.heard[number], last_beat(folder)
            if beat != heard.beat:
                heard.beat, heard.num_beats = beat, heard.num_beats + 1
                heard.longest, heard.silent = max(heard.longest, heard.silent), 0.0
            elif heard.num_beats:  # a trial that Ray has not begun yet does not hang
                heard.silent += min(passed, 2 * LOOK_SECONDS)
            if heard.silent > max(self.patience, TIMES_USUAL * heard.longest):
                hanging[number] = heard.silent
                self.begin(number, folder)
        return hanging


def silence(seconds: float) -> str:
    """Return the reason of a hanging trial: `it reported nothing for 6 min`."""
    return f"it reported nothing for {duration(seconds)}"


def end_process(folder: Path) -> None:
    """Kill the process of a trial, on whichever node it is. A stopped process is killed too."""
    process = read_process(folder)
    if process is None:
        return
    if process.host == socket.gethostname():
        _kill(process.pid)
    else:
        pinned(_kill, process.node)(process.pid)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended
        os.kill(pid, signal.SIGKILL)
