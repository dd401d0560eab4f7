"""The records of models in training, on their way to MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from analysis.retrain import Job
from analysis.tracking import HeldRecords


class Log:
    """A tracker that keeps the records that are submitted."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def submit(self, method: Any, number: int, records: list[dict[str, Any]]) -> None:
        self.steps += [record["step"] for record in records]


def test_records_wait_for_a_model_s_first_score_and_none_is_lost(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    log, job = Log(), Job(0, 0, tmp_path)
    held = HeldRecords(log)  # type: ignore[arg-type]
    after_each = []
    for step, kind in enumerate(["train", "train", "dev", "train"]):
        held.add(job, [{"kind": kind, "step": step}])
        after_each.append(list(log.steps))
    assert after_each == [[], [], [0, 1, 2], [0, 1, 2, 3]]


def test_a_model_that_failed_without_a_score_keeps_its_records(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    log, job = Log(), Job(0, 0, tmp_path)
    held = HeldRecords(log)  # type: ignore[arg-type]
    held.add(job, [{"kind": "train", "step": 0}])
    for _ in range(2):
        held.release(job)
    assert log.steps == [0]
