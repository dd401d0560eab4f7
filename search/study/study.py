"""The state of a search: the Optuna study (a journal file) and the trials' own records. It resumes from only these.

A trial keeps its number: in the study, as its folder trials/NNN, as an MLflow run, at the rungs. Ray's own snapshot of an
experiment is not used. After a crash it loses rungs and runs points twice.

    space -> study.ask -> params + config -> trials/NNN/config.yaml -> Ray -> reports -> study, rungs, listener
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import optuna
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
from search.study.storage import StudyStorage

Status = Literal["running", "completed", "stopped", "failed"]
KEEP_BEST = 3  # ended trials whose weights a search keeps


@dataclass(frozen=True)
class TrialResult:
    """One trial, as its records show it. `points` maps each evaluated rung to its dev record."""

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
        """The last rung evaluated; 0 before the first."""
        return max(self.points, default=0)

    @property
    def best(self) -> dict[str, Any]:
        """The dev record of the best evaluation, which has the trial's score."""
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

    @cached_property
    def recipe(self) -> str:
        return self.config().recipe


def ranked(trials: Iterable[TrialResult]) -> list[TrialResult]:
    """Return the trials at the highest rung that any has reached, best score first. Failed trials are left out."""
    sound = [trial for trial in trials if trial.status != "failed" and trial.points]
    fullest = max((trial.rung for trial in sound), default=0)
    return sorted((trial for trial in sound if trial.rung == fullest), key=lambda trial: (-trial.score, trial.number))


def best_first(trials: Iterable[TrialResult]) -> list[TrialResult]:
    """Return all trials: the ranked ones, then the others by rung, highest first, and the failed ones last."""
    trials = list(trials)
    first = ranked(trials)
    numbers = {trial.number for trial in first}
    rest = [trial for trial in trials if trial.number not in numbers]
    return first + sorted(rest, key=lambda trial: (trial.status == "failed", -trial.rung, -trial.score, trial.number))


class Study:
    """The study in a search's folder. To open it twice is harmless, because each write concerns a trial that it already has."""

    def __init__(self, folder: Path, space: Space, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder, self.space, self.seed = folder, space, seed
        self.storage = StudyStorage(folder / "study.journal")
        optuna.create_study(study_name=space.name, storage=self.storage, direction="maximize", load_if_exists=True)
        self._study_id = self.storage.get_study_id_from_name(space.name)
        # a resumed sampler gets another seed, or it would suggest its first points again
        sampler_seed = seed_of(seed, "sampler", len(self._optuna_trials())) % 2**32
        sampler = space.settings.sampler.build(sampler_seed, space.combinations, len(space.baselines))
        self.study = optuna.load_study(study_name=space.name, storage=self.storage, sampler=sampler)
        self.waiting: dict[int, TrialResult] = {}  # trials paused at a rung until others have reached it
        self.storage.waiting = self.waiting.keys()
        self._enqueue_baselines()

    def _enqueue_baselines(self) -> None:
        known = {trial.user_attrs.get("baseline") for trial in self._optuna_trials() if "void" not in trial.user_attrs}
        for i in range(len(self.space.baselines)):
            if i not in known:
                self.study.enqueue_trial(self.space.baseline(i).params, user_attrs={"baseline": i})

    def _optuna_trials(self) -> list[FrozenTrial]:
        return self.storage.recorded_trials(self._study_id)

    def trial_folder(self, number: int) -> Path:
        return self.folder / "trials" / f"{number:03d}"

    def ask(self) -> TrialResult:
        """Begin a trial: sample its point, give its config its own seed, and write config.yaml into its folder.

        Raises ValueError if a hundred points in a row are impossible.
        """
        for _ in range(100):
            trial = self.study.ask()
            baseline = trial.user_attrs.get("baseline")
            sample = self._sample(trial, baseline)
            try:
                config = self.config(sample, trial.number)
            except SettingsError as error:  # pairs of branches were checked before; here three exclude each other
                self._void(trial.number, str(error))
                continue
            folder = self.trial_folder(trial.number)
            folder.mkdir(parents=True, exist_ok=True)
            with replaced(folder / "config.yaml", durable=True) as draft:
                draft.write_text(dump_yaml(as_written(config)), encoding="utf-8")
            return self.result(trial.number)
        raise ValueError("A hundred points in a row were impossible. Their reasons are in study.journal.")

    def _sample(self, trial: optuna.Trial, baseline: int | None) -> Sample:
        sample = self.space.sample(lambda name, domain: domain.suggest(trial, name))
        return sample if baseline is None else self.space.baseline(baseline)  # it may set values that are not searched

    def config(self, sample: Sample, number: int) -> TrialConfig:
        """Return the sampled config with the trial's own seed."""
        document = {**sample.document, "seed": seed_of(self.seed, "trial", number) % 2**31}
        return Sample(sample.params, document, sample.where).config()

    def _void(self, number: int, reason: str) -> None:
        """Mark a trial as never begun. It does not count, and if it is a baseline, the baseline is enqueued again."""
        self._set(number, "void", True)
        self.tell(number, "failed", reason)

    def _trial_id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self._study_id, number)

    def _set(self, number: int, key: str, value: Any) -> None:
        self.storage.set_trial_user_attr(self._trial_id(number), key, value)

    def report(self, number: int, rung: int, value: float) -> None:
        """Record a point's value. To repeat it changes nothing."""
        self.storage.set_trial_intermediate_value(self._trial_id(number), rung, value)

    def tell(self, number: int, status: Status, reason: str) -> TrialResult:
        """End a trial. The sampler learns from stopped and non-finite trials (PRUNED), but not from crashed ones (FAIL).

        Optuna's state is written last. If the driver is killed before, the trial is still running and is ended again.
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
        """Return every trial that began, by number."""
        return _results(self.folder, self._optuna_trials())

    def restore(self, scheduler: Scheduler) -> list[TrialResult]:
        """Read the trials' records back into study and scheduler, in the order of measurement. Return the unfinished trials.

        A trial whose snapshot has the last point is completed. One that the scheduler stops is stopped.
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
        self.keep_best()  # the driver may have been killed between the end of a trial and this
        return unfinished

    def keep_best(self) -> TrialResult | None:
        """Link the best trial and return it. Delete snapshots of ended trials, and weights except those of the best few."""
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
    """Repair a journal whose driver was killed while it wrote: remove Optuna's lock file and a truncated last line.

    Otherwise Optuna waits 30 s for the lock, and permanently rejects the journal after a line follows the truncated one. Only
    the process that holds the search's lock may call this.
    """
    journal = folder / "study.journal"
    journal.with_name("study.journal.lock").unlink(missing_ok=True)
    if journal.exists():
        data = journal.read_bytes()
        if not data.endswith(b"\n"):
            os.truncate(journal, data.rfind(b"\n") + 1)


