"""The check of a space: its configs at every branch and end, its rungs, and what its branches publish."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minbert_core.settings.faults import SettingsError
from search.space.choosing import cover, default_choice
from search.space.space import make_space, read_space

Write = Callable[..., Path]


# -------------------------------------------------------------------------------------------- faults of the config, lines


def test_faults_of_keys_settings_and_config_are_told_at_once_with_their_lines(faults: Callable[..., list[str]]) -> None:
    text = "trails: 3\nrungs: [1, 2, 6]\nconfig:\n  seed: true\n  gradient:\n    choice:\n      - sum\n"
    text += "      - kind: gradvac\n        beta: 7\n"
    found = faults(text)
    assert [fault.partition(":")[0] for fault in found] == ["1", "2", "4", "9"]
    assert found[3] == "9: `gradient/gradvac/beta` must be <= 1. Got 7."


def test_every_bad_domain_is_told_with_its_line(faults: Callable[..., list[str]]) -> None:
    text = "config:\n  optimizer:\n    lr: {log_uniform: [0, 1]}\n    clip: {choice: [1]}\ntogether:\n"
    text += "  t:\n    - {name: a, set: {}}\n"
    text += "    - name: b\n      set:\n        max_length: {int: [9, 8]}\n"
    assert [fault.partition(" ")[0] for fault in faults(text)] == ["3:", "4:", "10:"]


def test_a_misspelt_domain_is_told_with_the_nearest(faults: Callable[..., list[str]]) -> None:
    text = "config:\n  optimizer: {lr: {loguniform: [1e-5, 1e-4]}}\n  gradient: {choices: [sum, pcgrad]}\n"
    known = "Known: choice, int, log_uniform, uniform."
    assert faults(text) == [
        f"2: `optimizer/lr`: unknown domain 'loguniform'; did you mean 'log_uniform'? {known}",
        f"3: `gradient`: unknown domain 'choices'; did you mean 'choice'? {known}",
    ]


def test_a_fault_that_only_one_pair_of_branches_shows_is_found(faults: Callable[..., list[str]]) -> None:
    text = "config:\n  gradient: {choice: [sum, pcgrad]}\n  task_schedule: {choice: [round_robin, mix, proportional]}\n"
    (only,) = faults(text)
    assert only.startswith("2: `gradient` kind 'pcgrad' needs several tasks per step, but task_schedule kind 'proportional'")


@pytest.mark.parametrize("order", [1, -1])
def test_a_fault_of_a_pair_is_found_in_each_of_the_branches_that_hold_one_domain(order: int) -> None:
    """Only the first branch with it was looked at."""
    gradient = {"choice": ["sum", "pcgrad"]}
    branches = [
        {"name": "several", "set": {"task_schedule": "round_robin", "gradient": gradient}},
        {"name": "one", "set": {"task_schedule": "proportional", "gradient": gradient}},
    ]
    with pytest.raises(SettingsError, match="`gradient` kind 'pcgrad' needs several tasks per step"):
        make_space("s", {"together": {"step": branches[::order]}})


def test_two_names_of_together_may_not_set_one_path() -> None:
    def choice(*kinds: str) -> list[dict[str, Any]]:
        return [{"name": kind, "set": {"gradient": kind}} for kind in kinds]

    with pytest.raises(SettingsError, match=r"`gradient` is set by `together/a` and `together/b`. Only the later one would"):
        read_space({"together": {"a": choice("sum", "pcgrad"), "b": choice("gradvac", "sum")}}, name="s")
    branches: dict[str, list[dict[str, Any]]] = {
        "a": [{"name": f"x{i}", "set": {"smoothness/smart/radius": radius}} for i, radius in enumerate((0.02, 0.05))],
        "b": [{"name": f"y{steps}", "set": {"smoothness/smart/steps": steps}} for steps in (2, 3)],
    }
    space = read_space({"config": {"smoothness": "smart"}, "together": branches}, name="s")
    assert space.sample(default_choice).document["smoothness"] == {"kind": "smart", "radius": 0.02, "steps": 2}


def test_a_set_that_every_branch_of_together_replaces_is_refused(write: Write) -> None:
    branches = "[{name: x, set: {task_schedule: mix}}, {name: y, set: {task_schedule: drop, max_length: 64}}]"
    text = f"together: {{step: {branches}}}\n"
    law = "--set task_schedule=proportional: `task_schedule` has no effect: every branch of `together/step` sets it."
    with pytest.raises(SettingsError, match=re.escape(law)):
        read_space(write(text), ["task_schedule=proportional"])
    read_space(write(text), ["max_length=32"])  # of use in one of the branches


def test_a_fault_of_a_pair_is_found_where_one_branch_lies_in_another(faults: Callable[..., list[str]]) -> None:
    text = "config:\n  gradient:\n    choice: [sum, {choice: [pcgrad, gradvac]}]\n"
    text += "  task_schedule: {choice: [round_robin, proportional]}\n"
    assert len(faults(text)) == 2  # pcgrad and gradvac, each with proportional


@pytest.mark.parametrize(
    ("knob", "sentence"),
    [
        ("optimizer: {warmup: {uniform: [0, 1.5]}}", "`optimizer/warmup` must be in [0, 1]. Got 1.5."),
        ("optimizer: {lr: {log_uniform: [1.0e-5, 3]}}", "`optimizer/lr` must be <= 1. Got 3."),
        ("encoder: {hidden_dropout: {uniform: [0, 1]}}", "`encoder/hidden_dropout` must be < 1. Got 1."),
        ("max_length: {int: [4, 128]}", "`max_length` must be >= 8. Got 4."),
        ("gradient: {choice: [sum, {kind: gradvac, beta: {uniform: [0, 2]}}]}", "`gradient/gradvac/beta` must be <= 1. Got 2."),
    ],
)
def test_a_fault_that_only_the_end_of_a_range_shows_is_found(
    knob: str, sentence: str, faults: Callable[..., list[str]]
) -> None:
    (only,) = faults(f"config:\n  {knob}\n")
    assert only.startswith(f"2: {sentence}")


def test_a_range_of_fractions_for_a_count_is_found(faults: Callable[..., list[str]]) -> None:
    (only,) = faults("config:\n  tasks: {all: {batch_size: {uniform: [8, 32]}}}\n")
    assert only.startswith("2: `tasks/all/batch_size` must be a whole number. Got 17.1")


def test_a_budget_that_is_no_map_is_not_covered_up_by_the_rungs(faults: Callable[..., list[str]]) -> None:
    assert faults("config:\n  budget: 5000\n") == ["2: `budget` must be a map. Got 5000."]


def test_the_points_to_check_hold_every_branch_pair_of_branches_and_end() -> None:
    smart = {"kind": "smart", "radius": {"uniform": [1, 2]}, "steps": {"choice": [1, 2]}}
    config = {"smoothness": {"choice": ["none", smart]}, "gradient": {"choice": ["sum", "pcgrad"]}}
    forced = list(cover(make_space("s", {"config": config}).occurrences()))
    for end in (1, 2):
        assert {"smoothness": "smart", "smoothness/smart/radius": end} in forced
    for gradient in ("sum", "pcgrad"):
        for other in (
            {"smoothness": "none"},
            {"smoothness": "smart"},
            *({"smoothness": "smart", "smoothness/smart/steps": n} for n in (1, 2)),
        ):
            assert {"gradient": gradient, **other} in forced
    assert {"smoothness": "none", "smoothness/smart/steps": 1} not in forced


# ---------------------------------------------------------------------------------------------------------------- rungs


def test_a_rung_inside_a_round_is_refused(faults: Callable[..., list[str]]) -> None:
    space = """
