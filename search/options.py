"""The options of a search, from the command line or from Python: their meaning, and the checks that need no files.

command line -> parser() -> from_arguments -> SearchOptions        keywords of run() -> from_keywords -> SearchOptions
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, TypedDict

from minbert_core.commands import not_empty
from minbert_core.files import user_path
from minbert_core.settings.models import NAME
from minbert_core.words import did_you_mean
from search.environment import own_version, without_secrets
from search.shipped import shipped
from search.tracking.store import parse_tracking_uri

STORAGES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "file")  # what pyarrow reads and writes


@dataclass(frozen=True)
class SearchOptions:
    """Everything that the user has said about a search. None: not given, so a default or the search's record decides."""

    space: Path | dict[str, Any] | None = None  # a file, or its content
    set: tuple[str, ...] = ()  # PATH=VALUE
    data: str | None = None
    encoder: str | None = None
    trials: int | None = None
    hours: float | None = None
    gpus: str | None = None  # a number, or auto
    gpus_per_trial: float | None = None
    cpus_per_trial: int | None = None
    seed: int | None = None
    from_: str | None = None  # NAME:N: an earlier search's N best trials become baselines. NAME: the sampler knows its trials
    name: str | None = None
    runs: Path = Path("runs")
    tracking_uri: str | None = None
    address: str = "local"
    storage: str | None = None
    resume: str | None = None
    retries: int = 1
    retry_failed: bool = False
    tensorboard: bool = False
    wandb: bool = False
    patience: float = 5.0  # minutes
    dry_run: bool = False
    prepare: bool = False
    price: float | None = None
    typed: tuple[str, ...] = ()  # the command line, where there was one

    @property
    def arguments(self) -> list[str]:
        """The command line, or the one that means the same: for the record, and for messages that repeat the command."""
        if self.typed:
            return list(self.typed)
        given = {field.name: getattr(self, field.name) for field in fields(self) if getattr(self, field.name) != field.default}
        words = [] if self.space is None else [f"--space={'FILE' if isinstance(self.space, dict) else self.space}"]
        return words + [word for name, value in given.items() if name != "space" for word in _words(name, value)]


class Keywords(TypedDict, total=False):
    """The keywords of `search.run.run`: the options that describe a search, with _ for -."""

    set: str | Sequence[str]
    data: str | Path
    encoder: str | Path
    trials: int
    hours: float
    gpus: int | Literal["auto"]
    gpus_per_trial: float
    cpus_per_trial: int
    seed: int
    from_: str
    name: str
    runs: str | Path
    tracking_uri: str
    address: str
    storage: str
    resume: str
    retries: int
    retry_failed: bool
    tensorboard: bool
    wandb: bool
    patience: float


def from_arguments(parsed: argparse.Namespace, arguments: Sequence[str]) -> SearchOptions:
    """Build the options from what `parser` has read; `arguments` is the command line itself."""
    values = {field.name: getattr(parsed, field.name) for field in fields(SearchOptions) if field.name != "typed"}
    return SearchOptions(**values | {"set": tuple(parsed.set or ()), "typed": tuple(arguments)})


def from_keywords(space: str | Path | dict[str, Any] | None, keywords: Mapping[str, Any]) -> SearchOptions:
    """Build the options from keywords of Python, where None stands for an option that is not given.

    Raises ValueError, with the command's message: an unknown keyword, or a value that its option does not accept.
    """
    if unknown := [name for name in keywords if name not in Keywords.__annotations__]:
        raise ValueError(f"Unknown option `{unknown[0]}`{did_you_mean(unknown[0], ['space', *Keywords.__annotations__])}")
    values: dict[str, Any] = {}
    for name, value in keywords.items():
        try:
            values |= {name: CHECKS[name](value)} if value is not None else {}
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"{_flag(name)}: {error}") from None
    return SearchOptions(space=shipped(user_path(space)) if isinstance(space, str | Path) else space, **values)


def _flag(name: str) -> str:
    return f"--{name.rstrip('_').replace('_', '-')}"


def _words(name: str, value: Any) -> list[str]:
    """Return an option as it is typed: `--trials=4`; a flag without its value; --set once per override."""
    if value is True:
        return [_flag(name)]
    return [f"{_flag(name)}={item}" for item in (value if isinstance(value, tuple) else [value])]


