"""The command that lets a trained model predict the labels of one or two sentences, or of a file of them.

    python -m minbert_core.predict runs/smart/best "A moving film."
    python -m minbert_core.predict runs/smart/best --file in.csv --out out.parquet      (see predict_file.py)

One sentence goes to the tasks of single sentences. Two go to the tasks of pairs, and each of them to the tasks of sentences.

Exit codes are those of minbert_core/commands.py; for a search that has no model yet, the code is 3.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from minbert_core.commands import DONE, Refused, run_command
from minbert_core.data.tables import FORMATS, has_lone_surrogate

if TYPE_CHECKING:  # importing torch takes a second, so the command line is checked first
    from minbert_core.data.tasks import Task
    from minbert_core.model import Answer

BAR = 20  # characters for a probability of 1
MOST_CLASSES = 5  # the most probable classes, which are shown


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit code."""
    return run_command(_parser(), arguments, _main, writes="out")


def _main(options: argparse.Namespace) -> int:
    if (options.file is None) != (options.out is None):
        raise ValueError("--file IN is answered into --out OUT. Give both.")
    if options.columns and options.file is None:
        raise ValueError("--columns names columns of a file. Give it with --file IN and --out OUT.")
    if options.file is None:
        return run(options.folder, options.sentence, options.json)
    if options.sentence or options.json:
        raise ValueError(f"--file takes the sentences from {options.file}. Omit {'--json' if options.json else 'SENTENCE'}.")
    if len(options.columns) > 2:
        raise ValueError(f"A task reads one column or two. Got {len(options.columns)}: {', '.join(options.columns)}.")
    place = _existing_model(options.folder)
    from minbert_core.predict_file import predict_file

    code: int = predict_file(place, options.file, options.out, options.columns)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m minbert_core.predict",
        usage="%(prog)s FOLDER SENTENCE ... | --file IN --out OUT",
        description="Predict the labels of one or two sentences, or of a file, with a trained model.",
        epilog='examples:\n  python -m minbert_core.predict runs/smart "A moving film."\n'
        "  python -m minbert_core.predict runs/smart --file in.csv --out out.parquet",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder of a model, or of a search or trial with best/")
    parser.add_argument(
        "sentence", nargs="*", metavar="SENTENCE", help="one sentence for tasks of sentences; two also for tasks of pairs"
    )
    parser.add_argument("--json", action="store_true", help="print JSON: a list of {input, answers}")
    forms = ", ".join(FORMATS)
    parser.add_argument("--file", type=_rows, metavar="IN", help=f"answer each row of a file: {forms}")
    parser.add_argument(
        "--out", type=_rows, metavar="OUT", help="a new file: the rows, answers, probabilities; any of these forms"
    )
    parser.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="NAME",
        help="its column of sentences, or its two of pairs (default: the task's)",
    )
    return parser


def _rows(text: str) -> Path:
    if Path(text).suffix not in FORMATS:
        raise argparse.ArgumentTypeError(f"must end in {', '.join(FORMATS)}, which says the format. Got '{text}'.")
    return Path(text)


def run(folder: Path, sentences: list[str], as_json: bool) -> int:
    """Print the answers for one or two sentences; return the exit code.  Raises ValueError (Refused: no model yet), OSError."""
    if not sentences:
        raise ValueError("There is nothing to answer. Give a sentence in quotes, or a file with --file IN --out OUT.")
    if len(sentences) > 2:
        raise ValueError(f"A task takes one sentence or two, each in quotes. Got {len(sentences)}: {sentences}.")
    if not all(sentence.strip() for sentence in sentences):
        raise ValueError(f"A sentence must not be empty. Got {sentences}.")
    if any(map(has_lone_surrogate, sentences)):
        raise ValueError(f"A sentence must be UTF-8 text. Got {sentences}. Check the terminal's encoding.")
    place = _existing_model(folder)
    from minbert_core.model import load

    predictor = load(place)
    tasks = predictor.tasks
    sizes = {len(task.text_columns) for task in tasks.values()}
    pairs = [(sentences[0], sentences[1])] if len(sentences) == 2 else []
    inputs: list[str | tuple[str, str]] = [*(pairs if 2 in sizes else []), *(sentences if 1 in sizes else [])]
    if not inputs:
        raise ValueError(f"{place} has only tasks of sentence pairs ({', '.join(tasks)}). Got one sentence. Add a second.")
    predictions = predictor.predict(inputs)
    if as_json:
        rows = [{name: asdict(answer) for name, answer in answers.items()} for answers in predictions]
        print(json.dumps([{"input": item, "answers": row} for item, row in zip(inputs, rows, strict=True)], ensure_ascii=False))
        return DONE
    print(f"model  {place}{predictor.remark}")
    for item, answers in zip(inputs, predictions, strict=True):
        print("", *([item] if isinstance(item, str) else item), sep="\n")
        print_answers(answers, tasks, predictor.config.max_length)
    return DONE


def _existing_model(folder: Path) -> Path:
    """Return the folder of the model.  Raises Refused for a search or trial that has none yet."""
    place = model_folder(folder)
    if place is None:
        law = "A trial saves one at its first evaluation, and a search keeps only those of its best trials"
        raise Refused(f"{folder} has no model. {law}.")
    return place


def model_folder(folder: Path) -> Path | None:
    """Return the folder of the model: `folder` itself or its best/; None for a search or trial without a model."""
    if (folder / "heads.safetensors").exists():
        return folder
    if (folder / "best").is_dir():
        return folder / "best"
    return None if (folder / "trials").is_dir() or (folder / "metrics.jsonl").exists() else folder


def print_answers(answers: Mapping[str, Answer], tasks: Mapping[str, Task], max_length: int) -> None:
    """Print the answers for one input, with columns aligned over all tasks."""
    lines = [
        (name if i == 0 else "", *row)
        for name, answer in answers.items()
        for i, row in enumerate(answer_rows(tasks[name], answer, max_length))
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for name, what, share, bar in lines:
        print(f"  {name:{widths[0]}}  {what:{widths[1]}}  {share:>{widths[2]}}  {bar}".rstrip())


def answer_rows(task: Task, answer: Answer, max_length: int) -> list[tuple[str, str, str]]:
    """Format an answer as rows of text, probability and bar: the most probable classes or the value; then a note if cut."""
    low, high = task.label_range
    if task.classes:
        ranking = sorted(answer.probabilities.items(), key=lambda item: (item[0] != answer.label, -item[1]))
        rows = [(label, f"{100 * share:.1f} %", _bar(share)) for label, share in ranking[:MOST_CLASSES]]
        rest = len(ranking) - MOST_CLASSES
        rows += [(f"… and {rest} more", "", "")] if rest > 0 else []
    else:
        share, is_inside = (answer.value - low) / (high - low), low <= answer.value <= high
        bar = _bar(share) if is_inside else "(outside the label range)"
        rows = [(f"{answer.value:.2f} of {low:g} to {high:g}", "", bar)]
    return [*rows, ("", "", f"(truncated: only the first {max_length} tokens were read)")] if answer.is_cut else rows


def _bar(share: float) -> str:
    return "#" * round(BAR * share)


if __name__ == "__main__":
    sys.exit(main())
