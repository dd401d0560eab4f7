"""The truth of a search: the Optuna study (a journal file) and the trials' own records; resume.

A trial keeps its number for life: in the study, as its folder trials/NNN, as MLflow run, in the rungs. Ray's own snapshot of an
experiment is not used: after a crash it loses rungs and runs points twice.

    space -> study.ask -> params + config -> trials/NNN/config.yaml -> Ray -> reports -> study, rungs, listener
"""

from __future__ import annotations

import copy
import math
import os
import shutil
from collections.abc import Collection, Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from minbert_core.config import TrialConfig
from minbert_core.config_checks import read_config
from minbert_core.files import replaced
from minbert_core.seeds import seed_of
from minbert_core.settings.faults import SettingsError
from minbert_core.settings.paths import as_written
from minbert_core.settings.yaml import dump_yaml
from minbert_core.train.folder import read_records, read_snapshot, state_file, write_records
from search.methods.trial_schedulers import STOP, Scheduler, peers
from search.space.space import Sample, Space

Status = Literal["running", "completed", "stopped", "failed"]
KEEP_BEST = 3  # trials whose weights a search keeps


@dataclass(frozen=True)
class TrialResult:
    """One trial as its records tell it. `points` maps each evaluated rung of the budget to its dev record."""

    number: int
    status: Status
    reason: str
    params: dict[str, Any]
    baseline: int | None
    folder: Path
    records: list[dict[str, Any]] = field(repr=False)

    @property
    def points(self) -> dict[int, dict[str, Any]]:
        return {record["rung"]: record for record in self.records if record["kind"] == "dev"}

    @property
    def rung(self) -> int:
        """The fullest rung evaluated; 0 before the first."""
        return max(self.points, default=0)

    @property
    def best(self) -> dict[str, Any]:
        """The dev record of the best evaluation: the trial's score."""
        return max(self.points.values(), key=lambda record: record["dev/score"])

    @property
    def last(self) -> dict[str, Any]:
        return self.points[self.rung]

    @property
    def score(self) -> float:
        return float(self.best["dev/score"]) if self.points else -math.inf

    @property
    def seconds(self) -> float:
        return float(self.records[-1]["seconds"]) if self.records else 0.0

    @property
    def examples(self) -> int:
        return int(self.records[-1]["examples"]) if self.records else 0

    def config(self) -> TrialConfig:
        return read_config(self.folder / "config.yaml")


def ranked(trials: Iterable[TrialResult]) -> list[TrialResult]:
    """The trials of the fullest rung that any has reached, best score first. Failed ones take no part."""
    sound = [trial for trial in trials if trial.status != "failed" and trial.points]
    fullest = max((trial.rung for trial in sound), default=0)
    return sorted((trial for trial in sound if trial.rung == fullest), key=lambda trial: (-trial.score, trial.number))


def best_first(trials: Iterable[TrialResult]) -> list[TrialResult]:
    """All the trials: the ranked ones, then the others, fullest first, and failed ones last."""
    trials = list(trials)
    first = ranked(trials)
    numbers = {trial.number for trial in first}
    rest = [trial for trial in trials if trial.number not in numbers]
    return first + sorted(rest, key=lambda trial: (trial.status == "failed", -trial.rung, -trial.score, trial.number))


class _Study(optuna.Study):
    """An Optuna study whose sampler learns of a waiting trial as of a stopped one, which it may yet become.

    Optuna has no state for it: running, it would be unknown to the model, and held for a bad one by TPE's constant liar.
    """

    waiting: Collection[int] = ()  # their numbers

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        trials = super()._get_trials(deepcopy, None, use_cache)
        seen = [_as_pruned(trial) if trial.number in self.waiting else trial for trial in trials]
        return [trial for trial in seen if states is None or trial.state in states]


def _as_pruned(trial: FrozenTrial) -> FrozenTrial:
    pruned = copy.copy(trial)
    pruned.state = TrialState.PRUNED
    return pruned


