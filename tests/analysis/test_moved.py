"""best_to_test on a search that was moved, on one of several, and on folders that are damaged."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.best_to_test import main
from analysis.runs import main as runs_main
from analysis.selection import choose_search
from minbert_core.checkpoints import save_encoder
from minbert_core.data.toy import write_toy_corpus
from minbert_core.encoder import TINY, new_encoder
from search.plan.folder import lock

Capture = pytest.CaptureFixture[str]


def write_inputs(place: Path) -> dict[str, str]:
    """The toy corpus as a user's own folder, and an encoder that knows its words."""
    data, encoder = place / "data", place / "encoder"
    write_toy_corpus(data)
    words = len((data / "vocab.txt").read_text(encoding="utf-8").splitlines())
    save_encoder(new_encoder(dataclasses.replace(TINY, vocab_size=words), 0, 0.1, 0.1), encoder)
    shutil.copy(data / "vocab.txt", encoder)
    return {"data": str(data), "encoder": str(encoder)}


def test_a_moved_search_is_tested_as_it_was_and_trains_nothing_twice(
    one_ray: None, tmp_path: Path, make_search: Callable[..., Path], capsys: Capture
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    make_search(old / "runs", "small", write_inputs(old), num_trials=1)
    options = ["--search", "small", "--seeds", "1", "--gpus", "0"]
    assert main([*options, "--runs", str(old / "runs")]) == 0
    before = (old / "runs" / "small" / "test" / "selection.json").read_bytes()
    numbers = json.loads((old / "runs" / "small" / "test" / "results.json").read_text())["configurations"]

    new.mkdir()
    for name, now in (("runs", "searches"), ("data", "corpora"), ("encoder", "bert")):
        shutil.move(old / name, new / now)
    shutil.rmtree(old)
    options += ["--runs", str(new / "searches")]
    capsys.readouterr()
    assert main(options) == 3
    assert "which is not here. Give its folder: --data DIR" in capsys.readouterr().err
    assert main([*options, "--data", str(new / "corpora"), "--encoder", str(new / "corpora"), "--dry-run"]) == 3
    assert f"The encoder in {new / 'corpora'} differs from the encoder of the search small" in capsys.readouterr().err
    assert main([*options, "--data", str(new / "corpora"), "--encoder", str(new / "bert")]) == 0
    assert "000-seed0 was trained before" in capsys.readouterr().out
    test = new / "searches" / "small" / "test"
    assert (test / "selection.json").read_bytes() == before
    assert json.loads((test / "results.json").read_text())["configurations"] == numbers
    assert len((test / "ledger.jsonl").read_text().splitlines()) == 2
    assert main([*options, "--dry-run"]) == 0  # where data and encoder lie is remembered
    assert not old.exists()


@pytest.fixture
def several(real_like: tuple[Path, Path], toy_runs: Path, tmp_path: Path) -> Path:
    """A folder of a search on real data, `small`, and of newer ones."""
    runs = tmp_path / "runs"
    shutil.copytree(real_like[0] / "small", runs / "small", symlinks=True)
    shutil.copytree(toy_runs / "small", runs / "toy", symlinks=True)
    redate(runs / "toy", "2099-01-01T00:00:00+0000")
    return runs


def redate(folder: Path, created: str) -> None:
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(plan | {"created": created}))


def test_the_newest_search_that_ended_and_is_not_toy_is_taken_and_it_is_said_why(several: Path) -> None:
    shutil.copytree(several / "small", several / "young", symlinks=True)
    redate(several / "young", "2098-01-01T00:00:00+0000")
    told: list[str] = []
    with lock(several / "young"):
        assert choose_search(None, several, told.append).name == "small"
    assert told == [
        "toy is skipped: it is on the toy corpus",
        "young is skipped: it is still running",
        f"small: the newest search in {several} that has ended and is not toy",
    ]
    assert choose_search(None, several, told.append).name == "young"


def test_damaged_folders_beside_a_search_do_not_stop_it(several: Path, capsys: Capture) -> None:
    for name, text in (("empty", "{}"), ("cut", '{"format": 1, "na'), ("list", "[]")):
        (several / name).mkdir()
        (several / name / "plan.json").write_text(text)
    half = shutil.copytree(several / "small", several / "half", symlinks=True)
    (half / "study.journal").unlink()
    other = shutil.copytree(several / "small", several / "other", symlinks=True)
    (other / "study.journal").write_text("no journal\n")
    for folder in (half, other):  # else the trials' folders would know their entries
        (folder / "trials" / "000" / "trial.json").unlink()
    (several / "notes.txt").touch()
    assert main(["--runs", str(several), "--gpus", "0", "--dry-run"]) == 0
    said = capsys.readouterr().out
    for name in ("empty", "cut", "list", "half", "other"):
        assert f"search    {name} is skipped: " in said, said
    assert "search    small: the newest search" in said
    assert not (half / "study.journal").exists()
    assert runs_main(["--runs", str(several)]) == 0
    assert main(["--search", "half", "--runs", str(several), "--dry-run"]) == 2
    assert (
        f"{half}/trials/000 belongs to no trial that is known: study.journal is damaged (it is missing)"
        in capsys.readouterr().err
    )
