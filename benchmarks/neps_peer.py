"""The methods of NePS on the fitted curves of `analysis/simulate.py`: does a public package find the answer with less?

    python -m benchmarks.neps_peer CURVES.parquet [--budget 20] [--workers 4] [--repetitions 40] [--methods asha priorband …]

It needs the extra `neps`, in an environment without constraints.txt: NePS asks for an older pandas. Both sides search the same
drawn functions by the same clock, and resume a promoted trial from its last point. NePS knows no branches, so a parameter of a
branch that was not chosen has a value without effect. Its `asha` promotes most configurations (2026-11); it is taken as it is.
ifBO is left out, since its weights are downloaded at the first use.

Source: neural-pipeline-search 0.17, `neps.AskAndTell`; PriorBand, Mallik et al. 2023 (arXiv 2306.12370), without priors.
"""

from __future__ import annotations

import argparse
import heapq
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis.simulation.measures import measure
from analysis.simulation.methods import REFERENCE, Method, geometric, parse_method, suited
from analysis.simulation.recorded import read_recording
from analysis.simulation.replay import START_SECONDS, Replay
from analysis.simulation.report import block, fitted_title
from analysis.simulation.run import Problem, Simulated, Worker, simulate
from analysis.simulation.sources import TRIAL, fitted_curve
from analysis.simulation.study import Curve
from analysis.simulation.surrogate import Drawn
from analysis.table import open_table
from minbert_core.commands import DONE, run_command
from search.space.domains import Choice
from search.space.space import Space

FIDELITY = "rung"
METHODS = ("asha", "async_hb", "hyperband", "priorband")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(_parser(), arguments, _main)


def _parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        prog="python -m benchmarks.neps_peer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument("curves", type=Path, help="recorded curves, a file of analysis/runs.py")
    command.add_argument("--budget", type=float, default=20, help="full trials of mean cost (default 20)")
    command.add_argument("--workers", type=int, default=4, help="trials at a time (default 4)")
    command.add_argument("--repetitions", type=int, default=40, help="of each method (default 40)")
    command.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="of NePS (default: all)")
    command.add_argument("--ours", nargs="+", default=["random+asha", "tpe+asha"], help="as in simulate.py --methods")
    return command


def _main(options: argparse.Namespace) -> int:
    recording = read_recording(open_table([str(options.curves)], Path("runs")))
    problem = Problem(recording, options.budget, options.workers, fitted=True)
    ours = [suited(text, recording.rungs, None) for text in dict.fromkeys([REFERENCE, *options.ours])]
    found = list(simulate(problem, ours, options.repetitions))
    worker = Worker(problem)
    found += [_of_neps(worker, name, options.repetitions) for name in options.methods]
    measured = [measure(each, found[0], problem.end_seconds) for each in found]
    print("\n".join(block(measured, fitted_title(problem.surrogate.unseen_error()))))
    return DONE


def _of_neps(worker: Worker, name: str, repetitions: int) -> Simulated:
    """Run the repetitions of a method of NePS."""
    rungs = geometric(worker.problem.recording.rungs)
    replays, bests, means = [], [], []
    for repetition in range(repetitions):
        drawn = worker.problem.surrogate.draw(np.random.default_rng(repetition))
        true_PR = worker.true_scores(drawn)
        replays.append(_Search(worker.problem, drawn, name, rungs, repetition).run())
        bests.append(float(true_PR.max()))
        means.append(float(true_PR[:, 0].mean()))
    return Simulated(Method(f"NePS {name}", parse_method(REFERENCE, rungs).settings), True, replays, bests, means)


