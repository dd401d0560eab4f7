"""Stages: a trial trains in one or more of them, each with its share of the budget, its own LR schedule and a fresh optimiser.

    the trial's own settings, as a StagePlan -> stage.plan(trial) -> the StagePlan of this stage

The list of stages is the trial's recipe. Linear probing then fine-tuning (LP-FT) is `[linear_probe, multitask]`; Para first is
`[{kind: single_task, task: para, share: 0.3}, multitask]`. A recipe may begin with stages on texts without labels, which have
their own epochs and no share of the budget. No other family imports families; this one does, because a stage holds their
settings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt
from torch import nn

from minbert_core.encoder import EncoderShape
from minbert_core.methods.gradients import GradientMethod, Sum
from minbert_core.methods.objectives import Integers, NextHead, Vocabulary, WordHead, masked, masked_units, own_or_other
from minbert_core.methods.optimizer import Optimizer
from minbert_core.methods.proximal import NoProximal, Proximal
from minbert_core.methods.smoothness import NoSmoothness, Smoothness
from minbert_core.methods.task_schedules import RoundRobin, TaskSchedule
from minbert_core.settings.models import BARE_NAME, Variant

Share = Annotated[
    float | None,
    Field(
        gt=0,
        le=1,
        json_schema_extra={"unit": "of the trial's budget"},
        description="share of this stage; stages without one split the rest",
    ),
]
Epochs = Annotated[
    float | None,
    Field(
        gt=0,
        json_schema_extra={"unit": "epochs"},
        description="instead of a share: epochs over the stage's tasks, as its task_schedule counts them; then every stage "
        "needs them, and the budget is their sum",
    ),
]
OwnOptimizer = Annotated[Optimizer | None, Field(description="replaces the trial's optimizer in this stage; null inherits it")]
OwnSchedule = Annotated[
    TaskSchedule | None, Field(description="replaces the trial's task_schedule in this stage; null inherits it")
]
OwnGradient = Annotated[
    GradientMethod | None, Field(description="replaces the trial's gradient method in this stage; null inherits it")
]
OwnSmoothness = Annotated[
    Smoothness | None,
    Field(description="replaces the trial's smoothness in this stage; null inherits it, `none` turns it off"),
]
OwnProximal = Annotated[
    Proximal | None, Field(description="replaces the trial's proximal in this stage; null inherits it, `none` turns it off")
]
ProbeRate = Annotated[
    float,
    Field(gt=0, le=1, json_schema_extra={"unit": "per step"}, description="peak learning rate of the heads in this stage"),
]


@dataclass(frozen=True)
class StagePlan:
    """The settings of one stage, all resolved. The trial's own settings form one, too."""

    name: str
    tasks: tuple[str, ...]
    optimizer: Optimizer
    task_schedule: TaskSchedule
    gradient: GradientMethod
    smoothness: Smoothness
    proximal: Proximal
    trains_encoder: bool = True
    fresh_heads: bool = False  # the stage starts with newly drawn heads

    @property
    def has_rounds(self) -> bool:
        """Whether the tasks have long turns, so that in the middle of a round some have had fewer examples than others."""
        return self.task_schedule.rounds != 0 and len(self.tasks) > 1

    @property
    def recipe(self) -> str:
        """The name of the stage in the trial's recipe: `multitask`, `single_task-para`, `multitask-sequential`."""
        return f"{self.name}-{self.task_schedule.kind}" if self.has_rounds else self.name


class LabelledVariant(Variant):
    """The defaults of a stage that learns labels; a variant has a `share`, `epochs`, and `plan(trial) -> StagePlan`."""

    learns_labels: ClassVar[bool] = True


