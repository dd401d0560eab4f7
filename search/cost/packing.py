"""How many trials share a GPU: chosen by a probe of memory and speed, where nobody has said it.

    plan (a GPU a trial) -> probe (Ray, one GPU) -> Memory, examples a second by number of trials -> choose -> plan (shares)

A small encoder leaves most of a large GPU idle. One trial is trained alone, then beside itself 2, 4, 8 … times, until doubling
gains little or something else is full. The memory is that of the space's dearest points: what does not fit is not tried.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from minbert_core.commands import Refused
from minbert_core.settings.paths import as_written
from minbert_core.terminal import show_progress
from search.cost.measure import Memory, Sharer
from search.cost.points import ProbePoints, branch_points, failure
from search.plan.plan import Plan, branch_configs, most_threads, with_resources
from search.plan.resources import Resources
from search.space.domains import Domain
from search.space.space import Sample, default_choice

LEAST_GAIN = 1.1  # of a doubling, in examples a second of all trials together
MOST_POINTS = 3  # whose memory is measured
MARGIN = 1.2  # over what a trial took while it was measured: other batches are longer
CONTEXT_GB = 0.5  # of a process on a GPU, beside what it allocates; assumed, not measured (2026-11)
LEVEL_SECONDS = 4.0  # of training at each number of trials
LEAD_SECONDS = 0.5  # in which every process hears when to begin
BEGIN_SECONDS = 60  # after these no further level is begun; the largest takes half a minute (assumed, 2026-11)
GPU_PART = 0.001  # what Ray is told that a process of the probe takes: how many there are is decided here


@dataclass(frozen=True)
class Room:
    """How many trials on each GPU there is work and a core for."""

    by_trials: int
    by_cores: int

    def lacks(self, number: int) -> str:
        """What is missing for so many on each GPU; empty where nothing is."""
        if number > self.by_trials:
            return f"for {number} on each GPU the search has too few trials"
        return f"for {number} on each GPU this machine has too few cores" if number > self.by_cores else ""


def packed(plan: Plan, address: str, start_ray: Callable[[Resources], None]) -> Plan:
    """The plan with as many trials a GPU as pays; about a minute, a progress line meanwhile where a terminal is.

    Without a GPU it stays as it is; where nothing can be gained, and on a cluster, a trial keeps one, and the plan says why.
    Raises Refused where Ray does not start, or a point cannot be trained even alone.
    """
    resources = plan.resources
    if not resources.gpus:
        return plan
    room = room_of(plan)
    if reason := "the GPUs of a cluster are not probed" if address != "local" else room.lacks(2):
        return replace(plan, resources=replace(resources, sharing=f"one trial a GPU: {reason}"))
    number, sentence = probe(plan, room, start_ray)
    return with_resources(plan, replace(resources, gpus_per_trial=1 / number, sharing=sentence))


def room_of(plan: Plan) -> Room:
    """Of a plan: as many trials as it has, each with its threads, spread over its GPUs (without one: beside each other)."""
    resources, gpus = plan.resources, max(1, int(plan.resources.gpus))
    cores = max(resources.cpus_per_trial, most_threads(branch_configs(plan.space)))
    return Room(plan.num_trials // gpus, resources.cpus // cores // gpus)


# ---------------------------------------------------------------------------------------------------------- arithmetic


def choose(rates: Mapping[int, float], memory: Memory, ended: str = "") -> tuple[int, str]:
    """How many trials share a GPU, and the sentence that says why.

    rates: examples a second of all together, by their number: 1, 2, 4 …; ended: what kept the next number from being tried.
    """
    best = 1
    while 2 * best in rates and gains(rates, 2 * best):
        best *= 2
    together = "".join(f", {number} together {rates[number]:,.0f}" for number in sorted(rates) if number > 1)
    needs = f"each needs {memory.peak_gb:.1f} of {memory.total_gb:.0f} GB"
    sentence = f"alone one trains {rates[1]:,.0f} examples/s{together}; {needs}{f'; {ended}' if ended else ''}"
    return best, f"{f'{best} trials share a GPU' if best > 1 else 'one trial a GPU'}: {sentence}"


def gains(rates: Mapping[int, float], number: int) -> bool:
    """Whether `number` trials together train enough more than half as many."""
    return rates[number] >= LEAST_GAIN * rates[number // 2]


def fit(number: int, memory: Memory) -> bool:
    """Whether so many trials find place in what is free of a GPU's memory."""
    return number * (MARGIN * memory.peak_gb + CONTEXT_GB) <= memory.free_gb


