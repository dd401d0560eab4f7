"""The family of trial schedulers: decide at the rungs, by the scores there, which trials continue.

    a point -> decide -> CONTINUE, STOP, or PAUSE (the trial waits for others)        verdict: the current decision for a trial

A scheduler's memory is keyed by our trial number, because Ray gives a resumed trial a new id. A resumed search restores it by
entering the points of its records again. search/study/searcher.py connects Ray to this file.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
from pydantic import Field, PositiveInt
from ray.tune.schedulers import TrialScheduler

from minbert_core.config import TrialConfig
from minbert_core.settings.models import BARE_NAME, Variant

MOST_ROUNDS = 1000  # the largest number that an error proposes
CONTINUE, STOP, PAUSE = str(TrialScheduler.CONTINUE), str(TrialScheduler.STOP), str(TrialScheduler.PAUSE)


def peers(recipe: str, record: Mapping[str, Any]) -> str:
    """Name the group of trials that a dev record is compared with: those of the same recipe in the same stage.

    Trials divide their budget between stages differently. At one rung a trial may be in its second stage while another is in
    its first, in which some tasks have not been shown yet.
    """
    return f"{recipe} stage {record.get('stage', 0)}"


class Scheduler(Protocol):
    """The decisions of a trial scheduler in one search."""

    law: str  # the reason why a trial is stopped, as the end of a sentence

    def decide(self, number: int, peers: str, exempt: bool, rung: int, score: float) -> str:
        """Enter a point and return the decision for its trial. Entering it again is harmless.

        An exempt trial always continues, but its points count.
        """

    def lost(self, number: int) -> None:
        """Note that a trial failed and will not reach another point."""

    def verdict(self, number: int) -> str:
        """Return the current decision for a trial, CONTINUE before its first point. Only PAUSE may change later."""


# ----------------------------------------------------------------------------------------------------------- asha


class RungScheduler:
    """Asynchronous successive halving: stops a trial below the best 1/reduction of the peers that were at its rung before it.

    With one set of rungs for all, recipes that start slowly would be stopped by those that start fast. A rung holds the score
    of the point itself, not the best score so far. Decisions equal those of Ray's ASHAScheduler with one instance per group of
    peers. Ray's own class is not used because it expects Ray's trials, and a resumed trial has a new id there.
    """

    def __init__(self, rungs: Sequence[int]) -> None:
        self.rungs = tuple(rungs)
        self.reduction = self.rungs[1] // self.rungs[0] if len(self.rungs) > 1 else 2
        self.law = f"below the best 1/{self.reduction} of its rung"
        self._scores: defaultdict[tuple[str, int], list[float]] = defaultdict(list)  # (peers, rung) -> scores, in order
        self._entered: set[tuple[int, int]] = set()  # (trial, rung)
        self._verdicts: dict[int, str] = {}

    def decide(self, number: int, peers: str, exempt: bool, rung: int, score: float) -> str:
        """Enter a trial's score at a rung and return CONTINUE or STOP. Exempt trials and those at the last rung continue."""
        if (number, rung) in self._entered:  # a resumed search enters its points again; the first score counts
            return self.verdict(number)
        self._entered.add((number, rung))
        earlier = self._scores[peers, rung]
        is_below = bool(earlier) and score < np.nanpercentile(earlier, (1 - 1 / self.reduction) * 100)
        earlier.append(score)
        stops = is_below and not exempt and rung < self.rungs[-1]  # at the last rung a trial ends by itself
        self._verdicts[number] = STOP if stops else CONTINUE
        return self._verdicts[number]

    def lost(self, number: int) -> None:
        """Do nothing: no trial waits for another."""

    def verdict(self, number: int) -> str:
        return self._verdicts.get(number, CONTINUE)


class Asha(Variant):
    """Asynchronous successive halving, Li et al. 2018 (arXiv 1810.05934), stopping variant, rungs kept per recipe."""

    kind: Literal["asha"] = "asha"
    stops: ClassVar[bool] = True  # a trial may end at a rung because of its score there
    least_rungs: ClassVar[int] = 1  # with one rung, every trial runs to its end
    most_waiting: ClassVar[int] = 0  # the largest number of trials paused at the same time, whose snapshots are kept

    def build(self, rungs: Sequence[int], num_trials: int) -> Scheduler:
        return RungScheduler(rungs)

    def describe(self, rungs: Sequence[int]) -> str:
        """Describe the scheduler for the plan; empty if it stops no trial."""
        return f"the best 1/{rungs[1] // rungs[0]} continue at each rung" if len(rungs) > 1 else ""

    def warning(self, rungs: Sequence[int], num_trials: int, num_baselines: int, num_recipes: int) -> str:
        """Return a sentence if the settings may not do what was intended, else an empty string."""
        reduction, per_recipe = rungs[1] // rungs[0] if len(rungs) > 1 else 0, num_trials / num_recipes
        if per_recipe >= 2 * reduction:
            return ""
        return (
            f"{per_recipe:.0f} trials per recipe are few: a rung keeps one in {reduction}, so the first ones pass without "
            f"comparison. Use {2 * reduction * num_recipes} trials or more for halving to work."
        )


# ---------------------------------------------------------------------------------------------------------- top_k


