"""Failed trials, opened again for `--retry-failed`.

Optuna has no way back from a finished trial. Its journal is a list of operations. Those that ended a trial are removed from
it, and the trial is running again, under its own number.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from minbert_core.files import replaced
from search.study.journal import NAME

OF_AN_END = {"status", "reason", "deaths"}  # user attributes that the next end of a trial gets anew


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
        kept = [line for line, operation in zip(lines, operations, strict=True) if not _is_of_the_end(operation, failed)]
        for trial in failed:
            (folder / "trials" / f"{trial:03d}" / "trial.json").unlink(missing_ok=True)
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


def _is_of_the_end(operation: dict[str, Any], failed: set[int]) -> bool:
    is_attribute = not OF_AN_END.isdisjoint(operation.get("user_attr", {}))
    return operation.get("trial_id") in failed and (is_attribute or _ends(operation))
