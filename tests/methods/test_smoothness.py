"""SMART on a model of two lines, against an explicit loop over examples, and the bugs of public copies

Legend: B examples, N tokens, D embedding size, K outputs. The model sums tanh of a matrix over an example's tokens, so that a
token's gradient depends on its own embedding and on the others'.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from minbert_core.methods.losses import divergence
from minbert_core.methods.smoothness import Clean, NoSmoothness, RDrop, Smart, ascend, max_norms, scale_to_radius

EXAMPLE_N = torch.tensor([0, 0, 1, 1, 1, 0])  # the last token is the v of example 0: a pair's two sentences are one example
B, N, D, K = 2, 6, 4, 3


def noise_of(generator: torch.Generator, shape: tuple[int, int] = (N, D)) -> Callable[[], Tensor]:
    return lambda: torch.randn(shape, generator=generator)


class Model:
    """Embeddings, a weight, and the noises that `forward` was called with."""

    def __init__(self, outputs: int = K) -> None:
        self.embeddings_ND = torch.randn(N, D)
        self.weight_DK = torch.randn(D, outputs, requires_grad=True)
        self.noises: list[Tensor] = []

    def clean(self) -> Tensor:
        return self.forward(torch.zeros(N, D), record=False)

    def forward(self, noise_ND: Tensor, in_float32: bool = False, record: bool = True) -> Tensor:
        if record:
            self.noises.append(noise_ND.detach().clone())
        values_NK = ((self.embeddings_ND + noise_ND) @ self.weight_DK).tanh()
        return torch.zeros(B, values_NK.shape[1]).index_add(0, EXAMPLE_N, values_NK)


def penalty(model: Model, smart: Smart, clean: Tensor | None = None, seed: int = 0, kind: str = "classification") -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    clean = model.clean() if clean is None else clean
    found = smart.penalty(Clean([clean], model.forward, divergence(kind), EXAMPLE_N, B, noise_of(generator)))
    assert found is not None
    return found


# ---------------------------------------------------------------------------------------------------------- references


@pytest.mark.parametrize("steps", [1, 3])
def test_smart_equals_one_example_at_a_time_on_the_embeddings(steps: int) -> None:
    """Algorithm 1 of the paper, written out over x~ itself: each example alone, with its own norm and its own ball."""
    radius, model = 0.05, Model()
    found = penalty(model, Smart(radius=radius, steps=steps))
    start_ND = radius * torch.randn((N, D), generator=torch.Generator().manual_seed(0))
    worst = []
    for example in range(B):
        x = model.embeddings_ND[example == EXAMPLE_N]

        def logits(embeddings: Tensor) -> Tensor:
            return (embeddings @ model.weight_DK).tanh().sum(dim=0, keepdim=True)

        x_adversarial = x + start_ND[example == EXAMPLE_N]
        for _ in range(steps):
            x_adversarial = x_adversarial.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(
                divergence("classification")(logits(x).detach(), logits(x_adversarial)), x_adversarial
            )
            moved = x_adversarial + 100 * radius * gradient / gradient.abs().max()
            x_adversarial = x + (moved - x).clamp(-radius, radius)
        worst.append(divergence("classification")(logits(x), logits(x_adversarial)))
    assert found.item() == pytest.approx(torch.stack(worst).mean().item(), rel=1e-4)


def test_the_worst_noise_is_worse_than_noise() -> None:
    model, radius = Model(), 0.05
    found = penalty(model, Smart(radius=radius, steps=3))
    for seed in range(20):
        noise_ND = radius * (2 * torch.rand(N, D, generator=torch.Generator().manual_seed(seed)) - 1)
        assert found > divergence("classification")(model.clean(), model.forward(noise_ND))


def test_the_penalty_vanishes_with_the_square_of_the_radius() -> None:
    model = Model()
    large, small = penalty(model, Smart(radius=1e-2)), penalty(model, Smart(radius=1e-3))
    assert (large / small).item() == pytest.approx(100, rel=0.1)


def test_the_penalty_is_returned_without_its_weight() -> None:
    model = Model()
    assert penalty(model, Smart(weight=0)) == penalty(model, Smart(weight=7)) > 0


def test_the_divergence_of_a_binary_task_is_not_zero() -> None:
    """The softmax of one logit is 1: a KL of it would be 0 and the ascent random noise (a public bug)."""
    model = Model(outputs=1)
    found = penalty(model, Smart(radius=0.1), kind="binary")
    found.backward()
    assert found > 1e-4
    assert model.weight_DK.grad is not None
    assert model.weight_DK.grad.abs().max() > 1e-3


# ------------------------------------------------------------------------------------------------------------- the ball


@pytest.mark.parametrize("radius", [1e-3, 0.5])
def test_the_noise_reaches_the_radius_in_each_example_and_never_exceeds_it(radius: float) -> None:
    """Published code normalises to about 1 whatever the radius says (a public bug)."""
    model = Model()
    penalty(model, Smart(radius=radius))
    norms_B = max_norms(model.noises[-1], EXAMPLE_N, B)
    assert norms_B.tolist() == pytest.approx([radius] * B)


def test_the_norm_is_taken_per_example_not_per_batch() -> None:
    """With one norm for the batch an example whose gradient is small would not move."""
    gradient_ND = torch.ones(N, D)
    gradient_ND[EXAMPLE_N == 1] = 1e-8
    moved = ascend(torch.zeros(N, D), gradient_ND, EXAMPLE_N, B, radius=0.1)
    assert torch.equal(moved, torch.full((N, D), 0.1))


def test_both_sentences_of_a_pair_share_one_norm() -> None:
    """Token 5 is the v of example 0. Its gradient is a 1000th of u's, so it moves by 100 * radius / 1000, not to the edge."""
    gradient_ND = torch.ones(N, D)
    gradient_ND[5] = 1e-3
    moved = ascend(torch.zeros(N, D), gradient_ND, EXAMPLE_N, B, radius=0.1)
    assert moved[5].tolist() == pytest.approx([0.01] * D)


