"""The answer of best_to_test in words: a table of claimed and measured scores, the verdicts, and the prediction files."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from analysis.branches import Branch
from analysis.intervals import Estimate
from analysis.results import SPLITS, Comparison, Measured, Results, columns_of, objective_name
from analysis.selection import Selection
from minbert_core.config import TrialConfig
from minbert_core.words import counted
from search.report.words import describe, markdown, short

WIDTH = 160  # of the terminal that the report is written for


def report_lines(selection: Selection, results: Results, failures: Mapping[str, str]) -> list[str]:
    """Build the report without its last paragraphs: ensembles, rows that occur in train, prediction files."""
    config = selection.config
    paragraphs = [
        [f"{name} failed and is left out: {reason}" for name, reason in failures.items()],
        _table(selection, config, results),
        [f"{_name(selection, number)}  {_parameters(selection, number)}" for number in results.configurations],
        _legend(selection, results),
        [_claim(selection, results)],
        *(_compared(selection, config, results, split) for split in reversed(SPLITS)),
        _unanswered(selection, results),
    ]
    lines: list[str] = []
    for paragraph in paragraphs:
        lines += [row for line in paragraph for row in wrapped(line)] + ([""] if paragraph else [])
    return lines


def wrapped(line: str) -> list[str]:
    """Wrap a line to the width of the terminal. Lines of tables are not wrapped."""
    return [line] if line.startswith("|") else textwrap.wrap(line, WIDTH, subsequent_indent="  ", break_long_words=False)


def _name(selection: Selection, number: int) -> str:
    return selection.called(next(trial for trial in selection.trials if trial.number == number))


def _parameters(selection: Selection, number: int) -> str:
    return describe(next(trial for trial in selection.trials if trial.number == number).params)


# ----------------------------------------------------------------------------------------------------------- the table


def _table(selection: Selection, config: TrialConfig, results: Results) -> list[str]:
    columns = columns_of(config)
    rows = [["trial", "split", *columns]]
    for trial in selection.trials:
        if trial.number not in results.configurations:
            continue
        best = trial.best if trial.points else {}
        claimed = [short(best[f"dev/{column}"]) if best else "-" for column in columns]
        rows.append([_name(selection, trial.number), "dev, claimed", *claimed])
        for split in SPLITS:
            measured = results.configurations[trial.number].get(split, {})
            rows.append(["", split, *(_mean(measured[column]) if column in measured else "no labels" for column in columns)])
            if measured:
                is_one_of_many = len(selection.seeds) > 1 and all(len(of.values) == 1 for of in measured.values())
                about = "  95 %, rows" if is_one_of_many else "  95 %"
                rows.append(["", about, *(_interval(measured[column]) if column in measured else "" for column in columns)])
    return markdown(rows)


def _mean(measured: Measured) -> str:
    deviation = measured.deviation
    return short(measured.mean) + (f" ± {short(deviation)}" if deviation is not None else "")


def _interval(measured: Measured | Estimate, sign: str = "") -> str:
    return f"[{short(measured.low, sign)}, {short(measured.high, sign)}]"


# --------------------------------------------------------------------------------------------------------- what it says


def _legend(selection: Selection, results: Results) -> list[str]:
    """Explain how the configurations were chosen, and what the intervals cover."""
    num_seeds = len(selection.seeds)
    shown = (
        f"Mean ± standard deviation over {counted(num_seeds, 'fresh seed')}"
        if selection.seeds
        else "One seed, the weights that the search kept"
    )
    covers = (
        "the rows, of the seeds, and of the rows that flip from seed to seed, so it covers other rows of the same kind and "
        "other seeds"
        if num_seeds > 1
        else "the rows, so it covers other rows of the same kind, not other seeds, and no comparison gets a verdict"
    )
    lone = (
        " `95 %, rows`: all seeds but one failed, so it does not cover other seeds."
        if num_seeds > 1 and any(len(of["dev"]["score"].values) == 1 for of in results.configurations.values())
        else ""
    )
    few = " Fewer than five seeds show little of the others: where they differ much, it is wide." if 1 < num_seeds < 5 else ""
    of_a_split = [measured for splits in results.configurations.values() for measured in splits.values()]
    flat = (
        " An interval without width does not mean certainty: all answers were right, or wrong, or the same. If no row of n "
        "is wrong here, up to 3/n of other rows may be."
        if any(column.low == column.high for measured in of_a_split for column in measured.values())
        else ""
    )
    return [
        f"{shown}; {selection.choice}.",
        f"95 %: interval of the mean by Student's t. Its variance is that of {covers}.{few}{lone}{flat} It does not cover the "
        "choice: the best of many on a dev split look better there than they are.",
        *_effort(selection),
    ]


def _effort(selection: Selection) -> list[str]:
    """Write a sentence about branches that were tuned over different numbers of trials."""
    branches = [branch for branch in selection.question.branches if branch.best] if selection.question else []
    counts = [f"{branch.label} {len(branch.scored)}" for branch in branches]
    if len({len(branch.scored) for branch in branches}) < 2:
        return []
    return [f"Trials per branch: {', '.join(counts)}. A branch of more trials was tuned further, which favours it."]


def _claim(selection: Selection, results: Results) -> str:
    """Compare the score that the search had claimed for the best configuration with the one from fresh seeds."""
    number = results.winner
    claimed = next(trial for trial in selection.trials if trial.number == number).score
    found = results.configurations[number]["dev"]["score"]
    if not selection.seeds:
        return f"Best on dev: {_name(selection, number)}, {short(found.mean)}. Nothing was retrained."
    if number in [trial.number for trial in selection.contenders]:
        return f"Best by retrained dev: {_name(selection, number)}, {short(found.mean)} {_interval(found)}. It is yours."
    text = (
        f"Best by retrained dev: {_name(selection, number)}. The search had claimed {short(claimed)} for it; fresh seeds say "
    )
    text += f"{short(found.mean)} {_interval(found)} ({short(found.mean - claimed, '+')})."
    if number not in [trial.number for trial in selection.finalists]:
        text += " No finalist did better than the baseline."
    return text


def _compared(selection: Selection, config: TrialConfig, results: Results, split: str) -> list[str]:
    """Write a heading and a sentence per comparison; with a question, a sentence per branch."""
    comparisons = [comparison for comparison in results.comparisons if comparison.split == split]
    if not comparisons:
        return []
    flatters = " (on which the best was chosen)" if split == "dev" else ""
    heading = (
        f"Compared on {split}{flatters}, by {objective_name(config)}, rows paired, each difference with its own 95 % interval"
    )
    if question := selection.question:
        heading = f"Which branch of {question.path} pays? Against {_branch(question.reference, results, split)}. {heading}"
    if num_decided := sum(comparison.corrected_p is not None for comparison in comparisons):
        heading += f"; p is corrected for {counted(num_decided, 'comparison')} (Holm), and a difference needs p <= .05"
        heading += ", so that an interval without 0 may not be enough" if num_decided > 1 else ""
    return [f"{heading}:", *(f"- {_sentence(selection, config, results, comparison)}" for comparison in comparisons)]


def _sentence(selection: Selection, config: TrialConfig, results: Results, comparison: Comparison) -> str:
    """`000 beats the baseline (004) by +.0123 [+.0021, +.0220]; 5 seeds, p = .021.`"""
    found = comparison.differences["score"]
    first, second = _sides(selection, results, comparison)
    link = {"cannot be told from": "cannot be told from {}:", "no verdict": "minus {}:"}
    claim = link.get(comparison.verdict, f"{comparison.verdict} {{}} by").format(second)
    text = f"{first} {claim} {short(found.mean, '+')} {_interval(found, '+')}"
    if config.objective != "norm" and "norm" in columns_of(config):
        norm = comparison.differences["norm"]
        text += f" (norm {short(norm.mean, '+')} {_interval(norm, '+')})"
    return f"{text}; {_certainty(results, comparison)}."


def _sides(selection: Selection, results: Results, comparison: Comparison) -> tuple[str, str]:
    """Name the two sides of a comparison: `007`, `the baseline (000)`; with a question, their branches."""
    if question := selection.question:
        return _branch(question.branch_of(comparison.first), results, comparison.split), str(question.reference.label)
    is_baseline = selection.baseline is not None and comparison.second == selection.baseline.number
    return selection.name(
        comparison.first
    ), f"the {'baseline' if is_baseline else 'best'} ({selection.name(comparison.second)})"


def _branch(branch: Branch, results: Results, split: str) -> str:
    """`smart (007: .7431; best of 12 trials)`: a branch, its trial, the trial's score, and how much the branch was tuned."""
    assert branch.best is not None, f"{branch.label} has no trial to retrain"
    mean = results.configurations[branch.best.number][split]["score"].mean
    return f"{branch.label} ({branch.best.number:03d}: {short(mean)}; {branch.effort})"


def _certainty(results: Results, comparison: Comparison) -> str:
    """Name the seeds and the p-value of a comparison: `5 seeds, p = .021`."""
    first, second = (
        len(results.configurations[number][comparison.split]["score"].values)
        for number in (comparison.first, comparison.second)
    )
    seeds = counted(first, "seed") if first == second else f"{first} and {counted(second, 'seed')}"
    p = comparison.corrected_p
    if p is None:
        return f"{seeds}: one seed gives no verdict" if first != second else "one seed gives no verdict"
    return f"{seeds}, p {'< .001' if p < 0.001 else f'= {short(p, digits=3)}'}"


def _unanswered(selection: Selection, results: Results) -> list[str]:
    """List the branches that got no answer, each with its reason."""
    if selection.question is None:
        return []
    lines = [f"- {branch.label}: {branch.missing}." for branch in selection.question.unanswered]
    for branch in selection.question.branches:
        if branch.best and branch.best.number not in results.configurations:
            others = ", so no branch could be compared with it" if branch is selection.question.reference else ""
            lines.append(f"- {branch.label}: no retraining of {branch.best.number:03d} succeeded{others}.")
    return ["No answer about:", *lines] if lines else []
