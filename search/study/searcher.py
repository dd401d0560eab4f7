"""Between Ray and the study: what Ray asks for trials, what it asks at their points, and when it ends all of them.

    Ray asks -> StudySearcher.suggest: a trial to go on with, else a new one; none for now; none any more
    a point  -> TuneScheduler: the space's scheduler, then the time left; Ray stops the trial there, or it goes on
    its end  -> StudySearcher: completed, stopped, failed, or paused

A *paused* trial has ended for Ray alone: it stays `running` in the study, its snapshot stays, and it goes on under its own
number, in this search once its scheduler lets it, or after `--resume`.
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

from search.methods.trial_schedulers import CONTINUE, PAUSE, STOP, Scheduler, peers
from search.study.study import Status, Study, TrialResult, stopped_at

NO_TIME = "no time left for its next point"
WAITS = "waits for the other trials of its rung"


class Listener(Protocol):
    """Who is told what happens: the terminal, the log, MLflow."""

    def started(self, trial: TrialResult, resumed: bool) -> None: ...
    def reported(self, trial: TrialResult, new: list[dict[str, Any]]) -> None: ...
    def paused(self, trial: TrialResult, why: str) -> None: ...
    def ended(self, trial: TrialResult) -> None: ...


def unlimited() -> float:
    """The seconds left to a search without `--hours`."""
    return math.inf


def seconds_to_next_point(rung: int, seconds: float, rungs: Sequence[int]) -> float:
    """What a trial that needed `seconds` up to `rung` is expected to need up to its next point; 0 where none is left."""
    return next((other - rung for other in rungs if other > rung), 0) * seconds / rung


class StudySearcher(Searcher):
    """What Ray asks for trials: first those to go on with, then new ones, until `num_trials` have begun.

    None that is not expected to reach its next point in `seconds_left()`: a new one is expected to need the longest that a
    trial of this search has needed for its first point, and to need nothing while that is not known. The longest start of a
    process (import, data, encoder) is added.
    """

    def __init__(
        self,
        study: Study,
        scheduler: Scheduler,
        num_trials: int,
        unfinished: list[TrialResult],
        listener: Listener,
        seconds_left: Callable[[], float] = unlimited,
        relocated: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(metric="score", mode="max")
        self.study, self.scheduler, self.num_trials, self.listener = study, scheduler, num_trials, listener
        self.seconds_left, self.relocated = seconds_left, dict(relocated or {})
        self.running: dict[str, TrialResult] = {}  # Ray's trial id -> what the listener knows of ours
        self.to_continue: dict[int, TrialResult] = {}
        begun = study.results()
        self.num_begun = len(begun)
        self.first_seconds: dict[str, float] = {}  # recipe -> the longest that a trial needed for its first point
        self.start_seconds = 0.0  # the longest from a suggestion to the first step
        self.suggested_at: dict[str, float] = {}  # Ray's trial id -> when, until the first report
        for trial in begun:
            if trial.points:
                self._note_first_point(trial.config().recipe, trial.points[min(trial.points)]["seconds"])
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

    # ---- giving out trials

    def suggest(self, trial_id: str) -> dict[str, Any] | Any:
        """The next trial's order, as `run_trial` takes it: one that waits first, then a new one. None: ask again; FINISHED."""
        if (number := self._next_to_continue()) is not None:
            trial, resumed = self.to_continue.pop(number), True
        elif self._may_begin():
            trial, resumed = self.study.ask(), False
            self.num_begun += 1
        else:
            return None if self.running else Searcher.FINISHED  # the end of one that runs may let another go on
        self.running[trial_id], self.suggested_at[trial_id] = trial, time.monotonic()
        self.listener.started(trial, resumed)
        order = {"number": trial.number, "folder": str(trial.folder), "exempt": trial.baseline is not None}
        return order | {"relocated": self.relocated}

    def has_more(self) -> bool:
        """Whether there is a trial to give out, and the time for it."""
        return self._may_begin() or self._next_to_continue() is not None

    def pause_the_rest(self) -> None:
        """After the last suggestion: tell the listener of the trials for which no time was left."""
        for trial in self.to_continue.values():
            self.listener.paused(trial, NO_TIME)

    def _next_to_continue(self) -> int | None:
        left = self.seconds_left()
        return next((number for number, trial in self.to_continue.items() if self._seconds_needed(trial) < left), None)

    def _may_begin(self) -> bool:
        needed = self.start_seconds + max(self.first_seconds.values(), default=0)  # its recipe is not drawn yet
        return self.num_begun < self.num_trials and needed < self.seconds_left()

    def _seconds_needed(self, trial: TrialResult) -> float:
        if trial.points:
            rungs = self.study.space.settings.rungs
            return self.start_seconds + seconds_to_next_point(trial.rung, trial.last["seconds"], rungs)
        longest = max(self.first_seconds.values(), default=0)
        return self.start_seconds + self.first_seconds.get(trial.config().recipe, longest)

    def _note_first_point(self, recipe: str, seconds: float) -> None:
        self.first_seconds[recipe] = max(seconds, self.first_seconds.get(recipe, 0))

    # ---- hearing of them

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A trial has reached a point: into the study, the link to the best, the listener."""
        known = self.running[trial_id]
        self.study.report(known.number, result["rung"], result["score"])
        self.running[trial_id] = self.study.result(known.number)
        seconds = result["records"][-1]["seconds"]
        if not known.points:
            self._note_first_point(result["recipe"], seconds)
        if (at := self.suggested_at.pop(trial_id, None)) is not None:
            self.start_seconds = max(self.start_seconds, time.monotonic() - at - (seconds - known.seconds))
        self.study.keep_best()
        self.listener.reported(self.running[trial_id], result["records"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if error:
            number = self.running.pop(trial_id).number
            self.scheduler.lost(number)
            self._tell(number, "failed", failure_reason(self.study.trial_folder(number)))
        else:
            self._end(trial_id, result or {})
        self._settle()

    def _end(self, trial_id: str, result: dict[str, Any]) -> None:
        """Ray has ended a trial: it was at its last point, or TuneScheduler said so."""
        number, rung = self.running[trial_id].number, self.running[trial_id].rung
        if self.study.result(number).rung > rung:  # the report at which a trial is stopped comes here only
            self.on_trial_result(trial_id, result)
        trial = self.running.pop(trial_id)
        verdict = self.scheduler.verdict(number)
        if trial.rung == self.study.space.settings.rungs[-1]:
            self._tell(number, "completed", "completed")
        elif verdict == STOP:
            self._stop(trial)
        elif verdict == PAUSE:
            self._wait(trial)
        else:
            self.listener.paused(trial, NO_TIME)

    def _settle(self) -> None:
        """Let those go on, and stop those, of which that holds by now."""
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
        self.listener.paused(trial, WAITS)

    def _stop(self, trial: TrialResult) -> None:
        where = stopped_at(trial.rung, self.study.space.settings.rungs)
        self._tell(trial.number, "stopped", f"{where}: {self.scheduler.law}")

    def _tell(self, number: int, status: Status, reason: str) -> None:
        ended = self.study.tell(number, status, reason)
        self.study.keep_best()
        self.listener.ended(ended)


class TuneScheduler(FIFOScheduler):
    """What Ray asks at a point: a trial goes on if its scheduler and `seconds_left()`, up to the next point, both let it.

    Ray's own pause is not used: a paused trial is stopped for Ray, which starts another that goes on from the snapshot.
    """

    def __init__(self, scheduler: Scheduler, rungs: Sequence[int], seconds_left: Callable[[], float] = unlimited) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.scheduler, self.rungs, self.seconds_left = scheduler, rungs, seconds_left

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as the searcher's

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True  # metric and mode are ours

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        rung = result["rung"]
        group = peers(result["recipe"], result["records"][-1])
        verdict = self.scheduler.decide(result["number"], group, result["exempt"], rung, result["score"])
        if rung == self.rungs[-1]:
            return CONTINUE  # it ends by itself after this report
        in_time = seconds_to_next_point(rung, result["records"][-1]["seconds"], self.rungs) < self.seconds_left()
        return CONTINUE if verdict == CONTINUE and in_time else STOP


class StopOnRequest(Stopper):
    """What Tune asks ten times a second: whether to end now. The trials that it ends so stay `running` in the study."""

    def __init__(self, requested: Callable[[], bool]) -> None:
        self.requested = requested

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as the searcher's

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.requested()


def failure_reason(folder: Path) -> str:
    """Why a trial failed, in a line: what it wrote itself, or that its process died without a word."""
    path = folder / "failure.txt"
    if not path.exists():
        return "its process died without a word (killed, perhaps out of memory)"
    kind, _, message = path.read_text(encoding="utf-8").partition(": ")
    path.unlink()
    first = (message.strip().splitlines() or [""])[0]
    return f"not finite: {first}" if kind == "NotFiniteError" else f"{kind}: {first}"
