"""Profile a training step, ours or the peer's: each operator's share of the time.

    python -m benchmarks.shares --data DATA --encoder ENCODER [--task sst] [--encoding single] [--precision bfloat16] [--peer]

One thread, batch 16, a cycle of the batches that rows 1 to 4 time; torch's own profiler, which slows small operators a little.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import ours, peers

LEAST = 0.5  # percent: what is below is summed up


def main() -> None:
    """Print a line an operator, the largest first."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--encoder", type=Path, required=True)
    options.add_argument("--task", choices=["sst", "para", "sts"], default="sst")
    options.add_argument("--encoding", choices=["single", "cross", "bi"], default="single")
    options.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    options.add_argument("--peer", action="store_true", help="BertModel's step in place of ours, in float32")
    given = options.parse_args()
    data, encoder = given.data.resolve(), given.encoder.resolve()
    if given.peer:
        step = peers.training_step(data, encoder, given.task, given.encoding, 16, 1, False)
    else:
        machine = ours.machine(1, given.precision)
        step = ours.training_step(ours.document(data, encoder, (given.task,), given.encoding, 16, machine))
    for _ in range(ours.NUM_BATCHES):
        step()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(ours.NUM_BATCHES):
            step()
    times = {event.key: event.self_cpu_time_total / 1000 / ours.NUM_BATCHES for event in found.key_averages()}
    total = sum(times.values())
    print(f"{total:.0f} ms a step; torch {torch.__version__}")
    rest = 0.0
    for name, taken in sorted(times.items(), key=lambda item: -item[1]):
        if 100 * taken / total < LEAST:
            rest += taken
        else:
            print(f"{100 * taken / total:5.1f} %  {taken:6.1f} ms  {name}")
    print(f"{100 * rest / total:5.1f} %  {rest:6.1f} ms  the rest, each below {LEAST} %")


if __name__ == "__main__":
    main()
