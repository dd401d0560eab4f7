"""The methods that a simulation compares: a sampler with a trial scheduler, written as in a space.

"tpe+asha"   "random+{kind: top_k, k: 5}"   "random", which is random+none
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import ValidationError

from minbert_core.settings.faults import SettingsError, faults_of
from minbert_core.settings.yaml import parse_yaml
from search.methods.halving import expected_ends
from search.space.file import SpaceSettings

REFERENCE = "random"  # random search, in which every trial runs to its end
MOST_TRIALS = 10_000  # more than any budget here pays for
PLANNED = 0.9


@dataclass(frozen=True)
class Method:
    """A sampler with a trial scheduler, its rungs, and the name that the user has given it."""

    name: str
    settings: SpaceSettings
    num_known: int = 0  # trials of an earlier search that the sampler knows

    @property
    def learns(self) -> bool:
        return self.settings.sampler.learns

    def knowing(self, num_known: int) -> Method:
        """Return the method with a sampler that knows the trials of an earlier search, as with `--from NAME`."""
        return replace(self, name=f"{self.name}, {num_known} known", num_known=num_known)


def suited(text: str, recorded: Sequence[int], rungs: Sequence[int] | None) -> Method:
    """Parse a method with `rungs`. None: all that are recorded if its scheduler decides at any, or else geometric ones."""
    method = parse_method(text, rungs or geometric(recorded))
    scheduler = method.settings.trial_scheduler
    return parse_method(text, recorded) if rungs is None and scheduler.stops and not scheduler.is_geometric else method


def geometric(rungs: Sequence[int]) -> tuple[int, ...]:
    """Return the longest part of the rungs that grows by one whole factor up to the last, 3 rather than 2; else the last."""
    chains = []
    for factor in (3, 2, *range(4, rungs[-1] + 1)):
        chain = [rungs[-1]]
        while chain[0] % factor == 0 and chain[0] // factor in rungs:
            chain.insert(0, chain[0] // factor)
        chains.append(tuple(chain))
    return max(chains, key=len)


def parse_method(text: str, rungs: Sequence[int]) -> Method:
    """Parse a method.  Raises ValueError: not a sampler and a trial scheduler, or one that does not suit the rungs."""
    sampler, _, scheduler = text.partition("+")
    document = {"sampler": _parsed(sampler), "trial_scheduler": _parsed(scheduler or "none"), "rungs": list(rungs)}
    try:
        settings = SpaceSettings.model_validate(document)
    except ValidationError as error:
        raise SettingsError(faults_of(error, SpaceSettings, document, {}), f"--methods {text}") from None
    if settings.sampler.is_exhaustive:
        raise ValueError(f"--methods {text}: a grid has an order of its own, so there is nothing to repeat. Use random or tpe.")
    return Method(text, settings)


def _parsed(text: str) -> object:
    document, _ = parse_yaml(text)
    return document


def num_trials(method: Method, budget: float, num_recipes: int, shares: Mapping[int, float]) -> int:
    """Return the number of trials of a search with a budget in full trials. shares: of a full trial's seconds, by rung.

    It is as many as the time allows where no trial waits for others; else as many as are expected to cost PLANNED of the
    budget, by the estimate of a search's plan, so that chance rarely cuts off the end.
    """
    scheduler = method.settings.trial_scheduler
    if not scheduler.most_waiting(MOST_TRIALS):
        return MOST_TRIALS

    def cost(trials: int) -> float:
        ends = expected_ends(trials, 0, num_recipes, method.settings.rungs, scheduler, repeats=10)
        return sum(count * shares[rung] for count, rung in zip(ends, method.settings.rungs, strict=True))

    low, high = 1, max(2, round(budget))
    while cost(high) < PLANNED * budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) < PLANNED * budget else (low, middle)
    return low
