"""The settling of a config on this machine: its device, threads, precision and matrix products, its absolute folders.

a training: config -> settle -> config           a search, a retraining: local_machine, local_data, local_encoder
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from minbert_core.checkpoints import fetch_encoder
from minbert_core.commands import Refused
from minbert_core.config import TINY, TOY, Machine, TrialConfig
from minbert_core.config_checks import load_config
from minbert_core.cores import usable_cores
from minbert_core.inputs import data_folder
from minbert_core.machine import fastest_matmul, resolve_device, resolve_precision
from minbert_core.settings.paths import as_written


def local_machine(device: str, threads: int, checkpoints: Iterable[str]) -> dict[str, Any]:
    """Return the settings under `machine` with `precision`, and `matmul` by a probe.

    checkpoints: the encoders to train. A tiny one's products are too small for a probe, so torch's default multiplies them.
    """
    settings = {"device": device, "threads": threads, "precision": resolve_precision("auto", torch.device(device))}
    if set(checkpoints) - {TINY}:
        settings["matmul"] = fastest_matmul(torch.device(device), threads)
    return settings


def local_data(config: TrialConfig) -> str:
    """Return the absolute data folder, or `toy`.  Raises CorpusError: no such folder."""
    return config.data if config.data == TOY else str(data_folder(config))


def local_encoder(checkpoint: str) -> str:
    """Fetch an encoder and return its folder, or `tiny`.  Raises ValueError: no such encoder."""
    return checkpoint if checkpoint == TINY else str(fetch_encoder(checkpoint))


def settle(config: TrialConfig, recorded: TrialConfig | None) -> TrialConfig:
    """Return `config` with absolute folders and all settings of the machine.

    recorded: the config that the folder was begun with. It decides what `config` leaves open, so that the training repeats.
    Raises Refused if a GPU is asked for and there is none, ValueError if there is no such data folder or encoder.
    """
    checkpoint = config.encoder.checkpoint
    if recorded is not None:
        machine = as_written(recorded.machine)
    else:
        device = resolve_device(config.machine.device)
        # `tiny` is too small for several threads: next to other work they wait for each other, 40 s for 7 on 2 cores (2026-11)
        threads = usable_cores() if device == "cpu" and checkpoint != TINY else 1
        machine = local_machine(device, threads, [checkpoint])
    machine |= {key: value for key, value in as_written(config.machine).items() if value != "auto"}
    if Machine.model_validate(machine).device == "cuda" and not torch.cuda.is_available():
        remedy = "To train on the CPU, with other last digits: --set machine/device=cpu --set machine/precision=float32"
        raise Refused(f"This configuration trains on a GPU (`machine/device` cuda), but there is none here. {remedy}")
    encoder = as_written(config.encoder) | {"checkpoint": local_encoder(checkpoint)}
    return load_config(as_written(config) | {"data": local_data(config), "encoder": encoder, "machine": machine})
