"""The four domains of a space: uniform, log_uniform, int, choice.  Each knows its law, its ends, its middle and Optuna's word for it.

A domain is written as a map with its name alone, `lr: {log_uniform: [5e-6, 5e-5]}`; the bounds are the values themselves.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import optuna

NAME = re.compile(r"[a-z0-9_-]+")
Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Range:
    """`uniform`, `log_uniform` or `int`: every value from low to high, both included."""

    kind: str
    low: float
    high: float

    def middle(self, default: Any) -> float:
        """`default` if it lies inside, else the middle, the geometric one of log_uniform."""
        if isinstance(default, int | float) and self.contains(default):
            return default
        if self.kind == "log_uniform":
            return math.sqrt(self.low * self.high)
        return (int(self.low) + int(self.high)) // 2 if self.kind == "int" else (self.low + self.high) / 2

    def contains(self, value: Any) -> bool:
        is_number = isinstance(value, int if self.kind == "int" else int | float) and not isinstance(value, bool)
        return is_number and self.low <= value <= self.high

    def values(self) -> tuple[float, ...]:
        """The values a check must try: both ends."""
        return (self.low, self.high)

    def suggest(self, trial: optuna.Trial, name: str) -> float:
        if self.kind == "int":
            return trial.suggest_int(name, int(self.low), int(self.high))
        return trial.suggest_float(name, self.low, self.high, log=self.kind == "log_uniform")

    def __str__(self) -> str:
        return f"{self.kind} [{self.low:g}, {self.high:g}]"


@dataclass(frozen=True)
class Choice:
    """`choice`: one of several branches, told apart by scalar labels; a branch may hold domains of its own."""

    labels: tuple[Scalar, ...]
    branches: tuple[Any, ...]  # as written, without `name`

    def middle(self, default: Any) -> Scalar:
        """The branch of `default` if there is one, else the first."""
        return self.label_of(default) if default is not None and self.contains(default) else self.labels[0]

    def contains(self, value: Any) -> bool:
        return any(self._matches(i, value) for i in range(len(self.labels)))

    def label_of(self, value: Any) -> Scalar:
        """The label of the branch that `value` (a label, a kind, or the branch's own value) means."""
        return next(self.labels[i] for i in range(len(self.labels)) if self._matches(i, value))

    def _matches(self, index: int, value: Any) -> bool:
        branch = self.branches[index]
        if isinstance(branch, dict) and is_domain(branch):
            return isinstance(value, int | float) and not isinstance(value, bool) and _parse_quietly(branch).contains(value)
        kind = branch.get("kind") if isinstance(branch, dict) else None
        own = [self.labels[index], branch, *([kind] if kind else [])]
        return any(value == item and isinstance(value, bool) == isinstance(item, bool) for item in own)

    def branch(self, label: Any) -> Any:
        return self.branches[self.labels.index(label)]

    def values(self) -> tuple[Scalar, ...]:
        return self.labels

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


def is_domain(node: Any) -> bool:
    """Whether a value of a space is a domain: a map that has a domain's name among its keys."""
    return isinstance(node, dict) and any(name in node for name in DOMAINS)


def parse_domain(node: dict[str, Any], path: str) -> tuple[Domain | None, list[str]]:
    """The domain that `node` writes, or None, and what is wrong with it as sentences."""
    kind = next(name for name in DOMAINS if name in node)
    if len(node) > 1:
        others = ", ".join(f"`{key}`" for key in node if key != kind)
        return None, [f"`{path}`: the domain `{kind}` must stand alone. Got {others} beside it."]
    return _parse_choice(node[kind], path) if kind == "choice" else _parse_range(kind, node[kind], path)


def _parse_quietly(node: dict[str, Any]) -> Domain:
    domain, faults = parse_domain(node, "")
    assert domain is not None, faults
    return domain


def _parse_range(kind: str, bounds: Any, path: str) -> tuple[Range | None, list[str]]:
    number = int if kind == "int" else (int, float)
    if not isinstance(bounds, list) or len(bounds) != 2 or any(isinstance(b, bool) or not isinstance(b, number) for b in bounds):
        what = "two whole numbers" if kind == "int" else "two numbers"
        return None, [f"`{path}`: `{kind}` takes [low, high], {what}. Got {bounds!r}."]
    low, high = bounds
    if not low < high or not math.isfinite(high):
        return None, [f"`{path}`: `{kind}` needs low < high, both finite. Got {bounds}."]
    if kind == "log_uniform" and low <= 0:
        hint = f"for zero as well, write choice: [0, {{log_uniform: [1e-6, {high:g}]}}]"
        return None, [f"`{path}`: the bounds of `log_uniform` are the values themselves and must be > 0; {hint}. Got {bounds}."]
    return Range(kind, low, high), []


def _parse_choice(branches: Any, path: str) -> tuple[Choice | None, list[str]]:
    if not isinstance(branches, list) or len(branches) < 2:
        return None, [f"`{path}`: `choice` takes a list of two or more. Got {branches!r}."]
    labels, values, faults = [], [], []
    for branch in branches:
        label, value, fault = _label(branch, path)
        faults += [fault] if fault else []
        labels.append(label)
        values.append(value)
    heads = [str(label)[:10] for label in labels]
    for head in sorted({head for head in heads if heads.count(head) > 1}):
        same = [str(label) for label in labels if str(label)[:10] == head]
        faults.append(
            f"`{path}`: the branches of a choice must differ in the first ten characters of their names. Got {', '.join(same)}; "
            "give them a `name`."
        )
    return (None if faults else Choice(tuple(labels), tuple(values))), faults


def _label(branch: Any, path: str) -> tuple[Scalar, Any, str]:
    """(label, the branch without its name, fault or ''). A map is labelled by its name, else its kind; null is `none`."""
    if branch is None:
        return "none", None, ""
    if isinstance(branch, list):
        if any(isinstance(item, dict | list) for item in branch):
            return "", branch, f"`{path}`: a list of maps cannot be a branch; choose it through `together`, where it has a name."
        return "-".join(map(str, branch)) or "empty", branch, ""
    if not isinstance(branch, dict):
        if isinstance(branch, str) and not NAME.fullmatch(branch):
            return branch, branch, "" if "/" in branch or "." in branch else f"`{path}`: {_BAD_NAME} Got '{branch}'."
        return branch, branch, ""
    if is_domain(branch):
        return next(name for name in DOMAINS if name in branch), branch, ""
    label = branch.get("name", branch.get("kind"))
    if not isinstance(label, str) or not NAME.fullmatch(label):
        return str(label), branch, f"`{path}`: a branch that is a map needs a `kind` or a `name`; {_BAD_NAME} Got {branch!r}."
    return label, {key: value for key, value in branch.items() if key != "name"}, ""


_BAD_NAME = "names are made of a-z, 0-9, _ and -."
