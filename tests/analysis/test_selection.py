"""Which trials are tested, with what they are compared, and that what was frozen stays."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.branches import Branch, Question
from analysis.jobs import make_jobs, seconds_left
from analysis.preview import preview_lines
from analysis.selection import Selection, choose_baseline, choose_best_baseline, choose_search, choose_trials
from minbert_core.commands import Refused
from minbert_core.config_checks import read_config
from search.plan.folder import lock
from search.plan.resources import Resources
from search.results import Search, open_search


@pytest.fixture
def small(toy_runs: Path) -> Search:
    return open_search(toy_runs / "small")


def test_the_baseline_is_the_first_that_reached_the_finalists_rung(small: Search) -> None:
    baseline, said = choose_baseline(small, choose_trials(small, 1, False), False)
    assert baseline is not None
    assert baseline.number == 0
    assert said.startswith("000")
    others = [trial for trial in small.trials if trial.baseline is None and trial.rung == 3]
    assert Selection(small, others, baseline, [1]).trials == [*others, baseline]
    assert Selection(small, [baseline], baseline, [1]).trials == [baseline]
    cut = replace(baseline, status="stopped", records=[of for of in baseline.records if of.get("rung", 0) <= 1])
    second = replace(small.trials[1], baseline=1)
    later, _ = choose_baseline(Search(small.folder, small.plan, [cut, second, *small.trials[2:]]), others[:1], False)
    assert later is not None
    assert later.number == second.number


def test_without_a_name_a_search_that_hours_ended_is_taken_if_a_trial_is_complete(
    real_like: tuple[Path, Path], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(real_like[0], runs, symlinks=True)
    plan = json.loads((runs / "small" / "plan.json").read_text())
    (runs / "small" / "plan.json").write_text(json.dumps({**plan, "trials": 99}))  # most were never begun
    search = choose_search(None, runs, print)
    assert (search.name, search.is_finished) == ("small", False)
    with lock(runs / "small"), pytest.raises(ValueError, match="no finished search on real data"):
        choose_search(None, runs, print)  # it runs: more is to come


def test_a_search_of_an_earlier_format_is_not_retrained(real_like: tuple[Path, Path], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(real_like[0], runs, symlinks=True)
    plan = json.loads((runs / "small" / "plan.json").read_text())
    (runs / "small" / "plan.json").write_text(json.dumps({**plan, "format": 1}))
    with pytest.raises(Refused, match=r"The search small has format 1, whose configs have other defaults"):
        choose_search("small", runs, print)
    with pytest.raises(ValueError, match="no finished search on real data"):
        choose_search(None, runs, print)


def test_a_space_without_baselines_has_none_and_says_so(small: Search) -> None:
    bare = Search(small.folder, replace(small.plan, baselines=[]), small.trials)
    baseline, said = choose_baseline(bare, choose_trials(bare, 1, False), False)
    assert baseline is None
    assert "has no `baselines`" in said


def test_a_baseline_that_was_not_trained_to_the_end_is_none(small: Search) -> None:
    first, *others = small.trials
    cut = replace(first, status="stopped", records=[of for of in first.records if of.get("rung", 0) <= 1])
    assert (cut.baseline, cut.rung) == (0, 1)
    stopped = Search(small.folder, small.plan, [cut, *others])
    baseline, said = choose_baseline(stopped, choose_trials(stopped, 1, False), False)
    assert baseline is None
    assert "no baseline of the space has reached" in said


def test_a_baseline_whose_weights_are_gone_cannot_be_compared_without_retraining(small: Search) -> None:
    finalists = choose_trials(small, 1, True)
    weights = small.folder / "trials" / "000" / "best" / "heads.safetensors"
    aside = weights.with_name("aside")
    weights.rename(aside)
    try:
        baseline, said = choose_baseline(small, finalists, True)
    finally:
        aside.rename(weights)
    assert baseline is None
    assert "the weights of 000 were not kept" in said


def test_trials_that_differ_in_their_seed_alone_are_one_finalist(small: Search) -> None:
    best = choose_trials(small, 1, False)[0]
    twin = replace(best, number=9)  # the same config.yaml, ranked below it
    search = Search(small.folder, small.plan, [*small.trials, twin])
    chosen = [trial.number for trial in choose_trials(search, 9, False)]
    assert best.number in chosen
    assert 9 not in chosen
    assert len(chosen) == len(choose_trials(small, 9, False))


def test_a_paused_trial_ahead_of_all_that_ended_does_not_hide_them(small: Search) -> None:
    first, *others = choose_trials(small, 9, False)
    ahead = replace(first, status="running")
    behind = [replace(trial, records=[of for of in trial.records if of.get("rung", 0) <= 1]) for trial in others]
    chosen = choose_trials(Search(small.folder, small.plan, [ahead, *behind]), 9, False)
    assert {trial.number for trial in chosen} == {trial.number for trial in others}


def test_a_question_has_a_folder_and_a_reference_of_its_own(small: Search) -> None:
    first, second = (trial for trial in small.trials[:2])
    none, smart = Branch("none", [first]), Branch("smart", [second])
    question = Question("tasks/all/head", [smart, none], none)
    selection = Selection(small, question.best_trials, second, [1], question=question)
    assert selection.folder == small.folder / "test" / "per-tasks.all.head"
    assert selection.trials == [first, second]
    assert selection.reference == first
    assert [selection.called(trial) for trial in small.trials[:3]] == ["000 (reference)", "001 (baseline)", "002"]
    assert replace(selection, question=None).reference == second


def test_the_preview_names_the_trial_of_each_branch_and_the_branches_without_one(small: Search) -> None:
    branches = [Branch("none", [small.trials[0]]), Branch("smart", [small.trials[1]]), Branch("r_drop", [])]
    question = Question("smoothness", branches, branches[0])
    lines = preview_lines(Selection(small, question.best_trials, None, [1, 2], question=question), "left out")
    assert lines[2] == "question  which branch of smoothness pays? Each is compared with none."
    assert lines[4].splitlines()[0] == "selected  smart: 001, best of 1 trial"
    assert lines[5:7] == ["missing   r_drop: no trial took it", "baseline  left out"]
    assert max(len(row) for line in lines[:-1] for row in line.splitlines()) <= 80


def test_two_selections_of_a_search_share_their_models_and_freeze_apart(small: Search) -> None:
    first, second = (Branch(label, [trial]) for label, trial in zip(("none", "smart"), small.trials, strict=False))
    question = Question("smoothness", [first, second], first)
    per = Selection(small, question.best_trials, None, [11, 12], question=question)
    top = Selection(small, question.best_trials[:1], None, [11])
    machine = Resources(2, 0, 2, 0)
    assert make_jobs(top, machine) == make_jobs(per, machine)[:1]
    frozen = per.freeze()
    assert top.freeze() != frozen
    assert per.freeze() == frozen


def test_the_best_baseline_is_taken_with_a_question_not_the_first(small: Search) -> None:
    worse, better = small.trials[0], replace(small.trials[1], baseline=1)
    worse = replace(worse, records=[record | {"dev/score": 0.0} for record in worse.records if record["kind"] == "dev"])
    search = Search(small.folder, small.plan, [worse, better])
    assert choose_best_baseline(search, [worse]) == (better, "001")
    assert choose_best_baseline(search, [better]) == (better, "001, one of them")
    assert choose_best_baseline(Search(small.folder, small.plan, []), [worse])[0] is None


def test_the_same_selection_stays_frozen_as_it_was(small: Search) -> None:
    finalists = choose_trials(small, 1, False)
    selection, other = (Selection(small, finalists, None, seeds) for seeds in ([1, 2], [1, 2, 3]))
    sha = selection.freeze()
    path = small.folder / "test" / "selection.json"
    document = json.loads(path.read_bytes())
    assert document["tried"] == 4
    assert document["baseline"] is None
    before = json.dumps(document | {"time": "2020-01-01T00:00:00+0000", "git_commit": "of an earlier run"})
    path.write_text(before, encoding="utf-8")
    assert selection.freeze() == hashlib.sha256(before.encode()).hexdigest()
    assert path.read_text(encoding="utf-8") == before
    assert other.freeze() != sha


def test_a_retraining_differs_from_its_trial_in_seed_and_machine_alone(small: Search) -> None:
    trial = choose_trials(small, 1, False)[0]
    jobs = make_jobs(Selection(small, [trial], None, [11, 12]), Resources(2, 0, 2, 0))
    assert [job.name for job in jobs] == [f"{trial.number:03d}-seed0", f"{trial.number:03d}-seed1"]
    for job, seed in zip(jobs, [11, 12], strict=True):
        config = read_config(job.folder / "config.yaml")
        assert (config.seed, config.machine.threads) == (seed, 2)
        own = trial.config()
        assert config.model_copy(update={"seed": 0, "machine": own.machine}) == own.model_copy(update={"seed": 0})


def test_micro_batches_are_those_of_the_trial(tmp_path: Path, small: Search) -> None:
    trial = choose_trials(small, 1, False)[0]
    text = (
        (trial.folder / "config.yaml")
        .read_text(encoding="utf-8")
        .replace("machine:\n", "machine:\n  micro_batch_tokens: 512\n")
    )
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    own = replace(trial, folder=tmp_path)
    (job,) = make_jobs(Selection(Search(tmp_path, small.plan, [own]), [own], None, [11]), Resources(2, 0, 2, 0))
    assert read_config(job.folder / "config.yaml").machine.micro_batch_tokens == 512


def test_time_left_is_what_is_left_to_train_at_each_jobs_own_pace() -> None:
    assert seconds_left([(0, 0.0), (0, 0.0)], [100, 100], 2) == 0  # nothing is known yet
    assert seconds_left([(50, 10.0)], [100], 1) == 10
    assert seconds_left([(50, 10.0), (50, 30.0)], [100, 100], 2) == 30  # not before the slower one
    assert seconds_left([(50, 10.0), (0, 0.0), (0, 0.0)], [100, 100, 100], 1) == 10 + 20 + 20
    assert seconds_left([(90, 9.0), (0, 0.0)], [100, 100], 2) == 10  # what was trained before an interruption counts as its own
