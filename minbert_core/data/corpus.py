"""A task's files as examples: the first step of the flow, before any tokenizer or tensor.

The course's files are TAB-separated, read by column name with csv's default quoting, their texts prepared as the course does
it; those of one's own tasks may be CSV, TSV, JSONL or Parquet (formats.py). Rows without a label or a sentence (the course's
own files lost some to a quoting accident) are dropped, each with its line and reason; what may have been misread is noted, with
a count; anything else that is wrong is a CorpusError that names file, line and law.

`read_split` reads train and dev. `read_every_row` reads any file of a task without dropping a row; the test split goes
through it, by its only door, analysis/test_split.py.

    python -m minbert_core.data.corpus download --to data/      fetches the course's public files (see download.py)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from minbert_core.data.formats import records
from minbert_core.data.tables import CorpusError, Findings, Layout, as_label, bytes_of
from minbert_core.data.tasks import SplitName, Task

MAX_FAULTS = 5  # shown in one error; the rest are counted
BOOLEANS = {"false": "0", "true": "1"}  # read as numbers where a task's labels are not these words


@dataclass(frozen=True)
class Dropped:
    """A row left out: its line in the file (the header is line 1), its id and why."""

    line: int
    id: str
    reason: str


@dataclass(frozen=True)
class Split:
    """The examples of one file, in its order. `texts` are prepared, one or two an example; `labels` None: a test without.

    `notes` are sentences about fields that may have been misread: how many, in which lines.
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
    """The labelled examples of train or dev; where there is no dev file, its part of the train file.  Raises CorpusError."""
    assert split in ("train", "dev"), f"read_split opens train and dev only, not {split!r}"
    path = folder / task.file(split)
    findings = Findings()
    dropped: list[Dropped] = []
    kept: list[_Row] = []
    labels: list[float] = []
    for row in _rows(path, task, [task.label_column], findings):
        # An empty label or sentence is what upstream's quoting accident leaves behind; the course's loader skips it in silence.
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
    """The train or the dev part of a split that is both: dev is the `dev_share` of the rows whose texts hash lowest.

    Rows of equal text are on one side (dev is then a little more than its share), so that none of dev was trained on. Dropped
    rows and notes are reported with train only.  Raises CorpusError where a side would be empty.
    """
    task, texts, labels = whole.task, whole.texts, whole.labels
    assert labels is not None, "train is read with labels"
    hashes = [hashlib.blake2b(f"{task.dev_seed}/{row}".encode(), digest_size=8).digest() for row in texts]
    bound = sorted(hashes)[math.ceil(task.dev_share * len(texts)) - 1]  # of the last row of dev, and of its equals
    rows = [i for i, value in enumerate(hashes) if (value <= bound) == (side == "dev")]
    if not rows:
        raise CorpusError(
            f"{whole.path.name}: {len(texts)} rows cannot be cut into train and dev, {task.dev_share:g} of them dev. Give more "
            f"rows, another dev_share, or a dev file."
        )
    return replace(
        whole,
        ids=[whole.ids[i] for i in rows],
        texts=[texts[i] for i in rows],
        labels=[labels[i] for i in rows],
        dropped=whole.dropped if side == "train" else [],
        notes=whole.notes if side == "train" else [],
    )


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
    """sha256 of the bytes of a file of `task`, in hex.  Raises CorpusError where it cannot be read."""
    return hashlib.sha256(bytes_of(path, _remedy(task))).hexdigest()


# ---------------------------------------------------------------------------------------------------- a file, row by row


def _rows(path: Path, task: Task, extra_columns: list[str], findings: Findings) -> Iterator[_Row]:
    """Each row of the file by column name; a fault of a row's form goes to `findings`, one of the file itself is raised."""
    seen: dict[str, int] = {}
    id_column = [task.id_column] if task.id_column is not None else []
    layout = _layout(path, task, [*id_column, *task.text_columns, *extra_columns])
    for number, (line, fields) in enumerate(records(layout, findings), start=1):
        identity = _identity(fields.get(task.id_column, ""), task) if task.id_column is not None else str(number)
        if not identity:
            findings.faults.append(f"{path.name}:{line}: every row must have an id. This one's is empty.")
        elif identity in seen:
            findings.faults.append(
                f"{path.name}:{line}: an id must be unique. '{identity}' stands in line {seen[identity]} already."
            )
        else:
            seen[identity] = line
            texts = tuple(prepare(fields.get(column, ""), task) for column in task.text_columns)
            yield _Row(line, identity, texts, fields.get(task.label_column, "").strip())


def _layout(path: Path, task: Task, columns: list[str]) -> Layout:
    """The form of a file of `task`; the course's own are TAB-separated whatever their suffix."""
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
    return text.strip() if task.is_own else text.lower().strip()  # the course's loader lowers it


def _remedy(task: Task) -> str:
    """What to do where a file of the task is missing."""
    if task.is_own:
        return (
            f"`own_tasks/{task.name}/{task.kind}/files` names it. A file is looked for in the folder `data` (`--data DIR`), "
            "unless its name is absolute."
        )
    return (
        "give the folder that holds the course's files with `--data DIR` (`python -m minbert_core.data.corpus download --to "
        "DIR` fetches the public ones), or take the embedded corpus with `--data toy --encoder tiny`."
    )


def prepare(text: str, task: Task) -> str:
    """The course's own preparation, its `preprocess_string` for pairs; the tokenizer's normaliser comes after it."""
    if task.is_own:
        return text.strip()
    text = text.lower()
    if task.course_text == "strip":
        return text.strip()
    for mark, spaced in ((".", " ."), ("?", " ?"), (",", " ,"), ("'", " '")):
        text = text.replace(mark, spaced)
    return " ".join(text.split())


def _label(row: _Row, path: Path, task: Task, findings: Findings) -> float | None:
    """The label of a row; None, and a fault, where it breaks the task's law."""
    value = _label_value(row.label, task)
    if value is None:
        low, high = task.label_range
        law = f"a {'real' if task.kind == 'regression' else 'whole'} number in [{low:g}, {high:g}]"
        if task.is_own and task.classes:
            law = f"one of {', '.join(task.classes)}"
        findings.faults.append(f"{path.name}:{row.line}: label '{task.label_column}' must be {law}. Got '{row.label}'.")
    return value


def _label_value(text: str, task: Task) -> float | None:
    """The number of a label, None where it breaks the task's law: STS keeps 2.4, Quora's '0.0' is 0.

    A class of an own task is its place in `classes`.
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
