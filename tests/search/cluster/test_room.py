"""A cluster of real nodes: joined without a token, its folders checked, followed as nodes join and leave."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from benchmarks.faults.nodes import Cluster, cluster
from minbert_core.commands import Refused
from search.cluster.nodes import alive_nodes, visit
from search.cluster.room import Room
from search.cluster.sharing import Unseen, see, shared, sizes
from search.plan.on_cluster import cluster_lines, cluster_resources


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A node with one CPU and two logical GPUs, started by `ray start`, which this process joins."""
    with cluster(1) as started:
        yield started
        ray.shutdown()


def test_a_search_gets_what_the_cluster_has_and_follows_nodes_that_join_and_leave(
    nodes: Cluster, cache: Path, tmp_path: Path
) -> None:
    resources = cluster_resources(nodes.address, "auto", 0.5, 1)
    assert (resources.slots, resources.gpus, resources.cpus) == (1, 2, 1)
    assert [line.split()[0] for line in cluster_lines(resources)] == ["cluster", resources.nodes[0].name.split()[0]]
    with pytest.raises(Refused, match=r"--gpus 3 asks for more than the cluster has: 1 node, 1 CPU, 2 GPUs\."):
        cluster_resources(nodes.address, "3", None, 1)
    with pytest.raises(Refused, match=r"No node of the cluster .* has room for a trial of 4 CPUs and 1 GPU"):
        cluster_resources(nodes.address, "auto", None, 4)
    said: list[str] = []
    with shared({tmp_path: "the runs"}, {}) as folders:
        room = Room(1, 0.5, None, folders, said.append, resources.nodes)
        room.begin()
        assert room.slots() == 1
        name = nodes.start()
        [joined] = [node for node in alive_nodes() if node not in resources.nodes]
        if room.slots() != 2:  # it has just begun to look at the node
            assert room.lost(joined.id) in ("", f"{joined.name}, which is not checked yet")
        began = time.monotonic()
        while room.slots() < 2:
            assert time.monotonic() < began + 60, said
            time.sleep(0.2)
        nodes.kill(name)
        while not room.lost(joined.id):  # until its port no longer answers
            assert time.monotonic() < began + 90, said
            time.sleep(0.2)
        assert room.lost(joined.id) == f"{joined.name}, which has left the cluster"
        assert (room.slots(), room.lost(resources.nodes[0].id)) == (1, "")
    assert said[0].endswith("has joined; 2 trials at a time")
    assert not list(tmp_path.iterdir())


def test_what_a_node_does_not_see_is_named_with_its_path(tmp_path: Path) -> None:
    here, other, data = tmp_path / "runs", tmp_path / "other", tmp_path / "data"
    data.mkdir()
    (data / "train.csv").write_text("a row")
    with shared({here: "the runs"}, {data: "the data"}) as folders:
        [place] = folders.places
        assert not isinstance(see(folders.question, "node"), Unseen)
        (data / "train.csv").write_text("another row")
        assert see(folders.question, "node") == Unseen(f"sees other files than this machine in {data} (the data): train.csv")
        (place / "word").write_text("of another disk")
        assert see(folders.question, "node") == Unseen(f"sees another folder at {here} than this machine (the runs)")
        here.rename(other)
        assert see(folders.question, "node") == Unseen(f"does not see {here} (the runs)")
    assert sizes(data) == {"train.csv": 11}


def test_a_visit_to_no_node_is_answered_by_none() -> None:
    assert visit({}) == {}
