"""What best_to_test is going to test: a search, its best trials, the seeds; frozen on disk before a test file is opened."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.runs import Search, all_searches, open_search
from minbert_core.config import as_written
from search.plan import Refused, git_commit
from search.study import TrialResult, ranked

RULE = "best evaluation by dev score, among the trials of the fullest rung"
FRESH = 2**31  # a search's trials have seeds below this, retrainings above: no seed serves twice


@dataclass(frozen=True)
class Selection:
    """What is going to be tested, frozen before a test file is opened."""

    search: Search
    trials: list[TrialResult]
    seeds: list[int]  # empty: the search's own weights are tested

    def document(self) -> dict[str, Any]:
        """What selection.json holds: the rule, what was tried, and each chosen trial with the score it had claimed."""
        journal = (self.search.folder / "study.journal").read_bytes()
        return {
            "search": self.search.name,
            "rule": RULE,
            "tried": len(self.search.trials),
            "study_sha256": hashlib.sha256(journal).hexdigest(),
            "git_commit": git_commit(),
            "time": time.strftime("%FT%T%z"),
            "seeds": self.seeds,
            "selected": [
                {
                    "trial": trial.number,
                    "params": trial.params,
                    "claimed": {key: value for key, value in trial.best.items() if key.startswith("dev/")},
                    "at_part": trial.best["part"],
                    "config": as_written(trial.config()),
                }
                for trial in self.trials
            ],
        }

    def freeze(self) -> str:
        """Write selection.json; its sha256."""
        folder = self.search.folder / "test"
        folder.mkdir(exist_ok=True)
        text = json.dumps(self.document(), indent=1) + "\n"
        draft = folder / "selection.json.tmp"
        draft.write_text(text, encoding="utf-8")
        draft.replace(folder / "selection.json")
        return hashlib.sha256(text.encode()).hexdigest()


def choose_search(name: str | None, runs: Path) -> Search:
    """The search named, else the newest finished one that is not toy.  Raises ValueError; Refused while it runs."""
    if name is not None:
        search = open_search(runs / name)
    else:
        found = next((search for search in all_searches(runs) if not search.is_toy and search.is_finished), None)
        if found is None:
            raise ValueError(
                f"There is no finished search on real data in {runs}. Name one with --search NAME (a toy one, too)."
            )
        search = found
    if search.is_running():
        raise Refused(f"The search {search.name} is still running; test its best when it has ended.")
    return search


def choose_trials(search: Search, top: int, no_retrain: bool) -> list[TrialResult]:
    """The best `top` ended trials of the fullest rung; with no_retrain of those whose weights were kept.  Raises ValueError."""
    trials = [trial for trial in ranked(search.trials) if trial.status != "running"]
    if not trials:
        raise ValueError(f"No trial of {search.name} has been evaluated and ended: there is nothing to test.")
    if no_retrain:
        trials = [trial for trial in trials if (trial.folder / "best" / "heads.safetensors").exists()]
        if not trials:
            raise ValueError(f"The search {search.name} has kept no weights; leave --no-retrain away.")
    return trials[:top]
