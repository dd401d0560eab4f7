"""Faults around a search: its disk is full, its store is locked, deleted, slow, broken or away."""

from __future__ import annotations

import contextlib
import http.client
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil

from benchmarks.faults.case import Case
from benchmarks.faults.harness import NAME, ONE_SLOT, Lab, Omitted, Search, check_all, check_gone, require
from search.tracking.store import sqlite_uri

START = ("--space", f"{NAME}.yaml", *ONE_SLOT)
DISK_MB = 24
AWAY_SECONDS = 20


# ------------------------------------------------------------------------------------------------------------------ disk


def disk_full(search: Search, lab: Lab) -> str:
    """Fill the search's disk, a small tmpfs, in training; make room again, and resume."""
    with _small_disk(search.here / "runs") as disk:
        search.start(*START)
        search.until(lambda: len(list(search.folder.glob("trials/*"))) > 1 and search.trains(), "training of a second trial")
        _fill(disk / "full")
        require(search.end(120) == 3, f"the search ended with {search.code}:\n{search.text[-1500:]}")
        sentences = [line for line in search.text.splitlines() if "No space left" in line]
        require(bool(sentences), f"no sentence:\n{search.text[-1500:]}")
        check_gone(search)
        (disk / "full").unlink()
        search.resume()
        check_all(search, lab)
    return f"exit 3: {sentences[0].replace(str(search.here), '…')[:160]}"


@contextlib.contextmanager
def _small_disk(place: Path) -> Iterator[Path]:
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        raise Omitted("only root can mount a small disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def _fill(file: Path) -> None:
    """Write a file until its disk is full."""
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as full:
        while full.write(bytes(4096)):
            pass


# ----------------------------------------------------------------------------------------------------------------- MLflow


def store_locked(search: Search, lab: Lab) -> str:
    """Lock MLflow's database for 30 s."""
    search.start(*START)
    search.until(search.trains, "training")
    with contextlib.closing(sqlite3.connect(search.here / "mlflow.db", timeout=30, isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        time.sleep(30)
        database.execute("ROLLBACK")
    require(search.end() == 0, f"the search ended with {search.code}:\n{search.text[-1500:]}")
    check_all(search, lab)
    return "exit 0; nothing lacks"


def store_deleted(search: Search, lab: Lab) -> str:
    """Delete MLflow's database in training."""
    search.start(*START)
    search.until(search.trains, "training")
    (search.here / "mlflow.db").unlink()
    require(search.end() in (0, 4), f"the search ended with {search.code}:\n{search.text[-1500:]}")
    code = search.code
    search.resume()
    check_all(search, lab)
    return f"exit {code}; after --resume nothing lacks"


def server_away(search: Search, lab: Lab) -> str:
    """Kill MLflow's server in training, and start it again 20 s later."""
    port = _free_port()
    server = _server(search, port)
    search.start(*START, "--tracking-uri", f"http://127.0.0.1:{port}")
    search.until(search.trains, "training")
    _end(server)
    time.sleep(AWAY_SECONDS)
    server = _server(search, port)
    try:
        require(search.end() == 0, f"the search ended with {search.code}:\n{search.text[-1500:]}")
    finally:
        _end(server)
    check_all(search, lab)
    lines = [line for line in search.text.splitlines() if "MLflow" in line]
    require(len(lines) <= 4, f"{len(lines)} lines about one outage:\n{search.text[-2500:]}")
    return f"exit 0; nothing lacks; {len(lines)} lines"


def server_behind_proxy(search: Search, lab: Lab, fault: str) -> str:
    """Let MLflow's server answer with 500, or 2 s late, for 20 s in training."""
    port = _free_port()
    server, proxy = _server(search, port), _Proxy(port)
    try:
        search.start(*START, "--tracking-uri", f"http://127.0.0.1:{proxy.port}")
        search.until(search.trains, "training")
        proxy.fault = fault
        time.sleep(AWAY_SECONDS)
        proxy.fault = ""
        require(search.end() == 0, f"the search ended with {search.code}:\n{search.text[-1500:]}")
    finally:
        proxy.close()
        _end(server)
    check_all(search, lab)
    return "exit 0; nothing lacks"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _server(search: Search, port: int) -> subprocess.Popen[bytes]:
    """Start an MLflow server over the search's own database, and wait until it answers."""
    words = ["-m", "mlflow", "server", "--backend-store-uri", sqlite_uri(search.here / "mlflow.db"), "--port", str(port)]
    artifacts = ["--artifacts-destination", str(search.here / "artifacts"), "--workers", "1"]
    command, silent = [sys.executable, *words, *artifacts], subprocess.DEVNULL
    server = subprocess.Popen(command, cwd=search.here, start_new_session=True, stdout=silent, stderr=silent)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as ask:
            ask.request("GET", "/health")
            if ask.getresponse().status == 200:
                return server
        time.sleep(0.3)
    _end(server)
    raise RuntimeError("MLflow's server did not start within 90 s")


def _end(server: subprocess.Popen[bytes]) -> None:
    """Kill a server with all its processes, some of which have sessions of their own."""
    for process in [*psutil.Process(server.pid).children(recursive=True), psutil.Process(server.pid)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    server.wait()


class _Proxy:
    """A server before MLflow's, which passes requests on, or answers with 500 (`fault` is "500"), or late ("slow")."""

    def __init__(self, port: int) -> None:
        self.fault = ""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if outer.fault == "slow":
                    time.sleep(2)
                if outer.fault == "500":
                    self._answer(500, b"{}", "application/json")
                    return
                with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as onward:
                    onward.request(self.command, self.path, body, dict(self.headers))
                    answer = onward.getresponse()
                    self._answer(answer.status, answer.read(), answer.headers.get("Content-Type", "application/json"))

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on

            def _answer(self, status: int, body: bytes, kind: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Print nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


COMPLETE = "exit 0, and MLflow lacks nothing"
OUTSIDE = [
    Case("disk full", "one sentence, exit 3; resumed, same figures", disk_full, times=2),
    Case("MLflow locked for 30 s", COMPLETE, store_locked),
    Case("MLflow deleted", "the search continues; complete after --resume", store_deleted),
    Case("MLflow's server away for 20 s", COMPLETE, server_away),
    Case("MLflow's server answers 500 for 20 s", COMPLETE, partial(server_behind_proxy, fault="500")),
    Case("MLflow's server slow for 20 s", COMPLETE, partial(server_behind_proxy, fault="slow")),
]
