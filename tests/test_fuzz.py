"""Any content of any file that is read gives a valid object or one of our errors, within seconds: never a traceback.

    content, changed at random -> reader -> an object, or a ValueError or OSError whose sentence names the file

EXAMPLES contents per file, the same each time. A larger number searches longer.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minbert_core.checkpoints import load_encoder, read_shape, save_encoder
from minbert_core.config_checks import read_config
from minbert_core.data.corpus import read_every_row, read_split
from minbert_core.data.own_tasks import Classification
from minbert_core.data.tasks import TASKS, Task
from minbert_core.data.texts import read_text_file
from minbert_core.data.tokens import load_tokenizer
from minbert_core.encoder import EncoderShape, new_encoder
from minbert_core.settings.paths import as_written
from minbert_core.settings.yaml import dump_yaml
from minbert_core.tensor_files import load_state, load_tensors, save_state, save_tensors
from minbert_core.train.folder import read_records

EXAMPLES = 40
LONGEST_SECONDS = 5
RAW = (UnicodeError, json.JSONDecodeError)  # of a library: a ValueError, but not a sentence of ours

quick = settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##s", "."]
CONFIG = {
    "data": "toy",
    "encoder": {"checkpoint": "tiny", "hidden_dropout": 0.1},
    "own_tasks": {"mine": {"kind": "classification", "files": {"train": "a.csv"}, "text": "t", "labels": ["x", "y"]}},
    "train_on": ["sst", "mine"],
    "tasks": {"all": {"head": "mlp", "loss": {"kind": "cross_entropy"}}, "pairs": {"pair_encoding": "bi"}},
    "budget": {"examples": 100, "points": [1, 3]},
    "stages": [{"kind": "mlm", "epochs": 1}, "multitask"],
    "optimizer": {"lr": 1e-3},
    "objective": {"weights": {"sst": 1, "mine": 2}},
}
DEV = {"kind": "dev", "step": 1, "examples": 8, "passes": 8, "time_ms": 1, "seconds": 0.5, "rung": 1, "dev/score": 0.5}
ODD = [
    b"\xff",
    b"\x00",
    b"[" * 3000,
    b'{"a":' * 2000,
    b"{",
    b'"',
    b"\n",
    b"\r",
    b"\t",
    b"NaN",
    b"1e999",
    b"9" * 5000,
    b"null",
    b"-1",
]
ODD += [
    b"\\ud800",
    "\u2028".encode(),
    b"\xef\xbb\xbf",
    b"&a [*a]",
    b"!!python/object:os.system",
    b"---\n",
    b",",
    b": ",
    b"true",
]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_subnormal=False)
    | st.text(max_size=8)
    | st.sampled_from([10**30, "\ud800", "\0", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def changed(draw: Any, content: bytes) -> bytes:
    """Content with one to three pieces removed, repeated or replaced; sometimes anything at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=60))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.sampled_from([0, 0, 1, 2, 10, len(content)])))
        piece = draw(st.sampled_from([b"", content[start:end] * 2, *ODD]) | st.binary(max_size=4))
        content = content[:start] + piece + content[end:]
    return content


@st.composite
def replaced_values(draw: Any, document: Any) -> Any:
    """A document in which one value, at any depth, is another, or is missing, or has another neighbour."""
    if not isinstance(document, dict | list) or not document or draw(st.integers(0, 3)) == 0:
        return draw(VALUES)
    copy: Any = document.copy()
    key = draw(st.sampled_from(sorted(copy))) if isinstance(copy, dict) else draw(st.integers(0, len(copy) - 1))
    how = draw(st.integers(0, 5))
    if how == 0:
        del copy[key]
    elif how == 1 and isinstance(copy, dict):
        copy[draw(st.text(max_size=5))] = draw(VALUES)
    else:
        copy[key] = draw(replaced_values(copy[key]))
    return copy


def written(document: Any) -> bytes:
    return json.dumps(document).encode()  # a lone surrogate as its escape


