"""The driver's side of a storage: it makes its own folders of the trials look as if their processes had worked there.

    storage: records of snapshots, best models -> runs/NAME/trials/007 <- board: alive, metrics.jsonl, log.txt, failure.txt
    runs/NAME/stop -> board

So the study, the watchdog, the screen, `--status` and `analysis` know nothing of the storage. The best models are brought only
for the trials that keep theirs. Of a trial that has ended, nothing is left in the storage.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from minbert_core.train.folder import write_records
from minbert_core.train.trial import Record
from search.cluster.board import ANSWER_SECONDS, POST_SECONDS, News, put_up
from search.cluster.inputs import Supplies
from search.cluster.storage import Storage
from search.study.messages import Route, as_dict
from search.study.pulse import stop_file
from search.study.snapshots import STATE, newest_snapshot, num_attempts, read_records_of

LEAVE_SECONDS = 2.0  # for the thread to end; it waits for more only if Ray has died


class Mirror:
    """The trials' folders of a search, mirrored from its folder in a storage.

    Its methods raise StorageFault.
    """

    def __init__(self, folder: Path, uri: str, search: str) -> None:
        """folder: the search's. search: its folder in the storage."""
        self.folder, self.uri, self.search = folder, uri, search
        self.storage = Storage(uri).patient() / search
        self.inputs: dict[str, str] = {}
        self.board_name = ""
        self.board: Any = None
        self.attempts: dict[str, int] = {}  # trials/007 -> the number of its processes; news of the last one count
        self.heard: set[str] = set()  # trials whose process may still write
        self.models: dict[str, str] = {}  # the rung of a best model that has not been brought
        self.fault: OSError | None = None  # of this machine's disk
        self.lock = threading.RLock()

    @cached_property
    def present(self) -> set[str]:
        """The trials that have files in the storage."""
        names = {f"trials/{name}" for name in self.storage.names("trials")}
        self.models = {name: max(rungs, key=int) for name in names if (rungs := self.storage.names(f"{name}/best"))}
        return names

    def _name(self, folder: Path) -> str:
        return folder.relative_to(self.folder).as_posix()

    # ---- while processes work

    @contextlib.contextmanager
    def at_work(self, supplies: Supplies) -> Iterator[None]:
        """Within the block the processes' news arrive here twice per second. Ray must run.

        supplies: what the trials read.
        """
        self.inputs = dict(supplies.places)
        self.board_name, self.board = put_up()
        ended = threading.Event()
        thread = threading.Thread(target=self._look, args=(ended,), name="mirror", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(LEAVE_SECONDS)

    def _look(self, ended: threading.Event) -> None:
        while not ended.wait(POST_SECONDS) and self.fault is None:
            self._take()
            if stop_file(self.folder).exists():
                self.board.stop.remote()

    def route(self, folder: Path) -> dict[str, Any]:
        """Put a trial's config into the storage, and return what its next process needs to know."""
        name = self._name(folder)
        trial = self.storage / name
        trial.write("config.yaml", (folder / "config.yaml").read_bytes())
        self.present.add(name)
        with self.lock:
            self.attempts[name] = max(self.attempts.get(name, 0), num_attempts(trial)) + 1
            self.heard.add(name)
            (folder / "alive").unlink(missing_ok=True)
        snapshot = newest_snapshot(trial)
        return as_dict(Route(self.uri, self.search, name, self.attempts[name], snapshot, self.board_name, self.inputs))

    def arrive(self, folder: Path) -> None:
        """Let all news that processes have sent so far arrive in the trials' folders.  Raises OSError."""
        self._take()
        if self.fault is not None:
            raise self.fault

    def _take(self) -> None:
        import ray

        with self.lock:
            if not ray.is_initialized():  # it has been shut down; a call would start another
                return
            try:
                taken: list[News] = ray.get(self.board.take.remote(), timeout=ANSWER_SECONDS)
            except ray.exceptions.RayError:  # the board, or Ray, has died: what is lost is in the storage, or trained again
                return
            try:
                for news in taken:
                    if news.name in self.heard and news.attempt == self.attempts[news.name]:
                        self._apply(news, self.folder / news.name)
            except OSError as error:
                self.fault = error

    def _apply(self, news: News, folder: Path) -> None:
        with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(record) + "\n" for record in news.records))
        with (folder / "log.txt").open("a", encoding="utf-8") as file:
            file.write(news.log)
        (folder / "alive").write_text(json.dumps(news.process), encoding="utf-8")
        if news.failure:
            (folder / "failure.txt").write_text(news.failure, encoding="utf-8")
        if news.model:
            self.models[news.name] = news.model

    # ---- when they have ended

    def trusted_records(self, folder: Path) -> list[Record]:
        """Reset a trial's records to those of its newest snapshot. If its records are damaged, the trial starts again."""
        name, records = self._name(folder), list[Record]()
        trial = self.storage / name
        with self.lock:
            self.heard.discard(name)
        if snapshot := newest_snapshot(trial):
            try:
                records = read_records_of(trial, snapshot)
            except (FileNotFoundError, ValueError):
                trial.delete(STATE)
        write_records(folder / "metrics.jsonl", records)
        return records

    def bring_best(self, folder: Path) -> None:
        """Copy a trial's best model here, if there is a newer one than was brought."""
        name = self._name(folder)
        if name in self.present and (rung := self.models.pop(name, "")):
            with contextlib.suppress(FileNotFoundError):  # its process has just replaced it: the next report leads here again
                (self.storage / name).get(f"best/{rung}", folder / "best")

    def clear(self, folder: Path) -> None:
        """Delete what the storage has of a trial that has ended."""
        name = self._name(folder)
        if name in self.present:
            self.storage.delete(name)
            self.present.discard(name)
            self.models.pop(name, None)
