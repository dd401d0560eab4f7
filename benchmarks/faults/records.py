"""Faults of a search's files: what was lost, cut, changed or exchanged while the search did not run."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.faults.case import Case
from benchmarks.faults.harness import NAME, ONE_SLOT, Lab, Search, check_all, check_mlflow, check_whole, require
from minbert_core.model import load_model
from search.study.trials import ranked

START = ("--space", f"{NAME}.yaml", *ONE_SLOT)
Damage = Callable[[Search, Lab], None]
NUM_ENDED = 3  # trials that have ended before the damage


def restored(search: Search, lab: Lab, damage: Damage) -> str:
    """Interrupt a search, damage it, and check that the resumed one ends as if nothing had happened."""
    _interrupted(search)
    damage(search, lab)
    search.resume()
    check_all(search, lab)
    return _repair_line(search) or "same trials, decisions and figures"


def scores_restored(search: Search, lab: Lab, damage: Damage) -> str:
    """As `restored`, where a trial's training records are lost: its evaluations and its rank are not."""
    reference = lab.reference()
    _interrupted(search)
    best = _best(search)
    damage(search, lab)
    search.resume()
    check_whole(search, len(reference))
    check_mlflow(search)
    for seen, whole in zip(search.trials(), reference, strict=True):
        scores = [[trial.points[rung]["dev/score"] for rung in trial.points] for trial in (seen, whole)]
        require(scores[0] == scores[1], f"trial {seen.number:03d} has scores {scores[0]} instead of {scores[1]}")
    require((best / "best").is_dir() or ranked(search.trials())[0].folder != best, "the best trial's weights were deleted")
    return _repair_line(search) or "same scores"


def refused(search: Search, lab: Lab, damage: Damage) -> str:
    """Interrupt a search, damage it, and check that it is refused with nothing written or deleted."""
    _interrupted(search)
    damage(search, lab)
    before = _content(search.folder)
    search.start("--resume", NAME)
    require(search.end() == 2, f"--resume ended with {search.code}:\n{search.text[-1500:]}")
    after = _content(search.folder)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    require(not changed, f"changed: {', '.join(changed)}")
    return search.text.strip().splitlines()[-1]


def weights_refused(search: Search, lab: Lab) -> str:
    """Flip a bit in the best model's weights of a finished search, ten times; each must be noticed."""
    search.start(*START)
    require(search.end() == 0, f"the search ended with {search.code}:\n{search.text[-1500:]}")
    for _ in range(10):
        file = lab.random.choice(sorted((search.folder / "best").rglob("*.safetensors")))
        before = file.read_bytes()
        _flip(file, lab)
        try:
            load_model(search.folder / "best")
        except ValueError as error:
            seen = str(error)
        else:
            require(False, f"a flipped bit in {file.name} was not noticed")
        file.write_bytes(before)
    return f"10 of 10: {seen.replace(str(search.here), '…')}"


# ----------------------------------------------------------------------------------------------------------------- damage


def journal_deleted(search: Search, lab: Lab) -> None:
    (search.folder / "study.journal").unlink()


def journal_emptied(search: Search, lab: Lab) -> None:
    (search.folder / "study.journal").write_bytes(b"")


def journal_cut(search: Search, lab: Lab) -> None:
    journal = search.folder / "study.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[: lab.random.randrange(1, len(lines))]))


def journal_flipped(search: Search, lab: Lab) -> None:
    _flip(search.folder / "study.journal", lab)