class Multitask(LabelledVariant):
    """All tasks of `train_on` together, encoder and heads trained (Caruana 1997)."""

    kind: Literal["multitask"] = "multitask"
    share: Share = None
    epochs: Epochs = None
    optimizer: OwnOptimizer = None
    task_schedule: OwnSchedule = None
    gradient: OwnGradient = None
    smoothness: OwnSmoothness = None
    proximal: OwnProximal = None

    def plan(self, trial: StagePlan) -> StagePlan:
        """Plan all tasks, with the settings that this stage overrides."""
        return replace(
            trial,
            name=self.kind,
            optimizer=self.optimizer or trial.optimizer,
            task_schedule=self.task_schedule or trial.task_schedule,
            gradient=self.gradient or trial.gradient,
            smoothness=self.smoothness or trial.smoothness,
            proximal=self.proximal or trial.proximal,
        )


class SingleTask(LabelledVariant):
    """One task only, encoder and its head trained: Para first (Kehoe & Ravella 2024), or one of several in a row."""

    kind: Literal["single_task"] = "single_task"
    task: str = Field(description="the task's name, one of train_on")
    share: Share = None
    epochs: Epochs = None
    optimizer: OwnOptimizer = None
    smoothness: OwnSmoothness = None
    proximal: OwnProximal = None

    def plan(self, trial: StagePlan) -> StagePlan:
        """Plan the one task: nothing to schedule, nothing to merge."""
        return replace(
            trial,
            name=f"{self.kind}-{self.task}",
            tasks=(self.task,),
            optimizer=self.optimizer or trial.optimizer,
            task_schedule=RoundRobin(),
            gradient=Sum(),
            smoothness=self.smoothness or trial.smoothness,
            proximal=self.proximal or trial.proximal,
        )


class LinearProbe(LabelledVariant):
    """The heads only, on the frozen encoder: the LP of LP-FT (Kumar et al. 2022, arXiv 2202.10054).

    The encoder runs as in evaluation, without dropout. Gradient method, smoothness and proximal are off in this stage.
    """

    kind: Literal["linear_probe"] = "linear_probe"
    share: Share = None
    epochs: Epochs = None
    lr: ProbeRate = 1e-3
    task_schedule: OwnSchedule = None

    def plan(self, trial: StagePlan) -> StagePlan:
        """Plan to train the current heads only."""
        return _frozen(trial, self.kind, self.lr, self.task_schedule, fresh_heads=False)


class HeadsOnly(LabelledVariant):
    """The heads again, on the encoder of the stages before (the last stage of Liu & Maniku 2023).

    Like linear_probe, but it can draw new heads first: the old ones may have adapted to an encoder that has changed since.
    """

    kind: Literal["heads_only"] = "heads_only"
    share: Share = None
    epochs: Epochs = None
    lr: ProbeRate = 1e-3
    fresh: bool = Field(False, description="true: the stage starts with newly drawn heads")
    task_schedule: OwnSchedule = None

    def plan(self, trial: StagePlan) -> StagePlan:
        """Plan to train the heads only, newly drawn if `fresh`."""
        return _frozen(trial, self.kind, self.lr, self.task_schedule, self.fresh)


LabelledStage = Annotated[Multitask | SingleTask | LinearProbe | HeadsOnly, Field(discriminator="kind"), BARE_NAME]


def _frozen(trial: StagePlan, name: str, lr: float, task_schedule: TaskSchedule | None, fresh_heads: bool) -> StagePlan:
    """Plan a stage that trains heads only, at the rate `lr`."""
    return replace(
        trial,
        name=name,
        optimizer=trial.optimizer.model_copy(update={"lr": lr, "head_lr_factor": 1.0}),
        task_schedule=task_schedule or trial.task_schedule,
        gradient=Sum(),
        smoothness=NoSmoothness(),
        proximal=NoProximal(),
        trains_encoder=False,
        fresh_heads=fresh_heads,
    )


# --------------------------------------------------------------------------------------- stages on texts without labels

