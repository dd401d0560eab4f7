"""Knobs: find the default, the valid names or the kinds of a family at a path of a config, from pydantic's models.

    knob_at(TrialConfig, "gradient/gradvac/beta").default   0.01
    knob_at(TrialConfig, "gradient").kinds                  {"sum": Sum, "pcgrad": PCGrad, …}

`walk_knobs` visits every knob. `schema_of` returns a knob's type, bounds, unit and description.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

NO_DEFAULT: Any = PydanticUndefined  # None would not do: null may be a default
ENTRIES = {"tasks": "all", "stages": "0"}  # the entry that represents all others in each map or list of a config


@dataclass(frozen=True)
class Knob:
    """One position in a config: the models that describe its value, and its default.

    holds_many: the value is a list of such models, or a map from names to them.
    kind: the last part of the path, if that part is a kind; "" otherwise.
    field: (model, field name), if the knob is a field of a model; None for an entry, a kind or the whole config.
    """

    models: tuple[type[BaseModel], ...]
    default: Any = NO_DEFAULT
    holds_many: bool = False
    kind: str = ""
    field: tuple[type[BaseModel], str] | None = None

    @property
    def kinds(self) -> dict[str, type[BaseModel]]:
        """The variants of the family here, by kind; empty if the knob has no variants to choose from."""
        if self.kind or self.holds_many:
            return {}
        return {model.model_fields["kind"].default: model for model in self.models if "kind" in model.model_fields}

    @property
    def keys(self) -> list[str]:
        """The valid keys of a map here; empty if every name is valid, or if the path must name a kind first."""
        if self.kinds or self.holds_many:
            return []
        return [name for model in self.models for name in model.model_fields if name != "kind"]

    def below(self, part: str) -> Knob | None:
        """Return the knob at the next part of a path (a kind, a key, an entry's name or number); None if it does not exist."""
        if self.holds_many:
            return Knob(self.models)
        if self.kinds:
            return Knob((self.kinds[part],), kind=part) if part in self.kinds else None
        for model in self.models:
            if part in model.model_fields:
                return _field(model, part)
        return None


def knob_at(model: type[BaseModel], path: str) -> Knob | None:
    """Return the knob at `path` in `model`, None if `model` has no such path. The empty path is `model` itself."""
    knob: Knob | None = Knob((model,), kind="")
    for part in path.split("/") if path else ():
        knob = knob.below(part) if knob else None
    return knob


@dataclass(frozen=True)
class Place:
    """A path and its knob. `same_as` is an earlier path with the same models, "" if there is none."""

    path: str
    knob: Knob
    same_as: str = ""


def walk_knobs(
    knob: Knob, entries: Mapping[str, str], path: str = "", met: dict[tuple[type[BaseModel], ...], str] | None = None
) -> Iterator[Place]:
    """Yield `knob`, whose path is `path`, and all knobs below it; models that were visited before are not entered again.

    entries: the entry that represents all others in a map or a list, such as {"stages": "0"}; NAME if a path is not in it.
    met: the path where each tuple of models was first visited.
    """
    met = {} if met is None else met
    first = met.setdefault(knob.models, path) if knob.models and knob.field else path
    if path:
        yield Place(path, knob, first if first != path else "")
    if first != path:
        return
    if knob.holds_many:
        path, knob = f"{path}/{entries.get(path, 'NAME')}", Knob(knob.models)
    for part in knob.kinds or knob.keys:
        below = knob.below(part)
        assert below is not None, f"{path} names {part} and has it not"
        yield from walk_knobs(below, entries, f"{path}/{part}" if path else part, met)


def elsewhere(model: type[BaseModel], key: str, above: str = "") -> str:
    """Return a sentence that names the paths where an unknown key is valid: ` There is `optimizer/lr`.`; "" if there is none.

    It names at most three, those with the fewest parts, each prefixed with `above`.
    """
    paths = [place.path for place in walk_knobs(Knob((model,)), ENTRIES) if place.path.rpartition("/")[2] == key]
    top = min((path.count("/") for path in paths), default=0)
    nearest = [f"`{above}{path}`" for path in paths if path.count("/") == top]
    return f" There is {', '.join(nearest[:3])}{' …' if len(nearest) > 3 else ''}." if nearest else ""


def schema_of(knob: Knob) -> tuple[dict[str, Any], bool]:
    """Return a field's JSON schema without null, and whether null is valid too. The schema is empty if it is not a field."""
    if knob.field is None:
        return {}, False
    model, name = knob.field
    schema: dict[str, Any] = _schema(model)["properties"][name]
    others = [choice for choice in schema.get("anyOf", []) if choice.get("type") != "null"]
    is_nullable = len(others) < len(schema.get("anyOf", []))
    return (schema | others[0] if is_nullable and len(others) == 1 else schema), is_nullable


@lru_cache
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()


def _field(model: type[BaseModel], name: str) -> Knob:
    field = model.model_fields[name]
    models, holds_many = _models_in(field.annotation)
    return Knob(models, field.get_default(call_default_factory=True), holds_many, field=(model, name))


def models_in(annotation: Any) -> tuple[type[BaseModel], ...]:
    """Return the models inside an annotation: unions, Annotated, maps, lists."""
    return _models_in(annotation)[0]


def forget_schemas() -> None:
    """Forget the JSON schemas of models, because some were built again."""
    _schema.cache_clear()


def _models_in(annotation: Any) -> tuple[tuple[type[BaseModel], ...], bool]:
    """Return the models inside an annotation (unions, Annotated, maps, lists), and whether a map or a list holds them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (annotation,), False
    models: tuple[type[BaseModel], ...] = ()
    holds_many = typing.get_origin(annotation) in (dict, list, tuple)
    for argument in typing.get_args(annotation):
        inner_models, inner_holds_many = _models_in(argument)
        models, holds_many = models + inner_models, holds_many or inner_holds_many
    return models, holds_many and bool(models)
