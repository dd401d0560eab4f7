"""TrialConfig: all settings of one trial, composed of the families.

YAML or dict -> config_checks.load_config -> TrialConfig -> paths.as_written -> plain values again
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)

from minbert_core.data.own_tasks import OwnTask
from minbert_core.data.tasks import TASKS, Task
from minbert_core.methods.adapters import Adapter, NoAdapter
from minbert_core.methods.features import Cross, Mean, PairEncoding, Pooling
from minbert_core.methods.gradients import GradientMethod, Sum
from minbert_core.methods.heads import Head, Linear
from minbert_core.methods.loss_weights import LossWeights, Static
from minbert_core.methods.losses import Loss, default_loss
from minbert_core.methods.optimizer import Optimizer
from minbert_core.methods.proximal import NoProximal, Proximal
from minbert_core.methods.shared_layers import NoSharedLayer, SharedLayer
from minbert_core.methods.smoothness import NoSmoothness, Smoothness
from minbert_core.methods.stages import LabelledStage, Multitask, Pretraining, Stage, StagePlan, in_epochs, shares, stage_ends
from minbert_core.methods.task_schedules import RoundRobin, TaskSchedule
from minbert_core.settings.knobs import NO_DEFAULT, knob_at
from minbert_core.settings.models import Settings
from minbert_core.settings.paths import as_written, lay_over

TOY, TINY = "toy", "tiny"
LAYERS = ("all", "pairs")  # keys of `tasks` that are not tasks
OVERALL = ("norm", "mean")  # objectives that are not tasks
TEXT_FILE = ".txt"
# Version of searches, snapshots and models. Their configs omit defaults, so raise it when a default changes, or the content
# of a snapshot.
FORMAT = 2
NO_MPS = "must be auto, cpu or cuda: the packed encoder has not been checked on Apple's GPUs (MPS), so it does not use them."


class Encoder(Settings):
    """The pretrained BERT and its dropout; heads have their own."""

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
    """The settings of one task; absent ones come from `pairs`, then `all`, then the default."""

    pair_encoding: PairEncoding | None = Field(None, description="cross: one sequence per pair; bi: one per sentence")
    pooling: Pooling | None = Field(None, description="hidden states of a sequence -> one vector")
    head: Head | None = Field(None, description="features -> logits")
    loss: Loss | None = Field(
        None, description="logits -> the number to minimise; default by kind of task: cross_entropy, bce, mse"
    )
    batch_size: PositiveInt | None = Field(
        None, json_schema_extra={"unit": "examples"}, description="size of a batch; a pair counts as one example; default 16"
    )


# Chosen by paired seeds (LOG.md, "Which defaults"), as are round_robin, the range scale of mse, and the rate
TASK_DEFAULTS: dict[str, Any] = {"pair_encoding": Cross(), "pooling": Mean(), "head": Linear(), "batch_size": 16}


class Budget(Settings):
    """How many examples a trial may draw, and when it is evaluated on dev."""

    examples: PositiveInt | None = Field(
        None,
        json_schema_extra={"unit": "examples"},
        description="labelled rows drawn, over all tasks; 400,000 if epochs is absent, too",
    )
    epochs: PositiveFloat | None = Field(
        None, json_schema_extra={"unit": "epochs"}, description="instead of examples: epochs as the task schedule counts them"
    )
    points: tuple[PositiveInt, ...] = Field(
        (1, 3, 9),
        min_length=1,
        json_schema_extra={"unit": "parts"},
        description="evaluation points, relative to the last one, which is the whole budget",
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
    """The machine settings, chosen once per search and stored with each trial, so that reruns are bit-identical."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda if there is a GPU")

    @field_validator("device", mode="before")
    @classmethod
    def _not_apples(cls, device: object) -> object:
        if device == "mps":
            raise ValueError(f"{NO_MPS} Got mps. Use cpu, which auto takes on a Mac.")
        return device

    threads: PositiveInt = Field(1, json_schema_extra={"unit": "threads"}, description="CPU threads")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="precision of matrix products; auto: bfloat16 on a GPU that supports it"
    )
    matmul: Literal["torch", "onednn"] = Field(
        "torch",
        description="library for float32 matrix products on the CPU: torch's default, or oneDNN where faster; equally exact",
    )
    micro_batch_tokens: PositiveInt | None = Field(
        None,
        json_schema_extra={"unit": "tokens"},
        description="split a batch of more tokens into several passes and accumulate gradients; null: never split",
    )
    gpu_share: float = Field(
        1.0,
        gt=0,
        le=1,
        json_schema_extra={"unit": "of a GPU's memory"},
        description="share of a GPU's memory that a trial may use",
    )


class Objective(Settings):
    """A weighted mean of the tasks' metrics; r counts as (r + 1)/2."""

    weights: dict[str, PositiveFloat] = Field(min_length=1, description="task name -> weight")


