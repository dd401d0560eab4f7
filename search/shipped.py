"""The spaces that are shipped with the project: spaces/ in a checkout; in an installation, the copy next to this file."""

from __future__ import annotations

from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[1] / "spaces"
SPACES = _CHECKOUT if _CHECKOUT.is_dir() else Path(__file__).resolve().parent / "spaces"
PAPERS = SPACES / "papers"
SCHEMA = SPACES / "schema.json"
