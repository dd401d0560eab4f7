"""LoRA by hand-set matrices, PALs against a plain attention written out; for the laws see test_laws_of_adapters.py."""

from __future__ import annotations

import itertools
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from minbert_core.checkpoints import load_encoder, save_encoder
from minbert_core.data.packed import PackedBatch, Span
from minbert_core.encoder import Encoder, EncoderShape, Masks, new_encoder
from minbert_core.methods.adapters import Lora, LoraLinear, Matrix, Pal, ProjectedAttentionLayers, plain_weights
from minbert_core.seeds import seed_of

SHAPE = EncoderShape(vocab_size=20, hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
ALL: tuple[Matrix, ...] = ("query", "key", "value", "attention_output", "intermediate", "output")


def batch_of(*sequences: list[int]) -> PackedBatch:
    lengths = tuple(map(len, sequences))
    return PackedBatch(
        token_ids_N=torch.tensor([token for sequence in sequences for token in sequence]),
        position_ids_N=torch.cat([torch.arange(length) for length in lengths]),
        segment_ids_N=torch.zeros(sum(lengths), dtype=torch.int64),
        starts_S1=torch.tensor([0, *itertools.accumulate(lengths)]),
        lengths=lengths,
        example_N=torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)),
        labels_B=torch.zeros(len(lengths)),
        num_examples=len(lengths),
    )


BATCH = batch_of([2, 5, 7, 3], [2, 3], [2, 9, 9, 11, 14, 3])


def encoder_of(adapter: Lora | None = None, moved: bool = True) -> Encoder:
    """A small encoder whose weights are large enough to matter; its updates, too, if `moved`."""
    encoder = new_encoder(SHAPE, 0, 0.1, 0.1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(10 if parameter.dim() == 2 else 1)
    if adapter:
        adapter.adapt(encoder, len)
    if moved:
        move(encoder)
    return encoder


@torch.no_grad()
def move(module: nn.Module) -> None:
    """Away from the start: what is zero there is no longer."""
    for name, parameter in module.named_parameters():
        if ".b." in name or name.startswith("decode"):
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(len(name)))


# ----------------------------------------------------------------------------------------------------------------- LoRA


def linear_of(weight: list[list[float]]) -> nn.Linear:
    linear = nn.Linear(len(weight[0]), len(weight))
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(weight))
        linear.bias.fill_(100.0)
    return linear


def test_lora_adds_scale_times_b_a_x() -> None:
    lora = LoraLinear(linear_of([[1.0, 0.0], [0.0, 1.0]]), {"query": slice(0, 2)}, rank=1, scale=2.0, seed_of=len)
    with torch.no_grad():
        lora.a["query"].copy_(torch.tensor([[1.0, 10.0]]))
        lora.b["query"].copy_(torch.tensor([[3.0], [5.0]]))
    # A x = 21; 2 B A x = (126, 210)
    assert lora(torch.tensor([[1.0, 2.0]])).tolist() == [[101.0 + 126, 102.0 + 210]]
    assert lora.merged_weight().tolist() == [[1 + 6, 60.0], [10.0, 1 + 100]]


def test_key_and_value_are_adapted_apart() -> None:
    """Of the one layer that holds both, an update of the value's matrix moves the lower rows alone."""
    layer, x_ND = encoder_of(Lora(matrices=("value",))).layers[0].key_value, torch.randn(3, 12)
    moved = (layer(x_ND) - F.linear(x_ND, layer.weight, layer.bias)).abs().amax(dim=0) > 0
    assert moved.tolist() == [False] * 12 + [True] * 12


def test_each_matrix_is_drawn_from_its_name_alone() -> None:
    """Whatever else is adapted; and no two alike."""

    def drawn(*matrices: Matrix) -> list[Tensor]:
        """A of the value's update in both layers."""
        encoder = new_encoder(SHAPE, 0, 0, 0)
        Lora(matrices=matrices).adapt(encoder, partial(seed_of, 7, "adapter"))
        return [layer.key_value.a["value"] for layer in encoder.layers]

    (first, second), others = drawn("value"), drawn(*ALL)
    assert torch.equal(first, others[0])
    assert torch.equal(second, others[1])
    assert not torch.equal(first, second)


