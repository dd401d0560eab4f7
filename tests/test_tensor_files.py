"""Files of tensors: what the system refuses arrives as its own error, with the path; a damaged file is told apart."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from minbert_core.tensor_files import load_shapes, load_state, load_tensors, save_state, save_tensors

ROOT = Path(__file__).resolve().parents[1]


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    save_tensors({"a": torch.arange(3)}, tmp_path / "a.safetensors")
    assert load_tensors(tmp_path / "a.safetensors")["a"].tolist() == [0, 1, 2]
    save_state({"a": torch.arange(3), "step": 7}, tmp_path / "a.pt")
    assert load_state(tmp_path / "a.pt")["step"] == 7
    assert {path.name for path in tmp_path.iterdir()} == {"a.safetensors", "a.pt"}


def test_equal_tensors_are_equal_bytes(tmp_path: Path) -> None:
    for i in range(8):
        save_tensors({"a": torch.arange(3), "ä": torch.ones(1)}, tmp_path / str(i), {"format": "pt", "by": 'a "name"'})
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    assert load_tensors(tmp_path / "0")["ä"].tolist() == [1.0]


def test_others_may_read_tensors_where_they_may_read_files(tmp_path: Path) -> None:
    save_tensors({"a": torch.arange(3)}, tmp_path / "a.safetensors")
    (tmp_path / "plain").touch()
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("load", [load_tensors, load_shapes, load_state])
def test_what_the_system_refuses_is_not_called_missing_or_truncated(load: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as caught:
        load(tmp_path / "file" / "a")
    assert caught.value.filename == str(tmp_path / "file" / "a")


FULL = """\
import resource, sys
from pathlib import Path
import torch
from minbert_core import tensor_files

tensor_files.save_state({"a": torch.ones(3)}, Path(sys.argv[1]) / "save_state")
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
for save in (tensor_files.save_tensors, tensor_files.save_state):
    try:
        save({"a": torch.zeros(100_000)}, Path(sys.argv[1]) / save.__name__)
    except OSError as error:
        print(error.errno, error.filename)
print(tensor_files.load_state(Path(sys.argv[1]) / "save_state")["a"].tolist())
"""


def test_a_disk_that_takes_no_more_is_an_error_of_the_system_with_the_path_and_the_old_snapshot_stays(tmp_path: Path) -> None:
    """Here a limit on the size of files; a full disk fails at the same calls, with another number."""
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        f"{errno.EFBIG} {tmp_path / 'save_tensors'}",
        f"{errno.EFBIG} {tmp_path / 'save_state.tmp'}",
        "[1.0, 1.0, 1.0]",
    ]
    assert not (tmp_path / "save_state.tmp").exists()


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail at alloc_cpu.cpp:123] DefaultCPUAllocator: can't allocate memory: 9 bytes.")],
)
def test_a_snapshot_for_which_there_is_no_memory_is_not_called_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Training would begin again over it."""

    def fail(*_: object, **__: object) -> None:
        raise error

    save_state({"a": torch.ones(3)}, tmp_path / "a.pt")
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(MemoryError):
        load_state(tmp_path / "a.pt")


def test_damaged_weights_are_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors({"a": torch.arange(3)}, path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.safetensors is damaged: its content does not match its checksum\. Copy it again"):
        load_tensors(path)


def test_weights_of_others_have_no_checksum_and_are_read(tmp_path: Path) -> None:
    save_file({"a": torch.arange(3)}, tmp_path / "a.safetensors", {"format": "pt"})
    assert load_tensors(tmp_path / "a.safetensors")["a"].tolist() == [0, 1, 2]


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a")
    for load in (load_tensors, load_state):
        with pytest.raises(ValueError, match="is a named pipe, not a file"):
            load(tmp_path / "a")
