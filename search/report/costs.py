"""The cost of a search, from its trials' records: the total, and the cost per example of each branch of a choice.

With the same number of examples one branch may cost three times as much as another (SMART's extra passes). A ranking by score
does not show this.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minbert_core.settings.faults import SettingsError
from minbert_core.words import counted, duration
from search.report.answer import BranchBest, bests
from search.report.words import markdown, rounded
from search.space.domains import Choice, Domain
from search.space.file import SpaceSettings, read_document, structure_faults
from search.space.space import Space
from search.study.trials import TrialResult


@dataclass(frozen=True)
class BranchCost:
    """The trials that took one branch of a choice. Times include evaluations. Other settings may differ too."""

    parameter: str
    branch: str
    num_trials: int
    best: BranchBest | None  # their best trial at a rung that all branches of the choice have earned; None: none was evaluated
    ms_per_example: float
    passes_per_example: float


def choices_of(space: Space) -> list[str]:
    """Return the searched parameters that are choices."""
    return [name for name, (domain, _) in space.domains().items() if isinstance(domain, Choice)]


def read_domains(folder: Path) -> dict[str, Domain]:
    """Return every parameter of the space in a search's folder with its domain.  Raises ValueError: missing, or broken."""
    document, where = read_document(folder / "space.yaml")
    if faults := [*structure_faults(document, where)]:
        raise SettingsError(faults)
    return {name: domain for name, (domain, _) in Space(folder.name, SpaceSettings(), document).domains().items()}


def read_choices(folder: Path) -> list[str]:
    """Return the parameters of `read_domains` that are choices."""
    return [name for name, domain in read_domains(folder).items() if isinstance(domain, Choice)]


def branch_costs(trials: Iterable[TrialResult], choices: Sequence[str]) -> list[BranchCost]:
    """Return a row per branch that a trial took, for each choice, cheapest first; also per recipe, if no choice equals it."""
    trials = [trial for trial in trials if trial.examples]
    groups: dict[str, dict[Any, list[TrialResult]]] = {name: defaultdict(list) for name in [*choices, "recipe"]}
    for trial in trials:
        groups["recipe"][trial.recipe].append(trial)
        for name in choices:
            if name in trial.params:  # it is not if the choice is inside a branch that the trial did not take
                groups[name][trial.params[name]].append(trial)
    recipes = _partition(groups["recipe"])
    if len(recipes) == 1 or any(_partition(groups[name]) == recipes for name in choices):  # a choice equals the recipe
        del groups["recipe"]
    costs = []
    for name, branches in groups.items():
        best = {of.label: of for of in bests({str(branch): taken for branch, taken in branches.items()})}
        costs += [_cost(name, str(branch), taken, best.get(str(branch))) for branch, taken in branches.items()]
    order = list(groups)
    return sorted(costs, key=lambda cost: (order.index(cost.parameter), cost.ms_per_example))


def _partition(groups: dict[Any, list[TrialResult]]) -> set[frozenset[int]]:
    """Return the groups as sets of trial numbers."""
    return {frozenset(trial.number for trial in trials) for trials in groups.values()}


def _cost(parameter: str, branch: str, trials: list[TrialResult], best: BranchBest | None) -> BranchCost:
    examples = sum(trial.examples for trial in trials)
    ms = 1000 * sum(trial.seconds for trial in trials) / examples
    return BranchCost(parameter, branch, len(trials), best, ms, sum(map(_passes, trials)) / examples)


def _passes(trial: TrialResult) -> int:
    return int(trial.records[-1]["passes"]) if trial.records else 0


def branch_table(trials: Iterable[TrialResult], choices: Sequence[str]) -> list[str]:
    """Format the costs of the branches as the lines of a Markdown table; empty if no choice was searched."""
    costs = branch_costs(trials, choices)
    if not costs:
        return []
    cheapest: dict[str, float] = {}
    for cost in costs:
        cheapest.setdefault(cost.parameter, cost.ms_per_example)
    rows = [["parameter", "branch", "trials", "best", "at", "ms per example", "x cheapest", "passes per example"]]
    for cost in costs:
        best = ["", ""] if cost.best is None else [f"{cost.best.score:.4f}", str(cost.best.rung)]
        times = f"{cost.ms_per_example / cheapest[cost.parameter]:.2f}"
        figures = [rounded(cost.ms_per_example), times, f"{cost.passes_per_example:.2f}"]
        rows.append([cost.parameter, cost.branch, str(cost.num_trials), *best, *figures])
    return markdown(rows)


def training_seconds(trials: Iterable[TrialResult]) -> float:
    """Return the seconds in which at least one trial was training, without start-up or the time between a stop and `--resume`.

    A record holds its time and how long its trial has run until then. So the training since the record before is an interval,
    and the result is the length of the union of all intervals.
    """
    intervals = []
    for trial in trials:
        before = 0.0
        for record in trial.records:
            end = record["time_ms"] / 1000
            intervals.append((end - (record["seconds"] - before), end))
            before = record["seconds"]
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def pretrainings(trials: Sequence[TrialResult], before: Iterable[dict[str, Any]]) -> tuple[float, list[str]]:
    """Return the seconds of further pretraining in a search, and a sentence for each pretraining that its trials began with.

    before: the records of pretraining before the trials.
    `further pretraining mlm 3f2a9c01: 340 s, trained once by trial 002, shared by 5 trials`
    """
    made_before = {record["key"]: record["pretrain/seconds"] for record in before if record.get("made")}
    seconds, sentences = sum(made_before.values()), []
    by_trial = {trial.number: [record for record in trial.records if "made" in record] for trial in trials}
    for key, stage in {record["key"]: record["stage"] for records in by_trial.values() for record in records}.items():
        uses = [(number, record) for number, records in by_trial.items() for record in records if record["key"] == key]
        makers = [number for number, record in uses if record["made"]]
        took = uses[0][1]["pretrain/seconds"]
        seconds += took * len(makers)
        by_search = "trained once, before the trials" if key in made_before else "trained before this search"
        origin = f"trained once by trial {makers[0]:03d}" if makers else by_search
        shared = f"shared by {counted(len({number for number, _ in uses}), 'trial')}"
        sentences.append(f"further pretraining {stage} {key[:8]}: {duration(took)}, {origin}, {shared}")
    return seconds, sentences


def total_cost(
    trials: Sequence[TrialResult], cpus_per_trial: int, gpus_per_trial: float, pretrained: Iterable[dict[str, Any]] = ()
) -> str:
    """Format `1 h 30 min of training, 5.8 GPU-hours, 3,200,000 examples, 8,100,000 passes`; without GPUs, core-hours.

    The hours include each further pretraining of this search once; a sentence about each follows.
    pretrained: the records of pretraining before the trials.
    """
    pretraining_seconds, sentences = pretrainings(trials, pretrained)
    hours = (sum(trial.seconds for trial in trials) + pretraining_seconds) / 3600
    paid, unit = (hours * gpus_per_trial, "GPU-hours") if gpus_per_trial else (hours * cpus_per_trial, "core-hours")
    figure = f"{paid:.1f}" if paid >= 1 else f"{paid:.2g}"
    examples, passes = sum(trial.examples for trial in trials), sum(map(_passes, trials))
    training = f"{duration(training_seconds(trials))} of training, {figure} {unit}, {examples:,} examples, {passes:,} passes"
    return "; ".join([training, *sentences])
