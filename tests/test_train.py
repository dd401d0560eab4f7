"""One trial: repeats and resumption to the digit, evaluation points, budgets, rates, stages, and how a trial ends badly."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from minbert_core.config import TrialConfig
from minbert_core.inputs import open_inputs
from minbert_core.machine import resolve_device, resolve_precision
from minbert_core.train import (
    NotFiniteError,
    Progress,
    evaluate_dev,
    load_snapshot,
    save_snapshot,
    stage_ends,
    train,
)

Tiny = Callable[..., TrialConfig]
Records = list[dict[str, Any]]
CLOCK = ("time_ms", "seconds", "train/examples_per_second", "system/peak_memory_gb")


def without_clock(records: Records) -> Records:
    return [{name: value for name, value in record.items() if name not in CLOCK} for record in records]


def run(config: TrialConfig, snapshot: dict[str, Any] | None = None) -> list[Progress]:
    return list(train(config, open_inputs(config), snapshot))


def records_of(config: TrialConfig) -> Records:
    return [progress.record for progress in run(config)]


def weights_of(progress: Progress) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in progress.model.state_dict().items()}


TRIALS: dict[str, dict[str, Any]] = {
    "sum": {},
    "gradvac and smart": {"gradient": {"kind": "gradvac", "beta": 0.3}, "smoothness": {"kind": "smart", "radius": 0.03}},
    "proportional, annealed": {
        "task_schedule": {"kind": "proportional", "alpha": 1.0, "alpha_end": 0.2},
        "tasks": {"all": {"batch_size": 16}, "pairs": {"pair_encoding": "bi", "head": "sbert", "pooling": "mean"}},
    },
    "two stages": {
        "budget": {"examples": 200, "points": [1, 2, 4]},  # the second point lies on the stages' boundary
        "tasks": {"all": {"pooling": "mean"}},  # the pooler is frozen, at each stage's start again
        "stages": [
            {"kind": "multitask", "share": 0.5, "gradient": "pcgrad"},
            {"kind": "multitask", "gradient": "gradvac", "optimizer": {"lr": 3e-4}},
        ],
    },
}


@pytest.mark.parametrize("changes", TRIALS.values(), ids=TRIALS.keys())
def test_a_trial_that_goes_on_from_any_snapshot_repeats_to_the_digit(
    tiny: Tiny, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Whole, again, and from a snapshot at every yield: the same records and weights."""
    config = tiny(**changes)
    records: Records = []
    for i, progress in enumerate(train(config, open_inputs(config))):
        records.append(progress.record)
        save_snapshot(tmp_path / f"{i}.pt", progress.snapshot(), records)
    final = weights_of(progress)
    assert without_clock(records_of(config)) == without_clock(records)
    assert sum(record["kind"] == "dev" for record in records) == 3
    assert len(records) >= 12
    torch.manual_seed(123)  # nothing hangs on the global generator
    for i in range(len(records)):
        snapshot, known = load_snapshot(tmp_path / f"{i}.pt")
        assert known == records[: i + 1]
        progress_list = run(config, snapshot)
        assert without_clock(known + [later.record for later in progress_list]) == without_clock(records)
        if progress_list:
            assert all(torch.equal(tensor, final[name]) for name, tensor in weights_of(progress_list[-1]).items())
        else:
            assert i == len(records) - 1


def test_another_seed_is_another_trial(tiny: Tiny) -> None:
    assert without_clock(records_of(tiny())) != without_clock(records_of(tiny(seed=1)))


def test_seconds_go_on_from_the_snapshot(tiny: Tiny) -> None:
    config = tiny()
    progress = next(train(config, open_inputs(config)))
    snapshot = progress.snapshot()
    snapshot["counters"]["seconds"] = 1000.0
    assert run(config, snapshot)[0].record["seconds"] > 1000


# ----------------------------------------------------------------------------------------------------- points and records


def points_of(records: Records) -> dict[int, int]:
    """part -> examples of each dev record; each part once."""
    parts = [record["part"] for record in records if record["kind"] == "dev"]
    assert len(set(parts)) == len(parts)
    return {record["part"]: record["examples"] for record in records if record["kind"] == "dev"}


def test_a_point_falls_after_the_first_step_that_reaches_it(tiny: Tiny) -> None:
    """Steps of 24 in a budget of 240: ninths are 26.7, 80, 240."""
    assert points_of(records_of(tiny())) == {1: 48, 3: 96, 9: 240}
    assert points_of(records_of(tiny(budget={"examples": 216}))) == {1: 24, 3: 72, 9: 216}  # exactly
    assert points_of(records_of(tiny(budget={"examples": 250, "points": [1, 2]}))) == {1: 144, 2: 264}  # the last overshoots


