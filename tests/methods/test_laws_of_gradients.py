"""The laws of gradient methods.

Legend: G groups, T tasks.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from battery import law
from torch import Tensor

from minbert_core.methods.gradients import GradientMethod, random_orders

TASKS = ("sst", "para", "sts")


def gramians(num_groups: int = 4, num_tasks: int = 3, seed: int = 0) -> Tensor:
    """Of gradients in few dimensions, some of which conflict; float64, shape (G, T, T)."""
    gradients = torch.randn(num_groups, num_tasks, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return gradients @ gradients.mT


def orders_of(num_tasks: int, seed: int = 0) -> Tensor:
    return random_orders(num_tasks, np.random.default_rng(seed))


def weights_of(variant: Any, gram: Tensor, state: dict[str, Tensor], seed: int = 0, tasks: tuple[str, ...] = TASKS) -> Tensor:
    return weighed(variant, gram, tasks, orders_of(len(tasks), seed), state)


def weighed(variant: Any, gram: Tensor, tasks: tuple[str, ...], orders: Tensor, state: dict[str, Tensor]) -> Tensor:
    weights: Tensor = variant.weights(gram, tasks, orders, state)
    assert isinstance(weights, Tensor), f"`weights` gives a {type(weights).__name__}, not a Tensor"
    expected = tuple(gram.shape[:2])
    assert weights.shape == expected, f"weights of shape {tuple(weights.shape)}, not (G, T) = {expected}"
    assert weights.dtype == gram.dtype, f"weights in {weights.dtype} for a Gramian in {gram.dtype}"
    for key, value in state.items():
        assert isinstance(value, Tensor), f"state['{key}'] is a {type(value).__name__}; a checkpoint holds Tensors"
    return weights


@law(GradientMethod)
def test_weights_have_a_row_a_group_in_the_precision_of_the_gramian(variant: Any) -> None:
    weights_of(variant, gramians(), {})


@law(GradientMethod)
def test_a_single_task_keeps_its_gradient(variant: Any) -> None:
    weights = weights_of(variant, gramians(num_tasks=1), {}, tasks=("sst",))
    assert torch.equal(weights, torch.ones_like(weights)), f"of one task it gives weights {weights.flatten().tolist()}, not 1"


@law(GradientMethod)
def test_tasks_that_agree_keep_their_direction(variant: Any) -> None:
    """Three equal gradients: whatever the weights, they sum to something positive."""
    total = weights_of(variant, torch.ones(4, 3, 3, dtype=torch.float64), {}).sum(dim=1)
    assert (total > 0).all(), f"three equal gradients are merged with weights that sum to {total.tolist()}: the step goes up"


@law(GradientMethod)
def test_permuting_tasks_permutes_weights(variant: Any) -> None:
    permutation = [2, 0, 1]
    place = {old: new for new, old in enumerate(permutation)}
    states: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for seed in range(4):  # over steps, so that state is permuted too
        gram, orders = gramians(seed=seed), orders_of(3, seed)
        moved_orders = torch.tensor([[place[j] for j in orders[old].tolist()] for old in permutation])
        expected = weighed(variant, gram, TASKS, orders, states[0])[:, permutation]
        moved_gram, moved_tasks = gram[:, permutation][:, :, permutation], tuple(TASKS[old] for old in permutation)
        found = weighed(variant, moved_gram, moved_tasks, moved_orders, states[1])
        assert torch.allclose(found, expected), (
            f"the tasks in another order get other weights: {found[0].tolist()}, not {expected[0].tolist()}"
        )


@law(GradientMethod)
def test_scaling_all_gradients_scales_the_result(variant: Any) -> None:
    expected = weights_of(variant, gramians(), {})
    for scale in (1e-12, 1e8):
        found = weights_of(variant, scale * gramians(), {})
        assert torch.allclose(found, expected), f"gradients {scale**0.5:g} times as long get other weights, {found[0].tolist()}"


@law(GradientMethod)
def test_zero_gradients_stay_finite_for_ever(variant: Any) -> None:
    state: dict[str, Tensor] = {}
    for groups, zero in itertools.product((slice(0, 2), slice(None)), ([0], [0, 1], [0, 1, 2], [])):
        gram = gramians()
        gram[groups, zero] = 0
        gram[groups, :, zero] = 0
        after = f"once tasks {zero} have had a gradient of zero" if zero else "after a step with a gradient of zero"
        weights = weights_of(variant, gram, state)
        assert weights.isfinite().all(), f"its weights are not finite {after} (0/0?)"
        for key, value in state.items():
            assert value.isfinite().all(), f"state['{key}'] is not finite {after}, and stays so (0/0?)"


@law(GradientMethod)
def test_a_gramian_is_left_as_it_was_and_its_weights_are_repeatable(variant: Any) -> None:
    gram = gramians()
    first = weights_of(variant, gram, {})
    assert torch.equal(gram, gramians()), "it writes into the Gramian"
    again = weights_of(variant, gram, {})
    assert torch.equal(first, again), "two calls differ; randomness comes in through `orders`, memory through `state`"


@law(GradientMethod)
def test_state_is_all_that_is_remembered(variant: Any) -> None:
    """A copy of the state goes on as the original does: that is what a checkpoint relies on."""
    state: dict[str, Tensor] = {}
    for seed in range(3):
        weights_of(variant, gramians(seed=seed), state, seed)
    copy = {key: value.clone() for key, value in state.items()}
    found, expected = weights_of(variant, gramians(seed=9), copy), weights_of(variant, gramians(seed=9), state)
    assert torch.equal(found, expected), "from a copy of its state it goes on otherwise: it remembers something beside it"
