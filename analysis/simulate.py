"""Which sampler and trial scheduler find the same answer with the least budget? Replays of learning curves, without training.

python analysis/simulate.py NAME
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: Python put analysis/ on the path, where the packages are not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

if __name__ == "__main__":  # before the other imports, which take seconds
    from analysis.options import simulate_parser
    from minbert_core.commands import check_command_line

    check_command_line(simulate_parser())

from analysis.options import simulate_parser
from analysis.simulation.measures import Measures, measure
from analysis.simulation.methods import REFERENCE, Method, suited
from analysis.simulation.plot import draw_regrets
from analysis.simulation.recorded import read_recording
from analysis.simulation.report import RECORDED_TITLE, answer, block, fitted_title, heading, limits, report
from analysis.simulation.run import Problem, Simulated, simulate
from analysis.sources import facts_of, read_one_search, write_figures
from minbert_core.commands import DONE, run_command
from minbert_core.terminal import show_progress
from minbert_core.words import duration
from search.report.draw import show


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(simulate_parser(), arguments, _main, writes="to")


def _main(options: argparse.Namespace) -> int:
    table = read_one_search(options, "simulate", "curves of different budgets cannot be compared")
    recording = read_recording(table)
    learned = recording.points.space.settings.sampler.learns
    recording.places(options.rungs or recording.rungs)
    methods = _methods(options.methods, recording.rungs, options.rungs, options.known)
    facts = facts_of(table)
    recorded = Problem(recording, options.budget, options.workers, fitted=False)
    _show_now(heading(recorded, methods, f"{facts.name}: {facts.about or '(no question given: `about`)'}", options.repetitions))
    measured, error = {"recorded": _measured(recorded, [m for m in methods if not m.learns], options.repetitions)}, None
    _show_now(block(measured["recorded"], RECORDED_TITLE))
    if any(method.learns for method in methods):
        fitted = Problem(recording, options.budget, options.workers, fitted=True)
        error = fitted.surrogate.unseen_error()
        measured["fitted"] = _measured(fitted, methods, options.repetitions)
        _show_now(block(measured["fitted"], fitted_title(error)))
    show(report([answer(list(measured.values())[-1]), limits(recording, error, learned)]))
    print("\n".join(write_figures([draw_regrets(measured, facts.name, options.budget)], options)))
    return DONE


def _methods(texts: Sequence[str], recorded: Sequence[int], rungs: Sequence[int] | None, num_known: int) -> list[Method]:
    """Parse the methods, with random search, to which all are compared, first, and last those that know an earlier search."""
    methods = [suited(text, recorded, rungs) for text in dict.fromkeys([REFERENCE, *texts])]
    first, *others = methods
    others = [method for method in others if method.settings != first.settings]
    if num_known and not any(method.learns for method in others):
        raise ValueError("--known is for samplers that learn, and none of --methods has one. Add tpe+asha.")
    return [first, *others, *(method.knowing(num_known) for method in others if num_known and method.learns)]


def _show_now(part: list[str]) -> None:
    """Show a part of the answer while the next one is simulated, so that an interrupt does not lose it."""
    show([*part, ""])
    sys.stdout.flush()


def _measured(problem: Problem, methods: Sequence[Method], repetitions: int) -> list[Measures]:
    found: list[Simulated] = []
    began, curves = time.monotonic(), "fitted" if problem.fitted else "recorded"
    show_progress(f"simulating {methods[0].name} ({curves} curves) …")
    for simulated in simulate(problem, methods, repetitions):
        found.append(simulated)
        waiting = methods[len(found) :]
        left = duration((time.monotonic() - began) / len(found) * len(waiting))
        show_progress(f"simulating {waiting[0].name} ({curves} curves), about {left} left …" if waiting else "")
    return [measure(each, found[0], problem.end_seconds) for each in found]


if __name__ == "__main__":
    sys.exit(main())
