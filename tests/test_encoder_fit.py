"""An encoder's files against each other and against a config: what does not fit is one sentence before anything starts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minbert_core.checkpoints import load_encoder, save_encoder
from minbert_core.config import TrialConfig
from minbert_core.data.tokens import load_tokenizer
from minbert_core.encoder import TINY, EncoderShape, new_encoder
from minbert_core.inputs import open_inputs
from minbert_core.model import build_model, load, save_model

Config = Callable[..., TrialConfig]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]
SHAPE = replace(TINY, vocab_size=len(PIECES), hidden_size=8, num_hidden_layers=1, intermediate_size=8)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """folder(max_position_embeddings=64): an encoder's folder, its shape so changed, with a tokenizer of 15 tokens."""

    def make(**changes: int) -> Path:
        shape: EncoderShape = replace(SHAPE, **changes)
        save_encoder(new_encoder(shape, seed=0, hidden_dropout=0.1, attention_dropout=0.1), tmp_path / "encoder")
        (tmp_path / "encoder" / "vocab.txt").write_text("\n".join(PIECES) + "\n")
        return tmp_path / "encoder"

    return make


SEGMENTS = "puts two sentences into one sequence, which needs 2 segments. The encoder of"
ONE = "has 1 (`type_vocab_size` in config.json)."


@pytest.mark.parametrize(
    ("shape", "config", "sentences"),
    [
        ({"vocab_size": 14}, {}, ["has 15 tokens, but its encoder has word embeddings for 14 (`vocab_size` in config.json)."]),
        ({"max_position_embeddings": 64}, {}, ["`max_length` must be at most the encoder's 64 positions. Got 128."]),
        ({"type_vocab_size": 1}, {}, [f"`tasks/{name}/pair_encoding/cross` {SEGMENTS}" for name in ("para", "sts")] + [ONE]),
        (
            {"type_vocab_size": 1},
            {"train_on": ["sst"], "stages": [{"kind": "nsp", "texts": ["sts"]}, "multitask"]},
            [f"`stages/0/nsp` {SEGMENTS}", f"{ONE} Remove this stage"],
        ),
        (
            {"type_vocab_size": 1},
            {"tasks": {"pairs": {"pair_encoding": "bi"}}, "stages": [{"kind": "mlm"}, "multitask"]},
            [f"`stages/0/mlm` {SEGMENTS}", f"{ONE} Set its `pair_encoding` to 'bi'"],
        ),
        ({"vocab_size": 9, "max_position_embeddings": 100}, {}, ["has 15 tokens", "encoder's 100 positions"]),
    ],
)
def test_an_encoder_that_lacks_something_is_refused_before_anything_is_read(
    tiny: Config, folder: Callable[..., Path], shape: dict[str, int], config: dict[str, Any], sentences: list[str]
) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        open_inputs(tiny(encoder={"checkpoint": str(folder(**shape))}, **config))
    for sentence in sentences:
        assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "config"),
    [
        ({"vocab_size": 64}, {}),  # rows to spare, as padded embeddings have
        ({"max_position_embeddings": 128}, {}),
        ({"type_vocab_size": 1}, {"tasks": {"pairs": {"pair_encoding": "bi"}}}),
        ({"type_vocab_size": 1}, {"train_on": ["sst"], "stages": [{"kind": "mlm"}, "multitask"]}),
    ],
)
def test_an_encoder_that_has_enough_is_taken(
    tiny: Config, folder: Callable[..., Path], shape: dict[str, int], config: dict[str, Any]
) -> None:
    inputs = open_inputs(tiny(encoder={"checkpoint": str(folder(**shape))}, **config))
    assert inputs.shape == replace(SHAPE, **shape)


def test_weights_that_do_not_fit_their_config_are_refused_before_anything_is_read(
    tiny: Config, folder: Callable[..., Path]
) -> None:
    place = folder()
    config = json.loads((place / "config.json").read_text()) | {"num_hidden_layers": 2}
    (place / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"does not fit its config\.json: it has 1 layer instead of 2"):
        open_inputs(tiny(encoder={"checkpoint": str(place)}))


def test_an_added_token_behind_a_gap_counts_by_its_id(folder: Callable[..., Path]) -> None:
    """tokenizer.json numbers added tokens freely; embeddings must reach the largest number."""
    place = folder()
    load_tokenizer(place)._backend.save(str(place / "tokenizer.json"))
    document = json.loads((place / "tokenizer.json").read_text())
    document["model"]["vocab"]["zz"] = 40
    (place / "tokenizer.json").write_text(json.dumps(document))
    assert load_tokenizer(place).vocab_size == 41


def test_two_files_that_disagree_about_case_are_refused(folder: Callable[..., Path]) -> None:
    place = folder()
    load_tokenizer(place)._backend.save(str(place / "tokenizer.json"))
    (place / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    load_tokenizer(place)
    (place / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    law = r"tokenizer\.json and tokenizer_config\.json disagree: `lowercase` is true in the former, `do_lower_case` is false"
    with pytest.raises(ValueError, match=law):
        load_tokenizer(place)


def test_a_tokenizer_option_that_is_no_boolean_is_named(folder: Callable[..., Path]) -> None:
    place = folder()
    (place / "tokenizer_config.json").write_text('{"do_lower_case": "no"}')
    with pytest.raises(ValueError, match=r'tokenizer_config\.json: `do_lower_case` must be true or false\. Got "no"\.'):
        load_tokenizer(place)


def test_a_saved_model_whose_tokenizer_was_exchanged_answers_nothing(
    tiny: Config, folder: Callable[..., Path], tmp_path: Path
) -> None:
    place = folder()
    config = tiny(encoder={"checkpoint": str(place)})
    save_model(build_model(config, load_encoder(place, 0.1, 0.1)), config, tmp_path / "best", place)
    load(tmp_path / "best", "cpu")
    (tmp_path / "best" / "encoder" / "vocab.txt").write_text("\n".join([*PIECES, "kk"]) + "\n")
    with pytest.raises(ValueError, match=re.escape("has 16 tokens, but its encoder has word embeddings for 15")):
        load(tmp_path / "best", "cpu")
