"""A batch that comes in parts: its gradient, losses, penalties and merges are those of the whole batch.

B examples, K outputs, N packed tokens, D hidden size, P shared parameters.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from minbert_core.methods.smoothness import Clean
from minbert_core.seeds import seed_of
from minbert_core.settings.paths import lay_over
from tests.train.step_bench import (
    APART,
    COSINE,
    DIVERGENCES,
    LOSSES,
    NO_DROPOUT,
    SEED,
    SIZES,
    Bench,
    Tiny,
    bregman,
    close,
    masked,
    moved,
    opposed,
    r_drop,
    shared_P,
    smart,
)


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


NO_HEAD_DROPOUT = {"pair_encoding": "bi", "pooling": "mean", "head": {"kind": "sbert", "dropout": 0}}


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


def noise_of(task: str, num_tokens: int) -> Tensor:
    """The noise of a task's whole batch, (N, D)."""
    return torch.randn((num_tokens, 64), generator=torch.Generator().manual_seed(seed_of(SEED, "noise", 0, task, 0)))


def test_smart_and_bregman_of_a_batch_in_parts_are_weighed_by_size(tiny: Tiny) -> None:
    """Against autograd through each part's own masks and its rows of the batch's noise, dropout on."""
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
        ends = torch.tensor([sum(batch.lengths) for batch in batches]).cumsum(0).tolist()
        for part, (batch, end) in enumerate(zip(batches, ends, strict=True)):
            clean_BK = masked(oracle, task, batch, 0, part)
            with torch.no_grad():
                taught_BK = masked(teacher, task, batch, 0, part)
            clean = Clean(
                logits_VBK=[clean_BK],
                forward=lambda noise_ND, _, t=task, b=batch, p=part: masked(oracle, t, b, 0, p, noise_ND),
                divergence=DIVERGENCES[task],
                example_N=batch.example_N,
                num_examples=batch.num_examples,
                random_noise=lambda t=task, n=ends[-1], b=batch, e=end: noise_of(t, n)[e - sum(b.lengths) : e],
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
    report = bench.step(parts=parts, limit=APART)
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
