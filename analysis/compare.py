"""Compare searches, branches or trials: distributions, differences with intervals, equal examples and equal cost, Pareto front.

    python analysis/compare.py A B                         two searches
    python analysis/compare.py NAME --by smoothness        the branches of a choice
    python analysis/compare.py NAME --trials 0 7           two trials

The search's trials are compared as they are. For a verdict about configurations, best_to_test retrains them over seeds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

if not __package__:  # run as a file: Python put analysis/ on the path, where the packages are not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

if __name__ == "__main__":  # before the other imports, which take seconds
    from analysis.options import compare_parser
    from minbert_core.commands import check_command_line

    check_command_line(compare_parser())

import numpy as np

from analysis.anova import common_rung
from analysis.compare_plots import draw_budgets, draw_distributions, draw_front
from analysis.groups import (
    Difference,
    ExpectedBest,
    Group,
    choice_at,
    equal_budget,
    examples_at,
    group_by,
    matched,
    pick,
)
from analysis.intervals import CONFIDENCE, holm
from analysis.options import compare_parser
from analysis.pareto import Effect, Point, effects, front
from analysis.printing import folded, joined, span
from analysis.sources import check_rung, read_sources, write_figures
from analysis.table import Table
from minbert_core.commands import DONE, run_command
from search.report.draw import show
from search.report.words import markdown, rounded, short, short_names

MOST = 12  # rows of the table of tasks' disagreements


@dataclass(frozen=True)
class Comparison:
    """Groups at one rung: their differences from the first, and the best to expect of each at equal budgets."""

    table: Table
    groups: list[Group]
    rung: int
    pairs: list[Difference]  # per target and group
    corrected: list[float | None]  # p-values of the pairs, over all groups and targets
    budgets: dict[str, list[ExpectedBest]]  # examples, seconds

    @cached_property
    def points(self) -> list[Point]:
        """The trials of all groups at their best evaluations, those on the Pareto front marked."""
        return front([trial for group in self.groups for trial in group.trials], self.table.tasks)

    @cached_property
    def effects(self) -> list[Effect]:
        """The effect of each parameter on each task, whatever the groups are."""
        return effects(self.table, self.rung)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(compare_parser(), arguments, _main, writes="to")


def _main(options: argparse.Namespace) -> int:
    table = read_sources(options)
    if options.by and options.trials:
        raise ValueError("`--by` and `--trials` both say what the groups are. Give one of them.")
    groups = pick(table, options.trials) if options.trials else group_by(table, options.by)
    found = comparison(table, groups, options.rung, options.by)
    show(report(found))
    plots = [draw_distributions(table, groups, found.rung), draw_budgets(table, groups, found.rung)]
    plots += [draw_front(table, groups, found.points)] if len(table.tasks) > 1 and found.points else []
    print("\n".join(write_figures(plots, options)))
    return DONE


def comparison(table: Table, groups: list[Group], rung: int | None = None, by: str | None = None) -> Comparison:
    """Compare groups at a rung (None: the highest that all have reached).

    by: the choice that makes the groups; pairs match in the other parameters.
    """
    rung = common_rung(table.trials) if rung is None else rung
    check_rung(table, rung)
    known = {of.path: of for facts in table.searches.values() for of in facts.parameters.values()}
    chosen = choice_at(table, by).path if by and by != "recipe" else ""
    others = [of for path, of in known.items() if path != chosen and not path.startswith(f"{chosen}/")]
    reference, *rest = groups
    pairs = [matched(group, reference, rung, target, others) for target in table.targets for group in rest]
    budgets = {unit: equal_budget(groups, rung, "score", unit) for unit in ("examples", "seconds")}
    return Comparison(table, groups, rung, pairs, _corrected(pairs), budgets)


def _corrected(pairs: Sequence[Difference]) -> list[float | None]:
    values = iter(holm([pair.p for pair in pairs if pair.p is not None]))
    return [None if pair.p is None else next(values) for pair in pairs]


# ---------------------------------------------------------------------------------------------------------- the report


def report(found: Comparison) -> list[str]:
    """Build the printed answer, at most 80 columns wide for names of usual length."""
    notes = [row for note in found.table.notes() for row in folded(note)]
    reference = found.groups[0].name
    rung = f"at rung {found.rung}"
    return joined(
        [
            notes,
            [*folded(heading(found)), *distribution_lines(found)],
            [f"Minus {reference} {rung}: pairs of trials, as alike in all else as possible", *difference_lines(found)],
            ["Best score to expect, each group with the same budget", *budget_lines(found)],
            front_lines(found),
            effect_lines(found),
            folded(RULES),
        ]
    )


RULES = (
    "Intervals: 95 %, over other trials of the same samplers. Pairs: trials of both groups, matched so that their other "
    "parameters differ least; p is corrected for all rows (Holm). Differences need three trials or pairs per group. "
    "best_to_test compares configurations over fresh seeds."
)


def heading(found: Comparison) -> str:
    """Name the rung and its examples, and warn where they differ between the groups."""
    shown = {group.name: examples_at(group, found.rung) for group in found.groups}
    least, most = min(shown.values()), max(shown.values())
    if most <= 1.05 * least:
        return f"Score at rung {found.rung}, after {most:,} examples per trial"
    each = ", ".join(f"{name} {number:,}" for name, number in shown.items())
    return (
        f"Score at rung {found.rung}. Examples per trial differ there: {each}. Only the table of equal budgets "
        "below allows for that."
    )


def distribution_lines(found: Comparison) -> list[str]:
    """Format a row per group: its trials, their best, median, quartiles and seconds."""
    rows = [["group", "trials", "best", "median", "quartiles", "s/trial"]]
    for group in found.groups:
        known = group.evaluated(found.rung, "score")
        values = np.array([value for _, value in known])
        seconds = [entry["seconds"] for trial, _ in known for entry in trial.evaluations if entry["rung"] == found.rung]
        if not values.size:
            rows.append([group.name, "0", *[""] * 4])
            continue
        low, middle, high = map(float, np.quantile(values, [0.25, 0.5, 0.75]))
        best, median = (short(value, digits=3) for value in (float(values.max()), middle))
        rows.append([group.name, str(len(known)), best, median, span(low, high), rounded(float(np.mean(seconds)))])
    return markdown(rows)


def difference_lines(found: Comparison) -> list[str]:
    """Format a row per group and target: its difference from the first group."""
    rows = [["group", "target", "pairs", "difference", "95 %", "p", "verdict"]]
    for pair, p in zip(found.pairs, found.corrected, strict=True):
        interval = "" if pair.low is None or pair.high is None else span(pair.low, pair.high, "+")
        figures = [str(pair.size), _signed(pair.mean), interval, "" if p is None else short(p, digits=3)]
        rows.append([pair.group, pair.target, *figures, verdict(pair, p)])
    return markdown(rows)


def _signed(value: float | None) -> str:
    return "" if value is None else short(value, "+", digits=3)


def verdict(pair: Difference, p: float | None) -> str:
    """Return the conclusion that a corrected p-value allows: higher, lower, cannot say, too few."""
    if p is None or pair.mean is None:
        return "too few"
    return "cannot say" if p > 1 - CONFIDENCE else "higher" if pair.mean > 0 else "lower"


def budget_lines(found: Comparison) -> list[str]:
    """Format a row per group: the best score to expect at equal examples and at equal seconds."""
    if not found.budgets["examples"]:
        return []
    examples, seconds = (
        (found.budgets[unit][0].budget for unit in ("examples", "seconds")) if found.budgets["seconds"] else (0, 0)
    )
    rows = [["group", f"{examples:,.0f} examples", "trials", f"{seconds:,.0f} seconds", "trials"]]
    for of_examples, of_seconds in zip(found.budgets["examples"], found.budgets["seconds"], strict=False):
        cells = [cell for of in (of_examples, of_seconds) for cell in (_best(of), f"{of.trials:.1f}")]
        rows.append([of_examples.group, *cells])
    return markdown(rows)


def _best(of: ExpectedBest) -> str:
    return f"{short(of.best, digits=3)} ({span(of.low, of.high)})"


def front_lines(found: Comparison) -> list[str]:
    """Format the trials of the Pareto front, best score first."""
    tasks = found.table.tasks
    best = sorted(
        (point for point in found.points if point.is_best), key=lambda point: -point.trial.evaluations[-1]["dev/score"]
    )
    if len(tasks) < 2 or not best:
        return []
    several = len(found.table.searches) > 1
    rows = [["trial", "rung", *tasks]]
    for point in best[:MOST]:
        name = f"{point.trial.search} {point.trial.number:03d}" if several else f"{point.trial.number:03d}"
        rows.append([name, str(point.rung), *(short(point.scores[task], digits=3) for task in tasks)])
    heading = f"Pareto front: {len(best)} of {len(found.points)} trials are beaten on all tasks by none"
    return [heading, *markdown(rows)]


def effect_lines(found: Comparison) -> list[str]:
    """Format the effects on the tasks, those that disagree first."""
    if not found.effects:
        return ["On which choices the tasks disagree: cannot say, too few trials or a single task."]
    names, tasks = short_names(dict.fromkeys(of.path for of in found.effects)), found.table.tasks
    ordered = sorted(found.effects, key=lambda of: (not of.verdict.startswith("disagree"), min(of.p.values())))
    rows = [["parameter", "change", *tasks, "tasks"]]
    for of in ordered[:MOST]:
        cells = (
            _signed(of.effects[task]) + "*" * (of.p[task] <= 1 - CONFIDENCE) if task in of.effects else "" for task in tasks
        )
        rows.append([names[of.path], of.change, *cells, of.verdict])
    heading = f"Effects at rung {found.rung}: differences of means; of a rising range, rank correlations; * beyond chance"
    return [*folded(heading), *markdown(rows)]


if __name__ == "__main__":
    sys.exit(main())
