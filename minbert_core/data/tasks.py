"""`Task`, and the course's tasks.  Without torch, because readers of files and builders of models both start here.

The user's own tasks are declared in a config (own_tasks.py) and become Tasks, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TaskKind = Literal["classification", "binary", "regression"]
Metric = Literal["accuracy", "macro_f1", "f1", "pearson", "spearman"]
SplitName = Literal["train", "dev"]  # the test split has its own door, analysis/test_split.py
SPLITS: tuple[SplitName, ...] = ("train", "dev")


@dataclass(frozen=True)
class Task:
    """One labelled task over sentences or sentence pairs.

    `outputs` is K, the width of the logits: the number of classes, or 1. Labels are in `label_range`, both ends included, and
    are whole numbers except for regression. `classes` names 0, 1 …; a regression has none. `files` maps train, dev and test to
    file names inside a data folder; without dev, `dev_share` of the train file is dev, chosen by `dev_seed`.
    `course_text` says how the course prepares its text: "strip" or "split_punctuation". None marks a task of the user: its text
    is not changed, and its labels are the names in `classes`. If `id_column` is None, rows are numbered.
    `tsv_quotes`: double quotes enclose fields of TAB-separated files, as in the course's files.
    """

    name: str
    kind: TaskKind
    outputs: int
    label_range: tuple[float, float]
    classes: tuple[str, ...]
    text_columns: tuple[str, ...]
    label_column: str
    files: dict[str, str]
    course_text: Literal["strip", "split_punctuation"] | None
    prediction_column: str
    metric: Metric
    id_column: str | None = "id"
    dev_share: float = 0.0
    dev_seed: int = 0
    tsv_quotes: bool = True

    @property
    def is_pair(self) -> bool:
        return len(self.text_columns) == 2

    @property
    def is_own(self) -> bool:
        return self.course_text is None

    @property
    def cuts_dev(self) -> bool:
        """True if dev is cut from the train file."""
        return "dev" not in self.files

    def file(self, split: SplitName) -> str:
        """Return the name of the file with a split's rows: the train file for both splits if dev is cut from it."""
        return self.files["train" if self.cuts_dev else split]

    @property
    def is_correlation(self) -> bool:
        return self.metric in ("pearson", "spearman")

    def unit(self, value: float) -> float:
        """Map a value of the task's metric to [0, 1]: a correlation r becomes (r + 1)/2."""
        return (value + 1) / 2 if self.is_correlation else value


def _files(stem: str) -> dict[str, str]:
    return {"train": f"{stem}-train.csv", "dev": f"{stem}-dev.csv", "test": f"{stem}-test-student.csv"}


_COURSE = (
    Task(
        name="sst",
        kind="classification",
        outputs=5,
        label_range=(0, 4),
        classes=("very negative", "negative", "neutral", "positive", "very positive"),
        text_columns=("sentence",),
        label_column="sentiment",
        files=_files("ids-sst"),
        course_text="strip",
        prediction_column="Predicted_Sentiment",
        metric="accuracy",
    ),
    Task(
        name="para",
        kind="binary",
        outputs=1,
        label_range=(0, 1),
        classes=("no paraphrase", "paraphrase"),
        text_columns=("sentence1", "sentence2"),
        label_column="is_duplicate",
        files=_files("quora"),
        course_text="split_punctuation",
        prediction_column="Predicted_Is_Paraphrase",
        metric="accuracy",
    ),
    Task(
        name="sts",
        kind="regression",
        outputs=1,
        label_range=(0, 5),
        classes=(),
        text_columns=("sentence1", "sentence2"),
        label_column="similarity",
        files=_files("sts"),
        course_text="split_punctuation",
        prediction_column="Predicted_Similiary",  # the course's own spelling, which its grader expects
        metric="pearson",
    ),
    Task(  # whole film reviews: seven in eight are longer than 128 word pieces
        name="cfimdb",
        kind="classification",
        outputs=2,
        label_range=(0, 1),
        classes=("negative", "positive"),
        text_columns=("sentence",),
        label_column="sentiment",
        files=_files("ids-cfimdb"),
        course_text="strip",
        prediction_column="Predicted_Sentiment",
        metric="accuracy",
    ),
)
TASKS: dict[str, Task] = {task.name: task for task in _COURSE}
