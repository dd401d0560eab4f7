"""Losses of a task, and the divergence between two of its predictions, which smoothness regularisers use.

Flow: values and labels_B -> loss -> one backward pass per task;  logits_BK -> readout -> metric, divergence.
Legend: B examples of the batch, D hidden size, F features, K outputs of the head (classes, or 1).

Every loss is a float32 scalar of the batch. `LossVariant` states what a loss declares.

A divergence acts on the readout: the softmax of classes, the sigmoid of a single logit (whose softmax is always 1), the number
itself for regression. Predictions are in label units, whatever the unit of the error is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from minbert_core.data.tasks import TaskKind
from minbert_core.settings.models import BARE_NAME, Variant

LabelRange = tuple[float, float]  # lowest and highest label of a task, both possible

ErrorScale = Annotated[
    Literal["range", "label"],
    Field(
        description="unit of an error: `range`, half of the label range, so that a squared error weighs as much as a "
        "cross-entropy; `label`, one label unit, as in the papers (6.25 times the loss for labels 0 to 5)"
    ),
]

FEWEST_FOR_R = 3  # examples: any two points are on a line, so their r is 1 or -1, and its gradient 0
LEAST_DEVIATION = 0.01  # of predictions, relative to that of labels; new heads over MiniLM have .02 to .9 (STS, 32 pairs)


def single_logit(logits_BK: Tensor) -> Tensor:
    """Return the only logit of each example, (B,), float32.  A (B, 1) against labels (B,) would broadcast to (B, B)."""
    assert logits_BK.shape[1:] == (1,), f"one logit per example expected, got {tuple(logits_BK.shape)}"
    return logits_BK[:, 0].float()


def pearson_loss(predictions_B: Tensor, labels_B: Tensor) -> Tensor:
    """Compute 1 - r over the batch, where r is Pearson's correlation; a scalar in [0, 2].

    r does not exist for one example, or if all labels are equal: such a batch teaches nothing, so its loss and gradient are 0.
    Of two examples r is 1 or -1, without a gradient: a batch needs FEWEST_FOR_R.
    Source: Liu & Maniku 2023. Departure: the predictions' deviation counts as at least a hundredth of the labels', below which
    r falls in proportion, to 0 at equal predictions. The gradient of a correlation is that of a direction, 1 / deviation: here
    its norm is at most 100 / |labels - mean|, in any unit.
    """
    x_B = predictions_B - predictions_B.mean()
    y_B = labels_B - labels_B.mean()
    exists = labels_B.amax() > labels_B.amin()  # not y_B == 0: the mean of equal numbers may be a rounding error off
    square_y = torch.where(exists, y_B.square().sum(), 1)
    square_x = torch.maximum(x_B.square().sum(), LEAST_DEVIATION**2 * square_y)
    r = (x_B * y_B).sum() / (square_x.sqrt() * square_y.sqrt())
    return torch.where(exists, 1 - r, 0)


def mse_loss(predictions_B: Tensor, labels_B: Tensor, unit: float) -> Tensor:
    """Compute the mean squared error in squared `unit`s; the unit is in label units. A scalar."""
    return functional.mse_loss(predictions_B, labels_B) / unit**2


def unit_of(scale: str, label_range: LabelRange) -> float:
    """Return the unit of an error, in label units; for `range`, half the range, so all labels are within 1 of the middle."""
    low, high = label_range
    return (high - low) / 2 if scale == "range" else 1.0


def cosine_embedding_loss(features_BF: Tensor, are_alike_B: Tensor, margin: float) -> Tensor:
    """Compute the mean of 1 - cos(u, v) for pairs that are alike and max(0, cos(u, v) - margin) for others; in [0, 2].

    features_BF is [u; v], are_alike_B boolean. Source: PyTorch, CosineEmbeddingLoss.
    """
    u_BD, v_BD = features_BF.float().chunk(2, dim=1)
    return functional.cosine_embedding_loss(u_BD, v_BD, 2.0 * are_alike_B - 1, margin=margin)


def class_values(classes: int, label_range: LabelRange, device: torch.device) -> Tensor:
    """Return the labels that classes 0, 1, ... stand for, equally spaced from lowest to highest, shape (classes,)."""
    return torch.linspace(*label_range, classes, device=device)


def nearest_classes(labels_B: Tensor, classes: int, label_range: LabelRange) -> Tensor:
    """Return the class whose value is nearest to each label, (B,), int64; halfway between two, the even one."""
    low, high = label_range
    return ((labels_B.float() - low) * ((classes - 1) / (high - low))).round().long()


def expected_labels(logits_BK: Tensor, label_range: LabelRange) -> Tensor:
    """Compute the mean of the K classes' values under the softmax, shape (B, 1), float32, within the label range."""
    values_K = class_values(logits_BK.shape[1], label_range, logits_BK.device)
    return logits_BK.float().softmax(dim=1) @ values_K[:, None]


