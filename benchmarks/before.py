"""Measure a training step of this code against that of another checkout, in turns, each in its own process.

    git worktree add /tmp/before COMMIT
    python -m benchmarks.before /tmp/before --data DATA --encoder ENCODER [--batch 16] [--rounds 9]

A ratio is this code's time over the other's: below 1, this code is faster. The other checkout needs a benchmarks/ours.py with
the same two functions, `document` and `training_step`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.rounds import Figure, alternate, ratio

HERE = Path(__file__).resolve().parents[1]
WORKLOADS = ((("sst",), "single"), (("para",), "cross"), (("sts",), "bi"), (("sst", "para", "sts"), "cross"))
CHILD = """\
import json, sys
from pathlib import Path
from benchmarks import ours
data, encoder, tasks, encoding, batch, threads = json.loads(sys.argv[1])
machine = ours.machine(threads)
step = ours.training_step(ours.document(Path(data), Path(encoder), tuple(tasks), encoding, batch, machine))
for line in sys.stdin:
    step()
    print(flush=True)
"""


class Tree:
    """A process that makes steps with the code of one checkout."""

    def __init__(self, tree: Path, work: list[object], threads: int) -> None:
        own = {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, json.dumps(work)],
            cwd=tree,
            env={**os.environ, **own},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def step(self) -> None:
        """Make one step and wait for it.  Raises RuntimeError if the process has ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        if not self.process.stdout.readline():
            raise RuntimeError("a process has ended; its error is above")

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def compare(before: Path, work: list[object], threads: int, rounds: int) -> tuple[Figure, dict[str, Figure]]:
    """Return the ratio of the times, and the seconds per step of both."""
    with ExitStack() as stack:
        trees = {"before": before, "now": HERE}
        steps = {name: stack.enter_context(Tree(tree, work, threads)).step for name, tree in trees.items()}
        times = alternate(steps, rounds, calls=4, warm_up=4)
    return ratio(times, "now", "before"), {name: Figure.of(seconds) for name, seconds in times.items()}


def main() -> int:
    """Compare all workloads with one and two threads, and print a table."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.before", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("before", type=Path, metavar="TREE", help="the other checkout")
    options.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with the course's files")
    options.add_argument("--encoder", type=Path, required=True, metavar="DIR", help="encoder in Hugging Face layout")
    options.add_argument("--batch", type=int, default=16, metavar="N", help="examples of each task per step (default 16)")
    options.add_argument("--rounds", type=int, default=9, metavar="N", help="rounds of turns (default 9)")
    given = options.parse_args()
    measure = partial(compare, given.before.resolve(), rounds=given.rounds)
    print("| step | threads | before, ms | now, ms | ratio | range |\n|---|---|---|---|---|---|")
    for threads in (1, 2):
        for tasks, encoding in WORKLOADS:
            work: list[object] = [
                str(given.data.resolve()),
                str(given.encoder.resolve()),
                tasks,
                encoding,
                given.batch,
                threads,
            ]
            figure, seconds = measure(work, threads)
            ms = " | ".join(f"{1000 * seconds[name].median:.1f}" for name in ("before", "now"))
            span = f"{figure.median:.2f} | {figure.low:.2f} – {figure.high:.2f}"
            print(f"| {', '.join(tasks)} {encoding}, batch {given.batch} | {threads} | {ms} | {span} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
