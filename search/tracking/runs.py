"""What the thread of a `Tracker` writes into MLflow: one parent run a search, one child run a trial, found again by their tags.

All calls of MLflow's client stand here. Each method of `Runs` may be repeated after it failed half-way, and all may be told
again by `--resume`: it costs a few calls a trial, not one a metric.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import math
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from minbert_core.clock import now_ms
from search.tracking.store import database_of

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Experiment, Run

Status = Literal["FINISHED", "FAILED", "KILLED"]  # FAILED: a fault. KILLED: the user. What the scheduler stopped is FINISHED
Record = Mapping[str, Any]  # kind, step, examples, time_ms, seconds, and metrics under their final names

MAX_METRICS, MAX_PARAMS = 1000, 100  # MLflow's limits for one batch; tags count as params
MAX_PARAM_LENGTH, MAX_TAG_LENGTH = 6000, 8000  # in characters; a note is a tag
DIGEST_LENGTH = 12  # of a data set's sha256; MLflow keeps 36 characters, and its own digests have 8
NOT_METRICS = {"kind", "step", "examples", "time_ms", "stage"}


@dataclass(frozen=True)
class SearchRecord:
    """What MLflow is told of a search as a whole."""

    uri: str
    artifacts: str | None  # address of the folder for artifacts; None: where the server puts them
    name: str
    note: str
    tags: dict[str, str]
    params: dict[str, Any]
    datasets: Mapping[str, str]  # name -> sha256, e.g. "sst-train"
    num_rows: Mapping[str, int]  # name -> rows, of those known
    artifact_files: list[Path]
    resume: bool


@dataclass
class _Run:
    """A run of ours, and what it holds already."""

    id: str
    params: dict[str, str] = field(default_factory=dict)
    last_steps: dict[str, int] = field(default_factory=dict)  # metric -> step of its last point
    has_datasets: bool = False
    ended: bool = False


class Runs:
    """The parent and its children."""

    def __init__(self, search: SearchRecord) -> None:
        self.search = search
        self.source = _source_tags() | {key: value for key, value in search.tags.items() if key.startswith("mlflow.source")}
        self.parent: _Run | None = None
        self.children: dict[int, _Run] = {}

    def open(self) -> None:
        """Find the experiment and, of a resumed search, its runs; make what is not there."""
        from mlflow import MlflowClient

        search = self.search
        self.client = MlflowClient(tracking_uri=search.uri)
        self.experiment = self._experiment()
        if self.parent is None and search.resume:
            query = f"tags.search = '{search.name}' and tags.role = 'search'"
            if "search_id" in search.tags:
                query += f" and tags.search_id = '{search.tags['search_id']}'"
            found = self._find(query, "start_time DESC")
            if found:
                self.parent = self._known(found[0])
                for run in reversed(self._find(f"tags.`mlflow.parentRunId` = '{self.parent.id}'", "start_time DESC")):
                    if number := run.data.tags.get("trial_number"):
                        self.children.setdefault(int(number), self._known(run))  # the oldest of a number is the one
        if self.parent is None:
            tags = {"search": search.name, "role": "search"}
            self.parent = self._create(search.name, tags, now_ms())
        else:
            self.client.update_run(self.parent.id, status="RUNNING")
        tags = {key: str(value)[:MAX_TAG_LENGTH] for key, value in (self.source | search.tags).items()}
        self._write(self.parent, search.params, tags)
        self._log_datasets(self.parent)
        self.note(search.note)
        for file in search.artifact_files:
            self.client.log_artifact(self.parent.id, str(file))

    def trial_started(
        self, number: int, name: str, params: dict[str, Any], config_file: Path, tags: dict[str, str], time_ms: int
    ) -> None:
        """A child run, new at time_ms; or the known one, RUNNING again."""
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
        """Every measurement of the records, at x = examples and the time it was taken."""
        self._measure(self.children[number], [point for record in records for point in _points(record)])

    def trial_ended(self, number: int, status: Status, stop_reason: str, time_ms: int) -> None:
        run = self.children[number]
        self.client.set_tag(run.id, "stop_reason", stop_reason[:MAX_TAG_LENGTH])
        run.ended = True
        self.client.set_terminated(run.id, status, end_time=time_ms)

    def pretrained(self, records: Iterable[Record]) -> None:
        """What was pretrained before the trials, on the parent: `pretrain/3f2a9c01/mlm_loss` at x = texts."""
        assert self.parent is not None
        for record in records:
            own = f"pretrain/{record['key'][:8]}/"
            points = _points(record)
            self._measure(self.parent, [(name.replace("pretrain/", own), value, x, ms) for name, value, x, ms in points])

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
                self.trial_ended(number, "KILLED" if status == "KILLED" else "FAILED", "the search ended before it", now_ms())
        self.client.set_terminated(self.parent.id, status)

    # ---- MLflow's calls

    def _experiment(self) -> str:
        """The id of the search's experiment: made, taken as it is, or taken back from the bin."""
        experiment = self.client.get_experiment_by_name(self.search.name)
        if experiment is None:
            artifacts = self.search.artifacts and f"{self.search.artifacts}/{self.search.name}"
            kind = {"mlflow.experimentKind": "custom_model_development"}  # else its page opens on the tools for language models
            return str(self.client.create_experiment(self.search.name, artifact_location=artifacts, tags=kind))
        if experiment.lifecycle_stage == "deleted":
            self.client.restore_experiment(experiment.experiment_id)
        if self.search.artifacts is not None:
            self._follow_move(experiment, f"{self.search.artifacts}/{self.search.name}")
        return str(experiment.experiment_id)

    def _follow_move(self, experiment: Experiment, new: str) -> None:
        """Tell a database that was moved where its artifacts lie now: it names the old place, which may be another machine's.

        MLflow has no call for that.
        """
        number, old = experiment.experiment_id, str(experiment.artifact_location)
        own_layout = "/".join(new.split("/")[-2:])  # what somebody else has set up stays
        if old == new or not old.endswith(own_layout):
            return
        with contextlib.closing(sqlite3.connect(database_of(self.search.uri), timeout=20)) as database, database:
            of = "WHERE experiment_id = ?"
            database.execute(f"UPDATE experiments SET artifact_location = ? {of}", (new, number))
            database.execute(f"UPDATE runs SET artifact_uri = replace(artifact_uri, ?, ?) {of}", (old, new, number))

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
        last_steps = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        has_datasets = run.inputs is not None and len(run.inputs.dataset_inputs) == len(self.search.datasets)
        return _Run(run.info.run_id, dict(run.data.params), last_steps, has_datasets, ended="stop_reason" in run.data.tags)

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

    def _log_datasets(self, run: _Run) -> None:
        """The column *Dataset* of the runs' table: a data set a task and split."""
        if self.search.datasets and not run.has_datasets:
            self.client.log_inputs(run.id, datasets=_dataset_inputs(self.search.datasets, self.search.num_rows))
        run.has_datasets = True

    def _measure(self, run: _Run, points: list[tuple[str, float, int, int]]) -> None:
        """Points (key, value, step, time_ms), of each key in order of step. The first at a (key, step) stays: a trial that goes
        on repeats its last minutes.

        MLflow itself drops a point only if value and time repeat too, else the curve would go back and forth. Batches are
        written in order and whole, so a run holds all points up to the last of a key, and which it is, it says itself.
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


def _points(record: Record) -> list[tuple[str, float, int, int]]:
    """(key, value, x, time_ms) of a record; x of further pretraining is its texts: the trial's examples have not begun."""
    names, at = [key for key in record if key not in NOT_METRICS], record["examples"]
    if record["kind"] == "pretrain":
        names, at = [key for key in names if key.startswith("pretrain/")], record["pretrain/examples"]
    return [(key, record[key], at, record["time_ms"]) for key in names]


def _chunks(items: list[Any], size: int) -> list[list[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
