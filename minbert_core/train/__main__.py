"""The command that trains one configuration, without a search and without Ray.

    python -m minbert_core.train CONFIG.yaml [--set PATH=VALUE] [--data DIR] [--encoder NAME] [--to DIR]
    python -m minbert_core.train CONFIG.yaml --on train+dev | --overfit | --print

CONFIG.yaml -> read (with --set applied) -> settle (absolute folders, the machine) -> train_in a folder -> its best model

Given a trial's config.yaml, it repeats that trial; on the CPU, bit for bit. Rerun the command to resume from the snapshot.

Exit codes are those of minbert_core/commands.py: 1 if training failed (not finite; with --overfit: not learned).
"""

from __future__ import annotations

if __name__ == "__main__":  # before the other imports, which take seconds
    from minbert_core.commands import check_command_line
    from minbert_core.train.options import parser

    check_command_line(parser())

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from minbert_core.commands import DONE, FAILED, Refused, run_command
from minbert_core.config import TrialConfig
from minbert_core.config_checks import load_config, read_config
from minbert_core.evaluate import NotFiniteError
from minbert_core.files import lock, replaced
from minbert_core.inputs import open_inputs
from minbert_core.memory import DoesNotFitError
from minbert_core.overrides import Override, Sources, note_set, parse_set
from minbert_core.plugins import write_copies
from minbert_core.settings.faults import Location, SettingsError, fault_at, path_of
from minbert_core.settings.paths import as_written, flatten
from minbert_core.settings.yaml import dump_yaml, read_yaml
from minbert_core.settling import settle
from minbert_core.terminal import Screen
from minbert_core.train.folder import read_snapshot, recorded_or_saved, snapshot_or_start, train_in
from minbert_core.train.options import parser
from minbert_core.train.overfit import run_overfit
from minbert_core.train.preview import plan_lines
from minbert_core.train.report import Report, closing_lines, near
from minbert_core.train.trial import ForeignSnapshotError, Record
from minbert_core.words import shown

# the words of a search space, which this command refuses; a copy, because this package does not import search
SPACE_WORDS = ("config", "about", "trials", "rungs", "sampler", "trial_scheduler", "baselines", "together", "extends")
DOMAIN_WORDS = ("uniform", "log_uniform", "int", "choice")
SMALLER = "Use a machine with more, a smaller encoder, a shorter `max_length`, or a cheaper `smoothness`."


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    again = shlex.join(["python", "-m", "minbert_core.train", *(sys.argv[1:] if arguments is None else arguments)])
    return run_command(parser(), arguments, partial(_main, again=again), writes="to")


