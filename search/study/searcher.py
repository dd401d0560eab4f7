"""The bridge between Ray and the study: it supplies trials, decides at their points, and ends the search.

    Ray asks for a trial -> StudySearcher.suggest: a trial to resume, or a new one; none for now; none any more
    a trial reports      -> TuneScheduler: stop or continue, by the space's scheduler and the time left
    a trial ends         -> StudySearcher: completed, stopped, failed, or paused
    its process dies     -> StudySearcher: retried from its snapshot, and failed only once its attempts are used up

A *paused* trial has ended only for Ray. It stays `running` in the study and keeps its snapshot and number. It resumes in this
search once its scheduler permits, or after `--resume`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from minbert_core.train.pretraining import never
from search.methods.decisions import CONTINUE, PAUSE, STOP, Scheduler, arrival
from search.space.space import Space
from search.study.failures import OUT_OF_MEMORY
from search.study.full_disk import DiskWatch
from search.study.messages import Order, Report, as_dict
from search.study.trial_files import TrialFiles
from search.study.trials import Status, TrialResult, stopped_at
from search.study.watchdog import Watchdog, end_process, silence

NO_TIME = "no time left for its next point"
DIED = "its process died without an error (killed, perhaps out of memory)"


class Listener(Protocol):
    """A recipient of the search's events: the terminal, the log, MLflow, TensorBoard, W&B."""

    def started(self, trial: TrialResult, resumed: bool) -> None: ...
    def reported(self, trial: TrialResult, new: list[dict[str, Any]]) -> None: ...
    def paused(self, trial: TrialResult, why: str) -> None: ...
    def retried(self, trial: TrialResult, why: str) -> None: ...
    def ended(self, trial: TrialResult) -> None: ...


class TrialStore(Protocol):
    """The trials of a search, as the searcher asks for them and reports on them: `Study`, or a simulated one."""

    waiting: dict[int, TrialResult]
    folder: Path  # of the search
    files: TrialFiles

    @property
    def space(self) -> Space: ...
    def ask(self) -> TrialResult: ...
    def report(self, number: int, records: list[dict[str, Any]]) -> TrialResult: ...
    def tell(self, number: int, status: Status, reason: str) -> TrialResult: ...
    def died(self, number: int, counts: bool = True) -> TrialResult: ...
    def results(self) -> list[TrialResult]: ...
    def keep_best(self) -> TrialResult | None: ...
    def use_forecasts(self, forecasts: Callable[[], Mapping[int, float]]) -> None: ...
    def trial_folder(self, number: int) -> Path: ...


def unlimited() -> float:
    """Return the seconds left to a search without `--hours`, or the slots where only Ray limits the trials at a time."""
    return math.inf


def nowhere(_: Path) -> str:
    """Return the node that a trial's process was lost with: none, because this machine is the only one."""
    return ""


def seconds_to_next_point(rung: int, seconds: float, rungs: Sequence[int]) -> float:
    """Return the expected time from `rung`, reached after `seconds`, to the next rung; 0 at the last."""
    return next((other - rung for other in rungs if other > rung), 0) * seconds / rung


