"""Seeds, one thread, a small trial on a small toy corpus, and where the real data and encoder are looked for."""

from __future__ import annotations

import gc
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from minbert_core import plugins
from minbert_core.config import TrialConfig
from minbert_core.config_checks import load_config
from minbert_core.data import toy
from minbert_core.settings.paths import lay_over

gc.disable()  # until all tests are collected: imports create no garbage
torch.set_num_threads(1)
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own is 15: a search would wait for the tests beside it
# a shell that starts pytest in the background has it ignored, here and in what a test starts
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared"
ENCODER = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "minbert" / "all-MiniLM-L6-v2"


def pytest_collection_finish() -> None:
    """Leave what imports and collecting have created out of garbage collections: a full one takes a third of a second."""
    gc.enable()
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)  # rarer ones of what tests create


@pytest.fixture(autouse=True)
def seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def forget() -> Iterator[Callable[[], None]]:
    """forget(): as a new process begins, no plugin was loaded; done at the end, too."""

    def done() -> None:
        plugins._loaded.clear()
        plugins._joined.clear()
        plugins._rebuild()

    yield done
    if plugins._joined:
        done()


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = SHARED / "data"
    if not (folder / "ids-sst-train.csv").exists():
        pytest.skip("the course's corpora are not here (../shared/data)")
    return folder


@pytest.fixture(scope="session")
def real_encoder() -> Path:
    if not (ENCODER / "model.safetensors").exists():
        pytest.skip(f"no pretrained encoder in {ENCODER}")
    return ENCODER


@pytest.fixture(scope="session")
def transformers() -> ModuleType:
    import transformers  # three seconds, and only these tests need it

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty mlflow.db to copy: laying one out takes MLflow seconds."""
    from search.tracking.store import prepare_store, sqlite_uri

    own = tmp_path_factory.getbasetemp()
    path = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "mlflow.db"  # one for all processes of the suite
    prepare_store(sqlite_uri(path))
    return path


@pytest.fixture(scope="session")
def small_toy_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder whose toy corpus has 120 / 40 / 10 examples a task instead of thousands."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "SIZES", {"train": 120, "dev": 40, "test": 10})
        toy.toy_folder(cache / "minbert")
    return cache


@pytest.fixture
def tiny(small_toy_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrialConfig]:
    """tiny(gradient="pcgrad", ...): a trial of ten steps of 3 x 8 examples on the small toy corpus, the arguments over it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(small_toy_cache))
    base = {
        "data": "toy",
        "encoder": {"checkpoint": "tiny"},
        "tasks": {"all": {"batch_size": 8, "pooling": "pooler"}},  # the pooling with parameters of its own: all kinds occur
        "budget": {"examples": 240},
        "optimizer": {"lr": 1e-3},
        "machine": {"device": "cpu", "precision": "float32"},
    }

    def config(**changes: Any) -> TrialConfig:
        return load_config(lay_over(base, changes))

    return config
