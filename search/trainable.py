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
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from minbert_core.config import TrialConfig
    from minbert_core.inputs import Inputs
    from minbert_core.train import Progress

SAVE_EVERY_SECONDS = 300


def run_trial(order: dict[str, Any]) -> None:
    """Run or go on with the trial in the folder `order["folder"]`; the driver's decision to stop it arrives as SystemExit.

    order: number, folder, exempt (from stopping).  Any failure is written to failure.txt in that folder, and raised.
    """
    folder = Path(order["folder"])
    with locked_log(folder) as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
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
    from minbert_core.train import load_snapshot

    (folder / "failure.txt").unlink(missing_ok=True)  # of an earlier try that nobody was there to hear of
    config = read_config(folder / "config.yaml")
    inputs = open_inputs(config)
    state = state_file(folder)
    snapshot, records = load_snapshot(state) if state.exists() else (None, [])
    reported = len(records)
    how = f"goes on after {records[-1]['examples']} examples, {len(records)} records" if records else "starts"
    print(f"{time.strftime('%F %T')} trial {order['number']:03d} {how}")
    for progress in train_in(folder, config, inputs, snapshot, records):
        print(json.dumps(progress.record))
        if progress.part is not None:
            report = {"number": order["number"], "recipe": config.recipe, "exempt": order["exempt"], "part": progress.part}
            tune.report(report | {"score": progress.record["dev/score"], "records": records[reported:]})
            reported = len(records)


def train_in(
    folder: Path, config: TrialConfig, inputs: Inputs, snapshot: dict[str, Any] | None, records: list[dict[str, Any]]
) -> Iterator[Progress]:
    """`train`, with what comes of it kept in `folder`: metrics.jsonl, the best evaluation's weights, a snapshot now and then.

    A snapshot is taken at each evaluation and at least every SAVE_EVERY_SECONDS. `snapshot` and `records` are what is known by
    now (None and none: from the start); each new record joins `records` before its progress is yielded.
    """
    from minbert_core.model import save_model
    from minbert_core.train import save_snapshot, train

    metrics, saved_at = folder / "metrics.jsonl", time.monotonic()
    write_records(metrics, records)
    with metrics.open("a", buffering=1, encoding="utf-8") as file:
        for progress in train(config, inputs, snapshot):
            records.append(progress.record)
            if progress.improved:
                save_model(progress.model, config, folder / "best", inputs.encoder_folder)
            if progress.part is not None or time.monotonic() - saved_at > SAVE_EVERY_SECONDS:
                save_snapshot(state_file(folder), progress.snapshot(), records)
                saved_at = time.monotonic()
            file.write(json.dumps(progress.record) + "\n")
            yield progress


@contextlib.contextmanager
def locked_log(folder: Path) -> Iterator[TextIO]:
    """log.txt in `folder`, to append to, locked: a worker lives some seconds longer than a killed driver, and is waited for."""
    with (folder / "log.txt").open("a", buffering=1, encoding="utf-8") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        yield log


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
