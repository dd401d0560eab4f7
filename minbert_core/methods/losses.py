"""Losses of a task, and the divergence between two predictions of it, which smoothness regularisers use.

Flow: logits_BK and labels_B -> loss -> one backward pass a task.
Legend: B examples of the batch, K outputs (classes, or 1).

Every loss is the mean over the batch, a float32 scalar. A divergence acts on what the task's metric reads: the softmax of
classes, the sigmoid of a single logit (whose softmax is always 1), the logit itself in label units for regression.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from minbert_core.data.tasks import TaskKind
from minbert_core.settings import BARE_NAME, Variant

PEARSON_EPS = 1e-6  # keeps r and its gradient finite where all predictions are equal; no source, far below real variances


def single_logit(logits_BK: Tensor) -> Tensor:
    """The only logit of each example, shape (B,), float32.  A (B, 1) against labels (B,) would broadcast to (B, B)."""
    assert logits_BK.shape[1:] == (1,), f"one logit an example expected, got {tuple(logits_BK.shape)}"
    return logits_BK[:, 0].float()


def pearson_loss(predictions_B: Tensor, labels_B: Tensor) -> Tensor:
    """1 - r over the batch, r being Pearson's correlation; a scalar in [0, 2].

    r does not exist for one example, or where all labels are equal: such a batch teaches nothing, its loss is 0 and so is
    its gradient. Equal predictions give r = 0. Source: Liu & Maniku 2023.
    """
    x_B = predictions_B - predictions_B.mean()
    y_B = labels_B - labels_B.mean()
    r = (x_B * y_B).sum() / (x_B.square().sum() * y_B.square().sum() + PEARSON_EPS).sqrt()
    exists = labels_B.amax() > labels_B.amin()  # not y_B == 0: the mean of equal numbers may be a rounding error off
    return torch.where(exists, 1 - r, torch.zeros_like(r))


def class_divergence(logits_p_BK: Tensor, logits_q_BK: Tensor) -> Tensor:
    """KL(P||Q) + KL(Q||P) of two softmaxes, mean over the batch: sum over k of (p - q)(log p - log q)."""
    log_p_BK, log_q_BK = logits_p_BK.float().log_softmax(dim=1), logits_q_BK.float().log_softmax(dim=1)
    return ((log_p_BK.exp() - log_q_BK.exp()) * (log_p_BK - log_q_BK)).sum(dim=1).mean()


def bernoulli_divergence(logits_p_B1: Tensor, logits_q_B1: Tensor) -> Tensor:
    """KL(P||Q) + KL(Q||P) of two Bernoullis given by their logits, mean over the batch.

    With p = sigmoid(a) and q = sigmoid(b) it is (p - q)(a - b): the two log-normalisers cancel, nothing can overflow.
    """
    a_B, b_B = single_logit(logits_p_B1), single_logit(logits_q_B1)
    return ((a_B.sigmoid() - b_B.sigmoid()) * (a_B - b_B)).mean()


def squared_divergence(predictions_p_B1: Tensor, predictions_q_B1: Tensor) -> Tensor:
    """(p - q)², in squared label units, mean over the batch."""
    return (single_logit(predictions_p_B1) - single_logit(predictions_q_B1)).square().mean()


def divergence(kind: TaskKind) -> Callable[[Tensor, Tensor], Tensor]:
    """l_s of SMART (Jiang et al. 2020, arXiv 1911.03437, section 3.1) for a kind of task: symmetric, 0 where both agree."""
    known: dict[TaskKind, Callable[[Tensor, Tensor], Tensor]] = {
        "classification": class_divergence,
        "binary": bernoulli_divergence,
        "regression": squared_divergence,
    }
    return known[kind]


class CrossEntropy(Variant):
    """Cross-entropy of the softmax: the negative log-likelihood of the label's class."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    fits: ClassVar[tuple[TaskKind, ...]] = ("classification",)

    def __call__(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        return functional.cross_entropy(logits_BK.float(), labels_B.long())


class Bce(Variant):
    """Binary cross-entropy of the sigmoid of a single logit, computed from the logit."""

    kind: Literal["bce"] = "bce"
    fits: ClassVar[tuple[TaskKind, ...]] = ("binary",)

    def __call__(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(single_logit(logits_BK), labels_B.float())


class Mse(Variant):
    """Mean squared error between the logit and the label, in squared label units."""

    kind: Literal["mse"] = "mse"
    fits: ClassVar[tuple[TaskKind, ...]] = ("regression",)

    def __call__(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        return functional.mse_loss(single_logit(logits_BK), labels_B.float())


class Pearson(Variant):
    """1 - r over the batch (Liu & Maniku 2023).  Predictions get no scale of their own; a batch should hold 16 or more."""

    kind: Literal["pearson"] = "pearson"
    fits: ClassVar[tuple[TaskKind, ...]] = ("regression",)

    def __call__(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        return pearson_loss(single_logit(logits_BK), labels_B.float())


Loss = Annotated[CrossEntropy | Bce | Mse | Pearson, Field(discriminator="kind"), BARE_NAME]


def default_loss(kind: TaskKind) -> CrossEntropy | Bce | Mse:
    """The loss of a task for which none is set."""
    known: dict[TaskKind, CrossEntropy | Bce | Mse] = {"classification": CrossEntropy(), "binary": Bce(), "regression": Mse()}
    return known[kind]
