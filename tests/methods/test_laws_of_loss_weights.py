"""The laws of loss weights."""

from __future__ import annotations

import math
from typing import Any

from battery import law
from torch import Tensor

from minbert_core.data.tasks import TaskKind
from minbert_core.methods.loss_weights import LossWeights

KINDS: dict[str, TaskKind] = {"sst": "classification", "para": "binary", "a-task-of-my-own": "regression"}
FALLING = [{task: rate**step for task, rate in zip(KINDS, (0.9, 0.5, 0.99), strict=True)} for step in range(20)]  # losses


def followed(variant: Any, losses: list[dict[str, float]], state: dict[str, Tensor], first: int = 0) -> dict[str, float]:
    """The weights after steps of these losses, each of which the update took to nine tenths; first: the first one's number."""
    for number, of_step in enumerate(losses, start=first):
        after = {task: 0.9 * loss for task, loss in of_step.items()}
        variant.follow(KINDS, of_step, after if variant.looks_again else of_step, (number + 0.5) / len(FALLING), state)
    for key, value in state.items():
        assert isinstance(value, Tensor), f"state['{key}'] is a {type(value).__name__}; a checkpoint holds Tensors"
    weights: dict[str, float] = variant.of(KINDS, FALLING[-1] if variant.reads_losses else {}, state)
    return weights


@law(LossWeights)
def test_a_loss_weight_is_a_positive_number_for_every_task(variant: Any) -> None:
    for losses in ([], FALLING, [dict.fromkeys(KINDS, 0.0)] * 20):
        weights, again = followed(variant, losses, {}), followed(variant, losses, {})
        assert list(weights) == list(KINDS), f"it weighs {list(weights)}, where the tasks are {list(KINDS)}"
        for task, weight in weights.items():
            assert isinstance(weight, float), f"the weight of {task} is {weight!r}, not a float"
            assert 0 < weight < math.inf, f"the weight of {task} is {weight} after {len(losses)} steps; it is positive, finite"
        assert weights == again, "two calls weigh tasks differently; what it remembers is in `state`"


@law(LossWeights)
def test_loss_weights_say_what_they_read(variant: Any) -> None:
    """Losses wait for the device: who does not read them must say so, and who says so must not."""
    state: dict[str, Tensor] = {}
    other = [{**losses, "sst": 0.3 + 0.5**step} for step, losses in enumerate(FALLING)]
    moves = followed(variant, FALLING, state) != followed(variant, other, {})
    assert moves is variant.follows_losses, f"follows_losses is {variant.follows_losses}, but losses move its weights: {moves}"
    assert bool(state) is variant.follows_losses, f"follows_losses is {variant.follows_losses}, but its state is {state}"
    assert variant.follows_losses or not variant.looks_again, "it looks again at losses that it does not follow"
    reads = variant.reads_losses and variant.of(KINDS, FALLING[1], {}) != variant.of(KINDS, FALLING[9], {})
    assert reads is variant.reads_losses, "it says reads_losses, but its weights are the same for other losses"


@law(LossWeights)
def test_loss_weights_do_not_depend_on_the_order_of_tasks(variant: Any) -> None:
    turned = [dict(reversed(losses.items())) for losses in FALLING]
    expected, found = followed(variant, FALLING, {}), followed(variant, turned, {})
    assert all(math.isclose(found[task], expected[task]) for task in KINDS), f"in another order {found}, not {expected}"


@law(LossWeights)
def test_the_state_of_loss_weights_is_all_that_is_remembered(variant: Any) -> None:
    state: dict[str, Tensor] = {}
    followed(variant, FALLING[:13], state)
    copy = {key: value.clone() for key, value in state.items()}
    found, expected = followed(variant, FALLING[13:], copy, 13), followed(variant, FALLING[13:], state, 13)
    assert found == expected, "from a copy of its state it goes on otherwise: it remembers something beside it"
