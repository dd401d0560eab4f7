"""What a model gets wrong on dev: confusion, calibration, errors by length and label, the worst rows with their text.

    python analysis/errors.py runs/smart                                       the best model of a search
    python analysis/errors.py runs/smart runs/smart/test/retrained/003-seed0   the rows on which two models disagree

    MODEL ─► answers.py ─► mistakes.py, disagreements.py ─► error_report.py, error_plots.py

The test split is never opened: only best_to_test reports it.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: Python put analysis/ on the path, where the packages are not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

if __name__ == "__main__":  # before the other imports, which take seconds
    from analysis.options import errors_parser
    from minbert_core.commands import check_command_line

    check_command_line(errors_parser())

from analysis.answers import Answers, DevModel, choose_tasks, dev_answers, open_model, trial_of
from analysis.disagreements import disagreement
from analysis.error_plots import draw_all, draw_disagreement
from analysis.error_report import dispute_lines, task_lines
from analysis.mistakes import example, severity
from analysis.options import errors_parser
from analysis.plots import Plot
from analysis.sources import write_figures
from minbert_core.commands import DONE, run_command
from minbert_core.terminal import show_progress
from search.report.draw import show

ROWS = "answers.csv"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(errors_parser(), arguments, _main, writes="to")


def _main(options: argparse.Namespace) -> int:
    if len(options.models) > 2:
        raise ValueError(f"errors.py takes one model, or two to compare. Got {len(options.models)}.")
    models = [open_model(named, options.data) for named in options.models]
    tasks = choose_tasks(models, options.tasks)
    places = [f"model     {model.name}{_whence(model)}" for model in models]
    show([*places, f"dev       {models[0].data}: {', '.join(tasks)}", ""])
    folder = options.to or _folder(options.models[0], models[0])
    plots = _one(models[0], tasks, options, folder) if len(models) == 1 else _two(models, tasks, options)
    print("\n".join(write_figures(plots, options, folder)))
    if len(models) == 1:
        print(f"rows      {folder / ROWS}: every dev row with its text, label and answer")
    return DONE


def _one(model: DevModel, tasks: Sequence[str], options: argparse.Namespace, folder: Path) -> list[Plot]:
    """Report each task as soon as its rows are answered, and write all rows; return the figures."""
    answers = []
    for of in dev_answers(model, tasks, show_progress):
        show_progress("")
        show(task_lines(of, options.worst, options.bins))
        answers.append(of)
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(answers, folder / ROWS)
    return draw_all(answers, options.bins)


def _two(models: Sequence[DevModel], tasks: Sequence[str], options: argparse.Namespace) -> list[Plot]:
    pairs, found = [], []
    for first, second in zip(*(dev_answers(model, tasks, show_progress) for model in models), strict=True):
        show_progress("")
        found.append(disagreement(first, second))
        show(dispute_lines(first, second, found[-1], options.worst))
        pairs.append((first, second))
    return [draw_disagreement(pairs, found)]


def write_rows(answers: Sequence[Answers], path: Path) -> None:
    """Write every dev row of every task as CSV: what was asked, what was answered, and how wrong that is."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["task", "id", "text", "second text", "label", "answer", "confidence", "error", "tokens"])
        for of in answers:
            for row, error in enumerate(severity(of).tolist()):
                each = example(of, row, error)
                texts = [*each.texts, ""][:2]
                confidence = "" if each.confidence is None else f"{each.confidence:.4f}"
                tokens = int(of.lengths_B[row])
                writer.writerow([of.task.name, each.id, *texts, each.label, each.answer, confidence, f"{error:.4f}", tokens])


def _whence(model: DevModel) -> str:
    """Return where a model is, seen from the path that was given, and whose a search's best/ is: ` -> best (trial 007)`."""
    way = os.path.relpath(model.folder, Path(model.name).resolve())
    trial = trial_of(model.folder) if model.folder.parts[-3:-2] != ("trials",) else ""
    return (f" -> {way}" if way != "." else "") + (f" (trial {trial})" if trial else "")


def _folder(named: Path, model: DevModel) -> Path:
    """Return the folder of the figures: in the search, if that was named, else next to best/, else in the model."""
    if (named / "plan.json").exists():
        return named / "figures"
    return (model.folder.parent if model.folder.name == "best" else model.folder) / "figures"


if __name__ == "__main__":
    sys.exit(main())
