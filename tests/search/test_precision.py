"""Every loss on every head that it fits, in both precisions, wherever a trial uses them: step, evaluation, answers, dry run.

Which head a loss fits is what a config accepts, so a new loss or head is tested by being named in its union.
B examples, K outputs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from minbert_core.config import TrialConfig
from minbert_core.config_checks import load_config
from minbert_core.data.tokens import pack
from minbert_core.inputs import Inputs, build_encoder, open_inputs
from minbert_core.methods.heads import Head
from minbert_core.methods.losses import Loss
from minbert_core.model import MultitaskBert, Predictor, build_model, predict_logits
from minbert_core.settings.faults import SettingsError
from minbert_core.settings.paths import as_written
from minbert_core.train.step import Stepper
from minbert_core.train.trial import evaluate_dev
from search.cost import measure as measure_module
from search.cost.measure import measure

Tiny = Callable[..., TrialConfig]
NEAR = 0.02  # of the answers' size: bfloat16 has eight bits
LABELS = ("no", "partly", "yes")


def kinds(family: Any) -> list[str]:
    return [cls.model_fields["kind"].default for cls in get_args(get_args(family)[0])]


def changes(task: str, loss: str, head: str, pairs: Path = Path("pairs.jsonl")) -> dict[str, Any]:
    """A config of one task with two vectors per pair, and with both penalties, which read its divergence.

    `alike` is a task of pairs with classes, which the course does not have.
    """
    alike = {"kind": "classification", "files": {"train": str(pairs)}, "text": ["one", "other"], "label": "alike"}
    learned = {"loss": loss, "head": head, "pair_encoding": "bi", "batch_size": 8}
    penalties = {"smoothness": {"kind": "smart", "radius": 0.05}, "proximal": "bregman"}
    own_tasks = {"alike": alike | {"labels": LABELS, "dev_share": 0.5}}
    return {"own_tasks": own_tasks, "train_on": [task], "tasks": {task: learned}, **penalties}


def fits(task: str, loss: str, head: str) -> bool:
    try:
        load_config(changes(task, loss, head))
    except SettingsError:
        return False
    return True


TASKS = ("sst", "alike", "para", "sts")
CELLS = [(task, loss, head) for task in TASKS for loss in kinds(Loss) for head in kinds(Head) if fits(task, loss, head)]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A file of 24 labelled pairs."""
    words = ["the film is good .", "the boy sees the boat .", "a dull plot ."]
    rows = [{"one": words[i % 3], "other": words[i % 2], "alike": LABELS[i % 3]} for i in range(24)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_every_loss_and_every_head_is_in_a_cell() -> None:
    assert {loss for _, loss, _ in CELLS} == set(kinds(Loss))
    assert {head for *_, head in CELLS} == set(kinds(Head))


def check_step(model: MultitaskBert, config: TrialConfig, inputs: Inputs) -> None:
    """One step with both penalties: its losses are finite float32 numbers, and so is the gradient."""
    [task] = config.train_on
    batch = pack(inputs.train[task], np.arange(8), "bi", 64, inputs.specials)
    stepper = Stepper(model, config.stage_plans()[0], config.loss_weights, 0, config.machine.precision)
    report = stepper.step(0, stepper.passes(0, {task: [batch]}), progress=0.5, measure=True)
    assert report.losses.keys() == {task, f"{task}_smoothness", f"{task}_proximal"}
    assert {loss.dtype for loss in report.losses.values()} == {torch.float32}
    assert all(torch.isfinite(loss) for loss in report.losses.values())
    assert 0 < report.figures["gradient_norm"] < float("inf")


def check_answers(model: MultitaskBert, config: TrialConfig, inputs: Inputs) -> None:
    """An evaluation and `predict`: numbers of the task's own outputs, near those of float32."""
    [task] = config.train_on
    metrics, _ = evaluate_dev(model, config, inputs)
    assert np.isfinite(metrics[task])
    found, exact = (
        predict_logits(model, task, inputs.dev[task], 64, inputs.specials, precision)
        for precision in (config.machine.precision, "float32")
    )
    assert found.shape == (len(inputs.dev[task]), config.known_tasks[task].outputs)
    assert np.abs(found - exact).max() <= NEAR * max(1, np.abs(exact).max())
    text: Any = "a dull film ." if task == "sst" else ("a dull film .", "the film is dull .")
    [answers] = Predictor(model, config, inputs.tokenizer).predict([text])
    assert np.isfinite(answers[task].value)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("task", "loss", "head"), CELLS)
def test_a_loss_on_a_head_works_in_both_precisions_wherever_a_trial_uses_it(
    tiny: Tiny, pairs: Path, monkeypatch: pytest.MonkeyPatch, task: str, loss: str, head: str, precision: str
) -> None:
    config = tiny(**changes(task, loss, head, pairs), machine={"precision": precision})
    inputs = open_inputs(config)
    model = build_model(config, build_encoder(config, inputs))
    check_answers(model, config, inputs)
    check_step(model, config, inputs)
    for seconds in ("STAGE_SECONDS", "EVALUATION_SECONDS"):
        monkeypatch.setattr(measure_module, seconds, 0.0)
    assert measure(as_written(config), time.time(), pairs.parent).evaluation_seconds > 0
