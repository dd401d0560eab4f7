"""The experiment of a search in MLflow, which holds its runs: created, restored from the bin, or moved along with its store."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from search.tracking.runs import SearchRecord
from search.tracking.store import NOWHERE, SERVER, database_of, ui_address, ui_command

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment


BY_SCORE = "workflowType=machine_learning&orderByKey=metrics.%60dev%2Fscore%60&orderByAsc=false&compareRunsMode=CHART"


def find_experiment(client: MlflowClient, search: SearchRecord) -> tuple[str, bool]:
    """Return the id of the search's experiment, and whether its artifacts have a new folder, so that files must be sent again.

    The experiment is created or restored from the bin if necessary.
    """
    experiment = client.get_experiment_by_name(search.name)
    artifacts = search.artifacts and f"{search.artifacts}/{search.name}"
    if experiment is None:
        # without a kind, the experiment's page opens with the tools for language models
        kind = {"mlflow.experimentKind": "custom_model_development"}
        return str(client.create_experiment(search.name, artifact_location=artifacts, tags=kind)), False
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    has_moved = artifacts is not None and _follow_move(search.uri, experiment, artifacts)
    return str(experiment.experiment_id), has_moved


def compare_lines(uri: str, name: str, number: str | None = None) -> list[str]:
    """Return the lines that say where to compare the trials of a search: how to start MLflow's page, and its address.

    The address shows all runs, best dev/score first, as charts, in the view for training.
    number: the id of the experiment, if it is known; that of a server cannot be looked up here.
    """
    lines = [f"compare   {ui_command(uri, Path.cwd())}"]
    number = number or experiment_number(uri, name)
    return lines if number is None else [*lines, f"          {ui_address(uri)}/#/experiments/{number}/runs?{BY_SCORE}"]


def experiment_number(uri: str, name: str) -> str | None:
    """Read the id of a search's experiment; None if there is no such experiment, or the store is a server.

    MLflow's own client takes three seconds to import, which is too long for a line.
    """
    if uri == NOWHERE or uri.startswith(SERVER) or not (database := database_of(uri)).exists():
        return None
    try:
        with contextlib.closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, timeout=2)) as opened:
            found = opened.execute("SELECT experiment_id FROM experiments WHERE name = ?", (name,)).fetchone()
    except sqlite3.Error:  # not readable by this user, locked by a writer, or of a version without that table
        return None
    return None if found is None else str(found[0])


def _follow_move(uri: str, experiment: Experiment, new: str) -> bool:
    """Correct the folder of artifacts in a database that was moved, and return whether it was; the old one may not exist here.

    MLflow has no call for this.
    """
    number, old = experiment.experiment_id, str(experiment.artifact_location)
    own_layout = "/".join(new.split("/")[-2:])  # any other layout was set up by the user and stays
    if old == new or not old.endswith(own_layout):
        return False
    with contextlib.closing(sqlite3.connect(database_of(uri), timeout=20)) as database, database:
        of = "WHERE experiment_id = ?"
        database.execute(f"UPDATE experiments SET artifact_location = ? {of}", (new, number))
        database.execute(f"UPDATE runs SET artifact_uri = replace(artifact_uri, ?, ?) {of}", (old, new, number))
    return True