def survives(read: Callable[[], Any], path: Path) -> Any:
    """Read; return the object, or None after one of our errors.  Fails for any other error, and if it takes too long."""
    began, fault = time.monotonic(), None
    try:
        return read()
    except (ValueError, OSError) as error:
        fault = error
    finally:
        assert time.monotonic() - began < LONGEST_SECONDS
    assert not isinstance(fault, RAW), f"a raw {type(fault).__name__}: {fault}"
    assert path.name in f"{fault} {getattr(fault, 'filename', '')}", f"does not name the file: {fault}"
    return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of one layer with its tokenizer: what each reader finds next to the file that is fuzzed."""
    folder = tmp_path_factory.mktemp("fuzz")
    shape = EncoderShape(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    save_encoder(new_encoder(shape, 0, 0.1, 0.1), folder)
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    return folder


# -------------------------------------------------------------------------------------------------------- configs, records


def read_back(path: Path) -> None:
    """A config that can be read is written, read again, and still the same."""
    config = read_config(path)
    again = path.with_name("again.yaml")
    again.write_text(dump_yaml(as_written(config)), encoding="utf-8")
    assert read_config(again).identity == config.identity


@quick
@given(changed(dump_yaml(CONFIG).encode()))
def test_any_text_is_a_config_or_refused(folder: Path, content: bytes) -> None:
    (folder / "config.yaml").write_bytes(content)
    survives(lambda: read_back(folder / "config.yaml"), folder / "config.yaml")


@quick
@given(replaced_values(CONFIG).map(written))
def test_any_document_is_a_config_or_refused(folder: Path, content: bytes) -> None:
    (folder / "config.yaml").write_bytes(content)
    survives(lambda: read_back(folder / "config.yaml"), folder / "config.yaml")


@quick
@given(changed(written(DEV) + b"\n" + written(DEV) + b"\n") | replaced_values(DEV).map(written))
def test_any_line_is_a_record_or_named(folder: Path, content: bytes) -> None:
    (folder / "metrics.jsonl").write_bytes(content)
    for record in survives(lambda: read_records(folder / "metrics.jsonl"), folder / "metrics.jsonl") or []:
        assert isinstance(record["kind"] + str(record["examples"] + record["time_ms"] + record["seconds"]), str)


# ------------------------------------------------------------------------------------------------- an encoder's folder


def whole_tokenizer() -> bytes:
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece({p: i for i, p in enumerate(PIECES)}, unk_token="[UNK]"))
    backend.normalizer = tokenizers.normalizers.BertNormalizer()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens(PIECES[:5])
    return backend.to_str().encode()


def check_tokenizer(folder: Path) -> None:
    assert load_tokenizer(folder).encode(["a bs.", "", "\ufffd"])[1] == []


TOKENIZER = json.loads(whole_tokenizer())


@quick
@given(replaced_values(TOKENIZER).map(written) | changed(whole_tokenizer()))
def test_any_tokenizer_json_is_a_tokenizer_or_refused(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    own = folder / "own"
    own.mkdir(exist_ok=True)
    (own / "tokenizer.json").write_bytes(content)
    survives(lambda: check_tokenizer(own), own / "tokenizer.json")


@quick
@given(changed("\n".join(PIECES).encode()))
def test_any_vocab_txt_is_a_vocabulary_or_refused(folder: Path, content: bytes) -> None:
    own = folder / "words"
    own.mkdir(exist_ok=True)
    (own / "vocab.txt").write_bytes(content)
    survives(lambda: load_tokenizer(own).encode(["a bs."]), own / "vocab.txt")


OPTIONS = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True, "model_max_length": 512}


@quick
@given(replaced_values(OPTIONS).map(written) | changed(written(OPTIONS)))
def test_any_tokenizer_config_is_options_or_refused(folder: Path, content: bytes) -> None:
    own = folder / "options"
    own.mkdir(exist_ok=True)
    (own / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    (own / "tokenizer_config.json").write_bytes(content)
    survives(lambda: check_tokenizer(own), own / "tokenizer_config.json")


SHAPE = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
SHAPE |= {"max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "model_type": "bert"}  # type: ignore[dict-item]


@quick
@given(replaced_values(SHAPE).map(written) | changed(written(SHAPE)))
def test_any_config_json_is_a_shape_or_refused(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    survives(lambda: read_shape(folder), folder / "config.json")


@quick
@given(st.data())
def test_any_safetensors_file_is_an_encoder_or_refused(folder: Path, data: st.DataObject) -> None:
    own = folder / "weights"
    if not own.exists():
        shape = EncoderShape(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        save_encoder(new_encoder(shape, 0, 0.1, 0.1), own)
        (own / "whole").write_bytes((own / "model.safetensors").read_bytes())
    (own / "model.safetensors").write_bytes(data.draw(changed((own / "whole").read_bytes())))
    survives(lambda: load_encoder(own, 0.1, 0.1), own / "model.safetensors")


@quick
@given(st.data())
def test_any_snapshot_is_loaded_or_refused(folder: Path, data: st.DataObject) -> None:
    path = folder / "snapshot.pt"
    if not path.with_name("whole.pt").exists():
        save_state({"model": {"a": torch.ones(3)}, "records": [DEV]}, path.with_name("whole.pt"))
    path.write_bytes(data.draw(changed(path.with_name("whole.pt").read_bytes())))
    survives(lambda: load_state(path), path)


@quick
@given(st.data())
def test_any_file_of_tensors_is_loaded_or_refused(folder: Path, data: st.DataObject) -> None:
    path = folder / "heads.safetensors"
    save_tensors({"a": torch.ones(3), "b": torch.ones(2, 2).bfloat16()}, path)
    path.write_bytes(data.draw(changed(path.read_bytes())))
    survives(lambda: load_tensors(path), path)


# ------------------------------------------------------------------------------------------------------------ data files

TABLE = 'id,text,label\n1,"a b",x\n2,"c ""d""",y\n3,e,x\n'
ROWS = {
    ".csv": TABLE.encode(),
    ".tsv": TABLE.replace(",", "\t").encode(),
    ".jsonl": b"".join(written({"id": i, "text": "a b", "label": "xy"[i % 2]}) + b"\n" for i in range(3)),
}
WRITTEN_ROWS = io.BytesIO()
pq.write_table(pa.table({"id": ["1", "2"], "text": ["a b", "c"], "label": ["x", "y"]}), WRITTEN_ROWS)
ROWS[".parquet"] = WRITTEN_ROWS.getvalue()


