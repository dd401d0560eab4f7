"""The functions that best_to_test sends to Ray's workers: retrain a configuration with one seed, and run a model on the splits.

Workers get folders, token files and plain values, and write their results to files. They open no test file. A job's folder is
like a trial's: config.yaml, metrics.jsonl, log.txt, best/, and state/ until it is done.
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
from minbert_core.data.tokens import TokenisedSplit
from minbert_core.files import message, replaced
from minbert_core.inputs import open_inputs
from minbert_core.machine import prepare, resolve_precision
from minbert_core.model import load_model, predict_logits
from minbert_core.settings.yaml import parse_yaml
from minbert_core.train.folder import read_records, snapshot_or_start, train_in
from search.plan.relocated import relocated_config
from search.study.trainable import locked_log

CIRCUMSTANCES = ("threads", "gpu_share", "matmul")  # settings of `machine` that change the last digits of a model only


@dataclass(frozen=True)
class Job:
    """One model to train and test: configuration `number` of the search, with a retraining seed or with the search's own."""

    number: int
    seed_index: int | None  # None: the weights that the search kept
    folder: Path  # holds config.yaml; metrics.jsonl and best/ are written to it
    contender: str = ""  # the name of a configuration of the user's own

    @property
    def label(self) -> str:
        """The configuration's name: its number, or that of the user's file."""
        return self.contender or f"{self.number:03d}"

    @property
    def name(self) -> str:
        return f"{self.label}-" + ("kept" if self.seed_index is None else f"seed{self.seed_index}")

    @property
    def is_done(self) -> bool:
        """True if exactly this configuration was trained to the end, and its weights still exist."""
        done, weights = self.folder / "done.yaml", self.folder / "best" / "heads.safetensors"
        return weights.exists() and done.exists() and done.read_bytes() == (self.folder / "config.yaml").read_bytes()

    def records(self) -> list[dict[str, Any]]:
        """Read the measurements of the training so far."""
        return read_records(self.folder / "metrics.jsonl")


def make_ready(job: Job, config_text: str) -> None:
    """Write the job's config.yaml. Results of another config are removed from the folder; those of the same config stay.

    A model that is done stays whatever its CIRCUMSTANCES were. Another device draws other dropout masks, and precision and
    micro-batches are settings of the configuration.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    with locked_log(job.folder):
        path = job.folder / "config.yaml"
        written = path.read_text(encoding="utf-8") if path.exists() else ""
        if written and job.is_done and _without_machine(written) == _without_machine(config_text):
            shutil.rmtree(job.folder / "state", ignore_errors=True)  # a worker may have been killed before it did this
            return
        if written == config_text:
            return
        for name in ("state", "best"):
            shutil.rmtree(job.folder / name, ignore_errors=True)
        for name in ("metrics.jsonl", "done.yaml"):
            (job.folder / name).unlink(missing_ok=True)
        with replaced(path, durable=True) as draft:
            draft.write_text(config_text, encoding="utf-8")


def _without_machine(config_text: str) -> object:
    document, _ = parse_yaml(config_text)
    return document | {"machine": document.get("machine", {}) | dict.fromkeys(CIRCUMSTANCES)}


def retrain(job: Job, relocated: Mapping[str, str]) -> str:
    """Train the job to its end, from its snapshot if there is one; return the reason if it failed, else "".

    relocated: a folder as the job's config names it -> where it is now.
    """
    with locked_log(job.folder) as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        if job.is_done:  # by a worker that outlived its driver
            return ""
        try:
            _train(job, relocated)
        except Exception as error:  # noqa: BLE001  any error fails only this seed, with its reason
            log.write(traceback.format_exc())  # since Python 3.13, print_exc writes colours under FORCE_COLOR
            return f"{type(error).__name__}: {message(error)}"
    return ""


def _train(job: Job, relocated: Mapping[str, str]) -> None:
    """Train as a search trains a trial. An unreadable snapshot is ignored."""
    folder = job.folder
    config = read_config(folder / "config.yaml")
    inputs = open_inputs(relocated_config(config, relocated))
    snapshot, records = snapshot_or_start(folder)
    how = f"resumes after {records[-1]['examples']} examples" if records else "starts"
    print(f"{time.strftime('%F %T')} {job.name} {how}")
    for _ in train_in(folder, config, inputs, snapshot, records):
        pass
    shutil.copyfile(folder / "config.yaml", folder / "done.yaml")  # a copy cut short differs from it, and the snapshot remains
    shutil.rmtree(folder / "state")


def answer(model_folder: Path, relocated: Mapping[str, str], tests: Mapping[str, TokenisedSplit], out: Path) -> None:
    """Run a saved model on dev and test; write the logits of each task to `<task>-<split>.npy` in `out`.

    tests: task -> its test split in the ids of the model's tokenizer, opened by the driver; tasks that have none are left out.
    """
    model, config = load_model(model_folder)
    device = prepare(config.machine)
    precision = resolve_precision(config.machine.precision, device)
    model.to(device)
    inputs = open_inputs(relocated_config(config, relocated))
    out.mkdir(parents=True, exist_ok=True)
    for name in config.train_on:
        splits = {"dev": inputs.dev[name]} | ({"test": tests[name]} if name in tests else {})
        for split_name, split in splits.items():
            logits_BK = predict_logits(model, name, split, config.max_length, inputs.specials, precision)
            np.save(out / f"{name}-{split_name}.npy", logits_BK)
