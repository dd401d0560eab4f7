"""A search's folder: its name, its lock, its plan.json.

    runs/NAME/    space.yaml  plan.json  study.journal  lock  log.txt  trials/  best/  (a copy of trials/007/best)

It can be moved. The only absolute paths in it are those of data and encoder, which relocated.py resolves.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any

from pydantic import TypeAdapter, ValidationError

from minbert_core import files
from minbert_core.commands import Refused
from minbert_core.config import FORMAT
from minbert_core.plugins import write_copies
from minbert_core.settings.faults import SettingsError
from minbert_core.settings.yaml import dump_yaml
from minbert_core.words import did_you_mean, shown
from search.space.file import read_document, structure_faults

PRETRAINING = "pretraining.jsonl"  # the records of pretrainings before the trials
READER_SECONDS = 0.3  # how long a reader may hold a search's lock
BEFORE_A_STEP = {
    "lock",
    "trials",
    "space.yaml",
    "space.yaml.tmp",
    "plan.json.tmp",
    "plan.json",
    "study.journal",
    "study.journal.lock",
    "log.txt",
    "stop",
    "plugins",
    "wandb",
}


@dataclass(frozen=True, kw_only=True)
class PlanRecord:
    """The content of plan.json: everything that `--resume` and readers need. An older file may lack what has a default here."""

    format: int = 0
    name: str
    space_name: str  # the name of the Optuna study
    about: str
    created: str
    command: list[str] = field(default_factory=list)
    seed: int = 0
    trials: int
    gpus: float = 0
    gpus_per_trial: float = 0
    cpus_per_trial: int = 1
    sharing: str = ""
    examples: int = 0  # per full trial
    expected_full_trials: float = 0
    data: str
    encoder: str = ""
    encoders: dict[str, str]  # an encoder's name in the space -> its folder
    encoder_fingerprints: dict[str, str] = field(default_factory=dict)  # folder -> sha256; a search of 0.1.0 has none
    moved: dict[str, str] = field(default_factory=dict)  # a recorded folder -> its new place
    objective: Any = None
    train_on: list[str]
    fingerprints: dict[str, str]  # `sst-train` -> sha256
    git_commit: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    python: str = ""
    baselines: list[dict[str, Any]] = field(default_factory=list)  # path -> value
    earlier: list[dict[str, Any]] = field(default_factory=list)  # trials of an earlier search that the sampler knows
    id: str | None = None  # distinguishes searches of one name in MLflow
    tracking_uri: str | None = None
    storage: str | None = None  # the URI of the storage that has the snapshots; None: they are here
    space_sha256: str | None = None  # of the space as the user wrote it
    space_file_sha256: str | None = None  # of space.yaml; an older search has none


RECORD = TypeAdapter(PlanRecord)
KEYS = {entry.name for entry in fields(PlanRecord)}
NEEDED = [entry.name for entry in fields(PlanRecord) if entry.default is MISSING is entry.default_factory]


def new_search_folder(runs: Path, name: str | None, default: str) -> Path:
    """Choose the folder of a new search: `name`, else the space's name, then -2, -3 …  Raises Refused: a used name."""
    for folder in _names(runs, name, default):
        with _refused_if_named(name):
            check_unused(folder)
            return folder
    raise AssertionError("numbers do not end")


def _names(runs: Path, name: str | None, default: str) -> Iterator[Path]:
    """Yield the folders that a new search may have, the best first."""
    if name is not None:
        yield runs / name
        return
    yield runs / default
    yield from (runs / f"{default}-{number}" for number in itertools.count(2))


@contextlib.contextmanager
def _refused_if_named(name: str | None) -> Iterator[None]:
    """Let Refused out of the block only if the user has given a name, so that there is no other to try."""
    try:
        yield
    except Refused:
        if name is not None:
            raise


def check_unused(folder: Path) -> None:
    """Raise Refused if `folder` is used. A search that failed or was killed before its first step does not count."""
    if not folder.exists():
        return
    if not folder.is_dir() or {path.name for path in folder.iterdir()} - BEFORE_A_STEP or has_begun(folder):
        name = folder.name
        raise Refused(f"The name '{name}' is used ({folder}). Resume that search with --resume {name}, or give another --name.")


def has_begun(folder: Path) -> bool:
    """Return whether a search has a trial or a pretraining. From then on it keeps its space and its seed."""
    return (folder / PRETRAINING).exists() or any(folder.glob("trials/*"))


def clear_failed_start(folder: Path) -> None:
    """Remove the study and W&B's folder that a failed start has left. Only the process that holds the lock may call this."""
    for name in ("study.journal", "study.journal.lock"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "wandb", ignore_errors=True)


