"""Faults of a search whose nodes share no disk: all goes through a storage, here a folder that no node sees as a path."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.faults.case import Case
from benchmarks.faults.clusters import ON_GPUS, SPACE
from benchmarks.faults.harness import NAME, Lab, Search, check_whole, require
from benchmarks.faults.nodes import Cluster, cluster
from minbert_core.checkpoints import save_encoder
from minbert_core.data.tokens import load_tokenizer
from minbert_core.data.toy import toy_folder
from minbert_core.encoder import TINY, new_encoder


@contextlib.contextmanager
def _blind(search: Search, lab: Lab, num_nodes: int) -> Iterator[tuple[Cluster, list[str], tuple[str, ...]]]:
    """Run nodes that see neither runs, data, encoder nor the driver's cache. Yield them, their names, the search's options."""
    data, encoder, runs = search.here / "data", search.here / "encoder", search.here / "runs"
    _own_corpus(lab, data, encoder)
    runs.mkdir()
    hidden = " && ".join(f"mount -t tmpfs none {folder}" for folder in (runs, data, encoder, lab.cache))
    with cluster(0) as nodes:
        names = [nodes.start(before=f"{hidden} && export XDG_CACHE_HOME={nodes.place}/cache{i}") for i in range(num_nodes)]
        own = "--data", str(data), "--encoder", str(encoder), "--storage", f"file://{search.here / 'bucket'}"
        yield nodes, names, ("--space", f"{NAME}.yaml", "--address", nodes.address, *ON_GPUS, *own)


def node_killed(search: Search, lab: Lab) -> str:
    """Search on three nodes that see only a storage of the driver's, and kill one in the middle of a trial."""
    with _blind(search, lab, 3) as (nodes, names, options):
        search.start(*options)
        search.until(lambda: _evaluated(search, nodes, names[-1]), "an evaluation on the node", timeout_seconds=400)
        nodes.kill(names[-1])
        _ends(search)
        require("has left the cluster" in search.text, f"no line about it:\n{search.text[-2000:]}")
        require(not any(trial.deaths for trial in search.trials()), "the trial was blamed")
        resumed = re.findall(r"resumes after (\d+) examples", "".join(_logs(search)))
        require(any(int(examples) for examples in resumed), "no trial continued from its snapshot")
        _check_ended(search)
        require(not list(nodes.place.glob(f"cache[0{len(names) - 2}]/minbert/scratch/*/trials/*")), "scratch folders are left")
    again = examples_again(_logs(search))
    return f"its trial continued from the storage, unblamed; {again:,} examples and {search.retrained()} records made again"


def interrupted(search: Search, lab: Lab) -> str:
    """Press Ctrl-C while two nodes train, and resume."""
    with _blind(search, lab, 2) as (nodes, names, options):
        search.start(*options)
        search.until(lambda: all(_evaluated(search, nodes, name) for name in names), "training", timeout_seconds=400)
        search.kill(signal.SIGINT)
        began = time.monotonic()
        _ends(search, 130)
        seconds = time.monotonic() - began
        search.start("--resume", NAME, "--address", nodes.address, *ON_GPUS)
        _ends(search)
        _check_ended(search)
    again = examples_again(_logs(search))
    require(not again, f"{again:,} examples were trained again")
    return f"exit 130 after {seconds:.1f} s; resumed, nothing made again"


def storage_away(search: Search, lab: Lab) -> str:
    """Take the storage away while a trial trains, and resume once it is back."""
    bucket, away = search.here / "bucket", search.here / "away"
    with _blind(search, lab, 1) as (nodes, [name], options):
        search.start(*options)
        search.until(lambda: _evaluated(search, nodes, name), "training", timeout_seconds=400)
        bucket.rename(away)
        bucket.touch()  # what is written there fails
        began = time.monotonic()
        _ends(search, 3)
        seconds = time.monotonic() - began
        bucket.unlink()
        away.rename(bucket)
        sentence = next(line for line in search.text.splitlines() if "The search is paused" in line)
        search.start("--resume", NAME, "--address", nodes.address, *ON_GPUS)
        _ends(search)
        _check_ended(search)
    return f"exit 3 after {seconds:.0f} s: {sentence}"


def _ends(search: Search, code: int = 0) -> None:
    require(search.end(600) == code, f"the search ended with {search.code}:\n{search.text[-2000:]}")


def _check_ended(search: Search) -> None:
    """Check that a search is whole and has left no trial in the storage."""
    check_whole(search, 6)
    left = [str(path) for path in (search.here / "bucket").glob("*/trials/*")]
    require(not left, f"left in the storage: {left}")


def _own_corpus(lab: Lab, data: Path, encoder: Path) -> None:
    """Write the toy corpus, without its test files, and the tiny encoder as a user's own folders."""
    toy = toy_folder(lab.cache / "minbert")
    shutil.copytree(toy, data, ignore=shutil.ignore_patterns("*-test-*"))
    encoder.mkdir()
    shutil.copy(toy / "vocab.txt", encoder)
    shape = replace(TINY, vocab_size=load_tokenizer(encoder).vocab_size)
    save_encoder(new_encoder(shape, seed=0, hidden_dropout=0.1, attention_dropout=0.1), encoder)


def _evaluated(search: Search, nodes: Cluster, name: str) -> bool:
    """Return whether a trial on a node has trained on for a while after an evaluation."""
    for number in nodes.workers(name):
        dev, train = search.records(number, "dev"), search.records(number)
        if dev and train[-1]["examples"] > dev[-1]["examples"] + 500:
            return True
    return False


def _logs(search: Search) -> list[str]:
    return [log.read_text(encoding="utf-8") for log in search.folder.glob("trials/*/log.txt")]


def examples_again(logs: Iterable[str]) -> int:
    """Count the examples that trials trained again after they resumed, by their logs."""
    again = 0
    for log in logs:
        examples = 0
        for line in log.splitlines():
            if line.startswith("{"):
                examples = json.loads(line)["examples"]
            elif " trial " in line and (resumed := re.search(r"starts|resumes after (\d+) examples", line)):
                again += max(0, examples - int(resumed[1] or 0))  # a snapshot may be later than the last record
    return again


STORAGES = [
    Case("cluster, no shared disk: node killed", "its trial continues elsewhere, unblamed", node_killed, space=SPACE),
    Case("cluster, no shared disk: Ctrl-C", "exit 130; resumed, nothing trained twice", interrupted, space=SPACE),
    Case("cluster, no shared disk: storage away", "one sentence, exit 3; resumed", storage_away, space=SPACE),
]
