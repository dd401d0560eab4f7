"""The course's files with all their quirks, and one sentence for everything that can be wrong with a file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from analysis.test_split import load_test_split
from minbert_core.data.corpus import Dropped, Split, fingerprint, read_split
from minbert_core.data.tables import CorpusError
from minbert_core.data.tasks import TASKS
from minbert_core.data.toy import write_toy_corpus

SST, PARA, STS, CFIMDB = (TASKS[name] for name in ("sst", "para", "sts", "cfimdb"))
SST_HEADER = "\tid\tsentence\tsentiment\n"
PARA_HEADER = "\tid\tsentence1\tsentence2\tis_duplicate\n"
STS_HEADER = "\tid\tsentence1\tsentence2\tsimilarity\n"


def read_sst(folder: Path, content: str) -> Split:
    (folder / "ids-sst-train.csv").write_text(content, encoding="utf-8")
    return read_split(folder, SST, "train")


def read_para(folder: Path, content: str) -> Split:
    (folder / "quora-dev.csv").write_text(content, encoding="utf-8")
    return read_split(folder, PARA, "dev")


def read_sts(folder: Path, content: str) -> Split:
    (folder / "sts-train.csv").write_text(content, encoding="utf-8")
    return read_split(folder, STS, "train")


def read_sst_test(folder: Path, content: str) -> Split:
    (folder / "ids-sst-test-student.csv").write_text(content, encoding="utf-8")
    return load_test_split(folder, SST)


def message(error: pytest.ExceptionInfo[CorpusError]) -> str:
    return str(error.value)


# -------------------------------------------------------------------------------------------------------------- quirks


def test_sst_text_is_lowered_and_stripped_but_its_punctuation_stays(tmp_path: Path) -> None:
    split = read_sst(tmp_path, SST_HEADER + "0\t AbC1 \t It 's A  Lovely film , isn't it? \t3\n")
    assert split.ids == ["abc1"]
    assert split.texts == [("it 's a  lovely film , isn't it?",)]
    assert split.labels == [3.0]


def test_pair_text_has_its_punctuation_split_and_its_whitespace_folded(tmp_path: Path) -> None:
    split = read_para(tmp_path, PARA_HEADER + "7\ta\tIsn't  it 3.5, Bob?\t It's\u00a0so. \t1.0\n")
    assert split.texts == [("isn 't it 3 .5 , bob ?", "it 's so .")]


def test_quora_labels_are_whole_numbers_written_as_reals(tmp_path: Path) -> None:
    split = read_para(tmp_path, PARA_HEADER + "0\ta\tx\ty\t0.0\n1\tb\tx\ty\t1.0\n2\tc\tx\ty\t1\n")
    assert split.labels == [0.0, 1.0, 1.0]


def test_sts_labels_stay_real(tmp_path: Path) -> None:
    assert read_sts(tmp_path, STS_HEADER + "0\ta\tx\ty\t2.4\n1\tb\tx\ty\t 0.8 \n").labels == [2.4, 0.8]


def test_columns_are_read_by_name_so_their_order_and_index_columns_do_not_matter(tmp_path: Path) -> None:
    split = read_sst(tmp_path, "0\t\tsentiment\tsentence\tid\n1\t0.0\t4\tgood\tb\n")
    assert (split.ids, split.texts, split.labels) == (["b"], [("good",)], [4.0])


def test_a_review_is_one_text_whose_label_is_a_class_of_two(tmp_path: Path) -> None:
    (tmp_path / "ids-cfimdb-dev.csv").write_text(SST_HEADER + "0\tb\t A film . I 'd Go again . \t1\n1\ta\t No .\t0\n")
    split = read_split(tmp_path, CFIMDB, "dev")
    assert (split.texts, split.labels) == ([("a film . i 'd go again .",), ("no .",)], [1.0, 0.0])
    assert (CFIMDB.kind, CFIMDB.outputs, CFIMDB.is_pair, CFIMDB.metric) == ("classification", 2, False, "accuracy")
    (tmp_path / "ids-cfimdb-dev.csv").write_text(SST_HEADER + "0\tb\tGood\t2\n")
    with pytest.raises(CorpusError, match=r"^ids-cfimdb-dev\.csv:2: .* must be a whole number in \[0, 1\]\. Got '2'\.$"):
        read_split(tmp_path, CFIMDB, "dev")


def test_quotes_are_csvs_default_and_doubled_ones_are_one(tmp_path: Path) -> None:
    split = read_para(tmp_path, PARA_HEADER + '0\ta\t"""Which is correct: """"the""""?"""\ty\t1.0\n')
    assert split.texts[0][0] == '"which is correct: ""the"" ?"'


