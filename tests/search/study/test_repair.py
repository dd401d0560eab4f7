"""A search whose files were damaged: what one of them has lost is restored from another, or nothing is touched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minbert_core.train.folder import read_records, state_file
from minbert_core.train.trial import save_snapshot
from search.methods.asha import RungScheduler
from search.space.space import Space, make_space
from search.study.gather import read_results
from search.study.journal import read_journal
from search.study.repair import repair
from search.study.study import Study
from search.study.trials import TrialResult

RUNGS = (1, 3, 9)
DOCUMENT: dict[str, Any] = {
    "baselines": [{}],
    "config": {
        "data": "toy",
        "encoder": "tiny",
        "budget": {"examples": 900},
        "optimizer": {"lr": {"log_uniform": [1e-4, 1e-2]}},
        "gradient": {"choice": ["sum", "pcgrad"]},
    },
}


def dev(rung: int, score: float) -> dict[str, Any]:
    facts = {"kind": "dev", "rung": rung, "examples": rung * 100, "seconds": rung * 1.0, "time_ms": 1000 * rung}
    return facts | {"dev/score": score, "dev/sst": score}


def train(examples: int) -> dict[str, Any]:
    return {"kind": "train", "examples": examples, "seconds": examples / 100, "time_ms": 10 * examples, "train/lr": 0.1}


def run(study: Study, score: float, rung: int = 9) -> TrialResult:
    """Let a new trial train and report until `rung`; end it, unless it stops at 3, where it goes on."""
    trial, records = study.ask(), []
    for point in (point for point in RUNGS if point <= rung):
        new = [train(50 * point), dev(point, score)]
        records += new
        (trial.folder / "best").mkdir(exist_ok=True)
        (trial.folder / "best" / "heads.safetensors").write_text(f"weights of {trial.number}")
        save_snapshot(state_file(trial.folder), {"counters": {}}, records)
        (trial.folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        study.report(trial.number, new)
    if rung != 3:
        study.tell(trial.number, *(("completed", "completed") if rung == 9 else ("stopped", "stopped at 1/9")))
    study.keep_best()
    return study.result(trial.number)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def space() -> Space:
    return make_space("quick", DOCUMENT)


@pytest.fixture(scope="module")
def searched(space: Space, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of five trials: the fourth is the best, the last one still runs."""
    folder = tmp_path_factory.mktemp("searched")
    study = Study(folder, space, seed=7)
    for score, rung in ((0.5, 9), (0.7, 9), (0.3, 1), (0.9, 9), (0.6, 3)):
        run(study, score, rung)
    return folder


@pytest.fixture
def folder(searched: Path, tmp_path: Path) -> Path:
    return shutil.copytree(searched, tmp_path / "search", symlinks=True)


def resumed(folder: Path, space: Space) -> tuple[list[str], list[TrialResult]]:
    """Resume a search as the driver does. Return what it says and the trials."""
    repairs = repair(folder, space, 7)
    study = Study(folder, space, 7)
    study.restore(RungScheduler(RUNGS), repairs.records)
    return repairs.sentences, study.results()


