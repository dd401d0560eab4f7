"""Further pretrainings: the stages on texts with which trials begin, and the cache in which their results are kept.

    config, inputs -> find -> one Pretrained per stage, chained: each starts from the folder of the one before
    cache/pretrained/KEY: encoder, tokenizer, head and figures in Hugging Face layout, for every trial that begins with it

KEY is a hash of everything that determines the weights: encoder, tokenizer, texts, the stage's settings, the stages before, and
the machine's device, precision and micro-batches. Threads and the route of the matrix products are not in it: they change only
last digits. The seed is the stage's own, so trials and retrainings over seeds share one pretraining.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from minbert_core.config import TINY, Machine, TrialConfig, pretraining_texts
from minbert_core.data.tables import bytes_of
from minbert_core.data.texts import REMEDY
from minbert_core.data.tokens import tokenise_split
from minbert_core.encoder_files import weight_files
from minbert_core.files import cache_folder
from minbert_core.inputs import Inputs
from minbert_core.machine import resolve_device, resolve_precision
from minbert_core.methods.optimizer import Optimizer
from minbert_core.methods.stages import Pretraining
from minbert_core.seeds import seed_of
from minbert_core.words import duration

FORMAT = "2"  # the meaning of a key; raise it when the same settings would give other weights
RATE = 5e-5  # of a stage without an optimizer: Sun et al. 2019 (arXiv 1905.05583), section 5.1
FIGURES = "pretraining.json"  # in the folder of the result

Record = dict[str, Any]


@dataclass(frozen=True)
class Pretrained:
    """One stage on texts, the folder of its result, and the folder `before` from which it starts."""

    place: int  # among the stages on texts
    stage: Pretraining
    key: str
    before: Path
    folder: Path

    @property
    def name(self) -> str:
        """`mlm 3f2a9c01`."""
        return f"{self.stage.kind} {self.key[:8]}"

    @property
    def seed(self) -> int:
        """The seed of order and masks, which differ between two stages with the same knob `seed`."""
        return seed_of(self.stage.seed, "stage", self.place)

    @property
    def is_cached(self) -> bool:
        return (self.folder / FIGURES).exists()

    def describe(self, config: TrialConfig, when: str = "trained once, for all trials") -> str:
        """Render `mlm 3f2a9c01: 20 epochs of sst, para; in the cache, took 5 min`. `when` is the end if it is not cached."""
        texts = ", ".join(pretraining_texts(config, self.stage))
        how = f"in the cache, took {duration(self.figures()['seconds'])}" if self.is_cached else when
        epochs = f"{self.stage.epochs:g} epoch{'s' * (self.stage.epochs != 1)}"
        return f"{self.name}: {epochs} of {texts}{' in equal parts' * self.stage.balance}; {how}"

    def figures(self) -> Record:
        """Read the measurements of its training."""
        figures: Record = json.loads((self.folder / FIGURES).read_text(encoding="utf-8"))
        return figures


def find(config: TrialConfig, inputs: Inputs) -> list[Pretrained]:
    """List the pretrainings with which a trial begins, in order; nothing is trained.  Raises CorpusError."""
    pretrainings: list[Pretrained] = []
    folder, before = inputs.encoder_folder, _origin(config, inputs)
    for place, stage in enumerate(config.pretraining):
        parts = {
            "format": FORMAT,
            "before": before,
            "stage": stage.model_dump(mode="json"),
            "optimizer": optimizer_of(stage).model_dump(mode="json"),  # a default's values, which may change
            "texts": [_fingerprint(name, config, inputs) for name in pretraining_texts(config, stage)],
            "tokenizer": inputs.tokenizer.fingerprint,
            "max_length": config.max_length,
            "dropout": [config.encoder.hidden_dropout, config.encoder.attention_dropout],
            "machine": _computed_by(config.machine),
        }
        before = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
        result = cache_folder() / "pretrained" / before
        pretrainings.append(Pretrained(place, stage, before, folder, result))
        folder = result
    return pretrainings


# ---------------------------------------------------------------------------------------------------------------- the key


def _computed_by(machine: Machine) -> dict[str, Any]:
    """Return the settings of a machine that change the weights beyond their last digits.

    A GPU draws other dropout masks than a CPU, and each part of a batch draws its own.
    """
    device = torch.device(resolve_device(machine.device))
    precision = resolve_precision(machine.precision, device)
    return {"device": device.type, "precision": precision, "micro_batch_tokens": machine.micro_batch_tokens}


def optimizer_of(stage: Pretraining) -> Optimizer:
    return stage.optimizer or Optimizer(lr=RATE)


def _origin(config: TrialConfig, inputs: Inputs) -> str:
    """Identify the start of the first pretraining: the checkpoint's content, or the seed from which `tiny` is drawn."""
    if config.encoder.checkpoint == TINY:
        return f"{TINY} {config.pretraining[0].seed}" if config.pretraining else TINY
    if not config.pretraining:
        return ""
    folder = inputs.encoder_folder
    return _content(folder, max(path.stat().st_mtime_ns for path in weight_files(folder)))


@lru_cache
def _content(folder: Path, changed_at: int) -> str:
    """Compute sha256 of an encoder's shape and weights, once per folder: it takes half a second for BERT-base."""
    whole = hashlib.sha256()
    for path in (folder / "config.json", *weight_files(folder)):
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def _fingerprint(name: str, config: TrialConfig, inputs: Inputs) -> list[str]:
    """Return fingerprints of the texts called `name`: those of its token files, or of the text file's bytes."""
    if name in config.known_tasks:
        return [split.path.stem for split in splits_of(name, config, inputs)]
    return [hashlib.sha256(bytes_of(inputs.text_file(name), REMEDY)).hexdigest()]


def splits_of(name: str, config: TrialConfig, inputs: Inputs) -> list[Any]:
    """Return a task's train and dev split, even if the trial does not train on the task."""
    if name in inputs.dev:
        return [inputs.train[name], inputs.dev[name]]
    task, tokens = config.known_tasks[name], cache_folder() / "tokens"
    return [tokenise_split(inputs.data_folder, task, split, inputs.tokenizer, tokens) for split in ("train", "dev")]
