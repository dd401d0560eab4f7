"""Measure what a search of many trials costs its driver per trial, and how long it takes to resume and to read it.

    python -m benchmarks.scale [--trials 1000] [--sampler tpe]
    python -m benchmarks.scale --nodes 8 --gpus 64               on a cluster, with Ray (scale_cluster.py)

Stand-in trials report at once, with records like a real trial's (90 of training, three evaluations); no Ray and no MLflow
run. Everything else is real: study, journal, sampler, scheduler, searcher, terminal and folders. The figures are processor
time of the driver, the mean of the 50 trials before. The time to suggest is mostly Optuna's: TPE models all trials so far and
grows. The writing is that of the stand-in workers, and is not part of the driver's time.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from analysis import report as analysis_report
from analysis import runs as analysis_runs
from benchmarks.standin import RUNGS, TASKS, next_report
from minbert_core.settings.yaml import dump_yaml
from search.plan.folder import PlanRecord, write_plan
from search.report.narrate import Narrator
from search.report.status import show_status
from search.space.space import Space, make_space
from search.study.repair import repair
from search.study.searcher import StudySearcher, TuneScheduler
from search.study.study import Study

SLOTS, WINDOW = 2, 50
AT = (50, 100, 200, 300, 500, 1000)  # trials at which a figure is shown
CONFIG: dict[str, Any] = {
    "data": "toy",
    "encoder": "tiny",
    "budget": {"examples": 9000},
    "gradient": {"choice": ["sum", "pcgrad", {"kind": "gradvac", "beta": {"log_uniform": [1e-3, 1e-1]}}]},
    "optimizer": {"lr": {"log_uniform": [1e-5, 1e-2]}, "weight_decay": {"uniform": [0.0, 0.1]}},
    "tasks": {"all": {"pooling": {"choice": ["mean", "pooler"]}}},
}


class Driver:
    """A driver without Ray: stand-in workers reach a rung each time they are called."""

    def __init__(self, folder: Path, space: Space, num_trials: int) -> None:
        (folder / "trials").mkdir(parents=True, exist_ok=True)
        self.folder, self.space = folder, space
        repairs = repair(folder, space, 0)
        self.study = Study(folder, space, 0)
        scheduler = space.settings.trial_scheduler.build(RUNGS, num_trials)
        unfinished = self.study.restore(scheduler, repairs.records)
        self.narrator = Narrator(folder, TASKS, num_trials, SLOTS, RUNGS[-1])
        self.narrator.replay(self.study.results())
        self.searcher = StudySearcher(self.study, scheduler, num_trials, unfinished, self.narrator)
        self.scheduler = TuneScheduler(scheduler, RUNGS)
        self.writing, self.asking = 0.0, 0.0  # seconds of the stand-in workers, and of suggestions

    def run(self) -> Iterator[int]:
        """Run all trials; yield after each end the number that has ended."""
        live: dict[str, dict[str, Any]] = {}
        ids, num_ended, has_more = itertools.count(), 0, True
        while live or has_more:
            while has_more and len(live) < SLOTS:
                began, ray_id = time.process_time(), str(next(ids))
                order = self.searcher.suggest(ray_id)
                self.asking += time.process_time() - began
                has_more = isinstance(order, dict)
                if isinstance(order, dict):
                    live[ray_id] = order
            if not live:
                return
            ray_id = next(iter(live))
            order = live.pop(ray_id)
            if self._reach_next_rung(ray_id, order):
                num_ended += 1
                yield num_ended
            else:
                live[ray_id] = order

    def _reach_next_rung(self, ray_id: str, order: dict[str, Any]) -> bool:
        began = time.process_time()
        report = next_report(Path(order["folder"]), order["number"], order["exempt"])
        self.writing += time.process_time() - began
        if self.scheduler.on_trial_result(None, None, report) == "STOP":
            self.searcher.on_trial_complete(ray_id, report)
            return True
        self.searcher.on_trial_result(ray_id, report)
        if report["rung"] == RUNGS[-1]:
            self.searcher.on_trial_complete(ray_id, report)
        return bool(report["rung"] == RUNGS[-1])


def _written_plan(folder: Path, space: Space, num_trials: int) -> None:
    (folder / "space.yaml").write_text(dump_yaml(space.document), encoding="utf-8")
    plan = PlanRecord(
        name=folder.name,
        space_name=space.name,
        about="",
        created="",
        trials=num_trials,
        data="toy",
        encoders={},
        train_on=TASKS,
        fingerprints={},
        examples=9000,
    )
    write_plan(folder, plan)


def _seconds(act: Any) -> float:
    """Return the processor time of `act`, which is its duration on an idle machine."""
    began = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        act()
    return time.process_time() - began


def main(arguments: list[str] | None = None) -> int:
    """Run the search and print the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=1000, metavar="N", help="trials of the search (default 1000)")
    parser.add_argument("--sampler", default="tpe", choices=["tpe", "random"], help="the space's sampler (default tpe)")
    parser.add_argument("--nodes", type=int, metavar="N", help="nodes of a cluster on this machine, with Ray")
    parser.add_argument("--gpus", type=int, default=8, metavar="N", help="with --nodes: logical GPUs in all (default 8)")
    parser.add_argument("--seconds", type=float, default=20, metavar="X", help="with --nodes: of a full trial (default 20)")
    options = parser.parse_args(arguments)
    space = make_space("scale", {"config": CONFIG, "sampler": options.sampler, "baselines": [{}]})
    if options.nodes:
        from benchmarks.scale_cluster import measure

        with contextlib.redirect_stdout(io.StringIO()):
            lines = measure(space, options.nodes, options.gpus, options.trials, options.seconds)
        print(*lines, sep="\n")
        return 0
    table = sys.stdout
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "scale"
        driver = Driver(folder, space, options.trials)
        _written_plan(folder, space, options.trials)
        print("| trials | driver, ms per trial | of these, to suggest | writing |\n|---|---|---|---|")
        before = (time.process_time(), 0.0, 0.0)
        with contextlib.redirect_stdout(io.StringIO()):
            for ended in driver.run():
                if ended % WINDOW == 0:
                    now = (time.process_time(), driver.writing, driver.asking)
                    total, writing, asking = (1000 * (a - b) / WINDOW for a, b in zip(now, before, strict=True))
                    before = now
                    if ended in AT:
                        print(f"| {ended} | {total - writing:.1f} | {asking:.1f} | {writing:.1f} |", file=table, flush=True)
        resume = _seconds(lambda: Driver(folder, space, options.trials))
        status = _seconds(lambda: show_status(folder, "", ""))
        compared = _seconds(lambda: analysis_runs.main(["scale", "--runs", place]))
        reported = _seconds(lambda: analysis_report.main(["scale", "--runs", place, "--no-errors"]))
        figures = f"restore {resume:.2f}, --status {status:.2f}, runs.py {compared:.2f}, report.py {reported:.2f}"
        print(f"seconds with {options.trials} trials: {figures}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
