"""One page about a search: the answer, what it cost, the best, tests, importance, curves, conflicts, and how to run it again.

    python analysis/report.py NAME

    search ─► table ─► importance, compare, curves ─► sections ─► runs/NAME/report.html, and the search's run in MLflow

The page is one HTML file that needs no network. It may be written while the search runs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

if not __package__:  # run as a file: Python put analysis/ on the path, where the packages are not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

if __name__ == "__main__":  # before the other imports, which take seconds
    from analysis.options import report_parser
    from minbert_core.commands import check_command_line

    check_command_line(report_parser())

from analysis import anova
from analysis.compare import Comparison, comparison
from analysis.curves import curves
from analysis.groups import group_by
from analysis.importance import Importances, importances
from analysis.options import report_parser
from analysis.page import sections
from analysis.page.again import again
from analysis.page.answer import best_sentence, choice_sentence, main_choice, tested_sentence
from analysis.page.figures import Drawn
from analysis.page.mistakes import errors
from analysis.page.write import Page, html
from analysis.table import Table, open_table
from analysis.tracking import tracking_uri
from minbert_core.commands import DONE, NOT_RECORDED, run_command
from search.results import Search, open_search
from search.tracking.artifacts import add_artifact, has_store


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(report_parser(), arguments, _main, writes="to")


def _main(options: argparse.Namespace) -> int:
    runs = options.runs.absolute()
    search = open_search(runs / options.name)
    table = open_table([options.name], runs)
    if not any(trial.evaluations for trial in table.trials):
        raise ValueError(f"No trial of {search.name} has been evaluated yet, so there is nothing to report.")
    file = options.to or search.folder / "report.html"
    page = make_page(search, table, lambda part: print(f"computing {part} …", flush=True), options.no_errors)
    file.write_text(html(page), encoding="utf-8")
    print(f"report    {file}")
    fault = _log(search, file)
    if fault is None:
        print("mlflow    the report is an artifact of the search's run, and of its tests'")
        return DONE
    print(f"mlflow    {fault}", file=sys.stderr)
    return NOT_RECORDED if has_store(tracking_uri(search)) else DONE  # a search that was copied without its store lacks nothing


def _log(search: Search, file: Path) -> str | None:
    """Add the page to the MLflow runs of the search and of its tests.  Return a sentence if that is impossible now."""
    uri = tracking_uri(search)
    tests = ["-".join([search.name, *folder.relative_to(search.folder).parts]) for folder in sections.test_folders(search)]
    faults = [add_artifact(uri, search.name, search.plan.id, file), *(add_artifact(uri, name, None, file) for name in tests)]
    return next(filter(None, faults), None)


def make_page(search: Search, table: Table, say: Callable[[str], None] = lambda _: None, skips_errors: bool = False) -> Page:
    """Build the page about a search with at least one evaluation.

    say: is called with the name of each slow part. skips_errors: do not ask the best model, which takes longest.
    """
    say(f"importance of the parameters in {len(table.trials)} trials")
    found = importances(table)
    choice = main_choice(table, list(anova.branches(table)))
    say("differences between branches")
    comparisons = _comparisons(table, choice)
    say("learning curves and figures")
    over_time = curves(table)
    drawn = Drawn(table, choice, [group.name for group in comparisons[choice].groups] if choice in comparisons else [])
    main = comparisons.get(choice)
    answer = [best_sentence(search, drawn.facts.objective), *_second(search, main, choice, found)]
    if not skips_errors:
        say("errors of the best model on dev")
    parts = [
        sections.cost(search, table),
        sections.best(search, drawn),
        sections.tests(search),
        sections.groups(drawn, comparisons),
        sections.important(drawn, found),
        sections.learning(drawn, over_time),
        sections.conflicting(drawn, over_time),
        errors(search, skips_errors),
        again(search, table),
    ]
    question = search.plan.about or "(no question given: `about` in the space)"
    return Page(search.name, question, answer, table.notes(), _origin(search), parts)


def _second(search: Search, main: Comparison | None, choice: str, found: Importances) -> list[str]:
    """Return the sentence of the newest test, else one about the question's choice."""
    tested = [sentence for folder in sections.test_folders(search)[-1:] if (sentence := tested_sentence(folder))]
    return tested or [choice_sentence(main, choice, found)]


def _comparisons(table: Table, first: str) -> dict[str, Comparison]:
    """Compare the branches of each choice that trials took, the question's choice first."""
    [facts] = table.searches.values()
    paths = [path for path, of in facts.parameters.items() if of.labels]
    rung = anova.common_rung(table.trials)
    made = {}
    for path in sorted(paths, key=lambda path: path != first):
        labels = {trial.params[path] for trial in table.trials if path in trial.params and trial.at(rung) is not None}
        if len(labels) > 1:
            made[path] = comparison(table, group_by(table, path), rung, by=path)
    return made


def _origin(search: Search) -> str:
    written = time.strftime("%F %R")
    return f"{search.folder}, begun {search.plan.created or 'at an unknown time'}; this page was written {written}."


if __name__ == "__main__":
    sys.exit(main())
