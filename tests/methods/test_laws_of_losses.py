"""The laws of losses and their readouts.

Legend: B examples, F features, K outputs.
"""

from __future__ import annotations

import itertools
import typing
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from battery import keep, law, plain, variants
from torch import Tensor

from minbert_core.data.tasks import TaskKind
from minbert_core.methods.heads import Head
from minbert_core.methods.losses import Loss, divergence


@dataclass(frozen=True)
class Case:
    """A kind of task, and labels of five examples of it; `outputs` is what its metric reads."""

    kind: TaskKind
    labels: Tensor
    label_range: tuple[float, float]
    outputs: int

    def __str__(self) -> str:
        return f"a {self.kind} task with labels in {list(self.label_range)}"


CASES = (
    Case("classification", torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]), (0, 4), 5),
    Case("classification", torch.tensor([0.0, 1.0, 2.0, 0.0, 1.0]), (0, 2), 3),
    Case("binary", torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0]), (0, 1), 1),
    Case("regression", torch.tensor([0.0, 1.25, 2.4, 3.8, 5.0]), (0, 5), 1),
    Case("regression", torch.tensor([-30.0, -25.0, -20.4, -14.8, -10.0]), (-30, -10), 1),
)


def cases_of(variant: Any) -> list[tuple[Case, Tensor]]:
    """Of every kind of task that a loss fits: the case, and what the loss reads where that is as good as can be."""
    return [(case, best_of(variant, case)) for case in CASES if case.kind in variant.fits]


def best_of(variant: Any, case: Case) -> Tensor:
    """What a loss reads, (B, K) or (B, F), as good as can be for the labels of `case`."""
    labels, (low, high) = case.labels, case.label_range
    outputs = variant.outputs(case.outputs)
    assert isinstance(outputs, int), f"`outputs` gives {outputs!r}, which is no number of logits"
    assert outputs > 0, f"`outputs` gives {outputs!r}, which is no number of logits"
    if variant.reads_features:  # u and v alike in the upper half of the labels, opposite in the lower
        u = torch.tensor([[1.0, 2.0, -1.0, 0.5]]).expand(5, 4)
        return torch.cat([u, torch.where(labels >= (low + high) / 2, 1.0, -1.0)[:, None] * u], dim=1)
    if outputs > 1:
        values = torch.linspace(low, high, outputs)
        return 20 * torch.eye(outputs)[(labels[:, None] - values).abs().argmin(dim=1)]
    return (40 * labels - 20 if case.kind == "binary" else labels)[:, None]


def loss_of(variant: Any, values: Tensor, case: Case, rows: Any = slice(None)) -> Tensor:
    """The loss of some rows, with their labels."""
    loss: Tensor = variant(values, case.labels[rows].clone().to(values.device), case.label_range)
    assert isinstance(loss, Tensor), f"it gives a {type(loss).__name__}, not a Tensor"
    assert loss.shape == (), f"it gives shape {tuple(loss.shape)} for {case}, not a scalar; a batch's loss is one number"
    assert loss.dtype == torch.float32, f"it is in {loss.dtype}, not float32, for {case}"
    return loss


@law(Loss)
def test_a_loss_fits_some_kind_of_task(variant: Any) -> None:
    known = typing.get_args(TaskKind)
    assert variant.fits, f"`fits` is empty; known: {known}"
    assert set(variant.fits) <= set(known), f"`fits` names unknown kinds in {variant.fits}; known: {known}"


@law(Loss)
def test_a_loss_is_lower_where_the_answers_are_right_than_where_they_are_wrong(variant: Any) -> None:
    for case, values in cases_of(variant):
        best, worst = loss_of(variant, values, case), loss_of(variant, values.flip(0).roll(1, 0), case)
        found = f"it is {best.item():.4g} where all answers are right and {worst.item():.4g} where they are wrong"
        assert worst > best + 0.01, f"{found}, for {case}; does it ignore the labels, or their range?"


@law(Loss)
def test_a_loss_and_its_gradient_are_finite(variant: Any) -> None:
    for case, good in cases_of(variant):
        cases = {"good": good, "bad": -10 * good, "equal": torch.zeros_like(good), "huge": 1e4 * good}
        for (what, whole), rows in itertools.product(cases.items(), (slice(None), slice(0, 1))):
            values = whole[rows].clone().requires_grad_()
            loss, batch = loss_of(variant, values, case, rows), f"{what} values, a batch of {len(values)} of {case}"
            assert loss.isfinite(), f"it is {loss.item()} for {batch}"
            (gradient,) = torch.autograd.grad(loss, [values])
            assert gradient.isfinite().all(), f"its gradient is not finite for {batch}"


@law(Loss)
def test_the_gradient_of_a_loss_reaches_what_it_reads(variant: Any) -> None:
    for case, good in cases_of(variant):
        values = (good.flip(0).roll(1, 0) / 10 + torch.randn_like(good)).requires_grad_()
        loss = loss_of(variant, values, case)
        reached = loss.requires_grad and torch.autograd.grad(loss, [values])[0].abs().max() > 0
        assert reached, f"no gradient reaches what it reads (a detach, an argmax?), for {case}"


@law(Loss)
def test_a_loss_does_not_depend_on_the_order_of_examples(variant: Any) -> None:
    for case, values in cases_of(variant):
        values, order = values + torch.randn_like(values), torch.tensor([2, 0, 4, 1, 3])
        found, expected = loss_of(variant, values[order], case, order), loss_of(variant, values, case)
        assert torch.allclose(found, expected, atol=1e-5), f"permuting examples takes it from {expected} to {found}, for {case}"


