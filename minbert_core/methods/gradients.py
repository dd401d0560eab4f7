"""Gradient methods: merge the tasks' gradients of the shared parameters into one.

Flow: one backward pass per task -> Gramians gramian_GTT -> weights_GT -> merged gradient of group g = sum over t of
weights[g, t] * g_t -> clip -> step.  Heads keep their own gradient and are in no group.
Legend: G parameter groups (embeddings, each layer, pooler, shared_layer), T tasks that gave this step a batch;
gramian[g, i, j] = <g_i, g_j> within group g.  The tasks of a method are parties: tasks whose gradients are summed before it
sees them, mostly one each.

A method never sees a gradient. Each projection is a linear combination of the original gradients, so the coefficients and the
Gramian are enough. Orders are drawn outside, from the trial's generator. Gramians are on the CPU, in float64: step.py copies
them there; so are orders, states and weights.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from minbert_core.settings.models import BARE_NAME, Variant

COSINE_LIMIT = 1 - 1e-6  # of a cosine and its target: at 1, GradVac's closed form divides by zero
NOISE = torch.finfo(torch.float32).eps  # upper bound of a Gramian's rounding error, relative to squared norms
TINY = 1e-30  # least squared norm, where gradients have about 1: keeps the slope finite at a mixture of zero
TORCHJD = ("torchjd", "qpsolvers", "quadprog")  # packages
AGGREGATORS = {
    "upgrad": "UPGradWeighting",
    "dualproj": "DualProjWeighting",
    "mgda": "MGDAWeighting",
    "imtl_g": "IMTLGWeighting",
    "aligned_mtl": "AlignedMTLWeighting",
}
Groups = Annotated[
    tuple[Annotated[tuple[str, ...], Field(min_length=1)], ...],
    Field(description="lists of tasks whose gradients are summed before the method sees them; any other task is its own group"),
]


def random_orders(num_tasks: int, generator: np.random.Generator) -> Tensor:
    """Draw a random order of the other tasks for each task, int64, shape (T, T - 1), on the CPU."""
    rows = [generator.permutation([j for j in range(num_tasks) if j != i]) for i in range(num_tasks)]
    return torch.as_tensor(np.array(rows, dtype=np.int64).reshape(num_tasks, num_tasks - 1))


def parties_of(tasks: tuple[str, ...], groups: tuple[tuple[str, ...], ...]) -> dict[str, tuple[str, ...]]:
    """Map each party (a task or a group of tasks) to its members in this step, in the order of their first ones.

    A group is named after all its tasks, `sst+para`, even in a step that lacks some, so that a method's state of it stays
    valid.
    """
    names = {task: "+".join(group) for group in groups for task in group}
    parties: dict[str, tuple[str, ...]] = {}
    for task in tasks:
        name = names.get(task, task)
        parties[name] = (*parties.get(name, ()), task)
    return parties


def merging_weights(
    method: GradientMethod,
    gramian_GTT: Tensor,
    tasks: tuple[str, ...],
    generator: np.random.Generator,
    state: dict[str, Tensor],
) -> Tensor:
    """Return a method's weights of the tasks, (G, T); each task gets its party's.

    The sums of the parties' gradients have the Gramian S G S^T, where S (P, T) is 1 for the members of a party and 0 elsewhere.
    """
    parties = parties_of(tasks, method.groups)
    members_PT = gramian_GTT.new_tensor([[task in party for task in tasks] for party in parties.values()])
    orders = random_orders(len(parties), generator)
    weights_GP = method.weights(members_PT @ gramian_GTT @ members_PT.T, tuple(parties), orders, state)
    return weights_GP @ members_PT


@torch.no_grad()
def pcgrad_weights(gramian_TT: Tensor, orders: Tensor) -> Tensor:
    """Return the weights (T,) of the sum of all g_i^PC: Algorithm 1 of Yu et al. 2020, on coefficients of the originals.

    orders[i] lists the other tasks in the order in which g_i is projected.
    """
    coefficients_TT = torch.eye(len(gramian_TT), dtype=torch.float64)  # row i: g_i^PC in the originals
    for i, order in enumerate(orders.tolist()):
        for j in order:
            inner = coefficients_TT[i] @ gramian_TT[:, j]  # <g_i^PC, g_j>, g_j the original
            if inner < 0 and gramian_TT[j, j] > 0:
                coefficients_TT[i, j] -= inner / gramian_TT[j, j]
    return coefficients_TT.sum(dim=0)


@torch.no_grad()
def gradvac_weights(
    gramian_GTT: Tensor, tasks: tuple[str, ...], orders: Tensor, targets: dict[str, Tensor], beta: float
) -> Tensor:
    """Return the weights (G, T) of the sum of all corrected gradients, per group: Algorithm 1 of Wang et al. 2021.

    `targets["a>b"]`, shape (G,), float64, is the EMA target of the cosine between a's gradient as corrected so far and b's
    original one. It starts at 0. At every step it moves towards the cosine before the correction, whether or not there is a
    correction, and is written back into `targets`. A pair is skipped in a group where either gradient is zero: its cosine
    would be 0/0, and the target NaN for the rest of the run.
    """
    square_GT = gramian_GTT.diagonal(dim1=1, dim2=2)
    total_GT = torch.zeros_like(square_GT)
    for i, order in enumerate(orders.tolist()):
        coefficients_GT = torch.zeros_like(square_GT)  # g'_i in the originals
        coefficients_GT[:, i] = 1
        for j in order:
            key = f"{tasks[i]}>{tasks[j]}"
            target_G = targets.get(key, torch.zeros_like(square_GT[:, 0]))
            inner_GT = (coefficients_GT[:, None, :] @ gramian_GTT)[:, 0, :]  # <g'_i, g_k> for each original k
            square_i_G = (inner_GT * coefficients_GT).sum(dim=1)
            square_j_G = square_GT[:, j]
            # below this the square of g'_i is only rounding error of the Gramian: the projections have removed all of g_i
            noise_G = NOISE * (coefficients_GT.square() * square_GT).sum(dim=1)
            exists_G = (square_i_G > noise_G) & (square_j_G > 0)
            norm_i_G = torch.where(exists_G, square_i_G, 1).sqrt()
            norm_j_G = torch.where(exists_G, square_j_G, 1).sqrt()
            cosine_G = (inner_GT[:, j] / (norm_i_G * norm_j_G)).clamp(-COSINE_LIMIT, COSINE_LIMIT)
            correction_G = gradvac_correction(cosine_G, target_G) * norm_i_G / norm_j_G
            coefficients_GT[:, j] += torch.where(exists_G & (cosine_G < target_G), correction_G, 0)
            targets[key] = torch.where(exists_G, (1 - beta) * target_G + beta * cosine_G, target_G)
        total_GT += coefficients_GT
    return total_GT


def gradvac_correction(cosine: Tensor, target: Tensor) -> Tensor:
    """Return how much of g_j, in units of |g_i| / |g_j|, turns g_i from `cosine` to `target` (Wang et al. 2021, eq. 3).

    By the law of sines, g_i + w g_j has the angle t to g_j if w |g_j| / |g_i| = sin(angle - t) / sin(t).
    """
    sine, sine_target = (1 - cosine.square()).sqrt(), (1 - target.square()).sqrt()
    return (target * sine - cosine * sine_target) / sine_target


@torch.no_grad()
def cagrad_weights(gramian_TT: Tensor, c: float) -> Tensor:
    """Return the weights (T,) of sum + c |sum| g_w / |g_w|, where w in the simplex minimises <g_w, g_0> + c |g_0| |g_w|.

    g_w is the sum of w_i g_i, g_0 the mean: Algorithm 1 of Liu et al. 2021 by its dual, T times as long. Zero gradients are
    excluded: one would be the minimum at once, and nothing would be added. The result is the plain sum if only one gradient is
    left, or if g_w is zero: then the tasks balance each other, and no direction serves all.
    """
    reaching = gramian_TT.diagonal() > 0
    weights_T = torch.ones_like(gramian_TT[0])
    if c > 0 and int(reaching.sum()) > 1:
        gram_RR = (gramian_TT / gramian_TT.diagonal().sum())[reaching][:, reaching]
        w_R = worst_mixture(gram_RR, c)
        square_sum, square_w = gram_RR.sum().clamp(min=0), w_R @ gram_RR @ w_R
        if square_w > NOISE * (w_R.square() @ gram_RR.diagonal()):  # otherwise it is only rounding error
            weights_T[reaching] += c * (square_sum / square_w).sqrt() * w_R
    return weights_T


def worst_mixture(gram_TT: Tensor, c: float) -> Tensor:
    """Return the w (T,) in the simplex that minimises <g_w, g_0> + c |g_0| |g_w|, convex in w; by SLSQP, from the middle."""
    from scipy import optimize  # a third of a second, and only this method needs it

    gram, num_tasks = gram_TT.numpy(), len(gram_TT)
    inner = gram.mean(axis=1)  # <g_i, g_0>
    radius = c * math.sqrt(max(float(inner.mean()), 0.0))  # c |g_0|

    def value_and_slope(w: np.ndarray) -> tuple[float, np.ndarray]:
        slope = gram @ w
        norm = math.sqrt(max(float(w @ slope), TINY))
        return float(inner @ w) + radius * norm, inner + radius * slope / norm

    found = optimize.minimize(
        value_and_slope,
        np.full(num_tasks, 1 / num_tasks),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * num_tasks,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones_like(w)},
        options={"ftol": 1e-15, "maxiter": 200},
    )
    w = np.clip(found.x, 0, None)
    return torch.from_numpy(w / w.sum())


def torchjd_weights(gramian_TT: Tensor, aggregator: str) -> Tensor:
    """Return the weights (T,) of a TorchJD aggregator, T times as large where it averages.

    The Gramian is divided by its trace, since TorchJD takes small ones for zero. If no gradient is left: the sum.
    """
    from torchjd import aggregation

    trace = gramian_TT.diagonal().sum()
    if not trace > 0:
        return torch.ones_like(gramian_TT[0])
    found: Tensor = getattr(aggregation, AGGREGATORS[aggregator])()(gramian_TT / trace)
    return len(gramian_TT) * found


class GradientVariant(Variant):
    """The defaults of a gradient method; a variant declares only what differs, its `groups`, and `weights` -> (G, T).

    `weights(gramian_GTT, tasks, orders, state)` gets parties for tasks, an order per party, and what it has put into `state`.
    """

    needs_several_tasks: ClassVar[bool] = True  # with one task per step there is nothing to merge


class Sum(GradientVariant):
    """The plain sum of the tasks' gradients: joint training (Caruana 1997)."""

    kind: Literal["sum"] = "sum"
    groups: ClassVar[tuple[tuple[str, ...], ...]] = ()
    needs_several_tasks: ClassVar[bool] = False

    def weights(self, gramian_GTT: Tensor, tasks: tuple[str, ...], orders: Tensor, state: dict[str, Tensor]) -> Tensor:
        return torch.ones_like(gramian_GTT[:, 0, :])


