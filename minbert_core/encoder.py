"""minBERT: the BERT encoder on packed (unpadded) sequences.

A batch is the tokens of all its sequences one after another, without padding; `data.tokens.pack` makes it, `model.py` puts
features and heads on what comes out, `checkpoints.py` reads and writes encoders in Hugging Face's layout.
Linears, LayerNorm and GELU see real tokens only; padding exists inside `attend` alone.
`nn.Module`'s train / eval switch plays no part: whoever wants dropout hands in `Masks`.

Legend: N packed tokens, S sequences, L tokens of the longest sequence in a group, D hidden size, H attention heads, Dh = D / H,
P slots of the padded buffer inside attention.
Source: Devlin et al. 2019 (arXiv 1810.04805); post-LayerNorm blocks, exact (erf) GELU, as the published checkpoints have them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minbert_core.data.tokens import PackedBatch

Dropout = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class EncoderShape:
    """What fixes the weights of an encoder. Names and defaults are those of Hugging Face's config.json."""

    vocab_size: int
    hidden_size: int  # D
    num_hidden_layers: int
    num_attention_heads: int  # H
    intermediate_size: int
    max_position_embeddings: int = 512  # the longest sequence, in tokens
    type_vocab_size: int = 2  # segments
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02  # standard deviation of fresh weights

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            whole = field.name not in ("layer_norm_eps", "initializer_range")
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or value <= 0:
                raise ValueError(f"`{field.name}` of an encoder must be a {'whole ' * whole}number > 0. Got {value!r}.")
        heads = self.num_attention_heads
        if self.hidden_size % heads:
            raise ValueError(f"`hidden_size` must be a multiple of `num_attention_heads`. Got {self.hidden_size} and {heads}.")


# the toy encoder; `dataclasses.replace` gives it the size of the vocabulary that it meets
TINY = EncoderShape(vocab_size=1000, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)


