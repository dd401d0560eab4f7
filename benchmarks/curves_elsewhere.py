"""Record curves (curves.py) on a machine that has the core of this project but no Ray, as a GPU that is lent for minutes.

    python -m benchmarks.curves_elsewhere draw FOLDER --data DATA --encoder ENCODER --part 3        here: the configurations
    python -m benchmarks.curves_elsewhere train FOLDER --data DATA --encoder ENCODER --to RECORDS   there: their curves
    python -m benchmarks.curves_elsewhere gather FOLDER RECORDS --part 3                            here: curves.parquet

FOLDER is that of a search of ours, runs/curves-3; `train` needs its trials' config.yaml files only. It trains as many at a time
as --at-once says, each in a process with one thread, and writes RECORDS/NNN/metrics.jsonl for each whole curve; after --minutes
it begins no other step.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.curve_data import DEV_ROWS, reduced_data
from minbert_core.commands import run_command
from minbert_core.config_checks import load_config
from minbert_core.inputs import open_inputs
from minbert_core.settings.paths import lay_over
from minbert_core.settings.yaml import parse_yaml
from minbert_core.train.folder import write_records
from minbert_core.train.trial import train as train_trial

RECORDS = "metrics.jsonl"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(_parser(), arguments, lambda options: options.act(options) or 0, writes="folder")


def _parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        prog="python -m benchmarks.curves_elsewhere", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    acts = command.add_subparsers(required=True)
    for name, act in (("draw", draw), ("train", train), ("gather", gather)):
        one = acts.add_parser(name)
        one.set_defaults(act=act)
        one.add_argument("folder", type=Path, help="of the search whose trials they are")
        if name == "gather":
            one.add_argument("records", type=Path, help="the folder that `train` has written")
            one.add_argument("--out", type=Path, help="default benchmarks/curves.parquet")
        else:
            one.add_argument("--data", type=Path, required=True, help="folder with the corpora")
            one.add_argument("--encoder", type=Path, required=True, help="folder of the encoder")
            one.add_argument("--dev-rows", type=int, default=DEV_ROWS, help=f"per task (default {DEV_ROWS})")
        if name != "train":
            one.add_argument(
                "--part", type=int, required=True, help="of the recording; those that are there have other numbers"
            )
    acts.choices["draw"].add_argument("--trials", type=int, default=80, help="a fourth of them repeats (default 80)")
    acts.choices["draw"].add_argument("--examples", type=int, default=6_000, help="of a trial (default 6,000)")
    of_train = acts.choices["train"]
    of_train.add_argument("--to", type=Path, required=True, help="where the records go")
    of_train.add_argument("--device", default="auto", help="default auto: the GPU, if there is one")
    of_train.add_argument("--at-once", type=int, default=8, help="trials at a time (default 8)")
    of_train.add_argument("--minutes", type=float, default=60.0, help="default 60")
    return command


def draw(options: argparse.Namespace) -> None:
    """Begin a search of ours in the folder, and draw all its trials; none is trained."""
    from benchmarks.curves import HERE
    from search.plan.folder import lock, write_plan, write_space
    from search.plan.plan import make_plan
    from search.plan.resources import Resources
    from search.plan.summary import plan_record
    from search.space.space import read_space
    from search.study.study import Study

    folder = options.folder.absolute()
    if folder.exists():
        raise ValueError(f"{folder} exists. Its trials are drawn; `train` continues with those that have no curve.")
    data = reduced_data(options.data, folder.with_name(f"{folder.name}-data"), options.dev_rows)
    sets = [f"data={json.dumps(str(data))}", f"encoder/checkpoint={json.dumps(str(options.encoder.absolute()))}"]
    space = read_space(HERE / "curves.yaml", [*sets, f"budget/examples={options.examples}"], folder.name)
    plan = make_plan(folder.name, space, options.part - 1, options.trials, Resources(1, 0, 1, 0))
    (folder / "trials").mkdir(parents=True)
    with lock(folder):
        write_plan(folder, plan_record(plan, space_sha256=write_space(folder, space.document)))
        study = Study(folder, plan.space, plan.seed)
        for _ in range(options.trials):
            study.ask()
    print(f"drawn     {options.trials} trials in {folder}/trials")


def train(options: argparse.Namespace) -> None:
    """Train every trial of the folder whose curve is not there yet."""
    data = reduced_data(options.data, options.to.absolute() / "data", options.dev_rows)
    changes = {"data": str(data), "encoder": {"checkpoint": str(options.encoder.absolute())}}
    changes |= {"machine": {"device": options.device, "threads": 1}}
    configs = sorted(options.folder.glob("trials/*/config.yaml"))
    left = [config for config in configs if not (options.to / config.parent.name / RECORDS).exists()]
    deadline, began = time.time() + 60 * options.minutes, time.monotonic()
    one = partial(train_one, changes, options.to.absolute(), deadline)
    with multiprocessing.get_context("spawn").Pool(options.at_once) as pool:
        for number, told in enumerate(pool.imap_unordered(one, left), start=1):
            print(f"{time.monotonic() - began:5.0f} s  {number} of {len(left)}  {told}", flush=True)


def train_one(changes: dict[str, Any], to: Path, deadline: float, path: Path) -> str:
    """Train the trial of a config.yaml with `changes` over it, and write its records. Return a line about it."""
    document, _ = parse_yaml(path.read_text(encoding="utf-8"))
    name = path.parent.name

    def over() -> bool:
        return time.time() > deadline

    if over():
        return f"{name} has not begun: no time was left"
    try:
        config = load_config(lay_over(document, changes))
        records = [progress.record for progress in train_trial(config, open_inputs(config), stop=over)]
    except Exception as error:  # noqa: BLE001 — a curve that fails is no reason to lose the others
        return f"{name} failed: {type(error).__name__}: {error}"
    if not records or records[-1]["kind"] != "dev":  # none if a pretraining was stopped
        return f"{name} is not whole: no time was left"
    (to / name).mkdir(parents=True, exist_ok=True)
    write_records(to / name / RECORDS, records)
    return f"{name} {records[-1]['dev/score']:.4f} in {records[-1]['seconds']:.0f} s"


def gather(options: argparse.Namespace) -> None:
    """Put the records into the search's folder, end their trials, and write the whole curves to the recording."""
    import pyarrow.parquet

    from analysis.table import tabulate
    from benchmarks.curves import HERE, anonymous, with_earlier
    from search.plan.folder import lock, read_own_space, read_plan
    from search.results import open_search
    from search.space.space import make_space
    from search.study.study import Study

    folder, out = options.folder.absolute(), options.out or HERE / "curves.parquet"
    found = sorted(options.records.glob(f"*/{RECORDS}"))
    if unknown := [one.parent.name for one in found if not (folder / "trials" / one.parent.name).is_dir()]:
        raise ValueError(f"{options.records} has records of {', '.join(unknown)}, which {folder} has not drawn.")
    for one in found:
        (folder / "trials" / one.parent.name / RECORDS).write_bytes(one.read_bytes())
    with lock(folder):
        plan = read_plan(folder)
        space = make_space(plan.space_name, read_own_space(folder, plan))
        study = Study(folder, space, plan.seed)
        for trial in study.results():
            if trial.status == "running" and trial.rung == space.settings.rungs[-1]:
                study.tell(trial.number, "completed", "completed")
    search = open_search(folder)
    rows = with_earlier(out, anonymous(tabulate([search])), options.part)
    pyarrow.parquet.write_table(rows, out, compression="zstd")
    whole = sum(trial.status == "completed" for trial in search.trials)
    print(f"recorded  {whole} of {len(search.trials)} curves of this part, {len(rows)} in all -> {out}")


if __name__ == "__main__":
    sys.exit(main())
