"""Retrain the best configurations of a search over fresh seeds, and test them: the only command that opens a test file.

    python analysis/best_to_test.py --search smart --top 3 --seeds 5
    python analysis/best_to_test.py --search smart --per smoothness --seeds 5
    python analysis/best_to_test.py --search smart --config mine.yaml

    rank within the fullest rung -> selection.json (frozen) -> retrain each over seeds -> ledger -> TEST -> table, files

The first command tests the best configurations overall. The second answers the question of the space: it tests the best
configuration of each branch of a choice, and compares it with the best of the plain branch. The third adds a configuration of
your own. Models that several commands need are trained once.

Models are chosen on dev; the test split only reports. The selection is on disk before a test file is opened, and each opening
is a line in the ledger. The table shows how many configurations were tried and which scores the search had claimed for the
chosen ones. The space's baseline is trained and tested too. After Ctrl-C or a crash, the same command resumes, also in the
middle of a training.
Exit codes are those of minbert_core/commands.py; 1 means that no model could be trained.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

if not __package__:  # run as a file: Python put analysis/ on the path, where the packages are not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

if __name__ == "__main__":  # before the other imports, which take seconds
    from analysis.retrain_options import best_to_test_parser
    from minbert_core.commands import check_command_line

    check_command_line(best_to_test_parser())

import numpy as np

from analysis.branches import ask
from analysis.contenders import read_contenders
from analysis.ensemble_report import ensemble_lines, overlap_lines
from analysis.ensembles import ensembles
from analysis.figure import write_figure
from analysis.jobs import make_jobs, say, train_jobs
from analysis.latex import table_tex
from analysis.overlap import Seen, overlaps, seen_rows
from analysis.prediction_files import write_predictions
from analysis.preview import preview_lines
from analysis.results import Logits, Splits, document, measure
from analysis.retrain import Job, answer
from analysis.retrain_options import best_to_test_parser, check_together
from analysis.selection import (
    Selection,
    choose_baseline,
    choose_best_baseline,
    choose_search,
    choose_trials,
    fresh_seeds,
)
from analysis.test_split import open_test_splits
from analysis.test_table import report_lines
from analysis.tracking import HeldRecords, new_tracker, run_number, track_job, track_results, tracking_uri
from minbert_core.clock import now_ms
from minbert_core.commands import DONE, FAILED, analysis_command, run_command
from minbert_core.config import TINY, TrialConfig
from minbert_core.data.corpus import missing_test_files
from minbert_core.files import user_path
from minbert_core.inputs import data_folder, open_inputs
from minbert_core.words import counted
from search.plan.folder import lock, read_plan, write_plan
from search.plan.on_cluster import check_folders, cluster_lines, cluster_resources
from search.plan.relocated import find_relocated, moved, relocated_config
from search.plan.resources import Resources, find_resources
from search.report.draw import show
from search.results import Search
from search.study.engine import start_ray
from search.tracking.runs import Runs
from search.tracking.store import ui_command
from search.tracking.tracker import Tracker


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    interrupted = "\nInterrupted. Rerun the same command to resume; trained models are kept."
    return run_command(best_to_test_parser(), arguments, _main, writes="runs", interrupted=interrupted)


def _main(options: argparse.Namespace) -> int:
    check_together(options)
    runs = options.runs.absolute()
    search = choose_search(options.search, runs, lambda sentence: print(f"search    {sentence}"))
    selection, about_baseline = _select(search, options)
    cpus = options.cpus_per_trial or search.plan.cpus_per_trial
    retry = analysis_command("best_to_test", "--search", search.name) + (f" --per {options.per}" if options.per else "")
    asked = options.gpus, options.gpus_per_trial, cpus
    resources = find_resources(*asked, retry) if options.address == "local" else cluster_resources(options.address, *asked)
    print("\n".join(preview_lines(selection, about_baseline)))
    if times := selection.num_openings:
        print(f"opened    the test files, for this search: {counted(times, 'time')} before; ledger.jsonl")
    print("\n".join([f"machine   {resources}{resources.which_gpus}", *cluster_lines(resources)]))
    check_test_files(relocated_config(selection.config, selection.relocated))
    if options.dry_run:
        print("Nothing was started, no test file was opened.")
        return DONE
    return run(selection, resources)


def _select(search: Search, options: argparse.Namespace) -> tuple[Selection, str]:
    """Build the selection that the options ask for; return it with a sentence about its baseline."""
    question = ask(search, options.per.replace(".", "/")) if options.per is not None else None
    finalists = question.best_trials if question else choose_trials(search, options.top or 3, options.no_retrain)
    baseline, about_baseline = None, "left out"
    if not options.no_baseline and question:
        baseline, about_baseline = choose_best_baseline(search, finalists)
    elif not options.no_baseline:
        baseline, about_baseline = choose_baseline(search, finalists, options.no_retrain)
    seeds = [] if options.no_retrain else fresh_seeds(options.seeds)
    config = finalists[0].config()
    relocated = find_relocated(search.plan, config, options.data, options.encoder)
    contenders = read_contenders([user_path(file) for file in options.config], config, relocated)
    return Selection(search, finalists, baseline, seeds, relocated, question, contenders), about_baseline


def check_test_files(config: TrialConfig) -> None:
    """Raise ValueError if a test file is missing, before hours of training."""
    folder = data_folder(config)
    if missing := missing_test_files(folder, [config.known_tasks[name] for name in config.train_on]):
        raise ValueError(
            f"There is no test file {', '.join(missing)} in {folder}. Put it there, or name its folder: --data DIR."
        )


# -------------------------------------------------------------------------------------------------------------- the run


def run(selection: Selection, resources: Resources, shows_report: bool = True) -> int:
    """Freeze, retrain, open the test split, report; return the exit code.

    shows_report: whether to print the report; table.md has it in any case.
    Raises Refused if another process works on this search.
    """
    search, relocated = selection.search, selection.relocated
    with lock(search.folder):
        if moved(relocated) != search.plan.moved:
            write_plan(search.folder, replace(read_plan(search.folder), moved=moved(relocated)))
        return _run(selection, resources, shows_report)


def _run(selection: Selection, resources: Resources, shows_report: bool) -> int:
    sha = selection.freeze()
    print(f"frozen    {selection.folder / 'selection.json'} (sha256 {sha[:12]})", flush=True)
    jobs = make_jobs(selection, resources)
    tracker = new_tracker(selection)
    tracker.start()
    try:
        failures, logits, splits, seen = _train_and_answer(selection, jobs, resources, sha, tracker)
        if not logits:
            print("No model could be trained; no test file was opened.", file=sys.stderr)
            tracker.close("FAILED")
            return FAILED
        lines = _report(selection, sha, failures, logits, splits, seen, tracker)
    except BaseException as error:
        tracker.close("KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED")
        raise
    if shows_report:
        show(["", *lines])
    if not tracker.close("FINISHED"):
        print(f"MLflow: {tracker.error} The table is in {selection.folder / 'table.md'}.", file=sys.stderr)
    if shows_report:
        print(f"compare   {ui_command(tracking_uri(selection.search), Path.cwd())}")
    return DONE


def _train_and_answer(
    selection: Selection, jobs: list[Job], resources: Resources, sha: str, tracker: Tracker
) -> tuple[dict[Job, str], dict[Job, Logits], Splits, Seen]:
    """Train the models that are not yet trained, then run all on dev and test.

    Return failures, logits, splits, and the rows of the splits that occur in train.
    """
    for job in jobs:
        track_job(tracker, job, next(trial.params for trial in selection.trials if trial.number == job.number))

    held = HeldRecords(tracker)
    with _ray(resources):
        if resources.cluster:
            folders = {relocated_config(trial.config(), selection.relocated).encoder.checkpoint for trial in selection.trials}
            check_folders(resources, selection.search.folder.parent, data_folder(selection.config), folders - {TINY})
        failures = train_jobs(jobs, selection.relocated, resources, held.add) if selection.seeds else {}
        for job, reason in failures.items():
            held.release(job)
            tracker.submit(Runs.trial_ended, run_number(job), "FAILED", reason, now_ms())
        models = [job for job in jobs if job not in failures]
        logits, splits, seen = _open_test(selection, models, resources, sha) if models else ({}, {}, {})
    return failures, logits, splits, seen


def _report(
    selection: Selection,
    sha: str,
    failures: dict[Job, str],
    logits: dict[Job, Logits],
    splits: Splits,
    seen: Seen,
    tracker: Tracker,
) -> list[str]:
    """Write results.json, the prediction files, the table and the figure, and log to MLflow; return the lines of table.md."""
    folder, config = selection.folder, selection.config
    results = measure(selection, logits, splits)
    ensembled, overlapping = ensembles(selection, results, logits, splits), overlaps(selection, logits, splits, seen)
    failed = {job.name: reason for job, reason in failures.items()}
    written = document(selection, sha, results, failed)
    written |= {"ensembles": [of.document() for of in ensembled], "seen_in_train": [of.document() for of in overlapping]}
    (folder / "results.json").write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    lines = report_lines(selection, results, failed)
    lines += ensemble_lines(selection, ensembled) + overlap_lines(selection, results, overlapping)
    lines += write_predictions(config, results, logits, splits, folder / "predictions", ensembled)
    (folder / "table.tex").write_text(table_tex(selection, results, ensembled), encoding="utf-8")
    figures = ", ".join(path.name for path in write_figure(selection, results, folder))
    lines += ["", f"For a report, in {folder}: table.tex (booktabs; holds a caption as a comment), {figures}"]
    lines += [f"To use {results.chosen.name} elsewhere: {analysis_command('export', str(results.chosen.folder))}"]
    (folder / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    track_results(tracker, results, lines, selection.num_openings, folder)
    return lines


@contextlib.contextmanager
def _ray(resources: Resources) -> Iterator[None]:
    """Run the block with a new, local Ray instance, or with the cluster of the resources."""
    import ray

    before = signal.getsignal(signal.SIGTERM)
    start_ray(resources, resources.cluster or "local")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray installs a handler that prints its C++ stack
    try:
        yield
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, before)


def _open_test(
    selection: Selection, models: list[Job], resources: Resources, sha: str
) -> tuple[dict[Job, Logits], Splits, Seen]:
    """Open the test split, once, and run every model on dev and test, each in the ids of its own tokenizer.

    Return their logits, both splits, and the rows of the splits that occur in train.
    """
    import ray

    config = selection.config
    configs = {trial.number: trial.config().model_copy(update={"train_on": config.train_on}) for trial in selection.trials}
    one_per_encoder = {own.encoder.checkpoint: own for own in reversed(configs.values())}
    every = {name: open_inputs(relocated_config(own, selection.relocated)) for name, own in one_per_encoder.items()}
    inputs = every[config.encoder.checkpoint]
    say(f"opening the test files (time {selection.num_openings + 1} for this search; ledger.jsonl)")
    entry = {
        "time": time.strftime("%FT%T%z"),
        "selection": str((selection.folder / "selection.json").relative_to(selection.test_folder)),
        "selection_sha256": sha,
        "models": [job.name for job in models],
        "tasks": list(config.train_on),
    }
    tasks = [config.known_tasks[name] for name in config.train_on]
    tokenizers = {encoder: of.tokenizer for encoder, of in every.items()}
    tests = open_test_splits(tasks, inputs.data_folder, tokenizers, selection.ledger, entry)
    for note in [note for split in tests[config.encoder.checkpoint].values() for note in split.notes]:
        say(note)
    splits = {(name, "dev"): split for name, split in inputs.dev.items()}
    splits |= {(name, "test"): split for name, split in tests[config.encoder.checkpoint].items()}
    remote = ray.remote(num_cpus=resources.cpus_per_trial, num_gpus=resources.gpus_per_trial)(answer)
    outs = {job: selection.test_folder / "logits" / job.name for job in models}
    own = {job: tests[configs[job.number].encoder.checkpoint] for job in models}
    ray.get([remote.remote(job.folder / "best", selection.relocated, own[job], outs[job]) for job in models])
    logits: dict[Job, Logits] = {
        job: {key: np.load(out / f"{key[0]}-{key[1]}.npy") for key in splits} for job, out in outs.items()
    }
    return logits, splits, {key: seen_rows(split, inputs.train[key[0]]) for key, split in splits.items()}


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGUSR1):  # like Ctrl-C; Slurm sends the latter before a job's time is over
        signal.signal(number, signal.default_int_handler)
    sys.exit(main())
