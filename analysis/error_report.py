"""The printed report of errors.py: the tables of one model on one task, and those of two models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.answers import Answers
from analysis.disagreements import Disagreement, most_disputed
from analysis.intervals import CONFIDENCE
from analysis.mistakes import (
    Calibration,
    Example,
    Group,
    by_label,
    by_length,
    calibration,
    class_rows,
    confusion,
    line,
    worst,
)
from analysis.options import BINS
from analysis.plots import UNITS
from analysis.printing import COLUMNS, folded, joined, p_value, span
from minbert_core.words import counted
from search.report.words import markdown, short

MOST_CLASSES = 12  # of a confusion table; of more, the pairs that are confused most are listed
TEXT_LINES = 4  # of a row's text; answers.csv has the whole


def task_lines(answers: Answers, most: int, num_bins: int = BINS) -> list[str]:
    """Report one model's answers to one task: at most 80 columns wide for names of usual length."""
    cut = int(answers.is_cut_B.sum())
    about = f"{answers.task.name}: {UNITS[answers.task.metric]} {short(answers.value)} on {len(answers):,} dev rows"
    about += f"; the ends of {counted(cut, 'row')} longer than `max_length` are not read" if cut else ""
    parts = _values(answers) if answers.is_regression else _classes(answers, num_bins)
    by_size = ["By length in tokens, special ones included", *markdown(_group_rows("length", by_length(answers)))]
    return joined([folded(about), *parts, by_size, _worst(answers, most)])


def _classes(answers: Answers, num_bins: int) -> list[list[str]]:
    rows = [["label", "rows", "answers", "precision, 95 %", "recall, 95 %", "F1"]]
    for row in class_rows(answers):
        shares = ((row.precision, row.precision_interval), (row.recall, row.recall_interval))
        cells = [f"{short(value, digits=2)} ({span(*of, digits=2)})" if of else "-" for value, of in shares]
        f1 = short(row.f1, digits=2) if row.labelled or row.answered else "-"  # else there is nothing to divide by
        rows.append([row.label, str(row.labelled), str(row.answered), *cells, f1])
    found = calibration(answers, num_bins)
    return [markdown(rows), _confused(answers), folded(_calibrated(found)), _bins(found)]


def _calibrated(found: Calibration) -> str:
    """Say whether a model knows when it is wrong."""
    ece, chance, confidence, accuracy = (
        short(value, digits=3) for value in (found.ece, found.chance, found.confidence, found.accuracy)
    )
    how = "overconfident" if found.confidence > found.accuracy else "underconfident"
    verdict = how if found.ece > found.chance else "no miscalibration can be shown"
    return (
        f"Calibration: ECE {ece} with {found.num_bins} bins of equal width; that of a perfectly calibrated model is below "
        f"{chance} in 95 % of draws: {verdict}. Mean confidence {confidence}, right {accuracy}."
    )


def _confused(answers: Answers) -> list[str]:
    """Format the confusion matrix; of many classes, the pairs that are confused most."""
    counts_CC, classes = confusion(answers), answers.task.classes
    if len(classes) <= MOST_CLASSES:
        heading = ["label, then its answers", *(str(number) for number in range(len(classes)))]
        rows = [[f"{i} {name}", *(f"{count:,}" for count in counts_CC[i])] for i, name in enumerate(classes)]
        return markdown([heading, *rows])
    wrong_CC = np.where(np.eye(len(classes), dtype=bool), 0, counts_CC)
    order = np.argsort(-wrong_CC, axis=None, kind="stable")[:MOST_CLASSES]
    pairs = [divmod(int(place), len(classes)) for place in order]
    rows = [[classes[i], classes[j], str(wrong_CC[i, j])] for i, j in pairs if wrong_CC[i, j]]
    return ["Confused most", *markdown([["label", "answer", "rows"], *rows])]


def _bins(found: Calibration) -> list[str]:
    rows = [["confidence", "answers", "mean", "right", "95 %"]]
    for each in found.bins:
        figures = [short(each.confidence, digits=2), short(each.accuracy, digits=2), span(*each.interval, digits=2)]
        rows.append([span(each.low, each.high, digits=2), str(each.size), *figures])
    return markdown(rows)


