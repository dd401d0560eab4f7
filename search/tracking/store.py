"""The addresses of MLflow's stores: a server, or an SQLite file, whose path is percent-encoded as SQLAlchemy reads it back."""

from __future__ import annotations

import importlib.util
import logging
import os
import shlex
import shutil
import sys
from pathlib import Path
from urllib.parse import urlsplit

from minbert_core.files import user_path
from search.environment import without_secrets
from search.tracking.faults import reason_of

SERVER, FILE = ("http://", "https://"), "sqlite:///"
NOWHERE = "none"  # in place of an address: MLflow records nothing


def store_uri(runs: Path) -> str:
    """Return the address of the store for the searches in the folder `runs`: `mlflow.db` next to that folder."""
    return sqlite_uri(runs.absolute().parent / "mlflow.db")


def sqlite_uri(database: Path) -> str:
    """Return the address of a database file: `sqlite:////home/me/mlflow.db`."""
    from sqlalchemy.engine import URL  # here, because it takes 0.3 s

    return URL.create("sqlite", database=str(database)).render_as_string()


def database_of(uri: str) -> Path:
    """Return the file at an SQLite address; the inverse of `sqlite_uri`."""
    from sqlalchemy.engine import make_url

    return Path(make_url(uri).database or "")


def parse_tracking_uri(text: str) -> str:
    """Make a store's address, as the user wrote it, absolute. Raises ValueError: neither a server nor an SQLite file."""
    if text == NOWHERE:
        return NOWHERE
    if text.startswith(SERVER):
        server, shown = urlsplit(text), without_secrets(text.partition("#")[0])
        if not server.hostname:
            raise ValueError(f"An MLflow server's address is http(s)://HOST:PORT. Got '{shown}'.")
        if server.username is not None or server.query or server.fragment:  # plan.json and every page would show a secret there
            raise ValueError(
                f"An MLflow server's address holds no password and no token. Got '{shown}'. Set MLFLOW_TRACKING_TOKEN, or "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
            )
        return text.rstrip("/")
    if text.startswith(FILE) and (path := text.removeprefix(FILE)):
        if "?" in path:
            raise ValueError(f"A path in an address is percent-encoded. Got '{text}'. For a file: {_absolute(path)}")
        return _absolute(str(database_of(text)))
    scheme, _, rest = text.partition("://")
    if not rest or scheme == "file":
        database = f"{rest or text.removeprefix('file:')}/mlflow.db"
        shown = without_secrets(text)
        raise ValueError(f"MLflow 3 no longer logs to folders. Got '{shown}'. In a file there: {_absolute(database)}")
    shown = without_secrets(text)
    raise ValueError(f"A search logs to an MLflow server, http(s)://…, to a file, sqlite:///…, or to none. Got '{shown}'.")


def _absolute(database: str) -> str:
    return sqlite_uri(user_path(database).absolute())


def store_fault(uri: str) -> str | None:
    """Return a sentence if nothing can be logged to `uri` now. None: it works, or a database will be created."""
    if uri == NOWHERE:
        return None
    if not uri.startswith(SERVER):
        database = database_of(uri)
        if database.is_dir():
            return f"{database} is a folder; an MLflow store is a file in it: {sqlite_uri(database / 'mlflow.db')}"
        if database.exists():
            with database.open("rb") as file:
                if file.read(15) not in (b"SQLite format 3", b""):
                    return f"{database} is not an SQLite database, so MLflow cannot log there."
        return None
    quieten_mlflow()
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    shown = without_secrets(uri)
    try:  # one short try
        endpoint, server = "/api/2.0/mlflow/experiments/search", get_default_host_creds(uri)
        answer = http_request(
            server, endpoint, "GET", max_retries=0, timeout=10, raise_on_status=False, params={"max_results": 1}
        )
    except MlflowException as error:
        return f"No MLflow server answers at {shown} ({reason_of(error)}). Start it, or give another store with --tracking-uri."
    if answer.status_code in (401, 403):
        return f"The MLflow server at {shown} needs a login. Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
    if answer.status_code != 200 or "json" not in answer.headers.get("Content-Type", ""):
        return f"The server at {shown} is not an MLflow server (HTTP {answer.status_code} for {endpoint})."
    return None