def class_divergence(logits_p_BK: Tensor, logits_q_BK: Tensor) -> Tensor:
    """Compute KL(P||Q) + KL(Q||P) of two softmaxes, the batch mean of the sum over k of (p - q)(log p - log q)."""
    log_p_BK, log_q_BK = logits_p_BK.float().log_softmax(dim=1), logits_q_BK.float().log_softmax(dim=1)
    return ((log_p_BK.exp() - log_q_BK.exp()) * (log_p_BK - log_q_BK)).sum(dim=1).mean()


def bernoulli_divergence(logits_p_B1: Tensor, logits_q_B1: Tensor) -> Tensor:
    """Compute KL(P||Q) + KL(Q||P) of two Bernoullis given by their logits, mean over the batch.

    With p = sigmoid(a) and q = sigmoid(b) it is (p - q)(a - b): the two log-normalisers cancel, nothing can overflow.
    """
    a_B, b_B = single_logit(logits_p_B1), single_logit(logits_q_B1)
    return ((a_B.sigmoid() - b_B.sigmoid()) * (a_B - b_B)).mean()


def squared_divergence(predictions_p_B1: Tensor, predictions_q_B1: Tensor, unit: float) -> Tensor:
    """Compute (p - q)² in squared `unit`s, mean over the batch."""
    return mse_loss(single_logit(predictions_p_B1), single_logit(predictions_q_B1), unit)


def divergence(kind: TaskKind, unit: float = 1.0) -> Callable[[Tensor, Tensor], Tensor]:
    """Return l_s of SMART (Jiang et al. 2020, arXiv 1911.03437, section 3.1) for a kind of task: symmetric, 0 if both agree.

    unit: for a regression, the `error_unit` of its loss, so that penalty and loss keep their ratio at either scale.
    """
    known: dict[TaskKind, Callable[[Tensor, Tensor], Tensor]] = {
        "classification": class_divergence,
        "binary": bernoulli_divergence,
        "regression": partial(squared_divergence, unit=unit),
    }
    return known[kind]


class LossVariant(Variant):
    """The defaults of a loss; a variant declares what it `fits`, what differs, and `__call__(values, labels_B, range)`."""

    fits: ClassVar[tuple[TaskKind, ...]]  # the kinds of task it is for
    reads_features: ClassVar[bool] = False  # its values are features_BF, not logits_BK; the head then stays as built
    needs_pair_vectors: ClassVar[bool] = False  # its features must be [u; v], two vectors per pair
    is_mean: ClassVar[bool] = True  # it is the mean over examples, so parts of a batch can be weighted by size
    fewest_examples: ClassVar[int] = 1  # in a batch; with fewer it has no gradient

    @property
    def cosine_targets(self) -> tuple[float, float] | None:
        """The cosines to which it drives pairs that are not alike and pairs that are; None for a loss of logits."""
        return None

    def outputs(self, task_outputs: int) -> int:
        """Return the number of logits K that the head must have; by default the outputs of the task."""
        return task_outputs

    def readout(self, logits_BK: Tensor, label_range: LabelRange) -> Tensor:
        """Return what the metric of the task reads, (B, outputs of the task); by default the logits."""
        return logits_BK

    def error_unit(self, label_range: LabelRange) -> float:
        """Return the unit of a regression's error in loss and divergence, in label units."""
        return unit_of("range", label_range)


