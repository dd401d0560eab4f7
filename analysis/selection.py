"""What best_to_test is going to test: a search, its best trials, its baseline, seeds; frozen before a test file is opened."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.branches import Question
from minbert_core.commands import Refused
from minbert_core.config import TrialConfig
from minbert_core.files import replaced
from minbert_core.seeds import seed_of
from minbert_core.settings.paths import as_written
from search.environment import git_commit
from search.plan.folder import check_format, is_earlier
from search.results import Search, all_searches, open_search
from search.study.study import TrialResult, ranked

RULE = "best evaluation by dev score, among the trials of the fullest rung"
RULE_PER_BRANCH = "best evaluation by dev score, per branch of {path}, among the trials of the branch's fullest rung"
FRESH = 2**31  # a search's trials have seeds below this, retrainings above: no seed serves twice


def fresh_seeds(count: int) -> list[int]:
    """Seeds that no search uses, the same at each call."""
    return [FRESH + seed_of("best_to_test", i) % FRESH for i in range(count)]


@dataclass(frozen=True)
class Selection:
    """What is going to be tested, frozen before a test file is opened."""

    search: Search
    finalists: list[TrialResult]
    baseline: TrialResult | None  # may be one of the finalists
    seeds: list[int]  # empty: the search's own weights are tested
    relocated: Mapping[str, str] = field(default_factory=dict)  # a folder as the trials' configs name it -> where it lies here
    question: Question | None = None  # the choice whose branches the finalists are the best of

    @property
    def trials(self) -> list[TrialResult]:
        """All that is tested: the finalists, and the baseline if it is not among them."""
        return self.finalists + ([self.baseline] if self.baseline and self.baseline not in self.finalists else [])

    @property
    def config(self) -> TrialConfig:
        """What all of `trials` share, as a config: that of the first, with the tasks that each of them has."""
        configs = [trial.config() for trial in self.trials]
        shared = tuple(name for name in configs[0].train_on if all(name in config.train_on for config in configs))
        return configs[0].model_copy(update={"train_on": shared})

    @property
    def reference(self) -> TrialResult | None:
        """The trial that each finalist is compared with: the best of the reference branch; without a question, the baseline."""
        return self.question.reference.best if self.question else self.baseline

    @property
    def rule(self) -> str:
        """The rule by which the finalists were chosen."""
        return RULE_PER_BRANCH.format(path=self.question.path) if self.question else RULE

    @property
    def test_folder(self) -> Path:
        """The folder that all selections of a search share: the retrained models, their logits, the ledger."""
        return self.search.folder / "test"

    @property
    def folder(self) -> Path:
        """The folder of this selection: selection.json, results.json, the tables, the figure, the predictions."""
        if self.question is None:
            return self.test_folder
        return self.test_folder / f"per-{self.question.path.replace('/', '.')}"  # no name within a path holds a dot

    def called(self, trial: TrialResult) -> str:
        """A trial as reports name it: `003`, `003 (baseline)`, `003 (reference)`."""
        roles = {"reference": self.question and self.reference, "baseline": self.baseline}
        held = ", ".join(role for role, holder in roles.items() if holder == trial)
        return f"{trial.number:03d}" + (f" ({held})" if held else "")

    def document(self) -> dict[str, Any]:
        """What selection.json holds: the rule, what was tried, and each chosen trial with the score it had claimed."""
        journal = (self.search.folder / "study.journal").read_bytes()
        return {
            "search": self.search.name,
            "rule": self.rule,
            "tried": len(self.search.trials),
            "study_sha256": hashlib.sha256(journal).hexdigest(),
            "git_commit": git_commit(),
            "time": time.strftime("%FT%T%z"),
            "seeds": self.seeds,
            "selected": [trial.number for trial in self.finalists],
            "baseline": self.baseline and self.baseline.number,
            **({"per": self.question.document()} if self.question else {}),
            "trials": [
                {
                    "trial": trial.number,
                    "params": trial.params,
                    "claimed": {key: value for key, value in trial.best.items() if key.startswith("dev/")},
                    "at_rung": trial.best["rung"],
                    "config": as_written(trial.config()),
                }
                for trial in self.trials
            ],
        }

    def freeze(self) -> str:
        """Write selection.json, unless it holds this very selection since an earlier run; its sha256."""
        path, document = self.folder / "selection.json", self.document()
        if path.exists():
            before = path.read_bytes()
            if _without_circumstances(json.loads(before)) == _without_circumstances(json.loads(json.dumps(document))):
                return hashlib.sha256(before).hexdigest()
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(document, indent=1) + "\n"
        with replaced(path) as draft:
            draft.write_text(text, encoding="utf-8")
        return hashlib.sha256(text.encode()).hexdigest()


def _without_circumstances(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in ("time", "git_commit")}


def choose_search(name: str | None, runs: Path, tell: Callable[[str], None]) -> Search:
    """The search named, else the newest that has ended and is not toy; `tell` hears why it is that one, and not a newer one.

    Raises ValueError: no such search. Refused: it still runs, or is of an earlier format.
    """
    if name is None:
        for search in all_searches(runs, tell):
            if not (reason := _not_ready(search)):
                tell(f"{search.name} is taken: the newest search in {runs} that has ended and is not toy")
                return search
            tell(f"{search.name} is passed over: {reason}")
        raise ValueError(f"There is no finished search on real data in {runs}. Name one with --search NAME (a toy one, too).")
    search = open_search(runs / name)
    check_format(search.plan)
    if search.is_running():
        raise Refused(f"The search {search.name} is still running; test its best when it has ended.")
    return search


def _not_ready(search: Search) -> str:
    """Why a search is not the one to test; empty where all its trials have ended, or `--hours` ended it with one complete."""
    if search.is_toy:
        return "it is on the toy corpus"
    if is_earlier(search.plan):
        return "it is of an earlier format"
    if search.is_running():
        return "it is still running"
    complete = search.is_finished or any(trial.status == "completed" for trial in search.trials)
    return "" if complete else "none of its trials is complete"


def choose_trials(search: Search, top: int, no_retrain: bool) -> list[TrialResult]:
    """The best `top` ended trials of the fullest rung; with no_retrain of those whose weights were kept.  Raises ValueError.

    Of trials that differ in their seed alone, which retraining would make one, the best stands for all.
    """
    trials = [trial for trial in ranked(search.trials) if trial.status != "running"]
    if not trials:
        raise ValueError(f"No trial of {search.name} has been evaluated and ended: there is nothing to test.")
    if no_retrain:
        trials = [trial for trial in trials if _has_weights(trial)]
        if not trials:
            raise ValueError(f"The search {search.name} has kept no weights; leave --no-retrain away.")
        return trials[:top]
    chosen: list[TrialResult] = []
    for trial in trials:
        if len(chosen) < top and not any(_same_but_for_seed(trial, other) for other in chosen):
            chosen.append(trial)
    return chosen


def choose_baseline(search: Search, finalists: list[TrialResult], no_retrain: bool) -> tuple[TrialResult | None, str]:
    """The space's first baseline that ended in the finalists' rung, and a sentence about it; None where there is none."""
    if not search.plan.baselines:
        return None, "none: the space has no `baselines`, so the finalists are compared with each other alone"
    rung = finalists[0].rung
    ended = [t for t in search.trials if t.baseline is not None and t.status in ("completed", "stopped") and t.rung == rung]
    if not ended:
        return None, "none: no baseline of the space has reached the finalists' rung"
    baseline = min(ended, key=lambda trial: (trial.baseline, trial.number))
    if no_retrain and not _has_weights(baseline):
        return None, f"none: the weights of {baseline.number:03d} were not kept; without --no-retrain it is trained again"
    return _beside(finalists, baseline, no_retrain)


def choose_best_baseline(search: Search, finalists: list[TrialResult]) -> tuple[TrialResult | None, str]:
    """The baseline of the best score, and a sentence about it; None where none has ended with a score."""
    if not search.plan.baselines:
        return None, "none: the space has no `baselines`"
    ended = ranked(trial for trial in search.trials if trial.baseline is not None and trial.status != "running")
    return _beside(finalists, ended[0], False) if ended else (None, "none: no baseline of the space has ended with a score")


def _beside(finalists: list[TrialResult], baseline: TrialResult, no_retrain: bool) -> tuple[TrialResult, str]:
    """The baseline, or the finalist that retraining would make of it, and a sentence about it."""
    if not no_retrain:
        baseline = next((trial for trial in finalists if _same_but_for_seed(trial, baseline)), baseline)
    return baseline, f"{baseline.number:03d}" + (", one of them" if baseline in finalists else "")


def _has_weights(trial: TrialResult) -> bool:
    return (trial.folder / "best" / "heads.safetensors").exists()


def _same_but_for_seed(trial: TrialResult, other: TrialResult) -> bool:
    return trial.config().model_copy(update={"seed": 0}) == other.config().model_copy(update={"seed": 0})
