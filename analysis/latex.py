"""A table for a report: table.tex, a booktabs tabular with one row per configuration and its caption as a comment.

The numbers are those of results.json, with four digits, as in table.md.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import Any

from analysis.ensembles import Ensemble
from analysis.results import Measured, Results, columns_of, objective_column
from analysis.selection import Selection
from minbert_core.config import Objective, TrialConfig
from search.report.words import describe, short

WIDTH = 100  # of the caption's lines
NAME = 20  # letters that are sure to fit into the first column, at 0.3 of a page's text
ESCAPED = {character: f"\\{character}" for character in "{}$&%#_"} | {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",  # these three are other signs in TeX's own text fonts
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}
METRICS = {
    "accuracy": "accuracy",
    "f1": "F1",
    "macro_f1": "macro F1",
    "pearson": "Pearson's $r$",
    "spearman": "Spearman's $r$",
}


def table_tex(selection: Selection, results: Results, ensembles: Sequence[Ensemble] = ()) -> str:
    r"""Build the text of table.tex. To \input it, a document needs \usepackage{booktabs}, nothing else.

    One block per split, test first if it has labels; ensembles follow the configurations. The best objective of a block is bold
    if its configuration beats the reference there, by `Comparison.verdict`; else nothing is bold.
    """
    config = selection.config
    columns = columns_of(config)
    splits = [split for split in ("test", "dev") if any(of.get(split) for of in results.configurations.values())]
    lines = [
        *(f"% {line}" for line in textwrap.wrap(_caption(selection, config, results), WIDTH, break_on_hyphens=False)),
        r"\begingroup\small\setlength{\tabcolsep}{4pt}",
        rf"\begin{{tabular}}{{@{{}}p{{0.3\linewidth}}{'c' * len(columns)}@{{}}}}",
        r"\toprule",
        " & ".join(["", *map(escape, columns)]) + r" \\",
    ]
    for split in splits:
        about = "dev, on which they were chosen" if split == "dev" else "test"
        lines += [r"\midrule", rf"\multicolumn{{{len(columns) + 1}}}{{@{{}}l}}{{\emph{{{about}}}}} \\"]
        bold = _bold(selection, config, results, split)
        for number, (name, differs) in names(selection, results).items():
            measured = results.configurations[number].get(split, {})
            cells = [_cell(measured.get(column), (number, column) == bold) for column in columns]
            called = f"{name} {differs}".strip() if split == splits[0] else name  # only once
            lines.append(" & ".join([rf"\raggedright {_breakable(called)}", *cells]) + r" \\")
        for of in ensembles:
            cells = [_cell(of.measured.get(split, {}).get(column), False) for column in columns]
            lines.append(" & ".join([rf"\raggedright {_breakable(of.about)}", *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\endgroup"]) + "\n"


def _caption(selection: Selection, config: TrialConfig, results: Results) -> str:
    """Write a full caption, to be shortened: what was tried, chosen and measured, and what bold means."""
    tasks = ", ".join(f"{escape(name)}: {METRICS[config.known_tasks[name].metric]}" for name in config.train_on)
    objective, about = escape(objective_column(config)), ""
    if "norm" in columns_of(config):
        about += f"; norm and mean are over {escape(', '.join(config.counted))}; norm takes $r$ as $(r + 1)/2$"
    if isinstance(config.objective, Objective):
        weights = " + ".join(f"{weight:g} {name}" for name, weight in config.objective.weights.items())
        about += f"; score: the mean of {escape(weights)}, $r$ as $(r + 1)/2$"
    elif objective == "score":
        about += "; score: $(r + 1)/2$"
    sentences = [
        f"Search {escape(selection.search.name)}: {escape(selection.choice)}.",
        _seeds(selection, results),
        f"{tasks}{about}.",
    ]
    if selection.reference and len(selection.seeds) > 1:
        reference = "reference" if selection.question else "baseline"
        sentences.append(
            f"Bold: the best {objective} of a block, if it beats the {reference}: $p \\leq .05$ of the difference, rows paired "
            "(Student's $t$ over rows and seeds, corrected after Holm for the comparisons of a block)."
        )
    if shared := _shared(selection):
        sentences.append(f"All: {escape(describe(shared))}.")
    return rf"\caption{{{' '.join(sentences)}}}"


def _seeds(selection: Selection, results: Results) -> str:
    """Describe the number of seeds, and the configurations for which some seeds failed."""
    if not selection.seeds:
        return "One seed: the weights that the search kept."
    fewer = {number: len(of["dev"]["score"].values) for number, of in results.configurations.items()}
    left_out = [f"{selection.name(number)}: {found}" for number, found in fewer.items() if found < len(selection.seeds)]
    but = f" (the others failed; {', '.join(left_out)})" if left_out else ""
    if len(selection.seeds) == 1:
        return f"One fresh seed each{but}."
    return f"Mean, and standard deviation as index, over {len(selection.seeds)} fresh seeds{but}."


def names(selection: Selection, results: Results) -> dict[int, tuple[str, str]]:
    """Name each configuration briefly: `003 (baseline)`, and the parameters that differ between configurations."""
    shared = _shared(selection)
    return {
        trial.number: (
            selection.called(trial),
            describe({path: value for path, value in trial.params.items() if path not in shared}),
        )
        for trial in selection.trials
        if trial.number in results.configurations
    }


def _shared(selection: Selection) -> dict[str, Any]:
    """Return the parameters in which all configurations agree; none if there is only one configuration."""
    first, *others = [trial.params for trial in selection.trials]
    shared = {path: value for path, value in first.items() if all((path, value) in other.items() for other in others)}
    return shared if others else {}


def escape(text: str) -> str:
    """Escape the special characters of LaTeX."""
    return re.sub(r"[\\{}$&%#_^~<>|]", lambda found: ESCAPED[found[0]], text)


def _breakable(text: str) -> str:
    """Escape text, and allow breaks after signs in words that are too long for the column."""
    return " ".join(
        re.sub(r"(\\_|[=/+])", r"\1\\allowbreak ", escape(word)) if len(word) > NAME else escape(word)
        for word in text.split(" ")
    )


def _bold(selection: Selection, config: TrialConfig, results: Results, split: str) -> tuple[int, str] | None:
    """Return the cell (trial, column) to print in bold: the best objective of a split, if it beats the reference there."""
    column = objective_column(config)
    means = {number: of[split][column].mean for number, of in results.configurations.items() if column in of.get(split, {})}
    best = max(means, key=lambda number: means[number], default=None)
    verdicts = {(of.split, of.first, of.second): of.verdict for of in results.comparisons}
    if best is None or selection.reference is None or verdicts.get((split, best, selection.reference.number)) != "beats":
        return None
    return best, column


def _cell(measured: Measured | None, is_bold: bool) -> str:
    """Format a cell: `$.7350_{\\pm.0041}$`, without deviation for a single seed, `--` for a split without labels."""
    if measured is None:
        return "--"
    mean = rf"\mathbf{{{short(measured.mean)}}}" if is_bold else short(measured.mean)
    deviation = "" if measured.deviation is None else rf"_{{\pm{short(measured.deviation)}}}"
    return f"${mean}{deviation}$"