# -------------------------------------------------------------------------------------------------------------- checks


def positive(value: object) -> int:
    """Return a whole number of 1 or more.  Raises ArgumentTypeError, as all checks of this file do."""
    text = str(value)
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more. Got '{text}'.")
    return int(text)


def share(value: object) -> float:
    """Return a share of one GPU, in (0, 1]."""
    number = _number(value)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1: a trial or model trains on one GPU. Got '{value}'.")
    return number


def gpus(value: object) -> str:
    """Return `auto`, or a number of GPUs as text."""
    text = str(value)
    if text != "auto" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number or auto. Got '{text}'.")
    return text


def _amount(value: object) -> float:
    number = _number(value)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, as in 1.5. Got '{value}'.")
    return number


def _number(value: object) -> float:
    """Return the number that was given; NaN, which no bounds admit, for anything else."""
    try:
        return float(str(value))  # by its text: True is not a number here
    except ValueError:
        return math.nan


def _count(value: object) -> int:
    text = str(value)
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of 0 or more. Got '{text}'.")
    return int(text)


def _flag_value(value: object) -> bool:
    if not isinstance(value, bool):
        raise argparse.ArgumentTypeError(f"must be True or False. Got '{value}'.")
    return value


def _no_option(value: object) -> str:
    """Return a name that no command line takes for an option."""
    text = str(value)
    if text.startswith("-"):
        raise argparse.ArgumentTypeError(f"must not begin with -, as options do. Got '{text}'.")
    return text


def _name(value: object) -> str:
    text = _no_option(value)
    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"may consist of a-z, 0-9, _ and -. Got '{text}'.")
    return text


def _earlier(value: object) -> str:
    """Return the name of an earlier search, perhaps with a number of its trials: `NAME` or `NAME:N`."""
    text = str(value)
    name, colon, number = text.partition(":")
    if not NAME.fullmatch(name) or (colon and not (number.isdecimal() and int(number) > 0)):
        raise argparse.ArgumentTypeError(f"must be NAME, or NAME:N as in smart:3 for the three best of smart. Got '{text}'.")
    return text


def cluster_address(value: object) -> str:
    """Return `local`, `auto` or HOST:PORT."""
    text = str(value)
    host, _, port = text.rpartition(":")
    if text not in ("local", "auto") and not (host and port.isdecimal() and "/" not in host):
        raise argparse.ArgumentTypeError(f"must be HOST:PORT or auto. Got '{text}'.")
    return text


def storage_uri(value: object) -> str:
    """Return the URI of a storage, without secrets, because plan.json and messages have it."""
    text = str(value)
    scheme, _, rest = text.partition("://")
    if scheme not in STORAGES or not rest.strip("/"):
        known = ", ".join(f"{name}://" for name in STORAGES)
        raise argparse.ArgumentTypeError(f"must be a URI that begins with one of {known}. Got '{without_secrets(text)}'.")
    has_login = "@" in rest and not scheme.startswith("abfs")
    if has_login or re.search(r"(token|secret|key|sig|pass\w*)=", rest, re.IGNORECASE):
        raise argparse.ArgumentTypeError(
            f"must hold no password and no token, which every node takes from its environment. Got '{without_secrets(text)}'."
        )
    return text


def _space(text: str) -> Path:
    return shipped(Path(text))


def _store(value: object) -> str:
    try:
        return parse_tracking_uri(str(value))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _folder(value: object) -> Path:
    return user_path(str(value))


def _overrides(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list | tuple) else (str(value),)


CHECKS: dict[str, Callable[[object], Any]] = {  # what a keyword passes through; the parser uses the same functions
    "set": _overrides,
    "data": not_empty,
    "encoder": not_empty,
    "trials": positive,
    "hours": _amount,
    "gpus": gpus,
    "gpus_per_trial": share,
    "cpus_per_trial": positive,
    "seed": _count,
    "from_": _earlier,
    "name": _name,
    "runs": _folder,
    "tracking_uri": _store,
    "address": cluster_address,
    "storage": storage_uri,
    "resume": _no_option,
    "retries": _count,
    "retry_failed": _flag_value,
    "tensorboard": _flag_value,
    "wandb": _flag_value,
    "patience": _amount,
}


