"""How many trials successive halving is expected to end at each rung, by simulation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from search.methods.trial_schedulers import CONTINUE, Asha, NoStopping, TopK


def expected_ends(
    num_trials: int,
    num_baselines: int,
    num_recipes: int,
    rungs: Sequence[int],
    trial_scheduler: Asha | TopK | NoStopping,
    repeats: int = 50,
) -> list[float]:
    """How many trials are expected to end at each rung: simulated with scores drawn at random, seed fixed."""
    random = np.random.default_rng(0)
    ends = [0] * len(rungs)
    for _ in range(repeats):
        scheduler = trial_scheduler.build(rungs, num_trials)
        going, reached = list(range(num_trials)), [-1] * num_trials  # reached: the index of a trial's last rung
        while going:
            for number in going:
                while reached[number] < len(rungs) - 1 and scheduler.verdict(number) == CONTINUE:
                    reached[number] += 1
                    rung, exempt = rungs[reached[number]], number < num_baselines
                    scheduler.decide(number, str(number % num_recipes), exempt, rung, random.random())
            going = [n for n in going if reached[n] < len(rungs) - 1 and scheduler.verdict(n) == CONTINUE]  # they had waited
        for last in reached:
            ends[last] += 1
    return [count / repeats for count in ends]


def expected_full_trials(
    num_trials: int, num_baselines: int, num_recipes: int, rungs: Sequence[int], trial_scheduler: Asha | TopK | NoStopping
) -> float:
    """What a search is expected to cost, in whole budgets of a trial."""
    ends = expected_ends(num_trials, num_baselines, num_recipes, rungs, trial_scheduler)
    return sum(count * rung / rungs[-1] for count, rung in zip(ends, rungs, strict=True))
