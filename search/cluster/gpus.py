"""GPUs and who uses them: the rule by which one is left out, on this machine and on the nodes of a cluster.

On a cluster Ray itself assigns GPUs, by number and without a look. A Guard takes each one, looks, and keeps it if it is busy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from search.cluster.nodes import Node, on_node

BUSY_GB, BUSY_SHARE = 1.0, 0.05  # the larger is the limit of a free GPU's memory in use (assumed for a desktop, 2026-11)
GUARD_SECONDS = 60  # for a Guard to start and look; one that still waits then is killed, and its GPU counts as in use


@dataclass(frozen=True)
class Gpu:
    """A GPU that CUDA sees, and its memory in use by others; 0 of 0 if the driver does not report it."""

    name: str  # its number in nvidia-smi, or its name in CUDA_VISIBLE_DEVICES
    used_gb: float = 0.0
    total_gb: float = 0.0

    @property
    def is_busy(self) -> bool:
        return self.used_gb > max(BUSY_GB, BUSY_SHARE * self.total_gb)

    def __str__(self) -> str:
        return self.name + (f" ({self.used_gb:.0f} of {self.total_gb:.0f} GB in use)" if self.is_busy else "")


def memory_gb(name: str) -> tuple[float, float]:
    """Return (in use, total) of the GPU with that number or UUID, without the driver's own memory. NVML must be initialised."""
    import pynvml

    handle = pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(name)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    return memory.used / 1e9, memory.total / 1e9


class Guard:
    """An actor that was given a GPU, and so keeps others from it while it lives."""

    def look(self) -> Gpu:
        """Return the GPU and its memory in use; 0 of 0 if that is not known: a logical one, or a node without nvidia-ml-py."""
        import ray

        [name] = map(str, ray.get_gpu_ids())
        try:
            import pynvml
        except ImportError:
            return Gpu(name)
        try:
            pynvml.nvmlInit()
            return Gpu(name, *memory_gb(name))
        except pynvml.NVMLError:
            return Gpu(name)


@dataclass(frozen=True)
class Guarded:
    """Nodes without their busy GPUs, these GPUs, and the actors that hold them for as long as somebody holds these."""

    nodes: tuple[Node, ...]
    busy: tuple[tuple[Node, Gpu], ...] = ()
    guards: tuple[Any, ...] = ()


def guarded(nodes: Iterable[Node]) -> Guarded:
    """Look at each GPU of the nodes, all at a time, and hold the busy ones, so that Ray gives them to no trial of ours."""
    import ray

    nodes, asked = tuple(nodes), {}
    for node in nodes:
        for _ in range(int(node.gpus)):
            guard = _guard(node)
            asked[guard.look.remote()] = node, guard
    done = ray.wait(list(asked), num_returns=len(asked), timeout=GUARD_SECONDS)[0] if asked else []
    busy, guards, left = [], [], {node.id: 0 for node in nodes}
    for reference, (node, guard) in asked.items():
        gpu = _answer(reference) if reference in done else None
        if gpu is not None and gpu.is_busy:
            busy.append((node, gpu))
            guards.append(guard)
        else:
            ray.kill(guard)
            left[node.id] += gpu is not None
    return Guarded(tuple(replace(node, gpus=left[node.id]) for node in nodes), tuple(busy), tuple(guards))


def _guard(node: Node) -> Any:
    import ray

    actor: Any = ray.remote(num_cpus=0, num_gpus=1)(Guard)
    return actor.options(scheduling_strategy=on_node(node.id)).remote()


def _answer(reference: Any) -> Gpu | None:
    import ray

    try:
        gpu: Gpu = ray.get(reference)
    except ray.exceptions.RayError:  # its node has left
        return None
    return gpu
