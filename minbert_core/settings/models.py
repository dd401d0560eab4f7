"""Frozen models for all values that users write: `Settings`, a group of knobs, and `Variant`, one kind of a family."""

from __future__ import annotations

import re

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

NAME = re.compile(r"[a-z0-9_-]+")  # a name of a space, branch, search or task, fit for paths, folders and commands


class Settings(BaseModel):
    """A frozen group of knobs. It rejects unknown keys, nan, inf, and booleans in place of a number or a name."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_booleans(cls, document: object) -> object:
        if not isinstance(document, dict):
            return document
        return {key: bare(value) if _takes_bool(cls, key) else _no_number(value) for key, value in document.items()}


class _Boolean:
    """A boolean in place of a number or a name, which no validator accepts (Python's True would be accepted as 1)."""

    def __init__(self, value: bool) -> None:
        self.value = value

    def __repr__(self) -> str:
        return str(self.value).lower()


def _takes_bool(model: type[BaseModel], key: object) -> bool:
    known = model.model_fields.get(str(key))
    return known is not None and known.annotation is bool


def bare(value: object) -> object:
    """Return a value as the user wrote it, for a field that accepts booleans."""
    return value.value if isinstance(value, _Boolean) else value


def _no_number(value: object) -> object:
    if isinstance(value, list):
        return [_no_number(item) for item in value]
    if isinstance(value, dict):
        return {key: _no_number(item) for key, item in value.items()}
    return _Boolean(value) if isinstance(value, bool) else value


class Variant(Settings):
    """One member of a family, with its knobs. `kind` is its name in YAML and distinguishes it from the others."""

    kind: str


def _bare_name_to_map(value: object) -> object:
    if isinstance(value, dict) and "kind" not in value:
        raise PydanticCustomError("kind_missing", "no kind")  # otherwise a family with one member would accept it
    return {"kind": value} if isinstance(value, str) else value


BARE_NAME = BeforeValidator(_bare_name_to_map)  # `gradient: pcgrad` means `gradient: {kind: pcgrad}`