config:
  task_schedule: {kind: sequential, rounds: {choice: [9, 10]}}
"""
    sentence = (
        "3: `task_schedule/sequential/rounds` must end a round at every rung, because within a round some tasks have "
        "been shown less than others. "
        "Got 10, of which 1.11 end by the rung of 1/9. Use 9 or a multiple of it, or trial_scheduler: none."
    )
    assert faults(space) == [sentence]
    assert "Got 10, of which 1.25 end by the rung of 1/8. Use 8 or a multiple" in faults(space, "rungs=[1, 2, 4, 8]")[0]
    assert faults(space, "trial_scheduler=top_k") == [sentence]


def test_rungs_may_cut_a_round_where_they_stop_no_trial(write: Write) -> None:
    space = "config: {task_schedule: {kind: sequential, rounds: 10}}\n"
    assert read_space(write(f"{space}trial_scheduler: none\n"))
    assert read_space(write(f"{space}rungs: [1]\n"))


def test_rounds_of_one_of_several_stages_are_cut_where_its_share_says(faults: Callable[..., list[str]], write: Write) -> None:
    stages = "config:\n  stages: [{kind: single_task, task: para, share: SHARE}, {kind: multitask, task_schedule: SCHEDULE}]\n"
    space = stages.replace("SCHEDULE", "{kind: sequential, rounds: 5}")
    path = "`stages/1/multitask/task_schedule/sequential/rounds`"
    assert read_space(write(space.replace("SHARE", "0.33333333")))  # from the second rung on, where the next is the end
    [fault] = faults(space.replace("SHARE", "0.2"))
    assert path in fault
    assert fault.endswith("Got 5, of which 0.833 end by the rung of 3/9. Use 6 or a multiple of it, or trial_scheduler: none.")
    in_epochs = "{kind: multitask, epochs: 1, task_schedule: sequential}"
    [fault] = faults(f"config:\n  stages: [{{kind: single_task, task: para, epochs: 1}}, {in_epochs}]\n")
    assert path in fault
    assert fault.endswith("Give the stages shares of the budget, or use trial_scheduler: none.")


# ------------------------------------------------------------------------------------------------- what a branch tells


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"about": ["x"]}, "`together/row/a/about` must be a sentence. Got ['x']."),
        ({"published": [0.5]}, "`together/row/a/published` takes {dev: {task: figure}, test: …}. Got [0.5]."),
        ({"published": {"dve": {"sst": 0.5}}},
         "Unknown split `together/row/a/published/dve`; did you mean 'dev'? Known: dev, test."),
        ({"published": {"dev": {"sst": 51.2}}},
         "`together/row/a/published/dev/sst` must be a number in [-1, 1], as our metrics are. Got 51.2."),
        ({"published": {"dev": {"sts": True}}},
         "`together/row/a/published/dev/sts` must be a number in [-1, 1], as our metrics are. Got true."),
        ({"published": {"test": {"overall": 0.5}}},
         "Unknown task or score `together/row/a/published/test/overall`. Known: cfimdb, mean, norm, para, sst, sts."),
    ],
)  # fmt: skip
def test_what_a_branch_tells_of_itself_is_checked(told: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        make_space("s", {"together": {"row": [{"name": "a", **told}, {"name": "b", "set": {"max_length": 64}}]}})
    assert str(caught.value) == sentence


def test_what_a_branch_tells_of_itself_is_no_part_of_a_config() -> None:
    told = {"about": "table 1", "published": {"dev": {"sst": 0.5, "norm": 0.6}}}
    branches = [{"name": "a", "set": {"max_length": 32}}, {"name": "b", "set": {"max_length": 64}}]
    plain, talking = (
        make_space("s", {"together": {"row": rows}}) for rows in (branches, [{**branches[0], **told}, branches[1]])
    )
    choose = lambda name, domain: domain.values()[0]  # noqa: E731
    assert talking.sample(choose).config() == plain.sample(choose).config()


def test_a_malformed_domain_hides_no_other_fault(faults: Callable[..., list[str]]) -> None:
    told = faults("""
config:
  data: toy
  encoder: tiny
  optimizer: {lr: {log_uniform: [1e-3, 1e-5]}, warmpu: 0.1}
  smoothness: {kind: smart, radius: {loguniform: [1e-3, 1e-1]}, weight: -1}
  gradient: {choice: [sum, {kind: gradvac, beta: {uniform: [1]}}]}
  max_length: 4
""")
    assert [(line.partition(":")[0], line.split("`")[1]) for line in told] == [
        ("5", "optimizer/warmpu"),
        ("5", "optimizer/lr"),
        ("6", "smoothness/smart/radius"),
        ("6", "smoothness/smart/weight"),
        ("7", "gradient/gradvac/beta"),
        ("8", "max_length"),
    ]


def test_a_search_needs_its_dev_rows(faults: Callable[..., list[str]]) -> None:
    law = "`rows` is for `python -m minbert_core.train` alone: a search needs the dev rows to choose by. Omit it."
    assert faults("config:\n  data: toy\n  encoder: tiny\n  rows: train+dev\n") == [f"4: {law}"]
