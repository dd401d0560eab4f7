"""Baselines: points that a space names, by value or by branch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minbert_core.settings.faults import SettingsError
from minbert_core.settings.paths import as_written
from search.space.choosing import Sample, default_choice
from search.space.space import Space, make_space, read_space

Write = Callable[..., Path]


def baseline(space: Space, index: int = 0) -> Sample:
    return space.baseline(index)


def space_of(baselines: list[dict[str, Any]], config: dict[str, Any], **more: Any) -> Space:
    return make_space("s", {"config": config, "baselines": baselines, **more})


def test_a_baseline_takes_the_default_where_it_lies_in_the_domain_else_the_middle_or_first_branch() -> None:
    config = {
        "optimizer": {"lr": {"log_uniform": [1e-5, 1e-3]}, "warmup": {"uniform": [0.2, 0.4]}, "clip": {"log_uniform": [2, 8]},
                      "head_lr_factor": {"choice": [10, 1]}},
        "max_length": {"int": [8, 64]},
        "gradient": {"choice": ["pcgrad", "gradvac"]},
        "tasks": {"sts": {"loss": {"choice": ["pearson", "mse"]}}, "all": {"batch_size": {"choice": [8, 16]}}},
        "smoothness": {"kind": "smart", "weight": {"choice": [0, {"log_uniform": [0.1, 100]}]}},
        "task_schedule": {"choice": ["mix", "round_robin"]},
        "stages": {"choice": [["linear_probe", "multitask"], ["multitask"]]},
    }  # fmt: skip
    expected = {
        "optimizer/lr": 5e-5,  # the default
        "optimizer/warmup": pytest.approx(0.3),  # the middle: 0.1 lies outside
        "optimizer/clip": pytest.approx(4.0),  # the geometric middle: 1.0 lies outside
        "optimizer/head_lr_factor": 1,
        "max_length": 36,
        "gradient": "pcgrad",  # the first branch: sum is none of them
        "tasks/sts/loss": "mse",  # the default of the task's kind
        "tasks/all/batch_size": 16,
        "smoothness/smart/weight": "log_uniform",  # 1.0 lies in the range
        "smoothness/smart/weight/log_uniform": 1.0,
        "task_schedule": "round_robin",
        "stages": "multitask",
    }
    space = space_of([{}], config)
    for _ in range(3):
        assert space.baseline(0).params == expected
    assert space.sample(default_choice).params == expected


def test_a_baseline_chooses_what_it_names_in_any_form() -> None:
    heads = [{"name": "small", "kind": "mlp", "hidden": [8]}, {"name": "big", "kind": "mlp", "hidden": [9]}]
    config = {"tasks": {"all": {"head": {"choice": heads}}},
              "smoothness": {"choice": ["none", {"kind": "smart", "radius": {"uniform": [0.1, 0.9]}, "steps": 2}]},
              "task_schedule": {"kind": "proportional", "alpha_end": {"choice": [0.2, None]}},
              "optimizer": {"clip": {"choice": [None, {"uniform": [1, 5]}]}}}  # fmt: skip
    rows: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
        ({"tasks": {"all": {"head": "big"}}}, {"tasks/all/head": "big"},
         {"tasks": {"all": {"head": {"kind": "mlp", "hidden": [9]}}}}),
        ({"tasks/all/head": {"kind": "mlp", "hidden": [9]}}, {"tasks/all/head": "big"},
         {"tasks": {"all": {"head": {"kind": "mlp", "hidden": [9]}}}}),
        ({"smoothness": "smart"}, {"smoothness": "smart", "smoothness/smart/radius": pytest.approx(0.5)},
         {"smoothness": {"kind": "smart", "radius": pytest.approx(0.5), "steps": 2}}),
        ({"smoothness/smart/radius": 0.25}, {"smoothness": "smart", "smoothness/smart/radius": 0.25},
         {"smoothness": {"kind": "smart", "radius": 0.25, "steps": 2}}),
        ({"smoothness": {"kind": "smart", "radius": 0.25, "steps": 1}},
         {"smoothness": "smart", "smoothness/smart/radius": 0.25},
         {"smoothness": {"kind": "smart", "radius": 0.25, "steps": 1}}),
        ({"task_schedule": {"alpha_end": None}}, {"task_schedule/proportional/alpha_end": "none"},
         {"task_schedule": {"kind": "proportional", "alpha_end": None}}),
        ({"task_schedule": {"alpha_end": "none"}}, {"task_schedule/proportional/alpha_end": "none"},
         {"task_schedule": {"kind": "proportional", "alpha_end": None}}),
        ({"optimizer": {"clip": 3}}, {"optimizer/clip": "uniform", "optimizer/clip/uniform": 3}, {"optimizer": {"clip": 3}}),
        ({"optimizer": {"clip": "uniform"}}, {"optimizer/clip": "uniform", "optimizer/clip/uniform": 1.0},
         {"optimizer": {"clip": 1.0}}),
    ]  # fmt: skip
    for written, params, document in rows:
        sample = baseline(space_of([written], config))
        assert params.items() <= sample.params.items(), written
        assert {key: sample.document[key] for key in document} == document, written
        sample.config()


def test_a_baseline_is_of_the_branch_that_sets_the_most_of_it() -> None:
    """It counted as `plain`, which leaves the radius open."""
    radius = {"log_uniform": [1e-2, 1e-1]}
    branches = ["none", {"name": "plain", "kind": "smart"}, {"name": "tuned", "kind": "smart", "radius": radius}]
    config = {"smoothness": {"choice": branches}}

    def params(**settings: Any) -> dict[str, Any]:
        return space_of([{"smoothness": {"kind": "smart", **settings}}], config).baseline(0).params

    assert params(radius=0.05) == {"smoothness": "tuned", "smoothness/smart/radius": 0.05}
    assert params() == params(steps=2) == {"smoothness": "plain"}
    assert params(radius=7.0) == {"smoothness": "plain"}


def test_a_baseline_may_set_what_is_not_searched() -> None:
    space = space_of(
        [{"max_length": 32, "tasks/sst/loss": "cross_entropy"}],
        {"max_length": 64, "optimizer": {"lr": {"uniform": [0.1, 0.2]}}},
    )
    sample = space.baseline(0)
    assert sample.config().max_length == 32
    assert list(sample.params) == ["optimizer/lr"]


def test_what_a_search_enqueues_for_a_baseline_makes_the_baselines_config() -> None:
    config = {
        "smoothness": {"choice": ["none", {"kind": "smart", "radius": {"uniform": [0.1, 0.9]}}]},
        "gradient": {"choice": ["sum", "pcgrad"]},
    }
    space = space_of([{"smoothness/smart/radius": 0.3, "gradient": "pcgrad"}], config)
    params = space.baseline(0).params
    assert space.sample(lambda name, domain: params[name]).config() == space.baseline(0).config()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("optimizer/lr: 0.5", "`baselines/1`: `optimizer/lr` 0.5 is outside its domain, uniform [0.1, 0.2]."),
        ("optimizer: {lr: true}", "`baselines/1`: `optimizer/lr` true is outside its domain, uniform [0.1, 0.2]."),
        ("optimizer: {lr: {uniform: [0, 1]}}",
         "`baselines/1`: `optimizer/lr` {uniform: [0, 1]} is outside its domain, uniform [0.1, 0.2]."),
        ("gradient: gradvac", "`baselines/1`: `gradient` 'gradvac' is outside its domain, choice of sum, pcgrad."),
        ("max_length: 4", "`max_length` must be >= 8. Got 4."),
        ("max_lenght: 4", "Unknown key `max_lenght`; did you mean 'max_length'?"),
        ("together: {t: c}", "`baselines/1`: unknown branch 'c' of `together/t`. Known: a, b."),
        ("together/tt: a", "`baselines/1`: unknown `together/tt`; did you mean 't'? Known: t."),
        ("together: a", "`baselines/1/together` must be a map of names to branches. Got 'a'."),
        ("{together/t: a, tasks/pairs/pair_encoding: bi}",
         "`baselines/1`: `tasks/pairs/pair_encoding` is 'bi', but the branch a of `together/t` sets 'cross'."),
        ("tasks/pairs/pair_encoding: bo",
         "`baselines/1`: `tasks/pairs/pair_encoding` is 'bo', but the branch a of `together/t` sets 'cross'."),
    ],
)  # fmt: skip
def test_a_baseline_that_is_no_point_of_the_space_is_refused_with_its_line(
    text: str, sentence: str, faults: Callable[..., list[str]]
) -> None:
    space = """config: {optimizer: {lr: {uniform: [0.1, 0.2]}}, gradient: {choice: [sum, pcgrad]}, max_length: 128}
