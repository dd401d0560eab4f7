"""minBERT against its oracle, transformers.BertModel: on a small random model everywhere, on a published one where it is.

Then what packing must not change, noise, dropout masks, and every refusal of a shape.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from minbert_core.checkpoints import load_encoder
from minbert_core.data.packed import EXACT, KERNEL, Layout, PackedBatch, Query, Reading, Span, copied
from minbert_core.data.tasks import TASKS
from minbert_core.data.tokens import load_tokenizer, pack, tokenise_split
from minbert_core.encoder import (
    TINY,
    Dropout,
    Encoder,
    EncoderShape,
    Masks,
    attend,
    attend_by_products,
    attend_in_one_kernel,
    new_encoder,
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
            f"layers.{i}.query": f"{block}.attention.self.query",
            f"layers.{i}.attention_output": f"{block}.attention.output.dense",
            f"layers.{i}.attention_norm": f"{block}.attention.output.LayerNorm",
            f"layers.{i}.intermediate": f"{block}.intermediate.dense",
            f"layers.{i}.output": f"{block}.output.dense",
            f"layers.{i}.output_norm": f"{block}.output.LayerNorm",
        }
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        module, _, leaf = name.rpartition(".")
        if module.endswith(".key_value"):
            index = module.split(".")[1]
            for part, chunk in zip(("key", "value"), parameter.grad.chunk(2), strict=True):
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
    assert len(rows) == 7 * SHAPE.num_hidden_layers
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
    q, kv = torch.tensor([[5.0, -3.0]]), torch.tensor([[0.5, 0.25, 7.0, 8.0]])  # two heads of one dimension
    layout = Layout.of((1,))
    assert attend(q, kv, Query.of_all(layout), 2, Dropout(None, 0.0)).tolist() == [[7.0, 8.0]]


def test_attention_by_hand() -> None:
    # one head of one dimension; keys 0 and ln 3 under a query of 1 weigh 1 : 3, under a query of 0 they weigh 1 : 1
    log3 = float(np.log(3))
    q, kv = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0, 4.0], [log3, 8.0]])
    layout = Layout.of((2,))
    assert attend(q, kv, Query.of_all(layout), 1, Dropout(None, 0.0)).flatten().tolist() == pytest.approx([7.0, 6.0])


SPANS = {
    "all": (Span(9, False),),
    "first": (Span(9, True),),
    "some": (Span(4, True), Span(5, False)),
}


@pytest.mark.parametrize("spans", SPANS.values(), ids=SPANS.keys())
def test_attention_in_one_kernel_is_that_by_products_with_its_gradients(spans: tuple[Span, ...]) -> None:
    """On a GPU one kernel attends over one padded group; here torch has another kernel, for the same layout."""
    batch, found = random_batch(), []
    inputs = torch.randn(len(batch.token_ids_N), 3 * SHAPE.hidden_size, dtype=torch.float64)
    for attending, grid in ((attend_by_products, EXACT), (attend_in_one_kernel, KERNEL)):
        x_N3D = inputs.clone().requires_grad_()
        reading = Reading.of(batch.lengths, spans, grid)
        for query in (reading.of_all, reading.of_last):
            q_ND, kv_N2D = x_N3D.split([SHAPE.hidden_size, 2 * SHAPE.hidden_size], dim=1)
            context_RD = attending(query.select(q_ND), kv_N2D, query, 4, Dropout(None, 0.0))
            (gradient,) = torch.autograd.grad(context_RD.square().sum(), [x_N3D])
            found.append((context_RD, gradient))
    for products, kernel in zip(found[:2], found[2:], strict=True):
        assert all(torch.allclose(one, other, rtol=0, atol=1e-6) for one, other in zip(products, kernel, strict=True))


def test_a_kernel_s_slots_are_one_group_of_a_multiple_of_eight() -> None:
    """torch would copy the mask of any other length in every layer."""
    layout = Layout.of((3, 30, 4, 29), KERNEL)
    assert [(rows, longest) for rows, longest, _ in layout.groups] == [(4, 32)]
    assert len(layout.slot_N.unique()) == 3 + 30 + 4 + 29


def test_the_rows_of_each_span_are_its_first_tokens_or_all_of_them(encoder: Encoder) -> None:
    batch = random_batch()
    whole_ND, some_RD = encoder(batch), encoder(batch, spans=SPANS["some"])
    reading = batch.reading(SPANS["some"])
    first = batch.starts_S1[:4]
    rows_R = torch.cat([first, torch.arange(int(batch.starts_S1[4]), int(batch.starts_S1[-1]))])
    assert torch.allclose(some_RD, whole_ND[rows_R], rtol=0, atol=1e-5)
    assert reading.rows == (4, sum(batch.lengths[4:]))
    assert reading.starts_S1[0].tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(reading.starts_S1[1], batch.starts_S1[4:] - batch.starts_S1[4])


def test_a_batch_goes_to_a_device_in_one_copy_with_all_that_attention_needs() -> None:
    batch = random_batch()
    there = batch.prepared(SPANS["some"], torch.device("meta"))
    reading = there.reading(SPANS["some"])
    tensors = [there.token_ids_N, there.labels_B, reading.of_all.layout.slot_N, *reading.starts_S1]
    tensors += [bias for _, _, bias in (*reading.of_all.layout.groups, *reading.of_last.keys_layout.groups)]
    assert len({tensor.untyped_storage()._cdata for tensor in tensors}) == 1
    assert there.lengths == batch.lengths
    same = batch.prepared(SPANS["some"], torch.device("cpu"))
    assert same.token_ids_N is batch.token_ids_N, "on the CPU nothing is copied"


def test_a_batch_copied_in_one_buffer_is_the_same() -> None:
    """Types and shapes included: int64, float32, an empty tensor."""
    values = [torch.arange(3), torch.randn(2, 1, 1, 5), torch.zeros(0), torch.tensor([True, False])]
    for one, other in zip(values, copied(values, torch.device("cpu")), strict=True):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype


def test_the_first_tokens_alone_are_those_of_the_whole_pass(encoder: Encoder) -> None:
    """Hidden states and every gradient, also where a batch mate is broken and lengths are in no order."""
    batch = random_batch()
    direction_SD = torch.randn(len(batch.lengths), SHAPE.hidden_size)
    wanted, gradients = [], []
    for hidden_SD in (first_SD(encoder(batch), batch), encoder(batch, spans=SPANS["first"])):
        encoder.zero_grad()
        (hidden_SD * direction_SD).sum().backward()
        wanted.append(hidden_SD)
        gradients.append({n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None})
    assert torch.allclose(*wanted, rtol=0, atol=1e-5)
    assert gradients[0].keys() == gradients[1].keys()
    largest = max(float(gradient.norm()) for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        assert (gradients[1][name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6 * largest, name


def test_of_the_last_layer_only_keys_and_values_see_more_than_the_first_tokens(encoder: Encoder) -> None:
    rows: dict[str, int] = {}
    for name, module in encoder.layers[-1].named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, args, name=name: rows.__setitem__(name, len(args[0])))
    encoder(batch_of([[1], [1, 2, 3, 4, 5, 6, 7], [1, 2, 3]]), spans=(Span(3, True),))
    assert rows == {"query": 3, "key_value": 11, "attention_output": 3, "intermediate": 3, "output": 3}


def test_length_groups_compute_little_padding() -> None:
    lengths = (3, 30, 4, 29, 5, 28, 6, 27, 10, 11, 12, 13, 20, 19, 18, 17)
    layout = Layout.of(lengths)
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


# -------------------------------------------------------------------------------------------------------- a cut vocabulary


def test_a_cut_vocabulary_changes_no_hidden_state_and_no_gradient(encoder: Encoder) -> None:
    batch = random_batch()
    cut, used = copy.deepcopy(encoder), torch.unique(batch.token_ids_N)
    assert len(used) < SHAPE.vocab_size
    cut.train_words(used)
    for network in (encoder, cut):
        network.word_embeddings.weight.grad = torch.zeros_like(network.word_embeddings.weight)  # as the flat buffer's rows are
        network(batch).square().sum().backward()
    assert torch.equal(encoder(batch), cut(batch))
    gradients = [dict(network.named_parameters()) for network in (encoder, cut)]
    for name, parameter in gradients[1].items():
        whole = gradients[0][name].grad
        if whole is not None:
            if name == "word_embeddings.weight":  # the last row stands for the others, which have no gradient
                whole = torch.cat([whole[used], torch.zeros(1, SHAPE.hidden_size)])
            assert torch.allclose(parameter.grad, whole, rtol=1e-5, atol=1e-6), name


def test_the_words_put_aside_are_kept_as_they_were_and_the_others_as_they_became(encoder: Encoder) -> None:
    before = encoder.word_embeddings.weight.detach().clone()
    used = torch.tensor([3, 5, 39])
    encoder.train_words(used)
    assert encoder.word_embeddings.weight.shape == (4, SHAPE.hidden_size)
    with torch.no_grad():
        encoder.word_embeddings.weight[:3] += 1
    after = encoder.all_word_embeddings()
    assert torch.equal(after[used], before[used] + 1)
    others = [i for i in range(SHAPE.vocab_size) if i not in (3, 5, 39)]
    assert torch.equal(after[others], before[others])


def test_a_word_put_aside_cannot_be_embedded_by_mistake(encoder: Encoder) -> None:
    encoder.train_words(torch.tensor([1, 2]))
    with pytest.raises(IndexError, match="out of range"):
        encoder(batch_of([[1, 2, 3]]))


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_scale_what_they_keep_by_the_rounded_rate(dtype: torch.dtype) -> None:
    """A scale in bfloat16 would be 1.109 for 1.111, and the mean of what is dropped .9984 of what came in."""
    values = Masks(0)(torch.ones(10_001, dtype=dtype), 0.1).unique()
    assert values.tolist() == pytest.approx([0, 1 / (1 - 6554 / 65536)], rel=1e-6)


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


def test_rewound_masks_replay_what_they_drew_and_go_on_drawing_after_it() -> None:
    masks, other, x = Masks(3), Masks(3), torch.ones(5, 7)
    first = masks(x, 0.5)
    assert torch.equal(masks.rewind()(2 * x, 0.5), 2 * first)
    assert torch.equal(first, other(x, 0.5))
    assert torch.equal(masks(x, 0.5), other(x, 0.5))


def test_a_mask_replayed_on_another_shape_is_our_fault() -> None:
    masks = Masks(3)
    masks(torch.ones(5, 7), 0.5)
    with pytest.raises(AssertionError, match=r"a mask of shape \(5, 7\) is replayed on \(5, 8\)"):
        masks.rewind()(torch.ones(5, 8), 0.5)


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
        ({"num_hidden_layers": 0}, r"`num_hidden_layers` of an encoder must be a whole number > 0 and < 16,777,216\. Got 0\."),
        ({"vocab_size": "many"}, r"`vocab_size` of an encoder must be a whole number > 0 and < 16,777,216\. Got 'many'\."),
        ({"layer_norm_eps": None}, r"`layer_norm_eps` of an encoder must be a number > 0 and < 16,777,216\. Got null\."),
    ],
)
def test_an_impossible_shape_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(SHAPE, **change)
