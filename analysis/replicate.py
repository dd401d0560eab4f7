"""Run the rows of a paper, and compare the measured figures with the published ones.

    python analysis/replicate.py --paper P3 --seeds 3 --gpus 4

    spaces/papers/p3.yaml -> search.run (the search p3) -> best_to_test over all rows -> results.json -> replicate.md, MLflow

The search runs each row once; the table shows only the fresh seeds, on dev and test. After Ctrl-C or a crash, the same command
resumes. Exit codes are those of minbert_core/commands.py; 1 means that no row could be trained.
"""

from __future__ import annotations

import argparse
import copy
import json
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: Python put analysis/ on the path, where the packages are not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

if __name__ == "__main__":  # before the other imports, which take seconds
    from analysis.retrain_options import replicate_parser
    from minbert_core.commands import check_command_line

    check_command_line(replicate_parser())

from analysis import best_to_test
from analysis.replication import Circumstances, Measurement, replication_lines
from analysis.results import SPLITS
from analysis.retrain_options import replicate_parser
from analysis.selection import Selection, fresh_seeds
from analysis.tracking import tracking_uri
from minbert_core.clock import now_ms
from minbert_core.commands import DONE, INTERRUPTED, NOT_RECORDED, analysis_command, run_command
from minbert_core.config import TINY
from minbert_core.inputs import build_encoder, open_inputs
from minbert_core.settings.yaml import dump_yaml
from minbert_core.words import counted, did_you_mean
from search.environment import git_commit
from search.options import SearchOptions
from search.papers import ROW, Row, config_of, paper_file, rows_of
from search.plan.on_cluster import cluster_resources
from search.plan.relocated import find_relocated, relocated_config
from search.plan.resources import find_resources
from search.results import Search, open_search
from search.run import start_or_resume
from search.space.file import read_document
from search.space.space import read_space
from search.study.trials import TrialResult
from search.tracking.runs import Runs, SearchRecord
from search.tracking.store import ui_command
from search.tracking.tracker import Tracker

EVERY_ROW = "every completed row of the paper; none was chosen by its score"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    interrupted = "\nInterrupted. Rerun the same command to resume; trained models are kept."
    return run_command(replicate_parser(), arguments, _main, writes="runs", interrupted=interrupted)


def _main(options: argparse.Namespace) -> int:
    file = paper_file(options.paper)
    document, _ = read_document(file)
    rows = choose_rows(rows_of(document), options.rows)
    name = options.name or file.stem + ("" if options.part == 1 else f"-part-{options.part:g}".replace(".", "_"))
    print(f"paper     {file.stem.upper()}: {document['about']}")
    print(f"rows      {', '.join(row.name for row in rows)}: a search of them, {name}")
    print(f"then      {counted(options.seeds, 'fresh seed')} of each row, on dev and test", flush=True)
    with tempfile.TemporaryDirectory(prefix="minbert-paper-") as scratch:
        space_file = Path(scratch) / file.name
        space_file.write_text(dump_yaml(cut(document, rows, options.part)), encoding="utf-8")
        best_to_test.check_test_files(config_of(read_space(space_file, _sets(options)), rows[0].name))
        _, code = start_or_resume(_search_options(options, space_file, name))
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if options.dry_run or code not in (DONE, NOT_RECORDED):  # the search has reported what MLflow lacks
        return code
    return _test(options, open_search(options.runs.absolute() / name), rows, document["about"])


# ------------------------------------------------------------------------------------------------------- the rows to run


def choose_rows(known: Sequence[Row], names: Sequence[str] | None) -> list[Row]:
    """Choose the rows named, after the paper's first row, which they are compared with; all rows if none is named.

    Raises ValueError if a name is unknown, or only the first row is named.
    """
    for name in names or ():
        if name not in (labels := [row.name for row in known]):
            raise ValueError(f"This paper has no row '{name}'{did_you_mean(name, labels)}")
    rows = [row for row in known if names is None or row.name in (known[0].name, *names)]
    if len(rows) < 2:
        raise ValueError(f"{known[0].name} is the row that the others are compared with. Name at least one other row.")
    return rows


def cut(document: Mapping[str, Any], rows: Sequence[Row], part: float) -> dict[str, Any]:
    """Return a paper's space with only these rows, and the epochs of every stage multiplied by `part`."""
    kept, names = copy.deepcopy(dict(document)), [row.name for row in rows]
    kept["together"][ROW] = [branch for branch in kept["together"][ROW] if branch["name"] in names]
    for tree in (kept["config"], *(branch["set"] for branch in kept["together"][ROW])) if part != 1 else ():
        for stage in tree.get("stages", ()):
            stage["epochs"] *= part
    return kept


def _sets(options: argparse.Namespace) -> list[str]:
    """Collect --data, --encoder and --set as overrides of the space, as search.run does."""
    given = {"data": options.data, "encoder/checkpoint": options.encoder}
    return [*options.set, *(f"{path}={json.dumps(value)}" for path, value in given.items() if value)]


