"""A space's file: its own keys, `extends` and `--set`; a fault has its line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minbert_core.settings.faults import SettingsError
from search.methods.asha import Asha
from search.methods.top_k import TopK
from search.space.choosing import default_choice
from search.space.space import make_space, read_space

Write = Callable[..., Path]


# ----------------------------------------------------------------------------------------------- the space's own settings


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("trails: 3",
         "Unknown key `trails` in a space; did you mean 'trials'? Known: about, baselines, config, extends, objective, "
         "rungs, sampler, together, trial_scheduler, trials."),
        ("optimizer: {lr: 1}",
         "Unknown key `optimizer` in a space. Known: about, baselines, config, extends, objective, rungs, "
         "sampler, together, trial_scheduler, trials. There is `config/optimizer`."),
        ("lr: 1",
         "Unknown key `lr` in a space. Known: about, baselines, config, extends, objective, rungs, sampler, together, "
         "trial_scheduler, trials. There is `config/optimizer/lr`."),
        ("trials: 0", "`trials` must be > 0. Got 0."),
        ("trials: true", "`trials` must be a whole number. Got true."),
        ("trials: {int: [1, 2]}", "`trials` must be a whole number. Got {int: [1, 2]}."),
        ("about: [why]", "`about` must be a name. Got ['why']."),
        ("rungs: []", "`rungs` must have 1 or more entries. Got []."),
        ("rungs: [1, x]", "`rungs/1` must be a whole number. Got 'x'."),
        ("rungs: [1, true]", "`rungs/1` must be a whole number. Got true."),
        ("rungs: 9", "`rungs` must be a list. Got 9."),
        ("rungs: [1, 2, 6]", "`rungs` must grow by one whole factor of 2 or more, as [1, 3, 9] does. Got [1, 2, 6]. "
         "Only trial_scheduler: none and freeze_thaw take others."),
        ("rungs: [2, 3]", "`rungs` must grow by one whole factor of 2 or more, as [1, 3, 9] does. Got [2, 3]. "
         "Only trial_scheduler: none and freeze_thaw take others."),
        ("rungs: [3, 3]", "`rungs` must ascend, as [1, 3, 9] does. Got [3, 3]."),
        ("rungs: [9, 3, 1]", "`rungs` must ascend, as [1, 3, 9] does. Got [9, 3, 1]."),
        ("rungs: [1, 3, 9, 27, 81, 243]", "`rungs` must end at 81 parts or fewer. Got 243."),
        ("sampler: tpee", "Unknown `sampler` kind 'tpee'; did you mean 'tpe'? Known: gp, grid, random, tpe."),
        ("sampler: {startup: 3}", "`sampler` must be a kind's name, or a map with its `kind`. Got {startup: 3}. Known: gp, "
         "grid, random, tpe."),
        ("sampler: {kind: random, startup: 3}", "Unknown key `sampler/random/startup`. Known: repeat_every. There is "
         "`sampler/tpe/startup`, `sampler/gp/startup`."),
        ("sampler: {kind: tpe, startups: 3}", "Unknown key `sampler/tpe/startups`; did you mean 'startup'? Known: group, "
         "startup."),
        ("sampler: {kind: tpe, startup: true}", "`sampler/tpe/startup` must be a whole number. Got true."),
        ("trial_scheduler: off", "Unknown `trial_scheduler` kind 'off'. Known: asha, freeze_thaw, none, promotion, top_k."),
        ("trial_scheduler: {kind: top_k, k: 0}", "`trial_scheduler/top_k/k` must be > 0. Got 0."),
        ("objective: {choice: [norm, mean]}", "Unknown key `objective/choice`. Known: weights."),
        ("objective: sts1", "Unknown `objective` 'sts1'; did you mean 'sts'? Known: mean, norm, para, sst, sts."),
        ("config: [1]", "`config` must be a map. Got [1]."),
        ("config:", "`config` must be a map. Got null."),
        ("config: off", "`config` must be a map. Got 'off'."),
        ("together: []", "`together` must be a map. Got []."),
        ("baselines: {}", "`baselines` must be a list of maps. Got {}."),
        ("baselines: [none]", "`baselines/0` must be a map of settings. Got 'none'."),
    ],
)  # fmt: skip
def test_a_fault_in_the_spaces_own_keys_has_its_line(text: str, sentence: str, faults: Callable[..., list[str]]) -> None:
    assert f"2: {sentence}" in faults(f"# why\n{text}\n")


def test_rungs_may_be_one_or_grow_by_any_whole_factor() -> None:
    for rungs in ([9], [1, 2, 4, 8], [3, 9, 27], [1, 9, 81]):
        assert make_space("s", {"rungs": rungs}).settings.rungs == tuple(rungs)


def test_any_rungs_that_ascend_will_do_where_no_trial_is_stopped() -> None:
    assert make_space("s", {"rungs": [1, 2, 3, 7], "trial_scheduler": "none"}).settings.rungs == (1, 2, 3, 7)


def test_top_k_needs_a_rung_to_choose_at_and_one_to_go_on_to(faults: Callable[..., list[str]]) -> None:
    assert make_space("s", {"rungs": [1, 9], "trial_scheduler": "top_k"}).settings.trial_scheduler == TopK(k=3)
    assert make_space("s", {"rungs": [1], "trial_scheduler": "asha"}).settings.trial_scheduler == Asha()
    law = "`rungs` must be 2 or more for trial_scheduler top_k: one to choose at and one to continue to. Got [1]."
    assert faults("rungs: [1]\ntrial_scheduler: top_k\n") == [f"1: {law}"]
    [fault] = faults("rungs: [1, 2, 6]\ntrial_scheduler: top_k\n")  # wrong rungs are told once
    assert "must grow by one whole factor" in fault


def test_a_space_that_is_no_map_is_refused(faults: Callable[..., list[str]]) -> None:
    assert faults("- a\n") == ["1: A space must be a map with keys such as `config` and `trials`. Got ['a']."]
    assert faults("") == ["1: A space must be a map with keys such as `config` and `trials`. Got null."]


def test_a_spaces_name_is_its_files_and_plain(write: Write) -> None:
    assert read_space(write("trials: 3\n", "my-space_2.yaml")).name == "my-space_2"
    with pytest.raises(SettingsError, match=r"may contain a-z, 0-9, _ and -\. Got 'My Space'"):
        read_space(write("trials: 3\n", "My Space.yaml"))


def test_objective_points_and_epochs_follow_from_the_space_wherever_they_are_written(faults: Callable[..., list[str]]) -> None:
    text = "config:\n  objective: sts\n  budget:\n    points: [1]\nbaselines:\n  - {objective: mean}\ntogether:\n  t:\n"
    text += "    - name: a\n      set:\n        budget/points: [3]\n    - {name: b}\n"
    assert faults(text) == [
        "2: `objective` is a key of the space, not of its `config`.",
        "4: `budget/points` follows from the space's `rungs`; set those.",
        "6: `objective` is a key of the space, not of its `config` (in `baselines/0`).",
        "11: `budget/points` follows from the space's `rungs`; set those (in `together/t/a`).",
    ]


EPOCHS = "`budget/epochs` is a different amount of training under each task_schedule, and this space varies it"


@pytest.mark.parametrize(
    "text",
    [
        "config:\n  task_schedule: {choice: [mix, round_robin]}\n  budget: {epochs: 2}\n",
        "config:\n  # constants, but not in all\n  budget: {epochs: 2}\ntogether: {t: [{name: a, set: "
        "{task_schedule: mix}}, {name: b}]}\n",
        "config:\n  max_length: 64\n  budget: {epochs: 2}\nbaselines: [{task_schedule/proportional/alpha: 0.5}]\n",
    ],
)
def test_epochs_under_a_varied_schedule_are_refused(text: str, faults: Callable[..., list[str]]) -> None:
    assert faults(text) == [f"3: {EPOCHS}. Use examples."]


def test_epochs_under_one_schedule_are_allowed() -> None:
    knob = {"kind": "proportional", "alpha": {"uniform": [0.1, 1]}}
    assert make_space("s", {"config": {"task_schedule": knob, "budget": {"epochs": {"uniform": [1, 2]}}}})


# --------------------------------------------------------------------------------------------------------------- extends

BASE = """about: Why?
trials: 8
config:
  optimizer: {lr: {log_uniform: [1e-5, 1e-3]}, warmup: 0.2}
  smoothness: {choice: [none, smart]}
  tasks: {all: {head: {kind: mlp, hidden: [8], dropout: 0.2}}}
  gradient: {kind: gradvac, beta: 0.1}
  train_on: [sst, sts]
