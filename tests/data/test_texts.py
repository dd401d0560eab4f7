"""Texts without labels: rows of tasks and of text files, what is held out, and packing as the tokenizer's own pairs have it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from minbert_core.config import TrialConfig
from minbert_core.data.tables import CorpusError
from minbert_core.data.texts import Texts, joined, pack_texts, read_text_file, texts_of
from minbert_core.data.tokens import pack
from minbert_core.inputs import Inputs, open_inputs


@pytest.fixture
def inputs(tiny: Callable[..., TrialConfig]) -> Inputs:
    return open_inputs(tiny())


def lists(rows: list[np.ndarray]) -> list[list[int]]:
    return [ids.tolist() for ids in rows]


@pytest.mark.parametrize("max_length", [12, 64])
@pytest.mark.parametrize("name", ["sst", "para"])
def test_a_task_s_texts_are_packed_as_its_examples_are(inputs: Inputs, name: str, max_length: int) -> None:
    split, rows = inputs.train[name], np.arange(20)
    expected = pack(split, rows, "cross", max_length, inputs.specials)
    found = pack_texts(texts_of(split, "cross"), rows, rows, max_length, inputs.specials)
    for field in ("token_ids_N", "position_ids_N", "segment_ids_N", "starts_S1", "example_N"):
        assert torch.equal(getattr(found, field), getattr(expected, field)), field
    assert found.lengths == expected.lengths


def test_sentences_and_pairs_stand_side_by_side(inputs: Inputs) -> None:
    texts = joined([texts_of(inputs.train["sst"], "cross"), texts_of(inputs.train["sts"], "cross")])
    rows = np.array([0, 120])
    batch = pack_texts(texts, rows, rows, 64, inputs.specials)
    assert batch.segment_ids_N[: batch.lengths[0]].sum() == 0
    assert batch.segment_ids_N[batch.lengths[0] :].sum() == len(texts.second[120]) + 1


def test_another_row_s_second_sentence_can_follow(inputs: Inputs) -> None:
    texts = texts_of(inputs.train["para"], "cross")
    batch = pack_texts(texts, np.array([3]), np.array([5]), 64, inputs.specials)
    cls, sep = inputs.specials
    assert batch.token_ids_N.tolist() == [cls, *texts.first[3].tolist(), sep, *texts.second[5].tolist(), sep]


def test_under_bi_each_sentence_is_a_row(inputs: Inputs) -> None:
    pairs, alone = (texts_of(inputs.train["para"], encoding) for encoding in ("cross", "bi"))
    assert lists(alone.first) == lists(pairs.first) + lists(pairs.second)
    assert not any(len(ids) for ids in alone.second)


def test_a_row_of_which_no_piece_is_left_is_left_out() -> None:
    row, nothing = np.array([7]), np.empty(0, np.int64)
    texts = Texts([row, nothing, row], [nothing] * 3)
    assert len(texts.only([0, 2])) == 2


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "reviews.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_one_in_twenty_lines_is_held_out_and_none_is_on_both_sides(tmp_path: Path, inputs: Inputs) -> None:
    path = written(tmp_path, "\n".join(f"the film {number}" for number in range(200)) + "\n\n")
    learned, held_out = read_text_file(path, inputs.tokenizer, in_pairs=False)
    assert (len(learned), len(held_out)) == (190, 10)
    sides = [{tuple(ids) for ids in lists(side.first)} for side in (learned, held_out)]
    assert not sides[0] & sides[1]
    again, _ = read_text_file(path, inputs.tokenizer, in_pairs=False)
    assert lists(again.first) == lists(learned.first)


def test_in_pairs_a_line_is_followed_by_the_next_of_its_document(tmp_path: Path, inputs: Inputs) -> None:
    path = written(tmp_path, "a\nb\nc\n\nd\n\n\ne\nf\n")
    sides = read_text_file(path, inputs.tokenizer, in_pairs=True)
    letters = {ids[0]: letter for letter, ids in zip("abcdef", inputs.tokenizer.encode(list("abcdef")), strict=True)}
    found = {letters[a[0]] + letters[b[0]] for side in sides for a, b in zip(side.first, side.second, strict=True)}
    assert found == {"ab", "bc", "ef"}


def test_a_carriage_return_inside_a_line_is_white_space_and_without_line_feeds_a_line_end(
    tmp_path: Path, inputs: Inputs
) -> None:
    plain = read_text_file(written(tmp_path, "a b\nc\n\nd\ne\n"), inputs.tokenizer, in_pairs=True)
    for text in ("a\rb\nc\n\r\nd\ne\r\n", "a b\rc\r\rd\re\r"):
        (tmp_path / "reviews.txt").write_bytes(text.encode())
        found = read_text_file(tmp_path / "reviews.txt", inputs.tokenizer, in_pairs=True)
        for side, expected in zip(found, plain, strict=True):
            assert (lists(side.first), lists(side.second)) == (lists(expected.first), lists(expected.second))


@pytest.mark.parametrize(
    ("text", "in_pairs", "sentence"),
    [
        (
            "alone\n",
            False,
            r"reviews\.txt must have at least two lines with text, one to train on and one to hold out\. Got 1\.",
        ),
        ("a\n\nb\n\nc\nd\n", True, r"at least two lines that follow each other in one document, .* Got 1\."),
        ("so\nso\nso\n", False, r"reviews\.txt: all rows are equal, so none can be held out\."),
    ],
)
def test_a_file_of_too_little_is_refused(tmp_path: Path, inputs: Inputs, text: str, in_pairs: bool, sentence: str) -> None:
    with pytest.raises(CorpusError, match=sentence):
        read_text_file(written(tmp_path, text), inputs.tokenizer, in_pairs)


def test_a_file_that_is_missing_or_no_text_is_told(tmp_path: Path, inputs: Inputs) -> None:
    with pytest.raises(CorpusError, match=r"The folder .* has no file gone\.txt\. `texts` of a stage names it\."):
        read_text_file(tmp_path / "gone.txt", inputs.tokenizer, False)
    (tmp_path / "latin.txt").write_bytes("tea\ncaf\xe9\n".encode("latin-1"))
    with pytest.raises(CorpusError, match=r"latin\.txt:2: the file must be UTF-8 text\. Got the byte 0xe9\."):
        read_text_file(tmp_path / "latin.txt", inputs.tokenizer, False)
