"""A search space: a trial's config in which any value may be a domain, read from YAML and checked whole before anything starts.

    YAML (+ extends, --set) -> read_space -> Space -> sample(choose) -> (params, TrialConfig)

`choose(name, domain)` is the only thing that differs between Optuna, a baseline and the check of all branches and ends.
"""

from __future__ import annotations

import itertools
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, PositiveInt, ValidationError, field_validator

from minbert_core.config import TASK_DEFAULTS, Objective, TaskSettings, TrialConfig, flatten, lay_over, load_config
from minbert_core.settings import (
    BARE_NAME,
    Fault,
    Lines,
    Location,
    Settings,
    SettingsError,
    Variant,
    Where,
    did_you_mean,
    fault_at,
    faults_of,
    parse_yaml,
    read_yaml,
)
from search.domains import NAME, Choice, Domain, is_domain, parse_domain

Choose = Callable[[str, Domain], Any]


class Tpe(Variant):
    """Tree-structured Parzen estimator, Bergstra et al. 2011, as Optuna has it (multivariate, constant liar)."""

    kind: Literal["tpe"] = "tpe"
    startup: PositiveInt = Field(8, description="random trials before the model is trusted")


class Asha(Variant):
    """Asynchronous successive halving, Li et al. 2018 (arXiv 1810.05934), stopping variant, rungs kept a recipe."""

    kind: Literal["asha"] = "asha"


class SpaceSettings(Settings):
    """What a space says beside its config."""

    about: str = Field("", description="the question that the search asks")
    objective: str | Objective = Field("norm", description="norm, mean, one task, or weights: what is maximised")
    trials: PositiveInt = Field(32, description="configurations to try, baselines included")
    rungs: tuple[PositiveInt, ...] = Field((1, 3, 9), min_length=1, description="parts of the budget where a trial is evaluated and may be stopped")
    sampler: Annotated[Tpe, BARE_NAME] = Tpe()
    trial_scheduler: Annotated[Asha, BARE_NAME] = Asha()

    @field_validator("rungs")
    @classmethod
    def _geometric(cls, rungs: tuple[int, ...]) -> tuple[int, ...]:
        ratio = rungs[1] / rungs[0] if len(rungs) > 1 else 0
        if any(b != a * ratio for a, b in itertools.pairwise(rungs)) or (ratio and (ratio < 2 or ratio != int(ratio))):
            raise ValueError(f"must grow by one whole factor of 2 or more, as [1, 3, 9] does. Got {list(rungs)}.")
        if rungs[-1] > 81:
            raise ValueError(f"must end at 81 parts or fewer. Got {rungs[-1]}.")
        return rungs

    @property
    def reduction(self) -> int:
        """One in so many trials goes on from rung to rung."""
        return self.rungs[1] // self.rungs[0] if len(self.rungs) > 1 else 1


STRUCTURE = ("extends", "baselines", "config", "together")  # a space's keys that are not in SpaceSettings
SPACE_KEYS = (*SpaceSettings.model_fields, *STRUCTURE)


@dataclass(frozen=True)
class Sample:
    """One point of a space: the searched parameters under their paths, and the config they make."""

    params: dict[str, Any]
    document: dict[str, Any]  # the config as written, before validation
    where: Where

    def config(self) -> TrialConfig:
        return load_config(self.document, self.where)


