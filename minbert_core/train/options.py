"""The command line of `python -m minbert_core.train`. It is checked before torch is imported."""

from __future__ import annotations

import argparse
from pathlib import Path

from minbert_core.commands import not_empty


def parser() -> argparse.ArgumentParser:
    """Return the parser of `python -m minbert_core.train`."""
    made = argparse.ArgumentParser(
        prog="python -m minbert_core.train",
        usage="%(prog)s CONFIG.yaml [options]",
        description="Train one configuration, without a search.",
        epilog="examples:\n  python -m minbert_core.train my.yaml --data data/ --set optimizer/lr=2e-5\n"
        "  python -m minbert_core.train runs/smart/trials/007/config.yaml   (repeats it)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = made.add_argument_group("what")
    what.add_argument(
        "config", type=Path, metavar="CONFIG.yaml", help="a configuration, for example the config.yaml of a trial"
    )
    what.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="override a value, for example gradient=pcgrad"
    )
    what.add_argument("--data", type=not_empty, metavar="DIR", help="folder with the tasks' files, or toy")
    what.add_argument("--encoder", type=not_empty, metavar="NAME", help="hub name or folder of a BERT, or tiny")
    about = "train+dev: train on dev too, so without a dev score"
    what.add_argument("--on", choices=["train", "train+dev"], metavar="ROWS", help=about)
    where = made.add_argument_group("where")
    where.add_argument("--to", type=Path, metavar="DIR", help="folder to train in (default trained/CONFIG)")
    check = made.add_argument_group("instead")
    check.add_argument("--print", action="store_true", help="print the configuration with all overrides as YAML")
    check.add_argument(
        "--overfit",
        type=_few,
        nargs="?",
        const=16,
        metavar="N",
        help="check that each task can fit N examples (default 16)",
    )
    return made


def _few(text: str) -> int:
    if not text.isdecimal() or not 2 <= int(text) <= 512:
        raise argparse.ArgumentTypeError(f"must be a whole number of examples from 2 to 512. Got '{text}'.")
    return int(text)
