"""minBERT against its oracle, transformers.BertModel: on a small random model everywhere, on a published one where it is.

Then what packing must not change, dropout masks, noise, checkpoints and every refusal.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from minbert_core.data.tasks import TASKS
from minbert_core.data.tokens import PackedBatch, load_tokenizer, pack, tokenise_split
from minbert_core.encoder import (
    TINY,
    Encoder,
    EncoderShape,
    Layout,
    Masks,
    attend,
    fetch_encoder,
    load_encoder,
    new_encoder,
    save_encoder,
)

SHAPE = EncoderShape(
    vocab_size=40, hidden_size=16, num_hidden_layers=3, num_attention_heads=4, intermediate_size=24, max_position_embeddings=16
)


def batch_of(sequences: list[list[int]], segments: list[list[int]] | None = None) -> PackedBatch:
    """The sequences of token ids as one batch; each is its own example, all segments 0 where none are given."""
    segments = segments or [[0] * len(sequence) for sequence in sequences]
    lengths = tuple(len(sequence) for sequence in sequences)
    return PackedBatch(
        token_ids_N=torch.tensor([token for sequence in sequences for token in sequence]),
        position_ids_N=torch.cat([torch.arange(length) for length in lengths]),
        segment_ids_N=torch.tensor([segment for row in segments for segment in row]),
        starts_S1=torch.tensor([0, *lengths]).cumsum(0),
        lengths=lengths,
        example_N=torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)),
        labels_B=torch.zeros(len(lengths)),
        num_examples=len(lengths),
    )


def random_batch(num_sequences: int = 9, seed: int = 0, longest: int = 16) -> PackedBatch:
    """Sequences of 2 to `longest` tokens, the second half of each in segment 1; no token 0, whose row transformers freezes."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(2, longest + 1, num_sequences)
    segments = [[0] * (n - n // 2) + [1] * (n // 2) for n in lengths]
    return batch_of([generator.integers(1, SHAPE.vocab_size, n).tolist() for n in lengths], segments)


def split_sequences(hidden_ND: Tensor, batch: PackedBatch) -> tuple[Tensor, ...]:
    return hidden_ND.split(list(batch.lengths))


@pytest.fixture
def encoder() -> Encoder:
    """Small and random, with weights large enough that a wrong one shows."""
    return new_encoder(replace(SHAPE, initializer_range=0.3), seed=0, hidden_dropout=0.1, attention_dropout=0.1)


# ------------------------------------------------------------------------------------------------- transformers, the oracle


@pytest.fixture(scope="session")
def transformers() -> ModuleType:
    import transformers  # three seconds, and only these tests need it

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


@pytest.fixture
def small_folder(transformers: ModuleType, tmp_path: Path) -> Path:
    """A random BertModel as transformers saves it; biases and LayerNorm moved off 0 and 1, so that a swap shows."""
    torch.manual_seed(1)
    model = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=24,
            max_position_embeddings=16,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    folder = tmp_path / "small"
    model.save_pretrained(folder)
    return folder


def oracle_hidden(model: Any, batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """BertModel on the padded batch: the hidden states of the real tokens, (N, D), and the pooler's output, (S, D)."""

    def pad(values_N: Tensor) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(list(values_N.split(list(batch.lengths))), batch_first=True)

    mask_SL = pad(torch.ones_like(batch.token_ids_N))
    output = model(input_ids=pad(batch.token_ids_N), attention_mask=mask_SL, token_type_ids=pad(batch.segment_ids_N))
    return output.last_hidden_state[mask_SL.bool()], output.pooler_output


def first_SD(hidden_ND: Tensor, batch: PackedBatch) -> Tensor:
    return hidden_ND[batch.starts_S1[:-1]]


def compare_with_oracle(folder: Path, model: Any, batches: list[PackedBatch]) -> None:
    """Hidden states and pooler within 1e-5, every parameter's gradient within 1e-4 of its norm."""
    encoder = load_encoder(folder, 0.1, 0.1)
    model.eval()
    for batch in batches:
        hidden_ND, (want_ND, want_pooled_SD) = encoder(batch), oracle_hidden(model, batch)
        pooled_SD = encoder.pooler(first_SD(hidden_ND, batch))
        assert torch.allclose(hidden_ND, want_ND, rtol=0, atol=1e-5)
        assert torch.allclose(pooled_SD, want_pooled_SD, rtol=0, atol=1e-5)
        direction_ND, direction_SD = torch.randn_like(want_ND), torch.randn_like(want_pooled_SD)
        for network, hidden, pooled in ((encoder, hidden_ND, pooled_SD), (model, want_ND, want_pooled_SD)):
            network.zero_grad()
            ((hidden * direction_ND).sum() + (pooled * direction_SD).sum()).backward()
        gradients, wanted = hugging_face_gradients(encoder), {n: p.grad for n, p in model.named_parameters()}
        assert gradients.keys() == wanted.keys()
        largest = max(float(gradient.norm()) for gradient in wanted.values())
        for name, want in wanted.items():
            if name.endswith("self.key.bias"):  # zero in exact arithmetic: softmax ignores what all scores of a row share
                assert gradients[name].norm() < 1e-4 * largest, name
            else:
                assert (gradients[name] - want).norm() <= 1e-4 * want.norm(), name


def hugging_face_gradients(encoder: Encoder) -> dict[str, Tensor]:
    """The gradients under the names of transformers; written out here, apart from the encoder's own table."""
    gradients: dict[str, Tensor] = {}
    names = {
        "word_embeddings": "embeddings.word_embeddings",
        "position_embeddings": "embeddings.position_embeddings",
        "segment_embeddings": "embeddings.token_type_embeddings",
        "embedding_norm": "embeddings.LayerNorm",
        "pooler.0": "pooler.dense",
    }
    for i in range(encoder.shape.num_hidden_layers):
        block = f"encoder.layer.{i}"
        names |= {
            f"layers.{i}.attention_output": f"{block}.attention.output.dense",
            f"layers.{i}.attention_norm": f"{block}.attention.output.LayerNorm",
            f"layers.{i}.intermediate": f"{block}.intermediate.dense",
            f"layers.{i}.output": f"{block}.output.dense",
            f"layers.{i}.output_norm": f"{block}.output.LayerNorm",
        }
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        module, _, leaf = name.rpartition(".")
        if module.endswith(".qkv"):
            index = module.split(".")[1]
            for part, chunk in zip(("query", "key", "value"), parameter.grad.chunk(3), strict=True):
                gradients[f"encoder.layer.{index}.attention.self.{part}.{leaf}"] = chunk
        else:
            gradients[f"{names[module]}.{leaf}"] = parameter.grad
    return gradients


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_random_model_equals_transformers(transformers: ModuleType, small_folder: Path, attention: str) -> None:
    model = transformers.BertModel.from_pretrained(small_folder, attn_implementation=attention)
    compare_with_oracle(small_folder, model, [random_batch(1), random_batch(9), random_batch(17, seed=3)])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_published_model_equals_transformers_on_real_text(
    transformers: ModuleType, real_encoder: Path, real_data: Path, tmp_path: Path, attention: str
) -> None:
    tokenizer = load_tokenizer(real_encoder)
    specials = (tokenizer.cls_id, tokenizer.sep_id)
    batches = []
    for task, encoding in (("sst", "bi"), ("sts", "cross"), ("sts", "bi")):
        split = tokenise_split(real_data, TASKS[task], "dev", tokenizer, tmp_path)
        rows = np.random.default_rng(0).choice(len(split), 12, replace=False)
        batches.append(pack(split, rows, encoding, 128, specials))  # type: ignore[arg-type]
    model = transformers.BertModel.from_pretrained(real_encoder, attn_implementation=attention)
    compare_with_oracle(real_encoder, model, batches)


# ---------------------------------------------------------------------------------------------------------------- packing


def test_batch_mates_have_no_influence(encoder: Encoder) -> None:
    """In float64: in float32 the matrix products of another N round otherwise."""
    encoder.double()
    batch = random_batch(17)
    together = split_sequences(encoder(batch), batch)
    tokens, segments = (split_sequences(values, batch) for values in (batch.token_ids_N, batch.segment_ids_N))
    for hidden, token, segment in zip(together, tokens, segments, strict=True):
        alone = encoder(batch_of([token.tolist()], [segment.tolist()]))
        assert torch.allclose(alone, hidden, rtol=0, atol=1e-12)


def test_a_real_sentence_alone_is_the_sentence_in_a_batch(real_encoder: Path, real_data: Path, tmp_path: Path) -> None:
    """Within 1e-6 of the float32 hidden states' size, which goes up to 6."""
    tokenizer = load_tokenizer(real_encoder)
    split = tokenise_split(real_data, TASKS["sst"], "dev", tokenizer, tmp_path)
    encoder = load_encoder(real_encoder, 0.1, 0.1)
    batch = pack(split, np.arange(16), "bi", 128, (tokenizer.cls_id, tokenizer.sep_id))
    with torch.no_grad():
        for i, hidden in enumerate(split_sequences(encoder(batch), batch)):
            alone = encoder(pack(split, np.array([i]), "bi", 128, (tokenizer.cls_id, tokenizer.sep_id)))
            assert (alone - hidden).norm() <= 1e-6 * hidden.norm()


def test_a_broken_sequence_does_not_reach_its_batch_mates(encoder: Encoder) -> None:
    batch = batch_of([[1, 2, 3], [4, 5], [6, 7, 8, 9]])
    noise = torch.zeros(9, SHAPE.hidden_size)
    noise[3:5] = float("nan")  # the second sequence
    first, second, third = split_sequences(encoder(batch, noise_ND=noise), batch)
    assert second.isnan().all()
    assert first.isfinite().all()
    assert third.isfinite().all()


def test_every_linear_sees_the_real_tokens_only(encoder: Encoder) -> None:
    rows: dict[str, int] = {}
    for name, module in encoder.layers.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.LayerNorm):
            module.register_forward_pre_hook(lambda _, args, name=name: rows.__setitem__(name, len(args[0])))
    encoder(batch_of([[1], [1, 2, 3, 4, 5, 6, 7], [1, 2, 3]]))
    assert len(rows) == 6 * SHAPE.num_hidden_layers
    assert set(rows.values()) == {1 + 7 + 3}


def test_permuting_sequences_permutes_outputs(encoder: Encoder) -> None:
    encoder.double()
    sequences = [[1, 2], [3, 4, 5, 6], [7], [8, 9, 10], [2, 1], [5, 5, 5], [6, 1], [3, 3, 1, 2, 9]]
    order = [5, 2, 7, 0, 1, 6, 4, 3]
    plain, permuted = batch_of(sequences), batch_of([sequences[i] for i in order])
    outputs = split_sequences(encoder(plain), plain)
    for i, hidden in zip(order, split_sequences(encoder(permuted), permuted), strict=True):
        assert torch.allclose(hidden, outputs[i], rtol=0, atol=1e-12)


def test_segments_matter(encoder: Encoder) -> None:
    one, two = batch_of([[1, 2, 3]], [[0, 0, 0]]), batch_of([[1, 2, 3]], [[0, 0, 1]])
    assert (encoder(one) - encoder(two)).abs().max() > 1e-2


def test_positions_matter(encoder: Encoder) -> None:
    batch = batch_of([[1, 1, 1]])
    hidden_ND = encoder(batch)
    assert (hidden_ND[0] - hidden_ND[1]).abs().max() > 1e-2
    nowhere = encoder(replace(batch, position_ids_N=torch.zeros(3, dtype=torch.int64)))
    assert torch.allclose(nowhere[0], nowhere[1], atol=1e-6)


def test_a_sequence_beyond_the_positions_is_named(encoder: Encoder) -> None:
    with pytest.raises(AssertionError, match="a sequence of 17 tokens, but the encoder has 16 positions"):
        encoder(batch_of([[1] * 17]))


def test_attention_of_one_token_is_its_value() -> None:
    qkv = torch.tensor([[5.0, -3.0, 0.5, 0.25, 7.0, 8.0]])  # q, k, v of two heads of one dimension
    assert attend(qkv, Layout.of((1,), torch.device("cpu")), 2, lambda x: x).tolist() == [[7.0, 8.0]]


def test_attention_by_hand() -> None:
    # one head of one dimension; keys 0 and ln 3 under a query of 1 weigh 1 : 3, under a query of 0 they weigh 1 : 1
    log3 = float(np.log(3))
    qkv = torch.tensor([[1.0, 0.0, 4.0], [0.0, log3, 8.0]])
    context = attend(qkv, Layout.of((2,), torch.device("cpu")), 1, lambda x: x)
    assert context.flatten().tolist() == pytest.approx([7.0, 6.0])


def test_length_groups_compute_little_padding() -> None:
    lengths = (3, 30, 4, 29, 5, 28, 6, 27, 10, 11, 12, 13, 20, 19, 18, 17)
    layout = Layout.of(lengths, torch.device("cpu"))
    assert [(rows, longest) for rows, longest, _ in layout.groups] == [(4, 6), (4, 13), (4, 20), (4, 30)]
    assert layout.num_slots == 4 * (6 + 13 + 20 + 30)  # 276 for 252 tokens; one group would take 480
    assert len(layout.slot_N.unique()) == sum(lengths)


def test_bf16_autocast_stays_near_float32_and_keeps_the_residual_stream_float32(encoder: Encoder) -> None:
    batch = random_batch()
    exact_ND = encoder(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden_ND = encoder(batch, Masks(0), torch.zeros(len(batch.token_ids_N), SHAPE.hidden_size))
        plain_ND = encoder(batch)
    assert hidden_ND.dtype == torch.float32
    hidden_ND.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for n, p in encoder.named_parameters() if "pooler" not in n)
    assert 0 < (plain_ND - exact_ND).norm() / exact_ND.norm() < 0.03


# ------------------------------------------------------------------------------------------------------------------ noise


def test_noise_of_zeros_changes_nothing(encoder: Encoder) -> None:
    batch = random_batch()
    assert torch.equal(encoder(batch), encoder(batch, noise_ND=torch.zeros_like(encoder.embed_words(batch))))


def test_noise_is_added_to_the_word_embedding_rows(encoder: Encoder) -> None:
    """Noise that turns the rows of one word into those of another gives the other's hidden states."""
    one, other = batch_of([[1, 2, 3]], [[0, 1, 1]]), batch_of([[1, 7, 3]], [[0, 1, 1]])
    noise_ND = encoder.embed_words(other) - encoder.embed_words(one)
    assert torch.allclose(encoder(one, noise_ND=noise_ND), encoder(other), atol=1e-5)


def test_noise_has_a_gradient(encoder: Encoder) -> None:
    batch = random_batch()
    noise_ND = torch.zeros_like(encoder.embed_words(batch)).requires_grad_()
    encoder(batch, noise_ND=noise_ND).square().sum().sqrt().backward()
    assert noise_ND.grad is not None
    assert (noise_ND.grad.abs().sum(1) > 0).all()


# ------------------------------------------------------------------------------------------------------------------ masks


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_masks_drop_at_their_rate_in_each_of_four_lanes(p: float) -> None:
    """Four elements share an int64 of random bits. A generator that never sets the sign bit spares every fourth."""
    kept = Masks(0)(torch.ones(250_000, 4), p) != 0
    for rate in (~kept).double().mean(0).tolist():
        assert rate == pytest.approx(p, abs=5 * (p * (1 - p) / 250_000) ** 0.5)


def test_masks_keep_the_mean() -> None:
    x = torch.rand(1_000_000, dtype=torch.float64)
    assert float(Masks(1)(x, 0.3).mean()) == pytest.approx(float(x.mean()), abs=3e-3)


def test_masks_scale_what_they_keep_by_the_rounded_rate() -> None:
    values = Masks(0)(torch.ones(10_001), 0.1).unique()
    assert values.tolist() == pytest.approx([0, 1 / (1 - 6554 / 65536)])


def test_masks_of_one_seed_are_the_same_for_the_same_shapes() -> None:
    one, two = Masks(3), Masks(3)
    for shape in ((5, 7), (1,), (2, 3, 4)):
        x = torch.randn(shape)
        assert torch.equal(one(x, 0.5), two(x, 0.5))
        assert one(x, 0.5).shape == x.shape
        two(x, 0.5)


def test_masks_of_another_seed_or_the_next_draw_differ() -> None:
    masks, x = Masks(3), torch.ones(1000)
    first = masks(x, 0.5)
    assert not torch.equal(first, masks(x, 0.5))
    assert not torch.equal(first, Masks(4)(x, 0.5))


def test_masks_of_rate_zero_return_the_input_itself_and_draw_nothing() -> None:
    masks, x = Masks(3), torch.ones(1000)
    assert masks(x, 0) is x
    assert torch.equal(masks(x, 0.5), Masks(3)(x, 0.5))


def test_masks_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    Masks(3)(torch.ones(1000), 0.5)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan")])
def test_masks_refuse_a_rate_outside_0_1(p: float) -> None:
    with pytest.raises(ValueError, match=r"A dropout rate must be in \[0, 1\)\. Got"):
        Masks(0)(torch.ones(3), p)


def test_a_rate_next_to_one_stays_finite() -> None:
    assert Masks(0)(torch.ones(100_000), 1 - 1e-9).isfinite().all()


def test_the_gradient_passes_through_the_mask() -> None:
    x = torch.ones(1000, requires_grad=True)
    dropped = Masks(0)(x, 0.4)
    dropped.sum().backward()
    assert torch.equal(x.grad, dropped.detach())  # of ones


def test_passes_with_one_seed_replay_their_masks_and_another_seed_does_not(encoder: Encoder) -> None:
    batch = random_batch()
    hidden_ND = encoder(batch, Masks(5))
    assert torch.equal(hidden_ND, encoder(batch, Masks(5)))
    assert not torch.allclose(hidden_ND, encoder(batch, Masks(6)), atol=1e-2)
    assert not torch.allclose(hidden_ND, encoder(batch), atol=1e-2)


@pytest.mark.parametrize("where", ["hidden_dropout", "attention_dropout"])
def test_each_dropout_acts_alone(encoder: Encoder, where: str) -> None:
    batch = random_batch()
    encoder.hidden_dropout = encoder.attention_dropout = 0.0
    assert torch.equal(encoder(batch, Masks(5)), encoder(batch))
    setattr(encoder, where, 0.2)
    assert not torch.allclose(encoder(batch, Masks(5)), encoder(batch), atol=1e-2)


def test_dropout_stands_where_bert_has_it(encoder: Encoder) -> None:
    """After the embeddings; in each layer on the probabilities of each length group, then on both outputs."""
    encoder.attention_dropout = 0.2
    drawn = []

    class Recorder(Masks):
        def __call__(self, x: Tensor, p: float) -> Tensor:
            drawn.append((tuple(x.shape), p))
            return x

    encoder(batch_of([[1]] * 4 + [[1, 2, 3]] * 4), Recorder(0))
    hidden, heads = ((16, SHAPE.hidden_size), 0.1), SHAPE.num_attention_heads
    layer = [((4, heads, 1, 1), 0.2), ((4, heads, 3, 3), 0.2), hidden, hidden]
    assert drawn == [hidden, *layer * SHAPE.num_hidden_layers]


# ------------------------------------------------------------------------------------------------------------- parameters


def test_parameter_groups_hold_each_parameter_once_from_input_to_output(encoder: Encoder) -> None:
    groups = encoder.parameter_groups()
    assert list(groups) == ["embeddings", "layer.0", "layer.1", "layer.2", "pooler"]
    grouped = [id(parameter) for group in groups.values() for parameter in group]
    assert sorted(grouped) == sorted(id(parameter) for parameter in encoder.parameters())
    assert len(groups["embeddings"]) == 5


def test_a_new_encoder_follows_its_seed_and_range() -> None:
    one, again, other = (new_encoder(TINY, seed, 0.1, 0.1) for seed in (0, 0, 1))
    for name, value in one.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        if name.endswith("bias"):
            assert not value.any()
        elif "norm" in name:
            assert (value == 1).all()
        else:
            assert not torch.equal(value, other.state_dict()[name])
    assert float(one.word_embeddings.weight.detach().std()) == pytest.approx(TINY.initializer_range, rel=0.02)
    assert all(parameter.requires_grad for parameter in one.parameters())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"hidden_size": 15}, r"`hidden_size` must be a multiple of `num_attention_heads`\. Got 15 and 4\."),
        ({"num_hidden_layers": 0}, r"`num_hidden_layers` of an encoder must be a whole number > 0\. Got 0\."),
        ({"vocab_size": "many"}, r"`vocab_size` of an encoder must be a whole number > 0\. Got 'many'\."),
        ({"layer_norm_eps": None}, r"`layer_norm_eps` of an encoder must be a number > 0\. Got None\."),
    ],
)
def test_an_impossible_shape_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(SHAPE, **change)


