"""Poolings and pair encodings on packed rows small enough to add up by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minbert_core.methods.features import Bi, Cls, Cross, Mean, Pooler, mean_tokens

HIDDEN = torch.tensor([[1.0, 10.0], [3.0, 20.0], [5.0, 60.0], [7.0, 80.0], [9.0, 100.0]])  # two sequences, of 2 and 3 tokens
STARTS = torch.tensor([0, 2, 5])


def no_pooler(first: Tensor) -> Tensor:
    raise AssertionError("this pooling has no use for the pooler")


def test_cls_takes_the_first_token_of_each_sequence() -> None:
    assert Cls().pool(HIDDEN, STARTS, no_pooler).tolist() == [[1.0, 10.0], [5.0, 60.0]]


def test_pooler_applies_the_pooler_to_the_first_tokens() -> None:
    assert Pooler().pool(HIDDEN, STARTS, lambda first: -first).tolist() == [[-1.0, -10.0], [-5.0, -60.0]]


def test_mean_is_over_the_tokens_of_each_sequence_alone() -> None:
    assert Mean().pool(HIDDEN, STARTS, no_pooler).tolist() == [[2.0, 15.0], [7.0, 80.0]]


def test_mean_gives_each_token_of_a_sequence_the_same_gradient() -> None:
    hidden = HIDDEN.clone().requires_grad_()
    mean_tokens(hidden, STARTS)[1].sum().backward()
    assert hidden.grad is not None
    assert torch.allclose(hidden.grad, torch.tensor([0.0, 0.0, 1 / 3, 1 / 3, 1 / 3])[:, None].expand(5, 2))


def test_mean_of_bfloat16_is_summed_in_float32() -> None:
    """256 + 1 is 256 in bfloat16."""
    hidden = torch.tensor([[256.0]] + [[1.0]] * 99).bfloat16()
    assert mean_tokens(hidden, torch.tensor([0, 100])).item() == pytest.approx(3.55)


def test_cross_features_are_the_pooled_vectors() -> None:
    assert Cross().features(HIDDEN[:4]).tolist() == HIDDEN[:4].tolist()


def test_bi_puts_v_beside_its_own_u() -> None:
    pooled = torch.tensor([[1.0, 2.0], [3.0, 4.0], [10.0, 20.0], [30.0, 40.0]])  # u1, u2, v1, v2
    assert Bi().features(pooled).tolist() == [[1.0, 2.0, 10.0, 20.0], [3.0, 4.0, 30.0, 40.0]]


def test_bi_refuses_an_odd_number_of_vectors() -> None:
    with pytest.raises(AssertionError, match="two vectors an example, not 3"):
        Bi().features(HIDDEN[:3])
