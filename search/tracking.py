"""MLflow, written by the driver alone: an experiment a search, one parent run, one child run a trial.

The driver calls the methods of `Tracker`, which only put an event on a queue; one background thread imports MLflow (2.5 s),
owns the client and writes. Nothing here raises into the search: if the store fails, the thread ends and `Tracker.error` says
why. Everything may be told twice (after a failure, or by `--resume`): runs are found again by their tags, params are written
once, and of a metric the first value at a step stays.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import math
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from mlflow.entities import Run

Status = Literal["FINISHED", "FAILED", "KILLED"]  # FAILED: a fault. KILLED: the user. What the scheduler stopped is FINISHED
Record = Mapping[str, Any]  # kind, step, examples, time_ms, seconds, and metrics under their final names

WAITS_SECONDS = (1.0, 5.0, 15.0)  # before each further try at a busy database; SQLite itself waits up to 20 s in each
MAX_METRICS, MAX_PARAMS = 1000, 100  # MLflow's limits for one batch; tags count as params
MAX_PARAM_LENGTH, MAX_TAG_LENGTH = 6000, 8000  # in characters; a note is a tag
NOT_METRICS = {"kind", "step", "examples", "time_ms"}


# --------------------------------------------------------------------------------------------------------------- store


def store_uri(runs: Path) -> str:
    """The store of the searches in the folder `runs`: `mlflow.db` beside it, that is where the command was typed."""
    return f"sqlite:///{(runs.absolute().parent / 'mlflow.db').as_posix()}"


def prepare_store(uri: str) -> None:
    """Creates the database of `uri` if there is none; it appears whole or not at all, and an existing one is left alone.

    MLflow takes 4 s to lay out a fresh database; a process killed meanwhile leaves a file that never opens again, and two at
    once trip over each other. So it is made under a name of our own, then linked: who comes second keeps the first one's.
    """
    database = _database(uri)
    if database.exists():
        return
    _quiet()
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    database.parent.mkdir(parents=True, exist_ok=True)
    fresh = database.with_name(f"{database.name}-new-{os.getpid()}")
    fresh.unlink(missing_ok=True)
    try:
        SqlAlchemyStore(f"sqlite:///{fresh.as_posix()}", _artifacts(uri).as_uri()).engine.dispose()
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

    Always with the store's address: a bare `mlflow ui` prefers an old `mlruns/`. `mlflow` gets its path where the shell would
    not find the one of this environment.
    """
    program = Path(sys.executable).parent / "mlflow"
    name = "mlflow"
    if program.exists() and shutil.which("mlflow") != str(program):
        name = str(program.relative_to(folder) if program.is_relative_to(folder) else program)
    port = 5001 if sys.platform == "darwin" else 5000
    return f"{shlex.quote(name)} ui --backend-store-uri {shlex.quote(uri)} --port {port}"


