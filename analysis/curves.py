"""Learning curves: who was stopped where, whether the first rung was right, and how much the tasks conflicted.

python analysis/curves.py NAME
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a file: Python put analysis/ on the path, where the packages are not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

if __name__ == "__main__":  # before the other imports, which take seconds
    from analysis.options import curves_parser
    from minbert_core.commands import check_command_line

    check_command_line(curves_parser())

from analysis.anova import common_rung
from analysis.conflicts import Conflict, conflicts, group_cosines
from analysis.curve_plots import draw_conflicts, draw_correlations, draw_curves, draw_losses
from analysis.options import curves_parser
from analysis.printing import folded, joined, span
from analysis.rungs import MIN_TRIALS, RankCorrelation, Stop, rank_correlations, stops
from analysis.sources import heading, read_one_search, write_figures
from analysis.table import Table
from minbert_core.commands import DONE, run_command
from minbert_core.words import counted, duration
from search.report.draw import show
from search.report.words import markdown, short

HALF = 0.5  # a rung whose rank correlation is certainly above it is called right, below it wrong: a convention of ours
MOST = 6  # numbers of stopped trials in a cell


@dataclass(frozen=True)
class Curves:
    """The answer about one search."""

    table: Table
    stops: list[Stop]
    correlations: list[RankCorrelation]
    conflicts: list[Conflict]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(curves_parser(), arguments, _main, writes="to")


def _main(options: argparse.Namespace) -> int:
    table = read_one_search(options, "curves", "rungs differ")
    found = curves(table)
    show(report(found))
    plots = [draw_curves(table), draw_losses(table)]
    plots += [draw_correlations(found.correlations, table)] if any(of.spearman is not None for of in found.correlations) else []
    plots += [draw_conflicts(table)] if found.conflicts else []
    print("\n".join(write_figures(plots, options)))
    return DONE


def curves(table: Table) -> Curves:
    """Compute the answer about the table's only search."""
    return Curves(table, stops(table.trials), rank_correlations(table), conflicts(table.trials, common_rung(table.trials)))


# ---------------------------------------------------------------------------------------------------------- the report


def report(found: Curves) -> list[str]:
    """Build the printed answer, at most 80 columns wide for names of usual length."""
    return joined([heading(found.table), stop_lines(found), correlation_lines(found), conflict_lines(found), folded(RULES)])


RULES = (
    f"Rank correlations are Spearman's, with 95 % intervals, over the trials that reached both rungs; at least {MIN_TRIALS}. "
    f"The later rung is the highest that {MIN_TRIALS} trials have reached. The search chose those trials by their early "
    "scores, which lowers the correlations."
)


def stop_lines(found: Curves) -> list[str]:
    """Format a row per rung: who ended there, the rank of the eventual best, and the cost of beginning with it."""
    rows = [["rung", "reached", "stopped here", "rank of the best", "cost as first rung"]]
    spent = sum(trial.seconds for trial in found.table.trials)
    for stop in found.stops:
        rank = "" if stop.rank is None else f"{stop.rank} of {stop.reached}"
        share = f" (+{100 * stop.extra_seconds / spent:.0f} %)" if spent and stop.extra_seconds else ""
        cost = f"+{stop.extra_examples:,} ex, {duration(stop.extra_seconds)}{share}" if stop.extra_examples else ""
        rows.append([str(stop.rung), str(stop.reached), _numbers(stop.stopped), rank, cost])
    winner = next((stop.winner for stop in found.stops if stop.winner is not None), None)
    about = "" if winner is None else f"; the best at the end is {winner:03d}"
    return [*folded(f"Who was stopped where{about}. Cost as first rung: of stopping nobody before"), *markdown(rows)]


def _numbers(numbers: list[int]) -> str:
    shown = " ".join(f"{number:03d}" for number in numbers[:MOST])
    return shown + (f" + {len(numbers) - MOST}" if len(numbers) > MOST else "")


