"""Snapshots in a storage: two objects each, the records first, so that whoever finds a snapshot finds its records.

trials/007/state/0002-000123.jsonl, 0002-000123.pt: the second process of trial 7, after 123 records
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from search.cluster.storage import Storage

if TYPE_CHECKING:  # a worker imports torch only after its first sign of life
    from minbert_core.train.trial import Record

STATE = "state"  # the folder of the snapshots in that of a trial


def send_snapshot(trial: Storage, attempt: int, file: Path, records: list[Record]) -> None:
    """Put a snapshot and its records into a trial's storage, then delete the older ones.  Raises StorageFault."""
    name = f"{attempt:04d}-{len(records):06d}"
    trial.write(f"{STATE}/{name}.jsonl", "".join(json.dumps(record) + "\n" for record in records).encode())
    trial.put(file, f"{STATE}/{name}.pt")
    for other in trial.names(STATE):
        if other.partition(".")[0] < name:
            trial.delete(f"{STATE}/{other}")


def newest_snapshot(trial: Storage) -> str:
    """Return the name of a trial's newest whole snapshot; "" if it has none.  Raises StorageFault."""
    return max((name.removesuffix(".pt") for name in trial.names(STATE) if name.endswith(".pt")), default="")


def num_attempts(trial: Storage) -> int:
    """Return how many processes of a trial are known from its snapshots."""
    return max((int(name.partition("-")[0]) for name in trial.names(STATE)), default=0)


def read_records_of(trial: Storage, name: str) -> list[Record]:
    """Read the records of a snapshot.  Raises ValueError: damaged; StorageFault."""
    from minbert_core.train.folder import parse_record

    return [parse_record(line) for line in trial.read(f"{STATE}/{name}.jsonl").splitlines()]


def fetch_snapshot(trial: Storage, name: str, file: Path) -> None:
    """Copy a snapshot to a file.  Raises StorageFault."""
    trial.get(f"{STATE}/{name}.pt", file)
