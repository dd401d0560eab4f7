"""run_trial(config): the function that Ray ships; a few lines around `train`.

    for progress in train_in(folder, ...): report

It reads `config.yaml` in the trial's folder, trains there (minbert_core/train/folder.py), with what it prints in `log.txt`, and
tells Ray only what the scheduler and the driver need. It never imports MLflow or Optuna.
"""

from __future__ import annotations

import contextlib
import gc
import json
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from minbert_core.files import lock, message


def run_trial(order: dict[str, Any]) -> None:
    """Run or go on with the trial in the folder `order["folder"]`; the driver's decision to stop it arrives as SystemExit.

    order: number, folder, exempt (from stopping), relocated (folders that its config names -> where they lie).
    Any failure is written to failure.txt in that folder, and raised.
    """
    folder = Path(order["folder"])
    with locked_log(folder) as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        try:
            _run(order, folder)
        except Exception as error:
            log.write(traceback.format_exc())  # from Python 3.13 on print_exc writes colours under FORCE_COLOR
            (folder / "failure.txt").write_text(f"{type(error).__name__}: {message(error)}".strip(), encoding="utf-8")
            raise


def _run(order: dict[str, Any], folder: Path) -> None:
    gc.disable()  # imports make objects by the hundred thousand and no garbage: looking for it takes a quarter of their time
    from ray import tune  # a worker has Ray already; torch and ours are imported once the trial is there

    from minbert_core.config_checks import read_config
    from minbert_core.inputs import open_inputs
    from minbert_core.train.folder import read_snapshot, train_in
    from search.plan.relocated import relocated_config

    gc.enable()
    (folder / "failure.txt").unlink(missing_ok=True)  # of an earlier try that nobody was there to hear of
    config = read_config(folder / "config.yaml")
    inputs = open_inputs(relocated_config(config, order["relocated"]))
    snapshot, records = read_snapshot(folder)
    reported = len(records)
    how = f"goes on after {records[-1]['examples']} examples, {len(records)} records" if records else "starts"
    print(f"{time.strftime('%F %T')} trial {order['number']:03d} {how}")
    for progress in train_in(folder, config, inputs, snapshot, records):
        print(json.dumps(progress.record))
        if progress.rung is not None:
            report = {"number": order["number"], "recipe": config.recipe, "exempt": order["exempt"], "rung": progress.rung}
            tune.report(report | {"score": progress.record["dev/score"], "records": records[reported:]})
            reported = len(records)


@contextlib.contextmanager
def locked_log(folder: Path) -> Iterator[TextIO]:
    """log.txt in `folder`, to append to, locked: a worker lives some seconds longer than a killed driver, and is waited for."""
    with (folder / "log.txt").open("a", buffering=1, encoding="utf-8") as log:
        lock(log, folder / "log.txt", wait=True)
        yield log
