"""run_trial: the function that Ray ships to workers, a few lines around `train_in`.

    for progress in train_in(folder, ...): report

It reads `config.yaml` in the trial's folder, trains there (minbert_core/train/folder.py), prints to `log.txt`, and reports to
Ray only what the scheduler and the driver need. Where that folder is, place_of decides (place.py). At each step its pulse
(pulse.py) shows that it is alive and asks whether to stop. It never imports MLflow or Optuna.
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
from search.study.messages import Order, Report, as_dict
from search.study.place import Place, place_of


def run_trial(order: dict[str, Any]) -> None:
    """Start or resume the trial that `order`, the dict of an Order, describes. If the driver stops it, SystemExit arrives here.

    Any failure is written to failure.txt in the trial's folder, and raised.
    """
    with place_of(Order(**order)) as place, locked_log(place.folder) as log, _printed_to(log):
        try:
            _run(Order(**order), place)
        except Exception as error:
            log.write(traceback.format_exc())  # not print_exc, which writes colours under FORCE_COLOR from Python 3.13 on
            place.fail(f"{type(error).__name__}: {message(error)}".strip())
            raise


@contextlib.contextmanager
def _printed_to(log: TextIO) -> Iterator[None]:
    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield


def _run(order: Order, place: Place) -> None:
    import ray  # a worker has Ray already; torch and our modules are imported once there is a trial

    node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""  # asking starts Ray
    pulse = place.pulse(node)  # before the imports, which count as an interval
    gc.disable()  # imports create 100,000s of objects and no garbage; collections would take a quarter of their time
    from ray import tune

    from minbert_core.config_checks import read_config
    from minbert_core.inputs import open_inputs
    from minbert_core.train.folder import read_snapshot, train_in
    from search.plan.relocated import relocated_config

    gc.enable()
    folder = place.folder
    (folder / "failure.txt").unlink(missing_ok=True)  # left over from an attempt whose driver had died
    config = read_config(folder / "config.yaml")
    local = relocated_config(config, place.relocated(order.relocated))
    inputs = open_inputs(local)
    place.bring_pretrained(local, inputs)
    snapshot, records = read_snapshot(folder)
    reported = len(records)
    how = f"resumes after {records[-1]['examples']} examples, {len(records)} records" if records else "starts"
    print(f"{time.strftime('%F %T')} trial {order.number:03d} {how}")
    for progress in train_in(folder, config, inputs, snapshot, records, pulse):
        print(json.dumps(progress.record))
        place.keep(progress, records)
        if progress.rung is not None:
            score, new = progress.record["dev/score"], records[reported:]
            tune.report(as_dict(Report(order.number, config.recipe, order.exempt, progress.rung, score, new)))
            reported = len(records)
    if pulse.is_stopped:
        print(f"{time.strftime('%F %T')} trial {order.number:03d} stops; its state is saved")
    place.end(records)


@contextlib.contextmanager
def locked_log(folder: Path) -> Iterator[TextIO]:
    """Open log.txt in `folder` to append, and lock it. Wait for the worker of a killed driver, which may live some seconds."""
    with (folder / "log.txt").open("a", buffering=1, encoding="utf-8") as log:
        lock(log, folder / "log.txt", wait=True)
        yield log
