"""Compare searches: print the ranking of each and the cost of each branch of a choice; write all trials to a file.

    python analysis/runs.py [NAME …] [--runs DIR] [--out trials.parquet] [--rows trials]

The Parquet file is what the other analyses read, without the searches: table.py has its columns and units. In Python,
`search.results.read` gives the trials.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import IO

if not __package__:  # run as a file: Python put analysis/ on the path, where the packages are not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

if __name__ == "__main__":  # before the other imports, which take seconds
    from analysis.options import runs_parser
    from minbert_core.commands import check_command_line

    check_command_line(runs_parser())

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from analysis.options import runs_parser
from analysis.printing import folded
from analysis.table import NESTED, long_table, tabulate
from minbert_core.commands import DONE, drop_output, run_command
from search.report.costs import branch_table, read_choices
from search.report.draw import show
from search.report.narrate import table
from search.results import Search, find_searches


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(runs_parser(), arguments, _main, writes="out")


def _main(options: argparse.Namespace) -> int:
    searches = find_searches(options.names, options.runs.absolute())
    try:
        for search in searches:
            show([*_lines(search), ""])
    except BrokenPipeError:  # runs.py smart | head
        drop_output()
    if options.out is None:
        return DONE
    rows = _rows(searches, options.rows, options.out.suffix)
    with options.out.open("wb") as file:
        WRITERS[options.out.suffix](rows, file)
    print(f"wrote {options.out}")
    return DONE


def _rows(searches: list[Search], rows: str, suffix: str) -> pa.Table:
    """Build the table of a file: trials with their lists where the format has lists, else one row per entry of a list."""
    table = tabulate(searches)
    if rows != "trials":
        return long_table(table, rows)
    return table.drop_columns(list(NESTED)) if suffix == ".csv" else table


def _lines(search: Search) -> list[str]:
    gpus = search.plan.gpus_per_trial
    branches = branch_table(search.trials, read_choices(search.folder))
    about = search.plan.about or "(no question given: `about`)"
    return [
        *folded(f"{search.name}: {about} ({len(search.trials)} of {search.plan.trials} trials)"),
        *table(search.trials, search.tasks, most=len(search.trials), gpus_per_trial=gpus),
        *(["", *branches] if branches else []),
    ]


def _write_jsonl(rows: pa.Table, file: IO[bytes]) -> None:
    """Write one line per trial; missing values are null."""
    file.writelines(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows.to_pylist())


WRITERS = {".parquet": pyarrow.parquet.write_table, ".csv": pyarrow.csv.write_csv, ".jsonl": _write_jsonl}


if __name__ == "__main__":
    sys.exit(main())
