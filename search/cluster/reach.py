"""The check that a node reaches the storage of a search: a file written here is read there, and answered.

Reached -> word in the storage -> reach, a task on the node: reads the word, writes its answer -> Reached.fault_of
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from typing import Any

from minbert_core.commands import Refused
from minbert_core.files import cache_folder, explain_fault
from search.cluster.nodes import Facts, Node, look_around, pinned
from search.cluster.sharing import Unseen
from search.cluster.storage import Storage, StorageFault

HELP = "Credentials are those of each machine: its role, its environment, or the files in its home."


def reach(place: Storage, word: str, answer: str) -> Facts | Unseen:
    """Return the facts of the machine that this runs on, or why it cannot work with the storage, its cache included."""
    try:
        if place.read("word").decode(errors="replace") != word:
            return Unseen(f"sees other files than this machine at {place.uri}")
        place.write(answer, b"")
    except FileNotFoundError:
        return Unseen(f"does not see what this machine writes to {place.uri}")
    except StorageFault as error:
        return Unseen(f"has no access. {str(error).rstrip('.')}")
    try:
        (cache_folder() / "scratch").mkdir(parents=True, exist_ok=True)
        (cache_folder() / "scratch" / f".{answer}").touch()
        (cache_folder() / "scratch" / f".{answer}").unlink()
    except OSError as error:
        return Unseen(f"has no cache. {explain_fault(error).rstrip('.')}. Set XDG_CACHE_HOME before `ray start` there")
    return look_around()


class Reached:
    """The storage that all nodes of a search have to reach, with a word in it."""

    remedy = HELP

    def __init__(self, storage: Storage) -> None:
        """Write the word.  Raises StorageFault."""
        self.word, self.place = secrets.token_hex(8), storage / f"nodes-{secrets.token_hex(4)}"
        self.place.write("word", self.word.encode())

    def ask(self, node: Node) -> Any:
        return pinned(reach, node.id)(self.place, self.word, node.id)

    def fault_of(self, node: Node, seen: Facts | Unseen) -> str:
        """Return the sentence about a node that does not reach the storage; empty if it does, and its answer is seen here."""
        if isinstance(seen, Unseen):
            return f"Node {node.name} {seen.what}."
        if node.id not in self.place.names(""):
            return f"Node {node.name} writes to another storage at {self.place.uri} than this machine."
        return ""

    def close(self) -> None:
        with contextlib.suppress(StorageFault):
            self.place.delete("")


@contextlib.contextmanager
def reached(uri: str) -> Iterator[Reached]:
    """Prepare the check of a storage, for nodes that are there and for those that join within the block.

    Raises Refused: it cannot be written from this machine.
    """
    check_storage(uri)
    storage = Reached(Storage(uri))
    try:
        yield storage
    finally:
        storage.close()


def check_storage(uri: str) -> None:
    """Raise Refused if this machine cannot write to a storage, and read what it has written."""
    storage, word = Storage(uri), secrets.token_hex(8)
    try:
        storage.write(f"check-{word}", word.encode())
        read = storage.read(f"check-{word}")
        storage.delete(f"check-{word}")
    except (StorageFault, FileNotFoundError) as error:
        raise Refused(f"{str(error).rstrip('.')}. {HELP}") from None
    if read != word.encode():
        raise Refused(f"The storage at {uri} does not return what was written to it.")
