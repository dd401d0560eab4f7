"""A table of the published and the measured figures of a paper's rows, and whether the two may be compared.

    rows of spaces/papers, results.json of best_to_test, circumstances -> reasons -> lines of replicate.md

Plain data in, lines out. Under the papers' circumstances (their encoder, their rows, whole budgets) the table shows the
difference between the measured and the published figure, and which noise explains it. Under other circumstances it calls
nothing a replication, and compares each row's distance from the paper's first row, published and measured.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.intervals import t_quantile
from analysis.results import SPLITS
from analysis.test_table import wrapped
from minbert_core.config import OVERALL
from minbert_core.data.tasks import TASKS
from minbert_core.words import counted
from search.papers import Row, printed
from search.report.words import markdown, short

ENCODER, SHAPE = "bert-base-uncased", (768, 12, 30_522)  # the papers' encoder: name; hidden size, layers, vocabulary
TRAIN_ROWS = {"sst": 8_544, "para": 141_498, "sts": 6_040, "cfimdb": 1_707}  # usable rows of the course's files
DEV_ROWS = {"sst": 1_101, "para": 20_212, "sts": 863, "cfimdb": 245}

NO_OWN_TASK = (*TASKS, *OVERALL, "score")

Figures = Mapping[str, Any]  # of one column: mean, deviation, interval, values; as results.json has them
Measurement = Mapping[str, Mapping[str, Figures]]  # dev or test -> column -> figures


@dataclass(frozen=True)
class Circumstances:
    """The encoder, data and budget that the rows were run with."""

    encoder: str  # as it was named: a hub name, a folder, tiny
    shape: tuple[int, int, int]  # hidden size, layers, vocabulary
    data: str
    train_rows: Mapping[str, int]
    dev_rows: Mapping[str, int]
    part: float  # of each row's budget
    num_seeds: int

    def reasons(self) -> list[str]:
        """List the reasons why a figure may not be compared with a paper's, as ends of a sentence; empty if it may."""
        reasons = []
        if self.shape != SHAPE or (self.is_hub_name and self.encoder.rpartition("/")[2] != ENCODER):
            reasons.append(f"the encoder is {self.encoder}, theirs {ENCODER}")
        for split, rows, theirs in (("train", self.train_rows, TRAIN_ROWS), ("dev", self.dev_rows, DEV_ROWS)):
            other = {task: size for task, size in rows.items() if task in theirs and size != theirs[task]}
            reasons += [f"{task} has {size:,} {split} rows, theirs {theirs[task]:,}" for task, size in other.items()]
        if self.part != 1:
            reasons.append(f"each row was trained for {self.part:g} of its budget")
        return reasons

    @property
    def is_hub_name(self) -> bool:
        return not self.encoder.startswith(("/", ".", "~"))

    def lines(self) -> list[str]:
        """Describe encoder, data, budget and seeds, for the table's head."""
        hidden, layers, _ = self.shape
        rows = ", ".join(f"{task} {size:,}/{self.dev_rows[task]:,}" for task, size in self.train_rows.items())
        budget = "whole" if self.part == 1 else f"{self.part:g} of each row's"
        return [
            f"Encoder: {self.encoder} ({hidden} wide, {counted(layers, 'layer')}). Data: {self.data} (train/dev rows: {rows}).",
            f"Budget: {budget}. Seeds: {counted(self.num_seeds, 'fresh seed')} per row.",
        ]


def replication_lines(
    title: str,
    rows: Sequence[Row],
    measured: Mapping[str, Measurement],
    circumstances: Circumstances,
    missing: Mapping[str, str],
) -> list[str]:
    """Build the whole report of a paper.

    measured: row name -> figures from best_to_test. missing: row name -> why it has no figures. If a comparison with the
    paper's figures is not possible, the rows are compared with the first of `rows`.
    """
    reasons = circumstances.reasons()
    heading = f"Not a replication: {'; '.join(reasons)}." if reasons else "A replication, in encoder, data and budget."
    columns = _columns(rows, measured)
    table = [["row", "", *columns]]
    for row in rows:
        if row.name in measured:
            base = measured.get(rows[0].name) if reasons and row is not rows[0] else None
            table += _cells(row, rows[0], measured[row.name], base, columns, compares=not reasons)
    paragraphs = [
        [f"# {title}"],
        [heading],
        circumstances.lines(),
        [f"{name} is missing: {reason}" for name, reason in missing.items()],
        markdown(table),
        [f"{row.name}: {row.about}" for row in rows if row.about],
        _legend(circumstances, columns, rows[0].name, is_replication=not reasons),
    ]
    lines: list[str] = []
    for paragraph in paragraphs:
        lines += [text for line in paragraph for text in wrapped(line)] + ([""] if paragraph else [])
    return lines[:-1]


