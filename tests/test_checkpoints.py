"""Encoder checkpoints: the round trip to the bit, transformers as a reader, old names, every refusal, and the hub."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from minbert_core.checkpoints import fetch_encoder, load_encoder, save_encoder
from minbert_core.data.tokens import PackedBatch, load_tokenizer
from minbert_core.encoder import TINY, Encoder, EncoderShape, new_encoder
from minbert_core.model import TOKENIZER_FILES

SHAPE = EncoderShape(
    vocab_size=40, hidden_size=16, num_hidden_layers=3, num_attention_heads=4, intermediate_size=24, max_position_embeddings=16
)


@pytest.fixture
def encoder() -> Encoder:
    """Small and random, with weights large enough that a wrong one shows."""
    return new_encoder(replace(SHAPE, initializer_range=0.3), seed=0, hidden_dropout=0.1, attention_dropout=0.1)


def test_save_and_load_are_bit_exact(encoder: Encoder, tmp_path: Path) -> None:
    save_encoder(encoder, tmp_path / "a" / "b")
    loaded = load_encoder(tmp_path / "a" / "b", 0.2, 0.3)
    assert loaded.shape == encoder.shape
    assert (loaded.hidden_dropout, loaded.attention_dropout, loaded.notes) == (0.2, 0.3, ())
    assert loaded.state_dict().keys() == encoder.state_dict().keys()
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


def test_what_is_saved_loads_in_transformers_without_missing_or_unexpected_keys(
    transformers: ModuleType, encoder: Encoder, tmp_path: Path
) -> None:
    save_encoder(encoder, tmp_path)
    model, report = transformers.BertModel.from_pretrained(tmp_path, output_loading_info=True)
    assert {key: list(value) for key, value in report.items() if value} == {}
    assert model.config.attention_probs_dropout_prob == encoder.attention_dropout
    tokens_N, segments_N = torch.tensor([1, 2, 3, 4, 5]), torch.tensor([0, 0, 0, 1, 1])
    want = model.eval()(input_ids=tokens_N[None], token_type_ids=segments_N[None])
    hidden_ND = encoder(
        PackedBatch(
            token_ids_N=tokens_N,
            position_ids_N=torch.arange(5),
            segment_ids_N=segments_N,
            starts_S1=torch.tensor([0, 5]),
            lengths=(5,),
            example_N=torch.zeros(5, dtype=torch.int64),
            labels_B=torch.zeros(1),
            num_examples=1,
        )
    )
    assert torch.allclose(hidden_ND, want.last_hidden_state[0], rtol=0, atol=1e-5)
    assert torch.allclose(encoder.pooler(hidden_ND[:1]), want.pooler_output, rtol=0, atol=1e-5)


def test_a_real_checkpoint_survives_the_round_trip_whole(real_encoder: Path, tmp_path: Path) -> None:
    save_encoder(load_encoder(real_encoder, 0.1, 0.1), tmp_path)
    before, after = load_file(real_encoder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    before.pop("embeddings.position_ids")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_saving_over_an_encoder_replaces_it_and_leaves_no_other_file(encoder: Encoder, tmp_path: Path) -> None:
    save_encoder(new_encoder(TINY, 0, 0.1, 0.1), tmp_path)
    save_encoder(encoder, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert load_encoder(tmp_path, 0, 0).shape == encoder.shape


def test_a_failed_save_leaves_the_old_encoder_whole(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_encoder(encoder, tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("minbert_core.checkpoints.json.dumps", fail)
    with pytest.raises(OSError, match="disk full"):
        save_encoder(new_encoder(TINY, 0, 0.1, 0.1), tmp_path)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert load_encoder(tmp_path, 0, 0).shape == encoder.shape


def test_a_loaded_encoder_does_not_lean_on_its_file(encoder: Encoder, tmp_path: Path) -> None:
    save_encoder(encoder, tmp_path)
    loaded = load_encoder(tmp_path, 0, 0)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\0" * path.stat().st_size)  # in place, under a memory map that might still be open
    assert torch.equal(loaded.word_embeddings.weight, encoder.word_embeddings.weight)


@pytest.fixture
def rewrite(encoder: Encoder, tmp_path: Path) -> Callable[..., Path]:
    """Saves the encoder, then changes its config and its tensors as told; returns the folder."""

    def change(
        config: dict[str, Any] | None = None, tensors: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None
    ) -> Path:
        save_encoder(encoder, tmp_path)
        merged = json.loads((tmp_path / "config.json").read_text()) | (config or {})
        merged = {key: value for key, value in merged.items() if value != "absent"}
        (tmp_path / "config.json").write_text(json.dumps(merged))
        if tensors:
            stored = {name: tensor.clone() for name, tensor in load_file(tmp_path / "model.safetensors").items()}
            save_file(tensors(stored), tmp_path / "model.safetensors")
        return tmp_path

    return change


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    def old(name: str) -> str:
        return "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    return {old(name): tensor for name, tensor in tensors.items()}


def test_old_names_load(encoder: Encoder, rewrite: Callable[..., Path]) -> None:
    def tensors(stored: dict[str, Tensor]) -> dict[str, Tensor]:
        return renamed(stored) | {"bert.embeddings.position_ids": torch.arange(16)[None]}

    loaded = load_encoder(rewrite(tensors=tensors), 0, 0)
    assert loaded.notes == ()
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


def test_heads_are_left_out_and_noted(rewrite: Callable[..., Path]) -> None:
    heads = {"cls.predictions.bias": torch.zeros(40), "classifier.weight": torch.zeros(2, 16)}
    loaded = load_encoder(rewrite(tensors=lambda stored: renamed(stored) | heads), 0, 0)
    assert loaded.notes == (
        "Ignored in the checkpoint, because an encoder has no such weights: classifier.weight, cls.predictions.bias.",
    )


def test_an_absent_pooler_is_drawn_afresh_always_the_same_and_noted(rewrite: Callable[..., Path]) -> None:
    folder = rewrite(tensors=lambda stored: {name: tensor for name, tensor in stored.items() if "pooler" not in name})
    one, two = load_encoder(folder, 0, 0), load_encoder(folder, 0, 0)
    assert one.notes == ("The checkpoint has no pooler: a new one was initialised.",)
    assert torch.equal(one.pooler[0].weight, two.pooler[0].weight)
    assert float(one.pooler[0].weight.detach().std()) == pytest.approx(0.3, rel=0.2)  # the fixture's initializer_range
    assert not one.pooler[0].bias.any()


def test_half_precision_checkpoints_become_float32(rewrite: Callable[..., Path]) -> None:
    folder = rewrite(tensors=lambda stored: {name: tensor.half() for name, tensor in stored.items()})
    assert {p.dtype for p in load_encoder(folder, 0, 0).parameters()} == {torch.float32}


def test_a_config_without_the_optional_keys_takes_bert_s_defaults(rewrite: Callable[..., Path]) -> None:
    optional = ("hidden_act", "position_embedding_type", "is_decoder", "type_vocab_size", "layer_norm_eps", "initializer_range")
    folder = rewrite(config=dict.fromkeys(optional, "absent"))
    assert load_encoder(folder, 0, 0).shape == SHAPE


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"model_type": "roberta"}, r'config\.json: `model_type` must be "bert"\. Got "roberta"\.'),
        ({"hidden_act": "gelu_new"}, r'config\.json: `hidden_act` must be "gelu"\. Got "gelu_new"\.'),
        ({"position_embedding_type": "relative_key"}, r'`position_embedding_type` must be "absolute"\. Got "relative_key"\.'),
        ({"is_decoder": True}, r"config\.json: `is_decoder` must be false\. Got true\."),
        ({"vocab_size": "absent", "hidden_size": "absent"}, r"config\.json lacks vocab_size, hidden_size\."),
        (
            {"num_attention_heads": 3},
            r"config\.json: `hidden_size` must be a multiple of `num_attention_heads`\. Got 16 and 3\.",
        ),
        (
            {"hidden_size": 16.5},
            r"config\.json: `hidden_size` of an encoder must be a whole number > 0 and < 16,777,216\. Got 16\.5\.",
        ),
        (
            {"vocab_size": 10**30},
            r"config\.json: `vocab_size` of an encoder must be a whole number > 0 and < 16,777,216\. Got 1000",
        ),
        ({"layer_norm_eps": float("nan")}, r"`layer_norm_eps` of an encoder must be a number > 0 and < 16,777,216\. Got nan\."),
        (
            {"num_hidden_layers": 2},
            r"model\.safetensors does not fit its config\.json: it has 3 layers instead of 2 \(`num_hidden_layers`\)\.$",
        ),
        (
            {"num_hidden_layers": 4},
            r"config\.json: it has 3 layers instead of 4 \(`num_hidden_layers`\)\.$",
        ),
        ({"vocab_size": 41}, r"config\.json: embeddings\.word_embeddings\.weight has shape \(40, 16\) instead of \(41, 16\)\."),
    ],
)
def test_a_config_that_does_not_fit_is_refused(rewrite: Callable[..., Path], config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        load_encoder(rewrite(config=config), 0, 0)


@pytest.mark.parametrize(
    "name", ["encoder.layer.1.attention.self.key.weight", "pooler.dense.bias", "embeddings.LayerNorm.weight"]
)
def test_a_missing_weight_is_named(rewrite: Callable[..., Path], name: str) -> None:
    with pytest.raises(ValueError, match=rf"model\.safetensors does not fit its config\.json: {name} is missing\."):
        load_encoder(rewrite(tensors=lambda stored: {key: tensor for key, tensor in stored.items() if key != name}), 0, 0)


def test_a_wrongly_shaped_key_matrix_is_named_alone(rewrite: Callable[..., Path]) -> None:
    wrong = {"encoder.layer.0.attention.self.key.weight": torch.zeros(16, 15)}
    sentence = r"config\.json: encoder\.layer\.0\.attention\.self\.key\.weight has shape \(16, 15\) instead of \(16, 16\)\."
    with pytest.raises(ValueError, match=sentence):
        load_encoder(rewrite(tensors=lambda stored: stored | wrong), 0, 0)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_what_the_system_refuses_is_its_own_fault_whichever_file_it_is(rewrite: Callable[..., Path], name: str) -> None:
    folder = rewrite()
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        load_encoder(folder, 0, 0)
    assert caught.value.filename == str(folder / name)


@pytest.mark.parametrize("kept", [5, 200, 20_000])
def test_a_truncated_checkpoint_is_refused(rewrite: Callable[..., Path], kept: int) -> None:
    folder = rewrite()
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"Cannot read .*model\.safetensors: .*\. It may be truncated\. Copy it again\."):
        load_encoder(folder, 0, 0)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", r"config\.json must be a JSON object\. It is not: .*\. Copy or download it again\."),
        ("[]", r"config\.json must be a JSON object\. Got \[\]\."),
        ("\xff", r"config\.json must be UTF-8 text\. Got the byte 0xff\."),
    ],
)
def test_a_config_that_is_no_json_object_is_refused(rewrite: Callable[..., Path], text: str, sentence: str) -> None:
    folder = rewrite()
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=sentence):
        load_encoder(folder, 0, 0)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 90868376\n"
FETCH = r"is a Git LFS pointer, not the file itself: .* run `git lfs pull` in /"
AGAIN = r"is empty\. Copy or download it again\."


@pytest.mark.parametrize(("text", "sentence"), [("", AGAIN), (POINTER, FETCH)])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "tokenizer_config.json"])
def test_a_file_without_its_content_is_named_with_what_to_do(
    rewrite: Callable[..., Path], name: str, text: str, sentence: str
) -> None:
    folder = rewrite()
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n")
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name} {sentence}"):
        load_tokenizer(folder) if name in TOKENIZER_FILES else load_encoder(folder, 0, 0)


def test_weights_of_whole_numbers_are_refused(rewrite: Callable[..., Path]) -> None:
    folder = rewrite(tensors=lambda stored: stored | {"pooler.dense.bias": torch.zeros(16, dtype=torch.int8)})
    with pytest.raises(
        ValueError, match=r"pooler\.dense\.bias is stored as I8, which is not a floating-point type \(a quantised model\?\)\."
    ):
        load_encoder(folder, 0, 0)


# ---------------------------------------------------------------------------------------------------------------- shards


@pytest.fixture
def sharded(rewrite: Callable[..., Path]) -> Path:
    """The encoder's folder, its weights in two shards, as transformers writes a model beyond `max_shard_size`."""
    folder = rewrite()
    tensors = load_file(folder / "model.safetensors")
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    weight_map = {name: names[i % 2] for i, name in enumerate(sorted(tensors))}
    for shard in names:
        save_file({name: tensors[name].clone() for name in weight_map if weight_map[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()
    return folder


def test_a_sharded_checkpoint_is_read_as_the_whole_one(sharded: Path, encoder: Encoder) -> None:
    loaded = load_encoder(sharded, 0, 0)
    assert loaded.notes == ()
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


def test_a_missing_shard_is_named(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    sentence = r"has no model-00002-of-00002\.safetensors, which its model\.safetensors\.index\.json names\. Copy or download"
    with pytest.raises(ValueError, match=sentence):
        load_encoder(sharded, 0, 0)


@pytest.mark.parametrize(
    "index", ["{}", '{"weight_map": []}', '{"weight_map": {"a": "../../secret"}}', '{"weight_map": {"a": 1}}']
)
def test_an_index_that_names_no_files_is_refused(sharded: Path, index: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=r"index\.json must map each tensor to its file under `weight_map`\."):
        load_encoder(sharded, 0, 0)


def test_missing_files_are_named(rewrite: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"The encoder folder .*nowhere does not exist\."):
        load_encoder(tmp_path / "nowhere", 0, 0)
    folder = rewrite()
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"The encoder folder .* has no model\.safetensors\."):
        load_encoder(folder, 0, 0)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"The encoder folder .* has no config\.json\."):
        load_encoder(folder, 0, 0)


def test_a_checkpoint_of_the_courses_own_code_is_told_what_is_wanted(tmp_path: Path) -> None:
    checkpoint = tmp_path / "finetune-10-1e-05-multitask.pt"
    checkpoint.touch()
    with pytest.raises(ValueError, match=r"multitask\.pt is a file\. An encoder is a folder .*is a pickle"):
        fetch_encoder(str(checkpoint))


def test_a_pickle_is_not_opened_but_its_conversion_told(rewrite: Callable[..., Path]) -> None:
    folder = rewrite()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    sentence = (
        r'has pytorch_model\.bin, but no model\.safetensors\. Convert its pickle once: python -c "from transformers import .*"$'
    )
    with pytest.raises(ValueError, match=sentence):
        load_encoder(folder, 0, 0)


# ------------------------------------------------------------------------------------------------------------------ fetch


def test_a_folder_is_returned_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "minilm").mkdir()
    monkeypatch.chdir(tmp_path)
    assert fetch_encoder("minilm") == (tmp_path / "minilm").resolve()


@pytest.mark.parametrize("name", ["/no/such/folder", "./folder", "../folder", "~/no-such-folder", "a/b/c"])
def test_a_path_without_a_folder_never_asks_the_hub(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"The encoder folder .*folder does not exist\.|The encoder folder a/b/c does not exist\."
    ):
        fetch_encoder(name)


@pytest.fixture
def silent_hub() -> Iterator[str]:
    """The address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


ADVICE = r"Use `--encoder DIR` with a folder in Hugging Face layout, or `encoder: tiny` with the toy corpus\.$"


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.usefixtures("empty_cache")
def test_a_hub_that_cannot_be_reached_fails_in_seconds_with_advice(silent_hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    for endpoint, limit_seconds in (("http://127.0.0.1:9", 3), (silent_hub, 8)):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        start = time.monotonic()
        with pytest.raises(ValueError, match=rf"^The encoder 'some/model' is not a folder, .* downloaded .* \(.+\)\. {ADVICE}"):
            fetch_encoder("some/model")
        assert time.monotonic() - start < limit_seconds


def test_without_a_network_one_reads_how_the_cache_is_filled(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fetch = r"""python -c "from minbert_core\.checkpoints import fetch_encoder; fetch_encoder\('some/model'\)" """
    with pytest.raises(ValueError, match=rf"HF_HUB_OFFLINE is set, and {empty_cache} lacks it; with a network, {fetch}"):
        fetch_encoder("some/model")


@pytest.mark.usefixtures("empty_cache")
def test_what_is_no_name_of_a_model_gets_the_same_advice() -> None:
    with pytest.raises(ValueError, match=ADVICE):
        fetch_encoder("no model!")


@pytest.mark.parametrize("shards", [(), ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")])
def test_a_model_in_the_cache_is_taken_without_network(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, shards: tuple[str, ...]
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    repository, revision = empty_cache / "models--some--model", "0123456789012345678901234567890123456789"
    snapshot = repository / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    for name in ("config.json", "vocab.txt", *(shards or ["model.safetensors"])):
        (snapshot / name).touch()
    if shards:
        (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict(zip("ab", shards, strict=True))}))
    assert fetch_encoder("some/model") == snapshot.resolve()
    if shards:  # a download that was interrupted
        (snapshot / shards[1]).unlink()
        with pytest.raises(ValueError, match="could not be downloaded"):
            fetch_encoder("some/model")


def test_a_cut_vocabulary_is_saved_whole(tmp_path: Path) -> None:
    encoder = new_encoder(SHAPE, seed=0, hidden_dropout=0, attention_dropout=0)
    whole = encoder.word_embeddings.weight.detach().clone()
    encoder.train_words(torch.tensor([0, 7]))
    with torch.no_grad():
        encoder.word_embeddings.weight[1] = 5
    whole[7] = 5
    save_encoder(encoder, tmp_path)
    assert torch.equal(load_encoder(tmp_path, 0, 0).word_embeddings.weight, whole)
