"""A search space: a trial's config in which any value may be a domain, checked whole before anything starts.

    YAML -> space_file.py -> document -> make_space -> Space -> sample(choose) -> (params, TrialConfig)

`choose(name, domain)` is the only thing that differs between Optuna, a baseline and the check of all branches and ends.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from minbert_core.config import OVERALL, TrialConfig, default_at
from minbert_core.config_checks import load_config
from minbert_core.data.tasks import TASKS
from minbert_core.overrides import Sources
from minbert_core.settings.faults import Fault, SettingsError, Where, fault_at, faults_of
from minbert_core.settings.knobs import elsewhere
from minbert_core.settings.models import NAME
from minbert_core.settings.paths import lay_over
from minbert_core.words import did_you_mean, shown
from search.methods.trial_schedulers import rung_faults
from search.space.domains import DOMAINS, Choice, Domain, Range, is_domain, misspelt_domain, parse_domain
from search.space.file import SPACE_KEYS, SpaceSettings, children, nested, read_document, structure_faults, where_under

Choose = Callable[[str, Domain], Any]
Guards = dict[str, Any]  # the branches that lead to a domain: parameter -> label
FIXED = ("data", "own_tasks")  # what the data is, the same for all trials
MOST_COMBINATIONS = 1000  # of a grid: each is checked before anything starts, a few milliseconds each


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
    where: Sources = field(default_factory=dict)
    encoders: Mapping[str, str] = field(default_factory=dict)  # a checkpoint as written -> its folder, where it was fetched

    @property
    def tree(self) -> dict[str, Any]:
        """The config with its domains, as written."""
        return dict(self.document.get("config", {}))

    @property
    def together(self) -> dict[str, Choice]:
        """The choices that set several paths; a branch is what it sets, a map over the config."""
        return {
            name: Choice(tuple(b["name"] for b in branches), tuple(self._over_config(b.get("set", {})) for b in branches))
            for name, branches in self.document.get("together", {}).items()
        }

    @property
    def baselines(self) -> list[dict[str, Any]]:
        return list(self.document.get("baselines", []))

    @property
    def num_trials(self) -> int:
        """How many it asks for: what `trials` says, else its default; of a grid, else all combinations."""
        if self.settings.sampler.is_exhaustive and "trials" not in self.document:
            return len(self.combinations())
        return self.settings.trials

    def combinations(self) -> list[dict[str, Any]]:
        """Every combination of the choices, parameter -> label, in the order in which they are written.

        A parameter inside a branch is met in that branch alone. Of ranges both ends are taken.
        """
        found: list[dict[str, Any]] = []

        def enter(forced: dict[str, Any]) -> None:
            free: list[tuple[str, Domain]] = []

            def choose(name: str, domain: Domain) -> Any:
                if name not in forced:
                    free.append((name, domain))
                return forced.get(name, domain.values()[0])

            self.sample(choose)
            if not free:
                found.append(forced)
                return
            name, domain = free[0]
            for value in domain.values():
                enter({**forced, name: value})

        enter({})
        return found

    def _over_config(self, tree: dict[str, Any]) -> dict[str, Any]:
        """What is laid over the config, nested, each map with the kind that it has by then: a path names it."""
        return dict(_with_kinds(nested(tree), self.tree))

    def sample(self, choose: Choose) -> Sample:
        """The point that `choose(parameter name, domain)` picks."""
        params: dict[str, Any] = {}

        def remember(name: str, domain: Domain) -> Any:
            params[name] = choose(name, domain)
            return params[name]

        tree: Any = self.tree
        where: Where = self.where
        for name, choice in self.together.items():
            label = remember(f"together/{name}", choice)
            tree = lay_over(tree, choice.branch(label), is_domain)
            where = where_under(where, f"together/{name}/{label}")
        return Sample(params, self._complete(_resolve(tree, "", remember)), where)

    def _complete(self, document: dict[str, Any]) -> dict[str, Any]:
        """A trial's document with what the space adds to it: the objective, the rungs as points of the budget, the folder of
        the encoder that it names."""
        own: dict[str, Any] = {"objective": self.document["objective"]} if "objective" in self.document else {}
        budget = document.get("budget", {})
        if isinstance(budget, dict):  # what else it is, is a fault to be told
            own["budget"] = {**budget, "points": list(self.settings.rungs)}
        if self.encoders:
            written = document.get("encoder", {})
            encoder = written if isinstance(written, dict) else {"checkpoint": written}
            name = encoder.get("checkpoint", default_at("encoder/checkpoint"))
            own["encoder"] = {**encoder, "checkpoint": self.encoders.get(name, name)}
        return {**document, **own}

    def domains(self) -> dict[str, tuple[Domain, Guards]]:
        """Every parameter: its domain, and the branches leading to it.  Raises SettingsError: a bad domain, two at one path."""
        found: dict[str, tuple[Domain, Guards]] = {}
        places: dict[str, str] = {}
        faults: list[Fault] = []
        for place, path, domain, guards in self._all_domains(faults):
            known, known_place = found.setdefault(path, (domain, guards))[0], places.setdefault(path, place)
            where = where_under(self.where, place)
            if place != known_place == "config":
                both = f"in `config` and in `{place.rpartition('/')[0]}`"
                faults.append(fault_at(path, f"`{path}` is a domain {both}; it may be one in one place.", where))
            elif known != domain:
                faults.append(fault_at(path, f"`{path}` has two domains, {known} and {domain}; it may have one.", where))
            if path.partition("/")[0] in FIXED:
                law = (
                    "says what the data is, the same for all trials, or their scores could not be compared; it holds no domain"
                )
                faults.append(fault_at(path, f"`{path}` {law}. `train_on` may choose between tasks.", where))
        if faults:
            raise SettingsError(faults)
        return found

    def _all_domains(self, faults: list[Fault]) -> Iterator[tuple[str, str, Domain, Guards]]:
        """(where it is written, path, domain, guards) of each domain in the config, then in each branch of `together`."""
        for path, domain, guards in _walk(self.tree, "", {}, faults, self.where):
            yield "config", path, domain, guards
        for name, choice in self.together.items():
            key = f"together/{name}"
            yield key, key, choice, {}
            for label in choice.labels:
                where = where_under(self.where, f"{key}/{label}")
                for path, domain, guards in _walk(choice.branch(label), "", {key: label}, faults, where):
                    yield f"{key}/{label}", path, domain, guards

    def check(self) -> None:
        """Raise SettingsError with every fault of baselines, of every pair of branches and of both ends of every range.

        Of a grid every combination is looked at.
        """
        domains = self.domains()
        if faults := {*self._grid_faults(domains), *self._published_faults()}:
            raise SettingsError(faults)
        forced_points = self.combinations() if self.settings.sampler.is_exhaustive else cover(domains)
        points: list[Callable[[], Sample]] = [partial(self.sample, forcing(forced)) for forced in forced_points]
        points += [partial(self.baseline, i) for i in range(len(self.baselines))]
        ranges = [(name, domain, guards) for name, (domain, guards) in domains.items() if isinstance(domain, Range)]
        inside = [partial(self.sample, forcing({**guards, name: domain.fraction})) for name, domain, guards in ranges]
        # where an end is wrong, what lies inside may be so for that
        if faults := self._faults_at(points) or self._faults_at(inside):
            raise SettingsError(faults)

    def _faults_at(self, points: Iterable[Callable[[], Sample]]) -> set[Fault]:
        """Collect the faults of the points' configs, and those of rungs that do not suit them."""
        faults: set[Fault] = set()
        for point in points:
            try:
                sample = point()
                config = sample.config()
            except SettingsError as error:
                faults |= set(error.faults)
                continue
            if self.settings.trial_scheduler.stops:
                found = rung_faults(config, self.settings.rungs)
                faults |= {fault_at(path, sentence, sample.where) for path, sentence in found}
        return faults

    def _grid_faults(self, domains: Mapping[str, tuple[Domain, Guards]]) -> Iterator[Fault]:
        """Where a sampler that takes every combination cannot."""
        sampler = self.settings.sampler
        if not sampler.is_exhaustive:
            return
        for name, (domain, _) in domains.items():
            if isinstance(domain, Range):
                law = f"`sampler` {sampler.kind} takes every combination, and {domain} has no end of values"
                yield fault_at(name, f"`{name}`: {law}. Write the ones that you want: choice: [{domain.low:g}, …].", self.where)
        if self.baselines:
            law = "takes every combination, and a baseline is one of them, or lies outside"
            yield fault_at("baselines", f"`sampler` {sampler.kind} {law}. Leave `baselines` away.", self.where)
        most = math.prod(len(domain.values()) for domain, _ in domains.values())
        if most > MOST_COMBINATIONS and (count := len(self.combinations())) > MOST_COMBINATIONS:
            law = f"takes {count:,} combinations of this space, and {MOST_COMBINATIONS:,} at most"
            yield fault_at("sampler", f"`sampler` {sampler.kind} {law}. Use random.", self.where)
        elif "trials" in self.document and self.settings.trials > (count := len(self.combinations())):
            law = f"has {count} combinations to try"
            yield fault_at("trials", f"`trials` {self.settings.trials}: the grid {law}. Leave `trials` away.", self.where)

    def _published_faults(self) -> Iterator[Fault]:
        """Figures of what is neither a task nor an overall score."""
        known = (*TASKS, *self.tree.get("own_tasks", {}), *OVERALL)
        for name, branches in self.document.get("together", {}).items():
            for branch in branches:
                place = f"together/{name}/{branch['name']}"
                for split, figures in branch.get("published", {}).items():
                    for column in (column for column in figures if column not in known):
                        sentence = f"Unknown task or score `{place}/published/{split}/{column}`{did_you_mean(column, known)}"
                        yield fault_at(place, sentence, self.where)

    def baseline(self, index: int) -> Sample:
        """Baseline `index` as a point: what it does not name takes the default if that lies in the domain, else the middle.

        Raises SettingsError where a value lies outside its domain, or a branch of `together` sets another.
        """
        over = self._over_config(self.baselines[index])
        place = f"baselines/{index}"
        where = where_under(self.where, place)
        chosen = over.pop("together", {})
        if unknown := list(self._unknown_branches(chosen, place)):
            raise SettingsError([fault_at(f"{place}/together", sentence, self.where) for sentence in unknown])
        values = dict(_nodes(over, ""))
        first: list[Fault] = []
        names = {name: [chosen[name]] if name in chosen else choice.labels for name, choice in self.together.items()}
        for labels in itertools.product(*names.values()):
            branches = dict(zip(names, labels, strict=True))
            faults = [*self._contradictions(branches, values, place, where)]
            sample = self.sample(_naming(branches, values, place, where, faults))
            if not faults:
                document = self._complete(lay_over(sample.document, _constants(over, "", sample.params)))
                return Sample(sample.params, document, where_under(sample.where, place))
            first = first or faults
        raise SettingsError(first)

    def _unknown_branches(self, chosen: Any, place: str) -> Iterator[str]:
        if not isinstance(chosen, dict):
            yield f"`{place}/together` must be a map of names to branches. Got {shown(chosen)}."
            return
        for name, label in chosen.items():
            if name not in self.together:
                yield f"`{place}`: unknown `together/{name}`{did_you_mean(name, self.together)}"
            elif label not in self.together[name].labels:
                known = map(str, self.together[name].labels)
                yield f"`{place}`: unknown branch {shown(label)} of `together/{name}`{did_you_mean(str(label), known)}"

    def _contradictions(
        self, branches: Mapping[str, Any], values: Mapping[str, Any], place: str, where: Where
    ) -> Iterator[Fault]:
        """Where a baseline names a constant otherwise than the branch of `together` does that would be chosen for it."""
        for name, label in branches.items():
            for path, node in _nodes(self.together[name].branch(label), ""):
                enters = isinstance(node, list) and isinstance(values.get(path), dict)  # a path into a list: `stages/0/…`
                if path in values and not enters and not is_domain(node) and _said(node) != _said(values[path]):
                    sets = f"the branch {label} of `together/{name}` sets {shown(_said(node))}"
                    yield fault_at(path, f"`{place}`: `{path}` is {shown(_said(values[path]))}, but {sets}.", where)


