"""The addresses of MLflow's stores: a server, or an SQLite file, whose path is percent-encoded as SQLAlchemy reads it back."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from minbert_core.files import user_path

SERVER, FILE = ("http://", "https://"), "sqlite:///"


def store_uri(runs: Path) -> str:
    """The store of the searches in the folder `runs`: `mlflow.db` next to it, where the command was typed."""
    return sqlite_uri(runs.absolute().parent / "mlflow.db")


def sqlite_uri(database: Path) -> str:
    """The address of a file: `sqlite:////home/me/mlflow.db`."""
    from sqlalchemy.engine import URL  # here, because it takes 0.3 s

    return URL.create("sqlite", database=str(database)).render_as_string()


def database_of(uri: str) -> Path:
    """The file at an SQLite address; the inverse of `sqlite_uri`."""
    from sqlalchemy.engine import make_url

    return Path(make_url(uri).database or "")


def parse_tracking_uri(text: str) -> str:
    """A store's address as the user wrote it, absolute.  Raises ValueError: an address that MLflow 3 or we do not log to."""
    if text.startswith(SERVER):
        server = urlsplit(text)
        if not server.hostname:
            raise ValueError(f"An MLflow server's address is http(s)://HOST:PORT. Got '{text}'.")
        if server.username is not None:  # plan.json and every page would show it
            raise ValueError(
                "An MLflow server's address holds no password. Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
            )
        return text.rstrip("/")
    if text.startswith(FILE) and (path := text.removeprefix(FILE)):
        if "?" in path:
            raise ValueError(f"A path in an address is percent-encoded. Got '{text}'. For a file: {_absolute(path)}")
        return _absolute(str(database_of(text)))
    scheme, _, rest = text.partition("://")
    if not rest or scheme == "file":
        database = f"{rest or text.removeprefix('file:')}/mlflow.db"
        raise ValueError(f"MLflow 3 no longer logs to folders. Got '{text}'. In a file there: {_absolute(database)}")
    raise ValueError(f"A search logs to an MLflow server, http(s)://…, or to a file, sqlite:///…. Got '{text}'.")


def _absolute(database: str) -> str:
    return sqlite_uri(user_path(database).absolute())
