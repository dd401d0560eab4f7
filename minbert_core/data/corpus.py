"""Examples from a task's files: the first step of the flow, before any tokenizer or tensor.

The course's files are TAB-separated. They are read by column name with csv's default quoting, and their texts are prepared as
in the course. A user's own tasks may have CSV, TSV, JSONL or Parquet files (formats.py). Rows without a label or a sentence
are dropped, each with its line and a reason (a quoting error removed some from the course's files). Fields that may have been
misread are counted in a note. Any other error is a CorpusError that names the file, the line and the rule.

`read_split` reads train and dev. `read_every_row` reads any file of a task without dropping a row; the test split goes
through it, by its only door, analysis/test_split.py.

    python -m minbert_core.data.corpus download --to data/      downloads the course's public files (see download.py)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from minbert_core.data.formats import records
from minbert_core.data.tables import CorpusError, Findings, Layout, as_label, bytes_of
from minbert_core.data.tasks import SplitName, Task

MAX_FAULTS = 5  # that one error shows; the others are counted
BOOLEANS = {"false": "0", "true": "1"}  # read as numbers unless a task's labels are these words


@dataclass(frozen=True)
class Dropped:
    """A dropped row: its line in the file (the header is line 1), its id and the reason."""

    line: int
    id: str
    reason: str


@dataclass(frozen=True)
class Split:
    """The examples of one file, in its order, with one or two prepared texts each.

    `labels` is None for a test split without labels. `notes` are sentences that count the fields that may have been misread.
    """

    task: Task
    name: str
    path: Path
    ids: list[str]
    texts: list[tuple[str, ...]]
    labels: list[float] | None
    dropped: list[Dropped]
    notes: list[str]


@dataclass(frozen=True)
class _Row:
    line: int
    id: str
    texts: tuple[str, ...]
    label: str


def read_split(folder: Path, task: Task, split: SplitName) -> Split:
    """Read the labelled examples of train or dev; without a dev file, both are cut from the train file.  Raises CorpusError."""
    assert split in ("train", "dev"), f"read_split opens train and dev only, not {split!r}"
    path = folder / task.file(split)
    findings = Findings()
    dropped: list[Dropped] = []
    kept: list[_Row] = []
    labels: list[float] = []
    for row in _rows(path, task, [task.label_column], findings):
        # A quoting error in the course's files leaves empty labels and sentences; the course's loader skips them silently.
        missing = [c for c, text in zip(task.text_columns, row.texts, strict=True) if not text]
        missing += [task.label_column] if not row.label else []
        if missing:
            dropped.append(Dropped(row.line, row.id, f"empty: {', '.join(missing)}"))
            continue
        label = _label(row, path, task, findings)
        if label is not None:
            kept.append(row)
            labels.append(label)
    _raise(findings.faults)
    if not kept:
        raise CorpusError(f"{path.name}: every row was dropped ({dropped[0].reason} in line {dropped[0].line}, and so on).")
    texts, notes = [row.texts for row in kept], findings.notes(path)
    whole = Split(task, split, path, [row.id for row in kept], texts, labels, dropped, notes)
    return _side(whole, split) if task.cuts_dev else whole


def _side(whole: Split, side: SplitName) -> Split:
    """Take one side of a train file that also holds dev: dev is the `dev_share` of the rows whose texts have the lowest hashes.

    Rows with equal texts are on the same side, so that no text of dev is trained on; dev may then exceed its share a little.
    Dropped rows and notes are reported with train only.  Raises CorpusError if a side is empty.
    """
    task, texts, labels = whole.task, whole.texts, whole.labels
    assert labels is not None, "train is read with labels"
    is_dev = lowest_hashes([f"{task.dev_seed}/{row}" for row in texts], task.dev_share)
    rows = [i for i, is_in_dev in enumerate(is_dev) if is_in_dev == (side == "dev")]
    if not rows:
        raise CorpusError(
            f"{whole.path.name}: {len(texts)} rows cannot be cut into train and dev with a dev_share of {task.dev_share:g}. "
            f"Give more rows, another dev_share, or a dev file."
        )
    return replace(
        whole,
        ids=[whole.ids[i] for i in rows],
        texts=[texts[i] for i in rows],
        labels=[labels[i] for i in rows],
        dropped=whole.dropped if side == "train" else [],
        notes=whole.notes if side == "train" else [],
    )


def lowest_hashes(keys: Sequence[str], share: float) -> list[bool]:
    """Mark the `share` of `keys` with the lowest hashes. Equal keys are marked alike, so there may be a few more."""
    hashes = [hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys]
    bound = sorted(hashes)[math.ceil(share * len(keys)) - 1]
    return [value <= bound for value in hashes]


def read_every_row(path: Path, task: Task, name: str) -> Split:
    """Read all rows of a file of `task` as the split `name`. An empty sentence is ''; labels are None without a label column.

    Raises CorpusError, also if only some of the rows have a label.
    """
    findings = Findings()
    rows = list(_rows(path, task, [], findings))
    labelled = [row for row in rows if row.label]
    if labelled and len(labelled) < len(rows):
        where = f"{path.name}:{next(row.line for row in rows if not row.label)}"
        law = f"label '{task.label_column}' must be in every row or in none"
        findings.faults.append(f"{where}: {law}. Got none here, {len(labelled)} in {len(rows)} rows.")
    labels = [_label(row, path, task, findings) for row in labelled]
    _raise(findings.faults)
    known = [label for label in labels if label is not None]  # all of them: a bad one has raised
    ids, texts = [row.id for row in rows], [row.texts for row in rows]
    return Split(task, name, path, ids, texts, known or None, [], findings.notes(path))


def missing_test_files(folder: Path, tasks: Iterable[Task]) -> list[str]:
    """List the test files that the tasks name and `folder` lacks, without opening any."""
    return [task.files["test"] for task in tasks if "test" in task.files and not (folder / task.files["test"]).exists()]


def fingerprint(path: Path, task: Task) -> str:
    """Return the sha256 of a file of `task`, in hex.  Raises CorpusError if the file cannot be read."""
    return hashlib.sha256(bytes_of(path, _remedy(task))).hexdigest()


# ---------------------------------------------------------------------------------------------------- a file, row by row


def _rows(path: Path, task: Task, extra_columns: list[str], findings: Findings) -> Iterator[_Row]:
    """Yield each row of the file, read by column name. Faults of a row go to `findings`; a fault of the file is raised."""
    seen: dict[str, int] = {}
    id_column = [task.id_column] if task.id_column is not None else []
    layout = _layout(path, task, [*id_column, *task.text_columns, *extra_columns])
    for number, (line, fields) in enumerate(records(layout, findings), start=1):
        identity = _identity(fields.get(task.id_column, ""), task) if task.id_column is not None else str(number)
        if not identity:
            findings.faults.append(f"{path.name}:{line}: every row must have an id. This one's is empty.")
        elif identity in seen:
            findings.faults.append(
                f"{path.name}:{line}: an id must be unique. '{identity}' is also the id in line {seen[identity]}."
            )
        else:
            seen[identity] = line
            texts = tuple(prepare(fields.get(column, ""), task) for column in task.text_columns)
            yield _Row(line, identity, texts, fields.get(task.label_column, "").strip())


def _layout(path: Path, task: Task, columns: list[str]) -> Layout:
    """Describe the form of a file of `task`; the course's files are TAB-separated despite their suffix."""
    suffix = path.suffix.lower() if task.is_own else ".tsv"
    return Layout(
        path=path,
        suffix=suffix,
        columns=columns,
        optional=[task.label_column],
        has_quotes=suffix == ".csv" or task.tsv_quotes,
        is_row=lambda fields: _label_value(fields.get(task.label_column, "").strip(), task) is not None,
        remedy=_remedy(task),
    )


