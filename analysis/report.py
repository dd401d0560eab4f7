"""What best_to_test reports: a table, dev of the fresh seeds beside the claim and test beside dev, and the course's files."""

from __future__ import annotations

import shutil
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.retrain import Job, open_test_split
from analysis.selection import RULE, Selection
from minbert_core.config import TrialConfig
from minbert_core.data.tasks import TASKS
from minbert_core.evaluate import check_submission, overall, predictions, score, submission_text
from minbert_core.inputs import open_inputs
from search.narrate import describe


@dataclass(frozen=True)
class Tested:
    """One model's answers: dev metrics, test metrics of the tasks whose test file has labels."""

    dev: dict[str, float]
    test: dict[str, float]
    logits: dict[str, np.ndarray[Any, Any]]  # "<task>-<split>" -> (rows, K)


def write_report(selection: Selection, results: dict[Job, Tested], folder: Path) -> list[str]:
    """Write prediction files and table.md; the lines that are printed."""
    config = selection.trials[0].config()
    tasks = list(config.train_on)
    groups = {
        trial.number: [result for job, result in results.items() if job.number == trial.number] for trial in selection.trials
    }
    groups = {number: group for number, group in groups.items() if group}
    means = {
        number: statistics.fmean(score(result.dev, config.objective) for result in group) for number, group in groups.items()
    }
    first = max(means, key=lambda number: means[number])
    chosen = max((job for job in results if job.number == first), key=lambda job: score(results[job].dev, config.objective))
    lines = _table(selection, config, tasks, groups)
    seeds = (
        f"mean ± standard deviation over {len(selection.seeds)} seeds"
        if selection.seeds
        else "one seed, the search's own weights"
    )
    claimed = next(trial for trial in selection.trials if trial.number == first).score
    lines += [
        "",
        f"{seeds}; chosen on dev among {len(selection.search.trials)} configurations by: {RULE}.",
        f"Best by retrained dev: {first:03d}. The search had claimed {claimed:.4f} for it; "
        + (
            f"fresh seeds say {means[first]:.4f} ({means[first] - claimed:+.4f})."
            if selection.seeds
            else "nothing was retrained."
        ),
        "",
        *_write_predictions(config, chosen, results[chosen], folder / "predictions"),
    ]
    (folder / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return lines


def _table(selection: Selection, config: TrialConfig, tasks: list[str], groups: dict[int, list[Tested]]) -> list[str]:
    head = ["trial", "split", *tasks, "norm", "mean", "parameters"]
    rows = []
    for trial in selection.trials:
        if trial.number not in groups:
            continue
        group = groups[trial.number]
        claimed = {name: trial.best[f"dev/{name}"] for name in (*tasks, "norm", "mean")}
        rows.append(
            [f"{trial.number:03d}", "dev, claimed", *(f"{claimed[name]:.4f}" for name in head[2:-1]), describe(trial.params)]
        )
        rows.append(["", "dev", *_cells(tasks, [result.dev for result in group]), ""])
        rows.append(["", "test", *_cells(tasks, [result.test for result in group]), ""])
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in [head, *rows]
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines


def _cells(tasks: list[str], metrics: list[dict[str, float]]) -> list[str]:
    """A cell a task and one for each overall score; `no labels` where the split has none."""
    whole = all(name in metrics[0] for name in tasks)
    columns = [[m[name] for m in metrics] if name in metrics[0] else [] for name in tasks]
    columns += [[overall(m)[key] for m in metrics] if whole else [] for key in ("norm", "mean")]
    return [_mean_and_deviation(column) if column else "no labels" for column in columns]


def _mean_and_deviation(values: list[float]) -> str:
    mean = f"{statistics.fmean(values):.4f}"
    return f"{mean} ± {statistics.stdev(values):.4f}" if len(values) > 1 else mean


def _write_predictions(config: TrialConfig, job: Job, result: Tested, folder: Path) -> list[str]:
    """The course's files of one model, read back and checked; what was written, a line a file.  Raises ValueError."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    inputs = open_inputs(config)
    lines = [f"Prediction files of {job.name} (of the best configuration the seed that is best on dev), checked:", ""]
    faults = []
    for name in config.train_on:
        test = open_test_split(name, inputs.data_folder, inputs.tokenizer)
        for split_name, split in (("dev", inputs.dev[name]), ("test", test)):
            path = folder / f"{name}-{split_name}-output.csv"
            text = submission_text(TASKS[name], split.ids, predictions(TASKS[name], result.logits[f"{name}-{split_name}"]))
            path.write_bytes(text.encode())
            faults += check_submission(path, TASKS[name], split.ids)
            lines.append(f"- {path} ({len(split)} rows)")
    if faults:
        raise ValueError("The prediction files are not what the course expects:\n" + "\n".join(faults))
    return lines
