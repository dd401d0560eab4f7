"""The lines of best_to_test's report about ensembles, and about rows of dev and test that occur in train too."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.ensembles import Ensemble
from analysis.intervals import CONFIDENCE, Estimate
from analysis.overlap import Overlap
from analysis.printing import p_value
from analysis.results import SPLITS, Measured, Results, columns_of
from analysis.selection import Selection
from analysis.test_table import wrapped
from minbert_core.words import counted
from search.report.words import markdown, short


def ensemble_lines(selection: Selection, ensembles: Sequence[Ensemble]) -> list[str]:
    """Report each ensemble's scores with intervals, and whether it beats single models."""
    if not ensembles:
        return []
    columns = columns_of(selection.config)
    rows = [["ensemble", "split", *columns]]
    for of in ensembles:
        splits = [split for split in SPLITS if of.measured.get(split)]
        for i, split in enumerate(splits):
            found = of.measured[split]
            rows.append([of.about if not i else "", split, *(_cell(found[c]) if c in found else "no labels" for c in columns)])
    several = len(selection.seeds) > 1
    covers = "rows and seeds (jackknife)" if several else "rows, not seeds"
    lines = [f"An ensemble averages the logits of its models. 95 % intervals over {covers}."]
    split = next(split for split in reversed(SPLITS) if split in ensembles[0].measured)
    lines += [_difference(selection, of, split) for of in ensembles if "score" in of.measured[split]]
    return [*markdown(rows), "", *(row for line in lines for row in wrapped(line)), ""]


def _cell(found: Measured) -> str:
    return f"{short(found.mean)} [{short(found.low)}, {short(found.high)}]"


def _difference(selection: Selection, of: Ensemble, split: str) -> str:
    """Say by how much an ensemble differs from single models of a configuration."""
    singles = f"the mean of the single models of {selection.name(of.against)}"
    if split not in of.differences:
        return f"- {of.about}, on {split}: not compared with {singles}, because some seeds failed."
    found, p = of.differences[split], of.corrected_p.get(split)
    verdict = "no verdict from one seed" if p is None else f"{p_value(p)}, {_word(found, p)}"
    interval = f"[{short(found.low, '+')}, {short(found.high, '+')}]"
    return f"- {of.about}, on {split}: {short(found.mean, '+')} {interval} against {singles}; {verdict}."


def _word(found: Estimate, p: float) -> str:
    if p > 1 - CONFIDENCE:
        return "cannot be told from them"
    return "beats them" if found.mean > 0 else "loses to them"


def overlap_lines(selection: Selection, results: Results, overlaps: Sequence[Overlap]) -> list[str]:
    """Report each task's metric with and without the rows whose texts occur in train."""
    if not overlaps:
        return []
    rows = [["task", "split", "rows", "also in train", "trial", "all rows", "without those"]]
    for of in overlaps:
        for i, (number, found) in enumerate(of.measured.items()):
            about = [of.task, of.split, str(of.size), str(of.seen)] if not i else [""] * 4
            whole = results.configurations[number][of.split][of.task]
            rows.append([*about, selection.name(number), _cell(whole), _cell(found)])
    none = [f"All {counted(of.seen, 'row')} of {of.task} on {of.split} occur in train." for of in overlaps if not of.measured]
    law = "Rows whose texts are those of a training row, pairs in any order: a model may know their labels by heart."
    return [*wrapped(law), *(markdown(rows) if len(rows) > 1 else []), *none, ""]
