"""A space's file: its own keys, the space that it extends, the settings of `--set`, and the line of each path.

    YAML -> read_document (extends, --set) -> document, where -> structure_faults -> space.py

`where` holds the line of a path of the config (`optimizer/lr`), of a setting laid over the config, with its place first
(`together/step/surgery/gradient`, `baselines/0/gradient`), and of the space's own keys (`sampler/tpe/startup`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, PositiveInt, ValidationInfo, field_validator

from minbert_core.config import ObjectiveSetting, TrialConfig
from minbert_core.config_checks import plugin_folders
from minbert_core.files import user_path
from minbert_core.overrides import Override, Sources, note_set, parse_set
from minbert_core.plugins import with_plugins
from minbert_core.settings.faults import Fault, Location, SettingsError, Where, fault_at
from minbert_core.settings.knobs import elsewhere, knob_at
from minbert_core.settings.models import NAME, Settings
from minbert_core.settings.paths import lay_over
from minbert_core.settings.yaml import Lines, dump_yaml, parse_yaml, read_yaml
from minbert_core.words import did_you_mean, shown
from search.methods.asha import Asha
from search.methods.samplers import SamplerSetting, Tpe
from search.methods.trial_schedulers import TrialSchedulerSetting
from search.space.domains import is_domain, parse_domain


class SpaceSettings(Settings):
    """The keys of a space in addition to its config."""

    about: str = Field("", description="the question that the search asks")
    objective: ObjectiveSetting = Field("norm", description="the score to maximise: norm, mean, one task, or weights")
    trials: PositiveInt = Field(
        32, description="configurations to try, including baselines; a grid tries all its combinations unless fewer are given"
    )
    sampler: SamplerSetting = Tpe()
    trial_scheduler: TrialSchedulerSetting = Asha()
    rungs: tuple[PositiveInt, ...] = Field(  # after the scheduler, which decides what they may be
        (1, 3, 9),
        min_length=1,
        description="points of the budget, in parts of the last one, where a trial is evaluated and may be stopped",
    )

    @field_validator("rungs")
    @classmethod
    def _suit_the_scheduler(cls, rungs: tuple[int, ...], others: ValidationInfo) -> tuple[int, ...]:
        if any(b <= a for a, b in itertools.pairwise(rungs)):
            raise ValueError(f"must ascend, as [1, 3, 9] does. Got {shown(rungs)}.")
        scheduler = others.data.get("trial_scheduler")  # None if it is invalid itself
        ratio = rungs[1] / rungs[0] if len(rungs) > 1 else 2
        is_geometric = ratio == int(ratio) and all(b == a * ratio for a, b in itertools.pairwise(rungs))
        if scheduler and scheduler.is_geometric and not is_geometric:
            law = "must grow by one whole factor of 2 or more, as [1, 3, 9] does"
            raise ValueError(f"{law}. Got {shown(rungs)}. Only trial_scheduler: none and freeze_thaw take others.")
        if rungs[-1] > 81:
            raise ValueError(f"must end at 81 parts or fewer. Got {rungs[-1]}.")
        if scheduler and len(rungs) < scheduler.least_rungs:
            law = f"must be {scheduler.least_rungs} or more for trial_scheduler {scheduler.kind}"
            raise ValueError(f"{law}: one to choose at and one to continue to. Got {shown(rungs)}.")
        return rungs


STRUCTURE = {"extends": "a file name", "config": "a map", "together": "a map", "baselines": "a list of maps"}
SPACE_KEYS = (*SpaceSettings.model_fields, *STRUCTURE)
DESCRIBING = ("about", "published")  # keys of a branch of `together` for readers and replicate.py; they set nothing
PUBLISHED_SPLITS = ("dev", "test")


# ------------------------------------------------------------------------------------------------------------ reading


def read_document(source: Path | dict[str, Any], sets: Iterable[str] = ()) -> tuple[dict[str, Any], Sources]:
    """Return a space's document, laid over the one it extends and under `--set`, and the line of each path.

    source: its file, or the space itself as plain values, whose `extends` is then relative to the working directory.
    Raises SettingsError.
    """
    document, where = _read_extended(source, ()) if isinstance(source, Path) else _extend(_plain(source), {}, Path("space"), ())
    for text in sets:
        _apply_set(document, text, where)
    if isinstance(config := document.get("config"), dict):
        try:
            document["config"] = with_plugins(config, plugin_folders(where))
        except ValueError as error:
            raise SettingsError([fault_at("plugins", str(error), where)]) from None
    return document, where


def _plain(space: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a space as YAML reads them. Raises SettingsError: not a map, or a value that YAML cannot hold."""
    try:
        document, _ = parse_yaml(dump_yaml(space))
    except yaml.representer.RepresenterError as error:
        law = "A space may only hold values that YAML has: maps, lists, strings, numbers, true, false, null"
        raise SettingsError([Fault(0, f"{law}. Got {shown(error.args[-1])}.")]) from None
    return _as_map(document, "", 0)


