"""Rows of dev and test whose texts occur in train too, and the scores without them.

    token files of train, dev and test ─► seen_rows ─► the rows that are new ─► each configuration's metric with and without

Two rows are the same if their word pieces are: of a pair in any order. A model may know such a row's label by heart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.results import SPLITS, Logits, Measured, Splits, limits_of, measured, metrics_of, scores_of
from analysis.retrain import Job
from analysis.selection import Selection
from minbert_core.data.tokens import TokenisedTexts

Seen = Mapping[tuple[str, str], NDArray[np.bool_]]  # (task, split) -> a mark per row


@dataclass(frozen=True)
class Overlap:
    """A task's metric on a split without the rows that occur in train, per configuration."""

    task: str
    split: str
    seen: int  # rows that occur in train
    size: int  # rows in all
    measured: dict[int, Measured]

    def document(self) -> dict[str, Any]:
        """Build the entry of results.json."""
        of_each = {str(number): of.document() for number, of in self.measured.items()}
        return {"task": self.task, "split": self.split, "seen": self.seen, "rows": self.size, "without": of_each}


def seen_rows(texts: TokenisedTexts, train: TokenisedTexts) -> NDArray[np.bool_]:
    """Mark the rows whose texts are those of a row of train."""
    known = set(_keys(train))
    return np.array([key in known for key in _keys(texts)], dtype=bool)


def _keys(texts: TokenisedTexts) -> Iterator[tuple[bytes, ...]]:
    """Yield the texts of each row as bytes; of a pair in the order of the bytes."""
    for row in zip(*texts.sentences(), strict=True):
        yield tuple(sorted(ids.tobytes() for ids in row))


def overlaps(selection: Selection, logits: Mapping[Job, Logits], splits: Splits, seen: Seen) -> list[Overlap]:
    """Score each configuration again without the rows that occur in train, on each labelled split that has such rows."""
    found = []
    for task in selection.config.train_on:
        for split in SPLITS:
            marks = seen.get((task, split))
            if marks is None or not marks.any() or splits[task, split].labels is None:
                continue
            rows = np.flatnonzero(~marks)
            of_each = _without(selection, logits, splits, task, split, rows) if rows.size > 1 else {}
            found.append(Overlap(task, split, int(marks.sum()), marks.size, of_each))
    return found


def _without(
    selection: Selection, logits: Mapping[Job, Logits], splits: Splits, task: str, split: str, rows: NDArray[np.int64]
) -> dict[int, Measured]:
    """Score each configuration on some rows of a task."""
    key = (task, split)
    config = selection.config.model_copy(update={"train_on": (task,), "objective": task})
    part: Splits = {key: splits[key].only(rows)}
    own: dict[Job, Logits] = {job: {key: of[key][rows]} for job, of in logits.items()}
    groups: dict[int, dict[int, Job]] = {}
    for job in own:
        groups.setdefault(job.number, {})[job.seed_index or 0] = job
    metrics = {job: {split: metrics_of(config, of, part, split)} for job, of in own.items()}
    scores = scores_of(config, split, part, own, metrics, groups)
    limits = limits_of(config, split, part)[task]
    return {number: measured(columns[task], *limits) for number, columns in scores.items()}
