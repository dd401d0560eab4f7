"""The JSON schema of a space's file, with which an editor completes, explains and checks it while it is written.

    pydantic's schema of TrialConfig -> with domains for any value and bare names for kinds -> joined with the space's own keys

What the schema refuses, the loader refuses too, but for grouped digits in a number that need not be whole (1_0.5). The reverse
does not hold: only the loader knows the rules between knobs, and what is missing once a space is laid over another.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.json_schema import models_json_schema

from minbert_core.config import TrialConfig
from minbert_core.settings.knobs import ENTRIES
from search.shipped import SCHEMA
from search.space.domains import DOMAINS, RANGES
from search.space.file import PUBLISHED_SPLITS, SpaceSettings
from search.space.listing import DOMAIN_ABOUT, FROM_SPACE, STRUCTURE_ABOUT, config_places, first_sentence

Json = dict[str, Any]

GROUPED = "^[0-9]{1,3}(_[0-9]{3})+$"  # 400_000: a number for our loader, a string for an editor's YAML
FIGURES: Json = {"type": "object", "additionalProperties": {"type": "number", "minimum": -1, "maximum": 1}}
PUBLISHED: Json = {
    "type": "object",
    "properties": dict.fromkeys(PUBLISHED_SPLITS, FIGURES),
    "additionalProperties": False,
    "description": "figures that a paper reports for it: dev and test -> a task, norm or mean -> the figure",
}
BRANCH_ABOUT: Json = {"type": "string", "description": "a description for readers, for example a row of a table"}
BRANCH_NAME = {"type": "string", "pattern": "^[a-z0-9_-]+$", "description": "the name of this branch of a choice"}
IS_PATH = "[/.]"  # where settings are laid over others, a key with one of these is a path
ENTRY = "[^/.]+"  # the name or number of an entry of a map or a list
ANY_PATH: Json = {IS_PATH: {}}
SCALAR: Json = {"type": ["string", "number", "boolean"]}
ALSO: dict[str, Json] = {  # by knob: a shorter form, which our validators convert to the one that pydantic describes
    "encoder": {"type": "string", "description": "the checkpoint"},
    "text": {"type": "string", "description": "the only column"},
    "labels": {"type": "array", "items": SCALAR, "minItems": 2},
}


def space_schema() -> Json:
    """Build the schema of a space's file, draft 2020-12."""
    _, schemas = models_json_schema([(TrialConfig, "validation"), (SpaceSettings, "validation")])
    models: Json = schemas["$defs"]
    trial, space = models.pop("TrialConfig"), models.pop("SpaceSettings")
    for path in FROM_SPACE:  # set by the space's own keys
        model, name = (models["Budget"], path.removeprefix("budget/")) if "/" in path else (trial, path)
        del model["properties"][name]
    searched = _Searched(models)
    config = searched.model("TrialConfig", trial)
    over = config | {"patternProperties": dict(_paths(searched)), "description": "settings laid over the config, paths as keys"}
    over["properties"] = over["properties"] | {"together": {"type": "object", "additionalProperties": SCALAR}}
    searched.defs |= {name: _domain(name) for name in DOMAINS}
    searched.defs |= {"Config": config | {"description": STRUCTURE_ABOUT["config"]}, "Over": over}
    fixed = _Written(models)
    space_keys = {name: fixed.value(schema, name) for name, schema in space["properties"].items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A search space",
        "type": "object",
        "properties": space_keys
        | {name: {"description": STRUCTURE_ABOUT[name], **schema} for name, schema in STRUCTURE_SCHEMA.items()},
        "additionalProperties": False,
        "$defs": dict(sorted((searched.defs | fixed.defs).items())),
    }


STRUCTURE_SCHEMA: dict[str, Json] = {
    "extends": {"type": "string"},
    "config": {"$ref": "#/$defs/Config"},
    "baselines": {"type": "array", "items": {"$ref": "#/$defs/Over"}},
    "together": {
        "type": "object",
        "propertyNames": {"pattern": BRANCH_NAME["pattern"]},
        "additionalProperties": {
            "type": "array",
            "minItems": 2,
            "items": {
                "type": "object",
                "properties": {
                    "name": BRANCH_NAME,
                    "about": BRANCH_ABOUT,
                    "published": PUBLISHED,
                    "set": {"$ref": "#/$defs/Over"},
                },
                "required": ["name"],
                "additionalProperties": False,
            },
        },
    },
}


