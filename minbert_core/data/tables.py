"""Tables: the form that a file of rows must have, its text, the text of a cell, and the faults that reading finds.

    Layout -> formats.records -> rows, as text by column name -> corpus.py, which interprets them

A fault of a whole file is raised as CorpusError. `Findings` collects the faults of single rows, which are skipped, and the
peculiarities of fields that were read.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from minbert_core.files import check_is_file
from minbert_core.words import counted

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")  # the suffixes of users' own files; CSV and TSV have a header
MAX_SHOWN = 5  # lines that one note lists

_LONE = re.compile("[\ud800-\udfff]")


class CorpusError(ValueError):
    """A corpus cannot be read. The message has one line per fault: `file:line: fault, rule, value`."""


@dataclass(frozen=True)
class Layout:
    """A file and the form it must have."""

    path: Path
    suffix: str  # one of FORMATS; it decides the form, and may differ from the file name's
    columns: list[str]  # required in the file; a row may lack some
    optional: list[str]
    has_quotes: bool  # whether double quotes enclose fields of a CSV or TSV file; if not, they are ordinary characters
    is_row: Callable[[dict[str, str]], bool]  # returns True for a line that has a valid label if it is read as a row
    remedy: str  # follows the sentence about a missing file

    @property
    def delimiter(self) -> str:
        return "\t" if self.suffix == ".tsv" else ","


@dataclass
class Findings:
    """The faults and peculiarities of a file, found while its rows are read."""

    faults: list[str] = field(default_factory=list)  # sentences; the rows are skipped
    held: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))  # LINE_END, … -> line of each field

    def notes(self, path: Path) -> list[str]:
        """Build a sentence for each peculiarity, with the number of fields that have it, and their lines."""
        return [_note(path, what, lines) for what, lines in self.held.items()]


def _note(path: Path, what: str, lines: list[int]) -> str:
    different = list(dict.fromkeys(lines))
    shown, more = ", ".join(map(str, different[:MAX_SHOWN])), len(different) - MAX_SHOWN
    where = f"line{'s' * (len(different) > 1)} {shown}" + (f" and {more} more" if more > 0 else "")
    return f"{counted(len(lines), 'field')} of {path.name} with {what}: {where}"


# ---------------------------------------------------------------------------------------------------------------- a cell


def as_text(value: object) -> str:
    """Convert a cell to text, the same for every format: '4' for Parquet's 4.0, 'false' for a boolean, '' for no value.

    Raises ValueError if it is not text, a number or a boolean.
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
        return "" if value != value else str(value)  # nan marks a missing value in a table of numbers
    raise ValueError(f"must be text, a number or a boolean. Got {type(value).__name__}.")


def as_label(value: object) -> str:
    """Convert a label to a class name, the same for a config and every format: the result of `as_text`, stripped.

    `4.0` becomes `4`; `True` (Python) and `TRUE` (spreadsheets) become `true`.
    """
    text = as_text(value).strip()
    if text.lower() in ("true", "false"):
        return text.lower()
    whole = text.removesuffix(".0")
    return whole if whole.removeprefix("-").isdigit() else text


def has_lone_surrogate(text: str) -> bool:
    """Return True if a text has half a surrogate pair. UTF-8 cannot encode it; JSON escapes and arguments can contain it."""
    return not text.isascii() and _LONE.search(text) is not None


def without_lone_surrogates(text: str) -> str:
    """Replace each lone surrogate by U+FFFD."""
    return _LONE.sub("\ufffd", text)


# ---------------------------------------------------------------------------------------------------------------- a file


def bytes_of(path: Path, remedy: str) -> bytes:
    """Read the bytes of a file.  Raises CorpusError, which ends with `remedy` if the file is missing."""
    if path.is_dir():
        raise CorpusError(f"{path} is a folder, not a file.")
    try:
        check_is_file(path)
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        reason = f"The folder {path.parent} has no file {path.name}"
        if not path.parent.is_dir():
            reason = f"The file {path.name} is missing, because the folder {path.parent} does not exist"
        raise CorpusError(f"{reason}. {remedy}") from None
    except OSError as error:
        raise CorpusError(f"Cannot read {path}: {error.strerror}.") from None
    except ValueError as error:  # a pipe or a device
        raise CorpusError(str(error)) from None


def text_of(path: Path, remedy: str) -> str:
    """Read the text of a file. Each line ends with "\\n"; a carriage return inside a line becomes a blank.

    In a file without "\\n" a carriage return ends a line.  Raises CorpusError, also if the file is not UTF-8.
    """
    data = bytes_of(path, remedy)
    try:
        text = data.decode("utf-8-sig")  # without the byte-order mark that spreadsheets write before the first column's name
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CorpusError(f"{path.name}:{line}: the file must be UTF-8 text. Got the byte 0x{data[error.start]:02x}.") from None
    if "\r" in text:
        text = re.sub(r"\r+\n", "\n", text)
        text = text.replace("\r", " " if "\n" in text else "\n")
    return text
