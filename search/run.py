"""The command line of a search: space + budget -> Ray's Tuner -> the table of the best and the next command.

    python -m search.run --space spaces/smart.yaml --gpus 4
    python -m search.run --resume smart

Exit codes: 0 done, or out of --hours with something evaluated, 1 no trial finished, 2 what was written is wrong, 3 right but not
here or not now, 4 done, but MLflow has not recorded all, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import secrets
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from minbert_core.config import as_written
from minbert_core.settings import SettingsError, dump_yaml, parse_yaml
from search.costs import branch_table, choices_of, total_cost
from search.domains import NAME
from search.environment import own_version, report
from search.estimate import check_disk, measured_lines
from search.narrate import Narrator, describe, table
from search.plan import (
    Plan,
    Refused,
    Resources,
    check_cluster,
    counted,
    find_resources,
    lock,
    make_plan,
    make_search_folder,
    new_search_folder,
    read_plan,
    wait_for_workers,
)
from search.searcher import StopOnRequest, StudySearcher, TuneScheduler, unlimited
from search.space import Space, make_space, read_space
from search.status import show_status
from search.study import Study, TrialResult, mend_journal
from search.tracking import Tracker, dashboard_command, parse_tracking_uri, store_fault, store_uri, ui_command
from search.trainable import run_trial

DONE, NONE_FINISHED, WRONG, REFUSED, NOT_RECORDED, INTERRUPTED = 0, 1, 2, 3, 4, 130


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, and turn every foreseen fault into its sentence and exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m search.run",
        description="Search for the best configuration of a space.",
        epilog="examples:\n  python -m search.run --space spaces/smart.yaml --data data/ --gpus 4\n"
        "  python -m search.run --resume smart --trials 64",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what")
    what.add_argument("--space", type=Path, metavar="FILE", help="the search space, YAML")
    what.add_argument("--set", action="append", metavar="PATH=VALUE", help="override a value of the space: optimizer/lr=2e-5")
    what.add_argument("--data", metavar="DIR", help="folder with the course's files, or toy")
    what.add_argument("--encoder", metavar="NAME", help="hub name or folder of the pretrained BERT, or tiny")
    much = parser.add_argument_group("how much")
    much.add_argument("--trials", type=_positive, metavar="N", help="configurations to try, baselines included")
    much.add_argument("--hours", type=_hours, metavar="H", help="time to spend; what would not reach its next point pauses")
    much.add_argument("--gpus", type=_gpus, metavar="N|auto", help="GPUs to use; auto (default): all of this machine's")
    much.add_argument("--gpus-per-trial", type=_share, metavar="X", help="GPUs a trial, may be a fraction (default 1)")
    much.add_argument("--cpus-per-trial", type=_positive, metavar="N", help="CPU cores and threads a trial (default 1)")
    much.add_argument("--seed", type=_seed, metavar="N", help="of the sampler and of the trials (default 0)")
    where = parser.add_argument_group("where")
    where.add_argument("--name", type=_name, metavar="NAME", help="of the search (default: the space's, then -2, -3 …)")
    where.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="of all searches")
    where.add_argument(
        "--tracking-uri", type=_store, metavar="URI", help="MLflow server or file to log to: http://…, sqlite:///…"
    )
    where.add_argument("--address", type=_address, default="local", metavar="HOST:PORT", help="a Ray cluster to join")
    then = parser.add_argument_group("before and after")
    then.add_argument("--dry-run", action="store_true", help="print the plan, samples and the measured cost; start nothing")
    then.add_argument("--price", type=_price, metavar="X", help="of a GPU-hour (on the CPU: of the machine's), for --dry-run")
    then.add_argument("--env", action="store_true", help="print versions, hardware, places and settings, for a bug report")
    then.add_argument("--version", action="version", version=f"minbert-search {own_version()}")
    then.add_argument("--status", metavar="NAME", help="how a search goes that runs elsewhere, or has ended; changes nothing")
    then.add_argument("--resume", metavar="NAME", help="go on with a search that was interrupted, or give it more --trials")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more. Got '{text}'.")
    return int(text)


def _hours(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of hours above 0, as in 1.5. Got '{text}'.")
    return value


def _seed(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be a whole number of 0 or more. Got '{text}'.")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf or (value > 1 and value != int(value)):
        raise argparse.ArgumentTypeError(f"must be a fraction of one GPU, or a whole number of GPUs. Got '{text}'.")
    return value


def _price(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, as in 1.25. Got '{text}'.")
    return value


def _name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"must be made of a-z, 0-9, _ and -. Got '{text}'.")
    return text


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if text != "local" and not (host and port.isdigit() and "/" not in host):
        raise argparse.ArgumentTypeError(f"must be HOST:PORT. Got '{text}'.")
    return text


def _store(text: str) -> str:
    try:
        return parse_tracking_uri(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _gpus(text: str) -> str:
    if text != "auto" and not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be a whole number or auto. Got '{text}'.")
    return text


def _main(options: argparse.Namespace, arguments: list[str]) -> int:
    if options.env:
        print("\n".join(report()))
        return DONE
    if options.status is not None:
        folder = options.runs.absolute() / options.status
        show_status(folder, _go_on(folder), _next(folder))
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


# ----------------------------------------------------------------------------------------------------------- the search


def run_search(folder: Path, plan: Plan, address: str, seconds_left: Callable[[], float], resumed: bool) -> int:
    """Run (or go on with) the search in `folder` to its end, to Ctrl-C, or while there is time; the exit code."""
    record = read_plan(folder)
    uri = record.get("tracking_uri") or store_uri(folder.parent)
    files = [folder / "space.yaml", folder / "plan.json"]
    note, digests, num_rows = _note(plan, folder, []), plan.fingerprints(), _num_rows(plan)
    tracker = Tracker(uri, plan.name, note, _tags(plan), _params(plan), digests, files, resumed, num_rows, record.get("id"))
    tracker.start()
    rungs = plan.space.settings.rungs
    tasks, slots = list(plan.config.train_on), plan.resources.slots
    narrator = Narrator(folder, tasks, plan.num_trials, slots, rungs[-1], tracker, plan.examples)
    with contextlib.closing(narrator), _Interrupts(narrator.say) as interrupts:
        narrator.log.write("\n".join(plan.lines(num_dropped=None)) + "\n")  # the terminal has them already
        narrator.show([f"folder    {folder}", _dashboard(folder), f"mlflow    {ui_command(uri, Path.cwd())}"])
        mend_journal(folder)
        study = Study(folder, plan.space, plan.seed)
        scheduler = plan.space.settings.trial_scheduler.build(rungs, plan.num_trials)
        unfinished = study.restore(scheduler) if resumed else []
        narrator.replay(study.results())
        if resumed:
            narrator.say(f"resumed; {narrator.num_done()} of {plan.num_trials} trials have ended, {len(unfinished)} go on")
        searcher = StudySearcher(study, scheduler, plan.num_trials, unfinished, narrator, seconds_left)
        try:
            if searcher.has_more():
                with narrator.screen:
                    _fit(plan, searcher, TuneScheduler(scheduler, rungs, seconds_left), address, interrupts)
            if not interrupts.seen:
                searcher.pause_the_rest()
        except BaseException:  # a fault of Ray's or ours, raised on: what was done stays
            narrator.show([f"go on     {_go_on(folder)}"])
            tracker.close("FAILED")
            raise
        return _close(folder, plan, study.results(), narrator, interrupts.seen, uri)


def start_ray(resources: Resources, address: str) -> None:
    """Start a Ray instance of one's own (address `local`) with `resources`, or join the cluster at `address`; quietly.

    Raises Refused where Ray does not start.
    """
    import logging

    import ray

    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    local: dict[str, Any] = {}
    if address == "local":
        temporary = tempfile.gettempdir()
        # sockets lie 80 characters below it, and a socket's path may have 107 (on macOS 103)
        scratch = Path(temporary if len(temporary) < 20 else "/tmp") / f"minbert-ray-{os.getuid()}"
        local = {"num_cpus": resources.cpus, "num_gpus": resources.gpus, "include_dashboard": False, "_temp_dir": str(scratch)}
        local["object_store_memory"] = 100 * 1024**2  # reports only; data goes by path
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except Exception as error:  # Ray raises a plain one where its processes are not up within 30 s
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Refused(f"Ray did not start; is this machine overloaded, or its disk full? It says: {reason}") from error


def _fit(plan: Plan, searcher: Any, scheduler: Any, address: str, interrupts: _Interrupts) -> None:
    """Hand everything to Ray Tune and wait until the trials have ended, or an interrupt was seen."""
    import ray
    from ray import tune

    start_ray(plan.resources, address)
    interrupts.listen()  # again: Ray has put a handler of its own in place, which leaves at once
    storage = Path(tempfile.mkdtemp(prefix="minbert-tune-"))
    resources = {"cpu": plan.resources.cpus_per_trial, "gpu": plan.resources.gpus_per_trial}
    tuner = tune.Tuner(
        tune.with_resources(run_trial, resources),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=-1,
            max_concurrent_trials=plan.resources.slots,
            reuse_actors=False,
        ),
        run_config=tune.RunConfig(
            name=plan.name,
            storage_path=str(storage),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
            stop=StopOnRequest(lambda: interrupts.seen),
        ),
    )
    try:
        if not interrupts.seen:
            tuner.fit()
    finally:
        ray.shutdown()
        shutil.rmtree(storage, ignore_errors=True)


class _Interrupts:
    """Ctrl-C and SIGTERM while a search runs: answered at once by a thread, `seen` by the main one, never raised.

    The main thread may wait inside Ray or be in the middle of a file: it is asked to end, and a second Ctrl-C breaks nothing.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.seen = say, False

    def __enter__(self) -> _Interrupts:
        self.read, self.write = os.pipe()
        os.set_blocking(self.write, False)
        self.previous = signal.set_wakeup_fd(self.write, warn_on_full_buffer=False)
        self.handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self.listen()
        self.thread = threading.Thread(target=self._answer, daemon=True)
        self.thread.start()
        return self

    def listen(self) -> None:
        for number in self.handlers:
            signal.signal(number, lambda *_: None)  # Python writes the signal's number to the pipe before it calls this

    def _answer(self) -> None:
        while received := os.read(self.read, 64):
            if signal.SIGINT in received or signal.SIGTERM in received:
                self.say("stopping already, some seconds more …" if self.seen else "stopping; the trials' states are saved …")
                self.seen = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self.previous)
        os.close(self.write)
        self.thread.join()
        os.close(self.read)


