"""AdamW's groups and the learning rate's course."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from minbert_core.encoder import Encoder, EncoderShape, new_encoder
from minbert_core.methods.optimizer import Optimizer, constant_schedule, cosine_schedule, linear_schedule

ROOT = Path(__file__).resolve().parents[2]


def parts() -> tuple[nn.Module, nn.Module]:
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), nn.Linear(4, 2)


def build(settings: Optimizer, encoder: nn.Module, heads: nn.Module) -> torch.optim.AdamW:
    return settings.build(encoder.named_parameters(), heads.named_parameters())


@pytest.mark.parametrize(("progress", "factor"), [(0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.55, 0.5), (1.0, 0.0), (1.5, 0.0)])
def test_the_rate_rises_during_warmup_and_falls_to_zero(progress: float, factor: float) -> None:
    assert linear_schedule(progress, warmup=0.1) == pytest.approx(factor)


def test_without_warmup_the_rate_starts_at_its_peak() -> None:
    assert [linear_schedule(progress, 0.0) for progress in (0.0, 0.5, 1.0)] == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("lr_schedule", ["linear", "cosine", "constant"])
def test_warmup_over_the_whole_stage_only_rises(lr_schedule: str) -> None:
    settings = Optimizer.model_validate({"lr_schedule": lr_schedule, "warmup": 1.0})
    assert [settings.lr_factor(progress) for progress in (0.0, 0.5, 1.0)] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("progress", "factor"), [(0.0, 0.0), (0.1, 0.5), (0.2, 1.0), (0.4, 0.5 + 0.5**1.5), (0.6, 0.5), (1.0, 0.0), (1.5, 0.0)]
)
def test_the_cosine_schedule_falls_along_half_a_cosine(progress: float, factor: float) -> None:
    """At 0.4 a quarter of the way down is done: (1 + cos 45°) / 2."""
    assert cosine_schedule(progress, warmup=0.2) == pytest.approx(factor)


def test_the_constant_schedule_stays_at_its_peak() -> None:
    assert [constant_schedule(progress, 0.5) for progress in (0.0, 0.25, 0.5, 0.9, 1.0)] == [0.0, 0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("lr_schedule", ["linear", "cosine", "constant"])
def test_all_schedules_warm_up_alike_and_stay_within_zero_and_one(lr_schedule: str) -> None:
    factors = [Optimizer.model_validate({"lr_schedule": lr_schedule}).lr_factor(i / 100) for i in range(101)]
    assert factors[:11] == [Optimizer().lr_factor(i / 100) for i in range(11)]
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[0] == 0.0
    assert max(factors) == 1.0
    assert min(factors) >= 0.0


def test_the_lr_schedule_chooses_the_factor() -> None:
    factors = {
        name: Optimizer.model_validate({"lr_schedule": name}).lr_factor(0.325) for name in ("linear", "cosine", "constant")
    }
    assert factors == pytest.approx({"linear": 0.75, "cosine": 0.5 + 0.5**1.5, "constant": 1.0})


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


# ---------------------------------------------------------------------------------------------------- the course's AdamW


def test_one_step_of_the_course_s_adamw_by_hand() -> None:
    """Step 1: m = .1 g, v = .001 g^2; .01 sqrt(.001) / .1 * .1 g / (sqrt(.001) |g| + eps), then the decay of what has moved."""
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    weight.grad = torch.tensor([[0.3, -50.0]])
    settings = Optimizer(lr=0.01, weight_decay=0.1, rule="course", eps=1e-2)
    settings.build([("weight", weight)], []).step()
    root = 0.001**0.5
    moved = [1.0 - 0.01 * root * 0.3 / (0.3 * root + 1e-2), -2.0 + 0.01 * root * 50 / (50 * root + 1e-2)]
    assert weight.tolist()[0] == pytest.approx([value - 0.01 * 0.1 * value for value in moved])


def test_the_course_s_adamw_is_torch_s_with_an_eps_that_falls() -> None:
    """eps / sqrt(1 - beta2^t), without decay, over steps of which some parameters skip some."""
    ours, theirs = ([nn.Parameter(torch.arange(6.0).view(2, 3)), nn.Parameter(torch.ones(4))] for _ in range(2))
    course = Optimizer(lr=0.1, rule="course", eps=1e-3, weight_decay=0).build([("a", ours[0]), ("b", ours[1])], [])
    oracles = [torch.optim.AdamW([parameter], lr=0.1, weight_decay=0) for parameter in theirs]
    ages = [0, 0]
    for step in range(5):
        for i, (one, other, oracle) in enumerate(zip(ours, theirs, oracles, strict=True)):
            one.grad = torch.randn(one.shape) * 1e-3 if (i, step) != (1, 2) else None
            if one.grad is not None:
                ages[i] += 1
                other.grad = one.grad.clone()
                oracle.param_groups[0]["eps"] = 1e-3 / (1 - 0.999 ** ages[i]) ** 0.5
                oracle.step()
        course.step()
    assert all(torch.allclose(one, other, rtol=1e-5) for one, other in zip(ours, theirs, strict=True))


def test_the_course_s_decay_falls_on_what_has_moved_and_on_matrices_alone() -> None:
    encoder, heads = parts()
    settings = Optimizer(lr=0.5, weight_decay=0.2, rule="course")
    before = {name: parameter.detach().clone() for name, parameter in heads.named_parameters()}
    for parameter in heads.parameters():
        parameter.grad = torch.zeros_like(parameter)
    build(settings, encoder, heads).step()
    assert torch.allclose(heads.weight, before["weight"] * 0.9)
    assert torch.equal(heads.bias, before["bias"])


def test_the_course_s_adamw_goes_on_from_a_saved_state() -> None:
    through, resumed = (nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    settings = Optimizer(lr=0.1, rule="course")
    one, other = (settings.build([("w", weight)], []) for weight in (through, resumed))
    for step in range(4):
        if step == 2:
            fresh = settings.build([("w", resumed)], [])
            fresh.load_state_dict(other.state_dict())
            assert type(fresh.state[resumed]["step"]) is int  # a tensor on a GPU would be waited for at each step
            other = fresh
        for weight, optimizer in ((through, one), (resumed, other)):
            weight.grad = torch.full((2, 2), 0.1 + step)
            optimizer.step()
    assert torch.equal(through, resumed)


@pytest.mark.parametrize("rule", ["torch", "course"])
def test_a_large_eps_makes_steps_small(rule: str) -> None:
    weight = nn.Parameter(torch.zeros(1, 1))
    weight.grad = torch.ones(1, 1)
    Optimizer.model_validate({"lr": 0.1, "eps": 1e3, "rule": rule}).build([("w", weight)], []).step()
    assert 0 < abs(weight.item()) < 1e-3


# --------------------------------------------------------------------------------------------------------- layer decay


def three_layers() -> Encoder:
    shape = EncoderShape(
        vocab_size=20,
        hidden_size=4,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=16,
    )
    return new_encoder(shape, 0, 0.1, 0.1)


def rates(layer_decay: float) -> dict[str, float]:
    """The peak rate of every parameter of an encoder of three layers, and of a head, at lr 1 and head_lr_factor 0.5."""
    encoder, head = three_layers(), nn.Linear(4, 2)
    groups = build(Optimizer(lr=1.0, head_lr_factor=0.5, layer_decay=layer_decay), encoder, head).param_groups
    rate = {id(parameter): group["base_lr"] for group in groups for parameter in group["params"]}
    assert [group["lr"] for group in groups] == [group["base_lr"] for group in groups]
    named = [*encoder.named_parameters(), *head.named_parameters("head")]
    assert len(rate) == len(named) == sum(len(group["params"]) for group in groups)
    return {name: rate[id(parameter)] for name, parameter in named}


def test_each_layer_learns_at_a_multiple_of_the_rate_of_the_layer_above() -> None:
    powers = {"layers.2.": 0, "pooler.": 0, "layers.1.": 1, "layers.0.": 2, "": 3}  # "": the embeddings and their norm
    for name, rate in rates(0.5).items():
        power = next(power for start, power in powers.items() if name.startswith(start))
        assert rate == (0.5 if name.startswith("head.") else 0.5**power), name


def test_without_layer_decay_the_encoder_has_one_rate_and_two_groups() -> None:
    assert {rate for name, rate in rates(1.0).items() if not name.startswith("head.")} == {1.0}
    encoder, heads = parts()
    assert len(build(Optimizer(), encoder, heads).param_groups) == 4


def test_layer_decay_keeps_weight_decay_off_the_vectors() -> None:
    groups = build(Optimizer(layer_decay=0.9, weight_decay=0.3), three_layers(), nn.Linear(4, 2)).param_groups
    dims = {(group["weight_decay"], parameter.dim()) for group in groups for parameter in group["params"]}
    assert dims == {(0.3, 2), (0.0, 1)}


def test_layer_decay_of_a_frozen_encoder_leaves_the_heads() -> None:
    encoder = three_layers()
    encoder.requires_grad_(False)
    groups = build(Optimizer(layer_decay=0.9), encoder, nn.Linear(4, 2)).param_groups
    assert [len(group["params"]) for group in groups if group["params"]] == [1, 1]


def test_a_parameter_of_no_known_layer_is_an_error_where_rates_decay() -> None:
    encoder, heads = parts()
    with pytest.raises(AssertionError, match=r"not '0\.weight'"):
        build(Optimizer(layer_decay=0.9), encoder, heads)


# ------------------------------------------------------------------------------------------------------------- refusals


def test_warmup_as_a_count_is_told_that_it_is_a_share() -> None:
    with pytest.raises(ValidationError, match=r"must be in \[0, 1\]\. Got 100\. It is a share of the steps, not a count\."):
        Optimizer(warmup=100)


@pytest.mark.parametrize(
    ("knob", "value"),
    [("lr", 0), ("lr", 2), ("head_lr_factor", 0), ("weight_decay", -1), ("clip", 0), ("layer_decay", 0), ("layer_decay", 1.1)],
)
def test_a_knob_out_of_its_range_is_refused(knob: str, value: float) -> None:
    with pytest.raises(ValidationError, match=rf"{knob}\n  Input should be (greater|less) than"):
        Optimizer.model_validate({knob: value})


def test_clipping_can_be_turned_off() -> None:
    assert Optimizer(clip=None).clip is None


def test_every_knob_has_a_description() -> None:
    assert [name for name, field in Optimizer.model_fields.items() if not field.description] == []


@pytest.mark.parametrize("method", ["add_param_group", "state_dict", "load_state_dict", "step"])
def test_torch_still_wraps_what_we_unwrap(method: str) -> None:
    """Seen with torch 2.13. Once torch has no wrapper there, `AdamW` of minbert_core/methods/optimizer.py can go."""
    wrapped = getattr(torch.optim.AdamW, method)
    assert inspect.unwrap(wrapped) is not wrapped, f"torch {torch.__version__} does not wrap AdamW.{method}; stop unwrapping it"


def test_a_step_without_torch_s_wrappers_is_torch_s_own_and_imports_no_compiler() -> None:
    """The compiler would cost every trial most of a second."""
    code = (
        "import sys, torch; from minbert_core.methods.optimizer import AdamW\n"
        "w = torch.nn.Parameter(torch.arange(6.0).view(2, 3)); o = AdamW([w], lr=0.1, fused=True); w.grad = torch.ones(2, 3)\n"
        "o.step(); o.load_state_dict(o.state_dict()); o.step(); assert 'torch._dynamo' not in sys.modules; print(w.tolist())"
    )
    ours = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ours.returncode == 0, ours.stderr
    weight = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    for _ in range(2):
        weight.grad = torch.ones(2, 3)
        optimizer.step()
    assert ours.stdout.strip() == str(weight.tolist())
