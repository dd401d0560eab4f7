"""Starts from an earlier search: its best trials as baselines, or all that its trials showed.

    --from OTHER:3   its best trials -> points of the new space, and what they lack of the trials -> Space, lines of the plan
    --from OTHER     its ended trials, of equal data, objective, encoder, config -> Plan.earlier -> plan.json -> the sampler

As a baseline, a trial's value is used where the new space searches its path: the same branch of a choice, the nearest value of
a range. Only its configuration is used: its scores belong to another budget, and perhaps to other data. The sampler is shown
scores, so only those that this search would measure, too, but for its seeds: of trials whose config is a point of the space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from minbert_core.commands import Refused
from minbert_core.config import TrialConfig, default_at
from minbert_core.settings.faults import SettingsError
from minbert_core.settings.knobs import NO_DEFAULT
from minbert_core.settings.paths import as_written, flatten
from minbert_core.words import counted, shown
from search.plan.folder import PlanRecord
from search.plan.plan import Plan
from search.plan.relocated import encoder_fingerprint
from search.results import Search
from search.space.checks import config_faults
from search.space.choosing import default_choice
from search.space.domains import Choice, Domain, Range, is_domain
from search.space.space import Sample, Space
from search.space.walk import Choose, config_path, nodes, own_value
from search.study.trials import TrialResult, ranked

SameEncoder = Callable[[str, str], bool]

CHECKPOINT = "encoder/checkpoint"
PER_SEARCH = ("seed", "budget", "objective", "machine", "data", "own_tasks", "plugins", "rows", CHECKPOINT)
PER_RUN = ("seed", "budget/points", "objective", "machine", "data", "plugins", CHECKPOINT)  # what no score depends on
MOST_SHOWN = 3  # settings per trial that the plan lists


def with_best_of(search: Search, most: int, space: Space) -> tuple[Space, list[str]]:
    """Add the best trials of a search to the baselines of a space. Return the new space and the plan's lines.

    Only trials at the highest rung are added. One is omitted if the space cannot hold it, or has its point already.
    most: trials to add.
    Raises ValueError: no trial of the search has been evaluated and ended, or the space is a grid.
    """
    if space.settings.sampler.is_exhaustive:
        raise ValueError(f"--from adds baselines, which a {space.settings.sampler.kind} does not have. Omit it.")
    trials = ranked(trial for trial in search.trials if trial.status != "running")
    if not trials:
        raise ValueError(f"No trial of {search.name} has been evaluated and ended, so --from can add none.")
    same = _same_encoder(search, space)
    lines, known, added = [], [_unseeded(space.baseline(i)) for i in range(len(space.baselines))], 0
    for trial in trials:
        name = f"{search.name} {trial.number:03d} ({trial.score:.4f})"
        larger = replace(space, document={**space.document, "baselines": [*space.baselines, _as_baseline(space, trial, same)]})
        point = partial(larger.baseline, len(space.baselines))
        if faults := config_faults([point], space.settings):
            lines.append(f"{name} is omitted. {min(faults).sentence}")
            continue
        config = _unseeded(point())
        name += _without([*_other_encoder(trial, point(), same), *_differences(trial.config(), config, PER_SEARCH)])
        if config in known:
            lines.append(f"{name} is omitted: it is a baseline of this space already")
            continue
        space, added = larger, added + 1
        known.append(config)
        lines.append(name)
        if added == most:
            break
    few = f", {counted(added, 'trial')} instead of {most}" if added < most else ""
    return space, [f"the best of {search.name} as baselines{few}. Scores are not compared.", *lines]


def with_known_trials(search: Search, plan: Plan) -> Plan:
    """Let the sampler of a search know the ended trials of an earlier one, and say so in the plan's lines.

    A trial is omitted if the space has no point with its config and budget, or if it was not evaluated at one of the rungs.
    Raises Refused: other data, another objective or encoder; no trial is left; a sampler that does not learn.
    """
    remedy = f"--from {search.name}:3 takes its best configurations, without scores."
    if what := _incomparable(search.plan, plan):
        raise Refused(f"The search {search.name} has another {what}, so its scores say nothing about this one's. {remedy}")
    if not plan.space.settings.sampler.learns:
        raise Refused(f"The sampler {plan.space.settings.sampler.kind} learns from no trial. {remedy}")
    ended = [trial for trial in search.trials if trial.status in ("completed", "stopped") and trial.points]
    same = _same_encoder(search, plan.space)
    known: list[dict[str, Any]] = []
    omitted: list[str] = []
    for trial in ended:
        sample, scores = plan.space.sample(_like(trial, plan.space, same)), _scores(trial, plan.space.settings.rungs)
        try:
            lacks = _without([*_other_encoder(trial, sample, same), *_differences(trial.config(), sample.config(), PER_RUN)])
        except SettingsError as error:  # three branches may exclude each other
            lacks = f", because {error.faults[0].sentence}"
        if lacks or not scores:
            omitted.append(f"{trial.number:03d}{lacks or ', at other rungs'}")
        else:
            is_complete = trial.status == "completed"
            known.append({"trial": trial.number, "params": sample.params, "scores": scores, "completed": is_complete})
    example = f", such as {omitted[0]}" if omitted else ""
    if not known:
        raise Refused(f"No trial of {search.name} is a point of this space with scores at its rungs{example}. {remedy}")
    num_completed = sum(one["completed"] for one in known)
    lines = [f"the sampler knows {counted(len(known), 'trial')} of {search.name}, {num_completed} completed"]
    lines += [f"{counted(len(omitted), 'trial')} of {search.name} omitted{example}"] if omitted else []
    return replace(plan, earlier=tuple(known), notes=tuple(lines))


def _incomparable(theirs: PlanRecord, plan: Plan) -> str:
    """Return which part of an earlier search makes its scores say nothing about those of a new one; "" if none does."""
    encoders = sorted(encoder_fingerprint(Path(folder)) for folder in plan.space.encoders.values())
    same = {
        "data": plan.fingerprints() == theirs.fingerprints,
        "objective": as_written(plan.config.objective) == theirs.objective and list(plan.config.train_on) == theirs.train_on,
        "encoder": encoders == sorted(theirs.encoder_fingerprints.values()),
    }
    return next((what for what, is_same in same.items() if not is_same), "")


def _scores(trial: TrialResult, rungs: Sequence[int]) -> dict[str, float]:
    """Return a trial's scores at the rungs of another search, rung -> score, as plan.json keeps them.

    Rungs are compared by their share of the budget. A completed trial has its last one.
    """
    last = max(trial.config().budget.points)
    shares = {rung / last: record["dev/score"] for rung, record in trial.points.items()}
    return {str(rung): shares[rung / rungs[-1]] for rung in rungs if rung / rungs[-1] in shares}


def _unseeded(sample: Sample) -> TrialConfig:
    return sample.config().model_copy(update={"seed": 0})


def _as_baseline(space: Space, trial: TrialResult, same: SameEncoder) -> dict[str, Any]:
    """Write the point of a space that is nearest to a trial as a baseline: each choice as the branch itself, by its content."""
    sample = space.sample(_like(trial, space, same))
    chosen = dict(nodes(sample.document, ""))
    together = {name.removeprefix("together/"): label for name, label in sample.params.items() if name.startswith("together/")}
    paths = sorted({config_path(name) for name in sample.params if not name.startswith("together/")})
    outermost = [path for path in paths if not any(path.startswith(f"{above}/") for above in paths)]
    settings = {path: chosen[path] for path in outermost}
    return settings | ({"together": together} if together else {})


def _like(trial: TrialResult, space: Space, same: SameEncoder) -> Choose:
    """Return a `choose` with the trial's branches, the values of ranges that are nearest to its own, and defaults elsewhere."""
    settings, together = _nodes(trial.config()), space.together

    def choose(name: str, domain: Domain) -> Any:
        if isinstance(domain, Choice) and trial.params.get(name) in domain.labels:
            return trial.params[name]
        if name.startswith("together/"):
            return _branch_like(together[name.removeprefix("together/")], settings)
        value = _value(settings, config_path(name))
        if name == CHECKPOINT and isinstance(domain, Choice):
            alike = (label for label in domain.labels if same(str(label), str(value)))
            return next(alike, None) or default_choice(name, domain)
        if isinstance(domain, Range):
            return domain.nearest(value) if isinstance(value, int | float) else default_choice(name, domain)
        return domain.label_of(value) if domain.contains(value) else default_choice(name, domain)

    return choose


