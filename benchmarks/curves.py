"""Record learning curves of random configurations on real data, for `analysis/simulate.py`.

    python -m benchmarks.curves --data DATA --encoder ENCODER [--hours 2] [--examples 6000] [--trials 80]

The recording is a search of ours: `benchmarks/curves.yaml` has the choices of spaces/full.yaml, draws at random, stops nothing,
and evaluates at nine points; every fourth trial repeats an earlier configuration with another seed. Two trials run at a time
on two cores, one thread each. The same command continues on another day. Dev is reduced to DEV_ROWS rows per task, evenly
spaced, because nine evaluations on all rows would take longer than the training; the training rows are all there.

Writes OUT, the table of `analysis/runs.py` without training records and without paths of this machine, and prints what a trial
costs and how much is left. Another machine records other configurations with `--part 2`, `--part 3`, …: they are added to OUT,
with their seconds brought to the speed of the first part by the cost of a pass. curves_elsewhere.py records a part without Ray.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from analysis.table import FORMAT, METADATA, TRAINING, read_parquet, tabulate
from benchmarks.curve_data import DEV_ROWS, reduced_data
from minbert_core.commands import run_command
from minbert_core.words import counted, duration
from search.options import from_arguments, parser, positive
from search.plan.folder import has_begun
from search.results import Search, open_search
from search.run import start_or_resume
from search.study.trials import TrialResult

HERE = Path(__file__).resolve().parent
NAME = "curves"
SLOTS = 2
PART = 1000  # more than a part has trials


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(_parser(), arguments, _main, writes="runs")


def _main(options: argparse.Namespace) -> int:
    data = reduced_data(options.data, options.runs.absolute() / "curves-data", options.dev_rows)
    words = search_words(options, data)
    folder, code = start_or_resume(from_arguments(parser().parse_args(words), words))
    search = open_search(folder)
    if any(trial.points for trial in search.trials):
        rows = with_earlier(options.out, anonymous(tabulate([search])), options.part)
        pyarrow.parquet.write_table(rows, options.out, compression="zstd")
        print("\n".join(state(search, options)))
    return code


def search_words(options: argparse.Namespace, data: Path) -> list[str]:
    """Return the words of the search's command line. Once it has begun, it keeps its space, which may have changed here."""
    name = NAME if options.part == 1 else f"{NAME}-{options.part}"
    words = ["--resume", name, "--runs", str(options.runs), "--gpus", "0", "--trials", str(options.trials)]
    words += ["--data", str(data), "--encoder", str(options.encoder.absolute())]
    words += ["--hours", str(options.hours)] if options.hours else []
    if has_begun(options.runs.absolute() / name):
        return words
    new = ["--space", str(HERE / "curves.yaml"), "--seed", str(options.part - 1)]
    return [*words, *new, "--set", f"budget/examples={options.examples}"]


def _parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        prog="python -m benchmarks.curves", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument("--data", type=Path, required=True, help="folder with the corpora")
    command.add_argument("--encoder", type=Path, required=True, help="folder of the encoder, such as all-MiniLM-L6-v2")
    command.add_argument("--hours", type=float, help="time limit; trials that would exceed it are paused")
    command.add_argument("--trials", type=int, default=80, help="runs, a fourth of them repeats (default 80)")
    command.add_argument("--examples", type=int, default=6_000, help="of a trial (default 6,000); the first call decides")
    command.add_argument(
        "--dev-rows", type=int, default=DEV_ROWS, help=f"per task (default {DEV_ROWS}); the first call decides"
    )
    command.add_argument("--part", type=positive, default=1, help="of the recording, each on one machine (default 1)")
    command.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the search (default runs)")
    command.add_argument("--out", type=Path, default=HERE / "curves.parquet", help="default benchmarks/curves.parquet")
    return command


def anonymous(rows: pa.Table) -> pa.Table:
    """Return the table without training records and without the folders of this machine."""
    rows = rows.set_column(rows.column_names.index("folder"), "folder", pa.array([""] * len(rows)))
    empty: pa.Array = pa.array([[] for _ in range(len(rows))], pa.list_(pa.struct(TRAINING.items())))
    rows = rows.set_column(rows.column_names.index("training"), "training", empty)
    written = json.loads(rows.schema.metadata[METADATA])
    for facts in written["searches"].values():
        config: dict[str, Any] = facts["space"]["config"]
        config["data"] = "data/"
        config["encoder"]["checkpoint"] = Path(config["encoder"]["checkpoint"]).name
    return rows.replace_schema_metadata({METADATA: json.dumps(written)})


def with_earlier(file: Path, rows: pa.Table, part: int) -> pa.Table:
    """Return the whole curves of a part with those that the file has of other parts, all as one search.

    The trials of a part have their numbers in the part, plus PART for each part before it.
    """
    shift = PART * (part - 1)
    own = [row | {"search": NAME, "trial": row["trial"] + shift} for row in rows.to_pylist() if row["status"] == "completed"]
    facts, schema = _facts(rows), rows.schema
    earlier: list[dict[str, Any]] = []
    if file.exists():
        table = read_parquet(file)
        earlier = [row for row in table.to_pylist() if row["trial"] // PART != part - 1]
        facts = _facts(table) if earlier else facts
        schema = pa.unify_schemas([table.schema, schema], promote_options="permissive")  # a part may lack a branch
    first = [row for row in earlier if row["trial"] < PART]
    if own and first:
        own = [_at_speed(row, _seconds_per_pass(first) / _seconds_per_pass(own)) for row in own]
    joined = sorted([*earlier, *own], key=lambda row: row["trial"])
    facts |= {"name": NAME, "planned": len(joined)}
    metadata = {METADATA: json.dumps({"format": FORMAT, "searches": {NAME: facts}})}
    return pa.Table.from_pylist(joined, schema).replace_schema_metadata(metadata)


def _facts(rows: pa.Table) -> dict[str, Any]:
    [facts] = json.loads(rows.schema.metadata[METADATA])["searches"].values()
    return dict(facts)


def _seconds_per_pass(rows: list[dict[str, Any]]) -> float:
    return float(sum(row["seconds"] for row in rows) / sum(row["passes"] for row in rows))


def _at_speed(row: dict[str, Any], factor: float) -> dict[str, Any]:
    """Return a row with its seconds multiplied."""
    evaluations = [
        entry | {key: factor * entry[key] for key in ("seconds", "evaluation_seconds")} for entry in row["evaluations"]
    ]
    return row | {"seconds": factor * row["seconds"], "evaluations": evaluations}


def state(search: Search, options: argparse.Namespace) -> list[str]:
    """Return what is recorded, what a trial costs, and how much is left."""
    whole = [trial for trial in search.trials if trial.status == "completed"]
    lines = [f"recorded  {len(whole)} of {options.trials} curves -> {options.out}, {options.out.stat().st_size / 1e6:.2f} MB"]
    if whole:
        cost = seconds_per_1000(whole)
        lines.append(f"cost      {cost:.1f} s per 1,000 examples, with nine evaluations of {options.dev_rows} rows per task")
        left = sum(trial.seconds for trial in whole) / len(whole) * (options.trials - len(whole)) / SLOTS
        lines.append(
            f"left      {counted(options.trials - len(whole), 'curve')}, about {duration(left)} with {SLOTS} at a time"
        )
    return lines


def seconds_per_1000(trials: Iterable[TrialResult]) -> float:
    """Compute the mean seconds per 1,000 examples, evaluations included."""
    trials = list(trials)
    return 1000 * sum(trial.seconds for trial in trials) / sum(trial.examples for trial in trials)


if __name__ == "__main__":
    sys.exit(main())
