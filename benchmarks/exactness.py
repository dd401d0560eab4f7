"""Row 12: packed against padded, in float32: logits, and the gradient of every parameter, on real texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import ours, peers
from benchmarks.rounds import Figure, Row
from minbert_core.checkpoints import stored_names
from minbert_core.config_checks import load_config
from minbert_core.data.tokens import pack
from minbert_core.inputs import build_encoder, open_inputs
from minbert_core.model import build_model

BATCH = 32


def rows(data: Path, encoder: Path, rounds: int) -> Iterator[Row]:
    """Yield the largest difference of a logit, and of a gradient relative to its norm, over one batch of each workload."""
    for task, encoding in ours.WORKLOADS:
        logits, gradients = _differences(data, encoder, task, encoding)
        setting = f"{task} {encoding}, batch {BATCH}, no dropout, whole vocabulary"
        yield Row(12, "logits, packed - padded", setting, ("<=", 1e-5), Figure(logits, logits, logits), unit="")
        yield Row(12, "gradients, packed - padded", setting, ("<=", 1e-4), Figure(gradients, gradients, gradients), unit="")


def _differences(data: Path, encoder: Path, task: str, encoding: str) -> tuple[float, float]:
    config = load_config(ours.document(data, encoder, (task,), encoding, BATCH, {"device": "cpu", "precision": "float32"}))
    inputs = open_inputs(config)
    model = build_model(config, build_encoder(config, inputs))
    peer = peers.BertTask(encoder, {task: peers.PaddedBatches(data, encoder, task, encoding, BATCH, bucketed=False)})
    peer.model.eval()
    split, plan = inputs.train[task], model.plans[task]
    encoding_kind = plan.pair_encoding.kind
    rows = ours.even_rows(split.lengths(encoding_kind, config.max_length), BATCH)[0]
    batch = pack(split, rows, encoding_kind, config.max_length, inputs.specials)
    ours_BK = model(task, batch).logits_BK
    theirs_BK = model.heads[task](peer.features(task, 0), lambda x, p: x)
    direction_BK = torch.randn(ours_BK.shape, generator=torch.Generator().manual_seed(0))
    for logits_BK in (ours_BK, theirs_BK):
        (logits_BK * direction_BK).sum().backward()
    stored = dict(peer.model.named_parameters())
    largest = max(float(parameter.grad.norm()) for parameter in stored.values() if parameter.grad is not None)
    worst = 0.0
    for name, parameter in model.encoder.named_parameters():
        parts = [stored[part].grad for part in stored_names(name)]
        assert parameter.grad is not None, name
        for mine, theirs in zip(parameter.grad.chunk(len(parts)), parts, strict=True):
            # relative to its own norm, or to a thousandth of the largest: a key's bias has no gradient but rounding
            worst = max(worst, float((mine - theirs).norm()) / max(float(theirs.norm()), largest / 1000))
    return float((ours_BK - theirs_BK).detach().abs().max()), worst
