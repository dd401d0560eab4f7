"""Files of tensors: read and write them so that damage is noticed, and a fault of the system is an OSError with the path.

safetensors itself calls an unreadable file missing and raises SafetensorError for a full disk; torch raises RuntimeError.
Both read a file with a flipped bit as if it were whole. A safetensors file of ours therefore has a sha256 in its metadata. A
file that torch writes is a zip archive with a CRC-32 of each entry, which torch does not check; `load_state` does.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from minbert_core.encoder_files import check_content
from minbert_core.files import check_is_file, replaced

T = TypeVar("T")
CHECKSUM = "sha256"  # in the metadata of our safetensors files; those of others have none, and are not checked
NOTHING_LEFT = "DefaultCPUAllocator"  # in the RuntimeError that torch raises if the system gives it no memory


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, on the CPU, and verify its checksum if it has one.

    Raises ValueError: a damaged file; OSError: an unreadable file.
    """
    tensors, metadata = _read(path, _content_in)
    if CHECKSUM in metadata and metadata[CHECKSUM] != checksum(tensors, metadata):
        raise ValueError(f"{path} is damaged: its content does not match its checksum. Copy it again, or train it again.")
    return tensors


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the sha256 of names, types, shapes and bytes of tensors, and of the other metadata; 0.8 s per GB (2026-11)."""
    about = {name: [str(tensor.dtype), *tensor.shape] for name, tensor in sorted(tensors.items())}
    others = {name: value for name, value in metadata.items() if name != CHECKSUM}
    whole = hashlib.sha256(json.dumps([about, others], sort_keys=True).encode())
    for name in about:
        whole.update(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


def load_shapes(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Read the shape and type of each tensor of a safetensors file, but not its content.  Raises as `load_tensors` does."""
    return _read(path, _shapes_in)


def load_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file.  Raises as `load_tensors` does."""
    return _read(path, _metadata_in)


def _content_in(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    return load_file(path), _metadata_in(path)


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
    """Write a safetensors file with a checksum and the usual permissions; safetensors writes for the owner only.

    Raises OSError.
    """
    metadata = metadata or {}
    try:
        path.touch()  # with the permissions that the user's umask grants
        mode = path.stat().st_mode
        save_file(tensors, path, {**metadata, CHECKSUM: checksum(tensors, metadata)})
        _sort_metadata(path)
        path.chmod(mode)
    except SafetensorError as error:
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
        raise


def _sort_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file, whose order safetensors draws at random: equal content is then equal bytes."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        content = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        assert len(content) == size, "the same header in another order is as long"
        file.seek(8)
        file.write(content)


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Write a file for `load_state`, durable and replaced as a whole: at any time there is the complete old or new file.

    Raises OSError.
    """
    with replaced(path, durable=True) as draft:
        try:
            with draft.open("wb") as file:
                torch.save(dict(state), file)
        except (OSError, RuntimeError) as error:
            fault = error if isinstance(error, OSError) else error.__context__
            if isinstance(fault, OSError) and fault.errno is not None:
                raise OSError(fault.errno, fault.strerror, fault.filename or str(draft)) from None
            raise


def load_state(path: Path) -> dict[str, Any]:
    """Read a file of `save_state`, on the CPU, and verify it; this takes 0.2 s for 300 MB, in addition to torch's 0.5 s.

    Raises ValueError: an incomplete or damaged file; OSError: an unreadable file; MemoryError.
    """
    check_is_file(path)
    try:
        _verify_archive(path)
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # torch raises a different type for every way a file can be broken
        if NOTHING_LEFT in str(error):
            raise MemoryError(f"There is not enough memory to read {path}.") from error
        raise ValueError(f"{path} is not a complete snapshot ({type(error).__name__}).") from error
    return state


def _verify_archive(path: Path) -> None:
    """Raise BadZipFile if an entry of a zip archive differs from its CRC-32."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise zipfile.BadZipFile("its directory points outside the file") from None  # zipfile sought a negative place
    if damaged is not None:
        raise zipfile.BadZipFile(f"{damaged} is damaged")
