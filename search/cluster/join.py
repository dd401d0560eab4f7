"""The way into a Ray cluster that somebody else has started: its address, its authentication, the code that its workers need.

    --address auto -> find_address -> HOST:PORT -> join: look.py without and with the token -> ray.init

A cluster started with `ray start` has no authentication, unless its nodes were started with a token. Without it, it accepts
every caller, but its workers then refuse a caller that wants authentication; so both sides must agree before the first call.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from minbert_core.commands import Refused
from minbert_core.files import cache_folder
from search import OWN_TOKEN

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("minbert_core", "search", "analysis")  # they travel with the job; the dependencies must be on the nodes
PRIVATE = "minbert-ray-"  # in the folder of each search's own instance, which nobody joins
MODE, TOKEN, TOKEN_FILE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
LOOK_SECONDS = 60  # for a look at a cluster; it takes half a second, and the import of Ray one more


def find_address(address: str) -> str:
    """Return HOST:PORT of the cluster to join. `auto`: RAY_ADDRESS, the last cluster started here, or the only one that runs.

    Raises Refused if there is none, if there are several, or if nothing answers there, as Ray itself would try for minutes.
    """
    from ray._private.services import canonicalize_bootstrap_address

    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or _only(_last_started() or _running())
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Refused(
            f"No Ray cluster answers at {address} ({reason}). Start one with `ray start --head`, or mend the address."
        ) from None
    return str(canonicalize_bootstrap_address(address))


def _only(addresses: list[str]) -> str:
    if len(addresses) == 1:
        return addresses[0]
    if addresses:
        raise Refused(f"Several Ray clusters run on this machine. Name one: --address {' or '.join(addresses)}.")
    raise Refused(
        "No Ray cluster runs on this machine. Join one here with `ray start --address=HOST:PORT`, or start one with `ray start "
        "--head`."
    )


def _last_started() -> list[str]:
    from ray._private.utils import read_ray_address

    address = read_ray_address()
    return [address] if address else []


def _running() -> list[str]:
    """List the clusters that processes on this machine belong to, without the private instances of searches."""
    addresses = set()
    for process in psutil.process_iter(["name", "cmdline"]):
        words = " ".join(process.info["cmdline"] or ())
        if process.info["name"] == "raylet" and PRIVATE not in words:
            addresses |= set(re.findall(r"--gcs-address=(\S+)", words))
    return sorted(addresses)


# ------------------------------------------------------------------------------------------------------------------ joining


def join(address: str, shares_disk: bool = True) -> str:
    """Connect this process to the cluster at `address` (HOST:PORT or auto), unless it is connected. Return HOST:PORT.

    shares_disk: workers use this machine's cache; otherwise each node has its own.
    Raises Refused, with what to type: the cluster wants a token unknown here, or this machine is not one of its nodes.
    """
    import ray

    address = find_address(address)
    if ray.is_initialized() and ray.get_runtime_context().gcs_address == address:
        return address
    credentials = _credentials(address)
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with _environment(credentials):
            read_authentication()
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=runtime_env(shares_disk))
    except Exception as error:  # Ray raises plain exceptions
        raise Refused(_reason(address, error)) from error
    return address


def read_authentication() -> None:
    """Let Ray read again from the environment how it authenticates, as it otherwise does only when it is imported."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def runtime_env(shares_disk: bool) -> dict[str, Any]:
    """Return what a worker needs to run our code: the packages, and a few settings of this process."""
    settings = {"RAY_CHDIR_TO_TRIAL_DIR": "0", "TOKENIZERS_PARALLELISM": "false"}
    settings |= {"XDG_CACHE_HOME": str(cache_folder().parent)} if shares_disk else {}
    return {"py_modules": [str(ROOT / name) for name in PACKAGES], "env_vars": settings}


def _credentials(address: str) -> dict[str, str | None]:
    """Return the settings with which the cluster accepts this process; None: not set.  Raises Refused."""
    token = os.environ.get(TOKEN)
    token = None if token and token.startswith(OWN_TOKEN) else token
    for credentials in ({MODE: "disabled", TOKEN: None}, {MODE: "token", TOKEN: token}):
        seen = _look(address, credentials)
        if not seen.get("refused"):
            break
        if not (token or os.environ.get(TOKEN_FILE) or (Path.home() / ".ray" / "auth_token").exists()):
            raise Refused(
                f"The Ray cluster at {address} wants its token, and none is known here. On one of its nodes "
                f"`ray get-auth-token` prints it. Write it into a file that only you can read, and type here: "
                f"export {TOKEN_FILE}=FILE"
            )
    if seen.get("refused"):
        source = TOKEN if token else os.environ.get(TOKEN_FILE, "~/.ray/auth_token")
        raise Refused(
            f"The Ray cluster at {address} has another token than {source}. On one of its nodes `ray get-auth-token` prints it."
        )
    if "fault" in seen:
        raise Refused(f"No Ray cluster answers at {address}: {seen['fault']}")
    if not seen["here"]:
        raise Refused(
            f"This machine is not a node of the Ray cluster at {address}, as a search's driver must be. Type on one of its "
            f"nodes, or let this machine join, without trials: ray start --address={address} --num-cpus=0 --num-gpus=0"
        )
    return credentials


def _look(address: str, credentials: Mapping[str, str | None]) -> dict[str, Any]:
    command = [sys.executable, "-P", str(Path(__file__).with_name("look.py")), address]
    with _environment(credentials):
        done = subprocess.run(command, capture_output=True, text=True, timeout=LOOK_SECONDS, check=False)
    try:
        seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return {"fault": (done.stderr.splitlines() or ["Ray could not be started"])[-1], "refused": False}
    return seen


@contextlib.contextmanager
def _environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables within the block; None removes one."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _reason(address: str, error: Exception) -> str:
    text = str(error) or type(error).__name__
    if "Version mismatch" in text:
        facts = "; ".join(line.strip() for line in text.splitlines() if ":" in line)
        return f"The Ray cluster at {address} runs other versions of Ray or Python than this process. {facts}"
    return f"The Ray cluster at {address} could not be joined: {text.splitlines()[0]}"
