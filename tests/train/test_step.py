"""One step against autograd: the sum, the merges, heads, clipping, SMART's passes and masks, Bregman's teacher, batches in
parts, and what a step leaves alone.

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

from minbert_core.config import TrialConfig
from minbert_core.data.tokens import PackedBatch, pack
from minbert_core.encoder import Masks
from minbert_core.inputs import Inputs, build_encoder, open_inputs
from minbert_core.methods.gradients import cagrad_weights, random_orders
from minbert_core.methods.loss_weights import Static
from minbert_core.methods.smoothness import Clean
from minbert_core.methods.task_schedules import StepAt
from minbert_core.model import MultitaskBert, build_model
from minbert_core.seeds import seed_of
from minbert_core.settings.paths import lay_over
from minbert_core.train.shared_gradients import SharedGradients
from minbert_core.train.step import Stepper
from minbert_core.train.task_losses import Batch, StepReport

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
        self.stepper = Stepper(self.model, config.stage_plans()[0], config.loss_weights, SEED, precision)

    def batches(self, *tasks: str, first: int = 0, size: int = 8) -> Batches:
        """`size` rows from `first` on of each task's train split; of all tasks where none is named."""
        rows_B = np.arange(first, first + size)
        encodings = {name: self.model.plans[name].pair_encoding.kind for name in tasks or self.config.train_on}
        return {n: pack(self.inputs.train[n], rows_B, e, 64, self.inputs.specials) for n, e in encodings.items()}

    def parts(self, *sizes: int) -> dict[str, Batch]:
        """The first rows of each task's train split as one batch, in parts of so many examples."""
        ends = np.cumsum(sizes)
        split = [self.batches(first=int(end - size), size=size) for size, end in zip(sizes, ends, strict=True)]
        return {task: [batches[task] for batches in split] for task in self.config.train_on}

    def step(
        self,
        number: int = 0,
        batches: Batches | None = None,
        progress: float = 0.1,
        measure: bool = False,
        parts: dict[str, Batch] | None = None,
    ) -> StepReport:
        """A step over whole batches or `parts`, at the peak of the rate unless `progress` says otherwise."""
        whole = {task: [batch] for task, batch in (batches or self.batches()).items()}
        return self.stepper.step(number, parts or whole, progress, measure)

    def merged_P(self) -> Tensor:
        """The shared gradient that the optimiser read, in the order of the groups."""
        return self.stepper.shared.rows_TP[0].clone()

    def copy(self) -> MultitaskBert:
        return copy.deepcopy(self.model)


HALF_RANGE = 2.5  # of STS, whose labels go from 0 to 5: what an error of it is measured in

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sst": lambda logits_BK, labels_B: functional.cross_entropy(logits_BK, labels_B.long()),
    "para": lambda logits_BK, labels_B: functional.binary_cross_entropy_with_logits(logits_BK[:, 0], labels_B),
    "sts": lambda logits_BK, labels_B: (((logits_BK[:, 0] - labels_B) / HALF_RANGE) ** 2).mean(),
}


def masked(
    model: MultitaskBert,
    task: str,
    batch: PackedBatch,
    number: int = 0,
    part: int = 0,
    noise_ND: Tensor | None = None,
    view: int = 0,
) -> Tensor:
    """Logits under the step's own dropout masks, (B, K)."""
    seed = seed_of(SEED, "masks", number, task, part, *([view] if view else []))
    return model(task, batch, Masks(seed), noise_ND).logits_BK


def loss_of(model: MultitaskBert, task: str, batch: PackedBatch, number: int = 0, part: int = 0) -> Tensor:
    """The plain loss of one task under the step's own dropout masks, written out here again."""
    return LOSSES[task](masked(model, task, batch, number, part), batch.labels_B)


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


# ----------------------------------------------------------------------------------------------------------- the Gramian


def shared_rows(*rows: Tensor) -> SharedGradients:
    """A buffer of two groups, the smaller of 100 columns, that holds these rows."""
    rows_TP = torch.stack(rows)
    sizes = (100, rows_TP.shape[1] - 100)
    groups = {str(size): [nn.Parameter(torch.empty(size))] for size in sizes}
    shared = SharedGradients(groups, len(rows), torch.device("cpu"))
    shared.rows_TP.copy_(rows_TP)
    return shared


