"""Scores of a split: known values, independence of order and batch, both overall scores, the course's files to the byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from minbert_core import evaluate
from minbert_core.config import Objective, TrialConfig
from minbert_core.data.corpus import read_split
from minbert_core.data.tasks import TASKS
from minbert_core.data.tokens import pack
from minbert_core.evaluate import check_submission, metric, overall, predict_logits, predictions, score, submission_text
from minbert_core.inputs import Inputs, build_encoder, open_inputs
from minbert_core.model import MultitaskBert, build_model

Tiny = Callable[..., TrialConfig]
SST, PARA, STS, CFIMDB = (TASKS[name] for name in ("sst", "para", "sts", "cfimdb"))


def column(*values: float) -> np.ndarray:
    """Logits of a task of one output, shape (B, 1)."""
    return np.array(values, dtype=np.float32)[:, None]


# ------------------------------------------------------------------------------------------------------------------ metrics


def test_accuracy_by_hand() -> None:
    logits_BK = np.array([[0, 0, 9, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 3, 0, 2, 0]], dtype=np.float32)
    assert predictions(SST, logits_BK).tolist() == [2, 0, 4, 1]
    assert metric(SST, logits_BK, np.array([2.0, 0.0, 3.0, 1.0])) == 0.75
    assert metric(PARA, column(2, -1, 3, -4), np.array([1.0, 1.0, 1.0, 0.0])) == 0.75


def test_pearson_by_hand() -> None:
    # centred: (-1, 0, 1) and (-2, 1, 1): 3 / sqrt(2 * 6)
    assert metric(STS, column(1, 2, 3), np.array([0.0, 3.0, 3.0])) == pytest.approx(3 / 12**0.5)
    assert metric(STS, column(1, 2, 3), np.array([3.0, 2.0, 1.0])) == pytest.approx(-1)
    assert metric(STS, column(11, 21, 31), np.array([1.0, 2.0, 3.0])) == pytest.approx(1)  # any scale


def test_half_a_probability_rounds_to_zero() -> None:
    """numpy rounds half to even, and so does the course's evaluation."""
    assert predictions(PARA, column(0.0, -0.0, 1e-3, -1e-3)).tolist() == [0, 0, 1, 0]
    assert np.round(1 / (1 + np.exp(-0.0))) == 0


def test_sts_answers_are_not_rounded_or_clipped() -> None:
    assert predictions(STS, column(-0.25, 2.5, 7.75)).tolist() == [-0.25, 2.5, 7.75]


@pytest.mark.parametrize("values", [(2.0, 2.0, 2.0), (2.0, 2.0 + 1e-7, 2.0)])
def test_constant_predictions_correlate_with_nothing(values: tuple[float, ...]) -> None:
    """Pearson's r is 0/0 there; within float32 noise of a constant it would be noise."""
    assert metric(STS, column(*values), np.array([1.0, 2.0, 4.0])) == 0
    assert metric(STS, column(1, 2, 3), np.array([2.0, 2.0, 2.0])) == 0


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_logit_that_is_not_finite_gives_nan(broken: float) -> None:
    """argmax and > would turn nan into class 0, and the trial would go on."""
    assert np.isnan(metric(PARA, column(1, broken), np.array([1.0, 0.0])))
    assert np.isnan(metric(STS, column(1, broken), np.array([1.0, 0.0])))


# ----------------------------------------------------------------------------------------------------------- overall scores


def test_both_overall_scores_and_how_they_differ() -> None:
    metrics = {"sst": 0.5, "para": 0.8, "sts": 0.6}
    both = overall(metrics)
    assert both["norm"] == pytest.approx((0.5 + 0.8 + 0.8) / 3)
    assert both["mean"] == pytest.approx(1.9 / 3)
    assert both["norm"] - both["mean"] == pytest.approx((1 - 0.6) / 6)  # both scores exist in print
    assert overall({"sst": 0.5}) == {"norm": 0.5, "mean": 0.5}


@pytest.mark.parametrize(
    ("objective", "value"),
    [
        ("norm", 2.1 / 3),
        ("mean", 1.9 / 3),
        ("sst", 0.5),
        ("sts", 0.8),  # (r + 1) / 2
        (Objective(weights={"sst": 1.0}), 0.5),
        (Objective(weights={"sst": 1.0, "sts": 3.0}), (0.5 + 3 * 0.8) / 4),
        (Objective(weights={"sst": 2.0, "para": 2.0, "sts": 2.0}), 2.1 / 3),
    ],
    ids=str,
)
def test_every_form_of_objective(objective: str | Objective, value: float) -> None:
    assert score({"sst": 0.5, "para": 0.8, "sts": 0.6}, objective) == pytest.approx(value)


# -------------------------------------------------------------------------------------------------------------- predictions