def _as_map(document: Any, source: str, line: int) -> dict[str, Any]:
    if not isinstance(document, dict):
        sentence = f"A space must be a map with keys such as `config` and `trials`. Got {shown(document)}."
        raise SettingsError([Fault(line, sentence, source)])
    return document


def _read_extended(path: Path, seen: tuple[Path, ...]) -> tuple[dict[str, Any], Sources]:
    content, lines = read_yaml(path)
    document = _as_map(content, str(path), 1)
    return _extend(document, {key: (str(path), line) for key, line in space_lines(document, lines).items()}, path, seen)


def _extend(document: dict[str, Any], where: Sources, path: Path, seen: tuple[Path, ...]) -> tuple[dict[str, Any], Sources]:
    """Return the document from `path`, laid over the one that it extends. `seen` are the files that lead to it."""
    if "extends" not in document:
        return document, where
    parent, seen = document.pop("extends"), (*seen, path.resolve())
    base_path = path.parent / user_path(parent) if isinstance(parent, str) else path
    fault = ""
    if not isinstance(parent, str):
        fault = f"`extends` takes a file name. Got {shown(parent)}."
    elif base_path.resolve() in seen:
        fault = f"`extends` forms a cycle: {' -> '.join(step.name for step in (*seen, base_path))}."
    elif not base_path.is_file():
        fault = f"`extends` names '{parent}', but there is no file {base_path}."
    if fault:
        raise SettingsError([fault_at("extends", fault, where)])
    base, base_where = _read_extended(base_path, seen)
    return dict(lay_over(base, document, is_domain)), {**base_where, **where}


def space_lines(document: dict[str, Any], lines: Lines) -> dict[str, int]:
    """Return the line of each path, under the names that `where` uses."""
    found: dict[str, int] = {}

    def visit(node: Any, location: Location, path: str) -> None:
        found.setdefault(path, lines.get(location, 0))
        if is_domain(node):
            branches = node.get("choice")
            for i, branch in enumerate(branches if isinstance(branches, list) else ()):
                visit(branch, (*location, "choice", i), path)
        for key, child, below in () if is_domain(node) else children(node, path):
            visit(child, (*location, key), below)

    for key, child in document.items():
        visit(child, (key,), "" if key == "config" else key)
    together = document.get("together")
    for name, branches in together.items() if isinstance(together, dict) else ():
        for i, branch in enumerate(branches if isinstance(branches, list) else ()):
            if isinstance(branch, dict) and "name" in branch:
                found[f"together/{name}/{branch['name']}"] = lines[("together", name, i)]
                visit(branch.get("set"), ("together", name, i, "set"), f"together/{name}/{branch['name']}")
    return found | {"config": lines.get(("config",), 0)}


def where_under(where: Where, place: str) -> Where:
    """Return `where` with the lines of what `place`, a baseline or a branch of `together`, sets laid over the config's."""
    start = f"{place}/"
    return {**where, **{path.removeprefix(start): at for path, at in where.items() if path.startswith(start)}}