# ------------------------------------------------------------------------------------------------------------ choosing


def forcing(forced: Mapping[str, Any]) -> Choose:
    """Choose these values at these parameters, the default elsewhere."""
    return lambda name, domain: forced[name] if name in forced else default_choice(name, domain)


def _naming(branches: Mapping[str, Any], values: Mapping[str, Any], place: str, where: Where, faults: list[Fault]) -> Choose:
    """Choose what a baseline names: `branches` of `together`, `values` at paths; the default elsewhere."""

    def choose(name: str, domain: Domain) -> Any:
        if name.startswith("together/"):
            return branches[name.removeprefix("together/")]
        above = _without_domains(name)
        if above not in values:
            return default_choice(name, domain)
        value = values[above]
        if domain.contains(value):
            return domain.label_of(value) if isinstance(domain, Choice) else value
        if above == name:  # else a branch was named by its label, and what lies in it is left open
            faults.append(fault_at(name, f"`{place}`: `{name}` {shown(value)} lies outside its domain, {domain}.", where))
        return default_choice(name, domain)

    return choose


def default_choice(name: str, domain: Domain) -> Any:
    """The config's default at a parameter's path if it lies in the domain, else the middle or first branch; never a draw."""
    return domain.middle(default_at(_without_domains(name)))


def _without_domains(name: str) -> str:
    """The config path of a parameter: `weight/log_uniform`, a range that is a branch of a choice, is a value of `weight`."""
    above, _, last = name.rpartition("/")
    return _without_domains(above) if last in DOMAINS else name


