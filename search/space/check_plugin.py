"""A short trial of each variant of a plugin on the toy corpus: does it build, train, repeat, learn, and survive being saved?

    python -m search.space --check my_head.py

tests/methods has the laws of each family in full. These are the ones that hold for every family.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minbert_core.config import TINY, TOY, TrialConfig
from minbert_core.config_checks import load_config
from minbert_core.evaluate import NotFiniteError
from minbert_core.inputs import Inputs, build_encoder, open_inputs
from minbert_core.model import MultitaskBert, build_model, load_model, predict_logits, save_model
from minbert_core.plugins import load_plugin, with_plugins
from minbert_core.settings.knobs import ENTRIES, Knob, walk_knobs
from minbert_core.settings.paths import lay_over
from minbert_core.train.trial import train
from search.space.examples import example

SMALL = {  # a trial of seconds
    "data": TOY,
    "encoder": TINY,
    "budget": {"examples": 240, "points": [1]},
    "tasks": {"all": {"batch_size": 8}},
    "machine": {"device": "cpu", "precision": "float32"},
}
ROWS = 24  # of each task's dev split
AS_CLOSE = 1e-4  # of logits, where other matrices are multiplied: a row alone, an adapter merged into its encoder


def check_plugin(file: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each variant of a plugin, as `head 'gated'`, and a sentence for each law that it breaks.

    Raises ValueError: no such plugin, or a variant of which no valid config was found; OSError.
    """
    plugin = load_plugin(file.absolute())
    with_plugins({"plugins": [plugin.entry]}, [])
    for variant in plugin.variants:
        kind = str(variant.model_fields["kind"].default)
        places = walk_knobs(Knob((TrialConfig,)), ENTRIES)
        place = next((place for place in places if place.knob.kind == kind and variant in place.knob.models), None)
        assert place is not None, f"{kind} has joined a union"
        found = example(place.path, place.knob)
        if not found:
            raise ValueError(f"{file}: no valid configuration with '{kind}' was found, so it could not be checked.")
        config = load_config({**lay_over(SMALL, found), "plugins": [plugin.entry]})
        yield f"{place.path.rpartition('/')[0].rpartition('/')[2]} '{kind}'", list(_broken(config))


def _broken(config: TrialConfig) -> Iterator[str]:
    """Yield a sentence for each law that a config's trial breaks."""
    inputs = open_inputs(config)
    inputs = replace(inputs, dev={name: split.only(np.arange(ROWS)) for name, split in inputs.dev.items()})
    try:
        (model, losses), (_, again) = _trained(config, inputs), _trained(config, inputs)
    except NotFiniteError as error:
        yield f"a loss is not finite: {error}"
        return
    except Exception as error:  # noqa: BLE001  the user's code may raise anything
        yield f"training fails: {type(error).__name__}: {error}"
        return
    if losses != again:
        yield "two trainings from one seed differ: draw random numbers from the generators that are handed in only"
    if still := _unmoved(model, config, inputs):
        yield f"no gradient reaches {', '.join(still)} (a detach, a no_grad?)"
    answers = _logits(model, config, inputs)
    if not _are_close(answers, _logits(model, config, inputs), 0):
        yield "two evaluations differ: dropout or other noise must be off in evaluation"
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, config, Path(folder) / "best", inputs.encoder_folder)
        loaded, _ = load_model(Path(folder) / "best")
    if not _are_close(answers, _logits(loaded, config, inputs), AS_CLOSE):
        yield "the saved model answers otherwise: what it learns must be parameters or buffers of a module"
    alone = replace(inputs, dev={name: split.only(np.arange(1)) for name, split in inputs.dev.items()})
    if not _are_close({name: each[:1] for name, each in answers.items()}, _logits(model, config, alone), AS_CLOSE):
        yield "the answer to a row depends on the rows next to it"


def _trained(config: TrialConfig, inputs: Inputs) -> tuple[MultitaskBert, list[dict[str, Any]]]:
    """Train; return the model and all losses and scores."""
    model, records = None, []
    for progress in train(config, inputs):
        model = progress.model or model
        figures = {key: value for key, value in progress.record.items() if key.endswith("_loss") or key.startswith("dev/")}
        records.append(figures)
    assert model is not None, "a trial has a model"
    return model, records


def _unmoved(model: MultitaskBert, config: TrialConfig, inputs: Inputs) -> list[str]:
    """List the parameters of the tasks that training has left as they were."""
    fresh = build_model(config, build_encoder(config, inputs))
    return [
        name
        for task in config.train_on
        for (name, now), (_, before) in zip(model.own_parameters(task, True), fresh.own_parameters(task, True), strict=True)
        if now.requires_grad and torch.equal(now, before)
    ]


def _logits(model: MultitaskBert, config: TrialConfig, inputs: Inputs) -> dict[str, np.ndarray[Any, Any]]:
    return {name: predict_logits(model, name, split, config.max_length, inputs.specials) for name, split in inputs.dev.items()}


def _are_close(one: dict[str, np.ndarray[Any, Any]], other: dict[str, np.ndarray[Any, Any]], atol: float) -> bool:
    return all(np.allclose(one[name], other[name], rtol=0, atol=atol) for name in one)
