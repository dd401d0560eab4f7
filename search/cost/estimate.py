"""What a search is going to cost, told before it starts: measured for `--dry-run`, and its disk, from the model's size, always.

    space -> branch_points -> measure_points (Ray, as the search would run them) -> estimate -> lines

Few points are measured: the default's, and each branch of a choice by itself. How much longer than the default's a branch takes
is its factor; those of several choices are taken to multiply (assumed, not measured), and are averaged over random draws.
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
from minbert_core.terminal import show_progress
from minbert_core.words import counted, duration
from search.cost.measure import Cost
from search.cost.points import Branch, ProbePoints, branch_points, measure_points
from search.methods.halving import expected_ends
from search.plan.plan import Plan
from search.plan.resources import Resources
from search.report.words import describe
from search.space.domains import Choice, Domain
from search.space.space import Space, default_choice
from search.study.study import KEEP_BEST

RANGE = 0.7, 1.5  # what came of estimates: other trials' lengths, and a sampler that drifts to dear branches; assumed (2026-11)
RECORD_BYTES = 500_000  # a trial's metrics.jsonl, log.txt and rows in mlflow.db, about
Factors = tuple[float, float]  # of training and of an evaluation


def measured_lines(
    plan: Plan, start_ray: Callable[[], None], price: float | None, hours: float | None, load: float
) -> list[str]:
    """Measure and estimate what `plan` costs, told in lines; about a minute, a progress line meanwhile where a terminal is.

    load: what the machine had to do before.
    Raises Refused where Ray does not start, or a point cannot be trained here.
    """
    import ray

    began = time.monotonic()
    start_ray()
    start_up_seconds = time.monotonic() - began
    with tempfile.TemporaryDirectory(prefix="minbert-measure-") as scratch:
        try:
            points = branch_points(plan.space)
            costs = measure_points(points, plan.resources, Path(scratch), show_progress)
        finally:
            show_progress("")
            ray.shutdown()
    resources = plan.resources
    told = lines(estimate(plan, points, costs, start_up_seconds), resources, price, hours)
    if load > 1 + resources.cpus - resources.slots * resources.cpus_per_trial:
        told.append(f"warning   measured beside other work (load {load:.1f}); without it the search takes less")
    return told


# -------------------------------------------------------------------------------------------------------------- points


# ------------------------------------------------------------------------------------------------------------ arithmetic


@dataclass(frozen=True)
class Estimate:
    """Of a whole search; seconds are of wall time."""

    seconds: float
    trial_seconds: float  # of one trial on average, halving included
    memory_gb: float  # the most that a point took
    disk_bytes: int  # the most at one time
    kept_bytes: int
    dearest: tuple[str, float] | None  # the branch that costs most beside another of its choice, and how many times as much
    num_measured: int
    num_branches: int
    pretraining: Mapping[str, float] = field(default_factory=dict)  # seconds of each that is yet to be made, by its name


def estimate(plan: Plan, points: ProbePoints, costs: Mapping[int, list[Cost]], start_up_seconds: float) -> Estimate:
    """What `plan` is expected to cost, given what some points of its space cost; start_up_seconds: of Ray."""
    rungs = plan.space.settings.rungs
    at = {index: _mean(found) for index, found in costs.items()}
    factors = {
        branch: (at[own][0] / at[parent][0], at[own][1] / at[parent][1])
        for branch, (own, parent) in points.branches.items()
        if own in at and parent in at
    }
    train_factor, evaluation_factor = mean_factors(plan.space, factors)
    every = [cost for found in costs.values() for cost in found]
    start = float(np.mean([cost.start_seconds for cost in every]))
    train, evaluation = at[0][0] * train_factor, at[0][1] * evaluation_factor
    ends = expected_ends(
        plan.num_trials, len(plan.space.baselines), len(plan.recipes), rungs, plan.space.settings.trial_scheduler
    )
    until = [start + train * rung / rungs[-1] + evaluation * (i + 1) for i, rung in enumerate(rungs)]
    work = sum(count * seconds for count, seconds in zip(ends, until, strict=True))
    full = {index: seconds + evaluation * len(rungs) for index, (seconds, evaluation) in at.items()}
    pretraining = {name: seconds for cost in every for name, seconds in cost.pretraining.items()}
    snapshot, best = max(cost.snapshot_bytes for cost in every), max(cost.best_bytes for cost in every)
    return Estimate(
        # pretrainings come before the first trial, or hold up the trials that begin with them
        seconds=start_up_seconds + max(work / plan.resources.slots, until[-1]) + sum(pretraining.values()),
        trial_seconds=work / plan.num_trials,
        memory_gb=max(cost.memory_gb for cost in every),
        disk_bytes=disk_bytes(plan, snapshot, best, copies=plan.resources.slots),
        kept_bytes=min(KEEP_BEST, plan.num_trials) * best + plan.num_trials * RECORD_BYTES,
        dearest=_dearest({branch: full[own] for branch, (own, _) in points.branches.items() if branch in factors}),
        num_measured=len(factors),
        num_branches=points.num_branches,
        pretraining=pretraining,
    )


def _mean(costs: list[Cost]) -> Factors:
    """(training, one evaluation), seconds."""
    return float(np.mean([cost.train_seconds for cost in costs])), float(np.mean([cost.evaluation_seconds for cost in costs]))


def mean_factors(space: Space, factors: Mapping[Branch, Factors], draws: int = 200) -> Factors:
    """The mean over random points of the product of their branches' factors; 1 for a branch that was not measured."""
    random = np.random.default_rng(0)

    def draw(name: str, domain: Domain) -> Any:
        if isinstance(domain, Choice):
            return domain.labels[random.integers(len(domain.labels))]
        return default_choice(name, domain)

    products = []
    for _ in range(draws):
        params = space.sample(draw).params
        found = [factors[branch] for branch in params.items() if branch in factors]
        products.append([math.prod(train for train, _ in found), math.prod(evaluation for _, evaluation in found)])
    train, evaluation = np.mean(products, axis=0)
    return float(train), float(evaluation)


