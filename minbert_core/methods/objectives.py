"""Objectives of further pretraining on texts without labels: masked words and next sentences, for the stages mlm and nsp.

    rows of texts -> follow: pick second sentences -> packed tokens -> ask: positions to predict, and their answers
    hidden states at these positions -> the objective's head -> logits -> cross entropy

Both classify single tokens: masked words over the vocabulary, [CLS] as next or not. The only source of randomness is the
generator that is passed in. minbert_core/train/pretraining.py reads the texts and trains the encoder.

Legend: B rows of a batch, N packed tokens, M tokens read, U units that are masked as one, D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from minbert_core.encoder import Encoder, EncoderShape, make_linear

Integers = NDArray[np.int64]
MASKED, REPLACED = 0.8, 0.1  # shares of the chosen tokens; the rest is unchanged: Devlin et al. 2019, section 3.1


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The parts of a tokenizer that masking needs. Special tokens are never masked or sampled."""

    mask_id: int
    ordinary_ids: Integers  # all tokens that are not special
    is_special_V: NDArray[np.bool_]
    continues_V: NDArray[np.bool_]  # `##` pieces, which belong to the word before them


def masked_units(
    token_ids_N: Integers, vocabulary: Vocabulary, share: float, whole_word: bool, random: np.random.Generator
) -> Integers:
    """Choose the positions to predict, ascending, (M,): each unit with probability `share`, and at least one unit.

    A unit is a token, or with `whole_word` a word: a piece and the `##` pieces that follow it.
    Departure from Devlin et al. 2019: units are drawn independently; theirs are a fixed number of tokens per sequence.
    """
    is_ordinary_N = ~vocabulary.is_special_V[token_ids_N]
    begins_N = is_ordinary_N.copy()
    if whole_word:
        begins_N[1:] &= ~(vocabulary.continues_V[token_ids_N[1:]] & is_ordinary_N[:-1])
    draws_U = random.random(np.count_nonzero(begins_N))
    if not len(draws_U):
        return np.empty(0, np.int64)
    is_chosen_U = draws_U <= max(share, draws_U.min())
    unit_N = np.maximum(np.cumsum(begins_N) - 1, 0)
    return np.flatnonzero(is_ordinary_N & is_chosen_U[unit_N])


def masked(token_ids_N: Integers, at_M: Integers, vocabulary: Vocabulary, random: np.random.Generator) -> Integers:
    """Hide the tokens at `at_M`: 80 % become [MASK], 10 % a random ordinary piece, 10 % stay; shape (N,)."""
    fate_M, drawn_M = random.random(len(at_M)), random.choice(vocabulary.ordinary_ids, len(at_M))
    hidden_N = token_ids_N.copy()
    hidden_N[at_M] = np.select([fate_M < MASKED, fate_M < MASKED + REPLACED], [vocabulary.mask_id, drawn_M], token_ids_N[at_M])
    return hidden_N


class WordHead(nn.Module):
    """BERT's head over masked words: dense, GELU, LayerNorm, and a last layer of word embeddings with a bias per word."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.dense = make_linear(shape.hidden_size, shape.hidden_size)
        self.norm = nn.LayerNorm(shape.hidden_size, shape.layer_norm_eps)
        self.bias = nn.Parameter(make_linear(1, shape.vocab_size).bias.detach())

    def forward(self, hidden_MD: Tensor, encoder: Encoder) -> Tensor:
        return F.linear(self.norm(F.gelu(self.dense(hidden_MD))), encoder.word_embeddings.weight, self.bias)  # (M, V)


class NextHead(nn.Module):
    """BERT's head over pairs: the pooler, which is the encoder's own, and a layer of two classes: next, not next."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.last = make_linear(shape.hidden_size, 2)

    def forward(self, hidden_MD: Tensor, encoder: Encoder) -> Tensor:
        logits_M2: Tensor = self.last(encoder.pooler(hidden_MD))
        return logits_M2


def own_or_other(rows_B: Integers, num_rows: int, random: np.random.Generator) -> Integers:
    """Return each row itself half the time, otherwise one of the others with equal probability; shape (B,)."""
    others_B = (rows_B + random.integers(1, max(2, num_rows), len(rows_B))) % num_rows
    return np.where(random.random(len(rows_B)) < 0.5, rows_B, others_B)
