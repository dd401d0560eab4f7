"""The plan of a search, settled before a process starts: its space on this machine, its data, its budget.

All faults are raised here, before anything runs: `Refused` (exit 3) for what is valid, but impossible here or now;
SettingsError and ValueError (exit 2) for what is wrong everywhere.

    space, resources -> make_plan -> Plan -> summary.py (lines, plan.json), drive.py (the search)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from minbert_core.commands import Refused
from minbert_core.config import OVERALL, TINY, TOY, Objective, TrialConfig
from minbert_core.data.corpus import fingerprint
from minbert_core.data.tasks import SPLITS
from minbert_core.encoder_fit import check_encoder
from minbert_core.inputs import Inputs, build_encoder, open_inputs
from minbert_core.model import build_model
from minbert_core.settings.paths import lay_over
from minbert_core.settling import local_data, local_encoder
from minbert_core.train.pretraining import read_texts, vocabulary_of
from minbert_core.words import counted
from search.methods.halving import expected_full_trials
from search.plan.pretraining import Chain, chains, known_chains
from search.plan.relocated import relocated_config
from search.plan.resources import Resources, machine_settings
from search.space.domains import Choice
from search.space.space import FIXED, Sample, Space, cover, default_choice, forcing, make_space


def localise(space: Space, resources: Resources, configs: Iterable[TrialConfig], relocated: Mapping[str, str]) -> Space:
    """Return the space with this machine's settings: device, threads, precision, absolute data and encoder folders.

    configs: points that together name every encoder of the space. Each encoder is fetched here once, and the trials, which may
    run without a network, get its folder in place of its name. Labels and relocated folders do not change.
    Raises SettingsError or ValueError: no such folder, no such encoder.
    """
    document = dict(space.document)
    tree = document.get("config") or {}
    own = tree.get("machine") or {}
    checkpoints = {config.encoder.checkpoint for config in configs}
    local = {"machine": lay_over(machine_settings(resources, checkpoints, own.get("device")), own)}
    config = space.sample(default_choice).config()
    if config.data != TOY and config.data not in relocated:
        local["data"] = local_data(config)
    document["config"] = {**tree, **local}
    named = checkpoints - {TINY, *relocated}
    encoders = {**space.encoders, **{name: local_encoder(name) for name in sorted(named)}}
    return replace(make_space(space.name, document, space.where), encoders=encoders)


LIMITED = ("machine/threads", "max_length")  # parameters that may exceed the machine or an encoder


def branch_configs(space: Space) -> list[TrialConfig]:
    """Return configs that together cover every pair of the space's branches, otherwise default, and the baselines."""
    return [point.config() for point in (*branch_samples(space), *baseline_samples(space))]


def baseline_samples(space: Space) -> list[Sample]:
    return [space.baseline(i) for i in range(len(space.baselines))]


def branch_samples(space: Space) -> list[Sample]:
    """Return points that together cover every pair of the space's branches, otherwise default.

    A range in `LIMITED` counts as a choice of its two ends, since cores and encoder must suffice for both.
    """
    switches = [place for place in space.occurrences() if isinstance(place[1], Choice) or place[0].startswith(LIMITED)]
    return [space.sample(forcing(forced)) for forced in ({}, *cover(switches))]


