"""The runs in MLflow: one parent run per search, one child run per trial, recognised by their tags.

All calls of MLflow's client are in this file; the thread of a `Tracker` makes them. Each method of `Runs` may be repeated after
it failed half-way. `--resume` repeats all of them, at the cost of a few calls per trial, not one per metric.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import math
import sqlite3
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from minbert_core.clock import now_ms
from search.environment import git_commit
from search.tracking.store import SERVER, artifacts_folder, database_of

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Experiment, Run

Status = Literal["FINISHED", "FAILED", "KILLED"]  # FAILED: a fault. KILLED: by the user. A trial stopped at a rung is FINISHED
Record = Mapping[str, Any]  # kind, step, examples, time_ms, seconds, and metrics under their final names

MAX_METRICS, MAX_PARAMS = 1000, 100  # MLflow's limits for one batch; tags count as params
MAX_PARAM_LENGTH, MAX_TAG_LENGTH = 6000, 8000  # in characters; a note is a tag
DIGEST_LENGTH = 12  # of a data set's sha256; MLflow keeps 36 characters, and its own digests have 8
NOT_METRICS = {"kind", "step", "examples", "time_ms", "stage"}


@dataclass(frozen=True)
class SearchRecord:
    """A search as a whole, as MLflow records it."""

    uri: str
    name: str
    note: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    datasets: Mapping[str, str] = field(default_factory=dict)  # name -> sha256, e.g. "sst-train"
    num_rows: Mapping[str, int] = field(default_factory=dict)  # name -> rows of a data set, if known
    artifact_files: Sequence[Path] = ()
    resume: bool = False
    search_id: str | None = None  # distinguishes searches of one name on a server that many log to

    @property
    def artifacts(self) -> str | None:
        """The address of the folder for artifacts, or None if the server chooses it."""
        return None if self.uri.startswith(SERVER) else artifacts_folder(self.uri).as_uri()

    @property
    def all_tags(self) -> dict[str, str]:
        """The tags, together with those of the data sets and of the id."""
        own_id = {} if self.search_id is None else {"search_id": self.search_id}
        return {**self.tags, **{f"data/{name}": digest for name, digest in self.datasets.items()}, **own_id}


@dataclass
class _Run:
    """A run of this search, with what MLflow already holds of it."""

    id: str
    params: dict[str, str] = field(default_factory=dict)
    last_steps: dict[str, int] = field(default_factory=dict)  # metric -> step of its last point
    has_datasets: bool = False
    ended: bool = False


class Runs:
    """The parent run of a search and its children."""

    def __init__(self, search: SearchRecord) -> None:
        self.search = search
        self.source = _source_tags() | {key: value for key, value in search.tags.items() if key.startswith("mlflow.source")}
        self.parent: _Run | None = None
        self.children: dict[int, _Run] = {}

    def open(self) -> None:
        """Find the experiment and the runs of a resumed search; create those that do not exist."""
        from mlflow import MlflowClient

        search = self.search
        self.client = MlflowClient(tracking_uri=search.uri)
        self.experiment = self._experiment()
        if self.parent is None and search.resume:
            query = f"tags.search = '{search.name}' and tags.role = 'search'"
            if search.search_id is not None:
                query += f" and tags.search_id = '{search.search_id}'"
            if parents := self._find(query, "start_time DESC"):
                self.parent = self._known(parents[0])
                for run in reversed(self._find(f"tags.`mlflow.parentRunId` = '{self.parent.id}'", "start_time DESC")):
                    if number := run.data.tags.get("trial_number"):
                        self.children.setdefault(int(number), self._known(run))  # of several with one number, the oldest
        if self.parent is None:
            tags = {"search": search.name, "role": "search"}
            self.parent = self._create(search.name, tags, now_ms())
        else:
            self.client.update_run(self.parent.id, status="RUNNING")
        tags = {key: str(value)[:MAX_TAG_LENGTH] for key, value in (self.source | search.all_tags).items()}
        self._write(self.parent, search.params, tags)
        self._log_datasets(self.parent)
        self.note(search.note)
        for file in search.artifact_files:
            self.client.log_artifact(self.parent.id, str(file))

    def trial_started(
        self, number: int, name: str, params: dict[str, Any], config_file: Path, tags: dict[str, str], time_ms: int
    ) -> None:
        """Create the child run of a trial, or set the existing one to RUNNING again.

        name, params, tags and time_ms, the trial's start, are used only for a new run.
        """
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
        self._log_datasets(run)
        self.client.log_artifact(run.id, str(config_file))

    def records(self, number: int, records: Iterable[Record]) -> None:
        """Log the measurements of a started trial, at x = examples and the time they were taken, without non-finite values."""
        self._measure(self.children[number], [point for record in records for point in _points(record)])

    def trial_ended(self, number: int, status: Status, stop_reason: str, time_ms: int) -> None:
        """End a trial's run at time_ms."""
        run = self.children[number]
        self.client.set_tag(run.id, "stop_reason", stop_reason[:MAX_TAG_LENGTH])
        run.ended = True
        self.client.set_terminated(run.id, status, end_time=time_ms)

    def pretrained(self, records: Iterable[Record]) -> None:
        """Log the further pretraining before the trials to the parent: `pretrain/3f2a9c01/mlm_loss` at x = texts."""
        assert self.parent is not None
        for record in records:
            prefix = f"pretrain/{record['key'][:8]}/"
            points = _points(record)
            self._measure(self.parent, [(name.replace("pretrain/", prefix), value, x, ms) for name, value, x, ms in points])

    def best(self, step: int, metrics: dict[str, float], time_ms: int) -> None:
        """Log the best scores so far to the parent; step is the number of trials that have ended."""
        assert self.parent is not None
        self._measure(self.parent, [(key, value, step, time_ms) for key, value in metrics.items()])

    def note(self, markdown: str) -> None:
        """Replace the description on the pages of the experiment and of the parent run."""
        assert self.parent is not None
        self.client.set_tag(self.parent.id, "mlflow.note.content", markdown[:MAX_TAG_LENGTH])
        self.client.set_experiment_tag(self.experiment, "mlflow.note.content", markdown[:MAX_TAG_LENGTH])

    def close(self, status: Status) -> None:
        """End the parent run and the trials that are still open."""
        assert self.parent is not None
        for number, run in self.children.items():
            if not run.ended:
                self.trial_ended(number, "KILLED" if status == "KILLED" else "FAILED", "the search ended before it", now_ms())
        self.client.set_terminated(self.parent.id, status)

    # ---- MLflow's calls

    def _experiment(self) -> str:
        """Return the id of the search's experiment, which is created or restored from the bin if necessary."""
        experiment = self.client.get_experiment_by_name(self.search.name)
        if experiment is None:
            artifacts = self.search.artifacts and f"{self.search.artifacts}/{self.search.name}"
            # without a kind, the experiment's page opens with the tools for language models
            kind = {"mlflow.experimentKind": "custom_model_development"}
            return str(self.client.create_experiment(self.search.name, artifact_location=artifacts, tags=kind))
        if experiment.lifecycle_stage == "deleted":
            self.client.restore_experiment(experiment.experiment_id)
        if self.search.artifacts is not None:
            self._follow_move(experiment, f"{self.search.artifacts}/{self.search.name}")
        return str(experiment.experiment_id)

    def _follow_move(self, experiment: Experiment, new: str) -> None:
        """Correct the folder of artifacts in a database that was moved; the old folder may be on another machine.

        MLflow has no call for this.
        """
        number, old = experiment.experiment_id, str(experiment.artifact_location)
        own_layout = "/".join(new.split("/")[-2:])  # any other layout was set up by the user and stays
        if old == new or not old.endswith(own_layout):
            return
        with contextlib.closing(sqlite3.connect(database_of(self.search.uri), timeout=20)) as database, database:
            of = "WHERE experiment_id = ?"
            database.execute(f"UPDATE experiments SET artifact_location = ? {of}", (new, number))
            database.execute(f"UPDATE runs SET artifact_uri = replace(artifact_uri, ?, ?) {of}", (old, new, number))

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

    def _known(self, run: Run) -> _Run:
        """Convert a run that MLflow has found."""
        last_steps = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        has_datasets = run.inputs is not None and len(run.inputs.dataset_inputs) == len(self.search.datasets)
        return _Run(run.info.run_id, dict(run.data.params), last_steps, has_datasets, ended="stop_reason" in run.data.tags)

    def _create(self, name: str, tags: dict[str, str], time_ms: int) -> _Run:
        """Create a run that starts at time_ms."""
        tags = {key: value[:MAX_TAG_LENGTH] for key, value in (self.source | tags).items()}
        return _Run(self.client.create_run(self.experiment, start_time=time_ms, tags=tags, run_name=name).info.run_id)

    def _write(self, run: _Run, params: Mapping[str, Any], tags: dict[str, str]) -> None:
        """Write the params that the run lacks, and the tags.

        A param in MLflow cannot be changed, so the new value of one that did change (`--trials`) becomes a tag.
        """
        from mlflow.entities import Param, RunTag

        texts = {key: str(value)[:MAX_PARAM_LENGTH] for key, value in params.items()}
        new = {key: text for key, text in texts.items() if key not in run.params}
        tags = tags | {key: text for key, text in texts.items() if run.params.get(key, text) != text}
        for chunk in _chunks([Param(key, text) for key, text in new.items()], MAX_PARAMS):
            self.client.log_batch(run.id, params=chunk)
        run.params |= new
        for chunk in _chunks([RunTag(key, text) for key, text in tags.items()], MAX_PARAMS):
            self.client.log_batch(run.id, tags=chunk)

    def _log_datasets(self, run: _Run) -> None:
        """Fill the column *Dataset* in the table of runs, with one data set per task and split."""
        if self.search.datasets and not run.has_datasets:
            self.client.log_inputs(run.id, datasets=_dataset_inputs(self.search.datasets, self.search.num_rows))
        run.has_datasets = True

    def _measure(self, run: _Run, points: list[tuple[str, float, int, int]]) -> None:
        """Log points (key, value, step, time_ms), ordered by step within each key. The first point at a (key, step) stays.

        A resumed trial repeats its last minutes. MLflow would drop a repeated point only if value and time were equal too;
        otherwise the curve would run back and forth. Batches are written in order and whole, so a run holds all points of a key
        up to its last one, which MLflow reports.
        """
        from mlflow.entities import Metric

        last_steps, new = dict(run.last_steps), []
        for key, value, step, time_ms in points:
            if math.isfinite(value) and step > last_steps.get(key, -1):
                last_steps[key] = step
                new.append(Metric(key, float(value), time_ms, step))
        for chunk in _chunks(new, MAX_METRICS):
            self.client.log_batch(run.id, metrics=chunk)
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


def _points(record: Record) -> list[tuple[str, float, int, int]]:
    """Return the measurements of a record as (key, value, x, time_ms).

    x is the number of examples. In further pretraining, before the trial's own examples begin, it is the number of texts.
    """
    names, x = [key for key in record if key not in NOT_METRICS], record["examples"]
    if record["kind"] == "pretrain":
        names, x = [key for key in names if key.startswith("pretrain/")], record["pretrain/examples"]
    return [(key, record[key], x, record["time_ms"]) for key in names]


def _chunks(items: list[Any], size: int) -> list[list[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
