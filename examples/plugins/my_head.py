"""A head of your own, as a plugin: write `plugins: [my_head.py]` and `tasks: {all: {head: sharp_gated}}` into a config.

python -m search.space --check examples/plugins/my_head.py      checks it on the toy corpus, in seconds
"""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from minbert_core.encoder import make_linear
from minbert_core.methods.heads import Drop, Dropout, HeadVariant


class SharpGatedLayer(nn.Module):
    """W (x * sigmoid(s (V x + c))) + b, shape (B, K): each feature passes a gate that depends on all features."""

    def __init__(self, dim: int, outputs: int, dropout: float, sharpness: float, start: float) -> None:
        super().__init__()
        self.dropout, self.sharpness = dropout, sharpness
        self.gate, self.last = make_linear(dim, dim), make_linear(dim, outputs)
        nn.init.constant_(self.last.bias, start)

    def forward(self, features_BF: Tensor, drop: Drop) -> Tensor:
        gates_BF = (self.sharpness * self.gate(features_BF)).sigmoid()
        logits_BK: Tensor = self.last(drop(features_BF * gates_BF, self.dropout))
        return logits_BK


class SharpGated(HeadVariant):
    """A linear layer over gated features, x * sigmoid(V x + c): after Dauphin et al. 2017 (arXiv 1612.08083, eq. 1)."""

    kind: Literal["sharp_gated"] = "sharp_gated"
    sharpness: float = Field(1.0, gt=0, description="factor of the gates' argument, without unit; near 0 all are half open")
    dropout: Dropout = 0.1

    def build(self, dim: int, outputs: int, middle: float = 0.0) -> nn.Module:
        return SharpGatedLayer(dim, outputs, self.dropout, self.sharpness, middle)
