"""The place of a trial's process on a node that does not see the driver's disk: a scratch folder, the storage and the board.

    config.yaml, snapshot <- storage -> scratch folder: train_in -> snapshots, best models -> storage;  news -> board

An evaluation is reported once its snapshot and its best model are in the storage. A snapshot that is due by time is sent while
the trial trains on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from minbert_core.files import cache_folder
from search.cluster.board import Poster
from search.cluster.inputs import Supplies, bring_pretrained, send_pretrained
from search.cluster.storage import Storage
from search.study.messages import Route
from search.study.snapshots import fetch_snapshot, send_snapshot

if TYPE_CHECKING:  # a worker imports torch only after its first sign of life
    from minbert_core.config import TrialConfig
    from minbert_core.inputs import Inputs
    from minbert_core.train.pretrained import Pretrained
    from minbert_core.train.trial import Progress, Record

ABANDONED_SECONDS = 60.0  # after which a scratch folder that no process holds belongs to one that was killed
SENT = "sent.pt"  # a snapshot, next to the one that may replace it


class Away:
    """A scratch folder on a node that does not see the driver's disk."""

    def __init__(self, route: Route, folder: Path) -> None:
        self.route, self.folder = route, folder
        self.storage = Storage(route.uri).patient() / route.search / route.trial
        self.snapshot = folder / "state" / "snapshot.pt"  # state_file in train/folder.py, which imports torch
        self.supplies = Supplies(route.uri, route.inputs)
        self.pretrained: list[Pretrained] = []
        self.poster: Poster | None = None
        self.sender = ThreadPoolExecutor(1, "sender")
        self.sending: Future[None] | None = None
        self.sent = 0  # the inode of the last snapshot that was sent, as each is a new file

    def relocated(self, given: dict[str, str]) -> dict[str, str]:
        return given | self.supplies.fetched()

    def bring_pretrained(self, config: TrialConfig, inputs: Inputs) -> None:
        """Fetch the further pretrainings that the trial begins with, as far as another node has made them."""
        from minbert_core.train.pretrained import find

        self.pretrained = find(config, inputs)
        bring_pretrained(self.supplies.storage, self.pretrained)

    def pulse(self, node: str) -> Poster:
        """Fetch the trial's config and its snapshot, and return the poster. The log must be open."""
        route = self.route
        self.poster = Poster(route.board, route.trial, route.attempt, node, self.folder / "log.txt")
        self.storage.get("config.yaml", self.folder / "config.yaml")
        if route.snapshot:
            fetch_snapshot(self.storage, route.snapshot, self.snapshot)
            self.sent = self.snapshot.stat().st_ino
        return self.poster

    def keep(self, progress: Progress, records: list[Record]) -> None:
        """Send what is new after a step: its record, a snapshot, the best model. After an evaluation, wait for it."""
        assert self.poster is not None, "the pulse comes first"
        self.poster.news.records.append(progress.record)
        if progress.record.get("made"):
            send_pretrained(self.supplies.storage, self.pretrained)
        if progress.improved:
            self._send_best(str(progress.rung))
        self._send_snapshot(records, waits=progress.rung is not None)
        if progress.rung is not None:
            self.poster.flush()

    def end(self, records: list[Record]) -> None:
        """Send the snapshot of a trial that stops, and the rest of its news."""
        self._send_snapshot(records, waits=True)
        if self.poster is not None:
            self.poster.flush()

    def fail(self, reason: str) -> None:
        if self.poster is not None:
            self.poster.news.failure = reason
            self.poster.flush()

    def _send_best(self, rung: str) -> None:
        assert self.poster is not None, "the pulse comes first"
        self.storage.put(self.folder / "best", f"best/{rung}")
        self.poster.news.model = rung
        for other in self.storage.names("best"):
            if other != rung:
                self.storage.delete(f"best/{other}")

    def _send_snapshot(self, records: list[Record], waits: bool) -> None:
        """Send the snapshot if it is a new one. Without `waits` this happens while the trial trains on."""
        file = self.snapshot
        if file.exists() and file.stat().st_ino != self.sent:
            self._wait()
            kept, self.sent = file.with_name(SENT), file.stat().st_ino
            kept.unlink(missing_ok=True)
            os.link(file, kept)
            self.sending = self.sender.submit(send_snapshot, self.storage, self.route.attempt, kept, list(records))
        if waits:
            self._wait()

    def _wait(self) -> None:
        if self.sending is not None:
            self.sending.result()
            self.sending = None


@contextlib.contextmanager
def scratch(name: str) -> Iterator[Path]:
    """Make a folder in this node's cache for the block. Those of processes that were killed are removed now."""
    place = cache_folder() / "scratch"
    for other in place.glob("*/trials/*"):
        _remove_if_abandoned(other)
    folder = place / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        _remove(folder)


def _remove_if_abandoned(folder: Path) -> None:
    """Remove a scratch folder whose process, which held a lock on its log, was killed."""
    with contextlib.suppress(OSError), (folder / "log.txt").open("rb") as log:  # it is held, or has no log yet
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if time.time() - (folder / "log.txt").stat().st_mtime > ABANDONED_SECONDS:
            _remove(folder)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # another process of the same search has one there
        folder.parent.rmdir()
        folder.parent.parent.rmdir()
