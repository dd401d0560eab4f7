"""One step against autograd: the sum, the merges, heads, clipping, SMART's passes and masks, and what a step leaves alone.

B examples, D hidden size, K outputs, N packed tokens, P shared parameters, T tasks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from minbert_core.config import TrialConfig, seed_of
from minbert_core.data.tokens import PackedBatch, pack
from minbert_core.encoder import Masks
from minbert_core.inputs import Inputs, build_encoder, open_inputs
from minbert_core.methods.gradients import random_orders
from minbert_core.model import MultitaskBert, build_model
from minbert_core.step import Stepper

Tiny = Callable[..., TrialConfig]
Batches = dict[str, PackedBatch]
SEED = 11
NO_DROPOUT = {
    "encoder": {"hidden_dropout": 0, "attention_dropout": 0},
    "tasks": {"all": {"head": {"kind": "linear", "dropout": 0}}},
}


class Bench:
    """A model, a stepper over it, and batches of its tasks."""

    def __init__(self, config: TrialConfig, precision: str = "float32") -> None:
        self.inputs: Inputs = open_inputs(config)
        self.config = config
        self.model = build_model(config, build_encoder(config, self.inputs))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():  # fresh heads are so small that hardly any gradient reaches the encoder
            for parameter in self.model.heads.parameters():
                parameter.normal_(0, 0.3, generator=generator)
        self.stepper = Stepper(self.model, config.stage_plans()[0], config.loss_weights.weight, SEED, precision)

    def batches(self, *tasks: str, first: int = 0, size: int = 8) -> Batches:
        """`size` rows from `first` on of each task's train split; of all tasks where none is named."""
        rows_B = np.arange(first, first + size)
        encodings = {name: self.model.plans[name].pair_encoding.kind for name in tasks or self.config.train_on}
        return {n: pack(self.inputs.train[n], rows_B, e, 64, self.inputs.specials) for n, e in encodings.items()}

    def step(self, number: int = 0, batches: Batches | None = None, progress: float = 0.1, measure: bool = False) -> Any:
        """A step over whole batches, at the peak of the rate unless `progress` says otherwise."""
        parts = {task: [batch] for task, batch in (batches or self.batches()).items()}
        return self.stepper.step(number, parts, progress, measure)

    def merged_P(self) -> Tensor:
        """The shared gradient that the optimiser read, in the order of the groups."""
        return self.stepper.shared.rows_TP[0].clone()

    def copy(self) -> MultitaskBert:
        return copy.deepcopy(self.model)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sst": lambda logits_BK, labels_B: functional.cross_entropy(logits_BK, labels_B.long()),
    "para": lambda logits_BK, labels_B: functional.binary_cross_entropy_with_logits(logits_BK[:, 0], labels_B),
    "sts": lambda logits_BK, labels_B: ((logits_BK[:, 0] - labels_B) ** 2).mean(),
}


def loss_of(model: MultitaskBert, task: str, batch: PackedBatch, number: int = 0) -> Tensor:
    """The plain loss of one task under the step's own dropout masks, written out here again."""
    masks = Masks(seed_of(SEED, "masks", number, task, 0))
    return LOSSES[task](model(task, batch, masks).logits_BK, batch.labels_B)


def shared_P(model: MultitaskBert) -> list[nn.Parameter]:
    return [parameter for group in model.encoder.parameter_groups().values() for parameter in group]


def task_gradients(model: MultitaskBert, batches: Batches, number: int = 0) -> tuple[Tensor, dict[str, list[Tensor]]]:
    """Each task's own gradient of the shared parameters, (T, P), and of its head."""
    rows, heads = [], {}
    for task, batch in batches.items():
        model.zero_grad()
        loss_of(model, task, batch, number).backward()
        rows.append(torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in shared_P(model)]))
        heads[task] = [p.grad.clone() for p in model.heads[task].parameters() if p.grad is not None]
    return torch.stack(rows), heads


