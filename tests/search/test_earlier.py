"""The best trials of an earlier search as baselines of a new one, on trials that are written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minbert_core.settings.paths import unflatten
from minbert_core.settings.yaml import dump_yaml
from search.earlier import with_best_of
from search.plan.folder import NEEDED, PlanRecord
from search.results import Search
from search.space.space import Space, make_space
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
    plan: dict[str, Any] = dict.fromkeys(NEEDED, "") | {"train_on": ["sst"]}
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


def test_trials_that_run_or_failed_are_not_taken(tmp_path: Path) -> None:
    params = {"optimizer/lr": 2e-4}
    old = search(trial(tmp_path, 0, 0.7, params, "running"), trial(tmp_path, 1, 0.8, params, "failed"))
    with pytest.raises(ValueError, match=r"No trial of old has been evaluated and ended, so --from can add none\."):
        with_best_of(old, 1, space({"optimizer": {"lr": LR}}))


def test_a_grid_has_no_baselines(tmp_path: Path) -> None:
    old = search(trial(tmp_path, 0, 0.7, {"optimizer/lr": 2e-4}))
    with pytest.raises(ValueError, match="--from adds baselines, which a grid does not have"):
        with_best_of(old, 1, space({"optimizer": {"lr": {"choice": [1e-4, 2e-4]}}}, sampler="grid"))
