"""The selection to test: a search, its best trials, its baseline, seeds. It is frozen before a test file is opened."""

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
from search.study.trials import TrialResult, ranked

RULE = "best evaluation by dev score, among the trials of the fullest rung"
RULE_PER_BRANCH = "best evaluation by dev score, per branch of {path}, among the trials of the branch's fullest rung"
FRESH = 2**31  # trials of a search have seeds below this, retrainings above, so no seed is used twice


def fresh_seeds(count: int) -> list[int]:
    """Return seeds that no search uses; they are the same at each call."""
    return [FRESH + seed_of("best_to_test", i) % FRESH for i in range(count)]


@dataclass(frozen=True)
class Selection:
    """The configurations and seeds to test, frozen before a test file is opened."""

    search: Search
    finalists: list[TrialResult]
    baseline: TrialResult | None  # may be one of the finalists
    seeds: list[int]  # empty: the search's own weights are tested
    relocated: Mapping[str, str] = field(default_factory=dict)  # a folder as the trials' configs name it -> where it is now
    question: Question | None = None  # the choice whose branches the finalists are the best of
    contenders: list[TrialResult] = field(default_factory=list)  # the user's configurations: negative numbers, no records
    unchosen: str = ""  # what the finalists are, if their scores did not choose them

    @property
    def trials(self) -> list[TrialResult]:
        """The trials to test: the finalists, the contenders, and the baseline if it is not among them."""
        baseline = [self.baseline] if self.baseline and self.baseline not in self.finalists else []
        return [*self.finalists, *self.contenders, *baseline]

    @property
    def config(self) -> TrialConfig:
        """The config that stands for all `trials`: that of the first, with the tasks that all of them have."""
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
        return RULE_PER_BRANCH.format(path=self.question.path) if self.question else self.unchosen or RULE

    @property
    def choice(self) -> str:
        """The rule and what it chose from: `chosen on dev among 32 configurations by: …`."""
        return self.unchosen or f"chosen on dev among {len(self.search.trials)} configurations by: {self.rule}"

    @property
    def test_folder(self) -> Path:
        """The folder that all selections of a search share: the retrained models, their logits, the ledger."""
        return self.search.folder / "test"

    @property
    def ledger(self) -> Path:
        """The file with one line per opening of the test split."""
        return self.test_folder / "ledger.jsonl"

    @property
    def num_openings(self) -> int:
        """How often models of this search have been shown the test files."""
        return len(self.ledger.read_text(encoding="utf-8").splitlines()) if self.ledger.exists() else 0

    @property
    def folder(self) -> Path:
        """The folder of this selection: selection.json, results.json, the tables, the figure, the predictions."""
        if self.question is None:
            return self.test_folder
        return self.test_folder / f"per-{self.question.path.replace('/', '.')}"  # no name within a path holds a dot

    def name(self, number: int) -> str:
        """Name a trial: `003`, or a contender by its file without its ending."""
        given = {trial.number: contender_name(trial) for trial in self.contenders}
        return given.get(number, f"{number:03d}")

    def called(self, trial: TrialResult) -> str:
        """Name a trial as reports do: `003`, `003 (baseline)`, `003 (reference)`, `mine (given)`."""
        roles = {"reference": self.question and self.reference, "baseline": self.baseline}
        held = ", ".join(role for role, holder in roles.items() if holder == trial)
        held = "given" if trial in self.contenders else held
        return self.name(trial.number) + (f" ({held})" if held else "")

    def document(self) -> dict[str, Any]:
        """Build the content of selection.json: the rule, the number of trials, the chosen trials with claimed scores."""
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
            **({"contenders": [trial.params["config"] for trial in self.contenders]} if self.contenders else {}),
            **({"per": self.question.document()} if self.question else {}),
            "trials": [
                {
                    "trial": trial.number,
                    "params": trial.params,
                    "claimed": claimed(trial),
                    "at_rung": trial.rung and trial.best["rung"],
                    "config": as_written(trial.config()),
                }
                for trial in self.trials
            ],
        }

    def freeze(self) -> str:
        """Write selection.json, durable, unless an earlier run has written the same selection; return its sha256."""
        path, document = self.folder / "selection.json", self.document()
        if path.exists():
            before = path.read_bytes()
            if _without_circumstances(json.loads(before)) == _without_circumstances(json.loads(json.dumps(document))):
                return hashlib.sha256(before).hexdigest()
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(document, indent=1) + "\n"
        with replaced(path, durable=True) as draft:
            draft.write_text(text, encoding="utf-8")
        return hashlib.sha256(text.encode()).hexdigest()


def claimed(trial: TrialResult) -> dict[str, float]:
    """Return the dev metrics that the search claims for a trial, `dev/score` and so on; none for a contender."""
    return {key: value for key, value in trial.best.items() if key.startswith("dev/")} if trial.points else {}


