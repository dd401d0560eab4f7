"""MLflow's record of best_to_test: one parent run per folder of results, and one child run per model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.results import Results
from analysis.retrain import Job
from analysis.selection import Selection
from minbert_core.clock import now_ms
from search.environment import git_commit
from search.results import Search
from search.tracking.runs import Runs, SearchRecord
from search.tracking.store import store_uri
from search.tracking.tracker import Tracker


def tracking_uri(search: Search) -> str:
    """Return the store that a search logs to."""
    return search.plan.tracking_uri or store_uri(search.folder.parent)


def new_tracker(selection: Selection) -> Tracker:
    """Create the tracker of a selection's test. A repeated command resumes its parent run, and logs no model twice."""
    search, question = selection.search, selection.question
    tested = f"branches of `{question.path}` in" if question else "configurations of"
    record = SearchRecord(
        tracking_uri(search),
        "-".join([search.name, *selection.folder.relative_to(search.folder).parts]),
        f"Test of the best {tested} the search **{search.name}** (running)",
        {"tested_search": search.name, "git": git_commit()},
        {
            "search": search.name,
            "tried": len(search.trials),
            "seeds": len(selection.seeds),
            "selected": [trial.number for trial in selection.finalists],
            "baseline": selection.baseline and selection.baseline.number,
            **({"per": question.path, "reference": question.reference.label} if question else {}),
        },
        search.plan.fingerprints,
        artifact_files=[selection.folder / "selection.json"],
        resume=True,
    )
    return Tracker(record)


def track_job(tracker: Tracker, job: Job, searched: Mapping[str, Any]) -> None:
    """Start the run of a model. searched: the searched parameters of its configuration."""
    seed = "kept" if job.seed_index is None else job.seed_index
    params = {"trial": job.number, "seed": seed, **searched}
    tracker.submit(Runs.trial_started, run_number(job), job.name, params, job.folder / "config.yaml", {}, now_ms())


class HeldRecords:
    """The records of models in training, on their way to MLflow: held back until a model has a score.

    So the score is the first metric of its run, by which MLflow colours its charts.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.held: dict[Job, list[dict[str, Any]]] = {}
        self.scored: set[Job] = set()

    def add(self, job: Job, records: list[dict[str, Any]]) -> None:
        """Take new records of a model, and send them once it has a score."""
        self.held.setdefault(job, []).extend(records)
        if job in self.scored or any(record["kind"] == "dev" for record in records):
            self.scored.add(job)
            self.release(job)

    def release(self, job: Job) -> None:
        """Send what is held of a model."""
        if records := self.held.pop(job, []):
            self.tracker.submit(Runs.records, run_number(job), records)


def run_number(job: Job) -> int:
    """Return the number that identifies a model's run: a hash of the model's name and config."""
    digest = hashlib.sha256(job.name.encode() + (job.folder / "config.yaml").read_bytes()).digest()
    return int.from_bytes(digest[:6], "big")


RESULTS = ("results.json", "table.md", "table.tex", "figure.svg", "figure.png", "figure.pdf", "predictions")


def track_results(tracker: Tracker, results: Results, lines: list[str], opening: int, folder: Path) -> None:
    """Log each model's metrics to its run, and those of the best configuration to the parent, with the opening as step.

    The files of the results in `folder` become artifacts of the parent.
    """
    for job, splits in results.metrics.items():
        # one past the last evaluation: MLflow shows a metric's last value, which is then that of the tested weights
        examples = max((record["examples"] for record in job.records()), default=-1) + 1
        record: dict[str, Any] = {"kind": "test", "step": 0, "examples": examples, "time_ms": now_ms()}
        record |= {f"{split}/{column}": value for split, columns in splits.items() for column, value in columns.items()}
        tracker.submit(Runs.records, run_number(job), [record])
        tracker.submit(Runs.trial_ended, run_number(job), "FINISHED", "tested", now_ms())
    best = {
        f"{split}/{column}": measured.mean
        for split, columns in results.configurations[results.winner].items()
        for column, measured in columns.items()
    }
    tracker.submit(Runs.best, opening, best, now_ms())
    tracker.submit(Runs.add_results, [folder / name for name in RESULTS if (folder / name).exists()])
    tracker.submit(Runs.note, "\n".join(lines))