@dataclass(frozen=True)
class Plan:
    """A resolved search."""

    name: str
    space: Space
    seed: int
    num_trials: int
    resources: Resources
    config: TrialConfig  # the default point, with what all trials share; train_on names the tasks of all trials
    inputs: Inputs
    recipes: tuple[str, ...]
    budgets: tuple[int, ...]  # examples per full trial, for each branch; ascending
    best_bytes: int  # weights of the largest model
    snapshot_bytes: int  # of a trial of the largest model
    relocated: Mapping[str, str] = field(default_factory=dict)  # a folder in the configs -> its place here
    pretrainings: tuple[str, ...] = ()  # a sentence for each further pretraining that some trial begins with
    earlier: tuple[Mapping[str, Any], ...] = ()  # trials of an earlier search that the sampler knows, as plan.json keeps them
    notes: tuple[str, ...] = ()  # lines about an earlier search

    @property
    def examples(self) -> int:
        """The budget of a full trial; the mean if branches differ."""
        return round(sum(self.budgets) / len(self.budgets))

    @property
    def full_trials(self) -> float:
        settings, baselines = self.space.settings, len(self.space.baselines)
        return expected_full_trials(self.num_trials, baselines, len(self.recipes), settings.rungs, settings.trial_scheduler)

    def chains(self) -> list[Chain]:
        """Return the further pretrainings to run before the first trial."""
        return known_chains(branch_samples(self.space), baseline_samples(self.space), self.space, self.relocated)

    def fingerprints(self) -> dict[str, str]:
        """Return the sha256 of each train and dev file that the search reads."""
        tasks = [self.config.known_tasks[name] for name in self.config.train_on]
        folder = self.inputs.data_folder
        return {f"{task.name}-{split}": fingerprint(folder / task.file(split), task) for task in tasks for split in SPLITS}


def make_plan(
    name: str, space: Space, seed: int, num_trials: int | None, resources: Resources, relocated: Mapping[str, str] | None = None
) -> Plan:
    """Resolve a search and read its data once; the tokenised files are kept.

    relocated: for a resumed search, each recorded folder and its place here.
    Raises what reading raises, and ValueError or Refused for what the space or the machine cannot do.
    """
    relocated = relocated or {}
    configs = branch_configs(space)
    _check_same_data(configs)
    space = localise(space, resources, configs, relocated)
    most, is_grid = space.num_trials, space.settings.sampler.is_exhaustive
    if num_trials is not None and num_trials > most and is_grid:
        raise ValueError(f"--trials {num_trials} exceeds the grid, which has {counted(most, 'combination')}. Omit --trials.")
    num_trials = num_trials or most
    if num_trials < len(space.baselines):
        raise ValueError(f"--trials {num_trials} leaves no room for the space's {counted(len(space.baselines), 'baseline')}.")
    _check_threads(most_threads(configs), resources, num_trials)
    config = space.sample(default_choice).config()
    config = config.model_copy(update={"train_on": _all_tasks(configs, config.objective)})
    inputs = open_inputs(relocated_config(config, relocated))
    _check_encoders(space, configs, relocated)
    best_bytes = 4 * max(
        _num_parameters(relocated_config(config, relocated)) for config in _of_each_encoder(space, configs).values()
    )
    snapshot_bytes = best_bytes * (1 + 2 * max(map(_num_optimizers, configs)))  # weights and AdamW's two moments
    recipes = tuple(sorted({config.recipe for config in configs}))
    planned = [space.sample(forcing(point)).config() for point in space.combinations()] if is_grid else configs
    for trial_config in planned:
        trial_config.check_turns(inputs.sizes)
    budgets = tuple(sorted(trial_config.num_examples(inputs.sizes) for trial_config in planned))
    pretrainings = _pretrainings(space, relocated)
    return Plan(
        name=name,
        space=space,
        seed=seed,
        num_trials=num_trials,
        resources=resources,
        config=config,
        inputs=inputs,
        recipes=recipes,
        budgets=budgets,
        best_bytes=best_bytes,
        snapshot_bytes=snapshot_bytes,
        relocated=relocated,
        pretrainings=pretrainings,
    )


def _num_optimizers(config: TrialConfig) -> int:
    """Return the most optimisers of the whole encoder that a trial has at a time: one per task with `per_task`."""
    stages = [stage for stage in config.stage_plans() if stage.trains_encoder]
    return max((len(stage.tasks) if stage.optimizer.per_task else 1 for stage in stages), default=0)


def with_resources(plan: Plan, resources: Resources) -> Plan:
    """Return a plan that was made for whole GPUs, with other resources."""
    space = localise(plan.space, resources, [], plan.relocated)
    config = plan.config.model_copy(update={"machine": space.sample(default_choice).config().machine})
    return replace(plan, space=space, resources=resources, config=config)


def most_threads(configs: Iterable[TrialConfig]) -> int:
    """Return the most threads that a trial has."""
    return max(config.machine.threads for config in configs)


