"""Faults: sentences about errors in a document, with path, rule, value and known names, instead of pydantic's messages.

ValidationError, document, where -> faults_of -> [Fault]      `where` maps each path to the file and line that wrote it
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from minbert_core.settings.knobs import elsewhere, knob_at
from minbert_core.words import did_you_mean, of_invisible, shown

MAX_FAULTS = 50  # of one document that are reported; more of them take time, and nobody reads them
Location = tuple[str | int, ...]  # the keys and list indices that lead to a value of a document
Where = Mapping[str, tuple[str, int]]  # path -> (source, line)


@dataclass(frozen=True, order=True)
class Fault:
    """One error in a document. `sentence` gives the error, the rule and the value; `line` is 0 if unknown."""

    line: int
    sentence: str
    source: str = ""


class SettingsError(ValueError):
    """All faults of one document. `str()` has one line per fault: `file:line: sentence`."""

    def __init__(self, faults: Iterable[Fault], source: str = "") -> None:
        self.faults = sorted(set(faults))
        super().__init__("\n".join(_render(fault, fault.source or source) for fault in self.faults))


def _render(fault: Fault, source: str) -> str:
    where = ":".join(str(part) for part in (source, fault.line) if part)
    return f"{where}: {fault.sentence}" if where else fault.sentence


def path_of(location: Location, document: Any) -> str:
    """Return the path of a location, with the kind of each variant on the way: `gradient/gradvac/beta`.

    location: pydantic's `loc`, which contains the tags of some unions but not of others, or a plain location in `document`.
    """
    parts: list[str] = []
    node = document
    for key in location:
        if isinstance(node, str):  # a bare name stands for a map of that kind
            node = {"kind": node}
        kind = node.get("kind") if isinstance(node, Mapping) else None
        if isinstance(node, Mapping) and key not in node and key == kind:
            continue  # pydantic's tag; the kind is added below, where a knob follows
        if kind is not None and key != "kind":
            parts.append(str(kind))
        parts.append(str(key))
        try:
            node = node[key]
        except (KeyError, IndexError, TypeError):
            node = None
    return "/".join(parts)


def faults_of(error: ValidationError, model: type[BaseModel], document: Any, where: Where) -> list[Fault]:
    """Convert pydantic's errors about a `model` to faults with path and, if `where` knows them, source and line."""
    items = error.errors()[:MAX_FAULTS]
    faults = []
    for item in items:
        if item["type"] == "too_short" and any(_is_inside(other["loc"], item["loc"]) for other in items):
            continue  # pydantic does not count an invalid entry
        path = path_of(tuple(part for part in item["loc"] if part not in _NOT_WRITTEN), document)
        sentences = _sentence(item, path, model).split("\n")
        faults += [fault_at(path or subject(sentence), sentence, where) for sentence in sentences]
    return faults


_NOT_WRITTEN = {"[key]", "[name]", "[map]"}  # parts of pydantic's locations that a document does not have


def _is_inside(location: tuple[int | str, ...], outer: tuple[int | str, ...]) -> bool:
    return len(location) > len(outer) and location[: len(outer)] == outer


def subject(sentence: str) -> str:
    """Return the path in backticks that a sentence about several settings names first; empty if it names none."""
    named = re.search(r"`([^`]+)`", sentence)
    return named[1] if named else ""


def fault_at(path: str, sentence: str, where: Where) -> Fault:
    """Build a fault at `path`, or at the nearest path above it that `where` knows."""
    while path and path not in where:
        path = path.rpartition("/")[0]
    source, line = where.get(path, ("", 0))
    return Fault(line, sentence, source)


_BOUNDS = {"greater_than_equal": ">=", "greater_than": ">", "less_than_equal": "<=", "less_than": "<"}
_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "string": "a name",
    "tuple": "a list",
    "list": "a list",
    "dict": "a map",
    "model": "a map",
    "bool": "true or false",
}


def _sentence(item: Any, path: str, model: type[BaseModel]) -> str:
    kind, given, context = item["type"], item["input"], item.get("ctx", {})
    got = f"Got {shown(given)}.{of_invisible(given)}"
    match kind:
        case "extra_forbidden":
            above, _, key = path.rpartition("/")
            knob = knob_at(model, above)
            return f"Unknown key `{path}`{did_you_mean(key, knob.keys if knob else ())}{elsewhere(model, key)}"
        case "missing":
            return f"`{path}` is missing."
        case "union_tag_invalid":
            known = re.findall(r"'([^']+)'", context["expected_tags"])
            return _unknown_kind(path, given.get("kind"), known)
        case "literal_error":
            known = re.findall(r"'([^']+)'", context["expected"])
            if path.rpartition("/")[2] == "kind":
                return _unknown_kind(path.rpartition("/")[0], given, known)
            return f"Unknown `{path}` {_word(given)}{did_you_mean(given, known)}"
        case "value_error":
            sentence = str(context["error"])
            return sentence if "`" in sentence else f"`{path}` {sentence}"
        case "too_short":
            return f"`{path}` must have {context['min_length']} or more entries. {got}"
        case "too_long":
            return f"`{path}` must have at most {context['max_length']} entries. {got}"
    if kind in _BOUNDS:
        return f"`{path}` must be {_BOUNDS[kind]} {next(iter(context.values())):g}. {got}"
    knob = knob_at(model, path)
    if knob and knob.kinds:
        return f"`{path}` must be a kind's name, or a map with its `kind`. {got} Known: {', '.join(sorted(knob.kinds))}."
    wanted = _WANTED.get(kind.split("_")[0], "something else")
    if knob and knob.keys and wanted == "a name":
        wanted += f", or a map of {', '.join(knob.keys)}"
    return f"`{path}` must be {wanted}. {got}"


def _unknown_kind(path: str, given: Any, known: list[str]) -> str:
    return f"Unknown `{path}` kind {_word(given)}{did_you_mean(given, known)}"


def _word(given: Any) -> str:
    return f"'{given}'" if isinstance(given, str) else shown(given)
