"""The files of a training in its folder: metrics.jsonl, the model of the best evaluation, a snapshot while it runs.

    config.yaml -> train_in -> metrics.jsonl  best/  state/snapshot.pt

A trial of a search, a retraining for the test and `python -m minbert_core.train` all train this way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minbert_core.config import TrialConfig
from minbert_core.files import replaced
from minbert_core.inputs import Inputs
from minbert_core.model import save_model
from minbert_core.train.loop import SaveTimer
from minbert_core.train.trial import Progress, Record, in_current_names, load_snapshot, save_snapshot, train


def train_in(
    folder: Path, config: TrialConfig, inputs: Inputs, snapshot: dict[str, Any] | None, records: list[Record]
) -> Iterator[Progress]:
    """Run `train` and keep its results in `folder`: metrics.jsonl, the model of the best evaluation, snapshots.

    A snapshot is saved at each evaluation, after each pretraining, and at least every SAVE_EVERY_SECONDS. `snapshot` and
    `records` are those to resume from (None and [] for a start). Each new record is appended to `records` before its progress
    is yielded.
    """
    metrics, save_timer = folder / "metrics.jsonl", SaveTimer()
    write_records(metrics, records)
    with metrics.open("a", buffering=1, encoding="utf-8") as file:
        for progress in train(config, inputs, snapshot):
            records.append(progress.record)
            if progress.improved:
                assert progress.model is not None, "an evaluation has a model"
                save_model(progress.model, config, folder / "best", inputs.encoder_folder)
            is_due = progress.rung is not None or progress.record.get("made", False)
            if is_due or save_timer.is_due():
                save_snapshot(state_file(folder), progress.snapshot(), records)
                save_timer.restart()
            file.write(json.dumps(progress.record) + "\n")
            yield progress


def state_file(folder: Path) -> Path:
    """Return the path of a trial's snapshot, which exists while it runs."""
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
    """Replace metrics.jsonl by `records`: steps after the snapshot are trained, and recorded, again."""
    with replaced(path) as draft:
        draft.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def read_records(path: Path) -> list[Record]:
    """Read the records in a metrics.jsonl, without a last line that a crash cut short."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(in_current_names(json.loads(line)))
        except json.JSONDecodeError:
            break
    return records
