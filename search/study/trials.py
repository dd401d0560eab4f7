"""A trial as its records show it, and the order of trials."""

from __future__ import annotations

import math
from collections import UserDict, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from minbert_core.config import TrialConfig
from minbert_core.config_checks import read_config

Status = Literal["running", "completed", "stopped", "failed"]


@dataclass(frozen=True)
class TrialResult:
    """One trial, as its records show it. `points` maps each evaluated rung to its dev record. Its records do not change."""

    number: int
    status: Status
    reason: str
    params: dict[str, Any]
    baseline: int | None
    folder: Path
    records: list[dict[str, Any]] = field(repr=False)
    deaths: int = 0  # processes of it that died or hung; --retry-failed begins to count again
    noted_recipe: str = ""  # as the study has it; "" for an older search

    @cached_property
    def points(self) -> dict[int, dict[str, Any]]:
        return {record["rung"]: record for record in self.records if record["kind"] == "dev"}

    @cached_property
    def rung(self) -> int:
        """The last rung evaluated; 0 before the first."""
        return max(self.points, default=0)

    @cached_property
    def best(self) -> dict[str, Any]:
        """The dev record of the best evaluation, which has the trial's score."""
        return max(self.points.values(), key=lambda record: record["dev/score"])

    @cached_property
    def last(self) -> dict[str, Any]:
        return self.points[self.rung]

    @cached_property
    def score(self) -> float:
        return float(self.best["dev/score"]) if self.points else -math.inf

    @cached_property
    def standing(self) -> tuple[int, float, int]:
        """The trial's place among others: rung (0 if it is not ranked), score, -number; the greatest is the best."""
        return (self.rung if self.status != "failed" else 0, self.score, -self.number)

    @cached_property
    def seconds(self) -> float:
        return float(self.records[-1]["seconds"]) if self.records else 0.0

    @cached_property
    def examples(self) -> int:
        return int(self.records[-1]["examples"]) if self.records else 0

    def config(self) -> TrialConfig:
        return read_config(self.folder / "config.yaml")

    @cached_property
    def recipe(self) -> str:
        return self.noted_recipe or self.config().recipe


def ranked(trials: Iterable[TrialResult]) -> list[TrialResult]:
    """Return the trials at the highest rung that any has reached, best score first. Failed trials are left out."""
    trials = list(trials)
    fullest = max((trial.standing[0] for trial in trials), default=0)
    best = [trial for trial in trials if fullest and trial.standing[0] == fullest]
    return sorted(best, key=lambda trial: trial.standing, reverse=True)


class Trials(UserDict[int, TrialResult]):
    """The trials of a running search by number, with what every report asks for at hand: who leads, and who has ended.

    A look at each of 1,000 trials at each report would be a fifth of the driver's time.
    """

    def __init__(self, trials: Iterable[TrialResult] = ()) -> None:
        self.at_rung: dict[int, dict[int, TrialResult]] = defaultdict(dict)
        self.ended: dict[int, float] = {}  # number -> seconds
        super().__init__({trial.number: trial for trial in trials})

    def __setitem__(self, number: int, trial: TrialResult) -> None:
        if number in self.data:
            del self.at_rung[self.data[number].standing[0]][number]
        self.at_rung[trial.standing[0]][number] = trial
        self.ended.pop(number, None)
        if trial.status != "running":
            self.ended[number] = trial.seconds
        self.data[number] = trial

    def ranked(self) -> list[TrialResult]:
        """Return what `ranked` returns of all trials."""
        fullest = max((rung for rung, trials in list(self.at_rung.items()) if trials), default=0)
        return ranked(list(self.at_rung[fullest].values())) if fullest else []

    def running(self) -> list[TrialResult]:
        return [self.data[number] for number in sorted(self.data.keys() - self.ended.keys())]


def best_first(trials: Iterable[TrialResult]) -> list[TrialResult]:
    """Return all trials: the ranked ones, then the others by rung, highest first, and the failed ones last."""
    trials = list(trials)
    first = ranked(trials)
    numbers = {trial.number for trial in first}
    rest = [trial for trial in trials if trial.number not in numbers]
    return first + sorted(rest, key=lambda trial: (trial.status == "failed", -trial.rung, -trial.score, trial.number))


def stopped_at(rung: int, rungs: tuple[int, ...]) -> str:
    return f"stopped at {rung}/{rungs[-1]}"
