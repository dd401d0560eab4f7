"""Count what a step asks of its device: operator calls, copies to it, and values that the host reads back and waits for.

    python -m benchmarks.operators        a table of all methods: three tasks of 8, 12 layers, in seconds, without a GPU

On a GPU the calls of a step of BERT-base take longer to launch than to execute, so their number is the step's time. They are
counted on torch's device `meta`, which computes nothing, takes the code paths of a GPU, and has no value to read: a step that
reads one fails. What draws from a generator (SMART's noise) or reads by design is counted on the CPU, whose attention has more
calls. There `cpu` is what a GPU waits for; gradient methods and loss weights also read numbers that are on the host. Views are
not counted. On `meta`, dropout is three calls and the update one per parameter; on a GPU it is one call, and a few in all.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from minbert_core.config import TrialConfig
from minbert_core.config_checks import load_config
from minbert_core.data.tokens import pack
from minbert_core.encoder import EncoderShape, new_encoder
from minbert_core.inputs import Inputs, open_inputs
from minbert_core.model import MultitaskBert, build_model
from minbert_core.train.passes import Batch
from minbert_core.train.step import Stepper

LAYERS = 12
FREE = {"aten._unsafe_view", "aten.empty", "aten.empty_like", "aten.empty_strided", "aten.new_empty", "aten.detach_"}
READS = {"aten._local_scalar_dense", "aten.item", "aten.equal", "aten.nonzero", "aten.is_nonzero"}
READERS = ("item", "tolist", "numpy", "cpu", "__float__", "__int__", "__bool__")  # methods of a tensor; some are not operators
METHODS: dict[str, dict[str, Any]] = {
    "the sum": {},
    "LoRA": {"adapter": "lora"},
    "PAL": {"adapter": {"kind": "pal", "size": 24}},
    "uncertainty": {"loss_weights": "uncertainty"},
    "DWA": {"loss_weights": "dwa"},
    "Bregman": {"proximal": "bregman"},
    "R-Drop": {"smoothness": "r_drop"},
    "SMART": {"smoothness": "smart"},
    "PCGrad": {"gradient": "pcgrad"},
    "GradVac": {"gradient": "gradvac"},
    "CAGrad": {"gradient": "cagrad"},
    "FAMO": {"loss_weights": "famo"},
}
ON_CPU = {"uncertainty", "DWA", "SMART", "PCGrad", "GradVac", "CAGrad", "FAMO"}


@dataclass
class Counts(TorchDispatchMode):
    """Operator calls inside the block, by phase: forward, backward (of the loss and of an ascent), update."""

    calls: Counter[str] = field(default_factory=Counter)
    names: dict[str, Counter[str]] = field(default_factory=dict)
    copies: int = 0  # between devices
    reads: Counter[str] = field(default_factory=Counter)  # of values by the host, by the way it reads them
    phase: str = "forward"

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = str(func).rsplit(".", 1)[0]
        if not (func.is_view or name in FREE):
            self.calls[self.phase] += 1
            self.names.setdefault(self.phase, Counter())[name] += 1
        tensors = [value for value in (*args, result) if isinstance(value, torch.Tensor)]
        self.copies += name in ("aten._to_copy", "aten.copy_") and len({tensor.device for tensor in tensors}) > 1
        self.reads[name] += name in READS
        return result


@contextlib.contextmanager
def meta_allowed() -> Iterator[None]:
    """Let torch treat the device meta as a GPU inside the block: fused AdamW, autocast, the kernel of attention with a mask."""
    autocast, attention = torch.autocast, torch.nn.functional.scaled_dot_product_attention

    def lenient(device: str, *further: Any, **named: Any) -> torch.autocast:
        return autocast("cpu" if device == "meta" else device, *further, **named)

    def in_one_kernel(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, rate: float, scale: float) -> Tensor:
        if q.device.type != "meta":
            return attention(q, k, v, bias, rate, scale=scale)
        bias = bias.expand(*q.shape[:3], k.shape[2])
        output: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, True, rate, scale=scale)[0]
        return output

    with (
        mock.patch("torch.optim.adam._device_dtype_check_for_fused"),
        mock.patch("torch.autocast", lenient),
        mock.patch("torch.nn.functional.scaled_dot_product_attention", in_one_kernel),
    ):
        yield


@contextlib.contextmanager
def counted() -> Iterator[Counts]:
    """Count the calls inside the block. `backward` and `grad` are a phase, and what follows the last of them is the update."""
    counts = Counts()

    def in_backward(function: Any) -> Any:
        def wrapped(*args: Any, **named: Any) -> Any:
            before, counts.phase = counts.phase, "backward"
            try:
                return function(*args, **named)
            finally:
                counts.phase = before

        return wrapped

    def reading(function: Any) -> Any:
        def wrapped(*args: Any, **named: Any) -> Any:
            counts.reads[function.__name__] += 1
            return function(*args, **named)

        return wrapped

    with contextlib.ExitStack() as stack:
        stack.enter_context(meta_allowed())
        stack.enter_context(mock.patch.object(torch.Tensor, "backward", in_backward(torch.Tensor.backward)))
        stack.enter_context(mock.patch.object(torch.autograd, "grad", in_backward(torch.autograd.grad)))
        for name in READERS:
            stack.enter_context(mock.patch.object(torch.Tensor, name, reading(getattr(torch.Tensor, name))))
        stack.enter_context(counts)
        yield counts


def batches_of(model: MultitaskBert, inputs: Inputs, size: int = 8) -> dict[str, Batch]:
    """Pack the first rows of each task's train split, on the host."""
    rows_B = np.arange(size)
    return {
        task: [pack(inputs.train[task], rows_B, plan.pair_encoding.kind, 64, inputs.specials)]
        for task, plan in model.plans.items()
    }


