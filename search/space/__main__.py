"""The command that explains a space's knobs: all of them, one line each; one in full; or the schema for an editor.

    python -m search.space                      the list, in full lines for `| grep lr`
    python -m search.space gradient/gradvac     one of them
    python -m search.space --schema             spaces/schema.json
    python -m search.space --table              README.md's table of methods
    python -m search.space --check my_head.py   a plugin, by short trials

The exit codes are those of minbert_core/commands.py.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the other imports, which take seconds
    from minbert_core.commands import check_command_line
    from search.space.options import parser

    check_command_line(parser())

import argparse
import difflib
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding

from minbert_core.commands import DONE, FAILED, run_command
from minbert_core.config import TrialConfig
from minbert_core.settings.knobs import ENTRIES, Knob, knob_at, walk_knobs
from minbert_core.terminal import console
from search.space.domains import DOMAINS
from search.space.examples import SHARED, canonical, example, searched_in
from search.space.file import SPACE_KEYS, STRUCTURE, SpaceSettings
from search.space.listing import (
    DOMAIN_ABOUT,
    FROM_SPACE,
    INHERITS,
    STRUCTURE_ABOUT,
    Row,
    about_of,
    config_places,
    file_of,
    papers,
    plain,
    row_of,
    sections,
    show,
    show_rows,
    space_places,
)
from search.space.options import parser
from search.space.schema import schema_line, write_schema
from search.space.table import README, write_table

NEEDS = {  # attribute of a variant -> what it requires; `fits` and `least_rungs` have values and are not here
    "needs_several_tasks": "several tasks per step: a task_schedule that provides them, and two or more tasks in train_on",
    "needs_pair_vectors": "two vectors per pair: pair_encoding bi, and so a task of pairs",
    "single_output": "a task with one output: binary, or a regression whose loss does not turn it into classes",
    "reads_features": "a head that predicts without training: cosine",
}
STRUCTURE_EXAMPLE = {
    "extends": "extends: smart.yaml\nconfig:\n  optimizer: {lr: 2e-5}",
    "config": "config:\n  optimizer: {lr: {log_uniform: [1e-5, 1e-4]}}",
    "together": "together:\n  step:\n    - {name: surgery, set: {task_schedule: round_robin, gradient: pcgrad}}\n"
    "    - {name: single, set: {task_schedule: drop, gradient: sum}}",
    "baselines": "baselines:\n  - {}  # every default\n  - {optimizer/lr: 2e-5, gradient: pcgrad}",
}
DOMAIN_EXAMPLE = {
    "uniform": "optimizer: {warmup: {uniform: [0, 0.2]}}",
    "log_uniform": "optimizer: {lr: {log_uniform: [1e-5, 1e-4]}}",
    "int": "smoothness: {kind: smart, steps: {int: [1, 3]}}",
    "choice": "gradient: {choice: [sum, {kind: gradvac, beta: {log_uniform: [1e-3, 1e-1]}}]}",
}


@dataclass(frozen=True)
class Found:
    """A path and its knob, of the config or of the space. Domains and the space's structure have no knob."""

    path: str
    knob: Knob | None = None


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return run_command(parser(), arguments, _main, writes="schema")


def _main(options: argparse.Namespace) -> int:
    stdout = console(markup=False, emoji=False)
    if options.schema is not None:
        if options.path is not None:
            raise ValueError("--schema describes all knobs. Omit PATH.")
        return _schema(options.schema)
    if options.check is not None:
        return _check(options.check)
    if options.table:
        write_table()
        stdout.print(f"Wrote the table of methods in {README}.", soft_wrap=True)
        return DONE
    if options.path is None:
        show(sections(), stdout)
        return DONE
    found = find(options.path)
    if len(found) == 1:
        explain(found[0], options.path, stdout)
        return DONE
    stdout.print(f"{options.path} matches {len(found)} knobs. Give the full path to see one explained:\n", soft_wrap=True)
    show_rows([row for row in all_rows() if row.path in {match.path for match in found}], stdout)
    return DONE


