"""Files of rows with all their columns, read and written in chunks: CSV, TSV, JSONL and Parquet, by suffix.

    open_rows(path) -> Rows -> chunks() -> pyarrow tables -> RowWriter -> another file, of any of the formats

For texts to answer, not for a corpus: formats.py reads that, with labels. Cells of CSV and TSV stay the texts that they are, so
that they are written as they were. In a .tsv file quotes are part of the text; the course's files, which are separated by TABs
but named .csv, enclose fields in them. A chunk is all that is in memory.
"""

from __future__ import annotations

import contextlib
import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice, repeat
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from minbert_core.data.tables import FORMATS, without_lone_surrogates
from minbert_core.files import check_is_file

CHUNK = 4096  # rows: enough for passes of texts of like length; 2 MB of sentences


@dataclass(frozen=True)
class Rows:
    """An opened file: its columns, its rows in chunks, and the share of it that was read so far."""

    names: list[str]
    chunks: Iterator[pa.Table]
    share_read: Callable[[], float]


@contextlib.contextmanager
def open_rows(path: Path, size: int = CHUNK) -> Iterator[Rows]:
    """Open a file of rows; its suffix is one of FORMATS.  Raises ValueError: not such a file, or without rows; OSError."""
    check_is_file(path)
    reader = {".parquet": _open_parquet, ".jsonl": _open_jsonl}.get(path.suffix, _open_separated)
    with path.open("rb") as file:
        try:
            rows = reader(path, file, size)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
            raise _unreadable(path, error) from None
        if twice := sorted({name for name in rows.names if rows.names.count(name) > 1}):
            raise ValueError(f"{path}: the name of a column must be unique. '{twice[0]}' names {rows.names.count(twice[0])}.")
        chunks = _explained(path, rows.chunks)
        if (first := next(chunks, None)) is None:
            raise ValueError(f"{path} has no rows.")
        yield Rows(rows.names, chain([first], chunks), rows.share_read)


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} cannot be read as {path.suffix[1:].upper()}: {str(error).splitlines()[0].rstrip('.')}.")