def _database(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///"))


def _artifacts(uri: str) -> Path:
    return _database(uri).parent / "mlartifacts"


def _quiet() -> None:
    """Before MLflow is imported: no telemetry, no progress bars; its and alembic's notes are not for the search's terminal."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import mlflow  # noqa: F401  its import sets up logging, which is then turned down

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # prints the traceback of what it raises


# ------------------------------------------------------------------------------------------------------------- tracker


@dataclass(frozen=True)
class _Search:
    uri: str
    name: str
    note: str
    tags: dict[str, str]
    params: dict[str, Any]
    artifact_files: list[Path]
    resume: bool


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
    ) -> None:
        tags = tags | {f"data/{name}": digest for name, digest in datasets.items()}
        self._search = _Search(uri, search, note, tags, params, artifact_files, resume)
        self._events: SimpleQueue[Callable[[_Runs], None] | None] = SimpleQueue()
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
        start_ms = time_ms or _now_ms()
        self._tell(lambda runs: runs.trial_started(number, name, params, config_file, tags, start_ms))

    def records(self, number: int, records: list[dict[str, Any]]) -> None:
        """Measurements of a started trial, at x = examples and the time they were taken; what is not finite is left out."""
        self._tell(lambda runs: runs.records(number, records))

    def trial_ended(self, number: int, status: Status, stop_reason: str, time_ms: int) -> None:
        self._tell(lambda runs: runs.trial_ended(number, status, stop_reason, time_ms))

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

    def _tell(self, event: Callable[[_Runs], None]) -> None:
        if self.error is None:
            self._events.put(event)

    def _serve(self) -> None:
        try:
            prepare_store(self._search.uri)
            runs = _Runs(self._search)
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


# -------------------------------------------------------------------------------------------- what the thread does


@dataclass
class _Run:
    """A run of ours, and what it holds already."""

    id: str
    params: dict[str, str] = field(default_factory=dict)
    points: set[tuple[str, int]] = field(default_factory=set)  # (metric, step)
    ended: bool = False


class _Runs:
    """The parent and its children. Each method may be repeated after it failed half-way."""

    def __init__(self, search: _Search) -> None:
        self.search = search
        self.source = _source_tags() | {key: value for key, value in search.tags.items() if key.startswith("mlflow.source")}
        self.parent: _Run | None = None
        self.children: dict[int, _Run] = {}

    def open(self) -> None:
        from mlflow import MlflowClient

        search = self.search
        self.client = MlflowClient(tracking_uri=search.uri)
        self.experiment = self._experiment()
        if self.parent is None and search.resume:
            found = self._find(f"tags.search = '{search.name}' and tags.role = 'search'", "start_time DESC")
            if found:
                self.parent = self._known(found[0])
                for run in reversed(self._find(f"tags.`mlflow.parentRunId` = '{self.parent.id}'", "start_time DESC")):
                    if number := run.data.tags.get("trial_number"):
                        self.children.setdefault(int(number), self._known(run))  # the oldest of a number is the one
        if self.parent is None:
            tags = {"search": search.name, "role": "search"}
            self.parent = self._create(search.name, tags, _now_ms())
        else:
            self.client.update_run(self.parent.id, status="RUNNING")
        tags = {key: str(value)[:MAX_TAG_LENGTH] for key, value in (self.source | search.tags).items()}
        self._write(self.parent, search.params, tags)
        self.note(search.note)
        for file in search.artifact_files:
            self.client.log_artifact(self.parent.id, str(file))

    def trial_started(
        self, number: int, name: str, params: dict[str, Any], config_file: Path, tags: dict[str, str], time_ms: int
    ) -> None:
        run = self.children.get(number)
        if run is None:
            assert self.parent is not None
            own = {"search": self.search.name, "role": "trial", "trial_number": str(number)}
            run = self._create(name, tags | own | {"mlflow.parentRunId": self.parent.id}, time_ms)
            self.children[number] = run
        else:
            self.client.update_run(run.id, status="RUNNING")
            if run.ended:
                self.client.delete_tag(run.id, "stop_reason")
                run.ended = False
        self._write(run, params, {})
        self.client.log_artifact(run.id, str(config_file))

    def records(self, number: int, records: Iterable[Record]) -> None:
        self._measure(
            self.children[number],
            [
                (key, value, record["examples"], record["time_ms"])
                for record in records
                for key, value in record.items()
                if key not in NOT_METRICS
            ],
        )

    def trial_ended(self, number: int, status: Status, stop_reason: str, time_ms: int) -> None:
        run = self.children[number]
        self.client.set_tag(run.id, "stop_reason", stop_reason[:MAX_TAG_LENGTH])
        run.ended = True
        self.client.set_terminated(run.id, status, end_time=time_ms)

    def best(self, step: int, metrics: dict[str, float], time_ms: int) -> None:
        assert self.parent is not None
        self._measure(self.parent, [(key, value, step, time_ms) for key, value in metrics.items()])

    def note(self, markdown: str) -> None:
        assert self.parent is not None
        self.client.set_tag(self.parent.id, "mlflow.note.content", markdown[:MAX_TAG_LENGTH])
        self.client.set_experiment_tag(self.experiment, "mlflow.note.content", markdown[:MAX_TAG_LENGTH])

    def close(self, status: Status) -> None:
        assert self.parent is not None
        for number, run in self.children.items():
            if not run.ended:
                self.trial_ended(number, "KILLED" if status == "KILLED" else "FAILED", "the search ended before it", _now_ms())
        self.client.set_terminated(self.parent.id, status)

    # ---- MLflow's calls

    def _experiment(self) -> str:
        """The id of the search's experiment: made, taken as it is, or taken back from the bin."""
        experiment = self.client.get_experiment_by_name(self.search.name)
        if experiment is None:
            artifacts = _artifacts(self.search.uri) / self.search.name
            kind = {"mlflow.experimentKind": "custom_model_development"}  # else its page opens on the tools for language models
            return str(self.client.create_experiment(self.search.name, artifact_location=artifacts.as_uri(), tags=kind))
        if experiment.lifecycle_stage == "deleted":
            self.client.restore_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)

    def _find(self, query: str, order: str) -> list[Run]:
        runs: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs([self.experiment], query, max_results=1000, order_by=[order], page_token=token)
            runs.extend(page)
            token = page.token
            if not token:
                return runs

    def _known(self, run: Run) -> _Run:
        run_id = run.info.run_id
        points = {(key, point.step) for key in run.data.metrics for point in self.client.get_metric_history(run_id, key)}
        return _Run(run_id, dict(run.data.params), points, ended="stop_reason" in run.data.tags)

    def _create(self, name: str, tags: dict[str, str], time_ms: int) -> _Run:
        tags = {key: value[:MAX_TAG_LENGTH] for key, value in (self.source | tags).items()}
        return _Run(self.client.create_run(self.experiment, start_time=time_ms, tags=tags, run_name=name).info.run_id)

    def _write(self, run: _Run, params: dict[str, Any], tags: dict[str, str]) -> None:
        """Params that the run lacks, and tags. MLflow never lets go of a param, so what has changed (`--trials`) is a tag."""
        from mlflow.entities import Param, RunTag

        texts = {key: str(value)[:MAX_PARAM_LENGTH] for key, value in params.items()}
        new = {key: text for key, text in texts.items() if key not in run.params}
        tags = tags | {key: text for key, text in texts.items() if run.params.get(key, text) != text}
        for chunk in _chunks([Param(key, text) for key, text in new.items()], MAX_PARAMS):
            self.client.log_batch(run.id, params=chunk)
        run.params |= new
        for chunk in _chunks([RunTag(key, text) for key, text in tags.items()], MAX_PARAMS):
            self.client.log_batch(run.id, tags=chunk)

    def _measure(self, run: _Run, points: list[tuple[str, float, int, int]]) -> None:
        """Points (key, value, step, time_ms). The first at a (key, step) stays: a trial that goes on repeats its last minutes.

        MLflow itself drops a point only if value and time repeat too, else the curve would go back and forth.
        """
        from mlflow.entities import Metric

        new: dict[tuple[str, int], Metric] = {}
        for key, value, step, time_ms in points:
            if math.isfinite(value) and (key, step) not in run.points:
                new.setdefault((key, step), Metric(key, float(value), time_ms, step))
        for chunk in _chunks(list(new.values()), MAX_METRICS):
            self.client.log_batch(run.id, metrics=chunk)
        run.points |= new.keys()


def _source_tags() -> dict[str, str]:
    """Who and what made a run: the columns User, Source and Version, which MLflow's client leaves empty."""
    tags = {"mlflow.source.name": sys.argv[0], "mlflow.source.type": "LOCAL"}
    with contextlib.suppress(KeyError, OSError):  # a container whose user has no name
        tags["mlflow.user"] = getpass.getuser()
    here = Path(__file__).resolve()
    with contextlib.suppress(OSError, subprocess.CalledProcessError):  # no git, or no checkout
        # asked first, because an installed copy may lie in a checkout of something else
        subprocess.run(["git", "ls-files", "--error-unmatch", here.name], cwd=here.parent, check=True, capture_output=True)
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here.parent, check=True, capture_output=True, text=True)
        tags["mlflow.source.git.commit"] = head.stdout.strip()
    return tags


def _chunks(items: list[Any], size: int) -> list[list[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
