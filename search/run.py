"""A search, from the command line or from Python: space + budget -> Ray's Tuner -> the table of the best, the next command.

    python -m search.run --space spaces/smart.yaml --gpus 4         table = run("spaces/smart.yaml", gpus=4)
    python -m search.run --resume smart                             table = run(resume="smart")

The exit codes are those of minbert_core/commands.py. 0 includes a search that ran out of --hours after an evaluation. 1: no
trial finished.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the other imports, which take seconds
    from minbert_core.commands import check_command_line, end_when_interrupted
    from search.options import parser

    end_when_interrupted("Interrupted before anything started.")
    check_command_line(parser())

import argparse
import json
import os
import secrets
import shlex
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import pyarrow as pa

from minbert_core.commands import DONE, FAILED, INTERRUPTED, NOT_RECORDED, Refused, run_command
from minbert_core.cores import usable_cores
from minbert_core.files import cache_folder
from minbert_core.settings.yaml import dump_yaml
from search.cluster.reach import check_storage
from search.cost.estimate import check_disk, measured_lines
from search.cost.packing import packed
from search.drive import next_command, resume_command, run_search
from search.earlier import with_best_of, with_known_trials
from search.environment import report
from search.options import Keywords, SearchOptions, from_arguments, from_keywords, parser
from search.plan.folder import (
    check_format,
    claim_search_folder,
    clear_failed_start,
    lock,
    new_search_folder,
    wait_for_workers,
    write_plan,
    write_space,
)
from search.plan.on_cluster import cluster_resources
from search.plan.plan import Plan, make_plan
from search.plan.resources import Resources, find_resources
from search.plan.resume import asked_space, resumed_plan, resumes
from search.plan.summary import plan_lines, plan_record
from search.report.status import show_status
from search.report.weights_and_biases import wandb_fault
from search.report.words import describe
from search.results import Search, open_search, read
from search.space.space import Space, read_space
from search.study.engine import STOPS, start_ray
from search.study.repair import repair
from search.study.searcher import unlimited
from search.study.watch import RayDied, leave
from search.tracking.store import store_fault

UNNAMED = "search"  # the default name of a space that is not a file


def run(space: str | Path | dict[str, Any] | None = None, **keywords: Unpack[Keywords]) -> pa.Table:
    """Run the command from a notebook or a script, with the same checks, defaults, files and lines on stdout.

    space: a file, or its content as maps and lists, which `name` then names.  None: resume="NAME" resumes a search.
    keywords: the options of `python -m search.run --help`, with _ for -: set, data, encoder, trials, hours, gpus,
    gpus_per_trial, cpus_per_trial, seed, from_, name, runs, tracking_uri, address, storage, resume, retries, retry_failed,
    tensorboard, wandb, patience.
    Returns `search.results.read` of the search: one row per trial, best first; `.to_pandas()` makes it a data frame.
    Raises ValueError with the command's message (SettingsError for a fault of the space; Refused for something valid, but
    impossible here or now); KeyboardInterrupt after Ctrl-C or a notebook's stop, once the trials' states are saved;
    RuntimeError if no trial finished. Warns if MLflow has not recorded everything.
    """
    if threading.current_thread() is not threading.main_thread():
        raise Refused("Only the main thread of a process receives Ctrl-C, which a search needs. Call it from there.")
    folder, code = start_or_resume(from_keywords(space, keywords))
    if code == INTERRUPTED:
        raise KeyboardInterrupt(f"The trials' states are saved. {_call(folder)} resumes the search.")
    if code == FAILED:
        raise RuntimeError(f"No trial of {folder.name} finished. The reasons are in {folder}/trials/*/log.txt.")
    if code == NOT_RECORDED:
        warnings.warn(f"MLflow lacks some records of {folder.name}. {_call(folder)} logs them again.", stacklevel=2)
    return read(folder.name, runs=folder.parent)


def _call(folder: Path) -> str:
    """Return the call that resumes the search in `folder`."""
    elsewhere = "" if folder.parent == Path.cwd() / "runs" else f", runs={str(folder.parent)!r}"
    return f"run(resume={folder.name!r}{elsewhere})"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    body = partial(_main, arguments=sys.argv[1:] if arguments is None else arguments)
    # a running search handles interrupts itself
    return run_command(parser(), arguments, body, writes="runs", interrupted="Interrupted before anything started.")


def _main(parsed: argparse.Namespace, arguments: list[str]) -> int:
    if parsed.env:
        print("\n".join(report()))
        return DONE
    if parsed.status is not None:
        folder = parsed.runs.absolute() / parsed.status
        show_status(folder, resume_command(folder), next_command(folder))
        return DONE
    options = from_arguments(parsed, arguments)
    if parsed.print:
        return _print_space(options)
    try:
        _, code = start_or_resume(options)
    except RayDied as error:
        leave(error)
    return code


def _print_space(options: SearchOptions) -> int:
    """Print the space with what it extends and all overrides as YAML that runs by itself."""
    if options.space is None:
        raise ValueError("--print composes a space. Give it with --space FILE; runs/NAME/space.yaml is that of a search.")
    space, lines = _new_space(options, options.name or UNNAMED)
    print("".join(f"# {line}\n" for line in lines) + dump_yaml(space.document), end="")
    return DONE


def start_or_resume(options: SearchOptions) -> tuple[Path, int]:
    """Start or resume a search and run it to its end. Return its folder and the exit code.

    Raises what `run` raises for options and files; nothing was started then.
    """
    clock, load = _clock(options.hours), os.getloadavg()[0]
    runs = options.runs.absolute()
    if options.prepare:
        return _prepare(options, runs)
    resumed = resumes(options, runs)
    if options.price is not None and (options.resume is not None or not options.dry_run):
        raise ValueError("--price belongs to the estimate of a new search. Give it with --space and --dry-run.")
    if options.retry_failed and options.resume is None:
        raise ValueError("--retry-failed runs the failed trials of a search again. Give it with --resume NAME.")
    retry = shlex.join(["python", "-m", "search.run", *_without_gpus(options.arguments)])
    if resumed and options.resume is not None:
        return runs / options.resume, _resume(options, runs / options.resume, retry, clock)
    asked = asked_space(options) if options.space is not None else ""
    plan = _new_plan(options, runs, retry)
    print("\n".join(plan_lines(plan)))
    if options.dry_run:
        _print_samples(plan.space)
        start = partial(start_ray, plan.resources, options.address)
        print(*measured_lines(plan, start, options.price, options.hours, load), sep="\n")
        print(f"Nothing was started. Without --dry-run the search goes to {runs / plan.name}.")
        return runs / plan.name, DONE
    return _start(options, plan, runs, asked, clock)


def _prepare(options: SearchOptions, runs: Path) -> tuple[Path, int]:
    """Do everything of a search that needs a network or writes to the cache, on this machine's CPU. Start nothing."""
    if options.space is None:
        raise ValueError("--prepare prepares a new search. Give it with --space FILE.")
    space, _ = _new_space(options, options.name or UNNAMED)
    plan = make_plan(space.name, space, options.seed or 0, options.trials, Resources(usable_cores(), 0, 1, 0))
    print(f"data      {plan.inputs.data_folder}")
    print("\n".join(f"encoder   {folder}" for folder in dict.fromkeys(plan.space.encoders.values())) or "encoder   tiny")
    print(f"cache     {cache_folder()}")
    print("Prepared: a search of this space needs no network, where it sees these folders. Set HF_HUB_OFFLINE=1 there.")
    return runs / space.name, DONE


