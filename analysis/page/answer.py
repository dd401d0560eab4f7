"""The answer of a search in two sentences, as sure as its trials allow: the best configuration, and the question's choice."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.compare import Comparison, verdict
from analysis.importance import Importances
from analysis.intervals import CONFIDENCE
from analysis.printing import p_value
from analysis.table import Table
from minbert_core.words import counted
from search.report.words import describe, short
from search.results import Search
from search.study.trials import ranked


def best_sentence(search: Search, objective: str) -> str:
    """Name the best trial, its score and its parameters."""
    first = next(iter(ranked(search.trials)), None)
    if first is None:
        return "No trial has a score: all that were evaluated have failed."
    examples = f"after {first.best['examples']:,} examples"
    return f"Best on dev: trial {first.number:03d}, {objective} {short(first.score)} {examples}, with {describe(first.params)}."


def choice_sentence(found: Comparison | None, choice: str, importances: Importances | None) -> str:
    """Say whether the branches of the question's choice differ; without such a choice, which parameters matter."""
    if found is None:
        return _of_importance(importances)
    name = choice.rpartition("/")[2]
    reference = found.groups[0].name
    of_score = [(pair, p) for pair, p in zip(found.pairs, found.corrected, strict=True) if pair.target == "score"]
    parts = []
    for pair, p in of_score:
        if p is not None and p <= 1 - CONFIDENCE and pair.mean is not None and pair.low is not None and pair.high is not None:
            figures = f"{short(abs(pair.mean), digits=3)} (95 %: {short(pair.low, '+', 3)} to {short(pair.high, '+', 3)})"
            parts.append(
                f"{pair.group} scores {verdict(pair, p)} than {reference} by {figures}, in {counted(pair.size, 'pair')}"
            )
    undecided = [pair.group for pair, p in of_score if p is None or p > 1 - CONFIDENCE]
    if undecided:
        others = " and ".join(undecided)
        parts.append(f"{others} cannot be told from {reference}: too few trials, or a difference within chance")
    return f"On {name}, at rung {found.rung}: {'; '.join(parts)}."


def _of_importance(found: Importances | None) -> str:
    if found is None or not found.overall[0].shares:
        return "Which choices mattered: " + (found.overall[0].doubt if found else "no trial has been evaluated yet") + "."
    of = found.overall[0]
    certain = [f"{share.path} (share {short(share.share, digits=2)})" for share in of.shares if share.matters]
    if not certain:
        return f"Which choices mattered: cannot say from {of.num_trials} trials at rung {of.rung}."
    return f"What separates the best trials from the others: {', '.join(certain)}."


def tested_sentence(folder: Path) -> str:
    """Say what `best_to_test` found in a folder of results, against its reference: on test if it has labels, else on dev."""
    found: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    split = "test" if any(of["split"] == "test" for of in found["comparisons"]) else "dev"
    compared = [of for of in found["comparisons"] if of["split"] == split]
    to_reference = [of for of in compared if of["second"] == found["baseline"] or "per" in found] or compared[:1]
    labels = {of["best"]: f"{of['branch']} ({of['best']:03d})" for of in found.get("per", {}).get("branches", ())}
    labels |= {-1 - i: Path(file).stem for i, file in enumerate(found.get("contenders", ()))}
    seeds = (
        f"Retrained over {counted(len(found['seeds']), 'fresh seed')}" if found["seeds"] else "With the weights that were kept"
    )
    parts = []
    for of in to_reference:
        ends = " to ".join(short(end, "+") for end in of["score"]["interval"])
        sides = f"{_named(of['first'], labels)} {_outcome(of)} {_named(of['second'], labels)}"
        p = of["corrected_p"]  # it decides: an interval is of one comparison only
        decides = "" if p is None else f"; {p_value(p)}, corrected for all comparisons"
        parts.append(f"{sides} ({short(of['score']['mean'], '+')}; 95 %: {ends}{decides})")
    return f"{seeds}, on {split}: {', '.join(parts)}." if parts else ""


def _named(number: int, labels: Mapping[int, str]) -> str:
    return labels.get(number, f"{number:03d}")


def _outcome(comparison: dict[str, Any]) -> str:
    return {"no verdict": "has no verdict against"}.get(comparison["verdict"], str(comparison["verdict"]))


def main_choice(table: Table, within: Sequence[str]) -> str:
    """Return the choice that the space asks about: the first whose branches have parameters of their own, else the first with
    two branches that trials took, else ""."""
    taken = {path: {t.params[path] for t in table.trials if path in t.params} for path in _choices(table)}
    several = [path for path, labels in taken.items() if len(labels) > 1]
    with_own = [name.partition("=")[0] for name in within]
    return next((path for path in with_own if path in several), several[0] if several else "")


def _choices(table: Table) -> list[str]:
    [facts] = table.searches.values()
    return [path for path, of in facts.parameters.items() if of.labels]
