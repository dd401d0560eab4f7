"""The merge of task gradients in a step against explicit vectors: Gramian, gradient methods, loss weights.

B examples, K outputs, P shared parameters, T tasks.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from minbert_core.methods.gradients import cagrad_weights, random_orders
from minbert_core.seeds import seed_of
from minbert_core.train.shared_gradients import SharedGradients
from tests.train.step_bench import (
    APART,
    SEED,
    Bench,
    Tiny,
    close,
    loss_of,
    opposed,
    pcgrad_by_hand,
    task_gradients,
)

# ----------------------------------------------------------------------------------------------------------------- the Gramian


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


# ---------------------------------------------------------------------------------------------------------------------- merges


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
    state = bench.stepper.gradient_state
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


def test_the_cosines_of_each_parameter_group_are_reported(tiny: Tiny) -> None:
    bench = opposed(Bench(tiny(gradient="pcgrad")))
    rows_TP, _ = task_gradients(bench.copy(), bench.batches())
    part = bench.stepper.shared.slices["layer.1"]
    wanted = functional.cosine_similarity(rows_TP[1, part], rows_TP[2, part], dim=0)
    cosines = bench.step().group_cosines
    assert cosines["para_sts/layer.1"] == pytest.approx(float(wanted), abs=1e-4)
    assert {name.partition("/")[2] for name in cosines} <= set(bench.stepper.shared.slices)


def test_a_pair_whose_cosine_does_not_exist_is_not_reported(tiny: Tiny) -> None:
    """The encoder has no gradient of a task whose head is zero: 0/0 is no conflict."""
    bench = Bench(tiny(gradient="pcgrad"))
    with torch.no_grad():
        bench.model.heads["sts"].layers[0].weight.zero_()
    assert set(bench.step().cosines) == {"sst_para"}


# ---------------------------------------------------------------------------------------------------------------- loss weights


def weights_after(bench: Bench, losses: dict[str, float]) -> dict[str, float]:
    return bench.config.loss_weights.of(bench.stepper.kinds, losses, bench.stepper.loss_state)


def test_learned_variances_weigh_as_static_weights_would_and_move_with_the_losses(tiny: Tiny) -> None:
    """From the third step on: the losses of a step are read at the end of the next, when they are there."""
    learned = Bench(tiny(loss_weights={"kind": "uncertainty", "lr": 0.3}))
    for number in range(3):
        weights = weights_after(learned, {})
        static = Bench(tiny(loss_weights={"kind": "static", "weights": weights}))
        static.model.load_state_dict(learned.model.state_dict())
        static.step(number)
        report = learned.step(number, measure=True)
        assert close(learned.merged_P(), static.merged_P())
        assert {task: report.figures[f"{task}_weight"] for task in weights} == weights
        assert number > 1 or weights == {"sst": 1.0, "para": 1.0, "sts": 0.5}
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
    losses = {task: float(loss) for task, loss in plain.step(limit=APART).losses.items()}
    weights = weights_after(famo, losses)
    famo.step()
    for task, weight in weights.items():
        pairs = zip(famo.model.heads[task].parameters(), plain.model.heads[task].parameters(), strict=True)
        assert all(close(one.grad, weight * other.grad) for one, other in pairs)
