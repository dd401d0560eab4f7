"""The number of trials that successive halving is expected to end at each rung, by simulation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from search.methods.decisions import CONTINUE, Arrival, Scheduler
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
        scheduler = trial_scheduler.build(rungs, num_trials)
        reached: list[int] = []  # the index of each trial's last rung, in the order in which they begin
        quality = random.normal(size=(num_trials, NUM_TASKS))
        while (number := _next(scheduler, reached, len(rungs) - 1, num_trials)) is not None:
            if number == len(reached):
                reached.append(-1)
            while reached[number] < len(rungs) - 1 and (reached[number] < 0 or scheduler.verdict(number) == CONTINUE):
                reached[number] += 1
                rung, exempt = rungs[reached[number]], number < num_baselines
                of_tasks = quality[number] + NOISE * random.normal(size=NUM_TASKS)
                tasks = {str(i): float(value) for i, value in enumerate(of_tasks)}
                score = sum(tasks.values()) / NUM_TASKS
                scheduler.decide(Arrival(number, str(number % num_recipes), exempt, rung, score, tasks, float(rung)))
        for last in reached:
            ends[last] += 1
    return [count / repeats for count in ends]


def _next(scheduler: Scheduler, reached: Sequence[int], last: int, num_trials: int) -> int | None:
    """Return the trial that a free slot gets, as in a search: one that may continue, the scheduler's choice, or a new one."""
    may_begin = len(reached) < num_trials
    ready = (number for number, index in enumerate(reached) if index < last and scheduler.verdict(number) == CONTINUE)
    number = next(ready, None)
    number = scheduler.choose(may_begin) if number is None else number
    return len(reached) if number is None and may_begin else number


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