@dataclass(frozen=True)
class Space:
    """A space as read: merged, parsed, not yet checked (`check` does, and so `read_space`)."""

    name: str
    settings: SpaceSettings
    document: dict[str, Any]  # all of it, plain, as runs/NAME/space.yaml keeps it
    where: dict[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def tree(self) -> dict[str, Any]:
        """The config with its domains, and what the space's own keys add to each trial."""
        own: dict[str, Any] = {"objective": self.document["objective"]} if "objective" in self.document else {}
        budget = {"budget": {"points": list(self.settings.rungs)}}
        return dict(lay_over(lay_over(self.document.get("config") or {}, own, is_domain), budget, is_domain))

    @property
    def together(self) -> dict[str, Choice]:
        return {name: Choice(tuple(b["name"] for b in branches), tuple(b.get("set") for b in branches))
                for name, branches in (self.document.get("together") or {}).items()}  # fmt: skip

    @property
    def baselines(self) -> list[dict[str, Any]]:
        return list(self.document.get("baselines") or [])

    def sample(self, choose: Choose, over: Any = None) -> Sample:
        """The point that `choose(parameter name, domain)` picks; `over` (a baseline) is laid over the result."""
        params: dict[str, Any] = {}

        def remember(name: str, domain: Domain) -> Any:
            params[name] = choose(name, domain)
            return params[name]

        tree: Any = self.tree
        for name, choice in self.together.items():
            tree = lay_over(tree, nested(choice.branch(remember(f"together/{name}", choice)) or {}), is_domain)
        document = _resolve(tree, "", remember)
        if over:
            document = lay_over(document, over)
        return Sample(params, document, self.where)

    def domains(self) -> dict[str, tuple[Domain, dict[str, Any]]]:
        """Every parameter: its domain, and which branches must be taken to meet it.  Raises SettingsError: one path, two domains."""
        found: dict[str, tuple[Domain, dict[str, Any]]] = {}
        faults: list[Fault] = []
        in_config = dict(_walk(self.tree, "", {}, faults, self.where))
        found |= in_config
        for name, choice in self.together.items():
            key = f"together/{name}"
            found[key] = (choice, {})
            for label in choice.labels:
                for path, (domain, guards) in _walk(nested(choice.branch(label) or {}), "", {key: label}, faults, self.where):
                    if path in in_config:
                        faults.append(fault_at(path, f"`{path}` is a domain in `config` and in `{key}`; it may be one in one place.", self.where))
                    elif path in found and found[path][0] != domain:
                        faults.append(fault_at(path, f"`{path}` has two domains, {found[path][0]} and {domain}; it may have one.", self.where))
                    else:
                        found.setdefault(path, (domain, guards))
        if faults:
            raise SettingsError(faults)
        return found

    def check(self) -> None:
        """Raise SettingsError with every fault of baselines, of every pair of branches and of both ends of every range."""
        faults: set[Fault] = set()
        for forced in _cover(self.domains()):
            try:
                self.sample(lambda name, domain, forced=forced: forced.get(name, _default(name, domain))).config()  # type: ignore[misc]
            except SettingsError as error:
                faults |= set(error.faults)
        for i in range(len(self.baselines)):
            try:
                self.baseline(i).config()
            except SettingsError as error:
                faults |= set(error.faults)
        if faults:
            raise SettingsError(faults)

    def baseline(self, index: int) -> Sample:
        """Baseline `index` as a point: what it does not name takes the default if that lies in the domain, else the middle.

        Raises SettingsError where a value lies outside its domain.
        """
        over = nested(self.baselines[index])
        named = flatten(over)
        together = {name: over_choice for name, over_choice in (over.get("together") or {}).items()} if isinstance(over, dict) else {}
        over = {key: value for key, value in over.items() if key != "together"}
        outside: list[str] = []

        def choose(name: str, domain: Domain) -> Any:
            value = named.get(name, _MISSING)
            if value is _MISSING:
                return _default(name, domain)
            if not domain.contains(value):
                outside.append(f"`baselines/{index}`: `{name}` {value!r} lies outside its domain, {domain}.")
                return _default(name, domain)
            return domain.label_of(value) if isinstance(domain, Choice) else value

        first: list[str] = []
        for labels in itertools.product(*(choice.labels for choice in self.together.values())):
            wanted = {f"together/{name}": label for name, label in zip(self.together, labels, strict=True)}
            if any(wanted.get(f"together/{name}") != label for name, label in together.items()):
                continue
            outside.clear()
            sample = self.sample(lambda name, domain, w=wanted: w.get(name, _MISSING) if name in w else choose(name, domain), over)  # type: ignore[misc]
            if not outside:
                return sample
            first = first or list(outside)
        sentences = first or [f"`baselines/{index}/together` names no branch of the space. Got {together}."]
        raise SettingsError([fault_at(f"baselines/{index}", sentence, self.where) for sentence in sentences])


_MISSING = object()


# ------------------------------------------------------------------------------------------------------------ walking


def _children(node: Any, path: str) -> Iterator[tuple[Any, Any, str]]:
    """(key, child, the child's path) of a map, or of a list that holds maps; a variant's knobs stand below its kind."""
    if isinstance(node, dict):
        kind = node.get("kind")
        prefix = f"{path}/{kind}" if isinstance(kind, str) else path
        yield from ((key, child, f"{prefix}/{key}" if prefix else str(key)) for key, child in node.items())
    elif isinstance(node, list) and any(isinstance(item, dict) for item in node):
        yield from ((i, child, f"{path}/{i}") for i, child in enumerate(node))


def _resolve(node: Any, path: str, choose: Choose) -> Any:
    """`node` with every domain replaced by what `choose` picks. Domains are known to be sound here (`domains` checks them)."""
    if is_domain(node):
        domain, faults = parse_domain(node, path)
        assert domain is not None, faults
        chosen = choose(path, domain)
        if not isinstance(domain, Choice):
            return chosen
        branch = domain.branch(chosen)
        return _resolve(branch, f"{path}/{chosen}" if is_domain(branch) else path, choose)
    if isinstance(node, dict):
        return {key: _resolve(child, below, choose) for key, child, below in _children(node, path)}
    if isinstance(node, list):
        below = {key: _resolve(child, at, choose) for key, child, at in _children(node, path)}
        return [below.get(i, item) for i, item in enumerate(node)]
    return node


def _walk(node: Any, path: str, guards: dict[str, Any], faults: list[Fault], where: Where) -> Iterator[tuple[str, tuple[Domain, dict[str, Any]]]]:
    """Every domain in `node`, all branches entered, as (path, (domain, the branches that lead to it))."""
    if not is_domain(node):
        seen: dict[str, Domain] = {}
        for _, child, below in _children(node, path):
            for name, found in _walk(child, below, guards, faults, where):
                seen[name] = found[0]
                yield name, found
        return
    domain, sentences = parse_domain(node, path)
    faults += [fault_at(path, sentence, where) for sentence in sentences]
    if domain is None:
        return
    yield path, (domain, guards)
    if isinstance(domain, Choice):
        inside: dict[str, Domain] = {}
        for label, branch in zip(domain.labels, domain.branches, strict=True):
            below = f"{path}/{label}" if is_domain(branch) else path
            for name, found in _walk(branch, below, {**guards, path: label}, faults, where):
                if inside.setdefault(name, found[0]) != found[0]:
                    faults.append(fault_at(name, f"`{name}` has two domains, {inside[name]} and {found[0]}; it may have one.", where))
                yield name, found


def _cover(domains: Mapping[str, tuple[Domain, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Forced values that between them meet every pair of branches and both ends of every range, with the branches above them."""
    singles = [{**guards, name: value} for name, (domain, guards) in domains.items() for value in domain.values()]
    branches = [{**guards, name: label} for name, (domain, guards) in domains.items() if isinstance(domain, Choice) for label in domain.labels]
    yield {}
    yield from singles
    for first, second in itertools.combinations(branches, 2):
        if all(second.get(name, value) == value for name, value in first.items()):
            yield {**first, **second}


def _default(name: str, domain: Domain) -> Any:
    return domain.middle(field_default(name))


def field_default(path: str) -> Any:
    """The default of the knob at a config path (`optimizer/lr`, `gradient/gradvac/beta`); a variant's is its kind; None if it has none."""
    model: type[BaseModel] | None = TrialConfig
    default: Any = None
    parts = path.split("/")
    i = 0
    while i < len(parts) and model is not None:
        known = model.model_fields.get(parts[i])
        if known is None:
            return None
        default = TASK_DEFAULTS.get(parts[i]) if model is TaskSettings else known.get_default(call_default_factory=True)
        models = _models_in(known.rebuild_annotation())
        i += 1
        if parts[i - 1] in ("tasks", "stages"):
            i += 1  # a task's name, or a stage's number
            default = None
        kinds = {m.model_fields["kind"].default: m for m in models if "kind" in m.model_fields}
        if i < len(parts) and kinds:
            model = kinds.get(parts[i])
            i += 1
        else:
            model = models[0] if models else None
    return getattr(default, "kind", default)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in typing.get_args(annotation) for model in _models_in(argument)]


# ------------------------------------------------------------------------------------------------------------ reading


def read_space(path: Path, sets: Iterable[str] = ()) -> Space:
    """The space in a YAML file with `--set` overrides applied, checked whole.  Raises SettingsError with file and line."""
    document, where = _read_extended(path, ())
    for text in sets:
        _apply_set(document, text, where)
    return make_space(path.stem, document, where)


def make_space(name: str, document: dict[str, Any], where: dict[str, tuple[str, int]] | None = None) -> Space:
    """A checked Space from plain values, as `read_space` and a resumed search use it.  Raises SettingsError."""
    where = where or {}
    if not NAME.fullmatch(name):
        raise SettingsError([Fault(0, f"A space's name is its file's, made of a-z, 0-9, _ and -. Got '{name}'.")])
    faults = [fault_at(key, f"Unknown key `{key}` in a space{did_you_mean(key, SPACE_KEYS)}", where) for key in document if key not in SPACE_KEYS]
    for key, kind, what in (("config", dict, "a map"), ("together", dict, "a map"), ("baselines", list, "a list of maps")):
        if not isinstance(document.get(key) or kind(), kind):
            faults.append(fault_at(key, f"`{key}` must be {what}. Got {document[key]!r}.", where))
    if not faults:
        faults += _structure_faults(document, where)
    own = {key: value for key, value in document.items() if key in SpaceSettings.model_fields}
    try:
        settings = SpaceSettings.model_validate(own)
    except ValidationError as error:
        raise SettingsError([*faults, *faults_of(error, SpaceSettings, own, where)]) from None
    if faults:
        raise SettingsError(faults)
    space = Space(name, settings, document, where)
    space.check()
    return space


def _structure_faults(document: dict[str, Any], where: Where) -> Iterator[Fault]:
    config = document.get("config") or {}
    if "objective" in config:
        yield fault_at("objective", "`objective` is a key of the space, not of its `config`.", where)
    if isinstance(config.get("budget"), dict) and "points" in config["budget"]:
        yield fault_at("budget/points", "`budget/points` follows from the space's `rungs`; set those.", where)
    if isinstance(config.get("budget"), dict) and "epochs" in config["budget"]:
        varied = is_domain(config.get("task_schedule")) or any(
            "task_schedule" in nested(branch.get("set") or {}) for branches in (document.get("together") or {}).values()
            for branch in (branches if isinstance(branches, list) else []) if isinstance(branch, dict)
        )  # fmt: skip
        if varied:
            yield fault_at("budget/epochs", "`budget/epochs` means something else for each task_schedule, which this space varies. Use examples.", where)
    for i, baseline in enumerate(document.get("baselines") or []):
        if not isinstance(baseline, dict):
            yield fault_at(f"baselines/{i}", f"`baselines/{i}` must be a map of settings. Got {baseline!r}.", where)
    for name, branches in (document.get("together") or {}).items():
        path = f"together/{name}"
        if not NAME.fullmatch(name):
            yield fault_at(path, f"`{path}`: names are made of a-z, 0-9, _ and -.", where)
        if not isinstance(branches, list) or any(not isinstance(b, dict) or set(b) - {"name", "set"} or "name" not in b for b in branches):
            yield fault_at(path, f"`{path}` takes a list of {{name: …, set: {{path: value}}}}. Got {branches!r}.", where)
            continue
        _, sentences = parse_domain({"choice": [{"name": b["name"]} for b in branches]}, path)
        yield from (fault_at(path, sentence, where) for sentence in sentences)


def _read_extended(path: Path, seen: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, tuple[str, int]]]:
    """A space's document laid over the one it extends, and the source and line of each path."""
    if path.resolve() in seen:
        raise SettingsError([Fault(0, f"{path} extends itself.")])
    document, lines = read_yaml(path)
    if not isinstance(document, dict):
        raise SettingsError([Fault(1, f"A space is a map with `config` and what else it says. Got {document!r}.", str(path))])
    where = {key: (str(path), line) for key, line in space_lines(document, lines).items()}
    parent = document.pop("extends", None)
    if parent is None:
        return document, where
    if not isinstance(parent, str):
        raise SettingsError([Fault(lines.get(("extends",), 0), f"`extends` takes a file name. Got {parent!r}.", str(path))])
    base, base_where = _read_extended(path.parent / parent, (*seen, path.resolve()))
    return dict(lay_over(base, document, is_domain)), {**base_where, **where}


def space_lines(document: Any, lines: Lines) -> dict[str, int]:
    """The line of each path: paths inside `config` and `together/*/set` start there, as everywhere."""
    found: dict[str, int] = {}

    def visit(node: Any, location: Location, path: str) -> None:
        found.setdefault(path, lines.get(location, 0))
        if is_domain(node):
            choice = node.get("choice")
            for i, branch in enumerate(choice if isinstance(choice, list) else []):
                visit(branch, (*location, "choice", i), path)
            return
        for key, child, below in _children(node, path):
            visit(child, (*location, key), below)

    for key, child in (document.items() if isinstance(document, dict) else ()):
        found[key] = lines.get((key,), 0)
        if key == "config":
            visit(child, ("config",), "")
        elif key == "together" and isinstance(child, dict):
            for name, branches in child.items():
                found[f"together/{name}"] = lines.get(("together", name), 0)
                for i, branch in enumerate(branches if isinstance(branches, list) else []):
                    if isinstance(branch, dict):
                        visit(nested(branch.get("set") or {}), ("together", name, i, "set"), "")
        elif key == "baselines" and isinstance(child, list):
            found |= {f"baselines/{i}": lines.get((key, i), 0) for i in range(len(child))}
    found.pop("", None)
    return found


def nested(tree: Any) -> Any:
    """A map whose keys may be whole paths (`tasks/sts/loss`, or with dots) as nested maps."""
    if not isinstance(tree, dict) or is_domain(tree):
        return tree
    result: dict[str, Any] = {}
    for key, value in tree.items():
        parts = str(key).replace(".", "/").split("/")
        value = nested(value) if len(parts) == 1 else value
        for part in reversed(parts[1:]):
            value = {part: value}
        result[parts[0]] = lay_over(result[parts[0]], value, is_domain) if parts[0] in result else value
    return result


def _apply_set(document: dict[str, Any], text: str, where: dict[str, tuple[str, int]]) -> None:
    """`path=value` laid over a space's document; the value is YAML, and may be a domain."""
    path, equals, value_text = text.partition("=")
    parts = [part for part in path.strip().replace(".", "/").split("/") if part]
    if not equals or not parts:
        raise SettingsError([Fault(0, f"--set takes path=value, as in --set optimizer/lr=2e-5. Got '{text}'.")])
    value, _ = parse_yaml(value_text, f"--set {text}")
    if parts[0] not in SPACE_KEYS:
        parts = ["config", *parts]
    where["/".join(parts[1:] if parts[0] == "config" else parts)] = (f"--set {text}", 0)
    _set_at(document, parts, value, f"--set {text}")


def _set_at(node: Any, parts: list[str], value: Any, source: str, done: str = "") -> None:
    key, rest = parts[0], parts[1:]
    path = f"{done}/{key}" if done else key
    if isinstance(node, list):
        if not key.isdigit() or int(key) >= len(node):
            raise SettingsError([Fault(0, f"`{path}`: the space has {len(node)} entries there, numbered from 0.", source)])
    if not rest:
        if isinstance(node, list):
            node[int(key)] = value
        else:
            node[key] = value
        return
    child = node[int(key)] if isinstance(node, list) else node.get(key)
    in_config = path.startswith("config/")
    kinds = _kinds_at(path.removeprefix("config/"), TrialConfig if in_config else SpaceSettings)
    if kinds:
        child = _of_kind(node, key, child, rest, kinds, path, source)
        if len(rest) == 1:
            raise SettingsError([Fault(0, f"`{path}`: to choose a kind write {key}={rest[0]}; `{path}/{rest[0]}/…` sets one of its knobs.", source)])
        _set_at(child, rest[1:], value, source, f"{path}/{rest[0]}")
        return
    if not isinstance(child, dict | list) or is_domain(child):
        if child is not None and not isinstance(child, dict):
            child = {"checkpoint": child} if path == "config/encoder" else {}
        child = {} if child is None or is_domain(child) else child
        node[key if isinstance(node, dict) else int(key)] = child
    _set_at(child, rest, value, source, path)


def _of_kind(node: Any, key: Any, child: Any, rest: list[str], kinds: set[str], path: str, source: str) -> dict[str, Any]:
    """The map of kind rest[0] at `node[key]`, a branch of a choice or the value itself.  Raises SettingsError if the space has none."""
    kind = rest[0]
    where = path.removeprefix("config/")
    if kind not in kinds:
        raise SettingsError([Fault(0, f"Unknown kind '{kind}' in `{where}/{kind}`{did_you_mean(kind, kinds)}", source)])
    holder, at = node, int(key) if isinstance(node, list) else key
    if is_domain(child) and isinstance(child.get("choice"), list):
        holder = child["choice"]
        at = next((i for i, b in enumerate(holder) if (b.get("kind") if isinstance(b, dict) else b) == kind), -1)
        child = holder[at] if at != -1 else None
    if isinstance(child, str) and child == kind:
        child = holder[at] = {"kind": kind}
    if not isinstance(child, dict) or child.get("kind") != kind:
        raise SettingsError([Fault(0, f"`{where}/{kind}`: the space holds no {kind} there; choose it first with {where}={kind}.", source)])
    return child


def _kinds_at(path: str, model: type[BaseModel] | None = TrialConfig) -> set[str]:
    """The kinds a value at a path of `model` may have; empty where it is no variant."""
    parts = path.split("/")
    kinds: dict[str, type[BaseModel]] = {}
    i = 0
    while i < len(parts):
        if model is None or (known := model.model_fields.get(parts[i])) is None:
            return set()
        models = _models_in(known.rebuild_annotation())
        i += 1
        if parts[i - 1] in ("tasks", "stages"):
            if i == len(parts):
                return set()
            i += 1
        kinds = {m.model_fields["kind"].default: m for m in models if "kind" in m.model_fields}
        if i < len(parts) and kinds:
            model = kinds.get(parts[i])
            i += 1
            kinds = {}
        else:
            model = models[0] if models else None
    return set(kinds)