def nearly_opposed(difference: float, size: int = 3_000_100) -> Tensor:
    """g and -g plus noise of `difference` times its scale, (2, P); parameters differ in scale as an encoder's do."""
    generator = torch.Generator().manual_seed(0)
    scales_P, one_P, other_P = (torch.randn(size, generator=generator) for _ in range(3))
    scales_P = 1e-4 * (1.5 * scales_P).exp()
    return torch.stack([one_P * scales_P, (difference * other_P - one_P) * scales_P])


@pytest.mark.parametrize("matmul", ["highest", "medium"])
def test_cosines_over_millions_of_terms_are_those_of_float64(matmul: str) -> None:
    """One float32 product errs by 4e-5 here; oneDNN's, which `matmul: onednn` chooses, may round to bfloat16."""
    shared = shared_rows(*nearly_opposed(1.0), nearly_opposed(0.0)[0])
    torch.set_float32_matmul_precision(matmul)
    try:
        gramian_GTT = shared.gramian(3)
        assert torch.get_float32_matmul_precision() == matmul
    finally:
        torch.set_float32_matmul_precision("highest")
    exact_TP = shared.rows_TP.double()
    wanted_TT = functional.normalize(exact_TP, dim=1) @ functional.normalize(exact_TP, dim=1).T
    norms_T = gramian_GTT.sum(0).diagonal().sqrt()
    assert torch.allclose(gramian_GTT.sum(0) / (norms_T[:, None] * norms_T), wanted_TT, rtol=0, atol=1e-7)
    assert torch.allclose(gramian_GTT[0], exact_TP[:, :100] @ exact_TP[:, :100].T, rtol=1e-6)


def test_cagrad_s_merge_of_nearly_opposed_gradients_is_that_of_a_float64_gramian() -> None:
    """In a float32 product the square of the sum is lost in rounding, and CAGrad falls back to the sum: a third too short."""
    shared = shared_rows(*nearly_opposed(7e-4))
    exact_TP = shared.rows_TP.double()
    wanted_T, found_T = (cagrad_weights(gram_TT, 0.5) for gram_TT in (exact_TP @ exact_TP.T, shared.gramian(2).sum(0)))
    assert wanted_T.tolist() == pytest.approx([1.5, 1.5], abs=1e-3)  # c / 2 more of each, of norms alike
    assert close(found_T @ exact_TP, wanted_T @ exact_TP, 1e-4)


# --------------------------------------------------------------------------------------------------- a cut vocabulary


@pytest.mark.parametrize("rule", ["torch", "course"])
def test_words_outside_the_corpus_decay_as_they_would_in_the_whole_table(tiny: Tiny, rule: str) -> None:
    config = tiny(optimizer={"rule": rule, "lr": 1e-2, "weight_decay": 0.5})
    whole, cut = Bench(config), Bench(config)
    start_VD = whole.model.encoder.all_word_embeddings().clone()
    cut.model.encoder.train_words(cut.inputs.token_ids)
    cut.stepper = Stepper(cut.model, config.stage_plans()[0], config.loss_weights, SEED, "float32")
    for number in range(3):
        for bench in (whole, cut):
            bench.step(number, progress=0.1 + number / 4)
    outside_V = torch.ones(len(start_VD), dtype=torch.bool).index_fill(0, cut.inputs.token_ids, False)
    wanted_VD, found_VD = (bench.model.encoder.all_word_embeddings()[outside_V] for bench in (whole, cut))
    assert torch.allclose(found_VD, wanted_VD, rtol=1e-6, atol=0)
    assert 0.98 < float(wanted_VD.norm() / start_VD[outside_V].norm()) < 0.995


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
        wanted = ((bench.model("sts", batch).logits_BK[:, 0] - batch.labels_B) / HALF_RANGE).square().mean()
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


@pytest.mark.parametrize(("gradient", "times"), [("sum", 1), ("pcgrad", 4)])
def test_gradients_are_bound_once_for_the_sum_and_once_per_row_and_merge(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, gradient: str, times: int
) -> None:
    """The views are built once, with the buffer: 91 views cost .4 ms, and a merged step binds four rows."""
    bench, bound = Bench(tiny(gradient=gradient)), []
    views = bench.stepper.shared.views
    real = SharedGradients.use_row
    monkeypatch.setattr(SharedGradients, "use_row", lambda self, *a, **k: bound.append(real(self, *a, **k)))
    for number in range(2):
        bench.step(number)
    assert len(bound) == 2 * times
    assert all(p.grad is view for p, view in zip(bench.stepper.shared.parameters, views[0], strict=True))


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
    assert [group["lr"] for group in bench.stepper.optimizers["all"].param_groups] == pytest.approx([5e-4, 5e-4, 5e-3, 5e-3])
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


