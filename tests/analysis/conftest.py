"""Small finished searches, run without Ray, in the layout that a search leaves behind."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import signal
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import best_to_test
from analysis.intervals import Estimate
from analysis.results import Comparison, Measured, Results
from analysis.retrain import Job
from analysis.selection import Selection
from analysis.table import Facts, Parameter, Table, Trial
from minbert_core.checkpoints import save_encoder
from minbert_core.config import TrialConfig
from minbert_core.data import toy
from minbert_core.data.tasks import TASKS
from minbert_core.data.toy import write_toy_corpus
from minbert_core.encoder import TINY, new_encoder
from minbert_core.inputs import open_inputs
from minbert_core.model import save_model
from minbert_core.settings.paths import as_written
from minbert_core.settings.yaml import dump_yaml
from minbert_core.train.folder import write_records
from minbert_core.train.trial import train
from search.methods.asha import RungScheduler
from search.methods.decisions import Arrival
from search.plan.folder import lock, write_plan
from search.plan.plan import make_plan
from search.plan.resources import Resources
from search.plan.summary import plan_record
from search.results import Search
from search.space.space import make_space
from search.study.engine import start_ray
from search.study.study import Study
from search.study.trials import TrialResult, stopped_at

MakeSearch = Callable[..., Path]
MakeUp = Callable[..., tuple[Selection, Results]]


def _make_search(
    store: Path,
    runs: Path,
    name: str,
    config: dict[str, Any],
    num_trials: int = 4,
    stops: bool = True,
    objective: Any = "norm",
) -> Path:
    """A finished search of a few tiny trials in `runs/name`, run in this process: the same study, records and folders.

    `store` is copied to where it would have been tracked.
    """
    own = {"budget": {"examples": 600}, "optimizer": {"lr": {"log_uniform": [1e-4, 3e-3]}}}
    document = {"about": "which rate?", "trials": num_trials, "rungs": [1, 3], "objective": objective, "baselines": [{}]}
    document |= {"config": {**own, **config}}
    plan = make_plan(name, make_space("small", document), 0, None, Resources(1, 0, 1, 0))
    folder = runs / name
    (folder / "trials").mkdir(parents=True)
    shutil.copy(store, runs.parent / "mlflow.db")
    (folder / "space.yaml").write_text(dump_yaml(plan.space.document), encoding="utf-8")
    write_plan(folder, plan_record(plan))
    with lock(folder):
        study, scheduler = Study(folder, plan.space, 0), RungScheduler((1, 3))
        for _ in range(num_trials):
            trial = study.ask()
            records, status, reason = [], "completed", "completed"
            for progress in train(trial.config(), open_inputs(trial.config())):
                records.append(progress.record)
                if progress.improved:
                    save_model(progress.model, trial.config(), trial.folder / "best", plan.inputs.encoder_folder)
                if progress.rung is None:
                    continue
                study.report(trial.number, records)
                exempt = trial.baseline is not None or not stops
                if (
                    scheduler.decide(Arrival(trial.number, "multitask", exempt, progress.rung, progress.record["dev/score"]))
                    == "STOP"
                ):
                    status, reason = "stopped", stopped_at(progress.rung, (1, 3))
                    break
            write_records(trial.folder / "metrics.jsonl", records)
            study.tell(trial.number, status, reason)  # type: ignore[arg-type]
        study.keep_best()
    return folder


def save_tiny_encoder(folder: Path, vocabulary: Path) -> None:
    """An untrained encoder that knows the toy corpus's words, as a checkpoint: `tiny` itself is for the toy corpus alone."""
    words = len(vocabulary.read_text(encoding="utf-8").splitlines())
    save_encoder(new_encoder(dataclasses.replace(TINY, vocab_size=words), 0, 0.1, 0.1), folder)
    shutil.copy(vocabulary, folder)


@pytest.fixture(scope="session")
def make_search(store: Path) -> MakeSearch:
    """make_search(runs, name, config, num_trials, stops, objective): a search's folder."""
    return partial(_make_search, store)


