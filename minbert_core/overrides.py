"""`--set PATH=VALUE`: set one value of a document before it is validated, and remember that --set wrote it.

    "optimizer/lr=2e-5" -> parse_set -> Override.put(document)      note_set: faults at that path name the --set

Configs and search spaces share this code. A space also has domains: a path can lead into several branches of a choice.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from minbert_core.config import TrialConfig, default_at
from minbert_core.settings.faults import Fault, SettingsError
from minbert_core.settings.knobs import Knob, knob_at
from minbert_core.settings.paths import as_written
from minbert_core.settings.yaml import parse_yaml
from minbert_core.words import did_you_mean, invisible, shown

Sources = dict[str, tuple[str, int]]  # path -> (file or --set, line)


def parse_set(text: str) -> tuple[list[str], Any, str]:
    """Parse `optimizer/lr=2e-5` into the path's parts, the value (read as YAML) and the source that faults name.

    Raises SettingsError: no path, no `=`, an invisible character, invalid YAML.
    """
    source = f"--set {text}"
    written, equals, value_text = text.partition("=")
    parts = [part for part in written.strip().replace(".", "/").split("/") if part]
    if not equals or not parts:
        raise SettingsError([Fault(0, f"--set takes path=value, as in --set optimizer/lr=2e-5. Got '{text}'.")])
    if hidden := invisible(written.strip(" ")):
        raise SettingsError([Fault(0, f"The path {hidden}", source)])
    return parts, parse_yaml(value_text, source)[0], source


def note_set(where: Sources, path: str, source: str) -> None:
    """Record `source` as the source of `path` and of all paths below it, and of the paths above it that have no source yet."""
    for below in [known for known in where if known.startswith(f"{path}/")]:
        del where[below]
    where[path] = (source, 0)
    while path := path.rpartition("/")[0]:
        where.setdefault(path, (source, 0))


def _no_branches(node: Any) -> list[Any] | None:
    return None


@dataclass(frozen=True)
class Override:
    """A value to put at a path of a document. `model` describes the document; messages call it `what`.

    branches: returns the maps and names among a domain's values, which a path can lead into; None if a value is not a domain.
    """

    value: Any
    source: str
    model: type[BaseModel] = TrialConfig
    what: str = "the config"
    branches: Callable[[Any], list[Any] | None] = _no_branches

    def put(self, node: dict[str, Any] | list[Any], parts: list[str], above: str = "") -> None:
        """Put the value at `parts` below `node`, in place. `above` is the path of `node`.  Raises SettingsError."""
        path, rest = f"{above}/{parts[0]}" if above else parts[0], parts[1:]
        key = self._key(node, parts[0], path)
        if not rest:
            node[key] = self.value
            return
        child = node[key] if isinstance(node, list) else node.get(key)
        knob = knob_at(self.model, path)
        if knob and knob.kinds:
            holders = self._of_kind(node, key, rest[0], path, knob)
            if len(rest) == 1:
                remedy = f"To choose it, write {path}={rest[0]}. To set a knob, write {path}/{rest[0]}/KNOB=…."
                raise self._fault(f"`{path}/{rest[0]}` is a kind, not a knob. {remedy}")
            for holder in holders:
                self.put(holder, rest[1:], f"{path}/{rest[0]}")
            return
        if child is None:
            default = as_written(knob.default) if knob else None
            child = node[key] = default if isinstance(default, list) else {}
        elif self.model is TrialConfig and path == "encoder" and isinstance(child, str):
            child = node[key] = {"checkpoint": child}
        elif not isinstance(child, dict | list) or self.branches(child) is not None:
            value = shown(child) if self.branches(child) is None else "a domain"
            raise self._fault(f"`{path}` is {value}, which has no `{'/'.join(rest)}`. Set all of it: {path}=….")
        self.put(child, rest, path)

    def _key(self, node: dict[str, Any] | list[Any], part: str, path: str) -> Any:
        if isinstance(node, dict):
            return part
        if not part.isdecimal() or int(part) >= len(node):
            raise self._fault(f"`{path}` does not exist: {self.what} has {len(node)} entries there, numbered from 0.")
        return int(part)

    def _of_kind(self, node: Any, key: Any, kind: str, path: str, knob: Knob) -> list[dict[str, Any]]:
        """Return the maps of `kind` at `node[key]`: the value, its branches, or the default.  Raises SettingsError."""
        if kind not in knob.kinds:
            raise self._fault(f"Unknown kind '{kind}' in `{path}/{kind}`{did_you_mean(kind, knob.kinds)}")
        child = node[key] if isinstance(node, list) else node.get(key)
        inherits = re.match("tasks/(?!all/)", path)  # from tasks/all
        if child is None and not inherits and kind == (_kind(as_written(knob.default)) or default_at(path)):
            child = node[key] = {"kind": kind}
        holder, slots = node, [key]
        if (branches := self.branches(child)) is not None:
            holder = branches
            slots = [slot for slot, branch in enumerate(branches) if _kind(branch) == kind]
        elif _kind(child) != kind:
            slots = []
        if not slots:
            raise self._fault(f"`{path}/{kind}`: {self.what} does not use '{kind}' there. Choose it first: {path}={kind}.")
        for slot in slots:
            if isinstance(holder[slot], str):
                holder[slot] = {"kind": kind}
        return [holder[slot] for slot in slots]

    def _fault(self, sentence: str) -> SettingsError:
        return SettingsError([Fault(0, sentence, self.source)])


def _kind(value: Any) -> Any:
    return value.get("kind") if isinstance(value, dict) else value