def test_carriage_returns_a_byte_order_mark_and_blank_lines_are_no_part_of_the_data(tmp_path: Path) -> None:
    content = ("\ufeffid\tsentence\tsentiment\n\na\tgood\t4\n\nb\tbad\t9\n").replace("\n", "\r\n")
    with pytest.raises(CorpusError, match=r"^ids-sst-train.csv:5: .* Got '9'\.$"):
        read_sst(tmp_path, content)
    assert read_sst(tmp_path, content.replace("9", "0")).ids == ["a", "b"]


# ------------------------------------------------------------------------------------------------------------- dropped

# The two rows that upstream's quoting spoilt, as they stand in the course's quora-dev.csv, shortened.
SPOILT_LABEL = (
    "65479\tad118c967d683c93883bf072d\tAny idea of dresses for a special 15-year-old's party?\t"
    '"""Where can I find a dress I seen last night in a party? I took a picture."\t\n'
)
SPOILT_SENTENCE = '264614\t9054345d02cd6c5642a4904dc\t"""Given a set of busy time intervals of two people?"\t\t\n'


def test_the_two_rows_that_upstream_spoilt_are_dropped_and_named(tmp_path: Path) -> None:
    split = read_para(tmp_path, PARA_HEADER + "0\ta\tx\ty\t1.0\n" + SPOILT_LABEL + SPOILT_SENTENCE)
    assert split.ids == ["a"]
    assert split.dropped == [
        Dropped(3, "ad118c967d683c93883bf072d", "empty: is_duplicate"),
        Dropped(4, "9054345d02cd6c5642a4904dc", "empty: sentence2, is_duplicate"),
    ]


def test_a_row_whose_label_a_quote_swallowed_is_dropped(tmp_path: Path) -> None:
    """The quote before `y` is closed after the label: the TAB between them is text, and the row one field short."""
    split = read_para(tmp_path, PARA_HEADER + '0\ta\tx\t"y\t1.0"\n1\tb\tx\ty\t0.0\n')
    assert split.ids == ["b"]
    assert split.dropped == [Dropped(2, "a", "empty: is_duplicate")]


def test_a_sentence_of_blanks_is_an_empty_one(tmp_path: Path) -> None:
    split = read_sst(tmp_path, SST_HEADER + "0\ta\t  \t3\n1\tb\tgood\t3\n")
    assert split.dropped == [Dropped(2, "a", "empty: sentence")]


def test_a_file_of_dropped_rows_only_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError) as error:
        read_sst(tmp_path, SST_HEADER + "0\ta\tgood\t\n")
    assert message(error) == "ids-sst-train.csv: every row was dropped (empty: sentiment in line 2, and so on)."


# -------------------------------------------------------------------------------------------------------------- errors


def test_a_label_out_of_range_is_an_error_with_line_and_law(tmp_path: Path) -> None:
    with pytest.raises(CorpusError) as error:
        read_sst(tmp_path, SST_HEADER + "0\ta\tfine\t3\n1\tb\tgood\t7\n")
    assert message(error) == "ids-sst-train.csv:3: label 'sentiment' must be a whole number in [0, 4]. Got '7'."


@pytest.mark.parametrize("label", ["good", "nan", "inf", "-1", "3.5", "5"])
def test_a_label_that_is_no_class_is_an_error(tmp_path: Path, label: str) -> None:
    with pytest.raises(CorpusError, match=re.escape(f"a whole number in [0, 4]. Got '{label}'.")):
        read_sst(tmp_path, SST_HEADER + f"0\ta\tfine\t{label}\n")


@pytest.mark.parametrize("label", ["high", "nan", "5.1", "-0.1"])
def test_a_similarity_out_of_range_is_an_error(tmp_path: Path, label: str) -> None:
    with pytest.raises(CorpusError) as error:
        read_sts(tmp_path, STS_HEADER + f"0\ta\tx\ty\t{label}\n")
    assert message(error) == f"sts-train.csv:2: label 'similarity' must be a real number in [0, 5]. Got '{label}'."


