"""The cost of a search before it starts: measured for `--dry-run`. Its disk space is always estimated, from the model's size.

    space -> branch_points -> measure_points (Ray, as the search would run them) -> estimate -> lines

Only a few points are measured: the default point, and one for each branch of a choice. A branch's factor is its time divided by
that of the default branch. Factors of several choices multiply (assumed, not measured) and are averaged over random points.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minbert_core.commands import Refused
from minbert_core.files import explain_fault
from minbert_core.terminal import show_progress
from minbert_core.words import counted, duration
from search.cost.measure import Cost
from search.cost.points import Branch, ProbePoints, branch_points, measure_points
from search.methods.halving import expected_ends
from search.plan.offered import offered
from search.plan.plan import Plan
from search.plan.resources import Resources
from search.report.words import describe
from search.space.domains import Choice, Domain
from search.space.space import Space, default_choice
from search.study.study import KEEP_BEST

RANGE = 0.7, 1.5  # real time / estimate: trials' lengths vary, samplers drift to expensive branches; assumed (2026-11)
RECORD_BYTES = 500_000  # approximate size of a trial's metrics.jsonl, log.txt and rows in mlflow.db
Factors = tuple[float, float]  # (training, one evaluation)


def measured_lines(
    plan: Plan, start_ray: Callable[[], object], price: float | None, hours: float | None, load: float
) -> list[str]:
    """Measure and estimate the cost of `plan`, and return it as lines. This takes about a minute; a terminal shows progress.

    load: the machine's load average before the start.
    Raises Refused where Ray does not start, or a point cannot be trained here.
    """
    import ray

    began = time.monotonic()
    start_ray()
    start_up_seconds = time.monotonic() - began
    with tempfile.TemporaryDirectory(prefix="minbert-measure-") as scratch:
        try:
            points = branch_points(plan.space)
            at_once = trials_at_once(plan)
            costs = measure_points(points, plan.resources, at_once, Path(scratch), show_progress, offered(plan))
        finally:
            show_progress("")
            ray.shutdown()
    resources = plan.resources
    rows = lines(estimate(plan, points, costs, start_up_seconds), resources, price, hours)
    if load > 1 + resources.cpus - at_once * resources.cpus_per_trial:
        rows.append(f"warning   measured while other work was running (load {load:.1f}); without it the search is faster")
    return rows


# ------------------------------------------------------------------------------------------------------------ arithmetic


@dataclass(frozen=True)
class Estimate:
    """The cost of a whole search. Seconds are wall time."""

    seconds: float
    trial_seconds: float  # mean per trial, with halving
    memory_gb: float  # the largest of the measured points
    disk_bytes: int  # the peak
    kept_bytes: int  # after the search
    slowest: tuple[str, float] | None  # the branch with the largest ratio to the fastest branch of its choice, and that ratio
    num_measured: int
    num_branches: int
    at_once: int  # trials at a time
    pretraining: Mapping[str, float] = field(default_factory=dict)  # name -> seconds, of each one that is not cached yet


def estimate(plan: Plan, points: ProbePoints, costs: Mapping[int, list[Cost]], start_up_seconds: float) -> Estimate:
    """Estimate the cost of `plan` from the costs of some points of its space. start_up_seconds: the start of Ray."""
    rungs = plan.space.settings.rungs
    means = {index: _mean(of_point) for index, of_point in costs.items()}
    factors = {
        branch: (means[point][0] / means[parent][0], means[point][1] / means[parent][1])
        for branch, (point, parent) in points.branches.items()
        if point in means and parent in means
    }
    train_factor, evaluation_factor = mean_factors(plan.space, factors)
    all_costs = [cost for of_point in costs.values() for cost in of_point]
    start = float(np.mean([cost.start_seconds for cost in all_costs]))
    train, evaluation = means[0][0] * train_factor, means[0][1] * evaluation_factor
    ends = expected_ends(
        plan.num_trials, len(plan.space.baselines), len(plan.recipes), rungs, plan.space.settings.trial_scheduler
    )
    until = [start + train * rung / rungs[-1] + evaluation * (i + 1) for i, rung in enumerate(rungs)]
    work = sum(count * seconds for count, seconds in zip(ends, until, strict=True))
    full = {index: seconds + evaluation * len(rungs) for index, (seconds, evaluation) in means.items()}
    pretraining = {name: seconds for cost in all_costs for name, seconds in cost.pretraining.items()}
    snapshot, best = max(cost.snapshot_bytes for cost in all_costs), max(cost.best_bytes for cost in all_costs)
    return Estimate(
        # pretrainings run before the first trial, or delay the trials that begin with them
        seconds=start_up_seconds + max(work / plan.resources.slots, until[-1]) + sum(pretraining.values()),
        trial_seconds=work / plan.num_trials,
        memory_gb=max(cost.memory_gb for cost in all_costs),
        disk_bytes=disk_bytes(plan, snapshot, best, copies=plan.resources.slots),
        kept_bytes=min(KEEP_BEST, plan.num_trials) * best + plan.num_trials * RECORD_BYTES,
        slowest=_slowest({branch: full[point] for branch, (point, _) in points.branches.items() if branch in factors}),
        num_measured=len(factors),
        num_branches=points.num_branches,
        pretraining=pretraining,
        at_once=trials_at_once(plan),
    )


def trials_at_once(plan: Plan) -> int:
    """Return how many trials run at a time: as many as fit, if there are so many."""
    return min(plan.resources.slots, plan.num_trials)


def _mean(costs: list[Cost]) -> Factors:
    """Return the mean seconds of (training, one evaluation)."""
    return float(np.mean([cost.train_seconds for cost in costs])), float(np.mean([cost.evaluation_seconds for cost in costs]))


def mean_factors(space: Space, factors: Mapping[Branch, Factors], draws: int = 200) -> Factors:
    """Average the product of the branches' factors over random points. A branch that was not measured has factor 1."""
    random = np.random.default_rng(0)

    def draw(name: str, domain: Domain) -> Any:
        if isinstance(domain, Choice):
            return domain.labels[random.integers(len(domain.labels))]
        return default_choice(name, domain)

    products = []
    for _ in range(draws):
        params = space.sample(draw).params
        known = [factors[branch] for branch in params.items() if branch in factors]
        products.append([math.prod(train for train, _ in known), math.prod(evaluation for _, evaluation in known)])
    train, evaluation = np.mean(products, axis=0)
    return float(train), float(evaluation)


