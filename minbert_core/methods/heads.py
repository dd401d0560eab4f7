"""Heads: modules that turn the features of an example into the logits of its task.  One head per task, never shared.

Flow: features_BF -> head -> logits_BK -> loss.
Legend: B examples of the batch, D hidden size, F features (D, or 2D where a pair is two vectors), K outputs.

The `dropout` of a head is separate from the encoder's: it acts on the features before each linear layer. The function that
drops is an argument of each call, so that one set of masks can be replayed; in evaluation it is the identity.

`build` gets the logit in the middle of a regression's labels, where a head starts unless its knob `start` says zero. From 0, a
squared error first teaches the labels' mean. A bias moves only as fast as the learning rate, so the shared encoder would be
bent to supply that mean (SST and Para stayed at chance for a whole trial; LOG.md).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from minbert_core.encoder import make_linear
from minbert_core.settings.models import BARE_NAME, Variant

Drop = Callable[[Tensor, float], Tensor]  # (values, probability) -> values with some of them dropped
Activation = Callable[[Tensor], Tensor]

SMALLEST_LENGTH = 1e-8  # eps where vectors are divided by their lengths, as in torch's cosine_similarity

Dropout = Annotated[
    float,
    Field(
        ge=0,
        lt=1,
        json_schema_extra={"unit": "of the features"},
        description="dropout before each linear layer of the head, in training",
    ),
]
Start = Annotated[
    Literal["middle", "zero"],
    Field(description="untrained answer of a regression: the middle of its labels, or zero as in the papers"),
]


def first_answer(start: Start, middle: float) -> float:
    """Return the logit of an untrained head, its last bias."""
    return middle if start == "middle" else 0.0


def halves(features_BF: Tensor) -> tuple[Tensor, Tensor]:
    """Split features [u; v] into u and v, each (B, D)."""
    u_BD, v_BD = features_BF.chunk(2, dim=1)
    return u_BD, v_BD


def with_difference(features_BF: Tensor) -> Tensor:
    """Return [u; v; |u - v|], (B, 3D), for features [u; v], (B, 2D)."""
    u_BD, v_BD = halves(features_BF)
    return torch.cat([features_BF, (u_BD - v_BD).abs()], dim=1)


def cosines(features_BF: Tensor) -> Tensor:
    """Compute cos(u, v) for features [u; v], shape (B, 1), float32; 0 if u or v is zero."""
    u_BD, v_BD = halves(features_BF.float())
    return functional.cosine_similarity(u_BD, v_BD, dim=1)[:, None]


def directed_products(features_BF: Tensor) -> Tensor:
    """Compute u * v / (|u| |v| + eps) for features [u; v], elementwise, shape (B, D); its sum is cos(u, v)."""
    u_BD, v_BD = halves(features_BF)
    lengths_B1: Tensor = u_BD.norm(dim=1, keepdim=True) * v_BD.norm(dim=1, keepdim=True)
    return u_BD * v_BD / (lengths_B1 + SMALLEST_LENGTH)


class Layers(nn.Module):
    """Linear layers, `activation` between them, dropout before each; `sizes`: F, hidden widths, K; `start`: the last bias."""

    def __init__(self, sizes: tuple[int, ...], dropout: float, start: float, activation: Activation = torch.relu) -> None:
        super().__init__()
        self.dropout, self.activation = dropout, activation
        layers = [make_linear(inputs, outputs) for inputs, outputs in pairwise(sizes)]
        nn.init.constant_(layers[-1].bias, start)
        self.layers = nn.ModuleList(layers)

    def forward(self, features_BF: Tensor, drop: Drop) -> Tensor:
        values = features_BF
        for i, layer in enumerate(self.layers):
            values = layer(drop(self.activation(values) if i else values, self.dropout))
        return values


class DifferenceLayers(Layers):
    """`Layers` over [u; v; |u - v|]."""

    def forward(self, features_BF: Tensor, drop: Drop) -> Tensor:
        return super().forward(with_difference(features_BF), drop)


class DifferenceLayersAndCosine(DifferenceLayers):
    """`Layers` over [u; v; |u - v|], plus cos(u, v) of the features before dropout, shape (B, 1)."""

    def forward(self, features_BF: Tensor, drop: Drop) -> Tensor:
        return super().forward(features_BF, drop) + cosines(features_BF)


class ProductLayers(Layers):
    """`Layers` over u * v / (|u| |v| + eps)."""

    def forward(self, features_BF: Tensor, drop: Drop) -> Tensor:
        return super().forward(directed_products(features_BF), drop)


class ScaledCosine(nn.Module):
    """a * cos(u, v) + b, shape (B, 1), with a and b learned."""

    def __init__(self, scale: float, offset: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([scale]))
        self.b = nn.Parameter(torch.tensor([offset]))

    def forward(self, features_BF: Tensor, drop: Drop) -> Tensor:
        return self.a * cosines(features_BF) + self.b


class HeadVariant(Variant):
    """The defaults of a head; a variant declares only what differs, and `build(dim, outputs, middle) -> nn.Module`.

    dim is F, outputs is K. middle is the logit in the middle of a regression's labels (0 for classes).
    """

    needs_pair_vectors: ClassVar[bool] = False  # its features must be [u; v]
    single_output: ClassVar[bool] = False  # K must be 1
    reads_cosine_only: ClassVar[bool] = False  # its logit grows with cos(u, v) only, so it needs no training

    @property
    def boundary(self) -> float | None:
        """The cosine at which an untrained logit is 0; None unless the head reads the cosine only."""
        return None

    def advice_for(self, boundary: float) -> str:
        """Return a sentence that says which knob puts the boundary at a cosine."""
        return ""


class Linear(HeadVariant):
    """One linear layer: BERT's own head (Devlin et al. 2019, arXiv 1810.04805)."""

    kind: Literal["linear"] = "linear"
    dropout: Dropout = 0.1
    start: Start = "middle"

    def build(self, dim: int, outputs: int, middle: float = 0.0) -> nn.Module:
        return Layers((dim, outputs), self.dropout, first_answer(self.start, middle))


