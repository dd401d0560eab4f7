"""The section about the best model's errors on dev: its answers, once per page, and what errors.py says and draws of them."""

from __future__ import annotations

import io

from analysis.answers import Answers, choose_tasks, dev_answers, open_model
from analysis.error_plots import draw_all
from analysis.error_report import task_lines
from analysis.options import BINS
from analysis.page.again import shown_path
from analysis.page.blocks import Block, Code, Heading, Paragraph, Picture, Section, blocks, numbers
from analysis.plots import Plot
from minbert_core.commands import analysis_command
from minbert_core.terminal import show_progress
from search.results import Search

WORST = 3  # rows with their text, per task


def errors(search: Search, skips: bool = False) -> Section:
    """Build the section; without a model that can be asked, a sentence says why. skips: only say how to ask it."""
    command = Code(analysis_command("errors", shown_path(search.folder)))
    if skips or not (search.folder / "best").exists():
        why = "The best model was not asked:" if skips else "No model was kept, so nothing can be said about its errors. Later:"
        return Section("errors", "Errors", [Paragraph(why), command])
    try:
        model = open_model(search.folder)
        answers = list(dev_answers(model, choose_tasks([model], None), show_progress))
    except ValueError as error:  # a model or data that cannot be read; the page is about more than that
        return Section("errors", "Errors", [Paragraph(f"Nothing can be said about errors. {error}")])
    finally:
        show_progress("")
    return Section("errors", "Errors", [*_of(answers), Paragraph("All rows, and two models compared:"), command])


def _of(answers: list[Answers]) -> list[Block]:
    made: list[Block] = []
    for of in answers:
        made += [Heading(of.task.name), *blocks(task_lines(of, WORST))]
    for plot in draw_all(answers, BINS):
        made += [_picture(plot), numbers(plot.rows)]
    return made


def _picture(plot: Plot) -> Picture:
    """Return a drawing whose title is that of the page, without the name of the model."""
    _, _, title = plot.figure.get_suptitle().replace("\n", " ").partition(": ")
    plot.figure.suptitle("")
    stream = io.BytesIO()
    plot.figure.savefig(stream, format="svg")
    return Picture(stream.getvalue(), title[:1].upper() + title[1:])
