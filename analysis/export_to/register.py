"""An exported MLflow folder in MLflow's registry: a LoggedModel of the search's run, a version of a name, and its alias.

mlflow/ ─► LoggedModel in the run of the search ─► models:/NAME@champion
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from analysis.export_to.origin import Origin
from minbert_core.commands import Refused
from search.environment import without_secrets
from search.tracking.faults import reason_of
from search.tracking.store import prepare_store, quieten_mlflow, store_fault

EXPERIMENT = "exported models"  # of models that are of no search in the store


def register(folder: Path, uri: str, origin: Origin, tasks: list[str], name: str, alias: str) -> list[str]:
    """Log a folder as a model, register it as the next version of `name`, and move `alias` to it ("": no alias).

    Return lines for the user. The run of the search, which may have ended, is not changed.
    Raises Refused: the store does not take it.
    """
    if fault := store_fault(uri):
        raise Refused(fault)
    prepare_store(uri)
    quieten_mlflow()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.tracking._tracking_service.utils import _use_tracking_uri

    try:
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        model_id = _log(client, folder, origin, tasks)
        with _use_tracking_uri(uri):  # a database's registry looks for the model through MLflow's global address
            number = _version(client, model_id, name, _tags(origin))
        if alias:
            client.set_registered_model_alias(name, alias, number)
    except (MlflowException, OSError) as error:
        raise Refused(f"MLflow at {without_secrets(uri)} has not taken the model: {reason_of(error)}.") from None
    address = f"models:/{name}@{alias}" if alias else f"models:/{name}/{number}"
    return [f"{name}, version {number}: {address}", f"in {without_secrets(uri)}, with {len(_tags(origin))} tags"]


def _log(client: Any, folder: Path, origin: Origin, tasks: list[str]) -> str:
    """Store a folder as a LoggedModel; return its id."""
    experiment, run = _place(client, origin)
    tags = _tags(origin) | {"tasks": ", ".join(tasks)}
    model = client.create_logged_model(experiment, name=_name(origin), source_run_id=run, tags=tags, model_type="pyfunc")
    client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def _place(client: Any, origin: Origin) -> tuple[str, str | None]:
    """Return the experiment and the run of the model's search; without them, an experiment for such models."""
    if origin.search is not None and (experiment := client.get_experiment_by_name(origin.search.name)):
        query = f"tags.search = '{origin.search.name}' and tags.role = 'search'"
        found = client.search_runs([experiment.experiment_id], query, order_by=["start_time DESC"], max_results=1)
        return experiment.experiment_id, found[0].info.run_id if found else None
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return (experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)), None


def _name(origin: Origin) -> str:
    """Return the LoggedModel's name, in which MLflow allows no slash, point, colon or quote."""
    return origin.name.replace(", ", "-").replace(" ", "-") or "model"


def _version(client: Any, model_id: str, name: str, tags: dict[str, str]) -> str:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = client.get_logged_model(model_id)
    made = client.create_model_version(name, source.artifact_location, source.source_run_id, tags, model_id=model_id)
    return str(made.version)


def _tags(origin: Origin) -> dict[str, str]:
    """Return what a version says of itself: search, trial, scores, and the fingerprints of its data."""
    search, trial = origin.search, origin.trial
    tags = {} if search is None else {"search": search.name, "search_id": search.plan.id or ""}
    tags |= {} if trial is None else {"trial": f"{trial.number:03d}"}
    tags |= {"retrained": origin.retrained} if origin.retrained else {}
    tags |= {f"dev/{column}": f"{value:.6f}" for column, value in origin.dev.items()}
    tags |= {f"test/{column}": f"{value:.6f}" for column, value in origin.test.items()}
    for column, found in origin.test_of_configuration.items():
        low, high = found["interval"]
        tags[f"test/{column}/mean"] = f"{found['mean']:.6f} [{low:.6f}, {high:.6f}]"
    return tags | ({} if search is None else {f"sha256/{name}": digest for name, digest in search.plan.fingerprints.items()})
