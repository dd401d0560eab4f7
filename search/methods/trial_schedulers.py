"""The family of trial schedulers: decide at the rungs, by the scores there, which trials continue.

    a point -> decide -> CONTINUE, STOP, or PAUSE (the trial waits for others)        verdict: the current decision for a trial

A scheduler's memory is keyed by our trial number, because Ray gives a resumed trial a new id. A resumed search restores it by
entering the points of its records again. search/study/searcher.py connects Ray to this file.
"""

from __future__ import annotations

import bisect
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveInt

from minbert_core.config import TrialConfig
from minbert_core.settings.models import BARE_NAME, Variant
from search.methods.decisions import CONTINUE, PAUSE, STOP, WAITS, Arrival, Scheduler
from search.methods.freeze_thaw import FreezeThaw

MOST_ROUNDS = 1000  # the largest number that an error proposes


# ----------------------------------------------------------------------------------------------------------- asha


class RungScheduler:
    """Asynchronous successive halving: stops a trial below the best 1/reduction of the peers that were at its rung before it.

    With one set of rungs for all, recipes that start slowly would be stopped by those that start fast. A rung holds the score
    of the point itself, not the best score so far. Decisions equal those of Ray's ASHAScheduler with one instance per group of
    peers. Ray's own class is not used because it expects Ray's trials, and a resumed trial has a new id there.
    With a veto, a trial continues if it is not below them on the score or on any one task. At equal cost, it is compared with
    what its peers had reached after as many seconds, between two of their points by a straight line.
    """

    why_waits = ""  # no trial waits

    def __init__(self, rungs: Sequence[int], veto: bool = False, at_cost: bool = False) -> None:
        self.rungs, self.veto, self.at_cost = tuple(rungs), veto, at_cost
        self.reduction = self.rungs[1] // self.rungs[0] if len(self.rungs) > 1 else 2
        of = "its peers at equal cost" if at_cost else "its rung"
        self.law = f"below the best 1/{self.reduction} of {of}{' on the score and on every task' if veto else ''}"
        # (peers, rung) -> "" for the score or a task -> values in the order of arrival
        self._scores: defaultdict[tuple[str, int], defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        # peers -> trial -> (seconds, values) of its points
        self._curves: defaultdict[str, dict[int, list[tuple[float, dict[str, float]]]]] = defaultdict(dict)
        self._entered: set[tuple[int, int]] = set()  # (trial, rung)
        self._verdicts: dict[int, str] = {}

    def decide(self, arrival: Arrival) -> str:
        """Enter a trial's score at a rung and return CONTINUE or STOP. Exempt trials and those at the last rung continue."""
        number, rung = arrival.number, arrival.rung
        if (number, rung) in self._entered:  # a resumed search enters its points again; the first score counts
            return self.verdict(number)
        self._entered.add((number, rung))
        values = {"": arrival.score, **(arrival.tasks if self.veto else {})}
        is_below = all(self._is_below(value, self._earlier(arrival, name)) for name, value in values.items())
        for name, value in values.items():
            self._scores[arrival.peers, rung][name].append(value)
        self._curves[arrival.peers].setdefault(number, []).append((arrival.seconds, values))
        stops = is_below and not arrival.exempt and rung < self.rungs[-1]  # at the last rung a trial ends by itself
        self._verdicts[number] = STOP if stops else CONTINUE
        return self._verdicts[number]

    def _earlier(self, arrival: Arrival, name: str) -> Sequence[float]:
        """Return what the peers had before, at the rung or at the same cost. One that ended earlier keeps its last value."""
        if not self.at_cost:
            return self._scores[arrival.peers, arrival.rung][name]
        others = (curve for other, curve in self._curves[arrival.peers].items() if other != arrival.number)
        begun = [curve for curve in others if curve[0][0] <= arrival.seconds]
        return [
            float(np.interp(arrival.seconds, [at for at, _ in curve], [values[name] for _, values in curve])) for curve in begun
        ]

    def _is_below(self, value: float, earlier: Sequence[float]) -> bool:
        return bool(earlier) and bool(value < np.nanpercentile(earlier, (1 - 1 / self.reduction) * 100))

    def lost(self, number: int) -> None:
        """Do nothing: no trial waits for another."""

    def verdict(self, number: int) -> str:
        return self._verdicts.get(number, CONTINUE)

    def choose(self, may_begin: bool) -> int | None:
        return None


class Asha(Variant):
    """Asynchronous successive halving, Li et al. 2018 (arXiv 1810.05934), stopping variant, rungs kept per recipe.

    Departures: `veto` and `compare_at: cost`.
    """

    kind: Literal["asha"] = "asha"
    veto: bool = Field(
        False, description="also continue a trial that is among the best 1/reduction of its rung on any one task"
    )
    compare_at: Literal["examples", "cost"] = Field(
        "examples",
        description="what peers are compared at: equal examples, or equal seconds, where a dear method must earn its cost",
    )
    stops: ClassVar[bool] = True  # a trial may end at a rung because of its score there
    is_geometric: ClassVar[bool] = True  # the rungs grow by one factor, which says how many continue
    least_rungs: ClassVar[int] = 1  # with one rung, every trial runs to its end

    def build(self, rungs: Sequence[int], num_trials: int) -> Scheduler:
        return RungScheduler(rungs, self.veto, self.compare_at == "cost")

    def most_waiting(self, num_trials: int) -> int:
        """Return the largest number of trials paused at the same time, whose snapshots are kept."""
        return 0

    def describe(self, rungs: Sequence[int]) -> str:
        """Describe the scheduler for the plan; empty if it stops no trial."""
        any_task = ", on the score or on any one task," if self.veto else ""
        cost = ", compared at equal seconds," if self.compare_at == "cost" else ""
        return f"the best 1/{rungs[1] // rungs[0]}{any_task}{cost} continue at each rung" if len(rungs) > 1 else ""

    def warning(self, rungs: Sequence[int], num_trials: int, num_baselines: int, num_recipes: int) -> str:
        """Return a sentence if the settings may not do what was intended, else an empty string."""
        return _too_few(rungs, num_trials, num_recipes)


def _too_few(rungs: Sequence[int], num_trials: int, num_recipes: int) -> str:
    reduction, per_recipe = rungs[1] // rungs[0] if len(rungs) > 1 else 0, num_trials / num_recipes
    if per_recipe >= 2 * reduction:
        return ""
    return (
        f"{per_recipe:.0f} trials per recipe are few: a rung keeps one in {reduction}, so the first ones pass without "
        f"comparison. Use {2 * reduction * num_recipes} trials or more for halving to work."
    )


# ------------------------------------------------------------------------------------------------------ promotion


class PromotionScheduler:
    """Asynchronous successive halving by promotion: a trial pauses at its rung, and continues once it is among the best.

    Of n peers that have been at a rung, the best n // reduction are promoted, whenever they have become so. A trial that so
    many others beat that it can no longer be among them is stopped at once; so is the rest, once no other trial can arrive.
    Departures from Algorithm 2: a trial that is promoted at its own point continues without a pause; a rung at which no other
    trial can arrive promotes at least one, so that a group of few peers has a winner; trials are stopped, as above, since the
    number of trials is known.
    """

    why_waits = WAITS

    def __init__(self, rungs: Sequence[int], num_trials: int) -> None:
        self.rungs, self.num_trials = tuple(rungs), num_trials
        self.reduction = self.rungs[1] // self.rungs[0]
        self.law = f"not among the best 1/{self.reduction} of its rung"
        # rung -> peers -> (-score, number) of those that have been there, best first; of equal scores the lower number
        self._orders: dict[int, dict[str, list[tuple[float, int]]]] = {rung: {} for rung in self.rungs}
        self._entered: set[tuple[int, int]] = set()  # (trial, rung)
        self._last: dict[int, int] = {}  # number -> the last rung that it has reached
        self._verdicts: dict[int, str] = {}
        self._lost: set[int] = set()

    def decide(self, arrival: Arrival) -> str:
        number, rung = arrival.number, arrival.rung
        if (number, rung) in self._entered:  # a resumed search enters its points again; the first score counts
            return self.verdict(number)
        self._entered.add((number, rung))
        order = self._orders[rung].setdefault(arrival.peers, [])
        bisect.insort(order, (-arrival.score, number))
        self._last[number] = rung
        self._verdicts[number] = CONTINUE if arrival.exempt or rung == self.rungs[-1] else PAUSE
        self._change(order[: len(order) // self.reduction], rung, CONTINUE)
        self._settle()
        return self.verdict(number)

    def lost(self, number: int) -> None:
        self._lost.add(number)
        self._settle()

    def verdict(self, number: int) -> str:
        return self._verdicts.get(number, CONTINUE)

    def choose(self, may_begin: bool) -> int | None:
        return None  # those that continue have a verdict

    def _change(self, trials: Sequence[tuple[float, int]], rung: int, verdict: str) -> None:
        """Decide about those of the trials that wait at the rung."""
        for _, number in trials:
            if self._last[number] == rung and self._verdicts[number] == PAUSE:
                self._verdicts[number] = verdict

    def _settle(self) -> None:
        """Stop the waiting trials that have no chance, from the lowest rung up: it depends on how many can still arrive."""
        coming = max(0, self.num_trials - len(self._last.keys() | self._lost))
        for rung in self.rungs[:-1]:
            for order in self._orders[rung].values():
                if not coming:
                    self._change(order[: max(1, len(order) // self.reduction)], rung, CONTINUE)
                self._change(order[max(1, (len(order) + coming) // self.reduction) :], rung, STOP)
            there = (number for number, last in self._last.items() if last == rung and number not in self._lost)
            coming += sum(self._verdicts[number] != STOP for number in there)


class Promotion(Variant):
    """Asynchronous successive halving, Li et al. 2020 (arXiv 1810.05934), Algorithm 2, which promotes; rungs kept per recipe.

    A trial pauses at its rung. A free slot first continues a trial that is among the best 1/reduction, else begins a new one.
    """

    kind: Literal["promotion"] = "promotion"
    stops: ClassVar[bool] = True
    is_geometric: ClassVar[bool] = True
    least_rungs: ClassVar[int] = 2

    def build(self, rungs: Sequence[int], num_trials: int) -> Scheduler:
        return PromotionScheduler(rungs, num_trials)

    def most_waiting(self, num_trials: int) -> int:
        return num_trials

    def describe(self, rungs: Sequence[int]) -> str:
        return f"trials pause at each rung, and the best 1/{rungs[1] // rungs[0]} there continue"

    def warning(self, rungs: Sequence[int], num_trials: int, num_baselines: int, num_recipes: int) -> str:
        return _too_few(rungs, num_trials, num_recipes)


# ---------------------------------------------------------------------------------------------------------- top_k


class TopKScheduler:
    """Top-k selection: the best k at the first rung run to the end, once all `num_trials` have reached it or failed.

    A trial that k others beat can no longer be among the best k, so it is stopped at once. So at most k trials wait, and only
    their snapshots are kept. Of equal scores the lower number wins. A trial that fails later is not replaced.
    """

    why_waits = WAITS

    def __init__(self, rungs: Sequence[int], k: int, num_trials: int) -> None:
        self.k, self.num_trials = k, num_trials
        self.law = f"not among the best {k} of the first rung"
        self._firsts: dict[int, tuple[int, float]] = {}  # number -> (rung, score) of the first point; not for exempt trials
        self._free: set[int] = set()  # exempt, or selected before
        self._lost: set[int] = set()

    def decide(self, arrival: Arrival) -> str:
        number, rung = arrival.number, arrival.rung
        if arrival.exempt or rung > self._firsts.setdefault(number, (rung, arrival.score))[0]:
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

    def choose(self, may_begin: bool) -> int | None:
        return None  # those that continue have a verdict

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
    is_geometric: ClassVar[bool] = True
    least_rungs: ClassVar[int] = 2

    def most_waiting(self, num_trials: int) -> int:
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

    law = why_waits = ""  # no trial is stopped, and none waits

    def decide(self, arrival: Arrival) -> str:
        return CONTINUE

    def lost(self, number: int) -> None:
        """Do nothing: no trial waits for another."""

    def verdict(self, number: int) -> str:
        return CONTINUE

    def choose(self, may_begin: bool) -> int | None:
        return None


class NoStopping(Variant):
    """No stopping: trials are evaluated at the rungs, and the best evaluation is the score. For grids of known systems."""

    kind: Literal["none"] = "none"
    stops: ClassVar[bool] = False
    is_geometric: ClassVar[bool] = False
    least_rungs: ClassVar[int] = 1

    def build(self, rungs: Sequence[int], num_trials: int) -> Scheduler:
        return NoStops()

    def most_waiting(self, num_trials: int) -> int:
        return 0

    def describe(self, rungs: Sequence[int]) -> str:
        return "all run to the end"

    def warning(self, rungs: Sequence[int], num_trials: int, num_baselines: int, num_recipes: int) -> str:
        return ""


TrialSchedulerSetting = Annotated[Asha | Promotion | TopK | FreezeThaw | NoStopping, Field(discriminator="kind"), BARE_NAME]


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
