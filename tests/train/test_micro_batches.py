"""Steps and evaluations that run out of memory: repeated in smaller passes, to the same result, or ended with a sentence.

A memory of N tokens is simulated: an encoder that is given more raises the error of a real allocator.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from minbert_core.config import TrialConfig
from minbert_core.data.tokens import PackedBatch
from minbert_core.encoder import Encoder
from minbert_core.inputs import build_encoder, open_inputs
from minbert_core.memory import DoesNotFitError, indivisible, is_out_of_memory
from minbert_core.methods.optimizer import AdamW
from minbert_core.model import build_model, predict_logits
from minbert_core.settings.paths import lay_over
from minbert_core.train.micro_batches import fitted
from minbert_core.train.pretrained import find
from minbert_core.train.pretraining import run_pretraining
from minbert_core.train.trial import Progress, train
from tests.train.step_bench import NO_DROPOUT, SIZES, Bench, close, moved, opposed, r_drop, smart

Tiny = Callable[..., TrialConfig]
CPU = torch.device("cpu")
CUDA_TEXT = "CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.fixture(autouse=True, scope="module")
def frozen() -> None:
    """A step that ran out of memory collects garbage: here, a third of a second for what earlier tests have imported."""
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def memory(most: int) -> Iterator[list[int]]:
    """Within the block a pass of more than `most` tokens runs out of memory at its end; the tokens of all passes are listed."""
    forward, passes = Encoder.forward, []

    def bounded(encoder: Encoder, batch: PackedBatch, *further: Any, **named: Any) -> torch.Tensor:
        passes.append(sum(batch.lengths))
        hidden_ND = forward(encoder, batch, *further, **named)
        if passes[-1] > most:
            raise torch.OutOfMemoryError(CUDA_TEXT)
        return hidden_ND

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Encoder, "forward", bounded)
        yield passes


def run(config: TrialConfig, snapshot: dict[str, Any] | None = None) -> list[Progress]:
    return list(train(config, open_inputs(config), snapshot))


# ----------------------------------------------------------------------------------------------------------- recognition


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(CUDA_TEXT),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried …"),
        RuntimeError("[enforce fail] data. DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("could not create a memory object"),
        RuntimeError("could not create a primitive"),
        RuntimeError("std::bad_alloc"),
        np._core._exceptions._ArrayMemoryError((1 << 40,), np.dtype("float64")),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=lambda error: f"{type(error).__name__} {error}"[:40],
)
def test_every_kind_of_too_little_memory_is_recognised(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("a shape"), OSError(errno.ENOSPC, "full"), DoesNotFitError("out of memory")])
def test_nothing_else_is_taken_for_it(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_a_real_allocator_s_error_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)


# ------------------------------------------------------------------------------------------------------------ repetition


def test_a_step_is_repeated_with_half_its_largest_pass_until_it_fits(capsys: pytest.CaptureFixture[str]) -> None:
    tried: list[int | None] = []

    def attempt(limit: int | None, sizes: list[tuple[int, int]]) -> str:
        tried.append(limit)
        sizes += [(min(100, limit or 100), 4), (7, 2)]
        if (limit or 100) > 30:
            raise MemoryError
        return "done"

    assert fitted(attempt, None, CPU, "step 120") == ("done", 25)
    assert tried == [None, 50, 25]
    assert capsys.readouterr().out.splitlines() == [
        f"step 120 did not fit into memory; from here on in passes of at most {n} tokens (MemoryError)" for n in (50, 25)
    ]


def test_an_attempt_that_fails_before_its_first_pass_is_repeated_as_it_was_and_once() -> None:
    """The copy of a batch did not fit while the step before held its memory: this was called a pass of 0 tokens."""
    tried: list[int | None] = []

    def attempt(limit: int | None, sizes: list[tuple[int, int]]) -> str:
        tried.append(limit)
        if len(tried) == 1:
            raise MemoryError
        sizes.append((100, 4))
        return "done"

    assert fitted(attempt, 80, CPU, "step 7") == ("done", 80)
    assert tried == [80, 80]

    def never(limit: int | None, sizes: list[tuple[int, int]]) -> str:
        raise MemoryError

    with pytest.raises(DoesNotFitError, match=r"^step 7 does not fit: no memory is left for its batch \(MemoryError\)\.$"):
        fitted(never, None, CPU, "step 7")


def test_a_failed_attempt_has_released_its_tensors_before_the_next() -> None:
    """The traceback of its error refers to them as long as the error does."""
    references: list[weakref.ref[torch.Tensor]] = []

    def attempt(limit: int | None, sizes: list[tuple[int, int]]) -> None:
        assert not [reference for reference in references if reference() is not None]
        sizes += [(100, 4)]
        graph = torch.ones(3, requires_grad=True) * 2
        references.append(weakref.ref(graph))
        if len(references) < 3:
            raise torch.OutOfMemoryError(CUDA_TEXT)

    fitted(attempt, None, CPU, "step 1")
    assert len(references) == 3


def test_other_errors_are_raised_at_once() -> None:
    def attempt(limit: int | None, sizes: list[tuple[int, int]]) -> None:
        sizes += [(100, 4)]
        raise RuntimeError("a shape does not fit")

    with pytest.raises(RuntimeError, match="a shape"):
        fitted(attempt, None, CPU, "step 1")


def test_what_does_not_fit_with_one_example_per_pass_is_refused_with_a_sentence(tiny: Tiny) -> None:
    law = r"step 1 does not fit, even with one example of \d+ tokens per pass \(CUDA out of memory\. Tried to allocate"
    with memory(3), pytest.raises(DoesNotFitError, match=law):
        run(tiny())


# ------------------------------------------------------------------------------------------------- the same step in parts

DOCUMENTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "pearson": {"tasks": {"sts": {"loss": "pearson"}}},
    "smart": {"smoothness": smart(radius=0.05)},
    "smart, bi-encoded": {"smoothness": smart(radius=0.05), "tasks": {"pairs": {"pair_encoding": "bi", "pooling": "mean"}}},
    "bregman": {"proximal": "bregman"},
    "r_drop": {"smoothness": r_drop(), "encoder": {"hidden_dropout": 1e-6}},  # which R-Drop demands; a mask of 1e-6 keeps all
    "pcgrad": {"gradient": "pcgrad"},
    "gradvac": {"gradient": "gradvac"},
    "uncertainty": {"loss_weights": "uncertainty"},
}


@pytest.mark.parametrize("changes", DOCUMENTS.values(), ids=DOCUMENTS.keys())
def test_a_split_step_is_the_step_that_was_not_split(tiny: Tiny, changes: dict[str, Any]) -> None:
    """The merged gradient to 1e-6 of its norm, without dropout; the tasks conflict, so that gradient methods have work.

    A correlation of answers that hardly differ magnifies the rounding of the passes. Of answers that differ, 9e-7 is left.
    """
    config = tiny(**lay_over({**NO_DROPOUT, "optimizer": {"clip": None}}, changes))
    size, tolerance = (0.2, 2e-6) if "pearson" in str(changes) else (0.05, 1e-6)
    whole, parted = (moved(opposed(Bench(config)), size) for _ in range(2))
    wanted, report = whole.step(), parted.step(parts=parted.parts(*SIZES))
    assert close(parted.merged_P(), whole.merged_P(), tolerance)
    for name, loss in wanted.losses.items():
        assert float(report.losses[name]) == pytest.approx(float(loss), rel=1e-6, abs=1e-9), name
    for state in ("gradient_state", "loss_state"):
        for name, entry in getattr(whole.stepper, state).items():
            assert torch.allclose(getattr(parted.stepper, state)[name], entry, atol=1e-5), name


@pytest.mark.parametrize(
    "changes",
    [{"gradient": "gradvac", "loss_weights": "uncertainty", "proximal": "bregman"}, {"optimizer": {"rule": "course"}}],
)
def test_a_step_that_failed_has_changed_no_state(tiny: Tiny, changes: dict[str, Any]) -> None:
    """In any task's pass: afterwards the same step gives the same state as if it had not been tried."""
    failed, clean = Bench(tiny(**changes)), Bench(tiny(**changes))
    longest = max(sum(batch.lengths) for batch in failed.batches().values())
    with memory(longest - 1), pytest.raises(torch.OutOfMemoryError):
        failed.step()
    failed.step()
    clean.step()
    for name, tensor in clean.model.state_dict().items():
        assert torch.equal(failed.model.state_dict()[name], tensor), name
    assert str(failed.stepper.state()) == str(clean.stepper.state())


