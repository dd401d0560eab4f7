"""Many repetitions of each method, in all cores: on the recorded curves, and on functions drawn from the surrogate.

Recording, methods -> simulate -> Simulated: a Replay per repetition
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import optuna
from threadpoolctl import threadpool_limits

from analysis.simulation.methods import Method, num_trials
from analysis.simulation.points import Floats
from analysis.simulation.recorded import Recording
from analysis.simulation.replay import Replay, SimulatedSearch
from analysis.simulation.sources import FromTable, Suggested
from analysis.simulation.surrogate import Drawn, Surrogate
from minbert_core.cores import usable_cores
from search.space.space import Space

NUM_RANDOM = 512  # random points of a drawn function, of which the best stands for the best of the space


@dataclass(frozen=True)
class Problem:
    """A simulation's setting. budget: in full trials of mean cost; workers: trials at a time."""

    recording: Recording
    budget: float
    workers: int
    fitted: bool  # curves of the surrogate, not the recorded ones

    @property
    def full_seconds(self) -> float:
        """The mean seconds of a full trial with all evaluations that were recorded, the unit of the budget."""
        return float(np.mean([each.seconds_R[-1] for each in self.recording.configurations]))

    @property
    def end_seconds(self) -> float:
        return self.budget * self.full_seconds / self.workers

    def shares(self, rungs: Sequence[int]) -> dict[int, float]:
        """Return the mean share of a full trial's seconds at each of a method's rungs."""
        places = self.recording.places(rungs)
        shares_P = np.mean([each.seconds_at(places) / each.seconds_R[-1] for each in self.recording.configurations], axis=0)
        return dict(zip(rungs, shares_P.tolist(), strict=True))

    @property
    def num_recipes(self) -> int:
        return len({each.recipe for each in self.recording.configurations})

    @cached_property
    def surrogate(self) -> Surrogate:
        return Surrogate(self.recording)


@dataclass(frozen=True)
class Simulated:
    """The repetitions of a method.

    bests and means: for each the noiseless score of the best configuration, and the mean at the first rung.
    """

    method: Method
    fitted: bool
    replays: list[Replay]
    bests: list[float]
    means: list[float]


class Worker:
    """A process that repeats methods. What repetitions share, the surrogate above all, is made once."""

    def __init__(self, problem: Problem) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.problem = problem
        points = problem.recording.points
        generator = np.random.default_rng(0)
        if problem.fitted:
            self.random_PD = points.encode([points.random(generator) for _ in range(NUM_RANDOM)])

    def repeat(self, method: Method, planned: int, repetition: int) -> tuple[Replay, float, float]:
        """Run one repetition. Return it with the best noiseless score, and the mean at the first rung."""
        problem, recording = self.problem, self.problem.recording
        space = dataclasses.replace(recording.points.space, settings=method.settings)
        if not problem.fitted:
            true_PR = np.array([each.metrics_RM[:, 0] for each in recording.configurations])
            source: FromTable | Suggested = FromTable(recording, method.settings.rungs, repetition)
            return self._run(space, source, planned), float(true_PR.max()), float(true_PR[:, 0].mean())
        drawn = problem.surrogate.draw(np.random.default_rng(repetition))
        true_PR = self.true_scores(drawn)
        source = Suggested(drawn, method.settings.rungs, method.settings.sampler, repetition, method.num_known)
        return self._run(space, source, planned), float(true_PR.max()), float(true_PR[:, 0].mean())

    def _run(self, space: Space, source: FromTable | Suggested, planned: int) -> Replay:
        problem = self.problem
        tasks = problem.recording.tasks
        return SimulatedSearch(space, source, tasks, planned, problem.workers, problem.end_seconds).run()

    def true_scores(self, drawn: Drawn) -> Floats:
        """Return the noiseless scores of random points of a drawn function, (P, R)."""
        num_metrics = 1 + len(self.problem.recording.tasks)
        return drawn.outputs(self.random_PD)[:, :-1:num_metrics]


_worker: Worker | None = None  # of a process of the pool


def _start(problem: Problem) -> None:
    global _worker
    _worker = Worker(problem)


def _repeat(method: Method, planned: int, repetitions: range) -> list[tuple[Replay, float, float]]:
    assert _worker is not None, "_start runs first"
    with threadpool_limits(1):  # each core has a process of its own
        return [_worker.repeat(method, planned, repetition) for repetition in repetitions]


def simulate(problem: Problem, methods: Sequence[Method], repetitions: int) -> Iterator[Simulated]:
    """Run the repetitions of each method, and yield it once they are done."""
    cores = min(usable_cores(), max(1, repetitions // 20))  # a process takes seconds to start
    shares = [problem.shares(method.settings.rungs) for method in methods]
    planned = [
        num_trials(method, problem.budget, problem.num_recipes, own) for method, own in zip(methods, shares, strict=True)
    ]
    if cores == 1:
        _start(problem)
        for method, trials in zip(methods, planned, strict=True):
            yield _simulated(problem, method, _repeat(method, trials, range(repetitions)))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cores, context, _start, (problem,)) as pool:
        parts = [range(i, repetitions, 4 * cores) for i in range(4 * cores)]
        futures = [
            [pool.submit(_repeat, method, trials, part) for part in parts]
            for method, trials in zip(methods, planned, strict=True)
        ]
        for method, of_method in zip(methods, futures, strict=True):
            found = dict(
                zip([i for part in parts for i in part], [one for future in of_method for one in future.result()], strict=True)
            )
            yield _simulated(problem, method, [found[i] for i in range(repetitions)])


def _simulated(problem: Problem, method: Method, found: list[tuple[Replay, float, float]]) -> Simulated:
    replays, bests, means = (list(column) for column in zip(*found, strict=True))
    return Simulated(method, problem.fitted, replays, bests, means)