def test_a_group_s_gradients_are_summed_before_they_are_projected(tiny: Tiny) -> None:
    groups = [["sst", "para"]]
    bench = opposed(Bench(tiny(gradient={"kind": "pcgrad", "groups": groups}, optimizer={"clip": None})))
    rows_TP, heads = task_gradients(bench.copy(), bench.batches())
    parties_2P = torch.stack([rows_TP[0] + rows_TP[1], rows_TP[2]])
    assert float(parties_2P[0] @ parties_2P[1]) < 0, "without a conflict this shows nothing"
    bench.step()
    assert close(bench.merged_P(), pcgrad_by_hand(parties_2P, torch.tensor([[1], [0]])), 1e-4)
    for task, gradients in heads.items():
        assert all(close(p.grad, g) for p, g in zip(bench.model.heads[task].parameters(), gradients, strict=True))


def test_cagrad_serves_the_task_that_the_sum_serves_least(tiny: Tiny) -> None:
    bench = opposed(Bench(tiny(gradient={"kind": "cagrad", "c": 0.9}, optimizer={"clip": None})))
    rows_TP, _ = task_gradients(bench.copy(), bench.batches())
    bench.step()
    merged_P, sum_P = bench.merged_P(), rows_TP.sum(0)
    assert float((rows_TP @ merged_P).min()) > float((rows_TP @ sum_P).min())
    assert float((merged_P - sum_P).norm() / sum_P.norm()) == pytest.approx(0.9, rel=1e-3)


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
    state = bench.stepper.optimizers["all"].state[pooler]
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
        bench.stepper = Stepper(bench.model, bench.config.stage_plans()[0], Static(), SEED, "float32")
        assert list(bench.stepper.shared.slices) == ["embeddings", "layer.0", "layer.1"]
        assert bench.step(measure=True).figures["gradient_norm"] > 0
    assert torch.equal(before, bench.model.encoder.pooler[0].weight)
    assert bench.stepper.optimizers["all"].state[bench.model.encoder.word_embeddings.weight]["step"] == 1  # fresh


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
    exact, mixed = Bench(tiny(), "float32"), Bench(tiny(), "bfloat16")
    exact.step()
    mixed.step()
    assert 0 < float((exact.merged_P() - mixed.merged_P()).norm() / exact.merged_P().norm()) < 0.05
    assert mixed.stepper.shared.rows_TP.dtype == torch.float32


# ------------------------------------------------------------------------------------------------------------------- R-Drop


def r_drop(weight: float = 0.5) -> dict[str, Any]:
    return {"kind": "r_drop", "weight": weight}


