"""The grammar of a space: domains in a config, `together`, `extends`, baselines, `--set`; a bad one is refused whole."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from minbert_core.config import TrialConfig
from minbert_core.settings.faults import SettingsError
from minbert_core.settings.paths import as_written
from minbert_core.settings.yaml import dump_yaml, parse_yaml
from search.methods.trial_schedulers import Asha, TopK
from search.space.domains import Choice, Domain
from search.space.space import Sample, Space, cover, default_choice, forcing, make_space, read_space

QUESTIONS = sorted((Path(__file__).parents[3] / "spaces").glob("*.yaml"))
SPACES = sorted((Path(__file__).parents[3] / "spaces").rglob("*.yaml"))  # those of the papers too

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str = "s.yaml") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


@pytest.fixture
def faults(write: Write, tmp_path: Path) -> Callable[..., list[str]]:
    """What reading a space complains of, `line: sentence` (`file:line: sentence` where the file is not s.yaml), one a fault."""

    def faults(text: str, *sets: str) -> list[str]:
        path = write(text)
        with pytest.raises(SettingsError, match=r".") as caught:
            read_space(path, sets)
        return [line.replace(f"{path}:", "").replace(f"{tmp_path}/", "") for line in str(caught.value).splitlines()]

    return faults


def drawing(seed: int) -> Callable[[str, Domain], Any]:
    generator = random.Random(seed)

    def choose(name: str, domain: Domain) -> Any:
        if isinstance(domain, Choice):
            return generator.choice(domain.labels)
        value = generator.uniform(domain.low, domain.high)
        return round(value) if domain.kind == "int" else value

    return choose


def taking(**chosen: Any) -> Callable[[str, Domain], Any]:
    """Choose what is named by the last part of a path, else the default."""
    return lambda name, domain: chosen.get(name.rpartition("/")[2], default_choice(name, domain))


def baseline(space: Space, index: int = 0) -> Sample:
    return space.baseline(index)


# ------------------------------------------------------------------------------------------------------- shipped spaces


@pytest.mark.parametrize("path", QUESTIONS, ids=lambda path: path.stem)
def test_a_shipped_space_reads_asks_a_question_and_has_a_baseline(path: Path) -> None:
    space = read_space(path)
    assert space.settings.about.endswith("?") or "?" in space.settings.about
    assert space.baselines
    assert space.domains()
    settings = space.settings
    assert not settings.trial_scheduler.warning(settings.rungs, settings.trials, len(space.baselines), num_recipes=1)


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_a_shipped_space_makes_valid_configs_only(path: Path) -> None:
    space = read_space(path)
    for seed in range(30):
        sample = space.sample(drawing(seed))
        assert set(sample.params) <= set(space.domains())
        assert sample.config().budget.points == space.settings.rungs


def tasks_shown(config: TrialConfig, examples: float) -> tuple[set[str], set[str]]:
    """The tasks shown in a trial on the course's corpora by so many examples, and those of the stage that it is in."""
    sizes, drawn = {"sst": 8_544, "para": 141_498, "sts": 6_040, "yelp": 2_500}, 0
    shown: set[str] = set()
    for plan, share in zip(config.stage_plans(), config.stage_examples(sizes), strict=True):
        own, batches = {name: sizes[name] for name in plan.tasks}, {name: config.task(name).batch_size for name in plan.tasks}
        start, step = drawn, 0
        while drawn < min(start + share, examples):
            tasks = plan.task_schedule.tasks_of_step(step, (drawn - start) / share, own, batches, 0)
            shown |= set(tasks)
            drawn, step = drawn + sum(batches[name] for name in tasks), step + 1
        if drawn >= examples:
            break
    return shown, set(plan.tasks)