ObjectiveSetting = Annotated[  # the tags keep pydantic from trying both, and reporting one fault as two
    Annotated[str, Tag("[name]")] | Annotated[Objective, Tag("[map]")],
    Discriminator(lambda value: "[map]" if isinstance(value, dict | Objective) else "[name]"),
]


def _checkpoint_name(value: object) -> object:
    return {"checkpoint": value} if isinstance(value, str) else value


class TrialConfig(Settings):
    """All settings of one trial. Every field has a default that trains."""

    data: str = Field("data", description="folder with the files of the course and of own tasks, or `toy`")
    encoder: Annotated[Encoder, BeforeValidator(_checkpoint_name)] = Encoder()
    own_tasks: dict[str, OwnTask] = Field(
        {}, description="tasks in addition to the course's: name -> kind, files, columns, labels"
    )
    plugins: tuple[str, ...] = Field((), description="files with variants of yours, next to this one: [my_head.py]")
    train_on: tuple[str, ...] = Field(
        ("sst", "para", "sts"),
        min_length=1,
        description="tasks to train on, which also count in the objective unless it has weights",
    )
    rows: Literal["train", "train+dev"] = Field(
        "train", description="rows to train on; train+dev, without a dev score, is for `python -m minbert_core.train` alone"
    )
    tasks: dict[str, TaskSettings] = Field({}, description="`all`, `pairs` or a task's name -> its settings")
    budget: Budget = Budget()
    objective: ObjectiveSetting = Field("norm", description="score of the trial: norm, mean, one task, or weights")
    shared_layer: SharedLayer = NoSharedLayer()
    adapter: Adapter = NoAdapter()
    task_schedule: TaskSchedule = RoundRobin()
    loss_weights: LossWeights = Static()
    gradient: GradientMethod = Sum()
    smoothness: Smoothness = NoSmoothness()
    proximal: Proximal = NoProximal()
    optimizer: Optimizer = Optimizer()
    stages: tuple[Stage, ...] = Field(
        (Multitask(),), min_length=1, description="stages in order, each with a share of the budget"
    )
    max_length: int = Field(
        128,
        ge=8,
        le=512,
        json_schema_extra={"unit": "tokens"},
        description="longest sequence, specials included; longer ones are cut",
    )
    seed: int = Field(0, ge=0, description="seed of everything random: new heads, dropout masks, data order")
    machine: Machine = Machine()

    @cached_property
    def known_tasks(self) -> dict[str, Task]:
        """The course's tasks and the user's own, by name."""
        return TASKS | {name: declared.task(name) for name, declared in self.own_tasks.items()}

    @property
    def counted(self) -> tuple[str, ...]:
        """The tasks that norm and mean average: those that the objective weighs, else all."""
        return tuple(self.objective.weights) if isinstance(self.objective, Objective) else self.train_on

    @property
    def recipe(self) -> str:
        """The names of the stages, `mlm+single_task-para+multitask`; with a schedule of rounds, `multitask-sequential`."""
        return "+".join([*(stage.kind for stage in self.pretraining), *(plan.recipe for plan in self.stage_plans())])

    @property
    def identity(self) -> str:
        """The first 16 digits of the sha256 of the config as written. A trial's folder, snapshot and study entry share it."""
        return hashlib.sha256(json.dumps(as_written(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def pretraining(self) -> tuple[Pretraining, ...]:
        """The stages on texts without labels, which precede the others."""
        return tuple(stage for stage in self.stages if not stage.learns_labels)  # type: ignore[misc]

    @property
    def labelled(self) -> tuple[LabelledStage, ...]:
        """The stages that learn labels, which divide the budget among themselves."""
        return tuple(stage for stage in self.stages if stage.learns_labels)  # type: ignore[misc]

    @cached_property
    def task_plans(self) -> dict[str, TaskPlan]:
        """The tasks that `task` has resolved so far: checks and training ask for each many times."""
        return {}

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> TrialConfig:
        """Return a copy with other settings, from which it resolves its tasks itself."""
        copy = super().model_copy(update=update, deep=deep)
        for cached in ("known_tasks", "task_plans"):
            copy.__dict__.pop(cached, None)
        return copy

    def task(self, name: str) -> TaskPlan:
        """Resolve how task `name` is learned: its own settings over those of pairs, of all, and the default, field by field."""
        if name not in self.task_plans:
            self.task_plans[name] = self._resolved(self.known_tasks[name])
        return self.task_plans[name]

    def _resolved(self, task: Task) -> TaskPlan:
        written: Any = {}
        for layer in task_layers(task):
            if layer in self.tasks:
                own = as_written(self.tasks[layer])
                written = lay_over(written, {name: value for name, value in own.items() if value is not None})
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
        """Raise ValueError if a turn is shorter than a batch, or a stage than a step, so that it could be skipped."""
        self._check_stages(sizes)
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

    def _check_stages(self, sizes: Mapping[str, int]) -> None:
        """Raise ValueError if one of several stages is shorter than its own step, or than a step before, which may overshoot.

        The only stage has a step in any case.
        """
        ends = stage_ends(self.stage_examples(sizes), self.num_examples(sizes))
        steps = [self._most_per_step(plan) for plan in self.stage_plans()]
        numbers = [i for i, stage in enumerate(self.stages) if stage.learns_labels]
        for i, start, end, step, before in zip(numbers, [0, *ends[:-1]], ends, steps, [0, *steps[:-1]], strict=True):
            if len(ends) > 1 and end - start < (least := max(step, before)):
                step_of = "a step of the stage before" if before > step else "one of its steps"
                law = f"must be at least as long as {step_of}, {least} examples"
                remedy = "more epochs" if in_epochs(self.labelled) else "a larger share, or a larger budget"
                raise ValueError(f"`stages/{i}` kind '{self.stages[i].kind}' {law}. Got {end - start}. Use {remedy}.")

    def _most_per_step(self, plan: StagePlan) -> int:
        """Return the most examples that a step of a stage draws."""
        batches = sorted((self.task(name).batch_size for name in plan.tasks), reverse=True)
        return sum(batches[: plan.task_schedule.tasks_per_step(len(batches))])

    def num_examples(self, sizes: Mapping[str, int]) -> int:
        """Return the budget in examples, given the number of training rows of each task."""
        if in_epochs(self.labelled):
            return max(1, round(sum(self.stage_examples(sizes))))
        if self.budget.epochs is not None:
            return max(1, round(self.budget.epochs * self._epoch_examples(self.task_schedule, self.train_on, sizes)))
        return self.budget.examples or 400_000

    def stage_examples(self, sizes: Mapping[str, int]) -> list[float]:
        """Return the budget of each of `stage_plans` in examples: its own epochs, or its share of the whole."""
        if in_epochs(self.labelled):
            plans = zip(self.labelled, self.stage_plans(), strict=True)
            return [(stage.epochs or 0) * self._epoch_examples(plan.task_schedule, plan.tasks, sizes) for stage, plan in plans]
        total = self.num_examples(sizes)
        return [share * total for share in shares(self.labelled)]

    def _epoch_examples(self, task_schedule: TaskSchedule, tasks: tuple[str, ...], sizes: Mapping[str, int]) -> int:
        """Return the examples of one epoch of some tasks, as a task schedule counts it."""
        batch_sizes = {name: self.task(name).batch_size for name in tasks}
        return task_schedule.epoch_examples({name: sizes[name] for name in tasks}, batch_sizes)


@dataclass(frozen=True)
class Rounds:
    """The rounds of a stage, in each of which every task has its turn (methods/task_schedules.py)."""

    path: str  # the knob that sets `number`
    tasks: tuple[str, ...]
    number: int
    span: tuple[float, float] | None  # start and end in shares of the budget; None if they depend on the sizes of the data


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
        """Sequences per example: 2 for a pair under a bi-encoder, else 1."""
        return self.pair_encoding.vectors if self.task.is_pair else 1

    @property
    def outputs(self) -> int:
        """K, the width of the head's logits, which may exceed 1 for a regression, depending on the loss."""
        return self.loss.outputs(self.task.outputs)


def task_layers(task: Task) -> tuple[str, ...]:
    """Return the keys of `tasks` whose settings apply to `task`; later ones win."""
    return ("all", "pairs", task.name) if task.is_pair else ("all", task.name)


def pretraining_texts(config: TrialConfig, stage: Pretraining) -> tuple[str, ...]:
    """Return the texts of a stage without labels: those it names, else the tasks of train_on that it can read."""
    known = config.known_tasks
    return stage.texts or tuple(
        name for name in config.train_on if name in known and (stage.reads_single or known[name].is_pair)
    )


# --------------------------------------------------------------------------------------------------------------- loading


def default_at(path: str) -> Any:
    """Return the default at `path` (`optimizer/lr`, `gradient`), a variant as its kind; NO_DEFAULT if there is none."""
    knob = knob_at(TrialConfig, path)
    value = knob.default if knob else NO_DEFAULT
    if re.fullmatch("tasks/[^/]+/[^/]+", path):
        _, layer, name = path.split("/")
        value = getattr(TrialConfig().task(layer), name, NO_DEFAULT) if layer in TASKS else TASK_DEFAULTS.get(name, NO_DEFAULT)
    return [_as_kind(item) for item in value] if isinstance(value, tuple) else _as_kind(value)


def _as_kind(value: Any) -> Any:
    return getattr(value, "kind", value)