baselines: [{smoothness: none}]
"""


def test_a_space_is_laid_over_the_one_it_extends(write: Write) -> None:
    write(BASE, "base.yaml")
    text = """extends: base.yaml
trials: 16
config:
  optimizer: {lr: {uniform: [0.1, 0.2]}, clip: 2.0}
  smoothness: {choice: [none, {kind: smart, radius: {uniform: [0.1, 0.2]}}]}
  tasks: {all: {head: {kind: mlp, hidden: [9]}, batch_size: 4}}
  gradient: pcgrad
  train_on: [para, sts]
baselines: []
"""
    space = read_space(write(text))
    assert space.name == "s"
    assert space.document == {
        "about": "Why?",
        "trials": 16,
        "config": {
            "optimizer": {"lr": {"uniform": [0.1, 0.2]}, "warmup": 0.2, "clip": 2.0},  # maps merge, domains replace
            "smoothness": {"choice": ["none", {"kind": "smart", "radius": {"uniform": [0.1, 0.2]}}]},
            "tasks": {"all": {"head": {"kind": "mlp", "hidden": [9], "dropout": 0.2}, "batch_size": 4}},  # so do lists
            "gradient": "pcgrad",  # and maps of another kind
            "train_on": ["para", "sts"],
        },
        "baselines": [],
    }


def test_a_chain_of_spaces_is_laid_one_over_another(write: Write) -> None:
    write("trials: 2\nabout: a\n", "a.yaml")
    write("extends: a.yaml\ntrials: 3\n", "b.yaml")
    space = read_space(write("extends: b.yaml\nconfig: {max_length: 64}\n"))
    assert (space.settings.trials, space.settings.about) == (3, "a")


def test_a_fault_names_the_file_it_stands_in(write: Write, faults: Callable[..., list[str]]) -> None:
    write("trials: 0\nconfig:\n  max_length: 4\n  optimizer:\n    lr: 7\n", "base.yaml")
    found = faults("extends: base.yaml\nconfig:\n  optimizer:\n    clip: -1\n    lr: 8\n")
    assert sorted(found) == [
        "4: `optimizer/clip` must be > 0. Got -1.",
        "5: `optimizer/lr` must be <= 1. Got 8.",
        "base.yaml:1: `trials` must be > 0. Got 0.",
        "base.yaml:3: `max_length` must be >= 8. Got 4.",
    ]


def test_a_circle_a_missing_parent_and_no_name_are_refused_with_the_line(
    write: Write, faults: Callable[..., list[str]]
) -> None:
    write("trials: 3\nextends: s.yaml\n", "b.yaml")
    assert faults("extends: b.yaml\n") == ["b.yaml:2: `extends` forms a cycle: s.yaml -> b.yaml -> s.yaml."]
    assert faults("extends: s.yaml\n") == ["1: `extends` forms a cycle: s.yaml -> s.yaml."]
    assert faults("trials: 3\nextends: no.yaml\n") == ["2: `extends` names 'no.yaml', but there is no file no.yaml."]
    assert faults("extends: [b.yaml]\n") == ["1: `extends` takes a file name. Got ['b.yaml']."]
    assert faults("extends:\n") == ["1: `extends` takes a file name. Got null."]


# ------------------------------------------------------------------------------------------------------------------ --set

SET = """trials: 8
sampler: tpe
config:
  encoder: some-bert
  optimizer: {lr: {log_uniform: [1e-5, 1e-3]}}
  gradient: {choice: [sum, pcgrad, {kind: gradvac, beta: {uniform: [0.1, 0.2]}}]}
  smoothness: {kind: smart, radius: 0.1}
  stages: [{kind: multitask, share: 0.5}, multitask]
  tasks:
    all: {head: {choice: [{name: small, kind: mlp, hidden: [8]}, {name: big, kind: mlp, hidden: [9]}]}}