def _values(answers: Answers) -> list[list[str]]:
    slope, offset = line(answers)
    sentence = (
        f"The metric sees neither scale nor offset. Errors are taken after both are fitted: label = {offset:.2f} "
        f"{'+' if slope >= 0 else '-'} {abs(slope):.2f} x answer. They are in points, of the range "
        f"{answers.task.label_range[0]:g} to {answers.task.label_range[1]:g}; a bias above 0 is an answer that is too high."
    )
    return [folded(sentence), ["By label", *markdown(_group_rows("label", by_label(answers)))]]


def _group_rows(what: str, groups: Sequence[Group]) -> list[list[str]]:
    is_value = groups[0].bias is not None
    rows = [[what, "rows", "mean absolute error" if is_value else "right", "95 %", *(["bias"] if is_value else [])]]
    for group in groups:
        interval = span(*group.interval, digits=2) if np.isfinite(group.interval[1]) else ""
        bias = [] if group.bias is None else [short(group.bias, "+", digits=2)]
        rows.append([group.name, str(group.size), short(group.value, digits=2), interval, *bias])
    return rows


# ------------------------------------------------------------------------------------------------------------- examples


def _worst(answers: Answers, most: int) -> list[str]:
    found = worst(answers, most)
    what = "the values furthest off" if answers.is_regression else "the labels with the least probability"
    return [f"The {counted(len(found), 'worst row')}: {what}", *(row for each in found for row in _example(each))]


def _example(of: Example) -> list[str]:
    if of.confidence is None:
        said = f"label {of.label}, answer {of.answer}; off by {short(of.error, '+', 2)}"
    else:
        shares = f"{short(of.confidence, digits=2)}; the label has {short(1 - of.error, digits=2)}"
        said = f"label {of.label}, answer {of.answer} with {shares}"
    return [*folded(f"- {said}  (id {of.id})", "  "), *_texts(of.texts)]


def _texts(texts: Sequence[str]) -> list[str]:
    """Fold the text of a row; a long one ends in `…`."""
    found = []
    for text in texts:
        lines = folded(text, width=COLUMNS - 4)
        found += [f"    {row}" for row in lines[:TEXT_LINES]]
        found[-1] += " …" if len(lines) > TEXT_LINES else ""
    return found


# ----------------------------------------------------------------------------------------------------------- two models


def dispute_lines(first: Answers, second: Answers, found: Disagreement, most: int) -> list[str]:
    """Report on which rows of a task two models disagree."""
    values = " and ".join(short(value) for value in found.values)
    gap = found.difference
    about = (
        f"{found.task}: {UNITS[first.task.metric]} {values} on {found.size:,} dev rows; the first minus the second is "
        f"{short(gap.mean, '+')} (95 % {span(gap.low, gap.high, '+', 4)}, over other rows, not over seeds)"
    )
    right = f"off by at most {found.near:g} points" if first.is_regression else "right"
    rows = [[right, "rows"], ["both", f"{found.both:,}"], ["only the first", f"{found.first:,}"]]
    rows += [["only the second", f"{found.second:,}"], ["neither", f"{found.neither:,}"]]
    same = f"Correlation of their answers {found.same:.3f}" if first.is_regression else f"The same answer: {found.same:.1%}"
    certain = "they differ beyond chance" if found.p <= 1 - CONFIDENCE else "that can be chance"
    alone = f"Only one of them {right}: {found.first} rows and {found.second}"
    sentence = f"{same}. {alone}; {certain} (McNemar's exact test, {p_value(found.p)})."
    disputed = most_disputed(first, second, most)
    examples = [row for pair in disputed for row in _disputed(*pair)]
    heading = (
        f"The {counted(len(disputed), 'row')} on which they differ most"
        if disputed
        else "They give the same answer to every row."
    )
    return joined([folded(about), markdown(rows), folded(sentence), [heading, *examples]])


def _disputed(one: Example, other: Example) -> list[str]:
    answers = " / ".join(
        each.answer + ("" if each.confidence is None else f" {short(each.confidence, digits=2)}") for each in (one, other)
    )
    return [*folded(f"- label {one.label}, answers {answers}  (id {one.id})", "  "), *_texts(one.texts)]
