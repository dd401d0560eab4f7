"""Points of a space, and the ways to choose one: the defaults, forced values, and the points that a check has to look at.

Optuna, a baseline and the check of all branches differ only in `choose(parameter name, domain)`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from minbert_core.config import TrialConfig, default_at
from minbert_core.config_checks import load_config
from minbert_core.settings.faults import Where
from search.space.domains import Choice, Domain
from search.space.walk import Choose, Guards, config_path


@dataclass(frozen=True)
class Sample:
    """One point of a space: the searched parameters under their paths, and the config that they result in."""

    params: dict[str, Any]
    document: dict[str, Any]  # the config as written, before validation
    where: Where

    def config(self) -> TrialConfig:
        """Validate the config. Raises SettingsError."""
        return load_config(self.document, self.where)


def default_choice(name: str, domain: Domain) -> Any:
    """Return the config's default for a parameter if it is in the domain, else the middle or the first branch; never random."""
    return domain.middle(default_at(config_path(name)))


def forcing(forced: Mapping[str, Any]) -> Choose:
    """Return a `choose` with these values for these parameters and the defaults for all others."""
    return lambda name, domain: forced[name] if name in forced else default_choice(name, domain)


def cover(places: Iterable[tuple[str, Domain, Guards]]) -> Iterator[dict[str, Any]]:
    """Yield forced values that together include every pair of branches and both ends of every range, with their guards.

    places: (parameter, domain, guards) of each place that has a domain; branches may hold the same one.
    """
    branches: list[dict[str, Any]] = []
    yield {}
    for name, domain, guards in places:
        points = [{**guards, name: value} for value in domain.values()]
        branches += points if isinstance(domain, Choice) else []
        yield from points
    for first, second in itertools.combinations(branches, 2):
        if all(second.get(name, value) == value for name, value in first.items()):
            yield {**first, **second}


def all_combinations(sample: Callable[[Choose], Sample]) -> list[dict[str, Any]]:
    """Return every combination of the choices, parameter -> label, in the order in which they are written.

    `sample` is that of a space. A parameter inside a branch occurs only with that branch. Both ends of a range are included.
    """
    combinations: list[dict[str, Any]] = []

    def enter(forced: dict[str, Any]) -> None:
        free: list[tuple[str, Domain]] = []

        def choose(name: str, domain: Domain) -> Any:
            if name not in forced:
                free.append((name, domain))
            return forced.get(name, domain.values()[0])

        sample(choose)
        if not free:
            combinations.append(forced)
            return
        name, domain = free[0]
        for value in domain.values():
            enter({**forced, name: value})

    enter({})
    return combinations
