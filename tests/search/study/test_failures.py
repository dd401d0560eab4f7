"""What failed trials teach: regions that TPE avoids, branches that fail again and again, and passes that held."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState

from minbert_core.config_checks import load_config, read_config
from search.methods.asha import RungScheduler
from search.space.space import Space, make_space
from search.study.failures import is_avoided
from search.study.limits import footprint
from search.study.repair import repair
from search.study.searcher import failure_reason
from search.study.study import Study
from search.study.trials import TrialResult, ranked

RUNGS = (1, 3, 9)
BASE = {"data": "toy", "encoder": "tiny", "budget": {"examples": 900}}
TOO_LARGE = "out of memory: step 1 does not fit, even with one example of 24 tokens per pass (CUDA out of memory)."


@pytest.fixture
def open_study(tmp_path: Path) -> Callable[..., Study]:
    def open_(name: str = "a", seed: int = 7, **config: Any) -> Study:
        (tmp_path / name / "trials").mkdir(parents=True, exist_ok=True)
        return Study(tmp_path / name, make_space("quick", {"trials": 60, "config": BASE | config}), seed)

    return open_


def completed(study: Study, trial: TrialResult, score: float, rungs: tuple[int, ...] = RUNGS, **train: Any) -> TrialResult:
    """Let a trial report its points and end."""
    for rung in rungs:
        about = {"examples": rung * 100, "passes": rung * 100, "step": rung, "seconds": float(rung), "time_ms": rung}
        records = [{"kind": "train", **about, **train}, {"kind": "dev", "rung": rung, "stage": 0, "dev/score": score, **about}]
        with (trial.folder / "metrics.jsonl").open("a") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
        study.report(trial.number, records)
    return study.tell(trial.number, "completed", "completed")


# ------------------------------------------------------------------------------------------------------- out of memory


def test_what_does_not_fit_is_failed_for_the_user_and_infeasible_for_the_sampler(
    open_study: Callable[..., Study], tmp_path: Path
) -> None:
    study = open_study(optimizer={"lr": {"log_uniform": [1e-4, 1e-2]}})
    trial = study.ask()
    (trial.folder / "failure.txt").write_text(f"DoesNotFitError: {TOO_LARGE.partition(': ')[2]}")
    told = study.tell(trial.number, "failed", failure_reason(trial.folder))
    assert (told.status, told.reason) == ("failed", TOO_LARGE)
    (known,) = study.study.get_trials()
    assert known.state == TrialState.PRUNED
    assert known.constraints == {"fits": 1.0}
    other = completed(study, study.ask(), 0.1)
    assert ranked(study.results()) == [other], "a failed trial is never the best"


def infeasible_share(study: Study, is_avoided: bool, score: Callable[[int], float]) -> float:
    """Return the share of batches over 64, which do not fit, in the last 30 of 60 points."""
    found = []
    for _ in range(60):
        trial = study.ask()
        size = trial.params["tasks/all/batch_size"]
        found.append(size > 64)
        if size <= 64:
            completed(study, trial, score(size), rungs=RUNGS[-1:])
        elif is_avoided:
            study.tell(trial.number, "failed", TOO_LARGE)
        else:
            study.study.tell(trial.number, state=TrialState.FAIL)
    return float(np.mean(found[30:]))


def test_tpe_proposes_rarely_what_did_not_fit(open_study: Callable[..., Study]) -> None:
    """Told as failed, all of the last 30 do not fit: TPE does not see them. With a constraint few do not.

    They are more where larger batches score better, so that the best point is at the limit.
    """
    tasks = {"all": {"batch_size": {"int": [1, 128]}}}
    random = np.random.default_rng(0)
    assert infeasible_share(open_study("a", tasks=tasks), False, lambda size: size / 128) > 0.9
    assert infeasible_share(open_study("b", tasks=tasks), True, lambda size: size / 128) < 0.55
    assert infeasible_share(open_study("c", tasks=tasks), True, lambda _: random.random()) < 0.3


# --------------------------------------------------------------------------------------------------- failing branches

CHOICES = {"gradient": {"choice": ["sum", "pcgrad"]}, "smoothness": {"choice": ["none", "smart"]}}


def branch(study: Study, smoothness: str) -> TrialResult:
    """The next trial of a branch; those before it are completed."""
    while (trial := study.ask()).params["smoothness"] != smoothness:
        completed(study, trial, 0.5)
    return trial


def test_the_third_failure_of_a_branch_like_this_is_avoided_and_says_so(open_study: Callable[..., Study]) -> None:
    study = open_study(**CHOICES)
    for gradient in ("sum", "pcgrad"):  # so that none of them is to blame
        while study.ask().params != {"gradient": gradient, "smoothness": "none"}:
            pass
        completed(study, study.results()[-1], 0.5)
    numbers = [branch(study, "smart").number for _ in range(4)]
    told = [study.tell(number, "failed", "ValueError: a shape.") for number in numbers[:2]]
    study.tell(numbers[2], "failed", "KeyError: another way")
    told.append(study.tell(numbers[3], "failed", "ValueError: a shape."))
    assert [trial.reason for trial in told] == [
        "ValueError: a shape.",
        "ValueError: a shape.",
        "ValueError: a shape; failures like this so far: 3 of smoothness=smart, which the sampler avoids",
    ]
    entries = {trial.number: trial for trial in study.study.get_trials()}
    assert [entries[number].constraints for number in numbers] == [{}, {}, {}, {"fits": 1.0}]
    assert [entries[number].state for number in numbers] == [TrialState.FAIL] * 3 + [TrialState.PRUNED]


def test_a_branch_that_has_worked_is_not_to_blame(open_study: Callable[..., Study]) -> None:
    study = open_study(gradient={"choice": ["sum", "pcgrad"]})
    for wanted in ("sum", "pcgrad"):
        while study.ask().params["gradient"] != wanted:
            pass
        completed(study, study.results()[-1], 0.5)
    reasons = [study.tell(study.ask().number, "failed", "ValueError: a shape.").reason for _ in range(6)]
    assert set(reasons) == {"ValueError: a shape."}


def test_a_sampler_that_does_not_learn_is_not_said_to_avoid_anything(tmp_path: Path) -> None:
    (tmp_path / "trials").mkdir()
    space = make_space("quick", {"sampler": "random", "config": BASE | {"gradient": {"choice": ["sum", "pcgrad"]}}})
    study = Study(tmp_path, space, 7)
    reasons = [study.tell(study.ask().number, "failed", "ValueError: a shape").reason for _ in range(5)]
    assert any(reason.startswith("ValueError: a shape; failures like this so far: 3 of gradient=") for reason in reasons)
    assert is_avoided(next(reason for reason in reasons if "3 of gradient=" in reason))
    assert not any("sampler" in reason for reason in reasons)


# ------------------------------------------------------------------------------------------------- the passes that held


def limit_of(trial: TrialResult) -> int | None:
    return read_config(trial.folder / "config.yaml").machine.micro_batch_tokens


def test_the_passes_that_held_are_those_of_later_trials_of_the_same_size(open_study: Callable[..., Study]) -> None:
    study = open_study(smoothness={"choice": ["none", "smart"]}, optimizer={"lr": {"log_uniform": [1e-4, 1e-2]}})
    first = branch(study, "smart")
    assert limit_of(first) is None
    completed(study, first, 0.5, **{"train/micro_batch_tokens": 512})
    assert limit_of(branch(study, "smart")) == 512
    assert limit_of(branch(study, "none")) is None


def test_a_resumed_search_proposes_the_same_passes_and_restores_a_lost_config(open_study: Callable[..., Study]) -> None:
    study = open_study(optimizer={"lr": {"log_uniform": [1e-4, 1e-2]}})
    completed(study, study.ask(), 0.5, **{"train/micro_batch_tokens": 512})
    second = study.ask()
    written = (second.folder / "config.yaml").read_bytes()
    (second.folder / "config.yaml").unlink()
    space: Space = study.space
    repair(study.folder, space, 7)
    assert (second.folder / "config.yaml").read_bytes() == written
    resumed = open_study(optimizer={"lr": {"log_uniform": [1e-4, 1e-2]}})
    resumed.restore(RungScheduler(RUNGS), {trial.number: trial.records for trial in resumed.results()})
    assert limit_of(resumed.ask()) == 512


@pytest.mark.parametrize(
    ("changes", "is_same"),
    [
        ({"tasks": {"all": {"batch_size": 64}}}, True),  # the limit is that of a pass
        ({"optimizer": {"lr": 1e-3}, "seed": 5}, True),
        ({"max_length": 256}, False),
        ({"smoothness": "smart"}, False),
        ({"proximal": "bregman"}, False),
        ({"gradient": "pcgrad"}, False),
        ({"tasks": {"pairs": {"pair_encoding": "bi"}}}, False),
    ],
)
def test_a_size_is_what_decides_the_memory_of_a_pass(changes: dict[str, Any], is_same: bool) -> None:
    assert (footprint(load_config(BASE | changes)) == footprint(load_config(BASE))) == is_same
