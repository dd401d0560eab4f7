"""The laws of poolings, pair encodings and shared layers.

Legend: B examples, S sequences, N tokens, D hidden size, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from battery import law
from torch import Tensor, nn

from minbert_core.methods.features import PairEncoding, Pooling
from minbert_core.methods.shared_layers import SharedLayer

STARTS = torch.tensor([0, 3, 4, 8])
SPANS = [(0, 3), (3, 4), (4, 8)]


def pooler(first_SD: Tensor) -> Tensor:
    return (2 * first_SD).tanh()


def layer_of(variant: Any, dim: int) -> Callable[[Tensor], Tensor] | None:
    """What a pooling is handed: the pooler, or what it built, whose weights are no longer those it begins with."""
    if variant.uses_pooler:
        return pooler
    built: nn.Module | None = variant.build(dim)
    for i, parameter in enumerate(built.parameters() if built else ()):
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(i))
    return built


def pooled_by(variant: Any, hidden_ND: Tensor, starts_S1: Tensor = STARTS) -> Tensor:
    pooled: Tensor = variant.pool(hidden_ND.clone(), starts_S1, layer_of(variant, hidden_ND.shape[1]))
    expected = (len(starts_S1) - 1, hidden_ND.shape[1])
    assert isinstance(pooled, Tensor), f"`pool` gives a {type(pooled).__name__}, not a Tensor"
    assert pooled.shape == expected, f"`pool` gives shape {tuple(pooled.shape)}, not (S, D) = {expected}"
    return pooled


@law(Pooling)
def test_a_pooling_gives_one_vector_a_sequence(variant: Any) -> None:
    pooled_by(variant, torch.randn(8, 5))


@law(Pooling)
def test_a_pooled_vector_depends_on_its_own_sequence_alone(variant: Any) -> None:
    hidden_ND = torch.randn(8, 5)
    together = pooled_by(variant, hidden_ND)
    for s, (start, end) in enumerate(SPANS):
        alone = pooled_by(variant, hidden_ND[start:end], torch.tensor([0, end - start]))
        assert torch.allclose(together[s], alone[0], atol=1e-6), f"sequence {s} has another vector alone than in a batch"


@law(Pooling)
def test_permuting_sequences_permutes_pooled_vectors(variant: Any) -> None:
    hidden_ND = torch.randn(8, 5)
    permuted = torch.cat([hidden_ND[start:end] for start, end in (SPANS[2], SPANS[0], SPANS[1])])
    found, expected = pooled_by(variant, permuted, torch.tensor([0, 4, 7, 8])), pooled_by(variant, hidden_ND)[[2, 0, 1]]
    assert torch.allclose(found, expected, atol=1e-6), "its vectors do not follow their sequences"


@law(Pooling)
def test_a_pooling_says_whether_it_reads_first_tokens_alone(variant: Any) -> None:
    """Where it says so it is given nothing else; a pooling of all tokens would be one of [CLS], in silence."""
    hidden_ND = torch.randn(8, 5)
    other_ND = torch.randn(8, 5).index_copy(0, STARTS[:-1], hidden_ND[STARTS[:-1]])  # the same first tokens
    reads_more = not torch.equal(pooled_by(variant, hidden_ND), pooled_by(variant, other_ND))
    does = "reads more than" if reads_more else "reads only"
    assert variant.reads_only_first is not reads_more, (
        f"it {does} the first tokens, but reads_only_first is {variant.reads_only_first}"
    )


@law(Pooling)
def test_a_pooling_says_whether_it_uses_the_pooler(variant: Any) -> None:
    calls = []
    called = lambda first: calls.append(1) or first  # noqa: E731
    variant.pool(torch.randn(8, 5), STARTS, variant.build(5) or called)
    does = "calls" if calls else "does not call"
    assert bool(calls) is variant.uses_pooler, f"it {does} the pooler, but uses_pooler is {variant.uses_pooler}"


@law(Pooling)
def test_the_gradient_reaches_every_sequence(variant: Any) -> None:
    hidden_ND = torch.randn(8, 5, requires_grad=True)
    pooled = pooled_by(variant, hidden_ND)
    assert pooled.requires_grad, "its vectors are cut off from the hidden states: no gradient comes through (a detach?)"
    (gradient_ND,) = torch.autograd.grad(pooled.sum(), [hidden_ND])
    for s, (start, end) in enumerate(SPANS):
        assert gradient_ND[start:end].abs().max() > 0, f"no gradient reaches sequence {s}, tokens {start} to {end}"


@law(Pooling)
def test_a_pooling_leaves_the_hidden_states_as_they_were(variant: Any) -> None:
    hidden_ND = torch.randn(8, 5)
    before = hidden_ND.clone()
    variant.pool(hidden_ND, STARTS, layer_of(variant, 5))
    assert torch.equal(hidden_ND, before), "it writes into the hidden states"


@law(Pooling)
def test_a_pooling_works_where_its_hidden_states_are(variant: Any) -> None:
    """On the device `meta`, which like a GPU refuses what lies on the CPU."""
    layer = layer_of(variant, 5)
    if isinstance(layer, nn.Module):
        layer.to("meta")
    variant.pool(torch.randn(8, 5, device="meta"), STARTS.to("meta"), layer)


@law(Pooling)
def test_a_pooling_of_bfloat16_is_near_that_of_float32(variant: Any) -> None:
    hidden_ND, layer = torch.randn(8, 5), layer_of(variant, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = variant.pool(hidden_ND.bfloat16(), STARTS, layer).float()
    apart = (found - variant.pool(hidden_ND, STARTS, layer)).abs().max().item()
    assert apart < 0.1, f"under autocast, of hidden states in bfloat16, it is {apart:.2g} away"


@law(Pooling)
def test_what_a_pooling_learns_gets_a_gradient_once_it_has_moved(variant: Any) -> None:
    layer, hidden_ND = layer_of(variant, 5), torch.randn(8, 5)
    if isinstance(layer, nn.Module):
        (variant.pool(hidden_ND, STARTS, layer) * torch.randn(3, 5)).sum().backward()
        missed = [name for name, parameter in layer.named_parameters() if parameter.grad is None or not parameter.grad.any()]
        assert not missed, f"no gradient reaches its {', '.join(missed)}"


@law(PairEncoding)
def test_an_encoding_gives_a_row_an_example_as_wide_as_its_vectors(variant: Any) -> None:
    features, expected = variant.features(torch.randn(4 * variant.vectors, 5)), (4, 5 * variant.vectors)
    assert features.shape == expected, f"features of shape {tuple(features.shape)}, not (B, F) = {expected}"


@law(SharedLayer)
def test_a_shared_layer_serves_some_task_with_vectors_of_its_size(variant: Any) -> None:
    layer = variant.build(8)
    served = [is_pair for is_pair in (False, True) if variant.serves(is_pair)]
    assert bool(served) is (layer is not None), f"it builds {layer}, but serves {served or 'no task'}"
    if layer is not None:
        dropped: list[float] = []
        shape = layer(torch.randn(3, 8), lambda values, p: dropped.append(p) or values).shape
        assert shape == (3, variant.size), f"it gives shape {tuple(shape)}, not (S, size) = (3, {variant.size})"
        assert dropped == [variant.dropout], f"it drops with {dropped}, but its knob `dropout` says {variant.dropout}"
