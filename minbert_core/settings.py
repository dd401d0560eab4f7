"""How settings are read: YAML 1.2 with line numbers, frozen models, and what a fault in them is.

Every value a user can write passes through here first. `read_yaml` types the scalars (`5e-6` is a number, `off` a word) and
remembers lines; `Settings` and `Variant` are the models that hold them; `Fault` is one thing wrong, said in a sentence.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

Location = tuple[str | int, ...]  # where a value stands in a document: keys and list indices
Lines = dict[Location, int]
NAME = re.compile(r"[a-z0-9_-]+")  # of a space, a branch, a search, a task: what a path, a folder and a command line can hold


@dataclass(frozen=True, order=True)
class Fault:
    """One thing wrong with what was written: `sentence` says what, the law, the value; `line` is 0 where unknown."""

    line: int
    sentence: str
    source: str = ""


class SettingsError(ValueError):
    """All faults of one document together; `str()` is one line a fault, `file:line: sentence`."""

    def __init__(self, faults: Iterable[Fault], source: str = "") -> None:
        self.faults = sorted(set(faults))
        super().__init__("\n".join(_render(fault, fault.source or source) for fault in self.faults))


def _render(fault: Fault, source: str) -> str:
    where = ":".join(str(part) for part in (source, fault.line) if part)
    return f"{where}: {fault.sentence}" if where else fault.sentence


class Settings(BaseModel):
    """A frozen group of knobs: unknown keys are errors, a boolean is no number and no name, nan and inf are no values."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_booleans(cls, document: object) -> object:
        if not isinstance(document, dict):
            return document
        return {key: bare(value) if _takes_bool(cls, key) else _no_number(value) for key, value in document.items()}


class _Boolean:
    """A true or false where a number or a name is meant: it passes as neither (Python's True would pass as 1)."""

    def __init__(self, value: bool) -> None:
        self.value = value

    def __repr__(self) -> str:
        return str(self.value).lower()


def _takes_bool(model: type[BaseModel], key: object) -> bool:
    known = model.model_fields.get(str(key))
    return known is not None and known.annotation is bool


def bare(value: object) -> object:
    """A value as it was written, where true and false are welcome."""
    return value.value if isinstance(value, _Boolean) else value


def _no_number(value: object) -> object:
    if isinstance(value, list):
        return [_no_number(item) for item in value]
    if isinstance(value, dict):
        return {key: _no_number(item) for key, item in value.items()}
    return _Boolean(value) if isinstance(value, bool) else value


class Variant(Settings):
    """One member of a family: its knobs, told apart by `kind`, which is its name in YAML."""

    kind: str


def _bare_name_to_map(value: object) -> object:
    if isinstance(value, dict) and "kind" not in value:
        raise PydanticCustomError("kind_missing", "no kind")  # else a family of one would take it, until a second joins
    return {"kind": value} if isinstance(value, str) else value


BARE_NAME = BeforeValidator(_bare_name_to_map)  # `gradient: pcgrad` means `gradient: {kind: pcgrad}`


# ---------------------------------------------------------------------------------------------------------------- YAML

_NULL = re.compile(r"^(~|null|Null|NULL|)$")
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"^[-+]?[0-9][0-9_]*$")
_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")  # YAML 1.2 core schema: 5e-6 is a float


def scalar(text: str) -> Any:
    """The value of a plain (unquoted) YAML 1.2 scalar: null, boolean, int, float, else the word itself."""
    if _NULL.match(text):
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.match(text):
        return int(text.replace("_", ""))
    if _FLOAT.match(text):
        return float(text.replace("_", ""))
    return text


def parse_yaml(text: str, source: str = "") -> tuple[Any, Lines]:
    """A YAML document as plain values, and the line of each.  Raises SettingsError: bad syntax, a key written twice."""
    try:
        root = yaml.compose(text, Loader=yaml.BaseLoader)  # which types no scalar: `scalar` does
    except yaml.YAMLError as error:
        raise SettingsError([_syntax_fault(error, text)], source) from None
    lines: Lines = {}
    faults: list[Fault] = []
    value = None if root is None else _construct(root, (), lines, faults, set())
    if faults:
        raise SettingsError(faults, source)
    return value, lines


