"""A storage behind a `file://` URI: what is put there is whole, and what goes wrong is a sentence with the URI."""

from __future__ import annotations

from pathlib import Path

import pytest

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
