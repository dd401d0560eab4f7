"""The prediction files of best_to_test: those of the chosen model, and in a folder each those of every model and ensemble.

predictions/sst-test-output.csv …                the chosen model's
predictions/003-seed0/sst-test-output.csv …      every model's;  003-ensemble/, finalists-ensemble/: the ensembles'
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from analysis.ensembles import Ensemble
from analysis.results import Logits, Results, Splits
from analysis.retrain import Job
from analysis.test_table import wrapped
from minbert_core.config import TrialConfig
from minbert_core.evaluate import check_submission, prediction_text
from minbert_core.model import predictions
from minbert_core.words import counted


def write_predictions(
    config: TrialConfig,
    results: Results,
    logits: Mapping[Job, Logits],
    splits: Splits,
    folder: Path,
    ensembles: Sequence[Ensemble] = (),
) -> list[str]:
    """Write the prediction files of all models and ensembles, and check the course's; return the lines that list them.

    Raises ValueError if a file is not what the course expects.
    """
    shutil.rmtree(folder, ignore_errors=True)
    files = _write(logits[results.chosen], splits, folder)
    others = {job.name: of for job, of in logits.items()} | {of.name: of.logits for of in ensembles}
    others = others if len(others) > 1 else {}
    for name, of in others.items():
        _write(of, splits, folder / name)
    ensembled = f"; ensembles: {', '.join(of.name for of in ensembles)}" if ensembles else ""
    return [
        f"Prediction files of {results.chosen.name} (the model of the best configuration that is best on dev):",
        "",
        *(f"- {path} ({size} rows)" for path, size in files),
        *(f"- none of {name} on test: it names no test file" for name in config.train_on if (name, "test") not in splits),
        *(wrapped(f"- the same of each model, in {counted(len(others), 'folder')} of {folder}{ensembled}") if others else []),
    ]


def _write(logits: Logits, splits: Splits, folder: Path) -> list[tuple[Path, int]]:
    """Write a model's prediction file per task and split; return the files with their number of rows."""
    folder.mkdir(parents=True)
    written, faults = [], []
    for (task, split_name), split in splits.items():
        path = folder / f"{task}-{split_name}-output.csv"
        text = prediction_text(split.task, split.ids, predictions(split.task, logits[task, split_name]))
        path.write_bytes(text.encode())
        if not split.task.is_own:
            faults += check_submission(path, split.task, split.ids)
        written.append((path, len(split)))
    if faults:
        raise ValueError("The prediction files are not what the course expects:\n" + "\n".join(faults))
    return written
