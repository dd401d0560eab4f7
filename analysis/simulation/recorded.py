"""Recorded learning curves: the trials of a search that ran to the end, by configuration, and the noise between seeds.

    table.py's Trials -> read_recording -> Recording: configurations, each with its mean curve; residuals of repeats

Legend: C configurations, R rungs, M metrics (the score, then the tasks), S residuals.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.simulation.points import Floats, Point, Points
from analysis.table import Facts, Table, Trial
from minbert_core.commands import Refused, analysis_command
from minbert_core.words import counted, duration
from search.space.file import SpaceSettings
from search.space.space import Space

LEAST = 10  # configurations with whole curves; fewer say nothing about methods
GOOD = 30  # from here on a difference between methods can be told from the choice of configurations (assumed, 2026-11)


@dataclass(frozen=True)
class Configuration:
    """A recorded configuration: the mean over its seeds of its metrics, shape (R, M), and of the seconds at each rung.

    evaluation_R: the seconds of each rung's evaluation, which `seconds_R` contains.
    """

    point: Point
    recipe: str
    metrics_RM: Floats
    seconds_R: Floats
    evaluation_R: Floats
    stages: tuple[int, ...]  # at each rung
    num_seeds: int

    def seconds_at(self, places: Sequence[int]) -> Floats:
        """Compute the seconds up to some of the rungs if the trial is evaluated at these only, in the shape of `places`."""
        left_out_R = self.evaluation_R.copy()
        left_out_R[list(places)] = 0
        seconds: Floats = (self.seconds_R - left_out_R.cumsum())[list(places)]
        return seconds


@dataclass(frozen=True)
class Recording:
    """The configurations that can be replayed. residuals_SRM: of repeats from the mean of their configuration."""

    points: Points
    rungs: tuple[int, ...]
    tasks: tuple[str, ...]
    configurations: list[Configuration]
    residuals_SRM: Floats
    num_trials: int  # of the search, those without a whole curve included
    failed: int
    was_stopped: bool  # some trial was stopped, so the whole curves are those that the search chose

    @property
    def num_curves(self) -> int:
        return sum(each.num_seeds for each in self.configurations)

    def places(self, rungs: Sequence[int]) -> list[int]:
        """Return the places of some of its rungs.  Raises ValueError: a rung that was not recorded, or not the last."""
        if unknown := [rung for rung in rungs if rung not in self.rungs]:
            raise ValueError(f"Rung {unknown[0]} was not recorded. Known: {', '.join(map(str, self.rungs))}.")
        if rungs[-1] != self.rungs[-1]:
            raise ValueError(f"--rungs must end with the last rung that was recorded, {self.rungs[-1]}. Got {rungs[-1]}.")
        return [self.rungs.index(rung) for rung in rungs]


def read_recording(table: Table) -> Recording:
    """Read the whole curves of the table's only search.  Raises ValueError: a file without its space; Refused: too few."""
    [facts] = table.searches.values()
    if not facts.space:
        raise ValueError(
            f"The file lacks the search's space. Write it again: {analysis_command('runs', 'NAME', '--out', 'FILE.parquet')}"
        )
    keys = {key: value for key, value in facts.space.items() if key in SpaceSettings.model_fields}
    space = Space(facts.name, SpaceSettings.model_validate(keys), facts.space)
    rungs = space.settings.rungs
    whole = [trial for trial in table.trials if [entry["rung"] for entry in trial.evaluations] == list(rungs)]
    whole = [trial for trial in whole if trial.status == "completed"]
    groups: dict[str, list[Trial]] = defaultdict(list)
    for trial in sorted(whole, key=lambda trial: trial.number):
        groups[repr(sorted(trial.params.items()))].append(trial)
    if len(groups) < LEAST:
        raise Refused(too_few(table, facts, len(groups), rungs))
    points = Points(space)
    domains = points.domains
    configurations = [_configuration(trials, facts, rungs, domains) for trials in groups.values()]
    statuses = [trial.status for trial in table.trials]
    about = len(statuses), statuses.count("failed"), "stopped" in statuses
    return Recording(points, rungs, tuple(facts.tasks), configurations, _residuals(groups, facts.tasks), *about)


def _configuration(trials: list[Trial], facts: Facts, rungs: Sequence[int], domains: dict[str, Any]) -> Configuration:
    metrics = np.mean([_metrics(trial, facts.tasks) for trial in trials], axis=0)
    seconds, evaluation = (
        np.mean([[entry.get(key, 0.0) for entry in trial.evaluations] for trial in trials], axis=0)
        for key in ("seconds", "evaluation_seconds")  # an older file lacks the second
    )
    stages = tuple(int(entry.get("stage", 0)) for entry in trials[0].evaluations)
    given = trials[0].params
    point = {path: _label(domain, given[path]) for path, domain in domains.items() if path in given}
    return Configuration(point, trials[0].recipe, metrics, seconds, evaluation, stages, len(trials))


def _label(domain: Any, value: Any) -> Any:
    """Return the label of a choice that a cell of the table, which may be its text, means; the value of a range."""
    return next((label for label in getattr(domain, "labels", ()) if str(label) == str(value)), value)


def _metrics(trial: Trial, tasks: Sequence[str]) -> list[list[float]]:
    return [[float(entry.get(f"dev/{name}", math.nan)) for name in ("score", *tasks)] for entry in trial.evaluations]


def _residuals(groups: dict[str, list[Trial]], tasks: Sequence[str]) -> Floats:
    """Return the differences of repeats from their mean, scaled so that their variance is that of a seed."""
    found = []
    for trials in groups.values():
        if len(trials) > 1:
            metrics = np.array([_metrics(trial, tasks) for trial in trials])
            found.append((metrics - metrics.mean(axis=0)) * math.sqrt(len(trials) / (len(trials) - 1)))
    some = next(iter(groups.values()))[0]
    return np.concatenate(found) if found else np.zeros((0, len(some.evaluations), len(tasks) + 1))


def too_few(table: Table, facts: Facts, num_whole: int, rungs: Sequence[int]) -> str:
    """Return the sentences for a search with too few whole curves: why, and the command that records more, with its cost."""
    stopped = sum(trial.status == "stopped" for trial in table.trials)
    full = [trial.seconds for trial in table.trials if trial.rung == rungs[-1]]
    why = f", because {stopped} of its {len(table.trials)} trials were stopped early" if stopped else ""
    settings = "--trials 40 --set trial_scheduler=none --set 'sampler={kind: random, repeat_every: 4}' --set 'baselines=[]'"
    cost = f"\nBy its {len(full)} whole trials, this trains for {duration(float(np.mean(full)) * 40)} in all." if full else ""
    return (
        f"{facts.name} has {counted(num_whole, 'configuration')} with a whole curve{why}. A simulation needs {LEAST}, and "
        f"{GOOD} to tell methods apart.\nRecord some, with repeats that show the noise between seeds:\n"
        f"  python -m search.run --space runs/{facts.name}/space.yaml --name {facts.name}-curves {settings}{cost}"
    )
