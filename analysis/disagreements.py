"""Two models on the same rows: how often each is right alone, how certain their difference is, the rows they disagree on most.

Two Answers ─► paired ─► disagreement ─► errors.py
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.answers import Answers
from analysis.influence import influences
from analysis.intervals import Estimate, Scores, compare
from analysis.mistakes import Example, errors, example, places, severity


@dataclass(frozen=True)
class Disagreement:
    """Two models on one task.

    difference: the first's metric minus the second's, rows paired; its interval covers other rows, not other seeds.
    both, first, second, neither: rows on which both models are right, only one, or none; of values, rows on which both are
    off by at most `near`, and so on.  same: rows with the same answer; of values, Pearson's correlation of the answers.
    p: McNemar's exact test that each model is as often right alone as the other.
    """

    task: str
    size: int
    values: tuple[float, float]
    difference: Estimate
    both: int
    first: int
    second: int
    neither: int
    same: float
    p: float
    near: float  # label units; 0 of classes


def check_paired(first: Answers, second: Answers) -> None:
    """Raise ValueError if two models were not asked the same rows."""
    asked = [(of.ids, of.labels_B.tolist(), of.task.classes) for of in (first, second)]
    if asked[0] != asked[1]:
        counts = " and ".join(f"{of.model} {len(of):,}" for of in (first, second))
        raise ValueError(
            f"Two models are compared row by row, so both must have the same dev rows of {first.task.name}. They have other "
            f"ids or labels ({counts} rows). Give both the same --data DIR."
        )


def disagreement(first: Answers, second: Answers) -> Disagreement:
    """Compare two models on the rows of one task."""
    check_paired(first, second)
    task, near = first.task, 0.0
    if first.is_regression:
        near = (task.label_range[1] - task.label_range[0]) / 10  # half a point of 0 to 5: a convention of ours
    right, other = (np.abs(errors(of)) <= near for of in (first, second))
    marks = (right & other, right & ~other, ~right & other, ~right & ~other)
    both, only_first, only_second, neither = (int(np.count_nonzero(of)) for of in marks)
    alone = only_first + only_second
    p = float(stats.binomtest(only_first, alone).pvalue) if alone else 1.0
    difference = compare(_scores(first), _scores(second))
    return Disagreement(
        task.name,
        len(first),
        (first.value, second.value),
        difference,
        both,
        only_first,
        only_second,
        neither,
        _same(first, second),
        p,
        near,
    )


def _scores(answers: Answers) -> Scores:
    task = answers.task
    return Scores(np.array([answers.value]), [influences(task.metric, answers.answers_B[None], answers.labels_B, task.outputs)])


def _same(first: Answers, second: Answers) -> float:
    if not first.is_regression:
        return float((first.answers_B == second.answers_B).mean())
    return float(np.corrcoef(first.answers_B, second.answers_B)[0, 1])


def most_disputed(first: Answers, second: Answers, most: int) -> list[tuple[Example, Example]]:
    """Return the rows on which the two models' answers differ most, as each sees them.

    Of classes only rows with different answers: those with the largest difference of the label's probability come first.
    """
    wrong = [severity(of) for of in (first, second)]
    if first.is_regression:
        order = np.argsort(-np.abs(places(first) - places(second)), kind="stable")
    else:
        differ = np.flatnonzero(first.answers_B != second.answers_B)
        order = differ[np.argsort(-np.abs(wrong[0] - wrong[1])[differ], kind="stable")]
    return [
        (example(first, row, float(wrong[0][row])), example(second, row, float(wrong[1][row]))) for row in order[:most].tolist()
    ]
