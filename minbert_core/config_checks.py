"""From a document to a TrialConfig: the checks between its parts, all faults reported together with path, file and line."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import nn

from minbert_core.config import LAYERS, OVERALL, TEXT_FILE, TINY, TOY, TrialConfig, pretraining_texts, task_layers
from minbert_core.data.own_tasks import named_wrong
from minbert_core.data.tasks import TASKS
from minbert_core.methods.gradients import parties_of
from minbert_core.methods.stages import Stage, StagePlan, in_epochs, shares
from minbert_core.plugins import with_plugins
from minbert_core.settings.faults import MAX_FAULTS, Fault, SettingsError, Where, fault_at, faults_of, path_of, subject
from minbert_core.settings.yaml import read_yaml
from minbert_core.words import did_you_mean, shown


def _cross_faults(config: TrialConfig) -> Iterator[str]:
    known, reserved = config.known_tasks, frozenset((*TASKS, *LAYERS, *OVERALL, "score"))
    wrong = {name: named_wrong(name, reserved) or _clash(name) for name in config.own_tasks}
    yield from (f"`own_tasks/{name}` {reason}." for name, reason in wrong.items() if reason)
    unknown = [name for name in config.train_on if name not in known]
    yield from (f"Unknown task in `train_on` '{name}'{did_you_mean(name, known)}" for name in unknown)
    layers = {*LAYERS, *known}
    yield from (f"Unknown `tasks/{name}`{did_you_mean(name, layers)}" for name in config.tasks if name not in layers)
    if len(set(config.train_on)) < len(config.train_on):
        yield f"`train_on` names a task twice. Got {shown(config.train_on)}."
    if config.encoder.checkpoint == TINY and config.data != TOY:
        law = f"knows the toy corpus's words only, but `data` is '{config.data}'"
        yield f"`encoder` tiny {law}. Use data: toy, or a pretrained encoder."
    yield from _objective_faults(config)
    for name in config.train_on:
        if name in known:
            yield from _task_faults(config, name)
    yield from _shared_layer_faults(config)
    yield from _stage_faults(config)
    for name in config.loss_weights.tasks_named:
        if name not in config.train_on:
            path = f"loss_weights/{config.loss_weights.kind}/weights/{name}"
            yield f"`{path}` weighs a task that is not in train_on {shown(config.train_on)}."


def _clash(name: str) -> str:
    """Return the end of a sentence if a model cannot have a head of that name: torch's containers use it for themselves."""
    return "has a name that torch's modules use themselves. Choose another" if hasattr(nn.ModuleDict(), name) else ""


def _objective_faults(config: TrialConfig) -> Iterator[str]:
    if isinstance(config.objective, str):
        known = {*OVERALL, *config.train_on}
        if config.objective not in known:
            yield f"Unknown `objective` '{config.objective}'{did_you_mean(config.objective, known)}"
        return
    for name in config.objective.weights:
        if name not in config.train_on:
            yield f"`objective/weights/{name}` weighs a task that is not in train_on {shown(config.train_on)}."


def _task_faults(config: TrialConfig, name: str) -> Iterator[str]:
    plan = config.task(name)

    def written(knob: str) -> str:
        """Return the path where the user set a knob: that is where to mend the fault."""
        layers = [
            layer for layer in reversed(task_layers(plan.task)) if getattr(config.tasks.get(layer), knob, None) is not None
        ]
        return f"tasks/{(layers or [name])[0]}/{knob}"

    fits = plan.task.kind in plan.loss.fits
    cause = f"`{written('pair_encoding')}` is cross" if plan.task.is_pair else f"task {name} has one sentence"
    remedy = "Use pair_encoding: bi." if plan.task.is_pair else "Set it for `pairs`, not for all."
    if plan.head.needs_pair_vectors and plan.vectors == 1:
        yield f"`{written('head')}` kind '{plan.head.kind}' compares two vectors per pair, but {cause}. {remedy}"
    if fits and plan.loss.needs_pair_vectors and plan.vectors == 1:
        yield f"`{written('loss')}` kind '{plan.loss.kind}' compares two vectors per pair, but {cause}. {remedy}"
    if fits and plan.loss.reads_features and not plan.head.reads_cosine_only:
        law = f"trains only the encoder, but `{written('head')}` kind '{plan.head.kind}' needs training"
        yield f"`{written('loss')}` kind '{plan.loss.kind}' {law}. Use head: cosine."
    if fits and plan.task.kind == "binary" and plan.loss.cosine_targets and plan.head.boundary is not None:
        low, high = plan.loss.cosine_targets
        if not low < plan.head.boundary < high:
            law = f"separates the classes of {name} at cosine {plan.head.boundary:g}, which must be between the loss's margin"
            remedy = plan.head.advice_for((low + high) / 2)
            yield f"`{written('head')}` kind '{plan.head.kind}' {law} {low:g} and {high:g}. {remedy}"
    if fits and plan.batch_size < plan.loss.fewest_examples:
        law = f"must be >= {plan.loss.fewest_examples} for a gradient of loss kind '{plan.loss.kind}'"
        yield f"`{written('batch_size')}` {law}. Got {plan.batch_size}. Use larger batches of {name}, or another loss."
    if plan.head.single_output and plan.outputs > 1:
        cause = f" under loss kind '{plan.loss.kind}'" if plan.task.outputs == 1 else ""
        yield f"`{written('head')}` kind '{plan.head.kind}' has one output, but task {name} has {plan.outputs} classes{cause}."
    if not fits:
        yield (
            f"`{written('loss')}` kind '{plan.loss.kind}' does not fit task {name}, which is {plan.task.kind}; it fits: "
            f"{', '.join(plan.loss.fits)}. Set it for the task it is meant for."
        )


