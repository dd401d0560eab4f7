"""Text to packed tensors: each split is tokenised once into an Arrow file that every trial memory-maps.

The file holds each sentence's word pieces without special tokens; `pack` puts a batch together, real tokens only, as pairs
in one sequence (cross) or one sequence a sentence (bi). Stands between corpus.py and the encoder.

Legend: B examples, S sequences, N packed tokens. Sequence s is tokens starts[s] to starts[s + 1].
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
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
from torch import Tensor

from minbert_core.data.corpus import Dropped, Split, fingerprint, prepare, read_split
from minbert_core.data.tasks import SplitName, Task
from minbert_core.encoder_files import check_content, read_json, read_text

Encoding = Literal["cross", "bi"]  # tasks of single sentences ignore it: [CLS] a [SEP]
Integers = NDArray[np.int64]

FORMAT = "2"  # of the Arrow file; raise it when its content changes meaning


# ---------------------------------------------------------------------------------------------------------- the tokenizer


class Tokenizer:
    """Text to word pieces, through the `tokenizers` library. `fingerprint` is the sha256 of the files it was read from.

    `vocab_size` is the largest id + 1: the rows that word embeddings must have.
    """

    def __init__(self, backend: Any, fingerprint: str) -> None:
        backend.no_truncation()  # a file may carry both: MiniLM's cuts and pads to 128
        backend.no_padding()
        self._backend = backend
        self.fingerprint = fingerprint
        # not the number of tokens: the ids of added ones may have gaps before them
        self.vocab_size: int = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self.cls_id: int = backend.token_to_id("[CLS]")
        self.sep_id: int = backend.token_to_id("[SEP]")
        self.mask_id: int | None = backend.token_to_id("[MASK]")

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The piece ids of each text, no special tokens, neither cut nor padded."""
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def vocabulary(self) -> list[str]:
        """The pieces in the order of their ids."""
        return [self._backend.id_to_token(i) or "" for i in range(self.vocab_size)]


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer of a checkpoint folder: tokenizer.json, else BERT's WordPiece over vocab.txt.

    Raises ValueError: neither is there, a file is empty or no BERT tokenizer, tokenizer_config.json says otherwise.
    """
    whole, vocabulary, config = (folder / name for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"))
    if whole.is_file():
        files = [whole]
        check_content(whole)
        content = whole.read_bytes()
        try:
            backend = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # noqa: BLE001 — the library raises nothing narrower
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
    """Read the options in `_OPTIONS` that a tokenizer_config.json sets; none if there is no such file."""
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
    """Raise ValueError where transformers would follow another file than we do: it lets tokenizer_config.json decide."""
    said = _options(config).get("do_lower_case")
    if isinstance(backend.normalizer, normalizers.BertNormalizer) and said not in (None, done := backend.normalizer.lowercase):
        raise ValueError(
            f"{whole} and {config.name} disagree: `lowercase` is {json.dumps(done)} in the former, `do_lower_case` is "
            f"{json.dumps(said)} in the latter. Keep the one the encoder was trained with in both."
        )


def _word_piece(vocabulary: Path, options: dict[str, bool]) -> tokenizers.Tokenizer:
    """BERT's WordPiece: the id of a piece is its line, the defaults are those of the uncased models."""
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
    """The word pieces of a task's examples, in memory or in a file, and their labels where they have some: what `pack` reads.

    `pieces` are (ids, offsets), once for each sentence of an example: the ids of all examples one after the other, those of
    example i from offsets[i] to offsets[i + 1].
    """

    def __init__(self, task: Task, pieces: list[tuple[Integers, Integers]], labels: NDArray[np.float64] | None) -> None:
        self.task, self._pieces, self.labels = task, pieces, labels

    def __len__(self) -> int:
        return len(self._pieces[0][1]) - 1

    @property
    def pieces(self) -> list[Integers]:
        """The piece ids of all examples, one after the other: one array a sentence."""
        return [ids for ids, _ in self._pieces]

    def sentences(self) -> list[list[Integers]]:
        """The piece ids of each example: a list a sentence."""
        return [[ids[a:b] for a, b in pairwise(offsets.tolist())] for ids, offsets in self._pieces]

    def lengths(self, encoding: Encoding, max_length: int) -> Integers:
        """Tokens of each example when packed: special tokens included, after truncation, both sentences of a pair."""
        counts = self._counts(np.arange(len(self)), encoding, max_length)
        specials = 2 if not self.task.is_pair else 3 if encoding == "cross" else 4
        return np.asarray(sum(counts) + specials)

    def num_longer(self, encoding: Encoding, max_length: int) -> int:
        """How many examples `pack` cuts."""
        return int(np.count_nonzero(self.are_longer(encoding, max_length)))

    def are_longer(self, encoding: Encoding, max_length: int) -> NDArray[np.bool_]:
        """Whether `pack` cuts each example: a sequence of its has more than `max_length` tokens, special tokens included."""
        rows = np.arange(len(self))
        return np.asarray(sum(self._whole_counts(rows)) > sum(self._counts(rows, encoding, max_length)))

    def _whole_counts(self, rows: Integers) -> list[Integers]:
        """Pieces of each sentence of each example: one array (B,) a sentence."""
        return [(offsets[rows + 1] - offsets[rows]).astype(np.int64) for _, offsets in self._pieces]

    def _counts(self, rows: Integers, encoding: Encoding, max_length: int) -> list[Integers]:
        """Pieces kept of each sentence of each example: one array (B,) a sentence."""
        counts = self._whole_counts(rows)
        if self.task.is_pair and encoding == "cross":
            return longest_first(counts[0], counts[1], max_length - 3)
        return [np.minimum(count, max_length - 2) for count in counts]