def own_task(suffix: str) -> Task:
    files = {"train": f"rows{suffix}", "dev": f"dev{suffix}"}
    return Classification(files=files, text=("text",), id="id", labels=("x", "y")).task("mine")  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", ROWS)
@quick
@given(st.data())
def test_any_data_file_is_rows_or_refused(folder: Path, suffix: str, data: st.DataObject) -> None:
    path, task = folder / f"rows{suffix}", own_task(suffix)
    path.write_bytes(data.draw(changed(ROWS[suffix])))
    survives(lambda: read_split(folder, task, "train"), path)
    survives(lambda: read_every_row(path, task, "test"), path)


@quick
@given(changed(b"\tid\tsentence\tsentiment\n0\tx\ta b\t3\n1\ty\tc\t0\n"))
def test_any_file_of_the_course_is_rows_or_refused(folder: Path, content: bytes) -> None:
    (folder / "ids-sst-train.csv").write_bytes(content)
    survives(lambda: read_split(folder, TASKS["sst"], "train"), folder / "ids-sst-train.csv")


@quick
@given(changed(b"a b.\nb a.\n\na\nb\n"))
def test_any_text_file_is_texts_or_refused(folder: Path, content: bytes) -> None:
    (folder / "more.txt").write_bytes(content)
    survives(lambda: read_text_file(folder / "more.txt", load_tokenizer(folder), in_pairs=True), folder / "more.txt")


# ------------------------------------------------------------------------------------------------------- what is no file


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
@pytest.mark.parametrize(
    "name",
    ["config.yaml", "metrics.jsonl", "config.json", "model.safetensors", "rows.csv", "rows.jsonl", "rows.parquet", "more.txt"],
)
def test_a_pipe_a_folder_or_a_device_in_place_of_a_file_is_refused_at_once(
    folder: Path, tmp_path: Path, name: str, kind: str
) -> None:
    path = tmp_path / name
    for other in ("config.json", "model.safetensors"):
        if name != other:
            (tmp_path / other).write_text("{}")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    readers: dict[str, Callable[[], Any]] = {
        "config.yaml": lambda: read_config(path),
        "metrics.jsonl": lambda: read_records(path),
        "config.json": lambda: read_shape(tmp_path),
        "model.safetensors": lambda: load_tensors(path),
        "more.txt": lambda: read_text_file(path, load_tokenizer(folder), in_pairs=True),
    }
    read = readers.get(name, lambda: read_split(tmp_path, own_task(path.suffix), "train"))
    assert survives(read, path) is None
