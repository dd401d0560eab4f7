"""The list of a space's knobs, one line per knob: path, type, default, range and unit, paper. All is read from the models.

places of TrialConfig and SpaceSettings -> Row -> Section -> lines (or, on a terminal, tables)
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from minbert_core.config import TrialConfig, default_at
from minbert_core.settings.knobs import ENTRIES, NO_DEFAULT, Knob, Place, schema_of, walk_knobs
from minbert_core.settings.paths import as_written
from search.space.file import STRUCTURE, SpaceSettings

ROOT = Path(__file__).resolve().parents[2]

STRUCTURE_ABOUT = {
    "extends": "file of another space, relative to this one, over which this one is laid",
    "config": "a trial's config, in which any value may be a domain",
    "together": "name -> branches {name, set: {path: value}}: a choice that sets several paths",
    "baselines": "settings of trials that run first and to the end; all other settings take their defaults",
}
DOMAIN_ABOUT = {
    "uniform": ("[low, high]", "any number from low to high, all equally likely"),
    "log_uniform": ("[low, high]", "any number from low to high, uniform in its logarithm; low > 0"),
    "int": ("[low, high]", "a whole number from low to high, both included"),
    "choice": ("[branch, …]", "one of two or more branches; a map needs a kind or a name, and may contain domains"),
}
FROM_SPACE = {"objective": "objective", "budget/points": "rungs"}  # settings of a trial -> the space's key that sets them
INHERITS = {
    "tasks": "Also in tasks/pairs/… and tasks/NAME/…. A task's settings override those of pairs, which override all.",
    "stages": "One entry per stage: stages/0/…, stages/1/…. A stage inherits null settings from the trial.",
}


@dataclass(frozen=True)
class Row:
    """One line of the list. `law` is the range and the unit, or the paper of a kind."""

    path: str
    kind: str
    default: str
    law: str
    about: str


@dataclass(frozen=True)
class Section:
    """A family or another group of knobs under a heading."""

    heading: str
    rows: tuple[Row, ...]


def config_places() -> list[Place]:
    """Return the knobs of a space's config. The rest of a trial's config follows from the space's own keys."""
    taken = tuple(f"{path}/" for path in FROM_SPACE)
    return [place for place in walk_knobs(Knob((TrialConfig,)), ENTRIES) if not f"{place.path}/".startswith(taken)]


def space_places() -> list[Place]:
    """Return the knobs of a space that are neither in its config nor laid over it."""
    return list(walk_knobs(Knob((SpaceSettings,)), {}))


def sections() -> list[Section]:
    """Return all knobs of a space, grouped."""
    structure = tuple(Row(key, what, "", "", STRUCTURE_ABOUT[key]) for key, what in STRUCTURE.items())
    domains = tuple(Row(name, "domain", "", law, about) for name, (law, about) in DOMAIN_ABOUT.items())
    space = _sections(space_places(), "The space's own keys")
    space[0] = replace(space[0], rows=space[0].rows + structure)
    return [*space, Section("Domains, allowed for any value of the config", domains),
            *_sections(config_places(), "The config of a trial, in which any value may be a domain")]  # fmt: skip


def _sections(found: Iterable[Place], heading: str) -> list[Section]:
    """Group the places by the nearest family or top-level group above them. Those without a group come first."""
    headings, rows = {"": heading}, {"": list[Row]()}
    for place in found:
        path, knob = place.path, place.knob
        if knob.field and knob.models and not place.same_as and ("/" not in path or knob.kinds):
            note = INHERITS.get(path, "")
            headings[path] = f"{path}: {about_of(knob)} ({file_of(knob)})" + (f"\n{note}" if note else "")
            rows[path] = [replace(row_of(place), about="")]  # the heading says it
            continue
        nearest = max((above for above in rows if f"{path}/".startswith(f"{above}/")), key=len, default="")
        rows[nearest].append(row_of(place))
    return [Section(headings[path], tuple(rows[path])) for path in rows if rows[path]]


def row_of(place: Place) -> Row:
    """Describe a place in words."""
    path, knob = place.path, place.knob
    if knob.kind:
        text = inspect.getdoc(knob.models[0]) or ""
        return Row(path, "kind", "", next(iter(papers(text)), ""), first_sentence(text))
    schema, is_nullable = schema_of(knob)
    law = f"as {place.same_as}" if place.same_as else _law(knob, schema)
    law = " ".join(filter(None, [law, schema.get("unit", ""), "or null" if is_nullable else ""]))
    return Row(path, _kind(knob, schema), _default(path, knob), law, about_of(knob))


# -------------------------------------------------------------------------------------------------------------- words


def about_of(knob: Knob) -> str:
    """Describe a place in one line: its description, else the first sentence of its model's or its family's file."""
    schema, _ = schema_of(knob)
    described = knob.field and knob.field[0].model_fields[knob.field[1]].description
    if described:
        return str(described)
    if not knob.models:
        return str(schema.get("description", ""))
    text = _docstring(knob) if knob.kinds else inspect.getdoc(knob.models[0]) or ""
    return first_sentence(text)


def first_sentence(text: str) -> str:
    """Return the text up to its first full stop. The one in `et al.`, before a year, does not count."""
    return re.split(r"\.(?=\s+[A-Z]|\s*$)", " ".join(text.split("\n\n")[0].split()))[0]


def _docstring(knob: Knob) -> str:
    """Return the docstring of the file that contains a family."""
    return inspect.getdoc(inspect.getmodule(knob.models[0])) or ""


