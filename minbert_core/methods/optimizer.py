"""The optimiser: AdamW's parameter groups, and the learning rate as a pure function of a stage's progress.

Flow: merged gradient -> clip (global norm, heads included) -> rate of each group = base_lr * linear_schedule(...) -> AdamW.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from pydantic import Field, field_validator
from torch import nn

from minbert_core.settings import Settings

NamedParameters = Iterable[tuple[str, nn.Parameter]]


def linear_schedule(progress: float, warmup: float) -> float:
    """The learning rate's factor in [0, 1] at a progress in [0, 1]: up linearly until `warmup`, then down linearly to 0 at 1.

    Source: Devlin et al. 2019 (arXiv 1810.04805), appendix A.2.
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        return progress / warmup
    return (1 - progress) / (1 - warmup) if warmup < 1 else 1.0


class Optimizer(Settings):
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) with linear warm-up and decay, as BERT is fine-tuned."""

    lr: float = Field(2e-5, gt=0, le=1, description="peak learning rate of the encoder, a step")
    head_lr_factor: float = Field(
        1.0, gt=0, description="the heads' learning rate as a multiple of the encoder's, without unit"
    )
    warmup: float = Field(0.1, ge=0, le=1, description="share of the stage's steps, in [0, 1], in which the rate rises from 0")
    weight_decay: float = Field(
        0.01, ge=0, description="decoupled weight decay, a step and unit of rate; none on biases, LayerNorm and scalars"
    )
    clip: float | None = Field(
        1.0, gt=0, description="largest global norm of the gradient, heads included, in gradient units; null turns clipping off"
    )

    @field_validator("warmup", mode="before")
    @classmethod
    def _is_a_share(cls, value: object) -> object:
        if isinstance(value, int | float) and not 0 <= value <= 1:
            raise ValueError(f"must be in [0, 1]. Got {value!r}. It is a share of the steps, not a count.")
        return value

    def build(self, encoder_named_parameters: NamedParameters, head_named_parameters: NamedParameters) -> torch.optim.AdamW:
        """AdamW with four groups: encoder and heads, each with and without weight decay; a group may be empty.

        Parameters that need no gradient are left out. Each group carries `base_lr`, the rate at the schedule's peak, and
        starts there. Matrices decay; vectors (biases, LayerNorm, a cosine head's scalars) do not.
        """
        groups = []
        for named, lr in ((encoder_named_parameters, self.lr), (head_named_parameters, self.lr * self.head_lr_factor)):
            trained = [parameter for _, parameter in named if parameter.requires_grad]
            matrices = [parameter for parameter in trained if parameter.dim() >= 2]
            vectors = [parameter for parameter in trained if parameter.dim() < 2]
            groups.append({"params": matrices, "lr": lr, "base_lr": lr, "weight_decay": self.weight_decay})
            groups.append({"params": vectors, "lr": lr, "base_lr": lr, "weight_decay": 0.0})
        return torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, fused=True)
