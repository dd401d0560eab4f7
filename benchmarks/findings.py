"""Compare methods that the field argues about with a plain baseline, on real data and over paired seeds.

    python -m benchmarks.findings --data DATA --encoder ENCODER --out FILE [--examples 4000] [--arms pcgrad smart_1e-2]

Each arm differs from the baseline in one thing. At one seed all arms share each task's order of examples, and the heads' start
if their heads are the same. Trials run in processes of one thread. Each finished trial is a line of FILE, and the same command
resumes from there; lines with other data, another encoder or another config of the arm are ignored. The Markdown table shows
for each arm its cost (CPU time per example; the baseline's is 1), its dev scores, and norm minus the baseline's with a 95 %
interval (Student's t over the paired seeds).

Arms are compared at equal examples first. If the cost differs by more than `SAME_COST` (medians over seeds), an arm is trained
again at equal seconds, with as many examples as the baseline's time pays for. This is omitted if the answer is known: a slower
arm that is behind had more time already, a cheaper one that is ahead had less. Time is CPU time, because wall time depends on
the other processes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.learning import HERE, SEEDS, compare, train_one

SAME_COST = 0.1
BASELINE = "baseline"
ARMS: dict[str, dict[str, Any]] = {
    BASELINE: {},  # the sum, round_robin in batches of 8, lr 1e-4, mean pooling, one stage, linear heads, no regulariser
    "pcgrad": {"gradient": "pcgrad"},
    "gradvac": {"gradient": "gradvac"},
    "cagrad": {"gradient": "cagrad"},
    "label_scale": {"tasks": {"sts": {"loss": {"kind": "mse", "scale": "label"}}}},  # the squared error of raw labels, 0 to 5
    "pooler": {"tasks": {"all": {"pooling": "pooler"}}},
    "batch_16": {"tasks": {"all": {"batch_size": 16}}},
    "lr_5e-5": {"optimizer": {"lr": 5e-5}},
    "lr_2e-4": {"optimizer": {"lr": 2e-4}},
    "smart_1e-2": {"smoothness": {"kind": "smart", "radius": 1e-2}},  # a smaller radius would train in float32
    "smart_3e-2": {"smoothness": {"kind": "smart", "radius": 3e-2}},
    "smart_1e-1": {"smoothness": {"kind": "smart", "radius": 1e-1}},
    "r_drop": {"smoothness": "r_drop"},
    # about the 2 : 24 : 2 of Li & Tang 2023; 24 rows a step, as in a round of the baseline's, and so as many updates
    "mix": {"task_schedule": "mix", "tasks": {"sst": {"batch_size": 2}, "para": {"batch_size": 20}, "sts": {"batch_size": 2}}},
    "proportional": {"task_schedule": "proportional", "tasks": {"all": {"batch_size": 24}}},
    "annealed": {
        "task_schedule": {"kind": "proportional", "alpha": 1.0, "alpha_end": 0.2},
        "tasks": {"all": {"batch_size": 24}},
    },
    "proportional_8": {"task_schedule": "proportional"},  # one task's 8 rows a step: three times the updates
    "para_first": {"stages": [{"kind": "single_task", "task": "para", "share": 0.3}, "multitask"]},
    "lp_ft": {"stages": [{"kind": "linear_probe", "share": 0.3}, "multitask"]},
    "mlp_192": {"tasks": {"all": {"head": {"kind": "mlp", "hidden": [192]}}}},
    "mlp_768": {"tasks": {"all": {"head": {"kind": "mlp", "hidden": [768]}}}},
}


def document(data: Path, encoder: Path, arm: str, examples: int, seed: int) -> dict[str, Any]:
    """Build the trial's config: the settings that all arms share, and those of the arm."""
    changes = ARMS[arm]
    tasks = {"all": {"pooling": "mean", "batch_size": 8}}
    for name, settings in changes.get("tasks", {}).items():
        tasks[name] = {**tasks.get(name, {}), **settings}
    return {
        "data": str(data),
        "encoder": str(encoder),
        "budget": {"examples": examples, "points": [1]},
        "optimizer": {"lr": 1e-4},
        "seed": seed,
        "machine": {"device": "cpu", "threads": 1, "precision": "bfloat16"},
        **changes,
        "tasks": tasks,
    }


