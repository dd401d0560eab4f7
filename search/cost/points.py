"""The points of a space whose cost is measured: the default, and one per branch of a choice."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minbert_core.commands import Refused
from minbert_core.settings.paths import as_written
from minbert_core.words import counted
from search.cost.measure import Cost, measure
from search.plan.resources import Resources, cause_of
from search.report.words import describe
from search.space.domains import Choice
from search.space.space import Choose, Sample, Space, default_choice

MOST_POINTS = 8  # measured
BEGIN_SECONDS = 60  # after these no further point is begun
Branch = tuple[str, Any]  # (parameter, label)


@dataclass(frozen=True)
class ProbePoints:
    """The points to measure, the default's first, and which of them tells the cost of which branch."""

    samples: list[Sample]
    branches: dict[Branch, tuple[int, int]]  # -> its point, and the point it is compared with
    num_branches: int  # of the space, those not among `branches` included


def branch_points(space: Space, at_most: int = MOST_POINTS, choose: Choose = default_choice) -> ProbePoints:
    """The default's point and, for each branch of a choice, the one that differs from its parent in that branch alone.

    Choices among variants come before those among numbers, which seldom change what a step costs.
    choose: what is taken where no branch is meant, in place of the default.
    """
    choices = [(name, domain, guards) for name, (domain, guards) in space.domains().items() if isinstance(domain, Choice)]
    choices.sort(key=lambda choice: all(isinstance(label, int | float) for label in choice[1].labels))
    samples: list[Sample] = []
    known: dict[frozenset[Branch], int] = {}

    def index(forced: dict[str, Any]) -> int | None:
        sample = space.sample(lambda name, domain: forced[name] if name in forced else choose(name, domain))
        taken = frozenset((name, sample.params[name]) for name, *_ in choices if name in sample.params)
        if taken not in known and len(samples) < at_most:
            known[taken] = len(samples)
            samples.append(sample)
        return known.get(taken)

    index({})
    pairs = {
        (name, label): (index({**guards, name: label}), index(dict(guards)))
        for name, domain, guards in choices
        for label in domain.labels
    }
    found = {branch: (own, parent) for branch, (own, parent) in pairs.items() if own is not None and parent is not None}
    return ProbePoints(samples, found, len(pairs))


def measure_points(
    points: ProbePoints, resources: Resources, scratch: Path, tell: Callable[[str], None]
) -> dict[int, list[Cost]]:
    """The costs of the points, as far as BEGIN_SECONDS allow: as many at a time as the search runs trials. Ray must run.

    Where a round would not be full the default's point fills it, so that all are measured under the search's own load.
    Raises Refused where a point cannot be trained here, saying which.
    """
    import ray

    remote = ray.remote(  # max_calls: a process of its own each, as a trial has, whose peak memory is its own
        num_cpus=resources.cpus_per_trial, num_gpus=resources.gpus_per_trial, max_calls=1, max_retries=0
    )(measure)
    order = [*range(len(points.samples)), *[0] * (-len(points.samples) % resources.slots)]
    began, running, costs = time.monotonic(), {}, {}  # type: tuple[float, dict[Any, int], dict[int, list[Cost]]]
    while True:
        while order and len(running) < resources.slots and (not costs or time.monotonic() - began < BEGIN_SECONDS):
            index = order.pop(0)
            running[remote.remote(as_written(points.samples[index].config()), time.time(), scratch)] = index
        if not running:
            return costs
        tell(f"measuring {counted(len(points.samples), 'point')} of the space, {len(costs)} done")
        [done], _ = ray.wait(list(running))
        index = running.pop(done)
        try:
            costs.setdefault(index, []).append(ray.get(done))
        except ray.exceptions.RayError as error:
            raise Refused(failure(points.samples[index], error)) from None


def failure(sample: Sample, error: Exception) -> str:
    """The sentence for a point that failed: which, why, and what helps if memory was short."""
    name = describe(sample.params)
    point = f"The point {name}" if name else "The space's only point"
    return f"{point} cannot be trained here: {cause_of(error)}"
