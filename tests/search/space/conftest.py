"""Spaces as files, the faults of reading one, and points drawn at random."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minbert_core.settings.faults import SettingsError
from search.space.domains import Choice, Domain
from search.space.space import read_space
from search.space.walk import Choose

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str = "s.yaml") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


@pytest.fixture
def faults(write: Write, tmp_path: Path) -> Callable[..., list[str]]:
    """What reading a space complains of, `line: sentence` (`file:line: sentence` where the file is not s.yaml), one a fault."""

    def faults(text: str, *sets: str) -> list[str]:
        path = write(text)
        with pytest.raises(SettingsError, match=r".") as caught:
            read_space(path, sets)
        return [line.replace(f"{path}:", "").replace(f"{tmp_path}/", "") for line in str(caught.value).splitlines()]

    return faults


@pytest.fixture
def drawing() -> Callable[[int], Choose]:
    """Return `choose` functions that draw from every domain with a seed."""

    def start(seed: int) -> Choose:
        generator = random.Random(seed)

        def choose(name: str, domain: Domain) -> Any:
            if isinstance(domain, Choice):
                return generator.choice(domain.labels)
            value = generator.uniform(domain.low, domain.high)
            return round(value) if domain.kind == "int" else value

        return choose

    return start


@pytest.fixture
def step_space() -> str:
    """Return a space whose `together` chooses a task schedule and a gradient method as one."""
    return """
together:
  step:
    - name: surgery
      set:
        task_schedule: round_robin
        gradient: {choice: [pcgrad, {kind: gradvac, beta: {log_uniform: [1e-3, 1e-1]}}]}
    - {name: single, set: {task_schedule: proportional, gradient: sum}}
"""
