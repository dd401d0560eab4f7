"""The study's journal as a file: its operations, what Optuna makes of them, and a new one written from entries.

A journal that was damaged is read up to its first damaged line, because each operation builds on those before it. Each line
ends with a checksum under a key that Optuna ignores: a flipped bit within a text or a number leaves a line readable. Journals
of earlier versions have none.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from minbert_core.files import replaced
from search.study.entry import trial_folder

NAME = "study.journal"
NEW_TRIAL, NEW_STATE = 4, 6  # Optuna's codes of the operations
CHECK = "crc32"  # of the line without it


@dataclass(frozen=True)
class Journal:
    """The readable part of a journal."""

    operations: list[dict[str, Any]]
    trials: list[FrozenTrial]  # by number
    fault: str = ""  # why the rest is not readable; "" if the journal is whole, apart from a last line that a crash cut short


class CheckedFile(JournalFileBackend):
    """A journal file whose lines carry checksums."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        super().append_logs([_checked(one) for one in logs])


def _checked(operation: dict[str, Any]) -> dict[str, Any]:
    return {**operation, CHECK: zlib.crc32(_text(operation).encode())}


def _text(operation: dict[str, Any]) -> str:
    return json.dumps(operation, separators=(",", ":"))  # as Optuna writes it


def _is_sound(line: bytes) -> bool:
    """Return whether a line has its checksum, or none."""
    content, mark, checksum = line.rpartition(f',"{CHECK}":'.encode())
    return not mark or checksum == b"%d}" % zlib.crc32(content + b"}")


class _Operations(BaseJournalBackend):
    """A journal in memory, which counts what was read."""

    def __init__(self, operations: list[dict[str, Any]]) -> None:
        self.operations, self.num_read = operations, 0

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        for number in range(log_number_from, len(self.operations)):
            self.num_read = number + 1
            yield self.operations[number]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self.operations += logs


def read_journal(folder: Path, study_name: str) -> Journal:
    """Read the journal of a search, as far as it is readable. It writes nothing.  Raises OSError."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = folder / NAME
    if not path.exists():
        return Journal([], [], "it is missing")
    operations, fault = _parse(path.read_bytes())
    storage, num_good = _replay(operations)
    if num_good < len(operations):
        operations, fault = operations[:num_good], f"line {num_good + 1} is not an operation on the study"
    studies = {study.study_name: study._study_id for study in storage.get_all_studies()}
    if study_name not in studies:
        return Journal(operations, [], fault or f"it has no study '{study_name}'")
    return Journal(operations, storage.get_all_trials(studies[study_name], deepcopy=False), fault)


def _parse(data: bytes) -> tuple[list[dict[str, Any]], str]:
    """Return the operations before the first damaged line, and the fault of that line."""
    operations: list[dict[str, Any]] = []
    *lines, tail = data.split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            operation = json.loads(line)
        except (ValueError, RecursionError):
            operation = None
        if not isinstance(operation, dict):
            return operations, f"line {number} is not JSON"
        if not _is_sound(line):
            return operations, f"line {number} has changed since it was written"
        operations.append(operation)
    if CHECK.encode() in tail and tail[-2:-1] == b"}" and _is_sound(tail[:-1]):  # no crash cuts a line after its end
        return operations, f"line {len(lines) + 1} has changed since it was written"
    return operations, "" if operations else "it is empty"


def _replay(operations: list[dict[str, Any]]) -> tuple[JournalStorage, int]:
    """Let Optuna replay the operations, up to the first that it cannot, and return how many it could."""
    backend = _Operations(operations)
    try:
        return JournalStorage(backend), len(operations)
    except Exception:  # noqa: BLE001  a damaged operation raises whatever its wrong value leads to
        num_good = backend.num_read - 1
    return JournalStorage(_Operations(operations[:num_good])), num_good


def write_journal(folder: Path, study_name: str, trials: Iterable[FrozenTrial]) -> None:
    """Replace the journal by one with these trials, whose numbers are 0, 1, 2 …; keep the old one as study.journal.damaged."""
    backend = _Operations([])
    storage = JournalStorage(backend)
    study = storage.create_new_study([StudyDirection.MAXIMIZE], study_name)
    for trial in trials:
        storage.create_new_trial(study, template_trial=trial)
    keep_damaged(folder / NAME)
    with replaced(folder / NAME, durable=True) as draft:
        draft.write_text("".join(f"{_text(_checked(one))}\n" for one in backend.operations), encoding="utf-8")


def keep_damaged(path: Path) -> None:
    """Keep a copy of a damaged file as NAME.damaged, or NAME.damaged-2 …, before it is replaced."""
    if not path.exists():
        return
    number, copy = 1, path.with_name(f"{path.name}.damaged")
    while copy.exists():
        number += 1
        copy = path.with_name(f"{path.name}.damaged-{number}")
    with replaced(copy) as draft:
        draft.write_bytes(path.read_bytes())


def mend_journal(folder: Path) -> None:
    """Repair a journal whose driver was killed while it wrote: remove Optuna's lock file and a truncated last line.

    Otherwise Optuna waits 30 s for the lock, and permanently rejects the journal after a line follows the truncated one. Only
    the process that holds the search's lock may call this.
    """
    journal = folder / NAME
    journal.with_name(f"{NAME}.lock").unlink(missing_ok=True)
    if journal.exists():
        data = journal.read_bytes()
        if not data.endswith(b"\n"):
            os.truncate(journal, data.rfind(b"\n") + 1)


def undo_last_ask(folder: Path, operations: list[dict[str, Any]]) -> None:
    """Remove the operations of an ask that a kill interrupted, so that the next ask repeats it under the same number.

    Otherwise this number would be void, and all later trials would get other seeds than in a search that was not killed.
    """
    start = _begin_of_unfinished_ask(folder, operations)
    if start is None:
        return
    with replaced(folder / NAME, durable=True) as draft:
        lines = (folder / NAME).read_bytes().splitlines(keepends=True)
        draft.write_bytes(b"".join(lines[:start]))


def _begin_of_unfinished_ask(folder: Path, operations: list[dict[str, Any]]) -> int | None:
    """Return the index of the first operation of the last ask, if it is unfinished and nothing else follows it."""
    num_trials, begun, start = 0, -1, -1
    for index, operation in enumerate(operations):
        if operation["op_code"] == NEW_TRIAL:
            num_trials += 1
        is_new = operation["op_code"] == NEW_TRIAL and operation.get("state", TrialState.RUNNING) == TrialState.RUNNING
        is_taken = operation["op_code"] == NEW_STATE and operation["state"] == TrialState.RUNNING
        if is_new or is_taken:
            begun, start = num_trials - 1 if is_new else operation["trial_id"], index
    rest = operations[start + 1 :]
    if start < 0 or (trial_folder(folder, begun) / "config.yaml").exists():
        return None
    if any(one.get("trial_id") != begun or one["op_code"] == NEW_STATE for one in rest):
        return None
    is_finished = any(name in one.get("user_attr", {}) for one in (operations[start], *rest) for name in ("config", "void"))
    is_finished = is_finished or "config" in operations[start].get("user_attrs", {})
    return None if is_finished else start
