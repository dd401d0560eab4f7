"""Heads by hand-set weights; the laws of all heads are in test_laws_of_heads.py."""

from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from minbert_core.methods.heads import Cosine, Hadamard, Halving, Head, Linear, Mlp, Sbert, SbertCosine


def keep(values: Tensor, probability: float) -> Tensor:
    return values


def fill(module: nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value if parameter.dim() == 2 else 0.0)


def test_linear_is_one_affine_map() -> None:
    head = Linear().build(2, 1)
    fill(head, 2.0)
    assert head(torch.tensor([[1.0, 3.0]]), keep).tolist() == [[8.0]]


def test_mlp_of_hidden_widths_has_those_layers() -> None:
    head = Mlp(hidden=(7, 3)).build(4, 2)
    shapes = [tuple(parameter.shape) for parameter in head.parameters() if parameter.dim() == 2]
    assert shapes == [(7, 4), (3, 7), (2, 3)]


def test_mlp_has_relu_between_layers_but_neither_before_nor_after() -> None:
    head = Mlp(hidden=(2,)).build(1, 1)
    weights = [parameter for parameter in head.parameters() if parameter.dim() == 2]
    with torch.no_grad():
        weights[0].copy_(torch.tensor([[1.0], [-1.0]]))  # x and -x
        weights[1].copy_(torch.tensor([[1.0, -3.0]]))
    assert head(torch.tensor([[2.0], [-2.0]]), keep).tolist() == [[2.0], [-6.0]]


def test_mlp_without_hidden_layer_is_refused() -> None:
    with pytest.raises(ValidationError, match="at least 1 item"):
        Mlp(hidden=())


def test_sbert_sees_u_v_and_their_absolute_difference() -> None:
    head = Sbert().build(4, 1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.tensor([[1.0, 10.0, 100.0, 1000.0, 1e4, 1e5]]) if parameter.dim() == 2 else torch.zeros(1))
    # u = (1, 2), v = (3, 1), |u - v| = (2, 1)
    assert head(torch.tensor([[1.0, 2.0, 3.0, 1.0]]), keep).item() == 1 + 20 + 300 + 1000 + 2e4 + 1e5


def test_sbert_cosine_adds_the_cosine_to_its_linear_layer() -> None:
    head = SbertCosine().build(4, 1)
    fill(head, 0.5)
    # u = (1, 0), v = (1, 1), |u - v| = (0, 1): half the sum of all six, and cos 45°
    assert head(torch.tensor([[1.0, 0.0, 1.0, 1.0]]), keep).item() == pytest.approx(0.5 * 4 + 0.5**0.5)


def test_sbert_cosine_is_sbert_where_the_vectors_are_orthogonal() -> None:
    features = torch.tensor([[2.0, 0.0, 0.0, 3.0]])
    sbert, both = Sbert().build(4, 1), SbertCosine().build(4, 1)
    both.load_state_dict(sbert.state_dict())
    assert torch.equal(both(features, keep), sbert(features, keep))


def test_sbert_cosine_drops_nothing_of_its_cosine() -> None:
    """With every input of the layer dropped, the bias and the whole cosine are left."""
    features = torch.tensor([[3.0, 4.0, 3.0, 4.0]])
    assert SbertCosine().build(4, 1, 2.5)(features, lambda values, p: torch.zeros_like(values)).item() == pytest.approx(3.5)


def test_sbert_cosine_refuses_several_outputs() -> None:
    """The paper adds a vector of K cosines; there is one."""
    with pytest.raises(AssertionError, match="one output, not 5"):
        SbertCosine().build(4, 5)


def test_halving_has_a_layer_of_half_the_features() -> None:
    shapes = [tuple(parameter.shape) for parameter in Halving().build(768, 5).parameters() if parameter.dim() == 2]
    assert shapes == [(384, 768), (5, 384)]


def test_halving_lets_a_hundredth_of_what_is_negative_through() -> None:
    head = Halving().build(2, 1)
    fill(head, 1.0)
    assert head(torch.tensor([[1.0, 3.0], [-1.0, -3.0]]), keep)[:, 0].tolist() == pytest.approx([4.0, -0.04])


def test_hadamard_weighs_the_terms_of_the_cosine() -> None:
    head = Hadamard().build(4, 1)
    with torch.no_grad():
        head.layers[0].weight.copy_(torch.tensor([[1.0, 10.0]]))
    # u = (3, 4), v = (5, 12): 15 / 65 and 48 / 65
    assert head(torch.tensor([[3.0, 4.0, 5.0, 12.0]]), keep).item() == pytest.approx((15 + 480) / 65)