def _identity(text: str, task: Task) -> str:
    return text.strip() if task.is_own else text.lower().strip()  # the course's loader makes it lower case


def _remedy(task: Task) -> str:
    """Return a sentence that says what to do if a file of the task is missing."""
    if task.is_own:
        return (
            f"`own_tasks/{task.name}/{task.kind}/files` names it. A relative file name is looked up in the folder "
            "`data` (`--data DIR`)."
        )
    return (
        "Give the folder that holds the course's files with `--data DIR` (`python -m minbert_core.data.corpus download --to "
        "DIR` downloads the public ones), or use the embedded corpus with `--data toy --encoder tiny`."
    )


def prepare(text: str, task: Task) -> str:
    """Prepare a text as the course does (`preprocess_string` for pairs); the tokenizer's normaliser is applied later."""
    if task.is_own:
        return text.strip()
    text = text.lower()
    if task.course_text == "strip":
        return text.strip()
    for mark, spaced in ((".", " ."), ("?", " ?"), (",", " ,"), ("'", " '")):
        text = text.replace(mark, spaced)
    return " ".join(text.split())


def _label(row: _Row, path: Path, task: Task, findings: Findings) -> float | None:
    """Return the label of a row; an invalid label is None, and adds a fault to `findings`."""
    value = _label_value(row.label, task)
    if value is None:
        low, high = task.label_range
        law = f"a {'real' if task.kind == 'regression' else 'whole'} number in [{low:g}, {high:g}]"
        if task.is_own and task.classes:
            law = f"one of {', '.join(task.classes)}"
        findings.faults.append(f"{path.name}:{row.line}: label '{task.label_column}' must be {law}. Got '{row.label}'.")
    return value


def _label_value(text: str, task: Task) -> float | None:
    """Convert a label to a number, None if it is invalid: STS keeps 2.4, Quora's '0.0' becomes 0.

    A class of a user's own task becomes its index in `classes`.
    """
    if task.is_own and task.classes:
        name = as_label(text)
        if name not in task.classes:
            name = BOOLEANS.get(name, name)
        return float(task.classes.index(name)) if name in task.classes else None
    try:
        value = float(text)
    except ValueError:
        return None
    low, high = task.label_range
    is_label = low <= value <= high and (task.kind == "regression" or value.is_integer())  # false for nan
    return value if is_label else None


def _raise(faults: list[str]) -> None:
    if faults:
        more = [f"... and {len(faults) - MAX_FAULTS} more."] if len(faults) > MAX_FAULTS else []
        raise CorpusError("\n".join(faults[:MAX_FAULTS] + more))


if __name__ == "__main__":
    import runpy  # the command's module reads files with this one: run by name, it is imported by nothing that it imports

    runpy.run_module("minbert_core.data.download", run_name="__main__", alter_sys=True)
