"""Tokenised once, mapped by all, packed as the tokenizers library would have it."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch

from analysis.test_split import tokenise_test_split
from minbert_core.data import tokens
from minbert_core.data.corpus import Dropped, read_split
from minbert_core.data.tables import CorpusError
from minbert_core.data.tasks import TASKS, Task
from minbert_core.data.tokens import (
    Encoding,
    TokenisedSplit,
    load_tokenizer,
    pack,
    tokenise_split,
    tokenise_texts,
)
from minbert_core.data.toy import toy_folder

SST, PARA, STS = TASKS["sst"], TASKS["para"], TASKS["sts"]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d", "e", "##s", "."]
A, B, C, D, E, DOT = (PIECES.index(piece) for piece in ("a", "b", "c", "d", "e", "."))
CLS, SEP = 2, 3
STS_ROWS = "\tid\tsentence1\tsentence2\tsimilarity\n0\tx\ta b c\td e\t2.4\n1\ty\te\ta.\t0.0\n2\tz\tb\tc\t\n"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Two STS pairs, `a b c | d e` and `e | a .`, one row to drop, two SST sentences; a vocabulary of letters."""
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    (folder / "sts-train.csv").write_text(STS_ROWS)
    (folder / "ids-sst-train.csv").write_text("\tid\tsentence\tsentiment\n0\tx\ta b\t3\n1\ty\tc\t0\n")
    return folder


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_folder(tmp_path_factory.mktemp("cache"))


def tokenise(folder: Path, task: Task = STS) -> TokenisedSplit:
    return tokenise_split(folder, task, "train", load_tokenizer(folder), folder / "cache")


# ---------------------------------------------------------------------------------------------------------- tokenizer


def test_a_vocabulary_alone_is_a_lower_casing_word_piece_tokenizer(small: Path) -> None:
    tokenizer = load_tokenizer(small)
    assert tokenizer.encode(["A bs.", "", "zz"]) == [[A, B, PIECES.index("##s"), DOT], [], [1]]
    assert (tokenizer.vocab_size, tokenizer.cls_id, tokenizer.sep_id) == (len(PIECES), CLS, SEP)


