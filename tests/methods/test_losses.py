"""Losses and divergences against values known by hand, and the bugs of public copies that live here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from minbert_core.data.tasks import TaskKind
from minbert_core.methods.losses import (
    Bce,
    Classes,
    CosineEmbedding,
    CrossEntropy,
    Mse,
    MsePearson,
    Pearson,
    bernoulli_divergence,
    class_divergence,
    default_loss,
    divergence,
    nearest_classes,
)

KINDS: tuple[TaskKind, ...] = ("classification", "binary", "regression")
BINARY, STARS, STS = (0.0, 1.0), (0.0, 4.0), (0.0, 5.0)  # label ranges


def column(*values: float) -> Tensor:
    return torch.tensor(values)[:, None]


def test_cross_entropy_of_equal_logits_is_log_of_the_number_of_classes() -> None:
    assert CrossEntropy()(torch.zeros(2, 5), torch.tensor([0.0, 4.0]), STARS).item() == pytest.approx(math.log(5))


def test_cross_entropy_of_a_sure_and_right_prediction_is_zero() -> None:
    """Softmax applied twice could not go below log(1 + 4/e) = 0.9 (a public bug)."""
    assert CrossEntropy()(20 * torch.eye(5), torch.arange(5.0), STARS).item() == pytest.approx(0.0, abs=1e-6)


def test_bce_of_a_zero_logit_is_log_two() -> None:
    assert Bce()(column(0.0, 0.0), torch.tensor([0.0, 1.0]), BINARY).item() == pytest.approx(math.log(2))


def test_bce_takes_logits_not_probabilities() -> None:
    """With a sigmoid before the sigmoid a sure and right prediction would cost 0.31 (a public bug)."""
    assert Bce()(column(20.0, -20.0), torch.tensor([1.0, 0.0]), BINARY).item() == pytest.approx(0.0, abs=1e-6)


def test_bce_of_a_huge_wrong_logit_is_its_size() -> None:
    assert Bce()(column(-500.0), torch.tensor([1.0]), BINARY).item() == 500.0


def test_mse_compares_each_logit_with_its_own_label() -> None:
    """(B, 1) against (B,) would broadcast to all pairs."""
    assert Mse()(column(1.0, 2.0, 3.0), torch.tensor([1.0, 2.0, 3.0]), STS).item() == 0.0


def test_mse_is_measured_in_halves_of_the_label_range_or_in_label_units() -> None:
    """An error of 2 among labels from 0 to 5 is 0.8 halves of the range."""
    assert Mse()(column(4.0), torch.tensor([2.0]), STS).item() == pytest.approx(0.64)
    assert Mse(scale="label")(column(4.0), torch.tensor([2.0]), STS).item() == 4.0


def test_mse_keeps_real_labels() -> None:
    """2.4 read as an integer is 2 (a public bug)."""
    assert Mse()(column(2.4), torch.tensor([2.4]), STS).item() == 0.0


@pytest.mark.parametrize("loss", [CrossEntropy(), Bce(), Mse(), Pearson()])
def test_a_batch_shown_twice_has_the_loss_of_one(loss: CrossEntropy | Bce | Mse | Pearson) -> None:
    """A mean divided by the batch size once more would halve (a public bug)."""
    logits = torch.randn(6, 5 if loss.kind == "cross_entropy" else 1)
    labels = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    twice = loss(logits.repeat(2, 1), labels.repeat(2), BINARY)
    assert twice.item() == pytest.approx(loss(logits, labels, BINARY).item(), abs=1e-5)


def test_two_logits_for_a_task_of_one_are_refused() -> None:
    with pytest.raises(AssertionError, match=r"one logit per example expected, got \(3, 2\)"):
        Mse()(torch.zeros(3, 2), torch.zeros(3), STS)


def test_half_precision_logits_give_a_float32_loss() -> None:
    widths = {CrossEntropy(): 5, Bce(): 1, Mse(): 1, Pearson(): 1, MsePearson(): 1, CosineEmbedding(): 8, Classes(): 6}
    for loss, width in widths.items():
        value = loss(torch.randn(4, width).bfloat16(), torch.tensor([0.0, 1.0, 1.0, 0.0]), BINARY)
        assert value.dtype == torch.float32


# ------------------------------------------------------------------------------------------------------------- Pearson


def test_pearson_loss_is_one_minus_numpys_correlation() -> None:
    predictions, labels = torch.randn(16), 5 * torch.rand(16)
    expected = 1 - np.corrcoef(predictions.numpy(), labels.numpy())[0, 1]
    assert Pearson()(predictions[:, None], labels, STS).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("slope", "expected"), [(1.0, 0.0), (0.1, 0.0), (-1.0, 2.0)])
def test_pearson_loss_of_a_straight_line_knows_only_its_direction(slope: float, expected: float) -> None:
    labels = torch.tensor([0.0, 1.0, 2.5, 5.0])
    assert Pearson()((slope * labels + 7)[:, None], labels, STS).item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "labels", [[2.5], [2.3, 2.3, 2.3], [0.1] * 7], ids=["one example", "constant", "constant, inexact mean"]
)
def test_pearson_without_a_correlation_gives_zero_loss_and_zero_gradient(labels: list[float]) -> None:
    logits = torch.randn(len(labels), 1, requires_grad=True)
    loss = Pearson()(logits, torch.tensor(labels), STS)
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert logits.grad.tolist() == [[0.0]] * len(labels)


def test_pearson_has_a_gradient_from_the_fewest_examples_on_that_it_declares() -> None:
    loss = Pearson()
    for num_examples in (2, 3):
        logits = torch.tensor([[0.3], [1.0], [4.0]])[:num_examples].requires_grad_()
        loss(logits, torch.tensor([1.0, 4.0, 2.0])[:num_examples], STS).backward()
        assert logits.grad is not None
        assert bool((logits.grad.abs() > 1e-3).any()) is (num_examples >= loss.fewest_examples)


def pearson_gradient(spread: float, scale: float = 1.0) -> Tensor:
    """The gradient of 1 - r at predictions of this spread, for labels 0, 1, 2 and 5 times `scale`, (4,)."""
    logits = (scale * (2.0 + spread * torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]))).requires_grad_()
    loss = Pearson()(logits, scale * torch.tensor([0.0, 1.0, 2.0, 5.0]), STS)
    loss.backward()
    assert logits.grad is not None
    if spread == 0:
        assert loss.item() == 1.0
    return logits.grad[:, 0]


def test_pearson_of_constant_predictions_is_one_and_draws_them_along_the_labels() -> None:
    """Deviations of the labels are -2, -1, 0 and 3, of squares 14; predictions count as if their deviation was .01 of that."""
    assert pearson_gradient(0.0).tolist() == pytest.approx([100 * 2 / 14, 100 / 14, 0, -100 * 3 / 14], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("spread", [1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 0.1])
def test_pearson_s_gradient_is_bounded_at_nearly_constant_predictions(spread: float) -> None:
    """It grows as 1 / spread, up to 100 / |labels - mean|: beyond, the clip would take the step from all other tasks."""
    assert float(pearson_gradient(spread).norm()) <= 100 / 14**0.5 * (1 + 1e-5)


@pytest.mark.parametrize("scale", [1e-3, 0.2, 20.0, 1e3])
@pytest.mark.parametrize("spread", [0.0, 1e-3, 1.0])
def test_pearson_s_gradient_is_that_of_the_same_task_in_other_units(scale: float, spread: float) -> None:
    wanted, found = pearson_gradient(spread), scale * pearson_gradient(spread, scale)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-3


@pytest.mark.parametrize("slope", [1e-3, 1e-2, 0.1, 1.0])
def test_pearson_s_value_is_exact_from_a_hundredth_of_the_labels_deviation_on(slope: float) -> None:
    """Below, r is in proportion to the deviation."""
    labels = torch.tensor([0.0, 1.0, 2.5, 5.0])
    expected = 1 - min(1.0, slope / 0.01)
    assert Pearson()((slope * labels)[:, None], labels, STS).item() == pytest.approx(expected, abs=1e-5)


# ----------------------------------------------------------------------------------------------------- MSE and Pearson


@pytest.mark.parametrize(("mse_share", "limit"), [(1.0, Mse()), (0.0, Pearson())])
def test_mse_pearson_has_both_losses_as_limits(mse_share: float, limit: Mse | Pearson) -> None:
    predictions, labels = torch.randn(8, 1), 5 * torch.rand(8)
    assert MsePearson(mse_share=mse_share)(predictions, labels, STS).item() == limit(predictions, labels, STS).item()


def test_mse_pearson_is_the_weighted_sum_of_both() -> None:
    """Every prediction is 2 too high: MSE 4, or 0.64 in halves of the range, r 1."""
    labels = torch.tensor([0.0, 1.0, 2.5, 5.0])
    for scale, squared in (("label", 4.0), ("range", 0.64)):
        loss = MsePearson.model_validate({"mse_share": 0.25, "scale": scale})
        assert loss((labels + 2)[:, None], labels, STS).item() == pytest.approx(0.25 * squared, abs=1e-5)


@pytest.mark.parametrize("mse_share", [-0.1, 1.1])
def test_a_share_of_the_mse_beyond_its_range_is_refused(mse_share: float) -> None:
    with pytest.raises(ValidationError, match="mse_share"):
        MsePearson(mse_share=mse_share)


# ---------------------------------------------------------------------------------------------------- cosine embedding

# u = (1, 0) and a v at a cosine of 0.6, as [u; v]
AT_06 = torch.tensor([[1.0, 0.0, 0.6, 0.8]])


@pytest.mark.parametrize(
    ("label", "margin", "expected"), [(5.0, 0.0, 0.4), (0.0, 0.0, 0.6), (0.0, 0.5, 0.1), (0.0, 0.7, 0.0), (0.0, -1.0, 1.6)]
)
def test_cosine_embedding_pulls_alike_pairs_to_one_and_others_to_the_margin(
    label: float, margin: float, expected: float
) -> None:
    loss = CosineEmbedding(margin=margin)(AT_06, torch.tensor([label]), STS)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_cosine_embedding_is_pytorchs() -> None:
    u, v, labels = torch.randn(8, 5), torch.randn(8, 5), 5 * torch.rand(8)
    expected = torch.nn.CosineEmbeddingLoss(margin=0.2)(u, v, torch.where(labels >= 2.5, 1.0, -1.0))
    assert CosineEmbedding(margin=0.2)(torch.cat([u, v], 1), labels, STS).item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ("threshold", "label", "labels_are", "is_alike"),
    [
        (0.5, 2.5, STS, True),
        (0.5, 2.4, STS, False),
        (0.5, 1.0, BINARY, True),
        (0.5, 0.0, BINARY, False),
        (0.8, 3.8, STS, False),
        (0.5, 3.0, (1.0, 5.0), True),
        (0.5, 2.6, (1.0, 5.0), False),
    ],
)
def test_pairs_are_alike_from_the_threshold_on(
    threshold: float, label: float, labels_are: tuple[float, float], is_alike: bool
) -> None:
    loss = CosineEmbedding(threshold=threshold)(AT_06, torch.tensor([label]), labels_are)
    assert loss.item() == pytest.approx(0.4 if is_alike else 0.6, abs=1e-6)


@pytest.mark.parametrize("knobs", [{"threshold": 0.0}, {"threshold": 1.1}, {"margin": 1.0}, {"margin": -1.1}])
def test_a_knob_of_cosine_embedding_beyond_its_range_is_refused(knobs: dict[str, float]) -> None:
    """A threshold of 0 would call all pairs alike; a margin of 1 would leave nothing to learn from the others."""
    with pytest.raises(ValidationError, match=next(iter(knobs))):
        CosineEmbedding.model_validate(knobs)


def test_cosine_embedding_of_zero_vectors_has_a_finite_gradient() -> None:
    features = torch.zeros(2, 4, requires_grad=True)
    CosineEmbedding()(features, torch.tensor([0.0, 5.0]), STS).backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


# ------------------------------------------------------------------------------------------------- regression as classes


@pytest.mark.parametrize(
    ("label", "nearest"), [(0.0, 0), (0.4, 0), (0.6, 1), (2.4, 2), (3.8, 4), (5.0, 5), (0.5, 0), (1.5, 2), (2.5, 2), (4.5, 4)]
)
def test_a_label_is_learned_as_its_nearest_class(label: float, nearest: int) -> None:
    """The last four are halfway between two classes: the even one, so that they do not all go up."""
    assert nearest_classes(torch.tensor([label]), 6, STS).tolist() == [nearest]
    assert Classes()(20 * torch.eye(6)[[nearest]], torch.tensor([label]), STS).item() == pytest.approx(0.0, abs=1e-6)


def test_classes_of_equal_logits_cost_the_log_of_their_number() -> None:
    assert Classes(classes=3)(torch.zeros(2, 3), torch.tensor([0.0, 5.0]), STS).item() == pytest.approx(math.log(3))


@pytest.mark.parametrize(("classes", "labels_are", "values"), [(6, STS, [0, 1, 2, 3, 4, 5]), (3, (1.0, 5.0), [1, 3, 5])])
def test_a_sure_class_reads_as_the_label_it_stands_for(
    classes: int, labels_are: tuple[float, float], values: list[int]
) -> None:
    readout = Classes(classes=classes).readout(50 * torch.eye(classes), labels_are)
    assert readout.shape == (classes, 1)
    assert readout[:, 0].tolist() == pytest.approx(values, abs=1e-5)


def test_the_readout_of_two_likely_classes_lies_between_them() -> None:
    """An argmax would say 2 or 4, whatever their odds."""
    logits = torch.tensor([[0.0, 0.0, 0.25, 0.0, 0.75, 0.0]]).log()
    assert Classes().readout(logits, STS).item() == pytest.approx(0.25 * 2 + 0.75 * 4)


def test_a_task_of_one_output_gets_as_many_logits_as_there_are_classes() -> None:
    assert Classes(classes=11).outputs(1) == 11


def test_a_single_class_is_refused() -> None:
    with pytest.raises(ValidationError, match="classes"):
        Classes(classes=1)


# --------------------------------------------------------------------------------------------------------- divergences


def random_logits(kind: TaskKind) -> Tensor:
    return torch.randn(6, 5 if kind == "classification" else 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_divergence_is_zero_where_both_agree_and_positive_elsewhere(kind: TaskKind) -> None:
    """The softmax of a single logit is always 1, so that a divergence of it would be 0 (a public bug)."""
    p, q = random_logits(kind), random_logits(kind)
    assert divergence(kind)(p, p).item() == 0.0
    assert divergence(kind)(p, q).item() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_a_divergence_is_symmetric(kind: TaskKind) -> None:
    p, q = random_logits(kind), random_logits(kind)
    assert divergence(kind)(p, q).item() == pytest.approx(divergence(kind)(q, p).item())


@pytest.mark.parametrize("kind", KINDS)
def test_a_divergence_is_the_mean_over_the_batch(kind: TaskKind) -> None:
    p, q = random_logits(kind), random_logits(kind)
    each = [divergence(kind)(p[i : i + 1], q[i : i + 1]).item() for i in range(len(p))]
    assert divergence(kind)(p, q).item() == pytest.approx(sum(each) / len(each))


@pytest.mark.parametrize("kind", KINDS)
def test_a_divergence_of_huge_logits_is_finite_with_its_gradient(kind: TaskKind) -> None:
    p = (1000 * random_logits(kind)).requires_grad_()
    value = divergence(kind)(p, -p.detach())
    value.backward()
    assert value.isfinite()
    assert p.grad is not None
    assert p.grad.isfinite().all()


def test_class_divergence_is_kl_both_ways() -> None:
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.8, 0.2])
    expected = (p * (p / q).log()).sum() + (q * (q / p).log()).sum()
    assert class_divergence(p.log()[None], q.log()[None]).item() == pytest.approx(expected.item())


def test_bernoulli_divergence_is_that_of_two_classes() -> None:
    """A logit z is the two-class logits (0, z)."""
    a, b = torch.randn(4, 1), torch.randn(4, 1)
    zero = torch.zeros(4, 1)
    two_classes = class_divergence(torch.cat([zero, a], 1), torch.cat([zero, b], 1))
    assert bernoulli_divergence(a, b).item() == pytest.approx(two_classes.item(), rel=1e-5)


def test_regression_divergence_is_the_squared_distance_in_its_unit() -> None:
    assert divergence("regression")(column(1.0, 2.0), column(4.0, 2.0)).item() == 4.5
    assert divergence("regression", unit=3.0)(column(1.0, 2.0), column(4.0, 2.0)).item() == 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_the_default_loss_fits_its_kind_of_task(kind: TaskKind) -> None:
    assert kind in default_loss(kind).fits
