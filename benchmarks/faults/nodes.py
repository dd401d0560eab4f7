"""Clusters of real Ray nodes on this machine, started by `ray start` as a user would, to be broken."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from benchmarks.faults.harness import Omitted, Unmet, marked, require, training

NODE = "MINBERT_NODE"  # an environment variable by which all processes of a node are known
RAY = Path(sys.executable).with_name("ray")
START_SECONDS = 120
NUM_TRIES, TOO_SLOW = 3, "timed out during startup"


class Cluster:
    """A head and its nodes. Each node's processes start in an empty folder, and without the project on their path."""

    def __init__(self, token: str = "", path: str = "") -> None:
        """token: the cluster's; "": none. path: the PYTHONPATH of its nodes."""
        self.path = path
        self.place = Path(tempfile.mkdtemp(prefix="mrc-", dir="/tmp"))  # short, for Ray's sockets
        self.token, self.port, self.num_nodes = token, _free_port(), 0
        self.address = f"127.0.0.1:{self.port}"
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, cpus: int = 1, gpus: int = 2, before: str = "") -> str:
        """Start the head, or another node, wait until it runs, and return its name. before: a shell command that runs first.

        Ray gives up after 30 s, which a machine with much other work may need; then it is started again.
        """
        for _ in range(NUM_TRIES - 1):
            try:
                return self._start(cpus, gpus, before)
            except Unmet as fault:
                if TOO_SLOW not in str(fault):
                    raise
                self.kill(self.nodes.popitem()[0])
        return self._start(cpus, gpus, before)

    def _start(self, cpus: int, gpus: int, before: str) -> str:
        self.num_nodes += 1
        name, here = f"{self.place.name}-{self.num_nodes}", self.place / f"n{self.num_nodes}"
        (here / "empty").mkdir(parents=True)
        words = [str(RAY), "start", "--block", f"--num-cpus={cpus}", f"--num-gpus={gpus}", "--disable-usage-stats"]
        words += ["--object-store-memory=100000000", f"--temp-dir={here / 'ray'}"]
        words += [f"--address={self.address}"] if self.nodes else ["--head", f"--port={self.port}", "--include-dashboard=false"]
        inside = ["unshare", "--mount", "bash", "-c", f'{before} && exec "$@"', "node"] if before else []
        with (here / "out").open("wb") as out:
            self.nodes[name] = subprocess.Popen(
                [*inside, *words], cwd=here / "empty", env=self._of_a_node(name), stdout=out, stderr=out, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while "Ray runtime started" not in (text := (here / "out").read_text(errors="replace")):
            if before and "unshare" in text:
                raise Omitted("only root may mount a folder for one process")
            require(time.monotonic() < deadline and self.nodes[name].poll() is None, f"a node did not start:\n{text[-1500:]}")
            time.sleep(0.1)
        return name

    def _of_a_node(self, name: str) -> Mapping[str, str]:
        without = ("PYTHONPATH", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS")
        kept = {key: value for key, value in os.environ.items() if key not in without}
        own = {NODE: name, "HOME": str(self.place), "RAY_worker_niceness": "0", "PYTHONPATH": self.path}
        return {**kept, **own, **({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token} if self.token else {})}

    def processes(self, name: str | None = None) -> Iterator[psutil.Process]:
        """Find the processes of a node, or of all nodes."""
        return marked(NODE, set(self.nodes) if name is None else {name})

    def workers(self, name: str | None = None) -> dict[int, psutil.Process]:
        """Return the processes that train, on a node or on all, by the number of their trial."""
        return training(self.processes(name))

    def kill(self, name: str) -> None:
        """End a node as a power cut does: all its processes at the same moment, without a word."""
        processes = list(marked(NODE, {name}))
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for process in processes:
                with contextlib.suppress(psutil.Error):
                    process.send_signal(number)
        if name in self.nodes:
            self.nodes[name].wait()

    def remove(self) -> None:
        for name in list(self.nodes):
            self.kill(name)
        shutil.rmtree(self.place, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def cluster(num_nodes: int = 3, token: str = "", path: str = "") -> Iterator[Cluster]:
    """Run the block with a cluster of so many nodes, each with one CPU and two logical GPUs."""
    nodes = Cluster(token, path)
    try:
        for _ in range(num_nodes):
            nodes.start()
        yield nodes
    finally:
        nodes.remove()
