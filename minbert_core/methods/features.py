"""From the encoder's hidden states to one feature vector per example: poolings, and encodings of a sentence pair.

Flow: encoder -> hidden_ND -> pooling -> pooled_SD -> pair encoding -> features_BF -> head.
Legend: N packed tokens, S sequences, D hidden size, B examples of the batch, F features (D, or 2D where a pair is two vectors).

A pair is either one sequence (cross: S = B) or two (bi: S = 2B, all u first, then all v). For a task of single sentences the
pooled vectors are the features, whatever pair encoding is set.

Each task has its own layer of a pooling that learns, like its head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from minbert_core.encoder import make_linear
from minbert_core.settings.models import BARE_NAME, Variant

Layer = Callable[[Tensor], Tensor]


def first_tokens(hidden_ND: Tensor, starts_S1: Tensor) -> Tensor:
    """Select the hidden state of each first token, [CLS], shape (S, D).  starts_S1: the starts of sequences, then N."""
    return hidden_ND[starts_S1[:-1]]


def mean_tokens(hidden_ND: Tensor, starts_S1: Tensor) -> Tensor:
    """Average the tokens of each sequence, including [CLS] and [SEP], shape (S, D), in float32 or better.

    Packed sequences hold no padding, so there is none to mask. No sequence is empty: each has its specials.
    Source: Reimers & Gurevych 2019 (arXiv 1908.10084), section 3.
    """
    if hidden_ND.dtype in (torch.float16, torch.bfloat16):
        hidden_ND = hidden_ND.float()  # 8 bits of mantissa are too few to sum a hundred terms
    # `unsafe` leaves out only checks of the offsets, which would make the host wait for the GPU at every step
    return torch.segment_reduce(hidden_ND, "mean", offsets=starts_S1, axis=0, unsafe=True)


def max_tokens(hidden_ND: Tensor, starts_S1: Tensor) -> Tensor:
    """Take the largest value of each dimension among the tokens of each sequence, with [CLS] and [SEP], shape (S, D)."""
    return torch.segment_reduce(hidden_ND, "max", offsets=starts_S1, axis=0, unsafe=True)


def weighted_mean_tokens(hidden_ND: Tensor, scores_N1: Tensor, starts_S1: Tensor) -> Tensor:
    """Average the tokens of each sequence, weighted by the softmax of their scores, shape (S, D), float32 or better."""
    precision = torch.promote_types(hidden_ND.dtype, torch.float32)
    hidden_ND, scores_N1 = hidden_ND.to(precision), scores_N1.to(precision)
    highest_S1 = torch.segment_reduce(scores_N1.detach(), "max", offsets=starts_S1, axis=0, unsafe=True)
    # with output_size the host need not wait for the GPU to learn it
    highest_N1 = highest_S1.repeat_interleave(starts_S1.diff(), dim=0, output_size=len(hidden_ND))
    weights_N1 = (scores_N1 - highest_N1).exp()
    sums_SD = torch.segment_reduce(weights_N1 * hidden_ND, "sum", offsets=starts_S1, axis=0, unsafe=True)
    return sums_SD / torch.segment_reduce(weights_N1, "sum", offsets=starts_S1, axis=0, unsafe=True)


class TokenScores(nn.Module):
    """w . tanh(V h + b) of each token, shape (N, 1); w starts at zero, so that all tokens score alike."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layer = make_linear(dim, dim)
        self.score = nn.Parameter(torch.zeros(1, dim))

    def forward(self, hidden_ND: Tensor) -> Tensor:
        scores_N1: Tensor = self.layer(hidden_ND).tanh() @ self.score.T
        return scores_N1


def concatenate_pair(pooled_SD: Tensor) -> Tensor:
    """Concatenate [u; v] for each pair, shape (B, 2D), from S = 2B rows: all u, then all v."""
    assert pooled_SD.shape[0] % 2 == 0, f"a bi-encoded batch has two vectors per example, not {pooled_SD.shape[0]} in all"
    u_BD, v_BD = pooled_SD.chunk(2, dim=0)
    return torch.cat([u_BD, v_BD], dim=1)


