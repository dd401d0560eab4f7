"""The best trials of an earlier search as baselines of a new one: `--from OTHER:3`.

    runs/OTHER -> ended trials, best first -> points of the new space, and what they lack of the trials -> Space, lines

A trial's value is used where the new space searches its path: the same branch of a choice, the nearest value of a range. Only
configurations are used, never scores, because those were measured with another budget and perhaps on other data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from minbert_core.config import TrialConfig, default_at
from minbert_core.settings.paths import as_written, flatten
from minbert_core.words import counted, shown
from search.results import Search
from search.space.checks import config_faults
from search.space.choosing import default_choice
from search.space.domains import Choice, Domain, Range
from search.space.space import Space
from search.space.walk import Choose, config_path, nodes, own_value
from search.study.trials import TrialResult, ranked

PER_SEARCH = ("seed", "budget", "objective", "machine", "data", "own_tasks", "plugins", "rows", "encoder/checkpoint")
MOST_SHOWN = 3  # settings per trial that the plan lists


def with_best_of(search: Search, most: int, space: Space) -> tuple[Space, list[str]]:
    """Add the best trials of a search to the baselines of a space. Return the new space and the plan's lines.

    Only trials at the highest rung are added. One is omitted if the space cannot hold it, or has its point already.
    most: trials to add.
    Raises ValueError: no trial of the search has been evaluated and ended, or the space is a grid.
    """
    if space.settings.sampler.is_exhaustive:
        raise ValueError(f"--from adds baselines, which a {space.settings.sampler.kind} does not have. Omit it.")
    trials = [trial for trial in ranked(search.trials) if trial.status != "running"]
    if not trials:
        raise ValueError(f"No trial of {search.name} has been evaluated and ended, so --from can add none.")
    lines, known, added = [], [space.baseline(i).params for i in range(len(space.baselines))], 0
    for trial in trials:
        name = f"{search.name} {trial.number:03d} ({trial.score:.4f})"
        larger = replace(space, document={**space.document, "baselines": [*space.baselines, _as_baseline(space, trial)]})
        point = partial(larger.baseline, len(space.baselines))
        if faults := config_faults([point], space.settings):
            lines.append(f"{name} is omitted. {min(faults).sentence}")
            continue
        sample = point()
        name += _without(list(_differences(trial.config(), sample.config())))
        if sample.params in known:
            lines.append(f"{name} is omitted: it is a baseline of this space already")
            continue
        space, added = larger, added + 1
        known.append(sample.params)
        lines.append(name)
        if added == most:
            break
    few = f", {counted(added, 'trial')} instead of {most}" if added < most else ""
    return space, [f"the best of {search.name} as baselines{few}. Scores are not compared.", *lines]


def _as_baseline(space: Space, trial: TrialResult) -> dict[str, Any]:
    """Write the point of a space that is nearest to a trial as a baseline."""
    sample = space.sample(_like(trial, space.together))
    settings: dict[str, Any] = {}
    together: dict[str, Any] = {}
    for name, value in sample.params.items():
        if name.startswith("together/"):
            together[name.removeprefix("together/")] = value
        else:  # a domain within a branch comes after the choice, whose label its value implies
            settings[config_path(name)] = value
    return settings | ({"together": together} if together else {})


def _like(trial: TrialResult, together: Mapping[str, Choice]) -> Choose:
    """Return a `choose` with the trial's branches, the values of ranges that are nearest to its own, and defaults elsewhere."""
    values = _settings(trial.config())

    def choose(name: str, domain: Domain) -> Any:
        if isinstance(domain, Choice) and trial.params.get(name) in domain.labels:
            return trial.params[name]
        if name.startswith("together/"):
            same = _branch_like(together[name.removeprefix("together/")], values)
            return same or default_choice(name, domain)
        path = config_path(name)
        if isinstance(domain, Range) and isinstance(values.get(path), int | float):
            return domain.nearest(values[path])
        if isinstance(domain, Choice) and path in values and domain.contains(values[path]):
            return domain.label_of(values[path])
        return default_choice(name, domain)

    return choose


def _branch_like(choice: Choice, values: Mapping[str, Any]) -> Any:
    """Return the first branch of `together` whose constants are all those of a trial; None if there is none."""
    for label in choice.labels:
        constants = [(path, own_value(node)) for path, node in nodes(choice.branch(label), "") if not isinstance(node, dict)]
        if constants and all(_value(values, path) == value for path, value in constants):
            return label
    return None


def _settings(config: TrialConfig) -> dict[str, Any]:
    """Return the settings of a config by path, without those that were not set."""
    return flatten({"stages": [{"kind": stage.kind} for stage in config.stages], **as_written(config)})


def _value(settings: Mapping[str, Any], path: str) -> Any:
    """Return a config's value at a path, which may be its default."""
    return settings[path] if path in settings else default_at(path)


def _differences(trial: TrialConfig, config: TrialConfig) -> Iterator[str]:
    """Yield each setting of a trial that another config has otherwise. Of variants that differ, only the kinds are listed."""
    theirs, ours = _settings(trial), _settings(config)
    passed_over = list(PER_SEARCH)
    for path in sorted({*theirs, *ours}):
        if any(path == above or path.startswith(f"{above}/") for above in passed_over):
            continue
        value, here = _value(theirs, path), _value(ours, path)
        if value != here:
            passed_over.append(path)
            yield f"{path} {_short(value)} (here {_short(here)})"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else shown(value)


def _without(differences: list[str]) -> str:
    """Return what a baseline lacks of its trial, in words."""
    if not differences:
        return ""
    rest = len(differences) - MOST_SHOWN
    return f" without {', '.join(differences[:MOST_SHOWN])}" + (f" and {rest} more" if rest > 0 else "")
