"""The four domains of a space: uniform, log_uniform, int, choice.  Each has a check, ends, a middle and a call of Optuna's.

A domain is written as a map with its name as the only key, `lr: {log_uniform: [5e-6, 5e-5]}`. The bounds are plain values.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from minbert_core.settings.models import NAME
from minbert_core.words import did_you_mean, shown

GOLDEN = (3 - math.sqrt(5)) / 2  # irrational, so it never divides a range with whole ends at a whole number
Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Range:
    """A range, `uniform`, `log_uniform` or `int`: every value from low to high, both included."""

    kind: str
    low: float
    high: float

    def middle(self, default: Any) -> float:
        """Return `default` if it is in the range, else the middle, which is geometric for log_uniform."""
        if self.contains(default):
            return float(default) if self.kind != "int" else int(default)
        if self.kind == "log_uniform":
            return math.sqrt(self.low * self.high)
        return (int(self.low) + int(self.high)) // 2 if self.kind == "int" else (self.low + self.high) / 2

    def nearest(self, value: float) -> float:
        """Return the value of the range that is nearest to a number."""
        inside = min(max(value, self.low), self.high)
        return round(inside) if self.kind == "int" else float(inside)

    def contains(self, value: Any) -> bool:
        is_number = isinstance(value, int if self.kind == "int" else int | float) and not isinstance(value, bool)
        return is_number and self.low <= value <= self.high

    def values(self) -> tuple[float, ...]:
        """Return the values that a check must try: both ends."""
        return (self.low, self.high)

    @property
    def fraction(self) -> float:
        """A fractional value, if the range has any: it reveals a range of fractions for a knob that needs a whole number."""
        return self.low if self.kind == "int" else self.low + (self.high - self.low) * GOLDEN

    @property
    def distribution(self) -> BaseDistribution:
        """Optuna's distribution, as `suggest` records it."""
        if self.kind == "int":
            return IntDistribution(int(self.low), int(self.high))
        return FloatDistribution(self.low, self.high, log=self.kind == "log_uniform")

    def suggest(self, trial: optuna.Trial, name: str) -> float:
        if self.kind == "int":
            return trial.suggest_int(name, int(self.low), int(self.high))
        return trial.suggest_float(name, self.low, self.high, log=self.kind == "log_uniform")

    def __str__(self) -> str:
        return f"{self.kind} [{self.low:g}, {self.high:g}]"


@dataclass(frozen=True)
class Choice:
    """A choice between branches, which are distinguished by scalar labels and may hold domains themselves."""

    labels: tuple[Scalar, ...]
    branches: tuple[Any, ...]  # as written, without `name`

    def middle(self, default: Any) -> Scalar:
        """Return the label of the branch that `default` means, or the first label if there is none."""
        return self.label_of(default) if self.contains(default) else self.labels[0]

    def contains(self, value: Any) -> bool:
        return self._index(value) is not None

    def label_of(self, value: Any) -> Scalar:
        """Return the label of the branch that `value` means. There must be one."""
        index = self._index(value)
        assert index is not None, f"{value!r} is not a branch of {self}"
        return self.labels[index]

    def _index(self, value: Any) -> int | None:
        """Return the index of the branch that `value` means, or None.

        A value means a branch if it is its label, equals it, has a kind that only this branch has, is in its domain, or is a
        map with all that the branch sets, and with values in the branch's domains: of several such, the one that sets the most.
        """
        kind = value.get("kind") if isinstance(value, dict) else value
        kinds = [branch.get("kind") if isinstance(branch, dict) else branch for branch in self.branches]
        inner = [_parse_quietly(branch) if is_domain(branch) else None for branch in self.branches]
        tests: tuple[Callable[[int], bool], ...] = (
            lambda i: _same(value, self.labels[i]),
            lambda i: _same(value, self.branches[i]),
            lambda i: isinstance(kind, str) and kinds[i] == kind and kinds.count(kind) == 1,
            lambda i: inner[i] is not None and inner[i].contains(value),  # type: ignore[union-attr]
        )
        if (index := next((i for test in tests for i in range(len(self.labels)) if test(i)), None)) is not None:
            return index
        fitting = [i for i, branch in enumerate(self.branches) if inner[i] is None and _fits(value, branch)]
        return max(fitting, key=lambda i: _size(self.branches[i]), default=None)

    def branch(self, label: Any) -> Any:
        return self.branches[self.labels.index(label)]

    def values(self) -> tuple[Scalar, ...]:
        return self.labels

    @property
    def distribution(self) -> BaseDistribution:
        """Optuna's distribution, as `suggest` records it."""
        return CategoricalDistribution(self.labels)

    def suggest(self, trial: optuna.Trial, name: str) -> Scalar:
        choice: Scalar = trial.suggest_categorical(name, self.labels)
        return choice

    def __str__(self) -> str:
        return f"choice of {', '.join(map(str, self.labels))}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Choice) and (self.labels, repr(self.branches)) == (other.labels, repr(other.branches))

    def __hash__(self) -> int:
        return hash(self.labels)


Domain = Range | Choice
RANGES = ("uniform", "log_uniform", "int")
DOMAINS = (*RANGES, "choice")


def _same(value: Any, other: Any) -> bool:
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)  # Python's True is 1


def _fits(value: Any, branch: Any) -> bool:
    """Return whether a value has all that a branch sets, and values in its domains."""
    if is_domain(branch):
        return _parse_quietly(branch).contains(value)
    if isinstance(branch, dict):
        return isinstance(value, dict) and all(key in value and _fits(value[key], branch[key]) for key in branch)
    return _same(value, branch)


