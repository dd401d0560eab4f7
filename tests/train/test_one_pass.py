"""One pass for all tasks of a step: the same losses and gradient as task by task, where nothing needs the tasks' gradients.

B examples, K outputs, N packed tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from minbert_core.data.packed import TOKENS, join
from minbert_core.encoder import Encoder, Masks
from minbert_core.seeds import seed_of
from minbert_core.settings.paths import lay_over
from minbert_core.train import step
from minbert_core.train.passes import Pass
from tests.train.step_bench import (
    APART,
    COSINE,
    LOSSES,
    NO_DROPOUT,
    SEED,
    SIZES,
    Bench,
    Tiny,
    close,
    moved,
    r_drop,
    smart,
)

BI_MEAN = {"pair_encoding": "bi", "pooling": "mean", "head": {"kind": "sbert", "dropout": 0}}
PENALTIES: dict[str, Any] = {"smoothness": smart(radius=0.05, weight=2.0), "proximal": "bregman"}

DOCUMENTS: dict[str, dict[str, Any]] = {
    "pooler": {},
    "cls": {"tasks": {"all": {"pooling": "cls"}}},
    "mean": {"tasks": {"all": {"pooling": "mean"}}},
    "attention": {"tasks": {"all": {"pooling": "attention"}}},
    "single sentences pooler, pairs mean in two": {"tasks": {"pairs": BI_MEAN}},
    "one pooling per task": {"tasks": {"sst": {"pooling": "max"}, "para": {"pooling": "cls"}, "sts": {"pooling": "attention"}}},
    "cosine_embedding": {"tasks": {"pairs": COSINE}},
    "pearson": {"tasks": {"sts": {"loss": "pearson"}}},
    "weighted": {"loss_weights": {"kind": "static", "weights": {"sst": 2.0, "sts": 0.5}}},
    "uncertainty": {"loss_weights": "uncertainty"},
    "dwa": {"loss_weights": "dwa"},
    "lora": {"adapter": "lora"},
    "a shared layer": {"shared_layer": {"kind": "leaky", "dropout": 0}, "tasks": {"pairs": BI_MEAN}},
    "a frozen encoder": {"stages": ["linear_probe"]},
    "smart": {"smoothness": smart(radius=0.05)},
    "smart, three steps": {"smoothness": smart(radius=0.05, steps=3), "tasks": {"pairs": BI_MEAN}},
    "smart, unit": {"smoothness": {"kind": "smart", "projection": "unit", "radius": 0.5}},
    "r_drop": {"smoothness": r_drop(), "encoder": {"hidden_dropout": 1e-6}},  # which R-Drop demands; a mask of 1e-6 keeps all
    "bregman": {"proximal": "bregman"},
    "smart, bregman, weighted": {**PENALTIES, "loss_weights": {"kind": "static", "weights": {"para": 3.0}}},
    "course": {"optimizer": {"rule": "course", "clip": 0.1}},
}


def passes_in(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The list to which every later pass through the student's encoder adds its number of sequences."""
    seen: list[int] = []
    forward = Encoder.forward

    def counted(self: Encoder, batch: Any, *further: Any, **named: Any) -> torch.Tensor:
        if self is bench.model.encoder:
            seen.append(len(batch.lengths))
        return forward(self, batch, *further, **named)

    monkeypatch.setattr(Encoder, "forward", counted)
    return seen


