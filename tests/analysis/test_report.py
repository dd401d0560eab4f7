"""The page about a search: it needs no network, has the numbers of each figure, and says what cannot be said."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import vl_convert

from analysis.page import answer
from analysis.page.answer import best_sentence, main_choice
from analysis.page.blocks import Bullets, Grid, Heading, Paragraph, Picture, blocks
from analysis.page.figures import Drawn
from analysis.page.write import VEGA_LITE, Page, figures, full_spec, html
from analysis.report import main, make_page
from analysis.table import Parameter, Table, open_table
from search.results import open_search

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def page(toy_runs: Path) -> Page:
    return make_page(open_search(toy_runs / "small"), open_table(["small"], toy_runs))


def test_printed_lines_become_sentences_items_and_tables() -> None:
    width = 20
    lines = ["one two three four", "five", "alone", "- an item", "| a | b |", "|---|---|", "| 1 | 2 |", "", "last"]
    assert blocks(lines, width) == [
        Paragraph("one two three four five"),
        Paragraph("alone"),
        Bullets(["an item"]),
        Grid(["a", "b"], [["1", "2"]]),
        Paragraph("last"),
    ]


def test_the_page_loads_nothing_and_closes_no_script_early(page: Page) -> None:
    name = "</script><b>"
    text = html(Page(name, name, page.answer, page.notes, page.origin, page.sections))
    written = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"(?!data:)", written)
    assert "@import" not in written
    assert text.count("<script>") == text.count("</script>") == 2
    assert name not in text


def test_every_figure_can_be_drawn_and_has_its_numbers(page: Page) -> None:
    found = figures(page)
    assert len(found) >= 4
    for figure in found:
        assert figure.rows, figure.title
        for panel in figure.panels:
            svg = vl_convert.vegalite_to_svg(full_spec(panel.spec) | {"width": 300}, vl_version=VEGA_LITE)
            assert "NaN" not in svg, figure.title


def test_the_pointer_names_the_trial_nearest_to_it(page: Page) -> None:
    """Vega-Lite 6.4 reads the tooltip from the cell around the nearest point, not from the point: it shows `undefined`"""
    cells = [cell for figure in figures(page) for panel in figure.panels for cell in cells_of(full_spec(panel.spec))]
    assert len(cells) >= 4
    assert all('datum.datum["trial"]' in cell["encode"]["update"]["tooltip"]["signal"] for cell in cells)


def cells_of(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The marks of a drawing that find the nearest point"""
    marks = vl_convert.vegalite_to_vega(spec, vl_version=VEGA_LITE)["marks"]
    return [mark for mark in marks if mark["name"].endswith("voronoi")]


def test_the_answer_names_the_best_trial_and_each_trial_has_its_command(page: Page) -> None:
    assert re.match(r"Best on dev: trial 00\d, norm \.\d{4} after \d+ examples, with lr=", page.answer[0])
    again = next(section for section in page.sections if section.name == "again")
    commands = [row[-1] for block in again.blocks if isinstance(block, Grid) for row in block.rows if "train" in row[-1]]
    assert len(commands) == 4
    assert all(re.search(r"minbert_core\.train .*trials/00\d/config\.yaml$", command) for command in commands)
    assert [section.name for section in page.sections] == [
        "cost", "best", "test", "groups", "importance", "curves", "conflicts", "errors", "again",
    ]  # fmt: skip


def test_the_best_model_is_asked_and_its_worst_rows_are_shown(page: Page) -> None:
    [section] = [section for section in page.sections if section.name == "errors"]
    text = " ".join(block.text for block in section.blocks if isinstance(block, Paragraph))
    assert [block.text for block in section.blocks if isinstance(block, Heading)] == ["sst", "para", "sts"]
    assert "worst rows" in text
    pictures = [block for block in section.blocks if isinstance(block, Picture)]
    assert pictures
    assert all(b"<svg" in picture.svg and picture.title for picture in pictures)


def test_the_command_writes_the_page_and_says_where(toy_runs: Path, tmp_path: Path, capsys: Capture) -> None:
    runs, file = tmp_path / "runs", tmp_path / "page.html"
    shutil.copytree(toy_runs / "small", runs / "small", symlinks=True)
    assert main(["small", "--runs", str(runs), "--to", str(file), "--no-errors"]) == 0  # a copy without its store lacks nothing
    out, err = capsys.readouterr()
    assert f"report    {file}" in out
    assert "There is no" in err
    assert file.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_search_without_an_evaluation_gets_a_sentence(toy_runs: Path, tmp_path: Path, capsys: Capture) -> None:
    shutil.copytree(toy_runs / "small", tmp_path / "small", symlinks=True)
    for records in tmp_path.glob("small/trials/*/metrics.jsonl"):
        records.unlink()
    for name in ("study.journal", "study.journal.lock"):
        (tmp_path / "small" / name).unlink(missing_ok=True)
    shutil.rmtree(tmp_path / "small" / "trials")
    assert main(["small", "--runs", str(tmp_path)]) == 2
    assert "No trial of small has been evaluated yet" in capsys.readouterr().err


def test_trials_whose_only_other_branch_failed_are_drawn_in_one_colour(toy_runs: Path) -> None:
    """The choice had two branches, but no colours for them, so that no line was drawn"""
    table = open_table(["small"], toy_runs)
    drawn = Drawn(table, next(iter(table.searches["small"].parameters)), [])
    assert set(drawn.groups.values()) == set(drawn.names) == {"trials"}


def test_colours_follow_the_choice_whose_branches_have_parameters(made_up: Callable[..., Table]) -> None:
    table = made_up(12, lambda params, _: params["dropout"])
    facts = table.searches["made"]
    pooling = {"pooling": Parameter("pooling", "choice", ("mean", "cls"))}
    table = replace(
        table,
        searches={"made": replace(facts, parameters=pooling | facts.parameters)},
        trials=[
            replace(trial, params={"pooling": ("mean", "cls")[trial.number % 2], **trial.params}) for trial in table.trials
        ],
    )
    assert main_choice(table, []) == "pooling"  # the first
    assert main_choice(table, ["gradient=gradvac"]) == "gradient"
    drawn = Drawn(table, "gradient", ["sum", "pcgrad", "gradvac"])
    assert drawn.groups == {trial.number: trial.params["gradient"] for trial in table.trials}


def test_without_a_choice_all_trials_have_one_colour(toy_runs: Path) -> None:
    table = open_table(["small"], toy_runs)
    assert main_choice(table, ["smoothness=smart"]) == ""  # no trial took a choice
    drawn = Drawn(table, "", [])
    assert set(drawn.groups.values()) == {"trials"}
    assert best_sentence(open_search(toy_runs / "small"), "norm").startswith("Best on dev")


def test_a_tested_answer_shows_the_p_value_that_decided_it(tmp_path: Path) -> None:
    """An interval is of one comparison, and may leave out 0 where the verdict, corrected for all of them, is open."""
    compared = {"split": "test", "first": 6, "second": 0, "best": 6, "verdict": "cannot be told from", "corrected_p": 0.147}
    compared["score"] = {"mean": 0.0428, "interval": [0.0005, 0.085]}
    results = {"comparisons": [compared], "baseline": 0, "seeds": [1, 2]}
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    assert answer.tested_sentence(tmp_path) == (
        "Retrained over 2 fresh seeds, on test: 006 cannot be told from 000 (+.0428; 95 %: +.0005 to +.0850; p = .147, "
        "corrected for all comparisons)."
    )
