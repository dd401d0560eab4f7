"""Plugins: files of the user whose classes join the families of variants, without a fork.

    plugins: [my_head.py]     in a config, or in the `config` of a space

    entry -> the file, next to the one that names it or in a plugins/ folder above -> run once -> its variants -> the unions

A class belongs to the family of the class that it inherits from: HeadVariant, LossVariant …, or a variant of the family. An
entry is recorded as `my_head.py@` and the first 16 digits of the file's sha256, in space.yaml, in the config of each trial, and
so in its identity. A copy of the file is kept with each search and each saved model. Another content under that entry is
refused. The file is code: it is run with the user's rights wherever a config that names it is read.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel

from minbert_core.config import TrialConfig
from minbert_core.files import check_is_file, replaced, user_path
from minbert_core.settings import knobs
from minbert_core.settings.models import Settings, Variant

FOLDER = "plugins"  # in the folder of a search or of a saved model
DIGITS = 16  # of a sha256, as in a config's identity
LEVELS = 5  # folders above a config in which plugins/ is looked for: runs/NAME/test/retrained/003-seed0


@dataclass(frozen=True)
class Plugin:
    """A file that was run: its name, `@`, the start of its sha256; its content; and the classes that it defines."""

    entry: str
    source: bytes
    variants: tuple[type[Variant], ...]

    @property
    def name(self) -> str:
        return self.entry.partition("@")[0]


_loaded: dict[str, Plugin] = {}  # by entry
_joined: list[type[Variant]] = []  # the variants that are in the unions
_built_in: dict[tuple[type[BaseModel], str], Any] = {}  # (model, field) -> its annotation without plugins


def with_plugins(config: Mapping[str, Any], folders: Sequence[Path]) -> dict[str, Any]:
    """Let the plugins of a config, as plain values, join the families; return the config with their recorded entries.

    folders: where a file is looked for, in this order; then in their plugins/ folders and those above.
    Raises ValueError: no such file, one that was changed, one that cannot be run, or a class that fits no family.
    """
    entries = config.get("plugins")
    if not isinstance(entries, list | tuple) or not all(isinstance(entry, str) for entry in entries):
        return dict(config)  # absent, or a fault that validation reports
    return {**config, "plugins": [_join(_find(entry, folders)) for entry in entries]}


def write_copies(entries: Sequence[str], folder: Path) -> None:
    """Write the files of plugins that were loaded to `folder`/plugins.  Raises OSError."""
    for entry in entries:
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        with replaced(folder / FOLDER / _loaded[entry].name, many_writers=True, durable=True) as draft:
            draft.write_bytes(_loaded[entry].source)


def load_plugin(file: Path) -> Plugin:
    """Run a file, once per content, and return what it defines.  Raises ValueError; OSError."""
    check_is_file(file)
    source = file.read_bytes()
    entry = f"{file.name}@{_digest(source)}"
    if entry not in _loaded:
        _loaded[entry] = Plugin(entry, source, tuple(_variants(file, source)))
    return _loaded[entry]


# ------------------------------------------------------------------------------------------------------------- the file


def _digest(source: bytes) -> str:
    return hashlib.sha256(source).hexdigest()[:DIGITS]


def _find(entry: str, folders: Sequence[Path]) -> Plugin:
    name, _, digest = entry.partition("@")
    if entry in _loaded:
        return _loaded[entry]
    above = [parent for folder in folders for parent in [folder.absolute(), *folder.absolute().parents][:LEVELS]]
    places = [folder / user_path(name) for folder in folders] + [parent / FOLDER / Path(name).name for parent in above]
    files = [place for place in dict.fromkeys(places) if place.is_file()]
    if not files:
        where = ", ".join(dict.fromkeys(str(folder) for folder in folders))
        raise ValueError(f"`plugins` names {name}, but there is no such file in {where} or in a {FOLDER}/ folder above.")
    fitting = [file for file in files if not digest or _digest(file.read_bytes()) == digest]
    if not fitting:
        changed = f"{files[0]} has changed since it was recorded: its sha256 begins with {_digest(files[0].read_bytes())}"
        raise ValueError(f"`plugins`: {changed}, not with {digest}. Put the recorded file back, or start a new search.")
    return load_plugin(fitting[0])


def _variants(file: Path, source: bytes) -> Iterator[type[Variant]]:
    """Run a plugin and yield its variants.  Raises ValueError: it fails, has none, or one of no family or of a known kind."""
    module = types.ModuleType(f"minbert_plugin_{file.stem}_{_digest(source)}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # pydantic looks up annotations there
    try:
        exec(compile(source, str(file), "exec"), module.__dict__)
    except Exception as error:  # noqa: BLE001  the user's code may raise anything
        del sys.modules[module.__name__]
        lines = [step.tb_lineno for step in _steps(error) if step.tb_frame.f_code.co_filename == str(file)]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else 0)
        raise ValueError(f"{file}:{line}: the plugin cannot be run: {type(error).__name__}: {error}.") from None
    own = [item for item in vars(module).values() if inspect.isclass(item) and item.__module__ == module.__name__]
    found = [item for item in own if issubclass(item, Variant) and isinstance(item.model_fields["kind"].default, str)]
    if not found:
        law = "A variant is a class with a `kind`, which inherits from HeadVariant, LossVariant … or from a variant"
        raise ValueError(f"{file} defines no variant. {law}.")
    for variant in found:
        families = [members for members in _families() if _is_of(variant, members)]
        if not families:
            law = "Let it inherit from the base of a family, such as HeadVariant, or from one of its variants"
            raise ValueError(f"{file}: class {variant.__name__} belongs to no family. {law}.")
        kind = variant.model_fields["kind"].default
        if other := next((member for family in families for member in family if _kind(member) == kind), None):
            raise ValueError(
                f"{file}: the kind '{kind}' of class {variant.__name__} is that of {other.__name__}. Choose another."
            )
        yield variant


def _steps(error: BaseException) -> Iterator[types.TracebackType]:
    step = error.__traceback__
    while step is not None:
        yield step
        step = step.tb_next


# ---------------------------------------------------------------------------------------------------------- the families


def _kind(variant: type[BaseModel]) -> str:
    return str(variant.model_fields["kind"].default)


def _is_of(variant: type[BaseModel], members: Sequence[type[BaseModel]]) -> bool:
    """Return whether a class shares a base with the members of a union, beyond Variant itself."""
    bases = {base for member in members for base in member.__mro__ if issubclass(base, Variant) and base is not Variant}
    return bool(bases & {*variant.__mro__})


def _join(plugin: Plugin) -> str:
    """Put the variants of a plugin into the unions, in place of others of the same name; return its entry."""
    if not all(variant in _joined for variant in plugin.variants):
        names = {(variant.__name__, _kind(variant)) for variant in plugin.variants}
        _joined[:] = [variant for variant in _joined if (variant.__name__, _kind(variant)) not in names]
        _joined.extend(plugin.variants)
        _rebuild()
    return plugin.entry


def _rebuild() -> None:
    """Put the plugins' variants into the unions; build the models that hold these again, inner ones first."""
    changed: set[type[BaseModel]] = set()
    for model in _models(TrialConfig, []):
        for name, field in model.model_fields.items():
            wanted = _extended(_built_in.setdefault((model, name), field.annotation))
            if wanted != field.annotation:
                field.annotation = wanted
                changed.add(model)
        if model in changed or any(changed & {*knobs.models_in(field.annotation)} for field in model.model_fields.values()):
            changed.add(model)
            model.model_rebuild(force=True)
    knobs.forget_schemas()


def _models(model: type[BaseModel], met: list[type[BaseModel]]) -> list[type[BaseModel]]:
    """Add a model and all models in its fields to `met`, each after those in it; return `met`."""
    for field in model.model_fields.values():
        for inner in knobs.models_in(field.annotation):
            if inner not in met:
                _models(inner, met)
    met.append(model)
    return met


def _families() -> Iterator[list[type[BaseModel]]]:
    """Yield the members of each union of variants, without plugins."""
    for model in _models(TrialConfig, []):
        for name, field in model.model_fields.items():
            members = knobs.models_in(_built_in.get((model, name), field.annotation))
            if members and all(issubclass(member, Variant) for member in members):
                yield list(members)


def _extended(annotation: Any) -> Any:
    """Return an annotation with the plugins' variants in the unions of their families."""
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is None or origin is Literal:
        return annotation
    if origin is Annotated:
        return Annotated[(_extended(inside[0]), *inside[1:])]
    parts = tuple(_extended(part) for part in inside)
    if origin in (Union, types.UnionType):
        members = [part for part in inside if inspect.isclass(part) and issubclass(part, Settings)]
        return Union[(*parts, *(variant for variant in _joined if _is_of(variant, members)))]
    return origin[parts]
