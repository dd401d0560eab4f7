"""README's table of methods, generated from the classes: the files of minbert_core/methods/, their variants and papers.

python -m search.space --table -> write_table -> README.md, whose other lines stay as they are
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from pydantic import BaseModel

from minbert_core.settings.knobs import Knob, Place
from search.space.listing import ROOT, config_places, file_of, first_sentence, papers

README = ROOT / "README.md"
METHODS = "minbert_core/methods/"
HEADER = [f"| file in `{METHODS}` | variants, each with the first paper that its class names |", "|---|---|"]


def methods_table() -> list[str]:
    """Build the lines of the table: one row per file, in the order of a config's keys."""
    rows: dict[str, list[str]] = {}
    for place in config_places():
        file = file_of(place.knob)
        if file.startswith(METHODS) and place.knob.field and place.knob.models and not place.same_as:
            rows.setdefault(file.removeprefix(METHODS), []).append(_cell(place))
    return [*HEADER, *(f"| `{file}` | {'; '.join(cells)} |" for file, cells in rows.items())]


def write_table(readme: Path = README) -> None:
    """Replace the table of methods in `readme`.  Raises ValueError if it has no such table, OSError."""
    lines = readme.read_text(encoding="utf-8").split("\n")
    start = next((i for i, line in enumerate(lines) if line.startswith(f"| file in `{METHODS}`")), None)
    if start is None:
        raise ValueError(f"{readme} has no table of methods. Its first line is: {HEADER[0]}")
    end = next((i for i in range(start, len(lines)) if not lines[i].startswith("|")), len(lines))
    lines[start:end] = methods_table()
    readme.write_text("\n".join(lines), encoding="utf-8")


def _cell(place: Place) -> str:
    """Describe a family by its path and variants, a group of knobs by its path and first sentence."""
    name, models = place.path.rpartition("/")[2], place.knob.models
    kinds = Knob(models).kinds  # also of a list of variants
    about = ", ".join(_variants(kinds)) if kinds else first_sentence(inspect.getdoc(models[0]) or "")
    return f"{name}: {re.sub(', arXiv [0-9.]+', '', about)}"


def _variants(kinds: dict[str, type[BaseModel]]) -> Iterator[str]:
    """Yield each run of variants that cite the same paper: `cls` `pooler` (Devlin et al. 2019)."""
    for paper, run in groupby((kind for kind in kinds if kind != "none"), key=lambda kind: _paper(kinds[kind])):
        yield " ".join([*(f"`{kind}`" for kind in run), *([f"({paper})"] if paper else [])])


def _paper(model: type[BaseModel]) -> str:
    return next(iter(papers(model.__doc__)), "").partition(" (arXiv")[0]
