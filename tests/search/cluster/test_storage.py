"""A storage behind a `file://` URI: what is put there is whole, and what goes wrong is a sentence with the URI."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest

from minbert_core.files import lock
from search.cluster.inputs import bring_pretrained
from search.cluster.storage import Storage, StorageFault


def test_files_and_folders_come_back_as_they_were_put(tmp_path: Path) -> None:
    storage = Storage(f"file://{tmp_path}/bucket") / "small-1"
    model = tmp_path / "best"
    (model / "encoder").mkdir(parents=True)
    (model / "heads").write_bytes(b"heads")
    (model / "encoder" / "weights").write_bytes(b"weights")
    storage.put(model, "trials/007/best/3")
    storage.write("trials/007/config.yaml", b"seed: 1")
    assert storage.names("trials/007") == ["best", "config.yaml"]
    assert storage.read("trials/007/config.yaml") == b"seed: 1"
    storage.get("trials/007/best/3", tmp_path / "copy")
    assert (tmp_path / "copy" / "encoder" / "weights").read_bytes() == b"weights"
    storage.delete("trials/007/best")
    storage.delete("trials/007/best")
    assert (storage.names("trials/007"), storage.names("trials/008")) == (["config.yaml"], [])
    with pytest.raises(FileNotFoundError):
        storage.read("trials/007/best/3/heads")


def test_an_upload_that_fails_leaves_the_file_that_was_there_and_no_draft(tmp_path: Path) -> None:
    storage = Storage(f"file://{tmp_path}/bucket")
    storage.write("snapshot", b"whole")
    with pytest.raises(FileNotFoundError):
        storage.put(tmp_path / "missing", "snapshot")
    assert storage.read("snapshot") == b"whole"
    assert [path.name for path in (tmp_path / "bucket").iterdir()] == ["snapshot"]


def test_a_storage_at_fault_names_its_uri_and_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageFault, match=rf"The storage at file://{tmp_path}/file is at fault: .*\."):
        Storage(f"file://{tmp_path}/file").write("word", b"")
    with pytest.raises(StorageFault, match="Unrecognized filesystem type"):
        Storage("nonsense://bucket").read("word")


def broken_once(copy: Callable[..., Any], error: OSError) -> Callable[..., Any]:
    """`copy`, whose first call raises."""
    left = [error]

    def broken(*arguments: Any, **named: Any) -> None:
        if left:
            raise left.pop()
        copy(*arguments, **named)

    return broken


def test_a_folder_is_fetched_at_the_second_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = replace(Storage(f"file://{tmp_path}/bucket"), waits=(0.0,))
    storage.write("best/weights", b"weights")
    monkeypatch.setattr(pyarrow.fs, "copy_files", broken_once(pyarrow.fs.copy_files, OSError("connection reset")))
    storage.get("best", tmp_path / "copy")
    assert (tmp_path / "copy" / "weights").read_bytes() == b"weights"


def test_a_copy_that_fills_this_machines_disk_is_no_fault_of_the_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(f"file://{tmp_path}/bucket")
    storage.write("best", b"weights")
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(pyarrow.fs, "copy_files", broken_once(pyarrow.fs.copy_files, full))
    with pytest.raises(OSError, match="No space left") as caught:
        storage.get("best", tmp_path / "copy")
    assert not isinstance(caught.value, StorageFault)


def test_a_pretraining_that_another_process_trains_is_not_waited_for_here(tmp_path: Path) -> None:
    """run_pretraining waits for it, with signs of life; a trial without them would be taken for one that hangs."""

    @dataclass(frozen=True)
    class One:
        folder: Path
        key: str = "abc"
        is_cached: bool = False

    storage, one = Storage(f"file://{tmp_path}/bucket"), One(tmp_path / "pretrained" / "abc")
    storage.write("pretrained/abc/files/weights", b"weights")
    storage.write("pretrained/abc/whole", b"weights")
    one.folder.parent.mkdir()
    with (path := one.folder.with_suffix(".lock")).open("w") as held:
        assert lock(held, path)
        bring_pretrained(storage, [one])  # type: ignore[list-item]
        assert not one.folder.exists()
    bring_pretrained(storage, [one])  # type: ignore[list-item]
    assert (one.folder / "weights").read_bytes() == b"weights"