class TopKScheduler:
    """Top-k selection: the best k at the first rung run to the end, once all `num_trials` have reached it or failed.

    A trial that k others beat can no longer be among the best k, so it is stopped at once. So at most k trials wait, and only
    their snapshots are kept. Of equal scores the lower number wins. A trial that fails later is not replaced.
    """

    def __init__(self, rungs: Sequence[int], k: int, num_trials: int) -> None:
        self.k, self.num_trials = k, num_trials
        self.law = f"not among the best {k} of the first rung"
        self._firsts: dict[int, tuple[int, float]] = {}  # number -> (rung, score) of the first point; not for exempt trials
        self._free: set[int] = set()  # exempt, or selected before
        self._lost: set[int] = set()

    def decide(self, number: int, peers: str, exempt: bool, rung: int, score: float) -> str:
        if exempt or rung > self._firsts.setdefault(number, (rung, score))[0]:
            self._free.add(number)
        return self.verdict(number)

    def lost(self, number: int) -> None:
        self._lost.add(number)

    def verdict(self, number: int) -> str:
        if number in self._free or number not in self._firsts:
            return CONTINUE
        if sum(self._order(other) < self._order(number) for other in self._firsts) >= self.k:
            return STOP
        arrived = self._firsts.keys() | self._free | self._lost
        return CONTINUE if len(arrived) >= self.num_trials else PAUSE

    def _order(self, number: int) -> tuple[float, int]:
        return -self._firsts[number][1], number


class TopK(Variant):
    """One evaluation, then the top k ("1-Epoch", Egele et al. 2023, arXiv 2307.15422).

    Every trial runs to the first rung. The best k of all recipes together continue to the end without further selection, and so
    do the baselines, in addition to the k.
    """

    kind: Literal["top_k"] = "top_k"
    k: PositiveInt = Field(3, description="trials that continue after the first rung, not counting baselines")
    stops: ClassVar[bool] = True
    least_rungs: ClassVar[int] = 2

    @property
    def most_waiting(self) -> int:
        return self.k

    def build(self, rungs: Sequence[int], num_trials: int) -> Scheduler:
        return TopKScheduler(rungs, self.k, num_trials)

    def describe(self, rungs: Sequence[int]) -> str:
        return f"the best {self.k} at {rungs[0]}/{rungs[-1]} continue to the end"

    def warning(self, rungs: Sequence[int], num_trials: int, num_baselines: int, num_recipes: int) -> str:
        if num_trials - num_baselines > self.k:
            return ""
        return f"top_k continues {self.k} of {num_trials - num_baselines} trials, so it stops none."


# ------------------------------------------------------------------------------------------------------------- none


class NoStops:
    """No stopping: every trial runs to its end."""

    law = ""  # no trial is stopped

    def decide(self, number: int, peers: str, exempt: bool, rung: int, score: float) -> str:
        return CONTINUE

    def lost(self, number: int) -> None:
        """Do nothing: no trial waits for another."""

    def verdict(self, number: int) -> str:
        return CONTINUE


class NoStopping(Variant):
    """No stopping: trials are evaluated at the rungs, and the best evaluation is the score. For grids of known systems."""

    kind: Literal["none"] = "none"
    stops: ClassVar[bool] = False
    least_rungs: ClassVar[int] = 1
    most_waiting: ClassVar[int] = 0

    def build(self, rungs: Sequence[int], num_trials: int) -> Scheduler:
        return NoStops()

    def describe(self, rungs: Sequence[int]) -> str:
        return "all run to the end"

    def warning(self, rungs: Sequence[int], num_trials: int, num_baselines: int, num_recipes: int) -> str:
        return ""


TrialSchedulerSetting = Annotated[Asha | TopK | NoStopping, Field(discriminator="kind"), BARE_NAME]


# --------------------------------------------------------------------------------------------- rungs and task schedules


def rung_faults(config: TrialConfig, rungs: Sequence[int]) -> Iterator[tuple[str, str]]:
    """Yield (path, sentence) for each stage in which a rung cuts a round, so that trials are compared inside their turns."""
    for rounds in filter(None, config.rounds()):
        if rounds.span is None:
            law = "belongs to one of several stages in epochs, so where rungs cut its rounds depends on the sizes of the data"
            yield rounds.path, f"`{rounds.path}` {law}. Give the stages shares of the budget, or use trial_scheduler: none."
            continue
        start, end = rounds.span
        at = {rung: (rung / rungs[-1] - start) / (end - start) for rung in rungs[:-1] if start < rung / rungs[-1] < end}
        if cut := [rung for rung, share in at.items() if not _is_whole(rounds.number * share)]:
            law = "must end a round at every rung, because within a round some tasks have been shown less than others"
            got = f"Got {rounds.number}, of which {rounds.number * at[cut[0]]:.3g} end by the rung of {cut[0]}/{rungs[-1]}"
            fits = next((n for n in range(1, MOST_ROUNDS) if all(_is_whole(n * share) for share in at.values())), None)
            remedy = f"Use {fits} or a multiple of it" if fits else "Use a task_schedule without rounds"
            yield rounds.path, f"`{rounds.path}` {law}. {got}. {remedy}, or trial_scheduler: none."


def _is_whole(number: float) -> bool:
    """Return whether a number is an integer, to within the rounding of shares."""
    return math.isclose(number, round(number), abs_tol=1e-6)


# ----------------------------------------------------------------------------------------------------------- cost