def test_an_example_without_gradient_stays_where_it_is() -> None:
    noise_ND = torch.full((N, D), 0.05)
    gradient_ND = torch.ones(N, D)
    gradient_ND[EXAMPLE_N == 1] = 0
    moved = ascend(noise_ND, gradient_ND, EXAMPLE_N, B, radius=0.1)
    assert torch.equal(moved[EXAMPLE_N == 1], noise_ND[EXAMPLE_N == 1])


def test_the_largest_entry_counts_by_its_size() -> None:
    assert max_norms(torch.tensor([[1.0, -3.0], [2.0, 0.5]]), torch.tensor([0, 0]), 1).tolist() == [3.0]


# ------------------------------------------------------------------------------------------------------------ the loop


def test_the_last_pass_takes_the_noise_after_the_ascent() -> None:
    """The noise before it is only random (a public bug). It goes along the gradient, so the divergence grows."""
    model = Model()
    penalty(model, Smart(radius=0.05))
    first, last = model.noises
    clean = model.clean()
    grown = [divergence("classification")(clean, model.forward(noise.clamp(-0.05, 0.05))).item() for noise in (first, last)]
    assert not torch.equal(first, last)
    assert grown[1] > grown[0]


def test_the_starting_noise_has_the_radius_as_its_deviation() -> None:
    """At zero noise the divergence's gradient is zero: without a start there is no direction."""
    noises: list[Tensor] = []

    def forward(noise_ND: Tensor, in_float32: bool) -> Tensor:
        noises.append(noise_ND.detach())
        return noise_ND.sum(dim=1, keepdim=True)

    example_N = torch.zeros(2000, dtype=torch.long)
    generator = torch.Generator().manual_seed(0)
    Smart(radius=0.3).penalty(
        Clean([torch.zeros(2000, 1)], forward, divergence("regression"), example_N, 1, noise_of(generator, (2000, 8)))
    )
    assert noises[0].std().item() == pytest.approx(0.3, rel=0.02)


def test_the_ascent_touches_no_parameter() -> None:
    model = Model()
    penalty(model, Smart(steps=2))
    assert model.weight_DK.grad is None


def test_the_penalty_trains_through_the_clean_and_the_noisy_side() -> None:
    """A penalty handed on as a number trains nothing (a public bug)."""
    model = Model()
    clean = model.clean()
    clean.retain_grad()
    penalty(model, Smart(radius=0.1), clean).backward()
    assert clean.grad is not None
    assert clean.grad.abs().max() > 0
    assert model.weight_DK.grad is not None
    through_both = model.weight_DK.grad.clone()
    model.weight_DK.grad = None
    penalty(model, Smart(radius=0.1), clean.detach()).backward()
    assert not torch.allclose(model.weight_DK.grad, through_both)


def test_the_clean_side_is_a_constant_in_the_ascent_only() -> None:
    trained: list[bool] = []

    def recorded(p: Tensor, q: Tensor) -> Tensor:
        trained.append(p.requires_grad)
        return divergence("classification")(p, q)

    model, generator = Model(), torch.Generator().manual_seed(0)
    Smart(steps=3).penalty(Clean([model.clean()], model.forward, recorded, EXAMPLE_N, B, noise_of(generator)))
    assert trained == [False, False, False, True]


