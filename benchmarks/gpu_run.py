"""Check and measure a GPU, in one command of a few minutes: is a trial right on it, and how fast is it?

    python -m benchmarks.gpu_run [--data DIR] [--encoder DIR] [--parts checks rows profile search] [--rounds 3] [--out runs/gpu]
    make gpu [DATA=DIR] [ENCODER=DIR]

checks: gpu_checks.py.  rows: gpu.py, BERT-base with random weights against `BertModel`; it needs DATA, and ENCODER for its
tokenizer.  profile: the five largest costs of such a step.  search: 12 trials, as many at a time as the probe decides, and one
at a time; on the toy corpus, and on DATA. gpu.json and gpu.md are written after each part. Without a GPU it says so, and
returns 0. Not yet run on a GPU (2026-11).
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.__main__ import about, line

PARTS = ("checks", "rows", "profile", "search")
NUM_TRIALS = 12
SPACE = """\
about: Twelve trials of one kind.
trials: {trials}
config:
  optimizer: {{lr: {{log_uniform: [1.0e-5, 1.0e-4]}}}}
  budget: {{examples: {examples}}}
"""
Report = dict[str, Any]


def main() -> int:
    """Run the parts that were asked for; return 1 if a check does not hold."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--data", type=Path, metavar="DIR", help="folder with the course's files")
    options.add_argument("--encoder", type=Path, metavar="DIR", help="encoder in Hugging Face layout, such as MiniLM")
    options.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    options.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds of turns of the rows (default 3)")
    options.add_argument("--out", type=Path, default=Path("runs/gpu"), metavar="DIR", help="for gpu.json and gpu.md")
    given = options.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    machine = about(os.getloadavg()[0]) | {"command": shlex.join(["python", "-m", "benchmarks.gpu_run", *sys.argv[1:]])}
    report: Report = {"machine": machine, "checks": [], "rows": [], "profile": [], "searches": [], "notes": []}
    if not torch.cuda.is_available():
        note = "There is no GPU here: nothing was checked or measured. Run `make gpu` on a machine that has one."
        print(note)
        report["notes"].append(note)
        write(given.out, report)
        return 0
    add = {"checks": add_checks, "rows": add_rows, "profile": add_profile, "search": add_searches}
    for part in given.parts:
        try:
            add[part](given, report)
        except Exception as error:  # noqa: BLE001 — what was measured is kept, and the other parts run
            ended_early(report, part, error)
        gc.collect()
        torch.cuda.empty_cache()  # a search leaves out a GPU that another process uses
        write(given.out, report)
    print(f"Written: {given.out / 'gpu.md'}, {given.out / 'gpu.json'}")
    return 0 if all(check["holds"] for check in report["checks"]) else 1


def ended_early(report: Report, part: str, error: Exception) -> None:
    """Note that a part has failed, and print where."""
    report["notes"].append(f"The part {part} ended early: {type(error).__name__}: {error}")
    print(report["notes"][-1], flush=True)
    traceback.print_exception(error)


def add_checks(given: argparse.Namespace, report: Report) -> None:
    """Run the checks."""
    from benchmarks.gpu_checks import run_checks

    for check in run_checks("cuda"):
        report["checks"].append(asdict(check))
        print(f"{'holds' if check.holds else 'FAILS'}  {check.name} ({check.seconds} s): {check.note}", flush=True)


def add_rows(given: argparse.Namespace, report: Report) -> None:
    """Measure the rows of gpu.py."""
    from benchmarks import gpu

    if given.data is None or given.encoder is None:
        report["notes"].append("The rows were not measured: they need --data and --encoder.")
        return
    for row in gpu.rows(given.data.resolve(), given.encoder.resolve(), given.rounds, partial(ended_early, report)):
        report["rows"].append(asdict(row) | {"line": line(row)})
        print(line(row), flush=True)
        write(given.out, report)


def add_profile(given: argparse.Namespace, report: Report) -> None:
    """Name the largest costs of a step."""
    from benchmarks import gpu

    if given.data is None or given.encoder is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        base = gpu.random_base(Path(folder), given.encoder.resolve(), gpu.BASE)
        for name, taken, share in gpu.largest_costs(gpu.Setting(given.data.resolve(), base, given.rounds, "cuda")):
            report["profile"].append({"what": name, "ms": taken, "percent": share})
            print(f"profile {share:5.1f} %  {taken:6.2f} ms a step  {name}", flush=True)


def add_searches(given: argparse.Namespace, report: Report) -> None:
    """Search with and without sharing the GPU, on the toy corpus and, if given, on the data."""
    if importlib.util.find_spec("ray") is None:
        report["notes"].append("No search was run: Ray is not installed here.")
        return
    corpora = {"toy": ["--data", "toy", "--encoder", str(given.encoder.resolve()) if given.encoder else "tiny"]}
    if given.data and given.encoder:
        corpora["data"] = ["--data", str(given.data.resolve()), "--encoder", str(given.encoder.resolve())]
    for name, source in corpora.items():
        for label, sharing in (("as probed", ["--gpus", "auto"]), ("one at a time", ["--gpus", "1", "--gpus-per-trial", "1"])):
            seconds, code = _search([*source, *sharing], 2_000 if name == "toy" else 8_000)
            hourly = NUM_TRIALS * 3600 / seconds
            found = {"corpus": name, "trials": label, "seconds": seconds, "trials_per_hour": hourly, "exit_code": code}
            report["searches"].append(found)
            print(f"search  {name}, {label}: {seconds:.0f} s, {hourly:,.0f} trials per hour (exit code {code})", flush=True)


def _search(options: list[str], examples: int) -> tuple[float, int]:
    """Run a search of NUM_TRIALS trials in a temporary folder; return its seconds, probe included, and its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        space = Path(folder) / "twelve.yaml"
        space.write_text(SPACE.format(trials=NUM_TRIALS, examples=examples), encoding="utf-8")
        began = time.monotonic()
        command = [sys.executable, "-m", "search.run", "--space", str(space), "--runs", str(Path(folder) / "runs"), *options]
        done = subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=False)
        return time.monotonic() - began, done.returncode


def write(folder: Path, report: Report) -> None:
    """Write gpu.json, and gpu.md with a table per part."""
    (folder / "gpu.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    lines = ["# One GPU, checked and measured", "", ", ".join(f"{key} {value}" for key, value in report["machine"].items())]
    lines += ["", *report["notes"]]
    if report["checks"]:
        lines += ["", "| check | holds | seconds | |", "|---|---|---|---|"]
        lines += [f"| {c['name']} | {'yes' if c['holds'] else 'no'} | {c['seconds']} | {c['note']} |" for c in report["checks"]]
    if report["rows"]:
        lines += ["", "| # | what | setting | goal | median | range | met |", "|---|---|---|---|---|---|---|"]
        lines += [row["line"] for row in report["rows"]]
    if report["profile"]:
        lines += ["", "| largest costs of a step | ms | % |", "|---|---|---|"]
        lines += [f"| {cost['what']} | {cost['ms']:.2f} | {cost['percent']:.1f} |" for cost in report["profile"]]
    if report["searches"]:
        lines += ["", "| corpus | trials | seconds | trials per hour |", "|---|---|---|---|"]
        for found in report["searches"]:
            hourly = f"{found['trials_per_hour']:,.0f}" if found["exit_code"] == 0 else f"failed, code {found['exit_code']}"
            lines.append(f"| {found['corpus']} | {found['trials']} | {found['seconds']:.0f} | {hourly} |")
    (folder / "gpu.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
