"""A file of rows gets a model's answers: in every format, chunk by chunk, its own columns untouched, or a sentence."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from minbert_core import predict_file
from minbert_core.config import TrialConfig
from minbert_core.data import row_files
from minbert_core.data.tables import FORMATS
from minbert_core.inputs import build_encoder, open_inputs
from minbert_core.model import Predictor, build_model, load, save_model
from minbert_core.predict import main

Capture = pytest.CaptureFixture[str]
NO_ROWS = io.BytesIO()
pa.parquet.write_table(pa.table({"sentence": pa.array([], pa.string())}), NO_ROWS)
SENTENCES = ["a moving film", 'a "quoted", odd one\nof two lines', "bad", "the music is wonderful and long", "so so"]


@pytest.fixture
def model(tiny: Callable[..., TrialConfig], tmp_path: Path) -> Predictor:
    config = tiny()
    inputs = open_inputs(config)
    save_model(build_model(config, build_encoder(config, inputs)), config, tmp_path / "best", inputs.encoder_folder)
    return load(tmp_path / "best", "cpu")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        pa.parquet.write_table(table, path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".tsv":
        lines = [table.column_names, *(row.values() for row in rows)]
        path.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines), encoding="utf-8")
    else:
        pa.csv.write_csv(table, path)
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    with row_files.open_rows(path) as rows:
        found: list[dict[str, Any]] = pa.concat_tables(rows.chunks).to_pylist()
    return found


@pytest.mark.parametrize("source", FORMATS)
def test_each_format_keeps_its_columns_and_gets_the_answers_of_predict(
    source: str, model: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = FORMATS[FORMATS.index(source) - 1]  # each format is read once, and written once
    has_lines = ".tsv" not in (source, target)
    sentences = [sentence if has_lines else sentence.replace("\n", " ") for sentence in SENTENCES]
    rows = [{"id": f"00{i}", "sentence": sentence, "note": ""} for i, sentence in enumerate(sentences)]
    file = write(tmp_path / f"in{source}", rows)
    monkeypatch.setattr(predict_file, "CHUNK", 2)
    out = tmp_path / f"out{target}"
    assert main([str(tmp_path / "best"), "--file", str(file), "--out", str(out)]) == 0
    answered = rows_of(out)
    for row, given, answers in zip(answered, rows, model.predict(sentences), strict=True):
        assert {key: row[key] or "" for key in given} == given
        assert row["sst"] == answers["sst"].label
        for label, share in answers["sst"].probabilities.items():
            assert float(row[f"sst/{label}"]) == pytest.approx(share, abs=1e-6)
    assert list(answered[0]) == ["id", "sentence", "note", "sst", *(f"sst/{label}" for label in model.tasks["sst"].classes)]


def test_later_rows_of_jsonl_may_add_columns_and_widen_their_types(tmp_path: Path) -> None:
    """Only the keys of the first row were columns, and 2.5 became 2."""
    rows = [{"sentence": "a"}, {"sentence": "b", "n": 1}, {"n": 2.5, "who": None}, {"who": "anna"}]
    file = write(tmp_path / "in.jsonl", rows)
    with row_files.open_rows(file, 1) as opened:
        assert opened.names == ["sentence", "n", "who"]
        found = pa.concat_tables(opened.chunks).to_pylist()
    assert found == [{"sentence": None, "n": None, "who": None} | row for row in rows]
    lone = tmp_path / "lone.jsonl"
    lone.write_text('{"sentence": "\\ud800"}\n', encoding="utf-8")
    assert rows_of(lone) == [{"sentence": "\ufffd"}]


def test_quotes_in_a_file_of_tabs_are_part_of_the_text(tmp_path: Path) -> None:
    """Such rows were joined, and quotes lost, without a word; training reads them as they are."""
    lines = ['"It never closes', "the next", '"Great" film', "plain"]
    file = tmp_path / "in.tsv"
    file.write_text("id\tsentence\n" + "".join(f"{i}\t{line}\n" for i, line in enumerate(lines)), encoding="utf-8")
    assert [row["sentence"] for row in rows_of(file)] == lines


def test_the_courses_files_are_read_as_for_training(tmp_path: Path) -> None:
    """They are separated by TABs, named .csv, and enclose fields in quotes."""
    file = tmp_path / "in.csv"
    file.write_text('id\tsentence\n0\t"He said ""no"" ."\n1\tplain\n', encoding="utf-8")
    assert [row["sentence"] for row in rows_of(file)] == ['He said "no" .', "plain"]


def test_an_old_macs_line_ends_are_line_ends(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes(b"id,sentence\r0,a\r1,b\r")
    assert [row["sentence"] for row in rows_of(tmp_path / "in.csv")] == ["a", "b"]


def test_a_file_of_tabs_is_written_with_plain_cells(tmp_path: Path) -> None:
    table = pa.table({"text": ['a "b"\tc\nd', None], "is": [True, False], "share": pa.array([0.1, 0.5], pa.float32())})
    with row_files.RowWriter(tmp_path / "out.tsv", ".tsv") as writer:
        writer.write(table)
    lines = (tmp_path / "out.tsv").read_text(encoding="utf-8").splitlines()
    assert lines == ["text\tis\tshare", 'a "b" c d\ttrue\t0.1', "\tfalse\t0.5"]
    with (
        pytest.raises(ValueError, match=r"A \.tsv file cannot hold these columns"),
        row_files.RowWriter(tmp_path / "o.tsv", ".tsv") as w,
    ):
        w.write(pa.table({"text": [["a"]]}))


def test_two_columns_by_name_are_answered_by_all_tasks_of_pairs(model: Predictor, tmp_path: Path) -> None:
    file = write(tmp_path / "in.jsonl", [{"q": "is it far", "a": "how far is it", "n": 1}, {"q": "a", "a": "b", "n": 2}])
    out = tmp_path / "out.jsonl"
    assert main([str(tmp_path / "best"), "--file", str(file), "--out", str(out), "--columns", "q", "a"]) == 0
    first, _ = rows_of(out)
    answers = model.predict([("is it far", "how far is it")])[0]
    assert first["para"] == answers["para"].label
    assert first["sts"] == pytest.approx(answers["sts"].value, abs=1e-6)
    assert list(first) == ["q", "a", "n", "para", "para/no paraphrase", "para/paraphrase", "sts"]


def test_a_row_without_text_has_no_answer_and_is_counted(model: Predictor, tmp_path: Path, capsys: Capture) -> None:
    file = write(tmp_path / "in.parquet", [{"sentence": None}, {"sentence": "good"}, {"sentence": " "}])
    assert main([str(tmp_path / "best"), "--file", str(file), "--out", str(tmp_path / "out.parquet")]) == 0
    assert [row["sst"] is None for row in rows_of(tmp_path / "out.parquet")] == [True, False, True]
    assert "2 texts of in.parquet have no text, so no answer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "options", "code", "sentence"),
    [
        (
            "in.csv",
            b"text,n\na,1\n",
            [],
            2,
            "The model's tasks (sst, para, sts) read one column (a sentence) or two columns (a pair). ",
        ),
        ("in.csv", b"text,n\na,1\n", ["--columns", "txt"], 2, "There is no column 'txt'. "),
        ("in.csv", b"sentence,sst\na,1\n", [], 2, "The answers' columns would replace 'sst' of "),
        ("in.csv", b"sentence,n\na,1,2\n", [], 2, "in.csv:2: a row must have 2 fields, as the header. Got 3."),
        ("in.csv", b"sentence,n\n\xff,1\n", [], 2, "in.csv must be UTF-8 text. Got the byte 0xff."),
        ("in.csv", b'sentence\na\n"b\nc\nd\n', [], 2, "in.csv:3: a row must close the quotes it opens"),
        ("in.jsonl", b'{"sentence": "a", "n": 100000000000000000000}\n', [], 2, "in.jsonl cannot be read as JSONL: "),
        ("in.jsonl", b'{"sentence": "a"}\n{"sentence": 1}\n', [], 2, "in.jsonl cannot be read as JSONL: "),
        ("in.csv", b"sentence\n", [], 2, "in.csv has no rows."),
        ("in.jsonl", b"\n", [], 2, "in.jsonl has no rows."),
        ("in.parquet", NO_ROWS.getvalue(), [], 2, "in.parquet has no rows."),
        ("in.csv", b"", [], 2, "in.csv has no rows."),
        ("in.jsonl", b'{"sentence": "a"}\n[1]\n', [], 2, "in.jsonl:2: every line must be a JSON object. Got [1]"),
        ("in.parquet", b"no", [], 2, "cannot be read as PARQUET: "),
        ("none.csv", None, [], 3, "No such file or directory"),
        ("in.csv", b"sentence\na\n", ["--columns", "a", "b", "c"], 2, "A task reads one column or two. Got 3: a, b, c."),
        ("in.csv", b"sentence\na\n", ["a sentence"], 2, "--file takes the sentences from "),
    ],
)
def test_what_cannot_be_answered_gets_a_sentence_and_leaves_no_file(
    name: str,
    content: bytes | None,
    options: list[str],
    code: int,
    sentence: str,
    model: Predictor,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    before = sorted(tmp_path.iterdir())
    words = [str(tmp_path / "best"), *(options if options[:1] == ["a sentence"] else [])]
    rest = options if options[:1] == ["--columns"] else []
    assert main([*words, "--file", str(tmp_path / name), "--out", str(tmp_path / "out.csv"), *rest]) == code
    assert sentence in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_an_existing_file_is_not_overwritten(model: Predictor, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "out.csv").write_text("mine")
    file = write(tmp_path / "in.csv", [{"sentence": "a"}])
    assert main([str(tmp_path / "best"), "--file", str(file), "--out", str(tmp_path / "out.csv")]) == 3
    assert (tmp_path / "out.csv").read_text() == "mine"
    assert "exists. Give another file with --out" in capsys.readouterr().err


def test_a_format_that_is_not_known_is_named(tmp_path: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["best", "--file", "in.xlsx", "--out", "out.csv"])
    assert "must end in .csv, .tsv, .jsonl, .parquet, which says the format. Got 'in.xlsx'." in capsys.readouterr().err


def test_chunks_do_not_depend_on_the_batches_of_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "in.parquet", [{"n": i} for i in range(10)])
    for size in (1, 3, 4, 10, 99):
        with row_files.open_rows(file, size) as rows:
            chunks = [table["n"].to_pylist() for table in rows.chunks]
        assert [*chain(*chunks)] == list(range(10))
        assert {len(chunk) for chunk in chunks[:-1]} <= {size}