def cover(domains: Mapping[str, tuple[Domain, Guards]]) -> Iterator[dict[str, Any]]:
    """Forced values that between them meet every pair of branches and both ends of every range, with what leads to them."""
    branches: list[dict[str, Any]] = []
    yield {}
    for name, (domain, guards) in domains.items():
        met = [{**guards, name: value} for value in domain.values()]
        branches += met if isinstance(domain, Choice) else []
        yield from met
    for first, second in itertools.combinations(branches, 2):
        if all(second.get(name, value) == value for name, value in first.items()):
            yield {**first, **second}


# ------------------------------------------------------------------------------------------------------------- walking


def _resolve(node: Any, path: str, choose: Choose) -> Any:
    """`node` with every domain replaced by what `choose` picks. Domains are known to be sound here (`domains` checks them)."""
    if is_domain(node):
        domain, faults = parse_domain(node, path)
        assert domain is not None, faults
        chosen = choose(path, domain)
        if not isinstance(domain, Choice):
            return chosen
        branch = domain.branch(chosen)
        return _resolve(branch, _branch_path(path, chosen, branch), choose)
    if isinstance(node, dict):
        return {key: _resolve(child, below, choose) for key, child, below in children(node, path)}
    if isinstance(node, list):
        below = {key: _resolve(child, at, choose) for key, child, at in children(node, path)}
        return [below.get(i, item) for i, item in enumerate(node)]
    return node