class PoolingVariant(Variant):
    """The defaults of a pooling; a variant declares only what differs, and `pool(hidden_ND, starts_S1, layer)` -> (S, D)."""

    uses_pooler: ClassVar[bool] = False  # `layer` is the checkpoint's pooler
    reads_only_first: ClassVar[bool] = False  # it reads first tokens only: the encoder computes no others, so N = S

    def build(self, dim: int) -> nn.Module | None:
        """Build what the pooling learns for one task, handed to `pool` as `layer`; None if it learns nothing."""
        return None


class Cls(PoolingVariant):
    """The hidden state of [CLS] as it leaves the last layer (Devlin et al. 2019, arXiv 1810.04805, without their pooler)."""

    kind: Literal["cls"] = "cls"
    reads_only_first: ClassVar[bool] = True

    def pool(self, hidden_ND: Tensor, starts_S1: Tensor, layer: Layer | None) -> Tensor:
        return first_tokens(hidden_ND, starts_S1)


class Pooler(PoolingVariant):
    """tanh(W h + b) of [CLS], through the checkpoint's own pooler (Devlin et al. 2019, arXiv 1810.04805)."""

    kind: Literal["pooler"] = "pooler"
    uses_pooler: ClassVar[bool] = True
    reads_only_first: ClassVar[bool] = True

    def pool(self, hidden_ND: Tensor, starts_S1: Tensor, layer: Layer | None) -> Tensor:
        assert layer is not None, "pooling 'pooler' is handed the checkpoint's pooler"
        return layer(first_tokens(hidden_ND, starts_S1))


class Mean(PoolingVariant):
    """The mean over a sequence's tokens, specials included (Reimers & Gurevych 2019, arXiv 1908.10084, section 3)."""

    kind: Literal["mean"] = "mean"

    def pool(self, hidden_ND: Tensor, starts_S1: Tensor, layer: Layer | None) -> Tensor:
        return mean_tokens(hidden_ND, starts_S1)


class Max(PoolingVariant):
    """The largest value of each dimension over a sequence's tokens, specials included (Reimers & Gurevych 2019, section 3)."""

    kind: Literal["max"] = "max"

    def pool(self, hidden_ND: Tensor, starts_S1: Tensor, layer: Layer | None) -> Tensor:
        return max_tokens(hidden_ND, starts_S1)


class Attention(PoolingVariant):
    """The mean over a sequence's tokens, specials included, weighted by a learned score: Yang et al. 2016 (NAACL), eq. 5 to 7.

    Departure: the vector that scores, their word context u_w, starts at zero and not at random: training starts from `mean`.
    """

    kind: Literal["attention"] = "attention"

    def build(self, dim: int) -> nn.Module | None:
        return TokenScores(dim)

    def pool(self, hidden_ND: Tensor, starts_S1: Tensor, layer: Layer | None) -> Tensor:
        assert layer is not None, "pooling 'attention' is handed the scores that it built"
        return weighted_mean_tokens(hidden_ND, layer(hidden_ND), starts_S1)


Pooling = Annotated[Cls | Pooler | Mean | Max | Attention, Field(discriminator="kind"), BARE_NAME]


class Cross(Variant):
    """Both sentences in one sequence, `[CLS] a [SEP] b [SEP]` with segments (Devlin et al. 2019): one vector per pair."""

    kind: Literal["cross"] = "cross"
    vectors: ClassVar[int] = 1

    def features(self, pooled_SD: Tensor) -> Tensor:
        return pooled_SD


class Bi(Variant):
    """Each sentence in its own sequence (Reimers & Gurevych 2019, arXiv 1908.10084): two vectors per pair, concatenated."""

    kind: Literal["bi"] = "bi"
    vectors: ClassVar[int] = 2

    def features(self, pooled_SD: Tensor) -> Tensor:
        return concatenate_pair(pooled_SD)


PairEncoding = Annotated[Cross | Bi, Field(discriminator="kind"), BARE_NAME]
