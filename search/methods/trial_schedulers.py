"""The family of trial schedulers: decide at the rungs, by the scores there, which trials continue.

    a point -> decide -> CONTINUE, STOP, or PAUSE (the trial waits for others)        verdict: the current decision for a trial

A scheduler's memory is keyed by our trial number, because Ray gives a resumed trial a new id. A resumed search restores it by
entering the points of its records again. search/study/searcher.py connects Ray to them. Each has its own file, but for `none`.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from minbert_core.config import TrialConfig
from minbert_core.settings.models import BARE_NAME, Variant
from search.methods.asha import Asha
from search.methods.decisions import CONTINUE, Arrival, Scheduler
from search.methods.freeze_thaw import FreezeThaw
from search.methods.promotion import Promotion
from search.methods.top_k import TopK

MOST_ROUNDS = 1000  # the largest number that an error proposes


class NoStops:
    """No stopping: every trial runs to its end."""

    law = why_waits = ""  # no trial is stopped, and none waits

    def decide(self, arrival: Arrival) -> str:
        return CONTINUE

    def lost(self, number: int) -> None:
        """Do nothing: no trial waits for another."""

    def verdict(self, number: int) -> str:
        return CONTINUE

    def choose(self, may_begin: bool, candidates: Container[int]) -> int | None:
        return None

    def forecasts(self) -> Mapping[int, float]:
        return {}


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
