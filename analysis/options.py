"""The options of the commands that read searches and write figures, tables or a page. Those that retrain: retrain_options.py.

A command checks its line with these before it imports what takes seconds, so --help and a mistyped option end at once.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from analysis.sources import add_figures, add_runs, command_parser, sources_parser
from minbert_core.commands import not_empty
from search.options import positive

BINS = 10  # of equal width, for calibration and labels
WORST = 5  # rows of errors
ROWS = ("trials", "evaluations", "training")  # of a file of runs
SUFFIXES = (".parquet", ".csv", ".jsonl")  # of a file of runs
EXPORTS = ("transformers", "sentence-transformers", "mlflow", "onnx")  # export_to/ has a file for each
SIMULATED = ("random", "random+asha", "random+top_k", "tpe", "tpe+asha", "tpe+top_k")  # unless others are named
LEAST_REPETITIONS = 20  # fewer give no interval


def report_parser() -> argparse.ArgumentParser:
    """Return the parser of report."""
    description = "Write one page about a search, as an HTML file that needs no network."
    parser = command_parser("report", "NAME [--to FILE]", description, "smart\nsmart --to smart.html")
    parser.add_argument("name", metavar="NAME", help="a search")
    add_runs(parser)
    parser.add_argument("--no-errors", action="store_true", help="do not run the best model on dev, which takes longest")
    parser.add_argument("--to", type=Path, metavar="FILE", help="the page (default runs/NAME/report.html)")
    return parser


def runs_parser() -> argparse.ArgumentParser:
    """Return the parser of runs."""
    examples = "smart --out smart.parquet    # for the other analyses\nsmart --rows evaluations --out evaluations.csv"
    about = "The trials of one or more searches, finished or running, best first."
    parser = command_parser("runs", "[NAME ...] [--runs DIR] [--out FILE]", about, examples)
    parser.add_argument("names", nargs="*", metavar="NAME", help="searches (default: all)")
    add_runs(parser)
    parser.add_argument("--out", type=_out, metavar="FILE", help="also write all trials and columns: .parquet, .csv, .jsonl")
    law = (
        "one row per trial (default), per evaluation or per training record; .parquet files of trials hold the others as lists"
    )
    parser.add_argument("--rows", choices=ROWS, default="trials", metavar="ROWS", help=f"of --out: {law}")
    return parser


def importance_parser() -> argparse.ArgumentParser:
    """Return the parser of importance."""
    description = (
        "Which choices mattered: PED-ANOVA over all trials and fANOVA within each branch, overall and per task, with bootstrap "
        "intervals, marginal plots, and the two parameters that interact most. "
        "Fewer than ten trials, or shares that shuffled scores reach too, get no answer."
    )
    examples = "smart --target sts\nsmart.parquet --to figures"
    parser = sources_parser("importance", description, examples, "[--target METRIC] ")
    parser.add_argument("--rung", type=int, metavar="N", help="rung to compare at (default: the highest that all reached)")
    parser.add_argument("--target", metavar="METRIC", help="score, a task, mean, norm (default: score and tasks)")
    return parser


def compare_parser() -> argparse.ArgumentParser:
    """Return the parser of compare."""
    description = (
        "Compare searches, branches of a choice, or trials, at equal examples and at equal cost: distributions, paired "
        "differences with intervals, the Pareto front of the tasks, and the choices on which the tasks disagree."
    )
    examples = "smart gradvac\nsmart --by smoothness"
    parser = sources_parser("compare", description, examples, "[--by PATH] [--rung N] ")
    parser.add_argument("--by", metavar="PATH", help="groups: branches of this choice, or `recipe`")
    parser.add_argument("--trials", nargs="+", type=int, metavar="N", help="groups: these trials of one search")
    parser.add_argument("--rung", type=int, metavar="N", help="rung to compare at (default: the highest that all reached)")
    return parser


def curves_parser() -> argparse.ArgumentParser:
    """Return the parser of curves."""
    description = (
        "Learning curves of a search: which trials were stopped where, how well each rung predicts the end (rank correlations "
        "per recipe and task), what a later first rung would have cost, and conflicts between the tasks' gradients, over "
        "time and against the outcome."
    )
    return sources_parser("curves", description, "smart\nsmart.parquet --to figures --formats png")


def errors_parser() -> argparse.ArgumentParser:
    """Return the parser of errors."""
    description = (
        "What a model gets wrong on dev: confusion matrices, precision and recall per class, calibration, values against "
        "labels, errors by length and by label, and the worst rows with their text. With a second MODEL: the rows on which "
        "the two disagree."
    )
    examples = "runs/smart\nruns/smart runs/smart/trials/003/best --tasks sts"
    parser = command_parser("errors", "MODEL [MODEL] [--tasks TASK ...] [--to DIR]", description, examples)
    law = "runs/NAME (its best model), a trial's folder, a best/ folder, or one of runs/NAME/test/retrained/"
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help=law)
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these tasks (default: all of the model)")
    parser.add_argument("--worst", type=positive, default=WORST, metavar="N", help=f"rows to show per task (default {WORST})")
    parser.add_argument("--bins", type=positive, default=BINS, metavar="N", help=f"bins of calibration (default {BINS})")
    parser.add_argument("--data", type=not_empty, metavar="DIR", help="the model's data folder, if it was moved")
    add_figures(parser, "figures/ in the folder of the search or model")
    return parser


def export_parser() -> argparse.ArgumentParser:
    """Return the parser of export."""
    description = "Export a model to other libraries, with model cards. Each export is loaded again and compared."
    examples = "runs/smart\nruns/smart --to exported --as transformers onnx"
    parser = command_parser("export", "MODEL [--to DIR] [--as FORMAT ...] [options]", description, examples)
    law = "runs/NAME (its best model), a best/ folder, or one of runs/NAME/test/retrained/"
    parser.add_argument("model", type=Path, metavar="MODEL", help=law)
    parser.add_argument("--to", type=Path, metavar="DIR", help="default: exported/ in the folder of the search or model")
    formats = f"{', '.join(EXPORTS)} (default: all that fit)"
    parser.add_argument("--as", nargs="+", choices=EXPORTS, dest="formats", metavar="FORMAT", help=formats)
    parser.add_argument("--license", default="", metavar="ID", help="of the weights, for the card: apache-2.0, mit, …")
    parser.add_argument("--base-model", default="", metavar="NAME", help="the encoder on the hub, if it was a folder")
    parser.add_argument("--language", default="", metavar="CODE", help="of the texts (the course's: en)")
    parser.add_argument("--register", metavar="NAME", help="register the MLflow export under this name")
    parser.add_argument("--alias", default="", metavar="ALIAS", help="move this alias to that version: champion")
    parser.add_argument("--tracking-uri", metavar="URI", help="store for --register (default: the search's)")
    return parser


def simulate_parser() -> argparse.ArgumentParser:
    """Return the parser of simulate."""
    description = (
        "Replay the whole learning curves of a search through the searcher, samplers and trial schedulers of a real one: the "
        "share of a budget at which each method reaches what random search finds with all of it, its regret over the budget, "
        "and how often it stops the best configuration early. Nothing is trained."
    )
    examples = "smart-curves --workers 8 --budget 30\nsmart.parquet --methods random+asha tpe+top_k"
    parser = sources_parser("simulate", description, examples, "[--methods M ...] ")
    law = "SAMPLER+SCHEDULER, each as in a space"
    parser.add_argument("--methods", nargs="+", default=SIMULATED, metavar="M", help=f"{law} (default {', '.join(SIMULATED)})")
    parser.add_argument("--budget", type=_budget, default=20.0, metavar="X", help="in full trials of mean cost (default 20)")
    parser.add_argument("--workers", type=positive, default=4, metavar="N", help="trials at a time (default 4)")
    parser.add_argument("--rungs", type=positive, nargs="+", metavar="N", help="some of the recorded rungs (default 1 3 9)")
    law = "what --from NAME saves: learning samplers again, knowing N trials of an earlier random search"
    parser.add_argument("--known", type=positive, default=0, metavar="N", help=law)
    parser.add_argument("--repetitions", type=_repetitions, default=200, metavar="N", help="of each method (default 200)")
    return parser


def _budget(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"must be a number of full trials from 1 to 1000. Got '{text}'.")
    return value


def _repetitions(text: str) -> int:
    if (value := positive(text)) < LEAST_REPETITIONS:
        raise argparse.ArgumentTypeError(f"must be {LEAST_REPETITIONS} or more, since intervals come from them. Got '{text}'.")
    return value


def _out(text: str) -> Path:
    path = Path(text)
    if path.suffix not in SUFFIXES:
        raise argparse.ArgumentTypeError(f"must end in {', '.join(SUFFIXES)}, which says the format. Got '{text}'.")
    return path
