"""The points of a space, without their configs: which parameters a point has, and a point as numbers.

`Space.sample` builds a config (10 ms in spaces/full.yaml). A simulation draws 10,000s of points and needs only the parameters.

Legend: N points, D numbers of a point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.space.choosing import forcing
from search.space.domains import Choice, Domain, Range
from search.space.space import Space
from search.space.walk import Guards, nodes

Floats = NDArray[np.float64]
Choose = Callable[[str, Domain], Any]
Point = dict[str, Any]  # parameter -> value of a range, label of a choice


class Points:
    """The points of a space."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.domains: dict[str, Domain] = {}
        self._guards: dict[str, list[Guards]] = {}  # a parameter exists if the labels of one of these are chosen
        for path, domain, guards in space.occurrences():
            self.domains[path] = domain
            self._guards.setdefault(path, []).append(guards)
        self._hidden = {path: self._hiding(path) for path in self.domains}
        self._deciding = [path for path, domain in self.domains.items() if self._may_set_stages(path, domain)]
        self._recipes: dict[str, str] = {}

    def _may_set_stages(self, path: str, domain: Domain) -> bool:
        """Return whether a parameter chooses between recipes."""
        if not isinstance(domain, Choice):
            return False
        branches = domain.branches if path.startswith("together/") else ()
        sets = any(key.split("/")[0] == "stages" for branch in branches if isinstance(branch, dict) for key in branch)
        return sets or path.startswith("stages")

    def _hiding(self, path: str) -> list[tuple[str, Any]]:
        """Return the branches of `together` that set a constant in place of a domain of the config, or of a value above it."""
        found = []
        for name, choice in self.space.together.items():
            for label in choice.labels:
                constants = [where for where, node in nodes(choice.branch(label), "") if not isinstance(node, dict)]
                kinds = [where for where, node in nodes(choice.branch(label), "") if isinstance(node, dict) and "kind" in node]
                if any(path == where or path.startswith(f"{where}/") for where in (*constants, *kinds)):
                    found.append((f"together/{name}", label))
        return found

    def sample(self, choose: Choose) -> Point:
        """Return the point that `choose(parameter, domain)` picks, with the parameters that `Space.sample` would have."""
        point: Point = {}
        for path, domain in self.domains.items():
            if self._exists(path, point):
                point[path] = choose(path, domain)
        return point

    def _exists(self, path: str, point: Point) -> bool:
        is_hidden = any(point.get(name) == label for name, label in self._hidden[path])
        for guards in self._guards[path]:
            of_config = not any(name.startswith("together/") for name in guards)
            if all(point.get(name) == label for name, label in guards.items()) and not (of_config and is_hidden):
                return True
        return False

    def random(self, generator: np.random.Generator) -> Point:
        """Draw a point as the random sampler does."""
        return self.sample(lambda _, domain: _draw(domain, generator))

    def recipe(self, point: Point) -> str:
        """Return the recipe of the config at a point, whose trials are compared at a rung."""
        deciding = {path: point[path] for path in self._deciding if path in point}
        key = repr(deciding)
        if key not in self._recipes:
            self._recipes[key] = self.space.sample(forcing(deciding)).config().recipe
        return self._recipes[key]

    def encode(self, points: Sequence[Mapping[str, Any]]) -> Floats:
        """Return points as numbers, shape (N, D): 1 for the chosen label, a range scaled to [0, 1], 0.5 where it is absent."""
        return np.array([[number for path in self.domains for number in self._numbers(path, point)] for point in points])

    @property
    def parameter_D(self) -> NDArray[np.int64]:
        """Return the parameter, by its place in `domains`, to which each number of an encoded point belongs."""
        counts = [len(self._numbers(path, {})) for path in self.domains]
        return np.repeat(np.arange(len(counts)), counts)

    def _numbers(self, path: str, point: Mapping[str, Any]) -> list[float]:
        domain, value = self.domains[path], point.get(path)
        if isinstance(domain, Choice):
            share = math.sqrt(0.5)  # two different labels are one apart, as are the ends of a range
            return [share * (str(value) == str(label)) for label in domain.labels]
        if value is None:
            return [0.5]
        low, high, value = (math.log(x) if domain.kind == "log_uniform" else x for x in (domain.low, domain.high, value))
        return [(value - low) / (high - low)]


def _draw(domain: Domain, generator: np.random.Generator) -> Any:
    if isinstance(domain, Choice):
        return domain.labels[int(generator.integers(len(domain.labels)))]
    return _within(domain, float(generator.random()))


def _within(domain: Range, share: float) -> float:
    if domain.kind == "int":
        return int(domain.low) + int(share * (domain.high - domain.low + 1))
    if domain.kind == "log_uniform":
        return math.exp(math.log(domain.low) + share * math.log(domain.high / domain.low))
    return domain.low + share * (domain.high - domain.low)
