"""Smoothness and proximal terms of a step against autograd: SMART's passes and masks, R-Drop's views, Bregman's teacher.

B examples, K outputs, N packed tokens, D hidden size, P shared parameters.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from minbert_core.data.tokens import PackedBatch
from minbert_core.model import MultitaskBert
from minbert_core.train.passes import Pass
from minbert_core.train.task_losses import TaskLosses, Views
from tests.train.step_bench import (
    APART,
    DIVERGENCES,
    HALF_RANGE,
    LOSSES,
    NO_DROPOUT,
    Bench,
    Tiny,
    bregman,
    close,
    masked,
    moved,
    r_drop,
    shared_P,
    smart,
)

# ----------------------------------------------------------------------------------------------------------------------- SMART


def test_smart_replays_the_masks_of_the_clean_pass(tiny: Tiny) -> None:
    """With the radius the penalty goes to nothing; two passes under fresh masks would differ by far more."""
    bench = Bench(tiny(smoothness=smart(radius=1e-6)))
    report = bench.step()
    assert all(float(report.losses[f"{task}_smoothness"]) < 1e-6 for task in ("sst", "para", "sts"))


def test_smart_of_weight_zero_is_the_plain_step(tiny: Tiny) -> None:
    plain, weightless = Bench(tiny()), Bench(tiny(smoothness=smart(weight=0.0)))
    for number in range(2):
        plain.step(number)
        weightless.step(number, measure=number == 1)
    for (name, one), (_, other) in zip(plain.model.named_parameters(), weightless.model.named_parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6), name


def test_smart_s_gradient_is_in_proportion_to_its_weight(tiny: Tiny) -> None:
    """A penalty whose return value is ignored, or added as a number, would give the plain gradient at any weight."""
    merged = {}
    for weight in (0.0, 1.0, 10.0):
        bench = Bench(tiny(smoothness=smart(weight=weight, radius=0.05), optimizer={"clip": None}))
        bench.step()
        merged[weight] = bench.merged_P()
    assert not close(merged[1.0], merged[0.0], 1e-2)
    assert close(merged[10.0] - merged[0.0], 10 * (merged[1.0] - merged[0.0]), 1e-3)


def test_smart_acts_on_every_task_single_logits_too(tiny: Tiny) -> None:
    """The softmax of one logit is 1: a KL of it is 0 for ever."""
    report = Bench(tiny(smoothness=smart(radius=0.05))).step(measure=True)
    for task in ("sst", "para", "sts"):
        assert float(report.losses[f"{task}_smoothness"]) > 1e-5
        assert report.figures[f"{task}_smoothness_gradient_ratio"] > 1e-3


def test_the_smoothness_gradient_ratio_is_that_of_the_weighted_gradients(tiny: Tiny) -> None:
    config = {"optimizer": {"clip": None}, "train_on": ["sst"]}
    plain, both = Bench(tiny(**config)), Bench(tiny(**config, smoothness=smart(radius=0.05, weight=2.0)))
    plain.step()
    ratio = both.step(measure=True).figures["sst_smoothness_gradient_ratio"]
    assert ratio == pytest.approx(float((both.merged_P() - plain.merged_P()).norm() / plain.merged_P().norm()), rel=1e-3)


def test_the_ratio_s_denominator_is_the_task_s_loss_without_a_teacher_s(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"train_on": ["sst"], "smoothness": smart(radius=0.05)}
    alone, taught = Bench(tiny(**config)), Bench(tiny(**config, proximal="bregman"))
    expected = alone.step(measure=True).figures["sst_smoothness_gradient_ratio"]

    def large(losses: TaskLosses, one: Pass, views: Views, *_: Any) -> list[Tensor]:
        return [1e3 * views.answers_VT[0][0].square().sum()]

    monkeypatch.setattr(TaskLosses, "proximal_terms", large)
    assert taught.step(measure=True).figures["sst_smoothness_gradient_ratio"] == pytest.approx(expected, rel=1e-4)


def test_measuring_changes_no_gradient(tiny: Tiny) -> None:
    for changes in ({}, {"smoothness": smart(radius=0.05)}, {"gradient": "gradvac", "smoothness": smart(radius=0.05)}):
        plain, measured = Bench(tiny(**changes)), Bench(tiny(**changes))
        plain.step()
        measured.step(measure=True)
        assert close(measured.merged_P(), plain.merged_P())


def test_smart_s_noise_enters_at_the_word_embeddings_within_the_radius(tiny: Tiny) -> None:
    """Not at the pooler's output, where only the head would be smoothed; both sentences of a bi-encoded pair are perturbed."""
    bench = Bench(tiny(train_on=["para"], smoothness=smart(radius=0.02), tasks={"pairs": {"pair_encoding": "bi"}}))
    seen: list[Tensor] = []
    bench.model.encoder.embedding_norm.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    batch = bench.batches()["para"]
    bench.step()
    clean_ND, started_ND, adversarial_ND = seen
    assert (started_ND - clean_ND).abs().amax() > 0.02  # a normal start, unclamped
    noise_ND = adversarial_ND - clean_ND
    assert float(noise_ND.abs().amax()) == pytest.approx(0.02, abs=1e-5)
    largest_S = torch.stack([rows.abs().amax() for rows in noise_ND.split(list(batch.lengths))])
    assert (largest_S > 0.01).all()


