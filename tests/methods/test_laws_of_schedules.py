"""The laws of task schedules and of LR schedules."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any, get_args

import pytest
from battery import for_each, law

from minbert_core.methods.optimizer import LR_SCHEDULES, Optimizer
from minbert_core.methods.task_schedules import StepAt, TaskSchedule

SIZES = {"sst": 50, "para": 400, "sts": 30}
BATCHES = {"sst": 8, "para": 16, "sts": 4, "mine": 16}


def tasks_at(variant: Any, step: int, progress: float, sizes: dict[str, int] = SIZES, seed: int = 0) -> tuple[str, ...]:
    tasks: tuple[str, ...] = variant.tasks_of_step(
        StepAt(step, progress, dict(sizes), {task: BATCHES[task] for task in sizes}, seed)
    )
    assert isinstance(tasks, tuple), f"step {step} takes {tasks!r}, not a tuple of task names"
    return tasks


@law(TaskSchedule)
def test_a_schedule_is_a_function_of_its_arguments(variant: Any) -> None:
    forwards = [tasks_at(variant, step, 0.3, seed=7) for step in range(20)]
    backwards = [tasks_at(variant, step, 0.3, seed=7) for step in reversed(range(20))][::-1]
    differ = [step for step in range(20) if forwards[step] != backwards[step]]
    hint = "draw from np.random.default_rng((seed, step)), remember nothing"
    assert not differ, f"asked again, with other steps in between, it takes other tasks at steps {differ}; {hint}"


@law(TaskSchedule)
def test_a_step_takes_known_tasks_once_each_and_as_many_as_announced(variant: Any) -> None:
    announced = variant.tasks_per_step(len(SIZES))
    for step in range(51):
        tasks = tasks_at(variant, step, step / 50)
        assert set(tasks) <= set(SIZES), f"step {step} takes {tasks}; known: {tuple(SIZES)}"
        assert len(tasks) == len(set(tasks)), f"step {step} takes a task twice: {tasks}"
        assert 1 <= len(tasks) <= announced, f"step {step} takes {len(tasks)} tasks; tasks_per_step announces {announced}"


@law(TaskSchedule)
def test_every_task_is_reached(variant: Any) -> None:
    seen = {task for step in range(300) for task in tasks_at(variant, step, step / 299)}
    starved = ", ".join(sorted(set(SIZES) - seen))
    assert not starved, f"it never takes {starved} in 300 steps over {SIZES} rows"


@law(TaskSchedule)
def test_a_schedule_of_one_task_takes_it_and_its_epoch_is_one_pass(variant: Any) -> None:
    tasks = tasks_at(variant, 3, 0.5, {"mine": 64})
    assert tasks == ("mine",), f"of a task 'mine' alone it takes {tasks}"
    found = variant.epoch_examples({"mine": 64}, {"mine": 16})
    assert found == 64, f"an epoch of one task of 64 examples draws {found}"


@law(TaskSchedule)
def test_the_announced_shares_of_steps_are_those_of_a_stage(variant: Any) -> None:
    """Also under unequal batches, and where they change in the course of the stage"""
    batches, sizes, examples = {"sst": 8, "para": 16, "sts": 4}, {"sst": 500, "para": 900, "sts": 300}, 40_000
    drawn = step = 0
    counts: Counter[tuple[str, ...]] = Counter()
    while drawn < examples:
        tasks = variant.tasks_of_step(StepAt(step, drawn / examples, sizes, batches, 3))
        counts[tasks] += 1
        drawn, step = drawn + sum(batches[task] for task in tasks), step + 1
    announced = variant.step_shares(sizes, batches)
    found = {tasks: counts[tasks] / step for tasks in {*counts, *announced}}
    hint = "step_shares: the share of a stage's steps that take each tuple of tasks"
    assert found == {tasks: pytest.approx(announced.get(tasks, 0), abs=0.02) for tasks in found}, hint


@law(TaskSchedule)
def test_a_schedule_without_rounds_shows_every_task_in_any_part_of_a_stage(variant: Any) -> None:
    for start in (0, 100, 200):
        seen = {task for step in range(start, start + 100) for task in tasks_at(variant, step, step / 299)}
        assert variant.rounds or seen == set(SIZES), f"steps {start} to {start + 99} take {seen} only; `rounds` says 0"


@law(TaskSchedule)
def test_an_epoch_is_a_whole_number_of_examples(variant: Any) -> None:
    found = variant.epoch_examples(dict(SIZES), {task: BATCHES[task] for task in SIZES})
    assert isinstance(found, int), f"an epoch draws {found!r} examples, a {type(found).__name__}, not an int"
    assert found > 0, f"an epoch draws {found} examples"


# ------------------------------------------------------------------------------------------------------------ LR schedules

lr_schedules = for_each(
    "lr_factor", {f"LR schedule '{name}'": lambda factor=factor: factor for name, factor in LR_SCHEDULES.items()}
)


def test_every_lr_schedule_that_is_written_can_be_chosen() -> None:
    chosen = get_args(Optimizer.model_fields["lr_schedule"].annotation)
    assert set(chosen) == set(LR_SCHEDULES), "Optimizer.lr_schedule and LR_SCHEDULES name different LR schedules"


@lr_schedules
def test_an_lr_factor_lies_in_zero_and_one(lr_factor: Any) -> None:
    for progress, warmup in itertools.product((0.0, 1e-9, 0.05, 0.1, 0.5, 0.99, 1.0), (0.0, 0.1, 1.0)):
        found = lr_factor(progress, warmup)
        assert isinstance(found, float), f"it gives a {type(found).__name__} at progress {progress:g}, not a float"
        assert 0 <= found <= 1, f"the factor is {found:g} at progress {progress:g} with warm-up {warmup:g}; it lies in [0, 1]"


@lr_schedules
def test_an_lr_factor_rises_from_zero_to_one_over_the_warm_up(lr_factor: Any) -> None:
    found = [round(lr_factor(progress, 0.2), 9) for progress in (0.0, 0.1, 0.2)]
    assert found == [0, 0.5, 1], f"with warm-up 0.2 it is {found} at progress 0, 0.1 and 0.2, not [0, 0.5, 1]"
