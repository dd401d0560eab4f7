"""The spaces that are shipped with the project: spaces/ in a checkout; in an installation, the copy next to this file."""

from __future__ import annotations

from pathlib import Path

_INSTALLED = Path(__file__).resolve().parent / "spaces"  # pyproject.toml puts them there
SPACES = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).resolve().parents[1] / "spaces"
PAPERS = SPACES / "papers"
SCHEMA = SPACES / "schema.json"


def shipped(path: Path) -> Path:
    """Return the shipped space that `spaces/smart.yaml` means where there is no such file; any other path as it is."""
    installed = SPACES / path.relative_to("spaces") if path.parts[:1] == ("spaces",) else path
    return installed if installed.exists() and not path.exists() else path
