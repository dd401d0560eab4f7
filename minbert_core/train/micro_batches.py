"""Steps that do not fit into memory: repeated in passes of half as many tokens, until they fit.

    fitted(attempt, limit): attempt(limit) -> out of memory -> release -> attempt(half) -> … -> (result, the limit that held)

A step is a pure function of its seed and number, and a failed attempt changes no state. So the repetition is the same step,
with the same effective batch. Without dropout its gradient is that of the whole batch, to rounding. With dropout each pass
draws its own masks: another sample of the same distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch

from minbert_core.data.packed import PackedBatch
from minbert_core.memory import DoesNotFitError, is_out_of_memory, reason_of, release

Result = TypeVar("Result")
Sizes = list[tuple[int, int]]  # (tokens, examples) of each pass


def sizes_of(parts: Iterable[PackedBatch]) -> Sizes:
    """Return the size of each pass."""
    return [(sum(packed.lengths), packed.num_examples) for packed in parts]


def fitted(
    attempt: Callable[[int | None, Sizes], Result], limit: int | None, device: torch.device, what: str
) -> tuple[Result, int | None]:
    """Return the result of `attempt(limit, sizes)`, and the limit that held: `limit`, or less if memory did not suffice.

    attempt: takes the most tokens of a pass (None: any number), and a list to which it adds the sizes of its passes before the
    first. A failed attempt must not have changed any state. what: the name of the step in messages, `step 120`.
    An attempt that fails before its first pass is repeated once as it was, with the memory that was freed.
    Raises DoesNotFitError if passes over single examples do not fit, or not even the batch.
    """
    was_repeated = False
    while True:
        sizes: Sizes = []
        try:
            return attempt(limit, sizes), limit
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = reason_of(error)
        release(device)
        if not sizes:
            if was_repeated:
                raise DoesNotFitError(f"{what} does not fit: no memory is left for its batch ({reason}).")
            was_repeated = True
            continue
        limit = _smaller(limit, sizes, what, reason)
        print(f"{what} did not fit into memory; from here on in passes of at most {limit:,} tokens ({reason})", flush=True)


def _smaller(limit: int | None, sizes: Sizes, what: str, reason: str) -> int:
    """Return half of the most tokens that a pass had, or of the limit if a single example exceeds it."""
    largest = max((tokens for tokens, _ in sizes), default=0)
    if all(examples == 1 for _, examples in sizes):
        raise DoesNotFitError(f"{what} does not fit, even with one example of {largest:,} tokens per pass ({reason}).")
    return max(1, min(largest, limit or largest) // 2)
