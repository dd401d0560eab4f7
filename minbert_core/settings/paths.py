"""Settings as plain values, and plain values by path; YAML overrides, Optuna, MLflow and Parquet use the same paths.

    Settings -> as_written -> plain values -> flatten -> {path: value} -> unflatten -> plain values      lay_over: merge two

A path names the kind of each variant it passes through (`gradient/gradvac/beta`) and numbers the entries of a list
(`stages/0/linear_probe/lr`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from minbert_core.settings.models import Settings, Variant


def as_written(value: Any) -> Any:
    """Convert a model to plain values: the fields that were set and each variant's kind, without defaults."""
    if isinstance(value, Settings):
        named = value.model_fields_set | ({"kind"} if isinstance(value, Variant) else set())
        return {name: as_written(getattr(value, name)) for name in type(value).model_fields if name in named}
    if isinstance(value, dict):
        return {key: as_written(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_written(item) for item in value]
    return value


def flatten(node: Any, path: str = "") -> dict[str, Any]:
    """Convert plain values to {path: leaf}. A variant's path maps to its kind, its knobs are below. A scalar list is a leaf."""
    if isinstance(node, dict):
        flat: dict[str, Any] = {}
        if "kind" in node:
            flat[path] = node["kind"]
            path = f"{path}/{node['kind']}"
        for key, child in node.items():
            if key != "kind":
                flat |= flatten(child, f"{path}/{key}" if path else str(key))
        return flat
    if isinstance(node, list) and any(isinstance(item, dict) for item in node):
        flat = {}
        for i, item in enumerate(node):
            flat |= flatten(item, f"{path}/{i}")
        return flat
    return {path: node}


def unflatten(flat: Mapping[str, Any]) -> Any:
    """Invert `flatten`, except that variants without knobs become bare names."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        node, parts, prefix = tree, path.split("/"), ""
        for i, part in enumerate(parts):
            prefix = f"{prefix}/{part}" if prefix else part
            is_kind = i > 0 and flat.get(prefix.rpartition("/")[0]) == part
            if is_kind:  # `gradient/gradvac`: gradvac is the kind of the map `gradient`
                node["kind"] = part
            elif i == len(parts) - 1:
                if not isinstance(node.get(part), dict):
                    node[part] = value
            else:
                if not isinstance(node.get(part), dict):
                    node[part] = {}
                node = node[part]
    return _lists(tree)


def _lists(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    items = {key: _lists(child) for key, child in node.items()}
    if items and all(key.isdigit() for key in items):
        return [items[key] for key in sorted(items, key=int)]
    return items


def lay_over(base: Any, top: Any, replaces: Callable[[Any], bool] = lambda value: False) -> Any:
    """Lay `top` over `base`: maps are merged; lists, scalars and maps of another kind replace `base`.

    A bare name is a map of that kind, so over a map of the same kind it changes nothing. A map whose keys are the numbers of
    list entries changes those entries; a path into a list (`stages/0/linear_probe/lr`) gives such a map.
    replaces: returns True for further values that replace or are replaced as a whole.
    """
    if replaces(base) or replaces(top):
        return top
    if isinstance(base, list) and isinstance(top, dict) and top and set(top) <= {str(i) for i in range(len(base))}:
        return [lay_over(item, top[str(i)], replaces) if str(i) in top else item for i, item in enumerate(base)]
    if not isinstance(top, dict):
        if isinstance(top, str) and isinstance(base, dict) and base.get("kind") == top:
            return base
        return top
    if isinstance(base, str) and base == top.get("kind"):
        base = {"kind": base}
    if not isinstance(base, dict) or base.get("kind", top.get("kind")) != top.get("kind", base.get("kind")):
        return top
    return {**base, **{key: lay_over(base[key], child, replaces) if key in base else child for key, child in top.items()}}
