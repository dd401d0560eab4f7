"""The faults of an MLflow store: which of them pass, and what to say of one."""

from __future__ import annotations

from search.environment import without_secrets

PASSING = {  # MLflow's error codes. A connection that fails has the first, and so has a server that answers 500
    "INTERNAL_ERROR",
    "TEMPORARILY_UNAVAILABLE",
    "REQUEST_LIMIT_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "DEADLINE_EXCEEDED",
    "CANCELLED",
}
MAX_REASON = 200  # characters


def may_pass(error: BaseException) -> bool:
    """Return whether a store may work again later: no answer, too slow, HTTP 5xx or 429, a locked database, a full disk.

    Others stay until someone acts: a login that is refused, a file that is not a database, a value that MLflow does not accept.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import OperationalError

    if isinstance(error, MlflowException):
        return error.error_code in PASSING
    return isinstance(error, OperationalError | OSError)  # the errors of requests are OSErrors


def reason_of(error: BaseException) -> str:
    """Return the message at the bottom of a chain of errors in one line, without secrets: `Connection refused`."""
    inner = error
    while (cause := inner.__cause__ or inner.__context__) is not None:
        inner = cause
    text = inner.strerror if isinstance(inner, OSError) and inner.strerror else str(inner)
    line = (text.strip().splitlines() or [""])[0] or type(inner).__name__
    return without_secrets(line)[:MAX_REASON].rstrip(".")
