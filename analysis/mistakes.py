"""The mistakes of one model on one task, as tables: precision and recall, calibration, errors by length and label, worst rows.

    Answers ─► classes, confusion        (scikit-learn)      ─► errors.py, error_plots.py, a report
          ├──► calibration               (classification)
          ├──► line, by_label            (regression)
          └──► by_length, worst

The error of a row is 0 or 1 for a class. For a value it is the answer minus the label, in label units. The metrics of a
regression are correlations, which see neither scale nor offset, so answers are first put on the straight line that fits the
labels best.
Legend: B rows, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from analysis.answers import Answers
from analysis.forest import Floats
from analysis.intervals import CONFIDENCE, NORMAL
from analysis.options import BINS
from minbert_core.evaluate import is_constant

PARTS = 4  # groups of rows by length, of about equal size
DRAWS = 1000  # of right and wrong answers, for the ECE that chance gives


@dataclass(frozen=True)
class ClassRow:
    """Precision, recall and F1 of a class; the intervals are Wilson's, 95 %, and None of no row."""

    label: str
    labelled: int  # rows with this label
    answered: int  # rows with this answer
    precision: float
    precision_interval: tuple[float, float] | None
    recall: float
    recall_interval: tuple[float, float] | None
    f1: float


@dataclass(frozen=True)
class Bin:
    """Answers given with a confidence from `low` to `high`: how many, their mean confidence, and the share that was right."""

    low: float
    high: float
    size: int
    confidence: float
    accuracy: float
    interval: tuple[float, float]  # Wilson's, of the accuracy


@dataclass(frozen=True)
class Calibration:
    """Whether a confidence of 80 % means being right 80 times in a hundred.

    ece: the expected calibration error, the mean over the rows of |confidence - accuracy| of their bin (Guo et al. 2017,
    equations 2 and 3; the confidence is the probability of the answer). chance: the 95 % quantile of the ECE of a perfectly
    calibrated model with these confidences, which is not 0 because the rows are few (Bröcker & Smith 2007).
    """

    bins: list[Bin]  # those that hold rows
    num_bins: int
    ece: float
    chance: float
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Group:
    """Rows of one kind, and their mean error: the share right (classes), or the mean absolute error and the mean error."""

    name: str
    size: int
    value: float
    interval: tuple[float, float]
    bias: float | None = None  # mean error: answers are too high where it is above 0; None for classes


@dataclass(frozen=True)
class Example:
    """A row with its texts. error: 1 minus the probability of the label; of a value, the error in label units."""

    id: str
    texts: tuple[str, ...]
    label: str
    answer: str
    error: float
    confidence: float | None  # the probability of the answer; None for a value


# -------------------------------------------------------------------------------------------------------------- classes


def confusion(answers: Answers) -> NDArray[np.int64]:
    """Count the rows of each label (rows) and each answer (columns), shape (C, C)."""
    from sklearn.metrics import confusion_matrix  # takes a second

    return np.asarray(confusion_matrix(answers.labels_B, answers.answers_B, labels=range(len(answers.task.classes))))


def class_rows(answers: Answers) -> list[ClassRow]:
    """Compute precision, recall and F1 per class; 0 where there is no row to divide by."""
    from sklearn.metrics import precision_recall_fscore_support

    counts_CC, classes = confusion(answers), answers.task.classes
    found = precision_recall_fscore_support(
        answers.labels_B, answers.answers_B, labels=range(len(classes)), zero_division=0, average=None
    )
    rows = []
    for c, (name, precision, recall, f1) in enumerate(zip(classes, *found[:3], strict=True)):
        right, answered, labelled = int(counts_CC[c, c]), int(counts_CC[:, c].sum()), int(counts_CC[c].sum())
        of_answered, of_labelled = (wilson(right, size) if size else None for size in (answered, labelled))
        rows.append(ClassRow(name, labelled, answered, float(precision), of_answered, float(recall), of_labelled, float(f1)))
    return rows


def wilson(right: int, of: int) -> tuple[float, float]:
    """Return the 95 % interval of a share.  Source: Wilson 1927."""
    interval = stats.binomtest(right, of).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def calibration(answers: Answers, num_bins: int = BINS, seed: int = 0) -> Calibration:
    """Compare the confidence in the answers with the share that is right, in bins of equal width from 0 to 1."""
    confidence_B, right_B = answers.shares_BC.max(axis=1), answers.answers_B == answers.labels_B
    bin_B = np.minimum((confidence_B * num_bins).astype(int), num_bins - 1)
    generator = np.random.default_rng(seed)
    drawn = [_ece(bin_B, confidence_B, generator.random(len(answers)) < confidence_B) for _ in range(DRAWS)]
    bins = []
    for number in np.unique(bin_B):
        of_bin = bin_B == number
        size, right = int(of_bin.sum()), int(right_B[of_bin].sum())
        edges = float(number / num_bins), float((number + 1) / num_bins)
        bins.append(Bin(*edges, size, float(confidence_B[of_bin].mean()), right / size, wilson(right, size)))
    ece = _ece(bin_B, confidence_B, right_B)
    chance = float(np.quantile(drawn, CONFIDENCE))
    return Calibration(bins, num_bins, ece, chance, float(confidence_B.mean()), float(right_B.mean()))


