"""Ray's ASHAScheduler, one a recipe, behind a scheduler that is keyed by our trial number.

Ray gives a continued trial a new id, under which ASHA would count it twice at its next rung; and it keeps one set of rungs for
all, in which recipes that start slowly are stopped by those that start fast. Baselines enter the rungs and are never stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler


@dataclass(frozen=True)
class _Entry:
    """All that ASHAScheduler reads of a trial."""

    trial_id: str


class RungScheduler(FIFOScheduler):
    """Stops a trial at a rung unless its value there is among the best 1/reduction of its recipe so far.

    Reads `number`, `recipe`, `exempt`, `part` and `score` from a report. A rung holds the point's own value, never a best.
    """

    def __init__(self, rungs: Sequence[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rungs = tuple(rungs)
        self._recipes: dict[str, Any] = {}  # recipe -> ASHAScheduler, which asks for Ray's own trials and is handed _Entry

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True  # metric and mode are ours

    def decide(self, number: int, recipe: str, exempt: bool, part: int, score: float) -> str:
        """Enter a point into its recipe's rungs; STOP or CONTINUE."""
        if recipe not in self._recipes:
            self._recipes[recipe] = self._asha()
        asha, entry = self._recipes[recipe], _Entry(str(number))
        if entry.trial_id not in asha._trial_info:
            asha.on_trial_add(None, entry)
        decision = asha.on_trial_result(None, entry, {"part": part, "score": score})
        # at the last point Ray would stop all from outside; ours end by themselves after that report
        stops = decision == TrialScheduler.STOP and not exempt and part < self.rungs[-1]
        return str(TrialScheduler.STOP if stops else TrialScheduler.CONTINUE)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return self.decide(result["number"], result["recipe"], result["exempt"], result["part"], result["score"])

    def _asha(self) -> ASHAScheduler:
        return ASHAScheduler(
            time_attr="part",
            metric="score",
            mode="max",
            max_t=self.rungs[-1],
            grace_period=self.rungs[0],
            reduction_factor=self.rungs[1] // self.rungs[0] if len(self.rungs) > 1 else 2,
        )


def expected_full_trials(
    num_trials: int, num_baselines: int, num_recipes: int, rungs: Sequence[int], repeats: int = 50
) -> float:
    """What a search is expected to cost, in whole budgets of a trial: simulated with scores drawn at random, seed fixed."""
    random = np.random.default_rng(0)
    total = 0.0
    for _ in range(repeats):
        scheduler = RungScheduler(rungs)
        for number in range(num_trials):
            exempt = number < num_baselines
            for part in rungs:
                stop = scheduler.decide(number, str(number % num_recipes), exempt, part, random.random()) == TrialScheduler.STOP
                if stop or part == rungs[-1]:
                    total += part / rungs[-1]
                    break
    return total / repeats
