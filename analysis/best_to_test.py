"""The best configurations of a search, retrained over fresh seeds, on the test sets: the one place that opens a test file.

    python analysis/best_to_test.py --search smart --top 3 --seeds 5

    rank within the fullest rung -> selection.json (frozen) -> retrain each over seeds -> ledger -> TEST -> table, files

Dev chooses, test only reports: the selection is on disk before a test file is opened, each opening is a line in the ledger, and
the table says how many configurations were tried and what the search had claimed for the chosen ones.
Exit codes: 0 done, 1 no model could be trained, 2 what was written is wrong, 3 right but not now, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: Python put analysis/ on the path, where the packages are not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from analysis.report import Tested, write_report
from analysis.retrain import Job, answer, open_test_split, retrain
from analysis.selection import FRESH, Selection, choose_search, choose_trials
from minbert_core.config import TrialConfig, as_written, read_config, seed_of
from minbert_core.data.tasks import TASKS
from minbert_core.evaluate import metric
from minbert_core.inputs import Inputs, open_inputs
from minbert_core.settings import dump_yaml
from search.narrate import describe, duration
from search.plan import Refused, Resources, find_resources, git_commit, lock, machine_settings
from search.run import start_ray
from search.tracking import Tracker, store_uri, ui_command
from search.trainable import read_records


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, and turn every foreseen fault into its sentence and exit code."""
    options = _parser().parse_args(arguments)
    try:
        return _main(options)
    except Refused as error:
        print(error, file=sys.stderr)
        return 3
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on with the seeds that are not yet trained.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python analysis/best_to_test.py",
        description="Retrain a search's best configurations over fresh seeds, then open the test sets with them.",
        epilog="examples:\n  python analysis/best_to_test.py\n"
        "  python analysis/best_to_test.py --search smart --top 2 --seeds 5 --gpus 4",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--search", metavar="NAME", help="default: the newest finished search that is not on the toy corpus")
    parser.add_argument("--top", type=int, default=3, metavar="K", help="configurations (default 3)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="fresh seeds a configuration (default 3)")
    parser.add_argument(
        "--no-retrain", action="store_true", help="test the weights that the search kept instead (one seed each)"
    )
    parser.add_argument("--gpus", default="auto", metavar="N|auto", help="GPUs to use (default auto: all)")
    parser.add_argument("--gpus-per-trial", type=float, metavar="X", help="GPUs a model (default 1)")
    parser.add_argument(
        "--cpus-per-trial", type=int, metavar="N", help="CPU cores and threads a model (default: as in the search)"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where searches lie (default runs)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, open and start nothing")
    return parser


def _main(options: argparse.Namespace) -> int:
    if options.top < 1 or options.seeds < 1:
        raise ValueError(f"--top and --seeds must be 1 or more. Got {options.top} and {options.seeds}.")
    runs = options.runs.absolute()
    search = choose_search(options.search, runs)
    trials = choose_trials(search, options.top, options.no_retrain)
    seeds = [] if options.no_retrain else [FRESH + seed_of("best_to_test", i) % FRESH for i in range(options.seeds)]
    selection = Selection(search, trials, seeds)
    cpus = options.cpus_per_trial or search.plan["cpus_per_trial"]
    resources = find_resources(
        options.gpus, options.gpus_per_trial, cpus, f"python analysis/best_to_test.py --search {search.name}"
    )
    print(f"search    {search.name}: {search.plan['about']}")
    print(
        f"tried     {len(search.trials)} configurations"
        + ("" if search.is_finished else f" of {search.plan['trials']}: the search is not finished")
    )
    for trial in trials:
        print(f"selected  {trial.number:03d}  dev {trial.score:.4f}  {describe(trial.params)}")
    what = f"{len(seeds)} fresh seeds each" if seeds else "the weights that the search kept, one seed each"
    print(f"test      {what}; {resources}; to {search.folder / 'test'}")
    if options.dry_run:
        print("Nothing was started, no test file was opened.")
        return 0
    with lock(search.folder):
        return run(selection, resources)


# -------------------------------------------------------------------------------------------------------------- the run


def run(selection: Selection, resources: Resources) -> int:
    """Freeze, retrain, open the test split, report; the exit code."""
    sha = selection.freeze()
    folder = selection.search.folder / "test"
    print(f"frozen    {folder / 'selection.json'} (sha256 {sha[:12]})", flush=True)
    jobs = _jobs(selection, resources)
    tracker = _tracker(selection)
    tracker.start()
    for job in jobs:
        tracker.trial_started(
            _run_number(job), job.name, {"trial": job.number, "seed": job.seed_index}, job.folder / "config.yaml", {}
        )
    with _ray(resources):
        failures = _train(jobs, resources, tracker) if selection.seeds else {}
        for job, reason in failures.items():
            tracker.trial_ended(_run_number(job), "FAILED", reason, _now_ms())
        models = {job: job.folder / "best" for job in jobs if job not in failures}
        results = _open_test(selection, models, resources, sha) if models else {}
    if not results:
        print("No model could be trained; no test file was opened.", file=sys.stderr)
        tracker.close("FAILED")
        return 1
    lines = write_report(selection, results, folder)
    for job, result in results.items():
        tracker.records(_run_number(job), [_mlflow_record(job, result)])
        tracker.trial_ended(_run_number(job), "FINISHED", "tested", _now_ms())
    tracker.note("\n".join(lines))
    print("\n".join(["", *lines]))
    if not tracker.close("FINISHED"):
        print(f"MLflow: {tracker.error} The table stands in {folder / 'table.md'}.", file=sys.stderr)
    print(f"compare   {ui_command(store_uri(selection.search.folder.parent), Path.cwd())}")
    return 0


def _jobs(selection: Selection, resources: Resources) -> list[Job]:
    """Every model to be tested. A retrained one differs from its trial in its seed and in the machine alone."""
    if not selection.seeds:
        return [Job(trial.number, 0, trial.folder) for trial in selection.trials]
    jobs = []
    for trial in selection.trials:
        config = trial.config()
        machine = machine_settings(resources) | {"precision": config.machine.precision}
        for i, seed in enumerate(selection.seeds):
            job = Job(trial.number, i, selection.search.folder / "test" / "retrained" / f"{trial.number:03d}-seed{i}")
            job.folder.mkdir(parents=True, exist_ok=True)
            document = as_written(config) | {"seed": seed, "machine": machine}
            (job.folder / "config.yaml").write_text(dump_yaml(document), encoding="utf-8")
            jobs.append(job)
    return jobs


def _train(jobs: list[Job], resources: Resources, tracker: Tracker) -> dict[Job, str]:
    """Retrain what is not yet trained, in parallel; the failures with their reasons. A line at each evaluation point."""
    import ray

    for job in jobs:
        if job.is_done:
            _say(f"{job.name} was trained before")
    waiting = [job for job in jobs if not job.is_done]
    failures: dict[Job, str] = {}
    if waiting:
        config = read_config(waiting[0].folder / "config.yaml")
        budget = config.num_examples(open_inputs(config).sizes)
        for job in waiting:
            (job.folder / "metrics.jsonl").unlink(missing_ok=True)
        remote = ray.remote(num_cpus=resources.cpus_per_trial, num_gpus=resources.gpus_per_trial, max_retries=0)(retrain)
        failures = _watch({remote.remote(job): job for job in waiting}, budget)
    for job in jobs:
        tracker.records(_run_number(job), read_records(job.folder / "metrics.jsonl"))
    return failures


def _watch(running: dict[Any, Job], budget: int) -> dict[Job, str]:
    """Wait for the jobs, telling each evaluation and end; the failures with their reasons. budget: examples a job."""
    import ray

    failures: dict[Job, str] = {}
    jobs, told, started = list(running.values()), dict.fromkeys(running.values(), 0), time.monotonic()
    while running:
        ready, _ = ray.wait(list(running), timeout=2)
        for job in jobs:
            points = [record for record in read_records(job.folder / "metrics.jsonl") if record["kind"] == "dev"]
            for record in points[told[job] :]:
                _say(f"{job.name} at part {record['part']}  dev {record['dev/score']:.4f}{_time_left(jobs, budget, started)}")
            told[job] = len(points)
        for reference in ready:
            job = running.pop(reference)
            try:
                reason = ray.get(reference)
            except ray.exceptions.RayError as error:  # the worker died (killed, out of memory): it could not say why
                reason = f"its process died ({type(error).__name__})"
            if reason:
                failures[job] = reason
            _say(f"{job.name} " + (f"failed: {reason}" if reason else "trained"))
    return failures


def _time_left(jobs: list[Job], budget: int, started: float) -> str:
    """From the examples drawn so far by all jobs together."""
    last = [records[-1]["examples"] for records in (read_records(job.folder / "metrics.jsonl") for job in jobs) if records]
    left = budget * len(jobs) - sum(last)
    return f", about {duration((time.monotonic() - started) * left / sum(last))} left" if last and left > 0 else ""


@contextlib.contextmanager
def _ray(resources: Resources) -> Iterator[None]:
    """One's own Ray instance for as long as the block lasts."""
    import ray

    start_ray(resources, "local")
    try:
        yield
    finally:
        ray.shutdown()


def _open_test(selection: Selection, models: dict[Job, Path], resources: Resources, sha: str) -> dict[Job, Tested]:
    """Write the ledger's line, then let every model answer dev and test."""
    import ray

    folder = selection.search.folder / "test"
    config = selection.trials[0].config()
    entry = {
        "time": time.strftime("%FT%T%z"),
        "selection_sha256": sha,
        "models": [job.name for job in models],
        "tasks": list(config.train_on),
    }
    with (folder / "ledger.jsonl").open("a", encoding="utf-8") as ledger:
        ledger.write(json.dumps(entry) + "\n")
    opened = len((folder / "ledger.jsonl").read_text(encoding="utf-8").splitlines())
    _say(f"opening the test files (time {opened} for this search; ledger.jsonl)")
    inputs = open_inputs(config)
    remote = ray.remote(num_cpus=resources.cpus_per_trial, num_gpus=resources.gpus_per_trial)(answer)
    outs = {job: folder / "logits" / job.name for job in models}
    ray.get([remote.remote(models[job], inputs.data_folder, out) for job, out in outs.items()])
    return {job: _tested(config, inputs, out) for job, out in outs.items()}


def _tested(config: TrialConfig, inputs: Inputs, out: Path) -> Tested:
    logits: dict[str, np.ndarray[Any, Any]] = {}
    dev: dict[str, float] = {}
    test: dict[str, float] = {}
    for name in config.train_on:
        for split_name, split, metrics in (
            ("dev", inputs.dev[name], dev),
            ("test", open_test_split(name, inputs.data_folder, inputs.tokenizer), test),
        ):
            logits[f"{name}-{split_name}"] = np.load(out / f"{name}-{split_name}.npy")
            if split.labels is not None:
                metrics[name] = metric(TASKS[name], logits[f"{name}-{split_name}"], split.labels)
    return Tested(dev, test, logits)


def _tracker(selection: Selection) -> Tracker:
    search = selection.search
    return Tracker(
        store_uri(search.folder.parent),
        f"{search.name}-test",
        f"Test of the best configurations of the search **{search.name}** (running)",
        {"tested_search": search.name, "git": git_commit()},
        {
            "search": search.name,
            "tried": len(search.trials),
            "seeds": len(selection.seeds),
            "selected": [t.number for t in selection.trials],
        },
        search.plan["fingerprints"],
        [search.folder / "test" / "selection.json"],
        resume=False,
    )


def _run_number(job: Job) -> int:
    return job.number * 1000 + job.seed_index


def _mlflow_record(job: Job, result: Tested) -> dict[str, Any]:
    metrics = {
        f"{split}/{name}": value
        for split, of in (("final_dev", result.dev), ("test", result.test))
        for name, value in of.items()
    }
    return {"kind": "test", "step": 0, "examples": 0, "time_ms": _now_ms()} | metrics


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _say(text: str) -> None:
    print(f"[{time.strftime('%T')}] {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
