"""The writer of a search's runs: it asks MLflow once what it holds, and then writes only what it lacks.

All calls of MLflow's client are in this file; the thread of a `Tracker` makes them. Any call may fail half-way. The writer then
forgets what it knows, asks again and writes the rest: runs are recognised by their tags, params are written once, and the
first value of a metric at a step stays.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minbert_core.clock import now_ms
from search.environment import git_commit
from search.tracking.experiment import find_experiment
from search.tracking.runs import DIGEST_LENGTH, NOT_ENDED, Point, Runs, TrialRun, end_of_open
from search.tracking.store import SERVER, database_of, prepare_store

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Run

MAX_METRICS, MAX_PARAMS = 1000, 100  # MLflow's limits for one batch; tags count as params
MAX_PARAM_LENGTH, MAX_TAG_LENGTH = 6000, 8000  # in characters; a note is a tag
NOTE, CONFIG = "mlflow.note.content", "config_sha256"  # tags


@dataclass
class _Held:
    """A run, as MLflow holds it."""

    id: str
    status: str = "RUNNING"
    ended_ms: int | None = None
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    last_steps: dict[str, int] = field(default_factory=dict)  # metric -> step of its last point
    has_datasets: bool = False


class Writer:
    """The differences between `runs` and MLflow, written one run at a time."""

    def __init__(self, runs: Runs) -> None:
        self.runs, self.search = runs, runs.search
        own = {key: value for key, value in runs.search.tags.items() if key.startswith("mlflow.source")}
        self.source = _source_tags() | own
        self.is_open = False
        self.num_written = 0  # grows with every call that succeeded; shows that the store answers
        self.files_are_sent = False  # those of the parent
        self.results_sent: set[Path] = set()
        self.database: tuple[int, int] | None = None

    @property
    def is_behind(self) -> bool:
        """Whether MLflow lacks something, as far as the writer knows."""
        return not self.is_open or bool(self.runs.changed) or self.runs.parent_changed

    def write_next(self) -> None:
        """Write one thing that MLflow lacks: its part of the search, a trial, or the ends of all runs after an interrupt."""
        if self._database_was_replaced():
            self.forget()
        if not self.is_open:
            self._open()
        elif self.runs.status == "KILLED" and self.parent.status != "KILLED":
            self._write_ends()
        elif self.runs.changed and not self._parent_is_next():
            number = next(iter(self.runs.changed))
            self._write_trial(number, self.runs.trials[number])
            del self.runs.changed[number]
        else:
            self._write_parent()
            self.runs.parent_changed = False
        self.num_written += 1

    def _parent_is_next(self) -> bool:
        """Return whether the parent is to be written before the trials: always, but for its end."""
        return self.runs.parent_changed and self.runs.status is None

    def forget(self) -> None:
        """Ask again what MLflow holds before the next write."""
        self.is_open = False
        self.runs.change_all()

    # ---- reading

    def _database_was_replaced(self) -> bool:
        """Return whether the database file is another one than at the last write; create it if it was deleted."""
        if self.search.uri.startswith(SERVER):
            return False
        prepare_store(self.search.uri)
        found, before = database_of(self.search.uri).stat(), self.database
        self.database = found.st_dev, found.st_ino
        return before is not None and before != self.database

    def _open(self) -> None:
        """Find the experiment and the runs of this search; create the experiment and the parent if they do not exist."""
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=self.search.uri)
        self.experiment, self.has_moved = find_experiment(self.client, self.search)
        self.children: dict[int, _Held] = {}
        if (parent := self._find_parent()) is not None:
            self.parent = self._held(parent)
            for run in reversed(self._find(f"tags.`mlflow.parentRunId` = '{self.parent.id}'", "start_time DESC")):
                if number := run.data.tags.get("trial_number"):
                    self.children.setdefault(int(number), self._held(run))  # of several with one number, the oldest
        else:
            own_id = {} if self.search.search_id is None else {"search_id": self.search.search_id}
            tags = {"search": self.search.name, "role": "search"} | own_id
            self.parent = self._create(self.search.name, tags, self.runs.began_ms)
            self.files_are_sent = False
            self.results_sent = set()
        self.is_open = True

    def _find_parent(self) -> Run | None:
        """Find the newest parent run of the search that is resumed, or the one that this process has begun."""
        query = f"tags.search = '{self.search.name}' and tags.role = 'search'"
        if self.search.search_id is not None:
            query += f" and tags.search_id = '{self.search.search_id}'"
        if not self.search.resume:
            query += f" and attributes.start_time = {self.runs.began_ms}"
        return next(iter(self._find(query, "start_time DESC")), None)

    def _find(self, query: str, order: str) -> list[Run]:
        """Return all runs of the experiment that match a query, page after page."""
        runs: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs([self.experiment], query, max_results=1000, order_by=[order], page_token=token)
            runs.extend(page)
            token = page.token
            if not token:
                return runs

    def _held(self, run: Run) -> _Held:
        """Convert a run that MLflow has found."""
        last_steps = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        has_datasets = run.inputs is not None and len(run.inputs.dataset_inputs) == len(self.search.datasets)
        tags, info = dict(run.data.tags), run.info
        return _Held(info.run_id, info.status, info.end_time, dict(run.data.params), tags, last_steps, has_datasets)

    # ---- writing

    def _create(self, name: str, tags: dict[str, str], time_ms: int) -> _Held:
        """Create a run that starts at time_ms."""
        tags = {key: value[:MAX_TAG_LENGTH] for key, value in (self.source | tags).items()}
        run = self.client.create_run(self.experiment, start_time=time_ms, tags=tags, run_name=name)
        return _Held(run.info.run_id, tags=tags)

    def _write_parent(self) -> None:
        """Write what the parent run lacks; its end comes last."""
        runs, parent = self.runs, self.parent
        if runs.status is None and parent.status != "RUNNING":
            self._resume(parent)
        tags = {key: str(value) for key, value in (self.source | self.search.all_tags).items()}
        self._write(parent, self.search.params, tags)
        self._log_datasets(parent)
        if parent.tags.get(NOTE) != runs.text[:MAX_TAG_LENGTH]:
            self.client.set_experiment_tag(self.experiment, NOTE, runs.text[:MAX_TAG_LENGTH])
            self._tag(parent, {NOTE: runs.text})
        if not self.files_are_sent:
            for file in self.search.artifact_files:
                self.client.log_artifact(parent.id, str(file))
            self.files_are_sent = True
        for path in runs.results - self.results_sent:
            self._send(parent, path)
            self.results_sent.add(path)
        self._measure(parent, runs.points)
        if runs.status is not None:
            self._end_unknown()
            if parent.status != runs.status:
                self._end(parent, runs.status, now_ms())

    def _send(self, run: _Held, path: Path) -> None:
        """Log a file as an artifact, or a folder with its name."""
        if path.is_dir():
            self.client.log_artifacts(run.id, str(path), path.name)
        else:
            self.client.log_artifact(run.id, str(path))

    def _write_trial(self, number: int, wanted: TrialRun) -> None:
        """Write what the run of a trial lacks; its end comes last."""
        held = self.children.get(number)
        if held is None:
            own = {"search": self.search.name, "role": "trial", "trial_number": str(number)}
            tags = wanted.tags | own | {"mlflow.parentRunId": self.parent.id}
            held = self.children[number] = self._create(wanted.name, tags, wanted.started_ms)
        if wanted.status == "RUNNING" and held.status != "RUNNING":
            self._resume(held)
        digest = wanted.config_digest
        if digest and (self.has_moved or held.tags.get(CONFIG) != digest):
            self.client.log_artifact(held.id, str(wanted.config_file))
        self._write(held, wanted.params, {CONFIG: digest} if digest else {})
        self._log_datasets(held)
        self._measure(held, wanted.points())
        self._end_trial(held, wanted)

    def _write_ends(self) -> None:
        """End all runs after an interrupt, before anything else is written: the process may have only seconds left."""
        for number in self.runs.changed:
            if (held := self.children.get(number)) is not None:
                self._end_trial(held, self.runs.trials[number])
        self._end(self.parent, "KILLED", now_ms())

    def _end_trial(self, held: _Held, wanted: TrialRun) -> None:
        if wanted.status == "RUNNING":
            return
        if (held.status, held.ended_ms) != (wanted.status, wanted.ended_ms):
            self._end(held, wanted.status, wanted.ended_ms)
        self._tag(held, {"stop_reason": wanted.stop_reason})

    def _end_unknown(self) -> None:
        """End the trials that another process has left open and this one does not know."""
        assert self.runs.status is not None
        for number, held in self.children.items():
            if number not in self.runs.trials and held.status == "RUNNING":
                self._end(held, end_of_open(self.runs.status), now_ms())
                self._tag(held, {"stop_reason": NOT_ENDED})

    def _end(self, held: _Held, status: str, time_ms: int) -> None:
        self.client.set_terminated(held.id, status, end_time=time_ms)
        held.status, held.ended_ms = status, time_ms
        self.num_written += 1

    def _resume(self, held: _Held) -> None:
        """Set an ended run to RUNNING again."""
        self.client.update_run(held.id, status="RUNNING")
        held.status, held.ended_ms = "RUNNING", None
        if held.tags.pop("stop_reason", None) is not None:
            self.client.delete_tag(held.id, "stop_reason")

    def _write(self, run: _Held, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Write the params and tags that the run lacks.

        A param in MLflow cannot be changed, so the new value of one that did change (`--trials`) becomes a tag.
        """
        from mlflow.entities import Param

        texts = {key: str(value)[:MAX_PARAM_LENGTH] for key, value in params.items()}
        new = {key: text for key, text in texts.items() if key not in run.params}
        changed = {key: text for key, text in texts.items() if run.params.get(key, text) != text}
        for chunk in _chunks([Param(key, text) for key, text in new.items()], MAX_PARAMS):
            self.client.log_batch(run.id, params=chunk)
        run.params |= new
        self._tag(run, {**tags, **changed})

    def _tag(self, run: _Held, tags: Mapping[str, str]) -> None:
        """Write the tags that the run lacks, or holds with another value."""
        from mlflow.entities import RunTag

        texts = {key: text[:MAX_TAG_LENGTH] for key, text in tags.items()}
        new = {key: text for key, text in texts.items() if run.tags.get(key) != text}
        for chunk in _chunks([RunTag(key, text) for key, text in new.items()], MAX_PARAMS):
            self.client.log_batch(run.id, tags=chunk)
        run.tags |= new

    def _log_datasets(self, run: _Held) -> None:
        """Fill the column *Dataset* in the table of runs, with one data set per task and split."""
        if self.search.datasets and not run.has_datasets:
            self.client.log_inputs(run.id, datasets=_dataset_inputs(self.search.datasets, self.search.num_rows))
        run.has_datasets = True

    def _measure(self, run: _Held, points: list[Point]) -> None:
        """Log points (key, value, step, time_ms), ordered by step within each key. The first point at a (key, step) stays.

        A resumed trial repeats its last minutes. MLflow would drop a repeated point only if value and time were equal too;
        otherwise the curve would run back and forth. Batches are written in order and whole, so a run holds all points of a key
        up to its last one, which MLflow reports. The scores come first, and so does dev/score in every list of MLflow's pages.
        """
        from mlflow.entities import Metric

        last_steps, new = dict(run.last_steps), []
        for key, value, step, time_ms in points:
            if step > last_steps.get(key, -1) and math.isfinite(value):
                last_steps[key] = step
                new.append(Metric(key, float(value), time_ms, step))
        new.sort(key=lambda metric: not metric.key.endswith("/score"))  # MLflow colours charts by a run's first metric
        for chunk in _chunks(new, MAX_METRICS):
            self.client.log_batch(run.id, metrics=chunk)
            self.num_written += 1
        run.last_steps = last_steps


def _dataset_inputs(datasets: Mapping[str, str], num_rows: Mapping[str, int]) -> list[DatasetInput]:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = []
    for name, sha256 in datasets.items():
        profile = json.dumps({"num_rows": num_rows[name]}) if name in num_rows else None
        dataset = Dataset(name, sha256[:DIGEST_LENGTH], "local", json.dumps({"sha256": sha256}), profile=profile)
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", name.rpartition("-")[2])]))
    return inputs


def _source_tags() -> dict[str, str]:
    """Return the tags for the columns User, Source and Version, which MLflow's client leaves empty."""
    tags = {"mlflow.source.name": sys.argv[0], "mlflow.source.type": "LOCAL"}
    with contextlib.suppress(KeyError, OSError):  # the user of a container may have no name
        tags["mlflow.user"] = getpass.getuser()
    if commit := git_commit().removesuffix("+changes"):
        tags["mlflow.source.git.commit"] = commit
    return tags


def _chunks(items: list[Any], size: int) -> list[list[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
