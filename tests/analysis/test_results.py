"""Numbers and sentences from made-up answers: what is compared with what, what is said of it, and how it is laid out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from analysis.branches import Branch, Question
from analysis.prediction_files import write_predictions
from analysis.results import Logits, Results, Splits, affine, columns_of, document, measure, objective_name
from analysis.retrain import Job
from analysis.selection import Selection
from analysis.test_split import tokenise_test_split
from analysis.test_table import WIDTH, report_lines
from minbert_core.config import TrialConfig
from minbert_core.data.tasks import TASKS
from minbert_core.evaluate import check_submission, metric, overall, score
from minbert_core.files import cache_folder
from minbert_core.inputs import Inputs, open_inputs
from minbert_core.settings.paths import as_written
from minbert_core.settings.yaml import dump_yaml
from search.plan.folder import NEEDED, PlanRecord
from search.results import Search
from search.study.trials import TrialResult

# how much of the noise in a model's answers is its own; the rest is the same for all models
Models = dict[tuple[int, int], float]


@pytest.fixture
def config(tiny: Callable[..., TrialConfig]) -> TrialConfig:
    return tiny()


@pytest.fixture
def splits(config: TrialConfig) -> Splits:
    return dev_and_test(config)


def dev_and_test(config: TrialConfig) -> Splits:
    inputs: Inputs = open_inputs(config)
    dev = {(task, "dev"): split for task, split in inputs.dev.items()}
    folder, tokenizer, cache = inputs.data_folder, inputs.tokenizer, cache_folder() / "tokens"
    return dev | {(name, "test"): tokenise_test_split(folder, TASKS[name], tokenizer, cache) for name in config.train_on}


def trial(number: int, config: TrialConfig, folder: Path, baseline: int | None = None) -> TrialResult:
    """An ended trial that claims .7 in everything."""
    (folder / f"{number:03d}").mkdir(parents=True, exist_ok=True)
    (folder / f"{number:03d}" / "config.yaml").write_text(dump_yaml(as_written(config)), encoding="utf-8")
    record = {"kind": "dev", "rung": 9, **{f"dev/{column}": 0.7 for column in (*config.train_on, "norm", "mean", "score")}}
    params = {"optimizer/lr": 1e-5 * (number + 1), "tasks/all/pooling": "mean"}
    return TrialResult(number, "completed", "completed", params, baseline, folder / f"{number:03d}", [record])


def select(folder: Path, config: TrialConfig, finalists: Sequence[int], baseline: int | None, num_seeds: int) -> Selection:
    trials = {
        n: trial(n, config, folder, 0 if n == baseline else None)
        for n in {*finalists, *([] if baseline is None else [baseline])}
    }
    plan = PlanRecord(**dict.fromkeys(NEEDED, "") | {"baselines": [{}]})
    search = Search(folder, plan, list(trials.values()))
    chosen = None if baseline is None else trials[baseline]
    return Selection(search, [trials[number] for number in finalists], chosen, list(range(num_seeds)))


def answers(models: dict[tuple[int, int], float], splits: Splits) -> dict[Job, Logits]:
    """For each (trial, seed) logits that are wrong in about the share of rows given, nested: who errs less errs on fewer."""
    ranks = {key: np.random.default_rng(0).permutation(len(split)) / len(split) for key, split in splits.items()}
    return {
        Job(number, seed, Path()): {key: _logits(key[0], split.labels, ranks[key] < wrong) for key, split in splits.items()}
        for (number, seed), wrong in models.items()
    }


def _logits(task: str, labels_B: NDArray[np.float64] | None, wrong_B: NDArray[np.bool_]) -> NDArray[np.float32]:
    true_B = np.zeros(len(wrong_B)) if labels_B is None else labels_B
    if TASKS[task].kind == "classification":
        classes_B = np.where(wrong_B, (true_B + 1) % TASKS[task].outputs, true_B).astype(int)
        return np.eye(TASKS[task].outputs, dtype=np.float32)[classes_B]
    if TASKS[task].kind == "binary":
        return (np.where(wrong_B, 0.5 - true_B, true_B - 0.5)[:, None]).astype(np.float32)
    return np.where(wrong_B, 5 - true_B, true_B)[:, None].astype(np.float32)


def by_split(results: Results, split: str) -> dict[tuple[int, int], str]:
    return {(c.first, c.second): c.verdict for c in results.comparisons if c.split == split}


def test_every_finalist_is_compared_with_the_baseline_and_with_the_best(
    tmp_path: Path, config: TrialConfig, splits: Splits
) -> None:
    selection = select(tmp_path, config, [3, 5, 7], 0, 2)
    wrong = {3: 0.1, 5: 0.12, 7: 0.4, 0: 0.4}
    results = measure(selection, answers({(n, s): w for n, w in wrong.items() for s in (0, 1)}, splits), splits)
    assert results.winner == 3
    found = by_split(results, "dev")
    assert set(found) == {(3, 0), (5, 0), (7, 0), (5, 3), (7, 3)}
    assert found[3, 0] == "beats"
    assert found[7, 3] == "loses to"
    assert found[7, 0] == "cannot be told from"  # the same answers: a difference of exactly nothing
    assert set(by_split(results, "test")) == set(found)
    same = next(c for c in results.comparisons if (c.split, c.first, c.second) == ("dev", 7, 0))
    assert same.document()["score"] == {"mean": 0, "interval": [0, 0], "p": 1}


def test_means_values_and_intervals_agree_with_the_metrics(tmp_path: Path, config: TrialConfig, splits: Splits) -> None:
    selection = select(tmp_path, config, [3], None, 2)
    logits = answers({(3, 0): 0.1, (3, 1): 0.3}, splits)
    results = measure(selection, logits, splits)
    sts = results.configurations[3]["test"]["sts"]
    labels_B = splits["sts", "test"].labels
    assert labels_B is not None
    assert sts.values == [metric(TASKS["sts"], of["sts", "test"], labels_B) for of in logits.values()]
    for split in ("dev", "test"):
        for measured in results.configurations[3][split].values():
            assert measured.low < measured.mean < measured.high
    assert results.chosen.seed_index == 0
    assert results.comparisons == []


def test_an_interval_does_not_reach_beyond_what_a_metric_can_be(tmp_path: Path, config: TrialConfig, splits: Splits) -> None:
    """Two seeds that differ much leave everything open."""
    selection = select(tmp_path, config, [3], None, 2)
    found = measure(selection, answers({(3, 0): 0.1, (3, 1): 0.6}, splits), splits).configurations[3]["dev"]
    assert {column: (of.low, of.high) for column, of in found.items() if column in ("sst", "sts", "norm", "mean")} == {
        "sst": (0, 1), "sts": (-1, 1), "norm": (0, 1), "mean": (pytest.approx(-1 / 3), 1)
    }  # fmt: skip


def test_a_seed_that_failed_leaves_the_others_in_the_comparison(tmp_path: Path, config: TrialConfig, splits: Splits) -> None:
    selection = select(tmp_path, config, [3], 0, 4)
    models = {(3, 0): 0.1, (3, 2): 0.2, (3, 3): 0.2, (0, 0): 0.2, (0, 1): 0.5}
    results = measure(selection, answers(models, splits), splits)
    (dev,) = (c for c in results.comparisons if c.split == "dev")
    means = {number: results.configurations[number]["dev"]["score"].mean for number in (3, 0)}
    assert dev.differences["score"].mean == pytest.approx(means[3] - means[0])
    said = text(selection, results)
    assert "; 3 and 2 seeds, p = ." in said
    assert "001-seed1 failed and is left out: NotFiniteError: nan" in report_lines(
        selection, results, {"001-seed1": "NotFiniteError: nan"}
    )


def test_a_configuration_of_which_one_seed_is_left_does_not_win_and_its_interval_says_what_it_covers(
    tmp_path: Path, config: TrialConfig, splits: Splits
) -> None:
    selection = select(tmp_path, config, [3], 0, 3)
    models = {(3, 1): 0.1, **{(0, seed): 0.2 for seed in range(3)}}
    results = measure(selection, answers(models, splits), splits)
    assert results.winner == 0
    lines = report_lines(selection, results, {})
    assert sum(line.startswith("|") and "  95 %, rows" in line for line in lines) == 2
    assert "`95 %, rows`: all seeds but one failed" in text(selection, results)


def test_a_correlation_that_is_the_objective_is_named_as_it_is_counted(
    tmp_path: Path, tiny: Callable[..., TrialConfig], splits: Splits
) -> None:
    config = tiny(train_on=["sst", "para", "sts"], objective="sts")
    selection = select(tmp_path, config, [3], 0, 2)
    results = measure(selection, answers({(n, s): w for n, w in ((3, 0.1), (0, 0.3)) for s in (0, 1)}, splits), splits)
    said = text(selection, results)
    assert "by (r + 1)/2 of sts, rows paired" in said
    found = results.configurations[3]["dev"]
    assert found["score"].mean == pytest.approx((found["sts"].mean + 1) / 2)
    assert columns_of(config)[-1] == "score"
    assert [columns_of(tiny(train_on=[task])) for task in ("sst", "sts")] == [["sst"], ["sts", "score"]]
    assert objective_name(tiny(objective="sst")) == "sst"


def test_without_labels_there_is_no_test_score_and_no_comparison_on_test(
    tmp_path: Path, config: TrialConfig, splits: Splits
) -> None:
    for task in config.train_on:
        splits[task, "test"].labels = None
    selection = select(tmp_path, config, [3], 0, 2)
    results = measure(selection, answers({(n, s): 0.2 for n in (3, 0) for s in (0, 1)}, splits), splits)
    assert "test" not in results.configurations[3]
    assert by_split(results, "test") == {}
    assert "no labels" in text(selection, results)
    assert "Compared on dev" in text(selection, results)
    assert "Compared on test" not in text(selection, results)


def test_a_half_labelled_test_split_has_scores_of_its_tasks_alone(tmp_path: Path, config: TrialConfig, splits: Splits) -> None:
    splits["para", "test"].labels = None
    selection = select(tmp_path, config, [3], 0, 2)
    results = measure(selection, answers({(n, s): 0.2 for n in (3, 0) for s in (0, 1)}, splits), splits)
    assert set(results.configurations[3]["test"]) == {"sst", "sts"}
    assert by_split(results, "test") == {}


def test_norm_mean_and_weighted_objectives_are_weighted_sums(tiny: Callable[..., TrialConfig]) -> None:
    objective = tiny(objective={"weights": {"sst": 1, "sts": 3}}).objective
    metrics = {"sst": 0.5, "para": 0.8, "sts": 0.7}
    columns: list[Any] = [
        lambda m: overall(m, TASKS, "norm")["norm"],
        lambda m: overall(m, TASKS, "norm")["mean"],
        lambda m: score(m, TASKS, objective),
    ]
    for column in columns:
        weights, offset = affine(column, list(metrics)), column(dict.fromkeys(metrics, 0.0))
        assert offset + sum(w * m for w, m in zip(weights, metrics.values(), strict=True)) == pytest.approx(column(metrics))


def sentences(selection: Selection, results: Results) -> list[str]:
    return [line for line in report_lines(selection, results, {}) if line.startswith("- ")]


def text(selection: Selection, results: Results) -> str:
    """The report as if its lines had no end."""
    return " ".join(" ".join(report_lines(selection, results, {})).split())


def test_the_sentences_say_what_the_intervals_allow(tmp_path: Path, config: TrialConfig, splits: Splits) -> None:
    selection = select(tmp_path, config, [3, 7], 0, 2)
    wrong = {3: 0.1, 7: 0.4, 0: 0.4}
    results = measure(selection, answers({(n, s): w for n, w in wrong.items() for s in (0, 1)}, splits), splits)
    said = sentences(selection, results)
    assert any(line.startswith("- 003 beats the baseline (000) by +.") and "]; 2 seeds, p " in line for line in said)
    assert "- 007 cannot be told from the baseline (000): +.0000 [+.0000, +.0000]; 2 seeds, p = 1.000." in said
    assert any(line.startswith("- 007 loses to the best (003) by -.") for line in said)
    told = text(selection, results)
    assert "Best by retrained dev: 003. The search had claimed .7000 for it; fresh seeds say" in told
    assert "chosen on dev among 3 configurations" in told
    assert "Fewer than five seeds" in told


def test_a_difference_of_one_row_a_task_is_not_called_a_win(tmp_path: Path, config: TrialConfig, splits: Splits) -> None:
    selection = select(tmp_path, config, [3], 0, 2)
    models = {(number, seed): wrong for number, wrong in ((3, 0.3), (0, 0.325)) for seed in (0, 1)}
    results = measure(selection, answers(models, splits), splits)
    (dev,) = (c for c in results.comparisons if c.split == "dev")
    assert dev.differences["score"].mean > 0
    assert dev.verdict == "cannot be told from"


def test_one_seed_gives_a_difference_and_no_verdict(tmp_path: Path, config: TrialConfig, splits: Splits) -> None:
    selection = select(tmp_path, config, [3], 0, 3)
    for models, certainty in (
        ({(3, 0): 0.1, (0, 0): 0.4}, "one seed gives no verdict."),
        ({(3, 0): 0.1, (3, 1): 0.1, (0, 0): 0.4}, "2 and 1 seed: one seed gives no verdict."),
    ):
        results = measure(selection, answers(models, splits), splits)
        assert set(by_split(results, "dev").values()) == {"no verdict"}
        assert sentences(selection, results)[0].startswith("- 003 minus the baseline (000): +.")
        assert sentences(selection, results)[0].endswith(certainty)
        assert "(Holm)" not in text(selection, results)
    selection = select(tmp_path, config, [3], 0, 1)
    assert "not other seeds, and no comparison gets a verdict" in text(selection, results)


def test_verdicts_are_corrected_for_the_number_of_comparisons(tmp_path: Path, config: TrialConfig, splits: Splits) -> None:
    """Five comparisons: the smallest p counts five times; the intervals stay each comparison's own."""
    selection = select(tmp_path, config, [3, 5, 7], 0, 2)
    wrong = {3: 0.2, 5: 0.3, 7: 0.3, 0: 0.35}
    results = measure(selection, answers({(n, s): w for n, w in wrong.items() for s in (0, 1)}, splits), splits)
    on_dev = [c for c in results.comparisons if c.split == "dev"]
    own = [c.differences["score"].p for c in on_dev]
    smallest = min(range(5), key=lambda i: own[i] or 0)
    assert on_dev[smallest].corrected_p == pytest.approx(5 * (own[smallest] or 0))
    assert "p is corrected for 5 comparisons (Holm)" in text(selection, results)


