"""Is a trial on the GPU right? The encoder against `BertModel`, a short trial per variant of each family, and more.

    run_checks(device) -> one Check per claim: its name, whether it holds, seconds, and a figure or the error

Random weights and the toy corpus: nothing is downloaded. All but the last check also run on the CPU, where tests run some.
"""

from __future__ import annotations

import gc
import importlib.util
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import torch

from minbert_core.checkpoints import load_encoder
from minbert_core.config_checks import load_config
from minbert_core.data.packed import PackedBatch, Span
from minbert_core.inputs import open_inputs
from minbert_core.machine import choose_attention_kernel, in_precision
from minbert_core.memory import DoesNotFitError
from minbert_core.methods.adapters import Adapter
from minbert_core.methods.features import Pooling
from minbert_core.methods.gradients import TORCHJD, GradientMethod
from minbert_core.methods.loss_weights import LossWeights
from minbert_core.methods.proximal import Proximal
from minbert_core.methods.shared_layers import SharedLayer
from minbert_core.methods.smoothness import Smoothness
from minbert_core.train.trial import Progress, train

FAMILIES = {
    "gradient": GradientMethod,
    "loss_weights": LossWeights,
    "smoothness": Smoothness,
    "proximal": Proximal,
    "adapter": Adapter,
    "shared_layer": SharedLayer,
}
NEEDS = {"cagrad": ("scipy",), "torchjd": TORCHJD}  # the packages of a variant's own
LENGTHS = (3, 30, 17, 8, 25, 12, 29, 5, 21, 9)  # tokens
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.03}  # of hidden states: the largest error; the relative norm of the error
REPEATS_WITHIN = 5e-3  # of a dev score, a few rows: atomic additions in a GPU's backward passes have no fixed order


@dataclass(frozen=True)
class Check:
    """The result of a check."""

    name: str
    holds: bool
    seconds: float
    note: str


def run_checks(device: str) -> Iterator[Check]:
    """Run all checks, one after another; an error is a check that does not hold."""
    for name, check in checks(device):
        began = time.monotonic()
        try:
            holds, note = check()
        except Exception as error:  # noqa: BLE001 — any error is the finding
            traceback.print_exc()
            holds, note = False, f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        yield Check(name, holds, round(time.monotonic() - began, 1), note)


def checks(device: str) -> Iterator[tuple[str, Callable[[], tuple[bool, str]]]]:
    """Name each check, the most decisive first."""
    for precision in TOLERANCES:
        yield f"encoder against BertModel, {precision}", partial(encoder_error, device, precision)
    for family, annotation in FAMILIES.items():
        for kind in filter(can_run, kinds(annotation)):
            yield f"{family}: {kind}", partial(short_trial, device, {family: kind})
    for kind in kinds(Pooling):
        yield f"pooling: {kind}", partial(short_trial, device, {"tasks": {"all": {"pooling": kind}}})
    yield "float32", partial(short_trial, device, {"machine": {"precision": "float32"}})
    yield "a trial repeats", partial(repeats, device)
    yield "a trial resumes", partial(resumes, device)
    if device == "cuda":
        yield "too little memory is reported", partial(reports_memory, device)


def can_run(kind: str) -> bool:
    """Return whether a variant's own package is here: a machine that is lent may have the core's only."""
    return all(importlib.util.find_spec(name) is not None for name in NEEDS.get(kind, ()))


def kinds(annotation: Any) -> list[str]:
    """List the kinds of a family."""
    return [variant.model_fields["kind"].default for variant in get_args(get_args(annotation)[0])]