def test_lower_casing_follows_tokenizer_config(small: Path) -> None:
    before = load_tokenizer(small).fingerprint
    (small / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert load_tokenizer(small).encode(["A a"]) == [[1, A]]
    assert load_tokenizer(small).fingerprint != before


def test_the_tokenizer_files_own_truncation_and_padding_are_cleared(small: Path) -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece({p: i for i, p in enumerate(PIECES)}, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.enable_truncation(2)
    backend.enable_padding(length=5)
    backend.save(str(small / "tokenizer.json"))
    assert load_tokenizer(small).encode(["a b c"]) == [[A, B, C]]


def test_a_folder_without_tokenizer_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^No tokenizer in .*: it must hold tokenizer\.json or vocab\.txt\.$"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(("content", "absent"), [("[UNK]\na\n", r"\[CLS\]"), ("[CLS]\n[SEP]\n", r"\[UNK\]")])
def test_a_vocabulary_without_special_tokens_is_no_bert_vocabulary(tmp_path: Path, content: str, absent: str) -> None:
    (tmp_path / "vocab.txt").write_text(content)
    with pytest.raises(ValueError, match=f"must be a BERT vocabulary.*{absent}"):
        load_tokenizer(tmp_path)


def test_a_spoilt_tokenizer_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer that the tokenizers library reads"):
        load_tokenizer(tmp_path)


def test_vocab_txt_and_tokenizer_json_of_a_real_checkpoint_agree(real_encoder: Path, real_data: Path, tmp_path: Path) -> None:
    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copy(real_encoder / name, tmp_path / name)
    texts = [text for texts in read_split(real_data, PARA, "dev").texts for text in texts]
    texts += ["Ünïcode 北京 naïve\u200b \x00 ```` [MASK] x" * 3, "w" * 101]
    assert load_tokenizer(tmp_path).encode(texts) == load_tokenizer(real_encoder).encode(texts)


# -------------------------------------------------------------------------------------------------------------- cache


def test_the_file_holds_labels_ids_and_dropped_rows(small: Path) -> None:
    split = tokenise(small)
    assert len(split) == 2
    assert split.ids == ["x", "y"]
    assert split.labels is not None
    assert split.labels.tolist() == [2.4, 0.0]
    assert split.dropped == [Dropped(4, "z", "empty: similarity")]
    assert (split.name, split.path.parent) == ("train", small / "cache")


def test_the_file_holds_the_notes_of_its_corpus_file(small: Path) -> None:
    (small / "sts-train.csv").write_text(STS_ROWS + '3\tw\t"a\nb"\tc\t1.0\n')
    assert tokenise(small).notes == ["1 field of sts-train.csv with a line end inside quotes: line 5"]


def test_the_cached_file_is_reused(small: Path) -> None:
    path = tokenise(small).path
    os.utime(path, (1, 1))
    assert tokenise(small).path == path
    assert path.stat().st_mtime == 1


def test_changed_bytes_a_changed_vocabulary_and_another_task_definition_give_another_file(small: Path) -> None:
    paths = [tokenise(small).path]
    with (small / "sts-train.csv").open("a") as file:
        file.write("3\tw\ta\tb\t1.0\n")
    assert len(tokenise(small)) == 3
    paths.append(tokenise(small).path)
    with (small / "vocab.txt").open("a") as file:
        file.write("f\n")
    paths += [tokenise(small).path, tokenise(small, replace(STS, label_range=(0, 10))).path]
    assert len(set(paths)) == 4


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_cached_file_is_rebuilt(small: Path, share: float) -> None:
    path = tokenise(small).path
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert tokenise(small).ids == ["x", "y"]
    assert path.read_bytes() == whole


def test_a_cached_file_of_another_format_is_rebuilt(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tokenise(small).path
    whole = path.read_bytes()
    monkeypatch.setattr(tokens, "FORMAT", "0")
    other = tokenise(small).path
    monkeypatch.undo()
    shutil.copy(other, path)
    assert tokenise(small).ids == ["x", "y"]
    assert path.read_bytes() == whole


def test_nothing_but_the_token_file_stays_in_the_cache(small: Path) -> None:
    path = tokenise(small).path
    assert list(path.parent.iterdir()) == [path]


def test_a_faulty_corpus_leaves_no_token_file(small: Path) -> None:
    (small / "sts-train.csv").write_text(STS_ROWS.replace("2.4", "24"))
    with pytest.raises(CorpusError, match="Got '24'"):
        tokenise(small)
    assert not (small / "cache").exists()


def test_token_arrays_are_views_of_the_mapped_file(small: Path) -> None:
    split = tokenise(small)
    for pieces, offsets in split._pieces:
        assert not pieces.flags.owndata
        assert not pieces.flags.writeable
        assert not offsets.flags.owndata


def test_a_split_pickles_as_its_path(small: Path) -> None:
    split = tokenise(small)
    data = pickle.dumps(split)
    copy = pickle.loads(data)  # noqa: S301 — our own bytes
    assert len(data) < 1000
    assert (copy.path, copy.task, copy.ids, copy.dropped) == (split.path, split.task, split.ids, split.dropped)


def _tokenise_toy(folder: str, cache: str) -> tuple[str, int]:
    split = tokenise_split(Path(folder), STS, "train", load_tokenizer(Path(folder)), Path(cache))
    return str(split.path), int(split.lengths("cross", 128).sum())


def test_two_processes_may_tokenise_at_once(toy: Path, tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        results = pool.starmap(_tokenise_toy, [(str(toy), str(tmp_path / "cache"))] * 2, chunksize=1)
    assert results[0] == results[1]
    assert [str(path) for path in (tmp_path / "cache").iterdir()] == [results[0][0]]


def test_the_test_split_has_its_own_door_and_may_lack_labels(small: Path) -> None:
    (small / "sts-test-student.csv").write_text("\tid\tsentence1\tsentence2\n0\tx\ta b\t\n1\ty\tc\td\n")
    split = tokenise_test_split(small, STS, load_tokenizer(small), small / "cache")
    assert (split.name, split.labels, split.ids) == ("test", None, ["x", "y"])
    batch = pack(split, np.array([0]), "cross", 16, (CLS, SEP))
    assert batch.token_ids_N.tolist() == [CLS, A, B, SEP, SEP]
    assert batch.labels_B.tolist() == [0.0]


# --------------------------------------------------------------------------------------------------------------- pack


def test_a_cross_batch_is_one_sequence_a_pair_with_segments(small: Path) -> None:
    batch = pack(tokenise(small), np.array([1, 0]), "cross", 16, (CLS, SEP))
    assert batch.token_ids_N.tolist() == [CLS, E, SEP, A, DOT, SEP, CLS, A, B, C, SEP, D, E, SEP]
    assert batch.segment_ids_N.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1]
    assert batch.position_ids_N.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 6, 7]
    assert batch.example_N.tolist() == [0] * 6 + [1] * 8
    assert batch.starts_S1.tolist() == [0, 6, 14]
    assert batch.lengths == (6, 8)
    assert batch.labels_B.tolist() == [0.0, pytest.approx(2.4)]
    assert batch.num_examples == 2


def test_a_bi_batch_is_all_first_sentences_then_all_second(small: Path) -> None:
    batch = pack(tokenise(small), np.array([0, 1]), "bi", 16, (CLS, SEP))
    assert batch.token_ids_N.tolist() == [CLS, A, B, C, SEP, CLS, E, SEP, CLS, D, E, SEP, CLS, A, DOT, SEP]
    assert batch.segment_ids_N.tolist() == [0] * 16
    assert batch.example_N.tolist() == [0] * 5 + [1] * 3 + [0] * 4 + [1] * 4
    assert batch.lengths == (5, 3, 4, 4)
    assert batch.starts_S1.tolist() == [0, 5, 8, 12, 16]


@pytest.mark.parametrize("encoding", ["cross", "bi"])
def test_single_sentences_ignore_the_encoding(small: Path, encoding: Encoding) -> None:
    batch = pack(tokenise(small, SST), np.array([0, 1]), encoding, 16, (CLS, SEP))
    assert batch.token_ids_N.tolist() == [CLS, A, B, SEP, CLS, C, SEP]
    assert batch.lengths == (4, 3)
    assert batch.example_N.tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_a_sentence_is_cut_at_its_end(small: Path) -> None:
    batch = pack(tokenise(small), np.array([0]), "bi", 4, (CLS, SEP))
    assert batch.token_ids_N.tolist() == [CLS, A, B, SEP, CLS, D, E, SEP]


def test_the_tensors_have_the_types_that_embeddings_and_losses_take(small: Path) -> None:
    batch = pack(tokenise(small), np.array([0, 1]), "cross", 16, (CLS, SEP)).to("cpu")
    integers = (batch.token_ids_N, batch.position_ids_N, batch.segment_ids_N, batch.starts_S1, batch.example_N)
    assert {tensor.dtype for tensor in integers} == {torch.int64}
    assert batch.labels_B.dtype == torch.float32


@pytest.mark.parametrize("encoding", ["cross", "bi"])
@pytest.mark.parametrize("max_length", [8, 128])
def test_lengths_are_those_of_the_packed_examples(toy: Path, tmp_path: Path, encoding: Encoding, max_length: int) -> None:
    for task in TASKS.values():
        split = tokenise_split(toy, task, "dev", load_tokenizer(toy), tmp_path)
        batch = pack(split, np.arange(len(split)), encoding, max_length, (CLS, SEP))
        packed = np.bincount(batch.example_N.numpy())
        assert split.lengths(encoding, max_length).tolist() == packed.tolist()
        assert max(batch.lengths) <= max_length


def test_the_rows_that_max_length_cuts_are_counted(small: Path) -> None:
    """`a b c | d e` and `e | a .` are 8 and 6 tokens, their longer sequences 5 and 4; `a b` and `c` are 4 and 3."""
    pairs, sentences = tokenise(small), tokenise(small, SST)
    assert [pairs.num_longer("cross", max_length) for max_length in (8, 7, 6, 5)] == [0, 1, 1, 2]
    assert [pairs.num_longer("bi", max_length) for max_length in (5, 4, 3)] == [0, 1, 2]
    assert [sentences.num_longer("cross", max_length) for max_length in (4, 3)] == [0, 1]


def test_texts_in_memory_are_packed_as_those_of_a_file(small: Path) -> None:
    tokenizer = load_tokenizer(small)
    split, texts = tokenise(small), tokenise_texts([("A b c", "d e"), ("e ", "a.")], STS, tokenizer)
    for encoding in ("cross", "bi"):
        theirs, ours = (vars(pack(rows, np.array([1, 0]), encoding, 8, (CLS, SEP))) for rows in (split, texts))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs if name.endswith(("_N", "_S1")))
        assert texts.are_longer(encoding, 4).tolist() == [True, encoding == "cross"]
    assert not ours["labels_B"].any()  # the file's first is 2.4
    assert len(tokenise_texts([], STS, tokenizer)) == 0


def test_texts_in_memory_are_prepared_as_their_task_prepares_its_files(small: Path) -> None:
    """The course lowers its texts; one's own stand as they are."""
    (small / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    own = replace(SST, course_text=None)
    ids = [
        pack(tokenise_texts([("A b",)], task, load_tokenizer(small)), np.array([0]), "cross", 8, (CLS, SEP))
        for task in (SST, own)
    ]
    assert [batch.token_ids_N.tolist() for batch in ids] == [[CLS, A, B, SEP], [CLS, 1, B, SEP]]


def test_most_of_the_courses_reviews_are_longer_than_128_tokens(real_data: Path, real_encoder: Path, tmp_path: Path) -> None:
    split = tokenise_split(real_data, TASKS["cfimdb"], "train", load_tokenizer(real_encoder), tmp_path)
    assert split.num_longer("cross", 128) / len(split) == pytest.approx(0.87, abs=0.005)
    assert split.num_longer("cross", 512) == 1  # of 514


def test_longest_first_shares_the_budget_as_taking_from_the_longer_does() -> None:
    first, second = (grid.ravel() for grid in np.mgrid[0:12, 0:12])
    for budget in range(1, 14):
        kept = tokens.longest_first(first, second, budget)
        for a, b, kept_a, kept_b in zip(first, second, *kept, strict=True):
            equal = a == b
            while a + b > budget:
                a, b = (a - 1, b) if a > b else (a, b - 1)
            assert sorted((kept_a, kept_b)) == sorted((a, b))
            assert not equal or kept_b >= kept_a


def assert_packs_as_the_library(split: TokenisedSplit, texts: list[tuple[str, ...]], file: Path, max_length: int) -> None:
    """Token and segment ids equal those of the tokenizers library's own pairs, truncated by it."""
    backend = tokenizers.Tokenizer.from_file(str(file))
    backend.no_padding()
    backend.enable_truncation(max_length, strategy="longest_first")
    expected = backend.encode_batch([text if len(text) == 2 else text[0] for text in texts])
    batch = pack(
        split, np.arange(len(texts)), "cross", max_length, (backend.token_to_id("[CLS]"), backend.token_to_id("[SEP]"))
    )
    assert batch.lengths == tuple(len(item.ids) for item in expected)
    assert batch.token_ids_N.tolist() == [token for item in expected for token in item.ids]
    assert batch.segment_ids_N.tolist() == [segment for item in expected for segment in item.type_ids]


@pytest.mark.parametrize("max_length", [4, 5, 8, 9, 10, 15, 16, 17, 128])
def test_packed_toy_texts_equal_the_librarys(toy: Path, tmp_path: Path, max_length: int) -> None:
    vocabulary = {piece: number for number, piece in enumerate((toy / "vocab.txt").read_text().split("\n")[:-1])}
    library = tokenizers.BertWordPieceTokenizer(vocabulary)
    library.save(str(tmp_path / "library.json"))
    for task in TASKS.values():
        split = tokenise_split(toy, task, "dev", load_tokenizer(toy), tmp_path / "cache")
        assert_packs_as_the_library(split, read_split(toy, task, "dev").texts, tmp_path / "library.json", max_length)


def test_packed_real_texts_equal_the_librarys(real_data: Path, real_encoder: Path, tmp_path: Path) -> None:
    """Without truncation (512) over as many as 2,000 rows of each task; with, over odd and even budgets."""
    tokenizer = load_tokenizer(real_encoder)
    for task in TASKS.values():
        split = tokenise_split(real_data, task, "dev", tokenizer, tmp_path)
        texts = read_split(real_data, task, "dev").texts
        for max_length, count in ((512, 2000), (5, 500), (12, 500), (13, 500), (31, 500)):
            assert_packs_as_the_library(split, texts[:count], real_encoder / "tokenizer.json", max_length)