def children(node: Any, path: str) -> Iterator[tuple[Any, Any, str]]:
    """Yield (key, child, path of the child) of a map or a list that holds maps. A variant's knobs are below its kind."""
    if isinstance(node, dict):
        kind = node.get("kind")
        prefix = f"{path}/{kind}" if isinstance(kind, str) else path
        for key, child in node.items():
            below = str(key).replace(".", "/")  # a whole path, in a baseline or a `set`
            yield key, child, f"{prefix}/{below}" if prefix else below
    elif isinstance(node, list) and any(isinstance(item, dict) for item in node):
        yield from ((i, child, f"{path}/{i}") for i, child in enumerate(node))


def nested(tree: Any, path: str = "") -> Any:
    """Return a map whose keys may be paths (`tasks/sts/loss`, `smoothness/smart/radius`, or with dots) as nested maps."""
    if not isinstance(tree, dict) or is_domain(tree):
        return tree
    knob, kind = knob_at(TrialConfig, path), tree.get("kind")
    inside = f"{path}/{kind}" if isinstance(kind, str) else path
    result: dict[str, Any] = {}
    for key, value in tree.items():
        first, _, rest = str(key).replace(".", "/").partition("/")
        child = {rest: value} if rest else value
        if knob and first in knob.kinds and isinstance(child, dict):
            entry = {"kind": first, **nested(child, f"{path}/{first}")}
        else:
            entry = {first: nested(child, f"{inside}/{first}" if inside else first)}
        result = lay_over(result, entry, is_domain)
    return result


# -------------------------------------------------------------------------------------------------------------- --set


def _apply_set(document: dict[str, Any], text: str, where: Sources) -> None:
    """Set `path=value` in a space's document, in place. The value may be a domain. Raises SettingsError."""
    parts, value, source = parse_set(text)
    if parts[0] == "extends":
        raise SettingsError([Fault(0, "`extends` cannot be changed by --set. Change it in the space's file.", source)])
    if parts[0] not in SPACE_KEYS:
        if parts[0] not in TrialConfig.model_fields:
            known = {*SPACE_KEYS, *TrialConfig.model_fields}
            there = elsewhere(TrialConfig, parts[0])
            raise SettingsError([Fault(0, f"Unknown key `{parts[0]}`{did_you_mean(parts[0], known)}{there}", source)])
        parts = ["config", *parts]
    note_set(where, "/".join(parts).removeprefix("config/"), source)
    override = partial(Override, value, source, what="the space", branches=_branches)
    config = {} if document.get("config") is None else document["config"]
    if parts[0] == "config" and len(parts) > 1 and isinstance(config, dict):
        document["config"] = config
        override(TrialConfig).put(config, parts[1:])
    else:
        override(SpaceSettings).put(document, parts)


def _branches(node: Any) -> list[Any] | None:
    """Return the branches of a choice, an empty list for a range, and None for a value that is not a domain."""
    if not is_domain(node):
        return None
    branches = node.get("choice")
    return branches if isinstance(branches, list) else []


# ---------------------------------------------------------------------------------------------------------- structure


def structure_faults(document: dict[str, Any], where: Where) -> Iterator[Fault]:
    """Yield the faults of a document's structure. A document without them is safe to walk."""
    shaped = True
    for key, kind in (("config", dict), ("together", dict), ("baselines", list)):
        if not isinstance(document.get(key, kind()), kind):
            shaped = False
            yield fault_at(key, f"`{key}` must be {STRUCTURE[key]}. Got {shown(document[key])}.", where)
    if not shaped:
        return
    for name, branches in document.get("together", {}).items():
        yield from _together_faults(f"together/{name}", name, branches, where)
    for i, baseline in enumerate(document.get("baselines", [])):
        if not isinstance(baseline, dict):
            yield fault_at(f"baselines/{i}", f"`baselines/{i}` must be a map of settings. Got {shown(baseline)}.", where)
    yield from _budget_faults(document, where)