class Study:
    """The study of one search folder. Opening it twice is harmless; every write is of a number that it already knows."""

    def __init__(self, folder: Path, space: Space, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder, self.space, self.seed = folder, space, seed
        self.storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
        optuna.create_study(study_name=space.name, storage=self.storage, direction="maximize", load_if_exists=True)
        self._study_id = self.storage.get_study_id_from_name(space.name)
        # a resumed sampler draws on from another seed, else it would suggest its first points again
        drawn_from = seed_of(seed, "sampler", len(self._optuna_trials())) % 2**32
        sampler = space.settings.sampler.build(drawn_from, space.combinations, len(space.baselines))
        self.study = _Study(space.name, self.storage, sampler)
        self.waiting: dict[int, TrialResult] = {}  # trials paused at a rung until others have reached it
        self.study.waiting = self.waiting.keys()
        self._enqueue_baselines()

    def _enqueue_baselines(self) -> None:
        known = {trial.user_attrs.get("baseline") for trial in self._optuna_trials() if "void" not in trial.user_attrs}
        for i in range(len(self.space.baselines)):
            if i not in known:
                self.study.enqueue_trial(self.space.baseline(i).params, user_attrs={"baseline": i})

    def _optuna_trials(self) -> list[FrozenTrial]:
        return self.storage.get_all_trials(self._study_id, deepcopy=False)

    def trial_folder(self, number: int) -> Path:
        return self.folder / "trials" / f"{number:03d}"

    def ask(self) -> TrialResult:
        """A new trial: its point, its config with a seed of its own, its folder with config.yaml."""
        for _ in range(100):
            trial = self.study.ask()
            baseline = trial.user_attrs.get("baseline")
            sample = self._sample(trial, baseline)
            try:
                config = self.config(sample, trial.number)
            except SettingsError as error:  # pairs of branches are checked beforehand; this takes three that do not go together
                self._void(trial.number, str(error))
                continue
            folder = self.trial_folder(trial.number)
            folder.mkdir(parents=True, exist_ok=True)
            with replaced(folder / "config.yaml") as draft:
                draft.write_text(dump_yaml(as_written(config)), encoding="utf-8")
            return self.result(trial.number)
        raise ValueError("A hundred points in a row were impossible; their reasons stand in study.journal.")

    def _sample(self, trial: optuna.Trial, baseline: int | None) -> Sample:
        sample = self.space.sample(lambda name, domain: domain.suggest(trial, name))
        return sample if baseline is None else self.space.baseline(baseline)  # which sets what is not searched, too

    def config(self, sample: Sample, number: int) -> TrialConfig:
        """The sampled config with what is a trial's own: its seed."""
        document = {**sample.document, "seed": seed_of(self.seed, "trial", number) % 2**31}
        return Sample(sample.params, document, sample.where).config()

    def _void(self, number: int, reason: str) -> None:
        """A trial that never began: it does not count, and a baseline among them is enqueued again."""
        self._set(number, "void", True)
        self.tell(number, "failed", reason)

    def _trial_id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self._study_id, number)

    def _set(self, number: int, key: str, value: Any) -> None:
        self.storage.set_trial_user_attr(self._trial_id(number), key, value)

    def report(self, number: int, rung: int, value: float) -> None:
        """A point's value; told again it stays the same."""
        self.storage.set_trial_intermediate_value(self._trial_id(number), rung, value)

    def tell(self, number: int, status: Status, reason: str) -> TrialResult:
        """End a trial. Stopped and non-finite ones are PRUNED, of which the sampler learns; crashed ones FAIL, of which not.

        Optuna's state comes last: a driver killed before it finds the trial running, and ends it again.
        """
        self._set(number, "status", status)
        self._set(number, "reason", reason)
        if status == "completed":
            self.study.tell(number, self.result(number).score)
        else:
            learns = status == "stopped" or reason.startswith("not finite")
            self.study.tell(number, state=TrialState.PRUNED if learns else TrialState.FAIL)
        return self.result(number)

    def result(self, number: int) -> TrialResult:
        return _result(self.folder, self.storage.get_trial(self._trial_id(number)))

    def results(self) -> list[TrialResult]:
        """Every trial that began, in order of number."""
        return _results(self.folder, self._optuna_trials())

    def restore(self, scheduler: Scheduler) -> list[TrialResult]:
        """Read the trials' records back into study and scheduler, in the order they were measured; the unfinished trials.

        A trial whose snapshot holds the last point is told completed; one that the scheduler stops is told stopped.
        """
        for known in self._optuna_trials():
            if known.state == TrialState.RUNNING and not _began(self.folder, known):
                self._void(known.number, "the search ended before it began")
            elif known.state == TrialState.RUNNING:
                _trust_snapshot(self.trial_folder(known.number))
        self._enqueue_baselines()
        results = self.results()
        _refill(scheduler, results)
        unfinished = []
        for trial in results:
            if trial.status != "running":
                continue
            for rung, record in trial.points.items():
                self.report(trial.number, rung, record["dev/score"])
            if trial.rung == self.space.settings.rungs[-1]:
                self.tell(trial.number, "completed", "completed")
            elif scheduler.verdict(trial.number) == STOP:
                self.tell(trial.number, "stopped", f"{stopped_at(trial.rung, self.space.settings.rungs)}: {scheduler.law}")
            else:
                unfinished.append(trial)
        self.keep_best()  # a driver may be killed after it has told that a trial ended, and before this
        return unfinished

    def keep_best(self) -> TrialResult | None:
        """Link the best, drop the weights of ended trials not among the best few, and all leftover states; the best."""
        results = self.results()
        ranking = ranked(results)
        if ranking:
            with replaced(self.folder / "best") as draft:  # a folder, if the search was copied by something that follows links
                draft.symlink_to(Path("trials") / f"{ranking[0].number:03d}" / "best")  # relative: the folder may be moved
        keep = {trial.number for trial in ranking[:KEEP_BEST]}
        for trial in results:
            if trial.status != "running":
                shutil.rmtree(trial.folder / "state", ignore_errors=True)
                if trial.number not in keep:
                    shutil.rmtree(trial.folder / "best", ignore_errors=True)
        return ranking[0] if ranking else None


