"""The truth of a search: the Optuna study (a journal file) and the trials' own records; the Searcher that Ray asks; resume.

A trial keeps its number for life: in the study, as its folder trials/NNN, as MLflow run, in the rungs. Ray's own snapshot of an
experiment is not used: after a crash it loses rungs and runs points twice.

    space -> study.ask -> params + config -> trials/NNN/config.yaml -> Ray -> reports -> study, rungs, listener
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from minbert_core.config import TrialConfig, as_written, read_config, seed_of
from minbert_core.settings import SettingsError, dump_yaml
from minbert_core.train import load_snapshot
from search.rungs import RungScheduler
from search.space import Sample, Space
from search.trainable import read_records, state_file, write_records

Status = Literal["running", "completed", "stopped", "failed"]
KEEP_BEST = 3  # trials whose weights a search keeps


@dataclass(frozen=True)
class TrialResult:
    """One trial as its records tell it. `points` maps each evaluated part of the budget to its dev record."""

    number: int
    status: Status
    reason: str
    params: dict[str, Any]
    baseline: int | None
    folder: Path
    records: list[dict[str, Any]] = field(repr=False)

    @property
    def points(self) -> dict[int, dict[str, Any]]:
        return {record["part"]: record for record in self.records if record["kind"] == "dev"}

    @property
    def part(self) -> int:
        """The fullest part evaluated; 0 before the first."""
        return max(self.points, default=0)

    @property
    def best(self) -> dict[str, Any]:
        """The dev record of the best evaluation: the trial's score."""
        return max(self.points.values(), key=lambda record: record["dev/score"])

    @property
    def last(self) -> dict[str, Any]:
        return self.points[self.part]

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
    fullest = max((trial.part for trial in sound), default=0)
    return sorted((trial for trial in sound if trial.part == fullest), key=lambda trial: (-trial.score, trial.number))


class Listener(Protocol):
    """Who is told what happens: the terminal, the log, MLflow."""

    def started(self, trial: TrialResult, resumed: bool) -> None: ...
    def reported(self, trial: TrialResult, new: list[dict[str, Any]]) -> None: ...
    def ended(self, trial: TrialResult) -> None: ...


