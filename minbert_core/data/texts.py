"""Texts without labels: the sentences of tasks and the lines of text files, as rows that further pretraining reads.

    a task's split, a text file -> Texts, one for learning and one held out -> joined -> pack_texts -> PackedBatch

A row has one sentence or two. Of a text file 5 % is held out; of a task the dev split is. No test split is opened here.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import torch

from minbert_core.data.tables import CorpusError, text_of
from minbert_core.data.tokens import Encoding, Integers, PackedBatch, TokenisedTexts, Tokenizer, longest_first

HELD_OUT = 0.05  # of a text file's rows: those whose texts hash lowest, whatever the seed
REMEDY = "`texts` of a stage names it. It is looked for in the folder `data` (`--data DIR`), unless its name is absolute."
NOTHING: Integers = np.empty(0, np.int64)  # the second sentence of a row that has none


@dataclass(frozen=True)
class Texts:
    """Rows of word pieces without special tokens; of a row of one sentence the second is empty."""

    first: list[Integers]
    second: list[Integers]

    def __len__(self) -> int:
        return len(self.first)

    def only(self, rows: Sequence[int] | Integers) -> Texts:
        """These rows alone, in this order."""
        return Texts([self.first[row] for row in rows], [self.second[row] for row in rows])


def joined(parts: Sequence[Texts]) -> Texts:
    """One after the other."""
    return Texts([row for part in parts for row in part.first], [row for part in parts for row in part.second])


def texts_of(split: TokenisedTexts, encoding: Encoding) -> Texts:
    """A task's rows; under `bi` each sentence of a pair is a row of its own. Without those of which no piece is left."""
    first, *rest = split.sentences()
    if encoding == "bi":
        first, rest = [*first, *chain.from_iterable(rest)], []
    second = rest[0] if rest else [NOTHING] * len(first)
    kept = [row for row, ids in enumerate(first) if len(ids)]
    return Texts(first, second).only(kept)


def read_text_file(path: Path, tokenizer: Tokenizer, in_pairs: bool) -> tuple[Texts, Texts]:
    """The lines of a text file, those to learn from and those held out; `in_pairs`: each with the next line of its document.

    An empty line parts documents. Held-out pairs may share a line with others, in another place.
    Raises CorpusError: no such file, no UTF-8, too few rows to hold any out.
    """
    lines = [line.strip() for line in text_of(path, REMEDY).split("\n")]
    rows = [(line, "") for line in lines if line]
    if in_pairs:
        rows = [(line, after) for line, after in pairwise(lines) if line and after]
    if len(rows) < 2:
        what = "lines that follow each other in one document" if in_pairs else "lines with text"
        raise CorpusError(f"{path.name} must have two {what} at least, to learn from one and hold one out. Got {len(rows)}.")
    first, second = ([np.array(ids, np.int64) for ids in tokenizer.encode(list(column))] for column in zip(*rows, strict=True))
    hashes = [hashlib.blake2b("\n".join(row).encode(), digest_size=8).digest() for row in rows]
    bound = sorted(hashes)[math.ceil(HELD_OUT * len(rows)) - 1]  # of the last row held out, and of its equals
    learned, held_out = (
        [row for row, value in enumerate(hashes) if (value <= bound) == is_held_out and len(first[row])]
        for is_held_out in (False, True)
    )
    if not learned or not held_out:
        raise CorpusError(f"{path.name}: all of its rows are alike, so that none can be held out.")
    return Texts(first, second).only(learned), Texts(first, second).only(held_out)


def pack_texts(texts: Texts, rows: Integers, seconds: Integers, max_length: int, specials: tuple[int, int]) -> PackedBatch:
    """The first sentences of `rows` with the second ones of the rows `seconds`, packed as `tokens.pack` packs single sentences
    and cross pairs; the two may stand side by side in one batch."""
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
