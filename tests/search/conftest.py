"""What the tests of a search share: a cache of their own, a data folder and an encoder folder that know the toy words."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import search  # noqa: F401 — before any test imports Ray: it sets what Ray reads then, and where workers find the project
from minbert_core.checkpoints import save_encoder
from minbert_core.data.tokens import load_tokenizer
from minbert_core.data.toy import toy_folder
from minbert_core.encoder import TINY, new_encoder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """XDG_CACHE_HOME, here and in the processes that tests start, with the toy corpus in it."""
    before = os.environ.get("XDG_CACHE_HOME")
    home = tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"] = str(home)
    toy_folder(home / "minbert")
    yield home
    del os.environ["XDG_CACHE_HOME"]
    if before is not None:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture
def data(cache: Path, tmp_path: Path) -> Path:
    """The toy corpus as a user's own folder would be, without its test files."""
    return shutil.copytree(toy_folder(cache / "minbert"), tmp_path / "data", ignore=shutil.ignore_patterns("*-test-*"))


@pytest.fixture
def encoder(cache: Path, tmp_path: Path) -> Path:
    """A checkpoint folder of the tiny encoder: `--encoder tiny` goes with `--data toy` only."""
    folder = tmp_path / "encoder"
    folder.mkdir()
    shutil.copy(toy_folder(cache / "minbert") / "vocab.txt", folder)
    shape = replace(TINY, vocab_size=load_tokenizer(folder).vocab_size)
    save_encoder(new_encoder(shape, seed=0, hidden_dropout=0.1, attention_dropout=0.1), folder)
    return folder
