"""What a trial scheduler is asked and answers: the arrival of a trial at a rung -> CONTINUE, STOP or PAUSE."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from ray.tune.schedulers import TrialScheduler

OVERALL = {"dev/score", "dev/norm", "dev/mean"}
WAITS = "waits for the other trials of its rung"
CONTINUE, STOP, PAUSE = str(TrialScheduler.CONTINUE), str(TrialScheduler.STOP), str(TrialScheduler.PAUSE)


def peers(recipe: str, record: Mapping[str, Any]) -> str:
    """Name the group of trials that a dev record is compared with: those of the same recipe in the same stage.

    Trials divide their budget between stages differently. At one rung a trial may be in its second stage while another is in
    its first, in which some tasks have not been shown yet.
    """
    return f"{recipe} stage {record.get('stage', 0)}"


def of_tasks(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the dev metric of each task in a dev record."""
    return {key: float(value) for key, value in record.items() if key.startswith("dev/") and key not in OVERALL}


class Arrival(NamedTuple):
    """A trial at a rung, as its scheduler sees it."""

    number: int
    peers: str
    exempt: bool  # a baseline
    rung: int
    score: float
    tasks: Mapping[str, float] = MappingProxyType({})  # the metric of each task
    seconds: float = 0.0  # the cost of the trial so far


def arrival(number: int, recipe: str, exempt: bool, record: Mapping[str, Any]) -> Arrival:
    """Return what a scheduler sees of a trial's dev record."""
    seconds = float(record.get("seconds", 0.0))
    return Arrival(number, peers(recipe, record), exempt, record["rung"], record["dev/score"], of_tasks(record), seconds)


class Scheduler(Protocol):
    """The decisions of a trial scheduler in one search."""

    law: str  # the reason why a trial is stopped, as the end of a sentence
    why_waits: str  # the reason why a trial pauses, as the end of a sentence

    def decide(self, arrival: Arrival) -> str:
        """Enter a point and return the decision for its trial. Entering it again is harmless.

        An exempt trial always continues, but its points count.
        """

    def lost(self, number: int) -> None:
        """Note that a trial failed, or was stopped before a resume, and will not reach another point."""

    def verdict(self, number: int) -> str:
        """Return the current decision for a trial, CONTINUE before its first point. Only PAUSE may change later."""

    def choose(self, may_begin: bool, candidates: Container[int]) -> int | None:
        """Return the paused trial that a free slot should continue; None: begin a new one, if that `may_begin`.

        candidates: the trials for whose next point there is time.
        """

    def forecasts(self) -> Mapping[int, float]:
        """Return the score that trials are expected to reach at their end, as far as it is forecast, for the sampler."""


def too_few(rungs: Sequence[int], num_trials: int, num_recipes: int) -> str:
    """Return a sentence if a recipe has so few trials that halving does little, else an empty string."""
    reduction, per_recipe = rungs[1] // rungs[0] if len(rungs) > 1 else 0, num_trials / num_recipes
    if per_recipe >= 2 * reduction:
        return ""
    return (
        f"{per_recipe:.0f} trials per recipe are few: a rung keeps one in {reduction}, so the first ones pass without "
        f"comparison. Use {2 * reduction * num_recipes} trials or more for halving to work."
    )
