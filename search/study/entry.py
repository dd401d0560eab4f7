"""A trial's entry in the study, and its copy in the trial's folder, trial.json.

    runs/NAME/study.journal    all entries, as a list of Optuna's operations
    runs/NAME/trials/007/      trial.json: the entry of trial 7, written after each change of the journal

So neither file is the only one to know what a trial is. repair.py compares them, and restores one from the other.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from minbert_core.files import replaced
from minbert_core.train.folder import check_record

UNSOUND = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)  # what odd values of an entry lead to
POINT = "point/"  # the user attribute `point/3` is the evaluation at rung 3: {"arrival": 12, "record": …}
ENDS = ("completed", "stopped", "failed")
CONFIG_KEYS = ("identity", "sha256", "recipe")  # of the user attribute `config`; sha256 is that of the file config.yaml


def trial_folder(folder: Path, number: int) -> Path:
    """Return the folder of a trial in that of its search."""
    return folder / "trials" / f"{number:03d}"


def identity_of(trial: FrozenTrial) -> str:
    """Return the identity of a trial's config (TrialConfig.identity); "" before it has one, and for an older search."""
    return str(trial.user_attrs["config"]["identity"]) if "config" in trial.user_attrs else ""


def points_of(trial: FrozenTrial) -> dict[int, dict[str, Any]]:
    """Return the dev records that the study holds of a trial, rung -> record. An older search has none."""
    return {rung: entry["record"] for rung, entry in _points(trial).items()}


def arrivals_of(trial: FrozenTrial) -> dict[int, int]:
    """Return the place of each point of a trial in the order in which the search received them all, rung -> place."""
    return {rung: entry["arrival"] for rung, entry in _points(trial).items()}


def _points(trial: FrozenTrial) -> dict[int, dict[str, Any]]:
    attributes = trial.user_attrs.items()
    return {int(name.removeprefix(POINT)): entry for name, entry in attributes if name.startswith(POINT)}


def write_entry(folder: Path, trial: FrozenTrial) -> None:
    """Write trial.json in a trial's folder, whole or not at all."""
    document = {
        "number": trial.number,
        "state": trial.state.name,
        "value": trial.value,
        "params": trial.params,
        "distributions": {name: distribution_to_json(one) for name, one in trial.distributions.items()},
        "user_attrs": trial.user_attrs,
        "system_attrs": trial.system_attrs,
        "intermediate_values": trial.intermediate_values,
    }
    with replaced(folder / "trial.json") as draft:
        draft.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def read_entry(folder: Path) -> FrozenTrial | None:
    """Read trial.json in a trial's folder; None if it is missing or damaged, which repair.py mends from the journal."""
    path = folder / "trial.json"
    try:
        return _entry(json.loads(path.read_bytes()))
    except (FileNotFoundError, *UNSOUND):
        return None


def _entry(document: dict[str, Any]) -> FrozenTrial:
    state = TrialState[document["state"]]
    distributions = {name: json_to_distribution(text) for name, text in document["distributions"].items()}
    entry = create_trial(
        state=state,
        value=document["value"] if state == TrialState.COMPLETE else None,
        params=document["params"],
        distributions=distributions,
        user_attrs=dict(document["user_attrs"]),
        system_attrs=dict(document["system_attrs"]),
        intermediate_values={int(rung): float(score) for rung, score in document["intermediate_values"].items()},
    )
    entry.number = int(document["number"])
    check_entry(entry)
    if not identity_of(entry):
        raise ValueError("an entry in a folder names the trial's config")
    return entry


def check_entry(trial: FrozenTrial) -> None:
    """Raise ValueError, KeyError or TypeError for an entry that this program has not written."""
    attributes = trial.user_attrs
    if trial.state.is_finished() and (attributes["status"] not in ENDS or not isinstance(attributes["reason"], str)):
        raise ValueError("an ended trial has a status and a reason")
    if not isinstance(attributes.get("baseline", 0), int):
        raise ValueError("a baseline is a number")
    if not all(isinstance(attributes["config"][key], str) for key in CONFIG_KEYS if "config" in attributes):
        raise ValueError("a config is noted by three texts")
    if not all(isinstance(score, float) and math.isfinite(score) for score in trial.intermediate_values.values()):
        raise ValueError("a score is finite")
    for rung, entry in _points(trial).items():
        record = check_record(entry["record"])
        if not isinstance(entry["arrival"], int) or record["rung"] != rung or record["kind"] != "dev":
            raise ValueError("a point has an arrival and its dev record")
        if trial.intermediate_values[rung] != record["dev/score"]:
            raise ValueError("a point's score is that of its record")
