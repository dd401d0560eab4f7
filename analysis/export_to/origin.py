"""The origin of a model: its search and trial, and the scores that are recorded for it. The test split is never opened.

folder of a model ─► runs/NAME, trials/007, test/retrained/007-seed0 or a training without a search ─► scores
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.answers import trial_of
from minbert_core.config import TINY, TrialConfig
from minbert_core.train.folder import read_records
from search.results import Search, open_search
from search.study.trials import TrialResult


@dataclass(frozen=True)
class Origin:
    """Where a model is from. Scores are by column: a task, norm, mean or score."""

    search: Search | None = None
    trial: TrialResult | None = None  # the search's configuration, of which the model may be a retraining
    retrained: str = ""  # 007-seed0; "" if the weights are those of a trial, or of no search
    dev: Mapping[str, float] = field(default_factory=dict)  # of these weights
    test: Mapping[str, float] = field(default_factory=dict)  # of these weights, where best_to_test has tested them
    test_of_configuration: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # mean, interval, a value per seed

    @property
    def name(self) -> str:
        """A name for people: `smart, trial 007`; "" if it is of no search."""
        if self.search is None:
            return ""
        trial = self.retrained or (f"trial {self.trial.number:03d}" if self.trial else "a trial that is gone")
        return f"{self.search.name}, {trial}"


def find_origin(folder: Path) -> Origin:
    """Read where a model is from. A copy outside of runs/ has no record.  Raises ValueError: damaged records."""
    folder = folder.resolve()
    place = next((parent for parent in folder.parents if (parent / "plan.json").exists()), None)
    dev = _best_on_dev(folder.parent) if folder.name == "best" else {}
    if place is None:
        return Origin(dev=dev)
    search = open_search(place)
    retrained = folder.parent.name if folder.parent.parent.name == "retrained" else ""
    number = re.fullmatch(r"(\d+)(-seed\d+|-kept)?", retrained or trial_of(folder))  # a contender has the name of its file
    trial = next((of for of in search.trials if number and of.number == int(number[1])), None)
    if not retrained and trial is not None and trial.points:
        dev = _of_dev(trial.best)
    test, configuration = _tested(place, retrained, trial)
    return Origin(search, trial, retrained, dev, test, configuration)


def _best_on_dev(folder: Path) -> dict[str, float]:
    """Return the scores of the best evaluation in a folder's metrics.jsonl, whose weights were saved; {} without one."""
    records = [record for record in read_records(folder / "metrics.jsonl") if record["kind"] == "dev"]
    return _of_dev(max(records, key=lambda record: record["dev/score"])) if records else {}


def _of_dev(record: Mapping[str, Any]) -> dict[str, float]:
    return {key.removeprefix("dev/"): float(value) for key, value in record.items() if key.startswith("dev/")}


def _tested(place: Path, retrained: str, trial: TrialResult | None) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
    """Return the newest test scores of the weights, and of their configuration over its seeds."""
    test: dict[str, float] = {}
    configuration: dict[str, dict[str, Any]] = {}
    model = retrained or (f"{trial.number:03d}-kept" if trial else "")
    for path in sorted((place / "test").rglob("results.json"), key=lambda path: path.stat().st_mtime):
        results = json.loads(path.read_text(encoding="utf-8"))
        test = results["models"].get(model, {}).get("test", test)
        for found in results["configurations"]:
            if trial is not None and found["trial"] == trial.number and results["seeds"]:  # without, none was retrained
                configuration = found.get("test", configuration)
    return test, configuration


def hub_name(config: TrialConfig, search: Search | None) -> str:
    """Return the hub's name of the encoder that the model began as; "" if it was a folder, or none."""
    checkpoint = config.encoder.checkpoint
    if search is not None:  # a space's name -> the folder that the trials' configs hold
        checkpoint = next((name for name, folder in search.plan.encoders.items() if folder == checkpoint), checkpoint)
    if cached := re.search(r"models--([^/]+?)--([^/]+)/snapshots/", checkpoint):
        return "/".join(cached.groups())
    is_name = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", checkpoint) and not checkpoint.startswith(".")
    return checkpoint if is_name and checkpoint != TINY and not Path(checkpoint).exists() else ""