def dearest(points: ProbePoints, peaks_gb: Sequence[float]) -> float:
    """GB of a trial that takes the dearest branch of every choice: what each takes more is added up (assumed, not measured)."""
    more: dict[str, float] = defaultdict(float)
    for (name, _), (own, parent) in points.branches.items():
        more[name] = max(more[name], peaks_gb[own] - peaks_gb[parent])
    return peaks_gb[0] + sum(more.values())


def heavy_choice(name: str, domain: Domain) -> Any:
    """The default, but the largest batch and the longest sequences: they take the most memory."""
    numbers = [value for value in domain.values() if isinstance(value, int)]
    is_heavy = not {"batch_size", "max_length"}.isdisjoint(name.split("/")) and len(numbers) == len(domain.values())
    return max(numbers) if is_heavy else default_choice(name, domain)


# --------------------------------------------------------------------------------------------------------------- probe


def probe(plan: Plan, room: Room, start_ray: Callable[[Resources], None]) -> tuple[int, str]:
    """What `choose` says after training on the taken GPU that has the least free; on the CPU where none is taken.

    Raises as `packed`.
    """
    import ray

    resources = plan.resources
    taken = tuple(sorted(resources.taken, key=lambda gpu: gpu.total_gb - gpu.used_gb)[:1])
    began = time.monotonic()
    start_ray(replace(resources, gpus=min(1, resources.gpus), taken=taken))
    remote = ray.remote(num_cpus=0, num_gpus=GPU_PART if resources.gpus else 0)(Sharer)

    def start(sample: Sample) -> Any:
        return remote.remote(as_written(sample.config()))

    try:
        points = branch_points(plan.space, MOST_POINTS, heavy_choice)
        first, memory = _begin_alone(points, start)
        rates, ended = _train_together(first, lambda: start(points.samples[0]), memory, room, began + BEGIN_SECONDS)
    finally:
        show_progress("")
        ray.shutdown()
    return choose(rates, memory, ended)


def _begin_alone(points: ProbePoints, start: Callable[[Sample], Any]) -> tuple[Any, Memory]:
    """The process of the first point, which goes on; the memory of a trial, for which each point was alone on the GPU."""
    import ray

    processes = [start(sample) for sample in points.samples]  # which take nothing of the GPU until they are told to begin
    peaks_gb = [0.0] * len(processes)
    for index in reversed(range(len(processes))):
        show_progress(f"probing what shares a GPU: memory, {index + 1} to go")
        try:
            memory: Memory = ray.get(processes[index].begin.remote())
        except ray.exceptions.RayError as error:
            raise Refused(failure(points.samples[index], error)) from None
        peaks_gb[index] = memory.peak_gb
        if index > 0:
            ray.kill(processes[index])
    return processes[0], replace(memory, peak_gb=dearest(points, peaks_gb))


def _train_together(
    first: Any, start: Callable[[], Any], memory: Memory, room: Room, last_begin: float
) -> tuple[dict[int, float], str]:
    """Examples a second of 1, 2, 4 … trials together; what kept the next number from being tried, if something did.

    last_begin: the time, by `time.monotonic()`, after which no further number is tried.
    """
    import ray

    trials = [first]
    rates = {1: _rate(trials)}
    while len(trials) == 1 or gains(rates, len(trials)):
        number = 2 * len(trials)
        if ended := room.lacks(number):
            return rates, ended
        if not fit(number, memory):
            return rates, f"{number} would not fit"
        if time.monotonic() > last_begin:
            return rates, f"no time was left to try {number}"
        show_progress(f"probing what shares a GPU: {number} trials")
        try:
            trials += (more := [start() for _ in trials])
            ray.get([trial.begin.remote() for trial in more])
            rates[number] = _rate(trials)
        except ray.exceptions.RayError:
            return rates, f"{number} together failed"
    return rates, ""


def _rate(trials: list[Any]) -> float:
    """Examples a second of all together, in seconds that are the same for all.  Raises what a trial raises."""
    import ray

    begins_at = time.time() + LEAD_SECONDS
    return float(sum(ray.get([trial.rate.remote(begins_at, LEVEL_SECONDS) for trial in trials])))
