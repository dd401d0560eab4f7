"""The models' answers as numbers: metrics per model, means with intervals per configuration, differences between them.

logits of every model on dev and test -> metrics -> the best by dev -> intervals, comparisons -> results.json, test_table.py
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.influence import Floats, influences
from analysis.intervals import CONFIDENCE, Estimate, Scores, compare, estimate, holm
from analysis.retrain import Job
from analysis.selection import Selection, claimed
from minbert_core.config import OVERALL, Objective, TrialConfig
from minbert_core.data.tasks import Task
from minbert_core.data.tokens import TokenisedSplit
from minbert_core.evaluate import metric, overall, score
from minbert_core.model import predictions

SPLITS = ("dev", "test")
Splits = Mapping[tuple[str, str], TokenisedSplit]  # (task, "dev" or "test")
Logits = Mapping[tuple[str, str], NDArray[np.float32]]  # the same keys -> (rows, K)


@dataclass(frozen=True)
class Measured:
    """A number of one configuration: a value per seed, and the 95 % interval of their mean."""

    values: list[float]
    low: float
    high: float

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the seeds; None for a single seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def document(self) -> dict[str, Any]:
        return {"mean": self.mean, "deviation": self.deviation, "interval": [self.low, self.high], "values": self.values}


@dataclass(frozen=True)
class Comparison:
    """Mean scores of two configurations on one split, first minus second, their rows paired.

    corrected_p: that of the objective, corrected for the number of comparisons on the split; None where one has a single seed.
    """

    split: str
    first: int
    second: int
    differences: dict[str, Estimate]  # "score" (the objective) and "norm"
    corrected_p: float | None

    @property
    def verdict(self) -> str:
        """The conclusion that the corrected p-value of the objective allows."""
        if self.corrected_p is None:
            return "no verdict"
        if self.corrected_p > 1 - CONFIDENCE:
            return "cannot be told from"
        return "beats" if self.differences["score"].mean > 0 else "loses to"

    def document(self) -> dict[str, Any]:
        differences = {
            name: {"mean": found.mean, "interval": [found.low, found.high], "p": found.p}
            for name, found in self.differences.items()
        }
        about = {"split": self.split, "first": self.first, "second": self.second}
        return {**about, "verdict": self.verdict, "corrected_p": self.corrected_p, **differences}


@dataclass(frozen=True)
class Results:
    """All numbers of a test. A column is a task, norm, mean or score; a split lacks the columns for which it has no labels."""

    metrics: dict[Job, dict[str, dict[str, float]]]  # split -> column -> value
    configurations: dict[int, dict[str, dict[str, Measured]]]  # trial -> split -> column -> mean and interval
    comparisons: list[Comparison]
    winner: int  # the configuration with the best mean dev score, among those with several seeds if there are any
    chosen: Job  # its model that is best on dev


def columns_of(config: TrialConfig) -> list[str]:
    """List the columns of a report: each task, norm and mean if there are several, and the score if none of these is it."""
    overall_scores = OVERALL if len(config.train_on) > 1 else ()
    return [*config.train_on, *overall_scores, *(["score"] if objective_column(config) == "score" else [])]


def objective_column(config: TrialConfig) -> str:
    """Return the column with the values of the objective: `score` if tasks are weighted, or for (r + 1)/2 of a correlation."""
    objective, (first, *others) = config.objective, config.train_on
    if isinstance(objective, Objective):
        return "score"
    if others and objective in OVERALL:
        return objective
    task = first if objective in OVERALL else objective
    return task if objective == "mean" or not config.known_tasks[task].is_correlation else "score"


def objective_name(config: TrialConfig) -> str:
    """Name the objective in a sentence: `norm`, `sst`, `(r + 1)/2 of sts`, `the weighted score`."""
    if isinstance(config.objective, Objective):
        return "the weighted score"
    task = config.train_on[0] if config.objective in OVERALL else config.objective
    return f"(r + 1)/2 of {task}" if objective_column(config) == "score" else config.objective


def measure(selection: Selection, logits: Mapping[Job, Logits], splits: Splits) -> Results:
    """Compute all numbers of the report from the models' logits on both splits."""
    config = selection.config
    metrics = {job: {split: metrics_of(config, of, splits, split) for split in SPLITS} for job, of in logits.items()}
    groups: dict[int, dict[int, Job]] = {}  # trial -> seed -> model
    for job in logits:
        groups.setdefault(job.number, {})[job.seed_index or 0] = job
    dev = {number: statistics.fmean(metrics[job]["dev"]["score"] for job in jobs.values()) for number, jobs in groups.items()}
    several = {number for number, jobs in groups.items() if len(jobs) > 1}  # a single seed, if the others failed, may be lucky
    winner = max(several or dev, key=lambda number: dev[number])
    chosen = max(groups[winner].values(), key=lambda job: metrics[job]["dev"]["score"])
    configurations: dict[int, dict[str, dict[str, Measured]]] = {number: {} for number in groups}
    comparisons = []
    for split in SPLITS:
        scores = scores_of(config, split, splits, logits, metrics, groups)
        for number, columns in scores.items():
            if columns:
                limits = limits_of(config, split, splits)
                configurations[number][split] = {column: measured(of, *limits[column]) for column, of in columns.items()}
        comparisons += _compared(split, scores, _pairs(selection, groups, winner))
    return Results(metrics, configurations, comparisons, winner, chosen)