def longest_first(first: Integers, second: Integers, budget: int | Integers) -> list[Integers]:
    """The pieces that two sentences keep of `budget`, as the tokenizers library's "longest_first" shares them.

    Equals taking one piece at a time from the longer; of an odd budget the longer (if equal, the second) has one more.
    """
    short = np.minimum(first, second)
    long = np.minimum(np.maximum(first, second), np.maximum(short, budget - short))
    both_cut = short + long > budget
    short, long = np.where(both_cut, budget // 2, short), np.where(both_cut, budget - budget // 2, long)
    swapped = first > second
    return [np.where(swapped, long, short), np.where(swapped, short, long)]


def tokenise_texts(texts: Sequence[tuple[str, ...]], task: Task, tokenizer: Tokenizer) -> TokenisedTexts:
    """Examples in memory, without labels, their texts prepared as the task's files' are."""
    columns = [tokenizer.encode([prepare(example[i], task) for example in texts]) for i in range(len(task.text_columns))]
    pieces = [
        (np.array([*chain.from_iterable(column)], np.int64), np.array([0, *accumulate(map(len, column))])) for column in columns
    ]
    return TokenisedTexts(task, pieces, None)


# ------------------------------------------------------------------------------------------------- a split as Arrow file


class TokenisedSplit(TokenisedTexts):
    """One split in a memory-mapped Arrow file: columns id, first, second (pairs only), label. Pickles as its path.

    Raises ValueError or OSError where the file is not whole.
    """

    def __init__(self, path: Path, task: Task) -> None:
        self.path, self.task = path, task
        with pa.ipc.open_file(pa.memory_map(str(path))) as reader:
            metadata = reader.schema.metadata or {}
            batch = reader.get_batch(0)
        if metadata.get(b"format") != FORMAT.encode() or metadata.get(b"rows") != str(batch.num_rows).encode():
            raise ValueError(f"{path} is no token file of format {FORMAT}.")
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
        """These rows alone, in this order, in memory.  Not to be pickled: what arrives would be the whole split."""
        part = TokenisedSplit(self.path, self.task)
        part._hold(self._batch.take(pa.array(rows)))
        return part

    def __reduce__(self) -> tuple[type[TokenisedSplit], tuple[Path, Task]]:
        return TokenisedSplit, (self.path, self.task)

    @cached_property
    def ids(self) -> list[str]:
        return list(self._batch.column("id").to_pylist())


def tokenise_split(folder: Path, task: Task, split: SplitName, tokenizer: Tokenizer, cache: Path) -> TokenisedSplit:
    """The split's token file in `cache`, written first where it is missing or damaged.  Raises CorpusError."""
    return tokenise_file(folder / task.file(split), task, split, tokenizer, cache, lambda: read_split(folder, task, split))


def tokenise_file(
    source: Path, task: Task, name: str, tokenizer: Tokenizer, cache: Path, read: Callable[[], Split]
) -> TokenisedSplit:
    """Open the token file of `source` in `cache`. If it is missing or damaged, first write what `read` returns.

    name: the split's, which the token file's name contains.  Raises CorpusError.
    """
    key = _key(fingerprint(source, task), task, tokenizer)
    path = cache / f"{task.name}-{name}-{key}.arrow"
    try:
        return TokenisedSplit(path, task)
    except (OSError, ValueError, KeyError):  # not there, or cut short by a full disk or a copy: the corpus is still there
        _write(read(), tokenizer, path)
        return TokenisedSplit(path, task)


def _key(file_fingerprint: str, task: Task, tokenizer: Tokenizer) -> str:
    parts = [FORMAT, file_fingerprint, tokenizer.fingerprint, json.dumps(asdict(task), sort_keys=True)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _write(split: Split, tokenizer: Tokenizer, path: Path) -> None:
    """Atomic: two processes may write the same file at once, a reader sees a whole one or none."""
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
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)  # one batch, so that a column is one array and a view of it needs no copy
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------------- a batch


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """B examples as S sequences of real tokens, one after the other: N tokens, no padding.

    bi: S = 2B, the first sentence of every example, then the second of every example, segment 0. Else S = B.
    """

    token_ids_N: Tensor  # int64
    position_ids_N: Tensor  # int64, from 0 in each sequence
    segment_ids_N: Tensor  # int64, 1 on the second sentence of a cross pair and its [SEP]
    starts_S1: Tensor  # int64, (S + 1,), first 0, last N
    lengths: tuple[int, ...]  # of the S sequences, on the host
    example_N: Tensor  # int64, the example (0 to B - 1) that a token belongs to
    labels_B: Tensor  # float32; zeros where the split has none
    num_examples: int  # B

    def to(self, device: torch.device | str) -> PackedBatch:
        moved: dict[str, Any] = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)


