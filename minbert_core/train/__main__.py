"""The command that trains one configuration, without a search and without Ray.

    python -m minbert_core.train CONFIG.yaml [--set PATH=VALUE] [--data DIR] [--encoder NAME] [--to DIR]
    python -m minbert_core.train CONFIG.yaml --overfit

CONFIG.yaml -> read (--set laid over it) -> settle (absolute folders, the machine) -> train_in a folder -> its best model

Given a trial's config.yaml it repeats that trial, on the CPU to the digit. The same command again goes on from the snapshot.

Exit codes are those of minbert_core/commands.py: 1 where training failed (not finite; --overfit: not learned).
"""

from __future__ import annotations

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

import torch

from minbert_core.commands import DONE, FAILED, Refused, run_command
from minbert_core.config import TrialConfig
from minbert_core.config_checks import load_config, read_config
from minbert_core.evaluate import NotFiniteError
from minbert_core.files import lock
from minbert_core.inputs import open_inputs
from minbert_core.overrides import Override, Sources, note_set, parse_set
from minbert_core.settings.faults import Location, SettingsError, fault_at, path_of
from minbert_core.settings.paths import as_written, flatten
from minbert_core.settings.yaml import dump_yaml, read_yaml
from minbert_core.settling import settle
from minbert_core.terminal import Screen
from minbert_core.train.folder import read_records, state_file, train_in
from minbert_core.train.overfit import run_overfit
from minbert_core.train.preview import plan_lines
from minbert_core.train.report import Report, closing_lines, near
from minbert_core.train.trial import Record, load_snapshot
from minbert_core.words import shown

# the words of a search's space, which this command cannot take: search knows them, and this package does not know search
SPACE_WORDS = ("config", "about", "trials", "rungs", "sampler", "trial_scheduler", "baselines", "together", "extends")
DOMAIN_WORDS = ("uniform", "log_uniform", "int", "choice")


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit code."""
    again = shlex.join(["python", "-m", "minbert_core.train", *(sys.argv[1:] if arguments is None else arguments)])
    return run_command(_parser(), arguments, partial(_main, again=again), writes="to")


def _main(options: argparse.Namespace, again: str) -> int:
    try:
        config = read(options.config, options.set, options.data, options.encoder)
        if options.overfit is not None:
            if options.to is not None:
                raise ValueError("--overfit writes nothing, so it does not go with --to.")
            return DONE if run_overfit(settle(config, None), options.overfit, str(options.config)) else FAILED
        options.to = (options.to or Path("trained") / default_name(options.config)).absolute()
        return run(config, options.to, str(options.config))
    except torch.OutOfMemoryError:
        remedy = "--set machine/micro_batch_tokens=4096 sends a batch through in parts"
        raise Refused(f"This machine's GPU has too little memory for a step of this configuration; {remedy}.") from None
    except NotFiniteError as error:
        print(error, file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        how = "Again" if options.overfit else "This goes on from the last snapshot, where there is one"
        raise KeyboardInterrupt(f"\nInterrupted. {how}:\n  {again}") from None


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m minbert_core.train",
        usage="%(prog)s CONFIG.yaml [options]",
        description="Train one configuration, without a search.",
        epilog="examples:\n  python -m minbert_core.train my.yaml --data data/ --set optimizer/lr=2e-5\n"
        "  python -m minbert_core.train runs/smart/trials/007/config.yaml   (repeats it)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = made.add_argument_group("what")
    what.add_argument("config", type=Path, metavar="CONFIG.yaml", help="the configuration, or that of a trial")
    what.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override a value: gradient=pcgrad")
    what.add_argument("--data", metavar="DIR", help="folder with the tasks' files, or toy")
    what.add_argument("--encoder", metavar="NAME", help="hub name or folder of a BERT, or tiny")
    where = made.add_argument_group("where")
    where.add_argument("--to", type=Path, metavar="DIR", help="folder to train in (default trained/CONFIG)")
    check = made.add_argument_group("instead")
    check.add_argument(
        "--overfit", type=_few, nargs="?", const=16, metavar="N", help="can each task learn N examples by heart? (default 16)"
    )
    return made


def _few(text: str) -> int:
    if not text.isdigit() or not 2 <= int(text) <= 512:
        raise argparse.ArgumentTypeError(f"must be a whole number of examples from 2 to 512. Got '{text}'.")
    return int(text)


# ---------------------------------------------------------------------------------------------------------- the config


def read(path: Path, sets: list[str], data: str | None = None, encoder: str | None = None) -> TrialConfig:
    """The config in a file, --set and the other options laid over it.  Raises SettingsError: every fault with file and line."""
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
        law = "this command trains one configuration. Give one value; or put the file's lines under `config:` and search: "
        raise SettingsError(
            fault_at(name := path_of(location, document), f"`{name}` is a domain, {shown(node)}, and {law}{search}", where)
            for location, node in domains
        )
    return load_config(document, where)


def _domains(node: Any, location: Location) -> Iterator[tuple[Location, Any]]:
    """Where a document has, in place of a value, what a space writes to search it."""
    if isinstance(node, dict) and len(node) == 1 and any(isinstance(node.get(word), list) for word in DOMAIN_WORDS):
        yield location, node
        return
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield from _domains(child, (*location, key))


def default_name(path: Path) -> str:
    """The folder's name under trained/: the file's stem; of the config.yaml of a trial `smart-007`, of a model its folder's."""
    path = path.resolve()
    if path.name != "config.yaml":
        return path.stem
    folder = path.parent.parent if path.parent.name == "best" else path.parent
    return f"{folder.parent.parent.name}-{folder.name}" if folder.parent.name == "trials" else folder.name


