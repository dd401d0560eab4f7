"""What a task is, and the course's tasks.  No torch: readers of files and builders of models both start here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TaskKind = Literal["classification", "binary", "regression"]
SplitName = Literal["train", "dev"]  # the test split has a door of its own: corpus.load_test_split


@dataclass(frozen=True)
class Task:
    """One labelled task over sentences or sentence pairs.

    `outputs` is K, the width of the logits: the number of classes, or 1. Labels lie in `label_range`, both ends included;
    they are whole numbers but for regression. `files` maps train, dev and test to file names inside a data folder.
    `course_text` says how the course prepares its text: "strip" or "split_punctuation".
    """

    name: str
    kind: TaskKind
    outputs: int
    label_range: tuple[float, float]
    text_columns: tuple[str, ...]
    label_column: str
    files: dict[str, str]
    course_text: Literal["strip", "split_punctuation"]
    prediction_column: str

    @property
    def is_pair(self) -> bool:
        return len(self.text_columns) == 2

    @property
    def metric(self) -> Literal["accuracy", "pearson"]:
        return "pearson" if self.kind == "regression" else "accuracy"


def _files(stem: str) -> dict[str, str]:
    return {"train": f"{stem}-train.csv", "dev": f"{stem}-dev.csv", "test": f"{stem}-test-student.csv"}


_PAIR = ("sentence1", "sentence2")

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("sst", "classification", 5, (0, 4), ("sentence",), "sentiment", _files("ids-sst"), "strip", "Predicted_Sentiment"),
        Task(
            "para", "binary", 1, (0, 1), _PAIR, "is_duplicate", _files("quora"), "split_punctuation", "Predicted_Is_Paraphrase"
        ),
        # "Similiary" is the course's own spelling, which its grader expects
        Task("sts", "regression", 1, (0, 5), _PAIR, "similarity", _files("sts"), "split_punctuation", "Predicted_Similiary"),
        # whole film reviews, positive or not: seven in eight are longer than 128 word pieces
        Task(
            "cfimdb",
            "classification",
            2,
            (0, 1),
            ("sentence",),
            "sentiment",
            _files("ids-cfimdb"),
            "strip",
            "Predicted_Sentiment",
        ),
    )
}
