"""The laws of stages, those that learn labels and those on texts without labels.

Legend: B rows, N tokens, M tokens read, K outputs.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from battery import law, needed

from minbert_core.encoder import EncoderShape, new_encoder
from minbert_core.methods.gradients import PCGrad
from minbert_core.methods.objectives import Vocabulary
from minbert_core.methods.optimizer import Optimizer
from minbert_core.methods.proximal import Bregman
from minbert_core.methods.smoothness import Smart
from minbert_core.methods.stages import LabelledStage, Pretraining, StagePlan
from minbert_core.methods.task_schedules import Mix

TASKS = ("sst", "para", "sts")
TRIAL = StagePlan(
    name="",
    tasks=TASKS,
    optimizer=Optimizer(lr=3e-5),
    task_schedule=Mix(),
    gradient=PCGrad(),
    smoothness=Smart(radius=0.05),
    proximal=Bregman(weight=2.0),
)


def planned(variant: Any) -> StagePlan:
    plan: StagePlan = variant.plan(TRIAL)
    assert isinstance(plan, StagePlan), f"`plan` gives a {type(plan).__name__}, not a StagePlan"
    return plan


@law(LabelledStage)
def test_a_stage_is_named_after_its_kind_in_a_recipe(variant: Any) -> None:
    name = planned(variant).name
    assert name.startswith(variant.kind), f"its plan is named '{name}', which does not begin with its kind"
    assert re.fullmatch("[a-zA-Z0-9_-]+", name), f"its plan is named '{name}', which is not made of [a-zA-Z0-9_-]"


@law(LabelledStage)
def test_a_stage_takes_tasks_of_the_trial_and_can_merge_them_where_it_merges(variant: Any) -> None:
    plan = planned(variant)
    assert plan.tasks, "it trains no task"
    assert set(plan.tasks) <= set(TASKS), f"it trains {plan.tasks} where the trial has {TASKS}"
    several = plan.task_schedule.tasks_per_step(len(plan.tasks)) > 1
    found = f"gradient '{plan.gradient.kind}' merges several tasks' gradients, but its task schedule gives one a step"
    assert several or not plan.gradient.needs_several_tasks, found


@law(LabelledStage)
def test_a_stage_that_trains_no_encoder_has_nothing_that_acts_on_it(variant: Any) -> None:
    plan = planned(variant)
    acting = {
        "gradient": plan.gradient.needs_several_tasks,
        "smoothness": bool(plan.smoothness.weight),
        "proximal": bool(plan.proximal.weight),
    }
    found = [name for name, acts in acting.items() if acts and not plan.trains_encoder]
    assert not found, f"it trains no encoder, yet keeps the trial's {', '.join(found)}, which would cost passes for nothing"


@law(LabelledStage)
def test_what_a_stage_overrides_takes_effect_and_the_rest_is_of_the_trial(variant: Any) -> None:
    others = {"optimizer": Optimizer(lr=0.5), "task_schedule": {"kind": "sequential"}, "gradient": {"kind": "gradvac"},
              "smoothness": {"kind": "smart", "radius": 0.9}, "proximal": {"kind": "bregman", "beta": 0.3}}  # fmt: skip
    plan = planned(variant)
    for knob, value in others.items():
        if knob in type(variant).model_fields:
            assert getattr(plan, knob) == getattr(TRIAL, knob), f"it changes the trial's {knob}, which nobody has overridden"
            own = type(variant).model_validate({**needed(type(variant)), knob: value})
            found = getattr(planned(own), knob)
            assert found == getattr(own, knob) != getattr(TRIAL, knob), f"its own {knob} has no effect: the plan has {found!r}"


# ------------------------------------------------------------------------------------------- stages on texts without labels

WORDS = Vocabulary(4, np.arange(5, 20), np.arange(20) < 5, np.arange(20) >= 15)  # five specials, ten words, five pieces
TOKENS = np.array([2, 7, 8, 3, 2, 9, 16, 10, 3])  # two rows between [CLS] 2 and [SEP] 3


def asked(variant: Any, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found: tuple[np.ndarray, np.ndarray, np.ndarray] = variant.ask(
        TOKENS, np.array([0, 4]), np.array([False, True]), WORDS, np.random.default_rng(seed)
    )
    return found


@law(Pretraining)
def test_a_question_repeats_from_its_generator_and_leaves_the_tokens_as_they_were(variant: Any) -> None:
    before = TOKENS.copy()
    for once, again in zip(asked(variant, 3), asked(variant, 3), strict=True):
        assert np.array_equal(once, again), f"{once} and {again} from one seed"
    assert np.array_equal(TOKENS, before), "it writes into the batch"


@law(Pretraining)
def test_what_is_asked_is_answered_by_a_class_of_its_head_which_learns_from_it(variant: Any) -> None:
    _, at_M, answers_M = asked(variant, 0)
    assert len(at_M) == len(answers_M) > 0, f"it reads {len(at_M)} tokens and knows {len(answers_M)} answers"
    shape = EncoderShape(20, 8, 1, 2, 16)
    head, encoder = variant.build(shape), new_encoder(shape, 0, 0.0, 0.0)
    assert set(variant.stored) == set(head.state_dict()), "not every tensor of its head has a name in a checkpoint"
    logits_MK = head(torch.randn(len(at_M), 8), encoder)
    assert 0 <= answers_M.min() <= answers_M.max() < logits_MK.shape[1], f"answers {answers_M} of {logits_MK.shape[1]} classes"
    torch.nn.functional.cross_entropy(logits_MK, torch.from_numpy(answers_M)).backward()
    dead = [name for name, parameter in head.named_parameters() if parameter.grad is None]
    assert not dead, f"no gradient reaches {dead}"


@law(Pretraining)
def test_what_follows_a_row_is_a_row(variant: Any) -> None:
    for num_rows in (2, 7):
        rows_B = np.arange(num_rows).repeat(5)
        seconds_B = variant.follow(rows_B, num_rows, np.random.default_rng(0))
        assert seconds_B.shape == rows_B.shape, f"of {rows_B.shape} rows it names {seconds_B.shape} that follow"
        assert set(seconds_B.tolist()) <= set(range(num_rows)), f"it names {set(seconds_B)} of {num_rows} rows"
