"""The nodes of a Ray cluster: what each has, and what a process on it finds there.

ray.nodes() -> alive_nodes -> visit, a task pinned to each node -> Facts -> faults_of, warnings_of
"""

from __future__ import annotations

import platform
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from minbert_core.commands import Refused

NEEDED = ("torch", "ray", "pyarrow", "pydantic", "safetensors", "tokenizers", "numpy")  # what a trial imports
SAME = ("torch",)  # of these another version changes the last digits of results; Ray itself refuses another Ray or Python
VISIT_SECONDS = 120  # for a process to start on each node, with our code, and to look around
ANSWER_SECONDS = 3.0  # for a node to accept a connection
GB = 1e9


@dataclass(frozen=True)
class Node:
    """A node of a cluster, with what Ray may use of it."""

    id: str
    name: str
    cpus: int
    gpus: float = 0
    memory_gb: float = 0
    endpoint: tuple[str, int] = ("", 0)  # where its raylet listens

    def answers(self) -> bool:
        """Return whether the node's raylet still listens. Ray itself notices a lost node only after 15 s."""
        try:
            socket.create_connection(self.endpoint, timeout=ANSWER_SECONDS).close()
        except OSError:
            return False
        return True

    def slots(self, cpus_per_trial: int, gpus_per_trial: float) -> int:
        """Return how many trials it has room for."""
        by_cpu = self.cpus // cpus_per_trial
        return min(by_cpu, slots_of_gpus(self.gpus, gpus_per_trial)) if gpus_per_trial else by_cpu


def slots_of_gpus(gpus: float, gpus_per_trial: float) -> int:
    """Return how many trials fit on the GPUs of one machine. Ray never splits a trial's share of a GPU over two of them."""
    per_gpu = int(1 / gpus_per_trial + 1e-9)
    return int(gpus) * per_gpu if per_gpu else int(gpus / gpus_per_trial + 1e-9)


def alive_nodes() -> list[Node]:
    """List the nodes of the joined cluster that are alive, in the order of their names. This takes milliseconds."""
    import ray

    nodes = [_node(entry) for entry in ray.nodes() if entry["Alive"]]  # type: ignore[no-untyped-call]
    return sorted(nodes, key=lambda node: (node.name, node.id))


def _node(entry: Mapping[str, Any]) -> Node:
    has, host, address = entry["Resources"], entry["NodeManagerHostname"], entry["NodeManagerAddress"]
    name = host if host == address else f"{host} ({address})"
    cpus, gpus, memory_gb = int(has.get("CPU", 0)), has.get("GPU", 0.0), has.get("memory", 0.0) / GB
    return Node(entry["NodeID"], name, cpus, gpus, memory_gb, (address, entry["NodeManagerPort"]))


def total_slots(nodes: Iterable[Node], cpus_per_trial: int, gpus_per_trial: float, most_gpus: float | None) -> int:
    """Return how many trials the nodes have room for, with at most `most_gpus` GPUs in all; None: all GPUs."""
    room = sum(node.slots(cpus_per_trial, gpus_per_trial) for node in nodes)
    if most_gpus is None or not gpus_per_trial:
        return room
    return min(room, slots_of_gpus(most_gpus, gpus_per_trial))


# ------------------------------------------------------------------------------------------------------------------- visits


@dataclass(frozen=True)
class Facts:
    """The findings of a process on a node."""

    host: str
    python: str
    versions: Mapping[str, str]  # of NEEDED; "" for one that is missing


def look_around() -> Facts:
    """Return the facts of the machine that this runs on."""
    return Facts(socket.gethostname(), platform.python_version(), {name: _version(name) for name in NEEDED})


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def on_node(node_id: str) -> Any:
    """Return the scheduling strategy for one node and no other."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)


def pinned(act: Callable[..., Any], node_id: str) -> Callable[..., Any]:
    """Return a function that starts `act` on a node, whatever runs there, and returns Ray's reference to its result."""
    import ray

    remote: Any = ray.remote(num_cpus=0, max_retries=0)(act)
    start: Callable[..., Any] = remote.options(scheduling_strategy=on_node(node_id)).remote
    return start


def visit(asked: Mapping[Any, Node]) -> dict[Node, Any]:
    """Wait for what was started on the nodes. Return the results, or a reason where a node has not answered.

    asked: Ray's reference of a call -> its node.
    """
    import ray

    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=VISIT_SECONDS) if asked else ([], [])
    answers = {asked[reference]: f"no process started there within {VISIT_SECONDS} s" for reference in late}
    for reference in late:
        ray.cancel(reference, force=True)
    return answers | {asked[reference]: answer_of(reference) for reference in done}


def answer_of(reference: Any) -> Any:
    """Return a finished visit's result, or Ray's reason in one line."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        return f"{type(cause).__name__}: {lines[-1] if isinstance(cause, ray.exceptions.RayError) else lines[0]}"


def fault_of(node: Node, facts: Facts | str) -> str:
    """Return the sentence that says why no trial can run on a node; empty if one can."""
    if isinstance(facts, str):
        return f"Node {node.name} cannot run this project: {facts.rstrip('.')}."
    if missing := [name for name, number in facts.versions.items() if not number]:
        return f"Node {node.name} lacks {', '.join(missing)}. Every node needs this machine's environment: pip install."
    return ""


def warning_of(node: Node, facts: Facts) -> str:
    """Return the sentence about versions that differ from those here; empty if none does."""
    own = look_around()
    differing = [name for name in SAME if facts.versions[name] != own.versions[name]]
    if not differing:
        return ""
    there = ", ".join(f"{name} {facts.versions[name]} instead of {own.versions[name]}" for name in differing)
    return f"node {node.name} has {there}: its trials may differ from others in their last digits"


# ------------------------------------------------------------------------------------------------------- as a trial would


def as_a_trial(act: Callable[..., Any], cpus: int, gpus: float, *arguments: Any) -> Any:
    """Call `act(*arguments)` on some node, with a trial's resources.  Raises Refused if no node is free, or with its fault."""
    import ray

    asked = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(act).remote(*arguments)
    if not ray.wait([asked], timeout=VISIT_SECONDS)[0]:
        ray.cancel(asked, force=True)
        raise Refused(f"No node was free within {VISIT_SECONDS} s. Other jobs use the cluster, or it is still starting.")
    answer = answer_of(asked)
    if isinstance(answer, str):
        raise Refused(f"No trial can run on this cluster: {answer}")
    return answer


def machine_there(device: str, threads: int, checkpoints: list[str]) -> dict[str, Any] | str:
    """Return what `local_machine` finds on a node, or a sentence where torch cannot use its GPU."""
    import torch

    from minbert_core.settling import local_machine

    if device == "cuda" and not torch.cuda.is_available():
        return (
            f"torch sees no GPU on {socket.gethostname()}, although Ray has one there. To train on its CPU: "
            "--set machine/device=cpu"
        )
    return local_machine(device, threads, checkpoints)
