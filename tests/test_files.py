"""Where a user's path leads, what a lock says, and how a fault of the system reads."""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from minbert_core.data.own_tasks import Binary, Files
from minbert_core.files import cache_folder, check_is_file, explain_fault, lock, replaced, user_path
from minbert_core.inputs import Inputs

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under the number of a user it does not know."""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.parametrize("written", ["~/data", Path("~/data")])
def test_a_tilde_is_the_home_folder(written: str | Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert user_path(written) == Path("/home/me/data")


@pytest.mark.parametrize("written", ["data", "/data", "a~b", "x/~/y"])
def test_a_path_without_a_tilde_in_front_stays(written: str) -> None:
    assert user_path(written) == Path(written)


@pytest.mark.usefixtures("homeless")
def test_without_a_home_folder_a_sentence_names_the_variable_to_set() -> None:
    with pytest.raises(OSError, match=r"^There is no home folder: HOME is not set, .* Set XDG_CACHE_HOME to a folder that you"):
        cache_folder()
    with pytest.raises(OSError, match=r"^Cannot find the home folder that ~/data begins with\. Write the path without ~\.$"):
        user_path("~/data")


@pytest.mark.usefixtures("homeless")
def test_without_a_home_folder_a_named_cache_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_folder() == Path("/cache/minbert")


HOMELESS = """\
import os, pwd

def unknown(uid):
    raise KeyError(uid)

