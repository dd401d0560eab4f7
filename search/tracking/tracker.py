"""MLflow, told by the driver alone: where its store is, and the `Tracker` to whom a search tells what happens.

The driver calls the methods of `Tracker`, which only put an event on a queue; one background thread imports MLflow (2.5 s),
owns the client and writes (mlflow_runs.py). Nothing here raises into the search: if the store fails, the thread ends and
`Tracker.error` says why. Everything may be told twice (after a failure, or by `--resume`): runs are found again by their tags,
params are written once, and of a metric the first value at a step stays.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from minbert_core.clock import now_ms
from search.tracking.runs import Runs, SearchRecord, Status
from search.tracking.store import SERVER, _artifacts, _quiet, prepare_store

WAITS_SECONDS = (1.0, 5.0, 15.0)  # before each further try at a busy database; SQLite itself waits up to 20 s in each


# --------------------------------------------------------------------------------------------------------------- store


# ------------------------------------------------------------------------------------------------------------- tracker


class Tracker:
    """What the driver tells MLflow. Every method returns at once (`close` waits) and none raises."""

    error: str | None = None  # why nothing more is recorded, as a sentence; the driver prints it in red

    def __init__(
        self,
        uri: str,
        search: str,
        note: str,
        tags: dict[str, str],
        params: dict[str, Any],
        datasets: dict[str, str],  # name -> sha256, e.g. "sst-train"
        artifact_files: list[Path],
        resume: bool,
        num_rows: Mapping[str, int] | None = None,  # name -> rows of a data set, where known
        search_id: str | None = None,  # tells searches of one name apart, on a server that many log to
    ) -> None:
        tags = tags | {f"data/{name}": digest for name, digest in datasets.items()}
        artifacts = None if uri.startswith(SERVER) else _artifacts(uri).as_uri()
        if search_id is not None:
            tags["search_id"] = search_id
        rows = num_rows or {}
        self._search = SearchRecord(uri, artifacts, search, note, tags, params, datasets, rows, artifact_files, resume)
        self._events: SimpleQueue[Callable[[Runs], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="mlflow", daemon=True)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles the callbacks of a Tuner; thread and queue stay with the driver

    def start(self) -> None:
        """Starts the thread, which makes the store if there is none."""
        self._thread.start()

    def trial_started(
        self,
        number: int,
        name: str,
        params: dict[str, Any],
        config_file: Path,
        tags: dict[str, str],
        time_ms: int | None = None,
    ) -> None:
        """A trial runs, for the first time or again. name, params, tags and time_ms (its start) count the first time only."""
        start_ms = time_ms or now_ms()
        self._tell(lambda runs: runs.trial_started(number, name, params, config_file, tags, start_ms))

    def records(self, number: int, records: list[dict[str, Any]]) -> None:
        """Measurements of a started trial, at x = examples and the time they were taken; what is not finite is left out."""
        self._tell(lambda runs: runs.records(number, records))

    def trial_ended(self, number: int, status: Status, stop_reason: str, time_ms: int) -> None:
        self._tell(lambda runs: runs.trial_ended(number, status, stop_reason, time_ms))

    def pretrained(self, records: list[dict[str, Any]]) -> None:
        """Measurements of what is pretrained before the trials, on the parent."""
        self._tell(lambda runs: runs.pretrained(records))

    def best(self, step: int, metrics: dict[str, float], time_ms: int) -> None:
        """The best so far, on the parent; step is the number of trials done."""
        self._tell(lambda runs: runs.best(step, metrics, time_ms))

    def note(self, markdown: str) -> None:
        """Replaces the description on the pages of the experiment and of the parent run."""
        self._tell(lambda runs: runs.note(markdown))

    def close(self, status: Status, timeout_seconds: float = 60) -> bool:
        """Ends the parent run, waits until all is written, and says whether it was. Trials still open end with the search."""
        self._tell(lambda runs: runs.close(status))
        self._events.put(None)
        if self._thread.ident is None:
            self.error = "MLflow was never started, so nothing was recorded."
        else:
            self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            self.error = f"MLflow had not written everything to {self._search.uri} after {timeout_seconds:g} s."
        return self.error is None

    def _tell(self, event: Callable[[Runs], None]) -> None:
        if self.error is None:
            self._events.put(event)

    def _serve(self) -> None:
        try:
            _quiet()
            prepare_store(self._search.uri)
            runs = Runs(self._search)
            _patiently(runs.open)
            while (event := self._events.get()) is not None:
                _patiently(partial(event, runs))
        except Exception as error:  # noqa: BLE001  whatever it is, it ends here: the search goes on, and the driver says so
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            self.error = f"MLflow stopped recording to {self._search.uri}: {reason}"


def _patiently(action: Callable[[], None]) -> None:
    """Does it, again after a while where the database is busy (another process migrates, deletes, backs up)."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import OperationalError

    for wait_seconds in (*WAITS_SECONDS, None):
        try:
            action()
            return
        except (MlflowException, OperationalError) as error:  # the latter, unwrapped, only while a connection is made
            busy = isinstance(error, OperationalError) or error.error_code == "TEMPORARILY_UNAVAILABLE"
            if wait_seconds is None or not busy:
                raise
            time.sleep(wait_seconds)
