"""Files of rows with all their columns, read and written in chunks: CSV, TSV, JSONL and Parquet, by suffix.

    open_rows(path) -> Rows -> chunks() -> pyarrow tables -> RowWriter -> another file, of any of the formats

For texts to answer, not for a corpus: formats.py reads that, with labels. Cells of CSV and TSV stay the texts that they are, so
that they are written as they were. A chunk is all that is in memory.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from minbert_core.data.tables import FORMATS
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
        except pa.ArrowException as error:
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
    header = file.readline()
    # the course's files are separated by TABs, but named .csv
    delimiter = "\t" if path.suffix == ".tsv" or (b"\t" in header and b"," not in header) else ","
    parse = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    with pa.csv.open_csv(path, parse_options=parse) as first:
        names = first.schema.names
    file.seek(0)
    texts = pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
    reader = pa.csv.open_csv(file, parse_options=parse, convert_options=texts)
    return Rows(names, _in_chunks(reader, size), _share_of(file, path))


def _open_jsonl(path: Path, file: BinaryIO, size: int) -> Rows:
    lines = enumerate(file, start=1)

    def objects(number: int) -> list[dict[str, Any]]:
        """Read the next `number` objects."""
        found: list[dict[str, Any]] = []
        for line, text in lines:
            try:
                row = json.loads(text.decode("utf-8-sig")) if text.strip() else None
            except ValueError:
                row = text
            if row is not None and not isinstance(row, dict):
                raise ValueError(f"{path}:{line}: every line must be a JSON object. Got {text[:40].decode(errors='replace')}.")
            found += [row] if row is not None else []
            if len(found) == number:
                break
        return found

    first = pa.Table.from_pylist(objects(size))

    def chunks() -> Iterator[pa.Table]:
        rows, table = [], first
        while table.num_rows:
            yield table
            rows = objects(size)
            if new := {key for row in rows for key in row} - {*first.column_names}:
                raise ValueError(f"{path}: a key must occur in the first {size:,} rows. Later ones have '{min(new)}', too.")
            table = pa.Table.from_pylist(rows, schema=first.schema)

    return Rows(first.column_names, chunks(), _share_of(file, path))


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
            if self.suffix == ".jsonl":
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
        options = pa.csv.WriteOptions(delimiter="\t" if self.suffix == ".tsv" else ",", quoting_style="needed")
        return pa.csv.CSVWriter(self.path, schema, write_options=options)