def _new_space(options: SearchOptions, name: str) -> tuple[Space, list[str]]:
    """Return the space that the user asks for, and a line for each trial of an earlier search that is a baseline of it."""
    assert options.space is not None, "the caller has refused this"
    space = read_space(options.space, _sets(options), name)
    earlier, _, most = (options.from_ or "").partition(":")
    return with_best_of(_earlier(options, earlier), int(most), space) if most else (space, [])


def _earlier(options: SearchOptions, name: str) -> Search:
    """Open an earlier search.  Raises Refused: its format is another, so that the defaults of its configs are others."""
    search = open_search(options.runs.absolute() / name)
    check_format(search.plan)
    return search


def _sets(options: SearchOptions) -> list[str]:
    """Return --set, --data and --encoder as overrides of the space."""
    sets = [*options.set]
    sets += [f"data={json.dumps(options.data)}"] if options.data is not None else []
    return sets + ([f"encoder/checkpoint={json.dumps(options.encoder)}"] if options.encoder is not None else [])


def _new_plan(options: SearchOptions, runs: Path, retry: str) -> Plan:
    """Plan a new search in `runs`, with a free name. Without a number of GPUs, a probe decides how many trials share one."""
    name = options.resume or options.name
    space, notes = _new_space(options, name or UNNAMED)
    asked = options.gpus or "auto", options.gpus_per_trial, options.cpus_per_trial or 1
    if options.storage is not None:
        check_storage(options.storage)
    if options.address == "local":
        resources = replace(find_resources(*asked, retry, estimate="--dry-run"), storage=options.storage or "")
    else:
        resources = cluster_resources(options.address, *asked, options.storage or "")
    folder = new_search_folder(runs, name, space.name)
    if options.tracking_uri is not None and (fault := store_fault(options.tracking_uri)):
        raise Refused(fault)
    if options.wandb and (fault := wandb_fault()):
        raise Refused(fault)
    plan = make_plan(folder.name, space, options.seed or 0, options.trials, resources)
    plan = replace(plan, notes=tuple(notes))
    if options.from_ is not None and ":" not in options.from_:
        plan = with_known_trials(_earlier(options, options.from_), plan)
    check_disk(plan, runs)
    if options.gpus in (None, "auto") and options.gpus_per_trial is None:
        plan = packed(plan, options.address, partial(start_ray, address=options.address))
        check_disk(plan, runs)
    return plan