def test_hadamard_with_weights_of_one_is_the_cosine() -> None:
    head, features = Hadamard().build(8, 1), torch.randn(5, 8)
    fill(head, 1.0)
    assert torch.allclose(head(features, keep), Cosine(scale=1.0).build(8, 1)(features, keep), atol=1e-6)


def test_hadamard_of_a_zero_vector_is_zero_with_finite_gradient() -> None:
    features = torch.zeros(1, 4, requires_grad=True)
    logits = Hadamard().build(4, 1)(features, keep)
    logits.sum().backward()
    assert logits.item() == 0
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_cosine_starts_as_scale_times_the_cosine() -> None:
    head = Cosine(scale=5.0).build(4, 1)
    features = torch.tensor([[1.0, 0.0, 2.0, 0.0], [1.0, 0.0, 0.0, 3.0], [1.0, 1.0, -2.0, -2.0]])
    assert head(features, keep)[:, 0].tolist() == pytest.approx([5.0, 0.0, -5.0])


def test_cosine_starts_at_zero_where_its_offset_says() -> None:
    head = Cosine(scale=4.0, offset=-2.0).build(4, 1)  # zero at a cosine of 1/2
    assert head(torch.tensor([[2.0, 0.0, 1.0, 3.0**0.5]]), keep).item() == pytest.approx(0.0, abs=1e-6)


def test_cosine_learns_both_its_scale_and_its_offset() -> None:
    head = Cosine().build(4, 1)
    head(torch.tensor([[1.0, 0.0, 1.0, 1.0]]), keep).sum().backward()
    assert sorted(float(parameter.grad) for parameter in head.parameters()) == pytest.approx([0.5**0.5, 1.0])


def test_cosine_of_a_zero_vector_is_zero_with_finite_gradient() -> None:
    features = torch.zeros(1, 4, requires_grad=True)
    logits = Cosine().build(4, 1)(features, keep)
    logits.sum().backward()
    assert logits.item() == 0
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_cosine_refuses_several_outputs() -> None:
    with pytest.raises(AssertionError, match="one output, not 5"):
        Cosine().build(4, 5)


def test_cosine_has_no_dropout_knob() -> None:
    with pytest.raises(ValidationError, match="dropout"):
        TypeAdapter(Head).validate_python({"kind": "cosine", "dropout": 0.1})


@pytest.mark.parametrize(
    ("head", "layers"),
    [(Linear(dropout=0.3), 1), (Sbert(dropout=0.3), 1), (Halving(dropout=0.3), 2), (Mlp(hidden=(6, 5), dropout=0.3), 3)],
)
def test_dropout_falls_on_the_input_of_each_linear_layer(head: Linear | Sbert | Halving | Mlp, layers: int) -> None:
    """Dropping everything everywhere leaves the last bias; the probability handed over is the head's own."""
    probabilities: list[float] = []

    def drop_all(values: Tensor, probability: float) -> Tensor:
        probabilities.append(probability)
        return torch.zeros_like(values)

    assert head.build(4, 2)(torch.ones(3, 4), drop_all).tolist() == [[0.0, 0.0]] * 3
    assert probabilities == [0.3] * layers


def test_weights_start_as_bert_draws_them() -> None:
    head = Linear().build(2000, 5)
    weight, bias = (next(p for p in head.parameters() if p.dim() == dim) for dim in (2, 1))
    assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert weight.mean().item() == pytest.approx(0.0, abs=1e-3)
    assert bias.tolist() == [0.0] * 5


def test_the_same_seed_builds_the_same_head() -> None:
    built = []
    for _ in range(2):
        torch.manual_seed(3)
        built.append(torch.cat([parameter.flatten() for parameter in Mlp(hidden=(4,)).build(4, 2).parameters()]))
    assert torch.equal(*built)


@pytest.mark.parametrize("head", [Linear(), Mlp(hidden=(3,)), Halving(), Sbert(), SbertCosine(), Hadamard()])
def test_a_head_starts_at_the_logit_it_is_given(head: Linear | Mlp | Halving | Sbert | SbertCosine | Hadamard) -> None:
    built = head.build(4, 1, 2.5)
    assert torch.allclose(built(torch.zeros(2, 4), lambda values, p: values), torch.full((2, 1), 2.5))


@pytest.mark.parametrize("cls", [Linear, Mlp, Halving, Sbert, SbertCosine, Hadamard])
def test_start_zero_leaves_the_middle_of_the_labels_aside(cls: type[Linear]) -> None:
    """As the papers begin a regression."""
    head = cls(start="zero").build(4, 1, 2.5)
    assert not next(bias for name, bias in reversed(list(head.named_parameters())) if name.endswith("bias")).any()