class Mlp(HeadVariant):
    """Linear layers with ReLU between, dropout before each: the "HLH" head of Kehoe & Ravella 2024 at hidden [768]."""

    kind: Literal["mlp"] = "mlp"
    hidden: tuple[PositiveInt, ...] = Field(
        (768,), min_length=1, json_schema_extra={"unit": "units"}, description="widths of the hidden layers, first to last"
    )
    dropout: Dropout = 0.1
    start: Start = "middle"

    def build(self, dim: int, outputs: int, middle: float = 0.0) -> nn.Module:
        return Layers((dim, *self.hidden, outputs), self.dropout, first_answer(self.start, middle))


class Sbert(HeadVariant):
    """A linear layer over [u; v; |u - v|] (Reimers & Gurevych 2019, arXiv 1908.10084, section 3).  Needs separate u and v."""

    kind: Literal["sbert"] = "sbert"
    dropout: Dropout = 0.1
    start: Start = "middle"
    needs_pair_vectors: ClassVar[bool] = True

    def build(self, dim: int, outputs: int, middle: float = 0.0) -> nn.Module:
        assert dim % 2 == 0, f"sbert takes [u; v], an even number of features, not {dim}"
        return DifferenceLayers((dim // 2 * 3, outputs), self.dropout, first_answer(self.start, middle))


class SbertCosine(HeadVariant):
    """W [u; v; |u - v|] + cos(u, v): the STS head of Liu & Maniku 2023.  Needs separate u and v, and a task of one output.

    They write cos(u, v) as a vector of K numbers; it is a scalar. It is added unscaled, and computed without dropout (see
    `cosine`).
    """

    kind: Literal["sbert_cosine"] = "sbert_cosine"
    dropout: Dropout = 0.1
    start: Start = "middle"
    needs_pair_vectors: ClassVar[bool] = True
    single_output: ClassVar[bool] = True

    def build(self, dim: int, outputs: int, middle: float = 0.0) -> nn.Module:
        assert dim % 2 == 0, f"sbert_cosine takes [u; v], an even number of features, not {dim}"
        assert outputs == 1, f"sbert_cosine gives one output, not {outputs}"
        return DifferenceLayersAndCosine((dim // 2 * 3, outputs), self.dropout, first_answer(self.start, middle))


class Hadamard(HeadVariant):
    """A linear layer over u * v / (|u| |v| + eps), the terms of the cosine: the STS head of Hollister et al. 2023.

    There, u and v are outputs of a layer that the pair tasks share: `shared_layer` with `of: pairs`. They do not report their
    eps; here it is 1e-8. Needs separate u and v.
    """

    kind: Literal["hadamard"] = "hadamard"
    dropout: Dropout = 0.1
    start: Start = "middle"
    needs_pair_vectors: ClassVar[bool] = True

    def build(self, dim: int, outputs: int, middle: float = 0.0) -> nn.Module:
        assert dim % 2 == 0, f"hadamard takes [u; v], an even number of features, not {dim}"
        return ProductLayers((dim // 2, outputs), self.dropout, first_answer(self.start, middle))


class Halving(HeadVariant):
    """A second layer, half as wide as the features, with LeakyReLU (slope 0.01, PyTorch's): after Liu & Maniku 2023.

    Departure: the layer is the task's own; theirs was shared by all tasks, which is `shared_layer`.
    """

    kind: Literal["halving"] = "halving"
    dropout: Dropout = 0.1
    start: Start = "middle"

    def build(self, dim: int, outputs: int, middle: float = 0.0) -> nn.Module:
        return Layers((dim, dim // 2, outputs), self.dropout, first_answer(self.start, middle), functional.leaky_relu)


class Cosine(HeadVariant):
    """a cos(u, v) + b: the cosine of Reimers & Gurevych 2019 (arXiv 1908.10084, section 3), scaled to the task's labels.

    Departure: a and b are learned, because labels are in 0..5 and not in -1..1; b starts at `offset`, not at the middle.
    No dropout: a cosine of two vectors with different coordinates missing is another quantity. Needs separate u and v, and a
    task of one output.
    """

    kind: Literal["cosine"] = "cosine"
    scale: float = Field(
        5.0, gt=0, json_schema_extra={"unit": "label units"}, description="initial value of a; for a binary task in logits"
    )
    offset: float = Field(
        0.0,
        json_schema_extra={"unit": "label units"},
        description="initial value of b; -offset/scale is the cosine whose logit is 0",
    )
    needs_pair_vectors: ClassVar[bool] = True
    single_output: ClassVar[bool] = True
    reads_cosine_only: ClassVar[bool] = True

    @property
    def boundary(self) -> float | None:
        return 0.0 - self.offset / self.scale  # 0.0 and not -0.0 where the offset is 0

    def advice_for(self, boundary: float) -> str:
        return f"Set its offset to {-self.scale * boundary:g}."

    def build(self, dim: int, outputs: int, middle: float = 0.0) -> nn.Module:
        assert dim % 2 == 0, f"cosine takes [u; v], an even number of features, not {dim}"
        assert outputs == 1, f"cosine gives one output, not {outputs}"
        return ScaledCosine(self.scale, self.offset)


Head = Annotated[Linear | Mlp | Halving | Sbert | SbertCosine | Hadamard | Cosine, Field(discriminator="kind"), BARE_NAME]
