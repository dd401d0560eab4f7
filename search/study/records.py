"""The lines of a metrics.jsonl, read one by one, so that a damaged line does not hide the others."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from minbert_core.train.trial import in_current_names

Record = dict[str, Any]
COUNTS, FIGURES = ("examples", "time_ms"), ("seconds",)


def check_record(record: Any) -> Record:
    """Return a record that has what a search reads of it.  Raises ValueError or KeyError if it has not."""
    if not isinstance(record, dict) or not isinstance(record["kind"], str):
        raise ValueError("a record is a map with a kind")
    is_dev = record["kind"] == "dev"
    for name in (*COUNTS, *(("rung",) if is_dev else ())):
        if not _is_number(record[name]) or not isinstance(record[name], int) or record[name] < 0:
            raise ValueError(f"{name} is a whole number")
    for name in (*FIGURES, *(("dev/score",) if is_dev else ())):
        if not _is_number(record[name]):
            raise ValueError(f"{name} is a finite number")
    if is_dev and not all(_is_number(value) for name, value in record.items() if name.startswith("dev/")):
        raise ValueError("a metric is a finite number")
    if not all(_is_number(record[name]) for name in ("passes", "step") if name in record):
        raise ValueError("passes and steps are counted")
    return record


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63 and math.isfinite(value)


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
        record = json.loads(line)
        return check_record(in_current_names(record) if "part" in record else record)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