# ------------------------------------------------------------------------------------------------------------ checkpoints


def test_save_and_load_are_bit_exact(encoder: Encoder, tmp_path: Path) -> None:
    save_encoder(encoder, tmp_path / "a" / "b")
    loaded = load_encoder(tmp_path / "a" / "b", 0.2, 0.3)
    assert loaded.shape == encoder.shape
    assert (loaded.hidden_dropout, loaded.attention_dropout, loaded.notes) == (0.2, 0.3, ())
    assert loaded.state_dict().keys() == encoder.state_dict().keys()
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


def test_what_is_saved_loads_in_transformers_without_missing_or_unexpected_keys(
    transformers: ModuleType, encoder: Encoder, tmp_path: Path
) -> None:
    save_encoder(encoder, tmp_path)
    model, report = transformers.BertModel.from_pretrained(tmp_path, output_loading_info=True)
    assert {key: list(value) for key, value in report.items() if value} == {}
    assert model.config.attention_probs_dropout_prob == encoder.attention_dropout
    batch = random_batch()
    want_ND, want_pooled_SD = oracle_hidden(model.eval(), batch)
    hidden_ND = encoder(batch)
    assert torch.allclose(hidden_ND, want_ND, rtol=0, atol=1e-5)
    assert torch.allclose(encoder.pooler(first_SD(hidden_ND, batch)), want_pooled_SD, rtol=0, atol=1e-5)