class PCGrad(GradientVariant):
    """Projecting Conflicting Gradients (Yu et al. 2020, arXiv 2001.06782), Algorithm 1.

    A gradient that conflicts with another task's original one loses that component; then all are summed. As in the paper, there
    is one projection over the whole shared vector, not one per layer. With `groups: [[sst, para, sts]]` and a fourth task it is
    the surgery of a sum against an auxiliary loss (Li & Tang 2023).
    """

    kind: Literal["pcgrad"] = "pcgrad"
    groups: Groups = ()

    def weights(self, gramian_GTT: Tensor, tasks: tuple[str, ...], orders: Tensor, state: dict[str, Tensor]) -> Tensor:
        return pcgrad_weights(gramian_GTT.sum(dim=0), orders).expand(len(gramian_GTT), -1)


class GradVac(GradientVariant):
    """Gradient Vaccine (Wang et al. 2021, arXiv 2010.05874), Algorithm 1.

    If the cosine of two tasks' gradients is below its running mean, one is turned towards the other until they meet the mean.
    State: a target for each ordered pair of parties and each parameter group, kept while a task is absent.
    """

    kind: Literal["gradvac"] = "gradvac"
    beta: float = Field(
        0.01,
        ge=0,
        le=1,
        json_schema_extra={"unit": "per step"},
        description="EMA rate of the cosine targets; 0 keeps them at 0: PCGrad",
    )
    per: Literal["layer", "model"] = Field(
        "layer",
        description="correct each parameter group separately (the paper's choice), or the whole shared vector",
    )
    groups: Groups = ()

    def weights(self, gramian_GTT: Tensor, tasks: tuple[str, ...], orders: Tensor, state: dict[str, Tensor]) -> Tensor:
        parts = gramian_GTT if self.per == "layer" else gramian_GTT.sum(dim=0, keepdim=True)
        return gradvac_weights(parts, tasks, orders, state, self.beta).expand(len(gramian_GTT), -1)