def _began(folder: Path, trial: FrozenTrial) -> bool:
    """Return whether a trial counts: it was asked for, it has its config, and it is not void."""
    config = folder / "trials" / f"{trial.number:03d}" / "config.yaml"
    return trial.state != TrialState.WAITING and "void" not in trial.user_attrs and config.exists()


def _result(folder: Path, trial: FrozenTrial) -> TrialResult:
    trial_folder, attributes = folder / "trials" / f"{trial.number:03d}", trial.user_attrs
    status: Status = attributes["status"] if trial.state.is_finished() else "running"
    reason = attributes["reason"] if trial.state.is_finished() else ""
    records = read_records(trial_folder / "metrics.jsonl")
    return TrialResult(trial.number, status, reason, dict(trial.params), attributes.get("baseline"), trial_folder, records)


def _results(folder: Path, trials: list[FrozenTrial]) -> list[TrialResult]:
    return [_result(folder, trial) for trial in trials if _began(folder, trial)]


def _refill(scheduler: Scheduler, results: list[TrialResult]) -> None:
    """Give the scheduler every recorded point again, in order of time, then the failed trials."""
    points = [(record["time_ms"], trial.number, trial, record) for trial in results for record in trial.points.values()]
    for _, number, trial, record in sorted(points, key=lambda point: point[:2]):
        group = peers(trial.recipe, record)
        scheduler.decide(number, group, trial.baseline is not None, record["rung"], record["dev/score"])
    for trial in results:
        if trial.status == "failed":
            scheduler.lost(trial.number)


def _trust_snapshot(folder: Path) -> None:
    """Reset a trial's records to those of its snapshot. An unreadable snapshot is set aside, and the trial starts again."""
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
    """Read every trial of a search that began, without writing anything, as `analysis` needs it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = StudyStorage(folder / "study.journal")
    return _results(folder, optuna.load_study(study_name=study_name, storage=storage).get_trials(deepcopy=False))


def read_trials(folder: Path, study_name: str) -> list[TrialResult]:
    """Read the trials so far; none before the driver has created the study."""
    if not (folder / "study.journal").exists():  # Optuna would create it
        return []
    try:
        return read_results(folder, study_name)
    except KeyError:  # the journal has no study yet
        return []
