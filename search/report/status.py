"""A search seen from elsewhere: `python -m search.run --status NAME`. It reads; it takes no lock, writes and starts nothing.

plan.json, the study's journal and the trials' own records say all; the lock's file says who drives it, or drove it last.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import sys
import time
from pathlib import Path

from minbert_core.terminal import console
from minbert_core.train.folder import read_records
from minbert_core.train.report import pretraining_told
from minbert_core.words import duration
from search.plan.folder import PRETRAINING, read_plan
from search.report.narrate import in_short, table, time_left
from search.report.screen import Picture, look, render
from search.study.study import TrialResult, read_trials
from search.tracking.store import SERVER, dashboard_command, database_of, store_uri, ui_command

WIDTH_ELSEWHERE = 160  # characters, where there is no terminal to ask
QUIET_SECONDS = 3600  # a search on another machine that has written nothing for so long is taken to have ended


def show_status(folder: Path, go_on: str, next_command: str) -> None:
    """Print the picture of the search in `folder`; go_on and next_command are what to type when it has stopped, or is done.

    Raises ValueError: no such search, or one of a newer format.
    """
    plan = read_plan(folder)
    trials = read_trials(folder, plan.space_name)
    driver, drives = find_driver(folder)
    planned, now_ms = plan.trials, time.time_ns() // 1_000_000
    unfinished = [trial for trial in trials if trial.status == "running"]
    running = [trial for trial in unfinished if drives and not rests(trial, now_ms)]
    num_ended = len(trials) - len(unfinished)
    counts = [f"{num_ended} of {planned} ended", f"{len(running)} running"]
    counts += [f"{len(unfinished) - len(running)} waiting to go on"] if len(unfinished) > len(running) else []
    left = time_left(trials, planned, max(1, len(running))) if drives else ""
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
            look(trial.number, in_short(trial), trial.records, plan.examples, parts, now_ms if trial in running else None)
            for trial in unfinished
        ]
        stdout = console(width=None if sys.stdout.isatty() else WIDTH_ELSEWHERE)
        print()
        stdout.print(render(Picture(rows, "", ""), height=len(rows) + 5))
    if num_ended:
        print()
        unended = "running" if running else "paused"
        print("\n".join(table(trials, plan.train_on, gpus_per_trial=plan.gpus_per_trial, unended=unended)))
    print()
    if (folder / "best").exists():
        print(f"best      {folder / 'best'}")
    uri = plan.tracking_uri or store_uri(folder.parent)
    if not uri.startswith(SERVER) and not (database := database_of(uri)).exists():  # the folder was copied without it
        print(f"compare   there is no {database}: copy it, too, or log the search anew: {go_on}")
    else:
        print(f"compare   {ui_command(uri, Path.cwd())}")
    print(f"dashboard {dashboard_command(folder / 'study.journal', Path.cwd())}")
    if drives:
        print(f"follow    tail -f {shlex.quote(os.path.relpath(folder / 'log.txt'))}")
    elif num_ended < planned:
        print(f"go on     {go_on}")
    else:
        print(f"next      {next_command}")


def rests(trial: TrialResult, now_ms: int) -> bool:
    """Whether a trial that has not ended is paused after a point, as its records tell: it has long written nothing more."""
    if not trial.points or trial.records[-1]["kind"] != "dev":
        return False
    usual_seconds = trial.seconds / len(trial.records)
    quiet_seconds: float = (now_ms - trial.records[-1]["time_ms"]) / 1000
    return quiet_seconds > max(60, 5 * usual_seconds)


def find_driver(folder: Path) -> tuple[str, bool]:
    """Who drives the search, in words, and whether it does so now.

    The lock itself is not touched: to try it would be to hold it for a moment, in which a driver could not start. Its file
    names process and machine. A process of this machine is asked for; of another one what the search wrote last must do.
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
    said = f"{text}, which cannot be asked from here; the search last wrote {duration(max(quiet, 0))} ago"
    return said, quiet < QUIET_SECONDS


def _holds(pid: int, path: Path) -> bool:
    """Whether a process of this machine lives and, where that can be seen, has the file open: numbers are given anew."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's
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
    except OSError:  # closed meanwhile, or no file at all
        return False
