"""A stand-in trial: what a worker writes and reports at its next rung, without training.

It imports nothing of ours at its top: on a cluster of many nodes in one machine, every worker would take seconds of the
processor for PyTorch, and the search would wait for that.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

RUNGS = (1, 3, 9)
TASKS = ["sst", "para", "sts"]


def stand_in(order: dict[str, Any], seconds: float) -> None:
    """Report to Ray Tune as a trial of about so many seconds does, and note in `waited` how long its slot was free before.

    Trials take half to twice the seconds, since configurations differ: if all took the same, all slots would be free at once.
    """
    from ray import tune

    folder, began = Path(order["folder"]), time.time()
    if order["freed"] is not None:
        (folder / "waited").write_text(str(began - order["freed"]), encoding="utf-8")
    before, seconds = 0, seconds * 0.5 * 4 ** _share(order["number"])
    for rung in RUNGS:
        time.sleep(seconds * (rung - before) / RUNGS[-1])
        before = rung
        tune.report(next_report(folder, order["number"], order["exempt"], has_snapshot=False) | {"ended": time.time()})


def next_report(folder: Path, number: int, exempt: bool, has_snapshot: bool = True) -> dict[str, Any]:
    """Do what a worker does until its next report, but train."""
    log = folder / "metrics.jsonl"
    known = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    before = known[-1]["rung"] if known else 0
    rung = next(other for other in RUNGS if other > before)
    score = (number * 2654435761 % 1000) / 1000 + rung / 1000
    new = [_record("train", examples, number) for examples in range(before * 1000, rung * 1000, 100)]
    metrics = {f"dev/{name}": score for name in ("score", "norm", "mean", *TASKS)}
    new.append(_record("dev", rung * 1000, number) | {"rung": rung, "stage": 0} | metrics)
    with log.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in new)
    if has_snapshot:
        from minbert_core.train.folder import state_file
        from minbert_core.train.trial import save_snapshot

        save_snapshot(state_file(folder), {"counters": {}}, [*known, *new])
    (folder / "best").mkdir(exist_ok=True)
    report = {"number": number, "recipe": "multitask", "exempt": exempt, "rung": rung, "score": score, "records": new}
    return json.loads(json.dumps(report))  # type: ignore[no-any-return]


def _share(number: int) -> float:
    """Return a number in [0, 1) that a trial's score does not tell."""
    return (number * 40503 % 997) / 997


def _record(kind: str, examples: int, number: int) -> dict[str, Any]:
    facts = {"kind": kind, "step": examples // 48, "examples": examples, "passes": examples, "seconds": examples / 500}
    facts["time_ms"] = 1_750_000_000_000 + 20_000 * number + 2 * examples
    losses = {f"train/{name}_{what}": 0.123456789 for name in TASKS for what in ("loss", "weight", "cosine", "conflicts")}
    return facts | (losses | {"train/lr": 1e-3, "train/examples_per_second": 512.3} if kind == "train" else {})
