"""A worker's part: run_trial with Ray's report replaced by a list, on the toy corpus."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest
import ray.tune

from minbert_core.config_checks import read_config
from minbert_core.evaluate import NotFiniteError
from minbert_core.model import load_model
from minbert_core.settings.yaml import dump_yaml
from minbert_core.train.folder import read_records, state_file, write_records
from minbert_core.train.trial import load_snapshot
from search.study.trainable import run_trial


@pytest.fixture
def folder(cache: Path, tmp_path: Path) -> Path:
    return prepare(tmp_path / "trials" / "003")


def prepare(folder: Path, **optimizer: float) -> Path:
    folder.mkdir(parents=True)
    document = {"data": "toy", "encoder": "tiny", "budget": {"examples": 480}, "seed": 5, "optimizer": {"lr": 1e-3} | optimizer}
    (folder / "config.yaml").write_text(dump_yaml(document))
    return folder


def work(folder: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None) -> list[dict[str, Any]]:
    """Run the trial; what it reported. `stop_at`: at this rung Ray stops it, as it does, by SystemExit."""
    reports: list[dict[str, Any]] = []

    def report(metrics: dict[str, Any]) -> None:
        reports.append(json.loads(json.dumps(metrics)))  # what travels is plain
        _, records = load_snapshot(state_file(folder))
        assert records[-1]["rung"] == metrics["rung"], "a point is saved before it is reported"
        if metrics["rung"] == stop_at:
            raise SystemExit

    monkeypatch.setattr(ray.tune, "report", report)
    order = {"number": 3, "folder": str(folder), "exempt": False, "relocated": {}}
    if stop_at is None:
        run_trial(order)
    else:
        with pytest.raises(SystemExit):
            run_trial(order)
    return reports


def losses(records: list[dict[str, Any]]) -> list[dict[str, float]]:
    """What must repeat to the digit: all but clocks, speed and what of the machine is used."""
    clocks = {"time_ms", "seconds", "train/examples_per_second", "system/peak_memory_gb"}
    return [{key: value for key, value in record.items() if key not in clocks} for record in records]


def test_a_trial_reports_each_point_with_the_records_since_the_last(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports = work(folder, monkeypatch)
    assert [(report["number"], report["recipe"], report["exempt"], report["rung"]) for report in reports] == [
        (3, "multitask", False, rung) for rung in (1, 3, 9)
    ]
    told = [record for report in reports for record in report["records"]]
    assert told == read_records(folder / "metrics.jsonl")
    assert [record["rung"] for record in told if record["kind"] == "dev"] == [1, 3, 9]
    assert all(report["score"] == report["records"][-1]["dev/score"] for report in reports)
    assert "trial 003 starts" in (folder / "log.txt").read_text()


def test_the_weights_of_the_best_evaluation_are_kept_and_load(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work(folder, monkeypatch)
    _, config = load_model(folder / "best")
    assert config == read_config(folder / "config.yaml")


def test_a_trial_that_goes_on_ends_as_one_that_was_never_interrupted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work(folder, monkeypatch, stop_at=3)
    with (folder / "metrics.jsonl").open("a") as file:  # recorded after the snapshot: trained, and recorded, again
        file.write('{"kind": "train", "examples": 161}\n{"kind": "tra')
    reports = work(folder, monkeypatch)
    assert [report["rung"] for report in reports] == [9]
    assert "trial 003 resumes after 192 examples" in (folder / "log.txt").read_text()

    whole = prepare(tmp_path / "trials" / "004")
    work(whole, monkeypatch)
    records = read_records(folder / "metrics.jsonl")
    assert losses(records) == losses(read_records(whole / "metrics.jsonl"))
    assert reports[0]["records"] == [record for record in records if record["examples"] > 192]


def test_a_failure_is_written_down_and_raised(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepare(tmp_path / "trials" / "003", head_lr_factor=1e30)
    with pytest.raises(NotFiniteError, match=r"The loss of .* became"):
        work(folder, monkeypatch)
    assert (folder / "failure.txt").read_text().startswith("NotFiniteError: ")
    assert "Traceback" in (folder / "log.txt").read_text()


def test_a_failure_of_an_earlier_try_is_forgotten(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "failure.txt").write_text("OutOfMemoryError: of yesterday")
    work(folder, monkeypatch, stop_at=1)
    assert not (folder / "failure.txt").exists()


def test_the_log_is_locked_while_a_trial_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def report(_: Any) -> None:
        with (folder / "log.txt").open("a") as log, pytest.raises(BlockingIOError):
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        raise SystemExit

    monkeypatch.setattr(ray.tune, "report", report)
    with pytest.raises(SystemExit):
        run_trial({"number": 3, "folder": str(folder), "exempt": False, "relocated": {}})
    with (folder / "log.txt").open("a") as log:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_records_come_back_as_written_but_for_a_cut_last_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_records(path) == []
    own = {"examples": 8, "seconds": 1.0, "time_ms": 1_750_000_000_000}
    records = [{"kind": "train", "step": step, **own} for step in range(3)]
    write_records(path, records)
    assert read_records(path) == records
    path.write_text(path.read_text()[:-5])
    assert read_records(path) == records[:2]