class _Written:
    """pydantic's schemas in the form in which a space is written: bare names for kinds, 400_000 for a number.

    `defs` collects the definitions that the schemas refer to.
    """

    def __init__(self, models: Json) -> None:
        self.models, self.defs = models, dict[str, Json]()

    def place(self, schema: Json, key: str) -> Json:
        """Convert the schema of a value under a key or in a list."""
        return self.value(schema, key)

    def value(self, schema: Json, key: str) -> Json:
        """Convert the schema of a value. `key` is its unique name, such as `GradVac.beta`."""
        kept = _description(schema)
        if name := _ref(schema):
            is_variant = "kind" in self.models[name]["properties"]
            return self.family([name]) if is_variant else kept | self.ref(name)
        if "discriminator" in schema:
            return kept | self.family([_ref(variant) for variant in schema["oneOf"]])
        for union in ("anyOf", "oneOf"):
            if union in schema:
                return kept | {"anyOf": [self.value(form, key) for form in schema[union]]}
        law = {name: value for name, value in schema.items() if name in LAW}
        if schema.get("type") == "integer":
            law |= {"type": ["integer", "string"], "pattern": GROUPED}
        if "items" in schema or "prefixItems" in schema:
            law["items"] = self.place(schema["prefixItems"][0] if "prefixItems" in schema else schema["items"], f"{key}[]")
        if "additionalProperties" in schema:
            law |= {
                "additionalProperties": self.place(schema["additionalProperties"], f"{key}[]"),
                "patternProperties": ANY_PATH,
            }
        return kept | law

    def family(self, names: list[str]) -> Json:
        """Return a reference to one of several variants, by its bare name or as a map."""
        key = f"{names[0]}-family"
        if key not in self.defs:
            self.defs[key] = {}
            self.defs[key] = self._family(names)
        return {"$ref": f"#/$defs/{key}"}

    def _family(self, names: list[str]) -> Json:
        bare = {self.kind(name): self.models[name] for name in names if not self.models[name].get("required")}
        about = [first_sentence(model.get("description", "")) for model in bare.values()]
        words = [{"enum": list(bare), "enumDescriptions": about}] if bare else []
        return {"anyOf": [*words, *(self.ref(name) for name in names)]}

    def kind(self, name: str) -> str:
        return str(self.models[name]["properties"]["kind"]["const"])

    def ref(self, name: str) -> Json:
        if name not in self.defs:
            self.defs[name] = {}  # entered first, because a model that contains itself would recurse forever
            self.defs[name] = self.model(name, self.models[name])
        return {"$ref": f"#/$defs/{name}"}

    def model(self, name: str, model: Json) -> Json:
        """Build the schema of a map of a model's knobs. All are optional, even the kind: an extended space may set the rest."""
        properties = model["properties"].items()
        knobs = {knob: self.place(schema, f"{name}.{knob}") for knob, schema in properties if knob != "kind"}
        base = {"type": "object", "description": model.get("description", ""), "additionalProperties": False}
        if name == "TrialConfig":
            return base | {"properties": knobs}
        if "kind" in model["properties"]:
            return base | {"properties": {"kind": {"const": self.kind(name)}, **knobs, "name": BRANCH_NAME}}
        return base | {"properties": {**knobs, "name": BRANCH_NAME}, "patternProperties": ANY_PATH}


class _Searched(_Written):
    """The same schemas, with a domain allowed for any value."""

    def place(self, schema: Json, key: str) -> Json:
        if key not in self.defs:
            self.defs[key] = {}
            described = _description(schema)
            value = self.value({name: part for name, part in schema.items() if name not in DESCRIPTION}, key)
            forms = value["anyOf"] if list(value) == ["anyOf"] else [value]
            also = [ALSO[name]] if (name := key.rpartition(".")[2]) in ALSO else []
            self.defs[key] = described | {"anyOf": [*forms, *also, _domains(forms, key)]}
        return {"$ref": f"#/$defs/{key}"}