class CrossEntropy(LossVariant):
    """Cross-entropy of the softmax: the negative log-likelihood of the label's class."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    fits: ClassVar[tuple[TaskKind, ...]] = ("classification",)

    def __call__(self, logits_BK: Tensor, labels_B: Tensor, label_range: LabelRange) -> Tensor:
        return functional.cross_entropy(logits_BK.float(), labels_B.long())


class Bce(LossVariant):
    """Binary cross-entropy of the sigmoid of a single logit, computed from the logit."""

    kind: Literal["bce"] = "bce"
    fits: ClassVar[tuple[TaskKind, ...]] = ("binary",)

    def __call__(self, logits_BK: Tensor, labels_B: Tensor, label_range: LabelRange) -> Tensor:
        return functional.binary_cross_entropy_with_logits(single_logit(logits_BK), labels_B.float())


class Mse(LossVariant):
    """Mean squared error between the logit and the label, by default in halves of the label range."""

    kind: Literal["mse"] = "mse"
    scale: ErrorScale = "range"
    fits: ClassVar[tuple[TaskKind, ...]] = ("regression",)

    def __call__(self, logits_BK: Tensor, labels_B: Tensor, label_range: LabelRange) -> Tensor:
        return mse_loss(single_logit(logits_BK), labels_B.float(), self.error_unit(label_range))

    def error_unit(self, label_range: LabelRange) -> float:
        return unit_of(self.scale, label_range)


class Pearson(LossVariant):
    """1 - r over the batch (Liu & Maniku 2023).  It does not teach the scale of predictions; use batches of 16 or more."""

    kind: Literal["pearson"] = "pearson"
    fits: ClassVar[tuple[TaskKind, ...]] = ("regression",)
    is_mean: ClassVar[bool] = False
    fewest_examples: ClassVar[int] = FEWEST_FOR_R

    def __call__(self, logits_BK: Tensor, labels_B: Tensor, label_range: LabelRange) -> Tensor:
        return pearson_loss(single_logit(logits_BK), labels_B.float())


class MsePearson(LossVariant):
    """mse_share * MSE + (1 - mse_share) * (1 - r): correlation, with the scale that r does not teach.

    Ours; its limits are mse (share 1) and pearson (share 0). 1 - r is in [0, 2]. Of one or two examples only the MSE teaches.
    """

    kind: Literal["mse_pearson"] = "mse_pearson"
    mse_share: float = Field(
        0.5, ge=0, le=1, json_schema_extra={"unit": "share"}, description="weight of the MSE; 1 - r has the rest"
    )
    scale: ErrorScale = "range"
    fits: ClassVar[tuple[TaskKind, ...]] = ("regression",)
    is_mean: ClassVar[bool] = False

    def __call__(self, logits_BK: Tensor, labels_B: Tensor, label_range: LabelRange) -> Tensor:
        predictions_B, labels_B = single_logit(logits_BK), labels_B.float()
        squared = mse_loss(predictions_B, labels_B, self.error_unit(label_range))
        return self.mse_share * squared + (1 - self.mse_share) * pearson_loss(predictions_B, labels_B)

    def error_unit(self, label_range: LabelRange) -> float:
        return unit_of(self.scale, label_range)


class CosineEmbedding(LossVariant):
    """PyTorch's CosineEmbeddingLoss on u and v: alike pairs to a cosine of 1, others to `margin` or below.

    It trains only the encoder, so the head must be one that reads the cosine and needs no training. Such a head separates the
    classes of a binary task where its logit is 0, at the cosine -offset / scale; that should be midway, at (1 + margin) / 2.
    Pearson's r depends on neither.
    """

    kind: Literal["cosine_embedding"] = "cosine_embedding"
    threshold: float = Field(
        0.5,
        gt=0,
        le=1,
        json_schema_extra={"unit": "of the label range"},
        description="label from which a pair counts as alike, above the lowest label; 0.5 is 2.5 for STS",
    )
    margin: float = Field(
        0.0,
        ge=-1,
        lt=1,
        json_schema_extra={"unit": "cosine"},
        description="cosine up to which a pair that is not alike costs nothing",
    )
    fits: ClassVar[tuple[TaskKind, ...]] = ("regression", "binary")
    reads_features: ClassVar[bool] = True
    needs_pair_vectors: ClassVar[bool] = True

    @property
    def cosine_targets(self) -> tuple[float, float] | None:
        return self.margin, 1.0

    def __call__(self, features_BF: Tensor, labels_B: Tensor, label_range: LabelRange) -> Tensor:
        low, high = label_range
        return cosine_embedding_loss(features_BF, labels_B.float() >= low + self.threshold * (high - low), self.margin)


class Classes(LossVariant):
    """Regression as classes: cross-entropy to the nearest of `classes` equally spaced labels (Kehoe & Ravella 2024, the text).

    Departure: the answer is the expected label under the softmax, not that of the likeliest class. The metric is Pearson's r,
    which rounding to a few values lowers; and smoothness and proximal terms need a gradient, which an argmax does not have.
    """

    kind: Literal["classes"] = "classes"
    classes: int = Field(
        6, ge=2, description="number of classes; class k stands for low + k (high - low) / (classes - 1); 6: STS 0, 1, ..., 5"
    )
    fits: ClassVar[tuple[TaskKind, ...]] = ("regression",)

    def __call__(self, logits_BK: Tensor, labels_B: Tensor, label_range: LabelRange) -> Tensor:
        return functional.cross_entropy(logits_BK.float(), nearest_classes(labels_B, self.classes, label_range))

    def outputs(self, task_outputs: int) -> int:
        return self.classes

    def readout(self, logits_BK: Tensor, label_range: LabelRange) -> Tensor:
        return expected_labels(logits_BK, label_range)


Loss = Annotated[
    CrossEntropy | Bce | Mse | Pearson | MsePearson | CosineEmbedding | Classes, Field(discriminator="kind"), BARE_NAME
]


def default_loss(kind: TaskKind) -> CrossEntropy | Bce | Mse:
    """Return the default loss for a kind of task."""
    known: dict[TaskKind, CrossEntropy | Bce | Mse] = {"classification": CrossEntropy(), "binary": Bce(), "regression": Mse()}
    return known[kind]
