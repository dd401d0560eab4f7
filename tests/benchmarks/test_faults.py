"""A short part of `make faults`: real searches, killed, broken and stopped, and what came of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.faults.cases import CASES
from benchmarks.faults.harness import SPACE, Lab, Search

BY_NAME = {case.name: case for case in CASES}
SHORT = SPACE.replace("trials: 6", "trials: 4").replace("examples: 6000", "examples: 1500")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def search(lab: Lab) -> Iterator[Search]:
    search = lab.search(SHORT)
    yield search
    search.remove()


# the driver is killed in it; tests/search/study/test_repair.py breaks the same files one by one, without a driver
@pytest.mark.parametrize("name", ["study.journal, a config.yaml and its trial.json deleted"])
def test_a_search_that_nobody_can_restore_is_refused_with_nothing_written(name: str, search: Search, lab: Lab) -> None:
    BY_NAME[name].run(search, lab)