class Masks:
    """Dropout with a generator of its own: the same seed and the same sequence of shapes replay the same masks.

    16 random bits an element, four elements to an int64: drawing is a sixth of the cost of Bernoulli numbers, and p is
    rounded to a multiple of 1/65536. The kept are scaled by 1 / (1 - p) of that rounded p, so the mean is exact.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, x: Tensor, p: float) -> Tensor:
        """`x` with each element zeroed with probability p in [0, 1), same shape; p = 0 draws nothing and returns `x`."""
        if not 0 <= p < 1:
            raise ValueError(f"A dropout rate must be in [0, 1). Got {p}.")
        threshold = min(round(p * 65536), 65535)
        if threshold == 0:
            return x
        # the range is spelled out: a bare random_() leaves an int64's sign bit 0, so every fourth element would never drop
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device)
        bits = words.random_(-(2**63), None, generator=self.generator).view(torch.int16)[: x.numel()].view(x.shape)
        return x * (bits >= threshold - 32768).to(x.dtype).mul_(65536 / (65536 - threshold))


# ----------------------------------------------------------------------------------------------------------- attention


@dataclass(frozen=True)
class Layout:
    """Where the packed tokens stand while attention needs rows of equal length; the same for every layer of a pass.

    The sequences, sorted by length, form up to four groups, each padded to its own longest: a buffer of P slots in all.
    """

    slot_N: Tensor  # the slot of each packed token
    groups: tuple[tuple[int, int, Tensor], ...]  # (S, L, bias_S11L) a group; the bias is -inf on padding, else 0
    num_slots: int  # P

    @staticmethod
    def of(lengths: tuple[int, ...], device: torch.device) -> Layout:
        """The layout of sequences of these lengths (tokens, in the batch's order); computed on the host, without waiting."""
        length_S = torch.tensor(lengths)
        first_slot_S = torch.empty_like(length_S)
        groups, num_slots = [], 0
        # below four sequences a group, more groups cost more in calls than they save in padding
        for rows in torch.argsort(length_S, stable=True).tensor_split(min(4, max(1, len(lengths) // 4))):
            longest = int(length_S[rows[-1]])
            first_slot_S[rows] = num_slots + longest * torch.arange(len(rows))
            padding_SL = torch.arange(longest) >= length_S[rows, None]
            bias_SL = torch.zeros(padding_SL.shape).masked_fill(padding_SL, -math.inf)
            groups.append((len(rows), longest, bias_SL[:, None, None, :].to(device)))
            num_slots += len(rows) * longest
        start_S = length_S.cumsum(0) - length_S
        slot_N = torch.arange(int(length_S.sum())) + (first_slot_S - start_S).repeat_interleave(length_S)
        return Layout(slot_N.to(device), tuple(groups), num_slots)


def attend(qkv_N3D: Tensor, layout: Layout, num_heads: int, drop: Dropout) -> Tensor:
    """softmax(q k^T / sqrt(Dh)) v within each sequence and head, shape (N, D); `drop` acts on the probabilities.

    qkv_N3D holds q, k and v side by side, (N, 3D). The softmax is never below float32.
    The one place that knows how attention is computed: a kernel for variable lengths would take this function's place.
    """
    padded_P3D = qkv_N3D.new_zeros(layout.num_slots, qkv_N3D.shape[1]).index_copy(0, layout.slot_N, qkv_N3D)
    contexts, first = [], 0
    for num_sequences, longest, bias_S11L in layout.groups:
        group = padded_P3D[first : first + num_sequences * longest].view(num_sequences, longest, 3, num_heads, -1)
        q_SHLDh, k_SHLDh, v_SHLDh = group.permute(2, 0, 3, 1, 4)
        scores_SHLL = q_SHLDh @ k_SHLDh.transpose(-1, -2) / math.sqrt(q_SHLDh.shape[-1]) + bias_S11L
        precision = torch.promote_types(scores_SHLL.dtype, torch.float32)
        probabilities_SHLL = drop(scores_SHLL.softmax(-1, dtype=precision)).to(v_SHLDh.dtype)
        contexts.append((probabilities_SHLL @ v_SHLDh).transpose(1, 2).flatten(2).flatten(0, 1))  # (S * L, D)
        first += num_sequences * longest
    return torch.cat(contexts).index_select(0, layout.slot_N)


# ------------------------------------------------------------------------------------------------------------- encoder


class Layer(nn.Module):
    """One transformer block: attention, then the feed-forward part, each added to its input and normalised."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.num_heads = shape.num_attention_heads
        self.qkv = nn.Linear(shape.hidden_size, 3 * shape.hidden_size)
        self.attention_output = nn.Linear(shape.hidden_size, shape.hidden_size)
        self.attention_norm = nn.LayerNorm(shape.hidden_size, shape.layer_norm_eps)
        self.intermediate = nn.Linear(shape.hidden_size, shape.intermediate_size)
        self.output = nn.Linear(shape.intermediate_size, shape.hidden_size)
        self.output_norm = nn.LayerNorm(shape.hidden_size, shape.layer_norm_eps)

    def forward(self, hidden_ND: Tensor, layout: Layout, hidden_drop: Dropout, attention_drop: Dropout) -> Tensor:
        """hidden_ND of the next layer. Under autocast the residual stream, and so LayerNorm, stays float32."""
        context_ND = attend(self.qkv(hidden_ND), layout, self.num_heads, attention_drop)
        hidden_ND = self.attention_norm(hidden_ND + hidden_drop(self.attention_output(context_ND)))
        feed_forward_ND = self.output(F.gelu(self.intermediate(hidden_ND)))
        normalised_ND: Tensor = self.output_norm(hidden_ND + hidden_drop(feed_forward_ND))
        return normalised_ND


class Encoder(nn.Module):
    """BERT without a head. `notes` says, in sentences, what loading had to make up or leave out."""

    def __init__(self, shape: EncoderShape, hidden_dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.shape = shape
        self.notes: tuple[str, ...] = ()
        self.hidden_dropout, self.attention_dropout = hidden_dropout, attention_dropout
        rows = (shape.vocab_size, shape.max_position_embeddings, shape.type_vocab_size)
        # from a tensor, as nn.Embedding() would draw one, and on the meta device that alone takes a second of imports
        tables = [nn.Embedding.from_pretrained(torch.empty(n, shape.hidden_size), freeze=False) for n in rows]
        self.word_embeddings, self.position_embeddings, self.segment_embeddings = tables
        self.embedding_norm = nn.LayerNorm(shape.hidden_size, shape.layer_norm_eps)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.pooler = nn.Sequential(nn.Linear(shape.hidden_size, shape.hidden_size), nn.Tanh())  # (S, D) -> (S, D)

    def embed_words(self, batch: PackedBatch) -> Tensor:
        """The word-embedding rows of the batch, (N, D): what noise is added to."""
        rows_ND: Tensor = self.word_embeddings(batch.token_ids_N)
        return rows_ND

    def forward(self, batch: PackedBatch, masks: Masks | None = None, noise_ND: Tensor | None = None) -> Tensor:
        """The last hidden states, (N, D), in the order of the batch's tokens; the first of each is at `starts_S1[:-1]`.

        Without `masks` there is no dropout. `noise_ND` is added to the word-embedding rows, before position and segment.
        """
        longest, positions = max(batch.lengths), self.shape.max_position_embeddings
        assert longest <= positions, f"a sequence of {longest} tokens, but the encoder has {positions} positions"

        def hidden_drop(x: Tensor) -> Tensor:
            return x if masks is None else masks(x, self.hidden_dropout)

        def attention_drop(x: Tensor) -> Tensor:
            return x if masks is None else masks(x, self.attention_dropout)

        hidden_ND = self.embed_words(batch)
        if noise_ND is not None:
            hidden_ND = hidden_ND + noise_ND
        hidden_ND = hidden_ND + self.segment_embeddings(batch.segment_ids_N) + self.position_embeddings(batch.position_ids_N)
        hidden_ND = hidden_drop(self.embedding_norm(hidden_ND))
        layout = Layout.of(batch.lengths, hidden_ND.device)
        for layer in self.layers:
            hidden_ND = layer(hidden_ND, layout, hidden_drop, attention_drop)
        return hidden_ND

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Every parameter once, from the input to the output: "embeddings", "layer.0", ..., "pooler"."""
        embeddings = (self.word_embeddings, self.position_embeddings, self.segment_embeddings, self.embedding_norm)
        groups = {"embeddings": [parameter for module in embeddings for parameter in module.parameters()]}
        groups |= {f"layer.{i}": list(layer.parameters()) for i, layer in enumerate(self.layers)}
        return groups | {"pooler": list(self.pooler.parameters())}


# --------------------------------------------------------------------------------------------------------------- weights


def new_encoder(shape: EncoderShape, seed: int, hidden_dropout: float, attention_dropout: float) -> Encoder:
    """A fresh encoder: weights normal(0, initializer_range), biases 0, LayerNorm 1, as BERT was initialised."""
    return assemble(shape, {}, torch.Generator().manual_seed(seed), hidden_dropout, attention_dropout)


def assemble(
    shape: EncoderShape, weights: dict[str, Tensor], generator: torch.Generator, hidden_dropout: float, attention_dropout: float
) -> Encoder:
    """An encoder of `weights`; what they lack is drawn, in the order of the parameters."""
    with torch.device("meta"):  # torch's own initialisation would cost a second for BERT-base, and be thrown away
        encoder = Encoder(shape, hidden_dropout, attention_dropout)
    for name, like in encoder.state_dict().items():
        if name in weights:
            continue
        if name.endswith("bias"):
            weights[name] = torch.zeros(like.shape)
        elif "norm" in name:
            weights[name] = torch.ones(like.shape)
        else:
            weights[name] = torch.empty(like.shape).normal_(0, shape.initializer_range, generator=generator)
    encoder.load_state_dict(weights, assign=True)
    return encoder