def r_drop_terms(model: MultitaskBert, task: str, batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """The mean of the losses of two passes under different masks, and the divergence of their answers, written out."""
    views = [masked(model, task, batch, view=view) for view in range(2)]
    return (LOSSES[task](views[0], batch.labels_B) + LOSSES[task](views[1], batch.labels_B)) / 2, DIVERGENCES[task](*views)


def test_r_drop_equals_two_passes_under_different_masks(tiny: Tiny) -> None:
    bench = Bench(tiny(smoothness=r_drop(), optimizer={"clip": None}))
    oracle, batches = bench.copy(), bench.batches()
    terms = {task: r_drop_terms(oracle, task, batch) for task, batch in batches.items()}
    sum(loss + 0.5 * penalty for loss, penalty in terms.values()).backward()
    report = bench.step(0, batches)
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
    bench.step(0, batches)
    assert close(bench.merged_P(), torch.cat([parameter.grad.flatten() for parameter in shared_P(oracle)]), 1e-4)


def test_r_drop_s_gradient_ratio_is_that_of_the_weighted_gradients(tiny: Tiny) -> None:
    config = {"optimizer": {"clip": None}, "train_on": ["sst"]}
    plain, both = Bench(tiny(**config, smoothness=r_drop(0.0))), Bench(tiny(**config, smoothness=r_drop(2.0)))
    plain.step()
    ratio = both.step(measure=True).figures["sst_smoothness_gradient_ratio"]
    assert ratio == pytest.approx(float((both.merged_P() - plain.merged_P()).norm() / plain.merged_P().norm()), rel=1e-3)


def test_r_drop_of_a_correlation_in_parts_is_that_of_the_whole_batch_in_each_view(tiny: Tiny) -> None:
    config = tiny(train_on=["sts"], tasks={"sts": {"loss": "pearson"}}, smoothness=r_drop(), optimizer={"clip": None})
    bench = moved(Bench(config))
    oracle, parts = bench.copy(), bench.parts(*SIZES)["sts"]
    views_VP = [[masked(oracle, "sts", batch, part=p, view=view) for p, batch in enumerate(parts)] for view in range(2)]
    labels_B = torch.cat([batch.labels_B for batch in parts])
    loss = sum(oracle.plans["sts"].loss(torch.cat(views), labels_B, (0, 5)) for views in views_VP) / 2
    penalty = sum(size / 8 * DIVERGENCES["sts"](*pair) for size, pair in zip(SIZES, zip(*views_VP, strict=True), strict=True))
    (loss + 0.5 * penalty).backward()
    report = bench.step(parts={"sts": parts})
    assert float(report.losses["sts"]) == pytest.approx(float(loss.detach()), rel=1e-4)
    assert close(bench.merged_P(), torch.cat([parameter.grad.flatten() for parameter in shared_P(oracle)]), 1e-3)
    assert report.passes == 4 * 8


# ------------------------------------------------------------------------------------------------------------- loss weights


def weights_after(bench: Bench, losses: dict[str, float]) -> dict[str, float]:
    return bench.config.loss_weights.of(bench.stepper.kinds, losses, bench.stepper.loss_state)


def test_learned_variances_weigh_as_static_weights_would_and_move_with_the_losses(tiny: Tiny) -> None:
    learned = Bench(tiny(loss_weights={"kind": "uncertainty", "lr": 0.3}))
    for number in range(2):
        weights = weights_after(learned, {})
        static = Bench(tiny(loss_weights={"kind": "static", "weights": weights}))
        static.model.load_state_dict(learned.model.state_dict())
        static.step(number)
        report = learned.step(number, measure=True)
        assert close(learned.merged_P(), static.merged_P())
        assert {task: report.figures[f"{task}_weight"] for task in weights} == weights
    assert abs(weights["sst"] - 1) > 0.2


@pytest.mark.parametrize("gradient", ["sum", "pcgrad"])
def test_famo_weighs_rows_and_heads_by_the_losses_of_the_step(tiny: Tiny, gradient: str) -> None:
    bench = opposed(Bench(tiny(loss_weights="famo", gradient=gradient, optimizer={"clip": None})))
    for number in range(2):
        oracle, batches = bench.copy(), bench.batches(first=8 * number)
        rows_TP, heads = task_gradients(oracle, batches, number)
        losses = {task: float(loss_of(oracle, task, batch, number).detach()) for task, batch in batches.items()}
        weights = weights_after(bench, losses)
        rows_TP *= torch.tensor(list(weights.values()))[:, None]
        orders = random_orders(3, np.random.default_rng(seed_of(SEED, "orders", number)))
        report = bench.step(number, batches)
        assert close(bench.merged_P(), rows_TP.sum(0) if gradient == "sum" else pcgrad_by_hand(rows_TP, orders), 1e-4)
        for task, gradients in heads.items():
            found = [p.grad for p in bench.model.heads[task].parameters()]
            assert all(close(one, weights[task] * other, 1e-4) for one, other in zip(found, gradients, strict=True))
        assert report.passes == 2 * 24
    assert len({round(weight, 3) for weight in weights.values()}) == 3


def test_famo_follows_the_losses_of_the_same_batches_and_masks_after_the_update(tiny: Tiny) -> None:
    bench = Bench(tiny(loss_weights="famo"))
    batches = bench.batches()
    before = {task: float(loss_of(bench.copy(), task, batch).detach()) for task, batch in batches.items()}
    bench.step(0, batches)
    after = {task: float(loss_of(bench.copy(), task, batch).detach()) for task, batch in batches.items()}
    wanted: dict[str, Tensor] = {}
    bench.config.loss_weights.follow(bench.stepper.kinds, before, after, 0.1, wanted)
    for task, entry in bench.stepper.loss_state.items():
        assert entry.tolist() == pytest.approx(wanted[task].tolist(), rel=1e-3)
    assert abs(before["sst"] - after["sst"]) > 1e-3


def test_famo_on_a_single_task_s_stage_is_the_plain_step(tiny: Tiny) -> None:
    changes = {"stages": [{"kind": "single_task", "task": "sst"}], "optimizer": {"clip": None}}
    plain, famo = Bench(tiny(**changes)), Bench(tiny(**changes, loss_weights="famo"))
    report = famo.step(0, famo.batches("sst"))
    plain.step(0, plain.batches("sst"))
    assert torch.equal(famo.merged_P(), plain.merged_P())
    assert report.passes == 8


def test_famo_weighs_heads_on_a_frozen_encoder(tiny: Tiny) -> None:
    plain, famo = (Bench(tiny(stages=["linear_probe"], optimizer={"clip": None}, loss_weights=w)) for w in ("static", "famo"))
    losses = {task: float(loss) for task, loss in plain.step().losses.items()}
    weights = weights_after(famo, losses)
    famo.step()
    for task, weight in weights.items():
        pairs = zip(famo.model.heads[task].parameters(), plain.model.heads[task].parameters(), strict=True)
        assert all(close(one.grad, weight * other.grad) for one, other in pairs)


def test_losses_are_not_waited_for_where_nothing_reads_them(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minbert_core.train.step.numbers_of", lambda *_: pytest.fail("the host waits for the losses"))
    Bench(tiny()).step()


# ------------------------------------------------------------------------------------------------------- one optimiser a task


def test_with_separate_optimisers_each_task_has_moments_of_its_own(tiny: Tiny) -> None:
    """Against torch's AdamW, one a task over the same encoder, on explicit gradients."""
    optimizer = {"per_task": True, "clip": None, "lr_schedule": "constant", "warmup": 0, "weight_decay": 0}
    bench = Bench(tiny(optimizer=optimizer, task_schedule="alternate"))
    oracle = bench.copy()
    for parameter in oracle.parameters():
        parameter.requires_grad_(True)
    optimizers = {task: torch.optim.AdamW(oracle.parameters(), lr=1e-3, weight_decay=0) for task in ("sst", "sts")}
    for number, task in enumerate(("sst", "sts", "sst")):
        batches = bench.batches(task, first=8 * number)
        oracle.zero_grad()
        loss_of(oracle, task, batches[task], number).backward()
        optimizers[task].step()
        bench.step(number, batches)
    for (name, one), (_, other) in zip(bench.model.named_parameters(), oracle.named_parameters(), strict=True):
        assert torch.allclose(one, other, atol=2e-5), name
    word = bench.model.encoder.word_embeddings.weight
    assert [int(bench.stepper.optimizers[task].state[word].get("step", 0)) for task in ("sst", "para", "sts")] == [2, 0, 1]


RESUMED: dict[str, dict[str, Any]] = {
    "per task, course": {"optimizer": {"per_task": True, "rule": "course"}, "task_schedule": "alternate"},
    "uncertainty, r_drop": {"loss_weights": {"kind": "uncertainty", "lr": 0.1}, "smoothness": {"kind": "r_drop"}},
    "dwa, groups": {
        "loss_weights": {"kind": "dwa", "period": 0.1},
        "gradient": {"kind": "gradvac", "beta": 0.5, "groups": [["sst", "sts"]]},
    },
    "famo, cagrad": {"loss_weights": {"kind": "famo", "lr": 0.1}, "gradient": "cagrad"},
}


@pytest.mark.parametrize("changes", RESUMED.values(), ids=RESUMED.keys())
def test_a_stepper_goes_on_from_its_state_to_the_digit(tiny: Tiny, changes: dict[str, Any]) -> None:
    bench, resumed = Bench(tiny(**changes)), Bench(tiny(**changes))

    def step(one: Bench, number: int) -> None:
        tasks = one.stepper.stage.task_schedule.tasks_of_step(
            StepAt(number, 0.0, dict.fromkeys(one.stepper.stage.tasks, 9), {}, 0)
        )
        one.step(number, one.batches(*tasks, first=8 * number), progress=0.15 * number)

    for number in range(4):
        step(bench, number)
    resumed.model.load_state_dict(copy.deepcopy(bench.model.state_dict()))
    resumed.stepper.restore(copy.deepcopy(bench.stepper.state()))
    for number in (4, 5):
        step(bench, number)
        step(resumed, number)
    for one, other in zip(bench.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


# ------------------------------------------------------------------------------------------------------------------ Bregman


def bregman(**knobs: float | None) -> dict[str, Any]:
    return {"kind": "bregman", **knobs}


def class_divergence(p_BK: Tensor, q_BK: Tensor) -> Tensor:
    """KL(P||Q) + KL(Q||P) of two softmaxes, mean over the batch."""
    p_BK, q_BK = p_BK.softmax(1), q_BK.softmax(1)
    return (p_BK * (p_BK / q_BK).log() + q_BK * (q_BK / p_BK).log()).sum(1).mean()


def two_classes(logits_B1: Tensor) -> Tensor:
    """A Bernoulli as a softmax: of the logit and of 0."""
    return torch.cat([logits_B1, torch.zeros_like(logits_B1)], dim=1)


DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sst": class_divergence,
    "para": lambda p_B1, q_B1: class_divergence(two_classes(p_B1), two_classes(q_B1)),
    "sts": lambda p_B1, q_B1: ((p_B1 - q_B1) / HALF_RANGE).square().mean(),
}


def moved(bench: Bench, size: float = 0.01) -> Bench:
    """A student that has left its teacher, as it would in some steps."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in bench.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=size)
    return bench


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
        losses = bench.step(number, batches).losses
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
    for progress, followed in ((0.05, 1.0), (0.5, 0.25)):
        bench = Bench(tiny(proximal=bregman(beta=0.0, late_beta=0.75)))
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


# ---------------------------------------------------------------------------------------------------------- batches in parts

SIZES = (3, 1, 4)  # one part is a single example, which has no correlation
NO_HEAD_DROPOUT = {"pair_encoding": "bi", "pooling": "mean", "head": {"kind": "sbert", "dropout": 0}}
COSINE = {"pair_encoding": "bi", "head": {"kind": "cosine", "offset": -2.5}, "loss": "cosine_embedding"}
IN_PARTS: dict[str, dict[str, Any]] = {
    "cross-encoded": {},
    "cross-encoded, pearson": {"tasks": {"sts": {"loss": "pearson"}}},
    "cross-encoded, mse_pearson": {"tasks": {"sts": {"loss": "mse_pearson"}}},
    "cross-encoded, classes": {"tasks": {"sts": {"loss": "classes"}}},
    "bi-encoded": {"tasks": {"pairs": NO_HEAD_DROPOUT}},
    "bi-encoded, pearson": {"tasks": {"pairs": NO_HEAD_DROPOUT, "sts": {"loss": "pearson"}}},
    "bi-encoded, cosine_embedding": {"tasks": {"pairs": COSINE}},
    "pcgrad, pearson": {"gradient": "pcgrad", "tasks": {"sts": {"loss": "pearson"}}},
    "famo, pcgrad": {"loss_weights": "famo", "gradient": "pcgrad"},
    "gradvac, weighted": {"gradient": "gradvac", "loss_weights": {"kind": "static", "weights": {"sst": 2.0, "sts": 0.5}}},
    "bregman, pearson": {"proximal": "bregman", "tasks": {"sts": {"loss": "pearson"}}},
    "bregman, classes, pcgrad": {"proximal": "bregman", "tasks": {"sts": {"loss": "classes"}}, "gradient": "pcgrad"},
}


def head_gradients(bench: Bench) -> Tensor:
    """Of the heads that have one, in order."""
    return torch.cat([torch.zeros(1), *(p.grad.flatten() for p in bench.model.heads.parameters() if p.grad is not None)])


@pytest.mark.parametrize("changes", IN_PARTS.values(), ids=IN_PARTS.keys())
def test_a_batch_in_parts_has_the_gradient_of_the_whole(tiny: Tiny, changes: dict[str, Any]) -> None:
    """Also of a loss that is of the batch as a whole, and of a merge, whose Gramian is that of the whole batch."""
    config = tiny(**lay_over({**NO_DROPOUT, "optimizer": {"clip": None}}, changes))
    whole, parted = moved(Bench(config)), moved(Bench(config))
    wanted, report = whole.step(), parted.step(parts=parted.parts(*SIZES))
    two_passes = sum(not plan.loss.is_mean for plan in whole.model.plans.values())  # one to know the loss, one for its gradient
    tolerance = 1e-4 if two_passes else 1e-5  # a correlation of answers that hardly differ magnifies rounding, thirtyfold here
    assert close(parted.merged_P(), whole.merged_P(), tolerance)
    assert close(head_gradients(parted), head_gradients(whole), tolerance)
    assert report.losses.keys() == wanted.losses.keys()
    for name, loss in wanted.losses.items():
        assert float(report.losses[name]) == pytest.approx(float(loss), rel=tolerance), name
    for pair, cosine in wanted.cosines.items():
        assert report.cosines[pair] == pytest.approx(cosine, abs=1e-5), pair
    assert report.passes == wanted.passes + 8 * two_passes
    for task, entry in whole.stepper.loss_state.items():
        assert close(parted.stepper.loss_state[task], entry, 1e-3), task


def test_pcgrad_in_parts_projects_what_conflicts_over_the_whole_batch(tiny: Tiny) -> None:
    merged = {}
    for gradient in ("sum", "pcgrad"):
        for parts in ((8,), SIZES):
            bench = opposed(Bench(tiny(gradient=gradient, optimizer={"clip": None}, **NO_DROPOUT)))
            bench.step(parts=bench.parts(*parts))
            merged[gradient, len(parts)] = bench.merged_P()
    assert not close(merged["pcgrad", 1], merged["sum", 1], 1e-2), "without a conflict this shows nothing"
    assert close(merged["pcgrad", 3], merged["pcgrad", 1], 1e-4)


def test_pearson_s_loss_of_parts_weighed_by_size_would_be_far_off(tiny: Tiny) -> None:
    """Why it takes a pass more: the correlation of a batch is no mean over parts."""
    bench = Bench(
        tiny(train_on=["sts"], optimizer={"clip": None}, **lay_over(NO_DROPOUT, {"tasks": {"sts": {"loss": "pearson"}}}))
    )
    with torch.no_grad():
        bench.model.heads["sts"].layers[0].weight.mul_(100)  # answers over a fresh encoder hardly differ, and there r is linear
    naive, parts = bench.copy(), bench.parts(*SIZES)["sts"]
    for batch in parts:
        loss = naive.plans["sts"].loss(naive("sts", batch).logits_BK, batch.labels_B, (0, 5))
        (batch.num_examples / 8 * loss).backward()
    bench.step()
    naive_P = torch.cat([parameter.grad.flatten() for parameter in shared_P(naive)])
    assert not close(naive_P, bench.merged_P(), 0.3)


def test_smart_and_bregman_of_a_batch_in_parts_are_weighed_by_size(tiny: Tiny) -> None:
    """Against autograd through each part's own masks and noise, dropout on."""
    config = tiny(
        smoothness=smart(radius=0.05, weight=2.0),
        proximal=bregman(weight=3.0),
        loss_weights={"kind": "static", "weights": {"sts": 0.5}},
        optimizer={"clip": None},
    )
    bench = Bench(config)
    teacher = bench.copy()
    moved(bench)
    oracle, parts = bench.copy(), bench.parts(*SIZES)
    wanted: dict[str, Tensor] = {}
    for task, batches in parts.items():
        for part, batch in enumerate(batches):
            clean_BK = masked(oracle, task, batch, 0, part)
            with torch.no_grad():
                taught_BK = masked(teacher, task, batch, 0, part)
            clean = Clean(
                logits_VBK=[clean_BK],
                forward=lambda noise_ND, _, t=task, b=batch, p=part: masked(oracle, t, b, 0, p, noise_ND),
                divergence=DIVERGENCES[task],
                example_N=batch.example_N,
                num_examples=batch.num_examples,
                hidden_size=64,
                generator=torch.Generator().manual_seed(seed_of(SEED, "noise", 0, task, part)),
            )
            penalty = bench.stepper.stage.smoothness.penalty(clean)
            assert penalty is not None
            terms = {task: LOSSES[task](clean_BK, batch.labels_B), f"{task}_smoothness": penalty}
            terms[f"{task}_proximal"] = DIVERGENCES[task](clean_BK, taught_BK)
            for name, term in terms.items():
                wanted[name] = wanted.get(name, torch.tensor(0.0)) + batch.num_examples / 8 * term
    factors = {"": 1.0, "_smoothness": 2.0, "_proximal": 3.0}
    for task, weight in (("sst", 1.0), ("para", 1.0), ("sts", 0.5)):
        (weight * sum(factor * wanted[task + suffix] for suffix, factor in factors.items())).backward()
    report = bench.step(parts=parts)
    for name, term in wanted.items():
        assert float(report.losses[name]) == pytest.approx(float(term.detach()), rel=1e-3), name
    assert close(bench.merged_P(), torch.cat([parameter.grad.flatten() for parameter in shared_P(oracle)]), 1e-3)
    assert report.passes == 4 * 24


def test_measuring_changes_no_gradient_of_a_batch_in_parts(tiny: Tiny) -> None:
    changes = {
        "smoothness": smart(radius=0.05),
        "proximal": "bregman",
        "gradient": "gradvac",
        "tasks": {"sts": {"loss": "pearson"}},
    }
    plain, measured = moved(Bench(tiny(**changes))), moved(Bench(tiny(**changes)))
    plain.step(parts=plain.parts(*SIZES))
    report = measured.step(parts=measured.parts(*SIZES), measure=True)
    assert close(measured.merged_P(), plain.merged_P())
    assert report.figures["sts_smoothness_gradient_ratio"] > 0


# ------------------------------------------------------------------------------------------------ what a stage does not train


def test_a_step_on_a_frozen_encoder_has_the_heads_gradients_and_builds_no_graph_below_them(tiny: Tiny) -> None:
    """The encoder is used as in evaluation, without dropout; the heads drop."""
    bench = Bench(tiny(stages=["linear_probe"], optimizer={"clip": None}, encoder={"hidden_dropout": 0.5}))
    oracle, batches = bench.copy(), bench.batches()
    for task, batch in batches.items():
        masks = Masks(seed_of(SEED, "masks", 0, task, 0))
        output = oracle(task, batch, masks, encoder_drops=False)
        LOSSES[task](output.logits_BK, batch.labels_B).backward()
        assert not bench.model(task, batch).features_BF.requires_grad
    report = bench.step(0, batches, measure=True)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in bench.model.encoder.parameters())
    norms = []
    for one, other in zip(bench.model.heads.parameters(), oracle.heads.parameters(), strict=True):
        assert close(one.grad, other.grad)
        norms.append(other.grad.norm())
    assert report.figures["gradient_norm"] == pytest.approx(float(torch.stack(norms).norm()), rel=1e-4)


def test_after_a_stage_on_a_frozen_encoder_all_of_it_trains_again(tiny: Tiny) -> None:
    bench = Bench(tiny(stages=[{"kind": "linear_probe", "share": 0.1}, "multitask"]))
    bench.step()
    assert not any(parameter.requires_grad for parameter in bench.model.encoder.parameters())
    bench.stepper = Stepper(bench.model, bench.config.stage_plans()[1], Static(), SEED, "float32")
    before = {name: parameter.detach().clone() for name, parameter in bench.model.encoder.named_parameters()}
    bench.step(1)
    assert all(not torch.equal(parameter, before[name]) for name, parameter in bench.model.encoder.named_parameters())


def test_a_single_task_s_stage_leaves_the_other_heads_alone(tiny: Tiny) -> None:
    bench = Bench(tiny(stages=[{"kind": "single_task", "task": "para"}], gradient="pcgrad", optimizer={"weight_decay": 0.1}))
    before = {name: parameter.detach().clone() for name, parameter in bench.model.named_parameters()}
    report = bench.step(0, bench.batches("para"))
    changed = {name for name, parameter in bench.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name in before if not name.startswith(("heads.sst", "heads.sts"))}
    assert report.cosines == {}
    assert len(bench.stepper.shared.rows_TP) == 1
    others = [*bench.model.heads["sst"].parameters(), *bench.model.heads["sts"].parameters()]
    assert not any(parameter.requires_grad for parameter in others)  # so that a teacher shares them


@pytest.mark.parametrize("changes", [{}, {"smoothness": smart(radius=0.05), "proximal": "bregman"}], ids=["plain", "penalties"])
def test_a_loss_of_features_trains_the_encoder_and_leaves_its_head_as_it_was_built(tiny: Tiny, changes: dict[str, Any]) -> None:
    """Also under penalties, which act on the head's answer: they would shrink its scale, and no loss would hold it up."""
    bench = Bench(tiny(train_on=["sts"], tasks={"sts": COSINE}, **changes))
    before = {name: parameter.detach().clone() for name, parameter in bench.model.named_parameters()}
    for number in range(2):
        report = bench.step(number)
    changed = {name for name, parameter in bench.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name in before if name.startswith("encoder.")}
    assert 0 < float(report.losses["sts"]) < 2
    assert report.losses.keys() == {"sts"} | ({"sts_smoothness", "sts_proximal"} if changes else set())
    assert all(float(loss) > 0 for loss in report.losses.values())


def test_on_a_frozen_encoder_a_loss_of_features_trains_nothing_and_the_other_tasks_go_on(tiny: Tiny) -> None:
    bench = Bench(tiny(stages=["linear_probe"], tasks={"sts": COSINE}))
    before = {name: parameter.detach().clone() for name, parameter in bench.model.named_parameters()}
    assert float(bench.step().losses["sts"]) > 0
    changed = {name for name, parameter in bench.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name in before if name.startswith(("heads.sst", "heads.para"))}


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


def test_a_pair_whose_cosine_does_not_exist_is_not_reported(tiny: Tiny) -> None:
    """The encoder has no gradient of a task whose head is zero: 0/0 is no conflict."""
    bench = Bench(tiny(gradient="pcgrad"))
    with torch.no_grad():
        bench.model.heads["sts"].layers[0].weight.zero_()
    assert set(bench.step().cosines) == {"sst_para"}
