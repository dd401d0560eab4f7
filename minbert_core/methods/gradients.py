"""Gradient methods: how the tasks' gradients of the shared parameters become one.

Flow: one backward pass a task -> Gramians gramian_GTT -> weights_GT -> merged gradient of group g = sum over t of
weights[g, t] * g_t -> clip -> step.  Heads take their own gradient and are in no group.
Legend: G parameter groups (embeddings, each layer, pooler), T tasks that gave this step a batch; gramian[g, i, j] = <g_i, g_j>
within group g.

A method never sees a gradient: each projection of it is a linear combination of the originals, so its coefficients and the
Gramian hold all that is needed. Orders are drawn outside, from the trial's own generator. Nothing here makes the host wait.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from minbert_core.settings import BARE_NAME, Variant

COSINE_LIMIT = 1 - 1e-6  # of a cosine and of its target: at 1 the closed form of GradVac divides by zero


def random_orders(num_tasks: int, generator: np.random.Generator) -> Tensor:
    """For each task the other tasks in a random order of its own, int64, shape (T, T - 1), on the CPU."""
    rows = [generator.permutation([j for j in range(num_tasks) if j != i]) for i in range(num_tasks)]
    return torch.as_tensor(np.array(rows, dtype=np.int64).reshape(num_tasks, num_tasks - 1))


@torch.no_grad()
def pcgrad_weights(gramian_TT: Tensor, orders: Tensor) -> Tensor:
    """Weights (T,) of the sum of all g_i^PC: Algorithm 1 of Yu et al. 2020, on the coefficients of the original gradients.

    orders[i] holds the other tasks, in the order in which g_i is projected. Computed in float64.
    """
    gram_TT = gramian_TT.double()
    coefficients_TT = torch.eye(len(gram_TT), dtype=torch.float64, device=gram_TT.device)  # row i: g_i^PC in the originals
    for i, order in enumerate(orders.tolist()):
        for j in order:
            inner = coefficients_TT[i] @ gram_TT[:, j]  # <g_i^PC, g_j>, g_j the original
            square = gram_TT[j, j]
            conflict = (inner < 0) & (square > 0)
            coefficients_TT[i, j] -= torch.where(conflict, inner / torch.where(conflict, square, 1), 0)
    return coefficients_TT.sum(dim=0).to(gramian_TT.dtype)


@torch.no_grad()
def gradvac_weights(
    gramian_GTT: Tensor, tasks: tuple[str, ...], orders: Tensor, targets: dict[str, Tensor], beta: float
) -> Tensor:
    """Weights (G, T) of the sum of all corrected gradients, each group by itself: Algorithm 1 of Wang et al. 2021.

    `targets["a>b"]`, shape (G,), float64, is the EMA target of the cosine between a's gradient as corrected so far and b's
    original one; it starts at 0, moves at every step towards the cosine found before the correction, whether or not there
    is one, and is written back into `targets`. The pair is left alone in a group where either gradient is zero: its cosine
    would be 0/0, and the target NaN for ever.
    """
    gram_GTT = gramian_GTT.double()
    square_GT = gram_GTT.diagonal(dim1=1, dim2=2)
    total_GT = torch.zeros_like(square_GT)
    for i, order in enumerate(orders.tolist()):
        coefficients_GT = torch.zeros_like(square_GT)  # g'_i in the originals
        coefficients_GT[:, i] = 1
        for j in order:
            key = f"{tasks[i]}>{tasks[j]}"
            target_G = targets[key].to(gram_GTT) if key in targets else gram_GTT.new_zeros(len(gram_GTT))
            inner_GT = (coefficients_GT[:, None, :] @ gram_GTT)[:, 0, :]  # <g'_i, g_k> for each original k
            square_i_G = (inner_GT * coefficients_GT).sum(dim=1)
            square_j_G = square_GT[:, j]
            # below this the square of g'_i is rounding error of the Gramian: the projections have taken all of g_i away
            noise_G = torch.finfo(gramian_GTT.dtype).eps * (coefficients_GT.square() * square_GT).sum(dim=1)
            exists_G = (square_i_G > noise_G) & (square_j_G > 0)
            norm_i_G = torch.where(exists_G, square_i_G, 1).sqrt()
            norm_j_G = torch.where(exists_G, square_j_G, 1).sqrt()
            cosine_G = (inner_GT[:, j] / (norm_i_G * norm_j_G)).clamp(-COSINE_LIMIT, COSINE_LIMIT)
            correction_G = gradvac_correction(cosine_G, target_G) * norm_i_G / norm_j_G
            coefficients_GT[:, j] += torch.where(exists_G & (cosine_G < target_G), correction_G, 0)
            targets[key] = torch.where(exists_G, (1 - beta) * target_G + beta * cosine_G, target_G)
        total_GT += coefficients_GT
    return total_GT.to(gramian_GTT.dtype)


def gradvac_correction(cosine: Tensor, target: Tensor) -> Tensor:
    """How much of g_j, in units of |g_i| / |g_j|, turns g_i from `cosine` to `target` (Wang et al. 2021, eq. 3).

    g_i + w g_j stands at the angle t to g_j where w |g_j| / |g_i| = sin(angle - t) / sin(t): the law of sines.
    """
    sine, sine_target = (1 - cosine.square()).sqrt(), (1 - target.square()).sqrt()
    return (target * sine - cosine * sine_target) / sine_target


class Sum(Variant):
    """The plain sum of the tasks' gradients: joint training (Caruana 1997)."""

    kind: Literal["sum"] = "sum"
    needs_several_tasks: ClassVar[bool] = False

    def weights(self, gramian_GTT: Tensor, tasks: tuple[str, ...], orders: Tensor, state: dict[str, Tensor]) -> Tensor:
        return torch.ones_like(gramian_GTT[:, 0, :])


