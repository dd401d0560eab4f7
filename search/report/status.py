"""The status of a search from another process: `python -m search.run --status NAME`. It only reads, without taking the lock.

All comes from plan.json, the study's journal and the trials' records. The lock's file names the present or last driver.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import sys
import time
from pathlib import Path

from minbert_core.clock import now_ms
from minbert_core.terminal import console
from minbert_core.train.folder import read_records
from minbert_core.train.report import pretraining_told
from minbert_core.words import duration
from search.plan.folder import PRETRAINING, read_plan
from search.report.draw import show
from search.report.narrate import in_short, table, time_left
from search.report.screen import Picture, look, render
from search.study.gather import read_results
from search.study.trials import TrialResult, Trials
from search.tracking.artifacts import has_store
from search.tracking.experiment import compare_lines
from search.tracking.store import NOWHERE, dashboard_command, dashboard_note, database_of, store_uri

WIDTH_ELSEWHERE = 160  # characters, if there is no terminal
QUIET_SECONDS = 3600  # after this time without writing, a search on another machine counts as ended


def show_status(folder: Path, resume_command: str, next_command: str) -> None:
    """Print the status of the search in `folder`, with the command that resumes it, or the next one when it is complete.

    Raises ValueError: no such search, or one of a newer format.
    """
    plan = read_plan(folder)
    trials = read_results(folder, plan.space_name)
    driver, drives = find_driver(folder)
    planned, moment = plan.trials, now_ms()
    unfinished = [trial for trial in trials if trial.status == "running"]
    running = [trial for trial in unfinished if drives and not rests(trial, moment)]
    num_ended = len(trials) - len(unfinished)
    counts = [f"{num_ended} of {planned} ended", f"{len(running)} running"]
    counts += [f"{len(unfinished) - len(running)} waiting to resume"] if len(unfinished) > len(running) else []
    left = time_left(Trials(trials), planned, max(1, len(running))) if drives else ""
    print(f"search    {folder.name}: {plan.about or '(no question given: `about`)'}")
    print(f"driver    {driver}")
    print(f"trials    {', '.join(counts)}{left}")
    if drives:
        last = {record["key"]: record for record in read_records(folder / PRETRAINING)}
        for record in (record for record in last.values() if "made" not in record):
            print(f"pretrain  {pretraining_told(record)}")
    if unfinished:
        parts = max(trial.config().budget.points[-1] for trial in unfinished)
        rows = [
            look(trial.number, in_short(trial), trial.records, plan.examples, parts, moment if trial in running else None)
            for trial in unfinished
        ]
        stdout = console(width=None if sys.stdout.isatty() else WIDTH_ELSEWHERE)
        print()
        stdout.print(render(Picture(rows, "", ""), height=len(rows) + 5))
    if num_ended:
        print()
        unended = "running" if running else "paused"
        show(table(trials, plan.train_on, gpus_per_trial=plan.gpus_per_trial, unended=unended))
    print()
    if (folder / "best").exists():
        print(f"best      {folder / 'best'}")
    uri = plan.tracking_uri or store_uri(folder.parent)
    if uri != NOWHERE and not has_store(uri):  # the folder was copied without its store
        print(f"compare   there is no {database_of(uri)}. Copy it too, or log the search again: {resume_command}")
    else:
        print("\n".join(compare_lines(uri, plan.name)))
    print(f"dashboard {dashboard_command(folder / 'study.journal', Path.cwd())}")
    if trials:
        print(f"          {dashboard_note(sum(trial.status == 'completed' for trial in trials), len(trials))}")
    if drives:
        print(f"follow    tail -f {shlex.quote(os.path.relpath(folder / 'log.txt'))}")
    elif num_ended < planned:
        print(f"resume    {resume_command}")
    else:
        print(f"next      {next_command}")


def rests(trial: TrialResult, moment_ms: int) -> bool:
    """Return whether a trial that has not ended is paused after a point: its records have had no addition for a long time."""
    if not trial.points or trial.records[-1]["kind"] != "dev":
        return False
    usual_seconds = trial.seconds / len(trial.records)
    quiet_seconds: float = (moment_ms - trial.records[-1]["time_ms"]) / 1000
    return quiet_seconds > max(60, 5 * usual_seconds)


def find_driver(folder: Path) -> tuple[str, bool]:
    """Describe the driver of the search, and return whether it is running.

    We do not try the lock, because even a brief hold could prevent a driver from starting. Its file names process and machine.
    On this machine the process is looked up; for another machine, the last time that the search wrote something has to do.
    """
    path = folder / "lock"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    named = re.fullmatch(r"pid (\d+) on (.+)", text)
    if not named:
        return "none yet", False
    pid, host = int(named[1]), named[2]
    if host == socket.gethostname():
        return (f"{text} runs", True) if _holds(pid, path) else (f"none; {text} has ended", False)
    files = [folder / "log.txt", *folder.glob("trials/*/metrics.jsonl")]
    newest = max((file.stat().st_mtime for file in files if file.exists()), default=path.stat().st_mtime)
    quiet = time.time() - newest
    description = f"{text}, which cannot be checked from here; the search last wrote {duration(max(quiet, 0))} ago"
    return description, quiet < QUIET_SECONDS


def _holds(pid: int, path: Path) -> bool:
    """Return whether a process of this machine is alive and has the file open, as far as that is visible.

    The file matters because the system reuses process ids.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's process
    descriptors = Path(f"/proc/{pid}/fd")
    if not descriptors.exists():  # macOS
        return True
    try:
        return any(_is_same(link, path) for link in descriptors.iterdir())
    except PermissionError:
        return True


def _is_same(link: Path, path: Path) -> bool:
    try:
        return link.samefile(path)
    except OSError:  # closed since, or not a file
        return False
