"""Seeds: everything random is a pure function of a trial's seed, a purpose and counters."""

from __future__ import annotations

import hashlib


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed that is a pure function of `parts`: (trial seed, purpose, step …)."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