def _search_options(options: argparse.Namespace, space_file: Path, name: str) -> SearchOptions:
    """Return the options of the search of the rows, which start or resume it."""
    return SearchOptions(
        space=space_file,
        set=tuple(options.set),
        data=options.data,
        encoder=options.encoder,
        gpus=options.gpus,
        gpus_per_trial=options.gpus_per_trial,
        cpus_per_trial=options.cpus_per_trial,
        address=options.address,
        runs=options.runs,
        resume=name,
        dry_run=options.dry_run,
    )


# ------------------------------------------------------------------------------------------------------------- the figures


def _test(options: argparse.Namespace, search: Search, rows: Sequence[Row], about: str) -> int:
    """Test every row of the search over fresh seeds, and write the table; return the exit code."""
    trials = {trial.params[f"together/{ROW}"]: trial for trial in search.trials}
    done = {row.name: trials[row.name] for row in rows if row.name in trials and trials[row.name].status == "completed"}
    finalists = list(done.values())
    relocated = find_relocated(search.plan, finalists[0].config(), options.data, options.encoder)
    seeds = fresh_seeds(options.seeds)
    selection = Selection(search, finalists, done.get(rows[0].name), seeds, relocated, unchosen=EVERY_ROW)
    cpus = options.cpus_per_trial or search.plan.cpus_per_trial
    retry = analysis_command("replicate", "--paper", options.paper)
    asked = options.gpus, options.gpus_per_trial, cpus
    resources = find_resources(*asked, retry) if options.address == "local" else cluster_resources(options.address, *asked)
    if code := best_to_test.run(selection, resources, shows_report=False):
        return code
    results = json.loads((selection.folder / "results.json").read_text(encoding="utf-8"))
    measured = measured_rows(results, done)
    missing = {row.name: _reason(row.name, trials, results) for row in rows if row.name not in measured}
    lines = replication_lines(about, rows, measured, _circumstances(selection, options.part), missing)
    file = search.folder / "replicate.md"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(["", *lines, "", f"table     {file}; every figure with its interval: {selection.folder / 'table.md'}"]))
    _record(selection, lines, measured, file)
    return DONE


def measured_rows(results: Mapping[str, Any], trials: Mapping[str, TrialResult]) -> dict[str, Measurement]:
    """Extract the figures of each row from results.json: dev and test -> column -> figures."""
    measured = {entry["trial"]: {split: entry.get(split, {}) for split in SPLITS} for entry in results["configurations"]}
    return {name: measured[trial.number] for name, trial in trials.items() if trial.number in measured}


def _reason(name: str, trials: Mapping[str, TrialResult], results: Mapping[str, Any]) -> str:
    """Return the reason why a row has no figures."""
    if name not in trials or trials[name].status != "completed":
        return trials[name].reason if name in trials and trials[name].reason else "the search has not completed it"
    number = f"{trials[name].number:03d}-"
    return next((reason for job, reason in results["failed"].items() if job.startswith(number)), "no seed was trained")


def _circumstances(selection: Selection, part: float) -> Circumstances:
    """Describe the encoder, the data and the budget of the runs."""
    search, config = selection.search, relocated_config(selection.config, selection.relocated)
    inputs = open_inputs(config)
    shape = build_encoder(config, inputs).shape
    return Circumstances(
        encoder=next(iter(search.plan.encoders), TINY),
        shape=(shape.hidden_size, shape.num_hidden_layers, shape.vocab_size),
        data=config.data,
        train_rows=inputs.sizes,
        dev_rows={name: len(split) for name, split in inputs.dev.items()},
        part=part,
        num_seeds=len(selection.seeds),
    )


def _record(selection: Selection, lines: list[str], measured: Mapping[str, Measurement], file: Path) -> None:
    """Log the table and its figures to MLflow, in a separate experiment. A repeated command resumes the same run."""
    search = selection.search
    record = SearchRecord(
        tracking_uri(search),
        f"{search.name}-replicate",
        "\n".join(lines),
        {"replicated_search": search.name, "git": git_commit()},
        {"search": search.name, "seeds": len(selection.seeds), "rows": list(measured)},
        search.plan.fingerprints,
        artifact_files=[file, selection.folder / "results.json"],
        resume=True,
    )
    tracker = Tracker(record)
    tracker.start()
    figures = {
        f"{row}/{split}_{column}": of["mean"]
        for row, splits in measured.items()
        for split, columns in splits.items()
        for column, of in columns.items()
    }
    tracker.submit(Runs.best, selection.num_openings, figures, now_ms())
    if not tracker.close("FINISHED"):
        print(f"MLflow: {tracker.error} The table is in {file}.", file=sys.stderr)
    print(f"compare   {ui_command(tracking_uri(search), Path.cwd())}")


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGUSR1):  # like Ctrl-C; Slurm sends the latter before a job's time is over
        signal.signal(number, signal.default_int_handler)
    sys.exit(main())