def _same_encoder(search: Search, space: Space) -> SameEncoder:
    """Return a function (a space's name of an encoder, a trial's folder) -> whether they are one, however they are spelled.

    The earlier search has recorded its encoders' names and fingerprints, so its folders may be gone.
    """
    names = {folder: name for name, folder in search.plan.encoders.items()}
    fingerprint = lru_cache(encoder_fingerprint)

    def same(name: str, folder: str) -> bool:
        ours = Path(space.encoders.get(name, name))
        if name in (folder, names.get(folder)) or ours.absolute() == Path(folder).absolute():
            return True
        recorded = search.plan.encoder_fingerprints.get(folder)
        theirs = recorded or (fingerprint(Path(folder)) if Path(folder).is_dir() else None)
        return theirs is not None and ours.is_dir() and fingerprint(ours) == theirs

    return same


def _other_encoder(trial: TrialResult, sample: Sample, same: SameEncoder) -> Iterator[str]:
    """Yield the encoder of a trial if it is searched for here, and the point has another."""
    theirs, ours = trial.config().encoder.checkpoint, sample.params.get(CHECKPOINT)
    if ours is not None and not same(str(ours), theirs):
        yield f"{CHECKPOINT} {theirs} (here {ours})"


def _branch_like(choice: Choice, settings: Mapping[str, Any]) -> Any:
    """Return the branch of `together` that sets the most of those whose constants are all those of a trial, else the first."""
    constants = {label: _constants(choice.branch(label)) for label in choice.labels}
    fitting = [label for label, of in constants.items() if all(_is_as(settings, path, node) for path, node in of.items())]
    return max(fitting, key=lambda label: len(constants[label]), default=choice.labels[0])