pwd.getpwuid = unknown
del os.environ["HOME"]
import search
import ray.train
"""


def test_a_search_starts_for_a_user_whom_the_system_does_not_know() -> None:
    """Ray asks for a home folder when it is imported."""
    done = subprocess.run([sys.executable, "-c", HOMELESS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_files_of_an_own_task_and_a_stage_may_begin_with_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    task = Binary(files=Files(train="~/train.csv", test="test.csv"), text=("text",), label="label").task("mine")
    assert Path("/data") / task.files["train"] == Path("/home/me/train.csv")
    assert task.files["test"] == "test.csv"
    inputs = object.__new__(Inputs)
    object.__setattr__(inputs, "data_folder", Path("/data"))
    assert [inputs.text_file(name) for name in ("~/a.txt", "a.txt")] == [Path("/home/me/a.txt"), Path("/data/a.txt")]


# ------------------------------------------------------------------------------------------------------------------- faults


def fault(number: int, path: Path | None = None, target: Path | None = None) -> OSError:
    names = [str(name) if name else None for name in (path, target)]
    return OSError(number, os.strerror(number), names[0], None, names[1])


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HOME", raising=False)
    return tmp_path


ELSEWHERE = "use --runs to give a folder on another disk."


@pytest.mark.parametrize(
    ("number", "path", "verb", "remedy"),
    [
        (errno.EISDIR, "runs", "use", ""),
        (errno.EACCES, "runs/smart", "write", "Use --runs to give a folder that you can write."),
        (errno.EROFS, "runs", "write", "Use --runs to give a folder that you can write."),
        (errno.EACCES, "cache", "write", "Set XDG_CACHE_HOME to a folder that you can write."),
        (errno.EACCES, "cache/huggingface/hub", "write", "Set HF_HOME to a folder that you can write."),
        (errno.ENOSPC, "runs/a", "write", f"Free some space, or {ELSEWHERE}"),
        (errno.EDQUOT, "cache/minbert/a", "write", "Free some space, or set XDG_CACHE_HOME to a folder on another disk."),
        (errno.ENOSYS, "runs/lock", "lock", f"Its file system has no locks. U{ELSEWHERE[1:]}"),
        (errno.EIO, "runs/a", "use", ""),
        (errno.ENOENT, "nowhere/a.yaml", "write", ""),
        (errno.ENOENT, "a.yaml", "read", ""),
    ],
)
def test_a_fault_is_a_sentence_with_path_reason_and_way_out(
    number: int, path: str, verb: str, remedy: str, places: Path
) -> None:
    said = explain_fault(fault(number, places / path), "--runs", places / "runs")
    assert said == f"Cannot {verb} {places / path}: {os.strerror(number)}. {remedy}".strip()


def test_a_file_that_another_user_keeps_to_himself_cannot_be_read(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    (places / "config.json").touch()
    said = explain_fault(fault(errno.EACCES, places / "config.json"), "--to", places / "trained")
    assert said == f"Cannot read {places / 'config.json'}: Permission denied."


def test_of_a_copy_the_target_is_named(places: Path) -> None:
    assert explain_fault(fault(errno.ENOSPC, Path("/a"), Path("/b"))) == (
        "Cannot write /b: No space left on device. Free some space."
    )


def test_a_full_disk_that_names_no_file_is_found(places: Path) -> None:
    with pytest.raises(OSError, match="No space") as caught:
        Path("/dev/full").write_text("a")
    said = explain_fault(caught.value, "--runs", places / "runs")
    assert said.startswith("Cannot write: No space left on device. The fullest disk is that of /")
    assert " MB free. Free some space, or " in said


def test_a_library_error_without_a_number_keeps_its_words() -> None:
    assert explain_fault(OSError("no connection to the hub")) == "no connection to the hub"


# -------------------------------------------------------------------------------------------------------------------- writing


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("many_writers", [False, True])
def test_a_draft_takes_the_place_of_a_file_when_it_is_whole(tmp_path: Path, many_writers: bool) -> None:
    path = tmp_path / "plan.json"
    path.write_text("old")
    with replaced(path, many_writers=many_writers) as draft:
        draft.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == {"plan.json"}


def test_a_draft_takes_the_place_of_a_folder_or_a_link(tmp_path: Path) -> None:
    path = tmp_path / "best"
    path.mkdir()
    (path / "old").touch()
    with replaced(path) as draft:
        draft.mkdir()
        (draft / "new").touch()
    assert names(path) == {"new"}
    for target in ("1", "2"):  # the first replaces a folder, the second a link
        with replaced(path) as draft:
            draft.symlink_to(target)
        assert os.readlink(path) == target
    assert names(tmp_path) == {"best"}


def write_half(path: Path) -> None:
    path.write_text("ne")
    raise KeyboardInterrupt


@pytest.mark.parametrize("many_writers", [False, True])
def test_a_failed_draft_is_removed_and_the_old_content_stays(tmp_path: Path, many_writers: bool) -> None:
    path = tmp_path / "plan.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replaced(path, many_writers=many_writers) as draft:
        write_half(draft)
    assert path.read_text() == "old"
    assert names(tmp_path) == {"plan.json"}


def test_the_draft_of_a_killed_writer_is_removed(tmp_path: Path) -> None:
    (tmp_path / "best.tmp" / "encoder").mkdir(parents=True)
    (tmp_path / "best.old" / "encoder").mkdir(parents=True)
    with replaced(tmp_path / "best") as draft:
        draft.mkdir()
    assert names(tmp_path) == {"best"}
    assert names(tmp_path / "best") == set()


@pytest.mark.parametrize("many_writers", [False, True])
def test_a_durable_draft_is_on_the_disk_before_it_has_its_name_and_its_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many_writers: bool
) -> None:
    """A file that has its name before its content is empty after a power loss."""
    steps: list[str] = []
    sync, move = os.fsync, os.replace

    def noted_sync(descriptor: int) -> None:
        steps.append(f"flush {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        sync(descriptor)

    def noted_move(source: Path, target: Path) -> None:
        steps.append(f"{source.name} -> {target.name}")
        move(source, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_move)
    (tmp_path / "new").mkdir()
    with replaced(tmp_path / "new" / "best", many_writers=many_writers, durable=True) as draft:
        draft.mkdir()
        (draft / "heads").write_text("content")
    name = draft.name
    assert steps == ["flush heads", f"flush {name}", f"{name} -> best", "flush new", f"flush {tmp_path.name}"]
    steps.clear()
    with replaced(tmp_path / "new" / "table", many_writers=many_writers) as draft:
        draft.write_text("content")
    assert steps == [f"{draft.name} -> table"]


def test_a_pipe_or_a_device_is_no_file_and_is_refused_without_reading(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.csv")
    with pytest.raises(ValueError, match=r"rows\.csv is a named pipe, not a file\. Copy its content into a file\."):
        check_is_file(tmp_path / "rows.csv")
    with pytest.raises(ValueError, match=r"^/dev/zero is a device, not a file\."):
        check_is_file(Path("/dev/zero"))
    check_is_file(tmp_path)  # the one who opens a folder says so
    check_is_file(tmp_path / "absent")


def test_two_writers_at_once_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    with replaced(path, many_writers=True) as first, replaced(path, many_writers=True) as second:
        first.write_text("first")
        second.write_text("second")
        assert first.name == second.name == "vocab.txt"
    assert path.read_text() == "first"  # whose block ended last
    assert names(tmp_path) == {"vocab.txt"}


# -------------------------------------------------------------------------------------------------------------------- locks


def test_a_lock_is_for_one(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("w") as first, path.open() as second:
        assert lock(first, path)
        assert not lock(second, path)
    with path.open() as second, path.open() as third:
        assert lock(second, path, shared=True)
        assert lock(third, path, shared=True)


def test_a_disk_without_locks_is_not_taken_for_a_lock_that_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    path = tmp_path / "lock"
    with path.open("w") as file, pytest.raises(OSError, match="Function not implemented") as caught:
        lock(file, path)
    assert caught.value.filename == str(path)