def _branch_path(path: str, label: Any, branch: Any) -> str:
    """Where a branch of the choice at `path` stands: there too, but a domain needs a name of its own, `weight/log_uniform`."""
    return f"{path}/{label}" if is_domain(branch) else _without_domains(path)


def _walk(node: Any, path: str, guards: Guards, faults: list[Fault], where: Where) -> Iterator[tuple[str, Domain, Guards]]:
    """(path, domain, guards) of every domain in `node`, all branches entered; what is wrong with one joins `faults`."""
    if not is_domain(node):
        faults += [fault_at(path, sentence, where) for sentence in misspelt_domain(node, path)]
        for _, child, below in children(node, path):
            yield from _walk(child, below, guards, faults, where)
        return
    domain, sentences = parse_domain(node, path)
    faults += [fault_at(path, sentence, where) for sentence in sentences]
    if domain is None:
        return
    yield path, domain, guards
    if isinstance(domain, Choice):
        for label, branch in zip(domain.labels, domain.branches, strict=True):
            yield from _walk(branch, _branch_path(path, label, branch), {**guards, path: label}, faults, where)


def _with_kinds(top: Any, base: Any) -> Any:
    """`top` with the kinds of `base` where it has none of its own."""
    if not isinstance(top, dict) or not isinstance(base, dict) or is_domain(top) or is_domain(base):
        return top
    if "kind" in top and top["kind"] != base.get("kind"):
        return top
    kind = {"kind": base["kind"]} if "kind" in base else {}
    return kind | {key: _with_kinds(child, base.get(key)) for key, child in top.items()}


