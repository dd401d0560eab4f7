"""The study of a simulated search, in memory: what search/study/study.py is for a real one, for the same StudySearcher.

ask -> Curves.next: the curve of a new trial -> report, tell -> the best so far, and back to the curves' sampler
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from analysis.simulation.points import Floats, Point
from search.space.space import Space
from search.study.trial_files import OneDisk, TrialFiles
from search.study.trials import Status, TrialResult

NOWHERE = Path("simulated")


@dataclass(frozen=True)
class Curve:
    """What a trial will report. metrics_RM: at each rung the score, then the tasks', with the noise of its seed.

    seen_R and kept_R: of the best evaluation so far, whose model is kept, the score as it was seen and without noise.
    truth: the best of all points that were recorded, those without an evaluation included, without noise.
    """

    point: Point
    recipe: str
    metrics_RM: Floats
    seconds_R: Floats
    stages: tuple[int, ...]
    seen_R: Floats
    kept_R: Floats
    truth: float


class Curves(Protocol):
    """The source of a simulated search's trials."""

    def next(self, number: int) -> Curve: ...
    def reported(self, number: int, rung: int, score: float) -> None: ...
    def waits(self, numbers: dict[int, TrialResult]) -> None: ...
    def use_forecasts(self, forecasts: Callable[[], Mapping[int, float]]) -> None: ...
    def ended(self, number: int, status: Status, score: float) -> None: ...


class SimulatedStudy:
    """The trials of one simulated search."""

    def __init__(self, space: Space, curves: Curves, tasks: tuple[str, ...]) -> None:
        self.space, self.source, self.folder = space, curves, NOWHERE
        self.files: TrialFiles = OneDisk()  # of which none exists
        self.keys = ("dev/score", *(f"dev/{task}" for task in tasks))
        self.waiting: dict[int, TrialResult] = {}
        curves.waits(self.waiting)
        self.curves: list[Curve] = []
        self.trials: list[TrialResult] = []
        self.best: tuple[int, float, int] = (0, 0.0, -1)  # rung, score and number of the best trial, in the order of `ranked`

    def ask(self) -> TrialResult:
        """Begin a trial."""
        number = len(self.trials)
        curve = self.source.next(number)
        self.curves.append(curve)
        self.trials.append(TrialResult(number, "running", "", curve.point, None, NOWHERE, [], noted_recipe=curve.recipe))
        return self.trials[-1]

    def record(self, number: int) -> dict[str, Any]:
        """Return the dev record of a trial's next point, as its process would report it."""
        curve, i, rungs = self.curves[number], len(self.trials[number].records), self.space.settings.rungs
        fixed = {"kind": "dev", "rung": rungs[i], "stage": curve.stages[i], "seconds": float(curve.seconds_R[i])}
        return fixed | dict(zip(self.keys, curve.metrics_RM[i].tolist(), strict=True))

    def report(self, number: int, records: list[dict[str, Any]]) -> TrialResult:
        trial = replace(self.trials[number], records=[*self.trials[number].records, *records])
        self.trials[number] = trial
        self.source.reported(number, trial.rung, trial.last["dev/score"])
        self.best = max(self.best, (trial.rung, self._seen(trial), number), key=lambda best: best[:2])
        return trial

    def truth_in_hand(self) -> float:
        """Return the noiseless score of the model that the search would return now, its best trial's."""
        rung, _, number = self.best
        return float(self.curves[number].kept_R[self.space.settings.rungs.index(rung)])

    def _seen(self, trial: TrialResult) -> float:
        return float(self.curves[trial.number].seen_R[self.space.settings.rungs.index(trial.rung)])

    def tell(self, number: int, status: Status, reason: str) -> TrialResult:
        self.trials[number] = replace(self.trials[number], status=status, reason=reason)
        self.source.ended(number, status, self._seen(self.trials[number]))
        return self.trials[number]

    def died(self, number: int, counts: bool = True) -> TrialResult:
        raise NotImplementedError("no process dies in a simulation")

    def results(self) -> list[TrialResult]:
        return self.trials

    def use_forecasts(self, forecasts: Callable[[], Mapping[int, float]]) -> None:
        self.source.use_forecasts(forecasts)

    def keep_best(self) -> None:
        """Do nothing: there are no weights."""

    def trial_folder(self, number: int) -> Path:
        return NOWHERE
