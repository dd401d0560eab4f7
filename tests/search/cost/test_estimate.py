"""What a search will cost: which points are measured, the arithmetic, the words, the disk; and the measuring with Ray."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from minbert_core.commands import Refused
from search.cost.estimate import Estimate, check_disk, disk_bytes, estimate, lines, mean_factors
from search.cost.measure import Cost
from search.cost.points import branch_points, failure, measure_points
from search.plan.plan import Plan, make_plan
from search.plan.resources import Resources
from search.run import main
from search.space.space import Sample, Space, make_space
from search.study.engine import start_ray
from search.study.study import KEEP_BEST

CPUS = Resources(cpus=2, gpus=0, cpus_per_trial=1, gpus_per_trial=0)
SMART = {"kind": "smart", "radius": {"choice": [0.001, 0.01]}}


def space_of(**config: Any) -> Space:
    return make_space("quick", {"config": {"data": "toy", "encoder": "tiny", **config}})


def planned(num_trials: int, resources: Resources = CPUS, config: Any = None, **own: Any) -> Plan:
    whole = {"data": "toy", "encoder": "tiny", "budget": {"examples": 240}, **(config or {})}
    return make_plan("quick", make_space("quick", {"config": whole, **own}), 0, num_trials, resources)


# --------------------------------------------------------------------------------------------------------------- points


def test_each_branch_is_measured_by_itself_the_default_point_first() -> None:
    points = branch_points(
        space_of(gradient={"choice": ["sum", "pcgrad", "gradvac"]}, smoothness={"choice": ["none", "smart"]})
    )
    assert [tuple(sample.params.values()) for sample in points.samples] == [
        ("sum", "none"),
        ("pcgrad", "none"),
        ("gradvac", "none"),
        ("sum", "smart"),
    ]
    assert points.branches["smoothness", "smart"] == (3, 0)
    assert points.branches["gradient", "sum"] == (0, 0)
    assert points.num_branches == 5


def test_a_branch_within_a_branch_is_compared_with_what_it_lies_in() -> None:
    points = branch_points(space_of(smoothness={"choice": ["none", SMART]}))
    assert [list(sample.params.values()) for sample in points.samples] == [["none"], ["smart", 0.01], ["smart", 0.001]]
    assert points.branches["smoothness/smart/radius", 0.001] == (2, 1)  # not with the point without smart


def test_at_most_so_many_points_are_measured_choices_of_numbers_last() -> None:
    space = space_of(tasks={"all": {"batch_size": {"choice": [4, 8, 16]}}}, gradient={"choice": ["sum", "pcgrad"]})
    points = branch_points(space, at_most=3)
    assert len(points.samples) == 3
    assert points.branches.keys() == {
        ("gradient", "sum"),
        ("gradient", "pcgrad"),
        ("tasks/all/batch_size", 4),
        ("tasks/all/batch_size", 16),
    }
    assert points.num_branches == 5


# ----------------------------------------------------------------------------------------------------------- arithmetic


def test_the_mean_factor_weighs_branches_as_random_draws_choose_them() -> None:
    space = space_of(smoothness={"choice": ["none", "smart"]}, gradient={"choice": ["sum", "pcgrad"]})
    train, evaluation = mean_factors(space, {("smoothness", "smart"): (3.0, 1.0), ("smoothness", "none"): (1.0, 1.0)}, 2_000)
    assert (train, evaluation) == (pytest.approx(2, abs=0.1), 1)
    both = {("smoothness", "smart"): (3.0, 1.0), ("gradient", "pcgrad"): (2.0, 1.0)}
    assert mean_factors(space, both, 2_000)[0] == pytest.approx((1 + 3 + 2 + 6) / 4, abs=0.15)

    nested = space_of(smoothness={"choice": ["none", SMART]})
    assert mean_factors(nested, {("smoothness/smart/radius", 0.001): (5.0, 1.0)}, 2_000)[0] == pytest.approx(2, abs=0.2)


def cost(train: float, evaluation: float = 10, start: float = 5, **changes: Any) -> Cost:
    return replace(Cost(train, evaluation, start, 0.5, 3_000, 1_000), **changes)


@pytest.mark.usefixtures("cache")
def test_a_search_takes_the_work_of_its_trials_shared_by_its_slots() -> None:
    plan = planned(4, rungs=[1])
    points = branch_points(plan.space)
    found = estimate(plan, points, {0: [cost(90), cost(110)]}, start_up_seconds=7)
    assert found.seconds == pytest.approx(7 + 4 * (5 + 100 + 10) / 2)
    assert found.trial_seconds == pytest.approx(115)
    assert found.slowest is None


@pytest.mark.usefixtures("cache")
def test_halving_trains_parts_and_evaluates_at_each_rung() -> None:
    plan = planned(8, rungs=[1, 3, 9], trial_scheduler={"kind": "top_k", "k": 1})
    found = estimate(plan, branch_points(plan.space), {0: [cost(90)]}, start_up_seconds=0)
    assert found.seconds == pytest.approx((7 * (5 + 10 + 10) + (5 + 90 + 3 * 10)) / 2)


@pytest.mark.usefixtures("cache")
def test_a_search_takes_no_less_than_one_full_trial() -> None:
    plan = planned(1, rungs=[1])
    assert estimate(plan, branch_points(plan.space), {0: [cost(100)]}, 0).seconds == pytest.approx(115)


@pytest.mark.usefixtures("cache")
def test_branches_that_cost_more_make_a_search_longer_and_the_dearest_is_named() -> None:
    plan = planned(2, config={"smoothness": {"choice": ["none", "smart"]}}, rungs=[1])
    points = branch_points(plan.space)
    found = estimate(plan, points, {0: [cost(100)], 1: [cost(300, memory_gb=2.0)]}, 0)
    assert found.seconds == pytest.approx(5 + 200 + 10, rel=0.1)
    assert found.slowest is not None
    assert found.slowest[0] == "smoothness=smart"
    assert found.slowest[1] == pytest.approx(310 / 110)
    assert (found.memory_gb, found.num_measured, found.num_branches) == (2.0, 2, 2)

    missed = estimate(plan, points, {0: [cost(100)]}, 0)  # the minute was over before the second
    assert (missed.num_measured, missed.slowest) == (1, None)


@pytest.mark.usefixtures("cache")
def test_a_search_of_fewer_trials_than_there_is_room_for_runs_no_more_at_a_time() -> None:
    plan = replace(planned(3), resources=Resources(64, 0, 1, 0))
    found = estimate(plan, branch_points(plan.space), {0: [cost(100)]}, 0)
    [first, *_] = lines(replace(found, seconds=3600), plan.resources, None, None)
    assert "3 trials at a time" in first
    assert first.endswith("; 3 core-hours")


@pytest.mark.usefixtures("cache")
def test_the_disk_holds_what_runs_what_waits_and_the_best_few() -> None:
    plan = planned(20)
    records = disk_bytes(plan, 0, 0, copies=0)
    assert disk_bytes(plan, 100, 10, copies=2) - records == 2 * (100 + 10) + 2 * 100 + KEEP_BEST * 10
    waiting = planned(20, trial_scheduler={"kind": "top_k", "k": 5})
    assert disk_bytes(waiting, 100, 10, copies=2) - records == (2 + 5) * (100 + 10) + 2 * 100 + KEEP_BEST * 10
    assert disk_bytes(planned(1), 100, 10, copies=2) - disk_bytes(planned(1), 0, 0, copies=0) == 100 + 10 + 100 + 10


@pytest.mark.usefixtures("cache")
def test_the_size_of_the_models_is_known_before_anything_is_measured() -> None:
    plan, probing = planned(3), planned(3, config={"stages": ["linear_probe"]})
    assert plan.snapshot_bytes == 3 * plan.best_bytes
    assert probing.snapshot_bytes == probing.best_bytes == plan.best_bytes


@pytest.mark.usefixtures("cache")
def test_a_disk_that_is_clearly_too_small_refuses_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(planned(20), best_bytes=4 * 110_000_000, snapshot_bytes=12 * 110_000_000)
    asked = []

    def usage(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(free=free)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    free = 2_000_000_000
    with pytest.raises(
        Refused, match=r"2 trials at a time, 1 CPU each would need 6\.\d GB in .* its disk has only 2\.0 GB free"
    ):
        check_disk(plan, tmp_path / "new" / "runs")
    assert asked == [tmp_path]  # the folder that is there already
    free = 7_000_000_000
    check_disk(plan, tmp_path / "new" / "runs")


# ---------------------------------------------------------------------------------------------------------------- words


HOUR = Estimate(3600, 1200, 3.1, 1_200_000_000, 600_000_000, ("smoothness=smart", 2.4), 4, 5, 4)


def test_an_estimate_on_a_cpu_counts_core_hours_and_the_machines_price() -> None:
    assert lines(HOUR, Resources(8, 0, 2, 0), 1.5, None) == [
        "estimate  about 60 min on this machine, 4 trials at a time (between 42 min and 1 h 30 min, as the sampler may drift); "
        "8 core-hours",
        "          from 4 of 5 branches measured; slowest: smoothness=smart, 2.4 times the fastest of its choice",
        "          memory 3.1 GB per trial; disk 1.2 GB at most, 0.6 GB afterwards",
        "          $1.50 at $1.5 per hour of this machine",
    ]


def test_an_estimate_names_each_pretraining_once() -> None:
    told = lines(replace(HOUR, pretraining={"mlm 3f2a9c01": 720.0, "nsp 77aa01bc": 65.0}), Resources(8, 0, 2, 0), None, None)
    assert told[-1] == "          including further pretraining, once each: mlm 3f2a9c01 12 min, nsp 77aa01bc 65 s"


def test_a_pretraining_adds_its_time_once_however_many_points_measured_it() -> None:
    plan = planned(4, sampler={"kind": "random"}, trial_scheduler="none")
    points = branch_points(plan.space)
    cost = Cost(10.0, 1.0, 2.0, 1.0, 10, 5)
    before = estimate(plan, points, {0: [cost]}, 0.0)
    after = estimate(plan, points, {0: [replace(cost, pretraining={"mlm 3f2a9c01": 100.0})] * 3}, 0.0)
    assert after.seconds == pytest.approx(before.seconds + 100)
    assert after.trial_seconds == before.trial_seconds


def test_an_estimate_on_gpus_counts_gpu_hours_and_their_price() -> None:
    told = lines(replace(HOUR, num_branches=0, slowest=None), Resources(16, 2, 1, 0.5), 1.25, 1)
    assert told[0].endswith("4 trials at a time (between 42 min and 1 h 30 min, as the sampler may drift); 2 GPU-hours")
    assert told[1:] == [
        "          GPU memory 3.1 GB per trial; disk 1.2 GB at most, 0.6 GB afterwards",
        "          $2.50 at $1.25 per GPU-hour",
        "          --hours 1 would suffice for about 12 trials",
    ]


def test_long_searches_are_told_in_whole_hours() -> None:
    [first, *_] = lines(replace(HOUR, seconds=275_000), Resources(8, 0, 2, 0), None, None)
    assert "about 76 h on this machine, 4 trials at a time (between 53 h and 115 h" in first
    assert first.endswith("; 611 core-hours")


def test_trials_that_need_more_memory_than_there_is_are_warned_of() -> None:
    [*_, warning] = lines(replace(HOUR, memory_gb=1e6), Resources(8, 0, 2, 0), None, None)
    assert warning.startswith("warning   4 trials at a time need more than this machine's ")


def test_a_point_that_cannot_be_trained_is_told_with_its_reason_and_a_way_out() -> None:
    sample = Sample({"smoothness": "smart", "optimizer/lr": 1e-5}, {}, {})
    error: Any = ray.exceptions.RayTaskError("measure", "…", RuntimeError("CUDA out of memory. Tried 2 GiB.\nmore"))
    assert failure(sample, error) == (
        "The point smoothness=smart lr=1e-05 cannot be trained here: RuntimeError: CUDA out of memory. Tried 2 GiB. "
        "Fewer trials at a time, smaller batches, or `machine/micro_batch_tokens` would need less."
    )
    assert "its process was killed, perhaps out of memory" in failure(sample, ray.exceptions.WorkerCrashedError())


@pytest.mark.parametrize("arguments", ["--space quick.yaml --price 1", "--resume quick --dry-run --price 1"])
def test_a_price_without_a_new_searchs_dry_run_is_refused(capsys: pytest.CaptureFixture[str], arguments: str) -> None:
    assert main(arguments.split()) == 2
    assert capsys.readouterr().err == "--price belongs to the estimate of a new search. Give it with --space and --dry-run.\n"


# ------------------------------------------------------------------------------------------------------------- with Ray


SPACE = """\
trials: 9
config:
  data: toy
  encoder: tiny
  budget: {examples: 240}
  smoothness: {choice: [none, smart]}
