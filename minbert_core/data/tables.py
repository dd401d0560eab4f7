"""A file of rows, read by column name as text: the course's TAB-separated files, and CSV, TSV, JSONL, Parquet of one's own.

    Layout -> records: (line, column -> text) -> corpus.py, which knows what a row means

A fault of a whole file is raised as CorpusError. `Findings` collects the rest: faults of single rows, which are skipped, and
what a reader should know of the fields that were read.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")  # of own files, told by their suffix; CSV and TSV have a header
MAX_SHOWN = 5  # lines, of those where a note holds
MAX_NAMES = 20  # columns in one error

Record = tuple[int, dict[str, str]]  # line (of a Parquet file the row's number), column -> text

# Peculiarities of a field that its author may not have meant, as notes name them.
LINE_END = "a line end inside quotes"
SURROGATE = "half a character (a lone surrogate), which is read as U+FFFD"
DOUBLED = "doubled quotes inside quotes, which are read as they are; `tsv_quotes: true` reads them as CSV does"

_LONE = re.compile("[\ud800-\udfff]")
_CSV_QUOTED = re.compile(r'(?:^|\t)"((?:[^"\t]|"")*+)"(?=\t|$)')  # a TSV field in quotes; inside, quotes are doubled


class CorpusError(ValueError):
    """A corpus cannot be read as it is; one sentence a fault, `file:line: what, the law, the value`."""


@dataclass(frozen=True)
class Layout:
    """A file and the form it must have."""

    path: Path
    suffix: str  # one of FORMATS: the form, whatever the file's name is
    columns: list[str]  # which the file must have; a row may lack some
    optional: list[str]
    has_quotes: bool  # whether double quotes enclose fields of a CSV or TSV file; if not, they are characters like any other
    is_row: Callable[[dict[str, str]], bool]  # of a line read as a row: whether its label is valid
    remedy: str  # ends the sentence about a missing file

    @property
    def delimiter(self) -> str:
        return "\t" if self.suffix == ".tsv" else ","


@dataclass
class Findings:
    """Faults and peculiarities that reading a file finds, in addition to its rows."""

    faults: list[str] = field(default_factory=list)  # sentences; the rows are skipped
    held: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))  # LINE_END, … -> line of each field

    def notes(self, path: Path) -> list[str]:
        """A sentence for each peculiarity of the fields: how many have it, and in which lines."""
        return [_note(path, what, lines) for what, lines in self.held.items()]


def _note(path: Path, what: str, lines: list[int]) -> str:
    count = "1 field" if len(lines) == 1 else f"{len(lines)} fields"
    different = list(dict.fromkeys(lines))
    shown, more = ", ".join(map(str, different[:MAX_SHOWN])), len(different) - MAX_SHOWN
    where = f"line{'s' * (len(different) > 1)} {shown}" + (f" and {more} more" if more > 0 else "")
    return f"{count} of {path.name} with {what}: {where}"


def records(layout: Layout, findings: Findings) -> Iterator[Record]:
    """Each row of a file, in its order.  Raises CorpusError."""
    read = {".parquet": _parquet, ".jsonl": _jsonl}.get(layout.suffix, _separated)
    found_any = False
    for row in read(layout, findings):
        found_any = True
        yield row
    if not found_any and not findings.faults:
        name = layout.path.name
        raise CorpusError(f"{name} has {'no rows' if layout.suffix == '.jsonl' else 'a header, but no rows'}. ({layout.path})")


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
    """A class's name alike from a config and from every format: as `as_text`, without blanks at its ends.

    `4.0` is `4`; `True` and `TRUE`, as Python and spreadsheets write a boolean, are `true`.
    """
    text = as_text(value).strip()
    if text.lower() in ("true", "false"):
        return text.lower()
    whole = text.removesuffix(".0")
    return whole if whole.removeprefix("-").isdigit() else text


def has_lone_surrogate(text: str) -> bool:
    """True for half of a surrogate pair. UTF-8 cannot encode it; escapes in JSON and arguments of a command can hold it."""
    return not text.isascii() and _LONE.search(text) is not None


# ------------------------------------------------------------------------------------------------------------ CSV and TSV


def _separated(layout: Layout, findings: Findings) -> Iterator[Record]:
    # csv.reader rather than DictReader, whose line number is a record's last line, blank lines before it included.
    text, name = text_of(layout.path, layout.remedy), layout.path.name
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))  # of the process, 131,072 by default; only raised
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if layout.has_quotes else csv.QUOTE_NONE
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=layout.delimiter, quoting=quoting)
    header = next((fields for fields in reader if any(map(str.strip, fields))), None)
    if header is None:
        raise CorpusError(f"{name} is empty; its first line must name the columns {', '.join(layout.columns)}. ({layout.path})")
    _require_header(layout, header, reader.line_num - "".join(header).count("\n"))
    if not layout.has_quotes and (doubled := _doubled(text)):
        findings.held[DOUBLED] = doubled
    lines: list[str] = []
    last_line = reader.line_num
    for fields in reader:
        line, last_line = last_line + 1, reader.line_num
        if last_line > line:
            lines = lines or text.split("\n")
            if _swallows(layout, header, fields, lines[line - 1 : last_line]):
                findings.faults.append(_swallowed(name, line, last_line))
                continue
            findings.held[LINE_END] += _opening_lines(fields, line)
        if len(fields) > len(header):
            findings.faults.append(f"{name}:{line}: a row must have {len(header)} fields, as the header. Got {len(fields)}.")
        elif fields:
            yield line, dict(zip(header, fields, strict=False))


def _require_header(layout: Layout, header: list[str], line: int) -> None:
    mark = "TABs" if layout.delimiter == "\t" else "commas"
    are_quoted = not layout.has_quotes and any(f'"{column}"' in header for column in layout.columns)
    hint = " Set `tsv_quotes: true` if quotes enclose the fields." if are_quoted else ""
    _require(layout.columns, header, f"{layout.path.name}:{line}", f"the columns, separated by {mark}, are", hint)


def _swallows(layout: Layout, header: list[str], fields: list[str], lines: list[str]) -> bool:
    """True if a quote that is part of a text joined `lines`, several rows, into the record `fields`.

    The record shows it in one of three ways: it is not well-formed CSV (a quote closes in the middle of a field, or never), it
    has too few or too many fields, or each of its lines is a row by itself.
    """
    try:
        list(csv.reader([f"{line}\n" for line in lines], delimiter=layout.delimiter, strict=True))
    except csv.Error:
        return True
    if len(fields) > len(header) or any(column not in header[: len(fields)] for column in layout.columns):
        return True
    rows = [line.split(layout.delimiter) for line in lines]
    return all(len(row) == len(header) and layout.is_row(dict(zip(header, row, strict=True))) for row in rows)


def _swallowed(name: str, line: int, last_line: int) -> str:
    return (
        f"{name}:{line}: a row must close the quotes it opens. The one opened in line {line} swallows the rows up to line "
        f"{last_line}. Write each quote of a text twice and enclose the text in quotes."
    )


def _opening_lines(fields: list[str], line: int) -> list[int]:
    """The line where the quote of each field that holds a line end opens, in a record that begins in `line`."""
    ends = [text.count("\n") for text in fields]
    return [line + sum(ends[:i]) for i, count in enumerate(ends) if count]


def _doubled(text: str) -> list[int]:
    """The line of each field that looks as CSV would write a text with quotes in it."""
    if '""' not in text:
        return []
    rows = enumerate(text.split("\n"), start=1)
    return [line for line, row in rows if '""' in row for inside in _CSV_QUOTED.findall(row) if '""' in inside]


# ------------------------------------------------------------------------------------------------------ JSONL and Parquet


def _jsonl(layout: Layout, findings: Findings) -> Iterator[Record]:
    name, first_line, keys = layout.path.name, 0, dict[str, None]()
    # not splitlines: a text may hold U+2028, which ends no line of JSON
    for line, text in enumerate(text_of(layout.path, layout.remedy).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:  # also a number of thousands of digits, a list in a list in a list …
            reason = getattr(error, "msg", error)
            findings.faults.append(f"{name}:{line}: every line must be a JSON object. This one is not: {reason}.")
            continue
        if not isinstance(fields, dict):
            findings.faults.append(f"{name}:{line}: every line must be a JSON object. Got {text.strip()[:40]}.")
            continue
        first_line = first_line or line
        keys |= dict.fromkeys(fields)
        wanted = {column: fields.get(column) for column in (*layout.columns, *layout.optional)}
        if (cells := _cells(name, line, wanted, findings)) is not None:
            yield line, cells
    if first_line:  # a row may lack a key, all of them may not
        _require(layout.columns, list(keys), f"{name}:{first_line}", "the keys are")


def _parquet(layout: Layout, findings: Findings) -> Iterator[Record]:
    name, line = layout.path.name, 0
    for batch in _batches(layout):
        try:
            rows = batch.to_pylist()
        except UnicodeDecodeError:
            raise CorpusError(f"{name}:{line + _first_undecodable(batch)}: texts must be UTF-8. This row's are not.") from None
        for fields in rows:
            line += 1
            if (cells := _cells(name, line, fields, findings)) is not None:
                yield line, cells


def _batches(layout: Layout) -> Iterator[Any]:
    """The rows of a Parquet file in record batches, with the columns that are wanted and there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(bytes_of(layout.path, layout.remedy)))
        names = file.schema_arrow.names
        _require(layout.columns, names, layout.path.name, "the columns are")
        present = [*layout.columns, *(column for column in layout.optional if column in names)]
        yield from file.iter_batches(columns=list(dict.fromkeys(present)))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CorpusError(f"{layout.path.name} is no Parquet file, or cut short ({reason}).") from None


