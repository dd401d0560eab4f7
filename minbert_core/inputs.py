"""Inputs of a trial: the token files of its tasks and its encoder's folder.  `toy` and `tiny` are resolved here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minbert_core.checkpoints import fetch_encoder, load_encoder, read_shape
from minbert_core.config import TINY, TOY, TrialConfig
from minbert_core.data.tables import CorpusError
from minbert_core.data.tokens import TokenisedSplit, Tokenizer, joined, load_tokenizer, tokenise_split
from minbert_core.data.toy import toy_folder
from minbert_core.encoder import TINY as TINY_SHAPE
from minbert_core.encoder import Encoder, EncoderShape, new_encoder
from minbert_core.encoder_files import weight_files
from minbert_core.encoder_fit import check_encoder
from minbert_core.files import cache_folder, user_path
from minbert_core.seeds import seed_of


@dataclass(frozen=True)
class Inputs:
    """Absolute folders and memory-mapped splits, without the test split. `dev` is empty if its rows are trained on, too."""

    data_folder: Path
    encoder_folder: Path  # in Hugging Face layout; the tiny encoder's folder has only a tokenizer
    tokenizer: Tokenizer
    shape: EncoderShape
    train: dict[str, TokenisedSplit]
    dev: dict[str, TokenisedSplit]

    @property
    def specials(self) -> tuple[int, int]:
        return self.tokenizer.cls_id, self.tokenizer.sep_id

    @property
    def sizes(self) -> dict[str, int]:
        """The number of rows of each task's train split."""
        return {name: len(split) for name, split in self.train.items()}

    def notes(self) -> list[str]:
        """List a sentence, with a count and lines, for each kind of field that may have been misread."""
        return [note for split in (*self.train.values(), *self.dev.values()) for note in split.notes]

    def constant_labels(self) -> list[str]:
        """List a sentence for each train or dev split whose rows all have the same label."""
        sentences = []
        for name, split in (*self.train.items(), *self.dev.items()):
            if split.labels is not None and np.ptp(split.labels) == 0:
                task, value = split.task, float(split.labels[0])
                label = task.classes[int(value)] if task.classes else f"{value:g}"
                effect = (
                    "a model learns only this label" if split.name == "train" else f"its {task.metric} cannot compare models"
                )
                sentences.append(
                    f"{name}: all {len(split)} {split.name} rows ({split.source}) have the label {label}: {effect}."
                )
        return sentences

    def text_file(self, name: str) -> Path:
        """Return the path of a stage's text file: in the data folder, unless `name` is absolute or begins with `~`."""
        return self.data_folder / user_path(name)

    @property
    def token_ids(self) -> Tensor:
        """All token ids that occur in the train and dev splits, special tokens included; ascending, int64."""
        used_V = np.zeros(self.tokenizer.vocab_size, dtype=bool)
        used_V[list(self.specials)] = True
        for split in (*self.train.values(), *self.dev.values()):
            for ids in split.pieces:
                used_V[ids] = True
        return torch.from_numpy(np.flatnonzero(used_V))


def data_folder(config: TrialConfig) -> Path:
    """Return the absolute folder of the corpus.  Raises CorpusError, which says what to do, if it does not exist."""
    if config.data == TOY:
        return toy_folder(cache_folder())
    folder = user_path(config.data).absolute()
    if not folder.is_dir():
        raise CorpusError(
            f"The data folder {folder} does not exist. With `--data DIR`, give the folder that holds the course's files "
            "(ids-sst-train.csv …) or those of your own tasks, or use the embedded corpus with `--data toy --encoder tiny`."
        )
    return folder


def open_inputs(config: TrialConfig) -> Inputs:
    """Check the encoder's files against each other and the config; tokenise splits that are not in the cache; memory-map all.

    Raises CorpusError: a missing or invalid file of the corpus.  Raises ValueError: no such encoder, or it does not fit.
    """
    folder = data_folder(config)
    checkpoint = config.encoder.checkpoint
    encoder_folder = toy_folder(cache_folder()) if checkpoint == TINY else fetch_encoder(checkpoint)
    tokenizer = load_tokenizer(encoder_folder)
    is_drawn = checkpoint == TINY and not weight_files(encoder_folder)
    shape = replace(TINY_SHAPE, vocab_size=tokenizer.vocab_size) if is_drawn else read_shape(encoder_folder)
    check_encoder(config, shape, tokenizer)
    tokens = cache_folder() / "tokens"
    tasks = {name: config.known_tasks[name] for name in config.train_on}
    train = {name: tokenise_split(folder, task, "train", tokenizer, tokens) for name, task in tasks.items()}
    dev = {name: tokenise_split(folder, task, "dev", tokenizer, tokens) for name, task in tasks.items()}
    if config.rows == "train+dev":
        train, dev = {name: joined(train[name], dev[name]) for name in tasks}, {}
    return Inputs(folder, encoder_folder, tokenizer, shape, train, dev)


def build_encoder(config: TrialConfig, inputs: Inputs) -> Encoder:
    """Build the encoder that a trial starts from.

    A tiny encoder is initialised from the trial's seed, unless it was already pretrained on texts (train/pretraining.py). A
    checkpoint is the same for every seed.
    """
    hidden, attention = config.encoder.hidden_dropout, config.encoder.attention_dropout
    if config.encoder.checkpoint == TINY and not weight_files(inputs.encoder_folder):
        return new_encoder(inputs.shape, seed_of(config.seed, "encoder"), hidden, attention)
    return load_encoder(inputs.encoder_folder, hidden, attention)
