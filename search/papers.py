"""The systems of the papers that this project follows: one space per paper, with one branch of `row` per row of its tables.

    python -m search.papers        one line per row: its distance from our defaults, the published figures, any faults

The files are in spaces/papers, and analysis/replicate.py runs them. This module runs nothing: no data, no network, no GPU.
Exit codes: 0 if every row is a valid config, otherwise 2.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the other imports, which take seconds
    from minbert_core.commands import check_command_line
    from search.space.options import papers_parser

    check_command_line(papers_parser())

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minbert_core.commands import DONE, WRONG, analysis_command, run_command
from minbert_core.config import TrialConfig, default_at
from minbert_core.settings.faults import SettingsError
from minbert_core.settings.paths import as_written, flatten
from search.report.words import short
from search.shipped import PAPERS
from search.space.file import SpaceSettings, read_document
from search.space.options import papers_parser
from search.space.space import Space, default_choice

ROW = "row"  # the name in `together` of a paper's rows
OF_THE_SPACE = ("budget/points", "objective")  # paths that the space sets in each config


@dataclass(frozen=True)
class Row:
    """One system of a paper: its name there, and its printed figures: dev or test -> column -> figure."""

    name: str
    about: str
    published: Mapping[str, Mapping[str, float]]

    def figures(self, split: str) -> str:
        """Return `sst .512, para .844`; empty without figures."""
        return ", ".join(f"{column} {printed(figure)}" for column, figure in self.published.get(split, {}).items())


def printed(figure: float) -> str:
    """Format a figure as the papers print it: `.512`, with three digits unless it has more."""
    return short(figure, digits=max(3, len(f"{figure:g}".partition(".")[2])))


def rows_of(document: Mapping[str, Any]) -> list[Row]:
    """Return the rows of a paper's space, in the order of the file."""
    branches = document["together"][ROW]
    return [Row(branch["name"], branch.get("about", ""), branch.get("published", {})) for branch in branches]


def paper_file(name: str) -> Path:
    """Return the file of a paper, `P3` or `p3`.  Raises ValueError: no such paper."""
    files = {file.stem: file for file in sorted(PAPERS.glob("*.yaml"))}
    if name.lower() not in files:
        raise ValueError(f"There is no paper '{name}'. Known: {', '.join(stem.upper() for stem in files)}.")
    return files[name.lower()]


def read_paper(file: Path) -> Space:
    """Read a paper's space without checking it as a whole, so that each row shows its own faults."""
    return Space(file.stem, SpaceSettings(), *read_document(file))


def config_of(space: Space, row: str) -> TrialConfig:
    """Return a row's config.  Raises SettingsError with all its faults."""
    return space.sample(lambda name, domain: row if name == f"together/{ROW}" else default_choice(name, domain)).config()


def distance(config: TrialConfig) -> int:
    """Count the settings of a config that differ from the defaults, including those of each additional stage."""
    written = flatten(as_written(config))
    return sum(value != default_at(path) for path, value in written.items() if path not in OF_THE_SPACE)


def lines() -> Iterator[tuple[str, list[str]]]:
    """Yield the line of each row of each paper, and its faults as sentences."""
    for file in sorted(PAPERS.glob("*.yaml")):
        space = read_paper(file)
        for row in rows_of(space.document):
            faults: list[str] = []
            try:
                far = f"{distance(config_of(space, row.name)):2d} settings from the defaults"
            except SettingsError as error:
                far, faults = "not a valid config", str(error).splitlines()
            published = "; ".join(f"{split} {text}" for split in ("dev", "test") if (text := row.figures(split)))
            yield f"{file.stem:<9}  {row.name:<12}  {far}  {row.about}: {published or 'no figures'}", faults


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(papers_parser(), arguments, _main)


def _main(options: argparse.Namespace) -> int:
    """Print the rows and return the exit code."""
    num_rows = num_wrong = 0
    for line, faults in lines():
        print("\n".join([line, *(f"    {fault}" for fault in faults)]))
        num_rows, num_wrong = num_rows + 1, num_wrong + bool(faults)
    again = analysis_command("replicate", "--paper", "P1")
    print(f"{num_rows} rows, {num_rows - num_wrong} of them valid. To run a paper's rows: {again}")
    return WRONG if num_wrong else DONE


if __name__ == "__main__":
    sys.exit(main())