def _dearest(seconds: Mapping[Branch, float]) -> tuple[str, float] | None:
    """Of the branches the one that takes most beside the cheapest of its own choice, with that ratio; None below 1.2."""
    ratios = {
        branch: own / min(other for (name, _), other in seconds.items() if name == branch[0]) for branch, own in seconds.items()
    }
    branch = max(ratios, key=lambda key: ratios[key], default=None)
    return (describe(dict([branch])), ratios[branch]) if branch is not None and ratios[branch] > 1.2 else None


# ------------------------------------------------------------------------------------------------------------------ disk


def disk_bytes(plan: Plan, snapshot: int, best: int, copies: int) -> int:
    """What a search's folder holds while it runs, `copies` of its trials writing a snapshot beside their last one.

    A trial that runs, or waits at a rung, has its snapshot and its best weights; the best few that ended keep theirs.
    """
    trials = min(plan.resources.slots + plan.space.settings.trial_scheduler.most_waiting, plan.num_trials)
    kept = min(KEEP_BEST, plan.num_trials)
    return trials * (snapshot + best) + min(copies, trials) * snapshot + kept * best + plan.num_trials * RECORD_BYTES


def check_disk(plan: Plan, runs: Path) -> None:
    """Raise Refused where the disk under `runs` has clearly no room for the search: known from the size of its models."""
    place = next(path for path in (runs, *runs.parents) if path.exists())
    free, needed = shutil.disk_usage(place).free, disk_bytes(plan, plan.snapshot_bytes, plan.best_bytes, copies=1)
    if free < needed:
        raise Refused(
            f"{plan.resources} would hold {_gigabytes(needed)} in {runs}, for their states and the best weights, but its disk "
            f"has {_gigabytes(free)} free. Give another folder with --runs, or fewer trials at a time."
        )


# ----------------------------------------------------------------------------------------------------------------- words


def lines(found: Estimate, resources: Resources, price: float | None, hours: float | None) -> list[str]:
    """The estimate as the user reads it; price: of a GPU-hour, of a machine-hour where there are no GPUs; hours: --hours."""
    low, high = (_about(found.seconds * factor) for factor in RANGE)
    wall_hours, at_once = found.seconds / 3600, f"{counted(resources.slots, 'trial')} at a time"
    used = wall_hours * (resources.gpus or resources.slots * resources.cpus_per_trial)
    told = [
        f"about {_about(found.seconds)} on this machine, {at_once} (between {low} and {high}: the sampler may drift); "
        f"{_rounded(used)} {'GPU' if resources.gpus else 'core'}-hours"
    ]
    if found.num_branches:
        told.append(f"from {found.num_measured} of {counted(found.num_branches, 'branch', 'branches')} measured")
    if found.dearest is not None:
        told[-1] += f"; slowest: {found.dearest[0]}, {found.dearest[1]:.1f} times the fastest of its choice"
    told.append(
        f"{'GPU memory' if resources.gpus else 'memory'} {found.memory_gb:.1f} GB a trial; "
        f"disk {_gigabytes(found.disk_bytes)} at most, {_gigabytes(found.kept_bytes)} stays"
    )
    if found.pretraining:
        each = ", ".join(f"{name} {_about(seconds)}" for name, seconds in found.pretraining.items())
        told.append(f"of the time, further pretraining, each made once: {each}")
    if price is not None:
        unit = "GPU-hour" if resources.gpus else "hour of this machine"
        told.append(f"${wall_hours * (resources.gpus or 1) * price:,.2f} at ${price:g} per {unit}")
    if hours is not None:
        fit = math.floor(hours * 3600 * resources.slots / found.trial_seconds)
        told.append(f"--hours {hours:g} would do for about {counted(fit, 'trial')}")
    rows = [f"{'' if i else 'estimate':<9} {text}" for i, text in enumerate(told)]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    if not resources.gpus and resources.slots * found.memory_gb > memory:
        rows.append(f"warning   {at_once} need more than this machine's {memory:.0f} GB of memory; raise --cpus-per-trial.")
    return rows


def _about(seconds: float) -> str:
    return duration(seconds) if seconds < 36_000 else f"{seconds / 3600:,.0f} h"


def _rounded(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{max(1, round(count / 1e6))} MB"