def _explained(path: Path, chunks: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield the chunks; an error of pyarrow becomes a ValueError that names the file."""
    try:
        yield from chunks
    except pa.ArrowException as error:
        raise _unreadable(path, error) from None


def _in_chunks(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """Yield tables of `size` rows, the last one of fewer."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(each.num_rows for each in waiting) >= size:
            table = pa.Table.from_batches(waiting)
            whole = table.num_rows - table.num_rows % size
            yield from (table.slice(start, size) for start in range(0, whole, size))
            waiting = table.slice(whole).to_batches()
    if any(each.num_rows for each in waiting):
        yield pa.Table.from_batches(waiting)


def _open_parquet(path: Path, file: BinaryIO, size: int) -> Rows:
    content = pa.parquet.ParquetFile(file)
    total, read = content.metadata.num_rows, 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal read
        for batch in content.iter_batches(batch_size=size):
            read += batch.num_rows
            yield batch

    return Rows(content.schema_arrow.names, _in_chunks(batches(), size), lambda: read / total if total else 1.0)


def _open_separated(path: Path, file: BinaryIO, size: int) -> Rows:
    has_quotes, is_tabs = path.suffix == ".csv", path.suffix == ".tsv" or _has_tabs(file.readline())
    file.seek(0)
    csv.field_size_limit(max(csv.field_size_limit(), path.stat().st_size + 1))  # for the whole process; never lowered
    encodings = chain(["utf-8-sig"], repeat("utf-8"))  # spreadsheets write a byte-order mark before the first line
    parts = chain.from_iterable(line.splitlines(keepends=True) for line in iter(file.readline, b""))  # a CR ends one, too
    lines = (part.decode(encoding) for part, encoding in zip(parts, encodings, strict=False))
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if has_quotes else csv.QUOTE_NONE
    records = _records(path, csv.reader(lines, delimiter="\t" if is_tabs else ",", quoting=quoting, strict=True))
    names = next(records, [])

    def chunks() -> Iterator[pa.Table]:
        while rows := list(islice(records, size)):
            columns = zip(*rows, strict=True)
            yield pa.table({name: pa.array(column, pa.string()) for name, column in zip(names, columns, strict=True)})

    return Rows(names, chunks(), _share_of(file, path))


def _has_tabs(header: bytes) -> bool:
    return b"\t" in header and b"," not in header


def _records(path: Path, reader: Any) -> Iterator[list[str]]:
    """Yield the header and the rows of a file without its empty lines.  Raises ValueError that names the line."""
    header: list[str] = []
    last = 0
    try:
        for fields in reader:
            first, last = last + 1, reader.line_num
            header = header or fields
            if fields and len(fields) != len(header):
                raise ValueError(f"{path}:{first}: a row must have {len(header)} fields, as the header. Got {len(fields)}.")
            if fields:
                yield fields
    except csv.Error as error:
        law = "a row must close the quotes it opens, and write a quote of a text twice"
        raise ValueError(f"{path}:{last + 1}: {law}. In line {reader.line_num}: {error}.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8 text. Got the byte 0x{error.object[error.start]:02x}.") from None


def _open_jsonl(path: Path, file: BinaryIO, size: int) -> Rows:
    """Read the file twice: for its columns and their types, which later rows may add to, then for the rows."""
    schema = pa.schema([])
    for rows in _objects(path, file, size):
        found = pa.table({key: [row.get(key) for row in rows] for key in dict.fromkeys(key for row in rows for key in row)})
        schema = pa.unify_schemas([schema, found.schema], promote_options="permissive")
    file.seek(0)
    chunks = (pa.Table.from_pylist(rows, schema) for rows in _objects(path, file, size))
    return Rows(schema.names, chunks, _share_of(file, path))


def _objects(path: Path, file: BinaryIO, size: int) -> Iterator[list[dict[str, Any]]]:
    """Yield the objects of a JSONL file, `size` at a time, empty lines left out.  Raises ValueError that names the line."""
    found: list[dict[str, Any]] = []
    for line, text in enumerate(iter(file.readline, b""), start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text.decode("utf-8-sig"))
        except ValueError:
            row = text
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{line}: every line must be a JSON object. Got {text[:40].decode(errors='replace')}.")
        found.append({key: without_lone_surrogates(of) if isinstance(of, str) else of for key, of in row.items()})
        if len(found) == size:
            yield found
            found = []
    if found:
        yield found


def _share_of(file: BinaryIO, path: Path) -> Callable[[], float]:
    size = path.stat().st_size
    return lambda: file.tell() / size if size else 1.0


class RowWriter:
    """A file that receives tables of one schema; its suffix decides the form. Used in `with`."""

    def __init__(self, path: Path, suffix: str) -> None:
        assert suffix in FORMATS, suffix
        self.path, self.suffix = path, suffix
        self._writer: Any = None

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, table: pa.Table) -> None:
        """Append rows.  Raises ValueError for a column that the format cannot hold; OSError."""
        try:
            self._writer = self._writer or self._open(table.schema)
            if self.suffix == ".tsv":
                texts = [column.cast(pa.string()).to_pylist() for column in table.columns]
                self._writer.writelines(_tabbed(row) for row in zip(*texts, strict=True))
            elif self.suffix == ".jsonl":
                self._writer.writelines(f"{json.dumps(row, ensure_ascii=False, default=str)}\n" for row in table.to_pylist())
            else:
                self._writer.write_table(table)
        except pa.ArrowException as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise ValueError(f"A {self.suffix} file cannot hold these columns ({reason}). Use .jsonl or .parquet.") from None

    def _open(self, schema: pa.Schema) -> Any:
        if self.suffix == ".parquet":
            return pa.parquet.ParquetWriter(self.path, schema)
        if self.suffix == ".jsonl":
            return self.path.open("w", encoding="utf-8")
        if self.suffix == ".tsv":
            file = self.path.open("w", encoding="utf-8")
            file.write(_tabbed(schema.names))
            return file
        return pa.csv.CSVWriter(self.path, schema, write_options=pa.csv.WriteOptions(quoting_style="needed"))


def _tabbed(texts: Iterable[str | None]) -> str:
    """Return a line of a TSV file, without quotes around its texts; a TAB or a line end in one becomes a blank."""
    return "\t".join(re.sub(r"[\t\r\n]+", " ", text or "") for text in texts) + "\n"