"""


@pytest.mark.parametrize(
    ("text", "location", "value"),
    [
        ("optimizer/lr=2e-5", ("config", "optimizer", "lr"), 2e-5),
        ("optimizer.lr=2e-5", ("config", "optimizer", "lr"), 2e-5),
        ("config/optimizer/lr=2e-5", ("config", "optimizer", "lr"), 2e-5),
        (" optimizer/lr = 2e-5", ("config", "optimizer", "lr"), 2e-5),
        ("optimizer/lr={uniform: [0.1, 0.2]}", ("config", "optimizer", "lr"), {"uniform": [0.1, 0.2]}),
        ("optimizer/clip={choice: [null, 1]}", ("config", "optimizer", "clip"), {"choice": [None, 1]}),
        ("gradient=pcgrad", ("config", "gradient"), "pcgrad"),
        ("gradient={kind: gradvac, beta: 0.5}", ("config", "gradient"), {"kind": "gradvac", "beta": 0.5}),
        ("gradient/gradvac/beta=0.15", ("config", "gradient", "choice", 2, "beta"), 0.15),
        ("gradient/gradvac/per=model", ("config", "gradient", "choice", 2, "per"), "model"),
        ("smoothness/smart/steps=2", ("config", "smoothness", "steps"), 2),
        ("stages/0/multitask/share=0.25", ("config", "stages", 0, "share"), 0.25),
        ("stages/1/multitask/gradient=sum", ("config", "stages", 1, "gradient"), "sum"),
        ("stages/1={kind: multitask, share: 0.5}", ("config", "stages", 1, "share"), 0.5),
        ("tasks/sts/loss=pearson", ("config", "tasks", "sts", "loss"), "pearson"),
        ("tasks/all/head/mlp/dropout=0.3", ("config", "tasks", "all", "head", "choice", 1, "dropout"), 0.3),
        ("tasks/all/head/mlp/dropout=0.3", ("config", "tasks", "all", "head", "choice", 0, "dropout"), 0.3),
        ("encoder=other-bert", ("config", "encoder"), "other-bert"),
        ("encoder/hidden_dropout=0.2", ("config", "encoder"), {"checkpoint": "some-bert", "hidden_dropout": 0.2}),
        ("loss_weights/static/weights={sst: 2}", ("config", "loss_weights"), {"kind": "static", "weights": {"sst": 2}}),
        ("task_schedule/round_robin={}", None, None),
        ("trials=3", ("trials",), 3),
        ("rungs=[1, 2]", ("rungs",), [1, 2]),
        ("objective=sts", ("objective",), "sts"),
        ("sampler/tpe/startup=3", ("sampler",), {"kind": "tpe", "startup": 3}),
        ("baselines=[{gradient: sum}]", ("baselines",), [{"gradient": "sum"}]),
        ("data=a=b", ("config", "data"), "a=b"),
    ],
)
def test_set_puts_a_value_at_a_path(text: str, location: tuple[Any, ...] | None, value: object, write: Write) -> None:
    if location is None:
        with pytest.raises(SettingsError, match="To choose it, write task_schedule=round_robin"):
            read_space(write(SET), [text])
        return
    node: Any = read_space(write(SET), [text]).document
    for key in location:
        node = node[key]
    assert node == value


def test_sets_are_laid_one_over_another_in_order(write: Write) -> None:
    space = read_space(write(SET), ["gradient={kind: gradvac}", "gradient/gradvac/beta=0.5", "trials=2", "trials=3"])
    assert space.document["config"]["gradient"] == {"kind": "gradvac", "beta": 0.5}
    assert space.settings.trials == 3


def test_set_needs_no_config_in_the_space(write: Write) -> None:
    space = read_space(
        write("trials: 3\n"), ["tasks/sts/batch_size=4", "sampler/tpe/startup=2", "tasks/all/head/linear/dropout=0.2"]
    )
    config = space.sample(default_choice).config()
    assert (config.task("sts").batch_size, space.settings.sampler.startup, config.task("sst").head.dropout) == (4, 2, 0.2)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("optimizer/lr", "--set takes path=value, as in --set optimizer/lr=2e-5. Got 'optimizer/lr'."),
        ("=3", "--set takes path=value, as in --set optimizer/lr=2e-5. Got '=3'."),
        ("trails=3", "Unknown key `trails`; did you mean 'trials'?"),
        ("lr=3", "There is `optimizer/lr`."),
        ("optimiser/lr=3", "Unknown key `optimiser`; did you mean 'optimizer'?"),
        ("extends=x.yaml", "`extends` cannot be changed by --set. Change it in the space's file."),
        ("optimizer/lrr=3", "Unknown key `optimizer/lrr`; did you mean 'lr'?"),
        ("optimizer/lr=7", "`optimizer/lr` must be <= 1. Got 7."),
        ("trials=0", "`trials` must be > 0. Got 0."),
        ("trials=true", "`trials` must be a whole number. Got true."),
        ("optimizer/lr={uniform: [2, 1]}", "`optimizer/lr`: `uniform` needs low < high, both finite. Got [2, 1]."),
        ("gradient={kind: gradvac, beta: 5}", "`gradient/gradvac/beta` must be <= 1. Got 5."),
        ("gradient/gradvac/beta=5", "`gradient/gradvac/beta` must be <= 1. Got 5."),
        ("smoothness/none/radius=1",
         "`smoothness/none`: the space does not use 'none' there. Choose it first: smoothness=none."),
        ("task_schedule/proportional/alpha=1",
         "`task_schedule/proportional`: the space does not use 'proportional' there. Choose it first: "
         "task_schedule=proportional."),
        ("tasks/sts/head/mlp/dropout=0.1",
         "`tasks/sts/head/mlp`: the space does not use 'mlp' there. Choose it first: tasks/sts/head=mlp."),
        ("tasks/sts/head/linear/dropout=0.1",
         "`tasks/sts/head/linear`: the space does not use 'linear' there. Choose it first: "
         "tasks/sts/head=linear."),
        ("gradient/pcgard/x=1",
         "Unknown kind 'pcgard' in `gradient/pcgard`; did you mean 'pcgrad'? Known: "),
        ("gradient/beta=1", "Unknown kind 'beta' in `gradient/beta`. Known: "),
        ("gradient/pcgrad=1",
         "`gradient/pcgrad` is a kind, not a knob. To choose it, write gradient=pcgrad. "
         "To set a knob, write gradient/pcgrad/KNOB=…."),
        ("stages/2/multitask/share=1", "`stages/2` does not exist: the space has 2 entries there, numbered from 0."),
        ("stages/first=multitask", "`stages/first` does not exist: the space has 2 entries there, numbered from 0."),
        ("optimizer/lr/low=1", "`optimizer/lr` is a domain, which has no `low`. Set all of it: optimizer/lr=…."),
        ("trials/x=1", "`trials` is 8, which has no `x`. Set all of it: trials=…."),
        ("optimizer/lr=[1", "This is not YAML"),
        ("optimizer={lr: 1, lr: 2}", "`lr` is written twice"),
    ],
)  # fmt: skip
def test_a_bad_set_is_refused_and_named(text: str, sentence: str, write: Write) -> None:
    with pytest.raises(SettingsError, match=r".") as caught:
        read_space(write(SET), [text])
    (only,) = str(caught.value).splitlines()
    assert sentence in only
    assert only.startswith((f"--set {text}", "--set takes path=value"))


def test_a_set_value_is_yaml_as_in_a_file(write: Write) -> None:
    assert read_space(write(SET), ["optimizer/lr=5e-6"]).document["config"]["optimizer"]["lr"] == 5e-6
    for text, value in (("'5e-6'", "5e-6"), ("off", "off"), ("a: b", {"a": "b"}), ("", None)):
        sets = [f"config/data={text}"]
        if isinstance(value, str):
            assert read_space(write(SET), sets).document["config"]["data"] == value
        else:
            with pytest.raises(SettingsError, match="`data` must be a name"):
                read_space(write(SET), sets)
