"""The sections of the page, each from one analysis: its printed lines, its figures, and their numbers."""

from __future__ import annotations

import math
from pathlib import Path

from analysis import compare, curves, importance
from analysis.compare import Comparison
from analysis.curves import Curves
from analysis.importance import Importances
from analysis.page.blocks import Block, Grid, Heading, Paragraph, Picture, Section, blocks
from analysis.page.figures import Drawn
from analysis.page.parallel import parallel
from analysis.rungs import last_rung
from analysis.table import Parameter, Table
from minbert_core.commands import analysis_command
from minbert_core.train.folder import read_records
from minbert_core.words import counted
from search.plan.folder import PRETRAINING
from search.report.answer import answer_lines
from search.report.costs import branch_table, read_choices, total_cost
from search.report.words import describe, short
from search.results import Search
from search.study.trials import best_first

MOST = 10  # configurations in the table of the best


def cost(search: Search, table: Table) -> Section:
    """What was searched on what budget, what it cost, and what each branch costs per example."""
    plan = search.plan
    [facts] = table.searches.values()
    counts = {
        status: sum(t.status == status for t in search.trials) for status in ("completed", "stopped", "failed", "running")
    }
    domains = [[path, _domain(of)] for path, of in facts.parameters.items()]
    parts = total_cost(search.trials, plan.cpus_per_trial, plan.gpus_per_trial, read_records(search.folder / PRETRAINING))
    made: list[Block] = [
        Paragraph(f"Cost: {parts}."),
        Grid(
            ["trials planned", *counts, "examples of a full trial", "examples of all"],
            [
                [
                    str(plan.trials),
                    *map(str, counts.values()),
                    f"{plan.examples:,}",
                    f"{sum(t.examples for t in search.trials):,}",
                ]
            ],
        ),
        *blocks(branch_table(search.trials, read_choices(search.folder))),
        Grid(["searched parameter", "values"], domains, f"The space: {counted(len(domains), 'searched parameter')}"),
    ]
    return Section("cost", "Budget and cost", made)


def _domain(parameter: Parameter) -> str:
    if parameter.labels:
        return ", ".join(map(str, parameter.labels))
    return f"{parameter.low:g} to {parameter.high:g}, {parameter.kind.replace('_', ' ')}"


def best(search: Search, drawn: Drawn) -> Section:
    """The best configurations, the best of each branch, and all trials as parallel coordinates."""
    tasks = search.tasks
    columns = ["score", *tasks] if len(tasks) > 1 else ["score"]
    rows = []
    for trial in best_first(search.trials)[:MOST]:
        record = trial.best if trial.points else {}
        scores = [short(record[f"dev/{column}"]) if f"dev/{column}" in record else "" for column in columns]
        name = f"{trial.number:03d}" + (" (baseline)" if trial.baseline is not None else "")
        parameters = describe(trial.params) + (f". {trial.reason}" if trial.status == "failed" else "")
        rows.append([name, *scores, str(trial.rung or ""), trial.status, parameters])
    made: list[Block] = [Grid(["trial", *columns, "rung", "status", "parameters"], rows)]
    if len(search.trials) > MOST:
        made.append(Paragraph(f"The {MOST} first of {len(search.trials)}. All are in the table below the figure."))
    full = last_rung(drawn.table.trials)
    lines = answer_lines(search.trials, read_choices(search.folder), full)
    if lines:
        made += [Paragraph("The best of each branch, at the highest rung that all its branches have earned:")]
        made += blocks([f"- {line}" if not line.startswith("  ") else line for line in lines])
    if drawn.facts.parameters and len(drawn.table.trials) > 1:
        made.append(parallel(drawn.table, drawn.groups, drawn.names, drawn.title))
    return Section("best", "Best configurations", made)


