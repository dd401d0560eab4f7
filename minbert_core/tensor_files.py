"""Files of tensors: read and write them so that a fault of the system is raised as an OSError that names the path.

safetensors itself calls an unreadable file missing and raises SafetensorError for a full disk; torch raises RuntimeError.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from minbert_core.encoder_files import check_content
from minbert_core.files import replaced

T = TypeVar("T")


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, on the CPU.  Raises ValueError: a damaged file; OSError: an unreadable file."""
    return _read(path, load_file)


def load_shapes(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Read the shape and type of each tensor of a safetensors file, but not its content.  Raises as `load_tensors` does."""
    return _read(path, _shapes_in)


def load_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file.  Raises as `load_tensors` does."""
    return _read(path, _metadata_in)


def _metadata_in(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def _shapes_in(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  not a dict
        return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}


def _read(path: Path, read: Callable[[Path], T]) -> T:
    check_content(path)  # opens the file first, so that a fault of the system is raised here and not by safetensors
    try:
        return read(path)
    except SafetensorError as error:
        reason = str(error).rstrip(".")
        raise ValueError(f"Cannot read {path}: {reason}. It may be truncated. Copy it again.") from None


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file with the usual permissions; safetensors writes for the owner only.  Raises OSError."""
    try:
        path.touch()  # with the permissions that the user's umask grants
        mode = path.stat().st_mode
        save_file(tensors, path, metadata)
        path.chmod(mode)
    except SafetensorError as error:
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
        raise


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Write a file for `load_state`. It is replaced as a whole: a reader sees the old or the new file.  Raises OSError."""
    with replaced(path) as draft:
        try:
            with draft.open("wb") as file:
                torch.save(dict(state), file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            fault = error if isinstance(error, OSError) else error.__context__
            if isinstance(fault, OSError) and fault.errno is not None:
                raise OSError(fault.errno, fault.strerror, fault.filename or str(draft)) from None
            raise


def load_state(path: Path) -> dict[str, Any]:
    """Read a file of `save_state`, on the CPU.  Raises ValueError: an incomplete file; OSError: an unreadable file."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch raises a different type for every way a file can be broken
        raise ValueError(f"{path} is not a complete snapshot ({type(error).__name__}).") from error
    return state
