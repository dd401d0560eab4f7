"""A file of rows before its rows are read: the form it must have, its text, the words for a cell, and what reading finds.

    Layout -> formats.records -> rows, as text by column name -> corpus.py, which knows what a row means

A fault of a whole file is raised as CorpusError. `Findings` collects the rest: faults of single rows, which are skipped, and
what a reader should know of the fields that were read.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")  # of own files, told by their suffix; CSV and TSV have a header
MAX_SHOWN = 5  # lines, of those where a note holds

_LONE = re.compile("[\ud800-\udfff]")


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


# ---------------------------------------------------------------------------------------------------------------- a cell


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


def without_lone_surrogates(text: str) -> str:
    """The text with U+FFFD in the place of each."""
    return _LONE.sub("\ufffd", text)


# ---------------------------------------------------------------------------------------------------------------- a file


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
