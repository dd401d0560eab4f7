"""TrialConfig: everything one trial is, composed of the families; what crosses them is checked here, all faults at once.

YAML or dict -> load_config -> TrialConfig -> paths.as_written -> plain values again
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from minbert_core.data.own_tasks import OwnTask, named_wrong
from minbert_core.data.tasks import TASKS, Task
from minbert_core.faults import Where, faults_of, path_of
from minbert_core.knobs import NO_DEFAULT, knob_at
from minbert_core.methods.adapters import Adapter, NoAdapter
from minbert_core.methods.features import Cross, Mean, PairEncoding, Pooling
from minbert_core.methods.gradients import GradientMethod, Sum
from minbert_core.methods.heads import Cosine, Head, Linear
from minbert_core.methods.loss_weights import LossWeights, Static
from minbert_core.methods.losses import CosineEmbedding, Loss, default_loss
from minbert_core.methods.optimizer import Optimizer
from minbert_core.methods.proximal import NoProximal, Proximal
from minbert_core.methods.shared_layers import NoSharedLayer, SharedLayer
from minbert_core.methods.smoothness import NoSmoothness, Smoothness
from minbert_core.methods.stages import LabelledStage, Multitask, Pretraining, Stage, StagePlan, in_epochs, shares
from minbert_core.methods.task_schedules import RoundRobin, TaskSchedule
from minbert_core.paths import as_written, lay_over
from minbert_core.settings import Fault, Settings, SettingsError, did_you_mean, read_yaml, shown

TOY, TINY = "toy", "tiny"
LAYERS = ("all", "pairs")  # keys of `tasks` that are no task
OVERALL = ("norm", "mean")  # objectives that are no task
TEXT_FILE = ".txt"
# Version of searches, snapshots and models. Their configs hold no defaults: raise it when a default changes, or the content of
# a snapshot.
FORMAT = 2


class Encoder(Settings):
    """Which pretrained BERT, and its own dropout (the heads have theirs)."""

    checkpoint: str = Field(
        "bert-base-uncased", description="hub name, folder in Hugging Face layout, or `tiny` (random, toy data only)"
    )
    hidden_dropout: float = Field(
        0.1, ge=0, lt=1, json_schema_extra={"unit": "share"}, description="dropout after embeddings, attention and feed-forward"
    )
    attention_dropout: float = Field(
        0.1, ge=0, lt=1, json_schema_extra={"unit": "share"}, description="dropout on attention probabilities"
    )


class TaskSettings(Settings):
    """How one task is learned; what is absent here is taken from `pairs`, `all`, or the default."""

    pair_encoding: PairEncoding | None = Field(None, description="cross: one sequence a pair; bi: one a sentence")
    pooling: Pooling | None = Field(None, description="hidden states of a sequence -> one vector")
    head: Head | None = Field(None, description="features -> logits")
    loss: Loss | None = Field(
        None, description="logits -> a number to lower; by default, by the task's kind: cross_entropy, bce, mse"
    )
    batch_size: PositiveInt | None = Field(
        None, json_schema_extra={"unit": "examples"}, description="a batch, in which a pair is one example; default 16"
    )


# Chosen by paired seeds (LOG.md, "Which defaults"), as are round_robin, the range scale of mse, and the rate
TASK_DEFAULTS: dict[str, Any] = {"pair_encoding": Cross(), "pooling": Mean(), "head": Linear(), "batch_size": 16}


class Budget(Settings):
    """What a trial may spend, in examples drawn, and where of it dev is evaluated."""

    examples: PositiveInt | None = Field(
        None,
        json_schema_extra={"unit": "examples"},
        description="labelled rows drawn, over all tasks; 400,000 if neither is given",
    )
    epochs: PositiveFloat | None = Field(
        None, json_schema_extra={"unit": "epochs"}, description="instead: epochs as the task schedule counts them"
    )
    points: tuple[PositiveInt, ...] = Field(
        (1, 3, 9),
        min_length=1,
        json_schema_extra={"unit": "parts"},
        description="evaluation points in parts of the budget; the last is all",
    )

    @field_validator("points")
    @classmethod
    def _increasing(cls, points: tuple[int, ...]) -> tuple[int, ...]:
        if list(points) != sorted(set(points)):
            raise ValueError(f"must increase. Got {list(points)}.")
        return points

    @model_validator(mode="after")
    def _one_unit(self) -> Budget:
        if self.examples is not None and self.epochs is not None:
            raise ValueError("`budget` takes examples or epochs, not both.")
        return self


class Machine(Settings):
    """What a trial runs on; chosen once a search and stored with each trial, so that a repeat is to the digit."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is a GPU")
    threads: PositiveInt = Field(1, json_schema_extra={"unit": "threads"}, description="CPU threads")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of matrix products; auto: bfloat16 on a GPU that has it"
    )
    matmul: Literal["torch", "onednn"] = Field(
        "torch",
        description="what multiplies float32 matrices on the CPU: torch's default, or oneDNN where that is faster, as exact",
    )
    micro_batch_tokens: PositiveInt | None = Field(
        None,
        json_schema_extra={"unit": "tokens"},
        description="a batch of more tokens goes through in several passes, its gradient accumulated; null: in one",
    )
    gpu_share: float = Field(
        1.0, gt=0, le=1, json_schema_extra={"unit": "of a GPU's memory"}, description="what the trial may take of it"
    )


