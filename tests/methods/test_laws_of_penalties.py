"""The laws of what is added to a loss: smoothness and proximal terms.

Legend: B examples, N tokens, D hidden size, K outputs.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any

import pytest
import torch
from battery import law
from torch import Tensor, nn

from minbert_core.data.tasks import TaskKind
from minbert_core.methods.losses import divergence
from minbert_core.methods.proximal import Proximal
from minbert_core.methods.smoothness import Clean, Smoothness

EXAMPLE_N = torch.tensor([0, 0, 1, 1, 1])


def noise_of(generator: torch.Generator) -> Callable[[], Tensor]:
    return lambda: torch.randn((5, 4), generator=generator)


@law(Smoothness)
@pytest.mark.parametrize("kind", typing.get_args(TaskKind))
def test_a_penalty_is_a_positive_scalar_that_trains_and_costs_what_it_announces(variant: Any, kind: TaskKind) -> None:
    embeddings_ND, weight_DK = torch.randn(5, 4), torch.randn(4, 5 if kind == "classification" else 1, requires_grad=True)
    passes: list[int] = []

    def forward(noise_ND: Tensor, in_float32: bool = False) -> Tensor:
        assert noise_ND.shape == (5, 4), f"noise of shape {tuple(noise_ND.shape)}, not (N, D) = (5, 4)"
        passes.append(1)
        values_NK = ((embeddings_ND + noise_ND) @ weight_DK).tanh()
        return torch.zeros(2, values_NK.shape[1]).index_add(0, EXAMPLE_N, values_NK)

    views = [forward(0.1 * view * torch.ones(5, 4)) for view in range(variant.views)]  # as if masks had made them differ
    del passes[:1]
    state = torch.get_rng_state()
    penalty = variant.penalty(Clean(views, forward, divergence(kind), EXAMPLE_N, 2, noise_of(torch.Generator())))
    announced = variant.extra_passes
    assert len(passes) == announced, f"it takes {len(passes)} passes, but extra_passes announces {announced}, which is charged"
    assert torch.equal(torch.get_rng_state(), state), "it draws from torch's global generator, not from the one handed in"
    assert weight_DK.grad is None, "it leaves a gradient in a parameter; torch.autograd.grad(…, [noise]) does not"
    if penalty is None:
        assert variant.weight == 0, f"it has a weight of {variant.weight}, but no penalty"
        return
    assert isinstance(penalty, Tensor), f"its penalty is a {type(penalty).__name__}, not a Tensor"
    assert penalty.shape == (), f"its penalty has shape {tuple(penalty.shape)}; it must be a scalar"
    assert penalty.isfinite(), f"its penalty is {penalty.item()} for a {kind} task"
    assert penalty > 0, f"its penalty is {penalty.item()} for a {kind} task, though the logits move"
    assert penalty.requires_grad, "its penalty is cut off from the model: no gradient (a detach, a no_grad?)"
    penalty.backward()
    assert weight_DK.grad is not None, f"the gradient of its penalty does not reach the model ({kind})"
    assert weight_DK.grad.abs().max() > 0, f"the gradient of its penalty does not reach the model ({kind})"


@law(Smoothness)
def test_a_penalty_repeats_from_the_same_generator(variant: Any) -> None:
    weight_DK, found = torch.randn(4, 1), []

    def forward(noise_ND: Tensor, in_float32: bool = False) -> Tensor:
        return torch.zeros(2, 1).index_add(0, EXAMPLE_N, ((1 + noise_ND) @ weight_DK).tanh())

    for _ in range(2):
        generator = torch.Generator().manual_seed(3)
        views = [forward(0.1 * view * torch.ones(5, 4)) for view in range(variant.views)]
        found.append(variant.penalty(Clean(views, forward, divergence("regression"), EXAMPLE_N, 2, noise_of(generator))))
    same = found[0] is found[1] is None or torch.equal(*found)
    assert same, f"from one seed its penalty is {found[0]}, then {found[1]}: a trial could not be repeated"


# ------------------------------------------------------------------------------------------------------------- proximal


def student() -> nn.Sequential:
    """A frozen layer and a trained one, moved from where it began by `moved`."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    model[0].requires_grad_(False)
    return model


@torch.no_grad()
def moved(model: nn.Sequential, seed: int) -> nn.Sequential:
    for parameter in model[1].parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return model


@law(Proximal)
def test_a_teacher_begins_as_the_student_and_takes_no_gradient(variant: Any) -> None:
    model, x = moved(student(), 0), torch.randn(5, 3)
    state = torch.get_rng_state()
    teacher = variant.start(model)
    assert torch.equal(torch.get_rng_state(), state), "it draws from torch's global generator"
    assert variant.weight >= 0, f"its weight is {variant.weight}"
    if teacher is None:
        assert variant.weight == 0, f"it has a weight of {variant.weight}, but no teacher"
        return
    assert torch.equal(teacher.model(x), model(x)), "its teacher begins as something else than the student"
    assert not teacher.model(x).requires_grad, "a gradient reaches its teacher"


@law(Proximal)
def test_a_teacher_stays_between_where_it_was_and_the_student_and_leaves_the_student_alone(variant: Any) -> None:
    model = moved(student(), 0)
    teacher = variant.start(model)
    if teacher is None:
        return
    before = model[1].weight.detach().clone()
    after = moved(model, 1)[1].weight.detach().clone()
    for progress in (0.0, 0.5, 1.0):
        teacher.follow(progress)
        share = (teacher.model[1].weight - before) / (after - before)
        between = bool(((share > 0) & (share < 1)).all())
        assert between, f"its teacher is {share.flatten().tolist()} of the way to the student, which must lie in (0, 1)"
    assert torch.equal(model[1].weight, after), "it moves the student"
    assert torch.equal(teacher.model[0].weight, model[0].weight), "it moves what is frozen"


@law(Proximal)
def test_the_state_of_a_teacher_is_all_that_is_remembered(variant: Any) -> None:
    """A teacher restored from a copy goes on as the original does: that is what a checkpoint relies on."""
    model = moved(student(), 0)
    teacher = variant.start(model)
    if teacher is None:
        return
    moved(model, 1)
    teacher.follow(0.0)
    again = variant.start(model)
    again.restore({name: value.clone() for name, value in teacher.state().items()})
    moved(model, 2)
    for one in (teacher, again):
        one.follow(0.5)
    found = [name for name, value in teacher.state().items() if not torch.equal(value, again.state()[name])]
    assert not found, f"restored from its state it goes on otherwise in {', '.join(found)}"
