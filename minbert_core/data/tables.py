"""A file of rows, read by column name as text: the course's TAB-separated files, and CSV, TSV, JSONL, Parquet of one's own.

    file -> records: (line, last line, column -> text) -> corpus.py, which knows what a row means

What is wrong with a file as a whole is raised as CorpusError; what is wrong with a row joins `faults`, and it is left out.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")  # of own files, told by their suffix; CSV and TSV have a header

Record = tuple[int, int, dict[str, str]]  # first line, last line, column -> text


class CorpusError(ValueError):
    """A corpus cannot be read as it is; one sentence a fault, `file:line: what, the law, the value`."""


def records(
    path: Path, columns: list[str], optional: list[str], faults: list[str], remedy: str, is_own: bool = False
) -> Iterator[Record]:
    """Each row of a file that must have `columns` and may have `optional`; a row may lack some of them.

    `remedy` ends the sentence about a missing file.

    The course's own files (not is_own) are TAB-separated whatever their suffix. Of a Parquet file the line is the row's number.
    Raises CorpusError.
    """
    suffix = path.suffix.lower() if is_own else ".tsv"
    if suffix == ".parquet":
        rows = _parquet(path, columns, optional, faults, remedy)
    elif suffix == ".jsonl":
        rows = _jsonl(path, columns, optional, faults, remedy)
    else:
        rows = _separated(path, "\t" if suffix == ".tsv" else ",", columns, faults, remedy)
    found_any = False
    for row in rows:
        found_any = True
        yield row
    if not found_any and not faults:
        raise CorpusError(f"{path.name} has {'no rows' if suffix == '.jsonl' else 'a header, but no rows'}. ({path})")


def as_text(value: object) -> str:
    """A cell as text, alike from every format: a whole number without a point (Parquet's 4.0 is '4'), false, '' for none.

    Raises ValueError where it is neither text, number nor boolean.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return "" if value != value else str(value)  # nan is how tables of numbers say that there is none
    raise ValueError(f"must be text, a number or a boolean. Got {type(value).__name__}.")


def as_label(value: object) -> str:
    """A class's name alike from a config and from every format: as `as_text`, without blanks at its ends, `4.0` being `4`."""
    text = as_text(value).strip()
    whole = text.removesuffix(".0")
    return whole if whole.removeprefix("-").isdigit() else text


def _separated(path: Path, delimiter: str, columns: list[str], faults: list[str], remedy: str) -> Iterator[Record]:
    # csv.reader rather than DictReader, whose line number is a record's last line, blank lines before it included.
    reader = csv.reader(io.StringIO(_text_of(path, remedy), newline=""), delimiter=delimiter)
    header = next(reader, None)
    if header is None:
        raise CorpusError(f"{path.name} is empty; its first line must name the columns {', '.join(columns)}. ({path})")
    mark = "TABs" if delimiter == "\t" else "commas"
    _require(columns, header, f"{path.name}:1", f"the columns, separated by {mark}, are")
    last_line = reader.line_num
    try:
        for fields in reader:
            line, last_line = last_line + 1, reader.line_num
            if len(fields) > len(header):
                faults.append(f"{path.name}:{line}: a row must have {len(header)} fields, as the header. Got {len(fields)}.")
            elif fields:
                yield line, last_line, dict(zip(header, fields, strict=False))
    except csv.Error as error:  # in effect: a quote that nothing closes, until the field is larger than csv allows
        where = f"{path.name}:{last_line + 1}"
        raise CorpusError(f"{where}: the row cannot be read ({error}); look for an unclosed quote.") from None


def _jsonl(path: Path, columns: list[str], optional: list[str], faults: list[str], remedy: str) -> Iterator[Record]:
    is_first = True
    # not splitlines: a text may hold U+2028, which ends no line of JSON
    for line, text in enumerate(_text_of(path, remedy).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            faults.append(f"{path.name}:{line}: every line must be a JSON object. This one is not: {error.msg}.")
            continue
        if not isinstance(fields, dict):
            faults.append(f"{path.name}:{line}: every line must be a JSON object. Got {text.strip()[:40]}.")
            continue
        if is_first:
            _require(columns, list(fields), f"{path.name}:{line}", "the keys are")
            is_first = False
        wanted = {column: fields.get(column) for column in (*columns, *optional)}
        if (cells := _cells(path, line, wanted, faults)) is not None:
            yield line, line, cells


def _parquet(path: Path, columns: list[str], optional: list[str], faults: list[str], remedy: str) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(bytes_of(path, remedy)))
    except pa.ArrowInvalid as error:
        raise CorpusError(f"{path.name} is no Parquet file, or cut short ({str(error).splitlines()[0]}).") from None
    _require(columns, file.schema_arrow.names, path.name, "the columns are")
    line, present = 0, [*columns, *(column for column in optional if column in file.schema_arrow.names)]
    for batch in file.iter_batches(columns=list(dict.fromkeys(present))):
        for fields in batch.to_pylist():
            line += 1
            if (cells := _cells(path, line, fields, faults)) is not None:
                yield line, line, cells


def _cells(path: Path, line: int, fields: dict[str, Any], faults: list[str]) -> dict[str, str] | None:
    cells = {}
    for column, value in fields.items():
        try:
            cells[column] = as_text(value)
        except ValueError as error:
            faults.append(f"{path.name}:{line}: '{column}' {error}")
            return None
    return cells


def _require(columns: Iterable[str], found: list[str], where: str, what: str) -> None:
    absent = [column for column in columns if column not in found]
    if absent:
        shown = ", ".join(repr(name) for name in found)
        raise CorpusError(f"{where}: column '{absent[0]}' is missing; {what} {shown}.")


def bytes_of(path: Path, remedy: str) -> bytes:
    """The bytes of a file.  Raises CorpusError, which `remedy` ends where the file is missing."""
    if path.is_dir():
        raise CorpusError(f"{path} is a folder, not a file.")
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        where = f"in the folder {path.parent}" if path.parent.is_dir() else f"because there is no folder {path.parent}"
        raise CorpusError(f"There is no file {path.name} {where}: {remedy}") from None
    except OSError as error:
        raise CorpusError(f"Cannot read {path}: {error.strerror}.") from None


def _text_of(path: Path, remedy: str) -> str:
    data = bytes_of(path, remedy)
    try:
        return data.decode("utf-8-sig")  # a byte-order mark, which spreadsheets write, is no part of the first column's name
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CorpusError(f"{path.name}:{line}: the file must be UTF-8 text. Got the byte 0x{data[error.start]:02x}.") from None