def test_five_faults_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    with pytest.raises(CorpusError) as error:
        read_sst(tmp_path, SST_HEADER + "".join(f"0\ti{n}\tfine\t{n}\n" for n in range(12)))
    lines = message(error).split("\n")
    assert [line.split(":")[1] for line in lines[:5]] == ["7", "8", "9", "10", "11"]
    assert lines[5:] == ["... and 2 more."]


def test_a_missing_file_says_file_folder_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CorpusError) as error:
        read_split(tmp_path, PARA, "train")
    assert message(error) == (
        f"The folder {tmp_path} has no file quora-train.csv. Give the folder that holds the course's files with "
        "`--data DIR` (`python -m minbert_core.data.corpus download --to DIR` downloads the public ones), or use the embedded "
        "corpus with `--data toy --encoder tiny`."
    )


def test_a_missing_folder_is_named_as_such(tmp_path: Path) -> None:
    sentence = r"^The file quora-train.csv is missing, because the folder .*nowhere does not exist\. Give"
    with pytest.raises(CorpusError, match=sentence):
        read_split(tmp_path / "nowhere", PARA, "train")


def test_a_missing_column_names_the_columns_found(tmp_path: Path) -> None:
    with pytest.raises(CorpusError) as error:
        read_sst(tmp_path, "\tid\ttext\tsentiment\n0\ta\tgood\t3\n")
    assert message(error) == (
        "ids-sst-train.csv:1: column 'sentence' is missing. The columns, separated by TABs, are '', 'id', 'text', 'sentiment'."
    )


def test_a_file_with_commas_is_seen_to_have_one_column(tmp_path: Path) -> None:
    with pytest.raises(
        CorpusError, match=r"column 'id' is missing\. The columns, separated by TABs, are 'id,sentence,sentiment'"
    ):
        read_sst(tmp_path, "id,sentence,sentiment\na,good,3\n")


def test_train_without_a_label_column_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"^ids-sst-train.csv:1: column 'sentiment' is missing"):
        read_sst(tmp_path, "\tid\tsentence\n0\ta\tgood\n")


def test_a_duplicate_id_names_both_lines(tmp_path: Path) -> None:
    with pytest.raises(CorpusError) as error:
        read_sst(tmp_path, SST_HEADER + "0\ta\tgood\t3\n1\tA\tbad\t1\n")
    assert message(error) == "ids-sst-train.csv:3: an id must be unique. 'a' is also the id in line 2."


def test_an_empty_id_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"^ids-sst-train.csv:2: every row must have an id\. This one's is empty\.$"):
        read_sst(tmp_path, SST_HEADER + "0\t \tgood\t3\n")


def test_a_row_with_more_fields_than_the_header_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"^ids-sst-train.csv:2: a row must have 4 fields, as the header\. Got 5\.$"):
        read_sst(tmp_path, SST_HEADER + "0\ta\tgood\tor not\t3\n")


def test_a_quote_that_swallows_whole_rows_is_an_error_since_they_could_not_be_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError) as error:
        read_sst(tmp_path, SST_HEADER + '0\ta\tgood\t3\n1\tb\t"bad\t1\n2\tc\tfine\t3\n')
    assert message(error) == (
        "ids-sst-train.csv:3: a row must close the quotes it opens. The one opened in line 3 swallows the rows up to line 4. "
        "Write each quote of a text twice and enclose the text in quotes."
    )


def test_an_empty_file_and_a_lone_header_are_errors(tmp_path: Path) -> None:
    with pytest.raises(
        CorpusError, match=r"^ids-sst-train.csv is empty. Its first line must name the columns id, sentence, sen"
    ):
        read_sst(tmp_path, "")
    with pytest.raises(CorpusError, match=r"^ids-sst-train.csv has a header, but no rows\."):
        read_sst(tmp_path, SST_HEADER)


def test_a_file_that_is_not_utf8_is_an_error_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "ids-sst-train.csv").write_bytes(SST_HEADER.encode() + "0\ta\tcafé\t3\n".encode("latin-1"))
    with pytest.raises(CorpusError, match=r"^ids-sst-train.csv:2: the file must be UTF-8 text\. Got the byte 0xe9\.$"):
        read_split(tmp_path, SST, "train")