def correlation_lines(found: Curves) -> list[str]:
    """Format a row per recipe, rung and target, and say whether the first rung was right."""
    if not found.correlations:
        return ["How well a rung predicts the end: cannot say, no trial has two evaluations."]
    several = len({of.recipe for of in found.correlations}) > 1
    rows = [[*(["recipe"] if several else []), "rungs", "target", "trials", "Spearman", "95 % interval", "Kendall"]]
    for of in found.correlations:
        where = [*([of.recipe] if several else []), f"{of.rung} to {of.last}", of.target, str(of.num_trials)]
        rows.append([*where, *_figures(of)])
    return ["How well each rung predicts the order at a later one", *markdown(rows), *_verdicts(found)]


def _figures(of: RankCorrelation) -> list[str]:
    if of.spearman is None or of.low is None or of.high is None or of.kendall is None:
        return ["too few" if of.num_trials < MIN_TRIALS else "all equal", "", ""]
    return [_short(of.spearman), span(of.low, of.high, digits=2), _short(of.kendall)]


def _short(value: float) -> str:
    return short(value, digits=2)


def _verdicts(found: Curves) -> list[str]:
    """Answer for each recipe whether its first rung was right."""
    firsts: dict[str, RankCorrelation] = {}
    for of in found.correlations:
        if of.target == "score":
            firsts.setdefault(of.recipe, of)
    named = {recipe: f" for {recipe}" if len(firsts) > 1 else "" for recipe in firsts}
    return [
        line for recipe, of in firsts.items() for line in folded(f"Was rung {of.rung} right{named[recipe]}? {_verdict(of)}")
    ]


def _verdict(first: RankCorrelation) -> str:
    if first.num_trials < MIN_TRIALS:
        return f"Cannot say: {counted(first.num_trials, 'trial')} reached rung {first.last}, {MIN_TRIALS} are needed."
    if first.low is None or first.high is None:
        return "Cannot say: all scores are equal."
    if first.low > HALF:
        return f"Yes: it orders the trials much as rung {first.last} does."
    if first.high < HALF:
        return f"No: it says little about rung {first.last}. Begin with a later rung."
    return "Cannot say: the interval holds both useful and useless correlations."


def conflict_lines(found: Curves) -> list[str]:
    """Format a row per pair of tasks: cosine and share of conflicting steps in each quarter of the training."""
    if not found.conflicts:
        return folded("Conflicts between tasks: not recorded. Gradient methods that compare tasks record them, such as pcgrad.")
    rows = [["tasks", "trials", "mean cosine", "conflicts, %", "with the score"]]
    for of in found.conflicts:
        cosines = " ".join("-" if value is None else short(value, "+", digits=2) for value in of.cosines)
        shares = " ".join("-" if value is None else f"{100 * value:.0f}" for value in of.shares)
        rows.append([of.pair, str(of.num_trials), cosines, shares, _outcome(of)])
    rung = common_rung(found.table.trials)
    about = (
        "Conflicts between tasks in each quarter of the training: mean cosine of the gradients, share of steps with a negative "
        f"one; last: rank correlation of that share up to rung {rung} with the score there"
    )
    return [*folded(about), *markdown(rows), *_group_lines(found)]


def _group_lines(found: Curves) -> list[str]:
    """Format the mean cosine of each pair of tasks per parameter group."""
    groups = group_cosines(found.table.trials)
    if not groups:
        return []
    pairs = list(dict.fromkeys(pair for of in groups.values() for pair in of))
    rows = [[name, *(short(of[pair], "+", digits=2) if pair in of else "-" for pair in pairs)] for name, of in groups.items()]
    return ["", *folded("Mean cosine of the gradients per parameter group:"), *markdown([["group", *pairs], *rows])]


def _outcome(of: Conflict) -> str:
    if of.outcome is None:
        return "too few"
    r, low, high, _ = of.outcome
    return f"{_short(r)} ({span(low, high, digits=2)})"


if __name__ == "__main__":
    sys.exit(main())
