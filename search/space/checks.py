"""Checks of a space whose structure is sound (file.py checks that): its domains, its grid, published figures, its configs.

Each function returns or yields faults; `Space` decides when to raise them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from minbert_core.config import OVERALL
from minbert_core.data.tasks import TASKS
from minbert_core.settings.faults import Fault, SettingsError, Where, fault_at
from minbert_core.words import did_you_mean
from search.methods.trial_schedulers import rung_faults
from search.space.choosing import Sample
from search.space.domains import Choice, Domain, Range, is_domain
from search.space.file import SpaceSettings, where_under
from search.space.walk import Guards, nodes

FIXED = ("data", "own_tasks", "plugins", "rows")  # settings that define the data, the same for all trials
MOST_COMBINATIONS = 1000  # of a grid: each takes a few milliseconds to check before anything starts


def domain_faults(entries: Iterable[tuple[str, str, Domain, Guards]], where: Where) -> Iterator[Fault]:
    """Yield a fault for each path with two domains and for each domain of a setting that all trials share.

    entries: (place, path, domain, guards), where the place is `config` or a branch, `together/step/surgery`.
    """
    first: dict[str, tuple[str, Domain]] = {}
    for place, path, domain, _ in entries:
        first_place, first_domain = first.setdefault(path, (place, domain))
        here = where_under(where, place)
        if place != first_place == "config":
            both = f"in `config` and in `{place.rpartition('/')[0]}`"
            yield fault_at(path, f"`{path}` is a domain {both}. Only one of them may define it.", here)
        elif first_domain != domain:
            yield fault_at(path, f"`{path}` has two domains, {first_domain} and {domain}. It may have only one.", here)
        if path.partition("/")[0] in FIXED:
            law = "may not hold a domain: all trials must have the same data, or their scores could not be compared"
            yield fault_at(path, f"`{path}` {law}. `train_on` may choose between tasks.", here)


def together_faults(together: Mapping[str, Choice], where: Where) -> Iterator[Fault]:
    """Yield a fault for each path that two names of `together` set, and for each --set that all branches of one replace."""
    first: dict[str, str] = {}
    for name, choice in together.items():
        paths = [_paths_set(branch) for branch in choice.branches]
        for path in sorted(set.union(*paths)) if paths else ():
            if (other := first.setdefault(path, name)) != name:
                law = "Only the later one would count. Let one of them set it"
                yield fault_at(
                    f"together/{name}", f"`{path}` is set by `together/{other}` and `together/{name}`. {law}.", where
                )
        for path in sorted(set.intersection(*paths)) if paths else ():
            written, _, value = where.get(path, ("", 0))[0].partition("=")
            is_whole = "{" not in value  # a map's other entries may be of use
            if is_whole and written.replace(".", "/") in (f"--set {path}", f"--set config/{path}"):
                law = f"has no effect: every branch of `together/{name}` sets it"
                yield fault_at(path, f"`{path}` {law}. Choose a branch in its place, or change the space's file.", where)


def _paths_set(branch: Any) -> set[str]:
    """Return the paths that a branch of `together` sets: those of values, domains and bare kinds, and a list's own."""
    written = dict(nodes(branch, ""))
    return {
        path
        for path, node in written.items()
        if (is_domain(node) or not isinstance(node, dict) or node.keys() == {"kind"})
        and not isinstance(written.get(path.rpartition("/")[0]), list)
    }


def grid_faults(
    document: Mapping[str, Any],
    settings: SpaceSettings,
    domains: Mapping[str, tuple[Domain, Guards]],
    num_combinations: Callable[[], int],
    where: Where,
) -> Iterator[Fault]:
    """Yield a fault for each reason why a sampler that takes every combination cannot do so."""
    sampler = settings.sampler
    if not sampler.is_exhaustive:
        return
    for name, (domain, _) in domains.items():
        if isinstance(domain, Range):
            law = f"`sampler` {sampler.kind} takes every combination, but {domain} has infinitely many values"
            yield fault_at(name, f"`{name}`: {law}. List those to try: choice: [{domain.low:g}, …].", where)
    if document.get("baselines"):
        law = "takes every combination, so a baseline is one of them or outside the space"
        yield fault_at("baselines", f"`sampler` {sampler.kind} {law}. Remove `baselines`.", where)
    most = math.prod(len(domain.values()) for domain, _ in domains.values())
    if most > MOST_COMBINATIONS and (count := num_combinations()) > MOST_COMBINATIONS:
        law = f"takes at most {MOST_COMBINATIONS:,} combinations. This space has {count:,}"
        yield fault_at("sampler", f"`sampler` {sampler.kind} {law}. Use random.", where)
    elif "trials" in document and settings.trials > (count := num_combinations()):
        law = f"must be at most {count}, the number of combinations of the grid. Got {settings.trials}"
        yield fault_at("trials", f"`trials` {law}. Remove `trials` to try all.", where)


def published_faults(document: Mapping[str, Any], where: Where) -> Iterator[Fault]:
    """Yield a fault for each published figure that belongs neither to a task nor to an overall score."""
    known = (*TASKS, *document.get("config", {}).get("own_tasks", {}), *OVERALL)
    for name, branches in document.get("together", {}).items():
        for branch in branches:
            place = f"together/{name}/{branch['name']}"
            for split, figures in branch.get("published", {}).items():
                for column in (column for column in figures if column not in known):
                    sentence = f"Unknown task or score `{place}/published/{split}/{column}`{did_you_mean(column, known)}"
                    yield fault_at(place, sentence, where)


def config_faults(points: Iterable[Callable[[], Sample]], settings: SpaceSettings) -> set[Fault]:
    """Return the faults of the points' configs, and those of rungs that do not suit them."""
    faults: set[Fault] = set()
    for point in points:
        try:
            sample = point()
            config = sample.config()
        except SettingsError as error:
            faults |= set(error.faults)
            continue
        if settings.trial_scheduler.stops:
            misfits = rung_faults(config, settings.rungs)
            faults |= {fault_at(path, sentence, sample.where) for path, sentence in misfits}
    return faults
