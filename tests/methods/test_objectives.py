"""Masked words and next sentences: shares over many tokens, what is never touched, words as wholes, tied weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from minbert_core.encoder import EncoderShape, new_encoder
from minbert_core.methods.objectives import Vocabulary, WordHead, masked, masked_units, own_or_other

MASK, CLS, SEP = 4, 2, 3
WORDS = Vocabulary(MASK, np.arange(5, 100), np.arange(100) < 5, np.arange(100) >= 50)  # from 50 on `##` pieces


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    """20,000 tokens of sequences of ten between [CLS] and [SEP]; half of them `##` pieces."""
    rows = np.random.default_rng(0).integers(5, 100, (20_000 // 12, 10))
    return np.hstack([np.full((len(rows), 1), CLS), rows, np.full((len(rows), 1), SEP)]).ravel()


@pytest.mark.parametrize("whole_word", [False, True])
@pytest.mark.parametrize("share", [0.15, 0.4])
def test_so_many_of_the_real_tokens_are_chosen_and_no_special_one(tokens: np.ndarray, share: float, whole_word: bool) -> None:
    at_M = masked_units(tokens, WORDS, share, whole_word, random())
    num_real = np.count_nonzero(tokens >= 5)
    assert len(at_M) / num_real == pytest.approx(share, abs=0.01)
    assert tokens[at_M].min() >= 5
    assert np.all(np.diff(at_M) > 0)


def test_of_the_chosen_80_percent_are_hidden_10_drawn_and_10_kept_and_no_other_changes(tokens: np.ndarray) -> None:
    at_M = np.flatnonzero(tokens >= 5)
    asked_N = masked(tokens, at_M, WORDS, random())
    asked_M, was_M = asked_N[at_M], tokens[at_M]
    assert np.mean(asked_M == MASK) == pytest.approx(0.8, abs=0.01)
    assert np.mean(asked_M == was_M) == pytest.approx(0.1 + 0.1 / 95, abs=0.01)  # one drawn in 95 is what was there
    drawn = asked_M[(asked_M != MASK) & (asked_M != was_M)]
    assert set(drawn.tolist()) == set(range(5, 100))  # every ordinary piece, no special one
    rest = np.setdiff1d(np.arange(len(tokens)), at_M)
    assert np.array_equal(asked_N[rest], tokens[rest])


def test_the_pieces_of_a_word_are_chosen_together_and_a_word_ends_with_its_sequence() -> None:
    tokens = np.array([CLS, 10, 60, 61, 11, SEP, 62, 12, SEP])  # words: 10 ##60 ##61, 11, and ##62 of a cut sequence, 12
    words = [{1, 2, 3}, {4}, {6}, {7}]
    seen = set()
    for seed in range(200):
        chosen = set(masked_units(tokens, WORDS, 0.3, True, random(seed)).tolist())
        assert all(word <= chosen or not word & chosen for word in words)
        assert chosen <= set().union(*words)
        seen |= {frozenset(word) for word in words if word <= chosen}
    assert len(seen) == 4


def test_a_batch_of_few_tokens_asks_for_one_at_least_and_one_without_words_for_none() -> None:
    assert all(len(masked_units(np.array([CLS, 7, 8, SEP]), WORDS, 1e-6, False, random(seed))) == 1 for seed in range(20))
    assert len(masked_units(np.array([CLS, SEP]), WORDS, 0.15, True, random())) == 0


def test_half_the_rows_are_followed_by_another_never_by_themselves_in_disguise() -> None:
    rows = np.arange(5).repeat(4000)
    seconds = own_or_other(rows, 5, random())
    assert np.mean(seconds == rows) == pytest.approx(0.5, abs=0.02)
    others = np.bincount(seconds[(rows == 2) & (seconds != rows)], minlength=5)
    assert others[2] == 0
    assert others[[0, 1, 3, 4]] / others.sum() == pytest.approx([0.25] * 4, abs=0.04)


def test_a_word_is_told_by_the_word_embeddings_themselves() -> None:
    shape = EncoderShape(100, 8, 1, 2, 16)
    head, encoder = WordHead(shape), new_encoder(shape, 0, 0.0, 0.0)
    hidden_MD = torch.randn(3, 8)
    before_MV = head(hidden_MD, encoder)
    assert before_MV.shape == (3, 100)
    with torch.no_grad():
        encoder.word_embeddings.weight[7] *= 2
    assert torch.allclose(head(hidden_MD, encoder)[:, 7], 2 * before_MV[:, 7])
