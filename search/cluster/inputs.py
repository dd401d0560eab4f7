"""The files that trials read on nodes that do not see the driver's: data, encoders, pretrainings. Fetched once per node.

    driver: offer(storage, folder, names) -> "inputs/SHA"        node: fetched(storage, "inputs/SHA") -> a folder in its cache
    whoever trains on texts: send_pretrained -> "pretrained/KEY" -> bring_pretrained, into another node's cache

SHA is that of the names and contents, so searches with the same data share it, and a node sees whether it has all of it.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from minbert_core.files import cache_folder, lock
from search.cluster.storage import Storage, StorageFault

if TYPE_CHECKING:  # a worker imports torch only after its first sign of life
    from minbert_core.train.pretrained import Pretrained

WHOLE = "whole"  # in a folder in the storage, once all files are there


@dataclass(frozen=True)
class Supplies:
    """The files that a process reads on a node that does not see the driver's folders. Without a storage there are none."""

    uri: str = ""  # of the storage
    places: Mapping[str, str] = field(default_factory=dict)  # a folder that a config names -> its place in the storage

    @property
    def storage(self) -> Storage:
        return Storage(self.uri).patient()

    def fetched(self) -> dict[str, str]:
        """Fetch all, if this node has not yet, and map each folder to its place here.  Raises StorageFault."""
        return {folder: str(fetched(self.storage, place)) for folder, place in self.places.items()}


def offer(storage: Storage, folder: Path, names: Iterable[str]) -> str:
    """Put these files of a folder into the storage, unless they are there. Return their place in it, for `fetched`."""
    names = sorted(set(names))
    place = f"inputs/{_digest(folder, names)}"
    _put_whole(storage, folder, names, place)
    return place


def _put_whole(storage: Storage, folder: Path, names: list[str], place: str) -> None:
    if WHOLE in storage.names(place):
        return
    for name in names:
        storage.put(folder / name, f"{place}/files/{name}")
    storage.write(f"{place}/{WHOLE}", "\n".join(names).encode())


def fetched(storage: Storage, place: str) -> Path:
    """Return the folder in this node's cache that has the files. The first process here fetches them; others wait for it.

    Raises StorageFault: unreadable, or other files than were put there.
    """
    folder = cache_folder() / place
    with _alone(folder):
        if not folder.exists():
            draft = folder.with_name(f"{folder.name}.fetched")
            storage.get(f"{place}/files", draft)
            if _digest(draft, _names(draft)) != folder.name:
                raise StorageFault(f"{storage}/{place} has other files than were put there. Delete it, and resume the search.")
            draft.rename(folder)
    return folder


@contextlib.contextmanager
def _alone(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Keep other processes of this node from the same folder within the block. Yield False, without `wait`, if one is there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f"{folder.name}.lock")
    with path.open("a") as held:
        yield lock(held, path, wait=wait)


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _digest(folder: Path, names: list[str]) -> str:
    whole = hashlib.sha256()
    for name in names:
        with (folder / name).open("rb") as file:
            whole.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()[:16]


# ------------------------------------------------------------------------------------------------------- pretrainings


def send_pretrained(storage: Storage, ones: Iterable[Pretrained]) -> None:
    """Put the further pretrainings that this node has in its cache into the storage, unless they are there."""
    for one in ones:
        if one.is_cached:
            _put_whole(storage, one.folder, _names(one.folder), f"pretrained/{one.key}")


def bring_pretrained(storage: Storage, ones: Iterable[Pretrained]) -> None:
    """Fetch the further pretrainings that another node has made into this one's cache, without waiting for one.

    While another process here trains or fetches one, run_pretraining waits for it, with signs of life.
    """
    for one in ones:
        with _alone(one.folder, wait=False) as is_alone:
            if is_alone and not one.is_cached and WHOLE in storage.names(f"pretrained/{one.key}"):
                storage.get(f"pretrained/{one.key}/files", one.folder)