@pytest.mark.parametrize(
    ("examples", "points"),
    [(1, {9: 24}), (24, {9: 24}), (40, {3: 24, 9: 48}), (48, {3: 24, 9: 48}), (96, {1: 24, 3: 48, 9: 96})],
)
def test_where_one_step_reaches_several_points_the_fullest_is_reported(
    tiny: Tiny, examples: int, points: dict[int, int]
) -> None:
    progress_list = run(tiny(budget={"examples": examples}))
    assert points_of([progress.record for progress in progress_list]) == points


@pytest.mark.parametrize("changes", TRIALS.values(), ids=TRIALS.keys())
def test_the_last_point_is_always_reached_and_is_the_last_yield(tiny: Tiny, changes: dict[str, Any]) -> None:
    config = tiny(**changes)
    progress_list = run(config)
    assert [progress.done for progress in progress_list] == [False] * (len(progress_list) - 1) + [True]
    assert progress_list[-1].part == config.budget.points[-1]
    for progress in progress_list:
        assert (progress.record["kind"] == "dev") == (progress.part is not None)
    kinds = [progress.record["kind"] for progress in progress_list]
    assert all(before == "train" for before, kind in pairwise(kinds) if kind == "dev")


def test_losses_are_logged_about_a_hundred_times_a_trial(tiny: Tiny) -> None:
    records = records_of(tiny(train_on=["sst"], tasks={"all": {"batch_size": 4}}, budget={"examples": 1200}))
    logs = [record for record in records if record["kind"] == "train"]
    assert records[-1]["step"] == 300
    assert 99 <= len(logs) <= 103


