"""Task schedules by counting, and the stream of examples that every trial draws from."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

import numpy as np
import pytest
from pydantic import ValidationError

from minbert_core.methods.task_schedules import (
    Alternate,
    Drop,
    Mix,
    Proportional,
    RoundRobin,
    Sequential,
    StepAt,
    example_rows,
    task_probabilities,
)

SIZES = {"sst": 8544, "para": 141498, "sts": 6040}
EIGHTS = dict.fromkeys(SIZES, 8)  # batch sizes


# -------------------------------------------------------------------------------------------------------------- stream


def test_a_pass_shows_each_example_once() -> None:
    assert sorted(example_rows(0, 10, 0, 10).tolist()) == list(range(10))
    assert sorted(example_rows(0, 10, 20, 10).tolist()) == list(range(10))


def test_passes_are_shuffled_afresh() -> None:
    """One shuffle for all passes, or one subset drawn once, is a public bug"""
    first, second = example_rows(0, 100, 0, 100), example_rows(0, 100, 100, 100)
    assert first.tolist() != list(range(100))
    assert first.tolist() != second.tolist()


def test_the_stream_does_not_depend_on_how_it_is_cut() -> None:
    whole = example_rows(5, 7, 0, 40)
    pieces = [example_rows(5, 7, start, count) for start, count in ((0, 3), (3, 9), (12, 1), (13, 27))]
    assert np.concatenate(pieces).tolist() == whole.tolist()


def test_a_batch_may_be_larger_than_the_task() -> None:
    assert Counter(example_rows(0, 3, 0, 9).tolist()) == {0: 3, 1: 3, 2: 3}


def test_seeds_give_different_orders() -> None:
    assert example_rows(1, 50, 0, 50).tolist() != example_rows(2, 50, 0, 50).tolist()


def test_changing_a_batch_does_not_change_the_stream() -> None:
    example_rows(9, 20, 0, 20)[:] = 0
    assert sorted(example_rows(9, 20, 0, 20).tolist()) == list(range(20))


def test_no_rows_are_an_empty_array_of_integers() -> None:
    rows = example_rows(0, 5, 2, 0)
    assert rows.shape == (0,)
    assert rows.dtype == np.int64


# ----------------------------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize("schedule", [RoundRobin(), Mix()])
def test_every_step_takes_every_task(schedule: RoundRobin | Mix) -> None:
    assert schedule.tasks_of_step(StepAt(7, 0.5, SIZES, EIGHTS, 0)) == ("sst", "para", "sts")
    assert schedule.tasks_per_step(3) == 3


def test_a_round_robin_epoch_ends_with_the_shortest_task() -> None:
    """755 batches of 8 hold the 6,040 STS pairs; each goes with 8 examples of both other tasks."""
    assert RoundRobin().epoch_examples(SIZES, EIGHTS) == 755 * 24


def test_a_mix_epoch_ends_with_the_longest_task() -> None:
    """Li & Tang 2023: 2 / 24 / 2 gives 5,896 iterations an epoch."""
    assert Mix().epoch_examples(SIZES, {"sst": 2, "para": 24, "sts": 2}) == 5896 * 28


def test_a_proportional_epoch_draws_as_many_examples_as_there_are() -> None:
    assert Proportional().epoch_examples(SIZES, dict.fromkeys(SIZES, 16)) == sum(SIZES.values())


def test_proportional_takes_one_task_a_step() -> None:
    assert len(Proportional().tasks_of_step(StepAt(0, 0.0, SIZES, EIGHTS, 0))) == 1
    assert Proportional().tasks_per_step(3) == 1


def test_probabilities_follow_size_to_the_alpha() -> None:
    sizes, batch_sizes = {"a": 100, "b": 400}, {"a": 8, "b": 8}
    assert task_probabilities(sizes, batch_sizes, 1.0).tolist() == pytest.approx([0.2, 0.8])
    assert task_probabilities(sizes, batch_sizes, 0.5).tolist() == pytest.approx([1 / 3, 2 / 3])
    assert task_probabilities(sizes, batch_sizes, 0.0).tolist() == pytest.approx([0.5, 0.5])


def test_equal_batches_do_not_change_a_digit_of_the_probabilities() -> None:
    """p_i = N_i^alpha / sum of N_j^alpha, as Stickland & Murray 2019 write it"""
    sizes_T = np.array([8544.0, 141498.0, 6040.0])
    for alpha in (0.0, 0.2, 0.7, 1.0):
        powers_T = (sizes_T / sizes_T.max()) ** alpha
        assert task_probabilities(SIZES, EIGHTS, alpha).tolist() == (powers_T / powers_T.sum()).tolist()


def test_examples_not_batches_are_in_proportion_to_size_to_the_alpha() -> None:
    """Counted in batches, STS would have .35 % of the examples of 2 / 24 / 2"""
    batch_sizes = {"sst": 2, "para": 24, "sts": 2}
    for alpha in (0.0, 0.5, 1.0):
        examples = task_probabilities(SIZES, batch_sizes, alpha) * list(batch_sizes.values())
        powers = np.array(list(SIZES.values())) ** alpha
        assert (examples / examples.sum()).tolist() == pytest.approx((powers / powers.sum()).tolist())
    assert (examples / examples.sum())[2] == pytest.approx(0.0387, abs=1e-4)


def share_of_b(schedule: Proportional, progress: float) -> float:
    sizes, steps = {"a": 100, "b": 400}, range(2000)
    return sum(schedule.tasks_of_step(StepAt(step, progress, sizes, {"a": 8, "b": 8}, 1)) == ("b",) for step in steps) / len(
        steps
    )


def test_draws_follow_the_probabilities() -> None:
    assert share_of_b(Proportional(), 0.0) == pytest.approx(0.8, abs=0.03)  # three standard errors


@pytest.mark.parametrize(("progress", "expected"), [(0.0, 0.8), (0.5, 2 / 3), (1.0, 0.5)])
def test_alpha_moves_linearly_to_its_end(progress: float, expected: float) -> None:
    assert share_of_b(Proportional(alpha=1.0, alpha_end=0.0), progress) == pytest.approx(expected, abs=0.032)


def test_an_alpha_end_of_zero_is_not_taken_for_none() -> None:
    assert Proportional(alpha_end=0.0) != Proportional()
    assert share_of_b(Proportional(alpha_end=0.0), 1.0) < 0.6


def test_the_announced_shares_of_steps_follow_alpha_through_the_stage() -> None:
    """From 4 : 1 to 1 : 1 of the examples, .343 to the smaller in the mean, in batches half as large"""
    shares = Proportional(alpha_end=0.0).step_shares({"a": 100, "b": 400}, {"a": 4, "b": 8})
    mean = sum(1 / (1 + 4 ** (1 - i / 1000)) for i in range(1001)) / 1001
    assert shares["a",] == pytest.approx(2 * mean / (1 + mean), abs=1e-3)


def test_without_alpha_end_alpha_stays() -> None:
    assert share_of_b(Proportional(alpha=0.0), 1.0) == pytest.approx(0.5, abs=0.035)


# ---------------------------------------------------------------------------------------------------------- sequential


def turns(rounds: int, sizes: dict[str, int], batch_sizes: dict[str, int], examples: int) -> str:
    """The first letter of each step's task, in a stage of `examples`."""
    drawn, letters = 0, ""
    while drawn < examples:
        (task,) = Sequential(rounds=rounds).tasks_of_step(StepAt(len(letters), drawn / examples, sizes, batch_sizes, 0))
        drawn += batch_sizes[task]
        letters += task[0]
    return letters