class Objective(Settings):
    """A weighted mean of the tasks' metrics, r entering as (r + 1)/2."""

    weights: dict[str, PositiveFloat] = Field(min_length=1, description="task name -> weight")


ObjectiveSetting = Annotated[  # the tags only keep pydantic from trying both, and finding two faults in one
    Annotated[str, Tag("[name]")] | Annotated[Objective, Tag("[map]")],
    Discriminator(lambda value: "[map]" if isinstance(value, dict | Objective) else "[name]"),
]


def _checkpoint_name(value: object) -> object:
    return {"checkpoint": value} if isinstance(value, str) else value


class TrialConfig(Settings):
    """One trial, whole. Every field has a default that trains."""

    data: str = Field("data", description="folder with the course's files and those of own tasks, or `toy`")
    encoder: Annotated[Encoder, BeforeValidator(_checkpoint_name)] = Encoder()
    own_tasks: dict[str, OwnTask] = Field(
        {}, description="tasks beside the course's: a name -> its kind, files, columns, labels"
    )
    train_on: tuple[str, ...] = Field(
        ("sst", "para", "sts"), min_length=1, description="tasks trained on, and counted in the objective unless it weighs them"
    )
    tasks: dict[str, TaskSettings] = Field({}, description="`all`, `pairs` or a task's name -> how it is learned")
    budget: Budget = Budget()
    objective: ObjectiveSetting = Field("norm", description="norm, mean, one task, or weights: what the trial's score is")
    shared_layer: SharedLayer = NoSharedLayer()
    adapter: Adapter = NoAdapter()
    task_schedule: TaskSchedule = RoundRobin()
    loss_weights: LossWeights = Static()
    gradient: GradientMethod = Sum()
    smoothness: Smoothness = NoSmoothness()
    proximal: Proximal = NoProximal()
    optimizer: Optimizer = Optimizer()
    stages: tuple[Stage, ...] = Field((Multitask(),), min_length=1, description="what follows what; shares of the budget")
    max_length: int = Field(
        128,
        ge=8,
        le=512,
        json_schema_extra={"unit": "tokens"},
        description="longest sequence, specials included; longer ones are cut",
    )
    seed: int = Field(0, ge=0, description="of heads, masks, data order and everything else random")
    machine: Machine = Machine()

    @model_validator(mode="after")
    def _check_what_crosses(self) -> TrialConfig:
        if faults := list(_cross_faults(self)):
            raise ValueError("\n".join(faults))
        return self

    @cached_property
    def known_tasks(self) -> dict[str, Task]:
        """The course's tasks and the user's own, by name."""
        return TASKS | {name: declared.task(name) for name, declared in self.own_tasks.items()}

    @property
    def counted(self) -> tuple[str, ...]:
        """The tasks that norm and mean are over: those that the objective weighs, else all."""
        return tuple(self.objective.weights) if isinstance(self.objective, Objective) else self.train_on

    @property
    def recipe(self) -> str:
        """The names of the stages, `mlm+single_task-para+multitask`, and of a schedule with rounds, `multitask-sequential`."""
        return "+".join([*(stage.kind for stage in self.pretraining), *(plan.recipe for plan in self.stage_plans())])

    @property
    def pretraining(self) -> tuple[Pretraining, ...]:
        """The stages on texts without labels, which come before the others."""
        return tuple(stage for stage in self.stages if not stage.learns_labels)  # type: ignore[misc]

    @property
    def labelled(self) -> tuple[LabelledStage, ...]:
        """The stages that learn labels, among which the budget is parted."""
        return tuple(stage for stage in self.stages if stage.learns_labels)  # type: ignore[misc]

    def task(self, name: str) -> TaskPlan:
        """How task `name` is learned: its settings over those of pairs, over all, over the default, field by field."""
        task = self.known_tasks[name]
        written: Any = {}
        for layer in _layers(task):
            if layer in self.tasks:
                written = lay_over(written, as_written(self.tasks[layer]))
        settings = TaskSettings.model_validate(written)
        return TaskPlan(
            task=task,
            pair_encoding=settings.pair_encoding or TASK_DEFAULTS["pair_encoding"],
            pooling=settings.pooling or TASK_DEFAULTS["pooling"],
            head=settings.head or TASK_DEFAULTS["head"],
            loss=settings.loss or default_loss(task.kind),
            batch_size=settings.batch_size or TASK_DEFAULTS["batch_size"],
        )

    def stage_plans(self) -> list[StagePlan]:
        """The labelled stages with what they inherit filled in."""
        trial = StagePlan(
            name="",
            tasks=self.train_on,
            optimizer=self.optimizer,
            task_schedule=self.task_schedule,
            gradient=self.gradient,
            smoothness=self.smoothness,
            proximal=self.proximal,
        )
        return [stage.plan(trial) for stage in self.labelled]

    def rounds(self) -> list[Rounds | None]:
        """Return the rounds of each of `stage_plans`; None where its task schedule has none."""
        is_known = len(self.labelled) == 1 or not in_epochs(self.labelled)
        spans = pairwise([0.0, *accumulate(shares(self.labelled))])
        places = [f"stages/{i}/{stage.kind}/" for i, stage in enumerate(self.stages) if stage.learns_labels]
        found: list[Rounds | None] = []
        for place, stage, plan, span in zip(places, self.labelled, self.stage_plans(), spans, strict=True):
            path = f"{place if getattr(stage, 'task_schedule', None) else ''}task_schedule/{plan.task_schedule.kind}/rounds"
            rounds = Rounds(path, plan.tasks, plan.task_schedule.rounds, span if is_known else None)
            found.append(rounds if plan.has_rounds else None)
        return found

    def check_turns(self, sizes: Mapping[str, int]) -> None:
        """Raise ValueError where a turn is shorter than a batch, so that a round could pass it over."""
        for rounds, examples in zip(self.rounds(), self.stage_examples(sizes), strict=True):
            if rounds is None:
                continue
            batch = max(self.task(name).batch_size for name in rounds.tasks)
            rarest = min(rounds.tasks, key=lambda name: sizes[name])
            turns = examples * sizes[rarest] / sum(sizes[name] for name in rounds.tasks)
            if turns < batch * rounds.number:
                law = f"must give each task turns of at least a batch, {batch} examples"
                remedy = f"Use {int(turns // batch)} or fewer" if turns >= batch else "Use a larger budget"
                raise ValueError(
                    f"`{rounds.path}` {law}. Got {rounds.number}: {turns / rounds.number:.3g} examples for {rarest}. {remedy}."
                )

    def num_examples(self, sizes: Mapping[str, int]) -> int:
        """The budget in examples, given the rows of each task's train split."""
        if in_epochs(self.labelled):
            return max(1, round(sum(self.stage_examples(sizes))))
        if self.budget.epochs is not None:
            return max(1, round(self.budget.epochs * self._epoch_examples(self.task_schedule, self.train_on, sizes)))
        return self.budget.examples or 400_000

    def stage_examples(self, sizes: Mapping[str, int]) -> list[float]:
        """The part of the budget of each of `stage_plans`, in examples: its own epochs, or its share of the whole."""
        if in_epochs(self.labelled):
            plans = zip(self.labelled, self.stage_plans(), strict=True)
            return [(stage.epochs or 0) * self._epoch_examples(plan.task_schedule, plan.tasks, sizes) for stage, plan in plans]
        total = self.num_examples(sizes)
        return [share * total for share in shares(self.labelled)]

    def _epoch_examples(self, task_schedule: TaskSchedule, tasks: tuple[str, ...], sizes: Mapping[str, int]) -> int:
        """Examples of one epoch of some tasks, as a task schedule counts it."""
        batch_sizes = {name: self.task(name).batch_size for name in tasks}
        return task_schedule.epoch_examples({name: sizes[name] for name in tasks}, batch_sizes)


