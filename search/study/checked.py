"""A trial's records, checked against the evaluations that its entry in the study holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from optuna.trial import FrozenTrial

from minbert_core.train.trial import Record
from search.study.entry import identity_of, points_of
from search.study.records import readable_records


@dataclass(frozen=True)
class CheckedRecords:
    """A trial's records: those that can be read, and the evaluations that only the study still has."""

    records: list[Record]
    restored: list[int]  # the rungs of these evaluations
    num_unreadable: int  # lines


def checked_records(trial_folder: Path, trial: FrozenTrial) -> CheckedRecords:
    """Read a trial's records and compare its evaluations with those in the study, if the trial has ended.

    A trial that has not ended may have evaluations that the search has not received, or has to measure again.
    Raises ValueError: other evaluations than in the study, or fewer in an older search, whose study has only their scores.
    """
    path = trial_folder / "metrics.jsonl"
    records, num_unreadable = readable_records(path)
    if not trial.state.is_finished():
        return CheckedRecords(records, [], 0)
    written = {record["rung"]: record for record in records if record["kind"] == "dev"}
    known, scores = points_of(trial), trial.intermediate_values
    for rung, score in scores.items():
        if rung in written and (written[rung]["dev/score"] != score or (rung in known and written[rung] != known[rung])):
            got = f"{written[rung]['dev/score']:.4f} at rung {rung}, where study.journal has {score:.4f}"
            remedy = "or delete it: --resume then restores the evaluations" if rung in known else "which alone has all of them"
            raise ValueError(f"{path} holds evaluations of another training: {got}. Put back the file of this trial, {remedy}.")
    extra = written.keys() - scores.keys() if identity_of(trial) and trial.user_attrs["status"] != "failed" else set()
    if extra:
        raise ValueError(
            f"{path} has an evaluation at rung {min(extra)} that study.journal does not have. Put back both files."
        )
    restored = sorted(scores.keys() - written.keys())
    if lost := [rung for rung in restored if rung not in known]:
        law = f"lacks the evaluation at rung {lost[0]} (score {scores[lost[0]]:.4f} in study.journal)"
        raise ValueError(f"{path} {law}. Put back the file.")
    records = sorted([*records, *(known[rung] for rung in restored)], key=lambda one: (one["examples"], one["time_ms"]))
    return CheckedRecords(records, restored, num_unreadable)