def test_an_interval_without_width_is_explained(tmp_path: Path, config: TrialConfig, splits: Splits) -> None:
    selection = select(tmp_path, config, [3], None, 2)
    for wrong, explained in ((0.0, True), (0.1, False)):
        results = measure(selection, answers({(3, 0): wrong, (3, 1): wrong}, splits), splits)
        assert ("An interval without width does not mean certainty" in text(selection, results)) == explained


def test_a_baseline_that_nobody_beats_is_the_best(tmp_path: Path, config: TrialConfig, splits: Splits) -> None:
    selection = select(tmp_path, config, [3, 5], 0, 2)
    wrong = {3: 0.3, 5: 0.3, 0: 0.1}
    results = measure(selection, answers({(n, s): w for n, w in wrong.items() for s in (0, 1)}, splits), splits)
    assert results.winner == 0
    assert set(by_split(results, "dev")) == {(3, 0), (5, 0)}
    assert "No finalist did better than the baseline." in text(selection, results)


def ask_about(selection: Selection, num_trials: dict[str, int]) -> Selection:
    """The selection as the answer to a question: its trials are the best of branches, the first that of the reference."""
    trials = [(label, trial) for label, trial in zip(num_trials, selection.finalists, strict=False)]
    branches = [Branch(label, [trial] * num_trials[label]) for label, trial in trials]
    branches += [Branch(label, []) for label in list(num_trials)[len(trials) :]]
    return replace(selection, question=Question("smoothness", branches, branches[0]))