def metrics_of(config: TrialConfig, logits: Logits, splits: Splits, split: str) -> dict[str, float]:
    """A model's columns on a split: its labelled tasks and, if all of them are labelled, what is computed from them."""
    values = {}
    for task in _labelled(config, splits, split):
        labels_B = splits[task, split].labels
        assert labels_B is not None
        values[task] = metric(config.known_tasks[task], logits[task, split], labels_B)
    return values | {name: column(values) for name, column in _overall(config, list(values)).items()}


def _labelled(config: TrialConfig, splits: Splits, split: str) -> list[str]:
    return [task for task in config.train_on if (task, split) in splits and splits[task, split].labels is not None]


def _overall(config: TrialConfig, labelled: list[str]) -> dict[str, Callable[[Mapping[str, float]], float]]:
    """Return the columns that follow from the metrics of the labelled tasks; `score` is the search's objective."""
    tasks, objective = config.known_tasks, config.objective
    columns: dict[str, Callable[[Mapping[str, float]], float]] = {}
    if set(config.counted) <= set(labelled):
        columns["norm"] = lambda metrics: overall(metrics, tasks, objective)["norm"]
        columns["mean"] = lambda metrics: overall(metrics, tasks, objective)["mean"]
    if columns or objective in labelled:
        columns["score"] = partial(score, tasks=tasks, objective=objective)
    return columns


def _pairs(selection: Selection, groups: Mapping[int, Any], winner: int) -> list[tuple[int, int]]:
    """Pair every finalist with the reference and, without a question, with the winner."""
    reference = selection.reference
    references = [reference.number] if reference and reference.number in groups else []
    others = references if selection.question else [*references, winner]
    finalists = [trial.number for trial in [*selection.finalists, *selection.contenders] if trial.number in groups]
    pairs = [(number, other) for other in others for number in finalists if number not in (other, *references)]
    return list(dict.fromkeys(pairs))


def scores_of(
    config: TrialConfig,
    split: str,
    splits: Splits,
    logits: Mapping[Any, Logits],
    metrics: Mapping[Any, Mapping[str, Mapping[str, float]]],
    groups: Mapping[int, Mapping[int, Any]],
) -> dict[int, dict[str, Scores]]:
    """Compute the columns of each configuration on a split, with the influence of each row."""
    tasks = _labelled(config, splits, split)
    columns = _columns(config, tasks)
    weights_T = {column: affine(of, tasks) for column, of in columns.items()}
    found: dict[int, dict[str, Scores]] = {}
    for number, seeds in groups.items():
        jobs = list(seeds.values())
        of_tasks = [_influences(config.known_tasks[task], split, splits, [logits[job] for job in jobs]) for task in tasks]
        found[number] = {
            column: Scores(
                np.array([metrics[job][split][column] for job in jobs]),
                [weight * of_kB for weight, of_kB in zip(weights_T[column], of_tasks, strict=True) if weight],
            )
            for column in columns
        }
    return found


