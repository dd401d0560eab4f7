"""A search, typed or called: space + budget -> Ray's Tuner -> the table of the best and the next command.

    python -m search.run --space spaces/smart.yaml --gpus 4         table = run("spaces/smart.yaml", gpus=4)
    python -m search.run --resume smart                             table = run(resume="smart")

Exit codes of the command are those of minbert_core/commands.py: 0 also out of --hours with something evaluated, 1 no trial
finished.
"""

from __future__ import annotations

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
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import pyarrow as pa

from minbert_core.commands import DONE, FAILED, INTERRUPTED, NOT_RECORDED, Refused, expand_paths, run_command
from minbert_core.settings.yaml import dump_yaml
from search.cost.estimate import check_disk, measured_lines
from search.cost.packing import packed
from search.drive import go_on, next_command, run_search
from search.environment import report
from search.options import Options, as_arguments, parse, parser
from search.plan.folder import (
    check_unused,
    clear_failed_start,
    lock,
    make_search_folder,
    new_search_folder,
    wait_for_workers,
    write_plan,
)
from search.plan.plan import make_plan
from search.plan.resources import check_cluster, find_resources
from search.plan.resume import asked_space, goes_on, resumed_plan
from search.report.status import show_status
from search.report.words import describe
from search.results import read
from search.space.space import Space, read_space
from search.study.engine import STOPS, start_ray
from search.study.searcher import unlimited
from search.tracking.store import store_fault

UNNAMED = "search"  # the name of a space that is no file, where none is given


def run(space: str | Path | dict[str, Any] | None = None, **options: Unpack[Options]) -> pa.Table:
    """What the command does, from a notebook or a script: the same checks, defaults, lines on stdout and files; its trials.

    space: a file, or what would stand in it, as maps and lists; `name` then names it, too.  None: resume="NAME" goes on.
    options: those of `python -m search.run --help`, with _ for -: set, data, encoder, trials, hours, gpus, gpus_per_trial,
    cpus_per_trial, seed, name, runs, tracking_uri, address, resume.
    Returns `search.results.read` of the search: a row a trial, best first; `.to_pandas()` makes it a data frame.
    Raises ValueError (SettingsError where the space is at fault; Refused: right, but not here or not now) with the sentence
    that the command prints; KeyboardInterrupt after Ctrl-C or a notebook's stop, the trials' states being saved; RuntimeError
    if no trial finished. Warns if MLflow has not recorded all.
    """
    if threading.current_thread() is not threading.main_thread():
        raise Refused("A search listens to Ctrl-C, which only the main thread of a process hears: call it from there.")
    is_file = isinstance(space, str | Path)
    named = [] if space is None else [f"--space={space if is_file else 'FILE'}"]
    arguments = [*named, *as_arguments(options)]
    parsed = expand_paths(parse(arguments))
    if not is_file:
        parsed.space = space
    folder, code = _search(parsed, arguments)
    if code == INTERRUPTED:
        raise KeyboardInterrupt(f"The trials' states are saved. {_call(folder)} goes on.")
    if code == FAILED:
        raise RuntimeError(f"No trial of {folder.name} finished; the reasons stand in {folder}/trials/*/log.txt.")
    if code == NOT_RECORDED:
        warnings.warn(f"MLflow lacks something of {folder.name}; {_call(folder)} logs it again.", stacklevel=2)
    return read(folder.name, runs=folder.parent)


