"""Encoder checkpoints in Hugging Face's layout: read, write, or fetch by name.

    hub name or folder -> fetch_encoder -> folder -> load_encoder -> Encoder -> save_encoder -> folder

A checkpoint is config.json and model.safetensors (or its shards), with the names of transformers' BertModel. Only safetensors
and JSON are read. A pickle is never opened; the error that refuses it contains the command that converts it.

    python -m minbert_core.checkpoints convert FILE.pt --to DIR      converts a checkpoint of the course (see convert.py)
"""

from __future__ import annotations

if __name__ == "__main__":  # before the other imports, which take seconds
    import runpy

    runpy.run_module("minbert_core.convert", run_name="__main__", alter_sys=True)

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from minbert_core.encoder import Encoder, EncoderShape, assemble
from minbert_core.encoder_files import INDEX, SHARDS, WEIGHTS, read_json, weight_files
from minbert_core.files import cache_folder, replaced, user_path
from minbert_core.methods.adapters import plain_weights
from minbert_core.tensor_files import load_shapes, load_tensors, save_tensors
from minbert_core.words import counted

_TOKENIZERS = ["tokenizer.json", "vocab.txt"]
FILES = ["config.json", WEIGHTS, INDEX, SHARDS, *_TOKENIZERS, "tokenizer_config.json", "special_tokens_map.json"]
_BERT = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}
IDENTITY_POOLER = (
    "identity_pooler"  # key of a config.json whose pooler only hands [CLS] on (analysis/export_to/as_transformers.py)
)
T = TypeVar("T")
_STORED_MODULES = {
    "word_embeddings": ["embeddings.word_embeddings"],
    "position_embeddings": ["embeddings.position_embeddings"],
    "segment_embeddings": ["embeddings.token_type_embeddings"],
    "embedding_norm": ["embeddings.LayerNorm"],
    "query": ["attention.self.query"],
    "key_value": ["attention.self.key", "attention.self.value"],  # one matrix in our encoder, two in a checkpoint
    "attention_output": ["attention.output.dense"],
    "attention_norm": ["attention.output.LayerNorm"],
    "intermediate": ["intermediate.dense"],
    "output": ["output.dense"],
    "output_norm": ["output.LayerNorm"],
    "pooler.0": ["pooler.dense"],
}


def read_shape(folder: Path) -> EncoderShape:
    """Read an encoder's shape from its config.json, and check the names and shapes of its weights against it.

    The weights themselves are not read, so this takes milliseconds.
    Raises ValueError: a missing or damaged file, another architecture, missing or unknown weights, a wrong shape.
    Raises OSError: the system does not let us read a file.
    """
    if not folder.is_dir():
        raise ValueError(f"The encoder folder {folder} does not exist.")
    shape = _read_config(folder / "config.json")
    if faults := list(misfits(shape, _stored_shapes(folder))):
        more = f", and {len(faults) - 3} more" if len(faults) > 3 else ""
        name = WEIGHTS if (folder / WEIGHTS).exists() else INDEX
        raise ValueError(f"{folder / name} does not fit its config.json: {'; '.join(faults[:3])}{more}.")
    return shape


def load_encoder(folder: Path, hidden_dropout: float, attention_dropout: float) -> Encoder:
    """Load the encoder of a folder (config.json, model.safetensors or its shards) in float32.

    Heads are ignored. A missing pooler is initialised from a fixed seed. `encoder.notes` reports both.
    Raises the errors of `read_shape`.
    """
    shape = read_shape(folder)
    stored = _read_weights(folder)
    weights: dict[str, Tensor] = {}
    notes: list[str] = []
    if read_json(folder / "config.json").get(IDENTITY_POOLER):
        stored = {name: tensor for name, tensor in stored.items() if not name.startswith("pooler.")}
    if not _has_pooler(stored):
        notes.append("The checkpoint has no pooler: a new one was initialised.")
    for name in _expected(shape, _has_pooler(stored)):
        weights[name] = torch.cat([stored.pop(part).float() for part in stored_names(name)])
    if stored:
        notes.append(f"Ignored in the checkpoint, because an encoder has no such weights: {', '.join(sorted(stored))}.")
    encoder = assemble(shape, weights, torch.Generator().manual_seed(0), hidden_dropout, attention_dropout)
    encoder.notes = tuple(notes)
    return encoder


def _has_pooler(stored: Mapping[str, Any]) -> bool:
    return any(name.startswith("pooler.") for name in stored)


def _expected(shape: EncoderShape, with_pooler: bool) -> dict[str, Tensor]:
    """Return the parameters of an encoder of this shape on the meta device, that is, without content."""
    with torch.device("meta"):
        expected = Encoder(shape, 0, 0).state_dict()
    return {name: like for name, like in expected.items() if with_pooler or not name.startswith("pooler.")}


