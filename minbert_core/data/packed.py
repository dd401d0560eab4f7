"""A packed batch: the tokens of all its sequences, one after another, without padding; and what attention needs of it.

    tokens.pack -> PackedBatch per task -> join -> PackedBatch of a pass -> .reading(spans), .to(device) -> the encoder

Everything here is computed on the host, once per batch. It goes to a GPU in one copy, and all passes over the batch share it.

Legend: B examples, S sequences, N packed tokens, L tokens of the longest sequence of a group, P slots of the padded buffer
inside attention, R tokens that attend: all N, or in the last layer those whose hidden states are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Integers = NDArray[np.int64]
ALIGNMENT = 16  # bytes: no element of a tensor is larger
TOKENS = 32  # the number of tokens of a pass is rounded up to a multiple of it, for oneDNN; 2 % of three batches of 8


class Grid(NamedTuple):
    """How the sequences of a pass are padded inside attention: groups of similar length, at most, and what divides a length."""

    groups: int
    multiple: int


EXACT = Grid(4, 1)
ONEDNN = Grid(4, 4)  # it keeps a compiled product for each shape that it has seen, about a megabyte each
KERNEL = Grid(1, 8)  # of a GPU: one call. torch would copy a mask whose rows are not a multiple of 16 bytes in every layer


def grid_for(device: torch.device, in_bfloat16: bool = False) -> Grid:
    """Return how sequences are padded on a device: on the CPU it depends on the route of its products (machine.prepare).

    in_bfloat16: the products are bfloat16, which takes the route of oneDNN in any case.
    """
    if device.type != "cpu":
        return KERNEL
    return EXACT if torch.get_float32_matmul_precision() == "highest" and not in_bfloat16 else ONEDNN


# ------------------------------------------------------------------------------------------------------------ attention


@dataclass(frozen=True, eq=False)
class Layout:
    """The slots of rows inside attention, which needs sequences of equal length; the same in every layer of a pass.

    The sequences, sorted by length, form a few groups. Each is padded to its own longest sequence: P slots in all.
    """

    slot_N: Tensor  # the slot of each row
    groups: tuple[tuple[int, int, Tensor], ...]  # (S, L, bias_S11L) per group; the bias is -inf on padding, else 0
    num_slots: int  # P
    is_packed: bool  # the slots are in packed order, as for a single sentence, so that nothing is copied

    @staticmethod
    def of(lengths: Sequence[int], grid: Grid = EXACT) -> Layout:
        """Compute the layout of sequences with these lengths (tokens, in the batch's order)."""
        length_S = np.asarray(lengths)
        return _layout(length_S, _by_length(length_S, np.arange(len(length_S)), grid), grid)

    def pad(self, x_ND: Tensor) -> Tensor:
        """Put the rows of `x_ND` into their slots, (P, D); padding is zero."""
        if self.is_packed:
            return x_ND
        return x_ND.new_zeros(self.num_slots, x_ND.shape[1]).index_copy_(0, self.slot_N, x_ND)


def _by_length(length_S: Integers, rows: Integers, grid: Grid) -> list[Integers]:
    """Group sequences of similar length, in the order of their lengths."""
    order = rows[np.argsort(length_S[rows], kind="stable")]
    # with fewer than four sequences per group, the calls cost more than the padding that they avoid
    return np.array_split(order, min(grid.groups, max(1, len(order) // 4)))


def _layout(count_S: Integers, members: list[Integers], grid: Grid) -> Layout:
    """Compute the layout of `count_S` rows per sequence, given the sequences of each group."""
    first_slot_S, groups, num_slots = np.empty_like(count_S), [], 0
    for rows in members:
        longest = int(count_S[rows].max())
        if longest > 1:
            longest = -(-longest // grid.multiple) * grid.multiple
        first_slot_S[rows] = num_slots + longest * np.arange(len(rows))
        bias_SL = np.where(np.arange(longest) >= count_S[rows, None], np.float32(-math.inf), np.float32(0))
        groups.append((len(rows), longest, torch.from_numpy(bias_SL[:, None, None, :])))
        num_slots += len(rows) * longest
    start_S = np.cumsum(count_S) - count_S
    slot_N = np.arange(count_S.sum()) + np.repeat(first_slot_S - start_S, count_S)
    return Layout(torch.from_numpy(slot_N), tuple(groups), num_slots, len(count_S) == 1 and num_slots == count_S[0])


@dataclass(frozen=True, eq=False)
class Query:
    """The R tokens that attend, and the N tokens that they attend to, within their sequences."""

    layout: Layout  # of the R tokens
    keys_layout: Layout  # of the N tokens, in the same groups
    rows_R: Tensor | None = None  # the R tokens' rows among the N; None if they are the same tokens

    @staticmethod
    def of_all(layout: Layout) -> Query:
        """Let every token attend."""
        return Query(layout, layout)

    def select(self, x_ND: Tensor) -> Tensor:
        """Select the rows of the tokens that attend, (R, D)."""
        return x_ND if self.rows_R is None else x_ND.index_select(0, self.rows_R)


# -------------------------------------------------------------------------------------------------------------- reading


class Span(NamedTuple):
    """Consecutive sequences of a batch, and whether only the hidden states of their first tokens, [CLS], are read."""

    num_sequences: int
    only_first: bool


@dataclass(frozen=True, eq=False)
class Reading:
    """How a batch goes through the encoder: its attention, and the R tokens whose last hidden states are computed."""

    of_all: Query  # of every layer but the last
    of_last: Query
    rows: tuple[int, ...]  # how many of the R tokens belong to each span
    starts_S1: tuple[Tensor, ...]  # per span: the first of each sequence's rows among the span's, then their number

    @staticmethod
    def of(lengths: Sequence[int], spans: Sequence[Span], grid: Grid = EXACT) -> Reading:
        """Compute the reading of sequences with these lengths."""
        length_S, of_all = np.asarray(lengths), Query.of_all(Layout.of(lengths, grid))
        first_S = np.repeat([span.only_first for span in spans], [span.num_sequences for span in spans])
        count_S = np.where(first_S, 1, length_S)
        ends = np.cumsum([span.num_sequences for span in spans])[:-1]
        starts = [np.concatenate([[0], np.cumsum(counts)]) for counts in np.split(count_S, ends)]
        of_last = _query(length_S, count_S, first_S, grid) if first_S.any() else of_all
        return Reading(of_all, of_last, tuple(int(start[-1]) for start in starts), tuple(map(torch.from_numpy, starts)))


def _query(length_S: Integers, count_S: Integers, first_S: NDArray[np.bool_], grid: Grid) -> Query:
    """Let the first `count_S` tokens of each sequence attend; no group has sequences of which one and of which all do."""
    kinds = [np.flatnonzero(first_S), np.flatnonzero(~first_S)]
    members = [group for rows in kinds if len(rows) for group in _by_length(length_S, rows, grid)]
    start_S = np.cumsum(length_S) - length_S
    row_R = np.arange(count_S.sum()) + np.repeat(start_S - (np.cumsum(count_S) - count_S), count_S)
    return Query(_layout(count_S, members, grid), _layout(length_S, members, grid), torch.from_numpy(row_R))


# -------------------------------------------------------------------------------------------------------------- a batch


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """B examples as S concatenated sequences: N tokens, without padding.

    bi: S = 2B, first the first sentences of all examples, then the second ones, all with segment 0. Otherwise S = B.
    """

    token_ids_N: Tensor  # int64
    position_ids_N: Tensor  # int64, from 0 in each sequence
    segment_ids_N: Tensor  # int64, 1 on the second sentence of a cross pair and its [SEP]
    starts_S1: Tensor  # int64, (S + 1,), first 0, last N
    lengths: tuple[int, ...]  # tokens of each of the S sequences, on the host
    example_N: Tensor  # int64, the example (0 to B - 1) of each token
    labels_B: Tensor  # float32; zeros if the split has no labels
    num_examples: int  # B
    num_padding: int = 0  # tokens after the last sequence, among the N, that belong to none; attention sees them as one more
    readings: dict[tuple[Span, ...], Reading] = field(default_factory=dict, repr=False)  # those that were asked for

    @property
    def device(self) -> torch.device:
        return self.token_ids_N.device

    def reading(self, spans: tuple[Span, ...]) -> Reading:
        """Return how the batch is read. Computed at the first call, unless `prepared` has done so."""
        if spans not in self.readings:
            (self.readings[spans],) = moved([self._reading(spans, grid_for(self.device))], self.device)
        return self.readings[spans]

    def prepared(self, spans: tuple[Span, ...], device: torch.device, in_bfloat16: bool = False) -> PackedBatch:
        """Return the batch on a device, together with how it is read there."""
        return self.laid_out(spans, device, in_bfloat16).to(device)

    def laid_out(self, spans: tuple[Span, ...], device: torch.device, in_bfloat16: bool = False) -> PackedBatch:
        """Return the batch, still on the host, with how it is read on a device, its number of tokens rounded up for oneDNN."""
        grid = grid_for(device, in_bfloat16)
        batch = self._rounded() if grid == ONEDNN else self
        return replace(batch, readings={spans: batch._reading(spans, grid)})

    def _reading(self, spans: tuple[Span, ...], grid: Grid) -> Reading:
        """Compute how the batch is read. Padding is read last: its first token, or all of it where all tokens are."""
        if not self.num_padding:
            return Reading.of(self.lengths, spans, grid)
        padding = Span(1, all(span.only_first for span in spans))
        return Reading.of((*self.lengths, self.num_padding), (*spans, padding), grid)

    def _rounded(self) -> PackedBatch:
        """Add padding, always some, so that the number of tokens is a multiple of TOKENS. Nothing reads it."""
        number = TOKENS - len(self.token_ids_N) % TOKENS
        zeros = torch.zeros(number, dtype=torch.int64)
        return replace(
            self,
            token_ids_N=torch.cat([self.token_ids_N, self.token_ids_N[:1].expand(number)]),
            position_ids_N=torch.cat([self.position_ids_N, zeros]),
            segment_ids_N=torch.cat([self.segment_ids_N, zeros]),
            example_N=torch.cat([self.example_N, zeros]),
            num_padding=number,
        )

    def to(self, device: torch.device | str) -> PackedBatch:
        """Return the batch on a device, with the readings that it has; the host does not wait for the copy."""
        batch: PackedBatch
        (batch,) = moved([self], torch.device(device))
        return batch


def join(batches: Sequence[PackedBatch]) -> PackedBatch:
    """Join batches on the host into one: the sequences, examples and labels of the first, then those of the second, ..."""
    if len(batches) == 1:
        return batches[0]
    lengths = tuple(length for batch in batches for length in batch.lengths)
    ends = list(accumulate(batch.num_examples for batch in batches))
    firsts = zip(batches, [0, *ends[:-1]], strict=True)
    return PackedBatch(
        token_ids_N=torch.cat([batch.token_ids_N for batch in batches]),
        position_ids_N=torch.cat([batch.position_ids_N for batch in batches]),
        segment_ids_N=torch.cat([batch.segment_ids_N for batch in batches]),
        starts_S1=torch.tensor([0, *accumulate(lengths)]),
        lengths=lengths,
        example_N=torch.cat([batch.example_N + first for batch, first in firsts]),
        labels_B=torch.cat([batch.labels_B for batch in batches]),
        num_examples=ends[-1],
    )


# --------------------------------------------------------------------------------------------------------------- copies


def moved(values: Sequence[Any], device: torch.device) -> list[Any]:
    """Return `values` (dataclasses, tuples, dictionaries) with their tensors on `device`: one copy, from pinned memory."""
    tensors: dict[int, Tensor] = {}
    _mapped(values, lambda tensor: tensors.setdefault(id(tensor), tensor))
    if all(tensor.device == device for tensor in tensors.values()):
        return list(values)
    copies = dict(zip(tensors, copied(list(tensors.values()), device), strict=True))
    return list(_mapped(tuple(values), lambda tensor: copies[id(tensor)]))


def copied(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """Copy tensors of any types in one buffer of bytes, each at a multiple of ALIGNMENT."""
    ends = list(accumulate(-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors))
    buffer = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
    starts = [0, *ends[:-1]]
    for tensor, start in zip(tensors, starts, strict=True):
        buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
    there = buffer.to(device, non_blocking=True)
    places = zip(tensors, starts, strict=True)
    return [there[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape) for tensor, start in places]


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return `value` with `change` applied to its tensors, at any depth."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)(_mapped(item, change) for item in value)
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{part.name: _mapped(getattr(value, part.name), change) for part in fields(value)})
    return value