# ------------------------------------------------------------------------------------------------------------ the parser


class _Parser(argparse.ArgumentParser):
    """A parser whose errors repeat no password of an address, such as that of a mistyped --tracking-uri."""

    def error(self, message: str) -> NoReturn:
        super().error(without_secrets(message))


def parser() -> argparse.ArgumentParser:
    """Build the parser of `python -m search.run`."""
    command = _Parser(
        prog="python -m search.run",
        usage="python -m search.run --space FILE | --resume NAME [options]",
        description="Search for the best configuration of a space.",
        epilog="examples:\n  python -m search.run --space spaces/smart.yaml --data data/ --gpus 4\n"
        "  python -m search.run --resume smart --trials 64",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    what = command.add_argument_group("what")
    what.add_argument("--space", type=_space, metavar="FILE", help="the search space, YAML")
    what.add_argument(
        "--set", action="append", metavar="PATH=VALUE", help="override a value: optimizer/lr=2e-5; may be repeated"
    )
    what.add_argument("--data", type=not_empty, metavar="DIR", help="folder with the corpora, or toy")
    what.add_argument("--encoder", type=not_empty, metavar="NAME", help="pretrained BERT: hub name or folder, or tiny")
    what.add_argument(
        "--from", dest="from_", type=_earlier, metavar="NAME[:N]", help="learn from a search's trials; :N: its N best run first"
    )
    much = command.add_argument_group("how much")
    much.add_argument("--trials", type=positive, metavar="N", help="configurations to try, including baselines")
    much.add_argument("--hours", type=_amount, metavar="H", help="time limit; trials that would exceed it are paused")
    much.add_argument("--gpus", type=gpus, metavar="N|auto", help="GPUs to use; auto (default): all free GPUs here")
    much.add_argument("--gpus-per-trial", type=share, metavar="X", help="share of a GPU per trial (auto: a probe, N: 1)")
    much.add_argument("--cpus-per-trial", type=positive, metavar="N", help="CPU cores and threads per trial (default 1)")
    much.add_argument("--seed", type=_count, metavar="N", help="seed of the sampler and the trials (default 0)")
    much.add_argument(
        "--retries", type=_count, default=1, metavar="N", help="retries of a trial whose process dies (default 1)"
    )
    much.add_argument(
        "--patience", type=_amount, default=5.0, metavar="MINUTES", help="least silence that ends a hanging trial (default 5)"
    )
    where = command.add_argument_group("where")
    where.add_argument("--name", type=_name, metavar="NAME", help="its name (default: the space's, then -2, -3 …)")
    where.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of all searches (default runs)")
    where.add_argument("--tracking-uri", type=_store, metavar="URI", help="MLflow store: http://…, sqlite:///…, none")
    where.add_argument("--tensorboard", action="store_true", help="also write TensorBoard's files, in the search's folder")
    where.add_argument("--wandb", action="store_true", help="also log to Weights & Biases, a run per trial")
    where.add_argument(
        "--address", type=cluster_address, default="local", metavar="HOST:PORT", help="Ray cluster to join; auto: this node's"
    )
    where.add_argument("--storage", type=storage_uri, metavar="URI", help="s3://…, gs://… for nodes that share no disk")
    then = command.add_argument_group("before and after")
    then.add_argument("--dry-run", action="store_true", help="print the plan and the measured cost; start nothing")
    then.add_argument("--print", action="store_true", help="print the composed space as YAML; start nothing")
    then.add_argument("--prepare", action="store_true", help="do only what needs a network, on a login node")
    then.add_argument("--price", type=_amount, metavar="X", help="price per hour of a GPU (or of the CPU), for --dry-run")
    then.add_argument("--status", metavar="NAME", help="show the state of a search, from another shell")
    then.add_argument("--resume", type=_no_option, metavar="NAME", help="resume a search; with --space, start it if need be")
    then.add_argument("--retry-failed", action="store_true", help="with --resume: run the failed trials again")
    then.add_argument("--env", action="store_true", help="print versions, hardware and settings, for a bug report")
    then.add_argument("--version", action="version", version=f"minbert-search {own_version()}", help="print the version")
    then.add_argument("-h", "--help", action="help", help="print this help")
    return command
