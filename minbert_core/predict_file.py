"""The prediction of a whole file: its rows with a model's answers in new columns, in chunks, from any format to any format.

    rows -> chunk -> per task: texts, in the order of their lengths -> values, probabilities -> columns next to the chunk's own

A task `sst` adds the column `sst`, the class or the value, and one column per class with its probability: `sst/positive`.
Source of the packing: model.predict_logits. A text that is empty gets no answer, and is counted.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from minbert_core.commands import DONE, Refused
from minbert_core.config import TINY, Machine
from minbert_core.cores import usable_cores
from minbert_core.data.row_files import CHUNK, Rows, RowWriter, open_rows
from minbert_core.data.tasks import Task
from minbert_core.files import replaced
from minbert_core.machine import prepare
from minbert_core.model import Predictor, load
from minbert_core.settling import local_machine
from minbert_core.terminal import show_progress
from minbert_core.words import counted, duration


@dataclass
class Count:
    """Counts of the rows, and of what happened to them."""

    rows: int = 0
    empty: int = 0  # rows without a text, times tasks
    cut: int = 0  # rows longer than max_length, times tasks


def predict_file(model: Path, file: Path, out: Path, columns: Sequence[str]) -> int:
    """Write the rows of `file` with the answers of the model to the new file `out`; return the exit code.

    columns: the columns with the texts, one for tasks of sentences or two for tasks of pairs; none: those of the tasks' files.
    Raises ValueError: not such a file or column; Refused: `out` exists; OSError.
    """
    if out.exists():
        raise Refused(f"{out} exists. Give another file with --out, or delete it.")
    count, began = Count(), time.monotonic()
    with open_rows(file, CHUNK) as rows:
        predictor = load(model)
        _use_all_cores(predictor)
        reads = columns_read(predictor.tasks, rows.names, columns, file)
        print(f"model     {model}{predictor.remark}", f"rows      {file}", sep="\n")
        for name, texts in reads.items():
            print(f"task      {name}, reads {' and '.join(texts)}")
        with replaced(out, durable=True) as draft, RowWriter(draft, out.suffix) as writer:
            for table in answered(predictor, rows, reads, count):
                writer.write(table)
                _show(count, rows, began)
    show_progress("")
    seconds = time.monotonic() - began
    speed = f"{count.rows / max(seconds, 1e-9):,.0f} per second"
    print(f"wrote     {out}: {counted(count.rows, 'row')} in {duration(seconds)}, {speed}")
    for number, what in (
        (count.empty, "have no text, so no answer"),
        (count.cut, "are longer than the model reads, and were cut"),
    ):
        if number:
            print(f"note      {counted(number, 'text')} of {file.name} {what}", file=sys.stderr)
    return DONE


def _use_all_cores(predictor: Predictor) -> None:
    """Set up this process for the model's passes, as for a training on this machine."""
    device, checkpoint = next(predictor.model.parameters()).device.type, predictor.config.encoder.checkpoint
    threads = usable_cores() if checkpoint != TINY else 1
    prepare(Machine.model_validate(local_machine(device, threads, [checkpoint])))


def columns_read(tasks: Mapping[str, Task], names: Sequence[str], chosen: Sequence[str], file: Path) -> dict[str, list[str]]:
    """Return the columns that each task reads: those chosen, else those of the task's own files.

    Raises ValueError: no such column, no task that reads so many, or an answer's column that the file has already.
    """
    known = f"{file} has {', '.join(names)}."
    if absent := [name for name in chosen if name not in names]:
        raise ValueError(f"There is no column '{absent[0]}'. {known}")
    reads = {name: [*(chosen or task.text_columns)] for name, task in tasks.items()}
    fitting = {
        name: texts for name, texts in reads.items() if len(texts) == len(tasks[name].text_columns) and {*texts} <= {*names}
    }
    if not fitting:
        sizes = sorted({len(task.text_columns) for task in tasks.values()})
        takes = " or ".join("one column (a sentence)" if size == 1 else "two columns (a pair)" for size in sizes)
        raise ValueError(f"The model's tasks ({', '.join(tasks)}) read {takes}. {known} Name the texts with --columns.")
    new = {column for name in fitting for column in answer_columns(tasks[name])}
    if taken := sorted(new & {*names}):
        raise ValueError(f"The answers' columns would replace '{taken[0]}' of {file}. Rename that column.")
    return fitting


def answer_columns(task: Task) -> list[str]:
    """Return the names of a task's new columns: the answer, then a probability per class."""
    return [task.name, *(f"{task.name}/{label}" for label in task.classes)]


def answered(predictor: Predictor, rows: Rows, reads: Mapping[str, Sequence[str]], count: Count) -> Iterator[pa.Table]:
    """Yield the chunks of a file with the answers' columns, and count what happens."""
    for table in rows.chunks:
        texts = {column: _texts(table, column) for column in dict.fromkeys(c for read in reads.values() for c in read)}
        for name, read in reads.items():
            for column, values in zip(
                answer_columns(predictor.tasks[name]), _answers(predictor, name, [texts[c] for c in read], count), strict=True
            ):
                table = table.append_column(column, values)
        count.rows += table.num_rows
        yield table


def _texts(table: pa.Table, column: str) -> list[str]:
    """Return a column as texts; empty where there is none.  Raises ValueError: a column of lists or maps."""
    try:
        return [text or "" for text in table[column].cast(pa.string()).to_pylist()]
    except pa.ArrowException:
        raise ValueError(f"The column '{column}' must hold texts. Got {table[column].type}.") from None


def _answers(predictor: Predictor, name: str, texts: Sequence[list[str]], count: Count) -> list[pa.Array]:
    """Return the new columns of a task for a chunk; null for rows without a text."""
    examples = list(zip(*texts, strict=True))
    places = [i for i, example in enumerate(examples) if all(text.strip() for text in example)]
    values, shares_BC, are_cut = predictor.numbers(name, [examples[i] for i in places])
    count.empty += len(examples) - len(places)
    count.cut += int(are_cut.sum())
    classes = predictor.tasks[name].classes
    labels = pa.array([classes[int(value)] for value in values], pa.string()) if classes else pa.array(values)
    given = {place: i for i, place in enumerate(places)}
    at = pa.array([given.get(i) for i in range(len(examples))], pa.int64())
    return [column.take(at) for column in (labels, *(pa.array(shares_BC[:, k]) for k in range(len(classes))))]


def _show(count: Count, rows: Rows, began: float) -> None:
    """Show the rows so far and the time left, on a terminal."""
    share, seconds = rows.share_read(), time.monotonic() - began
    left = duration(seconds * (1 - share) / share) if 0 < share <= 1 else "?"
    show_progress(f"{count.rows:,} rows, {count.rows / seconds:,.0f} per second, {left} left")