def test_the_noise_is_drawn_from_the_given_generator_alone() -> None:
    model, state = Model(), torch.get_rng_state()
    first, again, other = (penalty(model, Smart(), seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


# ---------------------------------------------------------------------------------------------------------- as released


def test_unit_scales_each_token_to_the_radius_but_for_the_stabiliser() -> None:
    """s = noise + 1e-3 g: (2e-5, -1e-5) and (0, 1e-6); over |s|_inf + 1e-6."""
    noise_ND = torch.tensor([[1e-5, -1e-5], [0.0, 0.0]])
    gradient_ND = torch.tensor([[1e-2, 0.0], [0.0, 1e-3]])
    found = scale_to_radius(noise_ND, gradient_ND, radius=2.0)
    assert found.flatten().tolist() == pytest.approx([2 * 20 / 21, -2 * 10 / 21, 0.0, 1.0])


@pytest.mark.parametrize("steps", [1, 2])
def test_unit_equals_the_released_loop(steps: int) -> None:
    """smart-pytorch's SMARTLoss, written out: noise 1e-5, step 1e-3, epsilon 1e-6, the max-norm of each token."""
    model = Model()
    found = penalty(model, Smart(radius=1.0, projection="unit", steps=steps))
    noise = 1e-5 * torch.randn((N, D), generator=torch.Generator().manual_seed(0))
    state = model.clean()
    for _ in range(steps):
        noise.requires_grad_()
        loss = divergence("classification")(model.forward(noise), state.detach())
        (gradient,) = torch.autograd.grad(loss, noise)
        step = noise.detach() + 1e-3 * gradient
        noise = step / (step.abs().max(dim=-1, keepdim=True).values + 1e-6)
    wanted = divergence("classification")(model.forward(noise), state)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-4)
    assert 0.5 < float(model.noises[-1].abs().amax()) < 1


# -------------------------------------------------------------------------------------------------------------- R-Drop


def r_drop(*views_VBK: Tensor, kind: str = "classification") -> Tensor:
    def forward(noise_ND: Tensor, in_float32: bool) -> Tensor:
        raise AssertionError("no noisy pass is needed")

    found = RDrop().penalty(Clean(views_VBK, forward, divergence(kind), EXAMPLE_N, B, noise_of(torch.Generator())))
    assert found is not None
    return found


def test_r_drop_is_the_symmetric_divergence_of_two_passes() -> None:
    """p = (.5, .5), q = (.8, .2): (.5 - .8) log(.5/.8) + (.5 - .2) log(.5/.2), for one example of two; 0 for the other."""
    p_BK, q_BK = torch.tensor([[0.5, 0.5], [0.1, 0.9]]).log(), torch.tensor([[0.8, 0.2], [0.1, 0.9]]).log()
    wanted = (-0.3 * math.log(0.5 / 0.8) + 0.3 * math.log(0.5 / 0.2)) / 2
    assert r_drop(p_BK, q_BK).item() == pytest.approx(wanted, rel=1e-5)
    assert r_drop(q_BK, p_BK).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("kind", ["classification", "binary", "regression"])
def test_r_drop_of_passes_that_agree_is_zero(kind: str) -> None:
    logits_BK = torch.randn(B, K if kind == "classification" else 1)
    assert r_drop(logits_BK, logits_BK.clone(), kind=kind) == 0


def test_r_drop_trains_through_both_passes() -> None:
    views = [torch.randn(B, K, requires_grad=True) for _ in range(2)]
    r_drop(*views).backward()
    assert all(view.grad is not None and view.grad.abs().max() > 0 for view in views)


# ----------------------------------------------------------------------------------------------------------- the costs


@pytest.mark.parametrize(("radius", "needed"), [(1e-5, True), (9.9e-3, True), (1e-2, False), (0.1, False)])
def test_small_noise_needs_float32_where_the_penalty_is_taken_and_not_where_its_direction_is(
    radius: float, needed: bool
) -> None:
    smart = Smart(radius=radius)
    assert (smart.needs_float32, smart.ends_in_float32, smart.ascends_in_float32) == (needed, needed, False)


def test_unit_needs_float32_towards_the_noise_at_any_radius() -> None:
    """Its first pass is at a noise of 1e-5, to which the raw gradient is added."""
    smart = Smart(radius=1.0, projection="unit")
    assert (smart.needs_float32, smart.ends_in_float32, smart.ascends_in_float32) == (True, False, True)
    assert not RDrop().needs_float32


def test_none_costs_nothing_and_adds_nothing() -> None:
    def forward(noise_ND: Tensor, in_float32: bool) -> Tensor:
        raise AssertionError("no pass is needed")

    none = NoSmoothness()
    unused: Callable[[Tensor, Tensor], Tensor] = divergence("binary")
    assert none.penalty(Clean([torch.zeros(B, 1)], forward, unused, EXAMPLE_N, B, noise_of(torch.Generator()))) is None
    assert (none.extra_passes, none.needs_float32, none.weight) == (0, False, 0.0)
