"""The papers' systems: each row is a config that trains, and its printed figures agree with the formula that they are of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minbert_core.config import TrialConfig
from minbert_core.config_checks import load_config
from minbert_core.inputs import open_inputs
from minbert_core.settings.paths import as_written, lay_over
from minbert_core.train.trial import train
from search import papers
from search.papers import Row, config_of, distance, paper_file, read_paper, rows_of
from search.shipped import PAPERS
from search.space.space import read_space

SPACES = {file.stem: read_paper(file) for file in sorted(PAPERS.glob("*.yaml"))}
ROWS = [(name, row) for name, space in SPACES.items() for row in rows_of(space.document)]
SLIPS = {("p3", "sst_only", "dev")}  # printed figures that their own formula does not give: .0493 is .493


def named(value: Any) -> str:
    return value.name if isinstance(value, Row) else str(value)


@pytest.mark.parametrize("name", SPACES)
def test_a_papers_space_runs_each_row_once_to_its_end(name: str) -> None:
    space = read_space(PAPERS / f"{name}.yaml")
    rows = rows_of(space.document)
    assert space.combinations() == [{f"together/{papers.ROW}": row.name} for row in rows]
    assert space.num_trials == len(rows)
    assert space.settings.trial_scheduler.describe(space.settings.rungs) == "all run to the end"
    assert all(row.about for row in rows)


def test_printed_scores_are_of_their_formula() -> None:
    num_compared, slips = 0, set()
    for name, row in ROWS:
        for split, figures in row.published.items():
            if not {"sst", "para", "sts"} <= set(figures):
                continue
            both, r = figures["sst"] + figures["para"], figures["sts"]
            scores = {"mean": (both + r) / 3, "norm": (both + (r + 1) / 2) / 3}
            printed = {score: figures[score] for score in scores if score in figures}
            num_compared += len(printed)
            errors = [abs(scores[score] - figure) for score, figure in printed.items()]
            if max(errors, default=0) > 0.001:  # half a digit of each, and its own
                slips.add((name, row.name, split))
    assert slips == set(SLIPS)
    assert num_compared > 30


def test_all_rows_of_the_tables_are_there() -> None:
    assert {name: len(rows_of(space.document)) for name, space in SPACES.items()} == {
        "p1": 16, "p2": 6, "p2_yelp": 4, "p3": 12, "p4": 9, "p4_single": 3,
    }  # fmt: skip


@pytest.mark.parametrize(("name", "row"), ROWS, ids=named)
def test_a_row_states_what_our_defaults_choose_by_measurement(name: str, row: Row) -> None:
    """Otherwise a better default of ours would change what the row replicates."""
    config = config_of(SPACES[name], row.name)
    written = as_written(config)
    assert "lr" in written["optimizer"]
    assert "task_schedule" in written or all("task_schedule" in stage for stage in written["stages"])
    layers = [written["tasks"].get(layer, {}) for layer in ("all", "pairs")]
    for task in config.train_on:
        learned = {knob for layer in (*layers, written["tasks"].get(task, {})) for knob in layer}
        assert learned >= {"pooling", "head", "batch_size"}
        loss = config.task(task).loss
        assert getattr(loss, "scale", "label") == "label", "the papers measure errors in label units"


# ---------------------------------------------------------------------------------------------------------- they train


def shortened(config: TrialConfig, folder: Path) -> dict[str, Any]:
    """A row on the toy corpus: batches of 4; of a stage .06 of an epoch, 2 steps of the 30 that the shortest has; one round."""
    document = as_written(config)
    tasks = {name: {**layer, "batch_size": 4} for name, layer in document["tasks"].items()}
    stages = [{**stage, "epochs": 0.06} for stage in document["stages"]]
    for stage in stages:
        if stage.get("task_schedule", {}).get("kind") == "sequential":
            stage["task_schedule"] = {"kind": "sequential", "rounds": 1}
    own = {"encoder": "tiny", "data": "toy", "machine": {"device": "cpu"}}
    if "own_tasks" in document:
        (folder / "yelp.jsonl").write_text(
            "".join(json.dumps({"text": f"good film {i}", "stars": 1 + i % 5}) + "\n" for i in range(60)), encoding="utf-8"
        )
        own |= {"own_tasks": lay_over(document["own_tasks"], {"yelp": {"files": {"train": str(folder / "yelp.jsonl")}}})}
    return {**document, **own, "tasks": tasks, "stages": stages}


@pytest.fixture
def toy_cache(small_toy_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(small_toy_cache))


@pytest.mark.usefixtures("toy_cache")
@pytest.mark.parametrize(("name", "row"), [pair for pair in ROWS if pair[0] != "p4_single"], ids=named)
def test_a_row_trains(name: str, row: Row, tmp_path: Path) -> None:
    """Of p4_single the toy corpus has no films' reviews; its settings are those of p4's rows."""
    config = load_config(shortened(config_of(SPACES[name], row.name), tmp_path))
    *_, last = train(config, open_inputs(config))
    assert last.done
    labelled = [stage for stage in config.stages if stage.learns_labels]
    assert last.record["step"] >= 2 * len(labelled)
    assert -1 <= last.record["dev/score"] <= 1


@pytest.mark.usefixtures("toy_cache")
def test_the_rows_with_yelp_say_which_file_they_miss() -> None:
    document = as_written(config_of(SPACES["p2_yelp"], "aux_p3"))
    with pytest.raises(ValueError, match=r"yelp\.jsonl"):
        open_inputs(load_config({**document, "data": "toy", "encoder": "tiny"}))


# ------------------------------------------------------------------------------------------------------------- the command


def test_the_command_tells_each_row_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert papers.main([]) == papers.DONE
    *lines, last = capsys.readouterr().out.splitlines()
    assert len(lines) == len(ROWS)
    assert last.startswith(f"{len(ROWS)} rows, {len(ROWS)} of them valid.")
    assert any("table 2, SMART + GV + RR + CON + HLH (their best): dev sst .517, para .871" in line for line in lines)


def test_a_row_that_is_no_config_says_why_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p0.yaml").write_text(
        "sampler: grid\ntogether:\n  row:\n    - {name: good, set: {gradient: pcgrad}}\n"
        "    - {name: bad, set: {gradient: pcgrd}}\n"
    )
    monkeypatch.setattr(papers, "PAPERS", tmp_path)
    assert papers.main([]) == papers.WRONG
    output = capsys.readouterr().out
    assert "p0.yaml:5: Unknown `gradient` kind 'pcgrd'; did you mean 'pcgrad'?" in output
    assert "2 rows, 1 of them valid." in output


def test_a_paper_is_known_in_capitals_too() -> None:
    assert paper_file("P3") == paper_file("p3") == PAPERS / "p3.yaml"
    with pytest.raises(ValueError, match=r"There is no paper 'P7'\. Known: P1, P2, P2_YELP, P3, P4, P4_SINGLE"):
        paper_file("P7")


def test_the_distance_counts_what_is_not_at_its_default() -> None:
    assert distance(TrialConfig()) == 0
    changed = {"gradient": {"kind": "gradvac", "beta": 0.01}, "optimizer": {"lr": 1e-5}, "max_length": 128}
    assert distance(load_config(changed)) == 2  # gradvac and lr; beta and max_length are said, and are the defaults