@contextlib.contextmanager
def small_toy(cache: Path) -> Iterator[None]:
    """120 / 40 / 10 examples per task in every toy corpus, those of Ray's workers included."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "SIZES", {"train": 120, "dev": 40, "test": 10})
        patch.setenv("XDG_CACHE_HOME", str(cache))
        yield


@pytest.fixture(scope="module", autouse=True)
def small_corpora(small_toy_cache: Path) -> Iterator[None]:
    """Small toy corpora for all tests of this folder, and for no other's."""
    with small_toy(small_toy_cache):
        yield


@pytest.fixture(scope="module")
def one_ray(small_corpora: None) -> Iterator[None]:
    """One Ray for all tests of a module that run best_to_test here: to start it takes longer than their trainings."""
    import ray

    handler = signal.getsignal(signal.SIGTERM)
    start_ray(Resources(1, 0, 1, 0), "local")  # one worker, which is warm after the first
    signal.signal(signal.SIGTERM, handler)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(best_to_test, "_ray", lambda resources: contextlib.nullcontext())
        yield
    ray.shutdown()
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="session")
def toy_runs(tmp_path_factory: pytest.TempPathFactory, small_toy_cache: Path, store: Path) -> Path:
    """A search on the toy corpus whose four trials all reached the last rung."""
    runs = tmp_path_factory.mktemp("toy") / "runs"
    with small_toy(small_toy_cache):
        _make_search(store, runs, "small", {"data": "toy", "encoder": "tiny"}, stops=False)
    return runs


@pytest.fixture(scope="session")
def tracked() -> Callable[..., dict[str, list[Any]]]:
    """tracked(runs, name): MLflow's runs of the experiment `name`, by default the test of the search `small`, by role."""

    def runs_of(runs: Path, name: str = "small-test") -> dict[str, list[Any]]:
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=f"sqlite:///{runs.parent / 'mlflow.db'}")
        experiment = client.get_experiment_by_name(name)
        assert experiment is not None
        found: dict[str, list[Any]] = {"search": [], "trial": []}
        for run in client.search_runs([experiment.experiment_id]):
            found[run.data.tags["role"]].append(run)
        return found

    return runs_of


@pytest.fixture(scope="session")
def make_encoder() -> Callable[[Path, Path], None]:
    """make_encoder(folder, vocabulary)."""
    return save_tiny_encoder


@pytest.fixture(scope="session")
def real_like(tmp_path_factory: pytest.TempPathFactory, small_toy_cache: Path, store: Path) -> tuple[Path, Path]:
    """(runs, data): a search on a folder in the course's layout whose test files have no labels."""
    place = tmp_path_factory.mktemp("real")
    data, encoder = place / "data", place / "encoder"
    with small_toy(small_toy_cache):
        write_toy_corpus(data)
        for name in TrialConfig().train_on:
            path = data / TASKS[name].files["test"]
            rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
            column = rows[0].index(TASKS[name].label_column)
            path.write_text(
                "".join("\t".join(cell for i, cell in enumerate(row) if i != column) + "\n" for row in rows), encoding="utf-8"
            )
        save_tiny_encoder(encoder, data / "vocab.txt")
        _make_search(store, place / "runs", "small", {"data": str(data), "encoder": str(encoder)})
    return place / "runs", data