def close(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> bool:
    return bool((one - other).norm() <= tolerance * other.norm())


# --------------------------------------------------------------------------------------------------------------- the sum


@pytest.mark.parametrize("pairs", [{}, {"pair_encoding": "bi", "head": "sbert", "pooling": "mean"}], ids=["cross", "bi"])
def test_the_step_s_gradient_is_that_of_the_sum_of_the_losses(tiny: Tiny, pairs: dict[str, str]) -> None:
    """Summed, not averaged, on shared parameters and heads alike; under the same dropout masks."""
    bench = Bench(tiny(optimizer={"clip": None}, tasks={"pairs": pairs}))
    oracle, batches = bench.copy(), bench.batches()
    report = bench.step(3, batches)
    losses = {task: loss_of(oracle, task, batch, 3) for task, batch in batches.items()}
    sum(losses.values(), torch.tensor(0.0)).backward()
    for (name, parameter), (_, wanted) in zip(bench.model.named_parameters(), oracle.named_parameters(), strict=True):
        assert wanted.grad is not None
        assert close(parameter.grad, wanted.grad, 1e-4) or float(wanted.grad.norm()) < 1e-6, name
    for task, loss in losses.items():
        assert float(report.losses[task]) == pytest.approx(float(loss.detach()), rel=1e-5)


def test_weights_of_one_equal_the_sum(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge whose weights are all one takes the other road to the same gradient."""
    plain, merging = Bench(tiny()), Bench(tiny(gradient="pcgrad"))
    ones = lambda self, gramian, tasks, orders, state: torch.ones_like(gramian[:, 0, :])  # noqa: E731
    monkeypatch.setattr(type(merging.stepper.stage.gradient), "weights", ones)
    for number in range(3):
        plain.step(number)
        merging.step(number)
        assert close(merging.merged_P(), plain.merged_P())
    for one, other in zip(plain.model.parameters(), merging.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_batch_twice_over_gives_the_same_gradient(tiny: Tiny) -> None:
    """Losses are means over the batch that is there: neither sums, nor divided by a nominal batch size."""
    once, twice = Bench(tiny(optimizer={"clip": None}, **NO_DROPOUT)), Bench(tiny(optimizer={"clip": None}, **NO_DROPOUT))
    rows_B = np.arange(5)
    encodings = {name: plan.pair_encoding.kind for name, plan in once.model.plans.items()}

    def repeated(times: int) -> Batches:
        return {
            n: pack(once.inputs.train[n], np.tile(rows_B, times), e, 64, once.inputs.specials) for n, e in encodings.items()
        }

    once.step(0, repeated(1))
    twice.step(0, repeated(2))
    assert close(twice.merged_P(), once.merged_P(), 1e-4)


def test_sts_labels_stay_real_numbers(tiny: Tiny) -> None:
    """69 % of STS labels change when they are truncated to integers."""
    bench = Bench(tiny(train_on=["sts"], **NO_DROPOUT))
    batch = bench.batches()["sts"]
    assert (batch.labels_B % 1 != 0).any()
    with torch.no_grad():
        wanted = (bench.model("sts", batch).logits_BK[:, 0] - batch.labels_B).square().mean()
    assert float(bench.step().losses["sts"]) == pytest.approx(float(wanted), rel=1e-5)


def test_static_weights_scale_a_task_s_gradient_head_included(tiny: Tiny) -> None:
    plain = Bench(tiny(train_on=["sst"], optimizer={"clip": None}))
    heavy = Bench(
        tiny(train_on=["sst"], optimizer={"clip": None}, loss_weights={"kind": "static", "weights": {"sst": 3.0}}),
    )
    plain_report, heavy_report = plain.step(), heavy.step()
    assert close(heavy.merged_P(), 3 * plain.merged_P())
    for one, other in zip(heavy.model.heads.parameters(), plain.model.heads.parameters(), strict=True):
        assert close(one.grad, 3 * other.grad)
    assert torch.equal(heavy_report.losses["sst"], plain_report.losses["sst"])  # what is logged is the loss itself


def test_gradients_do_not_leak_into_the_next_step(tiny: Tiny) -> None:
    for gradient in ("sum", "pcgrad"):
        bench = Bench(tiny(optimizer={"clip": None}, gradient=gradient))
        bench.step(0)
        oracle, batches = bench.copy(), bench.batches("sst", first=20)
        bench.step(1, batches)  # fewer tasks than before: the old rows must play no part
        rows_TP, heads = task_gradients(oracle, batches, 1)
        assert close(bench.merged_P(), rows_TP[0])
        assert all(close(p.grad, g) for p, g in zip(bench.stepper.model.heads["sst"].parameters(), heads["sst"], strict=True))
        assert all(p.grad is None for task in ("para", "sts") for p in bench.model.heads[task].parameters())


def test_the_optimiser_reads_the_buffer_and_moves_every_parameter(tiny: Tiny) -> None:
    """Gradients are views into the buffer: nothing is copied, nothing is left behind."""
    for gradient in ("sum", "pcgrad"):
        bench = Bench(tiny(gradient=gradient))
        before = {name: parameter.detach().clone() for name, parameter in bench.model.named_parameters()}
        bench.step()
        start, row_P = 0, bench.stepper.shared.rows_TP[0]
        for parameter in bench.stepper.shared.parameters:
            assert parameter.grad is not None
            assert parameter.grad.data_ptr() == row_P[start:].data_ptr()
            start += parameter.numel()
        assert start == len(row_P)
        assert all(not torch.equal(parameter, before[name]) for name, parameter in bench.model.named_parameters())


def test_the_rate_factor_scales_each_group_s_own_rate(tiny: Tiny) -> None:
    bench = Bench(tiny(optimizer={"lr": 1e-3, "head_lr_factor": 10}))
    bench.step(progress=0.05)  # half-way through a warm-up of a tenth
    assert [group["lr"] for group in bench.stepper.optimizer.param_groups] == pytest.approx([5e-4, 5e-4, 5e-3, 5e-3])
    before = [parameter.detach().clone() for parameter in bench.model.parameters()]
    bench.step(1, progress=1.0)
    assert all(torch.equal(one, other) for one, other in zip(before, bench.model.parameters(), strict=True))


# ------------------------------------------------------------------------------------------------------------------- merges


def pcgrad_by_hand(rows_TP: Tensor, orders: Tensor) -> Tensor:
    """Algorithm 1 of Yu et al. 2020 on the vectors themselves."""
    total_P = torch.zeros_like(rows_TP[0])
    for i, order in enumerate(orders.tolist()):
        projected_P = rows_TP[i].clone()
        for j in order:
            inner = projected_P @ rows_TP[j]
            if inner < 0:
                projected_P -= inner / rows_TP[j].square().sum() * rows_TP[j]
        total_P += projected_P
    return total_P


def gradvac_by_hand(rows_TP: Tensor, orders: Tensor, targets: dict[tuple[int, int], float], beta: float) -> Tensor:
    """Algorithm 1 of Wang et al. 2021 on the vectors of one group; `targets` moves, always."""
    total_P = torch.zeros_like(rows_TP[0])
    for i, order in enumerate(orders.tolist()):
        vector_P = rows_TP[i].clone()
        for j in order:
            if not rows_TP[j].any() or not vector_P.any():
                continue
            target, cosine = targets.get((i, j), 0.0), float(functional.cosine_similarity(vector_P, rows_TP[j], dim=0))
            if cosine < target:
                sine, sine_target = (1 - cosine**2) ** 0.5, (1 - target**2) ** 0.5
                scale = vector_P.norm() * (target * sine - cosine * sine_target) / (rows_TP[j].norm() * sine_target)
                vector_P = vector_P + scale * rows_TP[j]
            targets[i, j] = (1 - beta) * target + beta * cosine
        total_P += vector_P
    return total_P


def opposed(bench: Bench) -> Bench:
    """Tasks that conflict: the heads of para and sts read the same direction with opposite signs."""
    with torch.no_grad():
        bench.model.heads["sts"].layers[0].weight.copy_(-3 * bench.model.heads["para"].layers[0].weight)
    return bench


def test_pcgrad_equals_the_projection_of_explicit_task_gradients(tiny: Tiny) -> None:
    """Over shared parameters only: with the heads flattened in, norms, and so projections, would be others."""
    bench = opposed(Bench(tiny(gradient="pcgrad", optimizer={"clip": None})))
    conflicts = 0
    for number in range(4):
        oracle, batches = bench.copy(), bench.batches(first=8 * number)
        rows_TP, heads = task_gradients(oracle, batches, number)
        orders = random_orders(3, np.random.default_rng(seed_of(SEED, "orders", number)))
        wanted_P = pcgrad_by_hand(rows_TP, orders)
        conflicts += not close(wanted_P, rows_TP.sum(0), 1e-2)
        bench.step(number, batches)
        assert close(bench.merged_P(), wanted_P, 1e-4)
        for task, gradients in heads.items():  # a head takes its own gradient, whatever happens to the shared ones
            assert all(close(p.grad, g) for p, g in zip(bench.model.heads[task].parameters(), gradients, strict=True))
    assert conflicts, "without a conflict this shows nothing"


@pytest.mark.parametrize("per", ["layer", "model"])
def test_gradvac_equals_the_correction_of_explicit_task_gradients_over_steps(tiny: Tiny, per: str) -> None:
    """A group is embeddings, a layer, the pooler; targets move at every step, also where nothing is corrected."""
    bench = opposed(Bench(tiny(gradient={"kind": "gradvac", "beta": 0.3, "per": per}, optimizer={"clip": None})))
    slices = bench.stepper.shared.slices if per == "layer" else {"model": slice(0, None)}
    targets: dict[str, dict[tuple[int, int], float]] = {name: {} for name in slices}
    corrections = 0
    for number in range(4):
        oracle, batches = bench.copy(), bench.batches(first=8 * number)
        rows_TP, heads = task_gradients(oracle, batches, number)
        orders = random_orders(3, np.random.default_rng(seed_of(SEED, "orders", number)))
        wanted_P = torch.cat([gradvac_by_hand(rows_TP[:, part], orders, targets[n], 0.3) for n, part in slices.items()])
        corrections += not close(wanted_P, rows_TP.sum(0), 1e-2)
        bench.step(number, batches)
        assert close(bench.merged_P(), wanted_P, 1e-3)
        for task, gradients in heads.items():
            assert all(close(p.grad, g) for p, g in zip(bench.model.heads[task].parameters(), gradients, strict=True))
    assert corrections, "without a correction this shows nothing"
    assert max(value for group in targets.values() for value in group.values()) > 0, "targets that only fall: the published bug"


def test_gradvac_targets_are_kept_by_task_names_also_while_a_task_is_absent(tiny: Tiny) -> None:
    bench = Bench(tiny(gradient={"kind": "gradvac", "beta": 0.5}))
    bench.step(0)
    state = bench.stepper.gradient_state
    names = ("sst", "para", "sts")
    assert set(state) == {f"{one}>{other}" for one in names for other in names if one != other}
    before = {key: value.clone() for key, value in state.items()}
    bench.step(1, bench.batches("sts", "sst", first=8))
    moved = {key for key, value in state.items() if not torch.equal(value, before[key])}
    assert moved == {"sst>sts", "sts>sst"}


def test_gradvac_survives_a_group_that_only_one_task_reaches(tiny: Tiny) -> None:
    """The cosine with a zero gradient is 0/0, and would stay in its target for ever."""
    bench = Bench(tiny(tasks={"pairs": {"pooling": "mean"}}, gradient={"kind": "gradvac", "beta": 0.5}))
    for number in range(2):
        bench.step(number)
    pooler = list(bench.stepper.shared.slices).index("pooler")
    assert all(target.isfinite().all() and target[pooler] == 0 for target in bench.stepper.gradient_state.values())
    assert bench.merged_P().isfinite().all()


def test_the_cosines_of_the_shared_gradients_are_reported(tiny: Tiny) -> None:
    bench = opposed(Bench(tiny(gradient="pcgrad")))
    rows_TP, _ = task_gradients(bench.copy(), bench.batches())
    cosines = bench.step().cosines
    wanted = functional.cosine_similarity(rows_TP[1], rows_TP[2], dim=0)
    assert cosines["para_sts"] == pytest.approx(float(wanted), abs=1e-4)
    assert set(cosines) == {"sst_para", "sst_sts", "para_sts"}


# ------------------------------------------------------------------------------------------------------- what is not touched


@pytest.mark.parametrize("gradient", ["sum", "pcgrad"])
def test_a_pooler_that_no_task_of_the_step_reads_is_left_alone(tiny: Tiny, gradient: str) -> None:
    """A zero gradient would still decay its Adam moments, and weight decay would shrink it."""
    bench = Bench(tiny(tasks={"pairs": {"pooling": "mean"}}, gradient=gradient, optimizer={"weight_decay": 0.1}))
    bench.step(0)
    pooler = bench.model.encoder.pooler[0].weight
    state = bench.stepper.optimizer.state[pooler]
    before = [tensor.clone() for tensor in (pooler.detach(), state["exp_avg"], state["exp_avg_sq"], state["step"])]
    assert before[1].any()
    bench.step(1, bench.batches("para", "sts"))
    after = (pooler.detach(), state["exp_avg"], state["exp_avg_sq"], state["step"])
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    bench.step(2)
    assert not torch.equal(before[0], pooler)


def test_the_head_of_an_absent_task_is_left_alone(tiny: Tiny) -> None:
    bench = Bench(tiny(optimizer={"weight_decay": 0.1}))
    bench.step(0)
    before = [parameter.detach().clone() for parameter in bench.model.heads["sts"].parameters()]
    bench.step(1, bench.batches("sst", "para"))
    assert all(torch.equal(one, other) for one, other in zip(before, bench.model.heads["sts"].parameters(), strict=True))


def test_a_pooler_that_no_task_ever_reads_is_frozen_also_for_a_second_stage(tiny: Tiny) -> None:
    bench = Bench(tiny(tasks={"all": {"pooling": "mean"}}, gradient="gradvac"))
    before = bench.model.encoder.pooler[0].weight.detach().clone()
    for _ in range(2):
        bench.stepper = Stepper(bench.model, bench.config.stage_plans()[0], lambda _: 1.0, SEED, "float32")
        assert list(bench.stepper.shared.slices) == ["embeddings", "layer.0", "layer.1"]
        assert bench.step(measure=True).figures["gradient_norm"] > 0
    assert torch.equal(before, bench.model.encoder.pooler[0].weight)
    assert bench.stepper.optimizer.state[bench.model.encoder.word_embeddings.weight]["step"] == 1  # fresh


# --------------------------------------------------------------------------------------------------------------------- clip


def test_clipping_is_by_the_global_norm_heads_included(tiny: Tiny) -> None:
    bench = Bench(tiny(optimizer={"clip": 0.05}))
    oracle, batches = bench.copy(), bench.batches()
    sum((loss_of(oracle, task, batch) for task, batch in batches.items()), torch.tensor(0.0)).backward()
    norm = nn.utils.clip_grad_norm_(oracle.parameters(), 0.05)
    report = bench.step(0, batches, measure=True)
    assert report.figures["gradient_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert float(norm) > 1
    for (name, parameter), (_, wanted) in zip(bench.model.named_parameters(), oracle.named_parameters(), strict=True):
        assert torch.allclose(parameter.grad, wanted.grad, rtol=1e-3, atol=1e-7), name


def test_a_gradient_within_the_limit_is_not_scaled(tiny: Tiny) -> None:
    free, limited = Bench(tiny(optimizer={"clip": None})), Bench(tiny(optimizer={"clip": 1e6}))
    free.step()
    limited.step()
    assert torch.equal(free.merged_P(), limited.merged_P())


# -------------------------------------------------------------------------------------------------------------------- SMART


def smart(**knobs: float) -> dict[str, Any]:
    return {"kind": "smart", **knobs}


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


def test_small_radii_compute_in_float32_where_the_rest_is_bfloat16(tiny: Tiny) -> None:
    """bfloat16 rounds such noise away: at 1e-3 the change of the logits is 30 % wrong."""
    for radius, same in ((5e-3, True), (1e-2, False)):
        exact = Bench(tiny(smoothness=smart(radius=radius)), "float32").step()
        mixed = Bench(tiny(smoothness=smart(radius=radius)), "bfloat16").step()
        for name, loss in exact.losses.items():
            assert torch.equal(loss, mixed.losses[name]) == same, name
            assert mixed.losses[name].dtype == torch.float32


def test_bfloat16_stays_near_float32(tiny: Tiny) -> None:
    exact, mixed = Bench(tiny(), "float32"), Bench(tiny(), "bfloat16")
    exact.step()
    mixed.step()
    assert 0 < float((exact.merged_P() - mixed.merged_P()).norm() / exact.merged_P().norm()) < 0.05
    assert mixed.stepper.shared.rows_TP.dtype == torch.float32