def _size(branch: Any) -> int:
    """Return how many values a branch sets."""
    return sum(map(_size, branch.values())) if isinstance(branch, dict) and not is_domain(branch) else 1


def is_domain(node: Any) -> bool:
    """Return whether a value of a space is a domain: a map with a domain's name among its keys."""
    return isinstance(node, dict) and any(name in node for name in DOMAINS)


def misspelt_domain(node: Any, path: str) -> Iterator[str]:
    """Yield a sentence if `node` looks like a domain with a misspelt name: `{loguniform: [1e-5, 1e-4]}`."""
    if isinstance(node, dict) and len(node) == 1:
        [(name, bounds)] = node.items()
        if isinstance(bounds, list) and difflib.get_close_matches(str(name).lower(), DOMAINS, n=1, cutoff=0.75):
            yield f"`{path}`: unknown domain '{name}'{did_you_mean(str(name).lower(), DOMAINS)}"


def parse_domain(node: dict[str, Any], path: str) -> tuple[Domain | None, list[str]]:
    """Parse the domain that `node` writes; return it, or None, and its faults as sentences."""
    kind = next(name for name in DOMAINS if name in node)
    if len(node) > 1:
        others = ", ".join(f"`{key}`" for key in node if key != kind)
        return None, [f"`{path}`: the domain `{kind}` must be the only key. Got also {others}."]
    return _parse_choice(node[kind], path) if kind == "choice" else _parse_range(kind, node[kind], path)


def _parse_quietly(node: dict[str, Any]) -> Domain:
    domain, faults = parse_domain(node, "")
    assert domain is not None, faults
    return domain


def _parse_range(kind: str, bounds: Any, path: str) -> tuple[Range | None, list[str]]:
    number = int if kind == "int" else int | float
    are_numbers = isinstance(bounds, list) and all(isinstance(b, number) and not isinstance(b, bool) for b in bounds)
    if not are_numbers or len(bounds) != 2:
        what = "two whole numbers" if kind == "int" else "two numbers"
        return None, [f"`{path}`: `{kind}` takes [low, high], {what}. Got {shown(bounds)}."]
    low, high = bounds
    if not low < high or not math.isfinite(low) or not math.isfinite(high):
        return None, [f"`{path}`: `{kind}` needs low < high, both finite. Got {shown(bounds)}."]
    if kind == "log_uniform" and low <= 0:
        law = f"the bounds of `log_uniform` are the values themselves and must be > 0. Got {shown(bounds)}"
        hint = f"To include zero, write choice: [0, {{log_uniform: [1e-6, {high if high > 0 else 1:g}]}}]"
        return None, [f"`{path}`: {law}. {hint}."]
    return Range(kind, low, high), []


def _parse_choice(branches: Any, path: str) -> tuple[Choice | None, list[str]]:
    if not isinstance(branches, list) or len(branches) < 2:
        return None, [f"`{path}`: `choice` takes a list of two or more. Got {shown(branches)}."]
    labels, values, faults = [], [], []
    for branch in branches:
        label, value, fault = _label(branch, path)
        faults += [fault] if fault else []
        labels.append(label)
        values.append(value)
    if not faults:
        faults = list(_same_labels(labels, branches, path))
    return (None if faults else Choice(tuple(labels), tuple(values))), faults


def _same_labels(labels: list[Scalar], branches: list[Any], path: str) -> Iterator[str]:
    """Yield a fault for each group of branches that MLflow's charts, which cut names to ten characters, would merge."""
    heads = [str(float(label) if isinstance(label, int | float) else label)[:10] for label in labels]  # 1, 1.0 and true are one
    for head in dict.fromkeys(heads):
        group = [i for i, other in enumerate(heads) if other == head]
        can_be_named = all(isinstance(branches[i], dict) and not is_domain(branches[i]) for i in group)
        remedy = "Give them a `name`." if can_be_named else "Choose them through `together`, where each has a name."
        if len(group) > 1:
            law = "the branches of a choice must differ in the first ten characters of their names"
            yield f"`{path}`: {law}. Got {', '.join(str(labels[i]) for i in group)}. {remedy}"


def _label(branch: Any, path: str) -> tuple[Scalar, Any, str]:
    """Return (label, branch without its name, fault or ''). A map is labelled by its name, else its kind; null is `none`."""
    if branch is None:
        return "none", None, ""
    if isinstance(branch, list):
        if any(isinstance(item, dict | list) for item in branch):
            return "", branch, f"`{path}`: a list of maps cannot be a branch. Choose it through `together`."
        return "-".join(map(str, branch)) or "empty", branch, ""
    if not isinstance(branch, dict):
        if isinstance(branch, str) and not NAME.fullmatch(branch):
            return branch, branch, "" if "/" in branch or "." in branch else f"`{path}`: {_BAD_NAME} Got '{branch}'."
        return branch, branch, ""
    if is_domain(branch):
        return next(name for name in DOMAINS if name in branch), branch, ""
    label = branch.get("name", branch.get("kind"))
    if not isinstance(label, str) or not NAME.fullmatch(label):
        law = f"a branch that is a map needs a `kind` or a `name`; {_BAD_NAME}"
        return str(label), branch, f"`{path}`: {law} Got {shown(branch)}."
    return label, {key: value for key, value in branch.items() if key != "name"}, ""


_BAD_NAME = "names may contain a-z, 0-9, _ and -."
