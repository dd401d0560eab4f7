"""One battery of laws over every variant of every family: a new variant is tested once its family's union names it.

A law is a test in one of the files test_laws*.py, and its name is the claim:

    @law(Head)
    def test_a_head_is_saved_whole(variant: Any) -> None:
        ...
        assert same, "its state dict does not hold all it has learned"

`law(Head)` runs the test once per variant of the union `Head`, built from its defaults; `law()` runs it over all families.
`for_each` does the same for things that are not variants, such as LR schedules. Every assert of a law has a message. A variant
that breaks a law, or raises, fails with three sentences and no traceback: which variant, what the test found, which law.

Families are not listed here: every union of variants in minbert_core/methods is one.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
from pydantic import ValidationError
from torch import Tensor

import minbert_core.methods
from minbert_core.settings.models import Variant

METHODS = Path(minbert_core.methods.__path__[0])
MODULES = [importlib.import_module(f"minbert_core.methods.{m.name}") for m in pkgutil.iter_modules([str(METHODS)])]


def variants(family: Any) -> list[type[Variant]]:
    """Return the classes of a family: A and B for Annotated[A | B, ...], A for Annotated[A, ...]."""
    inner = get_args(family)[0]
    return list(get_args(inner)) or [inner]


def is_family(value: object) -> bool:
    if get_origin(value) is not Annotated:
        return False
    return all(inspect.isclass(member) and issubclass(member, Variant) for member in variants(value))


FAMILIES = {name: value for module in MODULES for name, value in vars(module).items() if is_family(value)}
WIDEST_FIRST = sorted(FAMILIES, key=lambda name: -len(variants(FAMILIES[name])))
FAMILY_OF = {
    cls: name for name in WIDEST_FIRST for cls in variants(FAMILIES[name])
}  # a class in two unions belongs to the narrower
CLASSES = [cls for module in MODULES for cls in vars(module).values() if inspect.isclass(cls) and issubclass(cls, Variant)]
BASES = {base for cls in CLASSES for base in cls.__mro__[1:]}  # they declare a family's defaults and are not variants
WRITTEN = {f"{cls.__module__}.{cls.__name__}": cls for cls in CLASSES if cls not in BASES}
NEEDED = {"task": "sst"}  # a value for each knob that has no default


def needed(cls: type[Variant]) -> dict[str, str]:
    """Return values for the knobs of a variant that have no default."""
    required = [name for name, field in cls.model_fields.items() if field.is_required()]
    for name in required:
        assert name in NEEDED, f"`{name}` has no default; give it one, or this battery a value in NEEDED"
    return {name: NEEDED[name] for name in required}


def plain(cls: type[Variant]) -> Variant:
    """Build a variant from its defaults, and from `NEEDED` where a knob has none."""
    return cls.model_validate(needed(cls))


def kind_of(cls: type[Variant]) -> str:
    """Return its name in YAML, or that of the class if it has none."""
    kind = cls.model_fields["kind"].default
    return kind if isinstance(kind, str) else cls.__name__


def word(family: str) -> str:
    """Return the name of a family in a sentence: 'gradient method' for GradientMethod."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", family).lower()


# -------------------------------------------------------------------------------------------------------- stating a law


def law(*families: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test over each variant of `families`, or of all families; the test gets it as `variant`."""
    members = [cls for cls, family in FAMILY_OF.items() if not families or FAMILIES[family] in families]
    return for_each("variant", {f"{word(FAMILY_OF[cls])} '{kind_of(cls)}'": functools.partial(plain, cls) for cls in members})


def for_each(argument: str, members: dict[str, Callable[[], Any]]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test once per member, given as `argument`; `members` maps the name in a message to a function that builds it.

    The member is built inside the test, so that an error in its class fails this test and not the collection of all.
    """

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run_with_one(**arguments: Any) -> None:
            name, build = arguments[argument]
            try:
                test(**{**arguments, argument: build()})
            except Exception as error:  # noqa: BLE001  whatever the variant raises is its breach of the law
                raise pytest.fail.Exception(f"{name}: {finding(error)}\n{sentence_of(test)}", pytrace=False) from None

        ids = [re.sub("[^a-z0-9_-]+", "-", name.lower()).strip("-") for name in members]
        return pytest.mark.parametrize(argument, members.items(), ids=ids)(run_with_one)

    return decorate


def sentence_of(test: Callable[..., None]) -> str:
    """Return a law as a sentence: the name of its test, and the first line of its docstring."""
    text = f"law: {test.__name__.removeprefix('test_').replace('_', ' ')}"
    return f"{text}\n     {test.__doc__.splitlines()[0]}" if test.__doc__ else text


def message_of(error: Exception) -> str:
    """Return an error's message on one line; for pydantic's, each knob and what is wrong with it."""
    if isinstance(error, ValidationError):
        faults = [(".".join(map(str, fault["loc"])), fault["msg"], fault["input"]) for fault in error.errors()]
        return "; ".join(f"`{where}`: {message}, not {given!r}" for where, message, given in faults)
    return " ".join(str(error).partition("\nassert ")[0].split())  # pytest adds what was compared


def finding(error: Exception) -> str:
    """Return an assertion's message; for any other error its type, its message, and the line of minbert_core that raised it."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(METHODS.parent)]
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno}: `{frames[-1].line}`)" if frames else ""
    message = message_of(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {message_of(error)}"
    return (message if len(message) < 500 else f"{message[:500]} …") + where


# ---------------------------------------------------------------------------------------------------- what laws need


def refusal(call: Callable[[], Any], error: type[Exception]) -> str:
    """Return the message of the `error` that `call` raises; empty if it raises none."""
    try:
        call()
    except error as refused:
        return message_of(refused) or error.__name__
    return ""


def keep(values: Tensor, probability: float) -> Tensor:
    """Drop nothing: the function that heads get in evaluation."""
    return values