def test_a_real_checkpoint_survives_the_round_trip_whole(real_encoder: Path, tmp_path: Path) -> None:
    save_encoder(load_encoder(real_encoder, 0.1, 0.1), tmp_path)
    before, after = load_file(real_encoder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    before.pop("embeddings.position_ids")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_saving_over_an_encoder_replaces_it_and_leaves_no_other_file(encoder: Encoder, tmp_path: Path) -> None:
    save_encoder(new_encoder(TINY, 0, 0.1, 0.1), tmp_path)
    save_encoder(encoder, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert load_encoder(tmp_path, 0, 0).shape == encoder.shape


def test_a_failed_save_leaves_the_old_encoder_whole(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_encoder(encoder, tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("minbert_core.encoder.json.dumps", fail)
    with pytest.raises(OSError, match="disk full"):
        save_encoder(new_encoder(TINY, 0, 0.1, 0.1), tmp_path)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert load_encoder(tmp_path, 0, 0).shape == encoder.shape


def test_a_loaded_encoder_does_not_lean_on_its_file(encoder: Encoder, tmp_path: Path) -> None:
    save_encoder(encoder, tmp_path)
    loaded = load_encoder(tmp_path, 0, 0)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\0" * path.stat().st_size)  # in place, under a memory map that might still be open
    assert torch.equal(loaded.word_embeddings.weight, encoder.word_embeddings.weight)


@pytest.fixture
def rewrite(encoder: Encoder, tmp_path: Path) -> Callable[..., Path]:
    """Saves the encoder, then changes its config and its tensors as told; returns the folder."""

    def change(
        config: dict[str, Any] | None = None, tensors: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None
    ) -> Path:
        save_encoder(encoder, tmp_path)
        merged = json.loads((tmp_path / "config.json").read_text()) | (config or {})
        merged = {key: value for key, value in merged.items() if value != "absent"}
        (tmp_path / "config.json").write_text(json.dumps(merged))
        if tensors:
            stored = {name: tensor.clone() for name, tensor in load_file(tmp_path / "model.safetensors").items()}
            save_file(tensors(stored), tmp_path / "model.safetensors")
        return tmp_path

    return change


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    def old(name: str) -> str:
        return "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    return {old(name): tensor for name, tensor in tensors.items()}


def test_old_names_load(encoder: Encoder, rewrite: Callable[..., Path]) -> None:
    def tensors(stored: dict[str, Tensor]) -> dict[str, Tensor]:
        return renamed(stored) | {"bert.embeddings.position_ids": torch.arange(16)[None]}

    loaded = load_encoder(rewrite(tensors=tensors), 0, 0)
    assert loaded.notes == ()
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


def test_heads_are_left_out_and_noted(rewrite: Callable[..., Path]) -> None:
    heads = {"cls.predictions.bias": torch.zeros(40), "classifier.weight": torch.zeros(2, 16)}
    loaded = load_encoder(rewrite(tensors=lambda stored: renamed(stored) | heads), 0, 0)
    assert loaded.notes == ("Left out of the checkpoint, no part of an encoder: classifier.weight, cls.predictions.bias.",)


def test_an_absent_pooler_is_drawn_afresh_always_the_same_and_noted(rewrite: Callable[..., Path]) -> None:
    folder = rewrite(tensors=lambda stored: {name: tensor for name, tensor in stored.items() if "pooler" not in name})
    one, two = load_encoder(folder, 0, 0), load_encoder(folder, 0, 0)
    assert one.notes == ("The checkpoint has no pooler: a fresh one was drawn.",)
    assert torch.equal(one.pooler[0].weight, two.pooler[0].weight)
    assert float(one.pooler[0].weight.detach().std()) == pytest.approx(0.3, rel=0.2)  # the fixture's initializer_range
    assert not one.pooler[0].bias.any()


def test_half_precision_checkpoints_become_float32(rewrite: Callable[..., Path]) -> None:
    folder = rewrite(tensors=lambda stored: {name: tensor.half() for name, tensor in stored.items()})
    assert {p.dtype for p in load_encoder(folder, 0, 0).parameters()} == {torch.float32}


def test_a_config_without_the_optional_keys_takes_bert_s_defaults(rewrite: Callable[..., Path]) -> None:
    optional = ("hidden_act", "position_embedding_type", "is_decoder", "type_vocab_size", "layer_norm_eps", "initializer_range")
    folder = rewrite(config=dict.fromkeys(optional, "absent"))
    assert load_encoder(folder, 0, 0).shape == SHAPE


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"model_type": "roberta"}, r'config\.json: `model_type` must be "bert"\. Got "roberta"\.'),
        ({"hidden_act": "gelu_new"}, r'config\.json: `hidden_act` must be "gelu"\. Got "gelu_new"\.'),
        ({"position_embedding_type": "relative_key"}, r'`position_embedding_type` must be "absolute"\. Got "relative_key"\.'),
        ({"is_decoder": True}, r"config\.json: `is_decoder` must be false\. Got true\."),
        ({"vocab_size": "absent", "hidden_size": "absent"}, r"config\.json lacks vocab_size, hidden_size\."),
        (
            {"num_attention_heads": 3},
            r"config\.json: `hidden_size` must be a multiple of `num_attention_heads`\. Got 16 and 3\.",
        ),
        ({"hidden_size": 16.5}, r"config\.json: `hidden_size` of an encoder must be a whole number > 0\. Got 16\.5\."),
        (
            {"num_hidden_layers": 2},
            r"does not fit its config\.json: encoder\.layer\.2\.attention\S+ is left over; .*, and 13 more\.",
        ),
        (
            {"num_hidden_layers": 4},
            r"config\.json: encoder\.layer\.3\.attention\.self\.query.\S+ is missing; .*, and 13 more\.",
        ),
        ({"vocab_size": 41}, r"config\.json: embeddings\.word_embeddings\.weight has shape \(40, 16\) instead of \(41, 16\)\."),
    ],
)
def test_a_config_that_does_not_fit_is_refused(rewrite: Callable[..., Path], config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        load_encoder(rewrite(config=config), 0, 0)


@pytest.mark.parametrize(
    "name", ["encoder.layer.1.attention.self.key.weight", "pooler.dense.bias", "embeddings.LayerNorm.weight"]
)
def test_a_missing_weight_is_named(rewrite: Callable[..., Path], name: str) -> None:
    with pytest.raises(ValueError, match=rf"model\.safetensors does not fit its config\.json: {name} is missing\."):
        load_encoder(rewrite(tensors=lambda stored: {key: tensor for key, tensor in stored.items() if key != name}), 0, 0)


def test_a_wrongly_shaped_key_matrix_is_named_alone(rewrite: Callable[..., Path]) -> None:
    wrong = {"encoder.layer.0.attention.self.key.weight": torch.zeros(16, 15)}
    sentence = r"config\.json: encoder\.layer\.0\.attention\.self\.key\.weight has shape \(16, 15\) instead of \(16, 16\)\."
    with pytest.raises(ValueError, match=sentence):
        load_encoder(rewrite(tensors=lambda stored: stored | wrong), 0, 0)


@pytest.mark.parametrize("kept", [0, 5, 200, 20_000])
def test_a_truncated_checkpoint_is_refused(rewrite: Callable[..., Path], kept: int) -> None:
    folder = rewrite()
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"Cannot read .*model\.safetensors: .*; it may be truncated, copy it again\."):
        load_encoder(folder, 0, 0)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_config_that_is_no_json_object_is_refused(rewrite: Callable[..., Path], text: str) -> None:
    folder = rewrite()
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"config\.json is no JSON object\."):
        load_encoder(folder, 0, 0)


