"""The check that a node sees the folders of a search: a file written here is read there, and answered.

Shared -> word in runs/ and in the cache -> see, a task on the node: reads the word, writes its answer -> Shared.fault_of
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.cluster.nodes import Facts, Node, look_around, pinned

ANSWER_SECONDS = 10.0  # for a file written on a node to be seen here; NFS clients keep what they know of a folder for seconds
REMEDY = "Choose one on a disk that all nodes see."
Sizes = Mapping[str, int]  # a file's name -> its bytes


@dataclass(frozen=True)
class Question:
    """A question to a node about folders: those to write to, which hold the word, and those to read."""

    word: str
    written: Mapping[str, str]  # a folder of ours in it -> what it is in, in words
    read: Mapping[str, tuple[str, Sizes]]  # a folder -> what it is, and its files as they are here


@dataclass(frozen=True)
class Unseen:
    """Something that a node does not see, as the end of a sentence about it."""

    what: str


def see(question: Question, answer: str) -> Facts | Unseen:
    """Return the facts of the machine that this runs on, or what it does not see. `answer` is the name of the file to write."""
    for folder, what in question.written.items():
        path = Path(folder)
        try:
            if (path / "word").read_text(encoding="utf-8") != question.word:
                return Unseen(f"sees another folder at {path.parent} than this machine ({what})")
            (path / answer).touch()
        except FileNotFoundError:
            return Unseen(f"does not see {path.parent} ({what})")
        except OSError as error:
            return Unseen(f"cannot write to {path.parent} ({what}): {error.strerror}")
    for folder, (what, files) in question.read.items():
        if not Path(folder).is_dir():
            return Unseen(f"does not see {folder} ({what})")
        here = sizes(Path(folder))
        if differing := [name for name, size in files.items() if here.get(name) != size]:
            return Unseen(f"sees other files than this machine in {folder} ({what}): {', '.join(sorted(differing)[:3])}")
    return look_around()


def sizes(folder: Path) -> dict[str, int]:
    """Return the files of a folder and their sizes."""
    return {entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.is_file()}


class Shared:
    """The folders that all nodes of a search have to see, with a word in each that is written to."""

    def __init__(self, written: Mapping[Path, str], read: Mapping[Path, str], remedy: str) -> None:
        """written, read: a folder -> what it is, in words. remedy: for a folder that a node does not see."""
        self.remedy = remedy
        self.word = secrets.token_hex(8)
        self.places = {Path(tempfile.mkdtemp(prefix=".nodes-", dir=folder)): what for folder, what in written.items()}
        for place in self.places:
            (place / "word").write_text(self.word, encoding="utf-8")
        read_here = {str(folder): (what, sizes(folder)) for folder, what in read.items()}
        self.question = Question(self.word, {str(place): what for place, what in self.places.items()}, read_here)

    def ask(self, node: Node) -> Any:
        """Start the look of a node, and return Ray's reference to what it sees."""
        return pinned(see, node.id)(self.question, node.id)

    def fault_of(self, node: Node, seen: Facts | Unseen) -> str:
        """Return the sentence about a node that does not see a folder; empty if it sees all, and its answers are seen here."""
        if isinstance(seen, Unseen):
            return f"Node {node.name} {seen.what}."
        deadline = time.monotonic() + ANSWER_SECONDS
        for place, what in self.places.items():
            while not (place / node.id).exists():
                if time.monotonic() > deadline:
                    return f"Node {node.name} writes to another folder at {place.parent} than this machine ({what})."
                time.sleep(0.2)
        return ""

    def close(self) -> None:
        for place in self.places:
            shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def shared(written: Mapping[Path, str], read: Mapping[Path, str], remedy: str = REMEDY) -> Iterator[Shared]:
    """Prepare the check of these folders, for nodes that are there and for those that join within the block."""
    for folder in written:
        folder.mkdir(parents=True, exist_ok=True)
    folders = Shared(written, read, remedy)
    try:
        yield folders
    finally:
        folders.close()


def folders_of(runs: Path, cache: Path, data: Path, encoders: Iterable[Path]) -> tuple[dict[Path, str], dict[Path, str]]:
    """Return the folders of a search that are written to and those that are read, with what they are."""
    read = {data: "the data"} | dict.fromkeys(encoders, "the encoder")
    written = {runs: "the runs", cache: "the cache of token files"}
    return written, {folder: what for folder, what in read.items() if not folder.is_relative_to(cache)}