def encoder_error(device: str, precision: str) -> tuple[bool, str]:
    """Compare hidden states with those of transformers' BertModel of the same random weights."""
    import transformers

    torch.manual_seed(0)
    shape = transformers.BertConfig(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512)
    peer = transformers.BertModel(shape).eval().to(device)
    choose_attention_kernel()
    with TemporaryDirectory() as folder, torch.no_grad():
        peer.save_pretrained(folder)
        encoder = load_encoder(Path(folder), 0.1, 0.1).to(device)
        rows = [torch.randint(1, 30_000, (length,)) for length in LENGTHS]
        batch = batch_of(rows).prepared((Span(len(rows), False),), torch.device(device))
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(device)
        wanted_ND = peer(input_ids=padded, attention_mask=mask).last_hidden_state[mask.bool()]
        with in_precision(precision, torch.device(device)):
            found_ND = encoder(batch, spans=(Span(len(rows), False),))[: len(wanted_ND)].float()
    error_ND = found_ND - wanted_ND
    error = float(error_ND.abs().max()) if precision == "float32" else float(error_ND.norm() / wanted_ND.norm())
    return error < TOLERANCES[precision], f"error {error:.1e}, allowed {TOLERANCES[precision]:g}"


def batch_of(rows: list[torch.Tensor]) -> PackedBatch:
    """Pack sequences of token ids."""
    lengths = torch.tensor([len(row) for row in rows])
    return PackedBatch(
        token_ids_N=torch.cat(rows),
        position_ids_N=torch.cat([torch.arange(len(row)) for row in rows]),
        segment_ids_N=torch.zeros(int(lengths.sum()), dtype=torch.int64),
        starts_S1=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        lengths=tuple(lengths.tolist()),
        example_N=torch.arange(len(rows)).repeat_interleave(lengths),
        labels_B=torch.zeros(len(rows)),
        num_examples=len(rows),
    )


def short_trial(device: str, changes: dict[str, Any]) -> tuple[bool, str]:
    """Train a few steps of three tasks and evaluate."""
    progress = list(trial(device, changes))[-1]
    return progress.done, f"dev score {progress.record['dev/score']:.3f}"


def trial(device: str, changes: dict[str, Any], snapshot: dict[str, Any] | None = None) -> Iterator[Progress]:
    """Train on the toy corpus with its tiny encoder, in the precision of the device."""
    base = {
        "data": "toy",
        "encoder": "tiny",
        "tasks": {"all": {"batch_size": 8}},
        "budget": {"examples": 240, "points": [1, 3]},
        "optimizer": {"lr": 1e-3},
        "machine": {"device": device},
    }
    machine = {**base["machine"], **changes.get("machine", {})}  # type: ignore[dict-item]
    config = load_config({**base, **changes, "machine": machine})
    yield from train(config, open_inputs(config), snapshot)


def repeats(device: str) -> tuple[bool, str]:
    """Train twice from one config."""
    first, second = (list(trial(device, {}))[-1].record["dev/score"] for _ in range(2))
    return abs(first - second) <= REPEATS_WITHIN, f"dev scores {first:.5f} and {second:.5f}, allowed {REPEATS_WITHIN:g} apart"


def resumes(device: str) -> tuple[bool, str]:
    """Continue a trial from the state of its first rung."""
    whole, snapshot = 0.0, None
    for progress in trial(device, {}):
        if progress.rung is not None and snapshot is None:
            snapshot = _copied(progress.snapshot())
        whole = progress.record.get("dev/score", whole)
    resumed = list(trial(device, {}, snapshot))[-1].record["dev/score"]
    return abs(whole - resumed) <= REPEATS_WITHIN, f"dev scores {whole:.5f} and {resumed:.5f}"


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def reports_memory(device: str) -> tuple[bool, str]:
    """Allow so little memory that not even one example fits: a sentence is due, and afterwards the GPU works again."""
    gc.collect()  # earlier trials are in cycles, and leave room in the segments that torch keeps
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        list(trial(device, {}))
    except DoesNotFitError as error:
        message = str(error)
    else:
        return False, "a trial had enough memory in a millionth of it"
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    holds, note = short_trial(device, {})
    return holds, f"{message} Then: {note}"
