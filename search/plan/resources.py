"""The resources of a search on its machine: cores, and GPUs that nobody else uses. They limit the number of parallel trials.

    --gpus, --gpus-per-trial, --cpus-per-trial -> find_resources -> Resources -> drive.start_ray

GPUs are chosen only by their memory in use before the search starts.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from minbert_core.commands import Refused
from minbert_core.cores import usable_cores
from minbert_core.files import message
from minbert_core.words import counted
from search.cluster.gpus import Gpu, memory_gb
from search.cluster.nodes import Node, as_a_trial, machine_there, slots_of_gpus, total_slots

SMALLER = "Fewer trials at a time, smaller batches, or `machine/micro_batch_tokens` would need less."
VISIBLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"


def cause_of(error: Exception) -> str:
    """Return the reason why a process of Ray failed, and a remedy if memory was short."""
    cause = getattr(error, "cause", None)
    reason = (message(cause or error).strip().splitlines() or [""])[0].rstrip(".")
    if cause is None:  # killed, by Ray's memory monitor or by the system
        return f"its process was killed, perhaps out of memory ({reason}). {SMALLER}"
    short = "out of memory" in reason.lower() or isinstance(cause, MemoryError)
    return f"{type(cause).__name__}: {reason}.{' ' + SMALLER if short else ''}"


@dataclass(frozen=True)
class Resources:
    """The resources of a search and of each of its trials."""

    cpus: int
    gpus: float
    cpus_per_trial: int
    gpus_per_trial: float
    taken: tuple[Gpu, ...] = ()  # the GPUs to use
    left_out: tuple[Gpu, ...] = ()  # GPUs that others use
    sharing: str = ""  # how many trials share a GPU and why, if packing.py chose it
    cluster: str = ""  # HOST:PORT of the Ray cluster that was joined; the figures above are then those of its nodes
    nodes: tuple[Node, ...] = ()
    most_gpus: float | None = None  # of the cluster, as it may grow; None: no limit
    warnings: tuple[str, ...] = ()  # about its nodes
    storage: str = ""  # its URI, for processes that do not see this machine's disk
    guards: tuple[Any, ...] = ()  # actors that hold the GPUs of nodes that others use

    @property
    def slots(self) -> int:
        if self.cluster:
            return total_slots(self.nodes, self.cpus_per_trial, self.gpus_per_trial, self.most_gpus)
        by_cpu = self.cpus // self.cpus_per_trial
        return min(by_cpu, slots_of_gpus(self.gpus, self.gpus_per_trial)) if self.gpus_per_trial else by_cpu

    def __str__(self) -> str:
        each = f"{self.cpus_per_trial} CPU" + (f" and {self.gpus_per_trial:g} GPU" if self.gpus_per_trial else "")
        return f"{counted(self.slots, 'trial')} at a time, {each} each"

    @property
    def which_gpus(self) -> str:
        """`, on GPU 0, 2; left out, because others use it: GPU 1 (37 of 80 GB in use)`; empty on the CPU."""
        taken = f", on GPU {_listed(self.taken)}" if self.taken else ""
        they = "them" if len(self.left_out) > 1 else "it"
        return taken + (f"; left out, because others use {they}: GPU {_listed(self.left_out)}" if self.left_out else "")


def _listed(gpus: tuple[Gpu, ...]) -> str:
    return ", ".join(map(str, gpus))


def find_resources(gpus: str, gpus_per_trial: float | None, cpus_per_trial: int, retry: str, estimate: str = "") -> Resources:
    """Find the resources that the options ask for. GPUs with the least memory in use are preferred; busy ones are not used,
    unless CUDA_VISIBLE_DEVICES names them.

    retry: the command without --gpus, for messages. estimate: the option that estimates the time, for messages.
    Raises Refused if the machine has too little, or too little of it is free.
    """
    cpus = usable_cores()
    if cpus_per_trial > cpus:
        raise Refused(f"--cpus-per-trial {cpus_per_trial} asks for more than this machine's {cpus} cores.")
    present = find_gpus()
    wanted = None if gpus == "auto" else int(gpus)
    if wanted is not None and wanted > len(present):
        have = counted(len(present), "GPU") if present else "no GPU"
        if (visible := os.environ.get(VISIBLE)) is not None:
            have += f"; {VISIBLE}={visible} hides any other"
        at_once = f"{len(present)} at a time" if present else f"{max(1, cpus // cpus_per_trial)} at a time on the CPU"
        how_long = f"\n({estimate} first estimates the time.)" if estimate and not present else ""
        raise Refused(
            f"--gpus {wanted} asks for more than this machine has ({have}). This works here, {at_once}:\n"
            f"  {retry} --gpus {len(present)}{how_long}"
        )
    free = [gpu for gpu in present if os.environ.get(VISIBLE) or not gpu.is_busy]
    if len(free) < (min(1, len(present)) if wanted is None else wanted):
        raise Refused(_too_busy(wanted, present, free, retry))
    freest = sorted(free, key=lambda gpu: gpu.used_gb)[:wanted]
    taken = tuple(gpu for gpu in present if gpu in freest)
    per_trial = (1.0 if gpus_per_trial is None else gpus_per_trial) if taken else 0.0
    left_out = tuple(gpu for gpu in present if gpu.is_busy and gpu not in taken) if taken else ()
    return Resources(cpus, len(taken), cpus_per_trial, per_trial, taken, left_out)


def _too_busy(wanted: int | None, present: list[Gpu], free: list[Gpu], retry: str) -> str:
    busy = tuple(gpu for gpu in present if gpu not in free)
    asked = f"--gpus {wanted} asks for {counted(wanted, 'GPU')}" if wanted else "A GPU is needed"
    held = (
        f"others use {len(busy)} of this machine's {len(present)}" if len(present) > 1 else "others use this machine's only one"
    )
    works = f" This works now, {len(free)} at a time:\n  {retry} --gpus {len(free)}\n" if free else " "
    return (
        f"{asked}, but {held}: GPU {_listed(busy)}.{works}"
        f"Wait for the others, or select a busy one by its number: {VISIBLE}={busy[0].name}."
    )


def find_gpus() -> list[Gpu]:
    """List the GPUs that CUDA sees, in its order, by the driver. CUDA itself would allocate memory on each."""
    import pynvml
    import torch

    num_present = torch.cuda.device_count()
    written = os.environ.get(VISIBLE)
    names = [name.strip() for name in written.split(",")] if written else [str(i) for i in range(num_present)]
    names = names[:num_present]
    try:
        pynvml.nvmlInit()
        try:
            if (
                not written and pynvml.nvmlDeviceGetCount() != num_present
            ):  # slices of a GPU, which the driver counts differently
                return [Gpu(name) for name in names]
            return [Gpu(name, *memory_gb(name)) for name in names]
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:  # no driver, or one that gives no details: all count as free
        return [Gpu(name) for name in names]


@contextlib.contextmanager
def only_these(gpus: tuple[Gpu, ...]) -> Iterator[None]:
    """Within the block, restrict CUDA's variables to `gpus`, for Ray, which passes them to its processes."""
    before = {name: os.environ.get(name) for name in (VISIBLE, ORDER)}
    if gpus:
        os.environ[VISIBLE] = ",".join(gpu.name for gpu in gpus)
        if not before[VISIBLE]:
            os.environ[ORDER] = "PCI_BUS_ID"  # the numbers are the driver's; CUDA's own may begin with the fastest
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def machine_settings(resources: Resources, checkpoints: Iterable[str], device: object = "auto") -> dict[str, Any]:
    """Return the `machine` of every trial of a search, which a node decides on a cluster.

    checkpoints: the encoders to train. device: on a cluster, as the user has set it; auto: a GPU if trials have one.
    Raises Refused if torch cannot use the GPU of a node.
    """
    from minbert_core.settling import local_machine

    found = "cuda" if resources.gpus_per_trial else "cpu"
    if resources.cluster:
        on = str(device) if device in ("cpu", "cuda") else found
        each = resources.cpus_per_trial, resources.gpus_per_trial
        settings: dict[str, Any] = as_a_trial(machine_there, *each, on, resources.cpus_per_trial, list(checkpoints))
    else:
        settings = local_machine(found, resources.cpus_per_trial, checkpoints)
    if 0 < resources.gpus_per_trial < 1:
        settings["gpu_share"] = resources.gpus_per_trial
    return settings
