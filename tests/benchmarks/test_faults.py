"""A short part of `make faults`: its harness, with a fault that takes seconds.

Kills, signals and broken files are also tested with real searches in tests/search/, one each.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.faults.cases import CASES
from benchmarks.faults.harness import SPACE, Lab, Search

BY_NAME = {case.name: case for case in CASES}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def search(lab: Lab) -> Iterator[Search]:
    search = lab.search(SPACE)
    yield search
    search.remove()


@pytest.mark.parametrize("name", ["Ctrl-C at the start"])
def test_a_fault_of_the_table_holds(name: str, search: Search, lab: Lab) -> None:
    BY_NAME[name].run(search, lab)