def _close(folder: Path, plan: Plan, results: list[TrialResult], narrator: Narrator, interrupted: bool, uri: str) -> int:
    """Show the table and the next command, and end the record in MLflow; the exit code."""
    resources = plan.resources
    rows = table(results, narrator.tasks, gpus_per_trial=resources.gpus_per_trial) if results else []
    if branches := branch_table(results, choices_of(plan.space)):
        rows += ["", *branches]
    cost = f"cost      {total_cost(results, resources.cpus_per_trial, resources.gpus_per_trial)}"
    statuses = [trial.status for trial in results]
    counts = {status: statuses.count(status) for status in ("completed", "stopped", "failed", "running")}
    summary = ", ".join(f"{count} {'paused' if status == 'running' else status}" for status, count in counts.items() if count)
    narrator.show(["", f"{counted(len(results), 'trial')}: {summary or 'none has begun'}.", *rows, "", cost])
    if (folder / "best").exists():
        narrator.show([f"best      {folder / 'best'}"])
    narrator.show([f"compare   {ui_command(uri, Path.cwd())}", _dashboard(folder)])
    paused, not_begun = counts["running"], plan.num_trials - len(results)
    out_of_time = not interrupted and paused + not_begun > 0
    worked = counts["completed"] > 0 or (out_of_time and any(trial.points for trial in results))
    if out_of_time:
        narrator.show([f"paused    {counted(paused, 'trial')}, and {not_begun} not begun: no time was left for a next point"])
    if interrupted or out_of_time:
        narrator.show([f"go on     {_go_on(folder)}"])
    if counts["completed"] and not interrupted:
        narrator.show([f"next      {_next(folder)}"])
    if counts["failed"] and not interrupted and not worked:
        narrator.show([f"reasons   {folder / 'trials'}/*/log.txt"])
    narrator.tracker.note(_note(plan, folder, [*rows, "", cost]))
    recorded = narrator.tracker.close("KILLED" if interrupted else "FINISHED" if worked else "FAILED")
    if not recorded:
        print(f"\033[31mMLflow: {narrator.tracker.error}\033[0m", file=sys.stderr)
        print(f"The search itself is whole; only MLflow lacks something. This logs it again: {_go_on(folder)}", file=sys.stderr)
    if interrupted:
        return INTERRUPTED
    if not worked:
        return NONE_FINISHED
    return DONE if recorded else NOT_RECORDED


