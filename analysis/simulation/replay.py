"""One simulated search: the searcher and the trial scheduler of a real one, driven by a clock of the recorded seconds.

    free worker -> StudySearcher.suggest -> its next point is due at now + seconds -> TuneScheduler -> StudySearcher -> …

A trial's process takes START_SECONDS to start, at its beginning and after a pause.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass
from typing import Any

from analysis.simulation.study import Curves, SimulatedStudy
from search.methods.decisions import CONTINUE, STOP
from search.space.space import Space
from search.study.messages import Report, as_dict
from search.study.searcher import StudySearcher, TuneScheduler
from search.study.trials import TrialResult

START_SECONDS = 3.0  # on two cores (LOG.md, 2026-11-27)


class Silent:
    """A listener that does nothing."""

    def started(self, trial: TrialResult, resumed: bool) -> None: ...
    def reported(self, trial: TrialResult, new: list[dict[str, Any]]) -> None: ...
    def paused(self, trial: TrialResult, why: str) -> None: ...
    def retried(self, trial: TrialResult, why: str) -> None: ...
    def ended(self, trial: TrialResult) -> None: ...


@dataclass(frozen=True)
class Replay:
    """The course of one simulated search.

    times and truths: when the model that the search would return changed, in seconds, and its noiseless score from then on.
    """

    times: list[float]
    truths: list[float]
    num_trials: int
    num_whole: int  # that ran to the end
    lost_best: bool  # all trials of the best configuration that was begun were stopped before their end, or still wait
    seconds: float  # of training


class SimulatedSearch:
    """A search of `space.settings`, with `workers` trials at a time, to its end or for `end_seconds`."""

    def __init__(
        self,
        space: Space,
        curves: Curves,
        tasks: tuple[str, ...],
        num_trials: int,
        workers: int,
        end_seconds: float,
        start_seconds: float = START_SECONDS,
    ) -> None:
        settings = space.settings
        self.now, self.rungs, self.workers, self.start_seconds = 0.0, settings.rungs, workers, start_seconds
        self.study = SimulatedStudy(space, curves, tasks)
        scheduler = settings.trial_scheduler.build(settings.rungs, num_trials)

        def seconds_left() -> float:
            return end_seconds - self.now

        self.verdict = scheduler.verdict
        self.searcher = StudySearcher(self.study, scheduler, num_trials, [], Silent(), seconds_left)
        self.searcher.start_seconds = start_seconds
        self.scheduler = TuneScheduler(scheduler, settings.rungs, seconds_left)
        self.due: list[tuple[float, int, dict[str, Any]]] = []  # a heap of (time, Ray's id, order)
        self.ids = itertools.count()
        self.times: list[float] = []
        self.truths: list[float] = []

    def run(self) -> Replay:
        """Run it, in no more time than its decisions take."""
        while True:
            while len(self.due) < self.workers and isinstance(order := self.searcher.suggest(str(i := next(self.ids))), dict):
                self.searcher.suggested_at.clear()  # by the real clock
                self._train(i, order, self.start_seconds)
            if not self.due:
                return self._result()
            self.now, i, order = heapq.heappop(self.due)
            self._report(i, order)

    def _train(self, i: int, order: dict[str, Any], before: float = 0.0) -> None:
        """Let a trial train to its next point. before: the seconds until it begins."""
        trial = self.study.trials[order["number"]]
        seconds = self.study.curves[trial.number].seconds_R[len(trial.records)] - trial.seconds
        heapq.heappush(self.due, (self.now + before + float(seconds), i, order))

    def _report(self, i: int, order: dict[str, Any]) -> None:
        """Report a trial's point, as its process would, and let Ray's part end it or let it continue."""
        number = order["number"]
        record = self.study.record(number)
        recipe = self.study.curves[number].recipe
        report = as_dict(Report(number, recipe, order["exempt"], record["rung"], record["dev/score"], [record]))
        if self.scheduler.on_trial_result(None, None, report) == STOP:
            self.searcher.on_trial_complete(str(i), report)
        else:
            self.searcher.on_trial_result(str(i), report)
            if record["rung"] == self.rungs[-1]:
                self.searcher.on_trial_complete(str(i), report)
            else:
                self._train(i, order)
        truth = self.study.truth_in_hand()
        if not self.truths or truth != self.truths[-1]:
            self.times.append(self.now)
            self.truths.append(truth)

    def _result(self) -> Replay:
        trials, curves = self.study.trials, self.study.curves
        best = max(curve.truth for curve in curves)
        whole = sum(trial.rung == self.rungs[-1] for trial in trials)
        # drawn with replacement, a configuration may have several trials, of which one is enough; with CONTINUE a trial has
        # ended, or the budget has
        lost = all(self.verdict(number) != CONTINUE for number, curve in enumerate(curves) if curve.truth == best)
        return Replay(self.times, self.truths, len(trials), whole, lost, sum(trial.seconds for trial in trials))
