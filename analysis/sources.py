"""What the commands of the analyses share: parsers, the searches or files that they read, the folder for figures.

Tables and figures are imported where they are used: with only the parsers, --help takes no second.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.printing import folded

if TYPE_CHECKING:
    from analysis.plots import Plot
    from analysis.table import Facts, Table

FORMATS = "svg,png,pdf"


def command_parser(command: str, usage: str, description: str, examples: str, add_help: bool = True) -> argparse.ArgumentParser:
    """Return the parser of `python analysis/COMMAND.py`. usage, and each line of `examples`, are its arguments."""
    lines = "\n".join(f"  python analysis/{command}.py {line}" for line in examples.splitlines())
    return argparse.ArgumentParser(
        prog=f"python analysis/{command}.py",
        usage=f"python analysis/{command}.py {usage}",
        description="\n".join(folded(description)),
        epilog=f"examples:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=add_help,
    )


def sources_parser(command: str, description: str, examples: str, usage: str = "") -> argparse.ArgumentParser:
    """Return a parser with NAME …, --runs, --to and --formats."""
    parser = command_parser(command, f"NAME ... {usage}[--to DIR]", description, examples)
    parser.add_argument("names", nargs="+", metavar="NAME", help="a search, or a .parquet file of runs.py --out")
    add_runs(parser)
    add_figures(parser, "runs/NAME/figures")
    return parser


def add_runs(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add --runs, the folder of all searches."""
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of all searches (default runs)")


def add_figures(parser: argparse.ArgumentParser, default: str) -> None:
    """Add --to and --formats. default: the folder of the figures, in words."""
    parser.add_argument("--to", type=Path, metavar="DIR", help=f"folder of the figures (default {default})")
    parser.add_argument("--formats", type=_formats, default=FORMATS, metavar="LIST", help=f"of the figures (default {FORMATS})")


def _formats(text: str) -> str:
    if unknown := set(text.split(",")) - {*FORMATS.split(",")}:
        raise argparse.ArgumentTypeError(f"takes {FORMATS} or some of them. Unknown: {', '.join(sorted(unknown))}.")
    return text


def read_sources(options: argparse.Namespace) -> Table:
    """Open the searches and files that were named.  Raises ValueError: no such search, not such a file, or no trial yet."""
    from analysis.table import open_table

    table = open_table(options.names, options.runs.absolute())
    if not any(trial.evaluations for trial in table.trials):
        names = ", ".join(table.searches)
        raise ValueError(f"No trial of {names} has been evaluated yet, so there is nothing to analyse.")
    return table


def read_one_search(options: argparse.Namespace, command: str, reason: str) -> Table:
    """Open the only search that a command takes, for the reason given.  Raises ValueError as `read_sources`, or: several."""
    table = read_sources(options)
    if len(table.searches) > 1:
        raise ValueError(f"{command}.py takes one search, since {reason}. Got {', '.join(table.searches)}.")
    return table


def heading(table: Table) -> list[str]:
    """Return the paragraph about the table's only search: its question, and whether it has ended."""
    facts = facts_of(table)
    lines = [f"{facts.name}: {facts.about or '(no question given: `about`)'}", *table.notes()]
    return [row for line in lines for row in folded(line)]


def facts_of(table: Table) -> Facts:
    """Return the facts about the table's first search, whose metrics and objective the axes of all figures name."""
    return next(iter(table.searches.values()))


def check_rung(table: Table, rung: int) -> None:
    """Raise ValueError if no trial was evaluated at the rung."""
    known = sorted({entry["rung"] for trial in table.trials for entry in trial.evaluations})
    if rung not in known:
        raise ValueError(f"No trial was evaluated at rung {rung}. Known: {', '.join(map(str, known))}.")


def write_figures(plots: Sequence[Plot], options: argparse.Namespace, default: Path | None = None) -> list[str]:
    """Write figures with their numbers to --to, or to `default`; return the lines that say where."""
    from analysis.plots import write_plots

    folder = options.to or default or _default_folder(options.names, options.runs)
    for plot in plots:
        write_plots(plot, folder, options.formats.split(","))
    names = ", ".join(plot.name for plot in plots)
    lines = [f"figures   {folder}", f"{names}: .{', .'.join(options.formats.split(','))}; numbers: .csv"]
    return [lines[0], *(f"          {line}" for line in folded(lines[1], width=70))]


def _default_folder(names: Sequence[str], runs: Path) -> Path:
    """Return the folder of figures in the search's folder; next to a file; for several, one in `runs` with their names."""
    stems = [Path(name).stem if name.endswith(".parquet") else name for name in names]
    if len(names) > 1:
        return runs / "figures" / "+".join(stems)
    return Path(names[0]).with_name(f"{stems[0]}-figures") if names[0].endswith(".parquet") else runs / names[0] / "figures"