class Lines:
    """The finished trials by arm, examples and seed, kept in a file with one line per trial that names its config."""

    def __init__(self, path: Path, data: Path, encoder: Path) -> None:
        self.path, self.data, self.encoder = path, data, encoder
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
        self.known = {self._key(line): line for line in lines if line["config"] == self._digest(*self._key(line))}

    def train(self, arm: str, examples: int, seed: int) -> dict[str, Any]:
        """Train one arm with one seed in a separate process; return its line."""
        record = train_one(HERE, document(self.data, self.encoder, arm, examples, seed))
        figures = {name: value for name, value in record.items() if name.startswith("dev/") or name == "cpu_seconds"}
        return {"arm": arm, "examples": examples, "seed": seed, "config": self._digest(arm, examples, seed), **figures}

    def add(self, line: dict[str, Any]) -> None:
        self.known[self._key(line)] = line
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def scores(self, arm: str, examples: int, column: str = "norm") -> dict[int, float]:
        """Return a dev score by seed, for the seeds that are trained."""
        trained = {seed: self.known.get((arm, examples, seed)) for seed in SEEDS}
        return {seed: line[f"dev/{column}"] for seed, line in trained.items() if line}

    def differences(self, arm: str, examples: int, of_baseline: int) -> list[float]:
        """Compute an arm's dev norm minus the baseline's with `of_baseline` examples, at each seed that both have."""
        plain = self.scores(BASELINE, of_baseline)
        return [score - plain[seed] for seed, score in self.scores(arm, examples).items() if seed in plain]

    def cost(self, arm: str, examples: int) -> float:
        """Compute the CPU time per example relative to the baseline's, as medians over the seeds."""
        taken, plain = ([line["cpu_seconds"] for key, line in self.known.items() if key[:2] == (name, examples)]
                      for name in (arm, BASELINE))  # fmt: skip
        return float(median(taken) / median(plain))

    def _digest(self, arm: str, examples: int, seed: int) -> str:
        """Hash the config that a line's figures follow from; "" if there is no such arm any more."""
        if arm not in ARMS:
            return ""
        return hashlib.sha256(json.dumps(document(self.data, self.encoder, arm, examples, seed)).encode()).hexdigest()[:12]

    @staticmethod
    def _key(line: dict[str, Any]) -> tuple[str, int, int]:
        return line["arm"], line["examples"], line["seed"]


def equal_seconds(lines: Lines, arm: str, examples: int) -> tuple[int, str]:
    """Return the examples that the baseline's time pays for; or `examples`, and why equal seconds need no training."""
    cost = lines.cost(arm, examples)
    gain = sum(lines.differences(arm, examples, examples))
    if abs(cost - 1) <= SAME_COST:
        return examples, "the same"
    if cost > 1 and gain <= 0:
        return examples, "behind with more time"
    if cost < 1 and gain >= 0:
        return examples, "ahead with less time"
    return round(examples / cost), ""


def train_all(lines: Lines, arms: list[str], examples: int, at_once: int) -> None:
    """Train every trial that FILE lacks: all arms at equal examples, seed by seed, then at equal seconds."""
    rounds: list[Callable[[], list[tuple[str, int, int]]]] = [
        lambda: [(arm, examples, seed) for seed in SEEDS for arm in arms],
        lambda: [(arm, equal_seconds(lines, arm, examples)[0], seed) for seed in SEEDS for arm in arms],
    ]
    for orders in rounds:
        missing = [order for order in orders() if order not in lines.known]
        with ThreadPoolExecutor(at_once) as pool:
            running = [pool.submit(lines.train, *order) for order in missing]
            for number, ended in enumerate(as_completed(running), start=1):
                line = ended.result()
                lines.add(line)
                text = f"{line['arm']:<14} {line['examples']:>6} examples  seed {line['seed']}  norm {line['dev/norm']:.4f}"
                print(f"[{number}/{len(missing)}] {text}  {line['cpu_seconds']:.0f} s", flush=True)


def table(lines: Lines, arms: list[str], examples: int) -> Iterator[str]:
    """Yield one row per arm: its mean scores, and norm minus the baseline's at equal examples and at equal seconds."""
    yield "| arm | seeds | cost | SST | Para | STS | norm | - baseline, equal examples | - baseline, equal seconds |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for arm in arms:
        if not (seeds := lines.scores(arm, examples)):
            continue
        means = [f"{fmean(lines.scores(arm, examples, column).values()):.4f}" for column in ("sst", "para", "sts", "norm")]
        both = ["", ""]
        if arm != BASELINE:
            other, known = equal_seconds(lines, arm, examples)
            both = [interval(lines.differences(arm, n, examples)) for n in (examples, other)]
            both[1] = known or both[1]
        yield "| " + " | ".join([arm, str(len(seeds)), f"{lines.cost(arm, examples):.2f}", *means, *both]) + " |"


def interval(differences: list[float]) -> str:
    """Format the mean of the paired differences and its 95 % interval: `+.0012 [-.0031, +.0055]`."""
    if len(differences) < 2:
        return "not trained"
    mean, half, _ = compare(differences, [0.0] * len(differences))
    return f"{mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}]"


def main() -> None:
    """Train the missing trials, and print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--encoder", type=Path, required=True)
    options.add_argument("--out", type=Path, required=True, help="file with one line per finished trial")
    options.add_argument("--examples", type=int, default=4_000, help="labelled rows per trial (default 4000)")
    options.add_argument("--arms", nargs="+", choices=[arm for arm in ARMS if arm != BASELINE], help="default: all")
    options.add_argument(
        "--at-once", type=int, default=os.cpu_count(), metavar="N", help="trials at once (default: one per core)"
    )
    given = options.parse_args()
    arms = [BASELINE, *(given.arms or [arm for arm in ARMS if arm != BASELINE])]
    lines = Lines(given.out, given.data.resolve(), given.encoder.resolve())
    train_all(lines, arms, given.examples, given.at_once)
    print("\n".join(table(lines, arms, given.examples)))


if __name__ == "__main__":
    main()