"""


@pytest.mark.usefixtures("cache")
def test_a_dry_run_measures_every_branch_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "quick.yaml").write_text(SPACE)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    assert main(["--space", "quick.yaml", "--gpus", "0", "--dry-run", "--price", "1"]) == 0
    out = capsys.readouterr().out
    told = out[out.index("estimate  ") :].splitlines()
    assert told[0].startswith("estimate  about ")
    assert "from 2 of 2 branches measured" in told[1]
    assert " GB per trial; disk " in told[2]
    assert told[3].endswith("at $1 per hour of this machine")
    assert told[-1] == f"Nothing was started. Without --dry-run the search goes to {tmp_path / 'runs' / 'quick'}."
    assert sorted(path.name for path in tmp_path.iterdir()) == ["quick.yaml", "scratch"]
    assert list(scratch.glob("minbert-measure-*")) == []


@pytest.fixture
def cluster() -> Iterator[None]:
    start_ray(CPUS, "local")
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster", "cache")
def test_a_branch_that_fails_is_refused_by_name(encoder: Path, data: Path) -> None:
    branches = [{"name": "gone", "checkpoint": str(encoder.with_name("gone"))}, {"name": "kept", "checkpoint": str(encoder)}]
    shutil.copytree(encoder, encoder.with_name("gone"))
    plan = planned(3, config={"data": str(data), "encoder": {"choice": branches}})
    shutil.rmtree(encoder.with_name("gone"))
    told: list[str] = []
    with pytest.raises(Refused, match=r"The point encoder=gone cannot be trained here: ValueError: The encoder folder"):
        measure_points(branch_points(plan.space), CPUS, 1, encoder.parent, told.append)
    assert told[0] == "measuring 2 points of the space, 0 done"