def _check_threads(threads: int, resources: Resources, num_trials: int) -> None:
    """Raise Refused if the concurrent trials have more threads than the machine has cores.

    Two trials of two threads on two cores ran at half the speed of one trial (measured, 2026-11).
    """
    at_once, cores = min(resources.slots, num_trials), resources.cpus
    if threads <= resources.cpus_per_trial or threads * at_once <= cores:
        return
    fewer_trials = f"Run fewer trials at a time: --cpus-per-trial {threads}. Or use" if threads <= cores else "Use"
    raise Refused(
        f"`machine/threads` {threads} for each of {counted(at_once, 'trial')} at a time is more than this machine's "
        f"{counted(cores, 'core')}, so the trials would slow each other down. {fewer_trials} fewer threads: "
        f"--set machine/threads={max(1, cores // at_once)}."
    )


def _check_same_data(configs: list[TrialConfig]) -> None:
    """Raise ValueError if a baseline or a branch of `together` changes the data, since scores could not be compared."""
    for key in FIXED:
        if any(getattr(config, key) != getattr(configs[0], key) for config in configs):
            raise ValueError(
                f"`{key}` must be the same for all trials, or their scores could not be compared. Set it in `config`."
            )


def _all_tasks(configs: list[TrialConfig], objective: str | Objective) -> tuple[str, ...]:
    """Return the tasks of all configs.  Raises ValueError if an overall score would cover different tasks in some trials."""
    tasks = tuple(dict.fromkeys(name for config in configs for name in config.train_on))
    if objective in OVERALL and any(set(config.train_on) != set(tasks) for config in configs):
        raise ValueError(
            f"Trials differ in `train_on`, so `objective` {objective} would cover different tasks. Give an objective that is "
            "the same for all trials: {weights: {sst: 1, …}}, or one task."
        )
    return tasks


def _of_each_encoder(space: Space, configs: Iterable[TrialConfig]) -> dict[str, TrialConfig]:
    """Map each encoder to the config with the longest sequences, with the encoder's folder in it."""
    longest = {config.encoder.checkpoint: config for config in sorted(configs, key=lambda config: config.max_length)}
    encoders = {name: config.encoder.model_copy(update={"checkpoint": space.encoders.get(name, name)})
                for name, config in longest.items()}  # fmt: skip
    return {name: config.model_copy(update={"encoder": encoders[name]}) for name, config in longest.items()}


def _check_encoders(space: Space, configs: list[TrialConfig], relocated: Mapping[str, str]) -> None:
    """Raise ValueError if a config needs more than its encoder provides."""
    opened = {
        checkpoint: open_inputs(relocated_config(longest, relocated))
        for checkpoint, longest in _of_each_encoder(space, configs).items()
    }
    for config in configs:
        inputs = opened[config.encoder.checkpoint]
        check_encoder(config, inputs.shape, inputs.tokenizer)


def _pretrainings(space: Space, relocated: Mapping[str, str]) -> tuple[str, ...]:
    """Return a sentence for each further pretraining of a branch or a baseline: what it is, and when it runs.

    Its texts are read here, so that faults in them are raised before any worker starts.
    """
    branches, baselines = branch_samples(space), baseline_samples(space)
    known = {one.key for chain in known_chains(branches, baselines, space, relocated) for one in chain.ones}
    sentences: dict[str, str] = {}
    for chain in chains([*branches, *baselines], relocated):
        for one in chain.ones:
            if one.key not in sentences and not one.is_cached:
                read_texts(one.stage, chain.config, chain.inputs)
                vocabulary_of(chain.inputs.tokenizer)
            when = "runs once, before the first trial" if one.key in known else "runs in the first trial that begins with it"
            sentences[one.key] = one.describe(chain.config, when)
    return tuple(sentences.values())


def _num_parameters(config: TrialConfig) -> int:
    """Count the parameters of a config's model. For this the model is built and the corpus tokenised, so that faults are raised
    here, before any worker starts, and the workers find the token files."""
    model = build_model(config, build_encoder(config, open_inputs(config)))
    return sum(parameter.numel() for parameter in model.parameters())
