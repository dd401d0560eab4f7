"""A trial whose process shares no disk with the driver. A whole search of that kind: tests/search/plan/test_resume.py."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from search.study.away import scratch


def test_a_scratch_folder_of_a_killed_process_is_removed_by_the_next(cache: Path) -> None:
    place = cache / "minbert" / "scratch"
    with scratch("small-1/trials/007") as folder:
        (folder / "log.txt").touch()
        killed = shutil.copytree(folder, place / "small-1" / "trials" / "006")
        os.utime(killed / "log.txt", (1, 1))
        with scratch("small-1/trials/008") as other:
            assert (folder.exists(), killed.exists(), other.exists()) == (True, False, True)
    assert not (place / "small-1").exists()