class StudySearcher(Searcher):
    """Ray's source of trials: first those to resume, then new ones, until `num_trials` have begun.

    Trials that are not expected to reach their next point within `seconds_left()` are not started. A new trial is expected to
    need as long as the slowest trial of this search needed for its first point, or nothing while that is unknown. The longest
    start of a process (imports, data, encoder) is added.
    """

    def __init__(
        self,
        study: TrialStore,
        scheduler: Scheduler,
        num_trials: int,
        unfinished: list[TrialResult],
        listener: Listener,
        seconds_left: Callable[[], float] = unlimited,
        relocated: Mapping[str, str] | None = None,
        retries: int = 1,
        patience_seconds: float = math.inf,
    ) -> None:
        super().__init__(metric="score", mode="max")
        self.study, self.scheduler, self.num_trials, self.listener = study, scheduler, num_trials, listener
        self.seconds_left, self.relocated = seconds_left, dict(relocated or {})
        self.disk = DiskWatch()
        self.retries, self.watchdog = retries, Watchdog(patience_seconds)
        self.hung: dict[int, str] = {}  # trials whose process the watchdog has ended -> the reason
        self.num_slots: Callable[[], float] = unlimited  # trials that have room now; on a cluster this changes
        self.room = math.inf  # the slots when they were last asked for
        self.lost_node: Callable[[Path], str] = nowhere  # a trial's folder -> the node that it was lost with, in words
        self.is_halted: Callable[[], bool] = never  # an interrupt, or Ray itself has died
        self.running: dict[str, TrialResult] = {}  # Ray's trial id -> our trial, as last reported
        self.to_continue: dict[int, TrialResult] = {}
        study.use_forecasts(scheduler.forecasts)
        begun = study.results()
        self.num_begun = len(begun)
        self.first_seconds: dict[str, float] = {}  # recipe -> the longest time to a first point
        self.start_seconds = 0.0  # the longest time from a suggestion to the first step
        self.suggested_at: dict[str, float] = {}  # Ray's trial id -> time, until the first report
        for trial in begun:
            if trial.points:
                self._note_first_point(trial.recipe, trial.points[min(trial.points)]["seconds"])
        for trial in unfinished:
            if scheduler.verdict(trial.number) == PAUSE:
                self._wait(trial)
            else:
                self.to_continue[trial.number] = trial

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles the searcher into a snapshot that we never read

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a search is resumed from its study")

    # ---- supplying trials

    def suggest(self, trial_id: str) -> dict[str, Any] | Any:
        """Return the order of the next trial: one to resume, then a new one. None: ask again later. FINISHED: no more."""
        if self.disk.fault is None and not self.is_halted():
            with self.disk.noted():
                return self._suggest(trial_id)
        return None if self.running else Searcher.FINISHED  # the search is about to be stopped

    def _suggest(self, trial_id: str) -> dict[str, Any] | Any:
        self.room = self.num_slots()
        if self.running and len(self.running) >= self.room:
            return None
        if (number := self._next_to_continue()) is not None or (number := self._thawed()) is not None:
            trial, resumed = self.to_continue.pop(number), True
        elif self._may_begin():
            trial, resumed = self.study.ask(), False
            self.num_begun += 1
        else:
            return None if self.running else Searcher.FINISHED  # a running trial's end may let another resume
        route = self.study.files.route(trial.folder)
        self.running[trial_id], self.suggested_at[trial_id] = trial, time.monotonic()
        self.watchdog.begin(trial.number, trial.folder)
        self.hung.pop(trial.number, None)
        self.listener.started(trial, resumed)
        return as_dict(Order(trial.number, str(trial.folder), trial.baseline is not None, self.relocated, route))

    def has_more(self) -> bool:
        """Return whether there is a trial left, and the time for it."""
        left, waiting = self.seconds_left(), self.study.waiting.values()
        may_continue = self._next_to_continue() is not None or any(self._seconds_needed(trial) < left for trial in waiting)
        return self._may_begin() or may_continue

    def pause_the_rest(self) -> None:
        """Report the trials as paused for which no time was left, after the last suggestion."""
        for trial in self.to_continue.values():
            self.listener.paused(trial, NO_TIME)

    def _next_to_continue(self) -> int | None:
        left, furthest_first = self.seconds_left(), sorted(self.to_continue.values(), key=lambda trial: -trial.rung)
        return next((trial.number for trial in furthest_first if self._seconds_needed(trial) < left), None)

    def _thawed(self) -> int | None:
        """Let the scheduler choose between the waiting trials that have the time and a new one. Return the one to continue."""
        left, waiting = self.seconds_left(), self.study.waiting
        fitting = {number for number, trial in waiting.items() if self._seconds_needed(trial) < left}
        number = self.scheduler.choose(self._may_begin(), fitting)
        if number is not None:
            self.to_continue[number] = waiting.pop(number)
        return number

    def _may_begin(self) -> bool:
        needed = self.start_seconds + max(self.first_seconds.values(), default=0)  # its recipe is not known yet
        return self.num_begun < self.num_trials and needed < self.seconds_left()

    def _seconds_needed(self, trial: TrialResult) -> float:
        if trial.points:
            rungs = self.study.space.settings.rungs
            return self.start_seconds + seconds_to_next_point(trial.rung, trial.last["seconds"], rungs)
        longest = max(self.first_seconds.values(), default=0)
        return self.start_seconds + self.first_seconds.get(trial.recipe, longest)

    def _note_first_point(self, recipe: str, seconds: float) -> None:
        self.first_seconds[recipe] = max(seconds, self.first_seconds.get(recipe, 0))

    # ---- receiving their results

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Record a trial's new point: in the study, the copy of the best, and the listener. Nothing on a full disk."""
        if self.disk.fault is None:
            with self.disk.noted():
                self._receive(trial_id, result)

    def _receive(self, trial_id: str, result: dict[str, Any]) -> None:
        report, before = Report.received(result), self.running[trial_id]
        self.study.files.arrive(before.folder)
        self.running[trial_id] = self.study.report(before.number, report.records)
        seconds = report.records[-1]["seconds"]
        if not before.points:
            self._note_first_point(report.recipe, seconds)
        if (suggested_at := self.suggested_at.pop(trial_id, None)) is not None:
            self.start_seconds = max(self.start_seconds, time.monotonic() - suggested_at - (seconds - before.seconds))
        self.study.keep_best()
        self.listener.reported(self.running[trial_id], report.records)
        self._decide_waiting()

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record how a trial ended. On a full disk it stays `running`, and resumes from its snapshot once there is room."""
        self.watchdog.forget(self.running[trial_id].number)
        if self.disk.fault is None:
            with self.disk.noted():
                self.study.files.arrive(self.running[trial_id].folder)
                if not (error and self.disk.is_full_for(self.running[trial_id].folder)):
                    self._complete(trial_id, result, error)

    def _complete(self, trial_id: str, result: dict[str, Any] | None, error: bool) -> None:
        if self.is_halted():  # the trial has saved its state, or died with Ray: it stays `running`
            del self.running[trial_id]
        elif error:
            self._fail(trial_id)
        else:
            self._end(trial_id, result or {})
        self._decide_waiting()

    def _end(self, trial_id: str, result: dict[str, Any]) -> None:
        """Record that Ray ended a trial, because it was at its last point or TuneScheduler stopped it."""
        rung = self.running[trial_id].rung
        if result and Report.received(result).rung > rung:  # the report at which a trial is stopped arrives only here
            self._receive(trial_id, result)
        trial = self.running.pop(trial_id)
        if not self._is_decided(trial):
            self.listener.paused(trial, NO_TIME)

    def _is_decided(self, trial: TrialResult) -> bool:
        """End a trial at its last point, or stop it or let it wait, as its scheduler decides. False: it may continue."""
        verdict = self.scheduler.verdict(trial.number)
        if trial.rung == self.study.space.settings.rungs[-1]:
            self._tell(trial.number, "completed", "completed")
        elif verdict == STOP:
            self._stop(trial)
        elif verdict == PAUSE:
            self._wait(trial)
        else:
            return False
        return True

    def _fail(self, trial_id: str) -> None:
        """Record that a trial failed, unless its process died and it has an attempt left."""
        number = self.running[trial_id].number
        why = failure_reason(self.study.trial_folder(number))
        if hung := self.hung.pop(number, None):
            why, is_retried = hung, self._retry(trial_id, f"was ended: {hung}")
        elif why == DIED and (node := self.lost_node(self.study.trial_folder(number))):
            self._again(trial_id, self.study.died(number, counts=False), f"was on {node};")
            return
        else:
            is_retried = why == DIED and self._retry(trial_id, "died (killed, perhaps out of memory)")
        if is_retried:
            return
        del self.running[trial_id]
        self.scheduler.lost(number)
        self._tell(number, "failed", why)

    def num_training(self) -> int:
        """Return how many running trials have begun to train and so have something to save."""
        return sum(self.watchdog.is_training(trial.number) for trial in self.running.values())

    def end_hanging(self) -> None:
        """End the processes of the trials that have been silent for too long. Ray then reports their deaths.

        After a fault of the disk or the storage it does nothing: `running` then has trials that have ended.
        """
        if self.disk.fault is not None:
            return
        trials = [(trial.number, trial.folder) for trial in self.running.values()]
        for number, seconds in self.watchdog.look(trials).items():
            self.hung[number] = silence(seconds)
            end_process(self.study.trial_folder(number))

    def _retry(self, trial_id: str, why: str) -> bool:
        """Count a death of a trial's process. If an attempt is left, let the trial resume from its snapshot and return True."""
        before = self.running[trial_id]
        trial = self.study.died(before.number)
        if trial.deaths > self.retries:
            return False
        self._again(trial_id, trial, f"{why}; attempt {trial.deaths + 1} of {self.retries + 1}")
        return True

    def _again(self, trial_id: str, trial: TrialResult, why: str) -> None:
        """Let a trial whose process has died resume from its snapshot, or end as its last point decides."""
        before = self.running[trial_id]
        self.listener.retried(trial, why)
        self.suggested_at.pop(trial_id, None)
        for rung, record in trial.points.items():
            if rung > before.rung:  # it was saved, but the process died before its report
                is_exempt, new = trial.baseline is not None, trial.records[: trial.records.index(record) + 1]
                self.scheduler.decide(arrival(trial.number, trial.recipe, is_exempt, record))
                report = Report(trial.number, trial.recipe, is_exempt, rung, record["dev/score"], new)
                self.on_trial_result(trial_id, as_dict(report))
        trial = self.running.pop(trial_id)
        if not self._is_decided(trial):
            self.to_continue[trial.number] = trial

    def _decide_waiting(self) -> None:
        """Resume or stop the waiting trials whose verdict is now known."""
        for trial in list(self.study.waiting.values()):
            verdict = self.scheduler.verdict(trial.number)
            if verdict != PAUSE:
                del self.study.waiting[trial.number]
            if verdict == CONTINUE:
                self.to_continue[trial.number] = trial
            elif verdict == STOP:
                self._stop(trial)

    def _wait(self, trial: TrialResult) -> None:
        self.study.waiting[trial.number] = trial
        self.listener.paused(trial, self.scheduler.why_waits)

    def _stop(self, trial: TrialResult) -> None:
        rung = stopped_at(trial.rung, self.study.space.settings.rungs)
        self._tell(trial.number, "stopped", f"{rung}: {self.scheduler.law}")

    def _tell(self, number: int, status: Status, reason: str) -> None:
        ended = self.study.tell(number, status, reason)
        self.study.keep_best()
        self.listener.ended(ended)


