"""An example of each knob in a space, as a constant and as a domain, and the shipped spaces that search it.

    path, knob -> values -> configs with such a value -> the first that makes a valid space

The requirements of a variant (two vectors per pair, a task of its kind …) are not known here: candidates are tried in turn, and
the loader accepts or refuses them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from minbert_core.config import TrialConfig, default_at
from minbert_core.settings.faults import SettingsError
from minbert_core.settings.knobs import Knob, knob_at, schema_of, walk_knobs
from minbert_core.settings.paths import as_written, flatten, unflatten
from search.shipped import SPACES
from search.space.domains import Domain
from search.space.file import SpaceSettings, read_document
from search.space.space import FIXED, Space, cover, default_choice, make_space

Point = frozenset[tuple[str, str]]  # a trial as (canonical path, value as text) pairs

SHARED = (*FIXED, "budget", "seed", "machine")  # the same for all trials, necessarily or usually
RECIPES = [["multitask"], ["linear_probe", "multitask"]]
EXAMPLES: dict[str, Any] = {  # by name, for knobs without a default (or with null) whose range is not informative
    "examples": 100_000,
    "epochs": 3,
    "micro_batch_tokens": 4096,
    "task": "para",
    "files": {"train": "reviews.csv"},
    "train": "reviews.csv",
    "dev": "reviews-dev.csv",
    "test": "reviews-test.csv",
    "text": ["review"],
    "id": "row",
    "labels": ["bad", "good"],
    "range": [0, 10],
    "weights": {"sst": 2, "sts": 1},
    "groups": [["sst", "para"]],
    "texts": ["para", "sts"],
}
PARTNERS = {"optimizer/per_task": {"task_schedule": "alternate"}}  # settings that a knob requires
LAYERS = ("all", "pairs", *default_at("train_on"))  # entries of `tasks` in which a variant may have to be set
COMPANIONS: tuple[dict[str, Any], ...] = ({}, {"pair_encoding": "bi"}, {"pair_encoding": "bi", "head": "cosine"})


def example(path: str, knob: Knob, as_domain: bool = False) -> dict[str, Any]:
    """Return the config of a space in which the knob is set, or is a domain, with all that it needs to be valid.

    Empty if a domain is asked of a knob that all trials share or that has nothing to choose from.
    """
    if as_domain and path.split("/")[0] in SHARED:
        return {}
    return next(filter(_is_sound, _candidates(path, knob, as_domain)), {})


CHOICES: dict[str, list[Any]] = {
    "adapter/pal/size": [96, 204, 408],  # values in between would not divide among 12 heads
    "task_schedule/sequential/rounds": [9, 18, 36],  # with values in between, the default rungs would cut a round
}


def _is_sound(config: dict[str, Any]) -> bool:
    try:
        make_space("example", {"config": config})
    except SettingsError:
        return False
    return True


def _candidates(path: str, knob: Knob, as_domain: bool) -> Iterator[dict[str, Any]]:
    """Yield configs that set the knob, the most instructive first."""
    if path == "stages":
        yield {path: {"choice": RECIPES} if as_domain else RECIPES[1]}
    elif knob.kind:
        family, _, kind = path.rpartition("/")
        yield from (config for value in _variant_values(family, kind, knob, as_domain) for config in _configs(family, value))
    if knob.models:  # a family, a map, a variant by one of its knobs: use the knobs in it, a family's default last
        depth = path.count("/") + (2 if knob.holds_many else 1)
        inner = [place for place in walk_knobs(knob, {"tasks": "all"}, path) if place.path.count("/") == depth]
        for place in sorted(inner, key=lambda place: place.path == f"{path}/{_default_kind(path)}"):
            yield from _candidates(place.path, place.knob, as_domain)
    else:
        values = [_domain(path, knob)] if as_domain else _constants(path, knob)
        yield from (config for value in values if value is not None for config in _configs(path, value))


def _variant_values(family: str, kind: str, knob: Knob, as_domain: bool) -> Iterator[Any]:
    """Yield a variant by its kind; as domains, choices between another variant and it, with its first number as a range."""
    knobs = {name: below for name in knob.keys if (below := knob.below(name))}
    required = {name: EXAMPLES[name] for name, below in knobs.items() if _is_required(below)}
    numbers = [name for name, below in knobs.items() if _is_number(below)][:1]
    whole = {"kind": kind, **required} if required else kind
    ranged = {"kind": kind, **required} | {name: _domain(f"{family}/{kind}/{name}", knobs[name]) for name in numbers}
    if not as_domain:
        yield whole
        return
    if family == "stages/0":  # a list of maps cannot be a branch
        yield ranged
        return
    above = knob_at(TrialConfig, family)
    others = sorted(above.kinds if above else (), key=lambda other: other != _default_kind(family))
    yield from ({"choice": [other, ranged if numbers else whole]} for other in others if other != kind)


def _default_kind(family: str) -> Any:
    """Return the default kind of a family; for an override in a stage, that of the trial."""
    return default_at(family.rpartition("/")[2] if family.startswith("stages/") else family)


def _configs(path: str, value: Any) -> Iterator[dict[str, Any]]:
    """Yield configs with `value` at `path`, the kinds above it and their required settings.

    A path in `tasks` is tried in each layer and with each of the companions.
    """
    flat: dict[str, Any] = {}
    for above in ("/".join(path.split("/")[:i]) for i in range(1, path.count("/") + 1)):
        knob = knob_at(TrialConfig, above)
        if knob and knob.kind:
            flat[above.rpartition("/")[0]] = knob.kind
            flat |= {f"{above}/{name}": EXAMPLES[name] for name in knob.keys if _is_required(knob.below(name))}
    flat |= {path: value} | PARTNERS.get(path, {})
    flat = {at.replace("/NAME", "/reviews"): one for at, one in flat.items()}
    if path.startswith("stages/0"):
        second = "heads_only" if "multitask" in flat.values() or path == "stages/0/multitask" else "multitask"
        flat["stages/1"] = second
        if path.endswith("/epochs") and knob and getattr(knob.models[0], "learns_labels", False):
            flat[f"stages/1/{second}/epochs"] = EXAMPLES["epochs"]  # all labelled stages have them, or none
    if not path.startswith("tasks/all/"):
        yield unflatten(flat)
        return
    for companions, layer in itertools.product(COMPANIONS, LAYERS):
        laid = {f"tasks/{layer}/{name}": one for name, one in companions.items()}
        yield unflatten(laid | {at.replace("tasks/all/", f"tasks/{layer}/"): one for at, one in flat.items()})


# ---------------------------------------------------------------------------------------------------------------- values


def _is_required(knob: Knob | None) -> bool:
    return bool(knob and knob.field and knob.field[0].model_fields[knob.field[1]].is_required())


def _is_number(knob: Knob) -> bool:
    return schema_of(knob)[0].get("type") in ("integer", "number")


def _default(path: str, knob: Knob) -> Any:
    return default_at(path) if path.startswith("tasks/") else as_written(knob.default)


def _constants(path: str, knob: Knob) -> list[Any]:
    """Return possible values of a knob; if all are known, the default last: the others may not fit a space."""
    (schema, _), default = schema_of(knob), _default(path, knob)
    if "enum" in schema:
        return sorted(schema["enum"], key=lambda value: bool(value == default))
    return [_constant(schema, default, path, knob)]


def _constant(schema: dict[str, Any], default: Any, path: str, knob: Knob) -> Any:
    """Return a possible value of a knob whose values are not a list of names."""
    name = path.rpartition("/")[2]
    if schema.get("type") == "boolean":
        return not default
    if name in EXAMPLES and (not default or _is_required(knob)):
        return EXAMPLES[name]
    return next(iter(_range(schema, default).values()))[0] if _is_number(knob) and default is None else default


def _domain(path: str, knob: Knob) -> Any:
    """Return a possible domain of a knob, or None if there is nothing to choose from."""
    if path in CHOICES:
        return {"choice": CHOICES[path]}
    (schema, _), default = schema_of(knob), _default(path, knob) or EXAMPLES.get(path.rpartition("/")[2])
    if _is_number(knob):
        return _range(schema, _default(path, knob))
    if "enum" in schema:
        return {"choice": schema["enum"]}
    match schema.get("type"):
        case "boolean":
            return {"choice": [False, True]}
        case "array" if default and not isinstance(default[0], list):  # a list of lists cannot be a branch
            return {"choice": [default, default[:-1] if isinstance(default[0], str) else default * 2]}
        case "object":
            return {"sts": {"log_uniform": [0.1, 10]}}
    return {"choice": [default, "bert-large-uncased"]} if path == "encoder/checkpoint" else None


def _range(schema: dict[str, Any], default: Any) -> dict[str, list[float]]:
    """Return a valid range around the default: log_uniform for a rate or a factor, uniform for a share, int for a count."""
    low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum", schema.get("exclusiveMaximum"))
    middle = default if isinstance(default, int | float) else (low + high) / 2 if high is not None else 1000
    if schema["type"] == "integer":
        least = max(int(middle) // 2, schema.get("minimum", 1))
        most = max(least + 1, 2 * int(middle))
        return {"int": [least, most if high is None else min(most, high)]}
    if middle > 0 and (high is None or middle <= high / 20):
        return {"log_uniform": [float(f"{middle / 5:.1g}"), float(f"{middle * 5:.1g}")]}
    if middle <= 0:
        return {"uniform": [middle, 1.0 if high is None else (middle + high) / 2]}
    if high is None or 2 * middle < high:
        return {"uniform": [float(f"{middle / 2:.1g}"), 2 * middle]}
    return {"uniform": [float(f"{middle / 2:.1g}"), high if "maximum" in schema and default is not None else middle]}


# ---------------------------------------------------------------------------------------------------------------- spaces


def searched_in(path: str, knob: Knob) -> list[str]:
    """Return the shipped spaces in which the knob differs between trials, by a choice of a kind or of a value."""
    return [name for name, points in _points().items() if _differs(path, knob, points)]


def _differs(path: str, knob: Knob, points: list[Point]) -> bool:
    if knob.kind:
        family, _, kind = path.rpartition("/")
        return len({(family, kind) in point for point in points}) > 1
    below = [frozenset(pair for pair in point if f"{pair[0]}/".startswith(f"{path}/")) for point in points]
    if knob.models:
        return len(set(below)) > 1
    values: dict[str, set[str]] = {}
    for at, value in itertools.chain(*below):
        values.setdefault(at, set()).add(value)
    return any(len(seen) > 1 for seen in values.values())


@lru_cache
def _points() -> dict[str, list[Point]]:
    """Return for each shipped space its trials at every branch and end of a range."""
    found = {}
    for file in sorted(SPACES.glob("*.yaml")):
        space = Space(file.stem, SpaceSettings(), *read_document(file))
        found[file.stem] = [_point(space, forced) for forced in cover(space.occurrences())]
    return found


def _point(space: Space, forced: dict[str, Any]) -> Point:
    def choose(name: str, domain: Domain) -> Any:
        return forced[name] if name in forced else default_choice(name, domain)

    return frozenset(_flat(space.sample(choose).document))


def _flat(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for path, value in flatten(document).items():
        yield canonical(path), str(value)
        if path == "stages":  # bare names, which flatten keeps in one list
            yield from (("stages/0", kind) for kind in value)


def canonical(path: str) -> str:
    """Return the path in the list, which has `all` for any entry of `tasks` and 0 for any stage."""
    first, *rest = path.split("/")
    shown = {"tasks": "all", "stages": "0", "own_tasks": "NAME"}
    return "/".join([first, shown[first], *rest[1:]]) if first in shown and rest else path
