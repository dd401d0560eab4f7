"""The lines of a metrics.jsonl, read one by one, so that a damaged line does not hide the others."""

from __future__ import annotations

from pathlib import Path

from minbert_core.train.folder import parse_record
from minbert_core.train.trial import Record


def readable_records(path: Path) -> tuple[list[Record], int]:
    """Read the records in a file that may be damaged. Return those that can be read, and the number of the other lines.

    A last line that a crash cut short does not count.  Raises OSError.
    """
    try:
        *lines, _ = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], 0
    records = [_parsed(line) for line in lines]
    sound = [record for record in records if record is not None]
    return sound, len(records) - len(sound)


def _parsed(line: bytes) -> Record | None:
    try:
        return parse_record(line)
    except ValueError:
        return None