class Study:
    """The study of one search folder. Opening it twice is harmless; every write is of a number that it already knows."""

    def __init__(self, folder: Path, space: Space, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder, self.space, self.seed = folder, space, seed
        self.storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
        self.study = optuna.create_study(
            study_name=space.name, storage=self.storage, direction="maximize", load_if_exists=True, sampler=None
        )
        num_known = len(self.study.get_trials(deepcopy=False))
        # a resumed sampler draws on from another seed, else it would suggest its first points again
        self.study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=space.settings.sampler.startup, seed=seed_of(seed, "sampler", num_known) % 2**32
        )
        self._study_id = self.storage.get_study_id_from_name(space.name)
        self._enqueue_baselines()

    def _enqueue_baselines(self) -> None:
        known = {trial.user_attrs.get("baseline") for trial in self._optuna_trials() if "void" not in trial.user_attrs}
        for i in range(len(self.space.baselines)):
            if i not in known:
                self.study.enqueue_trial(self.space.baseline(i).params, user_attrs={"baseline": i})

    def _optuna_trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

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
            draft = folder / "config.yaml.tmp"
            draft.write_text(dump_yaml(as_written(config)), encoding="utf-8")
            draft.replace(folder / "config.yaml")
            return self.result(trial.number)
        raise ValueError("A hundred points in a row were impossible; see the reasons in study.journal. Does the space exclude itself?")

    def _sample(self, trial: optuna.Trial, baseline: int | None) -> Sample:
        over = self.space.baseline(baseline) if baseline is not None else None
        sample = self.space.sample(lambda name, domain: domain.suggest(trial, name))
        return over or sample

    def config(self, sample: Sample, number: int) -> TrialConfig:
        """The sampled config with what is a trial's own: its seed."""
        return Sample(sample.params, {**sample.document, "seed": seed_of(self.seed, "trial", number) % 2**31}, sample.where).config()

    def _void(self, number: int, reason: str) -> None:
        """A trial that never began: it does not count, and a baseline among them is enqueued again."""
        self._set(number, "void", True)
        self.tell(number, "failed", reason)

    def _trial_id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self._study_id, number)

    def _set(self, number: int, key: str, value: Any) -> None:
        self.storage.set_trial_user_attr(self._trial_id(number), key, value)

    def report(self, number: int, part: int, value: float) -> None:
        """A point's value; told again it stays the same."""
        self.storage.set_trial_intermediate_value(self._trial_id(number), part, value)

    def tell(self, number: int, status: Status, reason: str) -> TrialResult:
        """End a trial. Stopped and non-finite ones are PRUNED, which the sampler learns from; crashed ones FAIL, which it ignores."""
        self._set(number, "status", status)
        self._set(number, "reason", reason)
        result = self.result(number)
        if status == "completed":
            self.study.tell(number, result.score)
        else:
            learns = status == "stopped" or reason.startswith("not finite")
            self.study.tell(number, state=TrialState.PRUNED if learns else TrialState.FAIL)
        return result

    def result(self, number: int) -> TrialResult:
        trial = self.storage.get_trial(self._trial_id(number))
        attributes, folder = trial.user_attrs, self.trial_folder(number)
        params = {name: value for name, value in trial.params.items()}
        status = attributes.get("status", "running")
        return TrialResult(
            number, status, attributes.get("reason", ""), params, attributes.get("baseline"), folder, read_records(folder / "metrics.jsonl")
        )

    def results(self) -> list[TrialResult]:
        """Every trial that began, in order of number."""
        return [self.result(trial.number) for trial in self._optuna_trials() if self._began(trial)]

    def _began(self, trial: FrozenTrial) -> bool:
        return trial.state != TrialState.WAITING and "void" not in trial.user_attrs and (self.trial_folder(trial.number) / "config.yaml").exists()

    def restore(self, scheduler: RungScheduler) -> list[TrialResult]:
        """Read the trials' records back into study and rungs, in the order they were measured; the trials that must go on.

        A trial whose snapshot holds the last point is told completed; one that its rung would have stopped is told stopped.
        """
        for trial in self._optuna_trials():
            if trial.state == TrialState.RUNNING and not self._began(trial):
                self._void(trial.number, "the search ended before it began")
            elif trial.state == TrialState.RUNNING:
                _trust_snapshot(self.trial_folder(trial.number))
        self._enqueue_baselines()
        results = self.results()
        verdicts = {trial.number: TrialScheduler.CONTINUE for trial in results}
        points = [(record["time_ms"], trial, record) for trial in results for record in trial.points.values()]
        recipes = {trial.number: trial.config().recipe for trial in results}
        for _, trial, record in sorted(points, key=lambda item: (item[0], item[1].number)):
            exempt = trial.baseline is not None
            verdicts[trial.number] = scheduler.decide(trial.number, recipes[trial.number], exempt, record["part"], record["dev/score"])
            if trial.status == "running":
                self.report(trial.number, record["part"], record["dev/score"])
        unfinished = []
        for trial in results:
            if trial.status != "running":
                continue
            if trial.part == self.space.settings.rungs[-1]:
                self.tell(trial.number, "completed", "completed")
            elif verdicts[trial.number] == TrialScheduler.STOP:
                self.tell(trial.number, "stopped", stopped_at(trial.part, self.space.settings.rungs))
            else:
                unfinished.append(trial)
        return unfinished

    def keep_best(self) -> TrialResult | None:
        """Keep the weights of the best few ended trials, drop the others' and all leftover states, link the best; the best."""
        results = self.results()
        ranking = ranked(results)
        keep = {trial.number for trial in ranking[:KEEP_BEST]}
        for trial in results:
            if trial.status != "running":
                shutil.rmtree(trial.folder / "state", ignore_errors=True)
                if trial.number not in keep:
                    shutil.rmtree(trial.folder / "best", ignore_errors=True)
        if not ranking:
            return None
        link, draft = self.folder / "best", self.folder / f"best.tmp-{ranking[0].number}"
        draft.unlink(missing_ok=True)
        draft.symlink_to(Path("trials") / f"{ranking[0].number:03d}" / "best")
        draft.replace(link)
        return ranking[0]


