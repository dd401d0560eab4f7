"""A private Ray: who can reach it, and what it leaves behind."""

from __future__ import annotations

import stat
import tempfile

import psutil
import pytest
import ray

from search.plan.resources import Resources
from search.study.engine import start_ray


def test_a_private_ray_is_reached_from_this_machine_only_and_its_folder_by_this_user_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two private settings of Ray 2.60 do this (engine.py); a version that ignores them would listen on all interfaces.

    Three private methods, left out, and a setting (search/__init__.py) save a tenth of a small search's time: so its processes
    are these only.
    """
    with tempfile.TemporaryDirectory(dir="/tmp") as short:  # a socket's path is short
        monkeypatch.setattr(tempfile, "gettempdir", lambda: short)
        scratch = start_ray(Resources(1, 0, 1, 0), "local")
        try:
            assert scratch is not None
            assert stat.S_IMODE(scratch.parent.stat().st_mode) == 0o700
            ours = [psutil.Process(), *psutil.Process().children(recursive=True)]
            listening = [end.laddr.ip for one in ours for end in one.net_connections("tcp") if end.status == psutil.CONN_LISTEN]
            assert len(listening) >= 2  # raylet and GCS at least
            assert {address.removeprefix("::ffff:") for address in listening} <= {"127.0.0.1", "::1"}
            words = " ".join(word for one in ours[1:] for word in one.cmdline()[:3])  # python -u FILE, or a program
            assert all(name in words for name in ("gcs_server", "raylet"))
            assert not any(name in words for name in ("monitor.py", "dashboard.py", "default_worker.py", "ray::IDLE"))
        finally:
            ray.shutdown()
