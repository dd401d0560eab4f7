"""Measure what speed costs in dev scores: the same trials, seed by seed, in two precisions and with another checkout.

    python benchmarks/learning.py --data DATA --encoder ENCODER [--before CHECKOUT] [--examples 12000] [--arms float32 before]

Three tasks, cross-encoded, the default model; dev norm at the end of each trial. Trials run in processes of one thread, as many
at a time as there are cores. Prints each arm's scores, and of each pair of arms the mean difference with its 95 % interval
(Student's t over the paired seeds) and the one-sided bound that row 4 of the table asks for.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
ARMS = ("float32", "bfloat16", "before")
SEEDS = (101, 102, 103, 104, 105)
TRIAL = """
import json, sys, time
from minbert_core.config_checks import load_config
from minbert_core.inputs import open_inputs
from minbert_core.train.trial import train
config = load_config(json.loads(sys.argv[1]))
inputs, started, trained = open_inputs(config), time.process_time(), 0.0
for progress in train(config, inputs):
    trained = time.process_time() - started if progress.record["kind"] == "train" else trained
print(json.dumps({**progress.record, "cpu_seconds": trained}))
"""


def document(data: Path, encoder: Path, examples: int, seed: int, machine: dict[str, Any]) -> dict[str, Any]:
    """Build the trial's config: plain multitask training, evaluated once, at its end."""
    return {
        "data": str(data),
        "encoder": str(encoder),
        "budget": {"examples": examples, "points": [1]},
        "optimizer": {"lr": 1e-4},
        "seed": seed,
        "machine": {"device": "cpu", "threads": 1, **machine},
    }


def train_one(tree: Path, config: dict[str, Any]) -> dict[str, float]:
    """Train a trial with the code in `tree`; return its last dev record, and the `cpu_seconds` until the last step."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TRIAL, json.dumps(config)]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"A trial failed in {tree}:\n{done.stderr[-2000:]}")
    record: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return record


def compare(one: list[float], other: list[float]) -> tuple[float, float, float]:
    """Return (mean of one - other over paired seeds, half its 95 % interval, lower bound of a one-sided 95 % interval)."""
    import numpy as np
    from scipy import stats

    differences = np.subtract(one, other)
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    freedom = len(differences) - 1
    mean = float(differences.mean())
    return mean, float(stats.t.ppf(0.975, freedom)) * error, mean - float(stats.t.ppf(0.95, freedom)) * error


def main() -> None:
    """Train each arm with each seed, and print the scores and the paired differences."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--encoder", type=Path, required=True)
    options.add_argument("--before", type=Path, help="another checkout with the same modules; it trains too, in float32")
    options.add_argument("--examples", type=int, default=12_000)
    options.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="default: all; bfloat16 is slow on an older CPU")
    given = options.parse_args()
    arms: dict[str, tuple[Path, dict[str, Any]]] = {
        "float32": (HERE, {"precision": "float32"}),
        "bfloat16": (HERE, {"precision": "bfloat16"}),
    }
    if given.before:
        arms["before"] = (given.before.resolve(), {"precision": "float32"})
    arms = {name: arm for name, arm in arms.items() if name in given.arms}
    orders = [(arm, seed) for seed in SEEDS for arm in arms]
    data, encoder = given.data.resolve(), given.encoder.resolve()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        records = pool.map(
            lambda order: train_one(arms[order[0]][0], document(data, encoder, given.examples, order[1], arms[order[0]][1])),
            orders,
        )
        scores: dict[str, list[float]] = {arm: [] for arm in arms}
        for (arm, seed), record in zip(orders, records, strict=True):
            scores[arm].append(record["dev/norm"])
            print(f"{arm:<9} seed {seed}  norm {record['dev/norm']:.4f}  {record['seconds']:.0f} s", flush=True)
    for arm, other in (("bfloat16", "float32"), ("float32", "before")):
        if arm in scores and other in scores:
            mean, half, bound = compare(scores[arm], scores[other])
            print(f"{arm} - {other}: {mean:+.4f} +- {half:.4f} (95 %); not worse than {bound:+.4f} (one-sided 95 %)")


if __name__ == "__main__":
    main()
