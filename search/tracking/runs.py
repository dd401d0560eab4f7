"""The runs of a search as MLflow should show them: one parent run per search, and one child run per trial.

    driver --events--> Runs (memory only) --differences--> Writer --> MLflow

The methods of `Runs` only note what should be there, so they never fail, and calls that a short outage has held up become one
write. Because the runs are known whole, anything that MLflow lacks can be written again: after an outage, by `--resume`, and
after its database was deleted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from minbert_core.clock import now_ms
from search.tracking.store import SERVER, artifacts_folder

Status = Literal["FINISHED", "FAILED", "KILLED"]  # FAILED: a fault. KILLED: by the user. A trial stopped at a rung is FINISHED
Record = Mapping[str, Any]  # kind, step, examples, time_ms, seconds, and metrics under their final names
Point = tuple[str, float, int, int]  # key, value, x, time_ms

DIGEST_LENGTH = 12  # of a sha256; MLflow keeps 36 characters of a data set's, and its own digests have 8
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
class TrialRun:
    """The run of a trial."""

    name: str
    params: dict[str, Any]
    config_file: Path
    tags: dict[str, str]
    started_ms: int
    sources: list[Iterable[Record]] = field(default_factory=list)
    status: Status | Literal["RUNNING"] = "RUNNING"
    stop_reason: str = ""
    ended_ms: int = 0

    def points(self) -> list[Point]:
        """Return all measurements so far, as their sources have them now."""
        return [point for records in self.sources for record in records for point in points_of(record)]

    @cached_property
    def config_digest(self) -> str:
        """The digest of config.yaml, empty if that file is gone."""
        if not self.config_file.exists():
            return ""
        return hashlib.sha256(self.config_file.read_bytes()).hexdigest()[:DIGEST_LENGTH]


class Runs:
    """The parent run of a search and its children."""

    def __init__(self, search: SearchRecord) -> None:
        self.search = search
        self.began_ms = now_ms()
        self.trials: dict[int, TrialRun] = {}
        self.changed: dict[int, None] = {}  # numbers of the trials that may differ from MLflow's, oldest change first
        self.parent_changed = True
        self.points: list[Point] = []  # of the parent
        self.results: set[Path] = set()  # files and folders that become artifacts of the parent
        self.text = search.note
        self.status: Status | None = None  # None: the search is running

    def trial_started(
        self, number: int, name: str, params: dict[str, Any], config_file: Path, tags: dict[str, str], time_ms: int
    ) -> None:
        """Add the run of a trial, or set it to RUNNING again. time_ms, the trial's start, is used only for a new run."""
        run = self.trials.get(number)
        if run is None:
            self.trials[number] = TrialRun(name, params, config_file, tags, time_ms)
        else:
            run.status, run.stop_reason, run.params = "RUNNING", "", params
        self.changed[number] = None

    def records(self, number: int, records: Iterable[Record]) -> None:
        """Add the measurements of a started trial, at x = examples and the time they were taken, without non-finite values.

        records is read at each write, so an object that grows needs no memory here. Pass it again after it has grown.
        """
        sources = self.trials[number].sources
        if not any(records is known for known in sources):
            sources.append(records)
        self.changed[number] = None

    def trial_ended(self, number: int, status: Status, stop_reason: str, time_ms: int) -> None:
        """End a trial's run at time_ms."""
        run = self.trials[number]
        run.status, run.stop_reason, run.ended_ms = status, stop_reason, time_ms
        self.changed[number] = None

    def pretrained(self, records: Iterable[Record]) -> None:
        """Add further pretraining before the trials to the parent: `pretrain/3f2a9c01/mlm_loss` at x = texts."""
        for record in records:
            prefix = f"pretrain/{record['key'][:8]}/"
            self.points += [(name.replace("pretrain/", prefix), *rest) for name, *rest in points_of(record)]  # type: ignore[misc]
        self.parent_changed = True

    def best(self, step: int, metrics: dict[str, float], time_ms: int) -> None:
        """Add the best scores so far to the parent; step is the number of trials that have ended."""
        self.points += [(key, value, step, time_ms) for key, value in metrics.items()]
        self.parent_changed = True

    def add_results(self, paths: Iterable[Path]) -> None:
        """Add files and whole folders to the parent's artifacts."""
        self.results |= set(paths)
        self.parent_changed = True

    def note(self, markdown: str) -> None:
        """Replace the description on the pages of the experiment and of the parent run."""
        self.text, self.parent_changed = markdown, True

    def close(self, status: Status) -> None:
        """End the parent run and the trials that are still open."""
        for number, run in self.trials.items():
            if run.status == "RUNNING":
                self.trial_ended(number, end_of_open(status), NOT_ENDED, now_ms())
        self.status, self.parent_changed = status, True

    def change_all(self) -> None:
        """Mark everything as changed, because MLflow's side is unknown now."""
        self.changed = dict.fromkeys(self.trials)
        self.parent_changed = True


NOT_ENDED = "the search ended before it"


def end_of_open(status: Status) -> Status:
    """Return the end of a trial that was open when its search ended with `status`."""
    return "KILLED" if status == "KILLED" else "FAILED"


def points_of(record: Record) -> list[Point]:
    """Return the measurements of a record as (key, value, x, time_ms).

    x is the number of examples. In further pretraining, before the trial's own examples begin, it is the number of texts.
    """
    names, x = [key for key in record if key not in NOT_METRICS], record["examples"]
    if record["kind"] == "pretrain":
        names, x = [key for key in names if key.startswith("pretrain/")], record["pretrain/examples"]
    return [(key, record[key], x, record["time_ms"]) for key in names]
