"""Faults of a cluster: tokens that differ, nodes that join, leave, or do not see the disk, and a head that dies."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import signal
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from benchmarks.faults.case import Case
from benchmarks.faults.harness import NAME, Lab, Search, check_whole, require
from benchmarks.faults.harness import SPACE as SMALL
from benchmarks.faults.nodes import Cluster, cluster
from minbert_core.checkpoints import save_encoder
from minbert_core.data.tokens import load_tokenizer
from minbert_core.data.toy import toy_folder
from minbert_core.encoder import TINY, new_encoder

BUSY = Path(__file__).parent / "busy"
JOINED_SECONDS = 60  # in which a node that joins must be used
SPACE = SMALL.replace("examples: 6000", "examples: 12000").replace("threads: 1", "threads: 1, device: cpu")
ON_GPUS = ("--gpus", "auto", "--gpus-per-trial", "1")  # logical ones, on which nothing runs


def _options(nodes: Cluster) -> tuple[str, ...]:
    return "--address", nodes.address, *ON_GPUS


def _start(search: Search, nodes: Cluster, **environment: str) -> None:
    search.start("--space", f"{NAME}.yaml", *_options(nodes), environment=environment)


def _ends(search: Search, code: int = 0) -> None:
    require(search.end(600) == code, f"the search ended with {search.code}:\n{search.text[-2000:]}")


def joined(search: Search, lab: Lab) -> str:
    """Search on three nodes of one CPU that plain `ray start` has started, in an empty folder and without the project."""
    with cluster() as nodes:
        _start(search, nodes)
        search.until(lambda: len(nodes.workers()) == 3, "three trials at a time, one per node")
        paths = [process.environ().get("PYTHONPATH", "") for process in nodes.workers().values()]
        require(all("py_modules" in path for path in paths), f"the code has not travelled: {paths}")
        _ends(search)
        require("3 trials at a time" in search.text and "3 nodes, 3 CPUs, 6 GPUs" in search.text, search.text[:1500])
        check_whole(search, 6)
    return "three trials at a time, with the code of the driver"


def found(search: Search, lab: Lab) -> str:
    """Join by `--address auto`; and from a machine that is none of the nodes, as one that sees none of their processes."""
    with cluster(1) as nodes:
        search.start("--space", f"{NAME}.yaml", "--address", "auto", *ON_GPUS, environment={"RAY_ADDRESS": nodes.address})
        search.until(nodes.workers, "a trial")
        search.kill(signal.SIGINT)
        _ends(search, 130)
        search.start("--resume", NAME, *_options(nodes), before=("unshare", "--pid", "--fork", "--mount-proc"))
        _ends(search, 3)
        [sentence] = [line for line in search.text.splitlines() if "is not a node of the Ray cluster" in line]
    return f"auto joined; elsewhere, exit 3: {sentence}"


def with_token(search: Search, lab: Lab) -> str:
    """Join a cluster that wants a token: without, with another, and with its own, which must not be shown anywhere."""
    token = secrets.token_hex(24)
    with cluster(1, token) as nodes:
        home = {"HOME": str(nodes.place)}
        _start(search, nodes, **home)
        _ends(search, 3)
        require("none is known here" in search.text.splitlines()[-1], search.text[-500:])
        _start(search, nodes, RAY_AUTH_TOKEN="0" * 48, **home)
        _ends(search, 3)
        require("another token than RAY_AUTH_TOKEN" in search.text, search.text[-500:])
        file = nodes.place / "token"
        file.write_text(token, encoding="utf-8")
        _start(search, nodes, RAY_AUTH_TOKEN_PATH=str(file), **home)
        search.until(nodes.workers, "a trial")
        shown = [" ".join(process.cmdline()) for process in [*nodes.processes(), *search.processes()]]
        _ends(search)
        texts = [
            path.read_text(errors="replace") for path in search.folder.rglob("*") if path.suffix in (".json", ".txt", ".yaml")
        ]
        require(not any(token in text for text in [*shown, *texts, search.text]), "the token is shown")
        check_whole(search, 6)
    return "a sentence without it and with another; joined with it; it is in no file, line or process list"


def node_killed(search: Search, lab: Lab) -> str:
    """Kill one of three nodes, with all its processes, while it trains."""
    with cluster() as nodes:
        _start(search, nodes)
        last = list(nodes.nodes)[-1]
        search.until(lambda: any(len(search.records(number)) >= 10 for number in nodes.workers(last)), "training on the node")
        nodes.kill(last)
        _ends(search)
        require("has left the cluster" in search.text, f"no line about it:\n{search.text[-2000:]}")
        check_whole(search, 6)
        require(not any(trial.deaths for trial in search.trials()), "the trial was blamed")
    again = search.retrained()
    return f"its trial continued elsewhere under its own number, unblamed; {again} records made again"


def node_joins(search: Search, lab: Lab) -> str:
    """Let a node join while a search of one trial at a time runs."""
    with cluster(1) as nodes:
        _start(search, nodes)
        search.until(nodes.workers, "training")
        name, began = nodes.start(), time.monotonic()
        search.until(lambda: nodes.workers(name), "a trial on the new node")
        seconds = time.monotonic() - began
        require(seconds < JOINED_SECONDS, f"it was used after {seconds:.0f} s")
        _ends(search)
        check_whole(search, 6)
    return f"used after {seconds:.0f} s"


def head_killed(search: Search, lab: Lab) -> str:
    """Kill the head in training, and resume on another cluster."""
    with cluster(2) as nodes:
        head, other = nodes.nodes
        _start(search, nodes)
        search.until(lambda: any(len(search.records(number)) >= 10 for number in nodes.workers(other)), "training")
        nodes.kill(head)
        began = time.monotonic()
        _ends(search, 3)
        seconds = time.monotonic() - began
        require(search.text.count("no longer answers") + search.text.count("Ray has died") == 1, search.text[-1500:])
    with cluster(2) as nodes:
        search.start("--resume", NAME, *_options(nodes))
        _ends(search)
        check_whole(search, 6)
    return f"exit 3 after {seconds:.0f} s; resumed on another; {search.retrained()} records made again"


def folder_unseen(search: Search, lab: Lab) -> str:
    """Give one node another folder where the runs are."""
    runs = search.here / "runs"
    runs.mkdir()
    with cluster(1) as nodes:
        nodes.start(before=f"mount -t tmpfs none {runs}")
        _start(search, nodes)
        _ends(search, 3)
        [sentence] = [line for line in search.text.splitlines() if "does not see" in line]
        require(str(runs) in sentence and not list(search.folder.glob("trials/*")), sentence)
    return f"exit 3: {sentence}"


def without_disk(search: Search, lab: Lab) -> str:
    """Search on three nodes that see only a storage of the driver's, and kill one in the middle of a trial."""
    data, encoder, bucket = search.here / "data", search.here / "encoder", search.here / "bucket"
    own_corpus(lab, data, encoder)
    (search.here / "runs").mkdir()
    hidden = " && ".join(f"mount -t tmpfs none {folder}" for folder in (search.here / "runs", data, encoder, lab.cache))
    with cluster(0) as nodes:
        names = [nodes.start(before=f"{hidden} && export XDG_CACHE_HOME={nodes.place}/cache{i}") for i in range(3)]
        own = "--data", str(data), "--encoder", str(encoder), "--storage", f"file://{bucket}"
        search.start("--space", f"{NAME}.yaml", *_options(nodes), *own)
        search.until(lambda: _evaluated(search, nodes, names[-1]), "an evaluation on the node", timeout_seconds=400)
        nodes.kill(names[-1])
        _ends(search)
        require("has left the cluster" in search.text, f"no line about it:\n{search.text[-2000:]}")
        check_whole(search, 6)
        require(not any(trial.deaths for trial in search.trials()), "the trial was blamed")
        resumed = re.findall(r"resumes after (\d+) examples", "".join(_logs(search)))
        require(any(int(examples) for examples in resumed), "no trial continued from its snapshot")
        left = [str(path) for path in bucket.glob("*/trials/*")]
        require(not left, f"left in the storage: {left}")
        require(not list(nodes.place.glob(f"cache[0{len(names) - 2}]/minbert/scratch/*/trials/*")), "scratch folders are left")
    again = examples_again(_logs(search))
    return f"its trial continued from the storage, unblamed; {again:,} examples and {search.retrained()} records made again"


