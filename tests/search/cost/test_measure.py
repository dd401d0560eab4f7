"""What a trial costs, measured: against the trial itself, and that nothing stays behind."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from minbert_core.config import TrialConfig
from minbert_core.inputs import build_encoder, open_inputs
from minbert_core.model import build_model
from minbert_core.settings.paths import as_written
from minbert_core.train.bench import model_to_train
from minbert_core.train.trial import train
from search.cost import measure as measure_module
from search.cost.measure import Cost, Sharer, measure


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def quick(config: TrialConfig, monkeypatch: pytest.MonkeyPatch) -> Cost:
    """Measured in processor time, which others on the machine do not change."""
    monkeypatch.setattr(measure_module, "time", SimpleNamespace(monotonic=time.process_time, time=time.time, sleep=time.sleep))
    return measure(as_written(config), time.time(), Path("/nowhere"))


@pytest.mark.parametrize(
    "changes",
    [
        {"task_schedule": "sequential", "tasks": {"sst": {"batch_size": 2}, "para": {"batch_size": 32}}},
        {"smoothness": "smart", "gradient": "pcgrad"},
        {"machine": {"micro_batch_tokens": 100}},
    ],
    ids=["sequential", "smart", "micro_batches"],
)
def test_measured_training_takes_what_training_takes(
    tiny: Callable[..., TrialConfig], monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    config = tiny(budget={"examples": 1_600, "points": [1]}, **changes)
    cost = quick(config, monkeypatch)
    inputs = open_inputs(config)
    began = time.process_time()
    for progress in train(config, inputs):
        if progress.rung is None:
            real = time.process_time() - began
    assert 0.6 * real < cost.train_seconds < 1.6 * real


def test_the_sizes_of_what_is_saved_are_those_of_the_weights(
    tiny: Callable[..., TrialConfig], scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(stages=["linear_probe", "multitask"])  # the latter's snapshot is the larger one
    cost = quick(config, monkeypatch)
    inputs = open_inputs(config)
    models = build_model(config, build_encoder(config, inputs)), model_to_train(config, inputs)
    whole, trained = (4 * sum(parameter.numel() for parameter in model.parameters()) for model in models)
    assert whole < cost.best_bytes < whole + 100_000
    assert 3 * trained < cost.snapshot_bytes < 3 * trained + 100_000
    assert list(scratch.iterdir()) == []


def test_start_up_counts_from_when_the_process_was_asked_for(tiny: Callable[..., TrialConfig], tmp_path: Path) -> None:
    assert 7 < measure(as_written(tiny()), time.time() - 7, tmp_path).start_seconds < 30


def test_a_trial_that_shares_a_gpu_trains_as_fast_as_it_is_measured_from_the_moment_it_is_told(
    tiny: Callable[..., TrialConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(stages=["linear_probe", {"kind": "multitask", "share": 0.25}], budget={"examples": 4_800})
    cost = quick(config, monkeypatch)
    sharer = Sharer(as_written(config))
    memory = sharer.begin()
    assert 0 < memory.peak_gb < memory.free_gb == memory.total_gb
    begins_at = time.time() + 0.5
    rate = sharer.rate(begins_at, 0.6)
    assert time.time() > begins_at + 0.6
    assert rate == pytest.approx(4_800 / cost.train_seconds, rel=0.5)