class TuneScheduler(FIFOScheduler):
    """Ray's decision at a point. A trial continues if its scheduler permits and `seconds_left()` suffices for the next point.

    Ray's own pause is not used. For Ray a paused trial is stopped, and another one later resumes from its snapshot.
    """

    def __init__(self, scheduler: Scheduler, rungs: Sequence[int], seconds_left: Callable[[], float] = unlimited) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.scheduler, self.rungs, self.seconds_left = scheduler, rungs, seconds_left

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as in StudySearcher

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True  # metric and mode are ours

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        report = Report.received(result)
        rung, record = report.rung, report.records[-1]
        verdict = self.scheduler.decide(arrival(report.number, report.recipe, report.exempt, record))
        if rung == self.rungs[-1]:
            return CONTINUE  # it ends by itself after this report
        in_time = seconds_to_next_point(rung, record["seconds"], self.rungs) < self.seconds_left()
        return CONTINUE if verdict == CONTINUE and in_time else STOP


class StopOnRequest(Stopper):
    """Tune's question, ten times per second, whether to end now. Trials that it ends this way stay `running` in the study.

    `meanwhile` is called each time.
    """

    def __init__(self, requested: Callable[[], bool], meanwhile: Callable[[], None]) -> None:
        self.requested, self.meanwhile = requested, meanwhile

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as in StudySearcher

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        self.meanwhile()
        return self.requested()


KINDS = {"NotFiniteError": "not finite", "DoesNotFitError": OUT_OF_MEMORY}  # of errors that a sampler learns from


def failure_reason(folder: Path) -> str:
    """Return the reason of a trial's failure in one line, from its failure.txt, and delete that file."""
    path = folder / "failure.txt"
    if not path.exists():
        return DIED
    kind, _, message = path.read_text(encoding="utf-8").partition(": ")
    path.unlink()
    first_line = (message.strip().splitlines() or [""])[0]
    return f"{KINDS.get(kind, kind)}: {first_line}"