def _call(folder: Path) -> str:
    """`go_on` for Python."""
    elsewhere = "" if folder.parent == Path.cwd() / "runs" else f", runs={str(folder.parent)!r}"
    return f"run(resume={folder.name!r}{elsewhere})"


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit code."""
    body = partial(_main, arguments=sys.argv[1:] if arguments is None else arguments)
    # a search that has begun has a way of its own to stop
    return run_command(parser(), arguments, body, writes="runs", interrupted="Interrupted before anything started.")


def _main(options: argparse.Namespace, arguments: list[str]) -> int:
    if options.env:
        print("\n".join(report()))
        return DONE
    if options.status is not None:
        folder = options.runs.absolute() / options.status
        show_status(folder, go_on(folder), next_command(folder))
        return DONE
    _, code = _search(options, arguments)
    return code


def _search(options: argparse.Namespace, arguments: list[str]) -> tuple[Path, int]:
    """Begin a search, or go on with one, and run it to its end; its folder, and the exit code."""
    clock, load = _clock(options.hours), os.getloadavg()[0]
    runs = options.runs.absolute()
    check_cluster(options.address)
    resumed = goes_on(options, runs)
    if options.price is not None and (options.resume is not None or not options.dry_run):
        raise ValueError("--price is for the estimate of a new search: it goes with --space and --dry-run.")
    retry = shlex.join(["python", "-m", "search.run", *_without_gpus(arguments)])
    if resumed:
        return runs / options.resume, _resume(options, runs / options.resume, retry, clock)
    name = options.resume or options.name
    sets = [*(options.set or [])]
    sets += [f"data={json.dumps(options.data)}"] if options.data else []
    sets += [f"encoder/checkpoint={json.dumps(options.encoder)}"] if options.encoder else []
    space = read_space(options.space, sets, name or UNNAMED)
    resources = find_resources(
        options.gpus or "auto", options.gpus_per_trial, options.cpus_per_trial or 1, retry, estimate="--dry-run"
    )
    folder = new_search_folder(runs, name, space.name)
    if options.tracking_uri is not None and (fault := store_fault(options.tracking_uri)):
        raise Refused(fault)
    plan = make_plan(folder.name, space, options.seed or 0, options.trials, resources)
    check_disk(plan, runs)
    if options.gpus in (None, "auto") and options.gpus_per_trial is None:
        plan = packed(plan, options.address, partial(start_ray, address=options.address))
        check_disk(plan, runs)
    for line in plan.lines():
        print(line)
    if options.dry_run:
        _print_samples(plan.space)
        start = partial(start_ray, plan.resources, options.address)
        print(*measured_lines(plan, start, options.price, options.hours, load), sep="\n")
        print(f"Nothing was started. Without --dry-run the search goes to {folder}.")
        return folder, DONE
    folder = make_search_folder(runs, name, space.name)
    plan = replace(plan, name=folder.name)
    with lock(folder):
        check_unused(folder)  # again: another may have had the lock until now
        clear_failed_start(folder)
        (folder / "space.yaml").write_text(dump_yaml(plan.space.document), encoding="utf-8")
        own = {"id": secrets.token_hex(8), "tracking_uri": options.tracking_uri}
        own["space_sha256"] = asked_space(options.space, options.set or [])
        write_plan(folder, plan.document(arguments) | own)
        return folder, run_search(folder, plan, options.address, clock, resumed=False)


def _clock(hours: float | None) -> Callable[[], float]:
    """The seconds left of `hours` from now on."""
    if hours is None:
        return unlimited
    end = time.monotonic() + 3600 * hours
    return lambda: end - time.monotonic()


def _resume(options: argparse.Namespace, folder: Path, retry: str, seconds_left: Callable[[], float]) -> int:
    plan, record = resumed_plan(options, folder, retry)
    for line in plan.lines():
        print(line)
    if options.dry_run:
        print("Nothing was started.")
        return DONE
    with lock(folder):
        wait_for_workers(folder)
        write_plan(folder, record)
        return run_search(folder, plan, options.address, seconds_left, resumed=True)


def _without_gpus(arguments: list[str]) -> list[str]:
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
    """The baselines, and a few points drawn at random (the sampler itself begins so)."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for i in range(len(space.baselines)):
        print(f"baseline  {describe(space.baseline(i).params)}")
    for _ in range(3):
        trial = study.ask()
        print(f"sample    {describe(space.sample(lambda name, domain, t=trial: domain.suggest(t, name)).params)}")  # type: ignore[misc]


if __name__ == "__main__":
    for number in STOPS:  # as Ctrl-C, from the first moment on
        signal.signal(number, signal.default_int_handler)
    sys.exit(main())
