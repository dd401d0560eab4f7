"""Measure what a search costs on a cluster of many GPUs: how long a free slot waits for its next trial, and the driver's work.

    python -m benchmarks.scale --nodes 8 --gpus 64 [--trials 1000] [--seconds 20]

The nodes are processes of `ray.cluster_utils.Cluster` on this machine with logical GPUs, so this machine starts the workers of
all of them. On few cores let the trials take long (`--seconds 600`). A stand-in trial sleeps, and reports as a real one does,
but saves no snapshot. Searcher, study, scheduler and Ray Tune are real. A wait has two parts: until the driver has chosen the
next trial, and until its worker has begun.
"""

from __future__ import annotations

import logging
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune
from ray.cluster_utils import Cluster

from benchmarks.standin import RUNGS, stand_in
from minbert_core.settings.yaml import dump_yaml
from search.report.narrate import Narrator
from search.space.space import Space
from search.study.searcher import StopOnRequest, StudySearcher, TuneScheduler
from search.study.study import Study

TEN_MINUTES = 600.0
FULL = RUNGS[-1]


class TimedSearcher(StudySearcher):
    """A searcher that notes when slots become free, when they are given away, and its own processor time."""

    free: list[float]  # times, oldest first
    chosen: list[float]  # seconds from a free slot to the choice of its next trial
    seconds: float

    def suggest(self, trial_id: str) -> Any:
        began = time.process_time()
        order = super().suggest(trial_id)
        self.seconds += time.process_time() - began
        if isinstance(order, dict):
            freed = self.free.pop(0) if self.free else None
            if freed is not None:
                self.chosen.append(time.time() - freed)
            order["freed"] = freed
        return order

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        began = time.process_time()
        super().on_trial_result(trial_id, result)
        self.seconds += time.process_time() - began

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        began = time.process_time()
        self.free.append(time.time() if result is None else result["ended"])
        super().on_trial_complete(trial_id, result, error)
        self.seconds += time.process_time() - began


@contextmanager
def nodes(num_nodes: int, num_gpus: int) -> Iterator[None]:
    """Run the block connected to a cluster of this process, with the GPUs spread over its nodes, and a CPU for each."""
    import ray

    os.environ.setdefault("RAY_worker_register_timeout_seconds", "600")  # many workers that start at once on few cores are slow
    each: dict[str, Any] = {
        "num_cpus": num_gpus // num_nodes,
        "num_gpus": num_gpus // num_nodes,
        "object_store_memory": 80 * 1024**2,
    }
    cluster = Cluster(initialize_head=True, head_node_args={**each, "include_dashboard": False})
    try:
        for _ in range(num_nodes - 1):
            cluster.add_node(**each)
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]


def measure(space: Space, num_nodes: int, num_gpus: int, num_trials: int, seconds: float) -> list[str]:
    """Run a search of stand-in trials on a cluster, and return its figures as lines."""
    with tempfile.TemporaryDirectory() as place, nodes(num_nodes, num_gpus):
        folder = Path(place) / "scale"
        (folder / "trials").mkdir(parents=True)
        (folder / "space.yaml").write_text(dump_yaml(space.document), encoding="utf-8")
        scheduler = space.settings.trial_scheduler.build(RUNGS, num_trials)
        narrator = Narrator(folder, ["sst", "para", "sts"], num_trials, num_gpus, FULL)
        searcher = TimedSearcher(Study(folder, space, 0), scheduler, num_trials, [], narrator)
        searcher.free, searcher.chosen, searcher.seconds = [], [], 0.0
        searcher.num_slots = lambda: num_gpus
        trainable = tune.with_resources(tune.with_parameters(stand_in, seconds=seconds), {"cpu": 1, "gpu": 1})
        began, worked = time.monotonic(), time.process_time()
        tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=TuneScheduler(scheduler, RUNGS),
                num_samples=-1,
                max_concurrent_trials=num_trials,
                reuse_actors=False,
            ),
            run_config=tune.RunConfig(
                storage_path=place,
                verbose=0,
                progress_reporter=tune.CLIReporter(),
                stop=StopOnRequest(lambda: False, meanwhile=lambda: None),
            ),
        ).fit()
        wall, worked = time.monotonic() - began, time.process_time() - worked
        waited = [float(file.read_text()) for file in folder.glob("trials/*/waited")]
    return _lines(num_trials, wall, worked, searcher, waited)


def _lines(num_trials: int, wall: float, worked: float, searcher: TimedSearcher, waited: list[float]) -> list[str]:
    def spread(values: list[float]) -> str:
        median, last = np.percentile(values, [50, 99]) if values else (0.0, 0.0)
        return f"median {median:.2f} s, 99th percentile {last:.2f} s"

    idle = float(np.mean(waited)) if waited else 0.0
    driver, ours = 1000 * worked / num_trials, 1000 * searcher.seconds / num_trials
    memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [
        f"{num_trials} trials in {wall:.0f} s",
        f"driver        {driver:.0f} ms of processor time per trial, {ours:.0f} of them ours; {memory_mb:.0f} MB",
        f"next trial    chosen: {spread(searcher.chosen)}; begun: {spread(waited)}",
        f"GPU idle      {100 * idle / (TEN_MINUTES + idle):.2f} % with trials of ten minutes",
    ]