def test_missing_files_are_named(rewrite: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"There is no encoder folder .*nowhere\."):
        load_encoder(tmp_path / "nowhere", 0, 0)
    folder = rewrite()
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"The encoder folder .* has no model\.safetensors\."):
        load_encoder(folder, 0, 0)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"The encoder folder .* has no config\.json\."):
        load_encoder(folder, 0, 0)


def test_a_pickle_is_not_opened_but_its_conversion_told(rewrite: Callable[..., Path]) -> None:
    folder = rewrite()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    sentence = (
        r'has pytorch_model\.bin, no model\.safetensors; convert its pickle once: python -c "from transformers import .*"$'
    )
    with pytest.raises(ValueError, match=sentence):
        load_encoder(folder, 0, 0)


# ------------------------------------------------------------------------------------------------------------------ fetch


def test_a_folder_is_returned_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "minilm").mkdir()
    monkeypatch.chdir(tmp_path)
    assert fetch_encoder("minilm") == (tmp_path / "minilm").resolve()


@pytest.mark.parametrize("name", ["/no/such/folder", "./folder", "../folder", "~/no-such-folder", "a/b/c"])
def test_a_path_without_a_folder_never_asks_the_hub(name: str) -> None:
    with pytest.raises(ValueError, match=r"There is no encoder folder .*folder\.|There is no encoder folder a/b/c\."):
        fetch_encoder(name)