def contender_name(trial: TrialResult) -> str:
    """Return the name of a contender's file without its ending; "" if the trial is one of the search."""
    return Path(trial.params["config"]).stem if trial.number < 0 else ""


def _without_circumstances(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in ("time", "git_commit")}


def choose_search(name: str | None, runs: Path, report: Callable[[str], None]) -> Search:
    """Open the search `name`, or the newest that has ended and is not toy. Report each skipped search, and why, with `report`.

    Raises ValueError if there is no such search, and Refused if it is running or has an earlier format.
    """
    if name is None:
        for search in all_searches(runs, report):
            if not (reason := _not_ready(search)):
                report(f"{search.name}: the newest search in {runs} that has ended and is not toy")
                return search
            report(f"{search.name} is skipped: {reason}")
        raise ValueError(
            f"There is no finished search on real data in {runs}. Name one with --search NAME; it may be a toy search."
        )
    search = open_search(runs / name)
    check_format(search.plan)
    if search.is_running():
        raise Refused(f"The search {search.name} is still running. Wait until it has ended.")
    return search


def _not_ready(search: Search) -> str:
    """Return why a search cannot be tested; "" if all its trials have ended, or `--hours` ended it with one complete."""
    if search.is_toy:
        return "it is on the toy corpus"
    if is_earlier(search.plan):
        return "it has an earlier format"
    if search.is_running():
        return "it is still running"
    complete = search.is_finished or any(trial.status == "completed" for trial in search.trials)
    return "" if complete else "none of its trials is complete"


def choose_trials(search: Search, top: int, no_retrain: bool) -> list[TrialResult]:
    """Choose the best `top` trials that have ended, from the fullest rung; with no_retrain, only those with saved weights.

    Trials that differ only in their seed would be the same after retraining, so only the best of them counts.
    Raises ValueError if there is no such trial.
    """
    trials = ranked(trial for trial in search.trials if trial.status != "running")
    if not trials:
        raise ValueError(f"No trial of {search.name} has been evaluated and ended, so there is nothing to test.")
    if no_retrain:
        trials = [trial for trial in trials if _has_weights(trial)]
        if not trials:
            raise ValueError(f"The search {search.name} has kept no weights. Omit --no-retrain.")
        return trials[:top]
    chosen: list[TrialResult] = []
    for trial in trials:
        if len(chosen) < top and not any(_same_but_for_seed(trial, other) for other in chosen):
            chosen.append(trial)
    return chosen


def choose_baseline(search: Search, finalists: list[TrialResult], no_retrain: bool) -> tuple[TrialResult | None, str]:
    """Choose the space's first baseline that ended in the finalists' rung, or None; return it with a sentence about it."""
    if not search.plan.baselines:
        return None, "none: the space has no `baselines`, so the finalists are compared only with each other"
    rung = finalists[0].rung
    ended = [t for t in search.trials if t.baseline is not None and t.status in ("completed", "stopped") and t.rung == rung]
    if not ended:
        return None, "none: no baseline of the space has reached the finalists' rung"
    baseline = min(ended, key=lambda trial: (trial.baseline, trial.number))
    if no_retrain and not _has_weights(baseline):
        return None, f"none: the weights of {baseline.number:03d} were not kept; omit --no-retrain to train it again"
    return _merge_baseline(finalists, baseline, no_retrain)


def choose_best_baseline(search: Search, finalists: list[TrialResult]) -> tuple[TrialResult | None, str]:
    """Choose the baseline with the best score, or None if no baseline has one; return it with a sentence about it."""
    if not search.plan.baselines:
        return None, "none: the space has no `baselines`"
    ended = ranked(trial for trial in search.trials if trial.baseline is not None and trial.status != "running")
    return (
        _merge_baseline(finalists, ended[0], False)
        if ended
        else (None, "none: no baseline of the space has ended with a score")
    )


def _merge_baseline(finalists: list[TrialResult], baseline: TrialResult, no_retrain: bool) -> tuple[TrialResult, str]:
    """Replace the baseline by a finalist that differs only in its seed, if any; return it with a sentence about it."""
    if not no_retrain:
        baseline = next((trial for trial in finalists if _same_but_for_seed(trial, baseline)), baseline)
    return baseline, f"{baseline.number:03d}" + (", one of them" if baseline in finalists else "")


def _has_weights(trial: TrialResult) -> bool:
    return (trial.folder / "best" / "heads.safetensors").exists()


def _same_but_for_seed(trial: TrialResult, other: TrialResult) -> bool:
    return trial.config().model_copy(update={"seed": 0}) == other.config().model_copy(update={"seed": 0})
