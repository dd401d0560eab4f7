"""The arguments that the analyses share: which searches or files to read, and the folder for figures."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path

from analysis.plots import Plot, write_plots
from analysis.table import Table, open_table

FORMATS = "svg,png,pdf"
COLUMNS = 80


def folded(text: str) -> list[str]:
    """Fold a paragraph at the width of a terminal."""
    return textwrap.wrap(text, COLUMNS, break_long_words=False)


def sources_parser(command: str, description: str, examples: str, usage: str = "") -> argparse.ArgumentParser:
    """Return a parser with NAME …, --runs, --to and --formats. `examples` are lines of arguments."""
    lines = "\n".join(f"  python analysis/{command}.py {line}" for line in examples.splitlines())
    parser = argparse.ArgumentParser(
        prog=f"python analysis/{command}.py",
        usage=f"python analysis/{command}.py NAME ... {usage}[--to DIR]",
        description="\n".join(folded(description)),
        epilog=f"examples:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="a search, or a .parquet file of runs.py --out")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of all searches (default runs)")
    parser.add_argument("--to", type=Path, metavar="DIR", help="folder of the figures (default runs/NAME/figures)")
    parser.add_argument("--formats", type=_formats, default=FORMATS, metavar="LIST", help=f"of the figures (default {FORMATS})")
    return parser


def _formats(text: str) -> str:
    if unknown := set(text.split(",")) - {*FORMATS.split(",")}:
        raise argparse.ArgumentTypeError(f"takes {FORMATS} or some of them. Unknown: {', '.join(sorted(unknown))}.")
    return text


def read_sources(options: argparse.Namespace) -> Table:
    """Open the searches and files that were named.  Raises ValueError: no such search, not such a file, or no trial yet."""
    table = open_table(options.names, options.runs.absolute())
    if not any(trial.evaluations for trial in table.trials):
        names = ", ".join(table.searches)
        raise ValueError(f"No trial of {names} has been evaluated yet, so there is nothing to analyse.")
    return table


def check_rung(table: Table, rung: int) -> None:
    """Raise ValueError if no trial was evaluated at the rung."""
    known = sorted({entry["rung"] for trial in table.trials for entry in trial.evaluations})
    if rung not in known:
        raise ValueError(f"No trial was evaluated at rung {rung}. Known: {', '.join(map(str, known))}.")


def write_figures(plots: Sequence[Plot], options: argparse.Namespace) -> list[str]:
    """Write figures with their numbers; return the lines that say where."""
    folder = options.to or _default_folder(options.names, options.runs)
    for plot in plots:
        write_plots(plot, folder, options.formats.split(","))
    names = ", ".join(plot.name for plot in plots)
    return [f"figures   {folder}", f"          {names}: .{', .'.join(options.formats.split(','))}; numbers: .csv"]


def _default_folder(names: Sequence[str], runs: Path) -> Path:
    """Return the folder of figures in the search's folder; next to a file; for several, one in `runs` with their names."""
    stems = [Path(name).stem if name.endswith(".parquet") else name for name in names]
    if len(names) > 1:
        return runs / "figures" / "+".join(stems)
    return Path(names[0]).with_name(f"{stems[0]}-figures") if names[0].endswith(".parquet") else runs / names[0] / "figures"