def test_a_question_gets_one_sentence_per_branch(tmp_path: Path, config: TrialConfig, splits: Splits) -> None:
    selection = ask_about(select(tmp_path, config, [0, 3, 7], None, 2), {"none": 4, "smart": 2, "r_drop": 1, "other": 0})
    wrong = {0: 0.4, 3: 0.1, 7: 0.4}
    results = measure(selection, answers({(n, s): w for n, w in wrong.items() for s in (0, 1)}, splits), splits)
    assert set(by_split(results, "test")) == {(3, 0), (7, 0)}  # with the reference, though 3 is the best
    said = sentences(selection, results)
    assert len(said) == 5
    own, other = (f"{results.configurations[number]['test']['norm'].mean:.4f}"[1:] for number in (3, 0))
    assert re.match(rf"- smart \(003: {own}; best of 2 trials\) beats none by \+.* 2 seeds, p ", said[0])
    assert "; best of 1 trial) cannot be told from none: +.0000" in said[1]
    assert said[4] == "- other: no trial took it."
    told = text(selection, results)
    assert f"Which branch of smoothness pays? Against none (000: {other}; best of 4 trials). Compared on test, by norm" in told
    assert "p is corrected for 2 comparisons (Holm)" in told
    assert "Trials per branch: none 4, smart 2, r_drop 1. A branch of more trials was tuned further" in told


