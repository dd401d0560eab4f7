"""The counts of a step: few operator calls, one copy to the device, and no value that the host waits for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.operators import METHODS, counted, counts_of
from minbert_core.config import TrialConfig
from minbert_core.inputs import open_inputs

Tiny = Callable[..., TrialConfig]


def test_a_step_of_three_tasks_and_twelve_layers_makes_at_most_450_calls_forward_and_450_backward(tiny: Tiny) -> None:
    """On a device that is not the CPU. It copies its batches there at once, and reads nothing back."""
    config = tiny()
    counts = counts_of(config, open_inputs(config), "meta")
    assert counts.calls["forward"] <= 450
    assert counts.calls["backward"] <= 450
    assert (counts.copies, counts.reads.total()) == (1, 0)


@pytest.mark.parametrize(
    ("changes", "copies"),
    [
        ({"adapter": "lora"}, 1),
        ({"proximal": "bregman"}, 1),
        ({"smoothness": "r_drop"}, 1),
        ({"stages": ["linear_probe"]}, 1),
        ({"tasks": {"pairs": {"pair_encoding": "bi", "head": "sbert"}}}, 1),
        ({"adapter": {"kind": "pal", "size": 24}}, 3),  # a pass per task
    ],
    ids=str,
)
def test_every_pass_of_a_batch_shares_one_copy_and_nothing_is_read(tiny: Tiny, changes: dict[str, Any], copies: int) -> None:
    config = tiny(**changes)
    counts = counts_of(config, open_inputs(config), "meta", layers=2)
    assert (counts.copies, counts.reads.total()) == (copies, 0)


@pytest.mark.parametrize("name", ["the sum", "SMART"])
def test_on_the_cpu_nothing_is_read_either(tiny: Tiny, name: str) -> None:
    config = tiny(**METHODS[name])
    assert counts_of(config, open_inputs(config), "cpu", layers=2).reads.total() == 0


@pytest.mark.parametrize("name", ["PCGrad", "GradVac", "CAGrad"])
def test_a_gradient_method_brings_the_gramian_to_the_host_once(tiny: Tiny, name: str) -> None:
    config = tiny(**METHODS[name])
    assert counts_of(config, open_inputs(config), "cpu", layers=2).reads["cpu"] == 1


READERS: dict[str, Callable[[torch.Tensor], object]] = {
    "item": lambda x: x.item(),
    "float": float,
    "tolist": lambda x: x.tolist(),
    "if": lambda x: 1 if x else 0,
    "numpy": lambda x: x.numpy(),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())
def test_every_way_to_read_a_value_is_counted(read: Callable[[torch.Tensor], object]) -> None:
    x = torch.ones(())
    with counted() as counts:
        read(x)
    assert counts.reads.total() >= 1


def test_a_copy_to_a_device_is_counted_and_one_within_it_is_not() -> None:
    x = torch.ones(3)
    with counted() as counts:
        (x.clone() + x).to("meta")
    assert counts.copies == 1
