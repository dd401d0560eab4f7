"""The course's files as examples: the first step of the flow, before any tokenizer or tensor.

A folder holds one TAB-separated file a task and split, read by column name with csv's default quoting. Texts are prepared
as the course prepares them. Rows that the course's own files lost to a quoting accident (label or sentence empty) are
dropped, each with its line and reason; anything else that is wrong is a CorpusError that names file, line and law.

`read_split` reads train and dev. The test split has a door of its own, `load_test_split`, at the end of the file.

    python -m minbert_core.data.corpus download --to data/      fetches the course's public files (see download.py)
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from minbert_core.data.tasks import SplitName, Task

MAX_FAULTS = 5  # shown in one error; the rest are counted


class CorpusError(ValueError):
    """A corpus cannot be read as it is; one sentence a fault, `file:line: what, the law, the value`."""


@dataclass(frozen=True)
class Dropped:
    """A row left out: its line in the file (the header is line 1), its id and why."""

    line: int
    id: str
    reason: str


@dataclass(frozen=True)
class Split:
    """The examples of one file, in its order. `texts` are prepared, one or two an example; `labels` None: a test without."""

    task: Task
    name: str
    path: Path
    ids: list[str]
    texts: list[tuple[str, ...]]
    labels: list[float] | None
    dropped: list[Dropped]


@dataclass(frozen=True)
class _Row:
    line: int
    id: str
    texts: tuple[str, ...]
    label: str


def read_split(folder: Path, task: Task, split: SplitName) -> Split:
    """The labelled examples of train or dev.  Raises CorpusError."""
    assert split in ("train", "dev"), f"read_split opens train and dev only, not {split!r}"
    path = folder / task.files[split]
    faults: list[str] = []
    dropped: list[Dropped] = []
    kept: list[_Row] = []
    labels: list[float] = []
    for row in _rows(path, task, [task.label_column], faults):
        # An empty label or sentence is what upstream's quoting accident leaves behind; the course's loader skips it in silence.
        missing = [c for c, text in zip(task.text_columns, row.texts, strict=True) if not text]
        missing += [task.label_column] if not row.label else []
        if missing:
            dropped.append(Dropped(row.line, row.id, f"empty: {', '.join(missing)}"))
            continue
        label = _label(row, path, task, faults)
        if label is not None:
            kept.append(row)
            labels.append(label)
    _raise(faults)
    if not kept:
        raise CorpusError(f"{path.name}: every row was dropped ({dropped[0].reason} in line {dropped[0].line}, and so on).")
    return Split(task, split, path, [row.id for row in kept], [row.texts for row in kept], labels, dropped)


def fingerprint(path: Path) -> str:
    """sha256 of the file's bytes, in hex.  Raises CorpusError where it cannot be read."""
    return hashlib.sha256(_bytes_of(path)).hexdigest()


# ---------------------------------------------------------------------------------------------------- a file, row by row


def _rows(path: Path, task: Task, extra_columns: list[str], faults: list[str]) -> Iterator[_Row]:
    """Each row of the file by column name; what is wrong with a row's form goes to `faults`, with the file itself is raised."""
    seen: dict[str, int] = {}
    for line, last_line, fields in _records(path, ["id", *task.text_columns, *extra_columns], faults):
        identity = fields.get("id", "").lower().strip()
        lost = [column for column in (*task.text_columns, *extra_columns) if column not in fields]
        if lost and last_line > line:
            # Not one row but several went: each lost row could not be named, so this is no row to drop.
            faults.append(
                f"{path.name}:{line}: a row must close the quotes it opens. The one opened here runs on to line {last_line}."
            )
        elif not identity:
            faults.append(f"{path.name}:{line}: every row must have an id. This one's is empty.")
        elif identity in seen:
            faults.append(f"{path.name}:{line}: an id must be unique. '{identity}' stands in line {seen[identity]} already.")
        else:
            seen[identity] = line
            texts = tuple(_prepare(fields.get(column, ""), task) for column in task.text_columns)
            yield _Row(line, identity, texts, fields.get(task.label_column, "").strip())


