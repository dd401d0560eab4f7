"""One flipped bit in a file of ours is noticed, or changes nothing that is read: snapshots, weights, token files, toy corpus.

Each test flips FLIPS bits, one at a time, in a small file: half of them anywhere, half where the file describes itself.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from minbert_core.data import toy
from minbert_core.data.tasks import TASKS
from minbert_core.data.tokens import TokenisedSplit, load_tokenizer, tokenise_split
from minbert_core.tensor_files import load_state, load_tensors, save_state, save_tensors

FLIPS = 60
STATE = {"model": {"a": torch.arange(12.0), "b": torch.ones(3)}, "counters": {"step": 7}, "records": [{"dev/score": 0.5}]}


def flips(path: Path, described: int = 400) -> Iterator[int]:
    """Flip one bit of the file at a time, FLIPS in all; yield its place. Half are in the first or last `described` bytes."""
    whole, dice = path.read_bytes(), random.Random(0)
    edge = [i for i in range(len(whole)) if i < described or i >= len(whole) - described]
    for number in range(FLIPS):
        place = dice.choice(edge) if number % 2 else dice.randrange(len(whole))
        damaged = bytearray(whole)
        damaged[place] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        yield place
    path.write_bytes(whole)


def plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=lambda tensor: tensor.tolist()))


def count_noticed(path: Path, read: Callable[[Path], Any]) -> int:
    """Return how many flips are noticed; fail for one that is not, but changes what is read."""
    whole, noticed = plain(read(path)), 0
    for place in flips(path):
        try:
            seen = plain(read(path))
        except ValueError:
            noticed += 1
        else:
            assert seen == whole, f"the flip in byte {place} is read as if nothing had happened"
    return noticed


def test_a_flipped_bit_of_a_snapshot_is_noticed_or_harmless(tmp_path: Path) -> None:
    save_state(STATE, tmp_path / "snapshot.pt")
    assert count_noticed(tmp_path / "snapshot.pt", load_state) > 15


def test_a_flipped_bit_of_weights_is_noticed_or_harmless(tmp_path: Path) -> None:
    save_tensors({"a": torch.arange(12.0), "b": torch.ones(3, 2).bfloat16(), "c": torch.tensor(1)}, tmp_path / "w.safetensors")
    assert count_noticed(tmp_path / "w.safetensors", load_tensors) > 40


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rows = "".join(f"{i}\tid{i}\tthe film is good {i}\tit is not\t{i % 5}.5\n" for i in range(20))
    (tmp_path / "sts-train.csv").write_text(f"\tid\tsentence1\tsentence2\tsimilarity\n{rows}")
    (tmp_path / "vocab.txt").write_text("\n".join(toy.vocabulary()) + "\n")
    return tmp_path


def content(split: TokenisedSplit) -> Any:
    assert split.labels is not None
    return split.ids, split.labels.tolist(), [[ids.tolist() for ids in column] for column in split.sentences()], split.notes


def test_a_token_file_with_a_flipped_bit_is_built_again_and_a_line_says_so(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def read() -> TokenisedSplit:
        return tokenise_split(corpus, TASKS["sts"], "train", tokenizer, corpus / "cache")

    tokenizer = load_tokenizer(corpus)
    whole = read()
    expected, said = content(whole), 0
    for _ in flips(whole.path):
        assert content(read()) == expected
        said += "is damaged" in capsys.readouterr().out
    assert said == FLIPS


def test_a_flipped_bit_of_the_cached_toy_corpus_is_mended_and_a_line_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy, "SIZES", {"train": 3, "dev": 2, "test": 1})
    folder = toy.toy_folder(tmp_path)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    for path in (folder / "vocab.txt", folder / "sts-train.csv", tmp_path / f"{folder.name}.sha256.json"):
        for _ in itertools.islice(flips(path), 8):
            toy.toy_folder(tmp_path)
            assert "does not match its checksum. It is written again." in capsys.readouterr().out
            assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
