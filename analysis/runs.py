"""Searches as one table: a row a trial, a column a parameter path, the metrics of its best and last evaluation.

    python analysis/runs.py [NAME …] [--runs DIR] [--out trials.parquet]

Prints the ranking of each search and what each branch of a choice cost; `read_trials` gives the same as an Arrow table.
"""

from __future__ import annotations

import argparse
import fcntl
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: Python put analysis/ on the path, where the packages are not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import pyarrow as pa
import pyarrow.parquet as pq

from search.costs import branch_table, read_choices
from search.narrate import table
from search.plan import read_plan
from search.study import TrialResult, read_results


@dataclass(frozen=True)
class Search:
    """A search's folder, its plan.json, its trials."""

    folder: Path
    plan: dict[str, Any]
    trials: list[TrialResult]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def tasks(self) -> list[str]:
        return list(self.plan["train_on"])

    @property
    def is_toy(self) -> bool:
        data: str = self.plan["data"]
        return data == "toy"

    @property
    def is_finished(self) -> bool:
        """Whether as many trials as were planned have ended."""
        num_planned: int = self.plan["trials"]
        return sum(trial.status != "running" for trial in self.trials) >= num_planned

    def is_running(self) -> bool:
        """Whether a process holds the search's lock now."""
        with (self.folder / "lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
        return False


def open_search(folder: Path) -> Search:
    """Raises ValueError: no search there, or one of a newer format."""
    plan = read_plan(folder)
    return Search(folder, plan, read_results(folder, plan["space_name"]))


def all_searches(runs: Path) -> list[Search]:
    """The searches in a folder, newest first."""
    folders = [path.parent for path in runs.glob("*/plan.json") if (path.parent / "study.journal").exists()]
    return sorted((open_search(folder) for folder in folders), key=lambda search: str(search.plan["created"]), reverse=True)


def read_trials(searches: list[Search]) -> pa.Table:
    """A row a trial: search, trial, status, reason, part, seconds, examples, passes, best/…, last/…, its parameters."""
    rows: list[dict[str, Any]] = []
    for search in searches:
        for trial in search.trials:
            row: dict[str, Any] = {"search": search.name, "trial": trial.number, "status": trial.status, "reason": trial.reason}
            row |= {"part": trial.part, "seconds": trial.seconds, "examples": trial.examples}
            row["passes"] = int(trial.records[-1]["passes"]) if trial.records else 0
            for label, record in (("best", trial.best), ("last", trial.last)) if trial.points else ():
                row |= {f"{label}/{key.removeprefix('dev/')}": value for key, value in record.items() if key.startswith("dev/")}
            rows.append(row | trial.params)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: _column([row.get(name) for row in rows]) for name in columns})


def _column(values: list[Any]) -> pa.Array:
    """A column of one type; a choice that mixes numbers and words is a column of words."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float}:
        return pa.array(values, pa.int64() if kinds == {int} else pa.float64())
    return pa.array([None if value is None else str(value) for value in values])


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 done, 2 no such search."""
    parser = argparse.ArgumentParser(prog="python analysis/runs.py", description="The trials of one or more searches, ranked.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="searches (default: all)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where searches lie (default runs)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write all trials, all columns, as Parquet")
    options = parser.parse_args(arguments)
    runs = options.runs.absolute()
    try:
        searches = [open_search(runs / name) for name in options.names] or all_searches(runs)
        if not searches:
            raise ValueError(f"There is no search in {runs}. Start one: python -m search.run --space spaces/quickstart.yaml")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for search in searches:
        print(f"{search.name}: {search.plan['about']} ({len(search.trials)} of {search.plan['trials']} trials)")
        gpus = search.plan["gpus_per_trial"]
        print("\n".join(table(search.trials, search.tasks, most=len(search.trials), gpus_per_trial=gpus)) + "\n")
        if branches := branch_table(search.trials, read_choices(search.folder)):
            print("\n".join(branches) + "\n")
    if options.out:
        pq.write_table(read_trials(searches), options.out)
        print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