@dataclass(frozen=True)
class Rounds:
    """The rounds of a stage, in each of which every task has its turn (methods/task_schedules.py)."""

    path: str  # the knob that sets `number`
    tasks: tuple[str, ...]
    number: int
    span: tuple[float, float] | None  # the stage in shares of the budget; None where the sizes of the data decide it


@dataclass(frozen=True)
class TaskPlan:
    """A task's settings, resolved."""

    task: Task
    pair_encoding: PairEncoding
    pooling: Pooling
    head: Head
    loss: Loss
    batch_size: int

    @property
    def vectors(self) -> int:
        """Sequences an example: 2 for a pair under a bi-encoder, else 1."""
        return self.pair_encoding.vectors if self.task.is_pair else 1

    @property
    def outputs(self) -> int:
        """K, the width of the head's logits; a loss may want other than one for a regression."""
        return self.loss.outputs(self.task.outputs)


def _layers(task: Task) -> tuple[str, ...]:
    """The keys of `tasks` that say how `task` is learned; the later wins."""
    return ("all", "pairs", task.name) if task.is_pair else ("all", task.name)


def _cross_faults(config: TrialConfig) -> Iterator[str]:
    known, reserved = config.known_tasks, frozenset((*TASKS, *LAYERS, *OVERALL))
    wrong = {name: named_wrong(name, reserved) for name in config.own_tasks}
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
    for name in config.loss_weights.weights if isinstance(config.loss_weights, Static) else ():
        if name not in config.train_on:
            yield f"`loss_weights/static/weights/{name}` weighs a task that is not in train_on {shown(config.train_on)}."


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
        """Where the user set it: the fault is there, not at the task that it does not suit."""
        layers = [layer for layer in reversed(_layers(plan.task)) if getattr(config.tasks.get(layer), knob, None) is not None]
        return f"tasks/{(layers or [name])[0]}/{knob}"

    fits = plan.task.kind in plan.loss.fits
    cause = f"`{written('pair_encoding')}` is cross" if plan.task.is_pair else f"task {name} has one sentence"
    remedy = "Use pair_encoding: bi." if plan.task.is_pair else "Set it for `pairs`, not for all."
    if plan.head.needs_pair_vectors and plan.vectors == 1:
        yield f"`{written('head')}` kind '{plan.head.kind}' compares two vectors a pair, but {cause}. {remedy}"
    if fits and plan.loss.needs_pair_vectors and plan.vectors == 1:
        yield f"`{written('loss')}` kind '{plan.loss.kind}' compares two vectors a pair, but {cause}. {remedy}"
    if fits and plan.loss.reads_features and not plan.head.reads_cosine_only:
        law = f"trains the encoder alone, but `{written('head')}` kind '{plan.head.kind}' answers nothing untrained"
        yield f"`{written('loss')}` kind '{plan.loss.kind}' {law}. Use head: cosine."
    if fits and plan.task.kind == "binary" and isinstance(plan.loss, CosineEmbedding) and isinstance(plan.head, Cosine):
        boundary, margin = 0.0 - plan.head.offset / plan.head.scale, plan.loss.margin
        if not margin < boundary < 1:  # where the loss puts the pairs that are not alike, or beyond those that are
            law = f"parts the classes of {name} at a cosine of {boundary:g}, which must lie between the loss's margin"
            remedy = f"Set its offset to {-plan.head.scale * (1 + margin) / 2:g}."
            yield f"`{written('head')}` kind 'cosine' {law} {margin:g} and 1. {remedy}"
    if plan.head.single_output and plan.outputs > 1:
        cause = f" under loss kind '{plan.loss.kind}'" if plan.task.outputs == 1 else ""
        yield f"`{written('head')}` kind '{plan.head.kind}' has one output, but task {name} has {plan.outputs} classes{cause}."
    if not fits:
        yield (
            f"`{written('loss')}` kind '{plan.loss.kind}' does not fit task {name}, which is {plan.task.kind}; it fits: "
            f"{', '.join(plan.loss.fits)}. Set it for the task it is meant for."
        )


