"""Failed trials, opened again for `--retry-failed`.

Optuna has no way back from a finished trial. Its journal is a list of operations. All of a failed trial but those by which it
began are removed from it, and the trial is running again, under its own number. If its snapshot is there, what it has reached
is reported again; else it starts from the beginning, and a score that it had must not stay.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from minbert_core.files import replaced
from search.study.entry import trial_folder
from search.study.failures import CONSTRAINT
from search.study.journal import NAME

OF_THE_BEGINNING = {"config", "baseline"}  # user attributes that a trial has before its first point


def reopen_failed(folder: Path) -> int:
    """Let the failed trials of a search run again, and return how many there are. Deaths of their processes are forgotten.

    Only the process that holds the search's lock may call this, before it opens the study, between two calls of `repair`. The
    trials' own entries are removed first, because an entry that has ended is newer than a journal in which the trial runs.
    """
    journal = folder / NAME
    if not journal.exists():  # no trial has begun
        return 0
    lines = journal.read_text(encoding="utf-8").splitlines(keepends=True)
    operations = [json.loads(line) for line in lines]
    failed = _failed(operations)
    if failed:
        kept = [line for line, operation in zip(lines, operations, strict=True) if not _is_later(operation, failed)]
        for trial in failed:
            (trial_folder(folder, trial) / "trial.json").unlink(missing_ok=True)
        with replaced(journal) as draft:
            draft.write_text("".join(kept), encoding="utf-8")
    return len(failed)


def _failed(operations: list[dict[str, Any]]) -> set[int]:
    """Return Optuna's ids of the trials that have failed, without those that never began."""
    status: dict[int, str] = {}
    ended, void = set(), set()
    for operation in operations:
        attributes = operation.get("user_attr", {})
        if "status" in attributes:
            status[operation["trial_id"]] = attributes["status"]
        if "void" in attributes:
            void.add(operation.get("trial_id"))
        if _ends(operation):
            ended.add(operation["trial_id"])
    return {trial for trial in ended - void if status.get(trial) == "failed"}


def _ends(operation: dict[str, Any]) -> bool:
    return {"trial_id", "state"} <= operation.keys() and TrialState(operation["state"]).is_finished()


def _is_later(operation: dict[str, Any], failed: set[int]) -> bool:
    """Return whether an operation concerns a failed trial and is none of those by which it began."""
    attributes = {*operation.get("user_attr", ())} - OF_THE_BEGINNING | {*operation.get("system_attr", ())} & {CONSTRAINT}
    is_later = bool(attributes) or "intermediate_value" in operation or _ends(operation)
    return is_later and operation.get("trial_id") in failed
