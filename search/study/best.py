"""The folder best/ of a search: the model of its best trial, whole, so that `cp -r` copies a model and not a link to one."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from minbert_core.files import replaced


def publish(model: Path, best: Path) -> None:
    """Make the folder `best` a copy of `model`, as hard links, which take no space; as real copies on a disk without links.

    Nothing is written if it is one already, or if there is no model. A trial that runs may replace its model. Then
    the new one is copied, or, if it is not complete yet, the trial's next report leads here again.
    """
    with contextlib.suppress(FileNotFoundError):
        while best.is_symlink() or not all(_is_same(model / file, best / file) for file in _files(model)):
            with replaced(best) as draft:
                for file in _files(model):
                    (draft / file).parent.mkdir(parents=True, exist_ok=True)
                    _link_or_copy(model / file, draft / file)


def _files(model: Path) -> list[Path]:
    return [path.relative_to(model) for path in sorted(model.rglob("*")) if path.is_file()]


def _is_same(file: Path, other: Path) -> bool:
    """Whether two paths lead to the same file, or to a file and its copy."""
    if not other.exists():
        return False
    about, copied = file.stat(), other.stat()
    return os.path.samestat(about, copied) or (about.st_size, about.st_mtime_ns) == (copied.st_size, copied.st_mtime_ns)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # FAT, some network disks and object stores have no hard links
        shutil.copy2(source, target)
