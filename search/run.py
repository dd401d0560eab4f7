"""The command line of a search: space + budget -> Ray's Tuner -> the table of the best and the next command.

    python -m search.run --space spaces/smart.yaml --gpus 4
    python -m search.run --resume smart

Exit codes: 0 done, or out of --hours with something evaluated, 1 no trial finished, 2 what was written is wrong, 3 right but
not here or not now, 4 done, but MLflow has not recorded all, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import secrets
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from minbert_core.settings import SettingsError, dump_yaml, parse_yaml
from search.drive import DONE, INTERRUPTED, go_on, next_command, run_search, start_ray
from search.environment import report
from search.estimate import check_disk, measured_lines
from search.narrate import describe
from search.options import parser
from search.plan import (
    Refused,
    check_cluster,
    find_resources,
    lock,
    make_plan,
    make_search_folder,
    new_search_folder,
    read_plan,
    wait_for_workers,
)
from search.searcher import unlimited
from search.space import Space, make_space, read_space
from search.status import show_status
from search.tracking import store_fault

WRONG, REFUSED = 2, 3


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, and turn every foreseen fault into its sentence and exit code."""
    options = parser().parse_args(arguments)
    try:
        return _main(options, sys.argv[1:] if arguments is None else arguments)
    except Refused as error:
        print(error, file=sys.stderr)
        return REFUSED
    except (SettingsError, ValueError) as error:
        print(error, file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:  # before the search itself, which has its own way to stop
        print("Interrupted before anything started.", file=sys.stderr)
        return INTERRUPTED


def _main(options: argparse.Namespace, arguments: list[str]) -> int:
    if options.env:
        print("\n".join(report()))
        return DONE
    if options.status is not None:
        folder = options.runs.absolute() / options.status
        show_status(folder, go_on(folder), next_command(folder))
        return DONE
    clock = _clock(options.hours)
    runs = options.runs.absolute()
    check_cluster(options.address)
    if (options.space is None) == (options.resume is None):
        raise ValueError("Give either --space FILE (a new search) or --resume NAME (go on with one).")
    if options.price is not None and (options.resume is not None or not options.dry_run):
        raise ValueError("--price is for the estimate of a new search: it goes with --space and --dry-run.")
    retry = shlex.join(["python", "-m", "search.run", *_without_gpus(arguments)])
    if options.resume is not None:
        return _resume(options, runs, retry, clock)
    sets = [*(options.set or [])]
    sets += [f"data={json.dumps(options.data)}"] if options.data else []
    sets += [f"encoder/checkpoint={json.dumps(options.encoder)}"] if options.encoder else []
    space = read_space(options.space, sets)
    resources = find_resources(options.gpus or "auto", options.gpus_per_trial, options.cpus_per_trial or 1, retry)
    folder = new_search_folder(runs, options.name, space.name)
    _check_store(options.tracking_uri)
    plan = make_plan(folder.name, space, options.seed or 0, options.trials, resources)
    check_disk(plan, runs)
    for line in plan.lines():
        print(line)
    if options.dry_run:
        _print_samples(plan.space)
        start = partial(start_ray, plan.resources, options.address)
        print(*measured_lines(plan, start, options.price, options.hours), sep="\n")
        print(f"Nothing was started. Without --dry-run the search goes to {folder}.")
        return DONE
    folder = make_search_folder(runs, options.name, space.name)
    plan = replace(plan, name=folder.name)
    with lock(folder):
        (folder / "space.yaml").write_text(dump_yaml(plan.space.document), encoding="utf-8")
        _write_plan(folder, plan.document(arguments) | {"id": secrets.token_hex(8), "tracking_uri": options.tracking_uri})
        return run_search(folder, plan, options.address, clock, resumed=False)


def _clock(hours: float | None) -> Callable[[], float]:
    """The seconds left of `hours` from now on."""
    if hours is None:
        return unlimited
    end = time.monotonic() + 3600 * hours
    return lambda: end - time.monotonic()


def _resume(options: argparse.Namespace, runs: Path, retry: str, seconds_left: Callable[[], float]) -> int:
    given = [flag for flag in ("set", "data", "encoder", "seed", "name") if getattr(options, flag) is not None]
    if given:
        raise ValueError(f"--resume takes everything from the record of the search; it does not go with --{given[0]}.")
    folder = runs / options.resume
    record = read_plan(folder)
    document, _ = parse_yaml((folder / "space.yaml").read_text(encoding="utf-8"), str(folder / "space.yaml"))
    space = replace(make_space(record["space_name"], document), encoders=record.get("encoders", {}))
    gpus = options.gpus or str(int(record["gpus"]))
    _check_hardware(record, gpus)
    per_trial = options.gpus_per_trial if options.gpus_per_trial is not None else record["gpus_per_trial"] or None
    resources = find_resources(gpus, per_trial, options.cpus_per_trial or record["cpus_per_trial"], retry)
    uri = options.tracking_uri or record.get("tracking_uri")
    _check_store(uri)
    num_trials = options.trials or record["trials"]
    if num_trials < record["trials"]:
        raise ValueError(f"--trials {num_trials} is fewer than the search's {record['trials']}; it may be raised only.")
    plan = make_plan(record["name"], space, record["seed"], num_trials, resources)
    changed = sorted(key for key, digest in plan.fingerprints().items() if record["fingerprints"].get(key) != digest)
    if changed:
        raise Refused(
            f"The data changed since the search began ({', '.join(changed)}): its trials could not be compared. "
            "Start a new search."
        )
    for line in plan.lines():
        print(line)
    if options.dry_run:
        print("Nothing was started.")
        return DONE
    with lock(folder):
        wait_for_workers(folder)
        _write_plan(folder, record | {"trials": num_trials, "tracking_uri": uri})
        return run_search(folder, plan, options.address, seconds_left, resumed=True)


def _check_store(uri: str | None) -> None:
    """Raise Refused where the MLflow store that was asked for cannot be logged to."""
    if uri is not None and (fault := store_fault(uri)):
        raise Refused(fault)


def _check_hardware(record: dict[str, Any], gpus: str) -> None:
    """Raise Refused where a search that began on GPUs would go on without, or the other way round."""
    import torch

    began_on_gpu, goes_on_gpu = record["gpus_per_trial"] > 0, torch.cuda.is_available() and gpus != "0"
    if began_on_gpu != goes_on_gpu:
        began, now = ("GPUs", "the CPU") if began_on_gpu else ("the CPU", "GPUs")
        raise Refused(
            f"The search {record['name']} began on {began} and would go on on {now}: its trials could not be compared. "
            "Go on on the same hardware, or start a new search."
        )


def _write_plan(folder: Path, document: dict[str, Any]) -> None:
    draft = folder / "plan.json.tmp"
    draft.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.replace(folder / "plan.json")


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
    sys.exit(main())
