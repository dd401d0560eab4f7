"""The CPU cores that this process may use. It imports only the standard library, for reports on broken environments."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")  # where Linux shows a container its limits


def usable_cores(cgroup: Path | None = None) -> int:
    """Count the cores that the process is bound to, or those that its container may use, if that is less.

    A container's limit (`docker --cpus=2`) is a share of time, which the binding does not show. cgroup: None for CGROUP.
    """
    bound_to = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # the former: Linux
    return max(1, math.floor(min(bound_to, _limit(cgroup or CGROUP))))


def _limit(cgroup: Path) -> float:
    """Return the container's CPU seconds per second, of cgroups version 2 or else 1; infinite without a limit or a file."""
    unified, old = cgroup / "cpu.max", cgroup / "cpu"
    try:
        if unified.exists():
            quota, period = unified.read_text().split()
        else:
            quota, period = ((old / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return math.inf if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError):
        return math.inf
