"""The options of the commands that retrain, best_to_test and replicate."""

from __future__ import annotations

import argparse
from pathlib import Path

from analysis.sources import add_runs, command_parser
from minbert_core.commands import not_empty
from search.options import cluster_address, gpus, positive, share


def best_to_test_parser() -> argparse.ArgumentParser:
    """Return the parser of best_to_test."""
    description = "Retrain a search's best configurations over fresh seeds, then test them and their ensembles."
    examples = "--search smart --top 2 --config mine.yaml\n--search smart --per smoothness --seeds 5"
    parser = command_parser("best_to_test", "[--search NAME] [options]", description, examples, add_help=False)
    group = parser.add_argument_group("options")
    group.add_argument("--search", metavar="NAME", help="default: the newest finished one that is not toy")
    group.add_argument("--top", type=positive, metavar="K", help="best configurations to test (default 3)")
    group.add_argument("--per", metavar="CHOICE", help="test the best of each branch of a choice instead: smoothness")
    of_yours = "test a configuration of yours too; data, encoder, tasks and budget that it leaves out are the search's"
    group.add_argument("--config", type=Path, action="append", default=[], metavar="FILE", help=of_yours)
    group.add_argument("--seeds", type=positive, default=3, metavar="N", help="fresh seeds per configuration (default 3)")
    group.add_argument("--no-retrain", action="store_true", help="test the weights that the search kept, one seed each")
    group.add_argument("--no-baseline", action="store_true", help="leave out the space's baseline")
    group.add_argument("--data", type=not_empty, metavar="DIR", help="the search's data folder, if it was moved")
    group.add_argument("--encoder", type=not_empty, metavar="NAME", help="its encoder's folder, if it was moved")
    add_machine(group, "as in the search", "print the plan; open and start nothing")
    return parser


def replicate_parser() -> argparse.ArgumentParser:
    """Return the parser of replicate."""
    description = "Run the rows of a paper over fresh seeds, and compare them with its figures."
    examples = "--paper P3 --rows gs_con gv_rr --dry-run\n--paper P1 --part 0.05 --seeds 2 --gpus 4"
    parser = command_parser("replicate", "--paper P1 [options]", description, examples, add_help=False)
    group = parser.add_argument_group("options")
    group.add_argument("--paper", required=True, metavar="NAME", help="a file of spaces/papers: P1, P2, P2_YELP, P3 …")
    group.add_argument("--rows", nargs="+", metavar="ROW", help="only these rows, and the first to compare with")
    group.add_argument("--seeds", type=positive, default=3, metavar="N", help="fresh seeds per row (default 3)")
    group.add_argument(
        "--part", type=part_of_budget, default=1.0, metavar="X", help="share of each budget to train (default 1)"
    )
    group.add_argument("--data", type=not_empty, metavar="DIR", help="folder with the corpora, or toy")
    group.add_argument("--encoder", type=not_empty, metavar="NAME", help="another encoder: hub name, folder, tiny")
    about_set = "of the machine: precision, micro_batch_tokens …"
    group.add_argument("--set", action="append", default=[], type=of_the_machine, metavar="machine/X=V", help=about_set)
    group.add_argument("--name", metavar="NAME", help="the search's name (default: the paper's)")
    add_machine(group, "1", "print the plan and the search's cost; start nothing")
    return parser


def part_of_budget(text: str) -> float:
    """Parse a share of a budget, in (0, 1], for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1. Got '{text}'.")
    return value


def of_the_machine(text: str) -> str:
    """Check, for argparse, that an override is a setting of the machine, so that the paper's settings stay as they are."""
    if not text.startswith("machine/"):
        raise argparse.ArgumentTypeError(f"must begin with machine/, because all other settings are the paper's. Got '{text}'.")
    return text


def add_machine(group: argparse._ArgumentGroup, cores: str, dry_run: str) -> None:
    """Add --runs, the options of the machine, --dry-run and --help.  cores: the default number, in words."""
    add_runs(group)
    group.add_argument("--gpus", type=gpus, default="auto", metavar="N|auto", help="GPUs to use; auto (default): all free ones")
    group.add_argument("--gpus-per-trial", type=share, metavar="X", help="share of a GPU that a model takes (default 1)")
    group.add_argument("--cpus-per-trial", type=positive, metavar="N", help=f"CPU cores per model (default: {cores})")
    cluster = "Ray cluster to join, or auto"
    group.add_argument("--address", type=cluster_address, default="local", metavar="HOST:PORT", help=cluster)
    group.add_argument("--dry-run", action="store_true", help=dry_run)
    group.add_argument("-h", "--help", action="help", help="print this")


def check_together(options: argparse.Namespace) -> None:
    """Raise ValueError if two options of best_to_test contradict each other."""
    if options.per is not None and options.top is not None:
        raise ValueError("--per tests one configuration per branch, so --top has no meaning with it. Omit one of the two.")
    if options.per is not None and options.no_retrain:
        raise ValueError(
            "--per compares over fresh seeds, but --no-retrain has one seed and only the weights that the search kept. "
            "Omit one of the two."
        )
    if options.config and options.per is not None:
        raise ValueError("--per compares branches of the search, and --config is of no branch. Omit one of the two.")
    if options.config and options.no_retrain:
        raise ValueError("--config adds a configuration to train, but --no-retrain trains nothing. Omit one of the two.")
