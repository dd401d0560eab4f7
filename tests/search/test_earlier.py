"""What a new search takes from an earlier one, baselines or what its sampler knows, on trials that are written by hand."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minbert_core.checkpoints import save_encoder
from minbert_core.commands import Refused
from minbert_core.data.toy import toy_folder
from minbert_core.encoder import TINY, new_encoder
from minbert_core.files import cache_folder
from minbert_core.settings.paths import unflatten
from minbert_core.settings.yaml import dump_yaml
from search.earlier import with_best_of, with_known_trials
from search.plan.folder import NEEDED, PlanRecord
from search.plan.plan import Plan, make_plan
from search.plan.resources import Resources
from search.plan.summary import plan_record
from search.results import Search
from search.space.space import Space, make_space
from search.study.study import Study
from search.study.trials import TrialResult

LR = {"log_uniform": [1e-5, 1e-3]}
SMART = {"choice": ["none", {"kind": "smart", "radius": {"log_uniform": [1e-2, 1e-1]}}]}


def trial(
    folder: Path, number: int, score: float, params: dict[str, Any], status: Any = "completed", **more: Any
) -> TrialResult:
    """A trial with one evaluation. Its config has the parameters at their paths, and `more`."""
    own = folder / f"{number:03d}"
    own.mkdir(parents=True)
    config = {"data": "toy", "encoder": "tiny", **unflatten(params), **more}
    (own / "config.yaml").write_text(dump_yaml(config), encoding="utf-8")
    return TrialResult(number, status, "", params, None, own, [{"kind": "dev", "rung": 9, "dev/score": score}])


def search(*trials: TrialResult) -> Search:
    plan: dict[str, Any] = dict.fromkeys(NEEDED, "") | {"train_on": ["sst"], "encoders": {}}
    return Search(Path("runs/old"), PlanRecord(**plan), list(trials))


def space(config: dict[str, Any], *baselines: dict[str, Any], **more: Any) -> Space:
    document = {"config": {"data": "toy", "encoder": "tiny", **config}, "baselines": list(baselines), **more}
    return make_space("new", document)


def test_the_best_trials_become_baselines_with_their_values(tmp_path: Path) -> None:
    old = search(
        trial(tmp_path, 0, 0.5, {"optimizer/lr": 1e-4, "smoothness": "none"}),
        trial(tmp_path, 1, 0.7, {"optimizer/lr": 2e-4, "smoothness": "smart", "smoothness/smart/radius": 0.02}),
        trial(tmp_path, 2, 0.6, {"optimizer/lr": 3e-4, "smoothness": "none"}),
    )
    new, lines = with_best_of(old, 2, space({"optimizer": {"lr": LR}, "smoothness": SMART}, {}))
    assert [new.baseline(i).params for i in (1, 2)] == [old.trials[1].params, old.trials[2].params]
    assert lines == ["the best of old as baselines. Scores are not compared.", "old 001 (0.7000)", "old 002 (0.6000)"]
    assert make_space("new", new.document).document == new.document  # as --resume reads it


def test_what_a_space_lacks_of_a_trial_is_listed(tmp_path: Path) -> None:
    params = {"optimizer/lr": 5e-3, "smoothness": "smart", "smoothness/smart/radius": 0.02, "gradient": "pcgrad"}
    old = search(trial(tmp_path, 0, 0.7, params, max_length=64, seed=3, budget={"examples": 70}))
    new, lines = with_best_of(old, 1, space({"optimizer": {"lr": LR}, "gradient": {"choice": ["sum", "gradvac"]}}))
    assert new.baseline(0).params == {"optimizer/lr": 1e-3, "gradient": "sum"}  # the end of the range that is nearest
    lacks = "gradient 'pcgrad' (here 'sum'), max_length 64 (here 128), optimizer/lr 0.005 (here 0.001) and 1 more"
    assert lines[1:] == [f"old 000 (0.7000) without {lacks}"]


def test_a_branch_of_together_is_found_by_what_it_sets(tmp_path: Path) -> None:
    steps = [
        {"name": "summed", "set": {"gradient": "sum"}},
        {"name": "surgery", "set": {"gradient": "pcgrad", "optimizer/lr": LR}},
    ]
    old = search(trial(tmp_path, 0, 0.7, {"optimizer/lr": 3e-4}, gradient="pcgrad"))
    new, lines = with_best_of(old, 1, space({}, together={"step": steps}))
    assert new.baseline(0).params == {"together/step": "surgery", "optimizer/lr": 3e-4}
    assert lines[1:] == ["old 000 (0.7000)"]


OF_PAIRS = {"pair_encoding": "bi", "head": "sbert"}
SBERT = {f"tasks/pairs/{knob}": value for knob, value in OF_PAIRS.items()}
BY_SIZE = {"task_schedule": {"kind": "proportional", "alpha": 0.5}}
LP_FT = {"stages": ["linear_probe", "multitask"]}


@pytest.mark.parametrize(
    ("branches", "config", "chosen"),
    [
        ({"even": {"task_schedule": "round_robin"}, "by_size": BY_SIZE}, BY_SIZE, "by_size"),
        ({"mlp": {"tasks/all/head": {"kind": "mlp", "hidden": [768]}}, "linear": {"tasks/all/head": "linear"}}, {}, "linear"),
        ({"one": {"stages": ["multitask"]}, "two": LP_FT}, LP_FT, "two"),
        ({"two": LP_FT, "one": {"stages": ["multitask"]}}, {}, "one"),
        ({"surgery": {"gradient": "pcgrad"}, "plain": {}}, {}, "plain"),
        (
            {"bi": {"tasks/pairs/pair_encoding": "bi"}, "sbert": SBERT},
            {"tasks": {"pairs": {"pair_encoding": "bi", "head": "sbert"}}},
            "sbert",
        ),
    ],
)
def test_the_branch_of_together_that_says_most_of_a_trial_is_taken(
    tmp_path: Path, branches: dict[str, Any], config: dict[str, Any], chosen: str
) -> None:
    named = [{"name": name, "set": settings} for name, settings in branches.items()]
    new, _ = with_best_of(search(trial(tmp_path, 0, 0.7, {}, **config)), 1, space({}, together={"how": named}))
    assert new.baseline(0).params == {"together/how": chosen}


def test_branches_of_one_kind_are_told_apart_by_what_they_set(tmp_path: Path) -> None:
    dropout = {"uniform": [0.0, 0.5]}
    heads = [{"name": size, "kind": "mlp", "hidden": [width], "dropout": dropout} for size, width in (("small", 8), ("big", 9))]
    head = {"kind": "mlp", "hidden": [9], "dropout": 0.2}
    params = {"tasks/all/head": "big", "tasks/all/head/mlp/dropout": 0.2}
    one = replace(trial(tmp_path, 0, 0.7, {}, tasks={"all": {"head": head}}), params=params)
    new, lines = with_best_of(search(one), 1, space({"tasks": {"all": {"head": {"choice": heads}}}}))
    assert new.baseline(0).params == params
    assert lines[1:] == ["old 000 (0.7000)"]


def test_a_range_within_a_choice_takes_the_value(tmp_path: Path) -> None:
    weight = {"choice": [0, {"log_uniform": [0.1, 10]}]}
    old = search(trial(tmp_path, 0, 0.7, {}, smoothness={"kind": "smart", "weight": 3.0}))
    new, _ = with_best_of(old, 1, space({"smoothness": {"kind": "smart", "weight": weight}}))
    assert new.baseline(0).params == {
        "smoothness/smart/weight": "log_uniform",
        "smoothness/smart/weight/log_uniform": 3.0,
    }


def test_the_next_best_replaces_a_trial_that_is_a_baseline_already(tmp_path: Path) -> None:
    old = search(*(trial(tmp_path, i, 0.5 + i / 10, {"optimizer/lr": lr}) for i, lr in enumerate((1e-4, 2e-4, 2e-4))))
    new, lines = with_best_of(old, 2, space({"optimizer": {"lr": LR}}))
    assert [new.baseline(i).params["optimizer/lr"] for i in range(2)] == [2e-4, 1e-4]
    assert lines[2] == "old 001 (0.6000) is omitted: it is a baseline of this space already"


def test_a_baseline_that_differs_in_a_setting_that_is_not_searched_is_another(tmp_path: Path) -> None:
    old = search(trial(tmp_path, 0, 0.7, {"optimizer/lr": 2e-4}))
    new, lines = with_best_of(old, 1, space({"optimizer": {"lr": LR}}, {"optimizer/lr": 2e-4, "max_length": 64}))
    assert len(new.baselines) == 2
    assert lines[1:] == ["old 000 (0.7000)"]


def test_a_value_that_the_trial_left_at_its_default_is_its_own(tmp_path: Path) -> None:
    old = search(trial(tmp_path, 0, 0.7, {}))
    new, _ = with_best_of(old, 1, space({"optimizer": {"lr": {"log_uniform": [1e-4, 1e-2]}}}))
    assert new.baseline(0).params == {"optimizer/lr": 1e-4}  # nearest to the default of 5e-5


def test_a_trial_that_runs_at_a_higher_rung_hides_none_that_has_ended(tmp_path: Path) -> None:
    ahead = trial(tmp_path, 1, 0.9, {"optimizer/lr": 3e-4}, "running")
    ended = trial(tmp_path, 0, 0.7, {"optimizer/lr": 2e-4}, "stopped")
    old = search(replace(ended, records=[{"kind": "dev", "rung": 1, "dev/score": 0.7}]), ahead)
    new, _ = with_best_of(old, 1, space({"optimizer": {"lr": LR}}))
    assert new.baseline(0).params == {"optimizer/lr": 2e-4}


def test_trials_that_run_or_failed_are_not_taken(tmp_path: Path) -> None:
    params = {"optimizer/lr": 2e-4}
    old = search(trial(tmp_path, 0, 0.7, params, "running"), trial(tmp_path, 1, 0.8, params, "failed"))
    with pytest.raises(ValueError, match=r"No trial of old has been evaluated and ended, so --from can add none\."):
        with_best_of(old, 1, space({"optimizer": {"lr": LR}}))


def test_a_grid_has_no_baselines(tmp_path: Path) -> None:
    old = search(trial(tmp_path, 0, 0.7, {"optimizer/lr": 2e-4}))
    with pytest.raises(ValueError, match="--from adds baselines, which a grid does not have"):
        with_best_of(old, 1, space({"optimizer": {"lr": {"choice": [1e-4, 2e-4]}}}, sampler="grid"))


# ------------------------------------------------------------------------------------------------------ the sampler knows


def planned(space: Space) -> Plan:
    return make_plan("new", space, 0, None, Resources(1, 0, 1, 0))


def earlier_search(like: Plan, *trials: TrialResult, **changed: Any) -> Search:
    return Search(Path("runs/old"), replace(plan_record(like), **changed), list(trials))


def evaluated(
    folder: Path, number: int, scores: dict[int, float], lr: float, status: Any = "completed", **more: Any
) -> TrialResult:
    config = {"budget": {"examples": 900, "points": [1, 3, 9]}, **more}
    one = trial(folder, number, 0.0, {"optimizer/lr": lr}, status, **config)
    return replace(one, records=[{"kind": "dev", "rung": rung, "dev/score": score} for rung, score in scores.items()])


@pytest.fixture
def plan(cache: Path) -> Plan:
    return planned(space({"optimizer": {"lr": LR}, "budget": {"examples": 900}, "gradient": {"choice": ["sum", "pcgrad"]}}))


def test_the_sampler_knows_the_trials_that_are_points_of_the_space(tmp_path: Path, plan: Plan) -> None:
    old = earlier_search(
        plan,
        evaluated(tmp_path, 0, {1: 0.3, 3: 0.5, 9: 0.4}, 2e-4),
        evaluated(tmp_path, 1, {1: 0.2}, 3e-4, "stopped"),
        evaluated(tmp_path, 2, {1: 0.2}, 3e-3, "stopped"),  # outside the range
        evaluated(tmp_path, 3, {1: 0.9}, 1e-4, "stopped", budget={"examples": 1800, "points": [1, 3, 9]}),
        evaluated(tmp_path, 4, {1: 0.9}, 1e-4, "failed"),
        evaluated(tmp_path, 5, {1: 0.9}, 1e-4, "running"),
    )
    known = with_known_trials(old, plan)
    params = {"gradient": "sum"}
    assert known.earlier == (
        {"trial": 0, "params": {"optimizer/lr": 2e-4, **params}, "scores": {"1": 0.3, "3": 0.5, "9": 0.4}, "completed": True},
        {"trial": 1, "params": {"optimizer/lr": 3e-4, **params}, "scores": {"1": 0.2}, "completed": False},
    )
    assert known.notes == (
        "the sampler knows 2 trials of old, 1 completed",
        "2 trials of old omitted, such as 002 without optimizer/lr 0.003 (here 0.001)",
    )
    assert plan_record(known).earlier == [dict(one) for one in known.earlier]


def test_an_encoder_is_found_by_its_files_however_it_is_spelled(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every trial was taken for one of the first encoder of the new search."""
    monkeypatch.chdir(tmp_path)
    vocabulary = toy_folder(cache_folder()) / "vocab.txt"
    words = len(vocabulary.read_text(encoding="utf-8").splitlines())
    for i, name in enumerate("abc"):
        save_encoder(new_encoder(replace(TINY, vocab_size=words), i, 0.1, 0.1), tmp_path / "models" / name)
        shutil.copy(vocabulary, tmp_path / "models" / name)
    budget, labels = {"examples": 900}, ["./models/a", "./models/b"]
    new = planned(
        make_space("new", {"config": {"data": "toy", "encoder": {"checkpoint": {"choice": labels}}, "budget": budget}})
    )
    trials = [
        evaluated(tmp_path / "old", i, {9: 0.5}, 5e-5, encoder=str(tmp_path / "models" / name)) for i, name in enumerate("abc")
    ]
    known = with_known_trials(earlier_search(new, *trials), new)
    assert [one["params"]["encoder/checkpoint"] for one in known.earlier] == labels
    assert "such as 002 without encoder/checkpoint" in known.notes[1]


