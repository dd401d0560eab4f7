"""What may stand at a path: a walk down the models of a config, for defaults, known names, and the kinds of a family.

As in knob_at(TrialConfig, "gradient/gradvac/beta").default, 0.01, or knob_at(TrialConfig, "gradient").kinds: sum, pcgrad …
`walk_knobs` walks all of them; `schema_of` one is what pydantic tells of it: its type, bounds, unit and description.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

NO_DEFAULT: Any = PydanticUndefined  # null may be a default, so it cannot stand for none
ENTRIES = {"tasks": "all", "stages": "0"}  # of a config: which entry of a map or a list stands for all


@dataclass(frozen=True)
class Knob:
    """One place in a config: the models that a map there may be, and its default.

    `holds_many` where it is a map from names, or a list, of such models; `kind` where the path goes on through a kind;
    `field`, model and name, where it is a model's field and not an entry, a kind or the whole.
    """

    models: tuple[type[BaseModel], ...]
    default: Any = NO_DEFAULT
    holds_many: bool = False
    kind: str = ""
    field: tuple[type[BaseModel], str] | None = None

    @property
    def kinds(self) -> dict[str, type[BaseModel]]:
        """The variants to choose from here, by kind; none where this is no family."""
        if self.kind or self.holds_many:
            return {}
        return {model.model_fields["kind"].default: model for model in self.models if "kind" in model.model_fields}

    @property
    def keys(self) -> list[str]:
        """The names that a map may have here; none where any may stand, or a kind is wanted first."""
        if self.kinds or self.holds_many:
            return []
        return [name for model in self.models for name in model.model_fields if name != "kind"]

    def below(self, part: str) -> Knob | None:
        """The place one part of a path further: a kind, a key, or an entry's name or number.  None: there is no such place."""
        if self.holds_many:
            return Knob(self.models)
        if self.kinds:
            return Knob((self.kinds[part],), kind=part) if part in self.kinds else None
        for model in self.models:
            if part in model.model_fields:
                return _field(model, part)
        return None


def knob_at(model: type[BaseModel], path: str) -> Knob | None:
    """The place that `path` means in `model`, the empty path `model` itself.  None: `model` has no such place."""
    knob: Knob | None = Knob((model,), kind="")
    for part in path.split("/") if path else ():
        knob = knob.below(part) if knob else None
    return knob


@dataclass(frozen=True)
class Place:
    """A path and what may stand there; `same_as` is the path at which its models were met before, else empty."""

    path: str
    knob: Knob
    same_as: str = ""


def walk_knobs(
    knob: Knob, entries: Mapping[str, str], path: str = "", met: dict[tuple[type[BaseModel], ...], str] | None = None
) -> Iterator[Place]:
    """Each place from `knob`, which stands at `path`, down; what takes the models of an earlier place is not entered again.

    `entries` says which entry of a map or a list is shown for all, as in {"stages": "0"}; NAME where it says nothing.
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
    """The end of a sentence about a key that is unknown where it was written: ` There is `optimizer/lr`.`, or nothing.

    Of several places those nearest to the top are named, three at most; they stand below `above`.
    """
    found = [place.path for place in walk_knobs(Knob((model,)), ENTRIES) if place.path.rpartition("/")[2] == key]
    top = min((path.count("/") for path in found), default=0)
    nearest = [f"`{above}{path}`" for path in found if path.count("/") == top]
    return f" There is {', '.join(nearest[:3])}{' …' if len(nearest) > 3 else ''}." if nearest else ""


def schema_of(knob: Knob) -> tuple[dict[str, Any], bool]:
    """The JSON schema of a field, and whether null may stand there, which it leaves out.  Of another place: an empty one."""
    if knob.field is None:
        return {}, False
    model, name = knob.field
    schema: dict[str, Any] = _schema(model)["properties"][name]
    others = [one for one in schema.get("anyOf", []) if one.get("type") != "null"]
    is_nullable = len(others) < len(schema.get("anyOf", []))
    return (schema | others[0] if is_nullable and len(others) == 1 else schema), is_nullable


@lru_cache
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()


def _field(model: type[BaseModel], name: str) -> Knob:
    field = model.model_fields[name]
    models, holds_many = _models_in(field.annotation)
    return Knob(models, field.get_default(call_default_factory=True), holds_many, field=(model, name))


def _models_in(annotation: Any) -> tuple[tuple[type[BaseModel], ...], bool]:
    """The models that an annotation names, through unions, Annotated, maps and lists; and whether it passed a map or list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (annotation,), False
    found: tuple[type[BaseModel], ...] = ()
    holds_many = typing.get_origin(annotation) in (dict, list, tuple)
    for argument in typing.get_args(annotation):
        models, inner_holds_many = _models_in(argument)
        found, holds_many = found + models, holds_many or inner_holds_many
    return found, holds_many and bool(found)
