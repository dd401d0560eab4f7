"""Files as users have them: quotes, carriage returns, long texts, booleans, half an emoji; one rule for every format."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.test_split import load_test_split
from minbert_core.config_checks import load_config
from minbert_core.data.corpus import Split, read_split
from minbert_core.data.tables import CorpusError, text_of
from minbert_core.data.tasks import TASKS

FORMATS = ("csv", "tsv", "jsonl", "parquet")
ROWS = [(f"r{i}", f"sentence number {i} is {('dull', 'fine')[i % 2]}", i % 2) for i in range(40)]


def read(path: Path, **own: Any) -> Split:
    """The rows of `path` as an own task's: binary, columns `text` and `label`, unless `own` says otherwise."""
    declared = {"kind": "binary", "files": {"train": str(path), "dev": "d.csv"}, "text": "text"} | own
    config = load_config({"own_tasks": {"mine": declared}, "train_on": ["mine"]})
    return read_split(path.parent, config.known_tasks["mine"], "train")


def read_text(folder: Path, name: str, content: str, **own: Any) -> Split:
    (folder / name).write_bytes(content.encode())
    return read(folder / name, **own)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """The rows in the format of the suffix, as csv, json and pyarrow write them."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="," if path.suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)


# -------------------------------------------------------------------------------------------------------------- quotes


def quoted_rows(mark: str) -> str:
    """Forty rows, of which two have a text that begins with a quote that nothing closes."""
    rows = [(key, f'"{text}' if key in ("r3", "r20") else text, label) for key, text, label in ROWS]
    return "".join(mark.join(map(str, row)) + "\n" for row in [("id", "text", "label"), *rows])


def test_a_quote_in_tsv_is_a_character_like_any_other(tmp_path: Path) -> None:
    split = read_text(tmp_path, "x.tsv", quoted_rows("\t"), id="id")
    assert (len(split.ids), split.labels, split.notes) == (40, [row[2] for row in ROWS], [])
    assert split.texts[3] == ('"sentence number 3 is fine',)


@pytest.mark.parametrize(("name", "mark"), [("x.csv", ","), ("x.tsv", "\t")])
def test_a_quote_that_swallows_lines_is_a_fault_with_both_line_numbers(name: str, mark: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError) as error:
        read_text(tmp_path, name, quoted_rows(mark), tsv_quotes=True)
    assert str(error.value) == (
        f"{name}:5: a row must close the quotes it opens. The one opened in line 5 swallows the rows up to line 22. Write each "
        "quote of a text twice and enclose the text in quotes."
    )


SWALLOWING = {
    "closed before a TAB, as if it were meant": '1\tb\t"bad\t1\n2\tc\tfine"\t3\n',
    "closed in the middle of a field": '1\tb\t"bad\t1\n2\tc\t"fine\t3\n',
    "never closed": '1\tb\t"bad\t1\n2\tc\tfine\t3\n',
    "too few fields": '1\tb\t"bad\t1\n2\tc\tfine\t3"\n',
    "too many fields": '1\tb\t"bad\t1\n2\tc\tfi"ne\t3\t\n',
}


@pytest.mark.parametrize("rows", SWALLOWING.values(), ids=SWALLOWING)
def test_no_quote_swallows_rows_of_the_course_s_files_in_silence(rows: str, tmp_path: Path) -> None:
    (tmp_path / "ids-sst-train.csv").write_text("\tid\tsentence\tsentiment\n0\ta\tgood\t3\n" + rows)
    with pytest.raises(CorpusError, match=r"^ids-sst-train\.csv:3: .* opened in line 3 swallows the rows up to line 4\."):
        read_split(tmp_path, TASKS["sst"], "train")


def test_a_quote_that_swallows_the_rest_of_a_long_file_is_a_fault_with_both_line_numbers(tmp_path: Path) -> None:
    rest = "".join(f"another sentence,{n % 2}\n" for n in range(12_000))  # more than the 131,072 characters of csv's default
    with pytest.raises(CorpusError, match=r"^x\.csv:2: .* opened in line 2 swallows the rows up to line 12002\."):
        read_text(tmp_path, "x.csv", 'text,label\n"bad,1\n' + rest)


@pytest.mark.parametrize(
    ("header", "row"),
    [("text,label", '"Well, fine\nbut, ""no"" film",1\n'), ("label,text", '1,"Well, fine\nbut, ""no"" film"\n')],
)
def test_a_line_end_inside_quotes_is_read_counted_and_reported_with_its_line(header: str, row: str, tmp_path: Path) -> None:
    plain = "dull,0\n" if header.startswith("text") else "0,dull\n"
    split = read_text(tmp_path, "x.csv", f"{header}\n{plain}{row}{plain}{row}")
    assert split.texts == [("dull",), ('Well, fine\nbut, "no" film',)] * 2
    assert split.labels == [0, 1, 0, 1]
    assert split.notes == ["2 fields of x.csv with a line end inside quotes: lines 3, 6"]


def test_each_field_with_a_line_end_is_reported_with_the_line_where_its_own_quote_opens(tmp_path: Path) -> None:
    split = read_text(tmp_path, "x.csv", 'a,b,label\n"1\n2\n3",x,0\n"1\n2","3\n4",1\n', text=["a", "b"])
    assert split.texts == [("1\n2\n3", "x"), ("1\n2", "3\n4")]
    assert split.notes == ["3 fields of x.csv with a line end inside quotes: lines 2, 5, 6"]


def test_the_lines_of_many_notes_are_counted_after_the_fifth(tmp_path: Path) -> None:
    split = read_text(tmp_path, "x.csv", "text,label\n" + '"a\nb",1\n' * 8)
    assert split.notes == ["8 fields of x.csv with a line end inside quotes: lines 2, 4, 6, 8, 10 and 3 more"]


def test_a_quote_that_closes_in_the_next_line_of_a_tsv_leaves_every_row_as_it_is(tmp_path: Path) -> None:
    content = 'label\ta\tb\n1\tx\t"open\n0\tp "r" s\tq\n1\tx\ty\n0\tx\ty\n'
    split = read_text(tmp_path, "x.tsv", content, text=["a", "b"])
    assert split.texts == [("x", '"open'), ('p "r" s', "q"), ("x", "y"), ("x", "y")]
    assert split.labels == [1, 0, 1, 0]


def test_tsv_that_csv_wrote_is_read_with_a_knob_and_noted_without(tmp_path: Path) -> None:
    rows = [{"text": 'he said "no" twice', "label": 0}, {"text": '"so"', "label": 1}, {"text": "plain", "label": 1}]
    write(tmp_path / "x.tsv", rows)
    assert read(tmp_path / "x.tsv", tsv_quotes=True).texts == [('he said "no" twice',), ('"so"',), ("plain",)]
    split = read(tmp_path / "x.tsv")
    assert split.texts[0] == ('"he said ""no"" twice"',)
    assert split.notes == [
        "2 fields of x.tsv with doubled quotes inside quotes, which are read as they are; `tsv_quotes: true` reads them as CSV "
        "does: lines 2, 3"
    ]


def test_a_text_in_quotes_that_a_line_end_cuts_in_two_is_noted_in_tsv(tmp_path: Path) -> None:
    write(tmp_path / "x.tsv", [{"text": "one\ntwo", "label": 0}, {"text": "plain", "label": 1}])
    split = read(tmp_path / "x.tsv")
    assert [(row.line, row.reason) for row in split.dropped] == [(2, "empty: label")]
    assert split.notes == [
        "1 field of x.tsv with a quote that does not close where the row ends too early; `tsv_quotes: true` reads up to the "
        "line where it closes: line 2"
    ]
    assert read(tmp_path / "x.tsv", tsv_quotes=True).texts == [("one\ntwo",), ("plain",)]


def test_a_name_of_two_columns_is_a_fault_if_the_task_reads_them(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"^x\.csv:1: the name of a column must be unique\. 'text' names 2 columns\.$"):
        read_text(tmp_path, "x.csv", "text,text,label\na,b,1\n")
    assert read_text(tmp_path, "x.csv", "other,text,other,label\na,b,c,1\n").texts == [("b",)]


def test_a_tsv_header_in_quotes_names_the_knob(tmp_path: Path) -> None:
    content = '"text"\t"label"\n"good"\t1\n'
    with pytest.raises(
        CorpusError, match=r"are '\"text\"', '\"label\"'\. Set `tsv_quotes: true` if quotes enclose the fields\.$"
    ):
        read_text(tmp_path, "x.tsv", content)
    assert read_text(tmp_path, "x.tsv", content, tsv_quotes=True).texts == [("good",)]


def test_glues_mrpc_reads_right(tmp_path: Path) -> None:
    content = (
        "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
        '1\t702876\t702977\tAmrozi accused his brother , whom he called " the witness " , of lying .\t"Referring to him .\r\n'
        '0\t2108705\t2108831\t"Yucaipa owned Dominick \'s before selling the chain .\tYucaipa bought it in 1995 . "\r\n'
        '1\t1330381\t1330521\tThey had published an ad .\tOn June 10 , " they " had .\r\n'
    )
    split = read_text(tmp_path, "train.tsv", content, label="Quality", text=["#1 String", "#2 String"])
    assert (split.labels, split.ids, split.dropped, split.notes) == ([1, 0, 1], ["1", "2", "3"], [], [])
    assert split.texts[0][1] == '"Referring to him .'
    assert split.texts[1] == ("\"Yucaipa owned Dominick 's before selling the chain .", 'Yucaipa bought it in 1995 . "')


def test_glues_sts_b_reads_right(tmp_path: Path) -> None:
    content = (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
        "0\tmain-captions\tMSRvid\t2012test\t0001\tnone\tnone\tA plane is taking off.\tAn air plane is taking off.\t5.000\n"
        '1\tmain-news\tMSRpar\t2012test\t0002\tnone\tnone\t"It is bad , he said.\tIt is "bad".\t3.800\n'
        '2\tmain-news\tMSRpar\t2012test\t0003\tnone\tnone\tA man speaks.\t"A man is speaking.\t4.250\n'
    )
    own = {"kind": "regression", "range": [0, 5], "label": "score", "id": "index"}
    split = read_text(tmp_path, "dev.tsv", content, text=["sentence1", "sentence2"], **own)
    assert (split.labels, split.ids, split.dropped, split.notes) == ([5, 3.8, 4.25], ["0", "1", "2"], [], [])
    assert split.texts[1] == ('"It is bad , he said.', 'It is "bad".')


# ----------------------------------------------------------------------------------------------------- lines and their ends


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r\r\n"])
@pytest.mark.parametrize("name", ["x.tsv", "x.csv"])
def test_a_carriage_return_inside_a_line_is_white_space(name: str, end: str, tmp_path: Path) -> None:
    mark = "," if name == "x.csv" else "\t"
    rows = ["text\rlabel".replace("\r", mark), *(f"number {i}\ris dull{mark}{i % 2}" for i in range(6))]
    split = read_text(tmp_path, name, "".join(row + end for row in rows))
    assert split.texts == [(f"number {i} is dull",) for i in range(6)]
    assert (split.dropped, split.notes) == ([], [])


def test_a_file_without_line_feeds_has_lines_that_end_in_carriage_returns(tmp_path: Path) -> None:
    split = read_text(tmp_path, "x.csv", "text,label\rgood,1\rbad,0\r")
    assert (split.texts, split.labels) == ([("good",), ("bad",)], [1, 0])
    (tmp_path / "x.txt").write_bytes(b"a\rb\r")
    assert text_of(tmp_path / "x.txt", "") == "a\nb\n"


@pytest.mark.parametrize("before", ["\n\n", "\r\n \r\n", ",\n\n"])
def test_empty_lines_before_a_header_are_skipped_and_counted_as_lines(before: str, tmp_path: Path) -> None:
    assert read_text(tmp_path, "x.csv", f"{before}text,label\ngood,1\n").texts == [("good",)]
    with pytest.raises(CorpusError, match=r"^x\.csv:4: label 'label' must be one of 0, 1\. Got '7'\.$"):
        read_text(tmp_path, "x.csv", f"{before}text,label\ngood,7\n")
    with pytest.raises(
        CorpusError, match=r"^x\.csv:3: column 'text' is missing\. The columns, separated by commas, are 'a', 'b'\."
    ):
        read_text(tmp_path, "x.csv", f"{before}a,b\ngood,7\n")


def test_a_header_that_is_none_is_shown_in_part(tmp_path: Path) -> None:
    with pytest.raises(CorpusError) as error:
        read_text(tmp_path, "x.csv", ",".join(["a review " * 20, *map(str, range(30))]) + "\ngood,7\n")
    assert str(error.value).endswith("'a review a review a review a review a re…', " + ", ".join(
        repr(str(i)) for i in range(19)) + ", and 11 more.")  # fmt: skip


# ------------------------------------------------------------------------------------------------------ texts and labels


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_text_of_more_characters_than_csv_allows_is_read(suffix: str, tmp_path: Path) -> None:
    text = "long text, " * 20_000
    write(tmp_path / f"x.{suffix}", [{"text": text, "label": 1}, {"text": "short", "label": 0}])
    split = read(tmp_path / f"x.{suffix}", tsv_quotes=True)
    assert split.texts == [(text.strip(),), ("short",)]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("written", [(True, False), ("True", "False"), ("true", "false"), ("TRUE", "FALSE")])
@pytest.mark.parametrize("labels", [["0", "1"], [False, True], ["False", "True"], [0, 1]])
def test_booleans_are_labels_in_every_format(suffix: str, written: tuple[Any, Any], labels: list[Any], tmp_path: Path) -> None:
    rows = [{"text": "x", "label": written[0]}, {"text": "y", "label": written[1]}]
    write(tmp_path / f"x.{suffix}", rows)
    assert read(tmp_path / f"x.{suffix}", labels=labels).labels == [1, 0]


def test_half_an_emoji_is_replaced_and_counted(tmp_path: Path) -> None:
    rows = [{"text": "whole \U0001f600", "label": 1, "id": "a"}, {"text": "half \ud83d", "label": 0, "id": "\udc00b"}]
    write(tmp_path / "x.jsonl", rows)
    split = read(tmp_path / "x.jsonl", id="id")
    assert split.texts == [("whole \U0001f600",), ("half \ufffd",)]
    assert split.ids == ["a", "\ufffdb"]
    assert split.notes == ["2 fields of x.jsonl with half a character (a lone surrogate), which is read as U+FFFD: line 2"]


def test_half_an_emoji_in_utf8_is_a_fault_with_its_line(tmp_path: Path) -> None:
    for name in ("x.csv", "x.tsv", "x.jsonl"):
        (tmp_path / name).write_bytes(b"text,label\nhalf \xed\xa0\xbd,1\n")
        with pytest.raises(CorpusError, match=rf"^{name}:2: the file must be UTF-8 text\. Got the byte 0xed\.$"):
            read(tmp_path / name)


def test_a_parquet_text_that_is_not_utf8_is_a_fault_with_its_row(tmp_path: Path) -> None:
    offsets = pa.array([0, 2, 8], pa.int32()).buffers()[1]
    texts = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"okhalf\xed\xa0")])
    pq.write_table(pa.table({"text": texts, "label": [0, 1]}), tmp_path / "x.parquet")
    with pytest.raises(CorpusError, match=r"^x\.parquet:2: texts must be UTF-8\. This row's are not\.$"):
        read(tmp_path / "x.parquet")


def test_a_damaged_page_of_a_parquet_file_is_a_sentence(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", [{"text": f"text {i}", "label": i % 2} for i in range(2000)])
    whole = bytearray((tmp_path / "x.parquet").read_bytes())
    whole[4:400] = bytes(396)
    (tmp_path / "x.parquet").write_bytes(whole)
    with pytest.raises(CorpusError, match=r"^x\.parquet is not a Parquet file, or is cut short"):
        read(tmp_path / "x.parquet")


# ----------------------------------------------------------------------------------------------------------------- JSONL


def test_a_first_jsonl_row_without_a_label_is_dropped_and_counted_as_any_other(tmp_path: Path) -> None:
    lines = [{"text": "not labelled yet"}, {"text": "dull", "label": 0}, {"text": "nor this"}, {"text": "fine", "label": 1}]
    write(tmp_path / "x.jsonl", lines)
    split = read(tmp_path / "x.jsonl")
    assert split.texts == [("dull",), ("fine",)]
    assert [(row.line, row.reason) for row in split.dropped] == [(1, "empty: label"), (3, "empty: label")]


def test_a_key_that_no_jsonl_row_has_is_a_fault_with_the_keys_of_all(tmp_path: Path) -> None:
    write(tmp_path / "x.jsonl", [{"text": "a"}, {"text": "b", "lable": 1}])
    with pytest.raises(CorpusError, match=r"^x\.jsonl:1: column 'label' is missing\. The keys are 'text', 'lable'\.$"):
        read(tmp_path / "x.jsonl")


@pytest.mark.parametrize("line", ["1" * 5000, "[" * 100_000])
def test_json_that_python_refuses_is_a_fault_with_its_line(line: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"^x\.jsonl:2: every line must be a JSON object\. This one is not: "):
        read_text(tmp_path, "x.jsonl", '{"text": "a", "label": 1}\n' + line + "\n")


# -------------------------------------------------------------------------------------------------------------- the notes


def test_notes_are_of_train_where_dev_is_cut_from_it_and_of_a_test_file(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("text,label\n" + "".join(f'"a\n{i}",1\n' for i in range(20)))
    (tmp_path / "t.csv").write_text('text\n"a\nb"\n')
    own = {"kind": "binary", "files": {"train": "x.csv", "test": "t.csv"}, "text": "text"}
    task = load_config({"own_tasks": {"mine": own}, "train_on": ["mine"]}).known_tasks["mine"]
    train, dev = read_split(tmp_path, task, "train"), read_split(tmp_path, task, "dev")
    assert (len(train.notes), dev.notes) == (1, [])
    assert load_test_split(tmp_path, task).notes == ["1 field of t.csv with a line end inside quotes: line 2"]
