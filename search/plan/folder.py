"""A search's folder: its name, its lock, its plan.json.

    runs/NAME/    space.yaml  plan.json  study.journal  lock  log.txt  trials/  best -> trials/007/best

It can be moved: no path in it needs to stay true but those of data and encoder, which places.py looks up.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from pathlib import Path
from typing import IO, Any

from minbert_core import files
from minbert_core.commands import Refused
from minbert_core.config import FORMAT
from minbert_core.words import did_you_mean

NEEDED = ("name", "space_name", "created", "about", "trials", "data", "train_on", "encoders", "fingerprints")
PRETRAINING = "pretraining.jsonl"  # the records of what was pretrained before the trials
BEFORE_A_STEP = {"lock", "trials", "space.yaml", "plan.json.tmp", "plan.json", "study.journal", "study.journal.lock", "log.txt"}


def new_search_folder(runs: Path, name: str | None, default: str) -> Path:
    """The folder of a new search, not yet made: `name`, else the space's name, then -2, -3 …  Raises Refused: a used name."""
    if name is not None:
        check_unused(runs / name)
        return runs / name
    number = 1
    while (folder := runs / (default if number == 1 else f"{default}-{number}")).exists():
        number += 1
    return folder


def check_unused(folder: Path) -> None:
    """Raise Refused where `folder` is used. A search that failed, or was killed, before its first step does not use it."""
    if not folder.exists():
        return
    if not folder.is_dir() or {path.name for path in folder.iterdir()} - BEFORE_A_STEP or has_begun(folder):
        name = folder.name
        raise Refused(f"The name '{name}' is used ({folder}). Go on with it: --resume {name}; or give another --name.")


def has_begun(folder: Path) -> bool:
    """Whether a search has a trial or has pretrained for one: from then on it keeps its space and its seed."""
    return (folder / PRETRAINING).exists() or any(folder.glob("trials/*"))


def clear_failed_start(folder: Path) -> None:
    """Remove the study that a start without a step has left. Only for the one who holds the search's lock."""
    for name in ("study.journal", "study.journal.lock"):
        (folder / name).unlink(missing_ok=True)


def make_search_folder(runs: Path, name: str | None, default: str) -> Path:
    """As `new_search_folder`, and made: if another search takes a default name at the same moment, the next is taken."""
    while True:
        folder = new_search_folder(runs, name, default)
        try:
            folder.mkdir(parents=True, exist_ok=name is not None)
        except FileExistsError:
            continue
        (folder / "trials").mkdir(exist_ok=True)
        return folder


def lock(folder: Path) -> IO[str]:
    """Hold the search's lock until the returned file is closed or the process dies.  Raises Refused: somebody else does."""
    path = folder / "lock"
    with contextlib.ExitStack() as at_fault:
        file = at_fault.enter_context(path.open("a+"))
        if not files.lock(file, path):
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise Refused(f"The search in {folder} is running already ({holder}).")
        file.seek(0)
        file.truncate()
        file.write(f"pid {os.getpid()} on {socket.gethostname()}")
        file.flush()
        at_fault.pop_all()  # from here on the caller closes it
    return file


def wait_for_workers(folder: Path, timeout_seconds: float = 60) -> None:
    """Wait until no worker of a killed driver writes to a trial any more; Ray ends them some seconds after it.

    Raises Refused where one is still there after `timeout_seconds`.
    """
    deadline = time.monotonic() + timeout_seconds
    for path in sorted(folder.glob("trials/*/log.txt")):
        with path.open("a") as log:
            while not files.lock(log, path):
                if time.monotonic() > deadline:
                    raise Refused(f"A worker of the interrupted search still runs trial {path.parent.name} in {folder}.")
                time.sleep(0.2)


def read_plan(folder: Path) -> dict[str, Any]:
    """A search's plan.json.  Raises ValueError: no search there, a broken file, or a newer format."""
    path = folder / "plan.json"
    if not path.exists():
        known = sorted(other.parent.name for other in folder.parent.glob("*/plan.json"))
        raise ValueError(f"There is no search '{folder.name}' in {folder.parent}{did_you_mean(folder.name, known)}")
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is broken ({error}); without it the search cannot be read.") from None
    if not isinstance(plan, dict):
        raise ValueError(f"{path} is broken (it must be a map); without it the search cannot be read.")
    if plan.get("format", 0) > FORMAT:
        raise ValueError(f"{path} has format {plan['format']}; this version reads up to {FORMAT}.")
    if absent := [key for key in NEEDED if key not in plan]:
        raise ValueError(f"{path} is broken (it lacks {', '.join(absent)}); without it the search cannot be read.")
    return plan


def is_earlier(plan: dict[str, Any]) -> bool:
    """Whether an earlier version began a search, so that this one can only show it."""
    return int(plan.get("format", 0)) < FORMAT


def check_format(plan: dict[str, Any]) -> None:
    """Raise Refused where an earlier version began a search: its configs hold no defaults, so here they mean something else."""
    if is_earlier(plan):
        found, commit = plan.get("format", 0), str(plan.get("git_commit") or "unknown")[:7]
        raise Refused(
            f"The search {plan['name']} has format {found}, whose configs have other defaults. This version shows it, but "
            f"trains only format {FORMAT}. Use the version that began it (commit {commit}), or start again with another --name."
        )


def write_plan(folder: Path, document: dict[str, Any]) -> None:
    """Write a search's plan.json, whole or not at all."""
    with files.replaced(folder / "plan.json") as draft:
        draft.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
