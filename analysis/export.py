"""Export a model to other libraries, and check that each answers as the model does.

    python analysis/export.py runs/smart --to exported --as transformers onnx
    python analysis/export.py runs/smart --as mlflow --register sentiment --alias champion

    MODEL ─► Source ─► export_to/as_*.py ─► DIR/FORMAT[/TASK], with a model card ─► loaded again by its library ─► compared

A folder appears only after its answers, read back by its own library, equal the model's. `export_to/` has a file per format.
Exit codes are those of minbert_core/commands.py; 1 means that an export answered differently, and was removed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a file: Python put analysis/ on the path, where the packages are not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

if __name__ == "__main__":  # before the other imports, which take seconds
    from analysis.options import export_parser
    from minbert_core.commands import check_command_line

    check_command_line(export_parser())

from analysis.answers import find_model
from analysis.export_to import as_mlflow, as_onnx, as_sentence_transformers, as_transformers
from analysis.export_to.card import Card, Wishes, write_card
from analysis.export_to.formats import Format
from analysis.export_to.origin import Origin, find_origin
from analysis.export_to.quiet import quieten
from analysis.export_to.register import register
from analysis.export_to.source import Source, open_source
from analysis.options import export_parser
from analysis.printing import folded
from analysis.tracking import tracking_uri
from minbert_core.commands import DONE, FAILED, Refused, run_command
from minbert_core.files import replaced
from search.environment import own_version
from search.tracking.store import parse_tracking_uri, store_uri

FORMATS = (as_transformers.FORMAT, as_sentence_transformers.FORMAT, as_mlflow.FORMAT, as_onnx.FORMAT)
RECORD = "export.json"  # marks a folder as one that this command wrote, and may replace
INSTALL = "pip install -e '.[export]' -c constraints.txt"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(export_parser(), arguments, _main, writes="to")


def _main(options: argparse.Namespace) -> int:
    _check_together(options)
    formats = _chosen(options.formats)
    folder = find_model(options.model)
    quieten()
    source, origin = open_source(folder), find_origin(folder)
    to = options.to or _default_folder(options.model, source)
    print(f"model     {options.model}{f' ({origin.name})' if origin.name else ''}: {', '.join(source.tasks)}")
    print(f"to        {to}")
    plans = [(each, _tasks_for(each, source)) for each in formats]
    if not any(tasks for _, tasks in plans):
        raise Refused(f"Nothing of {options.model} fits {', '.join(each.name for each in formats)}.")
    _check_targets(to, [each for each, tasks in plans if tasks])
    wishes = Wishes(options.license, options.base_model, options.language)
    code, kept = DONE, []
    for each, tasks in plans:
        if not tasks:
            continue
        try:
            _export(each, tasks, source, origin, wishes, to)
            kept.append(each)
        except _Different as difference:
            print(difference, file=sys.stderr)
            code = FAILED
    _after(options, source, origin, to, kept)
    return code


def _check_together(options: argparse.Namespace) -> None:
    """Raise ValueError where options contradict each other."""
    if options.register and options.formats and "mlflow" not in options.formats:
        raise ValueError(f"--register registers the MLflow export. Got --as {' '.join(options.formats)}. Add mlflow.")
    if not options.register and (given := [name for name in ("alias", "tracking_uri") if getattr(options, name)]):
        raise ValueError(f"--{given[0].replace('_', '-')} belongs to --register NAME, which is missing.")


def _chosen(names: Sequence[str] | None) -> list[Format]:
    """Return the formats that were asked for; without a wish, those whose packages are installed.

    Raises Refused if a package of a format that was asked for is missing.
    """
    chosen = []
    for each in FORMATS:
        if names is not None and each.name not in names:
            continue
        if missing := each.missing():
            sentence = f"{each.name} needs {', '.join(missing)}: {INSTALL}"
            if names is not None:
                raise Refused(sentence)
            print(f"skipped   {sentence}")
            continue
        chosen.append(each)
    return chosen


def _tasks_for(each: Format, source: Source) -> list[str]:
    """Return the tasks that a format can hold; print a sentence for each other one."""
    reasons = {name: each.why_not(source, name) for name in source.tasks}
    for reason in filter(None, reasons.values()):
        print("\n".join(folded(f"{'':<10}{each.name}: {reason}", indent=" " * 12)))
    return [name for name, reason in reasons.items() if not reason]


def _default_folder(named: Path, source: Source) -> Path:
    """Return the folder of the exports: in the search, if that was named, else next to best/, else in the model's parent."""
    if (named / "plan.json").exists():
        return named / "exported"
    return source.folder.parent / "exported"


