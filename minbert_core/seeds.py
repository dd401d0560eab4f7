"""Seeds: all randomness is a pure function of a trial's seed, a purpose and counters."""

from __future__ import annotations

import hashlib


def seed_of(*parts: int | str) -> int:
    """Hash `parts` (trial seed, purpose, step …) to a 63-bit seed."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