def _records(path: Path, columns: list[str], faults: list[str]) -> Iterator[tuple[int, int, dict[str, str]]]:
    """(first line, last line, column -> text) of each record; a short record lacks its last columns."""
    # csv.reader rather than DictReader, whose line number is a record's last line, blank lines before it included.
    reader = csv.reader(io.StringIO(_text_of(path), newline=""), delimiter="\t")
    header = next(reader, None)
    if header is None:
        raise CorpusError(f"{path.name} is empty; its first line must name the columns {', '.join(columns)}. ({path})")
    absent = [column for column in columns if column not in header]
    if absent:
        found = ", ".join(repr(name) for name in header)
        raise CorpusError(f"{path.name}:1: column '{absent[0]}' is missing; the columns, separated by TABs, are {found}.")
    last_line, found_any = reader.line_num, False
    try:
        for fields in reader:
            line, last_line = last_line + 1, reader.line_num
            if not fields:
                continue
            found_any = True
            if len(fields) > len(header):
                faults.append(f"{path.name}:{line}: a row must have {len(header)} fields, as the header. Got {len(fields)}.")
                continue
            yield line, last_line, dict(zip(header, fields, strict=False))
    except csv.Error as error:  # in effect: a quote that nothing closes, until the field is larger than csv allows
        where = f"{path.name}:{last_line + 1}"
        raise CorpusError(f"{where}: the row cannot be read ({error}); look for an unclosed quote.") from None
    if not found_any:
        raise CorpusError(f"{path.name} has a header, but no rows. ({path})")


def _bytes_of(path: Path) -> bytes:
    if path.is_dir():
        raise CorpusError(f"{path} is a folder, not a file.")
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        where = f"in the folder {path.parent}" if path.parent.is_dir() else f"because there is no folder {path.parent}"
        raise CorpusError(
            f"There is no file {path.name} {where}: give the folder that holds the course's files with `--data DIR` "
            "(`python -m minbert_core.data.corpus download --to DIR` fetches the public ones), or take the embedded corpus "
            "with `--data toy --encoder tiny`."
        ) from None
    except OSError as error:
        raise CorpusError(f"Cannot read {path}: {error.strerror}.") from None


def _text_of(path: Path) -> str:
    data = _bytes_of(path)
    try:
        return data.decode("utf-8-sig")  # a byte-order mark, which spreadsheets write, is no part of the first column's name
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CorpusError(f"{path.name}:{line}: the file must be UTF-8 text. Got the byte 0x{data[error.start]:02x}.") from None


def _prepare(text: str, task: Task) -> str:
    """The course's own preparation, its `preprocess_string` for pairs; the tokenizer's normaliser comes after it."""
    text = text.lower()
    if task.course_text == "strip":
        return text.strip()
    for mark, spaced in ((".", " ."), ("?", " ?"), (",", " ,"), ("'", " '")):
        text = text.replace(mark, spaced)
    return " ".join(text.split())


def _label(row: _Row, path: Path, task: Task, faults: list[str]) -> float | None:
    """The label as a real number: STS stays 2.4, Quora's '0.0' is 0. None, and a fault, where it breaks the task's law."""
    low, high = task.label_range
    try:
        value = float(row.label)
    except ValueError:
        value = math.nan
    whole = task.kind != "regression"
    if low <= value <= high and (not whole or value.is_integer()):  # false for nan
        return value
    law = f"a {'whole' if whole else 'real'} number in [{low:g}, {high:g}]"
    faults.append(f"{path.name}:{row.line}: label '{task.label_column}' must be {law}. Got '{row.label}'.")
    return None


def _raise(faults: list[str]) -> None:
    if faults:
        more = [f"... and {len(faults) - MAX_FAULTS} more."] if len(faults) > MAX_FAULTS else []
        raise CorpusError("\n".join(faults[:MAX_FAULTS] + more))


# -------------------------------------------------------------------------------------------------------- the test split
# Its own function, so that searching for its callers finds everyone who ever opens a test file: best_to_test, and the
# download, which reads what it has fetched.


def load_test_split(folder: Path, task: Task) -> Split:
    """The test examples, every row of them: an empty sentence is ''. Labels where the file has the column, else None.

    Raises CorpusError, also where only some of the rows have a label.
    """
    path = folder / task.files["test"]
    faults: list[str] = []
    rows = list(_rows(path, task, [], faults))
    labelled = [row for row in rows if row.label]
    if labelled and len(labelled) < len(rows):
        where = f"{path.name}:{next(row.line for row in rows if not row.label)}"
        law = f"label '{task.label_column}' must be in every row or in none"
        faults.append(f"{where}: {law}. Got none here, {len(labelled)} in {len(rows)} rows.")
    labels = [_label(row, path, task, faults) for row in labelled]
    _raise(faults)
    known = [label for label in labels if label is not None]  # all of them: a bad one has raised
    return Split(task, "test", path, [row.id for row in rows], [row.texts for row in rows], known or None, [])


if __name__ == "__main__":
    import runpy  # the command's module reads files with this one: run by name, it is imported by nothing that it imports

    runpy.run_module("minbert_core.data.download", run_name="__main__", alter_sys=True)
