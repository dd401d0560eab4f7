"""minBERT: the BERT encoder on packed (unpadded) sequences.

A batch is the tokens of all its sequences, one sequence after another, without padding. `data.tokens.pack` builds it,
`model.py` puts features and heads on the hidden states, `checkpoints.py` reads and writes encoders in Hugging Face's layout.
Linear layers, LayerNorm and GELU see only real tokens; only `attend` pads.
`nn.Module`'s train / eval switch has no effect: a caller that wants dropout passes `Masks`.

Legend: N packed tokens, S sequences, L tokens of the longest sequence in a group, D hidden size, H attention heads, Dh = D / H,
P slots of the padded buffer inside attention, R tokens that attend (N, or S if only [CLS] is read), Q of them per sequence.
Source: Devlin et al. 2019 (arXiv 1810.04805); post-LayerNorm blocks and exact (erf) GELU, as in the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minbert_core.data.packed import PackedBatch, Span
from minbert_core.data.packed import Query as Query  # adapters, which know nothing of data, import it from here
from minbert_core.words import shown

INITIAL_DEVIATION = 0.02  # of fresh weights, N(0, 0.02²): BERT's own (Devlin et al. 2019, `initializer_range`)


def make_linear(inputs: int, outputs: int) -> nn.Linear:
    """Create a linear layer with BERT's initialisation: weights N(0, 0.02²) from torch's current generator, biases zero."""
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=INITIAL_DEVIATION)
    nn.init.zeros_(layer.bias)
    return layer


TOO_LARGE = 2**24  # for each size: with two of them, torch can still count the bytes of a matrix


@dataclass(frozen=True)
class EncoderShape:
    """The sizes that determine an encoder's weights. Names and defaults are those of Hugging Face's config.json."""

    vocab_size: int
    hidden_size: int  # D
    num_hidden_layers: int
    num_attention_heads: int  # H
    intermediate_size: int
    max_position_embeddings: int = 512  # the longest sequence, in tokens
    type_vocab_size: int = 2  # segments
    layer_norm_eps: float = 1e-12
    initializer_range: float = INITIAL_DEVIATION

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            whole = field.name not in ("layer_norm_eps", "initializer_range")
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not 0 < value < TOO_LARGE:
                law = f"must be a {'whole ' * whole}number > 0 and < {TOO_LARGE:,}"
                raise ValueError(f"`{field.name}` of an encoder {law}. Got {shown(value)}.")
        heads = self.num_attention_heads
        if self.hidden_size % heads:
            raise ValueError(f"`hidden_size` must be a multiple of `num_attention_heads`. Got {self.hidden_size} and {heads}.")


# the toy encoder; `dataclasses.replace` adapts it to the size of the vocabulary
TINY = EncoderShape(vocab_size=1000, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)


class Masks:
    """Dropout with its own generator: the same seed and the same sequence of shapes give the same masks.

    Each element uses 16 random bits, four elements share an int64: drawing costs a sixth of Bernoulli numbers, and p is
    rounded to a multiple of 1/65536. Kept elements are scaled by 1 / (1 - p) of that rounded p, so the mean is exact. A mask
    is float32, and so is its product with a bfloat16 input: rounded to bfloat16, the scale would be off by up to .4 %.
    Masks are stored, so that later passes over the same batch (`rewind`) neither draw them again nor hold a second copy.

    That holds on the CPU. Elsewhere dropout is torch's fused operator, or part of a kernel of attention. Both draw from the
    device's generator, which is seeded when masks are created and when they are rewound, so that a pass repeats its masks.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.seed, self.device = seed, torch.device(device)
        self._drawn: list[Tensor] = []
        self.rewind()
        if self.is_stored:
            self.generator = torch.Generator().manual_seed(seed)

    @property
    def is_stored(self) -> bool:
        return self.device.type == "cpu"

    def rewind(self) -> Masks:
        """Return these masks, to be replayed from the first one."""
        self._next = 0
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index or 0].manual_seed(self.seed)
        return self

    def __call__(self, x: Tensor, p: float) -> Tensor:
        """Zero each element of `x` with probability p in [0, 1); same shape, at least float32. p = 0 returns `x` undrawn."""
        if not 0 <= p < 1:
            raise ValueError(f"A dropout rate must be in [0, 1). Got {p}.")
        threshold = min(round(p * 65536), 65535)
        if threshold == 0:
            return x
        if not self.is_stored:
            return F.dropout(x, p)
        if self._next == len(self._drawn):
            self._drawn.append(self._draw(x, threshold))
        mask = self._drawn[self._next]
        self._next += 1
        assert mask.shape == x.shape, f"a mask of shape {tuple(mask.shape)} is replayed on {tuple(x.shape)}"
        return x * mask

    def _draw(self, x: Tensor, threshold: int) -> Tensor:
        # the range is explicit: a bare random_() leaves an int64's sign bit 0, so every fourth element would never drop
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device)
        bits = words.random_(-(2**63), None, generator=self.generator).view(torch.int16)[: x.numel()].view(x.shape)
        # compared as float32, which holds every int16: on a CPU five times as fast as through booleans
        return bits.float().ge_(threshold - 32768).mul_(65536 / (65536 - threshold))