@pytest.mark.parametrize("changes", DOCUMENTS.values(), ids=DOCUMENTS.keys())
def test_one_pass_has_the_losses_and_the_gradient_of_a_pass_per_task(tiny: Tiny, changes: dict[str, Any]) -> None:
    """Also over several steps, in which loss weights, teacher and moments follow, and in passes that memory divides.

    The ascent of SMART follows signs, so that from the second step on rounding is magnified. In its released form (`unit`) the
    ascent follows a raw gradient, which is that of a mean over the pass: it has never been the same in parts, and division by
    its small norm magnifies rounding in the first step, too (1.5e-5 with the products of an AMD EPYC).
    """
    config = tiny(**lay_over({**NO_DROPOUT, "optimizer": {"clip": None}}, changes))
    apart, together, parted = (moved(Bench(config), 0.05) for _ in range(3))
    for number in range(2):
        first = 1e-4 if "unit" in str(changes) else 1e-5
        tolerance = 1e-3 if number and "smart" in str(changes) else first
        wanted = apart.step(number, limit=APART)
        reports = {together: together.step(number)}
        if "unit" not in str(changes):
            reports[parted] = parted.step(number, parts=parted.parts(*SIZES), limit=150)
        for bench, report in reports.items():
            assert close(bench.merged_P(), apart.merged_P(), tolerance)
            assert report.losses.keys() == wanted.losses.keys()
            for name, loss in wanted.losses.items():
                assert float(report.losses[name]) == pytest.approx(float(loss), rel=tolerance, abs=1e-8), name
            for one, other in zip(bench.stepper.head_parameters, apart.stepper.head_parameters, strict=True):
                assert (one.grad is None) == (other.grad is None)
                assert one.grad is None or torch.allclose(one.grad, other.grad, rtol=10 * tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({}, [24]),
        ({"tasks": {"pairs": BI_MEAN}}, [8 + 16 + 16]),
        ({"loss_weights": "uncertainty"}, [24]),
        ({"adapter": "lora"}, [24]),
        ({"smoothness": "smart"}, [24] * 3),
        ({"smoothness": "r_drop"}, [24] * 2),
        ({"proximal": "bregman"}, [24]),  # the teacher's own is another encoder's
        ({"stages": ["linear_probe"]}, [24]),
        ({"adapter": {"kind": "pal", "size": 8}}, [8] * 3),
        ({"gradient": "pcgrad"}, [8] * 3),
        ({"gradient": "gradvac"}, [8] * 3),
        ({"loss_weights": "famo"}, [8] * 6),
    ],
    ids=lambda value: str(value)[:40],
)
def test_tasks_share_a_pass_unless_their_gradients_are_needed_or_they_have_adapters(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], passes: list[int]
) -> None:
    bench = Bench(tiny(**changes))
    seen = passes_in(bench, monkeypatch)
    bench.step()
    assert seen == passes


def divided(bench: Bench, limit: int | None, *sizes: int) -> list[list[tuple[str, int]]]:
    """Task and number of each part of each pass of a step whose batches come in parts of `sizes`."""
    passes: list[Pass] = bench.stepper.passes(0, bench.parts(*sizes), limit)
    assert all(limit is None or len(one.packed.token_ids_N) <= limit or len(one.parts) == 1 for one in passes)
    return [[(part.task, part.index) for part in one.parts] for one in passes]


def test_a_pass_holds_as_many_parts_as_fit_and_no_task_twice(tiny: Tiny) -> None:
    bench = Bench(tiny())
    tokens = {task: len(batch.token_ids_N) for task, batch in bench.batches().items()}
    assert divided(bench, None, 8) == [[("sst", 0), ("para", 0), ("sts", 0)]]
    assert divided(bench, sum(tokens.values()), 8) == [[("sst", 0), ("para", 0), ("sts", 0)]]
    assert divided(bench, sum(tokens.values()) - 1, 8) == [[("sst", 0), ("para", 0)], [("sts", 0)]]
    assert divided(bench, None, 4, 4) == [[("sst", 0)], [("sst", 1), ("para", 0)], [("para", 1), ("sts", 0)], [("sts", 1)]]
    assert divided(bench, APART, 8) == [[("sst", 0)], [("para", 0)], [("sts", 0)]]