class _Search:
    """One simulated search by NePS."""

    def __init__(self, problem: Problem, drawn: Drawn, name: str, rungs: tuple[int, ...], repetition: int) -> None:
        import neps

        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(repetition)
        self.problem, self.drawn, self.rungs, self.repetition = problem, drawn, rungs, repetition
        algorithm: Callable[..., Any] = getattr(neps.algorithms, name)
        self.search = neps.AskAndTell(algorithm(neps_space(problem.recording.points.space, rungs), eta=rungs[-1] // rungs[-2]))
        self.curves: dict[str, Curve] = {}  # of every configuration that was begun
        self.reached: dict[str, int] = {}  # its last rung, 0 before the first
        self.cut: set[str] = set()  # those that the end of the time kept from training on
        self.best: tuple[int, float, str] = (0, 0.0, "")
        self.now, self.seconds = 0.0, 0.0
        self.due: list[tuple[float, str]] = []
        self.times: list[float] = []
        self.truths: list[float] = []

    def run(self) -> Replay:
        """Run the search until its time is over."""
        while True:
            while len(self.due) < self.problem.workers and self._begin():
                pass
            if not self.due:
                return self._result()
            self.now, name = heapq.heappop(self.due)
            self._report(name)

    def _begin(self) -> bool:
        """Let NePS choose what to train next. Return False if the time does not suffice for it."""
        trial = self.search.ask()
        key = _key(trial.config)
        rung = self.rungs.index(int(trial.config[FIDELITY]))
        curve, reached = self.curves.get(key) or self._curve(trial.config), self.reached.get(key, 0)
        trained = curve.seconds_R[self.rungs.index(reached)] if reached else 0.0
        seconds = START_SECONDS + float(curve.seconds_R[rung] - trained)
        if self.now + seconds > self.problem.end_seconds:
            self.cut.add(key)
            return False
        self.curves[key], self.reached[key] = curve, reached
        self.seconds += seconds
        heapq.heappush(self.due, (self.now + seconds, trial.id))
        return True

    def _curve(self, config: dict[str, Any]) -> Curve:
        recording = self.problem.recording
        point = recording.points.sample(lambda path, domain: _value(domain, config[path]))
        generator = np.random.default_rng((self.repetition, len(self.curves), TRIAL))
        return fitted_curve(self.drawn, point, recording.places(self.rungs), generator)

    def _report(self, name: str) -> None:
        trial = self.search.trials[name]
        key, rung = _key(trial.config), int(trial.config[FIDELITY])
        self.reached[key] = rung
        curve = self.curves[key]
        place = self.rungs.index(rung)
        self.search.tell(name, 1 - float(curve.metrics_RM[place, 0]), time_end=self.now)
        self.best = max(self.best, (rung, float(curve.seen_R[place]), key), key=lambda best: best[:2])
        truth = float(self.curves[self.best[2]].kept_R[self.rungs.index(self.best[0])])
        if not self.truths or truth != self.truths[-1]:
            self.times.append(self.now)
            self.truths.append(truth)

    def _result(self) -> Replay:
        best = max(self.curves, key=lambda key: self.curves[key].truth)
        whole = sum(rung == self.rungs[-1] for rung in self.reached.values())
        is_lost = self.reached[best] < self.rungs[-1] and best not in self.cut
        return Replay(self.times, self.truths, len(self.curves), whole, is_lost, self.seconds)


def neps_space(space: Space, rungs: tuple[int, ...]) -> Any:
    """Convert a space: each parameter by its path, and the rung as the fidelity."""
    import neps

    elements: dict[str, Any] = {FIDELITY: neps.HPOInteger(rungs[0], rungs[-1], is_fidelity=True)}
    for path, domain, _ in space.occurrences():
        if isinstance(domain, Choice):
            elements[path] = neps.HPOCategorical([str(label) for label in domain.labels])
        elif domain.kind == "int":
            elements[path] = neps.HPOInteger(int(domain.low), int(domain.high))
        else:
            elements[path] = neps.HPOFloat(domain.low, domain.high, log=domain.kind == "log_uniform")
    return neps.SearchSpace(elements)


def _value(domain: Any, value: Any) -> Any:
    """Return a choice's label by its text, or a range's value."""
    return next(label for label in domain.labels if str(label) == value) if isinstance(domain, Choice) else value


def _key(config: dict[str, Any]) -> str:
    """Return what trials of one configuration share."""
    return repr(sorted((path, value) for path, value in config.items() if path != FIDELITY))


if __name__ == "__main__":
    sys.exit(main())
