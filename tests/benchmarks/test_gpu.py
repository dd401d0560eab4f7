"""`make gpu` where there is no GPU: it says so; and those of its checks that a CPU can run hold here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_checks, gpu_run

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@without_gpu
def test_without_a_gpu_it_says_so_writes_both_files_and_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_run", "--out", str(tmp_path / "gpu")])
    assert gpu_run.main() == 0
    sentence = "There is no GPU here: nothing was checked or measured."
    assert capsys.readouterr().out.startswith(sentence)
    assert sentence in (tmp_path / "gpu" / "gpu.md").read_text()
    assert json.loads((tmp_path / "gpu" / "gpu.json").read_text())["checks"] == []


def test_the_tables_hold_what_was_found(tmp_path: Path) -> None:
    check = {"name": "a trial repeats", "holds": False, "seconds": 2.5, "note": "dev scores 1 and 2"}
    search = {"corpus": "toy", "trials": "as probed", "seconds": 60.0, "trials_per_hour": 720.0, "exit_code": 0}
    report = {"machine": {"GPU": "none"}, "checks": [check], "rows": [], "notes": [], "searches": [search]}
    gpu_run.write(tmp_path, report)
    lines = (tmp_path / "gpu.md").read_text().splitlines()
    assert "| a trial repeats | no | 2.5 | dev scores 1 and 2 |" in lines
    assert "| toy | as probed | 60 | 720 |" in lines


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_encoder_is_bert_model_on_the_cpu(precision: str, transformers: object) -> None:
    holds, note = gpu_checks.encoder_error("cpu", precision)
    assert holds, note


def test_a_trial_resumes_to_the_same_score_on_the_cpu(small_toy_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(small_toy_cache))
    holds, note = gpu_checks.resumes("cpu")
    assert holds, note


def test_every_variant_has_a_check_and_an_error_is_one_that_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {name for name, _ in gpu_checks.checks("cuda")}
    assert {"gradient: gradvac", "smoothness: smart", "adapter: pal", "loss_weights: famo", "pooling: mean"} <= names
    monkeypatch.setattr(gpu_checks, "checks", lambda _: iter([("one", lambda: 1 / 0), ("two", lambda: (True, ""))]))
    first, second = gpu_checks.run_checks("cpu")
    assert (first.holds, first.note) == (False, "ZeroDivisionError: division by zero")
    assert second.holds