@pytest.fixture
def make_up(tmp_path: Path) -> MakeUp:
    """make_up(config, scores, baseline, beats, params): what a test measured, out of nothing.

    scores: trial -> split -> the score of each seed; the columns before `score` lie 0.01, 0.02 … below it. Every interval
    reaches 0.02 to both sides. beats: the trials that beat the baseline, the others cannot be told from it. All claim .9.
    """

    def make(
        config: TrialConfig,
        scores: Mapping[int, Mapping[str, Sequence[float]]],
        baseline: int | None = None,
        beats: Collection[int] = (),
        params: Mapping[int, dict[str, Any]] | None = None,
    ) -> tuple[Selection, Results]:
        columns = ["score", "mean", "norm", *reversed(config.train_on)]
        trials, found, metrics = {}, {}, {}
        for number, of in scores.items():
            folder = tmp_path / f"{number:03d}"
            folder.mkdir()
            (folder / "config.yaml").write_text(dump_yaml(as_written(config)), encoding="utf-8")
            record = {"kind": "dev", "rung": 9, **{f"dev/{column}": 0.9 for column in columns}}
            own = {"optimizer/lr": 1e-5 * (number + 1), "tasks/all/pooling": "mean"} if params is None else params[number]
            trials[number] = TrialResult(number, "completed", "completed", own, None, folder, [record])
            found[number] = {split: _columns(columns, values) for split, values in of.items()}
            metrics |= {Job(number, seed, folder): {} for seed in range(len(of["dev"]))}
        finalists = [trial for number, trial in trials.items() if number != baseline]
        chosen = None if baseline is None else trials[baseline]
        search = Search(tmp_path / "small", {"baselines": [{}]}, list(trials.values()))
        comparisons = [
            Comparison(split, number, baseline, {"score": Estimate(0.1, 0.05, 0.15, 0.01)}, 0.02 if number in beats else 0.2)
            for number in scores
            for split in scores[number]
            if baseline is not None and number != baseline
        ]
        seeds = list(range(max(len(of["dev"]) for of in scores.values())))
        return Selection(search, finalists, chosen, seeds), Results(
            metrics, found, comparisons, finalists[0].number, next(iter(metrics))
        )

    return make


def _columns(columns: list[str], values: Sequence[float]) -> dict[str, Measured]:
    found = {}
    for i, column in enumerate(columns):
        shifted = [value - 0.01 * i for value in values]
        found[column] = Measured(shifted, min(shifted) - 0.02, max(shifted) + 0.02)
    return found


PARAMETERS = {
    "optimizer/lr": Parameter("optimizer/lr", "log_uniform", (), 1e-5, 1e-2),
    "dropout": Parameter("dropout", "uniform", (), 0.0, 1.0),
    "gradient": Parameter("gradient", "choice", ("sum", "pcgrad", "gradvac")),
    "gradient/gradvac/beta": Parameter("gradient/gradvac/beta", "uniform", (), 0.0, 1.0),
}
TASK_METRICS = {"sst": "accuracy", "sts": "pearson"}
Score = Callable[[dict[str, Any], np.random.Generator], float]


def _made_up(
    num_trials: int, score: Score, name: str = "made", sts: Score | None = None, rungs: tuple[int, ...] = (1,)
) -> Table:
    """A search whose trials' scores are a function of their parameters and of noise; sst is the score."""
    generator = np.random.default_rng(0)
    trials = []
    for number in range(num_trials):
        params: dict[str, Any] = {
            "optimizer/lr": float(10 ** generator.uniform(-5, -2)),
            "dropout": float(generator.random()),
            "gradient": ("sum", "pcgrad", "gradvac")[number % 3],
        }
        if params["gradient"] == "gradvac":
            params["gradient/gradvac/beta"] = float(generator.random())
        evaluations = []
        for rung in rungs:
            value = score(params, generator)
            of_sts = sts(params, generator) if sts else value
            evaluations.append(
                {"rung": rung, "stage": 0, "examples": 100 * rung, "seconds": 10.0 * rung,
                 "dev/score": value, "dev/sst": value, "dev/sts": of_sts}
            )  # fmt: skip
        trials.append(
            Trial(name, number, "completed", None, "multitask", 10.0 * rungs[-1], 100 * rungs[-1], params, evaluations)
        )
    facts = Facts(name, "Which?", num_trials, False, False, "norm", TASK_METRICS, PARAMETERS)
    return Table(trials, {name: facts})


@pytest.fixture(scope="session")
def made_up() -> Callable[..., Table]:
    """made_up(num_trials, score, name, sts, rungs): the table of a search without files."""
    return _made_up