# ----------------------------------------------------------------------------------------------------------- attention

ALIGNMENT = 8  # numbers: a head of another size (PALs have them) would get torch's slowest kernel on a GPU


@dataclass(frozen=True)
class Dropout:
    """Dropout at one rate, from `masks`; without them, none."""

    masks: Masks | None
    rate: float

    def __call__(self, x: Tensor) -> Tensor:
        return x if self.masks is None else self.masks(x, self.rate)


def attend(q_RD: Tensor, kv_N2D: Tensor, query: Query, num_heads: int, drop: Dropout) -> Tensor:
    """Compute softmax(q k^T / sqrt(Dh)) v within each sequence and head, shape (R, D).

    kv_N2D holds k and v side by side. `drop` acts on the probabilities. The softmax is at least in float32.
    Only this function knows how attention is computed: a kernel for variable lengths would replace it.
    """
    if q_RD.device.type == "cpu":
        return attend_by_products(q_RD, kv_N2D, query, num_heads, drop)
    return attend_in_one_kernel(q_RD, kv_N2D, query, num_heads, drop)


def attend_in_one_kernel(q_RD: Tensor, kv_N2D: Tensor, query: Query, num_heads: int, drop: Dropout) -> Tensor:
    """Attend with one call of torch's kernel per group of sequences, of which there is one on a GPU."""
    rate = 0.0 if drop.masks is None else drop.rate
    head_size = q_RD.shape[1] // num_heads
    padding = -head_size % ALIGNMENT
    contexts = []
    for q_SHQDh, k_SHLDh, v_SHLDh, bias_S11L in _grouped(q_RD, kv_N2D, query, num_heads):
        q, k, v = (F.pad(x, (0, padding)) if padding else x for x in (q_SHQDh, k_SHLDh, v_SHLDh))
        attended = F.scaled_dot_product_attention(q, k, v, bias_S11L.to(q.dtype), rate, scale=head_size**-0.5)
        context_SHQDh = attended[..., :head_size] if padding else attended
        contexts.append(context_SHQDh.transpose(1, 2).flatten(2).flatten(0, 1))  # (S * Q, D)
    return _packed(contexts, query)


def attend_by_products(q_RD: Tensor, kv_N2D: Tensor, query: Query, num_heads: int, drop: Dropout) -> Tensor:
    """Attend with two products per group: torch's kernel for the CPU has no dropout, and is slower next to oneDNN."""
    # products as small as these are faster in float32 than in bfloat16
    precision = torch.promote_types(q_RD.dtype, torch.float32)
    contexts = []
    for q_SHQDh, k_SHLDh, v_SHLDh, bias_S11L in _grouped(q_RD.to(precision), kv_N2D.to(precision), query, num_heads):
        scores_SHQL = torch.add(bias_S11L, q_SHQDh @ k_SHLDh.transpose(-1, -2), alpha=q_SHQDh.shape[-1] ** -0.5)
        contexts.append((drop(scores_SHQL.softmax(-1)) @ v_SHLDh).transpose(1, 2).flatten(2).flatten(0, 1))  # (S * Q, D)
    return _packed(contexts, query)