# -------------------------------------------------------------------------------------------------------------- words


def _go_on(folder: Path) -> str:
    return shlex.join(["python", "-m", "search.run", "--resume", folder.name, *_runs_option(folder)])


def _next(folder: Path) -> str:
    return shlex.join(["python", "analysis/best_to_test.py", "--search", folder.name, *_runs_option(folder)])


def _dashboard(folder: Path) -> str:
    return f"dashboard {dashboard_command(folder / 'study.journal', Path.cwd())}"


def _runs_option(folder: Path) -> list[str]:
    return [] if folder.parent == Path.cwd() / "runs" else ["--runs", os.path.relpath(folder.parent)]


def _note(plan: Plan, folder: Path, lines: list[str]) -> str:
    body = "\n".join(lines) if lines else "(running)"
    return (
        f"**{plan.space.settings.about or plan.name}**\n\n{body}\n\n"
        f"Next: `python analysis/best_to_test.py --search {plan.name}`\n\nFolder: `{folder}`\n\n"
        "A trial that its rung stopped is FINISHED with a `stop_reason`; FAILED is a fault. The chart page shows ten runs at "
        "first: choose *Show all* in the eye menu. Metric names in filters need backticks: ``metrics.`dev/norm` > 0.7``."
    )


def _tags(plan: Plan) -> dict[str, str]:
    record = plan.document([])
    versions = {f"version/{name}": text for name, text in record["versions"].items()}
    return {"about": plan.space.settings.about, "git": record["git_commit"], **versions}


def _num_rows(plan: Plan) -> dict[str, int]:
    """Rows of each data set, under the names of the plan's fingerprints."""
    splits = {"train": plan.inputs.train, "dev": plan.inputs.dev}
    return {f"{name}-{split}": len(rows[name]) for name in plan.config.train_on for split, rows in splits.items()}


def _params(plan: Plan) -> dict[str, Any]:
    return {
        "trials": plan.num_trials,
        "seed": plan.seed,
        "examples": plan.examples,
        "rungs": list(plan.space.settings.rungs),
        "objective": as_written(plan.config.objective),
        "encoder": plan.config.encoder.checkpoint,
        "data": plan.config.data,
        "tasks": list(plan.config.train_on),
        "resources": str(plan.resources),
        **{f"space/{name}": str(domain) for name, (domain, _) in plan.space.domains().items()},
    }


if __name__ == "__main__":
    sys.exit(main())
