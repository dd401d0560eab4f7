"""Text to packed tensors: each split is tokenised once into an Arrow file, which every trial memory-maps.

    corpus.Split -> tokenise_split -> TokenisedSplit -> pack -> PackedBatch -> the encoder

The file holds each sentence's word pieces without special tokens, and ends with a CRC-32 of itself. `pack` builds a batch
without padding, with one sequence per pair (cross) or one sequence per sentence (bi).

Legend: B examples, S sequences, N packed tokens. Sequence s is tokens starts[s] to starts[s + 1].
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import tokenizers
import torch
from numpy.typing import NDArray
from tokenizers import models, normalizers, pre_tokenizers

from minbert_core.data.corpus import Dropped, Split, fingerprint, prepare, read_split
from minbert_core.data.packed import PackedBatch
from minbert_core.data.tasks import SplitName, Task
from minbert_core.encoder_files import check_content, read_json, read_text
from minbert_core.files import check_is_file, replaced

Encoding = Literal["cross", "bi"]  # ignored by tasks of single sentences: [CLS] a [SEP]
Integers = NDArray[np.int64]

FORMAT = "2"  # of the Arrow file; raise it if the meaning of its content changes
CHECKED = ".tokens"  # the suffix of an Arrow file that ends with its CRC-32
CRC_BYTES = 4


# ---------------------------------------------------------------------------------------------------------- the tokenizer


class Tokenizer:
    """A tokenizer of the `tokenizers` library that converts text to word pieces.

    `fingerprint` is the sha256 of its files. `vocab_size` is the largest id + 1, the number of rows that word embeddings need.
    """

    def __init__(self, backend: Any, fingerprint: str) -> None:
        backend.no_truncation()  # a file may enable both; MiniLM's truncates and pads to 128
        backend.no_padding()
        self._backend = backend
        self.fingerprint = fingerprint
        # not the number of tokens: there may be unused ids before those of added tokens
        self.vocab_size: int = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self.cls_id: int = backend.token_to_id("[CLS]")
        self.sep_id: int = backend.token_to_id("[SEP]")
        self.mask_id: int | None = backend.token_to_id("[MASK]")

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return the piece ids of each text, without special tokens, truncation or padding."""
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def backend(self) -> Any:
        """Return a copy of the library's tokenizer, to be changed and saved elsewhere."""
        return tokenizers.Tokenizer.from_str(self._backend.to_str())

    def vocabulary(self) -> list[str]:
        """List the pieces in the order of their ids."""
        return [self._backend.id_to_token(i) or "" for i in range(self.vocab_size)]


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer of a checkpoint folder: tokenizer.json, or else BERT's WordPiece with vocab.txt.

    Raises ValueError: both are missing, a file is empty or not a BERT tokenizer, tokenizer_config.json contradicts it.
    """
    whole, vocabulary, config = (folder / name for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"))
    if whole.is_file():
        files = [whole]
        check_content(whole)
        content = whole.read_bytes()
        try:
            backend = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # noqa: BLE001 — the library raises plain Exception
            raise ValueError(f"{whole} is not a tokenizer that the tokenizers library reads: {error}.") from None
        _check_case(backend, whole, config)
    elif vocabulary.is_file():
        files = [vocabulary, *([config] if config.is_file() else [])]
        backend = _word_piece(vocabulary, _options(config))
    else:
        raise ValueError(f"No tokenizer in {folder}: it must hold tokenizer.json or vocab.txt.")
    absent = [token for token in ("[CLS]", "[SEP]") if backend.token_to_id(token) is None]
    if absent:
        raise ValueError(f"{files[0]} must be a BERT vocabulary, with [CLS] and [SEP]. It has no {absent[0]}.")
    digest = hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()
    return Tokenizer(backend, digest)


def _options(path: Path) -> dict[str, bool]:
    """Read the options of `_OPTIONS` that a tokenizer_config.json sets; {} if the file does not exist."""
    if not path.is_file():
        return {}
    config = read_json(path)
    written = {name: config[name] for name in _OPTIONS if config.get(name) is not None}
    for name, value in written.items():
        if not isinstance(value, bool):
            raise ValueError(f"{path}: `{name}` must be true or false. Got {json.dumps(value)}.")
    return written


_OPTIONS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")


def _check_case(backend: tokenizers.Tokenizer, whole: Path, config: Path) -> None:
    """Raise ValueError if the two files disagree about case: transformers follows tokenizer_config.json, we do not."""
    wanted = _options(config).get("do_lower_case")
    if not isinstance(backend.normalizer, normalizers.BertNormalizer):
        return
    if wanted not in (None, lower := backend.normalizer.lowercase):
        raise ValueError(
            f"{whole} and {config.name} disagree: `lowercase` is {json.dumps(lower)} in the former, `do_lower_case` is "
            f"{json.dumps(wanted)} in the latter. Write the value that the encoder was trained with into both."
        )


def _word_piece(vocabulary: Path, options: dict[str, bool]) -> tokenizers.Tokenizer:
    """Build BERT's WordPiece tokenizer. The id of a piece is its line; the defaults are those of the uncased models."""
    lines = read_text(vocabulary).removesuffix("\n").split("\n")  # not splitlines: pieces may be U+2028
    ids = {piece: number for number, piece in enumerate(lines)}
    if "[UNK]" not in ids:
        raise ValueError(f"{vocabulary} must be a BERT vocabulary, with [UNK]. It has none.")
    backend = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=options.get("tokenize_chinese_chars", True),
        strip_accents=options.get("strip_accents"),
        lowercase=options.get("do_lower_case", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens([token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if token in ids])
    return backend


# ----------------------------------------------------------------------------------------------------- tokenised texts


class TokenisedTexts:
    """The word pieces of a task's examples, in memory or in a file, and their labels if they have any; the input of `pack`.

    pieces: one (ids, offsets) per sentence of an example. `ids` concatenates the piece ids of all examples; those of example i
    are ids[offsets[i] : offsets[i + 1]].
    """

    def __init__(self, task: Task, pieces: list[tuple[Integers, Integers]], labels: NDArray[np.float64] | None) -> None:
        self.task, self._pieces, self.labels = task, pieces, labels

    def __len__(self) -> int:
        return len(self._pieces[0][1]) - 1

    @property
    def pieces(self) -> list[Integers]:
        """The piece ids of all examples, concatenated: one array per sentence of an example."""
        return [ids for ids, _ in self._pieces]

    def sentences(self) -> list[list[Integers]]:
        """Split the piece ids by example: one list per sentence of an example."""
        return [[ids[a:b] for a, b in pairwise(offsets.tolist())] for ids, offsets in self._pieces]

    def lengths(self, encoding: Encoding, max_length: int) -> Integers:
        """Count each example's tokens when packed: after truncation, with special tokens, both sentences of a pair together."""
        counts = self._counts(np.arange(len(self)), encoding, max_length)
        specials = 2 if not self.task.is_pair else 3 if encoding == "cross" else 4
        return np.asarray(sum(counts) + specials)

    def num_longer(self, encoding: Encoding, max_length: int) -> int:
        """Count the examples that `pack` truncates."""
        return int(np.count_nonzero(self.are_longer(encoding, max_length)))

    def are_longer(self, encoding: Encoding, max_length: int) -> NDArray[np.bool_]:
        """Mark each example that `pack` truncates, because a sequence exceeds `max_length` tokens with special tokens."""
        rows = np.arange(len(self))
        return np.asarray(sum(self._whole_counts(rows)) > sum(self._counts(rows, encoding, max_length)))

    def _whole_counts(self, rows: Integers) -> list[Integers]:
        """Count the pieces of each sentence: one array (B,) per sentence of an example."""
        return [(offsets[rows + 1] - offsets[rows]).astype(np.int64) for _, offsets in self._pieces]

    def _counts(self, rows: Integers, encoding: Encoding, max_length: int) -> list[Integers]:
        """Count the pieces of each sentence after truncation: one array (B,) per sentence of an example."""
        counts = self._whole_counts(rows)
        if self.task.is_pair and encoding == "cross":
            return longest_first(counts[0], counts[1], max_length - 3)
        return [np.minimum(count, max_length - 2) for count in counts]


def longest_first(first: Integers, second: Integers, budget: int | Integers) -> list[Integers]:
    """Return how many pieces of two sentences fit into `budget`, as with "longest_first" of the tokenizers library.

    This equals removing one piece at a time from the longer sentence. With an odd budget the longer one, or the second if both
    are equal, keeps one more.
    """
    short = np.minimum(first, second)
    long = np.minimum(np.maximum(first, second), np.maximum(short, budget - short))
    both_cut = short + long > budget
    short, long = np.where(both_cut, budget // 2, short), np.where(both_cut, budget - budget // 2, long)
    swapped = first > second
    return [np.where(swapped, long, short), np.where(swapped, short, long)]


def tokenise_texts(texts: Sequence[tuple[str, ...]], task: Task, tokenizer: Tokenizer) -> TokenisedTexts:
    """Tokenise examples in memory, without labels; texts are prepared as those in the task's files."""
    columns = [tokenizer.encode([prepare(example[i], task) for example in texts]) for i in range(len(task.text_columns))]
    pieces = [
        (np.array([*chain.from_iterable(column)], np.int64), np.array([0, *accumulate(map(len, column))])) for column in columns
    ]
    return TokenisedTexts(task, pieces, None)


# ------------------------------------------------------------------------------------------------- a split as Arrow file


class TokenisedSplit(TokenisedTexts):
    """A split in a memory-mapped Arrow file: columns id, first, second (pairs only), label. It is pickled as its path.

    Raises ValueError if the file is damaged, OSError if it cannot be read.
    """

    def __init__(self, path: Path, task: Task) -> None:
        self.path, self.task = path, task
        with pa.ipc.open_file(_checked(path)) as reader:
            metadata = reader.schema.metadata or {}
            batch = reader.get_batch(0)
        if metadata.get(b"format") != FORMAT.encode() or metadata.get(b"rows") != str(batch.num_rows).encode():
            raise ValueError(f"{path} is not a token file of format {FORMAT}.")
        batch.validate(full=True)
        self.name, self.source = metadata[b"split"].decode(), metadata[b"source"].decode()
        self.dropped = [Dropped(**item) for item in json.loads(metadata[b"dropped"])]
        self.notes: list[str] = json.loads(metadata[b"notes"])
        self._hold(batch)

    def _hold(self, batch: Any) -> None:
        self._batch = batch
        columns = ("first", "second") if self.task.is_pair else ("first",)
        pieces = [(batch.column(c).values.to_numpy(), batch.column(c).offsets.to_numpy()) for c in columns]  # views
        label = batch.column("label")
        super().__init__(self.task, pieces, None if label.null_count else label.to_numpy())

    def only(self, rows: Integers) -> TokenisedSplit:
        """Select `rows`, in this order, in memory.  Do not pickle the result: unpickling gives the whole split."""
        part = TokenisedSplit(self.path, self.task)
        part._hold(self._batch.take(pa.array(rows)))
        return part

    def __reduce__(self) -> tuple[type[TokenisedSplit], tuple[Path, Task]]:
        return TokenisedSplit, (self.path, self.task)

    @cached_property
    def ids(self) -> list[str]:
        return list(self._batch.column("id").to_pylist())


def joined(first: TokenisedSplit, second: TokenisedSplit) -> TokenisedSplit:
    """Join two splits of a task, in memory.  Do not pickle the result: unpickling gives the first split."""
    whole = TokenisedSplit(first.path, first.task)
    whole._hold(pa.Table.from_batches([first._batch, second._batch]).combine_chunks().to_batches()[0])
    whole.name, whole.source = f"{first.name}+{second.name}", f"{first.source} and {second.source}"
    whole.dropped, whole.notes = [*first.dropped, *second.dropped], [*first.notes, *second.notes]
    return whole


def _checked(path: Path) -> pa.Buffer:
    """Map a token file into memory and return it without its CRC-32.  Raises ValueError if it does not match, and OSError."""
    check_is_file(path)
    with pa.memory_map(str(path)) as file:
        content = file.read_buffer(max(0, file.size() - CRC_BYTES))
        if zlib.crc32(content).to_bytes(CRC_BYTES) != file.read_buffer():  # 0.4 ms per MB (2026-11)
            raise ValueError(f"{path} is damaged: its content does not match its checksum.")
    return content


def tokenise_split(folder: Path, task: Task, split: SplitName, tokenizer: Tokenizer, cache: Path) -> TokenisedSplit:
    """Open the split's token file in `cache`; if it is missing or damaged, write it first.  Raises CorpusError."""
    return tokenise_file(folder / task.file(split), task, split, tokenizer, cache, lambda: read_split(folder, task, split))


def tokenise_file(
    source: Path, task: Task, name: str, tokenizer: Tokenizer, cache: Path, read: Callable[[], Split]
) -> TokenisedSplit:
    """Open the token file of `source` in `cache`. If it is missing, or damaged, which a line reports, write it first.

    read: reads the split to write.
    name: the split's, which the token file's name contains.  Raises CorpusError.
    """
    key = _key(fingerprint(source, task), task, tokenizer)
    path = cache / f"{task.name}-{name}-{key}{CHECKED}"
    try:
        return TokenisedSplit(path, task)
    except FileNotFoundError:
        pass
    except ValueError as error:
        print(f"{error} It is written again.")
    _write(read(), tokenizer, path)
    return TokenisedSplit(path, task)


def _key(file_fingerprint: str, task: Task, tokenizer: Tokenizer) -> str:
    parts = [FORMAT, file_fingerprint, tokenizer.fingerprint, json.dumps(asdict(task), sort_keys=True)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _write(split: Split, tokenizer: Tokenizer, path: Path) -> None:
    """Write a split's token file. Several processes may do so at the same time; a reader sees a complete file or none."""
    columns = {"id": pa.array(split.ids, pa.string())}
    for position, name in enumerate(("first", "second")[: len(split.task.text_columns)]):
        pieces = tokenizer.encode([texts[position] for texts in split.texts])
        columns[name] = pa.array(pieces, pa.list_(pa.int32()))
    columns["label"] = pa.nulls(len(split.ids), pa.float64()) if split.labels is None else pa.array(split.labels, pa.float64())
    metadata = {
        "format": FORMAT,
        "rows": str(len(split.ids)),
        "split": split.name,
        "source": split.path.name,
        "dropped": json.dumps([asdict(item) for item in split.dropped]),
        "notes": json.dumps(split.notes),
    }
    batch = pa.record_batch(list(columns.values()), names=list(columns)).replace_schema_metadata(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path, many_writers=True) as draft:
        with draft.open("wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)  # one batch: each column is one array, of which views need no copy
        with draft.open("r+b") as file:
            crc = zlib.crc32(file.read())
            file.write(crc.to_bytes(CRC_BYTES))


# ---------------------------------------------------------------------------------------------------------------- a batch


def pack(
    split: TokenisedTexts, rows: Integers, encoding: Encoding, max_length: int, tokenizer_specials: tuple[int, int]
) -> PackedBatch:
    """Pack the examples `rows` of a split into one batch; a sequence has at most `max_length` tokens, with special tokens.

    cross: `[CLS] a [SEP] b [SEP]`, truncated longest-first. bi and single sentences: `[CLS] a [SEP]`, truncated at the end.
    tokenizer_specials: the ids of [CLS] and [SEP]. The code is vectorised: no Python per token.
    """
    rows = np.asarray(rows, np.int64)
    assert np.all((rows >= 0) & (rows < len(split))), f"rows must be in [0, {len(split)})"
    assert max_length > 3, "no room for pieces between the special tokens"
    cls_id, sep_id = tokenizer_specials
    counts = split._counts(rows, encoding, max_length)
    sources = [offsets[rows].astype(np.int64) for _, offsets in split._pieces]
    cross = split.task.is_pair and encoding == "cross"
    lengths = counts[0] + counts[1] + 3 if cross else np.concatenate(counts) + 2
    starts = np.concatenate([[0], np.cumsum(lengths)])
    firsts = starts[:-1]
    token_ids = np.empty(starts[-1], np.int64)
    token_ids[firsts] = cls_id
    token_ids[starts[1:] - 1] = sep_id
    if cross:
        middles = firsts + counts[0] + 1  # the [SEP] between the two
        token_ids[middles] = sep_id
        targets = [firsts + 1, middles + 1]
    else:
        targets = np.split(firsts + 1, len(counts))
    for (pieces, _), source, count, target in zip(split._pieces, sources, counts, targets, strict=True):
        token_ids[_ranges(target, count)] = pieces[_ranges(source, count)]
    positions = np.arange(starts[-1]) - np.repeat(firsts, lengths)
    segments = (positions > np.repeat(middles - firsts, lengths)).astype(np.int64) if cross else np.zeros_like(positions)
    examples = np.repeat(np.tile(np.arange(len(rows)), len(lengths) // len(rows)), lengths)
    labels = np.zeros(len(rows)) if split.labels is None else split.labels[rows]
    return PackedBatch(
        token_ids_N=torch.from_numpy(token_ids),
        position_ids_N=torch.from_numpy(positions),
        segment_ids_N=torch.from_numpy(segments),
        starts_S1=torch.from_numpy(starts),
        lengths=tuple(lengths.tolist()),
        example_N=torch.from_numpy(examples),
        labels_B=torch.from_numpy(labels.astype(np.float32)),
        num_examples=len(rows),
    )


def pack_parts(
    split: TokenisedTexts,
    rows: Integers,
    encoding: Encoding,
    max_length: int,
    tokenizer_specials: tuple[int, int],
    limit: int | None,
) -> list[PackedBatch]:
    """Pack the rows as `pack` does, into several batches if one would exceed `limit` tokens (None: no limit)."""
    batch = pack(split, rows, encoding, max_length, tokenizer_specials)
    if limit is None or sum(batch.lengths) <= limit:
        return [batch]
    tokens_B = np.reshape(batch.lengths, (-1, len(rows))).sum(axis=0)  # a bi-encoder has two sequences per example
    parts = np.split(rows, cuts(tokens_B.tolist(), limit))
    return [pack(split, part, encoding, max_length, tokenizer_specials) for part in parts]


def cuts(tokens: list[int], limit: int) -> list[int]:
    """Return the indices at which to cut a batch into parts of at most `limit` tokens; `tokens` are those of each example.

    An example is never cut: one with more than `limit` tokens is a part by itself.
    """
    indices, filled = [], 0
    for i, count in enumerate(tokens):
        if filled and filled + count > limit:
            indices.append(i)
            filled = 0
        filled += count
    return indices


def _ranges(starts: Integers, counts: Integers) -> Integers:
    """Concatenate the ranges starts[i], ..., starts[i] + counts[i] - 1 of every i."""
    before = np.cumsum(counts) - counts
    indices: Integers = np.arange(counts.sum()) + np.repeat(starts - before, counts)
    return indices