def _shared_layer_faults(config: TrialConfig) -> Iterator[str]:
    if isinstance(config.shared_layer, NoSharedLayer) or not all(name in config.known_tasks for name in config.train_on):
        return
    if not any(config.shared_layer.serves(config.known_tasks[name].is_pair) for name in config.train_on):
        law = f"is of the tasks of pairs, but `train_on` {shown(config.train_on)} has none"
        yield f"`shared_layer` kind '{config.shared_layer.kind}' {law}. Use of: all, or shared_layer: none."


def _adapter_faults(config: TrialConfig, plans: list[StagePlan]) -> Iterator[str]:
    """Of an adapter that no stage trains, and of task gradients to merge where it leaves nothing that tasks share."""
    kind, tasks = config.adapter.kind, [config.task(name) for name in config.train_on if name in config.known_tasks]
    if config.adapter.adds and not any(plan.trains_encoder for plan in plans):
        law = "is trained where the encoder is, but every stage trains heads alone"
        yield f"`adapter` kind '{kind}' {law}. Add a stage multitask or single_task, or use adapter: none."
    is_shared = config.adapter.shares or config.shared_layer.size or any(task.pooling.uses_pooler for task in tasks)
    for plan in plans:
        if plan.gradient.needs_several_tasks and not is_shared:
            law = f"merges gradients of what tasks share, but adapter kind '{kind}' leaves nothing of it to train"
            yield f"`gradient` kind '{plan.gradient.kind}' {law}. Use gradient: sum, or freeze_encoder: false."
            return