class PCGrad(Variant):
    """Projecting Conflicting Gradients (Yu et al. 2020, arXiv 2001.06782), Algorithm 1.

    A gradient that points against another task's original one loses that component; then all are summed. As in the paper,
    one projection over the whole shared vector, not one a layer.
    """

    kind: Literal["pcgrad"] = "pcgrad"
    needs_several_tasks: ClassVar[bool] = True

    def weights(self, gramian_GTT: Tensor, tasks: tuple[str, ...], orders: Tensor, state: dict[str, Tensor]) -> Tensor:
        return pcgrad_weights(gramian_GTT.sum(dim=0), orders).expand(len(gramian_GTT), -1)


class GradVac(Variant):
    """Gradient Vaccine (Wang et al. 2021, arXiv 2010.05874), Algorithm 1.

    Where the cosine of two tasks' gradients falls below its running mean, one is turned towards the other until it is met.
    State: a target for each ordered pair of tasks and each group; kept while a task is absent.
    """

    kind: Literal["gradvac"] = "gradvac"
    beta: float = Field(
        0.01,
        ge=0,
        le=1,
        json_schema_extra={"unit": "a step"},
        description="EMA rate of the cosine targets; 0 keeps them at 0: PCGrad",
    )
    per: Literal["layer", "model"] = Field(
        "layer",
        description="what is corrected by itself: each parameter group (the paper's choice), or the whole shared vector",
    )
    needs_several_tasks: ClassVar[bool] = True

    def weights(self, gramian_GTT: Tensor, tasks: tuple[str, ...], orders: Tensor, state: dict[str, Tensor]) -> Tensor:
        parts = gramian_GTT if self.per == "layer" else gramian_GTT.sum(dim=0, keepdim=True)
        return gradvac_weights(parts, tasks, orders, state, self.beta).expand(len(gramian_GTT), -1)


GradientMethod = Annotated[Sum | PCGrad | GradVac, Field(discriminator="kind"), BARE_NAME]
