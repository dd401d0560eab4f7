"""A model's answers to the dev split, row by row: what errors.py and the report read. The test split is never opened.

    MODEL ─► its folder ─► model, config, data folder ─► per task: dev rows with their texts ─► logits ─► Answers

MODEL is runs/NAME (its best model), a trial's folder, a best/ folder, or a model that best_to_test has retrained.
Legend: B rows of a task, K outputs, C classes.
"""

from __future__ import annotations

import filecmp
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import special

from analysis.forest import Floats
from minbert_core.commands import Refused
from minbert_core.config import TrialConfig
from minbert_core.data.corpus import read_split
from minbert_core.data.tasks import Task
from minbert_core.data.tokens import Encoding, TokenisedSplit, tokenise_split
from minbert_core.evaluate import metric
from minbert_core.files import cache_folder
from minbert_core.inputs import data_folder
from minbert_core.machine import resolve_precision, tokens_per_pass
from minbert_core.model import HEADS, Predictor, load, predict_logits, predictions
from minbert_core.predict import model_folder
from minbert_core.words import did_you_mean, duration
from search.plan.folder import read_plan
from search.plan.relocated import data_place

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Answers:
    """The answers of one model to the labelled dev rows of one task, in the order of the file."""

    model: str  # as the user named it
    task: Task
    ids: list[str]
    texts: list[tuple[str, ...]] = field(repr=False)  # one or two per row, prepared as in training
    labels_B: Floats
    logits_BK: NDArray[np.float32]
    lengths_B: NDArray[np.int64]  # tokens as the model reads them, with special tokens
    is_cut_B: NDArray[np.bool_]  # the row has more tokens than the model reads

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def answers_B(self) -> Floats:
        """The number of the class, or the value in label units."""
        return predictions(self.task, self.logits_BK)

    @cached_property
    def shares_BC(self) -> Floats:
        """The probability of each class: softmax of the logits, or sigmoid of a single one; a regression has no columns."""
        logits_BK = self.logits_BK.astype(np.float64)
        if self.task.kind == "classification":
            return np.asarray(special.softmax(logits_BK, axis=1))
        if self.task.kind == "binary":
            return np.asarray(special.expit(np.concatenate([-logits_BK, logits_BK], axis=1)))
        return np.zeros((len(self), 0))

    @property
    def label_shares_B(self) -> Floats:
        """The probability of each row's label; of classes only."""
        return np.asarray(self.shares_BC[np.arange(len(self)), self.labels_B.astype(int)])

    @property
    def is_regression(self) -> bool:
        return self.task.kind == "regression"

    @property
    def value(self) -> float:
        """The task's metric."""
        return metric(self.task, self.logits_BK, self.labels_B)

    def name_of(self, label: float) -> str:
        """Return a label or an answer as text: the class's name, or the value with two decimals."""
        return self.task.classes[int(label)] if self.task.classes else f"{label:.2f}"


@dataclass(frozen=True)
class DevModel:
    """A saved model, and the data folder whose dev rows it is asked."""

    name: str
    folder: Path
    predictor: Predictor
    data: Path

    @property
    def config(self) -> TrialConfig:
        return self.predictor.config


def open_model(named: Path, data: str | None = None) -> DevModel:
    """Load the model that a path means. data: its data folder, if that was moved.

    Raises ValueError: no such folder, not a model.  Raises Refused: a search without a model yet, or data that was moved or
    changed.
    """
    folder = find_model(named)
    predictor = load(folder)
    if predictor.config.rows != "train":
        law = "was trained on its dev rows, too (`rows: train+dev`), so its answers to them say nothing"
        raise Refused(f"{named} {law}. Give the model of the same configuration that was trained on train alone.")
    return DevModel(str(named), folder.resolve(), predictor, _data(folder.resolve(), predictor.config, data))


def find_model(named: Path) -> Path:
    """Return the folder of the model that a path means.

    Raises ValueError: no such folder.  Raises Refused: a search without a model yet.
    """
    if not named.is_dir():
        law = "A model is runs/NAME, a best/ folder, or a folder in runs/NAME/test/retrained/"
        raise ValueError(f"There is no folder {named}. {law}.")
    folder = model_folder(named)
    if folder is None:
        raise Refused(f"{named} has no model yet. A trial saves one at its first evaluation; a search keeps its best trials'.")
    return folder


