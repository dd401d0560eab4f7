"""A search space: a trial's config in which any value may be a domain, checked completely before anything starts.

YAML -> file.py -> document -> make_space -> Space -> sample(choose) -> (params, TrialConfig)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from minbert_core.config import TrialConfig, default_at
from minbert_core.overrides import Sources
from minbert_core.settings.faults import Fault, SettingsError, Where, fault_at, faults_of
from minbert_core.settings.knobs import elsewhere
from minbert_core.settings.models import NAME
from minbert_core.settings.paths import lay_over
from minbert_core.words import did_you_mean
from search.space.baselines import contradictions, naming, possible_branches, unknown_branches
from search.space.checks import FIXED, config_faults, domain_faults, grid_faults, published_faults, together_faults
from search.space.choosing import Sample, all_combinations, cover, default_choice, forcing
from search.space.domains import Choice, Domain, Range, is_domain
from search.space.file import SPACE_KEYS, SpaceSettings, nested, read_document, structure_faults, where_under
from search.space.walk import Choose, Guards, nodes, resolve, walk_domains, with_kinds, without_malformed, without_params

__all__ = ["FIXED", "Choose", "Sample", "Space", "cover", "default_choice", "forcing", "make_space", "read_space"]


@dataclass(frozen=True)
class Space:
    """A space as read: merged and parsed, not yet checked. `check` checks it, and `read_space` calls that."""

    name: str
    settings: SpaceSettings
    document: dict[str, Any]  # the whole space as plain values, as runs/NAME/space.yaml keeps it
    where: Sources = field(default_factory=dict)
    encoders: Mapping[str, str] = field(default_factory=dict)  # a checkpoint as written -> the folder that it was fetched to

    @property
    def tree(self) -> dict[str, Any]:
        """The config with its domains, as written."""
        return dict(self.document.get("config", {}))

    @property
    def together(self) -> dict[str, Choice]:
        """The choices that set several paths. A branch is the map of settings that it lays over the config."""
        return {
            name: Choice(tuple(b["name"] for b in branches), tuple(self._over_config(b.get("set", {})) for b in branches))
            for name, branches in self.document.get("together", {}).items()
        }

    @property
    def baselines(self) -> list[dict[str, Any]]:
        """The settings of the trials that run first, as written."""
        return list(self.document.get("baselines", []))

    @property
    def num_trials(self) -> int:
        """The number of trials that the space asks for: its `trials` or their default; for a grid, all combinations."""
        if self.settings.sampler.is_exhaustive and "trials" not in self.document:
            return len(self.combinations())
        return self.settings.trials

    def combinations(self) -> list[dict[str, Any]]:
        """Return every combination of the choices, parameter -> label, in the order in which they are written."""
        return all_combinations(self.sample)

    def _over_config(self, tree: dict[str, Any]) -> dict[str, Any]:
        """Return settings to lay over the config as nested maps, each with the kind that its path or the config gives it."""
        return dict(with_kinds(nested(tree), self.tree))

    def sample(self, choose: Choose) -> Sample:
        """Return the point that `choose(parameter name, domain)` picks."""
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
        return Sample(params, self._complete(resolve(tree, "", remember)), where)

    def _complete(self, document: dict[str, Any]) -> dict[str, Any]:
        """Add to a trial's document what the space sets: objective, rungs as points of the budget, the encoder's folder."""
        additions: dict[str, Any] = {"objective": self.document["objective"]} if "objective" in self.document else {}
        budget = document.get("budget", {})
        if isinstance(budget, dict):  # any other value is a fault, which validation reports
            additions["budget"] = {**budget, "points": list(self.settings.rungs)}
        if self.encoders:
            written = document.get("encoder", {})
            encoder = written if isinstance(written, dict) else {"checkpoint": written}
            name = encoder.get("checkpoint", default_at("encoder/checkpoint"))
            additions["encoder"] = {**encoder, "checkpoint": self.encoders.get(name, name)}
        return {**document, **additions}

    def domains(self) -> dict[str, tuple[Domain, Guards]]:
        """Return every parameter with its domain and the branches that lead to it.

        Raises SettingsError: a malformed domain, one that all trials must share, or two for one path.
        """
        faults: list[Fault] = []
        entries = [*self._all_domains(faults)]
        faults += domain_faults(entries, self.where)
        if faults:
            raise SettingsError(faults)
        domains: dict[str, tuple[Domain, Guards]] = {}
        for _, path, domain, guards in entries:
            domains.setdefault(path, (domain, guards))
        return domains

    def _all_domains(self, faults: list[Fault]) -> Iterator[tuple[str, str, Domain, Guards]]:
        """Yield (place, path, domain, guards) of each domain in the config, then in each branch of `together`."""
        for path, domain, guards in walk_domains(self.tree, "", {}, faults, self.where):
            yield "config", path, domain, guards
        for name, choice in self.together.items():
            key = f"together/{name}"
            yield key, key, choice, {}
            for label in choice.labels:
                where = where_under(self.where, f"{key}/{label}")
                for path, domain, guards in walk_domains(choice.branch(label), "", {key: label}, faults, where):
                    yield f"{key}/{label}", path, domain, guards

    def occurrences(self) -> list[tuple[str, Domain, Guards]]:
        """Return (parameter, domain, guards) of each place where a checked space has a domain, those of `together` first."""
        every = [(path, domain, guards) for _, path, domain, guards in self._all_domains([])]
        return sorted(every, key=lambda each: not each[0].startswith("together/"))

    def check(self) -> None:
        """Raise SettingsError with every fault of the baselines, of every pair of branches and of both ends of every range.

        A grid is checked at every combination.
        """
        try:
            domains = self.domains()
        except SettingsError as error:
            raise SettingsError([*error.faults, *self._faults_beside_domains()]) from None
        grid = grid_faults(self.document, self.settings, domains, lambda: len(self.combinations()), self.where)
        if faults := {*grid, *published_faults(self.document, self.where)}:
            raise SettingsError(faults)
        places = self.occurrences()
        forced_points = self.combinations() if self.settings.sampler.is_exhaustive else cover(places)
        points: list[Callable[[], Sample]] = [partial(self.sample, forcing(forced)) for forced in forced_points]
        points += [partial(self.baseline, i) for i in range(len(self.baselines))]
        ranges = [(name, domain, guards) for name, domain, guards in places if isinstance(domain, Range)]
        inside = [partial(self.sample, forcing({**guards, name: domain.fraction})) for name, domain, guards in ranges]
        # the inside of a range is checked only if its ends are valid, because a bad end can make it invalid too
        if faults := config_faults(points, self.settings) or config_faults(inside, self.settings):
            raise SettingsError(faults)

    def _faults_beside_domains(self) -> list[Fault]:
        """Return the faults of everything but the malformed domains."""
        rest = replace(self, document=without_malformed(self.document))
        try:
            if rest.document != self.document:
                rest.check()
        except SettingsError as error:
            return error.faults
        return []

    def baseline(self, index: int) -> Sample:
        """Return baseline `index` as a point. What it does not set takes the default if that is in the domain, else the middle.

        For a name of `together` that it does not set, it takes the first branch that does not contradict it.
        Raises SettingsError: a value outside its domain, or one that the branch of `together` sets differently.
        """
        settings = self._over_config(self.baselines[index])
        place = f"baselines/{index}"
        where = where_under(self.where, place)
        chosen, together = settings.pop("together", {}), self.together
        if sentences := list(unknown_branches(chosen, together, place)):
            raise SettingsError([fault_at(f"{place}/together", sentence, self.where) for sentence in sentences])
        values = dict(nodes(settings, ""))
        first_faults: list[Fault] = []
        for branches in possible_branches(chosen, together):
            faults = [*contradictions(branches, together, values, place, where)]
            sample = self.sample(naming(branches, values, place, where, faults))
            if not faults:
                constants = without_params(settings, "", sample.params)
                document = self._complete(lay_over(sample.document, constants))
                return Sample(sample.params, document, where_under(sample.where, place))
            first_faults = first_faults or faults
        raise SettingsError(first_faults)


# ------------------------------------------------------------------------------------------------------------- reading


def read_space(source: Path | dict[str, Any], sets: Iterable[str] = (), name: str = "") -> Space:
    """Read a space with its `--set` overrides and check it completely. Raises SettingsError, with the lines of a file.

    source: a YAML file, whose stem is the space's name; or its content as plain values, with a name.
    """
    space = make_space(source.stem if isinstance(source, Path) else name, *read_document(source, sets))
    if faults := [*together_faults(space.together, space.where)]:
        raise SettingsError(faults)
    return space


def make_space(name: str, document: dict[str, Any], where: Sources | None = None) -> Space:
    """Build a checked Space from plain values, for `read_space` and a resumed search. Raises SettingsError with all faults."""
    where = where or {}
    faults = list(structure_faults(document, where))
    can_be_walked = not faults
    for key in (key for key in document if key not in SPACE_KEYS):
        known = f"{did_you_mean(key, SPACE_KEYS)}{elsewhere(TrialConfig, key, 'config/')}"
        faults.append(fault_at(key, f"Unknown key `{key}` in a space{known}", where))
    if not NAME.fullmatch(name):
        faults.append(Fault(0, f"A space has the name of its file, which may contain a-z, 0-9, _ and -. Got '{name}'."))
    space_keys = {key: value for key, value in document.items() if key in SpaceSettings.model_fields}
    settings = SpaceSettings()
    try:
        settings = SpaceSettings.model_validate(space_keys)
    except ValidationError as error:
        faults += faults_of(error, SpaceSettings, space_keys, where)
    space = Space(name, settings, document, where)
    if can_be_walked:
        try:
            space.check()
        except SettingsError as error:
            faults += error.faults
    if faults:
        raise SettingsError(faults)
    return space
