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


@pytest.mark.parametrize("name", ["study.journal deleted"])  # the driver is killed in it; tests/search/test_run.py has more
def test_a_broken_search_ends_like_one_that_nothing_broke(name: str, search: Search, lab: Lab) -> None:
    BY_NAME[name].run(search, lab)