def trial_of(folder: Path) -> str:
    """Return the trial whose model a folder holds, as `007`, also that of a search's best/; "" if it is of no search."""
    weights = folder / HEADS  # best/ of a search is a copy of a trial's, as hard links where the disk has them
    trials = folder.parent.glob(f"trials/*/best/{HEADS}")
    of_best = next((path.parts[-3] for path in trials if filecmp.cmp(path, weights, shallow=False)), "")
    return of_best or (folder.parts[-2] if folder.parts[-3:-2] == ("trials",) else "")


def _data(folder: Path, config: TrialConfig, given: str | None) -> Path:
    """Find the data folder of a model; of a model in a search's folder, check that the data are those of the search."""
    search = next((parent for parent in folder.parents if (parent / "plan.json").exists()), None)
    if search is not None:
        places = data_place(read_plan(search), config, given)
        config = config.model_copy(update={"data": places.get(config.data, config.data)})
    elif given is not None:
        config = config.model_copy(update={"data": given})
    return data_folder(config)


def choose_tasks(models: Sequence[DevModel], names: Sequence[str] | None) -> list[str]:
    """Return the tasks that all models have, or those named.  Raises ValueError: no shared task, or an unknown name."""
    known = [name for name in models[0].config.train_on if all(name in model.config.train_on for model in models)]
    if not known:
        each = "; ".join(f"{model.name} {', '.join(model.config.train_on)}" for model in models)
        raise ValueError(f"Two models can be compared on tasks that both have. Got {each}.")
    for name in names or ():
        if name not in known:
            raise ValueError(f"Unknown task '{name}'{did_you_mean(name, known)}")
    return list(names or known)


def dev_answers(model: DevModel, tasks: Sequence[str], progress: Progress = lambda text: None) -> Iterator[Answers]:
    """Yield the answers to each task's dev rows as soon as they are known. progress: gets a line with the time left.

    Raises CorpusError: a missing or invalid file of the data folder.
    """
    splits = {name: _split(model, name) for name in tasks}
    lengths = {name: split.lengths(_encoding(model, name), model.config.max_length) for name, split in splits.items()}
    device = next(model.predictor.model.parameters()).device
    num_tokens = sum(int(of.sum()) for of in lengths.values())
    clock = _Clock(max(1, round(num_tokens / tokens_per_pass(device))), progress)
    for name, split in splits.items():
        task, config = split.task, model.config
        precision = resolve_precision(config.machine.precision, device) if device.type == "cuda" else "float32"
        tokenizer = model.predictor.tokenizer
        specials = tokenizer.cls_id, tokenizer.sep_id
        clock.begin(f"{model.name}: {name}, {len(split):,} dev rows")
        logits_BK = predict_logits(model.predictor.model, name, split, config.max_length, specials, precision, clock.passed)
        rows = read_split(model.data, task, "dev")
        assert split.labels is not None, "dev is read with labels"
        is_cut_B = split.are_longer(_encoding(model, name), config.max_length)
        yield Answers(model.name, task, split.ids, rows.texts, split.labels, logits_BK, lengths[name], is_cut_B)


def _split(model: DevModel, name: str) -> TokenisedSplit:
    """Open a task's dev split, tokenised by the model's own tokenizer."""
    task = model.config.known_tasks[name]
    return tokenise_split(model.data, task, "dev", model.predictor.tokenizer, cache_folder() / "tokens")


def _encoding(model: DevModel, name: str) -> Encoding:
    return model.predictor.model.plans[name].pair_encoding.kind


class _Clock:
    """The time left of a model's passes, from the share of the passes that it has made."""

    def __init__(self, num_passes: int, progress: Progress) -> None:
        self.num_passes, self.progress = num_passes, progress
        self.since, self.seconds, self.done, self.about = 0.0, 0.0, 0, ""

    def begin(self, about: str) -> None:
        """Begin a task; the time between two tasks does not count, since another model may work then."""
        self.since, self.about = time.monotonic(), about

    def passed(self) -> None:
        """Count a pass, and report."""
        now = time.monotonic()
        self.seconds, self.since, self.done = self.seconds + now - self.since, now, self.done + 1
        share = min(1.0, self.done / self.num_passes)
        self.progress(f"{self.about}: {share:.0%}, about {duration(self.seconds * (1 / share - 1))} left")