def _nodes(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(path, node) of everything written below `node`, domains not entered."""
    if is_domain(node):
        return
    if isinstance(node, list):  # also of bare names, which `children` takes for a value: `stages/0` is one of them
        below = [(f"{path}/{i}", item) for i, item in enumerate(node)]
    else:
        below = [(at, child) for key, child, at in children(node, path) if key != "kind"]
    for at, child in below:
        yield at, child
        yield from _nodes(child, at)


def _said(node: Any) -> Any:
    """What a node says at its own path: its value, a variant's kind, nothing for another map."""
    return node.get("kind") if isinstance(node, dict) else node


def _constants(over: Any, path: str, params: Mapping[str, Any]) -> Any:
    """What of a baseline is no choice in a domain, and so is laid over the point it chooses."""
    if not isinstance(over, dict) or is_domain(over):
        return over
    return {
        key: _constants(child, below, params)
        for key, child, below in children(over, path)
        if below not in params or isinstance(child, dict)
    }


# ------------------------------------------------------------------------------------------------------------- reading


def read_space(source: Path | dict[str, Any], sets: Iterable[str] = (), name: str = "") -> Space:
    """A space with `--set` overrides applied, checked whole.  Raises SettingsError, of a file with its lines.

    source: a YAML file, whose stem is the space's name; or its content as plain values, with a name.
    """
    return make_space(source.stem if isinstance(source, Path) else name, *read_document(source, sets))


def make_space(name: str, document: dict[str, Any], where: Sources | None = None) -> Space:
    """A checked Space from plain values, as `read_space` and a resumed search use it.  Raises SettingsError: all its faults."""
    where = where or {}
    faults = list(structure_faults(document, where))
    can_be_walked = not faults
    for key in (key for key in document if key not in SPACE_KEYS):
        known = f"{did_you_mean(key, SPACE_KEYS)}{elsewhere(TrialConfig, key, 'config/')}"
        faults.append(fault_at(key, f"Unknown key `{key}` in a space{known}", where))
    if not NAME.fullmatch(name):
        faults.append(Fault(0, f"A space's name is its file's, made of a-z, 0-9, _ and -. Got '{name}'."))
    own = {key: value for key, value in document.items() if key in SpaceSettings.model_fields}
    settings = SpaceSettings()
    try:
        settings = SpaceSettings.model_validate(own)
    except ValidationError as error:
        faults += faults_of(error, SpaceSettings, own, where)
    space = Space(name, settings, document, where)
    if can_be_walked:
        try:
            space.check()
        except SettingsError as error:
            faults += error.faults
    if faults:
        raise SettingsError(faults)
    return space
