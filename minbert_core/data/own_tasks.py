"""The user's own tasks, as a config declares them: kind, files, columns and labels.

    own_tasks:
      reviews:
        kind: classification                       # binary, regression
        files: {train: reviews.jsonl, test: reviews-test.csv}
        text: review                               # for pairs: [question, answer]
        label: stars
        labels: [1, 2, 3, 4, 5]

Its head, loss and so on are set under `tasks/reviews`, as for the course's tasks.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from minbert_core.data.tables import FORMATS, as_label
from minbert_core.data.tasks import Metric, Task
from minbert_core.files import user_path
from minbert_core.settings.models import NAME, Settings, Variant, bare
from minbert_core.words import shown


def _one_or_more(value: object) -> object:
    return [value] if isinstance(value, str) else value


Label = Annotated[str, BeforeValidator(lambda value: as_label(bare(value)))]  # 1, true and good are all valid names


class Files(Settings):
    """The files of the rows: `.csv`, `.tsv`, `.jsonl` or `.parquet`. Relative names are inside `data`; `~` is expanded."""

    train: str = Field(description="file of the training rows")
    dev: str | None = Field(None, description="file of the dev rows; null: dev_share of the train file, chosen by dev_seed")
    test: str | None = Field(None, description="file of the test rows, with or without labels; only best_to_test opens it")

    @model_validator(mode="after")
    def _readable(self) -> Files:
        written = {split: name for split in ("train", "dev", "test") if (name := getattr(self, split)) is not None}
        for split, name in written.items():
            if not name.lower().endswith(FORMATS):
                raise ValueError(f"`{split}` must end in {', '.join(FORMATS)}. Got '{name}'.")
        if len(set(written.values())) < len(written):
            raise ValueError(f"must name different files. Got {shown(written)}. To cut dev from the train file, omit `dev`.")
        return self


class _OwnTask(Variant):
    """The knobs that all three kinds share."""

    files: Files = Field(description="the train file, and the dev and test files if they exist")
    text: Annotated[tuple[str, ...], BeforeValidator(_one_or_more)] = Field(
        min_length=1, max_length=2, description="column of the sentence, or the two columns of a pair"
    )
    label: str = Field("label", description="column of the label")
    id: str | None = Field(None, description="column of a row's id, for the prediction files; null: rows are numbered from 1")
    dev_share: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="share of the train file that becomes dev, if `files` has no dev",
        json_schema_extra={"unit": "of its rows"},
    )
    dev_seed: int = Field(0, ge=0, description="seed that chooses these rows; rows with equal texts stay together")
    tsv_quotes: bool = Field(
        False, description="true: double quotes enclose fields of .tsv files, as in .csv; false: they are part of the text"
    )

    def _task(self, name: str, metric: Metric, classes: tuple[str, ...], label_range: tuple[float, float]) -> Task:
        return Task(
            name=name,
            kind=self.kind,  # type: ignore[arg-type]  # each kind is a TaskKind
            outputs=len(classes) if self.kind == "classification" else 1,
            label_range=label_range,
            classes=classes,
            text_columns=self.text,
            label_column=self.label,
            files={split: str(user_path(name)) for split, name in self.files.model_dump(exclude_none=True).items()},
            course_text=None,
            prediction_column="prediction",
            metric=metric,
            id_column=self.id,
            dev_share=self.dev_share if self.files.dev is None else 0.0,
            dev_seed=self.dev_seed if self.files.dev is None else 0,
            tsv_quotes=self.tsv_quotes,
        )


def _different(labels: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(labels)) < len(labels):
        raise ValueError(f"must differ from each other. Got {shown(labels)}.")
    if "" in labels:
        raise ValueError(f"must not be empty, because rows without a label are dropped. Got {shown(labels)}.")
    return labels


class Classification(_OwnTask):
    """One of several classes, predicted by the largest of K logits."""

    kind: Literal["classification"] = "classification"
    labels: tuple[Label, ...] = Field(min_length=2, description="all labels as written in the files; the first is class 0")
    metric: Literal["accuracy", "macro_f1"] = Field(
        "accuracy", description="share of correct predictions, or mean F1 over the classes"
    )

    _labels_differ = field_validator("labels")(_different)

    def task(self, name: str) -> Task:
        return self._task(name, self.metric, self.labels, (0, len(self.labels) - 1))


class Binary(_OwnTask):
    """No or yes, predicted by one logit."""

    kind: Literal["binary"] = "binary"
    labels: tuple[Label, Label] = Field(
        ("0", "1"), description="no and yes as written in the files; False and True also count as 0 and 1"
    )
    metric: Literal["accuracy", "f1"] = Field("accuracy", description="share of correct predictions, or F1 of yes")

    _labels_differ = field_validator("labels")(_different)

    def task(self, name: str) -> Task:
        return self._task(name, self.metric, self.labels, (0, 1))


class Regression(_OwnTask):
    """A real number, predicted by one logit in the same unit."""

    kind: Literal["regression"] = "regression"
    range: tuple[float, float] = Field(description="the lowest and the highest valid label")
    metric: Literal["pearson", "spearman"] = Field("pearson", description="correlation with the labels, or with their ranks")

    @field_validator("range")
    @classmethod
    def _rises(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not value[0] < value[1]:
            raise ValueError(f"must be the lowest and the highest label, in this order. Got {shown(value)}.")
        return value

    def task(self, name: str) -> Task:
        return self._task(name, self.metric, (), self.range)


OwnTask = Annotated[Classification | Binary | Regression, Field(discriminator="kind")]


def named_wrong(name: str, reserved: frozenset[str]) -> str:
    """Return the end of a sentence that says why a task cannot have a name; "" if the name is valid."""
    if name in reserved:
        return f"has a reserved name. Choose another. Reserved: {', '.join(sorted(reserved))}"
    if not NAME.fullmatch(name) or name.isdigit():
        return "must be named with a-z, 0-9, _ and -, and not only with digits"
    return ""