def file_of(knob: Knob) -> str:
    """Return the file, relative to the project's root, of a place's models or of the model that it is a field of."""
    model: type[BaseModel] = knob.models[0] if knob.models else knob.field[0] if knob.field else TrialConfig
    file = Path(inspect.getfile(model)).resolve()
    return (file.relative_to(ROOT) if file.is_relative_to(ROOT) else file).as_posix()  # the latter: a plugin


_AUTHORS = r"[A-Z][a-z]+(?: et al\.| (?:&|and) [A-Z][a-z]+)?"
_PAPER = re.compile(rf"({_AUTHORS} (?:19|20)\d\d)(?:(?:,| \()\s*arXiv (\d{{4}}\.\d{{4,5}}))?")


def papers(docstring: str | None) -> list[str]:
    """Return the papers that a docstring names, `Yu et al. 2020 (arXiv 2001.06782)`, in its order."""
    found: dict[str, str] = {}
    for match in _PAPER.finditer(" ".join((docstring or "").split())):
        found[match[1]] = found.get(match[1]) or match[2] or ""
    return [f"{name} (arXiv {number})" if number else name for name, number in found.items()]


_TYPES = {"integer": "whole number", "number": "number", "string": "name", "boolean": "true or false"}


def _kind(knob: Knob, schema: dict[str, Any]) -> str:
    if knob.holds_many or schema.get("type") in ("array", "object"):
        return "list" if schema.get("type") == "array" else "map"
    if knob.kinds:
        return "family"
    if knob.models and "oneOf" not in schema:
        return "map"
    if "enum" in schema:
        return "one of"
    return _TYPES.get(schema.get("type", ""), "name or map")


def _law(knob: Knob, schema: dict[str, Any]) -> str:
    """Return the range of a number, the allowed names, or the allowed number of entries in a list and the law for each."""
    if knob.models:
        return ", ".join(knob.kinds or Knob(knob.models).kinds)
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if schema.get("type") == "array":
        fewest, most = schema.get("minItems", 0), schema.get("maxItems")
        many = f"{fewest}" if most == fewest else f"{fewest} to {most}" if most else f"{fewest} or more" if fewest else ""
        return ", each ".join(filter(None, [many, _law(knob, schema.get("items", {}))]))
    if schema.get("type") == "object":
        return "each " + _law(knob, schema["additionalProperties"])
    return _interval(schema)


def _interval(schema: dict[str, Any]) -> str:
    low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum", schema.get("exclusiveMaximum"))
    if schema.get("type") == "integer" and "exclusiveMinimum" in schema:
        low = schema["exclusiveMinimum"] + 1
        schema = {**schema, "minimum": low}
    if low is not None and high is not None:
        return f"{'[' if 'minimum' in schema else '('}{low:g}, {high:g}{']' if 'maximum' in schema else ')'}"
    if low is not None:
        return f"{'>=' if 'minimum' in schema else '>'} {low:g}"
    return f"{'<=' if 'maximum' in schema else '<'} {high:g}" if high is not None else ""


def _default(path: str, knob: Knob) -> str:
    """Return the default in YAML; empty if it depends on other settings or is a map of defaults."""
    default = default_at(path) if path.startswith("tasks/") else knob.default
    if knob.field and knob.field[0].model_fields[knob.field[1]].is_required():
        return "(required)"
    if default is NO_DEFAULT or (isinstance(default, BaseModel) and not knob.kinds):
        return ""
    return plain(default)


def plain(value: Any) -> str:
    """Format a value as one writes it in YAML: a word without quotes, 2e-5 and not 2e-05."""
    value = as_written(value)
    if isinstance(value, dict) and set(value) == {"kind"}:
        value = value["kind"]
    if isinstance(value, list):
        return f"[{', '.join(map(plain, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {plain(item)}" for key, item in value.items()) + "}"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return re.sub(r"e([-+])0", r"e\1", f"{value:g}")
    return f"{value:_}" if isinstance(value, int) and value >= 10_000 else str(value)


# ----------------------------------------------------------------------------------------------------------- printing

LEGEND = "One line per knob: path, type, default, range and unit (for a kind, its paper), description."
LAW_WIDTH, ABOUT_WIDTH = (
    40,
    24,
)  # columns of a terminal: the most for the law, and the least for the description, which is else omitted


def show(found: Iterable[Section], console: Console) -> None:
    """Print the list: tables on a terminal; elsewhere one line per knob, however long, so that grep returns it whole."""
    console.print(LEGEND, soft_wrap=not console.is_terminal)
    for section in found:
        console.print(f"\n{section.heading}", soft_wrap=not console.is_terminal, style="bold")
        show_rows(section.rows, console)


def show_rows(rows: Iterable[Row], console: Console) -> None:
    """Print lines of the list, aligned."""
    cells = [(row.path, row.kind, row.default, row.law, row.about) for row in rows]
    if not console.is_terminal:
        widths = [max(map(len, column), default=0) for column in zip(*cells, strict=True)]
        for line in cells:
            fixed = [cell.ljust(width) for cell, width in zip(line, widths, strict=True) if width]
            console.print(f"  {'  '.join(fixed)}".rstrip(), soft_wrap=True)
        return
    *short, law = [max(map(len, column)) + 2 for column in zip(*cells, strict=True)][:4]
    columns = 5 if console.width - sum(short) - min(law, LAW_WIDTH) >= ABOUT_WIDTH else 4
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    for _ in range(columns - 1):
        table.add_column(overflow="fold")
    for cell in cells:
        table.add_row(*cell[:columns])
    console.print(table)
