"""Row 10: a whole search, from the command to its end, against transformers' `Trainer.hyperparameter_search` on Ray.

Both try the same learning rates on SST, in the same order, under ASHA, with the same budget, evaluation points, cores and
settings of training; each runs in its own process and tokenises its texts. Ours is `python -m search.run`, with its
snapshots, best models and MLflow; the peer saves nothing. The peer's process is this file, too:

    python -m benchmarks.whole_search DATA ENCODER EXAMPLES RATES RESULT
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.peers import texts, tokenise, transformers
from benchmarks.rounds import Row, alternate, ratio
from minbert_core.cores import usable_cores
from minbert_core.settings.yaml import dump_yaml

TRIALS, BATCH_SIZE = 12, 16
EXAMPLES = 1_500  # of a full trial; the peer's search takes five minutes on two cores with so few
POINTS = (1, 3, 9)  # of nine parts of the budget
RATES = (1e-5, 2e-4)
WARMUP, WEIGHT_DECAY = 0.1, 0.01
ROOT = Path(__file__).resolve().parents[1]
RESULT = "result.json"
Result = dict[str, float]  # "best_dev": the best accuracy, "full_trials": what was trained, in full trials


def rows(data: Path, encoder: Path, rounds: int) -> Iterator[Row]:
    """Yield the ratio of the times, peer to ours, over at most two pairs."""
    rounds = min(rounds, 2)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rates = [_rates(folder / f"rates-{seed}", seed) for seed in range(rounds)]
        commands = {
            "ours": iter([_ours(data.absolute(), encoder.absolute(), seed) for seed in range(rounds)]),
            "peer": iter([_peer(data.absolute(), encoder.absolute(), drawn) for drawn in rates]),
        }
        ran: dict[str, list[Path]] = {"ours": [], "peer": []}
        contestants = {name: partial(_run, commands[name], folder, ran[name]) for name in commands}
        times = alternate(contestants, rounds, warm_up=0)
        results = {"ours": [_read_ours(own) for own in ran["ours"]], "peer": [_read_peer(own) for own in ran["peer"]]}
    hourly = {f"{name}_trials_per_hour": 3600 * TRIALS / statistics.median(seconds) for name, seconds in times.items()}
    found = {
        f"{name}_{key}": statistics.median(result[key] for result in own) for name, own in results.items() for key in own[0]
    }
    yield Row(
        number=10,
        what=f"{TRIALS} SST trials under ASHA, trials an hour",
        setting=f"{encoder.name}, {EXAMPLES:,} examples a full trial, batch {BATCH_SIZE}, CPU, a one-thread trial a core",
        goal=(">=", 4),
        figure=ratio(times, "peer", "ours"),
        details=hourly | found,
    )


def _run(commands: Iterator[list[str]], folder: Path, ran: list[Path]) -> None:
    """Run the next command as a new process in a new folder."""
    own, command = Path(tempfile.mkdtemp(dir=folder)), next(commands)
    _space(own)
    # what `search` has set for Ray in this process would be the peer's, too
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TUNE_", "TOKENIZERS_"))}
    fresh = {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(own / "cache"), "HF_HUB_OFFLINE": "1"}
    niceness = {"RAY_worker_niceness": "0"}  # Ray's own is 15: what else runs here would be served first
    done = subprocess.run(
        [sys.executable, *command],
        cwd=own,
        env=kept | fresh | niceness,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"`python {' '.join(command)}` ended with {done.returncode}:\n{done.stdout[-3000:]}")
    ran.append(own)


def _result(trials: Sequence[tuple[float, int]]) -> Result:
    """Summarise the (best dev accuracy, last point) of each trial."""
    assert len(trials) == TRIALS, f"{len(trials)} of {TRIALS} trials"
    return {"best_dev": max(score for score, _ in trials), "full_trials": sum(part for _, part in trials) / POINTS[-1]}


# ----------------------------------------------------------------------------------------------------------------- ours


def _ours(data: Path, encoder: Path, seed: int) -> list[str]:
    what = ["--space=space.yaml", f"--data={data}", f"--encoder={encoder}", f"--seed={seed}", "--name=sst"]
    return ["-m", "search.run", "--gpus=0", *what]


def _space(folder: Path) -> Path:
    document = {
        "trials": TRIALS,
        "rungs": list(POINTS),
        "sampler": "random",
        "trial_scheduler": "asha",
        "objective": "sst",
        "config": {
            "train_on": ["sst"],
            "budget": {"examples": EXAMPLES},
            "tasks": {"all": {"batch_size": BATCH_SIZE}},
            "optimizer": {"lr": {"log_uniform": list(RATES)}, "warmup": WARMUP, "weight_decay": WEIGHT_DECAY},
        },
    }
    path = folder / "space.yaml"
    path.write_text(dump_yaml(document), encoding="utf-8")
    return path


def _read_ours(folder: Path) -> Result:
    from search.results import read

    trials = read("sst", runs=folder / "runs").to_pylist()
    return _result([(trial["score"], trial["rung"]) for trial in trials])


def _rates(folder: Path, seed: int) -> list[float]:
    """Return the learning rates that a search with this seed draws: ASHA's results depend on them and their order."""
    from search.space.space import read_space
    from search.study.study import Study

    folder.mkdir()
    study = Study(folder, read_space(_space(folder)), seed)
    return [float(study.ask().params["optimizer/lr"]) for _ in range(TRIALS)]


