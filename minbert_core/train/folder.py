"""What training leaves in a folder: metrics.jsonl, the best evaluation's model, a snapshot while it runs.

    config.yaml -> train_in -> metrics.jsonl  best/  state/snapshot.pt

A trial of a search, a retraining for the test and `python -m minbert_core.train` all train in this way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minbert_core.config import TrialConfig
from minbert_core.inputs import Inputs
from minbert_core.model import save_model
from minbert_core.train.loop import SaveTimer
from minbert_core.train.trial import Progress, Record, in_current_names, load_snapshot, save_snapshot, train


def train_in(
    folder: Path, config: TrialConfig, inputs: Inputs, snapshot: dict[str, Any] | None, records: list[Record]
) -> Iterator[Progress]:
    """`train`, with what comes of it kept in `folder`: metrics.jsonl, the best evaluation's weights, a snapshot now and then.

    A snapshot is taken at each evaluation, when a pretraining was made, and at least every SAVE_EVERY_SECONDS. `snapshot` and
    `records` are what is known by now (None and none: from the start); each new record joins `records` before its progress is
    yielded.
    """
    metrics, save_timer = folder / "metrics.jsonl", SaveTimer()
    write_records(metrics, records)
    with metrics.open("a", buffering=1, encoding="utf-8") as file:
        for progress in train(config, inputs, snapshot):
            records.append(progress.record)
            if progress.improved:
                assert progress.model is not None, "what was evaluated is a model"
                save_model(progress.model, config, folder / "best", inputs.encoder_folder)
            is_due = progress.rung is not None or progress.record.get("made", False)
            if is_due or save_timer.is_due():
                save_snapshot(state_file(folder), progress.snapshot(), records)
                save_timer.restart()
            file.write(json.dumps(progress.record) + "\n")
            yield progress


def state_file(folder: Path) -> Path:
    """Where a trial's snapshot lies while it runs."""
    return folder / "state" / "snapshot.pt"


def read_snapshot(folder: Path) -> tuple[dict[str, Any] | None, list[Record]]:
    """Read the snapshot in a trial's folder and the records in it; (None, []) if there is none.

    Raises ValueError: broken, or of another format; OSError: unreadable.
    """
    path = state_file(folder)
    return load_snapshot(path) if path.exists() else (None, [])


def snapshot_or_start(folder: Path) -> tuple[dict[str, Any] | None, list[Record]]:
    """Read the snapshot in a folder. If it is broken, say so, and start from the beginning.  Raises OSError: unreadable."""
    try:
        return read_snapshot(folder)
    except ValueError as error:
        print(f"{error} Training starts from the beginning.")
        return None, []


def write_records(path: Path, records: list[Record]) -> None:
    """Make metrics.jsonl hold exactly `records`: what came after the snapshot is trained, and recorded, again."""
    draft = path.with_name(path.name + ".tmp")
    draft.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    draft.replace(path)


def read_records(path: Path) -> list[Record]:
    """The records in a metrics.jsonl; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(in_current_names(json.loads(line)))
        except json.JSONDecodeError:
            break
    return records
