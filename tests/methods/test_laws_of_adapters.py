"""The laws of adapters.

Legend: N tokens, D hidden size.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from battery import law

from minbert_core.data.packed import Layout, Query
from minbert_core.encoder import Dropout, EncoderShape, new_encoder
from minbert_core.methods.adapters import Adapter

SHAPE = EncoderShape(vocab_size=20, hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)


@law(Adapter)
def test_an_adapter_leaves_what_the_encoder_answers_as_it_was(variant: Any) -> None:
    encoder, hidden_ND, layout = new_encoder(SHAPE, 0, 0.1, 0.1), torch.randn(5, 12), Layout.of((2, 3))
    arguments = (Query.of_all(layout), Dropout(None, 0.0), Dropout(None, 0.0))
    expected = encoder.layers[1](hidden_ND, *arguments)
    variant.adapt(encoder, len)
    own = variant.build(SHAPE)
    beside = functools.partial(own, 1) if own else None
    found = encoder.layers[1](hidden_ND, *arguments, beside)
    assert torch.equal(found, expected), f"before any training its layer is {(found - expected).abs().max():.2g} away"


@law(Adapter)
def test_an_adapter_trains_parameters_of_the_encoder_once_each_in_groups_that_are_not_empty(variant: Any) -> None:
    encoder = new_encoder(SHAPE, 0, 0.1, 0.1)
    variant.adapt(encoder, len)
    groups = variant.groups(encoder)
    trained = [id(parameter) for group in groups.values() for parameter in group]
    empty = [name for name, group in groups.items() if not group]
    assert not empty, f"its groups {', '.join(empty)} are empty: a gradient method would see a Gramian of nothing"
    assert len(set(trained)) == len(trained), "its groups hold a parameter twice"
    assert set(trained) <= set(map(id, encoder.parameters())), "its groups hold what is not in the encoder"
    assert bool(set(groups) - {"pooler"}) is variant.shares, f"shares is {variant.shares}, but its groups are {list(groups)}"


@law(Adapter)
def test_an_adapter_adds_parameters_if_it_says_so(variant: Any) -> None:
    encoder = new_encoder(SHAPE, 0, 0.1, 0.1)
    before = sum(parameter.numel() for parameter in encoder.parameters())
    variant.adapt(encoder, len)
    own = variant.build(SHAPE)
    added = sum(p.numel() for module in (encoder, own) if module for p in module.parameters()) - before
    assert (added > 0) is variant.adds, f"adds is {variant.adds}, but it adds {added} parameters"