# ----------------------------------------------------------------------------------------------------------------- peer


def _peer(data: Path, encoder: Path, rates: list[float]) -> list[str]:
    return ["-m", "benchmarks.whole_search", str(data), str(encoder), str(EXAMPLES), json.dumps(rates), RESULT]


def _read_peer(folder: Path) -> Result:
    return _result(json.loads((folder / RESULT).read_text(encoding="utf-8")))


def search_with_trainer(data: Path, encoder: Path, num_examples: int, rates: list[float], result: Path) -> None:
    """Run the same search with the library's own tools; write (best dev accuracy, last point) of each trial."""
    library = transformers()
    import ray
    import torch
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.basic_variant import BasicVariantGenerator

    folder = result.absolute().parent
    cores = usable_cores()
    steps = math.ceil(num_examples / BATCH_SIZE)
    points = {math.ceil(num_examples * part / POINTS[-1] / BATCH_SIZE): part for part in POINTS}
    tokenizer = library.AutoTokenizer.from_pretrained(encoder)

    class AtPoints(library.TrainerCallback):  # type: ignore[misc,name-defined]
        """Evaluations at the points; Trainer itself evaluates only at equal distances. The point is reported to ASHA."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_evaluate = state.global_step in points

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
            metrics["rung"] = points[state.global_step]

    def new_model() -> Any:
        torch.set_num_threads(1)
        return library.BertForSequenceClassification.from_pretrained(encoder, num_labels=5)

    trainer = library.Trainer(
        args=library.TrainingArguments(
            output_dir=str(folder / "trainer"),
            max_steps=steps,
            per_device_train_batch_size=BATCH_SIZE,
            per_device_eval_batch_size=BATCH_SIZE,
            warmup_steps=WARMUP,
            weight_decay=WEIGHT_DECAY,
            eval_strategy="steps",
            eval_steps=steps,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        model_init=new_model,
        data_collator=library.DataCollatorWithPadding(tokenizer),
        train_dataset=_tokenised(tokenizer, data, "train"),
        eval_dataset=_tokenised(tokenizer, data, "dev"),
        compute_metrics=lambda found: {"accuracy": float((found.predictions.argmax(axis=1) == found.label_ids).mean())},
        callbacks=[AtPoints()],
    )
    ray.init(num_cpus=cores, num_gpus=0, include_dashboard=False, log_to_driver=False)
    best = trainer.hyperparameter_search(
        hp_space=lambda _: {"learning_rate": tune.loguniform(*RATES)},
        compute_objective=lambda metrics: metrics["eval_accuracy"],
        n_trials=TRIALS,
        direction="maximize",
        backend="ray",
        resources_per_trial={"cpu": 1},
        search_alg=BasicVariantGenerator(points_to_evaluate=[{"learning_rate": rate} for rate in rates]),
        scheduler=ASHAScheduler("rung", "objective", "max", max_t=POINTS[-1], grace_period=POINTS[0], reduction_factor=3),
        storage_path=str(folder / "tune"),
        verbose=0,
    )
    trials = [trial.metric_analysis["objective"]["max"] for trial in best.run_summary.trials]
    parts = [trial.last_result["rung"] for trial in best.run_summary.trials]
    result.write_text(json.dumps(list(zip(trials, parts, strict=True))), encoding="utf-8")


def _tokenised(tokenizer: Any, data: Path, split: Any) -> list[dict[str, Any]]:
    sentences, labels = texts(data, "sst", split)
    columns = tokenise(tokenizer, sentences)
    return [{name: column[i] for name, column in columns.items()} | {"labels": int(label)} for i, label in enumerate(labels)]


if __name__ == "__main__":
    from benchmarks.whole_search import search_with_trainer as by_name  # so that Ray's workers import what they are sent

    by_name(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]), Path(sys.argv[5]))
