"""What a search tells, line by line."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from search.report.narrate import Narrator, in_short, table
from search.report.words import describe, scores
from search.study.trials import TrialResult

TASKS = ["sst", "sts"]


@pytest.fixture
def narrator(tmp_path: Path) -> Iterator[Narrator]:
    with contextlib.closing(Narrator(tmp_path, TASKS, num_trials=4, slots=2, full=9)) as narrator:
        yield narrator


def test_a_trial_is_described_by_the_last_words_of_its_paths() -> None:
    params = {"smoothness": "smart", "smoothness/smart/radius": 0.012345, "tasks/all/batch_size": 16}
    assert describe(params) == "smoothness=smart radius=0.0123 batch_size=16"


def test_paths_that_end_alike_are_told_apart_by_two_words() -> None:
    params = {"optimizer/lr": 1e-4, "stages/0/linear_probe/lr": 2e-3, "stages/0/linear_probe/share": 0.5}
    assert describe(params) == "optimizer/lr=0.0001 linear_probe/lr=0.002 share=0.5"


def test_scores_are_short_and_keep_their_sign(trial: Callable[..., TrialResult]) -> None:
    assert scores(trial(0, 0.72034).best, TASKS) == "0.7203 (sst .441 sts -.020)"


def test_the_table_shows_the_fullest_rung_first_and_failures_last(trial: Callable[..., TrialResult]) -> None:
    trials = [
        trial(0, 0.6),
        trial(1, None, status="failed", reason="out of memory"),
        trial(2, 0.9, rung=1, status="stopped"),
        trial(3, 0.7, baseline=0),
    ]
    rows = [line for line in table(trials, TASKS) if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["003 (baseline)", "000", "002", "001"]
    assert "failed: out of memory" in rows[-1]
    assert len({len(row) for row in rows}) == 1
    assert table(trials, TASKS, most=3)[-1] == "(1 more in the trials' folders and in MLflow)"


def test_the_table_counts_gpu_minutes_where_there_are_gpus(trial: Callable[..., TrialResult]) -> None:
    heading, _, row = table([trial(0, 0.6, seconds=120)], TASKS, gpus_per_trial=0.25)
    costs = {name.strip(): cell.strip() for name, cell in zip(heading.split("|"), row.split("|"), strict=True)}
    assert (costs["minutes"], costs["GPU-min"]) == ("2.0", "0.5")
    assert "GPU" not in table([trial(0, 0.6)], TASKS)[0]


def test_what_is_pretrained_before_the_trials_is_printed_every_tenth_kept_and_shown_meanwhile(
    narrator: Narrator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"kind": "pretrain", "stage": "mlm", "key": "3f2a9c01ab", "pretrain/examples": 50, "pretrain/mlm_loss": 2.5}
    own |= {"pretrain/examples_per_second": 10.0, "seconds_left": 600.0}
    own |= {"examples": 0, "seconds": 0.0, "time_ms": 1_750_000_000_000}
    for percent in range(1, 31):
        narrator.pretrained(own | {"pretrain/share": percent / 100})
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in said] == ["1", "10", "20", "30"]
    assert said[-1].endswith("mlm 30 %  50 texts  loss 2.500  10 texts/s  10 min left")
    assert narrator.picture().best == "mlm 30 %  50 texts  loss 2.500  10 texts/s  10 min left"
    held_out = {f"pretrain/mlm_held_out_{name}": 0.5 for name in ("loss", "loss_before", "accuracy", "accuracy_before")}
    narrator.pretrained(own | held_out | {"made": True, "pretrain/seconds": 900.0, "pretrain/share": 1.0})
    assert "mlm 3f2a9c01 trained in 15 min; on held-out texts" in capsys.readouterr().out
    assert narrator.picture().best == "no score yet"
    assert len((tmp_path / "pretraining.jsonl").read_text().splitlines()) == 31


def test_the_picture_shows_what_runs_now_by_its_own_records(
    narrator: Narrator, trial: Callable[..., TrialResult], tmp_path: Path
) -> None:
    assert narrator.picture().running == []
    narrator.started(trial(0, None, status="running"), resumed=False)
    narrator.started(trial(1, None, status="running"), resumed=False)
    assert [row.examples for row in narrator.picture().running] == [0, 0]  # nothing measured yet
    own = {"kind": "train", "examples": 150, "seconds": 61, "time_ms": 1, "train/examples_per_second": 20.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(own) + "\n")
    narrator.reported(trial(0, 0.6, rung=1, status="running"), [])
    narrator.ended(trial(1, 0.5))
    picture = narrator.picture()
    [row] = picture.running
    assert (row.number, row.text, row.at, row.examples, row.score) == (0, "lr=3.21e-05", "1/9", 150, 0.6)
    assert picture.best == "best 001 0.5000 (sst .441 sts -.020)  lr=3.21e-05"  # of the fullest rung
    assert re.fullmatch(r"1/4 done, 0 s elapsed, about \d+ s left", picture.progress)


def test_a_recipe_is_named_unless_it_is_the_usual_one(trial: Callable[..., TrialResult], tmp_path: Path) -> None:
    assert in_short(trial(0)) == "lr=3.21e-05"
    stages = "stages: [{kind: linear_probe, share: 0.1}, {kind: multitask}]\n"
    (tmp_path / "config.yaml").write_text("data: toy\nencoder: tiny\n" + stages)
    assert in_short(trial(0)) == "linear_probe+multitask lr=3.21e-05"


def test_an_event_is_one_line_with_the_best_so_far_and_the_time_left(
    narrator: Narrator, trial: Callable[..., TrialResult], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    narrator.started(trial(0, None, status="running", baseline=0), resumed=False)
    narrator.reported(trial(0, 0.6, rung=1, status="running"), [])
    narrator.ended(trial(0, 0.6))
    narrator.ended(trial(1, 0.5, rung=1, status="stopped", reason="stopped at 1/9: below the best 1/3 of its rung"))
    lines = [re.sub(r"^\[\d\d:\d\d:\d\d\] ", "", line) for line in capsys.readouterr().out.splitlines()]
    best = "| best 000 0.6000 (sst .441 sts -.020) |"
    assert lines == [
        "000 started (baseline 0)  lr=3.21e-05",
        f"000 at 1/9  0.6000 (sst .441 sts -.020)  {best} 0/4 done",
        f"000 completed  0.6000  {best} 1/4 done, about 2 min left",  # three wait for two slots, a minute each
        f"001 stopped  0.5000  stopped at 1/9: below the best 1/3 of its rung  {best} 2/4 done, about 60 s left",
    ]
    log = (tmp_path / "log.txt").read_text().splitlines()
    assert [line[20:] for line in log] == lines
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", log[0][:20])


def test_a_trial_that_goes_on_says_from_where(
    narrator: Narrator, trial: Callable[..., TrialResult], capsys: pytest.CaptureFixture[str]
) -> None:
    narrator.started(trial(0, 0.6, rung=3, status="running"), resumed=True)
    narrator.started(trial(1, None, status="running"), resumed=True)
    first, second = capsys.readouterr().out.splitlines()
    assert "000 resumed from 3/9" in first
    assert "001 restarted" in second


def test_the_time_left_follows_the_slots_of_now(
    narrator: Narrator, trial: Callable[..., TrialResult], capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for slots in (3, 1, 0):  # of the four trials three wait, a minute each; the nodes leave one after the other
        narrator.slots = lambda slots=slots: slots
        narrator.ended(trial(0, 0.6))
        said.append(capsys.readouterr().out.strip().rpartition("done")[2])
    assert said == [", about 60 s left", ", about 3 min left", ""]


def test_no_time_left_is_never_said(
    narrator: Narrator, trial: Callable[..., TrialResult], capsys: pytest.CaptureFixture[str]
) -> None:
    narrator.started(trial(0, None, status="running"), resumed=False)
    narrator.ended(trial(1, seconds=0.3))
    narrator.reported(trial(0, 0.5, rung=3, status="running", seconds=30), [])
    out = capsys.readouterr().out
    assert "about 1 s left" in out
    assert "about 0 s" not in out
    for number in range(4):
        narrator.ended(trial(number))
    assert "left" not in capsys.readouterr().out.splitlines()[-1]


def test_the_table_is_shown_without_the_hour_and_logged(
    narrator: Narrator, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    narrator.show(["", "| trial |"])
    assert capsys.readouterr().out == (tmp_path / "log.txt").read_text() == "\n| trial |\n"


def test_a_resumed_search_counts_the_trials_that_ended_before(
    narrator: Narrator, trial: Callable[..., TrialResult], capsys: pytest.CaptureFixture[str]
) -> None:
    narrator.replay([trial(0, 0.6), trial(1, 0.5, rung=1, status="running"), trial(2, None, status="failed")])
    assert capsys.readouterr().out == ""
    best = narrator.best()
    assert best is not None
    assert (best.number, narrator.num_done()) == (0, 2)
