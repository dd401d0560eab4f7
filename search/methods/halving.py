"""The number of trials that successive halving is expected to end at each rung, by simulation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from search.methods.decisions import CONTINUE, Arrival
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
        active, reached = list(range(num_trials)), [-1] * num_trials  # reached: the index of a trial's last rung
        quality = random.normal(size=(num_trials, NUM_TASKS))
        while active:
            for number in active:
                while reached[number] < len(rungs) - 1 and scheduler.verdict(number) == CONTINUE:
                    reached[number] += 1
                    rung, exempt = rungs[reached[number]], number < num_baselines
                    of_tasks = quality[number] + NOISE * random.normal(size=NUM_TASKS)
                    tasks = {str(i): float(value) for i, value in enumerate(of_tasks)}
                    score = sum(tasks.values()) / NUM_TASKS
                    scheduler.decide(Arrival(number, str(number % num_recipes), exempt, rung, score, tasks, float(rung)))
            # those that have waited and may continue now
            active = [n for n in active if reached[n] < len(rungs) - 1 and scheduler.verdict(n) == CONTINUE]
            if not active and (chosen := scheduler.choose(may_begin=False)) is not None:
                active = [chosen]
        for last in reached:
            ends[last] += 1
    return [count / repeats for count in ends]


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
