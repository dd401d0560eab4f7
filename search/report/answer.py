"""The answer of a search to the question of its space: the best trial of each branch of a choice, all at the same rung.

A branch that got further has had more training, so the best scores of two branches count only at a rung that both have earned.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from minbert_core.words import counted
from search.report.words import short, short_names
from search.study.trials import TrialResult

WIDTH, INDENT = 80, 10  # columns of the lines, and of the word before them


@dataclass(frozen=True)
class BranchBest:
    """A branch of a choice, and its best trial by the scores up to a rung that all branches have earned."""

    label: str
    num_trials: int  # that were evaluated there
    rung: int
    number: int
    score: float


def bests(branches: Mapping[str, Sequence[TrialResult]]) -> list[BranchBest]:
    """Return the branches that have an evaluated trial which did not fail, best first.

    Baselines run to the end whatever they score, so a branch earns the rungs that its other trials have reached; its baselines
    count if it has nothing else.
    """
    sound = {label: [t for t in trials if t.status != "failed" and t.points] for label, trials in branches.items()}
    known = {label: trials for label, trials in sound.items() if trials}
    rung = min(map(_earned, known.values()), default=0)
    made = []
    for label, trials in known.items():
        there = [trial for trial in trials if trial.rung >= rung]
        best = max(there, key=lambda trial: (_score_until(rung, trial), -trial.number))
        made.append(BranchBest(label, len(there), rung, best.number, _score_until(rung, best)))
    return sorted(made, key=lambda of: -of.score)


def branches_of(trials: Iterable[TrialResult], choice: str) -> dict[str, list[TrialResult]]:
    """Return the trials of each branch of a choice; those that lack it, because it is inside another branch, are left out."""
    branches: dict[str, list[TrialResult]] = {}
    for trial in trials:
        if choice in trial.params:
            branches.setdefault(str(trial.params[choice]), []).append(trial)
    return branches


def _earned(branch: Sequence[TrialResult]) -> int:
    return max(trial.rung for trial in [t for t in branch if t.baseline is None] or branch)


def _score_until(rung: int, trial: TrialResult) -> float:
    return max(float(record["dev/score"]) for at, record in trial.points.items() if at <= rung)


def answer_lines(trials: Sequence[TrialResult], choices: Sequence[str], full: int) -> list[str]:
    """Return a line per choice with two branches or more, folded: `smoothness at 1/9: none .5148 (007, best of 3), smart …`."""
    names = short_names(choices)
    lines: list[str] = []
    for choice in choices:
        found = bests(branches_of(trials, choice))
        if len(found) > 1:
            each = [
                f"{of.label} {short(of.score)} ({of.number:03d}, best of {counted(of.num_trials, 'trial')})" for of in found
            ]
            text = f"{names[choice]} at {found[0].rung}/{full}: {', '.join(each)}"
            lines += textwrap.wrap(text, WIDTH - INDENT, subsequent_indent="  ", break_long_words=False)
    return lines
