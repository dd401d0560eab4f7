"""How many trials share a GPU: the choice, what bounds it, whose memory counts, and the probe, with Ray on the CPU."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from search import run
from search.cluster.gpus import Gpu
from search.cost import packing
from search.cost.measure import Memory
from search.cost.packing import MostPerGpu, choose, fit, heavy_choice, largest_memory, most_per_gpu, packed
from search.cost.points import branch_points
from search.plan import resources
from search.plan.plan import Plan, make_plan
from search.plan.resources import Resources
from search.plan.summary import plan_lines, plan_record
from search.space.space import Space, make_space
from search.study.engine import start_ray

CONFIG = {
    "data": "toy",
    "encoder": "tiny",
    "budget": {"examples": 240},
    "machine": {"device": "cpu", "precision": "float32"},  # Ray believes in the GPU of these tests, the trials need none
}
LARGE = Memory(peak_gb=5.06, free_gb=79, total_gb=80)


def space_of(**config: Any) -> Space:
    return make_space("quick", {"config": CONFIG | config})


def planned(num_trials: int, found: Resources, **config: Any) -> Plan:
    return make_plan("quick", space_of(**config), 0, num_trials, found)


# -------------------------------------------------------------------------------------------------------------- choice


@pytest.mark.parametrize(
    ("rates", "memory", "ended", "number", "sentence"),
    [
        (
            {1: 410, 2: 760, 4: 1150, 8: 1190},
            LARGE,
            "",
            4,
            "4 trials share a GPU: one trial trains 410 examples/s, 2 together 760, 4 together 1,150, 8 together 1,190; "
            "a trial needs 5.1 of 80 GB",
        ),
        (
            {1: 410, 2: 420},
            LARGE,
            "",
            1,
            "one trial per GPU: one trial trains 410 examples/s, 2 together 420; a trial needs 5.1 of 80 GB",
        ),
        (
            {1: 410, 2: 760},
            Memory(17, 79, 80),
            "4 would not fit",
            2,
            "2 trials share a GPU: one trial trains 410 examples/s, 2 together 760; a trial needs 17.0 of 80 GB; "
            "4 would not fit",
        ),
        (
            {1: 90},
            Memory(11, 15, 16),
            "2 would not fit",
            1,
            "one trial per GPU: one trial trains 90 examples/s; a trial needs 11.0 of 16 GB; 2 would not fit",
        ),
    ],
)
def test_doubling_is_chosen_as_long_as_it_gains_a_tenth_and_the_sentence_says_why(
    rates: dict[int, float], memory: Memory, ended: str, number: int, sentence: str
) -> None:
    assert choose(rates, memory, ended) == (number, sentence)


@pytest.mark.parametrize(
    ("number", "free_gb", "fits"),
    [(1, 6.5, True), (1, 6.4, False), (4, 26, True), (4, 25.9, False)],  # 1.2 x 5 GB and half a GB each
)
def test_trials_fit_with_a_margin_and_what_cuda_takes_itself(number: int, free_gb: float, fits: bool) -> None:
    assert fit(number, Memory(5, free_gb, 80)) == fits


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("num_trials", "found", "config", "most"),
    [
        (32, Resources(16, 1, 1, 1), {}, MostPerGpu(by_trials=32, by_cores=16)),
        (32, Resources(16, 4, 2, 1), {}, MostPerGpu(by_trials=8, by_cores=2)),
        (6, Resources(16, 4, 1, 1), {}, MostPerGpu(by_trials=1, by_cores=4)),
        (32, Resources(16, 1, 1, 1), {"machine": {"device": "cpu", "threads": {"int": [1, 4]}}}, MostPerGpu(32, 4)),
    ],
)
def test_no_gpu_is_left_without_a_trial_and_no_trial_without_its_cores(
    num_trials: int, found: Resources, config: dict[str, Any], most: MostPerGpu
) -> None:
    assert most_per_gpu(planned(num_trials, found, **config)) == most


def test_what_there_is_no_room_for_is_said() -> None:
    assert MostPerGpu(8, 8).lacks(8) == ""
    assert MostPerGpu(8, 4).lacks(8) == "for 8 on each GPU this machine has too few cores"
    assert MostPerGpu(4, 4).lacks(8) == "for 8 on each GPU the search has too few trials"


# -------------------------------------------------------------------------------------------------------------- memory


def test_what_the_dearest_branches_take_more_is_added_up() -> None:
    points = branch_points(
        space_of(smoothness={"choice": ["none", "smart"]}, gradient={"choice": ["sum", "pcgrad", "gradvac"]})
    )
    assert [list(sample.params.values()) for sample in points.samples] == [
        ["none", "sum"],
        ["smart", "sum"],
        ["none", "pcgrad"],
        ["none", "gradvac"],
    ]
    assert largest_memory(points, [2, 5, 2.5, 2.4]) == pytest.approx(2 + 3 + 0.5)
    assert largest_memory(points, [2, 1, 1, 1]) == 2


def test_memory_is_measured_with_the_largest_batches_and_the_longest_sequences() -> None:
    space = space_of(
        tasks={"all": {"batch_size": {"choice": [8, 64, 16]}}},
        max_length={"int": [32, 128]},
        optimizer={"lr": {"log_uniform": [1e-5, 1e-4]}},
    )
    config = space.sample(heavy_choice).config()
    assert (config.task("sst").batch_size, config.max_length) == (64, 128)
    assert config.optimizer.lr == 5e-5  # the default


# --------------------------------------------------------------------------------------------------------------- probe


def refuse_ray(_: Resources) -> None:
    raise AssertionError("Ray is not needed for this")


@pytest.mark.usefixtures("cache")
def test_what_cannot_be_packed_is_not_probed_and_keeps_a_gpu_a_trial() -> None:
    on_cpu = planned(9, Resources(2, 0, 1, 0))
    assert packed(on_cpu, "local", refuse_ray) is on_cpu
    few = packed(planned(3, Resources(8, 2, 1, 1.0)), "local", refuse_ray)
    assert (few.resources.gpus_per_trial, few.config.machine.gpu_share) == (1, 1)
    assert few.resources.sharing == "one trial per GPU: for 2 on each GPU the search has too few trials"
    cluster = packed(planned(9, Resources(8, 2, 1, 1.0)), "head:6379", refuse_ray)
    assert cluster.resources.sharing == "one trial per GPU: the GPUs of a cluster are not probed"


@pytest.mark.usefixtures("cache")
def test_trials_are_trained_alone_and_together_and_the_plan_takes_its_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, with a GPU that only Ray knows of."""
    monkeypatch.setattr(packing, "LEVEL_SECONDS", 0.3)
    monkeypatch.setattr(packing, "LEAST_GAIN", 0.0)  # whatever else this machine does now
    found = Resources(2, 1, 1, 1.0, (Gpu("0", 0.3, 80.0),))
    plan = packed(planned(8, found), "local", lambda probed: start_ray(probed, "local"))
    assert (plan.resources.gpus_per_trial, plan.resources.slots) == (0.5, 2)
    assert plan.config.machine.gpu_share == plan.space.sample(heavy_choice).config().machine.gpu_share == 0.5
    assert re.fullmatch(
        r"2 trials share a GPU: one trial trains [\d,]+ examples/s, 2 together [\d,]+; a trial needs \d\.\d of \d+ GB; "
        "for 4 on each GPU this machine has too few cores",
        plan.resources.sharing,
    )
    assert f"sharing   {plan.resources.sharing}" in plan_lines(plan)
    assert plan_record(plan).sharing == plan.resources.sharing


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("asked", "chosen"),
    [((), True), (("--gpus", "auto"), True), (("--gpus", "1"), False), (("--gpus-per-trial", "1"), False)],
)
def test_trials_are_packed_only_where_nobody_has_said_how_many(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    asked: tuple[str, ...],
    chosen: bool,
) -> None:
    def run_search(*_: Any, **__: Any) -> int:
        return 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(resources, "find_gpus", lambda: [Gpu("0", 0.3, 80.0)])
    monkeypatch.setattr(run, "run_search", run_search)
    Path("quick.yaml").write_text("trials: 1\nconfig: {data: toy, encoder: tiny, machine: {device: cpu, precision: float32}}\n")
    assert run.main(["--space", "quick.yaml", *asked]) == 0
    assert ("sharing   one trial per GPU: for 2 on each GPU the search has too few trials" in capsys.readouterr().out) == chosen