def _trust_snapshot(folder: Path) -> None:
    """Make a trial's records those of its snapshot; a snapshot that cannot be read is put aside, and the trial begins anew."""
    path, records = state_file(folder), []
    if path.exists():
        try:
            _, records = load_snapshot(path)
        except ValueError:
            path.replace(path.with_name("unreadable.pt"))
    write_records(folder / "metrics.jsonl", records)


def stopped_at(part: int, rungs: tuple[int, ...]) -> str:
    return f"stopped at {part}/{rungs[-1]}: below the best 1/{rungs[1] // rungs[0]} of its rung"


class StudySearcher(Searcher):  # type: ignore[misc]
    """What Ray asks for trials: first those to continue, then new ones, until `num_trials` have begun."""

    def __init__(self, study: Study, num_trials: int, to_continue: list[TrialResult], listener: Listener) -> None:
        super().__init__(metric="score", mode="max")
        self.study, self.num_trials, self.listener = study, num_trials, listener
        self.queue: Iterator[TrialResult] = iter(to_continue)
        self.num_begun = len(study.results())
        self.running: dict[str, int] = {}  # Ray's trial id -> our number

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles the searcher into a snapshot that we never read

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a search is resumed from its study")

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        trial = next(self.queue, None)
        resumed = trial is not None
        if trial is None:
            if self.num_begun >= self.num_trials:
                return str(Searcher.FINISHED)
            trial = self.study.ask()
            self.num_begun += 1
        self.running[trial_id] = trial.number
        self.listener.started(trial, resumed)
        return {"number": trial.number, "folder": str(trial.folder), "exempt": trial.baseline is not None}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        number = self.running[trial_id]
        self.study.report(number, result["part"], result["score"])
        self.listener.reported(self.study.result(number), result["records"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number = self.running.pop(trial_id)
        if error:
            ended = self.study.tell(number, "failed", failure_reason(self.study.trial_folder(number)))
        else:
            ended = self._end(number, result)
        self.study.keep_best()
        self.listener.ended(ended)

    def _end(self, number: int, result: dict[str, Any] | None) -> TrialResult:
        rungs = self.study.space.settings.rungs
        known = self.study.result(number)
        if known.part not in self.study.storage.get_trial(self.study._trial_id(number)).intermediate_values and known.points:
            # the report at which a trial is stopped comes here only
            self.study.report(number, known.part, known.last["dev/score"])
            self.listener.reported(known, (result or {}).get("records", []))
        if known.part == rungs[-1]:
            return self.study.tell(number, "completed", "completed")
        return self.study.tell(number, "stopped", stopped_at(known.part, rungs))


def failure_reason(folder: Path) -> str:
    """Why a trial failed, in a line: what it wrote itself, or that its process died without a word."""
    path = folder / "failure.txt"
    if not path.exists():
        return "its process died without a word (killed, perhaps out of memory)"
    kind, _, message = path.read_text(encoding="utf-8").partition(": ")
    path.unlink()
    first = (message.strip().splitlines() or [""])[0]
    return f"not finite: {first}" if kind == "NotFiniteError" else f"{kind}: {first}"


def read_results(folder: Path, study_name: str) -> list[TrialResult]:
    """Every trial of a search that began, read and not written: for those who only look (`analysis`)."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    results = []
    for trial in optuna.load_study(study_name=study_name, storage=storage).get_trials(deepcopy=False):
        path = folder / "trials" / f"{trial.number:03d}"
        attributes = trial.user_attrs
        if "void" not in attributes and (path / "config.yaml").exists():
            status, reason = attributes.get("status", "running"), attributes.get("reason", "")
            records = read_records(path / "metrics.jsonl")
            results.append(TrialResult(trial.number, status, reason, dict(trial.params), attributes.get("baseline"), path, records))
    return results
