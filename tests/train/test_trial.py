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

from minbert_core.checkpoints import load_encoder, save_encoder
from minbert_core.config import TrialConfig
from minbert_core.data.tokens import cuts
from minbert_core.evaluate import NotFiniteError
from minbert_core.inputs import build_encoder, open_inputs
from minbert_core.methods.stages import stage_ends
from minbert_core.model import MultitaskBert
from minbert_core.train.bench import model_to_train
from minbert_core.train.passes import Batch, Pass
from minbert_core.train.step import Stepper
from minbert_core.train.task_losses import StepReport
from minbert_core.train.trial import (
    Progress,
    _Log,
    evaluate_dev,
    load_snapshot,
    save_snapshot,
    train,
)

Tiny = Callable[..., TrialConfig]
Records = list[dict[str, Any]]
CLOCK = ("time_ms", "seconds", "train/examples_per_second", "system/peak_memory_gb")


def test_a_trial_that_was_killed_before_its_first_step_begins_with_it(tiny: Tiny, tmp_path: Path) -> None:
    """Its pretraining had been saved, with a snapshot that has no step; its weights were asked for all the same."""
    config = tiny(budget={"examples": 24, "points": [1]})
    save_snapshot(tmp_path / "snapshot.pt", {}, [{"kind": "pretrain", "step": 1}])
    snapshot, records = load_snapshot(tmp_path / "snapshot.pt")
    assert [record["step"] for record in records] == [1]
    resumed, fresh = ([p.record for p in train(config, open_inputs(config), begun)] for begun in (snapshot, None))
    assert without_clock(resumed) == without_clock(fresh)


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
    "bregman": {"proximal": {"kind": "bregman", "beta": 0.5}},
    "lp-ft": {"stages": [{"kind": "linear_probe", "share": 0.4, "lr": 1e-2}, "multitask"]},
    "para first, then bregman": {
        "budget": {"examples": 160},
        "gradient": "pcgrad",
        "stages": [
            {"kind": "single_task", "task": "para", "share": 0.3, "proximal": {"kind": "bregman", "late_beta": None}},
            {"kind": "multitask", "proximal": "bregman"},
        ],
    },
    "heads last, fresh": {"stages": ["multitask", {"kind": "heads_only", "fresh": True, "share": 0.5, "lr": 1e-2}]},
    "sequential": {"budget": {"examples": 120}, "task_schedule": {"kind": "sequential", "rounds": 3}},
    "random schedules in two stages": {
        "budget": {"examples": 160},
        "task_schedule": "drop",
        "stages": [{"kind": "multitask", "task_schedule": "proportional"}, "multitask"],
    },
    "drop": {"budget": {"examples": 120}, "task_schedule": "drop"},
    "micro-batches": {
        "train_on": ["sst", "sts"],
        "budget": {"examples": 144},
        "machine": {"micro_batch_tokens": 60},
        "tasks": {"sts": {"loss": "mse_pearson"}},
        "proximal": "bregman",
        "smoothness": {"kind": "smart", "radius": 0.03},
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


@pytest.mark.parametrize("name", ["gradvac and smart", "two stages", "micro-batches"])
def test_a_trial_that_is_stopped_again_and_again_repeats_to_the_digit(tiny: Tiny, tmp_path: Path, name: str) -> None:
    """Each attempt is stopped at its fourth step or pass of an evaluation, wherever that is, and no step is trained twice."""
    config = tiny(**TRIALS[name])
    whole, path, steps, num_stops = run(config), tmp_path / "snapshot.pt", [0], 0
    snapshot, records = None, []
    while steps[-1] < whole[-1].record["step"]:
        calls = iter(range(1000))
        for progress in train(config, open_inputs(config), snapshot, lambda calls=calls: next(calls) >= 3):
            if progress.record["kind"] != "stop":
                records.append(progress.record)
        steps.append(progress.record["step"])
        num_stops += progress.record["kind"] == "stop"
        save_snapshot(path, progress.snapshot(), records)
        snapshot, records = load_snapshot(path)
        assert num_stops < 100
    assert num_stops >= 3
    records += [progress.record for progress in train(config, open_inputs(config), snapshot)]
    assert without_clock(records) == without_clock([progress.record for progress in whole])


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
    """rung -> examples of each dev record; each rung once."""
    parts = [record["rung"] for record in records if record["kind"] == "dev"]
    assert len(set(parts)) == len(parts)
    return {record["rung"]: record["examples"] for record in records if record["kind"] == "dev"}


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
    assert progress_list[-1].rung == config.budget.points[-1]
    for progress in progress_list:
        assert (progress.record["kind"] == "dev") == (progress.rung is not None)
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
    monkeypatch.setattr("minbert_core.train.loop.NUM_LOGS", 1)
    pooled = [(r["step"], r["train/sst_loss"]) for r in records_of(tiny()) if r["kind"] == "train"]
    assert [step for step, _ in pooled] == [2, 4, 10]  # where a point falls
    wanted = [sum(every[0:2]) / 2, sum(every[2:4]) / 2, sum(every[4:10]) / 6]
    assert [loss for _, loss in pooled] == pytest.approx(wanted, rel=1e-5)


def test_a_record_holds_what_a_reader_needs(tiny: Tiny) -> None:
    records = records_of(tiny(smoothness="smart", gradient="pcgrad"))
    log, dev = records[0], records[-1]
    assert {"kind", "step", "examples", "passes", "time_ms", "seconds"} <= log.keys() & dev.keys()
    assert {"train/sst_loss", "train/para_smoothness_loss", "train/lr", "train/examples_per_second"} <= log.keys()
    assert {"train/gradient_norm", "train/cosine_sst_para", "train/conflicts_sst_para"} <= log.keys()
    assert "system/peak_memory_gb" in log
    assert {"rung", "dev/score", "dev/sst", "dev/para", "dev/sts", "dev/norm", "dev/mean"} <= dev.keys()
    assert (dev["step"], dev["examples"], dev["passes"]) == (10, 240, 3 * 240)
    assert {type(value) for record in records for value in record.values()} <= {int, float, str, bool}


def test_what_costs_a_step_is_measured_thirty_steps_apart_and_at_the_end_of_a_shorter_trial(tiny: Tiny) -> None:
    def measured(steps: int) -> list[int]:
        records = records_of(tiny(train_on=["sts"], smoothness="smart", budget={"examples": steps * 8, "points": [1]}))
        return [record["step"] for record in records if "train/sts_smoothness_gradient_ratio" in record]

    assert measured(70) == [31, 61]
    assert measured(5) == [5]


def test_the_score_is_the_objective_and_improvement_follows_it(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not SST alone, as in the skeleton: dev metrics are set by hand, SST falls while norm rises, then the reverse."""
    metrics = iter(
        [
            {"sst": 0.5, "para": 0.5, "sts": 0.0},
            {"sst": 0.4, "para": 0.7, "sts": 0.4},
            {"sst": 0.6, "para": 0.6, "sts": 0.0},
        ]
    )
    monkeypatch.setattr("minbert_core.train.trial.evaluate_dev", lambda *_: (next(metrics), {}))
    points = [progress for progress in run(tiny()) if progress.rung is not None]
    assert [progress.record["dev/score"] for progress in points] == pytest.approx([0.5, 0.6, 1.7 / 3])
    assert [progress.improved for progress in points] == [True, True, False]
    assert points[-1].snapshot()["counters"]["best_rung"] == 3


def test_the_dev_record_is_that_of_the_model_that_is_yielded(tiny: Tiny) -> None:
    config = tiny(objective="mean")
    inputs = open_inputs(config)
    for progress in train(config, inputs):
        if progress.rung is not None:
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
    assert records[-1]["rung"] == 9


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
            adam_steps = {int(state["step"]) for state in snapshot["optimizer"]["all"]["state"].values()}
            has_targets = any(bool(target.any()) for target in snapshot["gradient"].values())
            found.append((snapshot["counters"]["stage"], adam_steps, has_targets))
            lr.append(progress.record["train/lr"])
    # with a beta of 0 the targets of the second stage stay where they begin
    assert found == [(0, {step}, True) for step in range(1, 6)] + [(1, {step}, False) for step in range(1, 6)]
    assert lr[:5] == pytest.approx([9e-4, 7e-4, 5e-4, 3e-4, 1e-4])
    assert lr[5:] == pytest.approx([5e-5, 8.75e-5, 6.25e-5, 3.75e-5, 1.25e-5])


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tasks of each step, which trains nothing."""
    tasks: list[str] = []

    def note(self: Stepper, number: int, passes: list[Pass], *_: Any, **__: Any) -> StepReport:
        tasks.extend(part.task for one in passes for part in one.parts)
        return StepReport()

    monkeypatch.setattr(Stepper, "step", note)
    return tasks


@pytest.mark.parametrize("schedule", ["drop", "proportional"])
def test_two_stages_of_a_random_schedule_draw_tasks_of_their_own(tiny: Tiny, schedule: str, taken: list[str]) -> None:
    run(tiny(task_schedule=schedule, stages=["multitask", "multitask"], budget={"examples": 320, "points": [1]}))
    first, second = taken[:20], taken[20:]
    assert len(first) == len(second) == 20
    assert first != second


def test_every_point_of_sequential_is_the_end_of_a_round(tiny: Tiny, taken: list[str]) -> None:
    config = tiny(task_schedule="sequential", budget={"examples": 9 * 3 * 16})
    found = [(progress.rung, len(taken)) for progress in train(config, open_inputs(config)) if progress.rung is not None]
    assert taken == ["sst", "sst", "para", "para", "sts", "sts"] * 9
    assert found == [(1, 6), (3, 18), (9, 54)]


def test_an_evaluation_says_in_which_stage_it_was(tiny: Tiny) -> None:
    config = tiny(stages=[{"kind": "single_task", "task": "para", "share": 1 / 3}, "multitask"], budget={"examples": 216})
    assert [record["stage"] for record in records_of(config) if record["kind"] == "dev"] == [0, 0, 1]


def test_turns_shorter_than_a_batch_are_refused_before_anything_is_trained(tiny: Tiny) -> None:
    config = tiny(task_schedule={"kind": "sequential", "rounds": 30})
    with pytest.raises(ValueError, match=r"Got 30: 2\.67 examples for sst\. Use 10 or fewer\."):
        next(train(config, open_inputs(config)))


def test_a_stage_without_an_example_is_refused_before_anything_is_trained(tiny: Tiny) -> None:
    config = tiny(stages=["multitask", {"kind": "heads_only", "share": 1e-9}])
    with pytest.raises(ValueError, match=r"`stages/1` kind 'heads_only' must be .*, 24 examples\. Got 0\."):
        next(train(config, open_inputs(config)))


def test_stages_end_where_their_shares_say_and_the_last_with_the_trial() -> None:
    assert stage_ends([240.0], 240) == [240]
    assert stage_ends([120.5, 120.5], 241) == [121, 241]
    assert stage_ends([300 / 3] * 3, 300) == [100, 200, 300]
    assert stage_ends([1 / 3 * 300 + 1e-9] * 3, 300) == [100, 200, 300]  # a rounding is no further example
    assert stage_ends([0.333333 * 9_000_000] * 3, 9_000_000)[-1] == 9_000_000  # shares that sum to .999999 are a whole


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
    assert set(snapshot) == {"counters", "model", "log", "optimizer", "gradient", "loss_weights", "teacher"}
    assert snapshot["counters"]["examples"] == 24
    assert len(records) == 1


@pytest.mark.parametrize("kept", [0, 1, 1000, -1])
def test_a_truncated_snapshot_is_refused(saved: Path, kept: int) -> None:
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"snapshot\.pt is not a complete snapshot \(\w+\)\."):
        load_snapshot(saved)


def test_a_snapshot_that_the_system_does_not_give_is_not_called_broken(saved: Path) -> None:
    """Training would begin again over a snapshot that is whole and only not to be read."""
    saved.with_name("snapshot").mkdir()
    with pytest.raises(IsADirectoryError):
        load_snapshot(saved.with_name("snapshot"))


def test_a_foreign_snapshot_is_refused(saved: Path) -> None:
    torch.save({"model": {}}, saved)
    with pytest.raises(ValueError, match=r"is not a complete snapshot \(it has no records\)"):
        load_snapshot(saved)


def test_a_snapshot_of_an_earlier_format_is_refused_by_name(saved: Path) -> None:
    torch.save({"model": {}, "records": []}, saved)
    with pytest.raises(ValueError, match=r"snapshot\.pt is a snapshot of format 1\. This version resumes format \d\."):
        load_snapshot(saved)


def test_a_snapshot_that_would_run_code_is_refused(saved: Path) -> None:
    torch.save({"records": [], "call": Path.cwd}, saved)
    with pytest.raises(ValueError, match=r"is not a complete snapshot \(UnpicklingError\)\."):
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


# ----------------------------------------------------------------------------------------------------------------- stages


def fresh(config: TrialConfig) -> MultitaskBert:
    """The model that a trial begins with."""
    return model_to_train(config, open_inputs(config))


def test_a_trial_trains_the_words_of_its_train_and_dev_splits_alone_and_exports_all(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(train_on=["sst"], optimizer={"weight_decay": 0})
    inputs = open_inputs(config)
    used = {*inputs.specials, *inputs.train["sst"].pieces[0].tolist(), *inputs.dev["sst"].pieces[0].tolist()}
    assert set(inputs.token_ids.tolist()) == used
    assert len(used) < inputs.tokenizer.vocab_size
    model = run(config)[-1].model
    assert len(model.encoder.word_embeddings.weight) == len(used) + 1  # a row for all the others
    save_encoder(model.encoder, tmp_path)
    saved, start = load_encoder(tmp_path, 0, 0).word_embeddings.weight, build_encoder(config, inputs).word_embeddings.weight
    moved = {int(row) for row in (saved != start).any(dim=1).nonzero()}
    assert moved
    assert moved <= used


def changed(config: TrialConfig) -> set[str]:
    """The parameters that a whole trial moves, to the last bit."""
    before, after = fresh(config).state_dict(), run(config)[-1].model.state_dict()
    return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("stage", ["linear_probe", "heads_only"])
def test_a_stage_of_the_heads_leaves_the_encoder_as_it_is_to_the_last_bit(tiny: Tiny, stage: str) -> None:
    config = tiny(stages=[stage], gradient="pcgrad", smoothness="smart", proximal="bregman", optimizer={"weight_decay": 0.1})
    assert changed(config) == {name for name in fresh(config).state_dict() if name.startswith("heads.")}
    last = run(config)[-1].record
    assert last["passes"] == last["examples"]  # no passes for penalties that have nothing to act on


@pytest.mark.parametrize("stage", ["linear_probe", "heads_only"])
def test_a_stage_of_the_heads_uses_the_encoder_without_dropout(tiny: Tiny, stage: str) -> None:
    """As evaluation does, and as one pass over frozen features would."""
    losses = []
    for dropout in (0.0, 0.5):
        encoder = {"hidden_dropout": dropout, "attention_dropout": dropout}
        records = records_of(tiny(stages=[stage], encoder=encoder, budget={"examples": 72, "points": [1]}))
        losses.append([(r["train/sst_loss"], r["train/para_loss"], r["train/sts_loss"]) for r in records[:-1]])
    assert losses[0] == losses[1]


def test_the_encoder_trains_after_a_stage_of_the_heads(tiny: Tiny) -> None:
    config = tiny(stages=[{"kind": "linear_probe", "share": 0.5}, "multitask"])
    assert changed(config) == set(fresh(config).state_dict())


def test_a_single_task_s_stage_trains_its_head_and_the_encoder_only(tiny: Tiny) -> None:
    """And draws its examples only."""
    config = tiny(stages=[{"kind": "single_task", "task": "para"}], gradient="gradvac", budget={"examples": 80})
    others = ("heads.sst", "heads.sts")
    assert changed(config) == {name for name in fresh(config).state_dict() if not name.startswith(others)}
    progress_list = run(config)
    assert progress_list[-1].snapshot()["counters"]["drawn"] == {"sst": 0, "para": 80, "sts": 0}
    logs = [progress.record for progress in progress_list if progress.record["kind"] == "train"]
    assert all({name for name in log if name.endswith("_loss")} == {"train/para_loss"} for log in logs)
    assert not any("cosine" in name for log in logs for name in log)
    assert {"dev/sst", "dev/para", "dev/sts"} <= progress_list[-1].record.keys()  # all are evaluated


def test_each_stage_has_its_own_tasks_and_rates(tiny: Tiny) -> None:
    stages = [
        {"kind": "linear_probe", "share": 0.2, "lr": 0.01},
        {"kind": "single_task", "task": "sts", "share": 0.3, "optimizer": {"lr": 1e-4, "warmup": 0, "lr_schedule": "constant"}},
        {"kind": "multitask"},
    ]
    constant = {"lr": 1e-3, "warmup": 0, "lr_schedule": "constant", "head_lr_factor": 10}
    logs = [r for r in records_of(tiny(stages=stages, gradient="pcgrad", optimizer=constant)) if r["kind"] == "train"]
    seen = [(log["train/lr"], "train/sst_loss" in log, "train/cosine_sst_sts" in log) for log in logs]
    assert seen == [(0.01, True, False)] * 2 + [(1e-4, False, False)] * 9 + [(1e-3, True, True)] * 5


def heads_at_the_start_of_the_last_stage(config: TrialConfig) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The matrices of the heads before a last stage whose rate moves nothing visible, and after it."""
    before = {}
    for progress in train(config, open_inputs(config)):
        heads = {name: tensor.clone() for name, tensor in progress.model.heads.state_dict().items() if tensor.dim() == 2}
        if progress.record["examples"] <= 120:
            before = heads
    return before, heads


def test_fresh_heads_are_others_than_the_first_ones_and_the_same_again_for_the_same_seed(tiny: Tiny) -> None:
    last = {"kind": "heads_only", "share": 0.5, "lr": 1e-12}
    kept_before, kept = heads_at_the_start_of_the_last_stage(tiny(stages=["multitask", last]))
    config = tiny(stages=["multitask", {**last, "fresh": True}])
    before, renewed = heads_at_the_start_of_the_last_stage(config)
    _, again = heads_at_the_start_of_the_last_stage(config)
    _, of_another_seed = heads_at_the_start_of_the_last_stage(tiny(seed=1, stages=["multitask", {**last, "fresh": True}]))
    first = fresh(config).heads.state_dict()
    for name, tensor in renewed.items():
        assert torch.allclose(kept[name], kept_before[name], atol=1e-8), name
        assert torch.equal(tensor, again[name]), name
        for other in (before[name], first[name], of_another_seed[name]):
            assert float((tensor - other).norm()) > 0.5 * float(tensor.norm()), name


def test_a_trial_that_goes_on_within_a_stage_of_fresh_heads_keeps_them(tiny: Tiny) -> None:
    """A stage draws at its own start, not where a trial happens to be continued."""
    config = tiny(stages=["multitask", {"kind": "heads_only", "fresh": True, "share": 0.5, "lr": 1e-12}])
    for progress in train(config, open_inputs(config)):
        if progress.record["examples"] == 192:
            snapshot = {**progress.snapshot(), "model": weights_of(progress)}
    with torch.no_grad():
        snapshot["model"]["heads.sst.layers.0.weight"].fill_(0.25)  # what a trained head may look like
    last = run(config, snapshot)[-1].model.heads["sst"].layers[0].weight
    assert torch.allclose(last, torch.tensor(0.25))


def test_a_teacher_begins_anew_with_each_stage(tiny: Tiny) -> None:
    """At a stage's first step it equals the student, in the middle it does not."""
    bregman = {"kind": "bregman", "beta": 0.9}
    config = tiny(proximal=bregman, stages=[{"kind": "multitask", "share": 0.5}, {"kind": "multitask"}])
    penalties = [r["train/sst_proximal_loss"] for r in records_of(config) if r["kind"] == "train"]
    assert [penalty == 0 for penalty in penalties] == [True, False, False, False, False] * 2


def test_the_teacher_s_passes_are_counted_in_the_records(tiny: Tiny) -> None:
    assert records_of(tiny(proximal="bregman"))[-1]["passes"] == 2 * 240


# ------------------------------------------------------------------------------------------------------------ micro-batches


@pytest.mark.parametrize(
    ("tokens", "limit", "expected"),
    [
        ([5, 5, 5], 15, []),
        ([5, 5, 5], 14, [2]),
        ([5, 5, 5], 10, [2]),
        ([5, 5, 5], 9, [1, 2]),
        ([5, 5, 5], 1, [1, 2]),  # an example is never cut
        ([20, 3, 3], 10, [1]),
        ([3, 20, 3], 10, [1, 2]),
        ([3, 3, 20], 10, [2]),
        ([1, 2, 3, 4, 5, 6], 7, [3, 4, 5]),
        ([4], 2, []),
        ([], 2, []),
    ],
)
def test_cuts_fill_each_part_up_to_the_limit(tokens: list[int], limit: int, expected: list[int]) -> None:
    assert cuts(tokens, limit) == expected


def watched(config: TrialConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[list[dict[str, Batch]], Records]:
    """The parts that each step of a trial is given, and the trial's records."""
    seen: list[dict[str, Batch]] = []
    passes = Stepper.passes

    def watching(self: Stepper, number: int, batches: dict[str, Batch], limit: int | None) -> list[Pass]:
        seen.append(batches)
        return passes(self, number, batches, limit)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "passes", watching)
        return seen, records_of(config)


@pytest.mark.parametrize("encoding", ["cross", "bi"])
def test_parts_hold_the_batch_s_examples_in_order_and_no_more_tokens_than_allowed(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    """Unless one example alone has more; both sentences of a bi-encoded pair count. Losses and rates are as they were."""
    limit = 45
    changes = {
        "encoder": {"hidden_dropout": 0, "attention_dropout": 0},
        "tasks": {"all": {"head": {"kind": "linear", "dropout": 0}}, "pairs": {"pair_encoding": encoding},
                  "sts": {"loss": "mse_pearson"}},
        "gradient": "pcgrad",
    }  # fmt: skip
    whole, wanted = watched(tiny(**changes), monkeypatch)
    parted, records = watched(tiny(**changes, machine={"micro_batch_tokens": limit}), monkeypatch)
    for whole_step, step in zip(whole, parted, strict=True):
        assert list(step) == list(whole_step)
        for task, (batch,) in whole_step.items():
            parts = step[task]
            sequences = [
                part.token_ids_N[start:end].tolist()
                for half in ((0, 1) if encoding == "bi" and task != "sst" else (0,))
                for part in parts
                for start, end in pairwise(part.starts_S1[half * part.num_examples :][: part.num_examples + 1].tolist())
            ]
            assert sequences == [batch.token_ids_N[start:end].tolist() for start, end in pairwise(batch.starts_S1.tolist())]
            assert torch.equal(torch.cat([part.labels_B for part in parts]), batch.labels_B)
            assert all(sum(part.lengths) <= limit or part.num_examples == 1 for part in parts)
            fits = [sum(one.lengths) + sum(other.lengths) > limit for one, other in pairwise(parts)]
            assert len(parts) == 1 or any(fits), "parts that are smaller than they must be"
    assert max(len(parts) for step in parted for parts in step.values()) >= 3
    for record, other in zip(records, wanted, strict=True):
        for name, value in other.items():
            if name.endswith("_loss") or name in ("train/lr", "examples", "rung"):
                assert record[name] == pytest.approx(value, rel=2e-3), name
    assert records[-1]["passes"] == 240 + 80  # a loss that is of the batch as a whole takes a pass more
    assert wanted[-1]["passes"] == 240


def test_a_limit_that_no_batch_exceeds_changes_nothing(tiny: Tiny) -> None:
    assert without_clock(records_of(tiny(machine={"micro_batch_tokens": 100_000}))) == without_clock(records_of(tiny()))


# ------------------------------------------------------------------------------------------------------ conflicts of gradients


def test_a_record_holds_each_pair_s_mean_cosine_and_the_share_of_steps_that_conflict() -> None:
    """By hand over four steps; a pair is counted in the steps in which its cosine exists, and begins anew after a record."""
    log = _Log(0)
    for cosines in ({"a_b": -0.5, "a_c": 0.2}, {"a_b": 0.25, "a_c": 0.4}, {"a_b": -0.25}, {"a_b": -0.1}):
        log.add(StepReport(cosines=cosines))
    _, figures = log.flush(1)
    assert figures["train/cosine_a_b"] == pytest.approx(-0.15)
    assert figures["train/conflicts_a_b"] == pytest.approx(0.75)
    assert figures["train/cosine_a_c"] == pytest.approx(0.3)
    assert figures["train/conflicts_a_c"] == 0
    log.add(StepReport(cosines={"a_c": 0.0}))  # at a right angle: no conflict
    _, figures = log.flush(2)
    assert {name: value for name, value in figures.items() if "_a_" in name} == {
        "train/cosine_a_c": 0.0,
        "train/conflicts_a_c": 0.0,
    }


def test_conflicts_are_counted_in_every_step_not_only_where_a_record_falls(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    every = [record for record in records_of(tiny(gradient="gradvac")) if record["kind"] == "train"]
    assert len(every) == 10
    monkeypatch.setattr("minbert_core.train.loop.NUM_LOGS", 1)
    config = tiny(gradient="gradvac", budget={"points": [1]})
    (pooled,) = [record for record in records_of(config) if record["kind"] == "train"]
    for pair in ("sst_para", "sst_sts", "para_sts"):
        cosines = [record[f"train/cosine_{pair}"] for record in every]
        assert [record[f"train/conflicts_{pair}"] for record in every] == [float(cosine < 0) for cosine in cosines]
        assert pooled[f"train/cosine_{pair}"] == pytest.approx(sum(cosines) / 10, abs=1e-6)
        assert pooled[f"train/conflicts_{pair}"] == pytest.approx(sum(cosine < 0 for cosine in cosines) / 10)
    assert 0 < sum(pooled[f"train/conflicts_{pair}"] for pair in ("sst_para", "sst_sts", "para_sts")) < 3, "both kinds of steps"


def test_the_record_before_an_evaluation_has_the_mean_cosines_per_group_since_the_last_one(tiny: Tiny) -> None:
    log = _Log(0)
    for cosines in ({"a_b/layer0": -0.5, "a_b/layer1": 0.2}, {"a_b/layer0": 0.1}):
        log.add(StepReport(group_cosines=cosines))
    restored = _Log(0)
    restored.restore(log.state())
    expected = {"train/group_cosine/a_b/layer0": pytest.approx(-0.2), "train/group_cosine/a_b/layer1": 0.2}
    assert [log.flush_groups(), restored.flush_groups(), log.flush_groups()] == [expected, expected, {}]
    records = records_of(tiny(gradient="pcgrad"))
    with_groups = [i for i, record in enumerate(records) if any("group_cosine" in name for name in record)]
    assert with_groups == [i - 1 for i, record in enumerate(records) if record["kind"] == "dev"]


def test_a_plain_sum_computes_no_cosines(tiny: Tiny) -> None:
    assert not [name for record in records_of(tiny()) for name in record if "cosine" in name or "conflicts" in name]
