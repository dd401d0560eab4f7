"""Which choices mattered: the share of each searched parameter in the trials' scores, with intervals, and when to believe it.

    python analysis/importance.py NAME [--rung 1] [--target sst]

All trials count, those that were stopped too: they are compared at the highest rung that all have reached.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

if not __package__:  # run as a file: Python put analysis/ on the path, where the packages are not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

if __name__ == "__main__":  # before the other imports, which take seconds
    from analysis.options import importance_parser
    from minbert_core.commands import check_command_line

    check_command_line(importance_parser())

from analysis.anova import ALL, LEVEL, MIN_TRIALS, Explained, Sample, branches, common_rung, fanova, ped_anova, sample
from analysis.forest import Interaction, strongest_interaction
from analysis.importance_plots import draw_marginals, draw_shares
from analysis.options import importance_parser
from analysis.printing import folded, joined, span
from analysis.sources import check_rung, heading, read_one_search, write_figures
from analysis.table import Facts, Table
from minbert_core.commands import DONE, run_command
from minbert_core.words import did_you_mean
from search.report.draw import show
from search.report.words import markdown, short, short_names


@dataclass(frozen=True)
class Importances:
    """The answer about one search: PED-ANOVA per target over all trials, fANOVA per branch and target, the strongest pair."""

    facts: Facts
    overall: list[Explained]
    within: list[Explained]
    samples: list[Sample]
    interaction: Interaction | None


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(importance_parser(), arguments, _main, writes="to")


def _main(options: argparse.Namespace) -> int:
    table = read_one_search(options, "importance", "spaces differ")
    show([*heading(table), ""])  # before the shuffles, which take seconds
    found = importances(table, options.rung, _targets(table, options.target))
    show(report(found))
    plots = [draw_shares(found.overall, found.facts), draw_marginals(found.samples[0], found.facts)]
    print("\n".join(write_figures(plots, options)))
    return DONE


def _targets(table: Table, target: str | None) -> list[str]:
    if target is None:
        return table.targets
    known = {key.removeprefix("dev/") for trial in table.trials for of in trial.evaluations for key in of if key[:4] == "dev/"}
    if target not in known:
        raise ValueError(f"`--target` takes a dev metric. Unknown metric '{target}'{did_you_mean(target, known)}")
    return [target]


def importances(table: Table, rung: int | None = None, targets: Sequence[str] = ()) -> Importances:
    """Compute the answer about the table's only search, at a rung and for the targets (default: all).

    rung: None stands for the highest that all have reached.  Raises ValueError if no trial was evaluated at it.
    """
    [facts] = table.searches.values()
    rung = common_rung(table.trials) if rung is None else rung
    check_rung(table, rung)
    samples = [sample(table, ALL, table.trials, target, rung) for target in targets or table.targets]
    groups = branches(table)
    parts = [*samples, *(sample(table, name, groups[name], of.target, rung) for name in groups for of in samples)]
    shared = [p for p in samples[0].parameters if all(p.path in trial.params for trial in samples[0].trials)]
    within = [fanova(of) for of in parts]
    interaction = None if within[0].doubt else strongest_interaction(samples[0].trials, shared, samples[0].values)
    return Importances(facts, [ped_anova(of) for of in samples], within, samples, interaction)


# ---------------------------------------------------------------------------------------------------------- the report


def report(found: Importances) -> list[str]:
    """Build the printed answer, at most 80 columns wide for names of usual length."""
    names, first = short_names(found.facts.parameters), found.overall[0]
    good = "what separates the best from the others (PED-ANOVA)"
    about_tasks = "Per task: share of each parameter, * where it exceeds shuffled scores"
    return joined(
        [
            [f"{first.target} at rung {first.rung}, {first.num_trials} trials: {good}", *share_lines(first, names)],
            [about_tasks, *task_lines(found.overall, names)] if len(found.overall) > 1 else [],
            ["Share of the variance within a group (fANOVA); the rest is interactions", *group_lines(found.within, names)],
            folded(pair_sentence(found, names)),
            folded(RULES),
        ]
    )


RULES = (
    f"Rules: fewer than {MIN_TRIALS} trials get no answer. A parameter matters if at most {100 * LEVEL:.0f} % of shuffled "
    "scores give any parameter such a share; p is that fraction. The intervals cover other "
    "trials of this sampler, not other ranges."
)


def share_lines(of: Explained, names: dict[str, str]) -> list[str]:
    """Format a row per parameter: its share, interval, p-value and verdict; then the doubt about all of them."""
    rows = [["parameter", "share", "95 % interval", "p", "verdict"]]
    for share in of.shares:
        verdict = "matters" if share.matters else "cannot say"
        p = "" if share.p is None else short(share.p, digits=3)
        rows.append([names[share.path], short(share.share, digits=2), span(share.low, share.high, digits=2), p, verdict])
    return [*(markdown(rows) if of.shares else []), *(folded(of.doubt.capitalize() + ".") if of.doubt else [])]


def task_lines(overall: list[Explained], names: dict[str, str]) -> list[str]:
    """Format a row per parameter and a column per target."""
    paths = list(dict.fromkeys(share.path for of in overall for share in of.shares))
    if not paths:
        return [f"{of.target}: {of.doubt}" for of in overall]
    rows = [["parameter", *(of.target for of in overall)]]
    for path in paths:
        found = [next((share for share in of.shares if share.path == path), None) for of in overall]
        rows.append([names[path], *("" if s is None else short(s.share, digits=2) + " *" * s.matters for s in found)])
    rows.append(["trials", *(str(of.num_trials) for of in overall)])
    return markdown(rows)


def group_lines(within: list[Explained], names: dict[str, str]) -> list[str]:
    """Format a row per group and target: its largest share, or the reason for none."""
    rows = [["group", "target", "trials", "largest share, 95 % interval"]]
    for of in _merged(within):
        largest = [f"{names[s.path]} {short(s.share, digits=2)} ({span(s.low, s.high, digits=2)})" for s in of.shares[:1]]
        said = of.doubt.partition(":")[0] if of.doubt else ", ".join(largest)
        group = of.group if of.group == ALL else f"{names[of.group.partition('=')[0]]}={of.group.partition('=')[2]}"
        rows.append([group, of.target, str(of.num_trials), said])
    return markdown(rows)


def _merged(within: list[Explained]) -> list[Explained]:
    """Replace the results of a group by one if all have the same doubt."""
    merged: list[Explained] = []
    for group in dict.fromkeys(of.group for of in within):
        parts = [of for of in within if of.group == group]
        is_one = len(parts) > 1 and parts[0].doubt and len({of.doubt for of in parts}) == 1
        merged += [replace(parts[0], target="all")] if is_one else parts
    return merged


def pair_sentence(found: Importances, names: dict[str, str]) -> str:
    """Name the two parameters that interact most, or say why none can be named."""
    pair = found.interaction
    if pair is None:
        return "Interactions: cannot say; they need two parameters and a forest that predicts trials that it has not seen."
    share, p = short(pair.share, digits=2), short(pair.p, digits=2)
    verdict = "" if pair.is_certain else " That can be chance."
    return f"Strongest pair: {names[pair.first]} and {names[pair.second]} interact, {share} of the variance, p = {p}.{verdict}"


if __name__ == "__main__":
    sys.exit(main())