Texts = Annotated[
    tuple[str, ...],
    Field(
        description="names of tasks, whose labels are ignored, and text files (.txt, UTF-8, one text per line, in `data` or "
        "absolute); empty: the tasks of train_on, for nsp only those of pairs"
    ),
]
Balance = Annotated[bool, Field(description="true: read as many rows from each of `texts` as the smallest has")]
TextEpochs = Annotated[float, Field(gt=0, json_schema_extra={"unit": "epochs"}, description="passes over the texts")]
BatchSize = Annotated[
    PositiveInt, Field(json_schema_extra={"unit": "texts"}, description="size of a batch; a pair counts as one text")
]
TextOptimizer = Annotated[
    Optimizer | None,
    Field(description="all settings of its optimizer; null: the default one with lr 5e-5 (Sun et al. 2019, arXiv 1905.05583)"),
]
Seed = Annotated[
    int,
    Field(
        ge=0,
        description="seed of order, masks and new weights; fixed per stage, so all trials share one pretraining run, and the "
        "variance over trial seeds excludes it",
    ),
]


class PretrainingVariant(Variant):
    """The defaults of a stage on texts without labels; a variant has an `ask` and builds the head that answers it."""

    learns_labels: ClassVar[bool] = False
    reads_single: ClassVar[bool] = True  # texts of one sentence, not only pairs
    head_name: ClassVar[str]  # in messages
    stored: ClassVar[dict[str, str]]  # each tensor of the head -> its name in a checkpoint

    def follow(self, rows_B: Integers, num_rows: int, random: np.random.Generator) -> Integers:
        """Pick the row that gives each text its second sentence, (B,); by default the text's own row."""
        return rows_B


class Mlm(PretrainingVariant):
    """Masked language modelling on the texts of the tasks: Devlin et al. 2019 (arXiv 1810.04805), section 3.1, task 1.

    Used for further pretraining by Liu & Maniku 2023 (20 epochs) and Gururangan et al. 2020 (arXiv 2004.10964). Every epoch
    draws new masks, as in RoBERTa (Liu et al. 2019, arXiv 1907.11692, section 4.1). For a departure in their number see
    `masked_units`.
    """

    kind: Literal["mlm"] = "mlm"
    texts: Texts = ()
    balance: Balance = False
    pair_encoding: Literal["cross", "bi"] = Field(
        "cross", description="cross: a pair in one sequence; bi: each sentence in its own"
    )
    mask_share: float = Field(
        0.15, gt=0, lt=1, json_schema_extra={"unit": "of the tokens"}, description="share of tokens to predict"
    )
    whole_word: bool = Field(False, description="true: the pieces of a word are masked together")
    epochs: TextEpochs = 20.0
    batch_size: BatchSize = 32
    optimizer: TextOptimizer = None
    seed: Seed = 0
    head_name: ClassVar[str] = "head over masked words (cls.predictions)"
    stored: ClassVar[dict[str, str]] = {
        "dense.weight": "cls.predictions.transform.dense.weight",
        "dense.bias": "cls.predictions.transform.dense.bias",
        "norm.weight": "cls.predictions.transform.LayerNorm.weight",
        "norm.bias": "cls.predictions.transform.LayerNorm.bias",
        "bias": "cls.predictions.bias",
    }

    def build(self, shape: EncoderShape) -> nn.Module:
        return WordHead(shape)

    def ask(
        self,
        token_ids_N: Integers,
        firsts_B: Integers,
        is_other_B: NDArray[np.bool_],
        vocabulary: Vocabulary,
        random: np.random.Generator,
    ) -> tuple[Integers, Integers, Integers]:
        """Hide some tokens: return the tokens, (N,), the positions to predict, (M,), and their true tokens, (M,)."""
        at_M = masked_units(token_ids_N, vocabulary, self.mask_share, self.whole_word, random)
        return masked(token_ids_N, at_M, vocabulary, random), at_M, token_ids_N[at_M]


