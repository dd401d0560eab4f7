"""The command line of `python -m search.space`. It is checked before the knobs are imported, which takes seconds."""

from __future__ import annotations

import argparse
from pathlib import Path

from search.shipped import SCHEMA


def parser() -> argparse.ArgumentParser:
    """Return the parser of `python -m search.space`."""
    made = argparse.ArgumentParser(
        prog="python -m search.space",
        usage="%(prog)s [PATH] [options]",
        description="List the knobs of a search space, with range, default, unit and paper.",
        epilog="examples:\n  python -m search.space | grep lr\n  python -m search.space gradient/gradvac",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("path", nargs="?", metavar="PATH", help="explain one: optimizer/lr, smart, tasks.all.head, trials, int")
    made.add_argument(
        "--schema",
        nargs="?",
        type=Path,
        const=SCHEMA,
        metavar="FILE",
        help="write the JSON schema with which an editor completes and checks a space. Default FILE: spaces/schema.json, which "
        "the shipped spaces name. - is the screen",
    )
    about = "check a plugin's variants by short trials on the toy corpus"
    made.add_argument("--check", type=Path, metavar="FILE.py", help=about)
    made.add_argument("--table", action="store_true", help="write the table of methods in README.md, after a variant was added")
    return made


def papers_parser() -> argparse.ArgumentParser:
    """Return the parser of `python -m search.papers`."""
    return argparse.ArgumentParser(
        prog="python -m search.papers",
        description="List the papers' rows: distance from our defaults, published figures.",
        epilog="examples:\n  python -m search.papers | grep P3\n  python -m search.papers | head",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
