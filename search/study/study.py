"""The state of a search: the Optuna study (a journal file) and the trials' own records. It resumes from only these.

A trial keeps its number: in the study, as its folder trials/NNN, as an MLflow run, at the rungs. Ray's own snapshot of an
experiment is not used. After a crash it loses rungs and runs points twice.

    space -> study.ask -> params + config -> trials/NNN/config.yaml -> Ray -> reports -> study, rungs, listener
"""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState

from minbert_core.seeds import seed_of
from minbert_core.settings.faults import SettingsError
from minbert_core.train.trial import Record
from search.methods.decisions import STOP, Scheduler, arrival
from search.space.domains import Choice
from search.space.space import Sample, Space
from search.study.best import publish
from search.study.entry import POINT, arrivals_of, points_of, trial_folder, write_entry
from search.study.failures import CONSTRAINT, is_avoided, lesson_of
from search.study.gather import began, result_of
from search.study.journal import NAME
from search.study.limits import Limits, reported
from search.study.records import readable_records
from search.study.repair import config_text, write_config
from search.study.storage import StudyStorage, frozen_trials
from search.study.trial_files import OneDisk, TrialFiles
from search.study.trials import Status, TrialResult, Trials, stopped_at

KEEP_BEST = 3  # ended trials whose weights a search keeps
SCORE, DEV = "dev/score", "dev/"  # the value of a trial in the study; the user attributes that optuna-dashboard can plot


