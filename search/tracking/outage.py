"""The tries of a writer at a store that may be away: growing pauses, one line when it goes and one when it is back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from minbert_core.words import duration
from search.tracking.faults import may_pass, reason_of
from search.tracking.writer import Writer

FIRST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE_AT_END = 1.0, 30.0, 5.0  # seconds between tries; each is twice the last
UNTOLD_SECONDS = 1.0  # a shorter outage is not worth a line


class Attempts:
    """A writer's tries at the store at `uri`, until everything is written or a fault cannot pass."""

    def __init__(self, writer: Writer, uri: str, tell: Callable[[str], None], closing: threading.Event) -> None:
        self.writer, self.uri, self.tell, self.closing = writer, uri, tell, closing
        self.fault = ""  # of the last try; empty if it succeeded
        self._since: float | None = None  # the time when the present outage began
        self._is_told = False
        self._pause = FIRST_PAUSE
        self._lasting: set[str] = set()  # faults that cannot pass, unless they came from a run that someone deleted

    def write(self) -> None:
        """Write the next thing; after a failure, pause. Raises an error that cannot pass, when it comes a second time."""
        began = time.monotonic()
        try:
            self.writer.write_next()
        except Exception as error:
            self.writer.forget()
            if may_pass(error):
                self._fail(error, began)
            elif str(error) in self._lasting:
                raise
            else:
                self._lasting.add(str(error))
            return
        self.fault, self._pause = "", FIRST_PAUSE
        if self._since is not None and not self.writer.is_behind:
            self._end()

    def _fail(self, error: Exception, began: float) -> None:
        self.fault = reason_of(error)
        if self._since is None:
            self._since = began
        if not self._is_told and time.monotonic() - self._since >= UNTOLD_SECONDS:
            self._is_told = True
            self.tell(
                f"MLflow at {self.uri} does not answer ({self.fault}). Training continues, and what MLflow lacks is written "
                "when it is back."
            )
        if self.closing.is_set():
            time.sleep(min(self._pause, LONGEST_PAUSE_AT_END))
            self._pause *= 2
        elif self.closing.wait(self._pause):
            self._pause = FIRST_PAUSE
        else:
            self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _end(self) -> None:
        assert self._since is not None
        if self._is_told:
            self.tell(f"MLflow is back after {duration(time.monotonic() - self._since)} and has everything again.")
        self._since, self._is_told = None, False
