"""The question of which branch of a choice pays: the best trial of each branch, and the branch to compare them with.

space.yaml -> the choice at a path -> its branches, each with the trials that took it -> the best of each
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from minbert_core.words import counted, did_you_mean
from search.report.costs import read_domains
from search.results import Search
from search.space.domains import Choice, Scalar
from search.space.space import default_choice
from search.study.trials import TrialResult, stopped_at


@dataclass(frozen=True)
class Branch:
    """A branch of a choice, with the trials of a search that took it."""

    label: Scalar
    trials: list[TrialResult]

    @property
    def scored(self) -> list[TrialResult]:
        """The trials that ended with a score."""
        return [trial for trial in self.trials if trial.status in ("completed", "stopped") and trial.points]

    @property
    def num_failed(self) -> int:
        return sum(trial.status == "failed" for trial in self.trials)

    @property
    def best(self) -> TrialResult | None:
        """The best trial of the fullest rung that the branch has earned, by the scores up to that rung; None without a score.

        Baselines run to the end whatever they score, so they count at the rungs that other trials of the branch have reached.
        Otherwise a baseline would represent a branch whose better trials were stopped halfway.
        """
        earned = [trial for trial in self.scored if trial.baseline is None] or self.scored
        rung = max((trial.rung for trial in earned), default=0)
        at_rung = [trial for trial in self.scored if trial.rung >= rung]
        return max(at_rung, key=lambda trial: (_score_up_to(rung, trial), -trial.number), default=None)

    @property
    def effort(self) -> str:
        """How much the branch was tuned: `best of 12 trials, 1 failed; stopped at 3/9 in the search`."""
        best = self.best
        assert best is not None, f"{self.label} has no trial to retrain"
        failed = f", {self.num_failed} failed" if self.num_failed else ""
        stopped = f"; {stopped_at(best.rung, best.config().budget.points)} in the search" if best.status == "stopped" else ""
        return f"best of {counted(len(self.scored), 'trial')}{failed}{stopped}"

    @property
    def missing(self) -> str:
        """The reason why there is nothing to retrain."""
        if not self.trials:
            return "no trial took it"
        trials = counted(len(self.trials), "trial")
        if self.num_failed < len(self.trials):
            return f"of its {trials} none has ended with a score"
        return f"{'its only trial' if len(self.trials) == 1 else f'all its {trials}'} failed: {self.trials[0].reason}"


def _score_up_to(rung: int, trial: TrialResult) -> float:
    return max(float(record["dev/score"]) for at, record in trial.points.items() if at <= rung)


@dataclass(frozen=True)
class Question:
    """Which branch of a choice pays: the branches in the order of the space, each to be compared with the reference."""

    path: str
    branches: list[Branch]
    reference: Branch

    @property
    def best_trials(self) -> list[TrialResult]:
        """The best trial of each branch that has one, the reference first."""
        ordered = [self.reference, *(branch for branch in self.branches if branch is not self.reference)]
        return [best for branch in ordered if (best := branch.best)]

    @property
    def unanswered(self) -> list[Branch]:
        """The branches that have no trial to retrain."""
        return [branch for branch in self.branches if branch.best is None]

    def branch_of(self, number: int) -> Branch:
        """Find the branch whose best trial is `number`."""
        return next(branch for branch in self.branches if branch.best and branch.best.number == number)

    def document(self) -> dict[str, Any]:
        """Build the entry of selection.json and results.json."""
        return {
            "choice": self.path,
            "reference": self.reference.label,
            "branches": [
                {
                    "branch": branch.label,
                    "best": branch.best and branch.best.number,
                    "trials": len(branch.trials),
                    "scored": len(branch.scored),
                    "failed": branch.num_failed,
                }
                for branch in self.branches
            ],
        }


def ask(search: Search, path: str) -> Question:
    """Ask which branch of the choice at `path` pays.

    The reference is the branch of the space's first baseline, else the config's default, else the first of the choice; a
    branch without a trial to retrain is skipped.  Raises ValueError if `path` is not a choice of this search, or fewer than
    two branches have a trial to retrain.
    """
    path, choice = _choice_at(search, path)
    branches = [Branch(label, [t for t in search.trials if t.params.get(path) == label]) for label in choice.labels]
    known = {branch.label: branch for branch in branches if branch.best}
    if len(known) < 2:
        missing = "; ".join(f"{branch.label}: {branch.missing}" for branch in branches if branch.best is None)
        law = f"`--per {path}` compares the best trials of two or more branches"
        raise ValueError(f"{law}. {search.name} has {len(known)} to retrain. {missing}.")
    return Question(path, branches, next(known[label] for label in _plainest(search, path, choice) if label in known))


def _choice_at(search: Search, path: str) -> tuple[str, Choice]:
    """Find the choice at `path`, or the only one whose path ends in it, as in tables; return its full path and the choice."""
    domains = read_domains(search.folder)
    choices = {name: domain for name, domain in domains.items() if isinstance(domain, Choice)}
    domain = domains.get(path)
    named = [path] if path in choices else [name for name in choices if name.endswith(f"/{path}")]
    if len(named) == 1:
        return named[0], choices[named[0]]
    if not choices:
        ranges = f"its space searches ranges only: {', '.join(domains)}" if domains else "its space searches nothing"
        raise ValueError(f"`--per` takes a choice, and {search.name} has none: {ranges}.")
    if domain is not None:
        known = f"Known choices: {', '.join(sorted(choices))}"
        raise ValueError(f"`--per` takes a choice, which has branches. `{path}` is a number, {domain}. {known}.")
    known = did_you_mean(path, choices)
    raise ValueError(f"`--per` takes a choice that {search.name} has searched. Unknown choice '{path}'{known}")


def _plainest(search: Search, path: str, choice: Choice) -> Iterator[Scalar]:
    """Yield the labels of a choice, the one to compare with first; some come twice."""
    baselines = [trial for trial in search.trials if trial.baseline is not None and path in trial.params]
    yield from (trial.params[path] for trial in sorted(baselines, key=lambda trial: (trial.baseline, trial.number)))
    yield default_choice(path, choice)
    yield from choice.labels
