"""The board: an actor on the driver's node, on which processes that do not see the driver's folders post their news.

    a trial's process: Poster, at each step -> Board -> the driver's mirror, twice per second -> runs/NAME
    runs/NAME/stop -> Board -> Poster: stop

It carries what has to be quick and may be lost: signs of life, records and the log as they are made, the reason of a failure.
What must not be lost is in the storage before it is reported.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from search.cluster.nodes import on_node

POST_SECONDS = 0.5  # between two posts of a process, and between two looks of the driver
ANSWER_SECONDS = 30.0  # for the board to take a post that its sender waits for


@dataclass
class News:
    """What a process has done since the last look at it. It is the `attempt`-th process in the folder `name`."""

    name: str
    attempt: int
    process: dict[str, Any]  # host, pid, node
    records: list[dict[str, Any]] = field(default_factory=list)
    log: str = ""
    model: str = ""  # the place in the storage of its newest best model
    failure: str = ""

    def add(self, later: News) -> None:
        self.records += later.records
        self.log += later.log
        self.model, self.failure = later.model or self.model, later.failure or self.failure


class Board:
    """Holds the news of all processes until the driver takes them."""

    def __init__(self) -> None:
        self.news: dict[tuple[str, int], News] = {}
        self.stopped = False

    def post(self, news: News) -> bool:
        """Add news, and return whether all processes are to stop."""
        key = news.name, news.attempt
        if key in self.news:
            self.news[key].add(news)
        else:
            self.news[key] = news
        return self.stopped

    def take(self) -> list[News]:
        """Return all news since the last call."""
        taken, self.news = list(self.news.values()), {}
        return taken

    def stop(self) -> None:
        self.stopped = True


def put_up() -> tuple[str, Any]:
    """Start a board on the driver's node. Return its name, by which workers find it, and its handle. Ray must run."""
    import ray

    name = f"minbert-board-{secrets.token_hex(8)}"
    here = on_node(ray.get_runtime_context().get_node_id())
    actor: Any = ray.remote(num_cpus=0, max_restarts=-1)(Board)  # as Ray may kill it for its memory; its news are lost then
    return name, actor.options(name=name, scheduling_strategy=here).remote()


class Poster:
    """A function that training calls at each step: it posts what is new, and returns whether to stop, like study/pulse.py."""

    def __init__(self, board: str, name: str, attempt: int, node: str, log: Path) -> None:
        """board: its name. name, attempt: those of the news. node: Ray's id of this one. log: a file, whose text is posted."""
        import ray

        self.board: Any = ray.get_actor(board)
        self.name, self.attempt, self.log, self.num_posted = name, attempt, log, 0
        self.process = {"host": socket.gethostname(), "pid": os.getpid(), "node": node}
        self.news = self._nothing()
        self.sent: Any = None
        self.is_stopped, self.next = False, 0.0
        self.post()

    def _nothing(self) -> News:
        return News(self.name, self.attempt, self.process)

    def __call__(self) -> bool:
        now = time.monotonic()
        if now >= self.next and not self.is_stopped:
            self.next = now + POST_SECONDS
            self._receive(0)
            if self.sent is None:  # else the board is slow: what is new waits
                self.post()
        return self.is_stopped

    def post(self) -> None:
        """Send what is new, and do not wait."""
        with self.log.open("rb") as file:
            file.seek(self.num_posted)
            text = file.read()
        self.num_posted += len(text)
        self.news.log = text.decode(errors="replace")
        self.sent, self.news = self.board.post.remote(self.news), self._nothing()

    def flush(self) -> None:
        """Send what is new, and wait until the board has it."""
        self.post()
        self._receive(ANSWER_SECONDS)

    def _receive(self, timeout_seconds: float) -> None:
        import ray

        if self.sent is not None and ray.wait([self.sent], timeout=timeout_seconds)[0]:
            with contextlib.suppress(ray.exceptions.RayError):  # the board has died; it starts again
                self.is_stopped = bool(ray.get(self.sent)) or self.is_stopped
            self.sent = None