def _grouped(q_RD: Tensor, kv_N2D: Tensor, query: Query, num_heads: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yield (q_SHQDh, k_SHLDh, v_SHLDh, bias_S11L) of each group of sequences, padded."""
    groups, keys_groups = query.layout.groups, query.keys_layout.groups
    # split, not sliced: the gradients of slices are each as large as the whole
    q_groups = query.layout.pad(q_RD).split([num_sequences * longest for num_sequences, longest, _ in groups])
    kv_groups = query.keys_layout.pad(kv_N2D).split([num_sequences * longest for num_sequences, longest, _ in keys_groups])
    for q_D, kv_2D, (num_sequences, num_queries, _), (_, longest, bias_S11L) in zip(
        q_groups, kv_groups, groups, keys_groups, strict=True
    ):
        q_SHQDh = q_D.view(num_sequences, num_queries, num_heads, -1).transpose(1, 2)
        k_SHLDh, v_SHLDh = kv_2D.view(num_sequences, longest, 2, num_heads, -1).permute(2, 0, 3, 1, 4).unbind()
        yield q_SHQDh, k_SHLDh, v_SHLDh, bias_S11L


def _packed(contexts: list[Tensor], query: Query) -> Tensor:
    """Return the rows of the R tokens, (R, D), from the slots of all groups, (S * Q, D) each."""
    if query.layout.is_packed:
        return contexts[0]
    slots_PD = contexts[0] if len(contexts) == 1 else torch.cat(contexts)
    return slots_PD.index_select(0, query.layout.slot_N)


# ------------------------------------------------------------------------------------------------------------- encoder


class ParallelLayers(Protocol):
    """A task's own module parallel to layer `index`: from that layer's input, (N, D), it computes the term, (R, D), that the
    layer adds inside its last LayerNorm. Query and dropout of attention probabilities are those of the layer."""

    def __call__(self, index: int, hidden_ND: Tensor, query: Query, attention_drop: Dropout) -> Tensor: ...


class Layer(nn.Module):
    """One transformer block: attention, then the feed-forward part, each added to its input and normalised."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.num_heads = shape.num_attention_heads
        self.query = nn.Linear(shape.hidden_size, shape.hidden_size)
        self.key_value = nn.Linear(shape.hidden_size, 2 * shape.hidden_size)
        self.attention_output = nn.Linear(shape.hidden_size, shape.hidden_size)
        self.attention_norm = nn.LayerNorm(shape.hidden_size, shape.layer_norm_eps)
        self.intermediate = nn.Linear(shape.hidden_size, shape.intermediate_size)
        self.output = nn.Linear(shape.intermediate_size, shape.hidden_size)
        self.output_norm = nn.LayerNorm(shape.hidden_size, shape.layer_norm_eps)

    def forward(
        self,
        hidden_ND: Tensor,
        query: Query,
        hidden_drop: Dropout,
        attention_drop: Dropout,
        parallel: Callable[..., Tensor] | None = None,
    ) -> Tensor:
        """Compute the next hidden states of the tokens that attend, (R, D).

        Under autocast the residual stream, and so LayerNorm, stays float32. `parallel` has its layer index filled in.
        """
        hidden_RD = query.select(hidden_ND)
        q_RD, kv_N2D = self.query(hidden_RD), self.key_value(hidden_ND)
        with torch.autocast(q_RD.device.type, enabled=False):  # attention chooses its own precision
            context_RD = attend(q_RD, kv_N2D, query, self.num_heads, attention_drop)
        hidden_RD = self.attention_norm(hidden_RD + hidden_drop(self.attention_output(context_RD)))
        feed_forward_RD = hidden_drop(self.output(F.gelu(self.intermediate(hidden_RD))))
        if parallel is not None:
            feed_forward_RD = feed_forward_RD + parallel(hidden_ND, query, attention_drop)
        normalised_RD: Tensor = self.output_norm(hidden_RD + feed_forward_RD)
        return normalised_RD


@dataclass(frozen=True, eq=False)
class _Vocabulary:
    """All word embeddings before training, and the tokens whose rows are trained elsewhere. Immutable, so copies share it."""

    table_VD: Tensor
    trained_ids: Tensor

    def __deepcopy__(self, memo: object) -> _Vocabulary:
        return self


class Encoder(nn.Module):
    """BERT without a head. `notes` are sentences about weights that loading had to draw or ignore."""

    def __init__(self, shape: EncoderShape, hidden_dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.shape = shape
        self.notes: tuple[str, ...] = ()
        self.hidden_dropout, self.attention_dropout = hidden_dropout, attention_dropout
        self.word_embeddings = _table(shape.vocab_size, shape.hidden_size)
        self.position_embeddings = _table(shape.max_position_embeddings, shape.hidden_size)
        self.segment_embeddings = _table(shape.type_vocab_size, shape.hidden_size)
        self.row_of_token_V: Tensor | None
        self.register_buffer("row_of_token_V", None, persistent=False)  # if the vocabulary is cut to the trained words
        self._whole: _Vocabulary | None = None
        self.embedding_norm = nn.LayerNorm(shape.hidden_size, shape.layer_norm_eps)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.pooler = nn.Sequential(nn.Linear(shape.hidden_size, shape.hidden_size), nn.Tanh())  # (S, D) -> (S, D)

    def train_words(self, token_ids: Tensor) -> None:
        """Train only the word embeddings of these tokens (ascending); set the others aside unchanged.

        Half of MiniLM's weights are word embeddings, and a corpus uses a part of them. The unused ones would cost as much in
        every step. From now on no other token can be embedded; a saved model holds all of them.
        A last row of ones is trained for the others. It has no gradient, so it only decays, by the factor by which they would
        decay. `all_word_embeddings` multiplies them by it.
        """
        table_VD = self.word_embeddings.weight.detach()
        self._whole = _Vocabulary(table_VD, token_ids)
        row_of_token_V = torch.full((len(table_VD),), -1).index_copy_(0, token_ids, torch.arange(len(token_ids)))
        self.register_buffer("row_of_token_V", row_of_token_V, persistent=False)
        rows_WD = torch.cat([table_VD[token_ids], torch.ones(1, table_VD.shape[1])])
        self.word_embeddings = nn.Embedding.from_pretrained(rows_WD, freeze=False)

    def all_word_embeddings(self) -> Tensor:
        """Assemble the word embeddings of the whole vocabulary, (V, D); on the CPU if some were set aside."""
        rows_WD = self.word_embeddings.weight.detach()
        if self._whole is None:
            return rows_WD
        trained_WD, decay_1D = rows_WD.to("cpu").tensor_split([-1])
        return (self._whole.table_VD * decay_1D).index_copy(0, self._whole.trained_ids, trained_WD)

    def embed_words(self, batch: PackedBatch) -> Tensor:
        """Look up the word embeddings of the batch, (N, D), to which noise is added."""
        if self.row_of_token_V is None:
            rows_ND: Tensor = self.word_embeddings(batch.token_ids_N)
            return rows_ND
        rows_N = self.row_of_token_V.index_select(0, batch.token_ids_N)
        # a sparse gradient, added to a dense `.grad`: a batch uses a few hundred of tens of thousands of rows
        return F.embedding(rows_N, self.word_embeddings.weight, sparse=bool(self.sparsely_trained()))

    def sparsely_trained(self) -> list[nn.Parameter]:
        """Return the parameters whose gradient is sparse: they need a dense `.grad`, to which it is added."""
        # elsewhere than on a CPU the addition costs more than a dense gradient: assumed, not measured (2026-11)
        is_sparse = self.row_of_token_V is not None and self.row_of_token_V.device.type == "cpu"
        return list(self.word_embeddings.parameters()) if is_sparse else []

    def forward(
        self,
        batch: PackedBatch,
        masks: Masks | None = None,
        noise_ND: Tensor | None = None,
        parallel: ParallelLayers | None = None,
        spans: tuple[Span, ...] = (),
    ) -> Tensor:
        """Compute the last hidden states, (N, D), in the order of the batch's tokens; first tokens are at `starts_S1[:-1]`.

        spans: return only the tokens that these spans of sequences read, (R, D); the last layer computes no others. Empty: all.
        Without `masks` there is no dropout. `noise_ND` is added to the word embeddings, before position and segment.
        `parallel` is the task's module parallel to every layer.
        """
        longest, positions = max(batch.lengths), self.shape.max_position_embeddings
        assert longest <= positions, f"a sequence of {longest} tokens, but the encoder has {positions} positions"

        hidden_drop, attention_drop = Dropout(masks, self.hidden_dropout), Dropout(masks, self.attention_dropout)
        hidden_ND = self.embed_words(batch)
        if noise_ND is not None:
            hidden_ND = hidden_ND + noise_ND
        hidden_ND = hidden_ND + self.segment_embeddings(batch.segment_ids_N) + self.position_embeddings(batch.position_ids_N)
        hidden_ND = hidden_drop(self.embedding_norm(hidden_ND))
        reading = batch.reading(spans or (Span(len(batch.lengths), False),))
        for index, layer in enumerate(self.layers):
            query = reading.of_last if index == len(self.layers) - 1 else reading.of_all
            hidden_ND = layer(hidden_ND, query, hidden_drop, attention_drop, parallel and partial(parallel, index))
        return hidden_ND

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return every parameter once, from the input to the output: "embeddings", "layer.0", ..., "pooler"."""
        embeddings = (self.word_embeddings, self.position_embeddings, self.segment_embeddings, self.embedding_norm)
        groups = {"embeddings": [parameter for module in embeddings for parameter in module.parameters()]}
        groups |= {f"layer.{i}": list(layer.parameters()) for i, layer in enumerate(self.layers)}
        return groups | {"pooler": list(self.pooler.parameters())}


def _table(num_rows: int, hidden_size: int) -> nn.Embedding:
    # from a tensor: nn.Embedding() would draw one, which on the meta device takes a second of imports
    table: nn.Embedding = nn.Embedding.from_pretrained(torch.empty(num_rows, hidden_size), freeze=False)
    return table


# --------------------------------------------------------------------------------------------------------------- weights


def new_encoder(shape: EncoderShape, seed: int, hidden_dropout: float, attention_dropout: float) -> Encoder:
    """Create a fresh encoder with BERT's initialisation: weights normal(0, initializer_range), biases 0, LayerNorm 1."""
    return assemble(shape, {}, torch.Generator().manual_seed(seed), hidden_dropout, attention_dropout)


def assemble(
    shape: EncoderShape, weights: dict[str, Tensor], generator: torch.Generator, hidden_dropout: float, attention_dropout: float
) -> Encoder:
    """Build an encoder from `weights`; missing ones are drawn, in the order of the parameters."""
    with torch.device("meta"):  # torch's own initialisation takes a second for BERT-base, and would be discarded
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