def pack(
    split: TokenisedTexts, rows: Integers, encoding: Encoding, max_length: int, tokenizer_specials: tuple[int, int]
) -> PackedBatch:
    """The examples `rows` of a split as one packed batch, each sequence at most `max_length` tokens, special tokens included.

    cross: `[CLS] a [SEP] b [SEP]`, cut longest-first. bi and single sentences: `[CLS] a [SEP]`, cut at the end.
    `tokenizer_specials` are the ids of [CLS] and [SEP]. Vectorised: no Python per token.
    """
    rows = np.asarray(rows, np.int64)
    assert np.all((rows >= 0) & (rows < len(split))), f"rows must lie in [0, {len(split)})"
    assert max_length > 3, "no room beside the special tokens"
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
    """As `pack`; in parts of at most `limit` tokens each where the rows are more than that (None: no limit)."""
    batch = pack(split, rows, encoding, max_length, tokenizer_specials)
    if limit is None or sum(batch.lengths) <= limit:
        return [batch]
    tokens_B = np.reshape(batch.lengths, (-1, len(rows))).sum(axis=0)  # two sequences an example under a bi-encoder
    parts = np.split(rows, cuts(tokens_B.tolist(), limit))
    return [pack(split, part, encoding, max_length, tokenizer_specials) for part in parts]


def cuts(tokens: list[int], limit: int) -> list[int]:
    """Where to cut a batch into parts of at most `limit` tokens each, given the tokens of its examples; none is cut itself."""
    found, filled = [], 0
    for i, count in enumerate(tokens):
        if filled and filled + count > limit:
            found.append(i)
            filled = 0
        filled += count
    return found


def _ranges(starts: Integers, counts: Integers) -> Integers:
    """The indices starts[i], ..., starts[i] + counts[i] - 1 of every i, one after the other."""
    before = np.cumsum(counts) - counts
    indices: Integers = np.arange(counts.sum()) + np.repeat(starts - before, counts)
    return indices