class Nsp(PretrainingVariant):
    """Next sentence prediction: Devlin et al. 2019 (arXiv 1810.04805), section 3.1, task 2; planned by Hollister et al. 2023.

    Half the time the second sentence is that of another row. In a text file the second sentence is the next line (an empty line
    separates documents); in a task of pairs it is the pair's. Departures: no masked words in the same stage (add a stage mlm
    for those); a sentence that is not next is drawn from all rows, while theirs is from another document.
    """

    kind: Literal["nsp"] = "nsp"
    texts: Texts = ()
    balance: Balance = False
    epochs: TextEpochs = 20.0
    batch_size: BatchSize = 32
    optimizer: TextOptimizer = None
    seed: Seed = 0
    pair_encoding: ClassVar[Literal["cross"]] = "cross"
    reads_single: ClassVar[bool] = False
    head_name: ClassVar[str] = "head over next sentences (cls.seq_relationship)"
    stored: ClassVar[dict[str, str]] = {
        "last.weight": "cls.seq_relationship.weight",
        "last.bias": "cls.seq_relationship.bias",
    }

    def build(self, shape: EncoderShape) -> nn.Module:
        return NextHead(shape)

    def follow(self, rows_B: Integers, num_rows: int, random: np.random.Generator) -> Integers:
        """Pick the second sentence for each first sentence: half the time its own, otherwise another row's."""
        return own_or_other(rows_B, num_rows, random)

    def ask(
        self,
        token_ids_N: Integers,
        firsts_B: Integers,
        is_other_B: NDArray[np.bool_],
        vocabulary: Vocabulary,
        random: np.random.Generator,
    ) -> tuple[Integers, Integers, Integers]:
        """Return the tokens unchanged, (N,), the positions of [CLS], (B,), and BERT's classes, (B,): 0 next, 1 not."""
        return token_ids_N, firsts_B, is_other_B.astype(np.int64)


Pretraining = Annotated[Mlm | Nsp, Field(discriminator="kind"), BARE_NAME]
Stage = Annotated[Multitask | SingleTask | LinearProbe | HeadsOnly | Mlm | Nsp, Field(discriminator="kind"), BARE_NAME]


# ------------------------------------------------------------------------------------------------------------ the budget


def in_epochs(stages: Sequence[LabelledStage]) -> bool:
    """Return whether all stages have their own epochs instead of a share of the budget.

    Raises ValueError if only some have epochs, or if a stage has both.
    """
    without = [stage.kind for stage in stages if stage.epochs is None]
    if len(without) == len(stages):
        return False
    if without:
        raise ValueError(f"`epochs` in `stages` must be set for every stage or for none. {', '.join(without)} has none.")
    if both := [stage.kind for stage in stages if stage.share is not None]:
        raise ValueError(f"A stage takes `share` or `epochs`, not both. {', '.join(both)} has both.")
    return True


def shares(stages: Sequence[LabelledStage]) -> list[float]:
    """Return each stage's share of the budget, summing to 1; stages without one split the rest equally.

    Raises ValueError if the given shares exceed 1, leave nothing for stages without one, or sum to less with none to split the
    rest.
    """
    given = [stage.share for stage in stages if stage.share is not None]
    total, absent = math.fsum(given), len(stages) - len(given)
    is_whole = math.isclose(total, 1, abs_tol=1e-6)  # 0.333333 three times counts as a whole
    if not stages:
        raise ValueError("`stages` is empty; a trial needs at least one stage.")
    if absent and (total > 1 or is_whole):
        raise ValueError(f"The shares in `stages` sum to {total:g} and leave nothing for the {absent} without one.")
    if not absent and not is_whole:
        law = "more than the whole" if total > 1 else "less than the whole, and every stage has one"
        raise ValueError(f"The shares in `stages` must sum to 1. They sum to {total:g}: {law}.")
    left = (1 - total) / absent if absent else 0.0
    return [left if stage.share is None else stage.share for stage in stages]


def stage_ends(examples: Sequence[float], total: int) -> list[int]:
    """Compute where each stage ends, in examples from the trial's start. The last one ends with the trial, despite rounding."""
    return [math.ceil(round(end, 6)) for end in accumulate(examples[:-1])] + [total]