def delete(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_text("".join(lines(path)[: len(lines(path)) // 2]))


def spoil(path: Path) -> None:
    text = lines(path)
    text[len(text) // 2] = text[len(text) // 2][:5] + "\0\0\n"
    path.write_text("".join(text))


def test_an_undamaged_search_is_left_as_it_is(folder: Path, space: Space) -> None:
    before = everything(folder)
    assert repair(folder, space, 7).sentences == []
    assert everything(folder) == before


@pytest.mark.parametrize("damage", [delete, empty, cut, spoil])
def test_a_lost_journal_is_restored_from_the_trials_folders(folder: Path, space: Space, damage: Callable[[Path], None]) -> None:
    _, before = resumed(folder, space)
    damage(folder / "study.journal")
    [sentence], after = resumed(folder, space)
    assert after == before
    assert sentence.startswith("study.journal was d")
    assert "restored from the trials' folders" in sentence
    assert (folder / "study.journal.damaged").exists() == (damage is not delete)
    assert resumed(folder, space) == ([], before)
    assert Study(folder, space, 7).ask().number == 5
    assert (folder / "best" / "heads.safetensors").read_text() == "weights of 3"


@pytest.mark.parametrize("kept", range(5, 60, 6))
def test_a_journal_cut_at_any_line_never_gives_an_old_number_away(folder: Path, space: Space, kept: int) -> None:
    _, before = resumed(folder, space)
    path = folder / "study.journal"
    path.write_text("".join(lines(path)[:kept]))
    assert resumed(folder, space)[1] == before


def test_a_repair_that_is_killed_is_repeated(folder: Path, space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    _, before = resumed(folder, space)
    (folder / "study.journal").unlink()
    (folder / "trials" / "003" / "config.yaml").unlink()
    (folder / "trials" / "001" / "trial.json.tmp").write_text("{")
    cut(folder / "trials" / "001" / "metrics.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr("search.study.repair.write_config", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            repair(folder, space, 7)
    sentences, after = resumed(folder, space)
    assert [sentence.partition(" was ")[0] for sentence in sentences] == ["003/config.yaml"]
    assert without_training(after) == without_training(before)


def without_training(trials: list[TrialResult]) -> list[tuple[int, str, dict[int, Any]]]:
    return [(trial.number, trial.status, trial.points) for trial in trials]


@pytest.mark.parametrize("damage", [delete, empty, cut, spoil])
def test_lost_evaluations_are_restored_and_the_best_keeps_its_weights(
    folder: Path, space: Space, damage: Callable[[Path], None]
) -> None:
    _, before = resumed(folder, space)
    damage(folder / "trials" / "003" / "metrics.jsonl")
    assert read_results(folder, "quick")[3].points == before[3].points  # as others see it before
    [sentence], after = resumed(folder, space)
    assert "003/metrics.jsonl was damaged" in sentence
    assert without_training(after) == without_training(before)
    assert read_records(folder / "trials" / "003" / "metrics.jsonl") == after[3].records
    assert (folder / "best" / "heads.safetensors").read_text() == "weights of 3"
    assert resumed(folder, space)[0] == []


def test_a_cut_line_at_the_end_is_an_evaluation_that_is_lost(folder: Path, space: Space) -> None:
    path = folder / "trials" / "003" / "metrics.jsonl"
    path.write_text(path.read_text()[:-20])
    assert resumed(folder, space)[1][3].rung == 9


@pytest.mark.parametrize("number", [0, 3, 4])
def test_a_lost_config_is_sampled_again(folder: Path, space: Space, number: int) -> None:
    """Of a baseline, of an ended trial and of one that runs."""
    path = folder / "trials" / f"{number:03d}" / "config.yaml"
    before, (_, trials) = path.read_bytes(), resumed(folder, space)
    path.unlink()
    assert read_results(folder, "quick") == trials  # the trial does not vanish before either
    assert resumed(folder, space) == ([f"{number:03d}/config.yaml was lost: restored from study.journal"], trials)
    assert path.read_bytes() == before
    path.write_bytes(before[:40] + b"\n:")
    assert resumed(folder, space)[1] == trials
    assert path.read_bytes() == before


def test_a_trial_killed_before_its_folder_begins_without_a_word(tmp_path: Path, space: Space) -> None:
    study = Study(tmp_path, space, 7)
    trial = study.ask()
    shutil.rmtree(trial.folder)
    sentences, [again] = resumed(tmp_path, space)
    assert (sentences, again) == ([], trial)
    assert again.config().identity == trial.config().identity


def edit_config(folder: Path) -> None:
    path = folder / "trials" / "003" / "config.yaml"
    path.write_text(path.read_text().replace("seed: ", "seed: 1"))


def swap_folders(folder: Path) -> None:
    one, other = folder / "trials" / "001", folder / "trials" / "003"
    one.rename(folder / "aside")
    other.rename(one)
    (folder / "aside").rename(other)


def foreign_records(folder: Path) -> None:
    shutil.copy(folder / "trials" / "000" / "metrics.jsonl", folder / "trials" / "003" / "metrics.jsonl")


def foreign_journal(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    study = Study(folder / "elsewhere", make_space("quick", {"config": DOCUMENT["config"]}), seed=8)
    for _ in range(5):
        study.ask()
    shutil.copy(folder / "elsewhere" / "study.journal", folder / "study.journal")


def journal_and_copies_gone(folder: Path) -> None:
    (folder / "study.journal").unlink()
    for path in folder.glob("trials/*/trial.json"):
        path.unlink()


def journal_and_a_copy_gone(folder: Path) -> None:
    (folder / "study.journal").unlink()
    (folder / "trials" / "002" / "trial.json").write_text("{}")


def all_that_knows_a_trial_gone(folder: Path) -> None:
    journal_and_a_copy_gone(folder)
    (folder / "trials" / "002" / "config.yaml").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (edit_config, "differs from the config that the study has for this trial .* Put back the original, or delete"),
        (swap_folders, "is the folder of trial 003, by its trial.json"),
        (foreign_records, r"holds evaluations of another training: 0.5000 at rung 1, where study.journal has 0.9000"),
        (foreign_journal, "and study.journal disagree about the config of trial 000"),
        (journal_and_copies_gone, "trials/000 belongs to no trial that is known: study.journal is damaged .it is missing"),
        (journal_and_a_copy_gone, "trials/002 belongs to no trial that is known"),
        (all_that_knows_a_trial_gone, "trials/002 belongs to no trial that is known"),
    ],
)
def test_what_no_file_knows_is_refused_and_nothing_is_written(
    folder: Path, space: Space, damage: Callable[[Path], None], message: str
) -> None:
    damage(folder)
    before = everything(folder)
    with pytest.raises(ValueError, match=message):
        repair(folder, space, 7)
    assert everything(folder) == before


def test_a_lost_config_that_the_space_no_longer_gives_is_refused(folder: Path) -> None:
    (folder / "trials" / "003" / "config.yaml").unlink()
    other = make_space("quick", {**DOCUMENT, "config": {**DOCUMENT["config"], "max_length": 32}})
    with pytest.raises(ValueError, match="do not lead to its config again"):
        repair(folder, other, 7)


def test_a_cut_ask_is_repeated_with_the_same_point(tmp_path: Path, space: Space) -> None:
    """Killed at any line of an ask, the search gives the trial the same number and config."""
    study = Study(tmp_path, space, 7)
    study.ask()
    start = len(lines(tmp_path / "study.journal"))
    second = study.ask()
    whole, config = lines(tmp_path / "study.journal"), second.config()
    assert read_journal(tmp_path, "quick").operations[start]["op_code"] == 4
    for kept in range(start, len(whole)):
        shutil.rmtree(second.folder)
        (tmp_path / "study.journal").write_text("".join(whole[:kept]))
        repair(tmp_path, space, 7)
        assert (again := Study(tmp_path, space, 7).ask()).number == 1
        assert again.config() == config


def test_no_flipped_bit_of_the_journal_changes_a_trial(folder: Path) -> None:
    """Also within a text or a number, where the line stays JSON: what is read is sound up to the line."""
    journal, num_noticed = folder / "study.journal", 0
    whole, sound = read_journal(folder, "quick"), journal.read_bytes()
    for number in (*range(0, len(sound), 23), len(sound) - 1):
        flipped = bytearray(sound)
        flipped[number] ^= 1 << (number % 8)
        journal.write_bytes(flipped)
        found = read_journal(folder, "quick")
        num_noticed += bool(found.fault)
        assert found.fault or found.trials == whole.trials, f"byte {number}: {flipped[number - 40 : number + 40]!r}"
    assert num_noticed > 100


def test_a_changed_reason_is_restored_from_the_trials_folder(folder: Path, space: Space) -> None:
    journal = folder / "study.journal"
    known = [trial.reason for trial in read_results(folder, "quick")]
    journal.write_bytes(journal.read_bytes().replace(b'"completed"', b'"complated"', 1))
    [sentence], trials = resumed(folder, space)
    assert "study.journal was damaged (line" in sentence
    assert "has changed since it was written): " in sentence
    assert [trial.reason for trial in trials][:4] == known[:4]  # the last one still ran
