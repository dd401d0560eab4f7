"""Texts without labels for further pretraining: rows made from the sentences of tasks and the lines of text files.

    a task's split, a text file -> Texts to train on, Texts held out -> joined -> pack_texts -> PackedBatch

A row has one or two sentences. 5 % of a text file are held out, and the dev split of a task. No test split is opened here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import torch

from minbert_core.data.corpus import lowest_hashes
from minbert_core.data.packed import PackedBatch
from minbert_core.data.tables import CorpusError, text_of
from minbert_core.data.tokens import Encoding, Integers, TokenisedTexts, Tokenizer, longest_first

HELD_OUT = 0.05  # share of a text file's rows: those whose texts have the lowest hashes, for every seed
REMEDY = "`texts` of a stage names it. A relative file name is looked up in the folder `data` (`--data DIR`)."
NOTHING: Integers = np.empty(0, np.int64)  # in place of a second sentence


@dataclass(frozen=True)
class Texts:
    """Rows of word pieces without special tokens; in a row with one sentence, the second is empty."""

    first: list[Integers]
    second: list[Integers]

    def __len__(self) -> int:
        return len(self.first)

    def only(self, rows: Sequence[int] | Integers) -> Texts:
        """Select `rows`, in this order."""
        return Texts([self.first[row] for row in rows], [self.second[row] for row in rows])


def joined(parts: Sequence[Texts]) -> Texts:
    """Concatenate the rows of all parts."""
    return Texts([row for part in parts for row in part.first], [row for part in parts for row in part.second])


def texts_of(split: TokenisedTexts, encoding: Encoding) -> Texts:
    """Return a task's rows without the empty ones. With `bi`, each sentence of a pair is a separate row."""
    first, *rest = split.sentences()
    if encoding == "bi":
        first, rest = [*first, *chain.from_iterable(rest)], []
    second = rest[0] if rest else [NOTHING] * len(first)
    kept = [row for row, ids in enumerate(first) if len(ids)]
    return Texts(first, second).only(kept)


def read_text_file(path: Path, tokenizer: Tokenizer, in_pairs: bool) -> tuple[Texts, Texts]:
    """Read a text file; return the rows to train on and the rows held out.

    in_pairs: a row is a line and the next line of its document; otherwise a row is one line. Empty lines separate documents. A
    line of a held-out pair can also be in a pair to train on, at the other position.
    Raises CorpusError: no such file, not UTF-8, too few rows to hold any out.
    """
    lines = [line.strip() for line in text_of(path, REMEDY).split("\n")]
    rows = [(line, "") for line in lines if line]
    if in_pairs:
        rows = [(line, after) for line, after in pairwise(lines) if line and after]
    if len(rows) < 2:
        what = "lines that follow each other in one document" if in_pairs else "lines with text"
        raise CorpusError(f"{path.name} must have at least two {what}, one to train on and one to hold out. Got {len(rows)}.")
    first, second = ([np.array(ids, np.int64) for ids in tokenizer.encode(list(column))] for column in zip(*rows, strict=True))
    is_held_out = lowest_hashes(["\n".join(row) for row in rows], HELD_OUT)
    trained, held_out = (
        [row for row, is_out in enumerate(is_held_out) if is_out == wanted and len(first[row])] for wanted in (False, True)
    )
    if not trained or not held_out:
        raise CorpusError(f"{path.name}: all rows are equal, so none can be held out.")
    return Texts(first, second).only(trained), Texts(first, second).only(held_out)


def pack_texts(texts: Texts, rows: Integers, seconds: Integers, max_length: int, specials: tuple[int, int]) -> PackedBatch:
    """Pack the first sentences of `rows` with the second sentences of the rows `seconds`.

    Single sentences and pairs can be in the same batch; each is packed as `tokens.pack` packs it, pairs in the cross encoding.
    """
    cls_id, sep_id = specials
    first, second = [texts.first[row] for row in rows], [texts.second[row] for row in seconds]
    has_second = np.array([len(ids) > 0 for ids in second])
    before = np.array([len(ids) for ids in first]), np.array([len(ids) for ids in second])
    first_counts, second_counts = longest_first(*before, max_length - 2 - has_second)
    pieces, segments = [], []
    for a, b, num_a, num_b in zip(first, second, first_counts.tolist(), second_counts.tolist(), strict=True):
        tail = [b[:num_b], [sep_id]] if len(b) else []
        pieces.append(np.concatenate([[cls_id], a[:num_a], [sep_id], *tail]))
        segments.append(np.arange(len(pieces[-1])) > num_a + 1)
    lengths = np.array([len(ids) for ids in pieces])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return PackedBatch(
        token_ids_N=torch.from_numpy(np.concatenate(pieces)),
        position_ids_N=torch.from_numpy(np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)),
        segment_ids_N=torch.from_numpy(np.concatenate(segments).astype(np.int64)),
        starts_S1=torch.from_numpy(starts),
        lengths=tuple(lengths.tolist()),
        example_N=torch.from_numpy(np.repeat(np.arange(len(rows)), lengths)),
        labels_B=torch.zeros(len(rows)),
        num_examples=len(rows),
    )
