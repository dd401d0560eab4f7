"""What simulate.py prints, at most 80 columns wide: a table per kind of curves, the answer, and what limits it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from analysis.printing import folded, joined
from analysis.simulation.measures import Measures, Span, needs_more
from analysis.simulation.methods import Method
from analysis.simulation.recorded import GOOD, Recording
from analysis.simulation.run import Problem
from analysis.simulation.surrogate import UnseenError
from minbert_core.words import counted, duration
from search.report.words import markdown, short

WEAK = 0.3  # share of the variance below which a surrogate is called weak: a convention of ours


def heading(problem: Problem, methods: Sequence[Method], about: str, repetitions: int) -> list[str]:
    """Format what is replayed, with which budget."""
    recording = problem.recording
    num = len(recording.configurations)
    repeats = len(recording.residuals_SRM)
    noise = f"{counted(repeats, 'curve')} of repeats show the noise" if repeats else "no repeats, so no noise between seeds"
    seconds = problem.budget * problem.full_seconds
    rungs = dict.fromkeys(method.settings.rungs for method in methods)
    return [
        *folded(about),
        *folded(f"{counted(num, 'configuration')} with {counted(recording.num_curves, 'whole curve')}; {noise}."),
        *folded(
            f"Budget: {problem.budget:g} full trials ({duration(seconds)} of training), {problem.workers} at a time; "
            f"{repetitions} repetitions. Rungs: {'; '.join(_rungs(methods, some) for some in rungs)}."
        ),
    ]


def _rungs(methods: Sequence[Method], rungs: Sequence[int]) -> str:
    own = [method.name for method in methods if method.settings.rungs == rungs]
    return ", ".join(map(str, rungs)) + (f" ({', '.join(own)})" if len(own) < len(methods) else "")


def block(measured: Sequence[Measures], title: str) -> list[str]:
    """Format a table of methods on one kind of curves."""
    rows = [["method", "to reach it", "regret at 1/3", "at 1", "lost", "trials"]]
    for each in measured:
        lost, counts = _percent(each.lost_best), f"{each.num_trials:.0f} ({each.num_whole:.0f})"
        third, end = each.regret_third, each.regret_end
        regrets = [f"{_regret(third.value)} ({_regret(third.low)}-{_regret(third.high)})", _regret(end.value)]
        rows.append([each.name, _reached(each.reached), *regrets, lost, counts])
    return [*folded(title), *markdown(rows)]


def fitted_title(error: UnseenError) -> str:
    """Name the fitted curves, with their error."""
    explained = f"{100 * max(0, error.explained):.0f} % of the variance of the final score"
    return (
        f"On curves of a fitted surrogate, where samplers may go anywhere. It explains {explained} of configurations that it "
        f"has not seen (ten folds; error {short(error.rmse)})"
    )


RECORDED_TITLE = "On the recorded curves, drawn at random, with replacement"
RULES = (
    "To reach it: the share of the budget from which on the mean regret is that of random search with all of it, or less. "
    "Regret: how far the best trial so far, as far as it was trained by then, falls short of the best configuration, without "
    "noise of seeds. "
    "Lost: percent of the repetitions in which all trials of the best configuration that was tried were stopped early, or "
    "still waited at the end. Trials: begun (ran to the end). Intervals: 95 %, bootstrap over repetitions; they do not cover "
    "other recorded configurations."
)


def answer(measured: Sequence[Measures]) -> list[str]:
    """Say which method needs the least budget, and which others do not need more beyond chance."""
    best = min(measured, key=lambda each: (each.reached.value, each.regret_end.value))
    if not best.reached.value < 1:
        return folded("No method reaches random search's best before the end of the budget.")
    near = [each.name for each in measured if each is not best and not needs_more(each, best)]
    text = f"{best.name} needs the least: {_reached(best.reached)} of the budget."
    others = f" Not to be told from it: {', '.join(near)}." if near else " All others need more, beyond chance."
    return folded(text + others)


def limits(recording: Recording, error: UnseenError | None, learned: bool) -> list[str]:
    """Say what the answer does not cover."""
    num = len(recording.configurations)
    sentences = []
    if num < GOOD:
        sentences.append(f"{num} configurations are few: {num} others might order the methods differently.")
    if recording.was_stopped:
        sentences.append(
            f"Only {recording.num_curves} of {recording.num_trials} trials have a whole curve, those that the search did not "
            "stop: better and more alike than random ones, and good from the start. So stopping looks more harmless than it is."
        )
    elif learned:
        sentences.append("The search's sampler chose these configurations, so draws from them are better than random ones.")
    if recording.failed:
        sentences.append(f"{counted(recording.failed, 'failed trial')} are left out.")
    if error is not None and error.explained < WEAK:
        sentences.append(
            "The surrogate is weak: on its curves a sampler has little to learn, so that table says little about samplers."
        )
    return folded(" ".join(sentences)) if sentences else []


def report(parts: Sequence[list[str]]) -> list[str]:
    """Join the parts, with the rules at the end."""
    return joined([*parts, folded(RULES)])


def _reached(of: Span) -> str:
    return f"{_share(of.value)} ({_share(of.low)}-{_share(of.high)})"


def _share(value: float) -> str:
    return "> 1" if math.isinf(value) else short(value, digits=2)


def _percent(of: Span) -> str:
    return f"{100 * of.value:.0f}±{50 * (of.high - of.low):.0f}"


def _regret(value: float) -> str:
    return short(value, digits=3)
