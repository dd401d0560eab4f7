"""The files that trials read, data and encoders, on nodes that do not see the driver's: carried once, fetched once per node.

    driver: offer(storage, folder, names) -> "inputs/SHA"        node: fetched(storage, "inputs/SHA") -> a folder in its cache

SHA is that of the names and contents, so searches with the same data share it, and a node sees whether it has all of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from minbert_core.files import cache_folder, lock
from search.cluster.storage import Storage, StorageFault

WHOLE = "whole"  # in the folder in the storage, once all files are there


def offer(storage: Storage, folder: Path, names: Iterable[str]) -> str:
    """Put these files of a folder into the storage, unless they are there. Return their place in it, for `fetched`."""
    names = sorted(set(names))
    place = f"inputs/{_digest(folder, names)}"
    if WHOLE not in storage.names(place):
        for name in names:
            storage.put(folder / name, f"{place}/files/{name}")
        storage.write(f"{place}/{WHOLE}", "\n".join(names).encode())
    return place


def fetched(storage: Storage, place: str) -> Path:
    """Return the folder in this node's cache that has the files. The first process here fetches them; others wait for it.

    Raises StorageFault: unreadable, or other files than were put there.
    """
    folder = cache_folder() / place
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f"{folder.name}.lock")
    with path.open("a") as held:
        lock(held, path, wait=True)
        if not folder.exists():
            draft = folder.with_name(f"{folder.name}.fetched")
            storage.get(f"{place}/files", draft)
            names = [str(file.relative_to(draft)) for file in draft.rglob("*") if file.is_file()]
            if _digest(draft, sorted(names)) != folder.name:
                raise StorageFault(f"{storage}/{place} has other files than were put there. Delete it, and resume the search.")
            draft.rename(folder)
    return folder


def fetched_all(storage: Storage, places: Mapping[str, str]) -> dict[str, str]:
    """Map each folder that a config names to its place on this node. places: the folder -> its place in the storage."""
    return {folder: str(fetched(storage, place)) for folder, place in places.items()}


def _digest(folder: Path, names: list[str]) -> str:
    whole = hashlib.sha256()
    for name in names:
        with (folder / name).open("rb") as file:
            whole.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()[:16]
