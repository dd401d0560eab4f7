"""Finished and running searches as one table: one row per trial, best first; one column per parameter path.

    from search.results import read
    read("smart").to_pandas()                      the trials of runs/smart
    read("smart", "gradvac", runs="elsewhere")     of several; without a name, of all searches

It only reads: it changes nothing, and holds no lock but for the moment in which it asks whether a search is running.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from minbert_core.files import lock, message, user_path
from search.plan.folder import PlanRecord, read_plan
from search.study.gather import read_results
from search.study.trials import TrialResult, best_first


@dataclass(frozen=True)
class Search:
    """A search: its folder, its plan.json, its trials."""

    folder: Path
    plan: PlanRecord
    trials: list[TrialResult]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def tasks(self) -> list[str]:
        return list(self.plan.train_on)

    @property
    def is_toy(self) -> bool:
        return self.plan.data == "toy"

    @property
    def is_finished(self) -> bool:
        """True after all planned trials have ended."""
        return sum(trial.status != "running" for trial in self.trials) >= self.plan.trials

    def is_running(self) -> bool:
        """Return whether a process holds the search's lock now."""
        if not (path := self.folder / "lock").exists():
            return False
        with path.open() as file:
            return not lock(file, path, shared=True)


def open_search(folder: Path) -> Search:
    """Open a search.  Raises ValueError: no search there, a newer format, or files that are damaged beyond repair."""
    plan = read_plan(folder)
    return Search(folder, plan, read_results(folder, plan.space_name))


def all_searches(runs: Path, passed_over: Callable[[str], None]) -> list[Search]:
    """Open the searches in a folder, newest first. Unreadable ones are skipped and reported to `passed_over`."""
    searches = []
    for path in sorted(runs.glob("*/plan.json")):
        try:
            searches.append(open_search(path.parent))
        except (ValueError, OSError) as error:
            passed_over(f"{path.parent.name} is skipped: {message(error)}")
    return sorted(searches, key=lambda search: search.plan.created, reverse=True)


def read(*names: str, runs: str | Path = "runs") -> pa.Table:
    """Read the trials of the searches `names` in the folder `runs`; without names, of all of them. See `as_table`.

    Raises ValueError: no such search, no search at all, or a newer format.
    """
    return as_table(find_searches(names, user_path(runs).absolute()))


def find_searches(names: Iterable[str], runs: Path) -> list[Search]:
    """Open the named searches, or all in `runs`, newest first.  Raises ValueError: no such search, or none at all."""
    searches = [open_search(runs / name) for name in names] or all_searches(runs, _complain)
    if not searches:
        raise ValueError(f"There is no search in {runs}. Start one: python -m search.run --space spaces/quickstart.yaml")
    return searches


def _complain(sentence: str) -> None:
    print(sentence, file=sys.stderr)


# the columns of every search; folder is absolute, score is that of the best evaluation, as in the ranking
COLUMNS = {
    "search": pa.string(),
    "trial": pa.int64(),
    "score": pa.float64(),
    "status": pa.string(),  # running (or paused), completed, stopped, failed
    "reason": pa.string(),
    "baseline": pa.int64(),  # the baseline's number in the space; null: not a baseline
    "recipe": pa.string(),
    "rung": pa.int64(),  # the last one evaluated
    "seconds": pa.float64(),
    "examples": pa.int64(),
    "passes": pa.int64(),
    "folder": pa.string(),
}


def as_table(searches: Iterable[Search]) -> pa.Table:
    """Return one row per trial, best first in each search: COLUMNS, the parameters, and the dev metrics of the best (best/…)
    and the last (last/…) evaluation. Missing values are null: parameters of other branches, scores before an evaluation."""
    rows = [(search, trial) for search in searches for trial in best_first(search.trials)]
    fixed = [_facts(search, trial) for search, trial in rows]
    columns = {name: pa.array([row[name] for row in fixed], kind) for name, kind in COLUMNS.items()}
    groups = [trial.params for _, trial in rows], [_metrics(trial) for _, trial in rows]
    for group in groups:
        for name in dict.fromkeys(name for row in group for name in row):
            columns[name] = _column([row.get(name) for row in group])
    return pa.table(columns)


def _facts(search: Search, trial: TrialResult) -> dict[str, Any]:
    return {
        "search": search.name,
        "trial": trial.number,
        "score": trial.score if trial.points else None,
        "status": trial.status,
        "reason": trial.reason,
        "baseline": trial.baseline,
        "recipe": trial.recipe,
        "rung": trial.rung,
        "seconds": trial.seconds,
        "examples": trial.examples,
        "passes": int(trial.records[-1]["passes"]) if trial.records else 0,
        "folder": str(trial.folder),
    }


def _metrics(trial: TrialResult) -> dict[str, float]:
    evaluations = (("best", trial.best), ("last", trial.last)) if trial.points else ()
    return {
        f"{label}/{key.removeprefix('dev/')}": value
        for label, record in evaluations
        for key, value in record.items()
        if key.startswith("dev/")
    }


def _column(values: list[Any]) -> pa.Array:
    """Return a column of one type: integers, numbers or booleans; otherwise text, also for a choice that mixes types."""
    kinds = {type(value) for value in values if value is not None}
    for types, kind in (({bool}, pa.bool_()), ({int}, pa.int64()), ({int, float}, pa.float64())):
        if kinds and kinds <= types:
            return pa.array(values, kind)
    return pa.array([None if value is None else str(value) for value in values], pa.string())
