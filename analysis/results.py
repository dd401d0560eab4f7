"""What the models answered, as numbers: metrics a model, means with intervals a configuration, differences between them.

logits of every model on dev and test -> metrics -> the best by dev -> intervals, comparisons -> results.json, report.py
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.intervals import Answers, Quantity, intervals
from analysis.retrain import Job
from analysis.selection import Selection
from minbert_core.config import OVERALL, TrialConfig
from minbert_core.data.tasks import Task
from minbert_core.data.tokens import TokenisedSplit
from minbert_core.evaluate import metric, overall, score
from minbert_core.model import predictions

SPLITS = ("dev", "test")
Splits = Mapping[tuple[str, str], TokenisedSplit]  # (task, "dev" or "test")
Logits = Mapping[tuple[str, str], NDArray[np.float32]]  # the same keys -> (rows, K)


@dataclass(frozen=True)
class Measured:
    """A number of one configuration, or a difference of two: a value a seed, and the 95 % interval of their mean."""

    values: list[float]
    low: float
    high: float

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the seeds; None of a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def document(self) -> dict[str, Any]:
        return {"mean": self.mean, "deviation": self.deviation, "interval": [self.low, self.high], "values": self.values}


@dataclass(frozen=True)
class Comparison:
    """Two configurations on one split, their seeds paired by index and their rows one by one: first minus second."""

    split: str
    first: int
    second: int
    differences: dict[str, Measured]  # "score" (the objective) and "norm"

    @property
    def verdict(self) -> str:
        """What the interval of the objective allows to say."""
        found = self.differences["score"]
        return "beats" if found.low > 0 else "loses to" if found.high < 0 else "cannot be told from"

    def document(self) -> dict[str, Any]:
        differences = {name: measured.document() for name, measured in self.differences.items()}
        return {"split": self.split, "first": self.first, "second": self.second, "verdict": self.verdict, **differences}


@dataclass(frozen=True)
class Results:
    """All numbers of a test. A column is a task, norm, mean or score; a split lacks the columns for which it has no labels."""

    metrics: dict[Job, dict[str, dict[str, float]]]  # split -> column -> value
    configurations: dict[int, dict[str, dict[str, Measured]]]  # trial -> split -> column -> mean and interval
    comparisons: list[Comparison]
    winner: int  # the configuration with the best mean dev score
    chosen: Job  # its model that is best on dev


def columns_of(config: TrialConfig) -> list[str]:
    """What is shown of a configuration: each task, norm and mean where there are several, the score where tasks are weighed."""
    several, weighed = len(config.train_on) > 1, not isinstance(config.objective, str)
    return [*config.train_on, *(OVERALL if several else ()), *(["score"] if weighed else [])]


def measure(selection: Selection, logits: Mapping[Job, Logits], splits: Splits) -> Results:
    """Everything that is reported, from the models' logits on both splits."""
    config = selection.config
    metrics = {job: {split: _metrics(config, of, splits, split) for split in SPLITS} for job, of in logits.items()}
    groups: dict[int, dict[int, Job]] = {}  # trial -> seed -> model
    for job in logits:
        groups.setdefault(job.number, {})[job.seed_index or 0] = job
    dev = {number: statistics.fmean(metrics[job]["dev"]["score"] for job in jobs.values()) for number, jobs in groups.items()}
    winner = max(dev, key=lambda number: dev[number])
    chosen = max(groups[winner].values(), key=lambda job: metrics[job]["dev"]["score"])
    configurations: dict[int, dict[str, dict[str, Measured]]] = {number: {} for number in groups}
    comparisons = []
    for split in SPLITS:
        found = _with_intervals(config, split, splits, logits, metrics, groups, _pairs(selection, groups, winner))
        for of, columns in found.items():
            if len(of) == 1:
                configurations[of[0]][split] = columns
            else:
                comparisons.append(Comparison(split, of[0], of[1], columns))
    return Results(metrics, configurations, comparisons, winner, chosen)


def _metrics(config: TrialConfig, logits: Logits, splits: Splits, split: str) -> dict[str, float]:
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
    """The columns that the metrics of the labelled tasks are enough to compute; `score` is the search's objective."""
    tasks, objective = config.known_tasks, config.objective
    columns: dict[str, Callable[[Mapping[str, float]], float]] = {}
    if set(config.counted) <= set(labelled):
        columns["norm"] = lambda metrics: overall(metrics, tasks, objective)["norm"]
        columns["mean"] = lambda metrics: overall(metrics, tasks, objective)["mean"]
    if columns or objective in labelled:
        columns["score"] = partial(score, tasks=tasks, objective=objective)
    return columns


