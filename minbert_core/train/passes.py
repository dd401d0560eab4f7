"""The passes of a step: which examples go through the encoder together.

    batches, one per task, in parts if memory asks for them -> passes_of -> Pass: the packed tokens of one or more parts

Tasks share a pass where nothing needs their gradients one by one: then a step is one pass forward and one backward, or a few if
the batches are cut. A loss that is defined over its whole batch, if that is cut, keeps its own passes: it needs them twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from minbert_core.data.packed import PackedBatch, join
from minbert_core.model import MultitaskBert

Batch = list[PackedBatch]  # of one task, whole or in parts, on the host


class Place(NamedTuple):
    """The place of a part's tokens in its batch: the batch's number of tokens, and the part's ranges (start, end) of them."""

    num_tokens: int
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Part:
    """One part of a task's batch in a step: all of it, or as much as one pass may hold."""

    task: str
    index: int
    count: int  # of all parts of the batch
    share: float  # of the batch's examples
    num_examples: int
    num_sequences: int
    place: Place


@dataclass(frozen=True)
class Pass:
    """The parts that go through the encoder together, of different tasks, and their tokens, on the device."""

    step: int
    parts: tuple[Part, ...]
    packed: PackedBatch

    @property
    def sequences(self) -> dict[str, int]:
        """The number of sequences of each task, in the order of the batch."""
        return {part.task: part.num_sequences for part in self.parts}


def parts_of(task: str, batch: Batch) -> list[Part]:
    """Number the parts of a task's batch, each with its share of the examples and its place."""
    total, places = sum(packed.num_examples for packed in batch), _places_of(batch)
    return [
        Part(task, i, len(batch), packed.num_examples / total, packed.num_examples, len(packed.lengths), places[i])
        for i, packed in enumerate(batch)
    ]


def _places_of(batch: Batch) -> list[Place]:
    """Find each part's tokens among those of the whole batch, in which all first sentences precede the second ones."""
    num_tokens = sum(sum(packed.lengths) for packed in batch)
    ranges: list[list[tuple[int, int]]] = [[] for _ in batch]
    end = 0
    for half in range(max(len(packed.lengths) // packed.num_examples for packed in batch)):
        for packed, of_part in zip(batch, ranges, strict=True):
            start, end = end, end + sum(packed.lengths[half * packed.num_examples :][: packed.num_examples])
            of_part.append((start, end))
    return [Place(num_tokens, tuple(of_part)) for of_part in ranges]


def passes_of(
    step: int,
    batches: dict[str, Batch],
    model: MultitaskBert,
    together: bool,
    limit: int | None = None,
    precision: str = "float32",
) -> list[Pass]:
    """Divide a step's batches into passes, in the order of the tasks, and copy them to the model's device.

    together: whether tasks may share a pass. It has at most `limit` tokens (None: any number), unless one part has more.
    precision: that of the matrix products.
    """
    groups: list[list[tuple[Part, PackedBatch]]] = []
    for task, batch in batches.items():
        for item in zip(parts_of(task, batch), batch, strict=True):
            if not (together and groups and _may_share([*groups[-1], item], model, limit)):
                groups.append([])
            groups[-1].append(item)
    return [_pass_of(step, group, model, precision) for group in groups]


def _may_share(group: list[tuple[Part, PackedBatch]], model: MultitaskBert, limit: int | None) -> bool:
    """Return whether parts may share a pass: of different tasks, of few tokens, not of a cut batch whose loss is no mean."""
    tasks = [part.task for part, _ in group]
    has_own = any(part.count > 1 and not model.plans[part.task].loss.is_mean for part, _ in group)
    num_tokens = sum(len(packed.token_ids_N) for _, packed in group)
    return len(set(tasks)) == len(tasks) and not has_own and (limit is None or num_tokens <= limit)


def _pass_of(step: int, group: list[tuple[Part, PackedBatch]], model: MultitaskBert, precision: str) -> Pass:
    """Join parts to a pass, and copy it to the model's device."""
    parts, batches = zip(*group, strict=True)
    joined, device = Pass(step, parts, join(batches)), next(model.parameters()).device
    packed = joined.packed.prepared(model.spans(joined.sequences), device, precision == "bfloat16")
    return replace(joined, packed=packed)
