"""Faults of a cluster: tokens that differ, nodes that join, leave, or do not see the disk, and a head that dies."""

from __future__ import annotations

import contextlib
import json
import secrets
import signal
import time
from pathlib import Path

import psutil

from benchmarks.faults.case import Case
from benchmarks.faults.harness import NAME, ROOT, Lab, Search, check_whole, require
from benchmarks.faults.harness import SPACE as SMALL
from benchmarks.faults.nodes import Cluster, cluster

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


def best_to_test(search: Search, lab: Lab) -> str:
    """Retrain the best configuration of a search on two nodes, over two seeds, and kill one node in training."""
    search.start("--space", f"{NAME}.yaml", "--trials", "2")
    _ends(search)
    with cluster(2) as nodes:
        script = (str(ROOT / "analysis" / "best_to_test.py"),)
        search.start("--search", NAME, "--top", "1", "--seeds", "2", *_options(nodes), command=script)
        search.until(lambda: all(_retrains(search, nodes, name) for name in nodes.nodes), "a model in training on each node")
        nodes.kill(list(nodes.nodes)[-1])
        _ends(search)
        [line] = [line for line in search.text.splitlines() if "has left the cluster" in line]
    results = json.loads((search.folder / "test" / "results.json").read_text(encoding="utf-8"))
    require(len(results["models"]) == 2 * len(results["configurations"]), f"models: {', '.join(results['models'])}")
    return f"{len(results['models'])} models on both nodes; {line.partition('] ')[2]}"


def _retrains(search: Search, nodes: Cluster, name: str) -> bool:
    """Return whether a process of a node trains a model of best_to_test, whose log it holds open."""
    for process in nodes.processes(name):
        with contextlib.suppress(psutil.Error):
            if any(file.path.startswith(f"{search.folder}/test/") for file in process.open_files()):
                return True
    return False


CLUSTERS = [
    Case("cluster: started by hand", "a trial per node, the code travels", joined, space=SPACE),
    Case("cluster: found", "auto joins; a sentence where no node is", found, space=SPACE),
    Case("cluster: with a token", "a sentence without it; joined with it", with_token, space=SPACE),
    Case("cluster: node killed", "its trial continues elsewhere, unblamed", node_killed, space=SPACE),
    Case("cluster: node joins", f"used within {JOINED_SECONDS} s", node_joins, space=SPACE),
    Case("cluster: head killed", "one sentence, exit 3; resumed on another", head_killed, space=SPACE),
    Case("cluster: joins unseen", "left out, and told; the trials run elsewhere", joins_unseen, space=SPACE),
    Case("cluster: GPU busy", "left out, and told", busy_gpu, space=SPACE),
    Case("cluster: best_to_test", "models on all nodes; one killed, trained elsewhere", best_to_test, space=SPACE),
    Case("cluster: folder not seen", "one sentence names node and path", folder_unseen, space=SPACE),
]