def stepper_on(config: TrialConfig, inputs: Inputs, device: str, layers: int = LAYERS) -> Stepper:
    """Build a stepper whose model has so many small layers."""
    shape = EncoderShape(len(inputs.tokenizer.vocabulary()), 32, layers, 2, 64)  # heads of 16: a kernel pads no multiple of 8
    model = build_model(config, new_encoder(shape, 0, 0.1, 0.1))
    model.encoder.train_words(inputs.token_ids)
    with meta_allowed():
        return Stepper(model.to(device), config.stage_plans()[0], config.loss_weights, 0, "float32")


def counts_of(config: TrialConfig, inputs: Inputs, device: str, layers: int = LAYERS) -> Counts:
    """Count the calls of a step that writes no log, its third: the host's copy of the batches included."""
    stepper = stepper_on(config, inputs, device, layers)
    batches = batches_of(stepper.model, inputs)
    with meta_allowed():
        for number in range(2):
            stepper.step(number, stepper.passes(number, batches), 0.5, measure=False)
    clip, update = stepper._clip, stepper._update

    with counted() as counts:

        def in_update(function: Any) -> Any:
            def wrapped(*args: Any) -> None:
                counts.phase = "update"
                function(*args)

            return wrapped

        with mock.patch.multiple(stepper, _clip=in_update(clip), _update=in_update(update)):
            stepper.step(2, stepper.passes(2, batches), 0.5, measure=False)
    return counts


def preparation_ms(config: TrialConfig, inputs: Inputs, num_steps: int = 50) -> float:
    """Measure the host's milliseconds of processor time to pack a step's batches and lay them out, as on a GPU."""
    stepper = stepper_on(config, inputs, "meta", layers=1)
    began = time.process_time()
    for number in range(num_steps):
        stepper.passes(number, batches_of(stepper.model, inputs))
    return 1000 * (time.process_time() - began) / num_steps


def main() -> int:
    """Print the table."""
    print(f"A step of three tasks of 8, {LAYERS} layers; calls of operators without views; copies to the device; values read\n")
    print("| method | counted on | forward | backward | update | copies | reads |\n|---|---|---|---|---|---|---|")
    base = {"data": "toy", "encoder": "tiny", "tasks": {"all": {"batch_size": 8, "pooling": "pooler"}}}
    inputs = open_inputs(load_config(base))
    for name, changes in METHODS.items():
        for device in ("cpu",) if name in ON_CPU else ("meta", "cpu"):
            counts = counts_of(load_config(base | changes), inputs, device)
            phases = " | ".join(f"{counts.calls[phase]:,}" for phase in ("forward", "backward", "update"))
            reads = ", ".join(f"{reader} {number}" for reader, number in counts.reads.items() if number) or "none"
            print(f"| {name} | {device} | {phases} | {counts.copies} | {reads} |", flush=True)
    taken = preparation_ms(load_config(base), inputs)
    print(f"\nA step's batches take the host {taken:.1f} ms; on a GPU another thread makes them.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