def _check_targets(to: Path, formats: Sequence[Format]) -> None:
    """Raise Refused if a folder is in the way that this command has not written."""
    for each in formats:
        target = to / each.name
        if target.exists() and not (target / RECORD).exists():
            raise Refused(f"{target} exists, and export.py has not written it, so it is not replaced. Give another --to DIR.")


# ------------------------------------------------------------------------------------------------------------- one format


@dataclass(frozen=True)
class _Checked:
    """What was measured of a part, before it got its name."""

    place: str
    differences: dict[str, float]
    seconds: float  # to load it and to answer the examples


class _Different(Exception):
    """An export answers otherwise than the model; the text says how far."""


def _export(each: Format, tasks: list[str], source: Source, origin: Origin, wishes: Wishes, to: Path) -> None:
    """Write a format, load it again, compare, and report.  Raises _Different; then nothing of it is kept."""
    print(f"writing   {each.name} …", flush=True)
    to.mkdir(parents=True, exist_ok=True)
    target = to / each.name
    with replaced(target) as draft:
        checked = []
        for place, part in each.parts(tasks).items():
            each.write(source, part, draft / place)
            named = (_in_cards(to) / each.name / place).as_posix()
            write_card(Card(source, origin, each, part, named, wishes), draft / place)
            began = time.monotonic()
            differences = each.compare(source, part, draft / place)
            checked.append(_Checked(place, differences, time.monotonic() - began))
        worse = {name: of for part in checked for name, of in part.differences.items() if not of <= each.tolerance}
        if worse:
            raise _Different(_refusal(each, worse))
        _record(each, source, checked, draft)
    for found in checked:
        print(_line(each, found, target / found.place))


def _in_cards(to: Path) -> Path:
    """Return the folder as the code in a card names it, which others read: below the current one, or by its last name."""
    to, here = Path(os.path.normpath(to.absolute())), Path.cwd()
    return to.relative_to(here) if to.is_relative_to(here) else Path(to.name)


def _refusal(each: Format, worse: dict[str, float]) -> str:
    found = ", ".join(f"{name} by {of:.1e}" for name, of in worse.items())
    return (
        f"{each.name}: the export answers otherwise than the model ({found}; {each.tolerance:g} is accepted). It was not kept."
    )


def _record(each: Format, source: Source, checked: Sequence[_Checked], draft: Path) -> None:
    """Write what was exported, and how far its answers were from the model's."""
    document = {
        "format": each.name,
        "minbert_search": own_version(),
        "config": source.config.identity,
        "compared": each.compared,
        "tolerance": each.tolerance,
        "largest_difference": {name: of for part in checked for name, of in part.differences.items()},
    }
    (draft / RECORD).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _line(each: Format, part: _Checked, folder: Path) -> str:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    difference = max(part.differences.values())
    name = each.name if part.place == "." else f"{each.name}/{part.place}"
    return f"exported  {name:<28} {size:6.1f} MB, differs by {difference:.1e} at most"


def _after(options: argparse.Namespace, source: Source, origin: Origin, to: Path, kept: Sequence[Format]) -> None:
    """Print how to use what was exported; register the MLflow export if that was asked for."""
    if kept:
        print("use       the README.md of each folder is its model card, with code that runs")
    if as_mlflow.FORMAT not in kept:
        return
    folder = to / as_mlflow.FORMAT.name
    for name, line in zip(("serve", "ask"), as_mlflow.serve_lines(source, str(folder)), strict=True):
        print(f"{name:<10}{line}")
    if options.register:
        uri = parse_tracking_uri(options.tracking_uri) if options.tracking_uri else _store(origin)
        lines = register(folder, uri, origin, list(source.tasks), options.register, options.alias)
        print("\n".join(f"{'' if i else 'registry':<10}{line}" for i, line in enumerate(lines)))


def _store(origin: Origin) -> str:
    """Return the store of the model's search; of a model of no search, that in the current folder."""
    return tracking_uri(origin.search) if origin.search else store_uri(Path("runs"))


if __name__ == "__main__":
    sys.exit(main())