def own_corpus(lab: Lab, data: Path, encoder: Path) -> None:
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
                again += examples - int(resumed[1] or 0)
    return again


def joins_unseen(search: Search, lab: Lab) -> str:
    """Let a node join a search that sees another folder where the runs are, and one that sees them."""
    runs = search.here / "runs"
    runs.mkdir()
    with cluster(1) as nodes:
        _start(search, nodes)
        search.until(nodes.workers, "training")
        blind = nodes.start(before=f"mount -t tmpfs none {runs}")
        search.until(lambda: "no trial runs there" in search.text, "the sentence about the node")
        sound = nodes.start()
        search.until(lambda: nodes.workers(sound), "a trial on the sound node")
        require(not nodes.workers(blind), "a trial runs on the node that does not see the folder")
        _ends(search)
        check_whole(search, 6)
        require(not any(trial.deaths for trial in search.trials()), "a trial was blamed")
    [sentence] = [line for line in search.text.splitlines() if "no trial runs there" in line]
    return sentence.partition("] ")[2]


def busy_gpu(search: Search, lab: Lab) -> str:
    """Give a node two GPUs, one of which somebody outside Ray uses, as a stand-in of the driver says."""
    with cluster(0, path=str(BUSY)) as nodes:
        nodes.start(cpus=2, gpus=2)
        _start(search, nodes)
        search.until(nodes.workers, "training")
        require("1 trial at a time" in search.text, f"the busy GPU counts:\n{search.text[:1500]}")
        [line] = [line for line in search.text.splitlines() if "left out" in line]
        search.kill(signal.SIGINT)
        _ends(search, 130)
    return line.removeprefix("warning   ")


CLUSTERS = [
    Case("cluster: started by hand", "a trial per node, the code travels", joined, space=SPACE),
    Case("cluster: found", "auto joins; a sentence where no node is", found, space=SPACE),
    Case("cluster: with a token", "a sentence without it; joined with it", with_token, space=SPACE),
    Case("cluster: node killed", "its trial continues elsewhere, unblamed", node_killed, space=SPACE),
    Case("cluster: node joins", f"used within {JOINED_SECONDS} s", node_joins, space=SPACE),
    Case("cluster: head killed", "one sentence, exit 3; resumed on another", head_killed, space=SPACE),
    Case("cluster: no shared disk", "a storage carries all; node killed, continued", without_disk, space=SPACE),
    Case("cluster: joins unseen", "left out, and told; the trials run elsewhere", joins_unseen, space=SPACE),
    Case("cluster: GPU busy", "left out, and told", busy_gpu, space=SPACE),
    Case("cluster: folder not seen", "one sentence names node and path", folder_unseen, space=SPACE),
]
