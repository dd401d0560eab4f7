"""A short part of `make faults`: real searches, killed, broken and stopped, and what came of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.faults import records
from benchmarks.faults.cases import CASES
from benchmarks.faults.harness import SPACE, Lab, Search

BY_NAME = {case.name: case for case in CASES}
SHORT = SPACE.replace("trials: 6", "trials: 4").replace("examples: 6000", "examples: 1500")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Lab:
    root = tmp_path_factory.mktemp("faults")
    shutil.copy(store, root / "mlflow.db")
    return Lab(root)


@pytest.fixture
def search(lab: Lab) -> Iterator[Search]:
    search = lab.search(SHORT)
    yield search
    search.remove()


# the driver is killed in it; tests/search/study/test_repair.py breaks the same files one by one, without a driver
@pytest.mark.parametrize("name", ["study.journal, a config.yaml and its trial.json deleted"])
def test_a_search_that_nobody_can_restore_is_refused_with_nothing_written(
    name: str, search: Search, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "NUM_ENDED", 0)  # in the first trial that trains
    assert "belongs to no trial that is known" in BY_NAME[name].run(search, lab)