def mend_journal(folder: Path) -> None:
    """Remove what a driver killed while it wrote leaves in a study's journal: Optuna's lock file, and a last line cut short.

    Else Optuna waits 30 s for the lock, and refuses the journal for good once a line follows the cut one. Only for the one who
    holds the search's lock.
    """
    journal = folder / "study.journal"
    journal.with_name("study.journal.lock").unlink(missing_ok=True)
    if journal.exists():
        data = journal.read_bytes()
        if not data.endswith(b"\n"):
            os.truncate(journal, data.rfind(b"\n") + 1)


def _began(folder: Path, trial: FrozenTrial) -> bool:
    """Whether a trial counts: it was asked for, it has its config, and it was not voided."""
    config = folder / "trials" / f"{trial.number:03d}" / "config.yaml"
    return trial.state != TrialState.WAITING and "void" not in trial.user_attrs and config.exists()


def _result(folder: Path, trial: FrozenTrial) -> TrialResult:
    own, attributes = folder / "trials" / f"{trial.number:03d}", trial.user_attrs
    status: Status = attributes["status"] if trial.state.is_finished() else "running"
    reason = attributes["reason"] if trial.state.is_finished() else ""
    records = read_records(own / "metrics.jsonl")
    return TrialResult(trial.number, status, reason, dict(trial.params), attributes.get("baseline"), own, records)


def _results(folder: Path, trials: list[FrozenTrial]) -> list[TrialResult]:
    return [_result(folder, trial) for trial in trials if _began(folder, trial)]


def _refill(scheduler: Scheduler, results: list[TrialResult]) -> None:
    """Enter every point into the scheduler as it once was, in order of time, and who failed."""
    points = [(record["time_ms"], trial.number, trial, record) for trial in results for record in trial.points.values()]
    recipes = {trial.number: trial.config().recipe for trial in results}
    for _, number, trial, record in sorted(points, key=lambda point: point[:2]):
        group = peers(recipes[number], record)
        scheduler.decide(number, group, trial.baseline is not None, record["rung"], record["dev/score"])
    for trial in results:
        if trial.status == "failed":
            scheduler.lost(trial.number)


def _trust_snapshot(folder: Path) -> None:
    """Make a trial's records those of its snapshot; a snapshot that cannot be read is put aside, and the trial begins anew."""
    records: list[dict[str, Any]] = []
    try:
        _, records = read_snapshot(folder)
    except ValueError:
        path = state_file(folder)
        path.replace(path.with_name("unreadable.pt"))
    write_records(folder / "metrics.jsonl", records)


def stopped_at(rung: int, rungs: tuple[int, ...]) -> str:
    return f"stopped at {rung}/{rungs[-1]}"


def read_results(folder: Path, study_name: str) -> list[TrialResult]:
    """Every trial of a search that began, read and not written: for those who only look (`analysis`)."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    return _results(folder, optuna.load_study(study_name=study_name, storage=storage).get_trials(deepcopy=False))


def read_trials(folder: Path, study_name: str) -> list[TrialResult]:
    """The trials so far; none before the driver has made the study."""
    if not (folder / "study.journal").exists():  # Optuna would make it
        return []
    try:
        return read_results(folder, study_name)
    except KeyError:  # the journal is there, the study in it not yet
        return []
