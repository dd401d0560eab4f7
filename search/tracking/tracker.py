"""The `Tracker`: the driver's way to MLflow. It queues calls of `Runs`, and a background thread makes them.

Only the driver uses it. The thread imports MLflow (2.5 s), owns the client and writes (runs.py). Nothing here raises into the
search: if the store fails, the thread ends and `Tracker.error` holds the reason. Every call may be made twice, after a failure
or by `--resume`: runs are recognised by their tags, params are written once, and the first value of a metric at a step stays.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, Concatenate, ParamSpec

from search.tracking.runs import Runs, SearchRecord, Status
from search.tracking.store import prepare_store, quieten_mlflow

RETRY_SECONDS = (1.0, 5.0, 15.0)  # before each further try at a busy database; SQLite itself waits up to 20 s in each

Arguments = ParamSpec("Arguments")


class Tracker:
    """A queue of calls to MLflow. Every method returns at once, except `close`, which waits. None raises."""

    error: str | None = None  # a sentence: why nothing more is recorded. The driver prints it in red

    def __init__(self, search: SearchRecord) -> None:
        self._search = search
        self._calls: SimpleQueue[Callable[[Runs], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="mlflow", daemon=True)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles the callbacks of a Tuner; thread and queue stay with the driver

    def start(self) -> None:
        """Start the thread, which creates the store if there is none."""
        self._thread.start()

    def submit(
        self, method: Callable[Concatenate[Runs, Arguments], None], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> None:
        """Queue a call of a method of `Runs`: `tracker.submit(Runs.records, number, records)`. After an error, do nothing."""
        if self.error is None:
            self._calls.put(lambda runs: method(runs, *args, **kwargs))

    def close(self, status: Status, timeout_seconds: float = 60) -> bool:
        """End the parent run, wait until everything is written, and return whether it was. Open trials end with the search."""
        self.submit(Runs.close, status)
        self._calls.put(None)
        if self._thread.ident is None:
            self.error = "MLflow was never started, so nothing was recorded."
        else:
            self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            self.error = f"MLflow had not written everything to {self._search.uri} after {timeout_seconds:g} s."
        return self.error is None

    def _serve(self) -> None:
        """Make the queued calls, until `close` or the first failure."""
        try:
            quieten_mlflow()
            prepare_store(self._search.uri)
            runs = Runs(self._search)
            _retry(runs.open)
            while (call := self._calls.get()) is not None:
                _retry(partial(call, runs))
        except Exception as error:  # noqa: BLE001  any failure ends here: the search continues, and the driver reports it
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            self.error = f"MLflow stopped recording to {self._search.uri}: {reason}"


def _retry(action: Callable[[], None]) -> None:
    """Run `action`; repeat it after a pause while another process migrates, cleans or backs up the database."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import OperationalError

    for wait_seconds in (*RETRY_SECONDS, None):
        try:
            action()
            return
        except (MlflowException, OperationalError) as error:  # the latter, unwrapped, only while a connection is opened
            is_busy = isinstance(error, OperationalError) or error.error_code == "TEMPORARILY_UNAVAILABLE"
            if wait_seconds is None or not is_busy:
                raise
            time.sleep(wait_seconds)
