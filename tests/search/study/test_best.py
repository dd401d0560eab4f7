"""best/ of a search: a whole model, which follows the best trial's and can be copied."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from search.study.best import publish


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "trials" / "000" / "best"
    (folder / "encoder").mkdir(parents=True)
    (folder / "heads.safetensors").write_text("heads")
    (folder / "encoder" / "config.json").write_text("{}")
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_it_takes_no_space_and_a_plain_copy_of_it_is_a_model(tmp_path: Path, model: Path) -> None:
    best = tmp_path / "best"
    publish(model, best)
    assert (best / "heads.safetensors").samefile(model / "heads.safetensors")
    subprocess.run(["cp", "-r", best, tmp_path / "mine"], check=True)
    shutil.rmtree(tmp_path / "trials")
    assert contents(tmp_path / "mine") == contents(best) == {"heads.safetensors": "heads", "encoder/config.json": "{}"}


def test_what_is_published_already_is_not_written_again(tmp_path: Path, model: Path) -> None:
    best = tmp_path / "best"
    publish(model, best)
    before = best.stat().st_ino
    publish(model, best)
    assert best.stat().st_ino == before


@pytest.mark.parametrize("before", ["link", "dangling link", "other model"])
def test_it_takes_the_place_of_an_earlier_version_s_link_and_of_another_model(tmp_path: Path, model: Path, before: str) -> None:
    best = tmp_path / "best"
    if before == "other model":
        best.mkdir()
        (best / "README.md").write_text("of another")
    else:
        best.symlink_to(Path("trials") / ("000" if before == "link" else "001") / "best")
    publish(model, best)
    assert not best.is_symlink()
    assert contents(best) == contents(model)


def test_where_the_disk_has_no_hard_links_it_is_a_copy(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    best = tmp_path / "best"
    publish(model, best)
    assert contents(best) == contents(model)
    before = best.stat().st_ino
    publish(model, best)
    assert best.stat().st_ino == before


def test_without_a_model_what_is_there_stays(tmp_path: Path, model: Path) -> None:
    best = tmp_path / "best"
    publish(model, best)
    publish(tmp_path / "trials" / "001" / "best", best)
    assert contents(best) == contents(model)