together: {t: [{name: a, set: {tasks/pairs/pair_encoding: cross}}, {name: b, set: {tasks/pairs/pair_encoding: bi}}]}
baselines:
  - {}
  - """
    written = text if text.startswith("{") else f"{{{text}}}"
    (only,) = faults(f"{space}{written}\n")
    assert only.startswith(f"5: {sentence}")


RECIPES = {
    "recipe": [
        {"name": "plain", "set": {"stages": ["multitask"]}},
        {"name": "lp_ft", "set": {"stages": [{"kind": "linear_probe", "share": {"uniform": [0.1, 0.3]},
                                              "lr": {"log_uniform": [1e-4, 1e-2]}}, "multitask"]}},
    ]
}  # fmt: skip


def test_a_baseline_names_what_lies_in_an_entry_of_a_list_by_its_number() -> None:
    """A knob that is searched, one that is not, and one of a stage that is written as a bare name."""
    named = {
        "stages/0/linear_probe/lr": 5e-4,
        "stages/0/linear_probe/task_schedule": "drop",
        "stages/1/multitask/gradient": "pcgrad",
    }
    space = space_of([{"together/recipe": "lp_ft", **named}, named], {}, together=RECIPES)
    for i in range(2):  # by the branch's name, or found by what it says
        sample = space.baseline(i)
        assert sample.params == {"together/recipe": "lp_ft", "stages/0/linear_probe/share": pytest.approx(0.2),
                                 "stages/0/linear_probe/lr": 5e-4}  # fmt: skip
        assert as_written(sample.config())["stages"] == [
            {"kind": "linear_probe", "share": pytest.approx(0.2), "lr": 5e-4, "task_schedule": {"kind": "drop"}},
            {"kind": "multitask", "gradient": {"kind": "pcgrad"}},
        ]


@pytest.mark.parametrize(
    ("named", "sentence"),
    [
        ({"together/recipe": "plain", "stages/0/linear_probe/lr": 1e-3},
         r"`stages/0` is 'linear_probe', but the branch plain of `together/recipe` sets 'multitask'\."),
        ({"together/recipe": "lp_ft", "stages/0/multitask/gradient": "sum"},
         r"`stages/0` is 'multitask', but the branch lp_ft of `together/recipe` sets 'linear_probe'\."),
        ({"together/recipe": "lp_ft", "stages/0/linear_probe/lr": 0.5},
         r"`stages/0/linear_probe/lr` 0\.5 is outside its domain, log_uniform \[0\.0001, 0\.01\]\."),
        ({"together/recipe": "lp_ft", "stages/5/linear_probe/lr": 1e-3}, r"`stages` must be a list\."),
    ],
)  # fmt: skip
def test_a_baseline_that_names_an_entry_that_is_not_there_or_of_another_kind_is_refused(
    named: dict[str, Any], sentence: str
) -> None:
    """Else it would run as another recipe than the one it is told to be."""
    with pytest.raises(SettingsError, match=sentence):
        space_of([named], {}, together=RECIPES)


def test_a_baseline_finds_the_branch_of_together_that_says_what_it_says(write: Write, step_space: str) -> None:
    text = (
        step_space + "baselines: [{gradient: sum}, {gradient/gradvac/beta: 0.05}, {together: {step: single}}, "
        "{task_schedule: proportional}, {}]\n"
    )
    space = read_space(write(text))
    assert [space.baseline(i).params for i in range(5)] == [
        {"together/step": "single"},
        {"together/step": "surgery", "gradient": "gradvac", "gradient/gradvac/beta": 0.05},
        {"together/step": "single"},
        {"together/step": "single"},
        {"together/step": "surgery", "gradient": "pcgrad"},
    ]
    for i in range(5):
        config, params = space.baseline(i).config(), space.baseline(i).params
        assert config == space.sample(lambda name, domain, p=params: p[name]).config()