@pytest.mark.parametrize("path", QUESTIONS, ids=lambda path: path.stem)
def test_in_a_shipped_space_every_task_that_a_stage_trains_was_shown_by_the_first_rung(path: Path) -> None:
    """Every branch and both ends of every range"""
    space, looked_at = read_space(path), set()
    for name, (domain, guards) in space.domains().items():
        for value in domain.values():
            config = space.sample(forcing({**guards, name: value})).config()
            key = repr([(plan.task_schedule, plan.tasks) for plan in config.stage_plans()] + [config.stages, config.tasks])
            if key in looked_at:
                continue
            looked_at.add(key)
            first, *_, last = space.settings.rungs
            shown, trained = tasks_shown(config, (config.budget.examples or 400_000) * first / last)
            assert trained <= shown, f"{name} {value}: {trained - shown} unseen"


def test_a_rung_inside_a_round_is_refused(faults: Callable[..., list[str]]) -> None:
    space = """
config:
  task_schedule: {kind: sequential, rounds: {choice: [9, 10]}}
"""
    sentence = (
        "3: `task_schedule/sequential/rounds` must make every rung the end of a round, since inside a round some tasks have "
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


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_a_shipped_space_survives_the_file_that_a_search_keeps_of_it(path: Path) -> None:
    space = read_space(path)
    document, _ = parse_yaml(dump_yaml(space.document))
    again = make_space(space.name, document)
    assert again.document == space.document
    assert again.domains() == space.domains()
    assert again.sample(drawing(1)).config() == space.sample(drawing(1)).config()


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_optuna_accepts_every_domain_of_a_shipped_space_in_one_study(path: Path) -> None:
    space = read_space(path)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for i in range(len(space.baselines)):
        study.enqueue_trial(space.baseline(i).params)
    for i in range(20):
        trial = study.ask()
        sample = space.sample(lambda name, domain, t=trial: domain.suggest(t, name))
        assert sample.params == trial.params
        if i < len(space.baselines):
            assert sample.params == space.baseline(i).params


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


# ------------------------------------------------------------------------------------------------------------------- grid

GRID: dict[str, Any] = {
    "sampler": "grid",
    "together": {
        "row": [
            {"name": "a", "set": {"gradient": "pcgrad"}},
            {"name": "b", "set": {"gradient": "sum", "tasks/all/pooling": {"choice": ["cls", "mean"]}}},
        ]
    },
}


def test_a_grid_has_each_combination_once_in_the_order_in_which_they_are_written() -> None:
    space = make_space("g", GRID)
    assert space.combinations() == [
        {"together/row": "a"},  # the pooling is of the other branch alone
        {"together/row": "b", "tasks/all/pooling": "cls"},
        {"together/row": "b", "tasks/all/pooling": "mean"},
    ]
    assert space.num_trials == 3
    assert make_space("g", {**GRID, "trials": 2}).num_trials == 2
    assert make_space("g", {**GRID, "sampler": "random"}).num_trials == 32


@pytest.mark.parametrize(
    ("over", "sentence"),
    [
        ({"config": {"optimizer": {"lr": {"log_uniform": [1e-5, 1e-4]}}}},
         "`optimizer/lr`: `sampler` grid takes every combination, and log_uniform [1e-05, 0.0001] has no end of values. "
         "Write the ones that you want: choice: [1e-05, …]."),
        ({"baselines": [{}]},
         "`sampler` grid takes every combination, and a baseline is one of them, or lies outside. Leave `baselines` away."),
        ({"trials": 4}, "`trials` 4: the grid has 3 combinations to try. Leave `trials` away."),
    ],
)  # fmt: skip
def test_what_is_no_grid_is_refused(over: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        make_space("g", {**GRID, **over})
    assert str(caught.value) == sentence


def test_of_a_grid_every_combination_is_checked_not_pairs_alone() -> None:
    """Each two of the three go together, all three do not: 3 x 0.35 is more than the whole."""
    stages = [{"kind": "single_task", "task": task, "share": {"choice": [0.1, 0.35]}} for task in ("sst", "para", "sts")]
    document = {"config": {"stages": [*stages, "multitask"]}}
    make_space("pairs", {**document, "sampler": "random"})
    with pytest.raises(SettingsError, match=r"sum to 1\.05"):
        make_space("all", {**document, "sampler": "grid"})


def test_a_grid_beyond_what_can_be_checked_is_refused() -> None:
    many = {"choice": list(range(1, 41))}
    config = {"tasks": {"sst": {"batch_size": many}, "para": {"batch_size": many}}}
    with pytest.raises(SettingsError, match=r"takes 1,600 combinations of this space, and 1,000 at most. Use random."):
        make_space("g", {"sampler": "grid", "config": config})


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
        ("rungs: [1, 2, 6]", "`rungs` must grow by one whole factor of 2 or more, as [1, 3, 9] does. Got [1, 2, 6]."),
        ("rungs: [2, 3]", "`rungs` must grow by one whole factor of 2 or more, as [1, 3, 9] does. Got [2, 3]."),
        ("rungs: [3, 3]", "`rungs` must grow by one whole factor of 2 or more, as [1, 3, 9] does. Got [3, 3]."),
        ("rungs: [9, 3, 1]", "`rungs` must grow by one whole factor of 2 or more, as [1, 3, 9] does. Got [9, 3, 1]."),
        ("rungs: [1, 3, 9, 27, 81, 243]", "`rungs` must end at 81 parts or fewer. Got 243."),
        ("sampler: tpee", "Unknown `sampler` kind 'tpee'; did you mean 'tpe'? Known: grid, random, tpe."),
        ("sampler: {startup: 3}", "`sampler` must be a kind's name, or a map with its `kind`. Got {startup: 3}. Known: grid, "
         "random, tpe."),
        ("sampler: {kind: random, startup: 3}", "Unknown key `sampler/random/startup`. There is `sampler/tpe/startup`."),
        ("sampler: {kind: tpe, startups: 3}", "Unknown key `sampler/tpe/startups`; did you mean 'startup'? Known: startup."),
        ("sampler: {kind: tpe, startup: true}", "`sampler/tpe/startup` must be a whole number. Got true."),
        ("trial_scheduler: off", "Unknown `trial_scheduler` kind 'off'. Known: asha, none, top_k."),
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


def test_top_k_needs_a_rung_to_choose_at_and_one_to_go_on_to(faults: Callable[..., list[str]]) -> None:
    assert make_space("s", {"rungs": [1, 9], "trial_scheduler": "top_k"}).settings.trial_scheduler == TopK(k=3)
    assert make_space("s", {"rungs": [1], "trial_scheduler": "asha"}).settings.trial_scheduler == Asha()
    law = "`trial_scheduler` top_k chooses at one rung who goes on to the next, so it needs 2 `rungs` or more. Got [1]."
    assert faults("rungs: [1]\ntrial_scheduler: top_k\n") == [f"2: {law}"]
    [fault] = faults("rungs: [1, 2, 6]\ntrial_scheduler: top_k\n")  # wrong rungs are told once
    assert "must grow by one whole factor" in fault


def test_a_space_that_is_no_map_is_refused(faults: Callable[..., list[str]]) -> None:
    assert faults("- a\n") == ["1: A space is a map with `config` and what else it says. Got ['a']."]
    assert faults("") == ["1: A space is a map with `config` and what else it says. Got null."]


def test_a_spaces_name_is_its_files_and_plain(write: Write) -> None:
    assert read_space(write("trials: 3\n", "my-space_2.yaml")).name == "my-space_2"
    with pytest.raises(SettingsError, match=r"made of a-z, 0-9, _ and -\. Got 'My Space'"):
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


EPOCHS = "`budget/epochs` means something else for each task_schedule, which this space varies"


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
    forced = list(cover(make_space("s", {"config": config}).domains()))
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


# -------------------------------------------------------------------------------------------------------------- together

STEP = """
together:
  step:
    - name: surgery
      set:
        task_schedule: round_robin
        gradient: {choice: [pcgrad, {kind: gradvac, beta: {log_uniform: [1e-3, 1e-1]}}]}
    - {name: single, set: {task_schedule: proportional, gradient: sum}}
"""


def test_together_sets_several_paths_at_once_and_leaves_impossible_pairs_out(write: Write) -> None:
    space = read_space(write(STEP))
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
         ": a branch that is a map needs a `kind` or a `name`; names are made of a-z, 0-9, _ and -. "
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
TWO_LR = "`optimizer/lr` has two domains, uniform [0.1, 0.2] and log_uniform [0.1, 0.2]; it may have one."


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (together(LR_UNIFORM, "{}", config=LR_UNIFORM),
         "4: `optimizer/lr` is a domain in `config` and in `together/t`; it may be one in one place."),
        (together("{}", "{optimizer.lr: {uniform: [0.1, 0.2]}}", config=LR_UNIFORM),
         "5: `optimizer/lr` is a domain in `config` and in `together/t`; it may be one in one place."),
        (together(LR_UNIFORM, LR_LOG), f"5: {TWO_LR}"),
        (together("{gradient: {choice: [sum, pcgrad]}}", "{gradient: {choice: [pcgrad, sum]}}"),
         "5: `gradient` has two domains, choice of sum, pcgrad and choice of pcgrad, sum; it may have one."),
        (together("{gradient: {kind: gradvac, beta: {uniform: [0.1, 0.2]}}}", "{}",
                  config="{gradient: {choice: [sum, {kind: gradvac, beta: {uniform: [0.1, 0.2]}}]}}"),
         "4: `gradient/gradvac/beta` is a domain in `config` and in `together/t`; it may be one in one place."),
        (together("{}", LR_UNIFORM) + f"  u:\n    - {{name: x, set: {LR_LOG}}}\n    - {{name: y}}\n", f"7: {TWO_LR}"),
        ("config:\n  tasks:\n    all:\n      head:\n        choice:\n"
         "          - {name: a, kind: mlp, dropout: {uniform: [0, 0.2]}}\n"
         "          - {name: b, kind: mlp, dropout: {uniform: [0, 0.3]}}\n",
         "6: `tasks/all/head/mlp/dropout` has two domains, uniform [0, 0.2] and uniform [0, 0.3]; it may have one."),
        ("config:\n  gradient:\n    choice:\n      - {name: a, kind: gradvac, beta: {uniform: [0, 0.2]}}\n"
         "      - choice: [sum, {kind: gradvac, beta: {uniform: [0, 0.3]}}]\n", "4: `gradient/gradvac/beta` has two domains"),
        (together("{gradient: {beta: {uniform: [0.1, 0.2]}}}", "{}",
                  config="{gradient: {kind: gradvac, beta: {uniform: [0.1, 0.2]}}}"),
         "1: `gradient/gradvac/beta` is a domain in `config` and in `together/t`; it may be one in one place."),
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
def test_one_domain_in_several_branches_and_a_constant_over_a_domain_are_allowed(text: str, write: Write) -> None:
    space = read_space(write(text))
    for seed in range(10):
        space.sample(drawing(seed)).config()


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
    assert faults("extends: b.yaml\n") == ["b.yaml:2: `extends` leads round in a circle: s.yaml -> b.yaml -> s.yaml."]
    assert faults("extends: s.yaml\n") == ["1: `extends` leads round in a circle: s.yaml -> s.yaml."]
    assert faults("trials: 3\nextends: no.yaml\n") == ["2: `extends` names 'no.yaml', but there is no file no.yaml."]
    assert faults("extends: [b.yaml]\n") == ["1: `extends` takes a file name. Got ['b.yaml']."]
    assert faults("extends:\n") == ["1: `extends` takes a file name. Got null."]


# ------------------------------------------------------------------------------------------------------------- baselines


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
        ("optimizer/lr: 0.5", "`baselines/1`: `optimizer/lr` 0.5 lies outside its domain, uniform [0.1, 0.2]."),
        ("optimizer: {lr: true}", "`baselines/1`: `optimizer/lr` true lies outside its domain, uniform [0.1, 0.2]."),
        ("optimizer: {lr: {uniform: [0, 1]}}",
         "`baselines/1`: `optimizer/lr` {uniform: [0, 1]} lies outside its domain, uniform [0.1, 0.2]."),
        ("gradient: gradvac", "`baselines/1`: `gradient` 'gradvac' lies outside its domain, choice of sum, pcgrad."),
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
         r"`stages/0/linear_probe/lr` 0\.5 lies outside its domain, log_uniform \[0\.0001, 0\.01\]\."),
        ({"together/recipe": "lp_ft", "stages/5/linear_probe/lr": 1e-3}, r"`stages` must be a list\."),
    ],
)  # fmt: skip
def test_a_baseline_that_names_an_entry_that_is_not_there_or_of_another_kind_is_refused(
    named: dict[str, Any], sentence: str
) -> None:
    """Else it would run as another recipe than the one it is told to be."""
    with pytest.raises(SettingsError, match=sentence):
        space_of([named], {}, together=RECIPES)