def test_on_a_cpu_many_tokens_share_no_pass_of_which_two_graphs_are_kept(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, smart, r_drop = Bench(tiny()), Bench(tiny(smoothness="smart")), Bench(tiny(smoothness="r_drop"))
    together = [[("sst", 0), ("para", 0), ("sts", 0)]]
    assert [divided(bench, None, 8) for bench in (plain, smart, r_drop)] == [together] * 3
    monkeypatch.setattr(step, "SHARED_TOKENS", APART)
    assert divided(plain, None, 8) == together
    assert [divided(bench, limit, 8) for bench in (smart, r_drop) for limit in (None, 10**6)] == [
        [[("sst", 0)], [("para", 0)], [("sts", 0)]]
    ] * 4


def test_a_correlation_over_a_cut_batch_keeps_passes_of_its_own(tiny: Tiny) -> None:
    """It takes one pass more, which should not be one of the other tasks'."""
    bench = Bench(tiny(tasks={"para": {"batch_size": 8}, "sts": {"loss": "pearson"}}))
    assert divided(bench, None, 8) == [[("sst", 0), ("para", 0), ("sts", 0)]]
    assert divided(bench, None, 4, 4)[-2:] == [[("sts", 0)], [("sts", 1)]]


def test_the_masks_of_one_pass_are_drawn_from_its_tasks_and_step_and_replayed(tiny: Tiny) -> None:
    """Against autograd through one pass under masks of the same seed; the same step again has the same gradient."""
    bench, again = (Bench(tiny(optimizer={"clip": None})) for _ in range(2))
    oracle, batches = bench.copy(), bench.batches()
    sequences = {task: len(batch.lengths) for task, batch in batches.items()}
    outputs = oracle.together(sequences, join(list(batches.values())), Masks(seed_of(SEED, "masks", 5, "sst+para+sts", 0)))
    losses = {task: LOSSES[task](output.logits_BK, batches[task].labels_B) for task, output in outputs.items()}
    sum(losses.values(), torch.tensor(0.0)).backward()
    report = bench.step(5, batches)
    again.step(5, batches)
    assert torch.equal(bench.merged_P(), again.merged_P())
    for task, loss in losses.items():
        assert float(report.losses[task]) == pytest.approx(float(loss.detach()), rel=1e-5)
    for (name, parameter), (_, wanted) in zip(bench.model.named_parameters(), oracle.named_parameters(), strict=True):
        assert close(parameter.grad, wanted.grad, 1e-4) or float(wanted.grad.norm()) < 1e-6, name


def test_joined_batches_hold_the_sequences_examples_and_labels_of_each_in_turn(tiny: Tiny) -> None:
    bench = Bench(tiny(tasks={"pairs": {"pair_encoding": "bi"}}))
    batches = list(bench.batches(size=3).values())
    joined = join(batches)
    ends = np.cumsum([len(batch.token_ids_N) for batch in batches])
    assert joined.lengths == sum((batch.lengths for batch in batches), ())
    assert joined.num_examples == 9
    assert joined.starts_S1.tolist() == [0, *np.cumsum(joined.lengths)]
    for index, (batch, end) in enumerate(zip(batches, ends, strict=True)):
        tokens = slice(end - len(batch.token_ids_N), end)
        for name in ("token_ids_N", "position_ids_N", "segment_ids_N"):
            assert torch.equal(getattr(joined, name)[tokens], getattr(batch, name)), name
        assert torch.equal(joined.example_N[tokens], batch.example_N + 3 * index)
        assert torch.equal(joined.labels_B[3 * index : 3 * index + 3], batch.labels_B)


ROUNDED = ("pooler", "mean", "attention", "single sentences pooler, pairs mean in two", "smart, unit", "r_drop", "bregman")


@pytest.mark.parametrize("name", ROUNDED)
def test_padding_to_a_round_number_of_tokens_changes_no_loss_and_no_gradient(tiny: Tiny, name: str) -> None:
    """oneDNN's route pads: it keeps a compiled product for each shape, and each step would have a new one."""
    config = tiny(**lay_over({**NO_DROPOUT, "optimizer": {"clip": None}}, DOCUMENTS[name]))
    exact, rounded = (moved(Bench(config), 0.05) for _ in range(2))
    wanted = exact.step()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        passes = rounded.stepper.passes(0, {task: [batch] for task, batch in rounded.batches().items()})
    finally:
        torch.set_float32_matmul_precision(before)
    report = rounded.stepper.step(0, passes, 0.1, measure=False)
    assert all(len(one.packed.token_ids_N) % TOKENS == 0 < one.packed.num_padding for one in passes)
    assert close(rounded.merged_P(), exact.merged_P(), 1e-3 if "smart" in name else 1e-5)
    for task, loss in wanted.losses.items():
        assert float(report.losses[task]) == pytest.approx(float(loss), rel=1e-3 if "smart" in name else 1e-5, abs=1e-8), task
