"""Ray, started for one search or joined."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from minbert_core.commands import Refused
from minbert_core.files import lock
from search.cluster.join import PRIVATE, join, read_authentication
from search.plan.resources import Resources, only_these
from search.study.watch import kill_all

STOPS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1})  # they end a search so that it can be resumed
UNHEARD = frozenset({signal.SIGHUP, signal.SIGUSR1})  # a lost terminal, or Slurm, sends them to all processes

UNUSED = ("start_monitor", "start_log_monitor", "start_api_server")  # of ray._private.node.Node


def start_ray(resources: Resources, address: str) -> Path | None:
    """Start a private Ray instance (address `local`) with `resources`, or join the cluster at `address`, without output.

    Nothing of a private instance can be reached from another machine. Returns its folder, which is removed when this process
    exits; None for a cluster.  Raises Refused if Ray does not start.
    """
    import logging

    import ray

    ray._private.worker.print_to_stdstream = _discard  # when a process of Ray dies, it prints pages of its state
    if address != "local":
        join(address, shares_disk=not resources.storage)
        return None
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    read_authentication()  # a cluster may have been joined before
    scratch = _session_folder()
    local: dict[str, Any] = {"num_cpus": resources.cpus, "num_gpus": resources.gpus, "_temp_dir": str(scratch)}
    local |= {"object_store_memory": 100 * 1024**2}  # for reports only; data is paths
    local |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        with only_these(resources.taken), _unheard(), _loopback_allowed(), _alone():
            ray.init(address="local", log_to_driver=False, logging_level=logging.ERROR, **local)
    except Exception as error:  # Ray raises plain Exception if its processes are not ready within 30 s
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Refused(f"Ray did not start. Is this machine overloaded, or its disk full? Ray's message: {reason}") from error
    return scratch


def _discard(*_: Any, **__: Any) -> None:
    """Print nothing."""


# --------------------------------------------------------------------------------------------------------- its folder


def _session_folder() -> Path:
    """Make a folder for a Ray instance of this process. It is removed at exit; those of dead processes are removed now."""
    temporary = tempfile.gettempdir()
    # a socket's path adds 76 characters and may have 107 in all (103 on macOS)
    ours = _own_folder(Path(temporary if len(temporary) < 18 else "/tmp") / f"{PRIVATE}{os.getuid()}")
    for session in ours.iterdir():
        _remove_if_dead(session)
    session = Path(tempfile.mkdtemp(dir=ours, prefix=""))
    held = (session / "lock").open("w")
    lock(held, session / "lock")
    atexit.register(_remove, session, held)
    return session


def _own_folder(folder: Path) -> Path:
    """Make a folder that only this user can enter. If another user has put something there, make one with another name."""
    folder.mkdir(mode=0o700, exist_ok=True) if not folder.is_symlink() else None
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
        return Path(tempfile.mkdtemp(prefix="minbert-", dir=folder.parent))
    folder.chmod(0o700)  # earlier versions let Ray open it to all
    return folder


def _remove_if_dead(session: Path) -> None:
    """Remove the folder of an instance whose driver holds no lock on it any more, and end what is left of the instance."""
    path = session / "lock"
    if not path.exists():
        return
    with path.open("a") as file:
        if not lock(file, path):
            return
        kill_all(session)
        shutil.rmtree(session, ignore_errors=True)


def _remove(session: Path, held: IO[str]) -> None:
    """End Ray, then remove its folder, whose lock is held until now."""
    import ray

    ray.shutdown()
    shutil.rmtree(session, ignore_errors=True)
    held.close()


# ------------------------------------------------------------------------------------------------------------ its start


@contextlib.contextmanager
def _loopback_allowed() -> Iterator[None]:
    """Let Ray take 127.0.0.1 as its address, which it otherwise replaces by an outer one, and then listens everywhere."""
    from ray._private import ray_constants

    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Let Ray start without its autoscaler, log monitor and dashboard: Python processes that a private instance never uses."""
    from ray._private.node import Node

    before = {name: getattr(Node, name) for name in UNUSED}
    for name in UNUSED:
        setattr(Node, name, _discard)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(Node, name, method)


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Block some signals within the block. Processes started there never receive them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, UNHEARD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