def test_passes_are_counted_in_examples_sent_through_the_encoder(tiny: Tiny) -> None:
    assert Bench(tiny()).step().passes == 24
    assert Bench(tiny(smoothness=smart(steps=1))).step().passes == 3 * 24
    assert Bench(tiny(smoothness=smart(steps=3))).step(measure=True).passes == 5 * 24


def dtypes_of_passes(bench: Bench) -> list[torch.dtype]:
    """What each pass of a step over one task multiplies in: clean, towards the noise, adversarial, teacher's in their order."""
    seen: list[torch.dtype] = []
    hook = bench.model.encoder.layers[0].query.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    bench.step(batches=bench.batches("sst"))
    hook.remove()
    return seen


@pytest.mark.parametrize(
    ("knobs", "clean", "ascent", "end"),
    [
        ({"radius": 9.9e-3}, torch.float32, torch.bfloat16, torch.float32),
        ({"radius": 1e-2}, torch.bfloat16, torch.bfloat16, torch.bfloat16),
        ({"radius": 1.0, "projection": "unit"}, torch.float32, torch.float32, torch.bfloat16),
    ],
    ids=["small", "large", "unit"],
)
def test_of_smart_s_passes_only_those_that_bfloat16_would_spoil_are_in_float32(
    tiny: Tiny, knobs: dict[str, Any], clean: torch.dtype, ascent: torch.dtype, end: torch.dtype
) -> None:
    bench = Bench(tiny(smoothness=smart(steps=2, **knobs)), "bfloat16")
    assert dtypes_of_passes(bench) == [clean, ascent, ascent, end]


def test_the_teacher_s_pass_has_the_precision_of_the_clean_pass(tiny: Tiny) -> None:
    """Else the first penalty, between two equal models, would be what bfloat16 rounds away."""
    report = Bench(tiny(smoothness=smart(radius=1e-3), proximal="bregman"), "bfloat16").step()
    assert all(report.losses[f"{task}_proximal"] == 0 for task in ("sst", "para", "sts"))


def penalty_gradient(tiny: Tiny, precision: str, radius: float) -> tuple[Tensor, float]:
    """SMART's gradient of the shared parameters and its penalty, of one task's step: that with it less that without."""
    merged = []
    for weight in (1.0, 0.0):
        config = tiny(train_on=["sst"], smoothness=smart(weight=weight, radius=radius), optimizer={"clip": None}, **NO_DROPOUT)
        bench = Bench(config, precision)
        report = bench.step()
        merged.append(bench.merged_P().double())
    return merged[0] - merged[1], float(report.losses["sst_smoothness"])


@pytest.mark.parametrize("radius", [1e-3, 5e-3])
def test_a_small_radius_has_its_gradient_and_penalty_in_bfloat16_too(tiny: Tiny, radius: float) -> None:
    """The noise that the ascent finds in bfloat16 differs in some signs; it is as strong, and what it teaches is exact."""
    exact_P, exact = penalty_gradient(tiny, "float32", radius)
    mixed_P, mixed = penalty_gradient(tiny, "bfloat16", radius)
    assert mixed == pytest.approx(exact, rel=0.02)
    assert float(mixed_P @ exact_P / (mixed_P.norm() * exact_P.norm())) > 0.98


def test_bfloat16_stays_near_float32(tiny: Tiny) -> None:
    config = tiny(**NO_DROPOUT)  # padding for bfloat16 has its own masks
    exact, mixed = Bench(config, "float32"), Bench(config, "bfloat16")
    exact.step()
    mixed.step()
    assert 0 < float((exact.merged_P() - mixed.merged_P()).norm() / exact.merged_P().norm()) < 0.05
    assert mixed.stepper.shared.rows_TP.dtype == torch.float32


# ---------------------------------------------------------------------------------------------------------------------- R-Drop


