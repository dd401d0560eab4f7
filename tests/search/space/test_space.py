"""A space as a set of points: domains in a config, in a branch and in `together`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minbert_core.config import TrialConfig
from minbert_core.settings.paths import as_written
from search.space.choosing import default_choice
from search.space.domains import Domain
from search.space.space import make_space, read_space
from search.space.walk import Choose

Write = Callable[..., Path]
Drawing = Callable[[int], Choose]


def taking(**chosen: Any) -> Callable[[str, Domain], Any]:
    """Choose what is named by the last part of a path, else the default."""
    return lambda name, domain: chosen.get(name.rpartition("/")[2], default_choice(name, domain))


# ----------------------------------------------------------------------------------------------------- a point of a space


def test_a_sample_is_the_config_with_each_domain_replaced_under_its_path() -> None:
    space = make_space("s", {"config": {"optimizer": {"lr": {"log_uniform": [1e-5, 1e-3]}}, "max_length": 64}})
    sample = space.sample(lambda name, domain: 3e-4)
    assert sample.params == {"optimizer/lr": 3e-4}
    assert sample.config().optimizer.lr == 3e-4
    assert sample.config().max_length == 64


def test_a_domain_inside_a_branch_is_met_in_that_branch_only() -> None:
    smart = {"kind": "smart", "radius": {"log_uniform": [1e-3, 1e-1]}}
    space = make_space("s", {"config": {"smoothness": {"choice": ["none", smart]}}})
    assert list(space.domains()) == ["smoothness", "smoothness/smart/radius"]
    assert space.domains()["smoothness/smart/radius"][1] == {"smoothness": "smart"}
    assert space.sample(taking(smoothness="none")).params == {"smoothness": "none"}
    sample = space.sample(taking(smoothness="smart", radius=0.05))
    assert sample.params == {"smoothness": "smart", "smoothness/smart/radius": 0.05}
    assert as_written(sample.config())["smoothness"] == {"kind": "smart", "radius": 0.05}


def test_zero_or_a_log_range_is_a_choice_with_a_range_in_it() -> None:
    knob = {"choice": [0, {"log_uniform": [0.1, 10]}]}
    space = make_space("s", {"config": {"smoothness": {"kind": "smart", "weight": knob}}})
    weight = "smoothness/smart/weight"
    assert list(space.domains()) == [weight, f"{weight}/log_uniform"]
    assert space.sample(taking(weight=0)).document["smoothness"]["weight"] == 0
    sample = space.sample(taking(weight="log_uniform", log_uniform=2.5))
    assert sample.params == {weight: "log_uniform", f"{weight}/log_uniform": 2.5}
    assert sample.document["smoothness"]["weight"] == 2.5


def test_a_choice_may_hold_a_choice() -> None:
    space = make_space("s", {"config": {"gradient": {"choice": ["sum", {"choice": ["pcgrad", "gradvac"]}]}}})
    assert list(space.domains()) == ["gradient", "gradient/choice"]
    choose = {"gradient": "choice", "gradient/choice": "gradvac"}
    assert space.sample(lambda name, domain: choose[name]).config().gradient.kind == "gradvac"


def test_named_branches_of_one_kind_are_told_apart_by_their_names() -> None:
    branches = [{"name": "small", "kind": "mlp", "hidden": [8]}, {"name": "big", "kind": "mlp", "hidden": [64, 64]}]
    space = make_space("s", {"config": {"tasks": {"all": {"head": {"choice": branches}}}}})
    sample = space.sample(taking(head="big"))
    assert sample.params == {"tasks/all/head": "big"}
    assert as_written(sample.config().task("sst").head) == {"kind": "mlp", "hidden": [64, 64]}


def test_a_domain_may_stand_in_a_stage() -> None:
    stages = [{"kind": "multitask", "share": {"uniform": [0.1, 0.5]}}, "multitask"]
    space = make_space("s", {"config": {"stages": stages}})
    assert list(space.domains()) == ["stages/0/multitask/share"]
    assert space.sample(taking(share=0.25)).config().stage_examples({}) == [100_000, 300_000]


def test_a_space_without_domains_is_one_point() -> None:
    space = make_space("s", {})
    assert space.domains() == {}
    assert space.sample(taking()).config() == TrialConfig()


def test_the_spaces_objective_and_rungs_go_into_every_trial() -> None:
    space = make_space("s", {"objective": "sts", "rungs": [2, 4, 8], "config": {"budget": {"examples": 80}}, "baselines": [{}]})
    for config in (space.sample(taking()).config(), space.baseline(0).config()):
        assert config.objective == "sts"
        assert config.budget.points == (2, 4, 8)
        assert config.budget.examples == 80


def test_a_domain_over_the_whole_budget_keeps_the_rungs() -> None:
    branches = [{"name": "short", "examples": 10}, {"name": "long", "examples": 90}]
    space = make_space("s", {"rungs": [1, 2], "config": {"budget": {"choice": branches}}})
    config = space.sample(taking(budget="long")).config()
    assert (config.budget.examples, config.budget.points) == (90, (1, 2))


# -------------------------------------------------------------------------------------------------------------- together


def test_together_sets_several_paths_at_once_and_leaves_impossible_pairs_out(
    write: Write, drawing: Drawing, step_space: str
) -> None:
    space = read_space(write(step_space))
    assert list(space.domains()) == ["together/step", "gradient", "gradient/gradvac/beta"]
    pairs = set()
    for seed in range(40):
        sample = space.sample(drawing(seed))
        config = sample.config()
        pairs.add((sample.params["together/step"], config.task_schedule.kind, config.gradient.kind))
    assert pairs == {
        ("surgery", "round_robin", "pcgrad"),
        ("surgery", "round_robin", "gradvac"),
        ("single", "proportional", "sum"),
    }
    assert space.sample(taking(step="single")).params == {"together/step": "single"}


def test_the_same_choices_apart_are_refused(faults: Callable[..., list[str]]) -> None:
    text = "config:\n  task_schedule: {choice: [round_robin, proportional]}\n  gradient: {choice: [sum, pcgrad]}\n"
    assert faults(text)


def test_together_takes_whole_paths_through_kinds_and_over_constants(write: Write) -> None:
    text = "config:\n  smoothness: {kind: smart, radius: 0.5, steps: 2}\ntogether:\n  t:\n"
    text += "    - {name: a, set: {smoothness/smart/radius: 0.1}}\n"
    space = read_space(
        write(text + "    - {name: b, set: {smoothness.smart.radius: 0.2, tasks/sts/loss: pearson}}\n    - {name: c}\n")
    )
    for label, radius in (("a", 0.1), ("b", 0.2), ("c", 0.5)):
        config = space.sample(taking(t=label)).config()
        assert as_written(config)["smoothness"] == {"kind": "smart", "radius": radius, "steps": 2}
        assert config.task("sts").loss.kind == ("pearson" if label == "b" else "mse")


@pytest.mark.parametrize(
    ("branches", "sentence"),
    [
        ("5", "takes a list of {name: …, set: {path: value}}. Got 5."),
        ("[a, b]", "takes a list of {name: …, set: {path: value}}. Got ['a', 'b']."),
        ("[{set: {}}, {name: b}]", "takes a list of {name: …, set: {path: value}}. Got [{set: {}}, {name: 'b'}]."),
        ("[{name: a, sets: {}}, {name: b}]",
         "takes a list of {name: …, set: {path: value}}. Got [{name: 'a', sets: {}}, {name: 'b'}]."),
        ("[{name: a, set: 5}, {name: b}]",
         "takes a list of {name: …, set: {path: value}}. Got [{name: 'a', set: 5}, {name: 'b'}]."),
        ("[{name: a}]", ": `choice` takes a list of two or more. Got [{name: 'a'}]."),
        ("[{name: a}, {name: a}]",
         ": the branches of a choice must differ in the first ten characters of their names. Got a, a. "
         "Give them a `name`."),
        ("[{name: A B}, {name: b}]",
         ": a branch that is a map needs a `kind` or a `name`; names may contain a-z, 0-9, _ and -. "
         "Got {name: 'A B'}."),
    ],
)  # fmt: skip
def test_a_bad_together_is_refused_with_its_line(branches: str, sentence: str, faults: Callable[..., list[str]]) -> None:
    (only,) = faults(f"trials: 3\ntogether:\n  t: {branches}\n")
    assert only == f"3: `together/t`{'' if sentence.startswith(':') else ' '}{sentence}"


def test_a_fault_in_a_branch_of_together_has_the_line_of_that_branch(faults: Callable[..., list[str]]) -> None:
    text = "config:\n  optimizer: {lr: 1.0e-4}\ntogether:\n  t:\n    - name: a\n      set:\n"
    text += "        optimizer/lr: 7\n    - name: b\n"
    text += "      set:\n        tasks/sts:\n          batch_size: 0\n"
    assert faults(text) == ["7: `optimizer/lr` must be <= 1. Got 7.", "11: `tasks/sts/batch_size` must be > 0. Got 0."]


# --------------------------------------------------------------------------------------------------- one path, one domain


def together(*sets: str, config: str = "{}") -> str:
    branches = "".join(f"    - {{name: b{i}, set: {text}}}\n" for i, text in enumerate(sets))
    return f"config: {config}\ntogether:\n  t:\n{branches}"


LR_UNIFORM, LR_LOG = "{optimizer: {lr: {uniform: [0.1, 0.2]}}}", "{optimizer/lr: {log_uniform: [0.1, 0.2]}}"
TWO_LR = "`optimizer/lr` has two domains, uniform [0.1, 0.2] and log_uniform [0.1, 0.2]. It may have only one."


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (together(LR_UNIFORM, "{}", config=LR_UNIFORM),
         "4: `optimizer/lr` is a domain in `config` and in `together/t`. Only one of them may define it."),
        (together("{}", "{optimizer.lr: {uniform: [0.1, 0.2]}}", config=LR_UNIFORM),
         "5: `optimizer/lr` is a domain in `config` and in `together/t`. Only one of them may define it."),
        (together(LR_UNIFORM, LR_LOG), f"5: {TWO_LR}"),
        (together("{gradient: {choice: [sum, pcgrad]}}", "{gradient: {choice: [pcgrad, sum]}}"),
         "5: `gradient` has two domains, choice of sum, pcgrad and choice of pcgrad, sum. It may have only one."),
        (together("{gradient: {kind: gradvac, beta: {uniform: [0.1, 0.2]}}}", "{}",
                  config="{gradient: {choice: [sum, {kind: gradvac, beta: {uniform: [0.1, 0.2]}}]}}"),
         "4: `gradient/gradvac/beta` is a domain in `config` and in `together/t`. Only one of them may define it."),
        (together("{}", LR_UNIFORM) + f"  u:\n    - {{name: x, set: {LR_LOG}}}\n    - {{name: y}}\n", f"7: {TWO_LR}"),
        ("config:\n  tasks:\n    all:\n      head:\n        choice:\n"
         "          - {name: a, kind: mlp, dropout: {uniform: [0, 0.2]}}\n"
         "          - {name: b, kind: mlp, dropout: {uniform: [0, 0.3]}}\n",
         "6: `tasks/all/head/mlp/dropout` has two domains, uniform [0, 0.2] and uniform [0, 0.3]. It may have only one."),
        ("config:\n  gradient:\n    choice:\n      - {name: a, kind: gradvac, beta: {uniform: [0, 0.2]}}\n"
         "      - choice: [sum, {kind: gradvac, beta: {uniform: [0, 0.3]}}]\n", "4: `gradient/gradvac/beta` has two domains"),
        (together("{gradient: {beta: {uniform: [0.1, 0.2]}}}", "{}",
                  config="{gradient: {kind: gradvac, beta: {uniform: [0.1, 0.2]}}}"),
         "1: `gradient/gradvac/beta` is a domain in `config` and in `together/t`. Only one of them may define it."),
    ],
)  # fmt: skip
def test_a_path_with_two_domains_is_refused_wherever_they_stand(
    text: str, sentence: str, faults: Callable[..., list[str]]
) -> None:
    assert any(fault.startswith(sentence) for fault in faults(text)), faults(text)


@pytest.mark.parametrize(
    "text",
    [
        together(LR_UNIFORM, LR_UNIFORM),  # the same domain in two branches is one
        together("{optimizer: {lr: 0.1}}", "{}", config=LR_UNIFORM),  # a constant is no domain
        together("{gradient: sum}", "{}", config="{gradient: {choice: [sum, pcgrad]}}"),
        "config:\n  tasks:\n    all:\n      head:\n        choice:\n          - {name: a, kind: mlp, hidden: "
        "[8], dropout: {uniform: [0, 0.2]}}\n"
        "          - {name: b, kind: mlp, hidden: [9], dropout: {uniform: [0, 0.2]}}\n",
    ],
)
def test_one_domain_in_several_branches_and_a_constant_over_a_domain_are_allowed(
    text: str, write: Write, drawing: Drawing
) -> None:
    space = read_space(write(text))
    for seed in range(10):
        space.sample(drawing(seed)).config()
