"""Seeds, one thread, and where the real data and encoder are looked for."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parents[2] / "shared"
ENCODER = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "minbert" / "all-MiniLM-L6-v2"


@pytest.fixture(autouse=True)
def seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


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