def read_yaml(path: Path) -> tuple[Any, Lines]:
    """`parse_yaml` of a file.  Raises SettingsError, also where the file is missing or no text."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SettingsError([Fault(0, f"Cannot read {path}: {reason}.")]) from None
    return parse_yaml(text, str(path))


def _syntax_fault(error: yaml.YAMLError, text: str) -> Fault:
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return Fault(line, f"This is not YAML: the character {chr(error.character)!r} may not stand in it.")
    assert isinstance(error, yaml.MarkedYAMLError)
    line = error.problem_mark.line + 1 if error.problem_mark else 0
    if "document" in (error.context or ""):
        return Fault(line, "A file holds one document; a second one begins here (`---`).")
    written, marks = text.splitlines(), (error.context_mark, error.problem_mark)
    for number in [mark.line for mark in marks if mark is not None and mark.line < len(written)]:
        if hidden := invisible(written[number]):
            return Fault(number + 1, f"This is not YAML: {error.problem}. The line {hidden}")
    return Fault(line, f"This is not YAML: {error.problem}.")


def _construct(node: yaml.Node, location: Location, lines: Lines, faults: list[Fault], open_nodes: set[int]) -> Any:
    lines[location] = node.start_mark.line + 1
    if id(node) in open_nodes:
        faults.append(Fault(lines[location], "A value contains itself (an anchor inside its own alias)."))
        return None
    if node.tag not in _TAGS:
        faults.append(Fault(lines[location], f"The tag {node.tag} is not supported."))
    open_nodes = open_nodes | {id(node)}
    if isinstance(node, yaml.SequenceNode):
        return [_construct(child, (*location, i), lines, faults, open_nodes) for i, child in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        result: dict[Any, Any] = {}
        for key_node, child in node.value:
            key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else ""
            if not key or key == "<<":
                faults.append(Fault(key_node.start_mark.line + 1, f"A key must be a plain name. Got '{key}'."))
            elif hidden := invisible(key):
                seen = "".join(filter(str.isprintable, key))
                faults.append(Fault(key_node.start_mark.line + 1, f"The key '{seen}' {hidden}"))
            elif key in result:
                line = key_node.start_mark.line + 1
                faults.append(Fault(line, f"`{key}` is written twice; it stands in line {lines[(*location, key)]} already."))
            else:
                result[key] = _construct(child, (*location, key), lines, faults, open_nodes)
                lines[(*location, key)] = key_node.start_mark.line + 1
        return result
    assert isinstance(node, yaml.ScalarNode)
    return scalar(node.value) if node.style is None else node.value


_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "seq", "map")}  # what BaseLoader gives where none is written


class _Dumper(yaml.SafeDumper):
    """Writes floats so that YAML 1.1 readers, too, take them for floats, and lists of scalars on one line."""


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
    text = repr(value)
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


def _represent_list(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.Node:
    flat = all(not isinstance(item, dict | list) for item in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=flat)


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    style = "'" if scalar(value) != value else None  # `1e5` is text to YAML 1.1, which would leave it bare
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(float, _represent_float)
_Dumper.add_representer(list, _represent_list)


def dump_yaml(value: Any) -> str:
    """`value` (maps, lists, scalars) as YAML that `parse_yaml` reads back to the same."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


# --------------------------------------------------------------------------------------------------- words for a sentence


def shown(value: Any) -> str:
    """A value in a sentence, as YAML has it: null, true, [1, 2], {kind: sum}; text in quotes; the end of a long one is cut."""
    text = _shown(value)
    return text if len(text) <= 100 else text[:99] + "…"


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_shown(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: `; did you mean 'x'? Known: a, x.`"""
    names = sorted(known)
    near = difflib.get_close_matches(str(word), names, n=1, cutoff=0.6)
    known = f" Known: {', '.join(names)}." if names else ""
    return (f"; did you mean '{near[0]}'?" if near else ".") + of_invisible(word) + known


def invisible(text: str) -> str:
    """Name the first character of a text that cannot be seen, as the end of a sentence; return "" if all can be."""
    for i, character in enumerate(text):
        if not character.isprintable():
            name = "TAB" if character == "\t" else unicodedata.name(character, "control character")
            where = f"after '{text[max(0, i - 20) : i]}'" if i else "at its start"
            return f"holds an invisible character (U+{ord(character):04X} {name}) {where}. Type it again."
    return ""


def of_invisible(value: object) -> str:
    """Return a sentence about the invisible character in a text just shown; empty if there is none, or it is not a text."""
    hidden = invisible(value) if isinstance(value, str) else ""
    return f" It {hidden}" if hidden else ""