def r_drop_terms(model: MultitaskBert, task: str, batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """The mean of the losses of two passes under different masks, and the divergence of their answers, written out."""
    views = [masked(model, task, batch, view=view) for view in range(2)]
    return (LOSSES[task](views[0], batch.labels_B) + LOSSES[task](views[1], batch.labels_B)) / 2, DIVERGENCES[task](*views)


def test_r_drop_equals_two_passes_under_different_masks(tiny: Tiny) -> None:
    bench = Bench(tiny(smoothness=r_drop(), optimizer={"clip": None}))
    oracle, batches = bench.copy(), bench.batches()
    terms = {task: r_drop_terms(oracle, task, batch) for task, batch in batches.items()}
    sum(loss + 0.5 * penalty for loss, penalty in terms.values()).backward()
    report = bench.step(0, batches, limit=APART)
    for task, (loss, penalty) in terms.items():
        assert float(report.losses[task]) == pytest.approx(float(loss.detach()), rel=1e-5)
        assert float(report.losses[f"{task}_smoothness"]) == pytest.approx(float(penalty.detach()), rel=1e-3)
        assert float(penalty.detach()) > 1e-5
    assert close(bench.merged_P(), torch.cat([parameter.grad.flatten() for parameter in shared_P(oracle)]), 1e-4)
    assert report.passes == 2 * 24


def test_r_drop_of_weight_zero_is_the_mean_of_two_plain_passes(tiny: Tiny) -> None:
    bench = Bench(tiny(smoothness=r_drop(0.0), optimizer={"clip": None}))
    oracle, batches = bench.copy(), bench.batches()
    sum(r_drop_terms(oracle, task, batch)[0] for task, batch in batches.items()).backward()
    bench.step(0, batches, limit=APART)
    assert close(bench.merged_P(), torch.cat([parameter.grad.flatten() for parameter in shared_P(oracle)]), 1e-4)


def test_r_drop_s_gradient_ratio_is_that_of_the_weighted_gradients(tiny: Tiny) -> None:
    config = {"optimizer": {"clip": None}, "train_on": ["sst"]}
    plain, both = Bench(tiny(**config, smoothness=r_drop(0.0))), Bench(tiny(**config, smoothness=r_drop(2.0)))
    plain.step()
    ratio = both.step(measure=True).figures["sst_smoothness_gradient_ratio"]
    assert ratio == pytest.approx(float((both.merged_P() - plain.merged_P()).norm() / plain.merged_P().norm()), rel=1e-3)


# --------------------------------------------------------------------------------------------------------------------- Bregman


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_bregman_s_first_penalty_is_exactly_zero_and_its_gradient_the_plain_one(tiny: Tiny, precision: str) -> None:
    """Which also says that the teacher's pass replays the student's masks and precision: two masks alone differ by .075."""
    plain, proximal = Bench(tiny(), precision), Bench(tiny(proximal=bregman(weight=100.0)), precision)
    plain.step()
    losses = proximal.step().losses
    assert [float(losses[f"{task}_proximal"]) for task in ("sst", "para", "sts")] == [0.0, 0.0, 0.0]
    assert close(proximal.merged_P(), plain.merged_P(), 1e-6)


def test_bregman_s_penalty_is_the_divergence_from_the_mean_of_the_steps_before(tiny: Tiny) -> None:
    """The symmetric divergence of what the metric reads, its mean over the batch, from an EMA that moves with every step."""
    bench = Bench(tiny(proximal=bregman(beta=0.8, late_beta=None)))
    teacher = bench.copy()
    for number in range(3):
        student, batches = bench.copy(), bench.batches(first=8 * number)
        losses = bench.step(number, batches, limit=APART).losses
        for task, batch in batches.items():
            with torch.no_grad():
                logits_BK, taught_BK = (masked(model, task, batch, number) for model in (student, teacher))
                wanted = float(DIVERGENCES[task](logits_BK, taught_BK))
            assert float(losses[f"{task}_proximal"]) == pytest.approx(wanted, rel=1e-3, abs=1e-7)
            assert (wanted > 1e-5) == (number > 0), "single logits too: the softmax of one is 1, and its KL 0 for ever"
        with torch.no_grad():
            for mean, parameter in zip(teacher.parameters(), bench.model.parameters(), strict=True):
                mean.lerp_(parameter, 0.2)


def test_a_step_s_progress_chooses_the_rate_of_the_teacher(tiny: Tiny) -> None:
    for progress, followed in ((0.05, 0.5), (0.5, 0.25)):
        bench = Bench(tiny(proximal=bregman(beta=0.5, late_beta=0.75)))
        before = {name: parameter.detach().clone() for name, parameter in bench.model.named_parameters()}
        bench.step(progress=progress)
        assert bench.stepper.teacher is not None
        for name, mean in bench.stepper.teacher.means.items():
            wanted = before[name].lerp(bench.model.get_parameter(name).detach(), followed)
            assert torch.allclose(mean, wanted, atol=1e-6), name


def test_no_gradient_reaches_the_teacher_and_it_shares_what_is_frozen(tiny: Tiny) -> None:
    bench = moved(Bench(tiny(proximal="bregman", tasks={"all": {"pooling": "mean"}})))
    bench.step(measure=True)
    assert bench.stepper.teacher is not None
    teacher = bench.stepper.teacher.model
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
    shared = {name for name, parameter in teacher.named_parameters() if parameter is bench.model.get_parameter(name)}
    assert shared == {"encoder.pooler.0.weight", "encoder.pooler.0.bias"}


def test_bregman_of_weight_zero_is_the_plain_step(tiny: Tiny) -> None:
    plain, weightless = Bench(tiny()), Bench(tiny(proximal=bregman(weight=0.0)))
    for number in range(2):
        plain.step(number)
        weightless.step(number)
    for (name, one), (_, other) in zip(plain.model.named_parameters(), weightless.model.named_parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6), name


def test_bregman_s_gradient_is_in_proportion_to_its_weight(tiny: Tiny) -> None:
    merged = {}
    for weight in (0.0, 1.0, 10.0):
        bench = moved(Bench(tiny(proximal=bregman(weight=weight), optimizer={"clip": None})))
        bench.step()
        merged[weight] = bench.merged_P()
    assert not close(merged[1.0], merged[0.0], 1e-2)
    assert close(merged[10.0] - merged[0.0], 10 * (merged[1.0] - merged[0.0]), 1e-3)


def test_bregman_and_smart_add_up_and_both_are_their_task_s(tiny: Tiny) -> None:
    """With all of them weighed as the task is."""
    merged = {}
    for smoothness in ("none", smart(radius=0.05)):
        for proximal in ("none", "bregman"):
            for weight in (1.0, 3.0):
                weights = {"kind": "static", "weights": {"sst": weight}}
                changes = {"smoothness": smoothness, "proximal": proximal, "loss_weights": weights, "train_on": ["sst"]}
                bench = moved(Bench(tiny(**changes, optimizer={"clip": None})))
                bench.step()
                merged[smoothness != "none", proximal != "none", weight] = bench.merged_P()
    plain_P = merged[False, False, 1.0]
    added_P = merged[True, False, 1.0] + merged[False, True, 1.0] - plain_P
    assert not close(merged[True, False, 1.0], plain_P, 1e-2)
    assert not close(merged[False, True, 1.0], plain_P, 1e-2)
    assert close(merged[True, True, 1.0], added_P, 1e-4)
    assert close(merged[True, True, 3.0], 3 * merged[True, True, 1.0], 1e-4)


def test_the_teacher_s_passes_are_counted(tiny: Tiny) -> None:
    assert Bench(tiny(proximal="bregman")).step().passes == 2 * 24
    assert Bench(tiny(proximal="bregman", smoothness=smart(steps=1))).step().passes == 4 * 24


def test_smart_and_bregman_act_on_the_answer_of_a_loss_with_classes(tiny: Tiny) -> None:
    """Its expected label: an argmax would have no gradient."""
    changes = {"train_on": ["sts"], "tasks": {"sts": {"loss": "classes"}}, "optimizer": {"clip": None}}
    plain = moved(Bench(tiny(**changes)))
    plain.step()
    for penalty in ({"smoothness": smart(radius=0.05)}, {"proximal": "bregman"}):
        bench = moved(Bench(tiny(**changes, **penalty)))
        teacher = bench.stepper.teacher.model if bench.stepper.teacher else None
        student, batch = bench.copy(), bench.batches()["sts"]
        if teacher is not None:
            values_K1 = torch.arange(6.0)[:, None]
            answers = [masked(model, "sts", batch).detach().softmax(1) @ values_K1 for model in (student, teacher)]
            wanted = ((answers[0] - answers[1]) / HALF_RANGE).square().mean()
        losses = bench.step().losses
        assert float(losses["sts_proximal" if teacher else "sts_smoothness"]) > 1e-5
        assert teacher is None or float(losses["sts_proximal"]) == pytest.approx(float(wanted), rel=1e-3)
        assert not close(bench.merged_P(), plain.merged_P(), 1e-3)
