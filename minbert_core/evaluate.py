"""Scores and prediction files of a split: metrics, both overall scores, files as the course wants them, and their check.

    model.predict_logits -> logits_BK -> metric -> overall, score      predictions -> prediction_text

B examples, K outputs.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minbert_core.config import Objective
from minbert_core.data.tasks import Task
from minbert_core.model import predictions


class NotFiniteError(ArithmeticError):
    """A loss or a metric is nan or infinite; the trial ends."""


def metric(task: Task, logits_BK: NDArray[np.float32], labels_B: NDArray[np.float64]) -> float:
    """Compute the task's metric; nan if a logit is not finite. The correlation of constant predictions counts as 0."""
    if not np.isfinite(logits_BK).all():
        return float("nan")
    answers = predictions(task, logits_BK)
    match task.metric:
        case "accuracy":
            return float((answers == labels_B).mean())
        case "f1":
            return f1(answers, labels_B, 1)
        case "macro_f1":
            return _mean([f1(answers, labels_B, label) for label in range(task.outputs)])
    if is_constant(answers) or is_constant(labels_B):
        return 0.0
    if task.metric == "spearman":
        from scipy.stats import rankdata  # imported here, because it takes a second and few tasks need it

        answers, labels_B = rankdata(answers), rankdata(labels_B)
    return float(np.corrcoef(answers, labels_B)[0, 1])


def f1(answers_B: NDArray[np.float64], labels_B: NDArray[np.float64], label: int) -> float:
    """Compute the F1 of one class, 2TP/(2TP + FP + FN); 0 if it is neither predicted nor in the labels."""
    answered, right = answers_B == label, labels_B == label
    together = answered.sum() + right.sum()
    return float(2 * (answered & right).sum() / together) if together else 0.0


def is_constant(values: NDArray[np.float64]) -> bool:
    """Return True if values differ only by float32 noise, so that a correlation with them is noise or 0/0."""
    return bool(np.ptp(values) <= 1e-6 * max(1.0, float(np.abs(values).max())))


def overall(metrics: Mapping[str, float], tasks: Mapping[str, Task], objective: str | Objective) -> dict[str, float]:
    """Compute both overall scores: norm averages (r + 1)/2 for a correlation r, mean averages r.

    They average all of `metrics`. If `objective` weights tasks, they average only those; the others are auxiliary.
    """
    counted = [name for name in metrics if not isinstance(objective, Objective) or name in objective.weights]
    return {
        "norm": _mean([tasks[name].unit(metrics[name]) for name in counted]),
        "mean": _mean([metrics[name] for name in counted]),
    }


def score(metrics: Mapping[str, float], tasks: Mapping[str, Task], objective: str | Objective) -> float:
    """Compute the score that a search maximises: norm, mean, one task's metric, or a weighted mean.

    One task's metric and a weighted mean use (r + 1)/2 for a correlation r, so that they are in [0, 1].
    """
    if isinstance(objective, Objective):
        total = sum(objective.weights.values())
        return sum(weight * tasks[name].unit(metrics[name]) for name, weight in objective.weights.items()) / total
    return tasks[objective].unit(metrics[objective]) if objective in metrics else overall(metrics, tasks, objective)[objective]


def _mean(values: Sequence[float]) -> float:
    return float(sum(values) / len(values))


# ------------------------------------------------------------------------------------------------------ prediction files


def prediction_text(task: Task, ids: Sequence[str], answers: NDArray[np.float64]) -> str:
    """Format a prediction file: the course's, or for a user's own task a CSV of id and prediction, with classes by name."""
    if not task.is_own:
        return submission_text(task, ids, answers)
    file = io.StringIO(newline="")
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["id", "prediction"])
    rows.writerows(zip(ids, [task.classes[int(a)] if task.classes else str(float(a)) for a in answers], strict=True))
    return file.getvalue()


def submission_text(task: Task, ids: Sequence[str], answers: NDArray[np.float64]) -> str:
    """Format the course's prediction file, byte for byte: `id \\t Predicted_X \\n`, then `<id> , <value> \\n` per row."""
    values = [str(int(a)) if task.kind == "classification" else str(float(a)) for a in answers]
    rows = "".join(f"{id_} , {value} \n" for id_, value in zip(ids, values, strict=True))
    return f"id \t {task.prediction_column} \n{rows}"


def check_submission(path: Path, task: Task, ids: Sequence[str]) -> list[str]:
    """List a sentence for each fault that the course's grader would find in a prediction file."""
    text = path.read_bytes().decode("utf-8", errors="replace")  # from bytes, because reading as text hides CRLF
    header, _, body = text.partition("\n")
    faults = []
    if header != f"id \t {task.prediction_column} ":
        faults.append(f"{path.name}:1: the header must be 'id \\t {task.prediction_column} '. Got {header!r}.")
    number = {"classification": r"\d+", "binary": r"[01]\.0", "regression": r"-?\d+(\.\d+)?(e[+-]\d+)?"}[task.kind]
    row = re.compile(rf"(\S+) , ({number}) ")
    seen: list[str] = []
    for line, row_text in enumerate(body.removesuffix("\n").split("\n"), start=2):
        match = row.fullmatch(row_text)
        if match is None:
            faults.append(f"{path.name}:{line}: a row must be '<id> , <value> '. Got {row_text!r}.")
        elif task.kind == "classification" and int(match[2]) >= task.outputs:
            faults.append(f"{path.name}:{line}: the class must be in [0, {task.outputs - 1}]. Got {match[2]}.")
        else:
            seen.append(match[1])
    if not text.endswith("\n"):
        faults.append(f"{path.name}: the last line has no line end.")
    if sorted(seen) != sorted(ids):
        missing, extra, again = len(set(ids) - set(seen)), len(set(seen) - set(ids)), len(seen) - len(set(seen))
        counts = f"Got {len(seen)} valid rows, {missing} missing, {extra} unknown, {again} repeated."
        faults.append(f"{path.name}: {len(ids)} ids are expected once each. {counts}")
    return faults
