"""Files of tensors, read and written so that a fault of the system arrives as the OSError it is, with its path.

safetensors calls an unreadable file missing and a full disk an error of its own; torch reports a full disk as a lost position.
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
    """Read the tensors of a safetensors file, on the CPU.  Raises ValueError: a damaged file; OSError: an unreadable one."""
    return _read(path, load_file)


def load_shapes(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Read the shape and the type of each tensor of a safetensors file, not its content.  Raises as `load_tensors` does."""
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
    check_content(path)  # opens it, so that the system's fault is not safetensors'
    try:
        return read(path)
    except SafetensorError as error:
        reason = str(error).rstrip(".")
        raise ValueError(f"Cannot read {path}: {reason}; it may be truncated, copy it again.") from None


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file with the usual permissions; safetensors writes for the owner only.  Raises OSError."""
    try:
        path.touch()  # with the mode that the user's umask asks for
        mode = path.stat().st_mode
        save_file(tensors, path, metadata)
        path.chmod(mode)
    except SafetensorError as error:
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
        raise


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Write what `load_state` reads, by way of a draft: a reader sees the old file or the new one whole.  Raises OSError."""
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
    """What `save_state` wrote, on the CPU.  Raises ValueError where the file is not whole, OSError where the system refuses."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch raises a different type for every way a file can be broken
        raise ValueError(f"{path} is no whole snapshot ({type(error).__name__}).") from error
    return state
