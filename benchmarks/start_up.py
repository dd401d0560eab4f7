"""Row 9: the time from the first line of a trial's process to its first optimisation step.

Each side runs in a fresh Ray worker, started as a search starts Ray. As in a trial, Ray Tune is imported there already (with
numpy, pandas and pyarrow), torch is not; an earlier trial has compiled the modules and written the corpus's tokens. Our side
does what `search.study.trainable.run_trial` does up to its first record. The peer loads the same encoder with transformers,
tokenises the same texts and makes one step of SST, a third of our first step's examples.
"""

from __future__ import annotations

import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.rounds import Figure, Row, alternate
from minbert_core.settings.yaml import dump_yaml

TASKS = ("sst", "para", "sts")
BUDGET = 4_800  # examples, so that the first step, of 48, is one of a hundred logged: `train` yields after it
Parts = dict[str, float]  # what was done -> seconds


def rows(data: Path, encoder: Path, rounds: int) -> Iterator[Row]:
    """Measure the seconds of our worker; its parts and the peer's are medians in the details."""
    import ray

    from search.plan.resources import Resources
    from search.study.engine import start_ray

    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # with it a worker would compile all of our modules each time
    os.environ.update(RAY_worker_niceness="0")  # Ray's default is 15, which gives all other processes priority
    found: dict[str, list[Parts]] = {"ours": [], "peer": []}
    start_ray(Resources(cpus=1, gpus=0, cpus_per_trial=1, gpus_per_trial=0), "local")
    try:
        with tempfile.TemporaryDirectory() as folder:
            config = Path(folder) / "config.yaml"
            config.write_text(dump_yaml(_config(data, encoder)), encoding="utf-8")
            worker = ray.remote(num_cpus=1, max_calls=1)  # one call per process
            calls = {
                "ours": partial(worker(ours).remote, str(config)),
                "peer": partial(worker(peer).remote, str(data), str(encoder)),
            }
            contestants = {name: partial(_wait, call, found[name]) for name, call in calls.items()}
            alternate(contestants, rounds, warm_up=1)
    finally:
        ray.shutdown()
    measured = {name: runs[1:] for name, runs in found.items()}
    totals = [sum(parts.values()) for parts in measured["ours"]]
    yield Row(
        number=9,
        what="trial entry to first step, cold",
        setting=f"a fresh Ray worker, {', '.join(TASKS)}, batch 16, 1 thread, tokens on disk",
        goal=("<=", 2.5),
        figure=Figure.of(totals),
        unit="s",
        details=_medians(measured),
    )


def _config(data: Path, encoder: Path) -> dict[str, Any]:
    machine = {"device": "cpu", "threads": 1}
    return {
        "data": str(data),
        "encoder": str(encoder),
        "train_on": list(TASKS),
        "budget": {"examples": BUDGET},
        "machine": machine,
    }


def _wait(call: Callable[[], Any], found: list[Parts]) -> None:
    import ray

    found.append(ray.get(call()))


def _medians(measured: dict[str, list[Parts]]) -> dict[str, float]:
    """Compute the median seconds of each part of each side, and of their sum."""
    sums = {f"{name}_s": statistics.median(sum(parts.values()) for parts in runs) for name, runs in measured.items()}
    parts = {
        f"{name}_{part}_s": statistics.median(parts[part] for parts in runs)
        for name, runs in measured.items()
        for part in runs[0]
    }
    return sums | parts


# ------------------------------------------------------------------------------------------------- what the workers run


class _Marks:
    """Seconds from one mark to the next; the first counts from the object's creation."""

    def __init__(self) -> None:
        self.parts: Parts = {}
        self.last = time.perf_counter()

    def add(self, part: str) -> None:
        now = time.perf_counter()
        self.parts[part], self.last = now - self.last, now


def ours(config_file: str) -> Parts:
    """Run what `run_trial` does before its first record."""
    from ray import tune  # noqa: F401 — Tune has it imported before it calls a trial

    marks = _Marks()
    gc.disable()
    from minbert_core.config_checks import read_config
    from minbert_core.inputs import open_inputs
    from minbert_core.train.folder import train_in  # noqa: F401 — which `run_trial` imports
    from minbert_core.train.trial import train
    from search.plan.relocated import relocated_config

    gc.enable()
    marks.add("imports")
    config = read_config(Path(config_file))
    inputs = open_inputs(relocated_config(config, {}))
    marks.add("inputs")
    trial = train(config, inputs)  # builds the model
    marks.add("model")
    progress = next(trial)
    marks.add("step")
    assert progress.record["step"] == 1, f"the first record is of step {progress.record['step']}"
    return marks.parts


def peer(data: str, encoder: str) -> Parts:
    """Run what a training script with transformers does up to the end of its first step."""
    from ray import tune  # noqa: F401

    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # its default, which our search sets otherwise
    marks = _Marks()
    import torch

    from benchmarks.peers import texts, tokenise, transformers

    library = transformers()
    loading, tokenizing = library.BertForSequenceClassification, library.AutoTokenizer  # lazy: this imports them
    marks.add("imports")
    tokenizer = tokenizing.from_pretrained(encoder)
    examples = {(task, split): texts(Path(data), task, split) for task in TASKS for split in ("train", "dev")}
    tokens = {key: tokenise(tokenizer, sentences) for key, (sentences, _) in examples.items()}
    marks.add("inputs")
    torch.set_num_threads(1)
    model = loading.from_pretrained(encoder, num_labels=5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, fused=True)
    marks.add("model")
    columns, labels = tokens["sst", "train"], examples["sst", "train"][1]
    rows = [{name: column[i] for name, column in columns.items()} | {"labels": int(labels[i])} for i in range(16)]
    batch = library.DataCollatorWithPadding(tokenizer)(rows)
    model.train()
    model(**batch).loss.backward()
    optimizer.step()
    marks.add("step")
    return marks.parts
