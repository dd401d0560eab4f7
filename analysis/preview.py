"""The lines that best_to_test prints before it starts: the search, the chosen trials, the baseline, the models to train."""

from __future__ import annotations

from analysis.selection import Selection
from minbert_core.words import counted
from search.report.words import describe
from search.study.trials import TrialResult


def preview_lines(selection: Selection, about_baseline: str) -> list[str]:
    """List what is going to be tested, and what it was chosen from."""
    search, baseline = selection.search, selection.baseline
    unfinished = "" if search.is_finished else f" of {search.plan.trials}: the search is not finished"
    described = f"  {_claimed(baseline)}" if baseline and baseline not in selection.finalists else ""
    each = f"{counted(len(selection.seeds), 'fresh seed')} each"
    if not selection.seeds:
        each = "the weights that the search kept, one seed each"
    one_seed = len(selection.seeds) < 2 and len(selection.trials) > 1
    return [
        f"search    {search.name}: {search.plan.about or '(no question given: `about`)'}",
        f"tried     {len(search.trials)} configurations{unfinished}",
        *_chosen_lines(selection),
        *(
            f"given     {trial.params['config']}: not chosen on dev; tested next to the search's"
            for trial in selection.contenders
        ),
        f"baseline  {about_baseline}{described}",
        f"test      {counted(len(selection.trials), 'configuration')}, {each}; to {selection.folder}",
        *(["verdicts  none: one seed gives differences with intervals over rows; --seeds 2 or more gives verdicts"] * one_seed),
    ]


def _chosen_lines(selection: Selection) -> list[str]:
    """The chosen trials; with a question, those of its branches, and the branches that have none."""
    question = selection.question
    if question is None:
        return [f"selected  {trial.number:03d}  {_claimed(trial)}" for trial in selection.finalists]
    lines = [f"question  which branch of {question.path} pays? Each is compared with {question.reference.label}."]
    for trial in selection.finalists:
        branch = question.branch_of(trial.number)
        lines.append(f"selected  {branch.label}: {trial.number:03d}, {branch.effort}\n            {_claimed(trial)}")
    return lines + [f"missing   {branch.label}: {branch.missing}" for branch in question.unanswered]


def _claimed(trial: TrialResult) -> str:
    return f"dev {trial.score:.4f}  {describe(trial.params)}"
