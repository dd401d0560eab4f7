"""MLflow, told by the driver alone: where its store is, and the `Tracker` to whom a search tells what happens.

The driver calls the methods of `Tracker`, which only put an event on a queue; one background thread imports MLflow (2.5 s),
owns the client and writes (mlflow_runs.py). Nothing here raises into the search: if the store fails, the thread ends and
`Tracker.error` says why. Everything may be told twice (after a failure, or by `--resume`): runs are found again by their tags,
params are written once, and of a metric the first value at a step stays.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from search.mlflow_runs import Runs, SearchRecord, Status, now_ms
from search.store import SERVER, database_of, sqlite_uri

WAITS_SECONDS = (1.0, 5.0, 15.0)  # before each further try at a busy database; SQLite itself waits up to 20 s in each


# --------------------------------------------------------------------------------------------------------------- store


def store_fault(uri: str) -> str | None:
    """Why nothing can be logged to `uri` now, as a sentence; None where all is well, or a database is yet to be made."""
    if not uri.startswith(SERVER):
        database = database_of(uri)
        if database.is_dir():
            return f"{database} is a folder; an MLflow store is a file in it: {sqlite_uri(database / 'mlflow.db')}"
        if database.exists():
            with database.open("rb") as file:
                if file.read(15) not in (b"SQLite format 3", b""):
                    return f"{database} is no SQLite database, so MLflow cannot log there."
        return None
    _quiet()
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:  # one short try; the client itself would try for minutes
        endpoint, server = "/api/2.0/mlflow/experiments/search", get_default_host_creds(uri)
        answer = http_request(
            server, endpoint, "GET", max_retries=0, timeout=10, raise_on_status=False, params={"max_results": 1}
        )
    except MlflowException as error:
        return f"No MLflow server answers at {uri} ({_root_cause(error)}). Start it, or name another store with --tracking-uri."
    if answer.status_code in (401, 403):
        return f"The MLflow server at {uri} lets nobody in without MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
    if answer.status_code != 200 or "json" not in answer.headers.get("Content-Type", ""):
        return f"What answers at {uri} is no MLflow server (HTTP {answer.status_code} for {endpoint})."
    return None


def _root_cause(error: BaseException) -> str:
    """What the system said at the bottom of a chain of errors: `Connection refused`."""
    said = type(error).__name__
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            said = inner.strerror
        inner = inner.__cause__ or inner.__context__
    return said


def prepare_store(uri: str) -> None:
    """Creates the database of `uri` if there is none; it appears whole or not at all, and an existing one is left alone.

    MLflow takes 4 s to lay out a fresh database; a process killed meanwhile leaves a file that never opens again, and two at
    once trip over each other. So it is made under a name of our own, then linked: who comes second keeps the first one's.
    """
    if uri.startswith(SERVER) or (database := database_of(uri)).exists():
        return
    _quiet()
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    database.parent.mkdir(parents=True, exist_ok=True)
    fresh = database.with_name(f"{database.name}-new-{os.getpid()}")
    fresh.unlink(missing_ok=True)
    try:
        SqlAlchemyStore(sqlite_uri(fresh), _artifacts(uri).as_uri()).engine.dispose()
        try:
            os.link(fresh, database)
        except FileExistsError:
            pass  # another process was first, and its store may hold runs already
        except OSError:  # a file system without hard links
            os.replace(fresh, database)
    finally:
        fresh.unlink(missing_ok=True)


def ui_command(uri: str, folder: Path) -> str:
    """The line that, typed in `folder`, opens this store at http://127.0.0.1:5000 (5001 on macOS, where AirPlay holds 5000).

    Always with the store's address: a bare `mlflow ui` prefers an old `mlruns/`. Of a server, its own address.
    """
    if uri.startswith(SERVER):
        return uri
    port = 5001 if sys.platform == "darwin" else 5000
    return f"{_program('mlflow', folder)} ui --backend-store-uri {shlex.quote(uri)} --port {port}"


def dashboard_command(journal: Path, folder: Path) -> str:
    """The line that, typed in `folder`, opens a study's journal in Optuna's own dashboard, or says what to install first."""
    path = shlex.quote(str(journal.relative_to(folder) if journal.is_relative_to(folder) else journal))
    missing = importlib.util.find_spec("optuna_dashboard") is None
    return f"{_program('optuna-dashboard', folder)} {path}" + (" (pip install optuna-dashboard)" if missing else "")


def _program(name: str, folder: Path) -> str:
    """A program by name; by its path, seen from `folder`, where the shell would not find the one of this environment."""
    program = Path(sys.executable).parent / name
    if program.exists() and shutil.which(name) != str(program):
        name = str(program.relative_to(folder) if program.is_relative_to(folder) else program)
    return shlex.quote(name)


def _artifacts(uri: str) -> Path:
    return database_of(uri).parent / "mlartifacts"


def _quiet() -> None:
    """Before MLflow is imported: no telemetry, no progress bars; its and alembic's notes are not for the search's terminal."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # a line a run, where the store is a server
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import mlflow  # noqa: F401  its import sets up logging, which is then turned down

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # prints the traceback of what it raises


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
