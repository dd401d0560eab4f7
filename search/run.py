"""The command line of a search: space + budget -> Ray's Tuner -> the table of the best and the next command.

    python -m search.run --space spaces/smart.yaml --gpus 4
    python -m search.run --resume smart

Exit codes: 0 done, 1 no trial finished, 2 what was written is wrong, 3 right but not here or not now, 4 done, but MLflow has
not recorded all, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shlex
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from minbert_core.config import as_written
from minbert_core.settings import SettingsError, dump_yaml, parse_yaml
from search.domains import NAME
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
from search.rungs import RungScheduler
from search.space import Space, make_space, read_space
from search.study import StopOnRequest, Study, StudySearcher, TrialResult, mend_journal
from search.tracking import Tracker, store_uri, ui_command
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
    much.add_argument("--gpus", type=_gpus, metavar="N|auto", help="GPUs to use; auto (default): all of this machine's")
    much.add_argument("--gpus-per-trial", type=_share, metavar="X", help="GPUs a trial, may be a fraction (default 1)")
    much.add_argument("--cpus-per-trial", type=_positive, metavar="N", help="CPU cores and threads a trial (default 1)")
    much.add_argument("--seed", type=_seed, metavar="N", help="of the sampler and of the trials (default 0)")
    where = parser.add_argument_group("where")
    where.add_argument("--name", type=_name, metavar="NAME", help="of the search (default: the space's, then -2, -3 …)")
    where.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="of all searches")
    where.add_argument("--address", type=_address, default="local", metavar="HOST:PORT", help="a Ray cluster to join")
    then = parser.add_argument_group("before and after")
    then.add_argument("--dry-run", action="store_true", help="print the plan and some samples, check everything, start nothing")
    then.add_argument("--resume", metavar="NAME", help="go on with a search that was interrupted, or give it more --trials")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more. Got '{text}'.")
    return int(text)


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


def _name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"must be made of a-z, 0-9, _ and -. Got '{text}'.")
    return text


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if text != "local" and not (host and port.isdigit() and "/" not in host):
        raise argparse.ArgumentTypeError(f"must be HOST:PORT. Got '{text}'.")
    return text


def _gpus(text: str) -> str:
    if text != "auto" and not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be a whole number or auto. Got '{text}'.")
    return text


def _main(options: argparse.Namespace, arguments: list[str]) -> int:
    runs = options.runs.absolute()
    check_cluster(options.address)
    if (options.space is None) == (options.resume is None):
        raise ValueError("Give either --space FILE (a new search) or --resume NAME (go on with one).")
    retry = shlex.join(["python", "-m", "search.run", *_without_gpus(arguments)])
    if options.resume is not None:
        return _resume(options, runs, retry)
    sets = [*(options.set or [])]
    sets += [f"data={json.dumps(options.data)}"] if options.data else []
    sets += [f"encoder/checkpoint={json.dumps(options.encoder)}"] if options.encoder else []
    space = read_space(options.space, sets)
    resources = find_resources(options.gpus or "auto", options.gpus_per_trial, options.cpus_per_trial or 1, retry)
    folder = new_search_folder(runs, options.name, space.name)
    plan = make_plan(folder.name, space, options.seed or 0, options.trials, resources)
    for line in plan.lines():
        print(line)
    if options.dry_run:
        _print_samples(plan.space)
        print(f"Nothing was started. Without --dry-run the search goes to {folder}.")
        return DONE
    folder = make_search_folder(runs, options.name, space.name)
    plan = replace(plan, name=folder.name)
    with lock(folder):
        (folder / "space.yaml").write_text(dump_yaml(plan.space.document), encoding="utf-8")
        _write_plan(folder, plan.document(arguments))
        return run_search(folder, plan, options.address, resumed=False)


def _resume(options: argparse.Namespace, runs: Path, retry: str) -> int:
    given = [flag for flag in ("set", "data", "encoder", "seed", "name") if getattr(options, flag) is not None]
    if given:
        raise ValueError(f"--resume takes everything from the record of the search; it does not go with --{given[0]}.")
    folder = runs / options.resume
    record = read_plan(folder)
    document, _ = parse_yaml((folder / "space.yaml").read_text(encoding="utf-8"), str(folder / "space.yaml"))
    space = make_space(record["space_name"], document)
    gpus = options.gpus or str(int(record["gpus"]))
    _check_hardware(record, gpus)
    per_trial = options.gpus_per_trial if options.gpus_per_trial is not None else record["gpus_per_trial"] or None
    resources = find_resources(gpus, per_trial, options.cpus_per_trial or record["cpus_per_trial"], retry)
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
        _write_plan(folder, record | {"trials": num_trials})
        return run_search(folder, plan, options.address, resumed=True)


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


def run_search(folder: Path, plan: Plan, address: str, resumed: bool) -> int:
    """Run (or go on with) the search in `folder` to its end, or to Ctrl-C; the exit code."""
    uri = store_uri(folder.parent)
    files = [folder / "space.yaml", folder / "plan.json"]
    tracker = Tracker(uri, plan.name, _note(plan, folder, []), _tags(plan), _params(plan), plan.fingerprints(), files, resumed)
    tracker.start()
    rungs = plan.space.settings.rungs
    narrator = Narrator(folder, list(plan.config.train_on), plan.num_trials, plan.resources.slots, rungs[-1], tracker)
    with contextlib.closing(narrator), _Interrupts(narrator.say) as interrupts:
        narrator.log.write("\n".join(plan.lines(num_dropped=None)) + "\n")  # the terminal has them already
        narrator.show([f"folder    {folder}", f"mlflow    {ui_command(uri, Path.cwd())}"])
        mend_journal(folder)
        study, scheduler = Study(folder, plan.space, plan.seed), RungScheduler(rungs)
        to_continue = study.restore(scheduler) if resumed else []
        narrator.replay(study.results())
        if resumed:
            narrator.say(f"resumed; {narrator.num_done()} of {plan.num_trials} trials have ended, {len(to_continue)} go on")
        searcher = StudySearcher(study, plan.num_trials, to_continue, narrator)
        try:
            if to_continue or searcher.num_begun < plan.num_trials:
                _fit(plan, searcher, scheduler, address, interrupts)
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
    rows = table(results, narrator.tasks)
    statuses = [trial.status for trial in results]
    counts = {status: statuses.count(status) for status in ("completed", "stopped", "failed", "running")}
    summary = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    narrator.show(["", f"{counted(len(results), 'trial')}: {summary}.", *rows, ""])
    if (folder / "best").exists():
        narrator.show([f"best      {folder / 'best'}"])
    narrator.show([f"compare   {ui_command(uri, Path.cwd())}"])
    if interrupted:
        narrator.show([f"go on     {_go_on(folder)}"])
    elif counts["completed"]:
        next_words = ["python", "analysis/best_to_test.py", "--search", folder.name, *_runs_option(folder)]
        narrator.show([f"next      {shlex.join(next_words)}"])
    else:
        narrator.show([f"reasons   {folder / 'trials'}/*/log.txt"])
    narrator.tracker.note(_note(plan, folder, rows))
    recorded = narrator.tracker.close("KILLED" if interrupted else "FINISHED" if counts["completed"] else "FAILED")
    if not recorded:
        print(f"\033[31mMLflow: {narrator.tracker.error}\033[0m", file=sys.stderr)
        print(f"The search itself is whole; only MLflow lacks something. This logs it again: {_go_on(folder)}", file=sys.stderr)
    if interrupted:
        return INTERRUPTED
    if not counts["completed"]:
        return NONE_FINISHED
    return DONE if recorded else NOT_RECORDED


# -------------------------------------------------------------------------------------------------------------- words


def _go_on(folder: Path) -> str:
    return shlex.join(["python", "-m", "search.run", "--resume", folder.name, *_runs_option(folder)])


def _runs_option(folder: Path) -> list[str]:
    return [] if folder.parent == Path.cwd() / "runs" else ["--runs", os.path.relpath(folder.parent)]


def _note(plan: Plan, folder: Path, rows: list[str]) -> str:
    body = "\n".join(rows) if rows else "(running)"
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
