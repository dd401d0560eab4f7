"""The number of trials that share a GPU. A probe of memory and speed decides, unless the user has.

    plan (one GPU per trial) -> probe (Ray, one GPU) -> Memory, examples/s by number of trials -> choose -> plan (shares)

A small encoder leaves most of a large GPU idle. The probe trains one trial, then 2, 4, 8 … together, until doubling gains
little or a limit is reached. Memory is measured at the most expensive points of the space. A number that would not fit is not
tried.
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

LEAST_GAIN = 1.1  # least ratio of total examples/s for a doubling
MOST_POINTS = 3  # points whose memory is measured
MARGIN = 1.2  # factor on the measured memory, since other batches are longer
CONTEXT_GB = 0.5  # of a process on a GPU, in addition to its tensors; assumed, not measured (2026-11)
LEVEL_SECONDS = 4.0  # training time at each number of trials
LEAD_SECONDS = 0.5  # delay in which every process receives the common start time
BEGIN_SECONDS = 60  # after which no further level begins; the largest takes half a minute (assumed, 2026-11)
GPU_PART = 0.001  # share that a process of the probe reserves in Ray; this file decides how many there are


@dataclass(frozen=True)
class MostPerGpu:
    """The largest number of trials per GPU for which there are trials and cores."""

    by_trials: int
    by_cores: int

    def lacks(self, number: int) -> str:
        """Return the reason why `number` trials per GPU are too many; empty if they are not."""
        if number > self.by_trials:
            return f"for {number} on each GPU the search has too few trials"
        return f"for {number} on each GPU this machine has too few cores" if number > self.by_cores else ""


def packed(plan: Plan, address: str, start_ray: Callable[[Resources], object]) -> Plan:
    """Return the plan with the best number of trials per GPU. This takes about a minute; a terminal shows progress.

    Without a GPU the plan is unchanged. If nothing can be gained, and on a cluster, each trial keeps a GPU, and the plan names
    the reason.
    Raises Refused if Ray does not start, or a point cannot be trained even by itself.
    """
    resources = plan.resources
    if not resources.gpus:
        return plan
    most = most_per_gpu(plan)
    if reason := "the GPUs of a cluster are not probed" if address != "local" else most.lacks(2):
        return replace(plan, resources=replace(resources, sharing=f"one trial per GPU: {reason}"))
    number, sentence = probe(plan, most, start_ray)
    return with_resources(plan, replace(resources, gpus_per_trial=1 / number, sharing=sentence))


def most_per_gpu(plan: Plan) -> MostPerGpu:
    """Return the limits of a plan: its trials and the machine's cores, spread over its GPUs (or in total, without a GPU)."""
    resources, gpus = plan.resources, max(1, int(plan.resources.gpus))
    cores = max(resources.cpus_per_trial, most_threads(branch_configs(plan.space)))
    return MostPerGpu(plan.num_trials // gpus, resources.cpus // cores // gpus)


# ---------------------------------------------------------------------------------------------------------- arithmetic


def choose(rates: Mapping[int, float], memory: Memory, ended: str = "") -> tuple[int, str]:
    """Choose how many trials share a GPU. Return the number and a sentence with the reason.

    rates: number of trials (1, 2, 4 …) -> examples/s of all together. ended: why the next number was not tried.
    """
    best = 1
    while 2 * best in rates and gains(rates, 2 * best):
        best *= 2
    together = "".join(f", {number} together {rates[number]:,.0f}" for number in sorted(rates) if number > 1)
    needs = f"a trial needs {memory.peak_gb:.1f} of {memory.total_gb:.0f} GB"
    sentence = f"one trial trains {rates[1]:,.0f} examples/s{together}; {needs}{f'; {ended}' if ended else ''}"
    return best, f"{f'{best} trials share a GPU' if best > 1 else 'one trial per GPU'}: {sentence}"


def gains(rates: Mapping[int, float], number: int) -> bool:
    """Return whether `number` trials together train enough faster than half as many."""
    return rates[number] >= LEAST_GAIN * rates[number // 2]


def fit(number: int, memory: Memory) -> bool:
    """Return whether `number` trials fit into the free memory of the GPU."""
    return number * (MARGIN * memory.peak_gb + CONTEXT_GB) <= memory.free_gb


def largest_memory(points: ProbePoints, peaks_gb: Sequence[float]) -> float:
    """Return the GB of a trial with the largest branch of every choice. The differences add up (assumed, not measured)."""
    more: dict[str, float] = defaultdict(float)
    for (name, _), (point, parent) in points.branches.items():
        more[name] = max(more[name], peaks_gb[point] - peaks_gb[parent])
    return peaks_gb[0] + sum(more.values())


def heavy_choice(name: str, domain: Domain) -> Any:
    """Choose the default value, but the largest batch and the longest sequences, which need the most memory."""
    numbers = [value for value in domain.values() if isinstance(value, int)]
    is_heavy = not {"batch_size", "max_length"}.isdisjoint(name.split("/")) and len(numbers) == len(domain.values())
    return max(numbers) if is_heavy else default_choice(name, domain)


# --------------------------------------------------------------------------------------------------------------- probe


def probe(plan: Plan, most: MostPerGpu, start_ray: Callable[[Resources], object]) -> tuple[int, str]:
    """Train on the GPU with the least free memory (on the CPU if there is none) and return what `choose` decides.

    Raises Refused as `packed` does.
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
        rates, ended = _train_together(first, lambda: start(points.samples[0]), memory, most, began + BEGIN_SECONDS)
    finally:
        show_progress("")
        ray.shutdown()
    return choose(rates, memory, ended)


def _begin_alone(points: ProbePoints, start: Callable[[Sample], Any]) -> tuple[Any, Memory]:
    """Run each point's process by itself on the GPU. Return the first process, which keeps running, and the memory."""
    import ray

    processes = [start(sample) for sample in points.samples]  # these use no GPU memory before begin()
    peaks_gb = [0.0] * len(processes)
    for index in reversed(range(len(processes))):
        show_progress(f"probing how many trials share a GPU: memory, {index + 1} to go")
        try:
            memory: Memory = ray.get(processes[index].begin.remote())
        except ray.exceptions.RayError as error:
            raise Refused(failure(points.samples[index], error)) from None
        peaks_gb[index] = memory.peak_gb
        if index > 0:
            ray.kill(processes[index])
    return processes[0], replace(memory, peak_gb=largest_memory(points, peaks_gb))


def _train_together(
    first: Any, start: Callable[[], Any], memory: Memory, most: MostPerGpu, last_begin: float
) -> tuple[dict[int, float], str]:
    """Measure the examples/s of 1, 2, 4 … trials together. Return them, and why the next number was not tried, if so.

    last_begin: no further number is tried after this time, by `time.monotonic()`.
    """
    import ray

    trials = [first]
    rates = {1: _rate(trials)}
    while len(trials) == 1 or gains(rates, len(trials)):
        number = 2 * len(trials)
        if ended := most.lacks(number):
            return rates, ended
        if not fit(number, memory):
            return rates, f"{number} would not fit"
        if time.monotonic() > last_begin:
            return rates, f"no time was left to try {number}"
        show_progress(f"probing how many trials share a GPU: {number} trials")
        try:
            trials += (more := [start() for _ in trials])
            ray.get([trial.begin.remote() for trial in more])
            rates[number] = _rate(trials)
        except ray.exceptions.RayError:
            return rates, f"{number} together failed"
    return rates, ""


def _rate(trials: list[Any]) -> float:
    """Measure the examples/s of all trials together, over the same seconds.  Raises what a trial raises."""
    import ray

    begins_at = time.time() + LEAD_SECONDS
    return float(sum(ray.get([trial.rate.remote(begins_at, LEVEL_SECONDS) for trial in trials])))