def _main(options: argparse.Namespace, again: str) -> int:
    try:
        rows = [f"rows={options.on}"] if options.on is not None else []
        config = read(options.config, [*options.set, *rows], options.data, options.encoder)
        if options.print:
            print(dump_yaml(as_written(config)), end="")
            return DONE
        if options.overfit is not None:
            if options.to is not None:
                raise ValueError("--overfit writes nothing, so it cannot be combined with --to. Remove one of them.")
            return DONE if run_overfit(settle(config, None), options.overfit, str(options.config)) else FAILED
        options.to = (options.to or Path("trained") / default_name(options.config, config)).absolute()
        return run(config, options.to, str(options.config))
    except DoesNotFitError as error:
        raise Refused(f"This machine has too little memory. {error} {SMALLER}") from None
    except NotFiniteError as error:
        print(error, file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        how = "Start again" if options.overfit else "Resume from the last snapshot, if there is one"
        raise KeyboardInterrupt(f"\nInterrupted. {how}:\n  {again}") from None


# ---------------------------------------------------------------------------------------------------------- the config


def read(path: Path, sets: list[str], data: str | None = None, encoder: str | None = None) -> TrialConfig:
    """Read the config in a file and apply the options to it.  Raises SettingsError: every fault with file and line."""
    document, lines = read_yaml(path)
    document = {} if document is None else document
    if not isinstance(document, dict):
        return load_config(document)  # raises
    where: Sources = {path_of(location, document): (str(path), line) for location, line in lines.items()}
    options = [parse_set(text) for text in sets]
    options += [(["data"], data, f"--data {data}")] if data is not None else []
    options += [(["encoder", "checkpoint"], encoder, f"--encoder {encoder}")] if encoder is not None else []
    for parts, value, source in options:
        note_set(where, "/".join(parts), source)
        Override(value, source).put(document, parts)
    search = f"python -m search.run --space {shlex.quote(str(path))}"
    if words := [key for key in document if key in SPACE_WORDS]:
        law = f"`{words[0]}` belongs to a search space, and this command trains one configuration. Search it: {search}"
        raise SettingsError([fault_at(words[0], law, where)])
    if domains := list(_domains(document, ())):
        law = "this command trains one configuration. Give one value, or put the file's lines under `config:` and search: "
        raise SettingsError(
            fault_at(name := path_of(location, document), f"`{name}` is a domain, {shown(node)}, and {law}{search}", where)
            for location, node in domains
        )
    return load_config(document, where)


def _domains(node: Any, location: Location) -> Iterator[tuple[Location, Any]]:
    """Find the places where a document has a domain of a search space instead of a value."""
    if isinstance(node, dict) and len(node) == 1 and any(isinstance(node.get(word), list) for word in DOMAIN_WORDS):
        yield location, node
        return
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield from _domains(child, (*location, key))


def default_name(path: Path, config: TrialConfig | None = None) -> str:
    """Choose the folder's name under trained/: the file's stem; for a config.yaml `smart-007` (a trial) or its folder.

    A training on train+dev has another name, `smart-007-all`: it is another model.
    """
    path, rest = path.resolve(), "-all" if config is not None and config.rows != "train" else ""
    if path.name != "config.yaml":
        return path.stem + rest
    folder = path.parent.parent if path.parent.name == "best" else path.parent
    return (f"{folder.parent.parent.name}-{folder.name}" if folder.parent.name == "trials" else folder.name) + rest


# ------------------------------------------------------------------------------------------------------------ training


def run(config: TrialConfig, folder: Path, source: str) -> int:
    """Train in `folder`, resume there, or report that it is done; return the exit code.

    Raises Refused if the folder holds something else.
    """
    _refuse_foreign(folder)
    recorded = _recorded(folder)
    config = settle(config, recorded)
    if recorded is not None:
        _refuse_another(folder, config, recorded)
        config = recorded  # equal, but perhaps written with other defaults, which its identity would show
    inputs = open_inputs(config)
    config.check_turns(inputs.sizes)
    for line in plan_lines(config, inputs, source):
        print(line)
    print(f"folder    {folder}")
    total = config.num_examples(inputs.sizes)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        records = recorded_or_saved(folder)
        if _is_done(folder, config, records):
            shutil.rmtree(folder / "state", ignore_errors=True)  # in case a kill prevented it
            print("\n".join(["It is trained already: nothing is left to do.", "", *closing_lines(config, records, folder)]))
            return DONE
        if not _has_begun(folder):  # then a snapshot holds at most a pretraining, which is in the cache
            shutil.rmtree(folder / "state", ignore_errors=True)
        snapshot, records = snapshot_or_start(folder)
        write_copies(config.plugins, folder)
        with replaced(folder / "config.yaml", durable=True) as draft:
            draft.write_text(dump_yaml(as_written(config)), encoding="utf-8")
        if records:
            print(f"resumes   after {records[-1]['examples']:,} of {total:,} examples, from the snapshot")
        report = Report(config, inputs, records)
        with Screen(report.render) as screen:
            for progress in train_in(folder, config, inputs, snapshot, records):
                for line in report.lines(progress.record):
                    screen.print(line)
        shutil.rmtree(folder / "state")
    print("\n".join(["", *closing_lines(config, records, folder)]))
    return DONE


def _refuse_foreign(folder: Path) -> None:
    if any((parent / "study.journal").exists() for parent in folder.parents):
        raise Refused(f"{folder} is inside a search's folder. Give another folder with --to.")
    if folder.exists() and not folder.is_dir():
        raise Refused(f"{folder} is a file. Give another folder with --to.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "config.yaml").exists():
        raise Refused(f"{folder} contains other files, but no training. Give another folder with --to.")


def _recorded(folder: Path) -> TrialConfig | None:
    """Read the config of the training in `folder`; None if no step was trained there."""
    return read_config(folder / "config.yaml") if _has_begun(folder) and (folder / "config.yaml").exists() else None


def _has_begun(folder: Path) -> bool:
    """Return whether a step was trained in `folder`: a start that failed earlier does not bind the folder to a config.

    After a power cut only the snapshot may be left: it is flushed to the disk, the other files are not. A damaged one counts.
    """
    if (folder / "best").exists() or _has_steps(recorded_or_saved(folder)):
        return True
    try:
        return _has_steps(read_snapshot(folder)[1])
    except ForeignSnapshotError:
        raise
    except ValueError:
        return True


def _has_steps(records: list[Record]) -> bool:
    return any(record["kind"] != "pretrain" for record in records)


def _refuse_another(folder: Path, config: TrialConfig, recorded: TrialConfig) -> None:
    here, there = (flatten(settings.model_dump(mode="json")) for settings in (config, recorded))
    paths = [path for path in {**there, **here} if here.get(path) != there.get(path)]
    if paths:
        differences = [f"`{path}` is {shown(there.get(path))} there and {shown(here.get(path))} here" for path in paths[:3]]
        more = f", and {len(paths) - 3} more" if len(paths) > 3 else ""
        remedy = "Give another folder with --to, or delete this one"
        raise Refused(f"{near(folder)} was begun with another configuration: {'; '.join(differences)}{more}. {remedy}.")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock `folder`, so that no other process trains in it.  Raises Refused if one does."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if not lock(descriptor, folder):
            raise Refused(f"Another process is training in {folder}. Wait for it, or give another folder with --to.")
        yield
    finally:
        os.close(descriptor)


def _is_done(folder: Path, config: TrialConfig, records: list[Record]) -> bool:
    at_end = bool(records) and records[-1].get("rung") == config.budget.points[-1]
    return at_end and (folder / "best" / "heads.safetensors").exists()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    sys.exit(main())
