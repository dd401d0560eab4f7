"""Rows of CSV, TSV, JSONL and Parquet files, the course's TAB-separated files included, with every cell as text.

    tables.Layout -> records -> (line, column -> text) -> corpus.py      faults of rows and notes -> tables.Findings

All formats follow the same rules for what a cell's text is, what is replaced, and when a row is skipped.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from minbert_core.data.tables import (
    CorpusError,
    Findings,
    Layout,
    as_text,
    bytes_of,
    has_lone_surrogate,
    text_of,
    without_lone_surrogates,
)

MAX_NAMES = 20  # columns that one error lists

Record = tuple[int, dict[str, str]]  # line (in a Parquet file the row's number), column -> text

# The notes' words for a field that its author may not have intended.
LINE_END = "a line end inside quotes"
SURROGATE = "half a character (a lone surrogate), which is read as U+FFFD"
DOUBLED = "doubled quotes inside quotes, which are read as they are; `tsv_quotes: true` reads them as CSV does"
CUT_OFF = "a quote that does not close where the row ends too early; `tsv_quotes: true` reads up to the line where it closes"

_CSV_QUOTED = re.compile(r'(?:^|\t)"((?:[^"\t]|"")*+)"(?=\t|$)')  # a TSV field in quotes; inside, quotes are doubled


def records(layout: Layout, findings: Findings) -> Iterator[Record]:
    """Yield each row of a file, in its order.  Raises CorpusError."""
    read = {".parquet": _parquet, ".jsonl": _jsonl}.get(layout.suffix, _separated)
    has_rows = False
    for row in read(layout, findings):
        has_rows = True
        yield row
    if not has_rows and not findings.faults:
        name = layout.path.name
        raise CorpusError(f"{name} has {'no rows' if layout.suffix == '.jsonl' else 'a header, but no rows'}. ({layout.path})")


def _require(columns: Iterable[str], names: list[str], where: str, what: str, hint: str = "") -> None:
    absent = [column for column in columns if column not in names]
    if absent:
        shown = [repr(name if len(name) <= 40 else f"{name[:40]}…") for name in names[:MAX_NAMES]]
        shown += [f"and {len(names) - MAX_NAMES} more"] if len(names) > MAX_NAMES else []
        raise CorpusError(f"{where}: column '{absent[0]}' is missing. {what} {', '.join(shown)}.{hint}")


# ------------------------------------------------------------------------------------------------------------ CSV and TSV


def _separated(layout: Layout, findings: Findings) -> Iterator[Record]:
    # csv.reader and not DictReader, which knows only a record's last line and skips the blank lines before it.
    text, name = text_of(layout.path, layout.remedy), layout.path.name
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))  # for the whole process, 131,072 by default; never lowered
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if layout.has_quotes else csv.QUOTE_NONE
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=layout.delimiter, quoting=quoting)
    header = next((fields for fields in reader if any(map(str.strip, fields))), None)
    if header is None:
        raise CorpusError(f"{name} is empty. Its first line must name the columns {', '.join(layout.columns)}. ({layout.path})")
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
            if not layout.has_quotes and len(fields) < len(header) and _opens_quotes(fields[-1]):
                findings.held[CUT_OFF].append(line)
            yield line, dict(zip(header, fields, strict=False))


def _require_header(layout: Layout, header: list[str], line: int) -> None:
    mark = "TABs" if layout.delimiter == "\t" else "commas"
    are_quoted = not layout.has_quotes and any(f'"{column}"' in header for column in layout.columns)
    hint = " Set `tsv_quotes: true` if quotes enclose the fields." if are_quoted else ""
    where = f"{layout.path.name}:{line}"
    _require(layout.columns, header, where, f"The columns, separated by {mark}, are", hint)
    for column in (*layout.columns, *layout.optional):
        if header.count(column) > 1:
            raise CorpusError(f"{where}: the name of a column must be unique. '{column}' names {header.count(column)} columns.")


def _swallows(layout: Layout, header: list[str], fields: list[str], lines: list[str]) -> bool:
    """Return True if a quote that is part of a text joined several rows, `lines`, into the record `fields`.

    There are three signs: the record is not well-formed CSV (a quote closes in the middle of a field, or never), it has too few
    or too many fields, or each of its lines is a valid row.
    """
    if len(fields) > len(header) or any(column not in header[: len(fields)] for column in layout.columns):
        return True
    try:
        next(csv.reader(["\n".join(lines)], delimiter=layout.delimiter, strict=True))
    except csv.Error:
        return True
    rows = (line.split(layout.delimiter) for line in lines)
    return all(len(row) == len(header) and layout.is_row(dict(zip(header, row, strict=True))) for row in rows)


def _swallowed(name: str, line: int, last_line: int) -> str:
    return (
        f"{name}:{line}: a row must close the quotes it opens. The one opened in line {line} swallows the rows up to line "
        f"{last_line}. Write each quote of a text twice and enclose the text in quotes."
    )


def _opening_lines(fields: list[str], line: int) -> list[int]:
    """List the line where each field that contains a line end begins, for a record that begins in `line`."""
    ends = [text.count("\n") for text in fields]
    return [line + sum(ends[:i]) for i, count in enumerate(ends) if count]


def _opens_quotes(text: str) -> bool:
    return text.startswith('"') and text.count('"') % 2 == 1


def _doubled(text: str) -> list[int]:
    """List the line of each field that looks like a quoted CSV field with doubled quotes inside."""
    if '""' not in text:
        return []
    rows = enumerate(text.split("\n"), start=1)
    return [line for line, row in rows if '""' in row for inside in _CSV_QUOTED.findall(row) if '""' in inside]


# ------------------------------------------------------------------------------------------------------ JSONL and Parquet


def _jsonl(layout: Layout, findings: Findings) -> Iterator[Record]:
    name, first_line, keys = layout.path.name, 0, dict[str, object]()
    # not splitlines: a text may contain U+2028, which does not end a line of JSON
    for line, text in enumerate(text_of(layout.path, layout.remedy).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and lists nested too deep
            reason = getattr(error, "msg", error)
            findings.faults.append(f"{name}:{line}: every line must be a JSON object. This one is not: {reason}.")
            continue
        if not isinstance(fields, dict):
            findings.faults.append(f"{name}:{line}: every line must be a JSON object. Got {text.strip()[:40]}.")
            continue
        first_line = first_line or line
        keys.update(fields)
        wanted = {column: fields.get(column) for column in (*layout.columns, *layout.optional)}
        if (cells := _cells(name, line, wanted, findings)) is not None:
            yield line, cells
    if first_line:  # some rows may lack a key, but not all
        _require(layout.columns, list(keys), f"{name}:{first_line}", "The keys are")


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
    """Yield the rows of a Parquet file in record batches, with the required columns and the optional ones that it has."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(bytes_of(layout.path, layout.remedy)))
        names = file.schema_arrow.names
        _require(layout.columns, names, layout.path.name, "The columns are")
        present = [*layout.columns, *(column for column in layout.optional if column in names)]
        yield from file.iter_batches(columns=list(dict.fromkeys(present)))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CorpusError(f"{layout.path.name} is not a Parquet file, or is cut short ({reason}).") from None


def _first_undecodable(batch: Any) -> int:
    """Find the number, from 1, of the first row whose text is not UTF-8."""
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
            text = without_lone_surrogates(text)
        cells[column] = text
    return cells
