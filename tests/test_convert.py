"""A checkpoint as the course's save_model writes it becomes a folder that loads; everything else gets a sentence."""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from minbert_core.checkpoints import load_encoder, save_encoder
from minbert_core.convert import COURSE_LAYER, COURSE_MODULES, main
from minbert_core.encoder import TINY, new_encoder
from minbert_core.tensor_files import load_tensors

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The encoder that was fine-tuned, in Hugging Face layout."""
    save_encoder(new_encoder(dataclasses.replace(TINY, vocab_size=len(WORDS)), 0, 0.1, 0.1), tmp_path / "base")
    (tmp_path / "base" / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    return tmp_path / "base"


def course_names(base: Path, start: str = "bert.") -> dict[str, Tensor]:
    """Return the encoder's tensors under the names of the course's bert.py, each one larger than in the folder."""
    parts = {hugging: course for course, hugging in COURSE_MODULES.items()}
    inner = {hugging: course for course, hugging in COURSE_LAYER.items()}
    named = {}
    for name, tensor in load_tensors(base / "model.safetensors").items():
        module, _, leaf = name.rpartition(".")
        if module.startswith("encoder.layer."):
            index, module = module.removeprefix("encoder.layer.").split(".", 1)
            named[f"{start}bert_layers.{index}.{inner[module]}.{leaf}"] = tensor + 1
        else:
            named[f"{start}{parts[module]}.{leaf}"] = tensor + 1
    return named | {f"{start}position_ids": torch.arange(512)[None]}


def save(state: Any, file: Path) -> Path:
    """Save a model as the course's save_model does."""
    torch.save(
        {
            "model": state,
            "optim": {"state": {0: {"step": 1, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-5, "params": [0]}]},
            "args": argparse.Namespace(lr=1e-5, option="finetune", use_gpu=True),
            "model_config": SimpleNamespace(hidden_size=64, option="finetune"),
            "system_rng": random.getstate(),
            "numpy_rng": np.random.get_state(),
            "torch_rng": torch.random.get_rng_state(),
        },
        file,
    )
    return file


def test_the_course_s_checkpoint_becomes_a_folder_with_its_weights(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heads = {"linear.weight": torch.zeros(5, 64), "linear.bias": torch.zeros(5)}
    file = save(course_names(base) | heads, tmp_path / "multitask.pt")
    assert main(["convert", str(file), "--to", str(tmp_path / "mine"), "--like", str(base)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "left out  linear.weight, linear.bias: no weights of the encoder"
    ours, theirs = (load_encoder(folder, 0, 0).state_dict() for folder in (tmp_path / "mine", base))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor + 1, rtol=0, atol=0)
    assert (tmp_path / "mine" / "vocab.txt").exists()
    assert json.loads((tmp_path / "mine" / "config.json").read_text())["num_attention_heads"] == TINY.num_attention_heads
    assert main(["convert", str(file), "--to", str(tmp_path / "mine"), "--like", str(base)]) == 3  # it exists


class Code:
    """A class of a student's own."""


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"no pickle at all", "cannot be read"),
        (b"", "is empty"),
        ({"model": {"a": torch.zeros(2)}, "args": Code()}, "contains the class .*Code, which could run code"),
        ({"model": {"linear.weight": torch.zeros(2)}}, r"holds no encoder\. One is converted, .* Got linear\.weight …"),
        ({"losses": [1.0, 2.0]}, "holds no model"),
        ([1, 2], "holds no model"),
    ],
    ids=["text", "empty", "class", "heads", "numbers", "list"],
)
def test_what_is_no_such_file_gets_a_sentence(
    content: Any, sentence: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "f.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    assert main(["convert", str(file), "--to", str(tmp_path / "mine"), "--like", str(base)]) == 2
    told = capsys.readouterr().err
    assert str(file) in told
    assert re.search(sentence, told), told
    assert not (tmp_path / "mine").exists()


def test_an_encoder_of_another_shape_names_the_option(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {name: tensor for name, tensor in course_names(base, start="").items() if "bert_layers.1" not in name}
    torch.save(tensors, tmp_path / "f.pt")  # a bare state_dict, of BertModel itself
    assert main(["convert", str(tmp_path / "f.pt"), "--to", str(tmp_path / "mine"), "--like", str(base)]) == 2
    told = capsys.readouterr().err
    assert "it has 1 layer instead of 2" in told
    assert "Name the BERT that was fine-tuned with --like." in told