def test_rungs_are_compared_by_their_share_of_the_budget(tmp_path: Path, plan: Plan) -> None:
    config = {"budget": {"examples": 900, "points": [1, 2]}}
    old = earlier_search(plan, replace(evaluated(tmp_path, 0, {1: 0.3, 2: 0.5}, 2e-4, **config)))
    [one] = with_known_trials(old, plan).earlier
    assert one["scores"] == {"9": 0.5}


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"fingerprints": {}}, "data"),
        ({"objective": "sst"}, "objective"),
        ({"train_on": ["sst"]}, "objective"),
        ({"encoder_fingerprints": {"e": "1"}}, "encoder"),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(tmp_path: Path, plan: Plan, changed: dict[str, Any], what: str) -> None:
    old = earlier_search(plan, evaluated(tmp_path, 0, {1: 0.3}, 2e-4), **changed)
    with pytest.raises(Refused, match=f"The search old has another {what}, so its scores say nothing .* --from old:3 takes"):
        with_known_trials(old, plan)


def test_a_search_of_another_budget_gives_no_scores(tmp_path: Path, plan: Plan) -> None:
    old = earlier_search(plan, evaluated(tmp_path, 0, {1: 0.3}, 2e-4, budget={"examples": 90, "points": [1, 3, 9]}))
    with pytest.raises(Refused, match=r"such as 000 without budget/examples 90 \(here 900\)\. --from old:3 takes"):
        with_known_trials(old, plan)