@pytest.fixture(params=["cross", "bi"])
def model_and_inputs(request: pytest.FixtureRequest, tiny: Tiny) -> tuple[MultitaskBert, Inputs]:
    """Weights ten times as large as at the start, so that predictions differ."""
    config = tiny(tasks={"pairs": {"pair_encoding": request.param}})
    inputs = open_inputs(config)
    model = build_model(config, build_encoder(config, inputs))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10 if parameter.dim() > 1 else 1)
    return model, inputs


@pytest.mark.parametrize("task", ["sst", "para", "sts"])
def test_predictions_keep_the_file_s_order_and_do_not_depend_on_the_batch(
    model_and_inputs: tuple[MultitaskBert, Inputs], monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    """Whatever the token budget: each row's logits are those of the row alone."""
    model, inputs = model_and_inputs
    split = inputs.dev[task]
    encoding = model.plans[task].pair_encoding.kind
    assert split.ids == read_split(inputs.data_folder, TASKS[task], "dev").ids
    with torch.no_grad():
        alone = [model(task, pack(split, np.array([r]), encoding, 64, inputs.specials)).logits_BK for r in range(len(split))]
    alone_BK = torch.cat(alone).numpy()
    assert np.ptp(alone_BK[:, 0]) > 0.1
    for budget in (1, 100, 4096):
        monkeypatch.setattr(evaluate, "TOKENS_A_PASS", budget)
        assert np.allclose(predict_logits(model, task, split, 64, inputs.specials), alone_BK, atol=1e-4)


@pytest.mark.parametrize("budget", [1, 50, 300, 10_000])
def test_token_budget_takes_each_row_once_and_short_ones_first(monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    monkeypatch.setattr(evaluate, "TOKENS_A_PASS", budget)
    lengths = np.random.default_rng(0).integers(3, 60, 100)
    groups = evaluate._token_budget(lengths)
    order = np.concatenate(groups)
    assert sorted(order.tolist()) == list(range(100))
    assert (np.diff(lengths[order]) >= 0).all()
    assert all(0 < lengths[rows].sum() < budget + lengths[rows].max() for rows in groups)


def test_predicting_draws_no_dropout_and_leaves_no_graph(model_and_inputs: tuple[MultitaskBert, Inputs]) -> None:
    model, inputs = model_and_inputs
    once, again = (predict_logits(model, "sst", inputs.dev["sst"], 64, inputs.specials) for _ in range(2))
    assert np.array_equal(once, again)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_predictions_in_bfloat16_are_near_those_in_float32(model_and_inputs: tuple[MultitaskBert, Inputs]) -> None:
    model, inputs = model_and_inputs
    exact, mixed = (
        predict_logits(model, "para", inputs.dev["para"], 64, inputs.specials, precision)
        for precision in ("float32", "bfloat16")
    )
    assert mixed.dtype == np.float32
    assert 0 < np.linalg.norm(mixed - exact) < 0.1 * np.linalg.norm(exact)


def test_dev_is_not_train(tiny: Tiny) -> None:
    """The skeleton's multitask loader reads dev with split='train'."""
    inputs = open_inputs(tiny())
    for name, split in inputs.dev.items():
        assert split.ids == read_split(inputs.data_folder, TASKS[name], "dev").ids
        assert not set(split.ids) & set(inputs.train[name].ids)


def test_dev_metric_of_sts_is_of_real_labels(tiny: Tiny) -> None:
    """Labels truncated to integers have r = .98 with themselves: no model is measured right with them."""
    inputs = open_inputs(tiny())
    split = inputs.dev["sts"]
    assert split.labels is not None
    assert split.labels.tolist() == read_split(inputs.data_folder, STS, "dev").labels
    assert (split.labels % 1 != 0).mean() > 0.5
    assert metric(STS, split.labels.astype(np.float32)[:, None], split.labels) == pytest.approx(1)


# --------------------------------------------------------------------------------------------------------- submission files


def test_submission_files_to_the_byte() -> None:
    assert submission_text(SST, ["a7d575c9ed86ea9633660c67e"], np.array([4.0])).encode() == (
        b"id \t Predicted_Sentiment \na7d575c9ed86ea9633660c67e , 4 \n"
    )
    assert submission_text(PARA, ["fbfddc56315fb8a39e7608fa0", "b"], np.array([0.0, 1.0])).encode() == (
        b"id \t Predicted_Is_Paraphrase \nfbfddc56315fb8a39e7608fa0 , 0.0 \nb , 1.0 \n"
    )
    assert submission_text(CFIMDB, ["c916d7750936543cf3a109be1", "b"], np.array([1.0, 0.0])).encode() == (
        b"id \t Predicted_Sentiment \nc916d7750936543cf3a109be1 , 1 \nb , 0 \n"
    )
    value = float(np.float32(1.4337977170944214))
    assert submission_text(STS, ["876d0172eef5db7776e39c5de"], np.array([value])).encode() == (
        b"id \t Predicted_Similiary \n876d0172eef5db7776e39c5de , 1.4337977170944214 \n"
    )


@pytest.mark.parametrize("task", [SST, PARA, STS, CFIMDB], ids=lambda task: task.name)
def test_what_is_written_passes_the_validator(task: evaluate.Task, tmp_path: Path) -> None:
    """Numbers that Python writes with an exponent, too."""
    answers = {"sst": [0, 4, 2, 1], "para": [0, 1, 1, 0], "sts": [1e-5, -3.2e-9, 1e17, 2.5], "cfimdb": [1, 0, 1, 1]}[task.name]
    ids = ["b1", "a2", "c3", "user-4"]
    path = tmp_path / "out.csv"
    path.write_text(submission_text(task, ids, np.array(answers, dtype=np.float64)), newline="")
    assert check_submission(path, task, ids) == []
    assert check_submission(path, task, sorted(ids)) == []  # the order of rows is free


GOOD = b"id \t Predicted_Sentiment \naa , 4 \nbb , 0 \n"
GOOD_PARA = b"id \t Predicted_Is_Paraphrase \naa , 1.0 \nbb , 0.0 \n"
GOOD_STS = b"id \t Predicted_Similiary \naa , 1.5 \nbb , -0.5 \n"


@pytest.mark.parametrize(
    ("task", "data", "fault"),
    [
        (SST, GOOD.replace(b"id \t ", b"id\t"), r"out\.csv:1: the header must be 'id \\t Predicted_Sentiment '"),
        (SST, GOOD_PARA, r"out\.csv:1: the header must be"),
        (STS, GOOD_STS.replace(b"Similiary", b"Similarity"), r"out\.csv:1: the header must be 'id \\t Predicted_Similiary '"),
        (SST, GOOD.replace(b"bb , 0 \n", b""), r"2 ids are expected once each\. Got 1 sound rows, 1 missing, 0 unknown"),
        (SST, GOOD.replace(b"bb", b"cc"), r"Got 2 sound rows, 1 missing, 1 unknown"),
        (SST, GOOD + b"cc , 1 \n", r"Got 3 sound rows, 0 missing, 1 unknown, 0 repeated"),
        (SST, GOOD + b"bb , 1 \n", r"Got 3 sound rows, 0 missing, 0 unknown, 1 repeated"),
        (SST, GOOD.replace(b", 4", b", 5"), r"out\.csv:2: the class must be in \[0, 4\]\. Got 5\."),
        (CFIMDB, GOOD, r"out\.csv:2: the class must be in \[0, 1\]\. Got 4\."),
        (SST, GOOD.replace(b", 4", b", 4.0"), r"out\.csv:2: a row must be '<id> , <value> '\. Got 'aa , 4\.0 '\."),
        (SST, GOOD.replace(b"4 \n", b"4\n"), r"out\.csv:2: a row must be '<id> , <value> '\. Got 'aa , 4'\."),
        (SST, GOOD.replace(b"aa , 4", b"aa,4"), r"out\.csv:2: a row must be"),
        (SST, GOOD.replace(b"\n", b"\r\n"), r"out\.csv:2: a row must be .* Got 'aa , 4 \\r'\."),
        (SST, GOOD.removesuffix(b"\n"), r"out\.csv: the last line has no line end\."),
        (SST, GOOD + b"\n", r"out\.csv:4: a row must be '<id> , <value> '\. Got ''\."),
        (SST, b"", r"out\.csv:1: the header must be .* Got ''\."),
        (SST, GOOD.replace(b"bb", b"b\xff"), r"Got 2 sound rows, 1 missing, 1 unknown"),
        (PARA, GOOD_PARA.replace(b"1.0", b"1"), r"out\.csv:2: a row must be '<id> , <value> '\. Got 'aa , 1 '\."),
        (PARA, GOOD_PARA.replace(b"1.0", b"0.7"), r"out\.csv:2: a row must be"),
        (STS, GOOD_STS.replace(b"1.5", b"nan"), r"out\.csv:2: a row must be '<id> , <value> '\. Got 'aa , nan '\."),
    ],
    ids=str,
)
def test_the_validator_finds_the_fault(task: evaluate.Task, data: bytes, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_bytes(data)
    faults = "\n".join(check_submission(path, task, ["aa", "bb"]))
    with pytest.raises(AssertionError, match=fault):  # `match` says what was found instead
        raise AssertionError(faults)


def test_sound_files_have_no_fault(tmp_path: Path) -> None:
    for task, data in ((SST, GOOD), (PARA, GOOD_PARA), (STS, GOOD_STS)):
        (tmp_path / "out.csv").write_bytes(data)
        assert check_submission(tmp_path / "out.csv", task, ["aa", "bb"]) == []
