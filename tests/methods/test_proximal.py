"""Bregman's teacher on a model of two layers: a copy, not an alias; means by hand; what a snapshot holds of it."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from minbert_core.methods.proximal import EARLY, Bregman, Teacher


def student() -> nn.Sequential:
    """A trained layer over a frozen one."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    return model


def move(model: nn.Module, values: float) -> None:
    """Set every trained parameter, as a step would change it: in place."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.fill_(values)


def means(teacher: Teacher) -> Tensor:
    return torch.cat([mean.flatten() for mean in teacher.means.values()])


def test_the_teacher_starts_as_the_student_heads_and_all() -> None:
    """Not with random heads of its own, as in a public copy."""
    model = student()
    teacher, x = Bregman().start(model), torch.randn(5, 3)
    assert teacher is not None
    assert torch.equal(teacher.model(x), model(x))


def test_the_teacher_is_a_copy_not_an_alias() -> None:
    """A public copy kept the student's own tensors, and so a penalty of 0 for ever."""
    model = student()
    teacher = Bregman().start(model)
    assert teacher is not None
    before = means(teacher).clone()
    move(model, 7.0)
    assert torch.equal(means(teacher), before)
    teacher.follow(0.5)
    assert all(bool((parameter == 7).all()) for parameter in model[1].parameters())


def test_what_is_frozen_is_shared_and_what_is_trained_is_not() -> None:
    model = student()
    teacher = Bregman().start(model)
    assert teacher is not None
    assert teacher.model[0].weight is model[0].weight
    assert teacher.model[1].weight is not model[1].weight
    assert set(teacher.means) == {"1.weight", "1.bias"}


def test_the_means_of_two_steps_are_those_by_hand() -> None:
    """(1 - beta) theta_2 + beta ((1 - beta) theta_1 + beta theta_0), with theta 0, 1, 3 and a beta of 0.9."""
    model = student()
    move(model, 0.0)
    teacher = Bregman(beta=0.9, late_beta=None).start(model)
    assert teacher is not None
    for value, wanted in ((1.0, 0.1), (3.0, 0.39)):
        move(model, value)
        teacher.follow(0.05)
        assert torch.allclose(means(teacher), torch.tensor(wanted))


def test_late_beta_holds_from_a_tenth_of_the_stage_on() -> None:
    for progress, wanted in ((0.0, 0.5), (EARLY - 1e-9, 0.5), (EARLY, 0.25), (1.0, 0.25)):
        model = student()
        move(model, 0.0)
        teacher = Bregman(beta=0.5, late_beta=0.75).start(model)
        assert teacher is not None
        move(model, 1.0)
        teacher.follow(progress)
        assert torch.allclose(means(teacher), torch.tensor(wanted)), progress


def test_without_late_beta_beta_holds_to_the_end() -> None:
    model = student()
    move(model, 0.0)
    teacher = Bregman(beta=0.5, late_beta=None).start(model)
    assert teacher is not None
    move(model, 5.0)
    teacher.follow(1.0)
    assert bool((means(teacher) == 2.5).all())


def test_no_gradient_reaches_the_teacher_s_own_parameters() -> None:
    model = student()
    teacher, x = Bregman().start(model), torch.randn(5, 3)
    assert teacher is not None
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    (model(x) - teacher.model(x) - 1).square().sum().backward()
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
    assert all(parameter.requires_grad and parameter.grad is not None for parameter in model[1].parameters())


def test_a_teacher_that_is_restored_goes_on_as_the_first_would_have() -> None:
    model = student()
    first = Bregman(beta=0.5).start(model)
    assert first is not None
    move(model, 2.0)
    first.follow(0.0)
    state = {name: mean.clone() for name, mean in first.state().items()}
    again = Bregman(beta=0.5).start(model)  # from the student of now: another teacher, until it is restored
    assert again is not None
    assert not torch.equal(means(again), means(first))
    again.restore(state)
    for teacher in (first, again):
        teacher.follow(0.05)
    assert torch.equal(means(again), means(first))
    assert torch.equal(again.model[1].weight, again.means["1.weight"])  # the model reads what was restored
    assert not any(mean.requires_grad for mean in first.state().values())


def test_a_snapshot_of_other_parameters_is_no_teacher_s() -> None:
    teacher = Bregman().start(student())
    assert teacher is not None
    with pytest.raises(AssertionError, match="a stage that trains other parameters"):
        teacher.restore({"1.weight": torch.zeros(2, 4)})


@pytest.mark.parametrize("knobs", [{"beta": 1.0}, {"beta": 0.0}, {"late_beta": 1.0}, {"late_beta": 0.0}, {"weight": -1.0}])
def test_a_teacher_that_would_never_follow_or_would_equal_the_student_is_refused(knobs: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=r"less than 1|greater than 0|greater than or equal to 0"):
        Bregman(**knobs)
