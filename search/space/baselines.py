"""Baselines: settings that name a point of the space, some of it by value, some by the name of a branch.

    settings -> the branches of `together` that they may mean -> a `choose` that takes what they name, the default elsewhere

A fault says which baseline it is by its `place`, `baselines/0`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from minbert_core.settings.faults import Fault, Where, fault_at
from minbert_core.words import did_you_mean, shown
from search.space.choosing import default_choice
from search.space.domains import Choice, Domain, is_domain
from search.space.walk import Choose, config_path, nodes, own_value

Together = Mapping[str, Choice]


def unknown_branches(chosen: Any, together: Together, place: str) -> Iterator[str]:
    """Yield a sentence for each name or branch of `together` that a baseline chooses and that does not exist."""
    if not isinstance(chosen, dict):
        yield f"`{place}/together` must be a map of names to branches. Got {shown(chosen)}."
        return
    for name, label in chosen.items():
        if name not in together:
            yield f"`{place}`: unknown `together/{name}`{did_you_mean(name, together)}"
        elif label not in together[name].labels:
            known = map(str, together[name].labels)
            yield f"`{place}`: unknown branch {shown(label)} of `together/{name}`{did_you_mean(str(label), known)}"


def possible_branches(chosen: Mapping[str, Any], together: Together) -> Iterator[dict[str, Any]]:
    """Yield the branches of `together`, name -> label, that a baseline may mean: those that it names, any for other names."""
    labels = [[chosen[name]] if name in chosen else choice.labels for name, choice in together.items()]
    for combination in itertools.product(*labels):
        yield dict(zip(together, combination, strict=True))


def contradictions(
    branches: Mapping[str, Any], together: Together, values: Mapping[str, Any], place: str, where: Where
) -> Iterator[Fault]:
    """Yield a fault for each constant that a baseline sets differently from these branches of `together`."""
    for name, label in branches.items():
        for path, node in nodes(together[name].branch(label), ""):
            enters = isinstance(node, list) and isinstance(values.get(path), dict)  # a path into a list: `stages/0/…`
            if path in values and not enters and not is_domain(node) and own_value(node) != own_value(values[path]):
                sets = f"the branch {label} of `together/{name}` sets {shown(own_value(node))}"
                yield fault_at(path, f"`{place}`: `{path}` is {shown(own_value(values[path]))}, but {sets}.", where)


def naming(branches: Mapping[str, Any], values: Mapping[str, Any], place: str, where: Where, faults: list[Fault]) -> Choose:
    """Return a `choose` with these branches of `together`, these values at their paths and the defaults for all others.

    A value outside its domain is added to `faults`.
    """

    def choose(name: str, domain: Domain) -> Any:
        if name.startswith("together/"):
            return branches[name.removeprefix("together/")]
        path = config_path(name)
        if path not in values:
            return default_choice(name, domain)
        value = values[path]
        if domain.contains(value):
            return domain.label_of(value) if isinstance(domain, Choice) else value
        if path == name:  # otherwise the baseline names a branch by its label, and leaves the domain inside it open
            faults.append(fault_at(name, f"`{place}`: `{name}` {shown(value)} is outside its domain, {domain}.", where))
        return default_choice(name, domain)

    return choose
