"""The room for trials on a cluster, which follows the cluster: nodes join and leave while a search runs.

Room, asked before each suggestion: ray.nodes() -> a new node is visited, and admitted or held back -> slots
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from minbert_core.commands import Refused
from minbert_core.words import counted
from search.cluster.gpus import guarded
from search.cluster.nodes import Facts, Node, alive_nodes, answer_of, fault_of, on_node, total_slots, visit
from search.cluster.sharing import Unseen

LOOK_SECONDS = 5.0  # between two looks at the cluster, which take milliseconds
REMEDY = "Or take the node out of the cluster: `ray stop` there."
GONE_SECONDS = 30.0  # after the loss of a node: a process that died without a sign of life was on it; Ray has noticed it
GONE, UNCHECKED, UNABLE = "has left the cluster", "is not checked yet", "cannot run trials"


class Check(Protocol):
    """The question that a node is asked before trials run there: sharing.py, or with a storage reach.py."""

    remedy: str

    def ask(self, node: Node) -> Any: ...
    def fault_of(self, node: Node, seen: Facts | Unseen) -> str: ...


class Room:
    """The nodes that run trials of this search, and how many trials they have room for."""

    def __init__(
        self,
        cpus_per_trial: int,
        gpus_per_trial: float,
        most_gpus: float | None,
        check: Check,
        say: Callable[[str], None],
        planned: Iterable[Node],
    ) -> None:
        """planned: the nodes without the GPUs that others use. say: called about nodes that come and go."""
        self.planned = {node.id: node for node in planned}
        self.each, self.most_gpus = (cpus_per_trial, gpus_per_trial), most_gpus
        self.check, self.say = check, say
        self.admitted: dict[str, Node] = {}
        self.known: dict[str, str] = {}  # the id of every node that was ever seen -> its name
        self.asked: dict[Any, Node] = {}  # visits that have not ended
        self.holders: list[Any] = []  # actors that hold what a node has, which no trial may use
        self.silent: dict[str, float] = {}  # admitted nodes that do not answer, which Ray has not noticed yet -> since when
        self.looked, self.last_loss = 0.0, float("-inf")
        self.refused: set[str] = set()  # the ids of nodes that cannot run trials
        self.last_refused, self.last_refusal = "", float("-inf")

    def begin(self) -> None:
        """Visit all nodes.  Raises Refused with the sentence about the first that cannot run trials of this search."""
        asked = {self.check.ask(node): node for node in alive_nodes() if node.slots(*self.each)}
        for node, seen in visit(asked).items():
            if fault := self._fault_of(node, seen):
                raise Refused(f"{fault} {f'{self.check.remedy} ' * isinstance(seen, Unseen)}{REMEDY}")
            self._admit(self.planned.get(node.id, node))

    def slots(self) -> int:
        """Return how many trials the cluster has room for now."""
        if time.monotonic() >= self.looked + LOOK_SECONDS:
            self._look()
        return self._num_slots()

    def lost(self, node_id: str | None) -> str:
        """Return the node that a trial was lost with, in words: it has left, or cannot run trials. "" if the node is sound.

        None: no process of the trial is known.
        """
        self._look()
        if node_id is None:
            return self._lost_at_start()
        node = self.admitted.get(node_id)
        if node is None:
            return f"{self.known[node_id]}, which {self._why_not(node_id)}" if node_id in self.known else ""
        if node.answers():
            return ""
        self.silent.setdefault(node_id, time.monotonic())
        self.last_loss = time.monotonic()
        return f"{node.name}, which {GONE}"

    def _why_not(self, node_id: str) -> str:
        """Return why a known node is not admitted."""
        if any(node.id == node_id for node in self.asked.values()):
            return UNCHECKED
        return UNABLE if node_id in self.refused else GONE

    def _lost_at_start(self) -> str:
        """Return where a trial was lost that gave no sign of life. Ray may start one on a node that is not checked yet."""
        recently = time.monotonic() - GONE_SECONDS
        if self.last_loss > recently:
            return f"a node that {GONE}"
        if unchecked := next(iter(self.asked.values()), None):
            return f"{unchecked.name}, which {UNCHECKED}"
        return f"{self.last_refused}, which {UNABLE}" if self.last_refusal > recently else ""

    def _look(self) -> None:
        import ray

        self.looked = time.monotonic()
        alive = {node.id: node for node in alive_nodes()}
        self.refused &= alive.keys()
        for node_id in [node_id for node_id in self.admitted if node_id not in alive]:
            node = self.admitted.pop(node_id)
            self.last_loss = time.monotonic()
            self.say(f"node {node.name} {GONE}; {self._room()}")
        oldest = time.monotonic() - GONE_SECONDS
        self.silent = {node_id: since for node_id, since in self.silent.items() if node_id in alive and since > oldest}
        for node in alive.values():
            if node.id not in self.known and node.slots(*self.each):
                self.known[node.id] = node.name
                self.asked[self.check.ask(node)] = node
        for reference in ray.wait(list(self.asked), num_returns=len(self.asked), timeout=0)[0] if self.asked else ():
            node = self.asked.pop(reference)
            if node.id in alive:
                self._receive(node, answer_of(reference))

    def _receive(self, node: Node, seen: Any) -> None:
        if fault := self._fault_of(node, seen):
            self.say(f"{fault.rstrip('.')}; no trial runs there")
            self.holders.append(hold(node))
            self.refused.add(node.id)
            self.last_refused, self.last_refusal = node.name, time.monotonic()
            return
        found = guarded([node] if self.each[1] else [])  # some seconds; no other trial of ours is there yet
        self.holders += found.guards
        self._admit(found.nodes[0] if found.nodes else node)
        self.say(f"node {node.name} has joined; {self._room()}")

    def _fault_of(self, node: Node, seen: Any) -> str:
        return ("" if isinstance(seen, Unseen) else fault_of(node, seen)) or self.check.fault_of(node, seen)

    def _admit(self, node: Node) -> None:
        self.admitted[node.id] = node
        self.known[node.id] = node.name

    def _room(self) -> str:
        return f"{counted(self._num_slots(), 'trial')} at a time"

    def _num_slots(self) -> int:
        nodes = [node for node_id, node in self.admitted.items() if node_id not in self.silent]
        return total_slots(nodes, *self.each, self.most_gpus)


class Holder:
    """An actor that does nothing but hold what it was started with."""


def hold(node: Node) -> Any:
    """Take all that Ray has on a node, so that it starts no trial there, until this search leaves the cluster."""
    import ray

    actor: Any = ray.remote(num_cpus=node.cpus, num_gpus=node.gpus)(Holder)
    return actor.options(scheduling_strategy=on_node(node.id)).remote()
