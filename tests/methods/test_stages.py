"""Shares of stages, what a stage overrides, and what it makes of the trial's own settings."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from minbert_core.methods.gradients import PCGrad, Sum
from minbert_core.methods.optimizer import Optimizer
from minbert_core.methods.proximal import Bregman, NoProximal
from minbert_core.methods.smoothness import NoSmoothness, Smart
from minbert_core.methods.stages import (
    HeadsOnly,
    LinearProbe,
    Mlm,
    Multitask,
    Nsp,
    SingleTask,
    Stage,
    StagePlan,
    in_epochs,
    shares,
)
from minbert_core.methods.task_schedules import Drop, Mix, Proportional, RoundRobin

TRIAL = StagePlan(
    name="",
    tasks=("sst", "para", "sts"),
    optimizer=Optimizer(lr=3e-5, head_lr_factor=10, warmup=0.2, clip=None),
    task_schedule=Mix(),
    gradient=PCGrad(),
    smoothness=Smart(radius=0.05),
    proximal=Bregman(weight=2.0),
)


def stages(*given: float | None) -> list[Multitask]:
    return [Multitask(share=share) for share in given]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([None], [1.0]),
        ([None, None], [0.5, 0.5]),
        ([0.2, None], [0.2, 0.8]),
        ([None, 0.5, None], [0.25, 0.5, 0.25]),
        ([0.3, 0.7], [0.3, 0.7]),
        ([1.0], [1.0]),
    ],
)
def test_absent_shares_split_the_rest(given: list[float | None], expected: list[float]) -> None:
    assert shares(stages(*given)) == pytest.approx(expected)


def test_ten_tenths_are_a_whole() -> None:
    assert sum(shares(stages(*[0.1] * 10))) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([0.7, 0.7], r"must sum to 1\. They sum to 1\.4: more than the whole"),
        ([0.2, 0.3], r"must sum to 1\. They sum to 0\.5: less than the whole"),
        ([0.5, 0.5, None], r"sum to 1 and leave nothing for the 1 without one"),
        ([0.9, 0.9, None], r"sum to 1\.8 and leave nothing"),
        ([], r"at least one stage"),
    ],
)
def test_shares_that_do_not_make_a_whole_are_refused(given: list[float | None], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        shares(stages(*given))


@pytest.mark.parametrize("share", [0, 1.5, -0.1])
def test_a_share_lies_between_zero_and_one(share: float) -> None:
    with pytest.raises(ValidationError, match=r"greater than 0|less than or equal to 1"):
        Multitask(share=share)


def test_stages_have_epochs_all_of_them_or_none() -> None:
    assert in_epochs([Multitask(epochs=2), HeadsOnly(epochs=0.5)])
    assert not in_epochs([Multitask(share=0.5), HeadsOnly()])
    with pytest.raises(
        ValueError, match=r"`epochs` in `stages` must be set for every stage or for none\. heads_only has none\."
    ):
        in_epochs([Multitask(epochs=2), HeadsOnly()])
    with pytest.raises(ValueError, match=r"`share` or `epochs`, not both\. multitask has both\."):
        in_epochs([Multitask(epochs=2, share=0.5)])


def test_the_stages_that_learn_labels_say_so_and_those_on_texts_have_no_share() -> None:
    labelled = [Multitask(), SingleTask(task="sst"), LinearProbe(), HeadsOnly()]
    assert [stage.learns_labels for stage in (*labelled, Mlm(), Nsp())] == [True] * 4 + [False] * 2
    assert not {"share"} & {*Mlm.model_fields, *Nsp.model_fields}


def read(written: Any) -> Any:
    return TypeAdapter(Stage).validate_python(written)


def test_what_a_multitask_stage_does_not_name_it_inherits() -> None:
    plan = Multitask().plan(TRIAL)
    assert plan.name == "multitask"
    for name in ("tasks", "optimizer", "task_schedule", "gradient", "smoothness", "proximal"):
        assert getattr(plan, name) is getattr(TRIAL, name), name
    assert plan.trains_encoder
    assert not plan.fresh_heads


def test_a_stage_overrides_by_bare_name_or_map() -> None:
    stage = read({"kind": "multitask", "gradient": "sum", "smoothness": {"kind": "none"}, "proximal": "none"})
    assert stage == Multitask(gradient=Sum(), smoothness=NoSmoothness(), proximal=NoProximal())
    plan = stage.plan(TRIAL)
    assert (plan.gradient, plan.smoothness, plan.proximal) == (Sum(), NoSmoothness(), NoProximal())
    assert plan.optimizer is TRIAL.optimizer


def test_a_single_task_s_stage_is_of_that_task_alone_whatever_the_trial_mixes_and_merges() -> None:
    plan = SingleTask(task="para").plan(TRIAL)
    assert (plan.name, plan.tasks) == ("single_task-para", ("para",))
    assert (plan.task_schedule, plan.gradient) == (RoundRobin(), Sum())
    assert (plan.optimizer, plan.smoothness, plan.proximal) == (TRIAL.optimizer, TRIAL.smoothness, TRIAL.proximal)
    assert plan.trains_encoder
    own = SingleTask(task="para", optimizer=Optimizer(lr=1e-4), smoothness=NoSmoothness(), proximal=NoProximal()).plan(TRIAL)
    assert (own.optimizer.lr, own.smoothness, own.proximal) == (1e-4, NoSmoothness(), NoProximal())


@pytest.mark.parametrize("cls", [LinearProbe, HeadsOnly])
def test_a_stage_of_the_heads_alone_has_their_rate_and_nothing_that_acts_on_the_encoder(cls: type[LinearProbe]) -> None:
    plan = cls(lr=5e-3).plan(TRIAL)
    assert plan.name == cls.model_fields["kind"].default
    assert not plan.trains_encoder
    assert plan.optimizer == Optimizer(lr=5e-3, head_lr_factor=1.0, warmup=0.2, clip=None)  # else a factor of 10 upon the rate
    assert (plan.gradient, plan.smoothness, plan.proximal) == (Sum(), NoSmoothness(), NoProximal())
    assert (plan.tasks, plan.task_schedule) == (TRIAL.tasks, Mix())
    assert cls(task_schedule=Proportional()).plan(TRIAL).task_schedule == Proportional()
    assert cls().plan(TRIAL).optimizer.lr == 1e-3


def test_only_heads_only_draws_new_heads_and_only_where_it_is_told_to() -> None:
    plans = [stage.plan(TRIAL) for stage in (Multitask(), SingleTask(task="sst"), LinearProbe(), HeadsOnly())]
    assert not any(plan.fresh_heads for plan in plans)
    assert HeadsOnly(fresh=True).plan(TRIAL).fresh_heads


def test_a_bare_name_is_a_stage_where_nothing_must_be_said() -> None:
    assert [read(name) for name in ("multitask", "linear_probe", "heads_only")] == [Multitask(), LinearProbe(), HeadsOnly()]
    with pytest.raises(ValidationError, match="Field required"):
        read("single_task")
    assert read({"kind": "linear_probe", "task_schedule": "drop"}) == LinearProbe(task_schedule=Drop())


@pytest.mark.parametrize("cls", [LinearProbe, HeadsOnly])
@pytest.mark.parametrize("knob", ["optimizer", "gradient", "smoothness", "proximal"])
def test_a_stage_of_the_heads_alone_refuses_what_would_do_nothing_there(cls: type[LinearProbe], knob: str) -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        cls.model_validate({knob: "none"})
