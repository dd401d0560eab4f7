"""YAML 1.2 with line numbers: `5e-6` is a number, `off` is a word, and each value's line is recorded.

The size, the depth and the number of values are bounded, so that any text is read or refused within seconds.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from minbert_core.files import check_is_file
from minbert_core.settings.faults import Fault, Location, SettingsError
from minbert_core.words import invisible, shown

Lines = dict[Location, int]
MAX_CHARACTERS = 200_000  # of a document; our longest space has 6,000
MAX_DEPTH = 40  # lists and maps inside each other; a config has at most ten
MAX_VALUES = 5_000  # with those that aliases repeat
MAX_DIGITS = 30  # of a whole number: what it counts is computed as a float, too
TOO_DEEP = f"Lists and maps must be inside each other at most {MAX_DEPTH} deep."
TOO_MANY = f"A document must have at most {MAX_VALUES:,} values."
_NULL = re.compile(r"^(~|null|Null|NULL|)$")
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"^[-+]?[0-9][0-9_]*$")
_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")  # YAML 1.2 core schema: 5e-6 is a float


def scalar(text: str) -> Any:
    """Return the value of a plain (unquoted) YAML 1.2 scalar: null, a boolean, an int, a float, or else the word itself."""
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
    """Parse a YAML document into plain values and the line of each.

    Raises SettingsError: bad syntax, a repeated key, too many characters or values, too deep.
    """
    if len(text) > MAX_CHARACTERS:
        raise SettingsError([Fault(0, f"A document must have at most {MAX_CHARACTERS:,} characters.")], source)
    lines: Lines = {}
    faults: list[Fault] = []
    try:
        root = yaml.compose(text, Loader=_Loader)
        value = None if root is None else _construct(root, (), lines, faults, set())
    except yaml.YAMLError as error:
        raise SettingsError([_syntax_fault(error, text)], source) from None
    except (ValueError, OverflowError) as error:  # the number of a character that does not exist, "\UFFFFFFFF"
        raise SettingsError([Fault(0, f"This is not YAML: {error}.")], source) from None
    except _TooMuchError as error:
        raise SettingsError([Fault(error.line, error.law)], source) from None
    if faults:
        raise SettingsError(faults, source)
    return value, lines


def read_yaml(path: Path) -> tuple[Any, Lines]:
    """Parse a YAML file as `parse_yaml` does.  Raises SettingsError, also if the file is missing or not UTF-8 text."""
    try:
        check_is_file(path)
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SettingsError([Fault(0, f"Cannot read {path}: {reason}.")]) from None
    except ValueError as error:  # a pipe or a device
        raise SettingsError([Fault(0, str(error))]) from None
    return parse_yaml(text, str(path))


class _TooMuchError(Exception):
    """More than a document may have, from `line` on."""

    def __init__(self, law: str, line: int) -> None:
        self.law, self.line = law, line


class _Loader(yaml.BaseLoader):
    """A loader that leaves all scalars as text, for `scalar`, and refuses what would exhaust Python's stack."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.num_nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.num_nodes += 1
        if self.depth > MAX_DEPTH or self.num_nodes > 2 * MAX_VALUES + 1:  # keys are nodes, too
            raise _TooMuchError(TOO_DEEP if self.depth > MAX_DEPTH else TOO_MANY, self.line + 1)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _syntax_fault(error: yaml.YAMLError, text: str) -> Fault:
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return Fault(line, f"This is not YAML: it must not contain the character {chr(error.character)!r}.")
    assert isinstance(error, yaml.MarkedYAMLError)
    line = error.problem_mark.line + 1 if error.problem_mark else 0
    if "document" in (error.context or ""):
        return Fault(line, "A file must hold one document. A second one begins here (`---`).")
    written, marks = text.splitlines(), (error.context_mark, error.problem_mark)
    for number in [mark.line for mark in marks if mark is not None and mark.line < len(written)]:
        if hidden := invisible(written[number]):
            return Fault(number + 1, f"This is not YAML: {error.problem}. The line {hidden}")
    return Fault(line, f"This is not YAML: {error.problem}.")


def _construct(node: yaml.Node, location: Location, lines: Lines, faults: list[Fault], open_nodes: set[int]) -> Any:
    lines[location] = node.start_mark.line + 1
    if len(lines) > MAX_VALUES:
        raise _TooMuchError(TOO_MANY, lines[location])
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
                faults.append(Fault(line, f"`{key}` is written twice. The first is in line {lines[(*location, key)]}."))
            else:
                result[key] = _construct(child, (*location, key), lines, faults, open_nodes)
                lines[(*location, key)] = key_node.start_mark.line + 1
        return result
    assert isinstance(node, yaml.ScalarNode)
    value, fault = _scalar(node)
    if fault:
        faults.append(Fault(lines[location], fault))
    return value


def _scalar(node: yaml.ScalarNode) -> tuple[Any, str]:
    """Return the value of a scalar and a sentence if there is a fault in it, else ""."""
    text = node.value
    if not text.isascii():
        try:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16")  # JSON writes an emoji as two halves
        except UnicodeDecodeError:
            return "", "A text must not have half a character (a lone surrogate). Write the character itself."
    if node.style is not None:
        return text, ""
    if _INT.match(text) and len(text) > MAX_DIGITS:
        return 0, f"A whole number must have at most {MAX_DIGITS} digits. Got {shown(text)}."
    return scalar(text), ""


_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "seq", "map")}  # the tags that BaseLoader gives to untagged nodes


class _Dumper(yaml.SafeDumper):
    """A dumper that writes floats so that YAML 1.1 readers accept them as floats, and lists of scalars on one line."""


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
    text = repr(value)
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


def _represent_list(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.Node:
    flat = all(not isinstance(item, dict | list) for item in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=flat)


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    style = "'" if scalar(value) != value else None  # for the text `1e5`, which YAML 1.1 would write without quotes
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(float, _represent_float)
_Dumper.add_representer(list, _represent_list)


def dump_yaml(value: Any) -> str:
    """Write `value` (maps, lists, scalars) as YAML that `parse_yaml` reads back unchanged."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text
