"""AdamW's groups and the learning rate's course."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from minbert_core.methods.optimizer import Optimizer, linear_schedule


def parts() -> tuple[nn.Module, nn.Module]:
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), nn.Linear(4, 2)


def build(settings: Optimizer, encoder: nn.Module, heads: nn.Module) -> torch.optim.AdamW:
    return settings.build(encoder.named_parameters(), heads.named_parameters())


@pytest.mark.parametrize(("progress", "factor"), [(0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.55, 0.5), (1.0, 0.0), (1.5, 0.0)])
def test_the_rate_rises_during_warmup_and_falls_to_zero(progress: float, factor: float) -> None:
    assert linear_schedule(progress, warmup=0.1) == pytest.approx(factor)


def test_without_warmup_the_rate_starts_at_its_peak() -> None:
    assert [linear_schedule(progress, 0.0) for progress in (0.0, 0.5, 1.0)] == [1.0, 0.5, 0.0]


def test_warmup_over_the_whole_stage_only_rises() -> None:
    assert [linear_schedule(progress, 1.0) for progress in (0.0, 0.5, 1.0)] == [0.0, 0.5, 1.0]


def test_every_parameter_is_in_one_group() -> None:
    encoder, heads = parts()
    groups = build(Optimizer(), encoder, heads).param_groups
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for module in (encoder, heads) for parameter in module.parameters())


def test_biases_and_layer_norm_do_not_decay() -> None:
    encoder, heads = parts()
    groups = build(Optimizer(weight_decay=0.3), encoder, heads).param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    linear, norm = encoder
    assert [decay[id(p)] for p in (linear.weight, heads.weight)] == [0.3, 0.3]
    assert [decay[id(p)] for p in (linear.bias, norm.weight, norm.bias, heads.bias)] == [0.0] * 4


def test_heads_have_a_rate_of_their_own() -> None:
    encoder, heads = parts()
    groups = build(Optimizer(lr=1e-4, head_lr_factor=10.0), encoder, heads).param_groups
    assert [group["base_lr"] for group in groups] == pytest.approx([1e-4, 1e-4, 1e-3, 1e-3])
    assert [group["lr"] for group in groups] == [group["base_lr"] for group in groups]


def test_a_frozen_encoder_leaves_its_groups_empty() -> None:
    encoder, heads = parts()
    encoder.requires_grad_(False)
    assert [len(group["params"]) for group in build(Optimizer(), encoder, heads).param_groups] == [0, 0, 1, 1]


def test_a_parameter_without_gradient_is_left_as_it_is() -> None:
    """A zero gradient in its place would decay AdamW's moments and the weight (a public bug)."""
    encoder, heads = parts()
    optimizer = build(Optimizer(lr=0.1), encoder, heads)
    before = [parameter.clone() for parameter in encoder.parameters()]
    heads(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert all(torch.equal(old, new) for old, new in zip(before, encoder.parameters(), strict=True))


def test_one_step_is_adamws() -> None:
    """The first step of Adam is lr * sign(g), whatever the gradient's size; decay takes lr * weight_decay of the weight."""
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    weight.grad = torch.tensor([[0.3, -50.0]])
    Optimizer(lr=0.01, weight_decay=0.1).build([("weight", weight)], []).step()
    assert weight.tolist()[0] == pytest.approx([1.0 - 0.01 * 0.1 - 0.01, -2.0 + 0.01 * 0.1 * 2 + 0.01])


def test_warmup_as_a_count_is_told_that_it_is_a_share() -> None:
    with pytest.raises(ValidationError, match=r"must be in \[0, 1\]\. Got 100\. It is a share of the steps, not a count\."):
        Optimizer(warmup=100)


@pytest.mark.parametrize(("knob", "value"), [("lr", 0), ("lr", 2), ("head_lr_factor", 0), ("weight_decay", -1), ("clip", 0)])
def test_a_knob_out_of_its_range_is_refused(knob: str, value: float) -> None:
    with pytest.raises(ValidationError, match=rf"{knob}\n  Input should be (greater|less) than"):
        Optimizer.model_validate({knob: value})


def test_clipping_can_be_turned_off() -> None:
    assert Optimizer(clip=None).clip is None


def test_every_knob_has_a_description() -> None:
    assert [name for name, field in Optimizer.model_fields.items() if not field.description] == []