def test_sequential_gives_each_task_its_turn_in_every_round() -> None:
    sizes, batch_sizes = {"c": 80, "a": 30, "b": 50}, {"c": 20, "a": 10, "b": 10}
    assert turns(2, sizes, batch_sizes, 320) == "ccccaaabbbbb" * 2
    assert turns(4, sizes, batch_sizes, 640) == "ccccaaabbbbb" * 4


def test_with_as_many_rounds_as_epochs_a_turn_is_a_full_pass_to_within_a_batch() -> None:
    batch_sizes = {"sst": 2, "para": 24, "sts": 2}
    letters = turns(2, SIZES, batch_sizes, 2 * Sequential().epoch_examples(SIZES, batch_sizes))
    passes = ["".join(group) for _, group in groupby(letters)]  # SST and STS share the letter s
    assert [len(turn) for turn in passes] == [pytest.approx(length, abs=14) for length in (4272, 5896, 3020 + 4272, 5896, 3020)]


def test_the_order_of_training_is_the_order_of_turns() -> None:
    assert turns(1, {"z": 2, "a": 2}, {"z": 1, "a": 1}, 4) == "zzaa"


def test_a_sequential_epoch_shows_each_task_once_in_full_batches() -> None:
    assert Sequential().epoch_examples({"c": 8, "a": 3, "b": 5}, {"c": 2, "a": 4, "b": 2}) == 8 + 4 + 6


def test_no_rounds_are_refused() -> None:
    with pytest.raises(ValidationError, match="rounds"):
        Sequential(rounds=0)


# ---------------------------------------------------------------------------------------------------------------- drop


def test_drop_takes_each_task_as_often_whatever_its_size() -> None:
    drawn = Counter(Drop().tasks_of_step(StepAt(step, 0.0, SIZES, EIGHTS, 3))[0] for step in range(3000))
    assert drawn == {task: pytest.approx(1000, abs=80) for task in SIZES}  # three standard errors


def test_drop_draws_afresh_at_each_step_and_seed() -> None:
    runs = {tuple(Drop().tasks_of_step(StepAt(step, 0.0, SIZES, EIGHTS, seed)) for step in range(20)) for seed in range(5)}
    assert len(runs) == 5


def test_a_drop_epoch_has_as_many_steps_as_the_shortest_task_has_batches() -> None:
    """755 steps of 8, where round_robin takes 755 of 24."""
    assert Drop().epoch_examples(SIZES, EIGHTS) == 755 * 8


def test_a_drop_epoch_of_unequal_batches_is_counted_in_the_mean() -> None:
    """Three steps, the batches of 2, 4 and 6 alike likely."""
    assert Drop().epoch_examples({"a": 6, "b": 100, "c": 100}, {"a": 2, "b": 4, "c": 6}) == 12


# ----------------------------------------------------------------------------------------------------------- alternate


def test_alternate_takes_one_task_a_step_in_turn() -> None:
    steps = [Alternate().tasks_of_step(StepAt(step, 0.0, SIZES, EIGHTS, 0)) for step in range(7)]
    assert steps == [("sst",), ("para",), ("sts",)] * 2 + [("sst",)]
    assert Alternate().tasks_per_step(3) == 1


def test_an_epoch_of_alternate_is_that_of_round_robin() -> None:
    assert Alternate().epoch_examples(SIZES, EIGHTS) == RoundRobin().epoch_examples(SIZES, EIGHTS)