def test_a_baseline_finds_the_branch_of_together_that_says_what_it_says(write: Write) -> None:
    text = (
        STEP + "baselines: [{gradient: sum}, {gradient/gradvac/beta: 0.05}, {together: {step: single}}, "
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
        with pytest.raises(SettingsError, match="to choose a kind write task_schedule=round_robin"):
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
    config = space.sample(taking()).config()
    assert (config.task("sts").batch_size, space.settings.sampler.startup, config.task("sst").head.dropout) == (4, 2, 0.2)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("optimizer/lr", "--set takes path=value, as in --set optimizer/lr=2e-5. Got 'optimizer/lr'."),
        ("=3", "--set takes path=value, as in --set optimizer/lr=2e-5. Got '=3'."),
        ("trails=3", "Unknown key `trails`; did you mean 'trials'?"),
        ("lr=3", "There is `optimizer/lr`."),
        ("optimiser/lr=3", "Unknown key `optimiser`; did you mean 'optimizer'?"),
        ("extends=x.yaml", "A space says in its file what it `extends`; --set cannot."),
        ("optimizer/lrr=3", "Unknown key `optimizer/lrr`; did you mean 'lr'?"),
        ("optimizer/lr=7", "`optimizer/lr` must be <= 1. Got 7."),
        ("trials=0", "`trials` must be > 0. Got 0."),
        ("trials=true", "`trials` must be a whole number. Got true."),
        ("optimizer/lr={uniform: [2, 1]}", "`optimizer/lr`: `uniform` needs low < high, both finite. Got [2, 1]."),
        ("gradient={kind: gradvac, beta: 5}", "`gradient/gradvac/beta` must be <= 1. Got 5."),
        ("gradient/gradvac/beta=5", "`gradient/gradvac/beta` must be <= 1. Got 5."),
        ("smoothness/none/radius=1", "`smoothness/none`: the space holds no none there; choose it first: smoothness=none."),
        ("task_schedule/proportional/alpha=1",
         "`task_schedule/proportional`: the space holds no proportional there; choose it first: "
         "task_schedule=proportional."),
        ("tasks/sts/head/mlp/dropout=0.1",
         "`tasks/sts/head/mlp`: the space holds no mlp there; choose it first: tasks/sts/head=mlp."),
        ("tasks/sts/head/linear/dropout=0.1", "`tasks/sts/head/linear`: the space holds no linear there; choose it first: "
         "tasks/sts/head=linear."),
        ("gradient/pcgard/x=1",
         "Unknown kind 'pcgard' in `gradient/pcgard`; did you mean 'pcgrad'? Known: "),
        ("gradient/beta=1", "Unknown kind 'beta' in `gradient/beta`. Known: "),
        ("gradient/pcgrad=1",
         "`gradient/pcgrad`: to choose a kind write gradient=pcgrad; `gradient/pcgrad/…` is one of its knobs."),
        ("stages/2/multitask/share=1", "`stages/2`: the space has 2 entries there, numbered from 0."),
        ("stages/first=multitask", "`stages/first`: the space has 2 entries there, numbered from 0."),
        ("optimizer/lr/low=1", "`optimizer/lr` is a domain, which has no `low`; set it whole: optimizer/lr=…."),
        ("trials/x=1", "`trials` is 8, which has no `x`; set it whole: trials=…."),
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
