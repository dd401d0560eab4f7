"""The laws of heads.

Legend: B examples, F features, K outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from battery import keep, law, refusal
from torch import Tensor, nn

from minbert_core.methods.heads import Head


def outputs_of(head: Any) -> tuple[int, ...]:
    return (1,) if head.single_output else (1, 5)


def built(variant: Any, features: int = 8, outputs: int = 1, start: float = 0.0) -> nn.Module:
    head: nn.Module = variant.build(features, outputs, start)
    assert isinstance(head, nn.Module), f"`build` gives a {type(head).__name__}, not an nn.Module"
    return head


def answered(head: nn.Module, features_BF: Tensor, outputs: int = 1) -> Tensor:
    logits: Tensor = head(features_BF.clone(), keep)
    assert isinstance(logits, Tensor), f"its `forward` gives a {type(logits).__name__}, not a Tensor"
    expected = (len(features_BF), outputs)
    assert logits.shape == expected, f"logits of shape {tuple(logits.shape)}, not (B, K) = {expected}"
    assert logits.dtype == torch.float32, f"logits in {logits.dtype}, of features in float32"
    assert logits.requires_grad, "its logits are cut off from its parameters: no gradient at all (a detach, a no_grad?)"
    return logits


@law(Head)
def test_a_head_gives_a_row_of_logits_an_example_in_float32(variant: Any) -> None:
    for outputs in outputs_of(variant):
        answered(built(variant, 8, outputs), torch.randn(3, 8), outputs)


@law(Head)
def test_a_head_that_needs_no_pair_takes_any_number_of_features(variant: Any) -> None:
    if not variant.needs_pair_vectors:  # which could rely on an even one
        answered(built(variant, 7), torch.randn(3, 7))


@law(Head)
def test_the_gradient_reaches_every_parameter_and_the_features(variant: Any) -> None:
    for outputs in outputs_of(variant):
        head, features = built(variant, 8, outputs), torch.randn(16, 8, requires_grad=True)
        logits = answered(head, features, outputs)
        (logits * torch.randn(16, outputs)).sum().backward()
        for name, tensor in [("the features", features), *head.named_parameters()]:
            reached = tensor.grad is not None and tensor.grad.abs().max() > 0
            assert reached, f"the gradient does not reach {name} (K = {outputs})"


@law(Head)
def test_a_head_is_deterministic_in_evaluation(variant: Any) -> None:
    head, features, state = built(variant), torch.randn(3, 8), torch.get_rng_state()
    same = torch.equal(answered(head, features), answered(head, features))
    hint = "dropout is the function handed to `forward`, not nn.Dropout"
    assert torch.equal(torch.get_rng_state(), state), f"it draws random numbers of its own, in evaluation too; {hint}"
    assert same, "two evaluations of the same features differ"


@law(Head)
def test_a_head_leaves_the_features_as_they_were(variant: Any) -> None:
    features = torch.randn(3, 8)
    before = features.clone()
    built(variant)(features, keep)
    assert torch.equal(features, before), "it writes into the features, which losses and penalties read, too"


@law(Head)
def test_a_head_treats_each_example_by_itself(variant: Any) -> None:
    head, features = built(variant), torch.randn(5, 8)
    order, whole = torch.tensor([3, 1, 4, 0, 2]), answered(head, features)
    assert torch.allclose(answered(head, features[order]), whole[order], atol=1e-6), (
        "permuting examples does not permute logits"
    )
    assert torch.allclose(answered(head, features[:2]), whole[:2], atol=1e-6), "an example's logits depend on its batch"


@law(Head)
def test_a_head_with_a_dropout_knob_drops_through_the_given_function(variant: Any) -> None:
    seen: set[float] = set()
    built(variant)(torch.randn(3, 8), lambda values, p: seen.add(p) or values)
    expected = {variant.dropout} if hasattr(variant, "dropout") else set()
    found = f"drops with {sorted(seen)}" if seen else "never calls the function that drops"
    assert seen == expected, f"it {found}, but its knob `dropout` says {sorted(expected) or 'nothing: it has none'}"


@law(Head)
def test_a_head_is_saved_whole(variant: Any) -> None:
    first, second = built(variant), built(variant)
    second.load_state_dict(first.state_dict())
    features = torch.randn(3, 8)
    same = torch.equal(answered(first, features), answered(second, features))
    assert same, "its state dict does not hold all it has learned (a layer in a plain list, a Tensor that is no Parameter?)"


@law(Head)
def test_the_heads_of_two_tasks_share_nothing(variant: Any) -> None:
    first, second = built(variant).state_dict(keep_vars=True), built(variant).state_dict(keep_vars=True)
    shared = [name for name in first if first[name].data_ptr() == second[name].data_ptr()]
    assert not shared, f"two heads that it builds share {', '.join(shared)}"


@law(Head)
def test_a_head_is_drawn_from_the_current_generator_alone(variant: Any) -> None:
    heads = []
    for _ in range(2):
        torch.manual_seed(1)
        heads.append(built(variant).state_dict())
    differ = [name for name, values in heads[0].items() if not torch.equal(values, heads[1][name])]
    assert not differ, f"{', '.join(differ)} differ between two heads of one seed: a trial could not be repeated"


@law(Head)
def test_a_head_begins_at_the_logit_it_is_told_unless_it_reads_the_cosine_only(variant: Any) -> None:
    if not variant.reads_cosine_only:
        mean = answered(built(variant, 8, 1, 2.5), torch.randn(256, 8)).mean().item()
        assert abs(mean - 2.5) < 0.5, f"built with start 2.5 its logits are {mean:.2f} in the mean; make it its last bias"


@law(Head)
def test_a_head_works_where_its_features_are(variant: Any) -> None:
    """On the device `meta`, which like a GPU refuses what lies on the CPU."""
    built(variant).to("meta")(torch.randn(3, 8, device="meta"), keep)


@law(Head)
def test_a_head_can_learn(variant: Any) -> None:
    """Two examples, their features their own: some steps must fit their labels."""
    features = torch.tensor([[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]])
    labels, head = torch.tensor([[4.0], [1.0]]), built(variant)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        loss = (answered(head, features) - labels).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05, f"400 steps do not fit two examples: loss {loss.item():.3f}"


@law(Head)
def test_a_head_that_reads_the_cosine_only_grows_with_it_untrained(variant: Any) -> None:
    """v turns away from a fixed u by a half turn in eight steps; then once more, seven times as long, and from another u."""
    angles, head = torch.linspace(0, torch.pi, 9), built(variant, 4)

    def pairs(u_at: float, length: float) -> Tensor:
        u, v = (torch.stack([at.cos(), at.sin()], dim=1) for at in (torch.full((9,), u_at), u_at + angles))
        return torch.cat([u, length * v], dim=1)

    near, far, turned = (answered(head, pairs(*where)) for where in ((0, 1), (0, 7), (2, 1)))
    follows = torch.allclose(near, far, atol=1e-5) and torch.allclose(near, turned, atol=1e-5)
    cosine_only = bool((near.diff(dim=0) < 0).all()) and follows
    does = "grows with cos(u, v) and depends on nothing else" if cosine_only else "is no growing function of cos(u, v) alone"
    assert cosine_only is variant.reads_cosine_only, f"reads_cosine_only is {variant.reads_cosine_only}, but its logit {does}"


@law(Head)
def test_a_head_of_a_single_output_refuses_several(variant: Any) -> None:
    if variant.single_output:
        found = refusal(lambda: variant.build(8, 5), AssertionError)
        assert "one output, not 5" in found, (
            "single_output is True, but `build` gives 5; assert that there is 'one output, not 5'"
        )