def tests(search: Search) -> Section:
    """The tables and figures that `best_to_test` wrote; else the command that does."""
    made: list[Block] = []
    for folder in test_folders(search):
        text, _, _ = (folder / "table.md").read_text(encoding="utf-8").partition("\nPrediction files")
        made.append(Heading(f"{search.name}/{folder.relative_to(search.folder)}"))
        made += blocks(text.splitlines(), math.inf)  # its folded lines are indented
        if (folder / "figure.svg").exists():
            made.append(
                Picture((folder / "figure.svg").read_bytes(), "Claimed scores, and those of fresh seeds on dev and test")
            )
    if not made:
        command = analysis_command("best_to_test", "--search", search.name)
        made = [Paragraph(f"Nothing has been tested yet. `{command}` retrains the best over fresh seeds and tests them.")]
    return Section("test", "Test", made)


def test_folders(search: Search) -> list[Path]:
    """Return the folders with results of `best_to_test`, oldest first."""
    found = (search.folder / "test").rglob("results.json")
    folders = [path.parent for path in sorted(found, key=lambda path: path.stat().st_mtime)]
    return [folder for folder in folders if (folder / "table.md").exists()]


def groups(drawn: Drawn, comparisons: dict[str, Comparison]) -> Section:
    """The branches of each choice compared, the question's first, and where the tasks trade off."""
    if not comparisons:
        return Section("groups", "Branches compared", [Paragraph("No choice has two branches with an evaluated trial.")])
    made: list[Block] = []
    for i, (path, found) in enumerate(comparisons.items()):
        made += [
            Heading(f"Branches of {path}"),
            *blocks([f"{compare.heading(found)}."]),
            *blocks(compare.distribution_lines(found)),
        ]
        made += [drawn.distributions(found, found.table.targets if i == 0 else ["score"]), *blocks(_differences(found))]
        if i == 0:
            made += blocks(["Best score to expect, each group with the same budget:", *compare.budget_lines(found)])
            made.append(drawn.budgets(found))
    first = next(iter(comparisons.values()))
    if len(first.table.tasks) > 1 and first.points:
        made += [Heading("Where the tasks trade off"), *blocks(compare.front_lines(first)), drawn.front(first)]
        made += blocks(compare.effect_lines(first))
    return Section("groups", "Branches compared", [*made, Paragraph(compare.RULES)])


def _differences(found: Comparison) -> list[str]:
    reference = found.groups[0].name
    heading = f"Minus {reference} at rung {found.rung}, in pairs of trials, as alike in all else as possible:"
    return [heading, *compare.difference_lines(found)]


def important(drawn: Drawn, found: Importances) -> Section:
    """Which choices mattered: shares per parameter and task, and the trials over each parameter."""
    made: list[Block] = []
    if found.overall[0].shares:
        made += [drawn.shares(found.overall), *blocks(importance.report(found))]
    else:
        made.append(Paragraph(f"{found.overall[0].doubt.capitalize()}."))
    if found.samples[0].parameters:
        made.append(drawn.marginals(found.samples[0]))
    return Section("importance", "Which choices mattered", made)


def learning(drawn: Drawn, found: Curves) -> Section:
    """Learning curves, who was stopped where, and whether the first rung was right."""
    made: list[Block] = [drawn.curves(), *blocks(curves.stop_lines(found)), *blocks(curves.correlation_lines(found))]
    if any(of.spearman is not None for of in found.correlations):
        made.append(drawn.correlations(found.correlations))
    if any(f"train/{task}_loss" in record for t in found.table.trials for record in t.training for task in drawn.facts.tasks):
        made.append(drawn.losses())
    return Section("curves", "Learning curves", [*made, Paragraph(curves.RULES)])


def conflicting(drawn: Drawn, found: Curves) -> Section:
    """How much the gradients of the tasks conflicted."""
    made = blocks(curves.conflict_lines(found))
    return Section("conflicts", "Conflicts between tasks", [*made, drawn.conflicts()] if found.conflicts else made)