def _pairs(selection: Selection, groups: Mapping[int, Any], winner: int) -> list[tuple[int, int]]:
    """Every finalist with the reference, then, where no question is asked, with the winner."""
    reference = selection.reference
    references = [reference.number] if reference and reference.number in groups else []
    others = references if selection.question else [*references, winner]
    finalists = [trial.number for trial in selection.finalists if trial.number in groups]
    pairs = [(number, other) for other in others for number in finalists if number not in (other, *references)]
    return list(dict.fromkeys(pairs))


def _with_intervals(
    config: TrialConfig,
    split: str,
    splits: Splits,
    logits: Mapping[Job, Logits],
    metrics: Mapping[Job, Mapping[str, Mapping[str, float]]],
    groups: Mapping[int, Mapping[int, Job]],
    pairs: list[tuple[int, int]],
) -> dict[tuple[int, ...], dict[str, Measured]]:
    """The columns of each (configuration,) and the differences of each pair on a split, all from one set of resamples."""
    tasks, jobs = _labelled(config, splits, split), list(logits)
    columns: dict[str, Callable[[Mapping[str, float]], float]] = {task: itemgetter(task) for task in tasks}
    columns |= _overall(config, tasks)
    wanted: dict[tuple[tuple[int, ...], str], tuple[list[Job], list[Job]]] = {}  # -> models, and the models subtracted
    for number, seeds in groups.items():
        wanted |= {((number,), column): (list(seeds.values()), []) for column in columns}
    for pair in pairs:
        first, second = (groups[number] for number in pair)
        both = [seed for seed in first if seed in second]
        sides = [first[seed] for seed in both], [second[seed] for seed in both]
        wanted |= {(pair, column): sides for column in ("score", "norm") if column in columns and both}
    quantities = []
    for (_, column), (models, minus) in wanted.items():
        weights_T, offset = affine(columns[column], tasks)
        places, minus_places = ([jobs.index(job) for job in side] for side in (models, minus))
        quantities.append(Quantity(places, weights_T, 0.0 if minus else offset, minus_places))
    answers = [_answers(config.known_tasks[task], split, splits, logits, jobs) for task in tasks]
    bounds = intervals(answers, quantities) if tasks else []
    found: dict[tuple[int, ...], dict[str, Measured]] = {}
    for ((of, column), sides), (low, high) in zip(wanted.items(), bounds, strict=True):
        values, subtracted = ([metrics[job][split][column] for job in side] for side in sides)
        differences = [a - b for a, b in zip(values, subtracted, strict=True)] if subtracted else values
        found.setdefault(of, {})[column] = Measured(differences, low, high)
    return found


def _answers(task: Task, split: str, splits: Splits, logits: Mapping[Job, Logits], jobs: list[Job]) -> Answers:
    labels_B = splits[task.name, split].labels
    assert labels_B is not None
    answers_JB = np.stack([predictions(task, logits[job][task.name, split]) for job in jobs])
    return Answers(task.metric, answers_JB, labels_B, task.outputs)


def affine(column: Callable[[Mapping[str, float]], float], tasks: list[str]) -> tuple[list[float], float]:
    """The weight of each task and the offset of a column that is a weighted sum of the tasks' metrics, read off its values."""
    nothing = dict.fromkeys(tasks, 0.0)
    offset = column(nothing)
    return [column(nothing | {task: 1.0}) - offset for task in tasks], offset


def document(selection: Selection, sha: str, results: Results, failures: Mapping[str, str]) -> dict[str, Any]:
    """What results.json holds: every number of the report, each model's own metrics too."""
    return {
        "search": selection.search.name,
        "selection_sha256": sha,
        "tried": len(selection.search.trials),
        "seeds": selection.seeds,
        "baseline": selection.baseline and selection.baseline.number,
        **({"per": selection.question.document()} if selection.question else {}),
        "winner": results.winner,
        "chosen_model": results.chosen.name,
        "failed": dict(failures),
        "configurations": [
            {
                "trial": trial.number,
                "params": trial.params,
                "claimed": {key.removeprefix("dev/"): value for key, value in trial.best.items() if key.startswith("dev/")},
                **{
                    split: {column: measured.document() for column, measured in columns.items()}
                    for split, columns in results.configurations[trial.number].items()
                },
            }
            for trial in selection.trials
            if trial.number in results.configurations
        ],
        "comparisons": [comparison.document() for comparison in results.comparisons],
        "models": {job.name: splits for job, splits in results.metrics.items()},
    }