def test_a_clip_that_fails_leaves_gradvac_s_targets(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tiny(gradient="gradvac"))

    def fails(*_: Any) -> None:
        raise torch.OutOfMemoryError(CUDA_TEXT)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.utils, "get_total_norm", fails)
        with pytest.raises(torch.OutOfMemoryError):
            bench.step()
    assert bench.stepper.gradient_state == {}
    bench.step()
    assert bench.stepper.gradient_state


@pytest.mark.parametrize("rule", ["torch", "course"])
def test_moments_exist_before_the_first_update(tiny: Tiny, rule: str) -> None:
    """So an update does not allocate them, and none is left half done."""
    bench = Bench(tiny(optimizer={"rule": rule}))
    (optimizer,) = bench.stepper.optimizers.values()
    before = {id(parameter): state["exp_avg"].data_ptr() for parameter, state in optimizer.state.items()}
    bench.step()
    assert len(before) == sum(len(group["params"]) for group in optimizer.param_groups)
    assert {id(parameter): state["exp_avg"].data_ptr() for parameter, state in optimizer.state.items()} == before


def test_an_update_that_fails_ends_the_trial(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(AdamW, "step", fails)
    with pytest.raises(DoesNotFitError, match=r"The update of step 0 does not fit into memory \(MemoryError\)"):
        run(tiny())


# -------------------------------------------------------------------------------------------------------------- a trial


def test_a_trial_keeps_the_passes_that_held_and_says_so(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    """It fails in its first step only, and its losses are those of a trial with enough memory."""
    config = tiny(**NO_DROPOUT, train_on=["sst", "sts"], budget={"examples": 64, "points": [1]})
    wanted = [progress.record for progress in run(config)]
    with memory(100):
        records = [progress.record for progress in run(config)]
    lines = capsys.readouterr().out.splitlines()
    held = records[0]["train/micro_batch_tokens"]
    assert held <= 100
    assert lines[-1].startswith(f"step 1 did not fit into memory; from here on in passes of at most {held} tokens (CUDA out")
    assert {record["train/micro_batch_tokens"] for record in records if record["kind"] == "train"} == {held}
    for record, other in zip(records, wanted, strict=True):
        assert record["examples"] == other["examples"]
        for name in (name for name in other if name.endswith("_loss")):
            assert record[name] == pytest.approx(other[name], rel=1e-4), name
    assert "train/micro_batch_tokens" not in wanted[0]


def test_a_resumed_trial_goes_on_with_the_passes_that_held_and_repeats_to_the_digit(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(train_on=["sts"], budget={"examples": 48, "points": [1]}, smoothness=smart())
    with memory(100):
        for index, progress in enumerate(train(config, open_inputs(config))):
            if index == 1:
                snapshot = copy.deepcopy(progress.snapshot())
        whole = {name: tensor.clone() for name, tensor in progress.model.state_dict().items()}
        capsys.readouterr()
        resumed = run(config, snapshot)[-1].model.state_dict()
    assert "did not fit" not in capsys.readouterr().out
    assert snapshot["counters"]["micro_batch_tokens"] <= 100
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_the_config_of_a_repeated_trial_may_name_the_passes_that_held(tiny: Tiny) -> None:
    """With the limit in its config a trial has the same numbers, without a failure."""
    changes = {"train_on": ["sts"], "budget": {"examples": 48, "points": [1]}}
    with memory(100):
        found = run(tiny(**changes))[-1]
    held = found.snapshot()["counters"]["micro_batch_tokens"]
    given = run(tiny(**changes, machine={"micro_batch_tokens": held}))[-1]
    assert all(torch.equal(given.model.state_dict()[name], tensor) for name, tensor in found.model.state_dict().items())


# --------------------------------------------------------------------------------------------- evaluation and pretraining


def test_an_evaluation_that_does_not_fit_is_repeated_in_smaller_passes(tiny: Tiny) -> None:
    config = tiny()
    inputs = open_inputs(config)
    bert, split = build_model(config, build_encoder(config, inputs)), inputs.dev["sts"]
    wanted = predict_logits(bert, "sts", split, 64, inputs.specials)
    with memory(200) as passes:
        found = predict_logits(bert, "sts", split, 64, inputs.specials)
    assert found == pytest.approx(wanted, abs=1e-6)
    assert sum(tokens > 200 for tokens in passes) < 5, "once smaller, they stay smaller"
    with memory(3), pytest.raises(DoesNotFitError, match="An evaluation does not fit, even with one example of"):
        predict_logits(bert, "sts", split, 64, inputs.specials)


def test_a_pretraining_repeats_a_step_in_smaller_passes_and_resumes_with_them(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = {"kind": "mlm", "epochs": 0.2, "seed": 77}  # of no other test: the cache is shared
    config = tiny(stages=[stage, "multitask"])
    inputs = open_inputs(config)
    with memory(150):
        records = list(run_pretraining(find(config, inputs), config, inputs))
    (figures,) = [one.figures() for one in find(config, inputs)]
    assert records[-1]["made"]
    assert figures["micro_batch_tokens"] <= 150
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if "did not fit" in line).startswith("the evaluation of mlm ")


def test_other_memory_that_does_not_suffice_is_the_same_error() -> None:
    with (
        pytest.raises(DoesNotFitError, match=r"The model does not fit into memory \(MemoryError\)\."),
        indivisible("The model"),
    ):
        raise MemoryError
    with pytest.raises(RuntimeError, match="a shape"), indivisible("The model"):
        raise RuntimeError("a shape")