# ------------------------------------------------------------------------------------------------------------ training


def run(config: TrialConfig, folder: Path, source: str) -> int:
    """Train in `folder`, or go on there, or tell that it is done; the exit code.  Raises Refused: it holds something else."""
    _refuse_foreign(folder)
    recorded = _recorded(folder)
    config = settle(config, recorded)
    if recorded is not None:
        _refuse_another(folder, config, recorded)
    inputs = open_inputs(config)
    config.check_turns(inputs.sizes)
    for line in plan_lines(config, inputs, source):
        print(line)
    print(f"folder    {folder}")
    total = config.num_examples(inputs.sizes)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        records = read_records(folder / "metrics.jsonl")
        if _is_done(folder, config, records):
            shutil.rmtree(folder / "state", ignore_errors=True)  # a kill may have come before this
            print("\n".join(["It is trained already: nothing is left to do.", "", *closing_lines(config, records, folder)]))
            return DONE
        if not _has_begun(folder):  # a snapshot holds no more than a pretraining then, which is in the cache
            shutil.rmtree(folder / "state", ignore_errors=True)
        snapshot, records = _snapshot(folder)
        (folder / "config.yaml").write_text(dump_yaml(as_written(config)), encoding="utf-8")
        if records:
            print(f"goes on   after {records[-1]['examples']:,} of {total:,} examples, from the snapshot")
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
        raise Refused(f"{folder} lies in a search's folder, whose records are its own. Give another folder with --to.")
    if folder.exists() and not folder.is_dir():
        raise Refused(f"{folder} is a file. Give another folder with --to.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "config.yaml").exists():
        raise Refused(f"{folder} holds other files, and no training. Give another folder with --to.")


def _recorded(folder: Path) -> TrialConfig | None:
    """Read the config that something was trained with in `folder`; None if nothing was."""
    return read_config(folder / "config.yaml") if _has_begun(folder) and (folder / "config.yaml").exists() else None


def _has_begun(folder: Path) -> bool:
    """Whether a step was trained in `folder`: a start that failed before its first step does not bind it to a config.

    Of a power cut a snapshot can be all that is left: it is written through to the disk, the other files are not.
    """
    if (folder / "best").exists() or any(record["step"] for record in read_records(folder / "metrics.jsonl")):
        return True
    snapshot = state_file(folder)
    try:
        return snapshot.exists() and any(record["step"] for record in load_snapshot(snapshot)[1])
    except ValueError:
        return False


def _refuse_another(folder: Path, config: TrialConfig, recorded: TrialConfig) -> None:
    here, there = (flatten(one.model_dump(mode="json")) for one in (config, recorded))
    differing = [path for path in {**there, **here} if here.get(path) != there.get(path)]
    if differing:
        told = [f"`{path}` is {shown(there.get(path))} there and {shown(here.get(path))} here" for path in differing[:3]]
        more = f", and {len(differing) - 3} more" if len(differing) > 3 else ""
        remedy = "Give another folder with --to; or delete this one"
        raise Refused(f"{near(folder)} was begun with another configuration: {'; '.join(told)}{more}. {remedy}.")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Nobody else trains in `folder` meanwhile.  Raises Refused: somebody does."""
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


def _snapshot(folder: Path) -> tuple[dict[str, Any] | None, list[Record]]:
    """What to go on from; a snapshot that cannot be read is as none."""
    if not state_file(folder).exists():
        return None, []
    try:
        return load_snapshot(state_file(folder))
    except ValueError as error:
        print(f"{error} Training begins anew.")
        return None, []


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    sys.exit(main())
