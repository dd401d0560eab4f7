"""The files of an encoder's folder in Hugging Face's layout: find those with the weights, and read text and JSON.

folder -> weight_files -> [model.safetensors], or the shards that model.safetensors.index.json names
path -> check_content, read_text, read_json -> the content, or a sentence that names the file and the remedy
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from minbert_core.files import check_is_file

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARDS = "model-*.safetensors"  # the names that transformers gives
LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # its first bytes (Git LFS specification, "The Pointer")


def weight_files(folder: Path) -> list[Path]:
    """List the files with a folder's weights: model.safetensors, else the shards of its index; none if it has neither.

    Raises ValueError: a damaged index, a missing shard.
    """
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if not (folder / INDEX).exists():
        return []
    shards = read_json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(_is_file_name(name) for name in shards.values()):
        raise ValueError(f"{folder / INDEX} must map each tensor to its file under `weight_map`. Copy or download it again.")
    files = [folder / name for name in sorted(set(shards.values()))]
    if missing := [file.name for file in files if not file.exists()]:
        raise ValueError(
            f"The encoder folder {folder} has no {', '.join(missing)}, which its {INDEX} names. Copy or download it again."
        )
    return files


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name


def check_content(path: Path) -> None:
    """Raise ValueError if a file is empty, a Git LFS pointer, or not a file."""
    check_is_file(path)
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
    if not start:
        raise ValueError(f"{path} is empty. Copy or download it again.")
    if start == LFS_POINTER:
        raise ValueError(
            f"{path} is a Git LFS pointer, not the file itself: it was cloned without Git LFS. "
            f"Install git-lfs, then run `git lfs pull` in {path.parent}."
        )


def read_text(path: Path) -> str:
    """Read a text file.  Raises ValueError: no content, not UTF-8."""
    check_content(path)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(f"{path} must be UTF-8 text. Got the byte 0x{byte:02x}. Copy or download it again.") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.  Raises ValueError: no content, or not an object."""
    text = read_text(path)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:  # the latter: lists nested too deep
        raise ValueError(f"{path} must be a JSON object. It is not: {error}. Copy or download it again.") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path} must be a JSON object. Got {text.strip()[:40]}.")
    return document
