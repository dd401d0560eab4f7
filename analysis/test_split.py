"""The door to the test split: the only module that opens a test file. Only the driver, best_to_test, goes through it.

    frozen selection.json -> a line in the ledger -> each test file -> token files per tokenizer, which the workers read

Every other module reads train and dev only; tests/test_house.py keeps it so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minbert_core.data.corpus import Split, read_every_row
from minbert_core.data.tasks import Task
from minbert_core.data.tokens import TokenisedSplit, Tokenizer, tokenise_file
from minbert_core.files import cache_folder


def open_test_splits(
    tasks: Sequence[Task], folder: Path, tokenizers: Mapping[str, Tokenizer], ledger: Path, entry: Mapping[str, Any]
) -> dict[str, dict[str, TokenisedSplit]]:
    """Append `entry` to the ledger, then open the test file of each task that has one, for each tokenizer.

    tokenizers: encoder -> its tokenizer. Returns encoder -> task -> its test split in the ids of that tokenizer.
    The splits pickle as the paths of their token files, so sending them to workers is cheap.  Raises CorpusError.
    """
    with ledger.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
    cache = cache_folder() / "tokens"
    with_test = [task for task in tasks if "test" in task.files]
    return {
        encoder: {task.name: tokenise_test_split(folder, task, tokenizer, cache) for task in with_test}
        for encoder, tokenizer in tokenizers.items()
    }


def load_test_split(folder: Path, task: Task) -> Split:
    """Read every row of a task's test file; labels are None if the file has none.  Raises CorpusError."""
    return read_every_row(folder / task.files["test"], task, "test")


def tokenise_test_split(folder: Path, task: Task, tokenizer: Tokenizer, cache: Path) -> TokenisedSplit:
    """Open the token file of a task's test split in `cache`; write it first if missing or damaged.  Raises CorpusError."""
    source = folder / task.files["test"]
    return tokenise_file(source, task, "test", tokenizer, cache, lambda: load_test_split(folder, task))
