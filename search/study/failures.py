"""The lessons of failed trials: which of them a sampler should avoid, and the sentence that says so.

A sampler does not see failed trials. One that does not fit into memory, and one of a branch that fails again and again in the
same way, is told as pruned with a violated constraint, so that TPE avoids its region.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from optuna.trial import FrozenTrial

OUT_OF_MEMORY = "out of memory"
SAME_FAILURES = 3  # of a branch, from which on it is avoided; assumed, not measured (2026-11)
LESSON = "; failures like this so far: "
CONSTRAINT = "constraints:fits"  # the system attribute of `Trial.set_constraint("fits", …)`, which needs a trial that runs


def is_avoided(reason: str) -> bool:
    """Return whether the sampler should avoid the region of a trial that failed for this reason, with its lesson."""
    return failure_kind(reason) == OUT_OF_MEMORY or LESSON in reason


def failure_kind(reason: str) -> str:
    """Return the kind of a failure, the same for trials that fail in the same way: `out of memory`, `ValueError`."""
    return re.split("[:;]", reason, maxsplit=1)[0]


def lesson_of(
    params: dict[str, Any], reason: str, others: Iterable[FrozenTrial], choices: Iterable[str], is_learned: bool
) -> str:
    """Return the reason, with the branches whose trials failed like this at least SAME_FAILURES times and never worked.

    others: the study's other trials, without those that never began. is_learned: the sampler learns from it.
    """
    branches = " and ".join(_failing(params, failure_kind(reason), list(others), choices))
    if not branches:
        return reason
    return f"{reason.rstrip('.')}{LESSON}{branches}{', which the sampler avoids' * is_learned}"


def _failing(params: dict[str, Any], kind: str, others: list[FrozenTrial], choices: Iterable[str]) -> Iterator[str]:
    """Yield `3 of smoothness=smart` for each such branch. One in which a trial was evaluated and did not fail is sound."""
    for name in (name for name in choices if name in params):
        peers = [trial for trial in others if trial.params.get(name) == params[name]]
        failed = [trial for trial in peers if trial.state.is_finished() and trial.user_attrs["status"] == "failed"]
        alike = [trial for trial in failed if failure_kind(trial.user_attrs["reason"]) == kind]
        is_sound = any(trial.intermediate_values for trial in peers if trial not in failed)
        if len(alike) + 1 >= SAME_FAILURES and not is_sound:
            yield f"{len(alike) + 1} of {name}={params[name]}"
