"""The driver's side of retraining: list the models that a selection needs, train them on Ray, and report the time left.

selection -> one job per configuration and seed -> retrain.py on workers, as many at once as fit -> failures
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from analysis.retrain import Job, make_ready, retrain
from analysis.selection import Selection, contender_name
from minbert_core.config import TrialConfig
from minbert_core.config_checks import read_config
from minbert_core.inputs import open_inputs
from minbert_core.settings.paths import as_written
from minbert_core.settings.yaml import dump_yaml
from minbert_core.words import duration
from search.cluster.nodes import alive_nodes, total_slots
from search.plan.relocated import relocated_config
from search.plan.resources import Resources, machine_settings

Records = list[dict[str, Any]]


def make_jobs(selection: Selection, resources: Resources) -> list[Job]:
    """List the models to test, and prepare their folders. A retrained model differs from its trial only in seed and machine."""
    if not selection.seeds:
        return [Job(trial.number, None, trial.folder) for trial in selection.trials]
    jobs = []
    for trial in selection.trials:
        config = trial.config()
        document = as_written(config) | {"machine": _machine(config, resources)}
        for i, seed in enumerate(selection.seeds):
            name = f"{selection.name(trial.number)}-seed{i}"
            job = Job(trial.number, i, selection.test_folder / "retrained" / name, contender_name(trial))
            make_ready(job, dump_yaml(document | {"seed": seed}))
            jobs.append(job)
    return jobs


def _machine(config: TrialConfig, resources: Resources) -> dict[str, Any]:
    """Return device and threads of this machine, and the settings of the trial that change its numbers."""
    kept = {key: value for key, value in as_written(config.machine).items() if key == "micro_batch_tokens"}
    settings = machine_settings(resources, [config.encoder.checkpoint], config.machine.device)
    return settings | {"precision": config.machine.precision} | kept


def train_jobs(
    jobs: list[Job], relocated: Mapping[str, str], resources: Resources, measured: Callable[[Job, Records], None]
) -> dict[Job, str]:
    """Train the jobs that are not done, in parallel; return the failures with their reasons. Print evaluations and ends.

    relocated: the selection's. measured: called with every record of every job, also those of an interrupted run; a record may
    come twice.
    """
    import ray

    waiting = []
    for job in jobs:
        if job.is_done:
            say(f"{job.name} was trained before")
            measured(job, job.records())
            continue
        if records := job.records():
            say(f"{job.name} resumes after about {records[-1]['examples']:,} examples")
            measured(job, records)
        waiting.append(job)
    if not waiting:
        return {}
    budgets = {job: _budget(job, relocated) for job in waiting}
    remote = ray.remote(num_cpus=resources.cpus_per_trial, num_gpus=resources.gpus_per_trial, max_retries=0)(retrain)

    def begin(job: Job) -> Any:
        return remote.remote(job, relocated)

    return _watch({begin(job): job for job in waiting}, budgets, partial(slots_now, resources), measured, begin)


def _budget(job: Job, relocated: Mapping[str, str]) -> int:
    config = read_config(job.folder / "config.yaml")
    return config.num_examples(open_inputs(relocated_config(config, relocated)).sizes)


def _watch(
    running: dict[Any, Job],
    budgets: dict[Job, int],
    slots: Callable[[], int],
    measured: Callable[[Job, Records], None],
    begin: Callable[[Job], Any],
) -> dict[Job, str]:
    """Wait for the jobs; return the failures with their reasons. A job whose node leaves the cluster continues on another."""
    import ray

    failures: dict[Job, str] = {}
    num_reported = {job: len(job.records()) for job in budgets}
    while running:
        ready, _ = ray.wait(list(running), timeout=2)
        for job in running.values():
            new = job.records()[num_reported[job] :]
            num_reported[job] += len(new)
            if new:
                measured(job, new)
            for record in new:
                if record["kind"] == "dev":
                    say(f"{job.name} at {record['rung']}  dev {record['dev/score']:.4f}{_time_left(budgets, slots())}")
        for reference in ready:
            job = running.pop(reference)
            try:
                reason = ray.get(reference)
            except ray.exceptions.NodeDiedError:
                say(f"{job.name} was on a node that has left the cluster; it continues")
                running[begin(job)] = job
                continue
            except ray.exceptions.RayError as error:  # a worker that was killed, or out of memory, gives no reason
                reason = f"its process died ({type(error).__name__})"
            if reason:
                failures[job] = reason
            say(f"{job.name} " + (f"failed: {reason}" if reason else "trained"))
    return failures


def slots_now(resources: Resources) -> int:
    """Return how many models train at a time: on a cluster those that its nodes have room for now, at least one."""
    if not resources.cluster:
        return resources.slots
    present = {node.id: node for node in resources.nodes}  # without the GPUs that others use
    nodes = [present.get(node.id, node) for node in alive_nodes()]
    return max(1, total_slots(nodes, resources.cpus_per_trial, resources.gpus_per_trial, resources.most_gpus))


def _time_left(budgets: dict[Job, int], slots: int) -> str:
    last = [(job.records() or [{"examples": 0, "seconds": 0.0}])[-1] for job in budgets]
    left = seconds_left([(record["examples"], record["seconds"]) for record in last], list(budgets.values()), slots)
    return f", about {duration(left)} left" if left else ""


def seconds_left(spent: Sequence[tuple[int, float]], budgets: Sequence[int], slots: int) -> float:
    """Estimate how long jobs of these budgets still take, `slots` at a time; 0 if none has started.

    spent: for each job, the examples trained and the seconds of training, without interruptions. A job is expected to keep its
    pace; one that has not started, to train at the mean pace of the others.
    """
    examples, seconds = (sum(column) for column in zip(*spent, strict=True))
    if not examples:
        return 0.0
    paces = [taken / trained if trained else seconds / examples for trained, taken in spent]
    left = [max(0, budget - trained) * pace for (trained, _), budget, pace in zip(spent, budgets, paces, strict=True)]
    return max(sum(left) / slots, *left)


def say(text: str) -> None:
    """Print one line, with the time of day."""
    print(f"[{time.strftime('%T')}] {text}", flush=True)