def best_records_cut(search: Search, lab: Lab) -> None:
    records = _best(search) / "metrics.jsonl"
    lines = records.read_bytes().splitlines(keepends=True)
    records.write_bytes(b"".join(lines[: len(lines) // 3]))


def best_records_deleted(search: Search, lab: Lab) -> None:
    (_best(search) / "metrics.jsonl").unlink()


def running_records_cut(search: Search, lab: Lab) -> None:
    records = _running(search) / "metrics.jsonl"
    records.write_bytes(records.read_bytes()[:200])


def config_deleted(search: Search, lab: Lab) -> None:
    (_best(search) / "config.yaml").unlink()


def running_config_deleted(search: Search, lab: Lab) -> None:
    (_running(search) / "config.yaml").unlink()


def configs_exchanged(search: Search, lab: Lab) -> None:
    shutil.copy(_best(search) / "config.yaml", _running(search) / "config.yaml")


def journal_and_config_deleted(search: Search, lab: Lab) -> None:
    journal_deleted(search, lab)
    config_deleted(search, lab)


def trial_unknown(search: Search, lab: Lab) -> None:
    """Delete all that knows a trial: only its records and its snapshot are left."""
    best = _best(search)  # while the journal is there
    (best / "trial.json").unlink()
    (best / "config.yaml").unlink()
    journal_deleted(search, lab)


def snapshot_flipped(search: Search, lab: Lab) -> None:
    _flip(_running(search) / "state" / "snapshot.pt", lab)


def snapshot_cut(search: Search, lab: Lab) -> None:
    snapshot = _running(search) / "state" / "snapshot.pt"
    snapshot.write_bytes(snapshot.read_bytes()[: snapshot.stat().st_size // 2])


def snapshot_of_another(search: Search, lab: Lab) -> None:
    other = lab.search()
    _interrupted(other, "--seed", "7")
    shutil.copy(_running(other) / "state" / "snapshot.pt", _running(search) / "state" / "snapshot.pt")
    other.remove()


def space_edited(search: Search, lab: Lab) -> None:
    space = search.folder / "space.yaml"
    space.write_text(space.read_text(encoding="utf-8").replace("0.01", "0.02"), encoding="utf-8")


def space_deleted(search: Search, lab: Lab) -> None:
    (search.folder / "space.yaml").unlink()


def plan_cut(search: Search, lab: Lab) -> None:
    plan = search.folder / "plan.json"
    plan.write_bytes(plan.read_bytes()[:300])


def tokens_flipped(search: Search, lab: Lab) -> None:
    require(any((search.cache / "minbert" / "tokens").iterdir()), "there are no token files")
    for file in (search.cache / "minbert" / "tokens").glob("*"):
        if file.is_file():
            _flip(file, lab)


def _flip(file: Path, lab: Lab) -> None:
    """Flip one random bit of a file."""
    data = bytearray(file.read_bytes())
    data[lab.random.randrange(len(data))] ^= 1 << lab.random.randrange(8)
    file.write_bytes(data)


# ----------------------------------------------------------------------------------------------------------------- helpers


def _interrupted(search: Search, *options: str) -> None:
    """Kill a search while a trial trains, after three have ended and with a snapshot of the one that trains."""

    def is_ready() -> bool:
        running = [path.parent.parent for path in search.folder.glob("trials/*/state/snapshot.pt")]
        return len(list(search.folder.glob("trials/*"))) > NUM_ENDED and bool(running) and bool(search.trains())

    search.start(*START, *options)
    search.until(is_ready, "training after three trials")
    search.kill()
    search.end()
    search.left()


def _best(search: Search) -> Path:
    return ranked(search.trials())[0].folder


def _running(search: Search) -> Path:
    return max(path.parent.parent for path in search.folder.glob("trials/*/state/snapshot.pt"))


def _content(folder: Path) -> dict[str, str]:
    """Return a digest of each file in a search's folder but its lock."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _repair_line(search: Search) -> str:
    """Return the line in which --resume reports a repair; empty if there is none."""
    lines = [line for line in search.text.splitlines() if "restored" in line or "damaged" in line]
    return lines[0].replace(str(search.here), "…")[:150] if lines else ""


RESTORED = "restored; same trials, decisions and figures to the digit"
REFUSED = "one sentence, exit 2, nothing written or deleted"
RECORDS = [
    Case("study.journal deleted", RESTORED, partial(restored, damage=journal_deleted)),
    Case("study.journal emptied", RESTORED, partial(restored, damage=journal_emptied)),
    Case("study.journal cut at a line", RESTORED, partial(restored, damage=journal_cut), times=3),
    Case("study.journal, one bit flipped", RESTORED, partial(restored, damage=journal_flipped), times=3),
    Case("metrics.jsonl of the best cut", "scores restored", partial(scores_restored, damage=best_records_cut)),
    Case("metrics.jsonl of the best deleted", "scores restored", partial(scores_restored, damage=best_records_deleted)),
    Case("metrics.jsonl of a running trial cut", RESTORED, partial(restored, damage=running_records_cut)),
    Case("config.yaml of the best deleted", RESTORED, partial(restored, damage=config_deleted)),
    Case("config.yaml of a running trial deleted", RESTORED, partial(restored, damage=running_config_deleted)),
    Case("config.yaml is another trial's", REFUSED, partial(refused, damage=configs_exchanged)),
    Case("study.journal and a config.yaml deleted", RESTORED, partial(restored, damage=journal_and_config_deleted)),
    Case("study.journal, a config.yaml and its trial.json deleted", REFUSED, partial(refused, damage=trial_unknown)),
    Case("snapshot, one bit flipped", RESTORED, partial(restored, damage=snapshot_flipped), times=3),
    Case("snapshot cut in half", RESTORED, partial(restored, damage=snapshot_cut)),
    Case("snapshot is another trial's", RESTORED, partial(restored, damage=snapshot_of_another)),
    Case("space.yaml edited", REFUSED, partial(refused, damage=space_edited)),
    Case("space.yaml deleted", REFUSED, partial(refused, damage=space_deleted)),
    Case("plan.json cut", REFUSED, partial(refused, damage=plan_cut)),
    Case("token files, one bit flipped in each", RESTORED, partial(restored, damage=tokens_flipped)),
    Case("best weights, one bit flipped", "noticed each time", weights_refused),
]
