"""A file that a later command adds to the MLflow run of a search, which has ended or is still written by its own process."""

from __future__ import annotations

from pathlib import Path

from search.environment import without_secrets
from search.tracking.faults import reason_of
from search.tracking.store import NOWHERE, SERVER, database_of, quieten_mlflow


def has_store(uri: str) -> bool:
    """Return whether there is a store at an address; a server is taken for one."""
    return uri != NOWHERE and (uri.startswith(SERVER) or database_of(uri).exists())


def add_artifact(uri: str, name: str, search_id: str | None, file: Path) -> str | None:
    """Log a file as an artifact of the newest run of the search `name`.  Return a sentence if that is impossible now."""
    if uri == NOWHERE:
        return "The search logs to no store (--tracking-uri none)."
    if not has_store(uri):
        return f"There is no {database_of(uri)}, so the search's run has no {file.name}."
    quieten_mlflow()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    query = f"tags.search = '{name}' and tags.role = 'search'"
    query += f" and tags.search_id = '{search_id}'" if search_id is not None else ""
    try:
        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name(name)
        found = client.search_runs([experiment.experiment_id], query, order_by=["start_time DESC"]) if experiment else []
        if not found:
            return f"{without_secrets(uri)} has no run of {name}, so {file.name} was not added. --resume logs the search again."
        client.log_artifact(found[0].info.run_id, str(file))
    except (MlflowException, SQLAlchemyError, OSError) as error:
        return f"MLflow at {without_secrets(uri)} has not taken {file.name}: {reason_of(error)}."
    return None