def test_branches_whose_retrainings_failed_are_named(tmp_path: Path, config: TrialConfig, splits: Splits) -> None:
    selection = ask_about(select(tmp_path, config, [0, 3], None, 2), {"none": 1, "smart": 1})
    for survivor, failed in ((0, "smart: no retraining of 003 succeeded."), (3, "none: no retraining of 000 succeeded, so no")):
        results = measure(selection, answers({(survivor, s): 0.2 for s in (0, 1)}, splits), splits)
        assert results.comparisons == []
        assert f"No answer about: - {failed}" in text(selection, results)


def test_the_report_fits_160_columns(tmp_path: Path, tiny: Callable[..., TrialConfig]) -> None:
    config = tiny(train_on=["sst", "para", "sts", "cfimdb"], objective={"weights": {"sst": 1, "cfimdb": 2}})
    splits = dev_and_test(config)
    selection = select(tmp_path, config, [3, 5, 7], 0, 2)
    long = {f"tasks/all/knob{i}": "a_long_value" for i in range(20)}
    selection = replace(selection, finalists=[replace(selection.finalists[0], params=long), *selection.finalists[1:]])
    logits = answers({(n, s): 0.1 * (1 + n % 3) for n in (3, 5, 7, 0) for s in (0, 1)}, splits)
    results = measure(selection, logits, splits)
    lines = report_lines(selection, results, {"003-seed4": "RuntimeError: " + "word " * 60})
    assert max(len(line) for line in lines) <= WIDTH
    assert "score" in next(line for line in lines if line.startswith("| trial"))
    assert "cfimdb" in next(line for line in lines if line.startswith("| trial"))
    # and all of it is in results.json as well
    stored = json.loads(json.dumps(document(selection, "abc", results, {})))
    assert [entry["trial"] for entry in stored["configurations"]] == [3, 5, 7, 0]
    assert stored["configurations"][1]["test"]["cfimdb"]["mean"] == results.configurations[5]["test"]["cfimdb"].mean
    assert len(stored["comparisons"]) == len(results.comparisons)
    # the course's prediction files, of cfimdb too
    write_predictions(config, results, logits, splits, tmp_path / "predictions")
    path = tmp_path / "predictions" / "cfimdb-test-output.csv"
    assert path.read_text(encoding="utf-8").startswith("id \t Predicted_Sentiment \n")
    assert check_submission(path, TASKS["cfimdb"], splits["cfimdb", "test"].ids) == []