def test_a_is_drawn_as_torch_draws_a_linear_layer_and_b_is_zero() -> None:
    lora = LoraLinear(nn.Linear(400, 50), {"query": slice(0, 50)}, rank=20, scale=1.0, seed_of=len)
    assert float(lora.a["query"].detach().abs().max()) == pytest.approx(400**-0.5, rel=0.01)
    assert not lora.b["query"].any()


@pytest.mark.parametrize("matrices", [("query", "value"), ("key",), ALL], ids=str)
def test_lora_trains_its_updates_and_the_pooler_and_nothing_else(matrices: tuple[Matrix, ...]) -> None:
    encoder = encoder_of(Lora(matrices=matrices))
    groups = Lora(matrices=matrices).groups(encoder)
    names = {id(parameter): name for name, parameter in encoder.named_parameters()}
    assert list(groups) == ["layer.0", "layer.1", "pooler"]
    assert [names[id(parameter)] for parameter in groups["pooler"]] == ["pooler.0.weight", "pooler.0.bias"]
    trained = [names[id(parameter)] for name in ("layer.0", "layer.1") for parameter in groups[name]]
    assert sorted(name.rsplit(".", 2)[1:] for name in trained) == sorted([what, name] for name in 2 * matrices for what in "ab")


def test_a_matrix_named_twice_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"must name each matrix once\. Got query, query\."):
        Lora(matrices=("query", "query"))


@pytest.mark.parametrize("matrices", [("query", "value"), ("key",), ALL], ids=str)
def test_what_is_saved_is_a_plain_encoder_that_gives_the_same(tmp_path: Path, matrices: tuple[Matrix, ...]) -> None:
    encoder = encoder_of(Lora(matrices=matrices, rank=3))
    assert plain_weights(encoder).keys() == new_encoder(SHAPE, 0, 0, 0).state_dict().keys()
    save_encoder(encoder, tmp_path)
    loaded = load_encoder(tmp_path, 0.1, 0.1)
    assert not any(isinstance(module, LoraLinear) for module in loaded.modules())
    assert torch.allclose(loaded(BATCH), encoder(BATCH), atol=1e-5)
    assert not torch.allclose(encoder_of(Lora(matrices=matrices, rank=3), moved=False)(BATCH), encoder(BATCH), atol=1e-2)


def test_an_encoder_without_updates_is_saved_bit_for_bit(tmp_path: Path) -> None:
    encoder = encoder_of(Lora(), moved=False)
    save_encoder(encoder, tmp_path)
    assert torch.equal(load_encoder(tmp_path, 0.1, 0.1)(BATCH), encoder_of()(BATCH))


def test_lora_computes_no_product_of_its_two_matrices_in_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """B A would be as large as W, at every step."""
    monkeypatch.setattr(LoraLinear, "merged_weight", lambda self: 1 / 0)
    encoder_of(Lora(matrices=ALL))(BATCH).sum().backward()


# ----------------------------------------------------------------------------------------------------------------- PALs


def pals(size: int = 6) -> ProjectedAttentionLayers:
    built = Pal(size=size).build(SHAPE)
    assert isinstance(built, ProjectedAttentionLayers)
    with torch.no_grad():
        for i, parameter in enumerate(built.parameters()):
            parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(i))
    return built


def attention_written_out(q_Ls: Tensor, k_Ls: Tensor, v_Ls: Tensor, num_heads: int) -> Tensor:
    """One sequence, a head after the other."""
    heads = []
    for q, k, v in zip(*(x.chunk(num_heads, dim=1) for x in (q_Ls, k_Ls, v_Ls)), strict=True):
        heads.append((q @ k.T / math.sqrt(q.shape[1])).softmax(dim=1) @ v)
    return torch.cat(heads, dim=1)


