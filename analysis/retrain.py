"""What best_to_test ships to Ray's workers: retrain one configuration with one seed; answer a split with one saved model.

The workers get folders and plain values, and leave their results in files. A job's folder is like a trial's: config.yaml,
metrics.jsonl, log.txt, best/, and state/ until it is done.
"""

from __future__ import annotations

import contextlib
import shutil
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minbert_core.config_checks import read_config
from minbert_core.data.tasks import Task
from minbert_core.data.tokens import TokenisedSplit, tokenise_test_split
from minbert_core.files import cache_folder, message
from minbert_core.inputs import open_inputs
from minbert_core.machine import prepare, resolve_precision
from minbert_core.model import load_model, predict_logits
from minbert_core.train.folder import read_records, snapshot_or_start, train_in
from search.plan.relocated import relocated_config
from search.study.trainable import locked_log


@dataclass(frozen=True)
class Job:
    """One model to train and test: configuration `number` of the search, with a retraining seed or with the search's own."""

    number: int
    seed_index: int | None  # None: the weights that the search kept
    folder: Path  # config.yaml stands there; metrics.jsonl and best/ are written there

    @property
    def name(self) -> str:
        return f"{self.number:03d}-" + ("kept" if self.seed_index is None else f"seed{self.seed_index}")

    @property
    def is_done(self) -> bool:
        """Whether this very configuration was trained to its end, and its weights are still there."""
        done, weights = self.folder / "done.yaml", self.folder / "best" / "heads.safetensors"
        return weights.exists() and done.exists() and done.read_bytes() == (self.folder / "config.yaml").read_bytes()

    def records(self) -> list[dict[str, Any]]:
        """What training has measured so far."""
        return read_records(self.folder / "metrics.jsonl")


def make_ready(job: Job, config_text: str) -> None:
    """Give the job its config.yaml. What another config has left in the folder is removed; of the same one, all stays."""
    job.folder.mkdir(parents=True, exist_ok=True)
    with locked_log(job.folder):
        path = job.folder / "config.yaml"
        if path.exists() and path.read_text(encoding="utf-8") == config_text:
            if job.is_done:  # its worker may have been killed before it could do this
                shutil.rmtree(job.folder / "state", ignore_errors=True)
            return
        for name in ("state", "best"):
            shutil.rmtree(job.folder / name, ignore_errors=True)
        for name in ("metrics.jsonl", "done.yaml"):
            (job.folder / name).unlink(missing_ok=True)
        path.write_text(config_text, encoding="utf-8")


def retrain(job: Job, relocated: Mapping[str, str]) -> str:
    """Train the job, or go on with it from its snapshot, to its end; '' or the reason why it failed.

    relocated: a folder as the job's config names it -> where it lies here.
    """
    with locked_log(job.folder) as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        if job.is_done:  # by a worker that lived longer than its driver
            return ""
        try:
            _train(job, relocated)
        except Exception as error:  # noqa: BLE001  whatever it is, this seed alone fails, with its reason
            log.write(traceback.format_exc())  # from Python 3.13 on print_exc writes colours under FORCE_COLOR
            return f"{type(error).__name__}: {message(error)}"
    return ""


def _train(job: Job, relocated: Mapping[str, str]) -> None:
    """As a search trains a trial; a snapshot that cannot be read is as none."""
    folder = job.folder
    config = read_config(folder / "config.yaml")
    inputs = open_inputs(relocated_config(config, relocated))
    snapshot, records = snapshot_or_start(folder)
    how = f"goes on after {records[-1]['examples']} examples" if records else "starts"
    print(f"{time.strftime('%F %T')} {job.name} {how}")
    for _ in train_in(folder, config, inputs, snapshot, records):
        pass
    shutil.copyfile(folder / "config.yaml", folder / "done.yaml")  # cut short, it is not equal, and the snapshot is still there
    shutil.rmtree(folder / "state")


def answer(model_folder: Path, relocated: Mapping[str, str], out: Path) -> None:
    """Dev and TEST logits of a saved model, each task's as `<task>-<split>.npy` in `out`.  Opens the test split."""
    model, config = load_model(model_folder)
    device = prepare(config.machine)
    precision = resolve_precision(config.machine.precision, device)
    model.to(device)
    inputs = open_inputs(relocated_config(config, relocated))
    out.mkdir(parents=True, exist_ok=True)
    for name in config.train_on:
        splits = {"dev": inputs.dev[name]}
        if "test" in (task := config.known_tasks[name]).files:
            splits["test"] = open_test_split(task, inputs.data_folder, inputs.tokenizer)
        for split_name, split in splits.items():
            logits_BK = predict_logits(model, name, split, config.max_length, inputs.specials, precision)
            np.save(out / f"{name}-{split_name}.npy", logits_BK)


def open_test_split(task: Task, data_folder: Path, tokenizer: Any) -> TokenisedSplit:
    """A task's TEST split, tokenised; the door through which this package, and nothing else, goes."""
    return tokenise_test_split(data_folder, task, tokenizer, cache_folder() / "tokens")
