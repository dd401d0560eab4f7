"""The laws of all variants: named in a union, frozen, described, written and read back."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

from battery import FAMILIES, FAMILY_OF, MODULES, WRITTEN, for_each, kind_of, law, needed, refusal, variants, word
from pydantic import TypeAdapter, ValidationError

from minbert_core.settings.models import Variant


def test_every_law_says_what_it_found() -> None:
    for path in Path(__file__).parent.glob("test_laws*.py"):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        bare = [node.lineno for node in nodes if isinstance(node, ast.Assert) and node.msg is None]
        assert not bare, f"{path.name}: assert without a message in lines {bare}"


@for_each("cls", {f"{name} '{kind_of(cls)}'": lambda cls=cls: cls for name, cls in WRITTEN.items()})
def test_every_variant_that_is_written_is_in_a_family(cls: type[Variant]) -> None:
    assert cls in FAMILY_OF, "it is in no union: no config can name it; add it to its family's union, at the end of the file"


@law()
def test_a_variant_has_what_its_family_has(variant: Any) -> None:
    """It has all that its base declares or all the others have, and methods with as many parameters."""
    cls = type(variant)
    others = [other for other in variants(FAMILIES[FAMILY_OF[cls]]) if other is not cls]
    common = set.intersection(*(public_names(other) for other in others)) if others else set()
    missing = ", ".join(f"`{name}`" for name in sorted(common) if not hasattr(variant, name))
    assert not missing, f"it lacks {missing}; every other {word(FAMILY_OF[cls])} says that of itself"
    bases = [base for base in cls.__mro__[1:] if base not in Variant.__mro__]
    for owner, name in [(others[0], name) for name in common] + [(base, name) for base in bases for name in public_names(base)]:
        theirs = getattr(owner, name)
        if inspect.isfunction(theirs):
            expected, found = (list(inspect.signature(method).parameters) for method in (theirs, getattr(cls, name)))
            takes = f"`{name}` takes ({', '.join(found)}); that of {owner.__name__} ({', '.join(expected)})"
            assert len(found) == len(expected), takes


def public_names(cls: type) -> set[str]:
    return {name for name in vars(cls) if name == "__call__" or not name.startswith(("_", "model_"))}


@law()
def test_the_bare_name_means_the_defaults(variant: Any) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(FAMILIES[FAMILY_OF[type(variant)]])
    if needed(type(variant)):
        found = refusal(lambda: adapter.validate_python(variant.kind), ValidationError)
        assert "Field required" in found, f"its bare name lacks {needed(type(variant))} and is not refused for it: {found!r}"
        return
    for written in (variant.kind, {"kind": variant.kind}):
        found = adapter.validate_python(written)
        assert found == type(variant)(), f"`{written}` in a config is read as {found!r}"


@law()
def test_a_kind_is_a_name_that_a_path_can_hold(variant: Any) -> None:
    assert re.fullmatch("[a-z0-9_-]+", variant.kind), f"a kind is made of [a-z0-9_-], not '{variant.kind}'"


@law()
def test_a_variant_is_frozen(variant: Any) -> None:
    assert variant.model_config["frozen"], "its knobs can be set"


@law()
def test_an_unknown_knob_is_refused(variant: Any) -> None:
    written = {"kind": variant.kind, **needed(type(variant)), "no_such_knob": 1}
    found = refusal(lambda: TypeAdapter(FAMILIES[FAMILY_OF[type(variant)]]).validate_python(written), ValidationError)
    assert "Extra inputs" in found, f"it takes a knob that it does not have; {found!r}"


@law()
def test_a_variant_says_what_it_is_and_where_it_comes_from(variant: Any) -> None:
    text = type(variant).__doc__ or ""
    assert text.strip(), "it has no docstring; one line says what it is and names the paper"
    assert text != Variant.__doc__, "it inherits its docstring"


@law()
def test_every_knob_has_a_description(variant: Any) -> None:
    for name, field in type(variant).model_fields.items():
        assert name == "kind" or field.description, f'`{name}` has no description: Field(…, description="what, and its unit")'


@law()
def test_every_default_is_in_its_own_range(variant: Any) -> None:
    found = refusal(lambda: type(variant).model_validate(variant.model_dump()), ValidationError)
    assert not found, f"it refuses its own defaults: {found}"


@law()
def test_a_variant_survives_being_written_and_read(variant: Any) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(FAMILIES[FAMILY_OF[type(variant)]])
    for mode in ("python", "json"):
        written = variant.model_dump(mode=mode)
        found = adapter.validate_python(written)
        assert found == variant, f"{written} is read back as {found!r}"


@law()
def test_a_variant_has_a_schema_for_editors(variant: Any) -> None:
    schema = str(TypeAdapter(FAMILIES[FAMILY_OF[type(variant)]]).json_schema())
    assert type(variant).__name__ in schema, "it is not in its family's schema"


def test_every_family_is_found() -> None:
    known = {"Pooling", "PairEncoding", "Head", "Loss", "LossWeights", "TaskSchedule", "GradientMethod", "Smoothness"}
    missing = (known | {"Proximal", "Stage", "SharedLayer", "Adapter"}) - set(FAMILIES)
    assert not missing, f"no union of variants is found under the name {missing}"


def test_no_family_imports_another_but_stages() -> None:
    for module in MODULES:
        if module.__name__.endswith(".stages"):
            continue
        lines = [line for line in inspect.getsource(module).splitlines() if line.lstrip().startswith(("import ", "from "))]
        assert not [line for line in lines if "minbert_core.methods" in line], f"{module.__name__} imports another family"
