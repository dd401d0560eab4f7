"""YAML as we read it, the models that hold settings, and that no fault reaches the user in words that are not ours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from minbert_core.settings.faults import SettingsError
from minbert_core.settings.models import Settings
from minbert_core.settings.yaml import dump_yaml, parse_yaml, read_yaml, scalar
from minbert_core.words import did_you_mean, shown


def value_of(text: str) -> Any:
    return parse_yaml(f"key: {text}")[0]["key"]


def complaint(text: str) -> str:
    with pytest.raises(SettingsError, match=r".") as caught:
        parse_yaml(text, "a.yaml")
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------------- scalars


@pytest.mark.parametrize(
    ("text", "value"),
    [("5e-6", 5e-6), ("1E3", 1000.0), ("2.", 2.0), (".5", 0.5), ("-1.5e+2", -150.0), ("16", 16), ("-3", -3), ("+7", 7)],
)
def test_a_number_is_a_number_with_or_without_a_point(text: str, value: float) -> None:
    assert value_of(text) == value
    assert type(value_of(text)) is type(value)


def test_underscores_part_the_digits_of_a_number() -> None:
    assert value_of("400_000") == 400_000


@pytest.mark.parametrize(
    "word", ["off", "on", "no", "yes", "Off", "y", "n", "1:30", "12:30:45", "2026-11-20", "0x10", ".inf", "nan"]
)
def test_what_yaml_1_1_takes_for_something_else_stays_a_word(word: str) -> None:
    assert value_of(word) == word


@pytest.mark.parametrize("text", ["'5e-6'", '"5e-6"', "'off'", "'true'", "'null'", '"16"'])
def test_what_is_quoted_stays_text(text: str) -> None:
    assert value_of(text) == text.strip("'\"")


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("False", False), ("null", None), ("~", None), ("", None), ("Null", None)]
)
def test_true_false_and_null_have_their_yaml_1_2_spellings(text: str, value: object) -> None:
    assert value_of(text) is value


def test_a_block_of_text_is_no_number() -> None:
    assert parse_yaml("about: |\n  12\n")[0] == {"about": "12\n"}


def test_an_empty_document_is_null() -> None:
    assert parse_yaml("# nothing\n") == (None, {})


def test_keys_are_text_whatever_they_look_like() -> None:
    assert parse_yaml("1: a\ntrue: b\n")[0] == {"1": "a", "true": "b"}


# ----------------------------------------------------------------------------------------------------- lines and syntax


def test_each_value_knows_its_line() -> None:
    _, lines = parse_yaml("a: 1\nb:\n  - x\n  - {c: 2,\n     d: 3}\n")
    assert lines[("a",)] == 1
    assert lines[("b",)] == 2
    assert lines[("b", 1)] == 4
    assert lines[("b", 1, "d")] == 5


def test_a_key_written_twice_is_refused_with_both_lines() -> None:
    assert complaint("lr: 1\nseed: 2\nlr: 3\n") == "a.yaml:3: `lr` is written twice. The first is in line 1."


def test_a_key_written_twice_is_found_at_any_depth_and_in_flow_maps() -> None:
    text = complaint("a:\n  b: {c: 1, c: 2}\nd:\n  - e: 1\n    e: 2\n")
    assert text.splitlines() == [
        "a.yaml:2: `c` is written twice. The first is in line 2.",
        "a.yaml:5: `e` is written twice. The first is in line 4.",
    ]


def test_bad_syntax_is_refused_with_its_line() -> None:
    assert re.match(r"a\.yaml:2: This is not YAML: .+\.", complaint("a: 1\nb: c: d\n"))
    assert re.match(r"a\.yaml:2: This is not YAML: .+\.", complaint("a: [1, 2\n"))
    assert complaint("a: 1\nb: \x01\n") == "a.yaml:2: This is not YAML: it must not contain the character '\\x01'."


def test_a_second_document_in_a_file_is_refused() -> None:
    assert complaint("a: 1\n---\nb: 2\n") == "a.yaml:2: A file must hold one document. A second one begins here (`---`)."


def test_an_anchor_stands_for_its_value_wherever_it_is_named() -> None:
    document, lines = parse_yaml("a: &rate {lr: 5e-6}\nb: *rate\n")
    assert document == {"a": {"lr": 5e-6}, "b": {"lr": 5e-6}}
    assert lines[("b",)] == 2


def test_an_unknown_anchor_a_circle_and_a_merge_key_are_refused() -> None:
    assert "undefined alias" in complaint("a: *nowhere\n")
    assert complaint("a: &x\n  b: *x\n") == "a.yaml:1: A value contains itself (an anchor inside its own alias)."
    assert complaint("a: &x {b: 1}\nc:\n  <<: *x\n") == "a.yaml:3: A key must be a plain name. Got '<<'."


@pytest.mark.parametrize("text", ["!!python/name:os.system x", "!foo {a: 1}", "!foo [1]", "!!int '5'", "!!binary aGk="])
def test_a_tag_is_refused_on_every_kind_of_value(text: str) -> None:
    assert re.fullmatch(r"a\.yaml:1: The tag \S+ is not supported\.", complaint(f"a: {text}\n"))


def test_a_key_that_is_no_name_is_refused() -> None:
    assert complaint("? [a, b]\n: 1\n") == "a.yaml:1: A key must be a plain name. Got ''."


def test_a_missing_file_a_folder_and_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "no.yaml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(SettingsError, match=f"^Cannot read {re.escape(str(path))}: {reason}"):
            read_yaml(path)
    path = tmp_path / "latin.yaml"
    path.write_bytes("about: Zürich\n".encode("latin-1"))
    with pytest.raises(SettingsError, match="it is not UTF-8 text"):
        read_yaml(path)


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes("\ufeffa: 5e-6\r\nb: off\r\n".encode())
    assert read_yaml(path)[0] == {"a": 5e-6, "b": "off"}


def test_a_fault_is_told_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("a: 1\na: 2\n")
    with pytest.raises(SettingsError, match=f"^{re.escape(str(path))}:2: `a` is written twice"):
        read_yaml(path)


# ------------------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize(
    "value",
    [5e-6, 1e22, 0.1, -3, True, None, "off", "true", "null", "~", "", "5e-6", "1e5", "16", "1:30", "a: b", "-", "ü #x",
     "two\nlines", "\ttab", [1, [2.5, None]], {"a": {"b": []}, "c": {}}, [{"kind": "sum"}], "word " * 60],
)  # fmt: skip
def test_what_is_dumped_reads_back_to_the_same(value: object) -> None:
    document, _ = parse_yaml(dump_yaml({"key": value}))
    assert document == {"key": value}
    assert type(document["key"]) is type(value)


def test_other_yaml_readers_take_our_floats_for_floats() -> None:
    assert dump_yaml({"lr": 5e-6}) == "lr: 5.0e-06\n"


def test_an_empty_plain_scalar_is_null_and_an_empty_quoted_one_is_text() -> None:
    assert scalar("") is None
    assert value_of("''") == ""


# -------------------------------------------------------------------------------------------------------------- models


class Inner(Settings):
    size: int = Field(1, gt=0)
    is_big: bool = False


class Outer(Settings):
    inner: Inner = Inner()
    by_name: dict[str, float] = Field({})
    sizes: tuple[int, ...] = ()
    word: str = ""


@pytest.mark.parametrize(
    "document",
    [{"inner": {"size": True}}, {"by_name": {"a": True}}, {"sizes": [1, True]}, {"word": True}],
)
def test_a_boolean_is_no_number_and_no_name_at_any_depth(document: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="input_value=true"):
        Outer.model_validate(document)


def test_a_boolean_is_a_boolean_where_one_is_meant() -> None:
    assert Inner.model_validate({"is_big": True}).is_big is True
    assert Outer.model_validate({"inner": {"is_big": True}}).inner.is_big is True  # two models saw it


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Inner().size = 2  # type: ignore[misc]


# --------------------------------------------------------------------------------------------------------------- words


def test_a_near_name_is_suggested_and_all_are_listed() -> None:
    assert did_you_mean("pcgard", ["sum", "pcgrad"]) == "; did you mean 'pcgrad'? Known: pcgrad, sum."
    assert did_you_mean("xyz", ["sum", "pcgrad"]) == ". Known: pcgrad, sum."
    assert did_you_mean("xyz", []) == "."


def test_a_value_is_shown_as_yaml_has_it_and_a_long_one_is_cut() -> None:
    assert shown({"a": None, "b": [True, 1, "x"]}) == "{a: null, b: [true, 1, 'x']}"
    assert len(shown("x" * 1000)) == 100


# ------------------------------------------------------------------------------------------------- invisible characters

INVISIBLE = {
    "\u200b": "U+200B ZERO WIDTH SPACE",
    "\ufeff": "U+FEFF ZERO WIDTH NO-BREAK SPACE",
    "\u00a0": "U+00A0 NO-BREAK SPACE",
    "\u00ad": "U+00AD SOFT HYPHEN",
    "\u202e": "U+202E RIGHT-TO-LEFT OVERRIDE",
    "\u2066": "U+2066 LEFT-TO-RIGHT ISOLATE",
}


@pytest.mark.parametrize("character", ["\u200b", "\ufeff", "\u00a0", "\u00ad", "\u202e", "\u2066"])
def test_an_invisible_character_in_a_key_is_named_with_its_line(character: str) -> None:
    law = f"The key 'lr' holds an invisible character ({INVISIBLE[character]})"
    assert complaint(f"a: 1\nb:\n  l{character}r: 2\n") == f"a.yaml:3: {law} after 'l'. Type it again."
    assert complaint(f"a: 1\n{character}lr: 2\n") == f"a.yaml:2: {law} at its start. Type it again."
    assert complaint(f"lr{character}: 2\n") == f"a.yaml:1: {law} after 'lr'. Type it again."


def test_a_mark_at_the_start_of_a_file_is_no_part_of_its_first_key() -> None:
    assert parse_yaml("\ufefflr: 2\n")[0] == {"lr": 2}


def test_an_invisible_character_in_a_value_is_allowed() -> None:
    assert parse_yaml("about: \u00ab\u00a0Which?\u00a0\u00bb\n")[0] == {"about": "\u00ab\u00a0Which?\u00a0\u00bb"}


def test_an_invisible_character_in_a_line_that_is_not_yaml_is_named() -> None:
    law = "The line holds an invisible character (U+00A0 NO-BREAK SPACE) after 'b:'. Type it again."
    assert complaint("a: 1\nb:\u00a02\nc: 3\n") == f"a.yaml:2: This is not YAML: could not find expected ':'. {law}"
    assert "U+0009 TAB" in complaint("a:\n\tb: 1\n")


def test_an_invisible_character_in_an_unknown_name_is_named() -> None:
    said = did_you_mean("pcgrad\u200b", ["pcgrad", "sum"])
    law = "It holds an invisible character (U+200B ZERO WIDTH SPACE) after 'pcgrad'. Type it again."
    assert said == f"; did you mean 'pcgrad'? {law} Known: pcgrad, sum."


# ------------------------------------------------------------------------------------------------ what would take for ever


LAUGH = "a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (LAUGH, r"A document must have at most 5,000 values\."),
        ("a: [" + "1, " * 20_000 + "]", r"A document must have at most 5,000 values\."),
        ("a: " + "x" * 200_000, r"A document must have at most 200,000 characters\."),
        ("[" * 1000, r"Lists and maps must be inside each other at most 40 deep\."),
        ("- " * 1000, r"Lists and maps must be inside each other at most 40 deep\."),
        ("seed: " + "9" * 5000, r"A whole number must have at most 30 digits\. Got '9{50,}…\."),
        (r'data: "\ud800"', r"A text must not have half a character \(a lone surrogate\)\."),
        (r'data: "\UFFFFFFFF"', "This is not YAML: "),
    ],
)
def test_a_text_that_would_exhaust_reader_or_machine_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        parse_yaml(text)


def test_two_halves_of_a_character_are_one_as_in_json() -> None:
    assert parse_yaml(r'{"data": "\ud83d\ude00"}')[0] == {"data": "\U0001f600"}


def test_a_huge_value_is_shown_without_being_written_out() -> None:
    row: list[object] = ["x" * 1000]
    for _ in range(60):
        row = [row, row]
    assert len(shown(row)) == 100
