"""What a search tells while it runs: one plain line an event on the terminal and in log.txt, and all of it to MLflow."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from search.study import TrialResult, ranked
from search.tracking import Tracker


def short_name(path: str) -> str:
    """The last words of a path that tell it apart for a reader: `optimizer/lr` -> `lr`, `tasks/all/pooling` -> `pooling`."""
    return path.rpartition("/")[2]


def describe(params: dict[str, Any]) -> str:
    """The searched parameters of a trial in a few words: `smoothness=smart lr=3.2e-05`."""
    values = {name: f"{value:.3g}" if isinstance(value, float) else str(value) for name, value in params.items()}
    return " ".join(f"{short_name(name)}={value}" for name, value in values.items())


def scores(record: dict[str, Any], tasks: Iterable[str]) -> str:
    """`0.7203 (sst .441 para .812 sts .845)` of a dev record."""
    each = " ".join(f"{task} {record[f'dev/{task}']:.3f}".replace(" 0.", " .") for task in tasks)
    return f"{record['dev/score']:.4f} ({each})"


def table(trials: Iterable[TrialResult], tasks: list[str], most: int = 10) -> list[str]:
    """The trials as rows of a Markdown table: the fullest rung first, best score first, then the others, fullest first."""
    trials = list(trials)
    first = ranked(trials)
    rest = [trial for trial in trials if trial not in first]
    rest.sort(key=lambda trial: (trial.status == "failed", -trial.part, -trial.score))
    rows = [["trial", "score", *tasks, "norm", "mean", "last", "at", "status", "minutes", "ex/s", "parameters"]]
    for trial in [*first, *rest][:most]:
        best = trial.best if trial.points else {}
        cells = [f"{best[f'dev/{key}']:.4f}" if best else "" for key in ("score", *tasks, "norm", "mean")]
        last = f"{trial.last['dev/score']:.4f}" if best else ""
        name = f"{trial.number:03d}" + (" (baseline)" if trial.baseline is not None else "")
        speed = f"{trial.examples / trial.seconds:.0f}" if trial.seconds else ""
        status = trial.status if trial.status != "failed" else f"failed: {trial.reason}"
        minutes = f"{trial.seconds / 60:.1f}"
        rows.append([name, *cells, last, str(trial.part or ""), status, minutes, speed, describe(trial.params)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    left_out = len(trials) - most
    return lines + ([f"({left_out} more in the trials' folders and in MLflow)"] if left_out > 0 else [])


class Narrator:
    """The listener of a search: prints, logs, and hands on to MLflow. Times left are guesses from the trials ended so far."""

    def __init__(self, folder: Path, tasks: list[str], num_trials: int, slots: int, parts: int, tracker: Tracker) -> None:
        self.tasks, self.num_trials, self.slots, self.parts, self.tracker = tasks, num_trials, slots, parts, tracker
        self.log = (folder / "log.txt").open("a", buffering=1, encoding="utf-8")
        self.trials: dict[int, TrialResult] = {}
        self.warned = False

    def say(self, text: str) -> None:
        """One line to the terminal, with the hour, and to log.txt, with the date."""
        print(f"[{time.strftime('%T')}] {text}", flush=True)
        self.log.write(f"{time.strftime('%F %T')} {text}\n")

    def show(self, lines: Iterable[str]) -> None:
        """Lines as they are, to the terminal and to log.txt."""
        for line in lines:
            print(line, flush=True)
            self.log.write(f"{line}\n")

    def close(self) -> None:
        self.log.close()

    def replay(self, trials: list[TrialResult]) -> None:
        """Take in the trials of an interrupted search, and tell MLflow everything again (what it knows it keeps)."""
        for trial in trials:
            self.trials[trial.number] = trial
            first = trial.records[0]["time_ms"] if trial.records else None
            self.tracker.trial_started(*self._run(trial), time_ms=first)
            if trial.status == "running":
                self.tracker.records(trial.number, trial.records)
            else:
                self._ended_in_mlflow(trial)

    def started(self, trial: TrialResult, resumed: bool) -> None:
        self.trials[trial.number] = trial
        self.tracker.trial_started(*self._run(trial))
        kind = f" (baseline {trial.baseline})" if trial.baseline is not None else ""
        how = "started" if not resumed else f"goes on from {trial.part}/{self.parts}" if trial.points else "begins again"
        self.say(f"{trial.number:03d} {how}{kind}  {describe(trial.params)}")

    def reported(self, trial: TrialResult, new: list[dict[str, Any]]) -> None:
        self.trials[trial.number] = trial
        self.tracker.records(trial.number, new)
        self.say(f"{trial.number:03d} at {trial.part}/{self.parts}  {scores(trial.last, self.tasks)}  {self._so_far()}")

    def ended(self, trial: TrialResult) -> None:
        self.trials[trial.number] = trial
        self._ended_in_mlflow(trial)
        score = f"  {trial.score:.4f}" if trial.points else ""
        reason = f"  {trial.reason}" if trial.reason != trial.status else ""
        self.say(f"{trial.number:03d} {trial.status}{score}{reason}  {self._so_far()}")
        if self.tracker.error and not self.warned:
            self.warned = True
            self.say(f"MLflow: {self.tracker.error} The search goes on; metrics.jsonl keeps all, and --resume logs it again.")

    def best(self) -> TrialResult | None:
        return next(iter(ranked(self.trials.values())), None)

    def num_done(self) -> int:
        return sum(trial.status != "running" for trial in self.trials.values())

    def _so_far(self) -> str:
        best = self.best()
        text = f"best {best.number:03d} {scores(best.best, self.tasks)}" if best else "no score yet"
        return f"| {text} | {self.num_done()}/{self.num_trials} done{self._time_left()}"

    def _time_left(self) -> str:
        """From the mean time of ended trials, all slots busy; nothing before one has ended."""
        ended = [trial.seconds for trial in self.trials.values() if trial.status != "running" and trial.seconds]
        if not ended:
            return ""
        mean = sum(ended) / len(ended)
        running = [trial.seconds for trial in self.trials.values() if trial.status == "running"]
        waiting = self.num_trials - len(self.trials)
        left = (waiting * mean + sum(max(mean - seconds, 0.1 * mean) for seconds in running)) / self.slots
        return f", about {duration(max(left, 1))} left" if waiting or running else ""

    def _run(self, trial: TrialResult) -> tuple[int, str, dict[str, Any], Path, dict[str, str]]:
        tags = {"recipe": trial.config().recipe} | ({"baseline": str(trial.baseline)} if trial.baseline is not None else {})
        name = f"{trial.number:03d} {describe(trial.params)}"[:100]
        return trial.number, name, trial.params, trial.folder / "config.yaml", tags

    def _ended_in_mlflow(self, trial: TrialResult) -> None:
        self.tracker.records(trial.number, trial.records)  # once more: the last ones of a failed trial came with no report
        ended_ms = trial.records[-1]["time_ms"] if trial.records else time.time_ns() // 1_000_000
        self.tracker.trial_ended(trial.number, "FAILED" if trial.status == "failed" else "FINISHED", trial.reason, ended_ms)
        if (best := self.best()) is not None:
            metrics = {f"best/{key}": best.best[f"dev/{key}"] for key in ("score", *self.tasks, "norm", "mean")}
            self.tracker.best(self.num_done(), metrics | {"trials_done": self.num_done()}, ended_ms)


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