def _constants(branch: Any) -> dict[str, Any]:
    """Return what a branch sets, path -> node, without domains and without maps that only hold others."""
    return {
        path: node for path, node in nodes(branch, "") if not is_domain(node) and (own_value(node) is not None or node is None)
    }


def _is_as(settings: Mapping[str, Any], path: str, node: Any) -> bool:
    """Return whether a config has, at a path, what a branch sets there. The entries of a list have paths of their own."""
    value = _value(settings, path)
    if isinstance(node, list):
        return isinstance(value, list | tuple) and len(value) == len(node)
    return bool(own_value(value) == own_value(node))


def _nodes(config: TrialConfig) -> dict[str, Any]:
    """Return everything that a config sets, path -> value or map, and its stages."""
    return dict(nodes(_tree(config), ""))


def _tree(config: TrialConfig) -> dict[str, Any]:
    return {"stages": [{"kind": stage.kind} for stage in config.stages], **as_written(config)}


def _settings(config: TrialConfig) -> dict[str, Any]:
    """Return the settings of a config by path, without those that were not set."""
    return flatten(_tree(config))


def _value(settings: Mapping[str, Any], path: str) -> Any:
    """Return a config's value at a path, which may be its default."""
    return settings[path] if path in settings else default_at(path)


def _differences(trial: TrialConfig, config: TrialConfig, passed_over: Iterable[str]) -> Iterator[str]:
    """Yield each setting of a trial that another config has otherwise. Of variants that differ, only the kinds are listed."""
    theirs, ours = _settings(trial), _settings(config)
    passed_over = list(passed_over)
    for path in sorted({*theirs, *ours}):
        if any(path == above or path.startswith(f"{above}/") for above in passed_over):
            continue
        value, here = _value(theirs, path), _value(ours, path)
        if value != here:
            passed_over.append(path)
            yield f"{path} {_short(value)} (here {_short(here)})"


def _short(value: Any) -> str:
    if value is NO_DEFAULT:
        return "unset"
    return f"{value:.4g}" if isinstance(value, float) else shown(value)


def _without(differences: list[str]) -> str:
    """Return what a baseline lacks of its trial, in words."""
    if not differences:
        return ""
    rest = len(differences) - MOST_SHOWN
    return f" without {', '.join(differences[:MOST_SHOWN])}" + (f" and {rest} more" if rest > 0 else "")
