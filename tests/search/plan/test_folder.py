"""A search's folder: names, the lock, plan.json."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from minbert_core.commands import Refused
from minbert_core.config import FORMAT
from search.plan.folder import (
    NEEDED,
    PlanRecord,
    claim_search_folder,
    clear_failed_start,
    lock,
    new_search_folder,
    read_own_space,
    read_plan,
    wait_for_workers,
    write_space,
)

Claim = Callable[..., Path]


@pytest.fixture
def claim(tmp_path: Path) -> Iterator[Claim]:
    """claim(name): a folder for a new search of the space smart, as if a process held it until the test ends."""
    with contextlib.ExitStack() as held:

        def claim(name: str | None = None) -> Path:
            folder, lock = claim_search_folder(tmp_path, name, "smart")
            held.enter_context(lock)
            return folder

        yield claim


def begin(folder: Path) -> None:
    (folder / "trials" / "000").mkdir(parents=True)


def test_default_names_count_up_and_a_used_explicit_name_is_refused(claim: Claim, tmp_path: Path) -> None:
    for expected in ("smart", "smart-2", "smart-3"):
        assert claim().name == expected
        begin(tmp_path / expected)
    assert claim("mine").name == "mine"
    begin(tmp_path / "mine")
    with pytest.raises(Refused, match=r"The name 'mine' is used .* --resume mine, or give another --name"):
        new_search_folder(tmp_path, "mine", "smart")
    assert new_search_folder(tmp_path, None, "smart").name == "smart-4"


def test_two_searches_that_start_at_once_get_two_names(claim: Claim) -> None:
    """The first holds its folder, in which no trial has begun yet."""
    assert [claim().name, claim().name] == ["smart", "smart-2"]
    with pytest.raises(Refused, match=r"The search in .*smart is running already \(pid \d+ on "):
        claim("smart")


@pytest.mark.parametrize("name", ["smart", None])
def test_a_name_is_free_that_was_left_before_there_was_a_trial(tmp_path: Path, name: str | None) -> None:
    folder, held = claim_search_folder(tmp_path, name, "smart")
    held.close()
    for file in ("space.yaml", "plan.json", "study.journal", "log.txt"):
        (folder / file).touch()
    (folder / "wandb").mkdir()
    assert new_search_folder(tmp_path, name, "smart") == folder
    again, held = claim_search_folder(tmp_path, name, "smart")
    held.close()
    assert again == folder
    clear_failed_start(folder)
    assert not (folder / "wandb").exists()  # it would say that the user had asked for W&B
    begin(folder)
    with pytest.raises(Refused, match="The name 'smart' is used"):
        claim_search_folder(tmp_path, "smart", "smart")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").touch()
    with pytest.raises(Refused, match="The name 'notes' is used"):
        new_search_folder(tmp_path, "notes", "smart")


def test_a_reader_that_holds_the_lock_for_a_moment_stops_no_search(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("a") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        threading.Timer(0.1, fcntl.flock, (reader, fcntl.LOCK_UN)).start()
        lock(tmp_path).close()


HOLD = """
import fcntl, sys, time
with open(sys.argv[1], "a") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_search_on_a_disk_without_locks_is_not_said_to_run_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / "trials" / "000").mkdir(parents=True)
    (tmp_path / "trials" / "000" / "log.txt").touch()
    for ask in (lock, wait_for_workers):
        with pytest.raises(OSError, match="No locks available"):
            ask(tmp_path)


def test_a_searchs_lock_is_for_one_and_free_when_its_process_dies(tmp_path: Path) -> None:
    with lock(tmp_path), pytest.raises(Refused, match=r"is running already \(pid \d+ on .*\)"):
        lock(tmp_path)
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "lock"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(Refused, match="is running already"):
            lock(tmp_path)
        process.kill()
        process.wait()
        lock(tmp_path).close()


def test_a_resumed_search_waits_for_the_workers_of_the_killed_one(tmp_path: Path) -> None:
    folder = tmp_path / "trials" / "003"
    folder.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", HOLD, folder / "log.txt"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(Refused, match="A worker of the interrupted search still runs trial 003"):
            wait_for_workers(tmp_path, timeout_seconds=0.1)
        process.kill()
        wait_for_workers(tmp_path)


def test_an_unknown_search_names_the_known_ones(tmp_path: Path) -> None:
    for name in ("smart", "heads"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "plan.json").write_text("{}")
    with pytest.raises(ValueError, match=r"There is no search 'smrt' in .*; did you mean 'smart'\? Known: heads, smart\."):
        read_plan(tmp_path / "smrt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps({"format": FORMAT + 1}), f"has format {FORMAT + 1}. This version reads up to {FORMAT}"),
        ('{"format": ', "is broken"),
        ("[]", r"is broken \(it must be a map\)"),
        (json.dumps({"format": FORMAT, "name": "smart"}), r"is broken \(it lacks space_name, about, "),
        (json.dumps(dict.fromkeys(NEEDED, "")), r"is broken \(`trials`: Input should be a valid integer. Got ''"),
        ("[" * 100_000, "is broken"),
    ],
)
def test_a_plan_that_cannot_be_read_is_refused_in_words(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_plan(tmp_path)


def own_space(tmp_path: Path) -> PlanRecord:
    plain = {"trials": 3, "encoders": {}, "train_on": [], "fingerprints": {}}
    digest = write_space(tmp_path, {"config": {"data": "toy"}})
    return PlanRecord(**dict.fromkeys(NEEDED, "") | plain, space_file_sha256=digest)  # type: ignore[arg-type]


def test_a_searchs_own_space_may_not_change_though_an_older_search_has_no_digest_of_it(tmp_path: Path) -> None:
    plan = own_space(tmp_path)
    assert read_own_space(tmp_path, plan) == {"config": {"data": "toy"}}
    (tmp_path / "space.yaml").write_text("config: {data: mine}")
    with pytest.raises(ValueError, match=r"space.yaml was changed since the search began, .* under another name: python -m"):
        read_own_space(tmp_path, plan)
    assert read_own_space(tmp_path, replace(plan, space_file_sha256=None)) == {"config": {"data": "mine"}}


@pytest.mark.parametrize(
    ("text", "message"), [(None, "Cannot read .*space.yaml: No such file"), ("config: []", "must be a map")]
)
def test_a_space_that_cannot_be_read_is_refused_in_words(tmp_path: Path, text: str | None, message: str) -> None:
    plan = own_space(tmp_path)
    (tmp_path / "space.yaml").unlink() if text is None else (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_own_space(tmp_path, plan)