@pytest.fixture
def silent_hub() -> Iterator[str]:
    """The address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


ADVICE = r"use `--encoder DIR` with a folder in Hugging Face layout, or `encoder: tiny` with the toy corpus\.$"


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.usefixtures("empty_cache")
def test_a_hub_that_cannot_be_reached_fails_in_seconds_with_advice(silent_hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    for endpoint, limit_seconds in (("http://127.0.0.1:9", 3), (silent_hub, 8)):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        start = time.monotonic()
        with pytest.raises(ValueError, match=rf"^The encoder 'some/model' is no folder, .* did not give it \(.+\); {ADVICE}"):
            fetch_encoder("some/model")
        assert time.monotonic() - start < limit_seconds


@pytest.mark.usefixtures("empty_cache")
def test_what_is_no_name_of_a_model_gets_the_same_advice() -> None:
    with pytest.raises(ValueError, match=ADVICE):
        fetch_encoder("no model!")


def test_a_model_in_the_cache_is_taken_without_network(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    repository, revision = empty_cache / "models--some--model", "0123456789012345678901234567890123456789"
    snapshot = repository / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    for name in ("config.json", "model.safetensors", "vocab.txt"):
        (snapshot / name).touch()
    assert fetch_encoder("some/model") == snapshot.resolve()