def claim_search_folder(runs: Path, name: str | None, default: str) -> tuple[Path, IO[str]]:
    """Create the folder that `new_search_folder` chooses, and lock it. Return it, and the lock, which is to be closed.

    A folder that another search takes at the same moment counts as used.
    """
    for folder in _names(runs, name, default):
        with _refused_if_named(name):
            return folder, _claimed(folder)
    raise AssertionError("numbers do not end")


def _claimed(folder: Path) -> IO[str]:
    check_unused(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as at_fault:
        held = at_fault.enter_context(lock(folder))
        check_unused(folder)  # again: another process may have held the lock until now
        (folder / "trials").mkdir(exist_ok=True)
        at_fault.pop_all()
    return held


def lock(folder: Path) -> IO[str]:
    """Hold the search's lock until the returned file is closed or the process dies.  Raises Refused if it is held elsewhere.

    A reader that asks whether the search is running (`Search.is_running`) holds it for a moment, which is waited for.
    """
    path, deadline = folder / "lock", time.monotonic() + READER_SECONDS
    with contextlib.ExitStack() as at_fault:
        file = at_fault.enter_context(path.open("a+"))
        while not files.lock(file, path):
            if time.monotonic() < deadline:
                time.sleep(READER_SECONDS / 10)
                continue
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
    """Wait until no worker of a killed driver writes to a trial. Ray ends workers some seconds after their driver.

    Raises Refused if a worker is still running after `timeout_seconds`.
    """
    deadline = time.monotonic() + timeout_seconds
    for path in sorted(folder.glob("trials/*/log.txt")):
        with path.open("a") as log:
            while not files.lock(log, path):
                if time.monotonic() > deadline:
                    raise Refused(f"A worker of the interrupted search still runs trial {path.parent.name} in {folder}.")
                time.sleep(0.2)


def read_plan(folder: Path) -> PlanRecord:
    """Read a search's plan.json.  Raises ValueError: no search there, a broken file, or a newer format; OSError: unreadable."""
    path = folder / "plan.json"
    if not path.exists():
        known = sorted(other.parent.name for other in folder.parent.glob("*/plan.json"))
        raise ValueError(f"There is no search '{folder.name}' in {folder.parent}{did_you_mean(folder.name, known)}")
    files.check_is_file(path)
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _broken(path, str(error)) from None
    if not isinstance(plan, dict):
        raise _broken(path, "it must be a map")
    written = {name: plan[name] for name in KEYS if name in plan}
    if "format" in written and isinstance(written["format"], int) and written["format"] > FORMAT:
        raise ValueError(f"{path} has format {written['format']}. This version reads up to {FORMAT}.")
    if absent := [name for name in NEEDED if name not in written]:
        raise _broken(path, f"it lacks {', '.join(absent)}")
    try:
        return RECORD.validate_json(json.dumps(written), strict=True)
    except ValidationError as error:
        fault = error.errors()[0]
        place = "/".join(map(str, fault["loc"]))
        raise _broken(path, f"`{place}`: {fault['msg']}. Got {shown(fault['input'])}") from None


def _broken(path: Path, fault: str) -> ValueError:
    return ValueError(f"{path} is broken ({fault}). Put back the original; without it the search cannot be read.")


def write_space(folder: Path, document: dict[str, Any]) -> str:
    """Write a search's space.yaml and its plugins, durable, and return the sha256 of the former, for plan.json."""
    write_copies(document.get("config", {}).get("plugins", ()), folder)
    text = dump_yaml(document)
    with files.replaced(folder / "space.yaml", durable=True) as draft:
        draft.write_text(text, encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def read_own_space(folder: Path, plan: PlanRecord) -> dict[str, Any]:
    """Read a search's space.yaml.  Raises ValueError: missing, not a space, or changed since the search began."""
    path = folder / "space.yaml"
    document, where = read_document(path)
    if faults := [*structure_faults(document, where)]:
        raise SettingsError(faults)
    if plan.space_file_sha256 not in (None, hashlib.sha256(path.read_bytes()).hexdigest()):
        raise ValueError(
            f"{path} was changed since the search began, so its trials could not be compared. Put back the original. To search "
            "another space, start it under another name: python -m search.run --space FILE --name NAME."
        )
    return document


def is_earlier(plan: PlanRecord) -> bool:
    """Return whether an earlier version began a search, so that this one can only show it."""
    return plan.format < FORMAT


def check_format(plan: PlanRecord) -> None:
    """Raise Refused where an earlier version began a search: its configs leave out other defaults than ours."""
    if is_earlier(plan):
        raise Refused(
            f"The search {plan.name} has format {plan.format}, whose configs have other defaults. This version shows it, but "
            f"trains only format {FORMAT}. Use the version that began it (commit {plan.git_commit[:7] or 'unknown'}), or start "
            "again with another --name."
        )


def write_plan(folder: Path, record: PlanRecord) -> None:
    """Write a search's plan.json, durable, whole or not at all."""
    with files.replaced(folder / "plan.json", durable=True) as draft:
        draft.write_text(json.dumps(asdict(record), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