def _together_faults(path: str, name: str, branches: Any, where: Where) -> Iterator[Fault]:
    if not NAME.fullmatch(name):
        yield fault_at(path, f"`{path}`: names may contain a-z, 0-9, _ and -.", where)
    if not isinstance(branches, list) or not all(_is_branch(branch) for branch in branches):
        yield fault_at(path, f"`{path}` takes a list of {{name: …, set: {{path: value}}}}. Got {shown(branches)}.", where)
        return
    for branch in branches:
        yield from _description_faults(f"{path}/{branch['name']}", branch, where)
    _, sentences = parse_domain({"choice": [{"name": branch["name"]} for branch in branches]}, path)
    yield from (fault_at(path, sentence, where) for sentence in sentences)


def _is_branch(branch: Any) -> bool:
    return isinstance(branch, dict) and "name" in branch and not set(branch) - {"name", "set", *DESCRIBING} and (
        isinstance(branch.get("set", {}), dict) and not is_domain(branch.get("set"))
    )  # fmt: skip


def _description_faults(path: str, branch: dict[str, Any], where: Where) -> Iterator[Fault]:
    """Yield the faults of a branch's `about` and `published`, the figures that a paper reports for it.

    A figure must be a possible value of a metric. checks.py checks the names of the tasks.
    """
    if not isinstance(branch.get("about", ""), str):
        yield fault_at(path, f"`{path}/about` must be a sentence. Got {shown(branch['about'])}.", where)
    published = branch.get("published", {})
    if not isinstance(published, dict) or not all(isinstance(figures, dict) for figures in published.values()):
        yield fault_at(path, f"`{path}/published` takes {{dev: {{task: figure}}, test: …}}. Got {shown(published)}.", where)
        return
    for split, figures in published.items():
        if split not in PUBLISHED_SPLITS:
            known = did_you_mean(split, PUBLISHED_SPLITS)
            yield fault_at(path, f"Unknown split `{path}/published/{split}`{known}", where)
        for name, figure in figures.items():
            if isinstance(figure, bool) or not isinstance(figure, int | float) or not -1 <= figure <= 1:
                law = "must be a number in [-1, 1], as our metrics are"
                yield fault_at(path, f"`{path}/published/{split}/{name}` {law}. Got {shown(figure)}.", where)


def _budget_faults(document: dict[str, Any], where: Where) -> Iterator[Fault]:
    """Yield a fault wherever a config sets what all trials share: the objective, the points, and the unit of the budget."""
    config = document.get("config", {})
    laid = {f"baselines/{i}": baseline for i, baseline in enumerate(document.get("baselines", []))}
    for name, branches in document.get("together", {}).items():
        for branch in branches if isinstance(branches, list) else []:
            if isinstance(branch, dict):
                laid[f"together/{name}/{branch.get('name')}"] = branch.get("set")
    trees = {"": config, **{place: nested(tree) for place, tree in laid.items() if isinstance(tree, dict)}}
    is_varied = any("task_schedule" in tree if place else is_domain(tree.get("task_schedule")) for place, tree in trees.items())
    for place, tree in trees.items():
        here = where_under(where, place) if place else where
        inside = f" (in `{place}`)" if place else ""
        budget = tree.get("budget")
        if "objective" in tree:
            yield fault_at("objective", f"`objective` is a key of the space, not of its `config`{inside}.", here)
        if tree.get("rows", "train") != "train":
            law = "is for `python -m minbert_core.train` alone: a search needs the dev rows to choose by"
            yield fault_at("rows", f"`rows` {law}{inside}. Omit it.", here)
        if isinstance(budget, dict) and "points" in budget:
            yield fault_at("budget/points", f"`budget/points` follows from the space's `rungs`; set those{inside}.", here)
        if isinstance(budget, dict) and "epochs" in budget and is_varied:
            law = "is a different amount of training under each task_schedule, and this space varies it"
            yield fault_at("budget/epochs", f"`budget/epochs` {law}{inside}. Use examples.", here)
