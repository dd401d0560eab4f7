"""The resources of a search on a Ray cluster: those of its nodes.

--address, --gpus, --gpus-per-trial, --cpus-per-trial -> cluster_resources -> Resources with nodes
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from minbert_core.commands import Refused
from minbert_core.files import cache_folder
from minbert_core.words import counted
from search.cluster.gpus import Guarded, guarded
from search.cluster.join import join
from search.cluster.nodes import Node, alive_nodes, fault_of, look_around, pinned, visit, warning_of
from search.cluster.room import Room
from search.cluster.sharing import folders_of, shared
from search.plan.resources import Resources


def cluster_resources(
    address: str, gpus: str, gpus_per_trial: float | None, cpus_per_trial: int, storage: str = ""
) -> Resources:
    """Join the cluster and return what its nodes have. `gpus` limits the search to so many; auto: to none.

    storage: the URI of one that this machine can write to; "": the nodes share a disk.
    Raises Refused if it cannot be joined, a node cannot run a trial, or there is too little for one trial.
    """
    address = join(address, shares_disk=not storage)
    nodes = alive_nodes()
    facts = visit({pinned(look_around, node.id)(): node for node in nodes if node.cpus})
    for node, seen in facts.items():
        if fault := fault_of(node, seen):
            raise Refused(f"{fault} Mend it, or take the node out of the cluster.")
    found = guarded(nodes)
    nodes = list(found.nodes)
    present = sum(node.gpus for node in nodes)
    wanted = None if gpus == "auto" else int(gpus)
    if wanted is not None and wanted > present:
        raise Refused(f"--gpus {wanted} asks for more than the cluster has: {_has(nodes)}. Give --gpus {int(present)} or auto.")
    per_trial = (1.0 if gpus_per_trial is None else gpus_per_trial) if present and wanted != 0 else 0.0
    resources = Resources(
        sum(node.cpus for node in nodes),
        present if wanted is None else wanted,
        cpus_per_trial,
        per_trial,
        cluster=address,
        nodes=tuple(nodes),
        most_gpus=wanted or None,
        warnings=tuple(filter(None, (warning_of(node, seen) for node, seen in facts.items()))) + _left_out(found),
        storage=storage,
        guards=found.guards,
    )
    if not resources.slots:
        each = f"{counted(cpus_per_trial, 'CPU')}" + (f" and {per_trial:g} GPU" if per_trial else "")
        raise Refused(f"No node of the cluster at {address} has room for a trial of {each}. It has {_has(nodes)}.")
    return resources


def _left_out(found: Guarded) -> tuple[str, ...]:
    return tuple(f"left out, because others use it: GPU {gpu} of node {node.name}" for node, gpu in found.busy)


def check_folders(resources: Resources, runs: Path, data: Path, encoders: Iterable[str]) -> None:
    """Check once that every node of the cluster sees these folders, and the cache.  Raises Refused."""
    written, read = folders_of(runs, cache_folder(), data, map(Path, encoders))
    with shared(written, read) as folders:
        Room(resources.cpus_per_trial, resources.gpus_per_trial, resources.most_gpus, folders, print, resources.nodes).begin()


def cluster_lines(resources: Resources) -> list[str]:
    """Return the lines of the plan about the cluster and each of its nodes; none without a cluster."""
    if not resources.cluster:
        return []
    lines = [f"cluster   {resources.cluster}: {_has(resources.nodes)}"]
    width = max(len(node.name) for node in resources.nodes)
    for node in resources.nodes:
        slots = node.slots(resources.cpus_per_trial, resources.gpus_per_trial)
        has = f"{counted(node.cpus, 'CPU')}, {counted(int(node.gpus), 'GPU')}, {node.memory_gb:.0f} GB"
        lines.append(f"          {node.name:<{width}}  {has}: room for {counted(slots, 'trial')}")
    return lines


def _has(nodes: list[Node] | tuple[Node, ...]) -> str:
    cpus, gpus = sum(node.cpus for node in nodes), int(sum(node.gpus for node in nodes))
    return f"{counted(len(nodes), 'node')}, {counted(cpus, 'CPU')}, {counted(gpus, 'GPU')}"