def test_a_logged_loss_is_the_mean_over_the_steps_since_the_last(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    every = [record["train/sst_loss"] for record in records_of(tiny()) if record["kind"] == "train"]
    assert len(every) == 10
    monkeypatch.setattr("minbert_core.train.LOGS_A_TRIAL", 1)
    pooled = [(r["step"], r["train/sst_loss"]) for r in records_of(tiny()) if r["kind"] == "train"]
    assert [step for step, _ in pooled] == [2, 4, 10]  # where a point falls
    wanted = [sum(every[0:2]) / 2, sum(every[2:4]) / 2, sum(every[4:10]) / 6]
    assert [loss for _, loss in pooled] == pytest.approx(wanted, rel=1e-5)


def test_a_record_holds_what_a_reader_needs(tiny: Tiny) -> None:
    records = records_of(tiny(smoothness="smart", gradient="pcgrad"))
    log, dev = records[0], records[-1]
    assert {"kind", "step", "examples", "passes", "time_ms", "seconds"} <= log.keys() & dev.keys()
    assert {"train/sst_loss", "train/para_smoothness_loss", "train/lr", "train/examples_per_second"} <= log.keys()
    assert {"train/gradient_norm", "train/cosine_sst_para", "train/sts_smoothness_gradient_ratio"} <= log.keys()
    assert {"part", "dev/score", "dev/sst", "dev/para", "dev/sts", "dev/norm", "dev/mean"} <= dev.keys()
    assert (dev["step"], dev["examples"], dev["passes"]) == (10, 240, 3 * 240)
    assert {type(value) for record in records for value in record.values()} <= {int, float, str, bool}


def test_the_score_is_the_objective_and_improvement_follows_it(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not SST alone, as in the skeleton: dev metrics are set by hand, SST falls while norm rises, then the reverse."""
    metrics = iter(
        [
            {"sst": 0.5, "para": 0.5, "sts": 0.0},
            {"sst": 0.4, "para": 0.7, "sts": 0.4},
            {"sst": 0.6, "para": 0.6, "sts": 0.0},
        ]
    )
    monkeypatch.setattr("minbert_core.train.evaluate_dev", lambda *_: (next(metrics), {}))
    points = [progress for progress in run(tiny()) if progress.part is not None]
    assert [progress.record["dev/score"] for progress in points] == pytest.approx([0.5, 0.6, 1.7 / 3])
    assert [progress.improved for progress in points] == [True, True, False]
    assert points[-1].snapshot()["counters"]["best_part"] == 3


def test_the_dev_record_is_that_of_the_model_that_is_yielded(tiny: Tiny) -> None:
    config = tiny(objective="mean")
    inputs = open_inputs(config)
    for progress in train(config, inputs):
        if progress.part is not None:
            metrics, notes = evaluate_dev(progress.model, config, inputs)
            assert metrics == {name: progress.record[f"dev/{name}"] for name in metrics}
            assert progress.record["dev/score"] == progress.record["dev/mean"]
            assert notes == {}


# ------------------------------------------------------------------------------------------------------ budgets and rates


@pytest.mark.parametrize(
    ("schedule", "epochs", "examples"),
    [
        ("round_robin", 1, 120),  # 5 steps of 24 exhaust sst's 40 rows
        ("round_robin", 2.5, 300),
        ("mix", 1, 15 * 24),  # para's 120 rows
        ("proportional", 1, 40 + 120 + 80),
    ],
)
def test_an_epoch_is_what_the_task_schedule_says(tiny: Tiny, schedule: str, epochs: float, examples: int) -> None:
    config = tiny(budget={"examples": None, "epochs": epochs}, task_schedule=schedule)
    assert config.num_examples({"sst": 40, "para": 120, "sts": 80}) == examples


def test_a_budget_in_epochs_is_spent(tiny: Tiny) -> None:
    records = records_of(tiny(budget={"examples": None, "epochs": 1}))
    assert records[-1]["examples"] == 3 * 120
    assert records[-1]["part"] == 9


def rates(records: Records) -> list[float]:
    return [record["train/lr"] for record in records if record["kind"] == "train"]


def test_the_rate_is_that_of_the_step_s_middle(tiny: Tiny) -> None:
    """Ten steps, warm-up of a tenth: middles at 0.05, 0.15, ... 0.95; neither end is wasted on a rate of 0."""
    found = rates(records_of(tiny(optimizer={"lr": 1e-3, "warmup": 0.1})))
    wanted = [0.5] + [(1 - middle / 100) / 0.9 for middle in range(15, 100, 10)]
    assert found == pytest.approx([1e-3 * factor for factor in wanted])


def test_a_last_step_beyond_the_budget_still_has_a_rate(tiny: Tiny) -> None:
    """Of a budget of 242 the eleventh step has 2 left: its middle is 241, not 252."""
    found = rates(records_of(tiny(budget={"examples": 242}, optimizer={"lr": 1e-3, "warmup": 0.0})))
    assert len(found) == 11
    assert found[-1] == pytest.approx(1e-3 / 242)


def test_each_stage_has_a_fresh_optimiser_fresh_targets_and_its_own_schedule_of_rates(tiny: Tiny) -> None:
    second = {"optimizer": {"lr": 1e-4, "warmup": 0.2}, "gradient": {"kind": "gradvac", "beta": 0}}
    config = tiny(
        optimizer={"lr": 1e-3, "warmup": 0.0},
        gradient={"kind": "gradvac", "beta": 0.5},
        stages=[{"kind": "multitask", "share": 0.5}, {"kind": "multitask", **second}],
    )
    found, lr = [], []
    for progress in train(config, open_inputs(config)):
        if progress.record["kind"] == "train":
            snapshot = progress.snapshot()
            adam_steps = {int(state["step"]) for state in snapshot["optimizer"]["state"].values()}
            has_targets = any(bool(target.any()) for target in snapshot["gradient"].values())
            found.append((snapshot["counters"]["stage"], adam_steps, has_targets))
            lr.append(progress.record["train/lr"])
    # with a beta of 0 the targets of the second stage stay where they begin
    assert found == [(0, {step}, True) for step in range(1, 6)] + [(1, {step}, False) for step in range(1, 6)]
    assert lr[:5] == pytest.approx([9e-4, 7e-4, 5e-4, 3e-4, 1e-4])
    assert lr[5:] == pytest.approx([5e-5, 8.75e-5, 6.25e-5, 3.75e-5, 1.25e-5])


def test_stages_end_where_their_shares_say_and_the_last_with_the_trial() -> None:
    assert stage_ends([1.0], 240) == [240]
    assert stage_ends([0.5, 0.5], 241) == [121, 241]
    assert stage_ends([1 / 3, 1 / 3, 1 / 3], 300) == [100, 200, 300]  # 0.333... x 300 is no 101
    assert stage_ends([0.333333] * 3, 9_000_000)[-1] == 9_000_000  # shares that sum to .999999 are a whole


def test_data_goes_on_where_the_stage_before_left_it(tiny: Tiny) -> None:
    config = tiny(stages=[{"kind": "multitask", "share": 0.5}, {"kind": "multitask"}])
    assert run(config)[-1].snapshot()["counters"]["drawn"] == {"sst": 80, "para": 80, "sts": 80}


# ----------------------------------------------------------------------------------------------------------- bad endings


def test_a_loss_that_is_not_finite_ends_the_trial_with_its_task_and_rate(tiny: Tiny) -> None:
    config = tiny(optimizer={"lr": 1e-3, "warmup": 0.0})
    trial = train(config, open_inputs(config))
    first = next(trial)
    with torch.no_grad():
        first.model.heads["sts"].layers[0].bias.fill_(float("nan"))
    sentence = r"The loss of sts became nan by step 2 \(48 examples\); its learning rate was 0\.00085\."
    with pytest.raises(NotFiniteError, match=sentence):
        next(trial)


def test_an_absurd_rate_ends_the_trial_or_leaves_finite_numbers(tiny: Tiny) -> None:
    """LayerNorm bounds what a rate of 1 can do: whatever comes, no record holds nan."""
    config = tiny(optimizer={"lr": 1.0, "clip": None})
    records: Records = []
    with contextlib.suppress(NotFiniteError):
        for progress in train(config, open_inputs(config)):
            records.append(progress.record)
    assert all(math.isfinite(value) for record in records for value in record.values() if isinstance(value, float))


def test_predictions_that_are_not_finite_end_the_trial(tiny: Tiny) -> None:
    """nan would be counted as class 0 and as constant STS predictions."""
    config = tiny(budget={"points": [1]})
    trial = train(config, open_inputs(config))
    last = [next(trial) for _ in range(10)][-1]
    with torch.no_grad():
        last.model.heads["sst"].layers[0].bias.fill_(float("inf"))
    with pytest.raises(NotFiniteError, match=r"Predictions of sst on dev are not finite after 240 examples\."):
        next(trial)


def test_constant_sts_predictions_count_as_r_0_and_are_noted(tiny: Tiny) -> None:
    config = tiny(budget={"points": [1]})
    trial = train(config, open_inputs(config))
    last = [next(trial) for _ in range(10)][-1]
    with torch.no_grad():
        last.model.heads["sts"].layers[0].weight.zero_()
    record = next(trial).record
    assert record["dev/sts"] == 0
    assert record["constant/sts"] is True
    assert record["dev/norm"] == pytest.approx((record["dev/sst"] + record["dev/para"] + 0.5) / 3)
    assert record["dev/norm"] - record["dev/mean"] == pytest.approx(1 / 6)


# -------------------------------------------------------------------------------------------------------------- snapshots


@pytest.fixture
def saved(tiny: Tiny, tmp_path: Path) -> Path:
    config = tiny(gradient="gradvac")
    progress = next(train(config, open_inputs(config)))
    save_snapshot(tmp_path / "state" / "snapshot.pt", progress.snapshot(), [progress.record])
    return tmp_path / "state" / "snapshot.pt"


def test_a_snapshot_is_one_file_with_counters_tensors_and_records(saved: Path) -> None:
    assert [path.name for path in saved.parent.iterdir()] == ["snapshot.pt"]
    snapshot, records = load_snapshot(saved)
    assert set(snapshot) == {"counters", "model", "optimizer", "gradient", "teacher"}
    assert snapshot["counters"]["examples"] == 24
    assert len(records) == 1


@pytest.mark.parametrize("kept", [0, 1, 1000, -1])
def test_a_truncated_snapshot_is_refused(saved: Path, kept: int) -> None:
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"snapshot\.pt is no whole snapshot \(\w+\)\."):
        load_snapshot(saved)


def test_a_missing_or_foreign_snapshot_is_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"other\.pt is no whole snapshot \(FileNotFoundError\)\."):
        load_snapshot(saved.with_name("other.pt"))
    torch.save({"model": {}}, saved)
    with pytest.raises(ValueError, match=r"is no whole snapshot"):
        load_snapshot(saved)


def test_a_snapshot_that_would_run_code_is_refused(saved: Path) -> None:
    torch.save({"records": [], "call": Path.cwd}, saved)
    with pytest.raises(ValueError, match=r"is no whole snapshot \(UnpicklingError\)\."):
        load_snapshot(saved)


def test_a_save_that_fails_leaves_the_former_snapshot_whole(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot, records = load_snapshot(saved)
    real = torch.save

    def half(value: object, file: Any) -> None:
        real(value, file)
        file.truncate(100)
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        save_snapshot(saved, snapshot, [*records, *records])
    assert load_snapshot(saved)[1] == records


# ---------------------------------------------------------------------------------------------------------------- machine


def test_auto_device_and_precision_are_what_the_machine_has() -> None:
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_precision("auto", torch.device("cpu")) == "float32"
    assert resolve_precision("bfloat16", torch.device("cpu")) == "bfloat16"
