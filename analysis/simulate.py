"""Which sampler and trial scheduler find the same answer with the least budget? Replays of learning curves, without training.

python analysis/simulate.py NAME
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: Python put analysis/ on the path, where the packages are not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from analysis.simulation.measures import Measures, measure
from analysis.simulation.methods import DEFAULTS, REFERENCE, Method, parse_method
from analysis.simulation.plot import draw_regrets
from analysis.simulation.recorded import geometric, read_recording
from analysis.simulation.report import RECORDED_TITLE, answer, block, fitted_title, heading, limits, report
from analysis.simulation.run import Problem, Simulated, simulate
from analysis.sources import facts_of, read_one_search, sources_parser, write_figures
from minbert_core.commands import DONE, run_command
from minbert_core.terminal import show_progress
from search.options import positive
from search.report.draw import show

LEAST_REPETITIONS = 20  # fewer give no interval


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(_parser(), arguments, _main, writes="to")


def _parser() -> argparse.ArgumentParser:
    description = (
        "Replay the whole learning curves of a search through the searcher, samplers and trial schedulers of a real one: the "
        "share of a budget at which each method reaches what random search finds with all of it, its regret over the budget, "
        "and how often it stops the best configuration early. Nothing is trained."
    )
    examples = "smart-curves --workers 8 --budget 30\nsmart.parquet --methods random+asha 'tpe+{kind: top_k, k: 5}'"
    parser = sources_parser("simulate", description, examples, "[--methods M ...] [--workers N] ")
    law = "SAMPLER+SCHEDULER, each as in a space"
    parser.add_argument("--methods", nargs="+", default=DEFAULTS, metavar="M", help=f"{law} (default {', '.join(DEFAULTS)})")
    parser.add_argument("--budget", type=_budget, default=20.0, metavar="X", help="in full trials of mean cost (default 20)")
    parser.add_argument("--workers", type=positive, default=4, metavar="N", help="trials at a time (default 4)")
    parser.add_argument("--rungs", type=positive, nargs="+", metavar="N", help="some of the recorded rungs (default 1 3 9)")
    parser.add_argument("--repetitions", type=_repetitions, default=200, metavar="N", help="of each method (default 200)")
    return parser


def _budget(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"must be a number of full trials from 1 to 1000. Got '{text}'.")
    return value


def _repetitions(text: str) -> int:
    if (value := positive(text)) < LEAST_REPETITIONS:
        raise argparse.ArgumentTypeError(f"must be {LEAST_REPETITIONS} or more, since intervals come from them. Got '{text}'.")
    return value


def _main(options: argparse.Namespace) -> int:
    table = read_one_search(options, "simulate", "curves of different budgets cannot be compared")
    recording = read_recording(table)
    learned = recording.points.space.settings.sampler.learns
    recording = recording.at(options.rungs or geometric(recording.rungs))
    methods = _methods(options.methods, recording.rungs)
    facts = facts_of(table)
    recorded = Problem(recording, options.budget, options.workers, fitted=False)
    parts = [heading(recorded, f"{facts.name}: {facts.about or '(no question given: `about`)'}", options.repetitions)]
    measured, error = {"recorded": _measured(recorded, [m for m in methods if not m.learns], options.repetitions)}, None
    parts += [block(measured["recorded"], RECORDED_TITLE)]
    if any(method.learns for method in methods):
        fitted = Problem(recording, options.budget, options.workers, fitted=True)
        error = fitted.surrogate.leave_one_out()
        measured["fitted"] = _measured(fitted, methods, options.repetitions)
        parts += [block(measured["fitted"], fitted_title(error))]
    show(report([*parts, answer(list(measured.values())[-1]), limits(recording, error, learned)]))
    print("\n".join(write_figures([draw_regrets(measured, facts.name, options.budget)], options)))
    return DONE


def _methods(texts: Sequence[str], rungs: Sequence[int]) -> list[Method]:
    """Parse the methods, with random search, to which all are compared, first."""
    methods = [parse_method(text, rungs) for text in dict.fromkeys([REFERENCE, *texts])]
    first, *others = methods
    return [first, *(method for method in others if method.settings != first.settings)]


def _measured(problem: Problem, methods: Sequence[Method], repetitions: int) -> list[Measures]:
    found: list[Simulated] = []
    for method in methods:
        show_progress(f"simulating {method.name} ({'fitted' if problem.fitted else 'recorded'} curves) …")
        found += simulate(problem, [method], repetitions)
    show_progress("")
    return [measure(each, found[0], problem.end_seconds) for each in found]


if __name__ == "__main__":
    sys.exit(main())