def _start(options: SearchOptions, plan: Plan, runs: Path, asked: str, clock: Callable[[], float]) -> tuple[Path, int]:
    """Make the search's folder, with its space and its plan, and run the search. Return the folder and the exit code.

    asked: the digest of the space as it was read.
    """
    folder, held = claim_search_folder(runs, options.resume or options.name, plan.space.name)
    plan = replace(plan, name=folder.name)
    with held:
        clear_failed_start(folder)
        search_id, written = secrets.token_hex(8), write_space(folder, plan.space.document)
        write_plan(folder, plan_record(plan, options.arguments, search_id, options.tracking_uri, asked, written))
        return folder, run_search(folder, plan, options, clock)


def _clock(hours: float | None) -> Callable[[], float]:
    """Start a clock that returns the seconds left of `hours`."""
    if hours is None:
        return unlimited
    end = time.monotonic() + 3600 * hours
    return lambda: end - time.monotonic()


def _resume(options: SearchOptions, folder: Path, retry: str, seconds_left: Callable[[], float]) -> int:
    plan, record = resumed_plan(options, folder, retry)
    if options.wandb and (fault := wandb_fault()):
        raise Refused(fault)
    print("\n".join(plan_lines(plan)))
    if options.dry_run:
        print("Nothing was started.")
        return DONE
    with lock(folder):
        wait_for_workers(folder)
        repairs = repair(folder, plan.space, plan.seed)  # before anything is written: it may refuse
        write_plan(folder, record)
        return run_search(folder, plan, options, seconds_left, repairs)


def _without_gpus(arguments: Sequence[str]) -> list[str]:
    """Return a command line without --gpus and its value."""
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument == "--gpus":
            skip = True
        elif not argument.startswith("--gpus="):
            kept.append(argument)
    return kept


def _print_samples(space: Space) -> None:
    """Print the baselines and a few random points, as the sampler itself begins."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for i in range(len(space.baselines)):
        print(f"baseline  {describe(space.baseline(i).params)}")
    for _ in range(3):
        trial = study.ask()
        print(f"sample    {describe(space.sample(lambda name, domain, t=trial: domain.suggest(t, name)).params)}")  # type: ignore[misc]


if __name__ == "__main__":
    for number in STOPS:  # like Ctrl-C, from the start
        if signal.getsignal(number) != signal.SIG_IGN:  # as SIGHUP is under nohup
            signal.signal(number, signal.default_int_handler)
    sys.exit(main())
