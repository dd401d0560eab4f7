"""MultitaskBert: one encoder, and for each task its pooling, pair encoding and head.

    PackedBatch -> encoder -> hidden_ND -> pooling -> (S, D) -> pair encoding -> features_BF -> head -> logits_BK

B examples, S sequences (B, or 2B for a pair under a bi-encoder), N packed tokens, D hidden size, F features, K outputs.
A saved model is a folder: encoder/ (Hugging Face layout, tokenizer included), heads.safetensors, config.yaml.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minbert_core.checkpoints import load_encoder, save_encoder
from minbert_core.config import TaskPlan, TrialConfig, read_config, seed_of
from minbert_core.data.tokens import PackedBatch
from minbert_core.encoder import Encoder, Masks
from minbert_core.paths import as_written
from minbert_core.settings import dump_yaml

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")


class Output(NamedTuple):
    """What a pass gives: logits (B, K) of the head, float32, and the features (B, F) that it read."""

    logits_BK: Tensor
    features_BF: Tensor


class MultitaskBert(nn.Module):
    """One shared encoder and a head a task. Dropout is drawn from `masks`, so there is no train or eval mode to forget."""

    def __init__(self, encoder: Encoder, plans: Mapping[str, TaskPlan], seed: int) -> None:
        """Heads are drawn from (seed, task) alone: the same for every encoder, method and order of tasks."""
        super().__init__()
        self.encoder = encoder
        self.plans = dict(plans)
        self.heads = nn.ModuleDict({name: self._new_head(name, seed) for name in self.plans})

    def _new_head(self, task: str, seed: int) -> nn.Module:
        plan = self.plans[task]
        # a logit in label units begins in the middle of the labels; the logits of classes begin equal
        start = sum(plan.task.label_range) / 2 if plan.task.kind == "regression" and plan.outputs == 1 else 0.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "head", task))
            return plan.head.build(plan.vectors * self.encoder.shape.hidden_size, plan.outputs, start)

    @torch.no_grad()
    def renew_head(self, task: str, seed: int) -> None:
        """Draw the head of `task` again, in place."""
        fresh = self._new_head(task, seed).state_dict()
        for name, values in self.heads[task].state_dict().items():
            values.copy_(fresh[name])

    def readout(self, task: str, logits_BK: Tensor) -> Tensor:
        """What the task's metric reads, (B, outputs of the task): the logits, or what a loss with classes makes of them."""
        plan = self.plans[task]
        return plan.loss.readout(logits_BK, plan.task.label_range)

    def forward(
        self,
        task: str,
        batch: PackedBatch,
        masks: Masks | None = None,
        noise_ND: Tensor | None = None,
        encoder_drops: bool = True,
    ) -> Output:
        """A pass over a batch of one task.

        masks draws the dropout (None: none); with encoder_drops False in the head alone. noise_ND is added to the word
        embeddings, before position and LayerNorm.
        """
        plan = self.plans[task]
        hidden_ND = self.encoder(batch, masks if encoder_drops else None, noise_ND)
        pooled_SD = plan.pooling.pool(hidden_ND, batch.starts_S1, self.encoder.pooler)
        features_BF = plan.pair_encoding.features(pooled_SD) if plan.vectors == 2 else pooled_SD
        # heads are small: in float32 also under autocast, since bfloat16 would round a similarity of 4.5 to steps of 1/32
        with torch.autocast(features_BF.device.type, enabled=False):
            logits_BK: Tensor = self.heads[task](features_BF.float(), masks if masks is not None else _no_dropout)
        return Output(logits_BK, features_BF)


def _no_dropout(x: Tensor, p: float) -> Tensor:
    return x


def build_model(config: TrialConfig, encoder: Encoder) -> MultitaskBert:
    """A fresh model for `config` around `encoder`.  Raises ValueError where the encoder has fewer positions than max_length."""
    positions = encoder.shape.max_position_embeddings
    if config.max_length > positions:
        raise ValueError(f"`max_length` must be at most the encoder's {positions} positions. Got {config.max_length}.")
    return MultitaskBert(encoder, {name: config.task(name) for name in config.train_on}, config.seed)


def save_model(model: MultitaskBert, config: TrialConfig, folder: Path, tokenizer_folder: Path) -> None:
    """Write the model as a folder that `load_model` reads; a half-written one never stands under the final name.

    One writer a folder: what a killed one left behind under the drafts' names is cleared away.
    """
    draft, replaced = (folder.with_name(f"{folder.name}.{what}") for what in ("tmp", "old"))
    for leftover in (draft, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    draft.mkdir(parents=True)
    save_encoder(model.encoder, draft / "encoder")
    for name in TOKENIZER_FILES:
        if (tokenizer_folder / name).exists():
            shutil.copyfile(tokenizer_folder / name, draft / "encoder" / name)
    save_file({name: tensor.contiguous() for name, tensor in model.heads.state_dict().items()}, draft / "heads.safetensors")
    (draft / "config.yaml").write_text(dump_yaml(as_written(config)), encoding="utf-8")
    if folder.exists():
        folder.rename(replaced)
    draft.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


def load_model(folder: Path) -> tuple[MultitaskBert, TrialConfig]:
    """The model and config that `save_model` wrote.  Raises ValueError where the folder is no such model."""
    heads = folder / "heads.safetensors"
    absent = [name for name in ("heads.safetensors", "config.yaml", "encoder") if not (folder / name).exists()]
    if absent:
        raise ValueError(f"{folder} holds no saved model: it lacks {', '.join(absent)}.")
    config = read_config(folder / "config.yaml")
    dropout = config.encoder.hidden_dropout, config.encoder.attention_dropout
    model = build_model(config, load_encoder(folder / "encoder", *dropout))
    try:
        model.heads.load_state_dict(load_file(heads))
    except (SafetensorError, OSError, RuntimeError) as error:  # torch's own for a key or a shape that does not fit
        raise ValueError(f"{heads} does not fit its config.yaml, or is truncated ({str(error).splitlines()[0]}).") from None
    return model, config
