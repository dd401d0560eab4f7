"""A trial as the study returns it, of any score and status."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search.study.trials import TrialResult


@pytest.fixture
def trial(tmp_path: Path) -> Callable[..., TrialResult]:
    (tmp_path / "config.yaml").write_text("data: toy\nencoder: tiny\n")

    def make(
        number: int, score: float | None = 0.5, rung: int = 9, status: Any = "completed", seconds: float = 60, **changed: Any
    ) -> TrialResult:
        dev = {"dev/score": score, "dev/norm": score, "dev/mean": 0.4, "dev/sst": 0.441, "dev/sts": -0.02}
        own = {"kind": "dev", "rung": rung, "examples": 100 * rung, "seconds": seconds, "time_ms": 1_750_000_000_000}
        records = [] if score is None else [own | dev]
        known = TrialResult(number, status, changed.pop("reason", status), {"optimizer/lr": 3.21e-5}, None, tmp_path, records)
        return replace(known, **changed)

    return make
