"""The layer that tasks share, by hand; the laws of all shared layers are in test_laws_of_poolings.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minbert_core.methods.shared_layers import Leaky


def test_leaky_is_linear_then_dropout_then_a_hundredth_of_what_is_negative() -> None:
    """A drop that shifts by one, seen between the two: W x = (3, -3), then (4, -2), then (4, -.02)."""
    layer = Leaky(size=2, dropout=0.3).build(1)
    assert layer is not None
    with torch.no_grad():
        layer.linear.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    probabilities: list[float] = []

    def shift(values: Tensor, p: float) -> Tensor:
        probabilities.append(p)
        return values + 1

    assert layer(torch.tensor([[3.0]]), shift)[0].tolist() == pytest.approx([4.0, -0.02])
    assert probabilities == [0.3]


@pytest.mark.parametrize(("of", "served"), [("all", [True, True]), ("pairs", [False, True])])
def test_of_says_whose_vectors_go_through_it(of: str, served: list[bool]) -> None:
    assert [Leaky.model_validate({"of": of}).serves(is_pair) for is_pair in (False, True)] == served