@law(Loss)
def test_a_loss_is_a_mean_over_its_examples_where_it_says_so_and_only_there(variant: Any) -> None:
    """Of 5 examples as 2 and 3: what a batch that goes through in parts relies on."""
    for case, values in cases_of(variant):
        values, order = values + torch.randn_like(values), torch.tensor([2, 0, 4, 1, 3])  # no part of equal labels
        parts = [len(rows) / 5 * loss_of(variant, values[rows], case, rows) for rows in (order[:2], order[2:])]
        is_mean = torch.allclose(parts[0] + parts[1], loss_of(variant, values, case), atol=1e-5)
        does = "is" if is_mean else "is not"
        assert is_mean is variant.is_mean, f"is_mean is {variant.is_mean}, but it {does} the mean over its examples, {case}"


@law(Loss)
def test_a_loss_and_the_divergence_do_not_depend_on_the_scale_of_the_labels(variant: Any) -> None:
    """Otherwise the task whose labels are numbers of thousands would drown the others; another scale needs a knob."""
    for case, values in cases_of(variant):
        if case.kind != "regression":
            continue
        low, high = case.label_range
        larger = Case(case.kind, 10 * case.labels, (10 * low, 10 * high), case.outputs)
        answers = variant.outputs(case.outputs) == 1 and not variant.reads_features  # else what it reads has no label units
        wrong = values + torch.randn_like(values)
        found = [loss_of(variant, wrong, case), loss_of(variant, 10 * wrong if answers else wrong, larger)]
        assert torch.allclose(*found, rtol=1e-3, atol=1e-4), f"labels ten times as large take it from {found[0]} to {found[1]}"
        units = [variant.error_unit(one.label_range) for one in (case, larger)]
        assert units[1] == pytest.approx(10 * units[0]), f"ten times as large a range takes error_unit from {units}"


@law(Loss)
def test_a_loss_leaves_what_it_reads_as_it_was(variant: Any) -> None:
    for case, values in cases_of(variant):
        read, labels = values.clone(), case.labels.clone()
        variant(read, labels, case.label_range)
        assert torch.equal(read, values), f"it writes into the values it reads, for {case}"
        assert torch.equal(labels, case.labels), f"it writes into the labels, for {case}"


@law(Loss)
def test_a_loss_is_in_float32_whatever_it_reads(variant: Any) -> None:
    for case, values in cases_of(variant):
        loss_of(variant, values.bfloat16(), case)


@law(Loss)
def test_a_loss_works_where_its_values_are(variant: Any) -> None:
    """On the device `meta`, which like a GPU refuses what lies on the CPU; its readout, too."""
    for case, values in cases_of(variant):
        loss_of(variant, values.to("meta"), case)
        variant.readout(torch.randn(5, variant.outputs(case.outputs), device="meta"), case.label_range)


@law(Loss)
def test_a_loss_that_reads_features_says_whether_it_needs_a_pair(variant: Any) -> None:
    assert variant.reads_features or not variant.needs_pair_vectors, "needs_pair_vectors, but it reads logits: a pair of what?"


def logits_of(variant: Any, case: Case) -> Tensor:
    """The head's logits, (B, K), where what the loss reads is as good as can be; of an untrained head if it reads features."""
    values = best_of(variant, case)
    if not variant.reads_features:
        return values
    answering = next(head for cls in variants(Head) if (head := plain(cls)).reads_cosine_only)
    logits: Tensor = answering.build(values.shape[1], variant.outputs(case.outputs))(values, keep).detach()
    return logits


@law(Loss)
def test_a_readout_is_what_the_metric_of_the_task_reads(variant: Any) -> None:
    """At the optimum of the loss the metric is at, or (with labels made into classes) near, its best."""
    for case, _ in cases_of(variant):
        readout, labels = variant.readout(logits_of(variant, case), case.label_range), case.labels
        shape = (len(labels), case.outputs)
        assert readout.shape == shape, f"its readout has shape {tuple(readout.shape)}, not {shape}, for {case}"
        if case.kind == "regression":
            r = torch.corrcoef(torch.stack([readout[:, 0], labels]))[0, 1].item()
            assert r > 0.85, f"where it is lowest its readout correlates with the labels by {r:.2f} only, for {case}"
        else:
            answers = readout.argmax(1) if case.kind == "classification" else readout[:, 0] > 0
            assert answers.tolist() == labels.tolist(), (
                f"where it is lowest its readout answers {answers.tolist()}, not {labels.tolist()}, for {case}"
            )


@law(Loss)
def test_a_readout_is_of_each_example_by_itself_and_passes_a_gradient(variant: Any) -> None:
    for case, _ in cases_of(variant):
        logits, order = torch.randn(5, variant.outputs(case.outputs), requires_grad=True), torch.tensor([2, 0, 4, 1, 3])
        readout = variant.readout(logits, case.label_range)
        same = torch.allclose(variant.readout(logits[order], case.label_range), readout[order])
        assert same, f"permuting examples does not permute its readout, for {case}"
        assert readout.requires_grad, f"no gradient comes through its readout, which penalties read (an argmax?), for {case}"
        (gradient,) = torch.autograd.grad(divergence(case.kind)(readout, torch.zeros_like(readout)), [logits])
        reached = gradient.isfinite().all() and (gradient.abs().amax(dim=1) > 0).all()
        assert reached, f"the gradient through its readout is 0 or not finite, for {case}"
