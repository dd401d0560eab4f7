"""The `Tracker`: the driver's way to MLflow. It queues calls of `Runs`, and a background thread writes what they change.

Only the driver uses it. The thread imports MLflow (2.5 s) and owns the `Writer`. Nothing here raises into the search. While the
store does not answer, the thread tries again after growing pauses, and what is missing is written when the store is back. If a
fault cannot pass, the thread ends, and `Tracker.error` holds the reason.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Concatenate, ParamSpec

from search.environment import without_secrets
from search.tracking.faults import reason_of
from search.tracking.outage import Attempts
from search.tracking.runs import Runs, SearchRecord, Status
from search.tracking.store import NOWHERE, quieten_mlflow
from search.tracking.writer import Writer

PATIENCE_SECONDS, PATIENCE_SECONDS_KILLED = 60.0, 8.0  # of `close`; after an interrupt, someone waits for the prompt
MAX_PATIENCES = 10  # for a slow store, which makes progress
QUIET_SECONDS = 10.0  # the time that `close` waits before it says so; a fresh database takes 4 s

Arguments = ParamSpec("Arguments")


def print_line(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)


class Tracker:
    """A queue of calls to MLflow. Every method returns at once, except `close`, which waits. None raises."""

    error: str | None = None  # a sentence: why MLflow lacks something. The driver prints it in red

    def __init__(self, search: SearchRecord, say: Callable[[str], None] = print_line) -> None:
        self.uri = without_secrets(search.uri)
        self._search, self._say = search, say
        self._calls: SimpleQueue[Callable[[Runs], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="mlflow", daemon=True)
        self._closing = threading.Event()
        self._saying = threading.Lock()  # no line is said after `close` has returned
        self._runs = Runs(search)
        self._writer = Writer(self._runs)
        self._attempts = Attempts(self._writer, self.uri, self._tell, self._closing)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles the callbacks of a Tuner; thread and queue stay with the driver

    @property
    def experiment(self) -> str | None:
        """The id of the search's experiment; None before the store has answered."""
        return self._writer.experiment if self._writer.is_open else None

    def start(self) -> None:
        """Start the thread, which creates the store if there is none. With the address `none`, nothing is recorded."""
        if self.uri != NOWHERE:
            self._thread.start()

    def submit(
        self, method: Callable[Concatenate[Runs, Arguments], None], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> None:
        """Queue a call of a method of `Runs`: `tracker.submit(Runs.records, number, records)`. After an error, do nothing."""
        if self.error is None and self.uri != NOWHERE:
            self._calls.put(lambda runs: method(runs, *args, **kwargs))

    def close(self, status: Status, timeout_seconds: float | None = None) -> bool:
        """End the parent run, wait until everything is written, and return whether it was. Open trials end with the search.

        timeout_seconds: the time without progress after which this gives up. A slow store that makes progress gets ten times as
        much, but not after an interrupt (status KILLED).
        """
        if self.uri == NOWHERE:
            return True
        if timeout_seconds is None:
            timeout_seconds = PATIENCE_SECONDS_KILLED if status == "KILLED" else PATIENCE_SECONDS
        self.submit(Runs.close, status)
        self._calls.put(None)
        self._closing.set()
        if self._thread.ident is None:
            self.error = "MLflow was never started, so nothing was recorded."
        elif not self._wait(timeout_seconds, timeout_seconds * (1 if status == "KILLED" else MAX_PATIENCES)):
            self.error = f"MLflow had not written everything to {self.uri} after {timeout_seconds:g} s{self._why()}."
        with self._saying:
            self._say = lambda _: None
        return self.error is None

    def _wait(self, patience: float, at_most: float) -> bool:
        """Wait for the thread; return whether it has ended. Say so if it takes long."""
        began = progressed = time.monotonic()
        num_written, told = self._writer.num_written, False
        while self._thread.is_alive():
            now = time.monotonic()
            if self._writer.num_written > num_written:
                num_written, progressed = self._writer.num_written, now
            if now > min(progressed + patience, began + at_most):
                return False
            if not told and now > began + QUIET_SECONDS:
                told = True
                self._tell(f"waiting for MLflow at {self.uri}{self._why()}, up to {patience:g} s without progress …")
            self._thread.join(min(0.1, patience))
        return True

    def _why(self) -> str:
        return f" ({self._attempts.fault})" if self._attempts.fault else ""

    def _tell(self, text: str) -> None:
        with self._saying:
            self._say(text)

    # ---- the thread

    def _serve(self) -> None:
        """Write what the queued calls change, until `close` or a fault that cannot pass."""
        try:
            quieten_mlflow()
            is_open = True
            while is_open or self._writer.is_behind:
                if is_open:
                    is_open = self._note_calls(wait=not self._writer.is_behind)
                if self._writer.is_behind:
                    self._attempts.write()
        except Exception as error:  # noqa: BLE001  any failure ends here: the search continues, and the driver reports it
            self.error = f"MLflow stopped recording to {self.uri}: {reason_of(error)}."
            self._tell(f"{self.error} Training continues. metrics.jsonl keeps all, and the same command logs it again.")

    def _note_calls(self, wait: bool) -> bool:
        """Make the queued calls, which only change the runs; return False after the last one."""
        while wait or not self._calls.empty():
            call = self._calls.get()
            if call is None:
                return False
            call(self._runs)
            wait = False
        return True