def _pretraining_faults(config: TrialConfig) -> Iterator[str]:
    for stage in config.pretraining:
        i = config.stages.index(stage)
        path = f"stages/{i}/{stage.kind}"
        if before := [other.kind for other in config.stages[:i] if other.learns_labels]:
            law = f"learns from texts alone, and must come before '{before[0]}', which learns labels"
            yield f"`stages/{i}` kind '{stage.kind}' {law}."
        for name in stage.texts:
            if name not in config.known_tasks and not name.endswith(TEXT_FILE):
                known = did_you_mean(name, config.known_tasks)
                yield f"`{path}/texts` '{name}' is no task, and no text file, whose name ends in {TEXT_FILE}{known}"
            elif not stage.reads_single and name in config.known_tasks and not config.known_tasks[name].is_pair:
                law = "has one sentence a row, so that none comes next. Name tasks of pairs, or a text file"
                yield f"`{path}/texts` '{name}' {law}."
        if not pretraining_texts(config, stage):
            yield f"`{path}/texts` is empty, and train_on {shown(config.train_on)} has no pairs. Name a text file."
        if stage.optimizer is not None and stage.optimizer.per_task:
            yield f"`{path}/optimizer/per_task` keeps moments for each task, but texts have no task. Leave it out."


def pretraining_texts(config: TrialConfig, stage: Pretraining) -> tuple[str, ...]:
    """What a stage on texts without labels reads: what it names, else the tasks of train_on that it can read."""
    known = config.known_tasks
    return stage.texts or tuple(
        name for name in config.train_on if name in known and (stage.reads_single or known[name].is_pair)
    )


def _stage_faults(config: TrialConfig) -> Iterator[str]:
    yield from _pretraining_faults(config)
    plans = config.stage_plans()
    if not plans:
        known = "multitask, single_task, linear_probe, heads_only"
        yield f"`stages` learns from texts alone. Add a stage that learns labels: {known}."
        return
    try:
        if in_epochs(config.labelled):
            if said := [name for name in ("examples", "epochs") if getattr(config.budget, name) is not None]:
                yield f"`budget/{said[0]}` is the sum of the stages' own `epochs`. Leave it out, or give the stages shares."
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
                f"`{path}` kind '{plan.gradient.kind}' needs several tasks a step, but task_schedule kind "
                f"'{plan.task_schedule.kind}' over {num_tasks} task{'s' * (num_tasks != 1)} gives one. Use gradient: sum, or a "
                "schedule that gives several."
            )
        yield from _method_faults(config, i, stage, plan)
        if not plan.trains_encoder and all(
            task in config.known_tasks and config.task(task).loss.reads_features for task in plan.tasks
        ):
            law = f"trains heads alone, but the losses of {', '.join(plan.tasks)} train the encoder alone"
            yield f"`stages/{i}` kind '{stage.kind}' {law}. Use another loss, or leave this stage out."


