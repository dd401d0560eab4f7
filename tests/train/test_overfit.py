"""The check by heart: what is sound learns a few examples, what is detached or misled does not, and is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from minbert_core.config import TrialConfig
from minbert_core.data.tokens import pack
from minbert_core.inputs import open_inputs
from minbert_core.methods import heads, losses
from minbert_core.train import overfit
from minbert_core.train.overfit import few_of, overfit_config, run_overfit, unreached

Tiny = Callable[..., TrialConfig]
BI = {"tasks": {"all": {"pooling": "mean"}, "pairs": {"pair_encoding": "bi", "head": "sbert"}, "sts": {"head": "cosine"}}}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient": "gradvac", "smoothness": "smart", "stages": ["linear_probe", "multitask"], "optimizer": {"lr": 1e-7}},
        BI,
        {"tasks": {**BI["tasks"], "sts": {"head": "cosine", "loss": "cosine_embedding"}}},  # teaches alike or not
    ],
    ids=["default", "what holds back is left out", "a bi-encoder and a cosine", "a coarse loss"],
)
def test_what_is_sound_learns_its_examples(tiny: Tiny, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]) -> None:
    assert run_overfit(tiny(**changes), 8, "mine.yaml")
    out = capsys.readouterr().out
    for name in ("sst", "para", "sts"):
        assert f"{name} learned its 8 examples after " in out
    assert "ex/s" in out
    assert "left at most" in out


def test_a_head_that_cuts_the_gradient_off_is_named(
    tiny: Tiny, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def detached(self: heads.ScaledCosine, features_BF: Tensor, drop: heads.Drop) -> Tensor:
        return self.a * heads.cosines(features_BF.detach()) + self.b.detach()

    monkeypatch.setattr(heads.ScaledCosine, "forward", detached)
    assert not run_overfit(tiny(**BI), 8, "mine.yaml")
    assert capsys.readouterr().out.splitlines()[-1] == (
        "sts cannot learn: no gradient reaches the encoder, `b` of its head; look at tasks/sts/head (cosine) and "
        "tasks/sts/loss (mse)"
    )


def test_a_loss_without_any_gradient_is_named_and_not_raised(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses.Bce, "__call__", lambda self, logits, labels, label_range: logits.detach().mean())
    config = overfit_config(tiny(train_on=["para"]), 8)
    (what,) = unreached(config, few_of(config, open_inputs(config), 8)).values()
    assert what == "the encoder, `layers.0.weight` of its head, `layers.0.bias` of its head"


def test_a_loss_that_leads_the_wrong_way_does_not_pass(
    tiny: Tiny, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = losses.Bce.__call__
    monkeypatch.setattr(losses.Bce, "__call__", lambda *arguments: -sound(*arguments))
    monkeypatch.setattr(overfit, "MOST_STEPS", 40)
    assert not run_overfit(tiny(train_on=["sts", "para"]), 8, "mine.yaml")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("para did not: accuracy 0.")
    assert " after 40 steps, its loss went from -0.69" in last
    assert last.endswith("look at tasks/para/head (linear) and tasks/para/loss (bce)")


def test_a_head_that_begins_with_weights_of_zero_is_reached(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def zero(inputs: int, outputs: int) -> torch.nn.Linear:
        layer = torch.nn.Linear(inputs, outputs)
        torch.nn.init.zeros_(layer.weight)
        return layer

    monkeypatch.setattr(heads, "make_linear", zero)
    config = overfit_config(tiny(), 8)
    assert unreached(config, few_of(config, open_inputs(config), 8)) == {}


def test_nothing_is_dropped_decayed_or_written(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = overfit_config(tiny(**BI, smoothness="smart", proximal="bregman", task_schedule="drop"), 8)
    assert (config.encoder.hidden_dropout, config.encoder.attention_dropout, config.optimizer.weight_decay) == (0, 0, 0)
    assert [config.task(name).head.kind for name in config.train_on] == ["linear", "sbert", "cosine"]
    assert config.task("sst").head.dropout == config.task("para").head.dropout == 0
    assert (config.smoothness.kind, config.proximal.kind, config.recipe) == ("none", "none", "multitask")
    assert config.optimizer.lr_factor(0.5) == config.optimizer.lr_factor(1.0) == 1
    run_overfit(tiny(train_on=["sts"]), 4, "mine.yaml")
    assert not list(tmp_path.iterdir())


def test_an_own_task_is_asked_for_what_ties_and_absent_classes_cannot_spoil(tiny: Tiny) -> None:
    own = {
        "mine": {"kind": "regression", "files": {"train": "a.csv"}, "text": "x", "range": [0, 1], "metric": "spearman"},
        "stars": {
            "kind": "classification",
            "files": {"train": "b.csv"},
            "text": "x",
            "labels": [1, 2],
            "metric": "macro_f1",
        },
    }
    known = overfit_config(tiny(own_tasks=own, train_on=["sst", "mine", "stars"]), 8).known_tasks
    assert (known["mine"].metric, known["stars"].metric) == ("pearson", "accuracy")


def test_examples_of_one_label_are_refused_for_there_is_nothing_to_learn(tiny: Tiny) -> None:
    config = tiny(train_on=["para"])
    inputs = open_inputs(config)
    labels = inputs.train["para"].labels
    assert labels is not None
    inputs.train["para"] = inputs.train["para"].only(np.flatnonzero(labels == 1))
    with pytest.raises(ValueError, match="the examples drawn of para all have the label 1, so there is nothing to learn"):
        few_of(config, inputs, 8)


def test_some_rows_of_a_split_are_packed_as_in_the_whole(tiny: Tiny) -> None:
    inputs = open_inputs(tiny())
    split, rows = inputs.train["sts"], np.array([7, 3, 3, 90])
    part = split.only(rows)
    assert (len(part), part.ids) == (4, [split.ids[row] for row in rows])
    one, other = pack(part, np.arange(4), "cross", 64, inputs.specials), pack(split, rows, "cross", 64, inputs.specials)
    assert torch.equal(one.token_ids_N, other.token_ids_N)
    assert torch.equal(one.labels_B, other.labels_B)
