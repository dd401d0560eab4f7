"""The options of a search, typed or from Python: what each means, and what is refused before anything is looked at."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from minbert_core.settings.models import NAME
from minbert_core.words import did_you_mean
from search.environment import own_version
from search.tracking.store import parse_tracking_uri


class Options(TypedDict, total=False):
    """The options of `search.run.run`: those of the command that say what a search is, under their names with _ for -."""

    set: str | Sequence[str]
    data: str | Path
    encoder: str | Path
    trials: int
    hours: float
    gpus: int | Literal["auto"]
    gpus_per_trial: float
    cpus_per_trial: int
    seed: int
    name: str
    runs: str | Path
    tracking_uri: str
    address: str
    resume: str


def parser(exit_on_error: bool = True) -> argparse.ArgumentParser:
    """The parser of `python -m search.run`; without exit_on_error it raises argparse.ArgumentError where it would leave."""
    made = argparse.ArgumentParser(
        prog="python -m search.run",
        usage="python -m search.run --space FILE | --resume NAME [options]",
        description="Search for the best configuration of a space.",
        epilog="examples:\n  python -m search.run --space spaces/smart.yaml --data data/ --gpus 4\n"
        "  python -m search.run --resume smart --trials 64",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        exit_on_error=exit_on_error,
    )
    what = made.add_argument_group("what")
    what.add_argument("--space", type=Path, metavar="FILE", help="the search space, YAML")
    what.add_argument(
        "--set", action="append", metavar="PATH=VALUE", help="override a value: optimizer/lr=2e-5; may be repeated"
    )
    what.add_argument("--data", metavar="DIR", help="folder with the corpora, or toy")
    what.add_argument("--encoder", metavar="NAME", help="hub name or folder of the pretrained BERT, or tiny")
    much = made.add_argument_group("how much")
    much.add_argument("--trials", type=positive, metavar="N", help="configurations to try, baselines included")
    much.add_argument("--hours", type=_amount, metavar="H", help="to spend; trials that cannot reach a next point pause")
    much.add_argument("--gpus", type=gpus, metavar="N|auto", help="GPUs to use; auto (default): all that are free here")
    much.add_argument("--gpus-per-trial", type=share, metavar="X", help="share of a GPU a trial (auto: what pays; else 1)")
    much.add_argument("--cpus-per-trial", type=positive, metavar="N", help="CPU cores and threads a trial (default 1)")
    much.add_argument("--seed", type=_seed, metavar="N", help="of the sampler and of the trials (default 0)")
    where = made.add_argument_group("where")
    where.add_argument("--name", type=_name, metavar="NAME", help="of the search (default: the space's, then -2, -3 …)")
    where.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of all searches (default runs)")
    where.add_argument("--tracking-uri", type=_store, metavar="URI", help="MLflow's store: http://…, sqlite:///…")
    where.add_argument("--address", type=_address, default="local", metavar="HOST:PORT", help="of a Ray cluster to join")
    then = made.add_argument_group("before and after")
    then.add_argument("--dry-run", action="store_true", help="print the plan and the measured cost; start nothing")
    then.add_argument("--price", type=_amount, metavar="X", help="money an hour of a GPU (or of the CPU), for --dry-run")
    then.add_argument("--status", metavar="NAME", help="show how a search goes, from another shell")
    then.add_argument("--resume", metavar="NAME", help="go on with a search; beside --space: or start it")
    then.add_argument("--env", action="store_true", help="print versions, hardware, settings, for a bug report")
    then.add_argument("--version", action="version", version=f"minbert-search {own_version()}", help="print the version")
    then.add_argument("-h", "--help", action="help", help="print this")
    return made


def as_arguments(options: Mapping[str, Any]) -> list[str]:
    """What one would type for keywords of Python, in which None stands for an option that is not given.

    Raises ValueError: a keyword that is none of `Options`.
    """
    arguments = []
    for name, value in options.items():
        if name not in Options.__annotations__:
            raise ValueError(f"Unknown option `{name}`{did_you_mean(name, ['space', *Options.__annotations__])}")
        values = value if isinstance(value, list | tuple) else [] if value is None else [value]
        arguments += [f"--{name.replace('_', '-')}={item}" for item in values]
    return arguments


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options in `arguments`, for a caller that is no command line.  Raises ValueError with the command's sentence."""
    try:
        return parser(exit_on_error=False).parse_args(arguments)
    except argparse.ArgumentError as error:
        raise ValueError(f"{error.argument_name}: {error.message}") from None


def positive(text: str) -> int:
    """A whole number of 1 or more, for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more. Got '{text}'.")
    return int(text)


def _amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, as in 1.5. Got '{text}'.")
    return value


def _seed(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be a whole number of 0 or more. Got '{text}'.")
    return int(text)


def share(text: str) -> float:
    """A share of one GPU, in (0, 1], for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1: a trial or model trains on one GPU. Got '{text}'.")
    return value


def _name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"must be made of a-z, 0-9, _ and -. Got '{text}'.")
    return text


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if text != "local" and not (host and port.isdigit() and "/" not in host):
        raise argparse.ArgumentTypeError(f"must be HOST:PORT. Got '{text}'.")
    return text


def _store(text: str) -> str:
    try:
        return parse_tracking_uri(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def gpus(text: str) -> str:
    """`auto` or a number of GPUs, for argparse."""
    if text != "auto" and not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be a whole number or auto. Got '{text}'.")
    return text
