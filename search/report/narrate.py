"""The report of a running search: one plain line per event on the terminal and in log.txt.

On a terminal a picture of the running trials is below the lines (screen.py); the Narrator provides its content.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from minbert_core.clock import now_ms
from minbert_core.config import OVERALL
from minbert_core.files import NO_SPACE
from minbert_core.terminal import Screen
from minbert_core.train.folder import append_record
from minbert_core.train.report import pretraining_told
from minbert_core.words import duration
from search.plan.folder import PRETRAINING
from search.report.draw import drawn
from search.report.screen import Picture, look, read_tail, render
from search.report.words import describe, differing_first, markdown, scores
from search.study.trials import TrialResult, Trials, best_first


def table(
    trials: Iterable[TrialResult], tasks: list[str], most: int = 10, gpus_per_trial: float = 0, unended: str = "running"
) -> list[str]:
    """Format the trials as rows of a Markdown table: those at the highest rung first, best score first, then the others.

    norm and mean are shown if there are several tasks. `unended` is the status shown for a trial that has not ended.
    """
    trials = best_first(trials)
    costs = ["minutes", "GPU-min"] if gpus_per_trial else ["minutes"]
    columns = ["score", *tasks, *(OVERALL if len(tasks) > 1 else ())]
    rows = [["trial", *columns, "last", "at", "status", *costs, "ex/s", "parameters"]]
    for trial in trials[:most]:
        best = trial.best if trial.points else {}
        cells = [f"{best[f'dev/{column}']:.4f}" if f"dev/{column}" in best else "" for column in columns]
        last = f"{trial.last['dev/score']:.4f}" if best else ""
        name = f"{trial.number:03d}" + (" (baseline)" if trial.baseline is not None else "")
        speed = f"{trial.examples / trial.seconds:.0f}" if trial.seconds else ""
        status = {"failed": f"failed: {trial.reason}", "running": unended}.get(trial.status, trial.status)
        minutes = [f"{trial.seconds / 60 * share:.1f}" for share in (1, gpus_per_trial)[: len(costs)]]
        rows.append([name, *cells, last, str(trial.rung or ""), status, *minutes, speed, describe(trial.params)])
    left_out = len(trials) - most
    return markdown(rows) + ([f"({left_out} more in the trials' folders and in MLflow)"] if left_out > 0 else [])


PRETRAINING_LINES = 10  # lines of progress per pretraining


class Narrator:
    """The listener of a search that prints and logs. It estimates the time left from the ended trials."""

    def __init__(self, folder: Path, tasks: list[str], num_trials: int, slots: int, full: int, budget: int = 0) -> None:
        self.tasks, self.num_trials, self.full = tasks, num_trials, full
        self.slots: Callable[[], float] = lambda: slots  # trials that have room now; on a cluster this changes
        self.budget = budget  # examples of a full trial
        self.log = (folder / "log.txt").open("a", buffering=1, encoding="utf-8")
        self.trials = Trials()
        self.pretraining: dict[str, dict[str, Any]] = {}  # pretraining before the trials: key -> last record
        self.folder = folder
        self.running: dict[int, str] = {}  # running trials -> their text in the picture
        self.began = time.monotonic()
        self.screen = Screen(lambda height: render(self.picture(), height))

    def say(self, text: str) -> None:
        """Print one line on the terminal, with the time, and in log.txt, with the date too."""
        self.screen.print(f"[{time.strftime('%T')}] {text}")
        self._log(f"{time.strftime('%F %T')} {text}")

    def _event(self, text: str, so_far: str = "") -> None:
        """Print an event of a trial: one line. Below the picture, which shows what is known so far, it is cut to the width."""
        self.screen.print(f"[{time.strftime('%T')}] {text}", more=so_far)
        self._log(f"{time.strftime('%F %T')} {text}{so_far}")

    def _log(self, line: str) -> None:
        """Write a line to log.txt. On a full disk only the terminal shows it, because the search still has to end well."""
        try:
            self.log.write(f"{line}\n")
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise

    def show(self, lines: Iterable[str]) -> None:
        """Print lines without the time, also in log.txt. Markdown tables among them are drawn if stdout is a terminal."""
        lines = list(lines)
        self.screen.draw(lambda width: drawn(lines, width), lines)
        for line in lines:
            self._log(line)

    def close(self) -> None:
        self.log.close()

    def pretrained(self, record: dict[str, Any]) -> None:
        """Keep a record of pretraining before the trials, and print it at the start, at the end and after every tenth."""
        append_record(self.folder / PRETRAINING, record)
        before = self.pretraining.get(record["key"], {})
        tenths = [int(PRETRAINING_LINES * known.get("pretrain/share", 0)) for known in (before, record)]
        if not before or "made" in record or tenths[0] < tenths[1]:
            self.say(pretraining_told(record))
        self.pretraining[record["key"]] = record
        if "made" in record:
            del self.pretraining[record["key"]]

    def replay(self, trials: list[TrialResult]) -> None:
        """Take over the trials of an interrupted search."""
        self.trials.update({trial.number: trial for trial in trials})  # |= would pass __setitem__ over

    def started(self, trial: TrialResult, resumed: bool) -> None:
        others = [other.params for other in self.trials.values()]
        self.trials[trial.number] = trial
        params = differing_first(trial.params, others)
        self.running[trial.number] = in_short(replace(trial, params=params))
        kind = f" (baseline {trial.baseline})" if trial.baseline is not None else ""
        how = "started" if not resumed else f"resumed from {trial.rung}/{self.full}" if trial.points else "restarted"
        self._event(f"{trial.number:03d} {how}{kind}  {describe(params)}")

    def reported(self, trial: TrialResult, new: list[dict[str, Any]]) -> None:
        self.trials[trial.number] = trial
        self._event(f"{trial.number:03d} at {trial.rung}/{self.full}  {scores(trial.last, self.tasks)}", self._so_far())

    def paused(self, trial: TrialResult, why: str) -> None:
        self.trials[trial.number] = trial
        self.running.pop(trial.number, None)
        self._event(f"{trial.number:03d} paused at {trial.rung}/{self.full}: {why}", self._so_far())

    def retried(self, trial: TrialResult, why: str) -> None:
        """Report that a trial's process died and that the trial resumes. Its run stays RUNNING."""
        self.trials[trial.number] = trial
        self.running.pop(trial.number, None)
        how = f"resumes from {trial.rung}/{self.full}" if trial.points else "starts again"
        self.say(f"{trial.number:03d} {why} {how}")

    def ended(self, trial: TrialResult) -> None:
        self.trials[trial.number] = trial
        self.running.pop(trial.number, None)
        score = f"  {trial.score:.4f}" if trial.points else ""
        reason = f"  {trial.reason}" if trial.reason != trial.status else ""
        text = f"{trial.number:03d} {trial.status}{score}{reason}"
        if trial.status == "failed":
            self.say(text + self._so_far())  # whole: the reason is needed
        else:
            self._event(text, self._so_far())

    def picture(self) -> Picture:
        """Return the picture of the search now, from the records of the running trials. A thread of the screen calls this."""
        moment, known = now_ms(), self.trials.data.copy()
        rows = []
        for number, text in sorted(self.running.copy().items()):
            trial = known[number]
            records = ([trial.last] if trial.points else []) + read_tail(trial.folder / "metrics.jsonl")
            rows.append(look(number, text, records, self.budget, self.full, moment))
        best, pretraining = self.best(), list(self.pretraining.values())
        text = f"best {best.number:03d} {scores(best.best, self.tasks)}  {describe(best.params)}" if best else "no score yet"
        elapsed = duration(time.monotonic() - self.began)
        progress = f"{self.num_done()}/{self.num_trials} done, {elapsed} elapsed{self._time_left()}"
        return Picture(rows, "; ".join(map(pretraining_told, pretraining)) or text, progress)

    def best(self) -> TrialResult | None:
        return next(iter(self.trials.ranked()), None)

    def num_done(self) -> int:
        return len(self.trials.ended)

    def _so_far(self) -> str:
        best = self.best()
        text = f"best {best.number:03d} {scores(best.best, self.tasks)}" if best else "no score yet"
        return f"  | {text} | {self.num_done()}/{self.num_trials} done{self._time_left()}"

    def _time_left(self) -> str:
        return time_left(self.trials, self.num_trials, self.slots())


def time_left(trials: Trials, num_trials: int, slots: float) -> str:
    """Format `, about 12 min left` from the mean time of ended trials with all slots busy.

    Empty if no trial has ended, if all have, and while there is no slot.
    """
    ended = [seconds for seconds in list(trials.ended.values()) if seconds]
    if not ended or not slots:
        return ""
    mean = sum(ended) / len(ended)
    running = [trial.seconds for trial in trials.running()]
    waiting = num_trials - len(trials)
    left = (waiting * mean + sum(max(mean - seconds, 0.1 * mean) for seconds in running)) / slots
    return f", about {duration(max(left, 1))} left" if waiting or running else ""


def in_short(trial: TrialResult) -> str:
    """Describe a trial for its row of the picture: its recipe, unless it is multitask, and its searched parameters."""
    recipe = trial.recipe
    return " ".join(filter(None, ["" if recipe == "multitask" else recipe, describe(trial.params)]))