DESCRIPTION = ("description", "default", "unit")
LAW = ("type", "enum", "const", "pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minItems", "maxItems",
       "minProperties")  # fmt: skip


def _ref(schema: Json) -> str:
    return str(schema.get("$ref", "")).removeprefix("#/$defs/")


def _description(schema: Json) -> Json:
    """Return what an editor shows of a knob. Maps and lists are omitted as defaults, because their own knobs show them."""
    described = {name: part for name, part in schema.items() if name in DESCRIPTION and not isinstance(part, dict | list)}
    if unit := described.pop("unit", ""):
        described["description"] += f" [{unit}]"
    return described


def _domains(forms: list[Json], key: str) -> Json:
    """Build the schema of the domains for a value of these forms: a choice, and for a number ranges whose ends are such too."""
    ends = {name: f"{key}/anyOf/{i}" for i, form in enumerate(forms) for name in _ranges(form)}
    domains = {
        name: {"$ref": f"#/$defs/{name}", "items": {"$ref": f"#/$defs/{end}"}} for name, end in (ends | {"choice": key}).items()
    }
    return {"type": "object", "properties": domains, "minProperties": 1, "maxProperties": 1, "additionalProperties": False}


def _ranges(form: Json) -> tuple[str, ...]:
    return RANGES if form.get("type") == "number" else ("int",) if form.get("type") == ["integer", "string"] else ()


def _domain(name: str) -> Json:
    """Build the part of a domain's schema that is the same for all knobs."""
    most = {"maxItems": 2} if name in RANGES else {}
    return {"type": "array", "minItems": 2, **most, "description": ": ".join(DOMAIN_ABOUT[name])}


def _paths(searched: _Searched) -> Iterator[tuple[str, Json]]:
    """Yield (pattern, schema) of each path that may be a key where settings are laid over the config."""
    yield f"^together{IS_PATH}", SCALAR
    for place in config_places():
        path, knob = place.path, place.knob
        entry = f"{path.split('/')[0]}/{ENTRIES.get(path.split('/')[0], 'NAME')}"  # the list shows one entry for all
        parts = [entry.split("/")[0], ENTRY, *path.split("/")[2:]] if f"{path}/".startswith(f"{entry}/") else path.split("/")
        pattern = IS_PATH.join(parts)
        if knob.field is None:  # a kind, with its knobs
            yield f"^{pattern}$", {"type": "object"}
            continue
        key = f"{knob.field[0].__name__}.{knob.field[1]}"
        if "/" in path:
            yield f"^{pattern}$", {"$ref": f"#/$defs/{key}"}
        if place.same_as:
            yield f"^{pattern}{IS_PATH}.", {}
        if f"{key}[]" in searched.defs:
            yield f"^{pattern}{IS_PATH}{ENTRY}$", {"$ref": f"#/$defs/{key}[]"}


# --------------------------------------------------------------------------------------------------------------- writing


def schema_text() -> str:
    """Return the schema as in its file, with one definition per line."""
    whole = space_schema()
    defs = ",\n".join(f"  {json.dumps(name)}: {_line(part)}" for name, part in whole.pop("$defs").items())
    top = ",\n".join(f" {json.dumps(name)}: {_line(part)}" for name, part in whole.items())
    return f'{{\n{top},\n "$defs": {{\n{defs}\n }}\n}}\n'


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def write_schema(file: Path) -> None:
    """Write the schema to a file; `-` is the screen. Raises OSError."""
    if str(file) == "-":
        print(schema_text(), end="")
    else:
        file.write_text(schema_text(), encoding="utf-8")


def schema_line(file: Path) -> str:
    """Return the first line of a space that an editor is to check by the schema in `file`, relative for those in `spaces/`."""
    name = file.name if file == SCHEMA else file.resolve().as_posix()
    return f"# yaml-language-server: $schema={name}"
