"""The watch over Ray's own processes. Without them its calls hang, or its C++ code ends the driver without a word.

RayWatch, a thread: raylet or GCS gone -> `has_died` -> Ray Tune ends, or, if it hangs, the thread ends the process
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import psutil

from minbert_core.commands import REFUSED, Refused

LOOK_SECONDS = 1.0
NAMES = {"raylet": "raylet", "gcs_server": "GCS"}  # a process -> Ray's name for it
LEAVE_SECONDS = 5.0  # for the main thread to notice the death by itself
ANSWER_SECONDS = 5.0  # for a cluster's GCS to accept a connection
NUM_TRIES = 3  # of them in a row


class RayDied(Refused):
    """Ray's own processes have died, so the search ended. It can be resumed."""


def leave(death: RayDied) -> NoReturn:
    """Print the sentence and end the process at once: in an ordinary exit Ray's threads would end it, with their own code."""
    print(death, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(REFUSED)


class RayWatch:
    """Notices within seconds that Ray's own processes have died: those of a private instance, or the GCS of a joined cluster.

    If the main thread has not left the `with` block LEAVE_SECONDS later, the process is ended with the code of a refusal.
    """

    def __init__(self, scratch: Path | None, give_up: Callable[[str], None]) -> None:
        """scratch: the folder of the private instance; None: a cluster was joined.

        give_up: called with a sentence before the process is ended.
        """
        import ray

        self.scratch, self.give_up = scratch, give_up
        self.address = None if scratch else ray.get_runtime_context().gcs_address
        self.helpers = [child for child in psutil.Process().children() if scratch and _mentions(child, scratch)]
        needed = self.helpers if scratch else own_raylet()
        self.needed = {NAMES[name]: process for process in needed if (name := process.name()) in NAMES}
        self.workers: list[psutil.Process] = []
        self.died = ""  # a sentence
        self.left = threading.Event()

    def __enter__(self) -> RayWatch:
        threading.Thread(target=self._watch, name="ray-watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.left.set()

    def has_died(self) -> bool:
        """Return whether Ray has died. A private instance is looked at now, a cluster has been asked some seconds ago."""
        gone = [name for name, process in self.needed.items() if not _is_running(process)]
        if gone and not self.died:
            self.died = f"Ray has died (its {' and '.join(gone)}). Its trials are kept and resume from their snapshots."
        return bool(self.died)

    def shut_down(self) -> None:
        """End Ray. What is left of one that has died is killed, and it is not waited for."""
        import ray

        self.left.set()  # the main thread no longer waits for Ray's answers, only, below, a bounded time for its end
        if not self.has_died():
            self.needed = {}  # they end now
            ray.shutdown()
            return
        for process in (*self.helpers, *self.workers):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if self.scratch is not None:
            kill_all(self.scratch)  # and what has started since the last look
            shutil.rmtree(self.scratch, ignore_errors=True)
        thread = threading.Thread(target=ray.shutdown, daemon=True)
        thread.start()
        thread.join(LEAVE_SECONDS)

    def _watch(self) -> None:
        num_failed = 0
        while not self.left.wait(LOOK_SECONDS):
            if self.scratch and (raylet := self.needed.get(NAMES["raylet"])):  # the workers of a cluster are not only ours
                with contextlib.suppress(psutil.Error):  # it has just died
                    self.workers = raylet.children(recursive=True) or self.workers
            if self.address is not None:
                num_failed = 0 if _answers(self.address) else num_failed + 1
                if num_failed == NUM_TRIES:
                    self.died = f"The Ray cluster's GCS no longer answers at {self.address}. The trials are kept."
            if self.has_died():
                break
        if self.died and not self.left.wait(LEAVE_SECONDS):
            self.give_up(self.died)
            self.shut_down()
            os._exit(REFUSED)


def own_raylet() -> list[psutil.Process]:
    """Return the raylet of a joined cluster that this process is connected to. It is on this machine."""
    import ray

    node: Any = ray._private.worker._global_node
    raylets = [process for process in psutil.process_iter(["name"]) if process.info["name"] == "raylet"]
    return [process for process in raylets if _mentions(process, Path(node.raylet_socket_name))]


def kill_all(session: Path) -> None:
    """Kill this user's processes of a private instance of Ray, which its folder tells apart."""
    for process in psutil.process_iter(["uids"]):
        uids = process.info["uids"]
        if uids and uids.real == os.getuid() and process.pid != os.getpid() and _mentions(process, session):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _mentions(process: psutil.Process, folder: Path) -> bool:
    """Return whether a process has a folder in its command line, as all that Ray starts have its session's."""
    try:
        return str(folder) in " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return False


def _is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS):
            return True
    except OSError:
        return False