def test_a_sampler_that_learns_nothing_is_told_nothing(tmp_path: Path, cache: Path) -> None:
    plan = planned(space({"optimizer": {"lr": LR}, "budget": {"examples": 900}}, sampler="random"))
    with pytest.raises(Refused, match="The sampler random learns from no trial"):
        with_known_trials(earlier_search(plan, evaluated(tmp_path, 0, {1: 0.3}, 2e-4)), plan)


def test_the_first_trials_are_drawn_where_an_earlier_search_was_best(tmp_path: Path, plan: Plan) -> None:
    rates = [10 ** (-5 + i / 20) for i in range(40)]  # 1e-5 to 1e-3
    known = [
        {"trial": i, "params": {"optimizer/lr": lr, "gradient": "sum"}, "scores": {"9": -far(lr)}, "completed": True}
        for i, lr in enumerate(rates)
    ]
    trials = {}
    for name, earlier in {"with": known, "without": []}.items():
        (tmp_path / name).mkdir()
        study = Study(tmp_path / name, plan.space, 0, earlier=earlier)
        trials[name] = [study.ask() for _ in range(8)]
    distances = {name: sum(far(trial.params["optimizer/lr"]) for trial in of) for name, of in trials.items()}
    assert distances["with"] < distances["without"] / 2
    assert [trial.number for trial in trials["with"]] == list(range(8))  # the earlier ones have no number here


def far(lr: float) -> float:
    """The distance to the best rate, in decades."""
    return abs(math.log10(lr / 4e-4))
