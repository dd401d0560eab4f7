"""Scores and predictions of a split: metrics, both overall scores, the course's submission files and their validator.

B examples, K outputs. Evaluation sorts by length and packs up to a token budget: the order of rows has no influence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from minbert_core.config import Objective
from minbert_core.data.tasks import TASKS, Task
from minbert_core.data.tokens import TokenisedSplit, pack
from minbert_core.model import MultitaskBert

TOKENS_A_PASS = 4096  # large enough for full-rate matrix products, small enough for any GPU; assumed, not measured (2026-11)


def predict_logits(
    model: MultitaskBert,
    task: str,
    split: TokenisedSplit,
    max_length: int,
    specials: tuple[int, int],
    precision: str = "float32",
) -> NDArray[np.float32]:
    """What the metric reads of every row, shape (rows, K), in the split's own order: the logits, or their readout.

    K is the task's own number of outputs; `precision` is that of the matrix products.
    """
    plan = model.plans[task]
    device = next(model.parameters()).device
    lengths = split.lengths(plan.pair_encoding.kind, max_length)
    logits = np.zeros((len(split), plan.task.outputs), dtype=np.float32)
    with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        for rows in _token_budget(lengths):
            batch = pack(split, rows, plan.pair_encoding.kind, max_length, specials).to(device)
            logits[rows] = model.readout(task, model(task, batch).logits_BK).cpu().numpy()
    return logits


def _token_budget(lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Rows sorted by length, cut into groups of about TOKENS_A_PASS tokens (over it by less than a row, never empty)."""
    order = np.argsort(lengths, kind="stable")
    group = np.cumsum(lengths[order]) // TOKENS_A_PASS
    return np.split(order, np.flatnonzero(np.diff(group)) + 1) if len(order) else []


def predictions(task: Task, logits_BK: NDArray[np.float32]) -> NDArray[np.float64]:
    """What a task answers, shape (B,): the class, 0.0 or 1.0, or the score in label units."""
    if task.kind == "classification":
        classes_B: NDArray[np.float64] = logits_BK.argmax(axis=1).astype(np.float64)
        return classes_B
    if task.kind == "binary":
        return (logits_BK[:, 0] > 0).astype(np.float64)  # a probability of exactly one half rounds to even: 0
    return logits_BK[:, 0].astype(np.float64)


def metric(task: Task, logits_BK: NDArray[np.float32], labels_B: NDArray[np.float64]) -> float:
    """Accuracy, or Pearson's r; r of constant predictions is 0.  nan where a logit is not finite."""
    if not np.isfinite(logits_BK).all():
        return float("nan")
    answers = predictions(task, logits_BK)
    if task.metric == "accuracy":
        return float((answers == labels_B).mean())
    if is_constant(answers) or is_constant(labels_B):
        return 0.0
    return float(np.corrcoef(answers, labels_B)[0, 1])


def is_constant(values: NDArray[np.float64]) -> bool:
    """Whether values differ by no more than float32 noise: a correlation with them would be noise, or 0/0."""
    return bool(np.ptp(values) <= 1e-6 * max(1.0, float(np.abs(values).max())))


def overall(metrics: Mapping[str, float]) -> dict[str, float]:
    """Both overall scores over the tasks in `metrics`: norm takes (r + 1)/2, mean takes r."""
    return {"norm": _mean([_unit(name, value) for name, value in metrics.items()]), "mean": _mean(list(metrics.values()))}


def score(metrics: Mapping[str, float], objective: str | Objective) -> float:
    """The one number a search maximises: norm, mean, one task's metric, or a weighted mean.

    r enters a task's own objective and a weighted mean as (r + 1)/2, so that all lie in [0, 1].
    """
    if isinstance(objective, Objective):
        total = sum(objective.weights.values())
        return sum(weight * _unit(name, metrics[name]) for name, weight in objective.weights.items()) / total
    return _unit(objective, metrics[objective]) if objective in metrics else overall(metrics)[objective]


def _unit(task: str, value: float) -> float:
    return (value + 1) / 2 if TASKS[task].metric == "pearson" else value


def _mean(values: Sequence[float]) -> float:
    return float(sum(values) / len(values))


# ------------------------------------------------------------------------------------------- the course's submission files


def submission_text(task: Task, ids: Sequence[str], answers: NDArray[np.float64]) -> str:
    """The course's prediction file, to the byte: `id \\t Predicted_X \\n`, then `<id> , <value> \\n` a row."""
    values = [str(int(a)) if task.kind == "classification" else str(float(a)) for a in answers]
    rows = "".join(f"{id_} , {value} \n" for id_, value in zip(ids, values, strict=True))
    return f"id \t {task.prediction_column} \n{rows}"


def check_submission(path: Path, task: Task, ids: Sequence[str]) -> list[str]:
    """What the course's grader would refuse in a prediction file, as sentences; empty where it is fine."""
    text = path.read_bytes().decode("utf-8", errors="replace")  # bytes, because reading as text would hide a CRLF
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
        found = f"Got {len(seen)} sound rows, {missing} missing, {extra} unknown, {again} repeated."
        faults.append(f"{path.name}: {len(ids)} ids are expected once each. {found}")
    return faults