def layer_written_out(encoder: Encoder, own: ProjectedAttentionLayers, index: int, h_LD: Tensor) -> Tensor:
    """LN(m + FFN(m) + V_D MHA(V_E h)), of one sequence."""
    layer, query, key_value = encoder.layers[index], own.queries[index], own.key_values[index]
    context_LD = attention_written_out(layer.query(h_LD), *layer.key_value(h_LD).chunk(2, dim=1), num_heads=2)
    m_LD = layer.attention_norm(h_LD + layer.attention_output(context_LD))
    encoded_Ls = own.encode(h_LD)
    context_Ls = attention_written_out(query(encoded_Ls), *key_value(encoded_Ls).chunk(2, dim=1), num_heads=2)
    normalised_LD: Tensor = layer.output_norm(m_LD + layer.output(F.gelu(layer.intermediate(m_LD))) + own.decode(context_Ls))
    return normalised_LD


def test_pals_stand_inside_the_layer_norm_beside_the_feed_forward_part() -> None:
    encoder, own, tokens = encoder_of(), pals(), [2, 5, 7, 3]
    h_LD = encoder.embed_words(batch_of(tokens)) + encoder.segment_embeddings.weight[0]
    h_LD = encoder.embedding_norm(h_LD + encoder.position_embeddings.weight[: len(tokens)])
    for index in range(2):
        h_LD = layer_written_out(encoder, own, index, h_LD)
    found_LD = encoder(batch_of(tokens), parallel=own)
    assert torch.allclose(found_LD, h_LD, atol=1e-5)
    assert not torch.allclose(found_LD, encoder(batch_of(tokens)), atol=1e-2)


def test_the_first_tokens_alone_are_those_of_the_whole_pass_with_pals_too() -> None:
    encoder, own = encoder_of(), pals()
    whole_ND, first_SD = encoder(BATCH, parallel=own), encoder(BATCH, parallel=own, spans=(Span(3, True),))
    assert torch.allclose(first_SD, whole_ND[BATCH.starts_S1[:-1]], atol=1e-5)


def test_batch_mates_have_no_influence_on_pals() -> None:
    encoder, own = encoder_of(), pals()
    assert torch.allclose(encoder(batch_of([2, 3]), parallel=own), encoder(BATCH, parallel=own)[4:6], atol=1e-5)


def test_the_attention_of_pals_drops_as_the_encoder_s_and_replays_its_masks() -> None:
    encoder, own, masks = encoder_of(), pals(), Masks(3)
    encoder.hidden_dropout = 0.0
    first = encoder(BATCH, masks, parallel=own)
    assert torch.equal(first, encoder(BATCH, masks.rewind(), parallel=own))
    for layer in encoder.layers:  # with the encoder's own attention out of the way, only that of PALs is left to drop
        nn.init.zeros_(layer.attention_output.weight)
    assert not torch.allclose(encoder(BATCH, Masks(3), parallel=own), encoder(BATCH, parallel=own), atol=1e-3)


def test_encoding_and_decoding_are_the_same_beside_all_layers() -> None:
    own = Pal(size=6).build(SHAPE)
    assert own is not None
    sizes = {name: parameter.numel() for name, parameter in own.named_parameters() if name.endswith("weight")}
    layers = {f"{name}.{i}.weight": size for i in range(2) for name, size in (("queries", 36), ("key_values", 72))}
    assert sizes == {"encode.weight": 72, "decode.weight": 72} | layers


def test_a_pal_begins_to_learn_at_what_decodes_it() -> None:
    """Zero there: the first gradient is its own, the rest follow once it has moved."""
    own = Pal(size=6).build(SHAPE)
    assert own is not None
    (encoder_of()(BATCH, parallel=own) * torch.randn(12, 12)).sum().backward()
    assert own.decode.weight.grad.abs().max() > 0
    assert not own.encode.weight.grad.any()


def test_a_size_that_the_heads_do_not_divide_is_refused() -> None:
    shape = EncoderShape(vocab_size=20, hidden_size=24, num_hidden_layers=1, num_attention_heads=12, intermediate_size=24)
    with pytest.raises(ValueError, match=r"must be a multiple of the encoder's 12 attention heads\. Got 200; 204 is one\."):
        Pal(size=200).build(shape)


@pytest.mark.parametrize(("written", "groups"), [({}, 4), ({"freeze_encoder": True}, 1)])
def test_a_frozen_encoder_keeps_its_pooler_only(written: dict[str, Any], groups: int) -> None:
    assert len(Pal.model_validate(written).groups(encoder_of())) == groups