def test_a_folder_in_place_of_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "ids-sst-train.csv").mkdir()
    with pytest.raises(CorpusError, match=r"ids-sst-train.csv is a folder, not a file\.$"):
        read_split(tmp_path, SST, "train")


def test_fingerprint_is_the_sha256_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert fingerprint(tmp_path / "x", SST) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# ------------------------------------------------------------------------------------------------------ the test split


def test_a_test_split_without_label_column_has_no_labels_and_drops_nothing(tmp_path: Path) -> None:
    split = read_sst_test(tmp_path, "0\t\tid\tsentence\n1\t0.0\ta\t Good \n2\t1.0\tb\t\n3\t2.0\tc\n")
    assert split.texts == [("good",), ("",), ("",)]
    assert (split.ids, split.labels, split.dropped, split.name) == (["a", "b", "c"], None, [], "test")


def test_a_labelled_test_split_has_labels(tmp_path: Path) -> None:
    assert read_sst_test(tmp_path, SST_HEADER + "0\ta\tgood\t3\n1\tb\t\t0\n").labels == [3.0, 0.0]


def test_an_empty_label_column_is_as_none(tmp_path: Path) -> None:
    assert read_sst_test(tmp_path, SST_HEADER + "0\ta\tgood\t\n1\tb\tbad\t\n").labels is None


def test_a_test_split_labelled_in_part_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError) as error:
        read_sst_test(tmp_path, SST_HEADER + "0\ta\tgood\t3\n1\tb\tbad\t\n")
    assert message(error) == (
        "ids-sst-test-student.csv:3: label 'sentiment' must be in every row or in none. Got none here, 1 in 2 rows."
    )


def test_a_bad_test_label_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"^ids-sst-test-student.csv:2: label 'sentiment' must be a whole number in \[0, 4\]"):
        read_sst_test(tmp_path, SST_HEADER + "0\ta\tgood\t8\n")


def test_reading_train_and_dev_opens_no_test_file(tmp_path: Path) -> None:
    write_toy_corpus(tmp_path)
    for task in TASKS.values():
        (tmp_path / task.files["test"]).unlink()
        (tmp_path / task.files["test"]).mkdir()  # to open one would fail
        assert read_split(tmp_path, task, "train").ids
        assert read_split(tmp_path, task, "dev").ids
        with pytest.raises(CorpusError, match="is a folder"):
            load_test_split(tmp_path, task)


# ------------------------------------------------------------------------------------------------------ the real files


def test_the_courses_files_have_their_known_counts(real_data: Path) -> None:
    # rows, before any is dropped
    expected = {"sst": (8544, 1101), "para": (14172, 3026), "sts": (6040, 863), "cfimdb": (1707, 245)}
    for name, counts in expected.items():
        splits = [read_split(real_data, TASKS[name], split) for split in ("train", "dev")]
        assert tuple(len(split.ids) + len(split.dropped) for split in splits) == counts
        assert name == "para" or not any(split.dropped for split in splits)


def test_the_courses_two_spoilt_rows_are_all_that_is_dropped(real_data: Path) -> None:
    dropped = [item.id for split in ("train", "dev") for item in read_split(real_data, PARA, split).dropped]
    assert sorted(dropped) == ["9054345d02cd6c5642a4904dc", "ad118c967d683c93883bf072d"]


def test_the_courses_reviews_are_half_positive(real_data: Path) -> None:
    for split, counts in (("train", (856, 851)), ("dev", (123, 122))):
        labels = read_split(real_data, CFIMDB, "train" if split == "train" else "dev").labels
        assert labels is not None
        assert sorted((labels.count(0), labels.count(1)), reverse=True) == list(counts)


def test_most_of_the_courses_sts_labels_are_no_whole_numbers(real_data: Path) -> None:
    labels = read_split(real_data, STS, "train").labels
    assert labels is not None
    assert sum(not label.is_integer() for label in labels) / len(labels) > 0.6
    assert sum(labels) / len(labels) == pytest.approx(2.613, abs=0.001)


def test_the_courses_test_files_read_whole_and_unlabelled(real_data: Path) -> None:
    for name, count in (("sst", 2210), ("para", 3016), ("sts", 1725), ("cfimdb", 488)):
        split = load_test_split(real_data, TASKS[name])
        assert len(split.ids) == count
        assert split.labels is None
