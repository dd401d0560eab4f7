"""The embedded corpus: in the course's layout, the same everywhere, learnable and noisy."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from analysis.test_split import load_test_split
from minbert_core.data import toy
from minbert_core.data.corpus import read_split
from minbert_core.data.tasks import TASKS
from minbert_core.data.tokens import load_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.toy_folder(tmp_path_factory.mktemp("cache"))


def test_every_split_reads_without_a_dropped_row_and_the_test_is_labelled(folder: Path) -> None:
    for task in TASKS.values():
        splits = [read_split(folder, task, "train"), read_split(folder, task, "dev"), load_test_split(folder, task)]
        for split in splits:
            assert len(split.ids) == toy.SIZES[split.name]
            assert split.labels is not None
            assert len(set(split.labels)) > 1
            assert split.dropped == []
        assert len({identity for split in splits for identity in split.ids}) == sum(toy.SIZES.values())


def test_the_classes_are_balanced_enough_that_guessing_one_does_not_pay(folder: Path) -> None:
    for name, most in (("sst", 0.3), ("para", 0.55), ("cfimdb", 0.55)):
        labels = read_split(folder, TASKS[name], "train").labels
        assert labels is not None
        assert max(labels.count(label) for label in set(labels)) / len(labels) < most


def test_the_similarities_are_real_numbers(folder: Path) -> None:
    labels = read_split(folder, TASKS["sts"], "train").labels
    assert labels is not None
    assert len(set(labels)) > 40


def test_every_word_is_one_piece_of_the_vocabulary(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert tokenizer.vocab_size == len(toy.vocabulary()) == len(set(toy.vocabulary()))
    for task in TASKS.values():
        texts = [text for texts in read_split(folder, task, "train").texts for text in texts]
        for text, pieces in zip(texts, tokenizer.encode(texts), strict=True):
            assert len(pieces) == len(text.split())


def test_any_other_text_can_be_spelt(folder: Path) -> None:
    unknown = toy.vocabulary().index("[UNK]")
    assert unknown not in load_tokenizer(folder).encode(["Zebra-crossing, 42 (maybe)!"])[0]


def test_reviews_are_longer_than_the_other_texts(folder: Path) -> None:
    words = {name: [len(" ".join(t).split()) for t in read_split(folder, TASKS[name], "train").texts] for name in TASKS}
    longest = max(max(words[name]) for name in TASKS if name != "cfimdb")
    assert sorted(words["cfimdb"])[len(words["cfimdb"]) // 10] > longest
    assert max(words["cfimdb"]) <= 126  # whole within the default max_length


def test_what_a_review_says_is_in_its_words_but_not_all_of_it(folder: Path) -> None:
    """The best sum of word weights, on rows it was not fitted to: negation, scales and the noise are out of its reach."""
    words = toy.vocabulary()
    read = {name: read_split(folder, TASKS["cfimdb"], name) for name in ("train", "dev")}
    counts = {name: np.array([[text.split().count(w) for w in words] for (text,) in read[name].texts]) for name in read}
    labels = {name: np.array(split.labels) for name, split in read.items()}
    weights = np.linalg.lstsq(counts["train"], labels["train"] - 0.5, rcond=None)[0]
    accuracy = ((counts["dev"] @ weights > 0) == labels["dev"]).mean()
    assert 0.75 < accuracy < 0.92


def test_paraphrases_agree_with_their_scenes_but_for_the_noise(folder: Path) -> None:
    concept = {word: (slot, n) for slot, group in enumerate(toy.SCENE) for n, words in enumerate(group) for word in words}
    split = read_split(folder, TASKS["para"], "train")
    assert split.labels is not None
    wrong = 0
    for (first, second), label in zip(split.texts, split.labels, strict=True):
        said = [sorted(concept[word] for word in text.split() if word in concept) for text in (first, second)]
        denied = any(word in second.split() for word in toy.DENIALS)
        wrong += (said[0] == said[1] and not denied) != bool(label)
    assert wrong / len(split.labels) == pytest.approx(toy.PARAPHRASE_NOISE, abs=0.02)


def test_the_version_changes_with_what_is_written(folder: Path) -> None:
    """If this fails, what is written has changed: raise toy.VERSION, since caches hold the old corpus, and the value here."""
    files = sorted(folder.iterdir())
    digest = hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()
    assert (toy.VERSION, digest[:16]) == (2, "86af3c6e54c5d33d")


def test_the_three_tasks_of_version_1_and_its_vocabulary_are_still_to_the_byte(folder: Path) -> None:
    """Reviews came in version 2; what was measured on the corpus before them still holds."""
    files = sorted(file for file in folder.iterdir() if "cfimdb" not in file.name)
    digest = hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()
    assert digest[:16] == "9af8c4f87f430dc5"


def test_another_seed_gives_another_corpus(tmp_path: Path, folder: Path) -> None:
    toy.write_toy_corpus(tmp_path, seed=1)
    assert (tmp_path / "sts-dev.csv").read_bytes() != (folder / "sts-dev.csv").read_bytes()


def test_a_second_call_writes_nothing_and_a_lost_file_comes_back(tmp_path: Path) -> None:
    folder = toy.toy_folder(tmp_path)
    (folder / "sts-dev.csv").unlink()
    for file in folder.iterdir():
        os.utime(file, (1, 1))
    assert toy.toy_folder(tmp_path) == folder
    assert [file.name for file in folder.iterdir() if file.stat().st_mtime != 1] == ["sts-dev.csv"]
    assert len(list(folder.iterdir())) == 13
