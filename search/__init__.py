"""The search: spaces, the study, and Ray, Optuna and MLflow around `minbert_core.train`.

Ray reads its settings when it is first imported, so they are set here, before any module of this package can import it. The
user's own settings are kept.
"""

import os
import secrets
import sys
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parents[1])
OWN_TOKEN = "minbert-"  # the start of a token for private instances, by which a child process knows that it is not a user's

_RAY_SETTINGS = {
    # the search's own Ray instance needs a secret of this process, so nobody else on the machine can join it
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": OWN_TOKEN + secrets.token_hex(32),
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints boxes even with verbose=0
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_prestart_worker_first_driver": "0",  # a worker per core, which lacks the trials' environment and is never used
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # Tune's own snapshots are never read
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TOKENIZERS_PARALLELISM": "false",
}

if os.path.expanduser("~") == "~":  # no HOME and no password entry, as in some containers; importing Ray needs a home
    os.environ["HOME"] = os.devnull  # nothing can be written there by accident; XDG_CACHE_HOME sets the caches

if "ray" not in sys.modules:
    for _name, _value in _RAY_SETTINGS.items():
        os.environ.setdefault(_name, _value)
    if _ROOT not in os.environ.get("PYTHONPATH", "").split(os.pathsep):  # for workers, where the project is not installed
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")]))
