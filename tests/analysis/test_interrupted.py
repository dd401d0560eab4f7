"""best_to_test as a process: interrupted, and resumed by the same command."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.best_to_test import main
from minbert_core.train.folder import read_records

Tracked = Callable[..., dict[str, list[Any]]]
ROOT = Path(__file__).resolve().parents[2]


def test_an_interrupted_test_goes_on_and_trains_nothing_twice(
    tmp_path: Path, make_search: Callable[..., Path], tracked: Tracked, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    config = make_search(runs, "small", {"data": "toy", "encoder": "tiny"}, num_trials=1) / "trials" / "000" / "config.yaml"
    text = config.read_text(encoding="utf-8")
    assert "examples: 600" in text
    config.write_text(text.replace("examples: 600", "examples: 3000"), encoding="utf-8")  # long enough to be interrupted
    arguments = ["--search", "small", "--seeds", "1", "--gpus", "0"]
    command = [sys.executable, str(ROOT / "analysis" / "best_to_test.py"), *arguments]
    folder = runs / "small" / "test" / "retrained"

    def num_evaluations() -> int:
        return sum(record["kind"] == "dev" for file in folder.glob("*/metrics.jsonl") for record in read_records(file))

    deadline = time.monotonic() + 300
    driver = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not num_evaluations():
        assert driver.poll() is None, driver.communicate()[0]
        assert time.monotonic() < deadline, "five minutes have passed"
        time.sleep(0.05)
    driver.send_signal(signal.SIGINT)
    told, _ = driver.communicate()
    assert driver.returncode == 130, told
    assert "Rerun the same command to resume" in told
    assert {run.info.status for of in tracked(runs).values() for run in of} == {"KILLED"}
    assert not (runs / "small" / "test" / "ledger.jsonl").exists()
    files = list(folder.glob("*/metrics.jsonl"))
    passed = {file.parent.name for file in files if any(record["kind"] == "dev" for record in read_records(file))}
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 0
    assert len((runs / "small" / "test" / "ledger.jsonl").read_text(encoding="utf-8").splitlines()) == 1
    found = tracked(runs)
    assert (len(found["search"]), len(found["trial"])) == (1, 1)
    assert {run.info.status for of in found.values() for run in of} == {"FINISHED"}
    assert passed
    for job in folder.iterdir():
        starts = [line for line in (job / "log.txt").read_text(encoding="utf-8").splitlines() if job.name in line]
        assert "resumes after" in starts[-1] or job.name not in passed
        steps = [record["step"] for record in read_records(job / "metrics.jsonl") if record["kind"] == "train"]
        assert steps == sorted(set(steps))
        assert not (job / "state").exists()