def _check(file: Path) -> int:
    from search.space.check_plugin import check_plugin  # here, because training takes seconds to import

    broken = 0
    for variant, sentences in check_plugin(file):
        laws = "builds, trains, repeats, moves its parameters, is saved and loaded, answers each row alone"
        print("\n".join([f"{variant}: {'fails' if sentences else laws}", *(f"    {sentence}" for sentence in sentences)]))
        broken += bool(sentences)
    return FAILED if broken else DONE


def _schema(file: Path) -> int:
    write_schema(file)
    if str(file) != "-":
        print(f"Wrote {file}. An editor with YAML support uses it in a space whose first line is\n{schema_line(file)}")
    return DONE


# --------------------------------------------------------------------------------------------------------------- finding


def all_rows() -> list[Row]:
    return [row for section in sections() for row in section.rows]


def find(written: str) -> list[Found]:
    """Find the knobs that a path, with `/` or `.`, or the end of one means. Raises ValueError, with the nearest, if none."""
    path = written.strip("/").replace(".", "/")
    path = path.removeprefix("config/")
    if path in DOMAINS or path in STRUCTURE:
        return [Found(path)]
    if knob := _at(path):
        return [Found(path, knob)]
    known = [place.path for place in (*space_places(), *config_places())]
    if ends := [other for other in known if other.endswith(f"/{path}")]:
        return [Found(end, _at(end)) for end in ends]
    above = path.rpartition("/")[0]
    knob = _at(above) if above else None
    if knob and not knob.models:  # an entry of a map or list of plain values
        return [Found(above, knob)]
    inside = sorted((knob.kinds or knob.keys) if knob else {*SPACE_KEYS, *TrialConfig.model_fields, *DOMAINS})
    words = {word for other in known for word in (other, other.rpartition("/")[2])} | {*inside}
    near = difflib.get_close_matches(path, words, n=1) or difflib.get_close_matches(path.rpartition("/")[2], inside, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    where = f" in `{above}`" if knob else ""
    raise ValueError(f"Unknown knob `{written}`{hint} Known{where}: {', '.join(inside)}.")


def _at(path: str) -> Knob | None:
    """Return the knob at a path of the space or of its config, or None."""
    first, *rest = path.split("/")
    if first == "stages" and rest and not rest[0].isdigit():
        return None
    return knob_at(SpaceSettings if first in SpaceSettings.model_fields else TrialConfig, path) if path else None


# ------------------------------------------------------------------------------------------------------------ explaining


def explain(found: Found, written: str, console: Console) -> None:
    """Print everything about one knob."""

    def say(text: str = "", indent: str = "") -> None:
        if console.is_terminal:  # wraps words at its width
            console.print(Padding(text, (0, 0, 0, len(indent))))
        else:
            console.print("\n".join(indent + line if line else "" for line in text.split("\n")), soft_wrap=True)

    path, knob = found.path, found.knob
    console.print(path + ("" if path.replace("/", ".") == written.replace("/", ".") else f"  ({written})"), style="bold")
    if knob is None:
        is_domain = path in DOMAINS
        law, about = DOMAIN_ABOUT[path] if is_domain else (STRUCTURE[path], STRUCTURE_ABOUT[path])
        say(f"{'a domain, takes ' if is_domain else ''}{law}: {about}\n", "  ")
        say(f"config:\n  {DOMAIN_EXAMPLE[path]}" if is_domain else STRUCTURE_EXAMPLE[path], "  ")
        return
    say(_text(path, knob), "  ")
    if below := list(_below(path, knob)):
        say()
        show_rows(below, console)
    say()
    for name, text in _facts(path, knob):
        say(f"{name:<12} {text}", "  ")
    for text in _examples(path, knob):
        say()
        say(text, "  ")


def _below(path: str, knob: Knob) -> Iterator[Row]:
    """Yield the rows of the knobs below, as in the list; in full if the list refers to another knob."""
    listed, above = canonical(path), canonical(path) + "/"
    found = [place for place in (*space_places(), *config_places()) if place.path.startswith(above)]
    for place in found or walk_knobs(knob, ENTRIES, path):
        if place.path != path:
            yield row_of(replace(place, path=path + place.path.removeprefix(listed)) if found else place)


def _text(path: str, knob: Knob) -> str:
    """Return the text on a knob: the docstring of its variant, group or family, its type and law, and how it is inherited."""
    row = row_of(next(iter(walk_knobs(knob, ENTRIES, path))))
    takes = "; ".join(filter(None, [": ".join(filter(None, [row.kind, row.law])), row.default and f"default {row.default}"]))
    if knob.kind:
        return inspect.getdoc(knob.models[0]) or ""
    parts = [takes, about_of(knob)]
    if knob.kinds and (module := inspect.getmodule(knob.models[0])):
        parts = [takes, inspect.getdoc(module) or ""]
    elif len(knob.models) == 1 and not knob.holds_many:
        parts = [takes, inspect.getdoc(knob.models[0]) or ""]
    return "\n\n".join([*parts, *([INHERITS[path]] if path in INHERITS else [])])


def _facts(path: str, knob: Knob) -> Iterator[tuple[str, str]]:
    variant = knob.models[0] if knob.kind else None
    if variant:
        yield from (("needs", text) for name, text in NEEDS.items() if getattr(variant, name, False))
        if fits := getattr(variant, "fits", ()):
            yield "fits", f"tasks that are {' or '.join(fits)}"
        if getattr(variant, "least_rungs", 1) > 1:
            yield "needs", f"{variant.least_rungs} `rungs` or more"  # type: ignore[attr-defined]
        yield from _asked_of(variant)
        if cited := papers(variant.__doc__):
            yield "paper" if len(cited) == 1 else "papers", ", ".join(cited)
    yield "file", file_of(knob)
    if path in FROM_SPACE:
        yield "in a space", f"follows from its `{FROM_SPACE[path]}`; in a config of `python -m minbert_core.train` it is set"
    elif path.split("/")[0] not in SpaceSettings.model_fields and path.split("/")[0] not in SHARED:
        spaces = searched_in(canonical(path), knob)
        yield "searched in", ", ".join(f"spaces/{name}.yaml" for name in spaces) or "no shipped space"


def _asked_of(variant: Any) -> Iterator[tuple[str, str]]:
    """Yield the variants of other families that need this one, or refuse it."""
    if hasattr(variant, "vectors"):  # a pair encoding
        yield ("needed by" if variant.vectors == 2 else "refused by"), _that("needs_pair_vectors")
    if hasattr(variant, "tasks_per_step") and variant().tasks_per_step(2) < 2:  # a task schedule
        yield "refused by", _that("needs_several_tasks")


def _that(need: str) -> str:
    """Return the variants that have this need."""
    return ", ".join(place.path for place in config_places() if place.knob.kind and getattr(place.knob.models[0], need, False))


def _examples(path: str, knob: Knob) -> Iterator[str]:
    """Yield an example as a constant and one as a domain, in YAML."""
    if path.split("/")[0] in SpaceSettings.model_fields:
        yield f"{path.split('/')[0]}: {plain(_space_value(path, knob))}"
        return
    if path in FROM_SPACE:
        return
    first = path.split("/")[0]
    if constant := example(path, knob):
        yield f"# set\n{yaml_of(constant)}"
    if ranged := example(path, knob, as_domain=True):
        yield f"# searched\n{yaml_of(ranged)}"
    elif first in SHARED:
        yield "Usually the same for all trials of a search."


def _space_value(path: str, knob: Knob) -> Any:
    """Return an example value for the space's key in which `path` occurs."""
    first, *rest = path.split("/")
    default = SpaceSettings.model_fields[first].default
    if len(rest) == 2:
        return {"kind": rest[0], rest[1]: knob.default}
    if first == "objective":
        return {"weights": {"sst": 2, "sts": 1}} if rest else default
    return rest[0] if rest else default or "Which of the two pays?"


def yaml_of(config: dict[str, Any]) -> str:
    """Format a space's config as one would write it, with one line per key."""
    return "\n".join(["config:", *(f"  {key}: {plain(value)}" for key, value in config.items())])


if __name__ == "__main__":
    sys.exit(main())
