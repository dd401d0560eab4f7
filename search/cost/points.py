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
from search.cluster.inputs import Supplies
from search.cost.measure import Cost, measure
from search.plan.resources import Resources, cause_of
from search.report.words import describe
from search.space.domains import Choice
from search.space.space import Choose, Sample, Space, default_choice

MOST_POINTS = 8  # to measure
BEGIN_SECONDS = 60  # after which no further point begins
Branch = tuple[str, Any]  # (parameter, label)


@dataclass(frozen=True)
class ProbePoints:
    """The points to measure, the default point first, and the branches whose costs they show."""

    samples: list[Sample]
    branches: dict[Branch, tuple[int, int]]  # branch -> its point, and the point to compare it with
    num_branches: int  # of the whole space


def branch_points(space: Space, at_most: int = MOST_POINTS, choose: Choose = default_choice) -> ProbePoints:
    """Return the default point and, for each branch of a choice, the point that differs from its parent only in that branch.

    Choices among variants come before those among numbers, which rarely change the cost of a step.
    choose: picks the values of all other parameters.
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
    measured = {
        branch: (point, parent) for branch, (point, parent) in pairs.items() if point is not None and parent is not None
    }
    return ProbePoints(samples, measured, len(pairs))


def measure_points(
    points: ProbePoints,
    resources: Resources,
    at_once: int,
    scratch: Path,
    show: Callable[[str], None],
    supplies: Supplies | None = None,
) -> dict[int, list[Cost]]:
    """Measure the costs of the points, `at_once` at a time as the search runs trials, until BEGIN_SECONDS. Ray must run.

    The default point fills up the last round, so that every point is measured under the search's own load.
    Raises Refused if a point cannot be trained here.
    """
    import ray

    remote = ray.remote(  # max_calls: a new process each, as for a trial, with its own peak of memory
        num_cpus=resources.cpus_per_trial, num_gpus=resources.gpus_per_trial, max_calls=1, max_retries=0
    )(measure)
    order = [*range(len(points.samples)), *[0] * (-len(points.samples) % at_once)]
    began, running, costs = time.monotonic(), {}, {}  # type: tuple[float, dict[Any, int], dict[int, list[Cost]]]
    while True:
        while order and len(running) < at_once and (not costs or time.monotonic() - began < BEGIN_SECONDS):
            index = order.pop(0)
            running[remote.remote(as_written(points.samples[index].config()), time.time(), scratch, supplies)] = index
        if not running:
            return costs
        show(f"measuring {counted(len(points.samples), 'point')} of the space, {len(costs)} done")
        [done], _ = ray.wait(list(running))
        index = running.pop(done)
        try:
            costs.setdefault(index, []).append(ray.get(done))
        except ray.exceptions.RayError as error:
            raise Refused(failure(points.samples[index], error)) from None


def failure(sample: Sample, error: Exception) -> str:
    """Return the message for a point that failed: the point, the reason, and a remedy if memory was short."""
    name = describe(sample.params)
    point = f"The point {name}" if name else "The space's only point"
    return f"{point} cannot be trained here: {cause_of(error)}"