def misfits(shape: EncoderShape, stored: Mapping[str, tuple[tuple[int, ...], str]]) -> Iterator[str]:
    """Yield a clause for each tensor that is missing, unknown or wrong in a checkpoint for `shape`.

    stored: {name: (shape, dtype)} of the checkpoint's tensors.
    """
    num_layers = len({name.split(".")[2] for name in stored if name.startswith("encoder.layer.")})
    if num_layers != shape.num_hidden_layers:
        yield f"it has {counted(num_layers, 'layer')} instead of {shape.num_hidden_layers} (`num_hidden_layers`)"
        return
    known = set()
    for name, like in _expected(shape, _has_pooler(stored)).items():
        parts = stored_names(name)
        known.update(parts)
        part_shape = (like.shape[0] // len(parts), *like.shape[1:])
        for part in parts:
            if part not in stored:
                yield f"{part} is missing"
                continue
            stored_shape, dtype = stored[part]
            if stored_shape != part_shape:
                yield f"{part} has shape {stored_shape} instead of {part_shape}"
            elif not dtype.startswith(("F", "BF")):
                yield f"{part} is stored as {dtype}, which is not a floating-point type (a quantised model?)"
    of_encoder = ("embeddings.", "encoder.", "pooler.")
    yield from (f"{name} is unknown" for name in stored if name.startswith(of_encoder) and name not in known)


def load_head(folder: Path, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Load the tensors of a head that a checkpoint holds in addition to its encoder; {} if any of them is missing.

    names: {parameter: its name in the checkpoint}. The result is {parameter: tensor}.
    Raises the errors of `load_encoder` if the weights cannot be read.
    """
    stored = _read_weights(folder)
    head = {name: stored[stored_name].float() for name, stored_name in names.items() if stored_name in stored}
    return head if len(head) == len(names) else {}


def save_encoder(encoder: Encoder, folder: Path, extra_tensors: Mapping[str, Tensor] | None = None) -> None:
    """Write `folder` so that `load_encoder` and `transformers.BertModel.from_pretrained` load it, bit for bit.

    extra_tensors: tensors to store in addition to the encoder's, by their names in the checkpoint (see `load_head`).
    The matrices include LoRA's updates: the stored encoder's outputs equal this encoder's, up to float rounding.
    Each file is replaced as a whole: a reader sees the old file or the new one.
    """
    weights = {name: tensor.detach().to("cpu", torch.float32).clone() for name, tensor in (extra_tensors or {}).items()}
    for name, tensor in {**plain_weights(encoder), "word_embeddings.weight": encoder.all_word_embeddings()}.items():
        parts = stored_names(name)
        for part, chunk in zip(parts, tensor.detach().to("cpu", torch.float32).chunk(len(parts)), strict=True):
            weights[part] = chunk.clone()
    config = {
        "architectures": ["BertModel"],
        **_BERT,
        **asdict(encoder.shape),
        "hidden_dropout_prob": encoder.hidden_dropout,
        "attention_probs_dropout_prob": encoder.attention_dropout,
        "pad_token_id": 0,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with (
        replaced(folder / "config.json", many_writers=True) as config_draft,
        replaced(folder / WEIGHTS, many_writers=True) as weights_draft,
    ):
        save_tensors(weights, weights_draft, metadata={"format": "pt"})
        config_draft.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def fetch_encoder(name_or_folder: str) -> Path:
    """Return the absolute folder of an encoder: `name_or_folder` if it is a folder, otherwise the hub model of that name.

    A model is downloaded once. If it is in Hugging Face's cache, the network is not used.
    Raises ValueError: no such folder, no such model, no network (after five seconds). OSError: the cache cannot be written.
    """
    folder = user_path(name_or_folder)
    if folder.is_dir():
        return folder.resolve()
    if folder.is_file():
        raise ValueError(
            f"{folder} is a file. An encoder is a folder in Hugging Face layout: config.json, model.safetensors, a tokenizer. "
            "A .pt or .bin file is a pickle, which is never opened here. Convert it once: python -m minbert_core.checkpoints "
            f"convert {name_or_folder} --to DIR"
        )
    if folder.is_absolute() or name_or_folder.startswith((".", "~")) or name_or_folder.count("/") > 1:
        raise ValueError(f"The encoder folder {folder} does not exist.")
    cache_folder()  # raises if there is no home folder: the hub would then create a folder named ~
    import huggingface_hub  # here, because an encoder in a folder does not need it

    def snapshot(**options: Any) -> Path:
        return Path(huggingface_hub.snapshot_download(name_or_folder, allow_patterns=FILES, etag_timeout=5, **options))

    try:
        try:
            folder = snapshot(local_files_only=True)
        except FileNotFoundError:  # the cache has no model of that name
            folder = Path()
        if not _is_whole(folder):
            # a separate request with a timeout, because snapshot_download waits forever if the server does not respond
            revision = huggingface_hub.HfApi().repo_info(name_or_folder, timeout=5).sha
            folder = snapshot(revision=revision)
    except Exception as error:  # the errors of the hub, the HTTP library and the system have no common base class
        if isinstance(error, OSError) and error.filename is not None:  # a fault of the cache's disk, not of the network
            raise
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        if huggingface_hub.constants.HF_HUB_OFFLINE:
            fetch = f'python -c "from minbert_core.checkpoints import fetch_encoder; fetch_encoder({name_or_folder!r})"'
            cache = huggingface_hub.constants.HF_HUB_CACHE
            reason = f"HF_HUB_OFFLINE is set, and {cache} lacks it; with a network, {fetch} downloads it"
        raise ValueError(
            f"The encoder '{name_or_folder}' is not a folder, and could not be downloaded from the Hugging Face hub "
            f"({reason}). Use `--encoder DIR` with a folder in Hugging Face layout, or `encoder: tiny` with the toy corpus."
        ) from error
    if not weight_files(folder):
        raise ValueError(f"The hub's '{name_or_folder}' has no model.safetensors. {_conversion(name_or_folder, 'DIR')}")
    return folder.resolve()


def _is_whole(folder: Path) -> bool:
    """Return True if a folder has all files that an encoder needs; an interrupted download lacks some."""
    try:
        has_weights = bool(weight_files(folder))
    except ValueError:  # a shard is missing
        return False
    return has_weights and (folder / "config.json").exists() and any((folder / name).exists() for name in _TOKENIZERS)


def _conversion(source: str, target: str) -> str:
    calls = f"[X.from_pretrained('{source}').save_pretrained('{target}') for X in (B, T)]"
    return f'Convert its pickle once: python -c "from transformers import AutoTokenizer as T, BertModel as B; {calls}"'


def stored_names(name: str) -> list[str]:
    """Return the checkpoint's names for our parameter: "layers.3.output.bias" -> ["encoder.layer.3.output.dense.bias"]."""
    module, _, leaf = name.rpartition(".")
    prefix = ""
    if module.startswith("layers."):
        _, index, module = module.split(".")
        prefix = f"encoder.layer.{index}."
    return [f"{prefix}{stored}.{leaf}" for stored in _STORED_MODULES[module]]


def _read_config(path: Path) -> EncoderShape:
    if not path.exists():
        raise ValueError(f"The encoder folder {path.parent} has no config.json.")
    config = read_json(path)
    for key, known in _BERT.items():
        if config.get(key, known) != known:
            raise ValueError(f"{path}: `{key}` must be {json.dumps(known)}. Got {json.dumps(config[key])}.")
    names = [field.name for field in fields(EncoderShape)]
    absent = [name for name in names[:5] if name not in config]
    if absent:
        raise ValueError(f"{path} lacks {', '.join(absent)}.")
    try:
        return EncoderShape(**{name: config[name] for name in names if name in config})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """Read all tensors of a folder, with the names of `_spelled`."""
    return _spelled({name: tensor for path in _present_weights(folder) for name, tensor in load_tensors(path).items()})


def _stored_shapes(folder: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Read the shape and type of all tensors of a folder, but not their content, with the names of `_spelled`."""
    return _spelled({name: item for path in _present_weights(folder) for name, item in load_shapes(path).items()})


def _present_weights(folder: Path) -> list[Path]:
    """List the files with a folder's weights, as `weight_files` does.  Raises ValueError if it has none."""
    if files := weight_files(folder):
        return files
    if (folder / "pytorch_model.bin").exists():
        raise ValueError(f"{folder} has pytorch_model.bin, but no {WEIGHTS}. {_conversion(str(folder), str(folder))}")
    raise ValueError(f"The encoder folder {folder} has no {WEIGHTS}.")


def _spelled(stored: Mapping[str, T]) -> dict[str, T]:
    """Give the stored tensors uniform names: without the prefix `bert.`, and with LayerNorm's `weight` and `bias`."""
    spelled = {}
    for name, item in stored.items():
        name = name.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight")
        spelled[name.replace("LayerNorm.beta", "LayerNorm.bias")] = item
    spelled.pop("embeddings.position_ids", None)  # a constant that older versions stored
    return spelled