def _shared_layer_faults(config: TrialConfig) -> Iterator[str]:
    if not config.shared_layer.size or not all(name in config.known_tasks for name in config.train_on):
        return
    if not any(config.shared_layer.serves(config.known_tasks[name].is_pair) for name in config.train_on):
        law = f"serves only tasks of pairs, but `train_on` {shown(config.train_on)} has none"
        yield f"`shared_layer` kind '{config.shared_layer.kind}' {law}. Use of: all, or shared_layer: none."


def _adapter_faults(config: TrialConfig, plans: list[StagePlan]) -> Iterator[str]:
    """Yield a fault if no stage trains the adapter, or if a gradient method has nothing that tasks share to act on."""
    kind, tasks = config.adapter.kind, [config.task(name) for name in config.train_on if name in config.known_tasks]
    if config.adapter.adds and not any(plan.trains_encoder for plan in plans):
        law = "is trained with the encoder, but every stage trains only heads"
        yield f"`adapter` kind '{kind}' {law}. Add a stage multitask or single_task, or use adapter: none."
    is_shared = config.adapter.shares or config.shared_layer.size or any(task.pooling.uses_pooler for task in tasks)
    for plan in plans:
        if plan.gradient.needs_several_tasks and not is_shared:
            law = f"merges gradients of what tasks share, but adapter kind '{kind}' leaves nothing of it to train"
            yield f"`gradient` kind '{plan.gradient.kind}' {law}. Use gradient: sum, or freeze_encoder: false."
            return


def _pretraining_faults(config: TrialConfig) -> Iterator[str]:
    numbers = [i for i, stage in enumerate(config.stages) if not stage.learns_labels]
    before = next(((i, stage.kind) for i, stage in enumerate(config.stages) if stage.learns_labels), None)
    for i, stage in zip(numbers, config.pretraining, strict=True):
        path = f"stages/{i}/{stage.kind}"
        if before is not None and before[0] < i:
            law = f"learns from texts without labels, and must come before '{before[1]}', which learns labels"
            yield f"`stages/{i}` kind '{stage.kind}' {law}."
        for name in stage.texts:
            if name not in config.known_tasks and not name.endswith(TEXT_FILE):
                known = did_you_mean(name, config.known_tasks)
                yield f"`{path}/texts` '{name}' is neither a task nor a text file, whose name ends in {TEXT_FILE}{known}"
            elif not stage.reads_single and name in config.known_tasks and not config.known_tasks[name].is_pair:
                law = "has one sentence per row, so there is no next one. Name tasks of pairs, or a text file"
                yield f"`{path}/texts` '{name}' {law}."
        if not pretraining_texts(config, stage):
            yield f"`{path}/texts` is empty, and train_on {shown(config.train_on)} has no pairs. Name a text file."
        if stage.optimizer is not None and stage.optimizer.per_task:
            yield f"`{path}/optimizer/per_task` keeps moments for each task, but texts have no task. Remove it."


def _stage_faults(config: TrialConfig) -> Iterator[str]:
    yield from _pretraining_faults(config)
    plans = config.stage_plans()
    if not plans:
        known = "multitask, single_task, linear_probe, heads_only"
        yield f"`stages` has only stages on texts without labels. Add a stage that learns labels: {known}."
        return
    try:
        if in_epochs(config.labelled):
            if said := [name for name in ("examples", "epochs") if getattr(config.budget, name) is not None]:
                yield f"`budget/{said[0]}` is the sum of the stages' own `epochs`. Remove it, or give the stages shares."
        else:
            shares(config.labelled)
    except ValueError as error:  # the shares do not make a whole, or some stages have epochs
        yield str(error)
    yield from _adapter_faults(config, plans)
    numbers = [i for i, stage in enumerate(config.stages) if stage.learns_labels]
    for i, stage, plan in zip(numbers, config.labelled, plans, strict=True):
        for task in plan.tasks:
            if task not in config.train_on:
                yield f"`stages/{i}/{stage.kind}/task` '{task}' is not in train_on{did_you_mean(task, config.train_on)}"
        num_tasks = len(plan.tasks)
        if plan.gradient.needs_several_tasks and plan.task_schedule.tasks_per_step(num_tasks) < 2:
            path = f"stages/{i}/{stage.kind}/gradient" if getattr(stage, "gradient", None) else "gradient"
            yield (
                f"`{path}` kind '{plan.gradient.kind}' needs several tasks per step, but task_schedule kind "
                f"'{plan.task_schedule.kind}' over {num_tasks} task{'s' * (num_tasks != 1)} gives one. Use gradient: sum, or a "
                "schedule that gives several."
            )
        yield from _method_faults(config, i, stage, plan)
        if not plan.trains_encoder and all(
            task in config.known_tasks and config.task(task).loss.reads_features for task in plan.tasks
        ):
            law = f"trains only heads, but the losses of {', '.join(plan.tasks)} train only the encoder"
            yield f"`stages/{i}` kind '{stage.kind}' {law}. Use another loss, or remove this stage."