def _method_faults(config: TrialConfig, i: int, stage: Stage, plan: StagePlan) -> Iterator[str]:
    """What a stage's loss weights, gradient groups, optimiser and smoothness ask of its schedule, tasks and dropout."""

    def written(knob: str) -> str:
        return f"stages/{i}/{stage.kind}/{knob}" if getattr(stage, knob, None) else knob

    schedule, num_a_step = plan.task_schedule.kind, plan.task_schedule.tasks_per_step(len(plan.tasks))
    if config.loss_weights.needs_several_tasks and num_a_step < min(2, len(plan.tasks)):
        law = f"needs several tasks a step, but task_schedule kind '{schedule}' gives one"
        yield f"`loss_weights` kind '{config.loss_weights.kind}' {law}. Use another, or a schedule that gives several."
    if plan.optimizer.per_task and num_a_step > 1:
        law = f"needs one task a step, but task_schedule kind '{schedule}' gives {num_a_step}"
        yield f"`{written('optimizer')}/per_task` {law}. Use per_task: false, or a schedule that gives one, as alternate."
    grouped = [task for group in plan.gradient.groups for task in group]
    groups = f"`{written('gradient')}/{plan.gradient.kind}/groups`"
    for task in sorted(set(grouped)):
        if task not in config.train_on:
            yield f"{groups} holds '{task}', which is not in train_on{did_you_mean(task, config.train_on)}"
        if grouped.count(task) > 1:
            yield f"{groups} holds {task} twice; a task's gradient is in one sum."
    if plan.smoothness.views > 1 and (still := [task for task in plan.tasks if not _drops(config, task)]):
        law = f"compares passes under different dropout masks, but in those of {', '.join(still)} nothing is dropped"
        yield f"`{written('smoothness')}` kind '{plan.smoothness.kind}' {law}. Use a dropout above 0, or smoothness: none."


def _drops(config: TrialConfig, name: str) -> bool:
    """Whether anything between a task's words and its logits has a dropout."""
    if config.encoder.hidden_dropout or config.encoder.attention_dropout or name not in config.known_tasks:
        return True
    plan = config.task(name)
    layer = config.shared_layer if config.shared_layer.serves(plan.task.is_pair) else None
    return any(getattr(part, "dropout", 0) for part in (plan.head, layer))


# --------------------------------------------------------------------------------------------------------------- loading


def load_config(document: Any, where: Where | None = None) -> TrialConfig:
    """A TrialConfig from plain values.  Raises SettingsError with every fault; `where` maps paths to (source, line)."""
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise SettingsError([Fault(1, f"A config is a map of settings. Got {shown(document)}.")])
    try:
        return TrialConfig.model_validate(document)
    except ValidationError as error:
        raise SettingsError(faults_of(error, TrialConfig, document, where or {})) from None


def read_config(path: Path) -> TrialConfig:
    """The TrialConfig in a YAML file.  Raises SettingsError with file and line."""
    document, lines = read_yaml(path)
    return load_config(document, {path_of(location, document): (str(path), line) for location, line in lines.items()})


def default_at(path: str) -> Any:
    """What a config has at `path` (`optimizer/lr`, `gradient`) where nobody sets it, a variant as its kind; else NO_DEFAULT."""
    knob = knob_at(TrialConfig, path)
    value = knob.default if knob else NO_DEFAULT
    if re.fullmatch("tasks/[^/]+/[^/]+", path):
        _, layer, name = path.split("/")
        value = getattr(TrialConfig().task(layer), name, NO_DEFAULT) if layer in TASKS else TASK_DEFAULTS.get(name, NO_DEFAULT)
    return [_as_kind(item) for item in value] if isinstance(value, tuple) else _as_kind(value)


def _as_kind(value: Any) -> Any:
    return getattr(value, "kind", value)


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed that is a pure function of `parts`: (trial seed, purpose, step …)."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
