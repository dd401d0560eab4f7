"""Ctrl-C and the signals like it: the running trials save their states, and the search ends so that it can be resumed.

signal -> Interrupts: the file `stop` -> the trials save and end (pulse.py) -> is_over -> StopOnRequest ends the rest
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from search.study.engine import STOPS
from search.study.pulse import stop_file

SAVE_SECONDS = 6  # for the running trials to save their states: a step, and a file of the weights and the moments of AdamW


class Interrupts:
    """Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 while a search runs. A thread answers at once and sets `seen`; nothing is raised.

    The main thread may be waiting inside Ray or writing a file. It ends in its own time, and a second Ctrl-C does no harm.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.order, self.say, self.seen, self.since = stop_file(folder), say, False, 0.0
        self.save_seconds = float(SAVE_SECONDS)

    def __enter__(self) -> Interrupts:
        self.order.unlink(missing_ok=True)  # left over from a driver that was killed while it stopped
        self.read, self.write = os.pipe()
        os.set_blocking(self.write, False)
        self.previous = signal.set_wakeup_fd(self.write, warn_on_full_buffer=False)
        self.handlers = {number: signal.getsignal(number) for number in STOPS}
        self.handlers = {
            number: handler for number, handler in self.handlers.items() if not _is_ignored_hangup(number, handler)
        }
        self.listen()
        self.thread = threading.Thread(target=self._answer, daemon=True)
        self.thread.start()
        return self

    def listen(self) -> None:
        for number in self.handlers:
            signal.signal(number, lambda *_: None)  # Python writes the signal's number to the pipe before it calls this

    def is_over(self, num_running: int) -> bool:
        """Return whether to end now: interrupted, and no running trial is still saving its state."""
        return self.seen and (num_running == 0 or time.monotonic() - self.since > self.save_seconds)

    def _answer(self) -> None:
        while received := os.read(self.read, 64):
            if not self.handlers.keys().isdisjoint(received):
                again, self.seen = self.seen, True
                if not again:
                    self.since = time.monotonic()
                    with contextlib.suppress(OSError):  # on a full disk the trials end without it, with their last snapshots
                        self.order.touch()
                self.say(
                    "already stopping, a few more seconds …" if again else "stopping; the trials' states are being saved …"
                )

    def __exit__(self, *_: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self.previous)
        os.close(self.write)
        self.thread.join()
        os.close(self.read)
        self.order.unlink(missing_ok=True)


def _is_ignored_hangup(number: signal.Signals, handler: object) -> bool:
    """Return whether the command was started with `nohup`."""
    return number == signal.SIGHUP and handler == signal.SIG_IGN
