"""The number of trials that successive halving is expected to end at each rung, by simulation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from search.methods.decisions import CONTINUE, STOP, Arrival, Scheduler
from search.methods.trial_schedulers import TrialSchedulerSetting

NUM_TASKS = 3  # of the random trials; their metrics are independent, so that a veto per task is expected to cost the most
NOISE = 0.3  # of a score, in deviations between trials; assumed. With scores that know nothing of those before (infinite), ASHA
# seems a fifth cheaper than it is: those that pass a rung late have passed stricter comparisons, and pass the next one, too


def expected_ends(
    num_trials: int,
    num_baselines: int,
    num_recipes: int,
    rungs: Sequence[int],
    trial_scheduler: TrialSchedulerSetting,
    repeats: int = 50,
) -> list[float]:
    """Return how many trials are expected to end at each rung, simulated with random scores and a fixed seed."""
    random = np.random.default_rng(0)
    ends = [0] * len(rungs)
    for _ in range(repeats):
        quality = random.normal(size=(num_trials, NUM_TASKS))

        def arrival(number: int, rung: int, quality: NDArray[np.float64] = quality) -> Arrival:
            of_tasks = quality[number] + NOISE * random.normal(size=NUM_TASKS)
            tasks = {str(i): float(value) for i, value in enumerate(of_tasks)}
            score = sum(tasks.values()) / NUM_TASKS
            return Arrival(number, str(number % num_recipes), number < num_baselines, rung, score, tasks, float(rung))

        for last in _last_rungs(trial_scheduler.build(rungs, num_trials), rungs, num_trials, arrival):
            ends[last] += 1
    return [count / repeats for count in ends]


def _last_rungs(
    scheduler: Scheduler, rungs: Sequence[int], num_trials: int, arrival: Callable[[int, int], Arrival]
) -> list[int]:
    """Run one search with one slot, and return the index of each trial's last rung.

    The slot gets what a search would give it: a waiting trial that may continue, the scheduler's choice, or a new trial.
    """
    reached: list[int] = []
    waiting: list[int] = []
    while True:
        verdicts = {number: scheduler.verdict(number) for number in waiting}
        waiting = [number for number in waiting if verdicts[number] != STOP]
        may_begin = len(reached) < num_trials
        number = next((number for number in waiting if verdicts[number] == CONTINUE), None)
        number = scheduler.choose(may_begin, waiting) if number is None else number
        if number is not None:
            waiting.remove(number)
        elif may_begin:
            number = len(reached)
            reached.append(-1)
        else:
            return reached
        verdict = CONTINUE
        while reached[number] < len(rungs) - 1 and verdict == CONTINUE:
            reached[number] += 1
            verdict = scheduler.decide(arrival(number, rungs[reached[number]]))
        if reached[number] < len(rungs) - 1 and verdict != STOP:
            waiting.append(number)


def expected_full_trials(
    num_trials: int,
    num_baselines: int,
    num_recipes: int,
    rungs: Sequence[int],
    trial_scheduler: TrialSchedulerSetting,
    repeats: int = 50,
) -> float:
    """Return the expected cost of a search in full budgets of a trial."""
    ends = expected_ends(num_trials, num_baselines, num_recipes, rungs, trial_scheduler, repeats)
    return sum(count * rung / rungs[-1] for count, rung in zip(ends, rungs, strict=True))