def prepare_store(uri: str) -> None:
    """Create the database of `uri` if there is none. It appears whole or not at all, and an existing one is not touched.

    MLflow takes 4 s to create the tables. A process killed during that time leaves a file that never opens again, and two
    processes at once disturb each other. So the database is created under a temporary name and then linked to its own. A second
    process keeps the first one's database.
    """
    if uri.startswith(SERVER) or (database := database_of(uri)).exists():
        return
    quieten_mlflow()
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    database.parent.mkdir(parents=True, exist_ok=True)
    fresh = database.with_name(f"{database.name}-new-{os.getpid()}")
    fresh.unlink(missing_ok=True)
    try:
        SqlAlchemyStore(sqlite_uri(fresh), artifacts_folder(uri).as_uri()).engine.dispose()
        try:
            os.link(fresh, database)
        except FileExistsError:
            pass  # another process was first, and its store may already contain runs
        except OSError:  # a file system without hard links
            os.replace(fresh, database)
    finally:
        fresh.unlink(missing_ok=True)


def ui_command(uri: str, folder: Path) -> str:
    """Return the command that, in `folder`, shows this store at `ui_address`.

    It always contains the store's address, because a bare `mlflow ui` prefers an old `mlruns/`. A server is its own address.
    """
    if uri == NOWHERE:
        return "no records in MLflow (--tracking-uri none)"
    if uri.startswith(SERVER):
        return without_secrets(uri)
    return f"{_program('mlflow', folder)} ui --backend-store-uri {shlex.quote(uri)} --port {_port()}"


def ui_address(uri: str) -> str:
    """Return the address of the page that `ui_command` opens."""
    return without_secrets(uri) if uri.startswith(SERVER) else f"http://127.0.0.1:{_port()}"


def _port() -> int:
    return 5001 if sys.platform == "darwin" else 5000  # AirPlay uses 5000


def dashboard_command(journal: Path, folder: Path) -> str:
    """Return the command that, in `folder`, opens a study's journal in Optuna's dashboard, or how to install that."""
    path = shlex.quote(str(journal.relative_to(folder) if journal.is_relative_to(folder) else journal))
    missing = importlib.util.find_spec("optuna_dashboard") is None
    return f"{_program('optuna-dashboard', folder)} {path}" + (" (pip install optuna-dashboard)" if missing else "")


def dashboard_note(num_completed: int, num_trials: int) -> str:
    """Return a sentence about the importance that Optuna's dashboard shows, which ignores trials that were stopped."""
    return f"its importance counts {num_completed} of {num_trials} trials, the completed; analysis/importance.py all"


def _program(name: str, folder: Path) -> str:
    """Return a program's name, or its path relative to `folder` if the shell would not find the one of this environment."""
    program = Path(sys.executable).parent / name
    if program.exists() and shutil.which(name) != str(program):
        name = str(program.relative_to(folder) if program.is_relative_to(folder) else program)
    return shlex.quote(name)


def artifacts_folder(uri: str) -> Path:
    """Return the folder for the artifacts of a store in a file: `mlartifacts` next to it."""
    return database_of(uri).parent / "mlartifacts"


def quieten_mlflow() -> None:
    """Switch off MLflow's telemetry, progress bars and retries before it is imported, and notes of its parts on the terminal.

    A client that retries would repeat each call for minutes and print a line per try. The Tracker repeats calls itself, and
    each with a new connection to a database file, because an open one would write on into a file that was deleted.
    """
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ["MLFLOW_SQLALCHEMYSTORE_POOLCLASS"] = "NullPool"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # seconds
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # one line per run, if the store is a server
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import mlflow  # noqa: F401  its import configures logging, which the next lines reduce

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # else a line per connection that fails
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # else it prints tracebacks of errors that it raises