class Study:
    """The study in a search's folder. To open it twice is harmless, because each write concerns a trial that it already has.

    Which point the sampler suggests depends only on the search's seed, the trial's number and the study's state at that moment.
    So a search that was killed and resumed suggests what it would have suggested otherwise, as far as its trials reach their
    points in the same order: always with one slot. With several slots two runs differ, killed or not.
    """

    def __init__(
        self,
        folder: Path,
        space: Space,
        seed: int,
        files: TrialFiles | None = None,
        earlier: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """files: of the trials, where their processes do not see the folder. earlier: trials of an earlier search, as in
        plan.json, that the sampler knows."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder, self.space, self.seed = folder, space, seed
        self.files: TrialFiles = files or OneDisk()
        self.storage = StudyStorage(folder / NAME, space.settings.sampler.counts_stopped)
        optuna.create_study(study_name=space.name, storage=self.storage, direction="maximize", load_if_exists=True)
        self._study_id = self.storage.get_study_id_from_name(space.name)
        sampler = space.settings.sampler.build(space.combinations, len(space.baselines))
        self.study = optuna.load_study(study_name=space.name, storage=self.storage, sampler=sampler)
        if self.study.metric_names != [SCORE]:
            with warnings.catch_warnings(category=ExperimentalWarning, action="ignore"):
                self.study.set_metric_names([SCORE])
        self.waiting: dict[int, TrialResult] = {}  # trials paused at a rung until others have reached it
        self.storage.waiting = self.waiting.keys()
        self.storage.earlier = frozen_trials(earlier, {name: domain for name, (domain, _) in space.domains().items()})
        self._known: Trials | None = None  # every trial that began, as last heard of; None: not yet read
        self._num_arrivals = 0
        self.limits = Limits()
        self._with_weights: set[int] = set()  # ended trials that may have a folder best/
        self._enqueue_baselines()

    def _enqueue_baselines(self) -> None:
        known = {trial.user_attrs.get("baseline") for trial in self._optuna_trials() if "void" not in trial.user_attrs}
        for i in range(len(self.space.baselines)):
            if i not in known:
                self.study.enqueue_trial(self.space.baseline(i).params, user_attrs={"baseline": i})

    def _optuna_trials(self) -> list[FrozenTrial]:
        return self.storage.recorded_trials(self._study_id)

    def trial_folder(self, number: int) -> Path:
        return trial_folder(self.folder, number)

    def _entry(self, number: int) -> FrozenTrial:
        return self.storage.get_trial(self._trial_id(number))

    @property
    def _results(self) -> Trials:
        """Every trial that began, by number. They are read once, here or by `restore`."""
        if self._known is None:
            self._known = Trials()
            for entry in self._optuna_trials():
                if began(self.folder, entry):
                    self._keep(entry, self._written(entry.number))
        return self._known

    def _written(self, number: int) -> list[Record]:
        """Return what a trial's worker has written. It flushes each record before it reports."""
        return readable_records(self.trial_folder(number) / "metrics.jsonl")[0]

    def _keep(self, entry: FrozenTrial, records: list[Record]) -> TrialResult:
        """Keep in memory what is known of a trial."""
        self._results[entry.number] = result_of(self.folder, entry, records)
        self._num_arrivals = max([self._num_arrivals, *(arrival + 1 for arrival in arrivals_of(entry).values())])
        if entry.state.is_finished():
            self._with_weights.add(entry.number)
        return self._results[entry.number]

    def use_forecasts(self, forecasts: Callable[[], Mapping[int, float]]) -> None:
        """Let the sampler see trials that wait or were stopped with the scores at their end that a scheduler forecasts."""
        self.storage.forecasts = forecasts

    # ---- asking

    def ask(self) -> TrialResult:
        """Begin a trial: sample its point, give its config its own seed, and write config.yaml into its folder.

        Raises ValueError if a hundred points in a row are impossible.
        """
        for _ in range(100):
            seed = seed_of(self.seed, "sampler", len(self._optuna_trials())) % 2**32
            self.space.settings.sampler.seed(self.study.sampler, seed)
            trial = self.study.ask()
            sample = self._sample(trial, trial.user_attrs.get("baseline"))
            try:
                text, note = config_text(sample, self.seed, trial.number, self.limits.proposed)
            except SettingsError as error:  # pairs of branches were checked before; here three exclude each other
                self._void(trial.number, str(error))
                continue
            self._set(trial.number, "config", note)
            write_config(self.trial_folder(trial.number), text)
            return self._keep_both(trial.number, [])
        raise ValueError("A hundred points in a row were impossible. Their reasons are in study.journal.")

    def _sample(self, trial: optuna.Trial, baseline: int | None) -> Sample:
        sample = self.space.sample(lambda name, domain: domain.suggest(trial, name))
        return sample if baseline is None else self.space.baseline(baseline)  # it may set values that are not searched

    def _void(self, number: int, reason: str) -> None:
        """Mark a trial as never begun. It does not count, and if it is a baseline, the baseline is enqueued again."""
        self._set(number, "void", True)
        self._set(number, "status", "failed")
        self._set(number, "reason", reason)
        self.study.tell(number, state=TrialState.FAIL)

    def _trial_id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self._study_id, number)

    def _set(self, number: int, key: str, value: Any) -> None:
        self.storage.set_trial_user_attr(self._trial_id(number), key, value)

    # ---- telling

    def report(self, number: int, records: list[Record]) -> TrialResult:
        """Record a point: all records since the point before, the dev record last. To repeat it changes nothing.

        The study holds the dev record too, and its place in the order of arrival, in which the search decides.
        """
        dev = records[-1]
        if points_of(self._entry(number)).get(dev["rung"]) != dev:
            self._set(number, f"{POINT}{dev['rung']}", {"arrival": self._num_arrivals, "record": dev})
            self.storage.set_trial_intermediate_value(self._trial_id(number), dev["rung"], dev["dev/score"])
        known, written = self._results[number], self._written(number)
        if any(record not in written for record in (*known.points.values(), dev)):  # damaged, or not yet here from elsewhere
            written = [*known.records, *(record for record in records if record not in known.records)]
        self.limits.note(self._results[number], records)
        return self._keep_both(number, written)

    def _keep_both(self, number: int, records: list[Record]) -> TrialResult:
        """Keep in memory, and in the trial's folder, what the study has noted of a trial."""
        entry = self._entry(number)
        write_entry(self.trial_folder(number), entry)
        return self._keep(entry, records)

    def tell(self, number: int, status: Status, reason: str) -> TrialResult:
        """End a trial. The sampler learns from stopped and non-finite trials (PRUNED), but not from crashed ones (FAIL).

        From those that it should avoid (failures.py) it learns by a violated constraint.
        Optuna's state is written last. If the driver is killed before, the trial is still running and is ended again.
        """
        known, written = self._results[number], self._written(number)  # a failed trial may have more than it has reported
        if any(record not in written for record in known.points.values()):
            written = known.records
        trial, noted = self._keep(self._entry(number), written), points_of(self._entry(number))
        for record in trial.points.values() if status != "failed" else ():
            if record != noted.get(record["rung"]):
                self.report(number, [record])
        reason = self._with_lesson(number, reason) if status == "failed" else reason
        self._note_scores(trial)
        self._set(number, "status", status)
        self._set(number, "reason", reason)
        if status == "completed":
            self.study.tell(number, trial.score)
        else:
            if avoided := status == "failed" and is_avoided(reason):
                self.storage.set_trial_system_attr(self._trial_id(number), CONSTRAINT, 1.0)
            learns = avoided or status == "stopped" or reason.startswith("not finite")
            self.study.tell(number, state=TrialState.PRUNED if learns else TrialState.FAIL)
        return self._keep_both(number, written)

    def _note_scores(self, trial: TrialResult) -> None:
        """Note the scores of the best evaluation, per task and overall, as attributes of their own, for optuna-dashboard."""
        for key, value in trial.best.items() if trial.points else ():
            if key.startswith(DEV) and key != SCORE and isinstance(value, float) and math.isfinite(value):
                self._set(trial.number, key, value)

    def _with_lesson(self, number: int, reason: str) -> str:
        """Add to the reason of a failure the branches whose trials fail like this."""
        trials = {trial.number: trial for trial in self._optuna_trials() if "void" not in trial.user_attrs}
        params = trials.pop(number).params
        choices = [name for name, (domain, _) in self.space.domains().items() if isinstance(domain, Choice)]
        return lesson_of(params, reason, trials.values(), choices, self.space.settings.sampler.learns)

    def died(self, number: int, counts: bool = True) -> TrialResult:
        """Count a death of a trial's process, and reset its records to those of its snapshot. It stays `running`.

        counts: False if the trial had no part in it, as when its node was lost.
        """
        self._set(number, "deaths", self.result(number).deaths + counts)
        return self._keep_both(number, self.files.trusted_records(self.trial_folder(number)))

    def result(self, number: int) -> TrialResult:
        return self._results[number]

    def results(self) -> list[TrialResult]:
        """Return every trial that began, by number."""
        return list(self._results.values())  # they are read, and asked for, in the order of their numbers

    # ---- resuming

    def restore(self, scheduler: Scheduler, records: Mapping[int, list[Record]]) -> list[TrialResult]:
        """Read the trials' records back into study and scheduler, in the order of arrival. Return the unfinished trials.

        records: those that `repair` has checked.
        A trial whose snapshot has the last point is completed. One that the scheduler stops is stopped.
        """
        self._known = Trials()
        for entry in self._optuna_trials():
            if entry.state == TrialState.RUNNING and not began(self.folder, entry):
                self._void(entry.number, "the search ended before it began")
            elif began(self.folder, entry):
                self._restore(entry, records)
        self._enqueue_baselines()
        self._refill(scheduler)
        unfinished = []
        for trial in self.results():
            if trial.status != "running":
                continue
            if trial.rung == self.space.settings.rungs[-1]:
                self.tell(trial.number, "completed", "completed")
            elif scheduler.verdict(trial.number) == STOP:
                self.tell(trial.number, "stopped", f"{stopped_at(trial.rung, self.space.settings.rungs)}: {scheduler.law}")
            else:
                unfinished.append(trial)
        self.keep_best()  # the driver may have been killed between the end of a trial and this
        return unfinished

    def _restore(self, entry: FrozenTrial, records: Mapping[int, list[Record]]) -> None:
        """Take over a trial with its checked records; if it has not ended, with those of its snapshot."""
        is_running = entry.state == TrialState.RUNNING
        trusted = self.files.trusted_records(self.trial_folder(entry.number)) if is_running else records[entry.number]
        trial = self._keep(entry, trusted)
        self.limits.note(trial, reported(trial.records))

    def _refill(self, scheduler: Scheduler) -> None:
        """Give the scheduler every recorded point again, in order of arrival, then the failed and stopped trials.

        Points that were saved but had not arrived come last, in order of time, and arrive now.
        """
        points = [point for entry in self._optuna_trials() if entry.number in self._results for point in self._points(entry)]
        for _, _, number, record in sorted(points, key=lambda point: point[:3]):
            trial = self._results[number]
            if trial.status == "running":
                self.report(number, [record])
            scheduler.decide(arrival(number, trial.recipe, trial.baseline is not None, record))
        for trial in self.results():
            if trial.status in ("failed", "stopped"):
                scheduler.lost(trial.number)

    def _points(self, entry: FrozenTrial) -> Iterator[tuple[float, int, int, Record]]:
        """Yield (arrival, time, number, record) of each point that the scheduler has received, or receives now."""
        noted, arrivals = points_of(entry), arrivals_of(entry)
        for rung, record in self._results[entry.number].points.items():
            if noted.get(rung) == record:
                yield arrivals[rung], record["time_ms"], entry.number, record
            elif not entry.state.is_finished():
                yield math.inf, record["time_ms"], entry.number, record

    # ---- the best

    def keep_best(self) -> TrialResult | None:
        """Publish the best trial's model in best/, and return the trial.

        Delete snapshots of ended trials, and weights except those of the best few. It decides by the records in memory, which
        were reported here or checked by `restore`, never only by a file.
        """
        ranking = self._results.ranked()
        if ranking:
            self.files.bring_best(ranking[0].folder)
            publish(ranking[0].folder / "best", self.folder / "best")
        keep = {trial.number for trial in ranking[:KEEP_BEST]}
        for number in sorted(self._with_weights):
            trial = self._results[number]
            if number in keep:
                self.files.bring_best(trial.folder)
            if trial.status != "failed" or not trial.deaths:  # --retry-failed resumes a trial whose process died
                shutil.rmtree(trial.folder / "state", ignore_errors=True)
                self.files.clear(trial.folder)
            if number not in keep:
                shutil.rmtree(trial.folder / "best", ignore_errors=True)
        self._with_weights &= keep
        return ranking[0] if ranking else None