def _method_faults(config: TrialConfig, i: int, stage: Stage, plan: StagePlan) -> Iterator[str]:
    """Yield the faults of a stage's loss weights, gradient groups, optimiser and smoothness with its schedule and tasks."""

    def written(knob: str) -> str:
        return f"stages/{i}/{stage.kind}/{knob}" if getattr(stage, knob, None) else knob

    schedule, num_a_step = plan.task_schedule.kind, plan.task_schedule.tasks_per_step(len(plan.tasks))
    if config.loss_weights.needs_several_tasks and num_a_step < min(2, len(plan.tasks)):
        law = f"needs several tasks per step, but task_schedule kind '{schedule}' gives one"
        yield f"`loss_weights` kind '{config.loss_weights.kind}' {law}. Use another, or a schedule that gives several."
    if plan.optimizer.per_task and num_a_step > 1:
        law = f"needs one task per step, but task_schedule kind '{schedule}' gives {num_a_step}"
        yield f"`{written('optimizer')}/per_task` {law}. Use per_task: false, or a schedule that gives one, such as alternate."
    grouped = [task for group in plan.gradient.groups for task in group]
    groups = f"`{written('gradient')}/{plan.gradient.kind}/groups`"
    for task in sorted(set(grouped)):
        if task not in config.train_on:
            yield f"{groups} holds '{task}', which is not in train_on{did_you_mean(task, config.train_on)}"
        if grouped.count(task) > 1:
            yield f"{groups} holds {task} twice; a task's gradient is in one sum."
    if grouped and len(parties_of(plan.tasks, plan.gradient.groups)) < 2 <= num_a_step:
        law = f"sums the gradients of all tasks of the stage, {', '.join(plan.tasks)}, which leaves nothing to merge"
        yield f"{groups} {law}. Leave one out of the group, or use gradient: sum."
    if plan.smoothness.views > 1 and (still := [task for task in plan.tasks if not _drops(config, task)]):
        law = f"compares passes under different dropout masks, but {', '.join(still)} has no dropout"
        yield f"`{written('smoothness')}` kind '{plan.smoothness.kind}' {law}. Use a dropout above 0, or smoothness: none."


def _drops(config: TrialConfig, name: str) -> bool:
    """Return whether anything between a task's words and its logits has a dropout."""
    if config.encoder.hidden_dropout or config.encoder.attention_dropout or name not in config.known_tasks:
        return True
    plan = config.task(name)
    layer = config.shared_layer if config.shared_layer.serves(plan.task.is_pair) else None
    return any(getattr(part, "dropout", 0) for part in (plan.head, layer))


def load_config(document: Any, where: Where | None = None) -> TrialConfig:
    """Build a TrialConfig from plain values.  Raises SettingsError with every fault; `where` maps paths to (source, line)."""
    if document is None:
        document = {}
    if not isinstance(document, dict):
        source, line = (where or {}).get("", ("", 1))
        raise SettingsError([Fault(line, f"A config is a map of settings. Got {shown(document)}.", source)])
    try:
        document = with_plugins(document, plugin_folders(where or {}))
    except ValueError as error:
        raise SettingsError([fault_at("plugins", str(error), where or {})]) from None
    try:
        config = TrialConfig.model_validate(document)
    except ValidationError as error:
        raise SettingsError(faults_of(error, TrialConfig, document, where or {})) from None
    if sentences := list(islice(_cross_faults(config), MAX_FAULTS)):
        raise SettingsError(fault_at(subject(sentence), sentence, where or {}) for sentence in sentences)
    return config


def plugin_folders(where: Where) -> list[Path]:
    """Return the folders in which plugins are looked for: that of the file which names them, then the current one."""
    source, _ = where.get("plugins", ("", 0))
    return [*([Path(source).parent] if source else []), Path()]


def read_config(path: Path) -> TrialConfig:
    """Read a TrialConfig from a YAML file.  Raises SettingsError with file and line."""
    document, lines = read_yaml(path)
    return load_config(document, {path_of(location, document): (str(path), line) for location, line in lines.items()})
