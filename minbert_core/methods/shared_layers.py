"""A layer between the pooled vectors and the heads that the tasks share; not a part of the encoder, trained whenever heads are.

Flow: pooling -> pooled_SD -> shared layer -> (S, its size) -> pair encoding -> features_BF -> head.
Legend: S sequences, D hidden size.

Its gradients are merged like the encoder's, in a group of their own. It has the heads' learning rate, because it also starts
from random weights, but a stage that draws new heads keeps it. Like a head it computes in float32, and its dropout function is
an argument.

`serves(is_pair)`: whether a task's pooled vectors pass through it. `size`: their width after it, 0 if there is no layer.
`build(dim)`: the layer, if any.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from minbert_core.encoder import make_linear
from minbert_core.settings.models import BARE_NAME, Variant

Drop = Callable[[Tensor, float], Tensor]  # (values, probability) -> values with some of them dropped


class LeakyLayer(nn.Module):
    """LeakyReLU(drop(W x + b)), shape (S, size), with PyTorch's slope of 0.01."""

    def __init__(self, dim: int, size: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.linear = make_linear(dim, size)

    def forward(self, pooled_SD: Tensor, drop: Drop) -> Tensor:
        return functional.leaky_relu(drop(self.linear(pooled_SD), self.dropout))


class NoSharedLayer(Variant):
    """No layer between pooling and heads: tasks share only the encoder."""

    kind: Literal["none"] = "none"
    size: ClassVar[int] = 0

    def serves(self, is_pair: bool) -> bool:
        return False

    def build(self, dim: int) -> nn.Module | None:
        return None


class Leaky(Variant):
    """Linear, dropout, LeakyReLU over each pooled vector, one layer for all tasks: Liu & Maniku 2023.

    `of: pairs` is the shared layer of the "rich relational layer" of Hollister et al. 2023, over u and v before they are
    combined. Departure: weights start like BERT's, from N(0, 0.02²).
    """

    kind: Literal["leaky"] = "leaky"
    size: PositiveInt = Field(
        384, json_schema_extra={"unit": "units"}, description="width of its outputs, which the heads read"
    )
    dropout: float = Field(
        0.1, ge=0, lt=1, json_schema_extra={"unit": "share"}, description="dropout before the LeakyReLU, in training"
    )
    of: Literal["all", "pairs"] = Field(
        "all", description="tasks whose pooled vectors pass through it: all, or only tasks of pairs"
    )

    def serves(self, is_pair: bool) -> bool:
        return is_pair or self.of == "all"

    def build(self, dim: int) -> nn.Module | None:
        return LeakyLayer(dim, self.size, self.dropout)


SharedLayer = Annotated[NoSharedLayer | Leaky, Field(discriminator="kind"), BARE_NAME]