class CAGrad(GradientVariant):
    """Conflict-averse gradient descent (Liu et al. 2021, arXiv 2110.14048), Algorithm 1.

    Among the directions within c |g_0| of the mean gradient g_0, it takes the one whose least improvement of a task's loss is
    largest. Departure: the result is T times the paper's, so that c = 0 is the sum and not the mean; the released code rescales
    by 1 / (1 + c^2) instead. As in the paper, there is one direction for the whole shared vector, not one per layer.
    """

    kind: Literal["cagrad"] = "cagrad"
    c: float = Field(
        0.5,
        ge=0,
        lt=1,
        json_schema_extra={"unit": "of the mean gradient's norm"},
        description="radius of the ball around the mean gradient; 0 is the plain sum; below 1 it ends where the sum does",
    )
    groups: Groups = ()

    def weights(self, gramian_GTT: Tensor, tasks: tuple[str, ...], orders: Tensor, state: dict[str, Tensor]) -> Tensor:
        return cagrad_weights(gramian_GTT.sum(dim=0), self.c).expand(len(gramian_GTT), -1)


class TorchJD(GradientVariant):
    """An aggregator of the library TorchJD (Quinton & Rey 2024, arXiv 2406.16232), which is an extra: `torchjd`.

    It gets the Gramian of the whole shared vector and gives the tasks' weights. UPGrad, the paper's own, projects each gradient
    onto the directions that harm no task, and adds up the projections. Departure: T times the library's, which averages, so
    that tasks without a conflict are summed, as by the other methods.
    """

    kind: Literal["torchjd"] = "torchjd"
    aggregator: Literal["upgrad", "dualproj", "mgda", "imtl_g", "aligned_mtl"] = Field(
        "upgrad", description="UPGrad, DualProj, MGDA, IMTL-G or Aligned-MTL"
    )
    groups: Groups = ()

    @model_validator(mode="after")
    def _is_installed(self) -> TorchJD:
        if absent := [name for name in TORCHJD if find_spec(name) is None]:
            raise ValueError(f"'torchjd' needs {' and '.join(absent)}: pip install -e '.[torchjd]' -c constraints.txt")
        return self

    def weights(self, gramian_GTT: Tensor, tasks: tuple[str, ...], orders: Tensor, state: dict[str, Tensor]) -> Tensor:
        return torchjd_weights(gramian_GTT.sum(dim=0), self.aggregator).expand(len(gramian_GTT), -1)


GradientMethod = Annotated[Sum | PCGrad | GradVac | CAGrad | TorchJD, Field(discriminator="kind"), BARE_NAME]
