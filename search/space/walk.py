"""Walks over a space's tree of maps, lists and domains: find the domains, replace them by values, read what a tree sets.

A path names a value as in a trial's config: `optimizer/lr`, `smoothness/smart/radius`, `stages/0/linear_probe/lr`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from minbert_core.settings.faults import Fault, Where, fault_at
from search.space.domains import DOMAINS, Choice, Domain, is_domain, misspelt_domain, parse_domain
from search.space.file import children

Choose = Callable[[str, Domain], Any]  # (parameter name, domain) -> a value of a range, a label of a choice
Guards = dict[str, Any]  # the branches that lead to a domain: parameter -> label


def resolve(node: Any, path: str, choose: Choose) -> Any:
    """Replace every domain in `node` by the value that `choose` picks. The domains must be sound (`Space.domains` checks)."""
    if is_domain(node):
        domain, faults = parse_domain(node, path)
        assert domain is not None, faults
        value = choose(path, domain)
        if not isinstance(domain, Choice):
            return value
        branch = domain.branch(value)
        return resolve(branch, _branch_path(path, value, branch), choose)
    if isinstance(node, dict):
        return {key: resolve(child, child_path, choose) for key, child, child_path in children(node, path)}
    if isinstance(node, list):
        resolved = {key: resolve(child, child_path, choose) for key, child, child_path in children(node, path)}
        return [resolved.get(i, item) for i, item in enumerate(node)]
    return node


def walk_domains(
    node: Any, path: str, guards: Guards, faults: list[Fault], where: Where
) -> Iterator[tuple[str, Domain, Guards]]:
    """Yield (path, domain, guards) of every domain in `node`, in all branches. Malformed domains are added to `faults`."""
    if not is_domain(node):
        faults += [fault_at(path, sentence, where) for sentence in misspelt_domain(node, path)]
        for _, child, child_path in children(node, path):
            yield from walk_domains(child, child_path, guards, faults, where)
        return
    domain, sentences = parse_domain(node, path)
    faults += [fault_at(path, sentence, where) for sentence in sentences]
    if domain is None:
        return
    yield path, domain, guards
    if isinstance(domain, Choice):
        for label, branch in zip(domain.labels, domain.branches, strict=True):
            yield from walk_domains(branch, _branch_path(path, label, branch), {**guards, path: label}, faults, where)


_MALFORMED = object()  # in place of a domain that cannot be parsed


def without_malformed(node: Any) -> Any:
    """Return `node` without its malformed domains, so that everything else can be checked, too."""
    kept = _well_formed(node)
    return {} if kept is _MALFORMED else kept


def _well_formed(node: Any) -> Any:
    if is_domain(node):
        domain, _ = parse_domain(node, "")
        if isinstance(domain, Choice):
            branches = [_well_formed(branch) for branch in node["choice"]]
            return _MALFORMED if _MALFORMED in branches else {"choice": branches}
        return node if domain else _MALFORMED
    if any(misspelt_domain(node, "")):
        return _MALFORMED
    if isinstance(node, dict):
        return {key: kept for key, child in node.items() if (kept := _well_formed(child)) is not _MALFORMED}
    if isinstance(node, list):
        return [kept for child in node if (kept := _well_formed(child)) is not _MALFORMED]
    return node


def _branch_path(path: str, label: Any, branch: Any) -> str:
    """Return the path of a branch of the choice at `path`.

    It is the path itself, unless the branch is a domain, which needs another name: `weight/log_uniform`.
    """
    return f"{path}/{label}" if is_domain(branch) else config_path(path)


def config_path(name: str) -> str:
    """Return the config path that a parameter sets: `weight` for `weight/log_uniform`, a range in a branch of a choice."""
    above, _, last = name.rpartition("/")
    return config_path(above) if last in DOMAINS else name


def with_kinds(top: Any, base: Any) -> Any:
    """Return `top` with the kinds of `base` added to its maps that have none."""
    if not isinstance(top, dict) or not isinstance(base, dict) or is_domain(top) or is_domain(base):
        return top
    if "kind" in top and top["kind"] != base.get("kind"):
        return top
    kind = {"kind": base["kind"]} if "kind" in base else {}
    return kind | {key: with_kinds(child, base.get(key)) for key, child in top.items()}


def nodes(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield (path, node) of everything written below `node`, without entering domains."""
    if is_domain(node):
        return
    if isinstance(node, list):  # including bare names, which `children` would treat as one value: `stages/0` is one of them
        below = [(f"{path}/{i}", item) for i, item in enumerate(node)]
    else:
        below = [(child_path, child) for key, child, child_path in children(node, path) if key != "kind"]
    for child_path, child in below:
        yield child_path, child
        yield from nodes(child, child_path)


def own_value(node: Any) -> Any:
    """Return what a node sets at its own path: its value, the kind of a variant, or None for another map."""
    return node.get("kind") if isinstance(node, dict) else node


def without_params(tree: Any, path: str, params: Mapping[str, Any]) -> Any:
    """Return a baseline's settings without those that choose from a domain; the rest is laid over the chosen point."""
    if not isinstance(tree, dict) or is_domain(tree):
        return tree
    return {
        key: without_params(child, child_path, params)
        for key, child, child_path in children(tree, path)
        if child_path not in params or isinstance(child, dict)
    }
