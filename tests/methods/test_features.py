"""Poolings and pair encodings on packed rows small enough to add up by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from minbert_core.methods.features import (
    Attention,
    Bi,
    Cls,
    Cross,
    Max,
    Mean,
    Pooler,
    TokenScores,
    mean_tokens,
    weighted_mean_tokens,
)

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


def test_max_is_of_each_dimension_among_the_tokens_of_each_sequence_alone() -> None:
    hidden = torch.tensor([[1.0, -10.0], [-3.0, -20.0], [5.0, 60.0], [7.0, -80.0], [6.0, 10.0]])
    assert Max().pool(hidden, STARTS, no_pooler).tolist() == [[1.0, -10.0], [7.0, 60.0]]


def test_attention_begins_as_the_mean() -> None:
    hidden = torch.randn(5, 4)
    assert torch.allclose(Attention().pool(hidden, STARTS, Attention().build(4)), Mean().pool(hidden, STARTS, None), atol=1e-6)


def test_attention_weighs_tokens_by_the_softmax_of_their_scores_in_their_sequence() -> None:
    """Scores log 1, log 3 | log 2, log 2, log 4: weights 1/4, 3/4 | 1/4, 1/4, 1/2."""
    scores = torch.tensor([1.0, 3.0, 2.0, 2.0, 4.0]).log()[:, None]
    expected = [0.25 * 1 + 0.75 * 3, 0.25 * 10 + 0.75 * 20, 0.25 * 5 + 0.25 * 7 + 0.5 * 9, 0.25 * 60 + 0.25 * 80 + 0.5 * 100]
    assert weighted_mean_tokens(HIDDEN, scores, STARTS).flatten().tolist() == pytest.approx(expected)


def test_a_score_is_w_tanh_of_v_h_plus_b() -> None:
    layer = TokenScores(2)
    with torch.no_grad():
        layer.layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        layer.layer.bias.copy_(torch.tensor([0.0, 1.0]))
        layer.score.copy_(torch.tensor([[3.0, 5.0]]))
    expected = 3 * math.tanh(0.5) + 5 * math.tanh(2 * -0.25 + 1)
    assert float(layer(torch.tensor([[0.5, -0.25]])).detach()) == pytest.approx(expected)


def test_huge_scores_stay_finite() -> None:
    """Of a sequence each, so that no common shift would do."""
    scores = torch.tensor([1e4, 1e4, -1e4, -1e4, -2e4])[:, None]
    assert weighted_mean_tokens(HIDDEN, scores, STARTS).tolist() == [[2.0, 15.0], [6.0, 70.0]]


def test_cross_features_are_the_pooled_vectors() -> None:
    assert Cross().features(HIDDEN[:4]).tolist() == HIDDEN[:4].tolist()


def test_bi_puts_v_beside_its_own_u() -> None:
    pooled = torch.tensor([[1.0, 2.0], [3.0, 4.0], [10.0, 20.0], [30.0, 40.0]])  # u1, u2, v1, v2
    assert Bi().features(pooled).tolist() == [[1.0, 2.0, 10.0, 20.0], [3.0, 4.0, 30.0, 40.0]]


def test_bi_refuses_an_odd_number_of_vectors() -> None:
    with pytest.raises(AssertionError, match="two vectors per example, not 3"):
        Bi().features(HIDDEN[:3])