def _ece(bin_B: NDArray[np.int64], confidence_B: Floats, right_B: NDArray[np.bool_]) -> float:
    """Sum over the bins of |sum of the confidences - number right|, divided by the rows: equation 3 of Guo et al. 2017."""
    return float(np.abs(np.bincount(bin_B, confidence_B - right_B)).sum() / len(bin_B))


# --------------------------------------------------------------------------------------------------------------- values


def line(answers: Answers) -> tuple[float, float]:
    """Return slope and offset of the straight line from answers to labels that fits best (least squares).

    A constant answer, and answers that fall as the labels rise, have slope 0: the line is then the mean label.
    """
    x_B, y_B = answers.answers_B, answers.labels_B
    if is_constant(x_B):
        return 0.0, float(y_B.mean())
    fit = stats.linregress(x_B, y_B)
    return (float(fit.slope), float(fit.intercept)) if fit.slope > 0 else (0.0, float(y_B.mean()))


def places(answers: Answers) -> Floats:
    """Return the answers of a regression, put on the line that fits the labels."""
    slope, offset = line(answers)
    return np.asarray(slope * answers.answers_B + offset)


def errors(answers: Answers) -> Floats:
    """Return the error of each row: 1 where a class is wrong, else 0; of a value, its place on the line minus the label."""
    if answers.is_regression:
        return np.asarray(places(answers) - answers.labels_B)
    return np.asarray(answers.answers_B != answers.labels_B, dtype=np.float64)


def by_label(answers: Answers, num_bins: int = 5) -> list[Group]:
    """Group the rows of a regression by label, in bins of equal width over the label range."""
    low, high = answers.task.label_range
    edges = np.linspace(low, high, num_bins + 1)
    bin_B = np.clip(np.digitize(answers.labels_B, edges[1:-1]), 0, num_bins - 1)
    names = [f"{a:g} to {b:g}" for a, b in pairwise(edges)]
    return _groups(answers, bin_B, names)


def by_length(answers: Answers) -> list[Group]:
    """Group the rows by their number of tokens, in up to four groups of about equal size."""
    inner = np.unique(np.quantile(answers.lengths_B, np.arange(1, PARTS) / PARTS, method="higher"))
    bin_B = np.digitize(answers.lengths_B, inner)
    names = []
    for number in range(len(inner) + 1):
        of = answers.lengths_B[bin_B == number]
        names.append("" if not of.size else f"{of.min()}" if of.min() == of.max() else f"{of.min()} to {of.max()}")
    return _groups(answers, bin_B, names)


def _groups(answers: Answers, bin_B: NDArray[np.int64], names: Sequence[str]) -> list[Group]:
    """Measure the rows of each bin that holds any."""
    error_B = errors(answers)
    found = []
    for number, name in enumerate(names):
        own = error_B[bin_B == number]
        if not own.size:
            continue
        if not answers.is_regression:
            right = int((own == 0).sum())
            found.append(Group(name, own.size, right / own.size, wilson(right, own.size)))
            continue
        size, mean = own.size, float(np.abs(own).mean())
        half = NORMAL * float(np.abs(own).std(ddof=1)) / np.sqrt(size) if size > 1 else float("inf")
        found.append(Group(name, size, mean, (max(0.0, mean - half), mean + half), float(own.mean())))
    return found


# ------------------------------------------------------------------------------------------------------------- examples


def worst(answers: Answers, most: int) -> list[Example]:
    """Return the rows with the largest errors: those whose label got the least probability, or whose value is furthest off."""
    errors_B = severity(answers)
    order = np.argsort(-np.abs(errors_B), kind="stable")[:most]
    return [example(answers, int(row), float(errors_B[row])) for row in order]


def severity(answers: Answers) -> Floats:
    """Return how wrong each row is: 1 minus the probability of its label; of a value, its error."""
    if answers.is_regression:
        return errors(answers)
    return 1 - answers.label_shares_B


def example(answers: Answers, row: int, error: float) -> Example:
    """Return a row as an example. error: its `severity`."""
    label, answer = (answers.name_of(float(of[row])) for of in (answers.labels_B, answers.answers_B))
    confidence = None if answers.is_regression else float(answers.shares_BC[row].max())
    return Example(answers.ids[row], answers.texts[row], label, answer, error, confidence)