def _influences(task: Task, split: str, splits: Splits, logits: Sequence[Logits]) -> Floats:
    labels_B = splits[task.name, split].labels
    assert labels_B is not None
    answers_kB = np.stack([predictions(task, of[task.name, split]) for of in logits])
    return influences(task.metric, answers_kB, labels_B, task.outputs)


def _columns(config: TrialConfig, labelled: list[str]) -> dict[str, Callable[[Mapping[str, float]], float]]:
    """Return, for each column, the function that computes it from the metrics of the labelled tasks."""
    return {**{task: itemgetter(task) for task in labelled}, **_overall(config, labelled)}


def limits_of(config: TrialConfig, split: str, splits: Splits) -> dict[str, tuple[float, float]]:
    """Compute the least and the greatest value that each column can have."""
    tasks = _labelled(config, splits, split)
    least = {task: -1.0 if config.known_tasks[task].is_correlation else 0.0 for task in tasks}
    return {name: (of(least), of(dict.fromkeys(tasks, 1.0))) for name, of in _columns(config, tasks).items()}


def measured(scores: Scores, least: float, greatest: float) -> Measured:
    """Estimate a column of a configuration, its interval cut to the possible values."""
    estimated = estimate(scores)
    return Measured(scores.values_k.tolist(), max(estimated.low, least), min(estimated.high, greatest))


def _compared(split: str, scores: Mapping[int, Mapping[str, Scores]], pairs: Sequence[tuple[int, int]]) -> list[Comparison]:
    """Compare the pairs on a split. They are one family: their p-values are corrected together."""
    differences = {}
    for first, second in pairs:
        columns = [column for column in ("score", "norm") if column in scores[first]]
        if columns:
            differences[first, second] = {column: compare(scores[first][column], scores[second][column]) for column in columns}
    p_values = {pair: found["score"].p for pair, found in differences.items()}
    decided = {pair: p for pair, p in p_values.items() if p is not None}
    corrected = dict(zip(decided, holm(list(decided.values())), strict=True))
    return [Comparison(split, *pair, found, corrected.get(pair)) for pair, found in differences.items()]


def affine(column: Callable[[Mapping[str, float]], float], tasks: list[str]) -> list[float]:
    """Compute the weight of each task in a column that is a weighted sum of the tasks' metrics, from its values."""
    nothing = dict.fromkeys(tasks, 0.0)
    return [column(nothing | {task: 1.0}) - column(nothing) for task in tasks]


def document(selection: Selection, sha: str, results: Results, failures: Mapping[str, str]) -> dict[str, Any]:
    """Build the content of results.json: every number of the report, and each model's metrics."""
    return {
        "search": selection.search.name,
        "selection_sha256": sha,
        "tried": len(selection.search.trials),
        "seeds": selection.seeds,
        "baseline": selection.baseline and selection.baseline.number,
        **({"contenders": [trial.params["config"] for trial in selection.contenders]} if selection.contenders else {}),
        **({"per": selection.question.document()} if selection.question else {}),
        "winner": results.winner,
        "chosen_model": results.chosen.name,
        "failed": dict(failures),
        "configurations": [
            {
                "trial": trial.number,
                "params": trial.params,
                "claimed": {key.removeprefix("dev/"): value for key, value in claimed(trial).items()},
                **{
                    split: {column: of.document() for column, of in columns.items()}
                    for split, columns in results.configurations[trial.number].items()
                },
            }
            for trial in selection.trials
            if trial.number in results.configurations
        ],
        "comparisons": [comparison.document() for comparison in results.comparisons],
        "models": {job.name: splits for job, splits in results.metrics.items()},
    }