def _slowest(seconds: Mapping[Branch, float]) -> tuple[str, float] | None:
    """Return the branch with the largest ratio to the fastest branch of its choice, and that ratio; None below 1.2."""
    ratios = {
        branch: time / min(other for (name, _), other in seconds.items() if name == branch[0])
        for branch, time in seconds.items()
    }
    branch = max(ratios, key=lambda key: ratios[key], default=None)
    return (describe(dict([branch])), ratios[branch]) if branch is not None and ratios[branch] > 1.2 else None


# ------------------------------------------------------------------------------------------------------------------ disk


def disk_bytes(plan: Plan, snapshot: int, best: int, copies: int) -> int:
    """Return the peak size of a search's folder. `copies`: trials that write a snapshot while they keep their last one.

    A running or waiting trial has its snapshot and its best weights. Of the ended trials, the best few keep their weights.
    """
    waiting = plan.space.settings.trial_scheduler.most_waiting(plan.num_trials)
    trials = min(plan.resources.slots + waiting, plan.num_trials)
    kept = min(KEEP_BEST, plan.num_trials)
    return trials * (snapshot + best) + min(copies, trials) * snapshot + kept * best + plan.num_trials * RECORD_BYTES


def check_disk(plan: Plan, runs: Path) -> None:
    """Raise Refused if the disk under `runs` is too small for the search, judged by the size of its models."""
    place = next(path for path in (runs, *runs.parents) if path.exists())
    snapshot = 0 if plan.resources.storage else plan.snapshot_bytes
    free, needed = shutil.disk_usage(place).free, disk_bytes(plan, snapshot, plan.best_bytes, copies=1)
    if free < needed:
        raise Refused(
            f"{plan.resources} would need {_gigabytes(needed)} in {runs} for snapshots and the best weights, but its disk has "
            f"only {_gigabytes(free)} free. Give another folder with --runs, or run fewer trials at a time."
        )


def full_disk(plan: Plan, folder: Path, fault: OSError) -> str:
    """Describe a disk that became full during the search in `folder`: where, how much is needed, and what was kept."""
    needed = disk_bytes(plan, plan.snapshot_bytes, plan.best_bytes, copies=1)
    return (
        f"{explain_fault(fault, '--runs', folder.parent)} The search is paused: its trials keep their snapshots. With "
        f"{_gigabytes(needed)} free in {folder.parent}, --resume continues all of them."
    )


# ----------------------------------------------------------------------------------------------------------------- words


def lines(estimate: Estimate, resources: Resources, price: float | None, hours: float | None) -> list[str]:
    """Return the estimate as the user reads it. price: per GPU-hour, or per machine-hour without GPUs. hours: --hours."""
    low, high = (_about(estimate.seconds * factor) for factor in RANGE)
    wall_hours, at_once = estimate.seconds / 3600, f"{counted(estimate.at_once, 'trial')} at a time"
    used = wall_hours * (resources.gpus or estimate.at_once * resources.cpus_per_trial)
    rows = [
        f"about {_about(estimate.seconds)} on this machine, {at_once} (between {low} and {high}, as the sampler may drift); "
        f"{_rounded(used)} {'GPU' if resources.gpus else 'core'}-hours"
    ]
    if estimate.num_branches:
        rows.append(f"from {estimate.num_measured} of {counted(estimate.num_branches, 'branch', 'branches')} measured")
    if estimate.slowest is not None:
        rows[-1] += f"; slowest: {estimate.slowest[0]}, {estimate.slowest[1]:.1f} times the fastest of its choice"
    rows.append(
        f"{'GPU memory' if resources.gpus else 'memory'} {estimate.memory_gb:.1f} GB per trial; "
        f"disk {_gigabytes(estimate.disk_bytes)} at most, {_gigabytes(estimate.kept_bytes)} afterwards"
    )
    if estimate.pretraining:
        stages = ", ".join(f"{name} {_about(seconds)}" for name, seconds in estimate.pretraining.items())
        rows.append(f"including further pretraining, once each: {stages}")
    if price is not None:
        unit = "GPU-hour" if resources.gpus else "hour of this machine"
        rows.append(f"${wall_hours * (resources.gpus or 1) * price:,.2f} at ${price:g} per {unit}")
    if hours is not None:
        fit = math.floor(hours * 3600 * resources.slots / estimate.trial_seconds)
        rows.append(f"--hours {hours:g} would suffice for about {counted(fit, 'trial')}")
    rows = [f"{'' if i else 'estimate':<9} {text}" for i, text in enumerate(rows)]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    if not resources.gpus and estimate.at_once * estimate.memory_gb > memory:
        rows.append(f"warning   {at_once} need more than this machine's {memory:.0f} GB of memory. Raise --cpus-per-trial.")
    return rows


def _about(seconds: float) -> str:
    return duration(seconds) if seconds < 36_000 else f"{seconds / 3600:,.0f} h"


def _rounded(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{max(1, round(count / 1e6))} MB"