def _columns(rows: Sequence[Row], measured: Mapping[str, Measurement]) -> list[str]:
    """List the columns that a paper prints and we measure; norm and mean if it prints no overall score."""
    printed = dict.fromkeys(column for row in rows for figures in row.published.values() for column in figures)
    found = dict.fromkeys(column for splits in measured.values() for column in splits.get("dev", {}))
    course, own = [task for task in TASKS if task in found], [column for column in found if column not in NO_OWN_TASK]
    scores = [column for column in OVERALL if column in printed] or [column for column in OVERALL if column in found]
    return [*course, *own, *scores]


def _cells(
    row: Row, first: Row, measured: Measurement, base: Measurement | None, columns: list[str], compares: bool
) -> Iterator[list[str]]:
    """Yield the lines of one row: published, then measured, on dev and, if there are figures, on test."""
    label = row.name
    for split in SPLITS:
        published, found = row.published.get(split, {}), measured.get(split, {})
        if published or split == "dev":
            yield [label, f"{split}, published", *(_published(published.get(column)) for column in columns)]
            label = ""
        if found or published:
            yield [label, f"{split}, measured", *(_measured(found.get(column)) for column in columns)]
        if compares and published and found:
            yield ["", "difference", *(_difference(published.get(column), found.get(column)) for column in columns)]
        if base is not None and split == "dev":
            theirs = [_plain_difference(published.get(c), first.published.get(split, {}).get(c)) for c in columns]
            ours = [_paired_difference(found.get(column), base.get(split, {}).get(column)) for column in columns]
            yield ["", f"from {first.name}, published", *theirs]
            yield ["", f"from {first.name}, measured", *ours]


def _published(figure: float | None) -> str:
    return "" if figure is None else printed(figure)


def _measured(figures: Figures | None) -> str:
    if figures is None:
        return "no labels"
    return short(figures["mean"]) + (f" ± {short(figures['deviation'])}" if figures["deviation"] is not None else "")


def _difference(published: float | None, figures: Figures | None) -> str:
    if published is None or figures is None:
        return ""
    return f"{short(figures['mean'] - published, '+')} ({noise_around(published, figures)})"


def noise_around(published: float, figures: Figures) -> str:
    """Name the noise that explains the difference of a published figure and our mean: `seeds`, `rows`, or `neither`.

    seeds: it is within the 95 % prediction interval of one more run of ours, t s sqrt(1 + 1/n) with n - 1 degrees of freedom
    (Whitmore 1986), on the rows that both answered. rows: it is within the 95 % interval of our mean, which covers other rows
    of the same kind and is therefore wider than necessary. A perfect replication is `neither` in at most 5 % of cases.
    """
    deviation, (low, high) = figures["deviation"], figures["interval"]
    if deviation is not None:
        n = len(figures["values"])
        if abs(figures["mean"] - published) <= t_quantile(n - 1) * deviation * math.sqrt(1 + 1 / n):
            return "seeds"
    return "rows" if low <= published <= high else "neither"


def _plain_difference(figure: float | None, first: float | None) -> str:
    return "" if figure is None or first is None else short(figure - first, "+", digits=3)


def _paired_difference(figures: Figures | None, first: Figures | None) -> str:
    """Format the mean difference over the seeds, which all rows share, and its standard deviation."""
    if figures is None or first is None:
        return ""
    values, firsts = figures["values"], first["values"]
    text = short(statistics.fmean(values) - statistics.fmean(firsts), "+")
    if len(values) != len(firsts) or len(values) < 2:  # a seed failed, or there is one
        return text
    return f"{text} ± {short(statistics.stdev(a - b for a, b in zip(values, firsts, strict=True)))}"


def _legend(circumstances: Circumstances, columns: list[str], first: str, is_replication: bool) -> list[str]:
    """Explain the figures and the kinds of noise."""
    num_seeds = circumstances.num_seeds
    what = f"Published: one run each, as printed. Measured: mean{' ± standard deviation' if num_seeds > 1 else ''} over "
    what += f"{counted(num_seeds, 'seed')} that the search had not used, each the best of its evaluations on dev."
    if not is_replication:
        return [
            what,
            f"No published figure is compared with one of ours. From {first}: the row's distance from the paper's first, in "
            "the paper and here (deviation of the seeds' differences); other circumstances may change it as well.",
        ]
    return [
        what,
        "Difference: measured minus published. (seeds): within the 95 % prediction interval of one more run of ours, "
        "t s √(1 + 1/n)"
        + (", which is wide for few seeds" if 1 < num_seeds < 5 else "")
        + ("; unknown from one seed" if num_seeds == 1 else "")
        + "; (rows): not so, but within our 95 % interval over other dev rows of the same kind, the finite split's noise; "
        "(neither): beyond both.",
    ]
