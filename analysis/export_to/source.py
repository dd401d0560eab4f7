"""The model to export: its answers, on the CPU, to a few texts, with which every export is compared.

    MODEL ─► Source ─► as_*.py: why not, write, compare ─► the largest difference per task

Legend: B examples, K outputs, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minbert_core.config import TaskPlan, TrialConfig
from minbert_core.data.tasks import Task
from minbert_core.data.tokens import pack, tokenise_texts
from minbert_core.encoder_files import WEIGHTS
from minbert_core.model import MultitaskBert, Predictor, load
from minbert_core.tensor_files import load_tensors

Examples = Sequence[tuple[str, ...]]

# Short and long, beyond any max_length, with case, accents, marks that the course's text sets apart, and unknown characters
LONG = "the plot turns, and turns again; nobody's sure where it leads. " * 60
SENTENCES: Examples = [
    ("A moving film.",),
    ("It's NOT what the trailer promised, is it?",),
    ("ok",),
    ("Un café, naïve and — at 3.50 — overpriced… 東京 ☃",),
    (LONG,),
]
PAIRS: Examples = [
    ("Is it far?", "How far is it?"),
    ("A man is playing a guitar.", "Nobody's here, I think; is anybody?"),
    ("ok", LONG),
    (LONG, "What's the plot?"),
    (LONG, LONG.upper() + "And then it ends."),
]


@dataclass(frozen=True)
class Source:
    """A loaded model and its folder."""

    folder: Path
    predictor: Predictor

    @property
    def model(self) -> MultitaskBert:
        return self.predictor.model

    @property
    def config(self) -> TrialConfig:
        return self.predictor.config

    @property
    def tasks(self) -> dict[str, Task]:
        return self.predictor.tasks

    def plan(self, task: str) -> TaskPlan:
        return self.model.plans[task]

    def encoder_weights(self) -> dict[str, Tensor]:
        """Read the encoder's tensors, by their names in transformers' BertModel."""
        return load_tensors(self.folder / "encoder" / WEIGHTS)

    def examples(self, task: str) -> Examples:
        """Return the texts on which an export of the task is compared with the model."""
        return PAIRS if self.tasks[task].is_pair else SENTENCES

    def readout(self, task: str, examples: Examples) -> Tensor:
        """Compute what the task's answer is read from, (B, outputs of the task): logits, or the value of a regression."""
        return self._outputs(task, examples)[0]

    def features(self, task: str, examples: Examples) -> Tensor:
        """Compute what the task's head reads, (B, F): of a pair of two sequences, u and v side by side."""
        return self._outputs(task, examples)[1]

    def _outputs(self, task: str, examples: Examples) -> tuple[Tensor, Tensor]:
        tokenizer, plan = self.predictor.tokenizer, self.plan(task)
        texts = tokenise_texts(examples, plan.task, tokenizer)
        specials = tokenizer.cls_id, tokenizer.sep_id
        batch = pack(texts, np.arange(len(examples)), plan.pair_encoding.kind, self.config.max_length, specials)
        with torch.inference_mode():
            output = self.model(task, batch)
            return self.model.readout(task, output.logits_BK), output.features_BF


def open_source(folder: Path) -> Source:
    """Load a saved model on the CPU.  Raises ValueError: not a model."""
    return Source(folder.resolve(), load(folder, "cpu"))


def largest(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest absolute difference of two tensors of one shape; infinite if a number is not finite."""
    assert ours.shape == theirs.shape, f"an export answers with shape {tuple(theirs.shape)}, the model with {tuple(ours.shape)}"
    difference = (ours.double() - theirs.double()).abs().max().item()
    return difference if np.isfinite(difference) else float("inf")
