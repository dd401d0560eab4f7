"""run_trial(config): the function that Ray ships; a few lines around `train`.

    for progress in train(...): save, then report

It reads `config.yaml` in the trial's folder, keeps `metrics.jsonl`, `log.txt`, `state/` and `best/` there, and tells Ray only
what the scheduler and the driver need. It never imports MLflow or Optuna.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import time
import traceback
from pathlib import Path
from typing import Any

SAVE_EVERY_SECONDS = 300


def run_trial(order: dict[str, Any]) -> None:
    """Run or go on with the trial in the folder `order["folder"]`; the driver's decision to stop it arrives as SystemExit.

    order: number, folder, exempt (from stopping).  Any failure is written to failure.txt in that folder, and raised.
    log.txt is locked meanwhile: a worker lives some seconds longer than a killed driver, and --resume waits for it.
    """
    folder = Path(order["folder"])
    with (
        (folder / "log.txt").open("a", buffering=1, encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        fcntl.flock(log, fcntl.LOCK_EX)
        try:
            _run(order, folder)
        except Exception as error:
            traceback.print_exc()
            (folder / "failure.txt").write_text(f"{type(error).__name__}: {error}".strip(), encoding="utf-8")
            raise


def _run(order: dict[str, Any], folder: Path) -> None:
    from ray import tune  # a worker has Ray already; torch and ours are imported once the trial is there

    from minbert_core.config import read_config
    from minbert_core.inputs import open_inputs
    from minbert_core.model import save_model
    from minbert_core.train import load_snapshot, save_snapshot, train

    (folder / "failure.txt").unlink(missing_ok=True)  # of an earlier try that nobody was there to hear of
    config = read_config(folder / "config.yaml")
    inputs = open_inputs(config)
    state, metrics = state_file(folder), folder / "metrics.jsonl"
    snapshot, records = load_snapshot(state) if state.exists() else (None, [])
    write_records(metrics, records)
    reported, saved_at = len(records), time.monotonic()
    how = f"goes on after {records[-1]['examples']} examples, {len(records)} records" if records else "starts"
    print(f"{time.strftime('%F %T')} trial {order['number']:03d} {how}")
    with metrics.open("a", buffering=1, encoding="utf-8") as file:
        for progress in train(config, inputs, snapshot):
            records.append(progress.record)
            print(json.dumps(progress.record))
            if progress.improved:
                save_model(progress.model, config, folder / "best", inputs.encoder_folder)
            if progress.part is not None or time.monotonic() - saved_at > SAVE_EVERY_SECONDS:
                save_snapshot(state, progress.snapshot(), records)
                saved_at = time.monotonic()
            file.write(json.dumps(progress.record) + "\n")
            if progress.part is not None:
                report = {"number": order["number"], "recipe": config.recipe, "exempt": order["exempt"], "part": progress.part}
                tune.report(report | {"score": progress.record["dev/score"], "records": records[reported:]})
                reported = len(records)


def state_file(folder: Path) -> Path:
    """Where a trial's snapshot lies while it runs."""
    return folder / "state" / "snapshot.pt"


def write_records(path: Path, records: list[dict[str, Any]]) -> None:
    """Make metrics.jsonl hold exactly `records`: what came after the snapshot is trained, and recorded, again."""
    draft = path.with_name(path.name + ".tmp")
    draft.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    draft.replace(path)


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records in a metrics.jsonl; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