def _first_undecodable(batch: Any) -> int:
    """The number, from 1, of the first row whose text is not UTF-8."""
    for row in range(batch.num_rows):
        try:
            batch.slice(row, 1).to_pylist()
        except UnicodeDecodeError:
            return row + 1
    raise AssertionError("a batch that cannot be decoded has a row that cannot")


def _cells(name: str, line: int, fields: dict[str, Any], findings: Findings) -> dict[str, str] | None:
    cells = {}
    for column, value in fields.items():
        try:
            text = as_text(value)
        except ValueError as error:
            findings.faults.append(f"{name}:{line}: '{column}' {error}")
            return None
        if has_lone_surrogate(text):
            findings.held[SURROGATE].append(line)
            text = _LONE.sub("\ufffd", text)
        cells[column] = text
    return cells


# ---------------------------------------------------------------------------------------------------------- what all share


def _require(columns: Iterable[str], found: list[str], where: str, what: str, hint: str = "") -> None:
    absent = [column for column in columns if column not in found]
    if absent:
        shown = [repr(name if len(name) <= 40 else f"{name[:40]}…") for name in found[:MAX_NAMES]]
        shown += [f"and {len(found) - MAX_NAMES} more"] if len(found) > MAX_NAMES else []
        raise CorpusError(f"{where}: column '{absent[0]}' is missing; {what} {', '.join(shown)}.{hint}")


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


def text_of(path: Path, remedy: str) -> str:
    """The text of a file, each line ending in "\\n"; a carriage return inside a line is a blank.

    Where "\\n" is nowhere, a carriage return ends a line.  Raises CorpusError, also where the file is not UTF-8.
    """
    data = bytes_of(path, remedy)
    try:
        text = data.decode("utf-8-sig")  # a byte-order mark, which spreadsheets write, is no part of the first column's name
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CorpusError(f"{path.name}:{line}: the file must be UTF-8 text. Got the byte 0x{data[error.start]:02x}.") from None
    if "\r" in text:
        text = re.sub(r"\r+\n", "\n", text)
        text = text.replace("\r", " " if "\n" in text else "\n")
    return text
