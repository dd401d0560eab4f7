"""One step against autograd: the sum of the losses, heads, clipping, optimisers, and what a step or a stage does not train."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from minbert_core.data.tokens import pack
from minbert_core.encoder import Masks
from minbert_core.methods.loss_weights import Static
from minbert_core.methods.task_schedules import StepAt
from minbert_core.seeds import seed_of
from minbert_core.train.shared_gradients import SharedGradients
from minbert_core.train.step import Stepper
from tests.train.step_bench import (
    APART,
    COSINE,
    HALF_RANGE,
    LOSSES,
    NO_DROPOUT,
    SEED,
    Batches,
    Bench,
    Tiny,
    close,
    loss_of,
    smart,
    task_gradients,
)

# ------------------------------------------------------------------------------------------------------------ a cut vocabulary


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


# --------------------------------------------------------------------------------------------------------------------- the sum


@pytest.mark.parametrize("pairs", [{}, {"pair_encoding": "bi", "head": "sbert", "pooling": "mean"}], ids=["cross", "bi"])
def test_the_step_s_gradient_is_that_of_the_sum_of_the_losses(tiny: Tiny, pairs: dict[str, str]) -> None:
    """Summed, not averaged, on shared parameters and heads alike; under the same dropout masks."""
    bench = Bench(tiny(optimizer={"clip": None}, tasks={"pairs": pairs}))
    oracle, batches = bench.copy(), bench.batches()
    report = bench.step(3, batches, limit=APART)
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
        plain.step(number, limit=APART)
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


def test_gradients_are_bound_once_per_row_and_merge(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """The views are built once, with the buffer: 91 views cost .4 ms, and a merged step binds four rows."""
    bench, bound = Bench(tiny(gradient="pcgrad")), []
    views = bench.stepper.shared.views
    real = SharedGradients.use_row
    monkeypatch.setattr(SharedGradients, "use_row", lambda self, *a, **k: bound.append(real(self, *a, **k)))
    for number in range(2):
        bench.step(number)
    assert len(bound) == 2 * 4
    assert all(p.grad is view for p, view in zip(bench.stepper.shared.parameters, views[0], strict=True))


def test_the_optimiser_reads_the_buffer_and_moves_every_parameter(tiny: Tiny) -> None:
    """Gradients are views into the buffer: nothing is copied, nothing is left behind. A plain sum has no buffer."""
    for gradient in ("sum", "pcgrad"):
        bench = Bench(tiny(gradient=gradient))
        before = {name: parameter.detach().clone() for name, parameter in bench.model.named_parameters()}
        bench.step()
        assert all(not torch.equal(parameter, before[name]) for name, parameter in bench.model.named_parameters())
        start, rows_TP = 0, bench.stepper.shared.rows_TP
        for parameter in bench.stepper.shared.parameters:
            assert parameter.grad is not None
            assert len(rows_TP) == 0 or parameter.grad.data_ptr() == rows_TP[0, start:].data_ptr()
            start += parameter.numel()
        assert start == rows_TP.shape[1]


def test_the_rate_factor_scales_each_group_s_own_rate(tiny: Tiny) -> None:
    bench = Bench(tiny(optimizer={"lr": 1e-3, "head_lr_factor": 10}))
    bench.step(progress=0.05)  # half-way through a warm-up of a tenth
    assert [group["lr"] for group in bench.stepper.optimizers["all"].param_groups] == pytest.approx([5e-4, 5e-4, 5e-3, 5e-3])
    before = [parameter.detach().clone() for parameter in bench.model.parameters()]
    bench.step(1, progress=1.0)
    assert all(torch.equal(one, other) for one, other in zip(before, bench.model.parameters(), strict=True))


def test_losses_are_not_waited_for_where_nothing_reads_them(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minbert_core.train.step.numbers_of", lambda *_: pytest.fail("the host waits for the losses"))
    Bench(tiny()).step()


# --------------------------------------------------------------------------------------------------------- what is not touched


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


# ------------------------------------------------------------------------------------------------------------------------ clip


def test_clipping_is_by_the_global_norm_heads_included(tiny: Tiny) -> None:
    bench = Bench(tiny(optimizer={"clip": 0.05}))
    oracle, batches = bench.copy(), bench.batches()
    sum((loss_of(oracle, task, batch) for task, batch in batches.items()), torch.tensor(0.0)).backward()
    norm = nn.utils.clip_grad_norm_(oracle.parameters(), 0.05)
    report = bench.step(0, batches, measure=True, limit=APART)
    assert report.figures["gradient_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert float(norm) > 1
    for (name, parameter), (_, wanted) in zip(bench.model.named_parameters(), oracle.named_parameters(), strict=True):
        assert torch.allclose(parameter.grad, wanted.grad, rtol=1e-3, atol=1e-7), name


def test_a_gradient_within_the_limit_is_not_scaled(tiny: Tiny) -> None:
    free, limited = Bench(tiny(optimizer={"clip": None})), Bench(tiny(optimizer={"clip": 1e6}))
    free.step()
    limited.step()
    assert torch.equal(free.merged_P(), limited.merged_P())


# -------------------------------------------------------------------------------------------------------- one optimiser a task


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


# ------------------------------------------------------------------------------------------------- what a stage does not train


def test_a_step_on_a_frozen_encoder_has_the_heads_gradients_and_builds_no_graph_below_them(tiny: Tiny) -> None:
    """The encoder is used as in evaluation, without dropout; the heads drop."""
    bench = Bench(tiny(stages=["linear_probe"], optimizer={"clip": None}, encoder={"hidden_dropout": 0.5}))
    oracle, batches = bench.copy(), bench.batches()
    for task, batch in batches.items():
        masks = Masks(seed_of(SEED, "masks", 0, task, 0))
        output = oracle(task, batch, masks, encoder_drops=False)
        LOSSES[task](output.logits_BK, batch.labels_B).backward()
        assert not bench.model(task, batch).features_BF.requires_grad
    report = bench.step(0, batches, measure=True, limit=APART)
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
    assert len(bench.stepper.shared.rows_TP) == 0
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
