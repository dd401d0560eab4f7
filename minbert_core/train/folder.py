"""The files of a training in its folder: metrics.jsonl, the model of the best evaluation, a snapshot while it runs.

    config.yaml -> train_in -> metrics.jsonl  best/  state/snapshot.pt

A trial of a search, a retraining for the test and `python -m minbert_core.train` all train this way.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from minbert_core.config import TrialConfig
from minbert_core.config_checks import read_config
from minbert_core.files import check_is_file, replaced
from minbert_core.inputs import Inputs
from minbert_core.model import save_model
from minbert_core.settings.faults import SettingsError
from minbert_core.train.loop import SaveTimer
from minbert_core.train.pretraining import never
from minbert_core.train.trial import (
    ForeignSnapshotError,
    Progress,
    Record,
    in_current_names,
    load_snapshot,
    save_snapshot,
    train,
)
from minbert_core.words import shown

UNREADABLE = "unreadable.pt"  # a damaged snapshot, set aside in its folder


def train_in(
    folder: Path,
    config: TrialConfig,
    inputs: Inputs,
    snapshot: dict[str, Any] | None,
    records: list[Record],
    stop: Callable[[], bool] = never,
) -> Iterator[Progress]:
    """Run `train` and keep its results in `folder`: metrics.jsonl, the model of the best evaluation, snapshots.

    A snapshot is saved at each evaluation, after each pretraining, and at the first record after SAVE_EVERY_SECONDS, of
    about a hundred in a trial. `snapshot` and `records` are those to resume from (None and [] for a start). Each new record is
    appended to `records` before its progress is yielded. Once an evaluation is yielded, its record, its model and its snapshot
    are on the disk, and survive a power loss. Once `stop()` returns True, a snapshot of that moment is saved, and training ends
    without a further yield.
    """
    metrics, save_timer = folder / "metrics.jsonl", SaveTimer()
    write_records(metrics, records)
    with metrics.open("a", buffering=1, encoding="utf-8") as file:
        for progress in train(config, inputs, snapshot, stop):
            if progress.record["kind"] == "stop":
                save_snapshot(state_file(folder), progress.snapshot(), records, config.identity)
                return
            records.append(progress.record)
            if progress.improved:
                assert progress.model is not None, "an evaluation has a model"
                save_model(progress.model, config, folder / "best", inputs.encoder_folder)
            is_due = progress.rung is not None or progress.record.get("made", False)
            if is_due or save_timer.is_due():
                save_snapshot(state_file(folder), progress.snapshot(), records, config.identity)
                save_timer.restart()
            file.write(json.dumps(progress.record) + "\n")
            if progress.rung is not None:
                os.fsync(file.fileno())
            yield progress


def state_file(folder: Path) -> Path:
    """Return the path of a trial's snapshot, which exists while it runs."""
    return folder / "state" / "snapshot.pt"


def read_snapshot(folder: Path) -> tuple[dict[str, Any] | None, list[Record]]:
    """Read the snapshot in a trial's folder and the records in it; (None, []) if there is none.

    Raises ValueError: damaged, or of another format; ForeignSnapshotError: of another config than that of config.yaml; OSError:
    unreadable.
    """
    path = state_file(folder)
    return load_snapshot(path, _identity(folder)) if path.exists() else (None, [])


def _identity(folder: Path) -> str:
    """Return the identity of the config in a trial's folder; "" without one that can be read: the snapshot is not at fault."""
    try:
        return read_config(folder / "config.yaml").identity
    except SettingsError:
        return ""


def snapshot_or_start(folder: Path) -> tuple[dict[str, Any] | None, list[Record]]:
    """Read the snapshot in a folder. If it is damaged, say so, set it aside, and start from the beginning.

    Raises ForeignSnapshotError: of another config; OSError: unreadable.
    """
    try:
        return read_snapshot(folder)
    except ForeignSnapshotError:
        raise
    except ValueError as error:
        aside = state_file(folder).with_name(UNREADABLE)
        state_file(folder).replace(aside)
        print(f"{error} Training starts from the beginning. The file is kept as {aside.name}.")
        return None, []


def write_records(path: Path, records: list[Record]) -> None:
    """Replace metrics.jsonl by `records`: steps after the snapshot are trained, and recorded, again."""
    with replaced(path) as draft:
        draft.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def append_record(path: Path, record: Record) -> None:
    """Append a record to a file for `read_records`, in place of a last line that a crash cut short."""
    with path.open("ab+") as file:
        file.seek(0)
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
        file.write(f"{json.dumps(record)}\n".encode())


class RecordsError(ValueError):
    """A file of records is damaged. The message names file and line."""


def read_records(path: Path) -> list[Record]:
    """Read the records in a metrics.jsonl, one JSON object per line; [] if there is no file.

    Its writer appends whole lines. So a crash can cut only the last line, which then has no line end; it is left out. Any other
    line that is not a record was damaged later. A file that was cut between two lines looks like one of a shorter training: a
    reader that knows how many records there were has to compare.
    Raises RecordsError: damaged; ValueError: not a file; OSError: unreadable.
    """
    check_is_file(path)
    try:
        *lines, cut = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    records = [_record(line, path, number) for number, line in enumerate(lines, start=1)]
    with contextlib.suppress(RecordsError):
        records += [_record(cut, path, len(lines) + 1)] if cut else []
    return records


def recorded_or_saved(folder: Path) -> list[Record]:
    """Read the records of a training; if metrics.jsonl is damaged, those in its snapshot.  Raises as both readers do."""
    try:
        return read_records(folder / "metrics.jsonl")
    except RecordsError:
        if state_file(folder).exists():
            return read_snapshot(folder)[1]
        raise


_NEEDED = ("kind", "examples", "seconds", "time_ms")  # keys of every record
_NEEDED_OF_DEV = (*_NEEDED, "rung", "dev/score")
_COUNTS = ("step", "examples", "passes", "rung", "time_ms")


def _record(line: bytes, path: Path, number: int) -> Record:
    """Parse a line of a file of records.  Raises RecordsError."""
    try:
        return parse_record(line)
    except ValueError as error:
        law = f"{path}:{number}: the file is damaged: {error}. Restore the file from a copy."
        raise RecordsError(law) from None


def parse_record(line: bytes) -> Record:
    """Parse one line of a file of records.  Raises ValueError: the law that it breaks, and its value."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # not UTF-8, not JSON, a number of thousands of digits, lists nested too deep
        record = None
    if not isinstance(record, dict):
        raise _fault("a line must be a JSON object", line.decode(errors="replace"))
    return check_record(in_current_names(record))


def check_record(record: Record) -> Record:
    """Return a record that has what its readers need.  Raises ValueError: the law that it breaks, and its value."""
    kind = record.get("kind")
    for name in _NEEDED_OF_DEV if kind == "dev" else _NEEDED:
        if name not in record:
            raise _fault(f"a record must have `{name}`", json.dumps(record))
    if not isinstance(kind, str):
        raise _fault("`kind` must be a name", kind)
    for name in _COUNTS:
        if name in record and not _is_count(record[name]):
            raise _fault(f"`{name}` must be a whole number from 0 on", record[name])
    metrics = [name for name in record if name.startswith("dev/")] if kind == "dev" else []
    for name in ("seconds", *metrics):
        if not _is_finite(record[name]):
            raise _fault(f"`{name}` must be a finite number", record[name])
    return record


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63


def _fault(law: str, value: object) -> ValueError:
    return ValueError(f"{law}. Got {shown(value)}")
