"""Tasks of one's own: declared in a config, read from four formats, dev cut from train, every fault a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.test_split import load_test_split
from minbert_core.config_checks import load_config
from minbert_core.data.corpus import Split, fingerprint, read_split
from minbert_core.data.tables import CorpusError
from minbert_core.data.tasks import Task
from minbert_core.settings.faults import SettingsError
from minbert_core.settings.paths import as_written, flatten, unflatten
from minbert_core.settings.yaml import dump_yaml, parse_yaml

REVIEWS: dict[str, Any] = {
    "kind": "classification",
    "files": {"train": "r.jsonl", "dev": "d.jsonl", "test": "t.jsonl"},
    "text": "review",
    "label": "stars",
    "labels": ["bad", "fair", "good"],
}
ROWS = [{"review": "So SO.", "stars": "fair"}, {"review": "Great!", "stars": "good"}, {"review": "No", "stars": "bad"}]


def declared(**own: Any) -> Task:
    document = {"own_tasks": {"mine": REVIEWS | own}, "train_on": ["mine"]}
    return load_config({**document}).known_tasks["mine"]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read(folder: Path, **own: Any) -> Split:
    return read_split(folder, declared(**own), "train")


def fault(**own: Any) -> str:
    with pytest.raises(SettingsError) as error:
        declared(**own)
    return str(error.value)


# ------------------------------------------------------------------------------------------------------------- declaring


def test_a_declaration_is_a_task() -> None:
    task = declared()
    assert (task.kind, task.outputs, task.label_range, task.metric) == ("classification", 3, (0, 2), "accuracy")
    assert task.is_own and not task.is_pair and not task.cuts_dev  # noqa: PT018
    pair = {"kind": "regression", "text": ["a", "b"], "range": [1, 7], "metric": "spearman"}
    config = {"own_tasks": {"mine": pair | {"files": {"train": "x.csv"}}}, "train_on": ["mine"]}
    task = load_config(config).known_tasks["mine"]
    assert (task.outputs, task.label_range, task.metric, task.is_pair, task.cuts_dev) == (1, (1, 7), "spearman", True, True)


def test_a_declaration_survives_being_written_as_yaml_and_as_paths() -> None:
    labels = [1, 2.0, True, "no"]
    config = load_config({"own_tasks": {"mine": REVIEWS | {"labels": labels}}, "train_on": ["mine"]})
    assert config.known_tasks["mine"].classes == ("1", "2", "true", "no")
    assert not config.known_tasks["mine"].tsv_quotes
    written = as_written(config)
    assert load_config(parse_yaml(dump_yaml(written))[0]) == config
    assert flatten(written)["own_tasks/mine/classification/files/train"] == "r.jsonl"
    assert load_config(unflatten(flatten(written))) == config


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        ({"kind": "ranking"}, "Unknown `own_tasks/mine` kind 'ranking'. Known: binary, classification, regression."),
        ({"labels": ["a"]}, "`own_tasks/mine/classification/labels` must have 2 or more entries. Got ['a']."),
        ({"labels": ["1", 1, 2]}, "`own_tasks/mine/classification/labels` must differ from each other. Got ['1', '1', '2']."),
        (
            {"labels": ["good", None]},
            "`own_tasks/mine/classification/labels` must not be empty, because rows without a label are dropped",
        ),
        (
            {"labels": ["True", True]},
            "`own_tasks/mine/classification/labels` must differ from each other. Got ['true', 'true'].",
        ),
        ({"labels": ["4.0", 4]}, "`own_tasks/mine/classification/labels` must differ from each other. Got ['4', '4']."),
        ({"text": ["a", "b", "c"]}, "`own_tasks/mine/classification/text` must have at most 2 entries. Got ['a', 'b', 'c']."),
        ({"files": {"train": "x.txt"}}, "`train` must end in .csv, .tsv, .jsonl, .parquet. Got 'x.txt'."),
        ({"files": {"train": "x.csv", "dev": "x.csv"}}, "must name different files"),
        ({"metric": "pearson"}, "Unknown `own_tasks/mine/classification/metric` 'pearson'"),
        ({"dev_share": 1}, "`own_tasks/mine/classification/dev_share` must be < 1. Got 1."),
        ({"colour": 1}, "Unknown key `own_tasks/mine/classification/colour`"),
        ({"kind": "regression"}, "`own_tasks/mine/regression/range` is missing."),
    ],
)
def test_what_is_wrong_with_a_declaration_is_a_sentence(own: dict[str, Any], sentence: str) -> None:
    assert sentence in fault(**own)


@pytest.mark.parametrize("name", ["sst", "all", "norm", "score", "My Task", "7", "a/b", "type", "values"])
def test_a_name_that_is_taken_or_no_path_is_refused(name: str) -> None:
    with pytest.raises(
        SettingsError,
        match=r"`own_tasks/.*` (has a reserved name.* Reserved: all, cfimdb, |must be named with|has a name that torch)",
    ):
        load_config({"own_tasks": {name: REVIEWS}})


def test_an_own_task_is_learned_as_tasks_says_it() -> None:
    own = {"mine": REVIEWS, "pairs-too": REVIEWS | {"text": ["a", "b"]}}
    tasks = {"all": {"batch_size": 4}, "pairs": {"pair_encoding": "bi"}, "mine": {"head": "mlp"}}
    config = load_config({"own_tasks": own, "train_on": ["sst", *own], "tasks": tasks})
    assert (config.task("mine").head.kind, config.task("mine").loss.kind, config.task("mine").outputs) == (
        "mlp",
        "cross_entropy",
        3,
    )
    assert config.task("pairs-too").vectors == 2
    with pytest.raises(SettingsError, match="`tasks/mine/loss` kind 'mse' does not fit task mine, which is classification"):
        load_config({"own_tasks": own, "train_on": ["mine"], "tasks": {"mine": {"loss": "mse"}}})
    with pytest.raises(SettingsError, match=r"Unknown task in `train_on` 'mines'; did you mean 'mine'\?"):
        load_config({"own_tasks": own, "train_on": ["mines"]})


# --------------------------------------------------------------------------------------------------------------- reading


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """The rows in the format of the suffix."""
    if path.suffix == ".jsonl":
        write_jsonl(path, rows)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        mark = "," if path.suffix == ".csv" else "\t"
        lines = [rows[0].keys(), *(row.values() for row in rows)]
        path.write_text("".join(mark.join(map(str, line)) + "\n" for line in lines), encoding="utf-8")


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_every_format_gives_the_same_rows(suffix: str, tmp_path: Path) -> None:
    write(tmp_path / f"r.{suffix}", ROWS)
    split = read(tmp_path, files={"train": f"r.{suffix}", "dev": "d.csv"})
    assert split.ids == ["1", "2", "3"]
    assert split.texts == [("So SO.",), ("Great!",), ("No",)]  # as it stands: the tokenizer lowers it, or does not
    assert split.labels == [1, 2, 0]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_labels_that_are_numbers_are_known_by_their_names_in_every_format(suffix: str, tmp_path: Path) -> None:
    rows = [{"key": f"k{i}", "a": "x", "b": "y z", "stars": stars} for i, stars in enumerate([4.0, 1.0, 4.0])]
    write(tmp_path / f"r.{suffix}", rows)
    split = read(tmp_path, files={"train": f"r.{suffix}", "dev": "d.csv"}, text=["a", "b"], id="key", labels=[1, 4])
    assert (split.ids, split.texts[0], split.labels) == (["k0", "k1", "k2"], ("x", "y z"), [1, 0, 1])


def test_a_label_is_one_name_however_config_and_file_write_it(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("review,stars\nx,4.0\ny, 5 \nz,-1.0\n4.0,4\n", encoding="utf-8")
    split = read(tmp_path, files={"train": "r.csv", "dev": "d.csv"}, labels=["4.0", " 5 ", -1])
    assert split.labels == [0, 1, 2, 0]
    assert split.texts[-1] == ("4.0",)  # a text is left as it is


def test_json_booleans_are_labels(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "r.jsonl", [{"review": "x", "stars": True}, {"review": "y", "stars": False}])
    own = {"own_tasks": {"mine": {**REVIEWS, "kind": "binary", "labels": [False, True]}}, "train_on": ["mine"]}
    assert read_split(tmp_path, load_config(own).known_tasks["mine"], "train").labels == [1, 0]


def test_real_labels_stay_real(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "r.jsonl", [{"review": "x", "stars": 2.25}, {"review": "y", "stars": 7}])
    own = {key: value for key, value in REVIEWS.items() if key != "labels"} | {"kind": "regression", "range": [0, 7]}
    task = load_config({"own_tasks": {"mine": own}, "train_on": ["mine"]}).known_tasks["mine"]
    assert read_split(tmp_path, task, "train").labels == [2.25, 7]


def test_rows_without_text_or_label_are_dropped_and_named(tmp_path: Path) -> None:
    write_jsonl(
        tmp_path / "r.jsonl", [*ROWS, {"review": " ", "stars": "bad"}, {"review": "x", "stars": None}, {"stars": "bad"}]
    )
    split = read(tmp_path)
    assert len(split.ids) == 3
    assert [(row.line, row.reason) for row in split.dropped] == [
        (4, "empty: review"),
        (5, "empty: stars"),
        (6, "empty: review"),
    ]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"review": "x", "stars": "great"}\n', r"r.jsonl:1: label 'stars' must be one of bad, fair, good. Got 'great'."),
        ('{"review": "x", "stars": "bad"}\n{"review": \n', r"r.jsonl:2: every line must be a JSON object. This one is not: "),
        ('["x", "bad"]\n', r"r.jsonl:1: every line must be a JSON object. Got \[\"x\", \"bad\"\]."),
        ('{"text": "x", "stars": "bad"}\n', r"r.jsonl:1: column 'review' is missing. The keys are 'text', 'stars'."),
        ('{"review": ["x"], "stars": "bad"}\n', r"r.jsonl:1: 'review' must be text, a number or a boolean. Got list."),
        ("\n\n", r"r.jsonl has no rows."),
    ],
)
def test_what_is_wrong_with_a_file_is_a_sentence_with_its_line(content: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(CorpusError, match=sentence):
        read(tmp_path)


def test_a_truncated_parquet_file_is_a_sentence(tmp_path: Path) -> None:
    write(tmp_path / "r.parquet", ROWS)
    (tmp_path / "r.parquet").write_bytes((tmp_path / "r.parquet").read_bytes()[:-20])
    with pytest.raises(CorpusError, match=r"r\.parquet is not a Parquet file, or is cut short"):
        read(tmp_path, files={"train": "r.parquet", "dev": "d.csv"})


def test_a_missing_file_says_who_named_it_and_where_it_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"has no file r\.jsonl\. `own_tasks/mine/classification/files` names it\."):
        fingerprint(tmp_path / "r.jsonl", declared())


def test_labels_of_a_test_file_may_be_missing(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "t.jsonl", [{"review": "x"}, {"review": ""}])
    split = load_test_split(tmp_path, declared())
    assert (split.labels, split.texts) == (None, [("x",), ("",)])
    write_jsonl(tmp_path / "t.jsonl", ROWS)
    assert load_test_split(tmp_path, declared()).labels == [1, 2, 0]


# ------------------------------------------------------------------------------------------------------ dev cut from train


def cut(folder: Path, share: float = 0.25, seed: int = 0) -> tuple[Split, Split]:
    task = declared(files={"train": "r.jsonl"}, dev_share=share, dev_seed=seed)
    return read_split(folder, task, "train"), read_split(folder, task, "dev")


def test_dev_is_cut_from_train_whole_and_by_its_seed(tmp_path: Path) -> None:
    rows = [{"review": f"text {i}", "stars": "bad"} for i in range(40)]
    write_jsonl(tmp_path / "r.jsonl", [*rows, {"review": "", "stars": "bad"}])
    train, dev = cut(tmp_path)
    assert (len(train.ids), len(dev.ids)) == (30, 10)
    assert sorted(train.texts + dev.texts) == sorted((row["review"],) for row in rows)
    assert set(dev.ids) < {str(i) for i in range(1, 41)}  # a row keeps its number in the file
    assert cut(tmp_path)[1].texts == dev.texts
    assert cut(tmp_path, seed=1)[1].texts != dev.texts
    assert (len(train.dropped), len(dev.dropped)) == (1, 0)  # told once


def test_rows_of_equal_text_are_on_one_side_of_the_cut(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "r.jsonl", [{"review": f"text {i % 8}", "stars": "bad"} for i in range(40)])
    train, dev = cut(tmp_path, share=0.3)
    assert not set(train.texts) & set(dev.texts)
    assert len(dev.ids) == 15  # three texts of five rows


def test_a_cut_that_leaves_nothing_on_one_side_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "r.jsonl", ROWS[:1])
    with pytest.raises(CorpusError, match=r"r\.jsonl: 1 rows cannot be cut into train and dev"):
        cut(tmp_path)
