"""Batches prepared ahead of their step by another thread: the same batches, and the same trial to the digit."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from minbert_core.config import TrialConfig
from minbert_core.encoder import Encoder
from minbert_core.inputs import open_inputs
from minbert_core.train import pretraining, trial
from minbert_core.train.ahead import Ahead
from minbert_core.train.pretrained import find
from minbert_core.train.trial import train

Tiny = Callable[..., TrialConfig]
GPU, CPU = torch.device("cuda"), torch.device("cpu")
CLOCK = {"time_ms", "seconds", "train/examples_per_second", "system/peak_memory_gb"}
CLOCK |= {"pretrain/seconds", "pretrain/examples_per_second", "seconds_left"}
STAGES: dict[str, Any] = {
    "stages": [
        {"kind": "mlm", "texts": ["sst"], "epochs": 0.3, "seed": 3},
        {"kind": "heads_only", "share": 0.3},
        {"kind": "multitask", "task_schedule": {"kind": "proportional", "alpha_end": 0.2}},
    ]
}


class OfAnotherThread(Ahead[Any, Any]):
    """As on a GPU."""

    taken: list[str]  # the threads that prepared what was taken

    def __init__(self, prepare: Callable[[Any], Any], device: torch.device) -> None:
        super().__init__(lambda step: (threading.current_thread().name, prepare(step)), GPU)

    def take(self, step: Any) -> Any:
        thread, batch = super().take(step)
        self.taken.append(thread)
        return batch


def named(step: int) -> tuple[int, str]:
    return step, threading.current_thread().name


def test_what_was_begun_is_taken_and_what_was_not_foreseen_is_prepared_at_its_turn() -> None:
    ahead: Ahead[int, tuple[int, str]] = Ahead(named, GPU)
    ahead.begin(1)
    step, thread = ahead.take(1)
    assert step == 1
    assert thread.startswith("batches")
    ahead.begin(2)
    assert ahead.take(3) == (3, threading.current_thread().name)
    assert ahead.take(2) == (2, threading.current_thread().name)  # it was not kept
    ahead.close()


def test_an_error_of_the_other_thread_is_raised_at_the_step_it_belongs_to() -> None:
    ahead: Ahead[int, float] = Ahead(lambda step: 1 / step, GPU)
    ahead.begin(0)
    with pytest.raises(ZeroDivisionError):
        ahead.take(0)
    ahead.begin(0)
    assert ahead.take(2) == 0.5
    ahead.close()


def test_a_batch_that_did_not_fit_next_to_a_step_is_prepared_again_at_its_turn() -> None:
    def prepare(step: int) -> tuple[int, str]:
        if threading.current_thread().name.startswith("batches"):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return named(step)

    ahead = Ahead(prepare, GPU)
    ahead.begin(1)
    assert ahead.take(1) == (1, threading.current_thread().name)
    ahead.close()


def test_on_a_cpu_nothing_is_prepared_ahead() -> None:
    ahead: Ahead[int, tuple[int, str]] = Ahead(named, CPU)
    ahead.begin(1)
    assert ahead.take(1) == (1, threading.current_thread().name)
    ahead.close()


def records_of(config: TrialConfig) -> list[dict[str, Any]]:
    records = [progress.record for progress in train(config, open_inputs(config))]
    return [{name: value for name, value in record.items() if name not in CLOCK} for record in records]


@pytest.mark.parametrize("most_tokens", [None, 400], ids=["fits", "does not fit"])
def test_a_trial_is_the_same_to_the_digit_and_all_but_the_first_batches_were_ready(
    tiny: Tiny, small_toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_tokens: int | None
) -> None:
    shutil.copytree(small_toy_cache, tmp_path / "cache", ignore=shutil.ignore_patterns("pretrained"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    forward = Encoder.forward

    def bounded(encoder: Encoder, batch: Any, *further: Any, **others: Any) -> torch.Tensor:
        in_training = len(further) + len(others) > 0 and torch.is_grad_enabled()
        if in_training and most_tokens is not None and sum(batch.lengths) > most_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(encoder, batch, *further, **others)

    monkeypatch.setattr(Encoder, "forward", bounded)
    config = tiny(**STAGES)
    expected = records_of(config)
    [made] = find(config, open_inputs(config))
    shutil.rmtree(made.folder)  # so that it is trained again
    OfAnotherThread.taken = []
    for module in (trial, pretraining):
        monkeypatch.setattr(module, "Ahead", OfAnotherThread)
    threads = threading.active_count()
    assert records_of(config) == expected
    assert threading.active_count() == threads
    at_their_turn = [thread for thread in OfAnotherThread.taken if not thread.startswith("batches")]
    assert len(OfAnotherThread.taken) > 10
    assert len(at_their_turn) == 3 if most_tokens is None else len(at_their_turn) > 3
