"""Measure the rows of the speed table on this machine, against public peers: in turns, each side in its own process.

    python -m benchmarks --data DATA --encoder ENCODER [--rows 1 5 9] [--rounds 5] [--out DIR]
    make bench DATA=DATA ENCODER=ENCODER

DATA: the course's folder; ENCODER: a folder in Hugging Face layout (MiniLM takes about an hour on two cores). bench.md and
bench.json are written to DIR (default: runs/bench) after each row, so that an interrupted run keeps its figures. A figure that
this machine cannot measure stays empty. LOG.md explains the rows, and has the figures of one machine.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.rounds import Row

MODULES = {  # the module that measures each row
    (1, 2, 3, 4): "training",
    (5, 6, 7): "methods",
    (8,): "evaluating",
    (9,): "start_up",
    (10,): "whole_search",
    (11,): "prediction",
    (12,): "exactness",
    (13,): "gpu",
    (14,): "file_prediction",
}
PEERS = ("transformers", "accelerate", "torchjd", "smart_pytorch")  # row 13 needs the first only
ROUNDS = 3


def main() -> int:
    """Measure the requested rows; return 2 if something that they need is missing."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with the course's files")
    options.add_argument("--encoder", type=Path, required=True, metavar="DIR", help="encoder in Hugging Face layout")
    options.add_argument("--rows", type=int, nargs="+", choices=range(1, 15), metavar="N", help="1 to 14 (default: all)")
    options.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help=f"rounds of turns (default {ROUNDS})")
    options.add_argument("--out", type=Path, default=Path("runs/bench"), metavar="DIR", help="for bench.md and bench.json")
    given = options.parse_args()
    if fault := missing(given.data, given.encoder, needs_all_peers=given.rows != [13]):
        print(fault, file=sys.stderr)
        return 2
    given.out.mkdir(parents=True, exist_ok=True)
    measured: list[Row] = []
    began, load = time.monotonic(), os.getloadavg()[0]
    for numbers, module in MODULES.items():
        if given.rows and not set(numbers) & set(given.rows):
            continue
        measure = importlib.import_module(f"benchmarks.{module}").rows
        for row in measure(given.data.resolve(), given.encoder.resolve(), given.rounds):
            if given.rows and row.number not in given.rows:
                continue
            measured.append(row)
            print(f"{(time.monotonic() - began) / 60:5.1f} min  {line(row)}", flush=True)
            write(given.out, measured, load)
    print(f"Written: {given.out / 'bench.md'}, {given.out / 'bench.json'}")
    return 0


def missing(data: Path, encoder: Path, needs_all_peers: bool) -> str:
    """Return a sentence about a missing requirement of the benchmarks; "" if nothing is missing."""
    if not (data / "ids-sst-train.csv").is_file():
        return f"{data} does not hold the course's files (ids-sst-train.csv …). Name their folder with --data."
    if not (encoder / "config.json").is_file():
        return f"{encoder} is not an encoder in Hugging Face layout (config.json, model.safetensors). Name one with --encoder."
    absent = [name for name in (PEERS if needs_all_peers else PEERS[:1]) if not importlib.util.find_spec(name)]
    return f"These peers are not installed: {', '.join(absent)}. `make bench` installs them." if absent else ""


def write(folder: Path, measured: list[Row], load: float) -> None:
    """Write bench.json with all details, and bench.md with one line per row."""
    head = about(load)
    document = {"machine": head, "rows": [asdict(row) | {"is_met": row.is_met} for row in measured]}
    (folder / "bench.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    lines = ["# Speed, measured", "", ", ".join(f"{key} {value}" for key, value in head.items()), ""]
    lines += ["| # | what | setting | goal | median | range | met |", "|---|---|---|---|---|---|---|"]
    lines += [line(row) for row in sorted(measured, key=lambda row: row.number)]
    (folder / "bench.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def line(row: Row) -> str:
    """Format a row of the Markdown table."""
    sign, value = row.goal
    goal = f"{'≥' if sign == '>=' else '≤'} {number(value)} {row.unit}".rstrip()
    if row.figure is None:
        return f"| {row.number} | {row.what} | {row.setting} | {goal} | {row.why or 'not measured'} | | |"
    spread = "" if row.figure.low == row.figure.high else f"{number(row.figure.low)} – {number(row.figure.high)}"
    met = {True: "yes", False: "no", None: ""}[row.is_met]
    return f"| {row.number} | {row.what} | {row.setting} | {goal} | {number(row.figure.median)} | {spread} | {met} |"


def number(value: float) -> str:
    """Format a number with three significant digits."""
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def about(load: float) -> dict[str, Any]:
    """Describe the machine and the versions of the packages."""
    from importlib.metadata import version

    import torch

    cpu = next((text.split(":")[1].strip() for text in _cpuinfo() if text.startswith("model name")), platform.processor())
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    packages = {name: version(name) for name in ("torch", "transformers", "ray", "torchjd") if importlib.util.find_spec(name)}
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    today = time.strftime("%F")
    return {
        "date": today,
        "command": command,
        "CPU": cpu,
        "cores": os.cpu_count(),
        "GPU": gpu,
        "load before": round(load, 1),
        **packages,
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


if __name__ == "__main__":
    sys.exit(main())
