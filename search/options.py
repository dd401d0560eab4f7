"""The options of a search's command line: what each means, and what is refused before anything is looked at."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from search.domains import NAME
from search.environment import own_version
from search.tracking import parse_tracking_uri


def parser() -> argparse.ArgumentParser:
    """The parser of `python -m search.run`."""
    made = argparse.ArgumentParser(
        prog="python -m search.run",
        description="Search for the best configuration of a space.",
        epilog="examples:\n  python -m search.run --space spaces/smart.yaml --data data/ --gpus 4\n"
        "  python -m search.run --resume smart --trials 64",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = made.add_argument_group("what")
    what.add_argument("--space", type=Path, metavar="FILE", help="the search space, YAML")
    what.add_argument("--set", action="append", metavar="PATH=VALUE", help="override a value of the space: optimizer/lr=2e-5")
    what.add_argument("--data", metavar="DIR", help="folder with the course's files, or toy")
    what.add_argument("--encoder", metavar="NAME", help="hub name or folder of the pretrained BERT, or tiny")
    much = made.add_argument_group("how much")
    much.add_argument("--trials", type=_positive, metavar="N", help="configurations to try, baselines included")
    much.add_argument("--hours", type=_amount, metavar="H", help="time to spend; what would not reach its next point pauses")
    much.add_argument("--gpus", type=_gpus, metavar="N|auto", help="GPUs to use; auto (default): all of this machine's")
    much.add_argument("--gpus-per-trial", type=_share, metavar="X", help="GPUs a trial, may be a fraction (default 1)")
    much.add_argument("--cpus-per-trial", type=_positive, metavar="N", help="CPU cores and threads a trial (default 1)")
    much.add_argument("--seed", type=_seed, metavar="N", help="of the sampler and of the trials (default 0)")
    where = made.add_argument_group("where")
    where.add_argument("--name", type=_name, metavar="NAME", help="of the search (default: the space's, then -2, -3 …)")
    where.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="of all searches")
    where.add_argument(
        "--tracking-uri", type=_store, metavar="URI", help="MLflow server or file to log to: http://…, sqlite:///…"
    )
    where.add_argument("--address", type=_address, default="local", metavar="HOST:PORT", help="a Ray cluster to join")
    then = made.add_argument_group("before and after")
    then.add_argument("--dry-run", action="store_true", help="print the plan, samples and the measured cost; start nothing")
    then.add_argument("--price", type=_amount, metavar="X", help="of a GPU-hour (on the CPU: of the machine's), for --dry-run")
    then.add_argument("--env", action="store_true", help="print versions, hardware, places and settings, for a bug report")
    then.add_argument("--version", action="version", version=f"minbert-search {own_version()}")
    then.add_argument("--status", metavar="NAME", help="how a search goes that runs elsewhere, or has ended; changes nothing")
    then.add_argument("--resume", metavar="NAME", help="go on with a search that was interrupted, or give it more --trials")
    return made


def _positive(text: str) -> int:
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


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf or (value > 1 and value != int(value)):
        raise argparse.ArgumentTypeError(f"must be a fraction of one GPU, or a whole number of GPUs. Got '{text}'.")
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


def _gpus(text: str) -> str:
    if text != "auto" and not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be a whole number or auto. Got '{text}'.")
    return text
