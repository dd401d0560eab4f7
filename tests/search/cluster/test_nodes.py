"""What nodes have room for, and what is said of one that cannot run a trial."""

from __future__ import annotations

from dataclasses import replace

import pytest

from search.cluster.nodes import Facts, Node, fault_of, look_around, total_slots, warning_of


@pytest.mark.parametrize(
    ("cpus", "gpus", "cpus_per_trial", "gpus_per_trial", "slots"),
    [
        (4, 0, 1, 0, 4),
        (5, 0, 2, 0, 2),
        (8, 2, 1, 0.5, 4),
        (8, 2, 1, 0.4, 4),  # a fifth trial would need two halves of two GPUs
        (3, 4, 1, 1, 3),  # the cores are what is short
        (16, 8, 1, 2, 4),
        (8, 0, 1, 1, 0),
        (0, 8, 1, 1, 0),  # the driver's own node, started with --num-cpus=0
    ],
)
def test_a_node_has_the_slots_that_its_cores_and_its_gpus_allow(
    cpus: int, gpus: float, cpus_per_trial: int, gpus_per_trial: float, slots: int
) -> None:
    assert Node("id", "name", cpus, gpus).slots(cpus_per_trial, gpus_per_trial) == slots


def test_slots_are_counted_per_node_and_not_over_their_sum() -> None:
    nodes = [Node(str(i), f"node-{i}", cpus=3, gpus=1) for i in range(3)]
    assert total_slots(nodes, 2, 0, None) == 3  # nine cores would make four
    assert total_slots(nodes, 1, 0.5, None) == 6
    assert total_slots(nodes, 1, 0.5, 2) == 4  # --gpus 2
    assert total_slots(nodes, 1, 0, 2) == 9


def test_a_node_without_the_dependencies_is_named_with_them() -> None:
    node, facts = Node("id", "worker-1", 1), look_around()
    assert fault_of(node, facts) == ""
    lacking = replace(facts, versions={**facts.versions, "torch": "", "pyarrow": ""})
    assert fault_of(node, lacking).startswith("Node worker-1 lacks torch, pyarrow.")
    assert "worker-1 cannot run this project: ModuleNotFoundError" in fault_of(node, "ModuleNotFoundError: no module 'yaml'")


def test_another_torch_on_a_node_is_told_but_not_refused() -> None:
    node, facts = Node("id", "worker-1", 1), look_around()
    assert warning_of(node, facts) == ""
    other = Facts(facts.host, facts.python, {**facts.versions, "torch": "1.0"})
    assert warning_of(node, other).startswith(f"node worker-1 has torch 1.0 instead of {facts.versions['torch']}: ")
