"""What best_to_test ships to Ray's workers: retrain one configuration with one seed; answer a split with one saved model.

The workers get folders and plain values, and leave their results in files.
"""

from __future__ import annotations

import contextlib
import json
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minbert_core.config import as_written, read_config
from minbert_core.data.tasks import TASKS
from minbert_core.data.tokens import TokenisedSplit, tokenise_test_split
from minbert_core.evaluate import predict_logits
from minbert_core.inputs import cache_folder, open_inputs
from minbert_core.machine import prepare, resolve_precision
from minbert_core.model import load_model, save_model
from minbert_core.settings import dump_yaml
from minbert_core.train import train


@dataclass(frozen=True)
class Job:
    """One model to train and test: configuration `number` of the search, with retraining seed `seed_index`."""

    number: int
    seed_index: int
    folder: Path  # config.yaml stands there; metrics.jsonl and best/ are written there

    @property
    def name(self) -> str:
        return f"{self.number:03d}-seed{self.seed_index}"

    @property
    def is_done(self) -> bool:
        """Whether an earlier run has trained this very configuration to its end."""
        path = self.folder / "done.yaml"
        return path.exists() and path.read_text(encoding="utf-8") == (self.folder / "config.yaml").read_text(encoding="utf-8")


def retrain(job: Job) -> str:
    """Train through `train`, keeping the best evaluation's weights as the search does; '' or the reason why it failed."""
    config = read_config(job.folder / "config.yaml")
    with (
        (job.folder / "log.txt").open("w", buffering=1) as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            inputs = open_inputs(config)
            with (job.folder / "metrics.jsonl").open("w", buffering=1, encoding="utf-8") as file:
                for progress in train(config, inputs):
                    file.write(json.dumps(progress.record) + "\n")
                    if progress.improved:
                        save_model(progress.model, config, job.folder / "best", inputs.encoder_folder)
        except Exception as error:  # noqa: BLE001  whatever it is, this seed alone fails, with its reason
            traceback.print_exc()
            return f"{type(error).__name__}: {error}"
    (job.folder / "done.yaml").write_text(dump_yaml(as_written(config)), encoding="utf-8")
    return ""


def answer(model_folder: Path, data_folder: Path, out: Path) -> None:
    """Dev and TEST logits of a saved model, each task's as `<task>-<split>.npy` in `out`.  Opens the test split."""
    import torch

    model, config = load_model(model_folder)
    device = prepare(config.machine)
    precision = resolve_precision(config.machine.precision, device)
    model.to(device)
    inputs = open_inputs(config.model_copy(update={"data": str(data_folder)}) if config.data != "toy" else config)
    out.mkdir(parents=True, exist_ok=True)
    for name in config.train_on:
        test = open_test_split(name, inputs.data_folder, inputs.tokenizer)
        for split_name, split in (("dev", inputs.dev[name]), ("test", test)):
            logits_BK = predict_logits(model, name, split, config.max_length, inputs.specials, precision)
            np.save(out / f"{name}-{split_name}.npy", logits_BK)


def open_test_split(name: str, data_folder: Path, tokenizer: Any) -> TokenisedSplit:
    """A task's TEST split, tokenised; the door through which this package, and nothing else, goes."""
    return tokenise_test_split(data_folder, TASKS[name], tokenizer, cache_folder() / "tokens")
