"""table.tex: its numbers, what is bold, and that LaTeX can read it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from analysis.latex import escape, table_tex
from analysis.results import Results, document
from analysis.selection import Selection
from minbert_core.config import TrialConfig
from minbert_core.config_checks import load_config

MakeUp = Callable[..., tuple[Selection, Results]]
Tiny = Callable[..., TrialConfig]
SCORES = {3: {"dev": [0.8, 0.82], "test": [0.7, 0.71]}, 0: {"dev": [0.75, 0.76], "test": [0.72, 0.73]}}


def rows(tex: str) -> dict[str, list[list[str]]]:
    """The rows of each block, as the cells' texts; under "" the heading."""
    found: dict[str, list[list[str]]] = {"": []}
    block = ""
    for line in tex.splitlines():
        if match := re.search(r"\\emph\{(test|dev)", line):
            found[block := match[1]] = []
        elif line.endswith(r"\\"):
            found[block].append([cell.strip() for cell in re.split(r"(?<!\\)&", line.removesuffix(r"\\"))])
    return found


def caption(tex: str) -> str:
    return " ".join(line.removeprefix("% ") for line in tex.splitlines() if line.startswith("%"))


def check(tex: str) -> None:
    """What LaTeX would stumble over: braces, an open comment, a row of too many or too few cells, a sign out of place."""
    for text in (caption(tex), *(line for line in tex.splitlines() if not line.startswith("%"))):
        bare = re.sub(r"\\[\\{}$&%#_]", "", text)
        assert bare.count("{") == bare.count("}"), text
        assert bare.count("$") % 2 == 0, text
        outside = "".join(bare.split("$")[::2])
        assert not set("%#_^~<>|") & set(outside), text
    (columns,) = re.findall(r"p\{0\.3\\linewidth\}(c+)@", tex)
    assert {len(row) for block in rows(tex).values() for row in block} == {1 + len(columns)}
    assert tex.count(r"\begin{") == tex.count(r"\end{") == 1
    assert tex.count(r"\begingroup") == tex.count(r"\endgroup") == 1


def test_the_numbers_are_those_of_results_json(tiny: Tiny, make_up: MakeUp) -> None:
    selection, results = make_up(tiny(), SCORES, 0)
    tex = table_tex(selection, results)
    check(tex)
    stored = {entry["trial"]: entry for entry in document(selection, "", results, {})["configurations"]}
    heading = rows(tex)[""][0]
    assert heading == ["", "sst", "para", "sts", "norm", "mean"]
    for split in ("dev", "test"):
        for name, *cells in rows(tex)[split]:
            entry = stored[int(name.split()[1])]
            for column, cell in zip(heading[1:], cells, strict=True):
                mean, deviation = (float(number) for number in re.findall(r"\.\d{4}", cell))
                assert mean == pytest.approx(entry[split][column]["mean"], abs=5e-5)
                assert deviation == pytest.approx(entry[split][column]["deviation"], abs=5e-5)
    assert rows(tex)["dev"][0][-2:] == [r"$.7900_{\pm.0141}$", r"$.8000_{\pm.0141}$"]  # by hand: .80, .82 less .02 and .01


def test_the_best_of_a_block_is_bold_if_it_beats_the_baseline(tiny: Tiny, make_up: MakeUp) -> None:
    """The baseline is the best on test, and beats nobody."""
    tex = table_tex(*make_up(tiny(), SCORES, 0, beats={3}))
    check(tex)
    assert tex.count(r"\mathbf") == 1
    assert rows(tex)["dev"][0][4] == r"$\mathbf{.7900}_{\pm.0141}$"  # in the column of the objective


@pytest.mark.parametrize(("baseline", "beats"), [(0, ()), (None, (3,))])
def test_nothing_is_bold_that_beats_no_baseline(
    tiny: Tiny, make_up: MakeUp, baseline: int | None, beats: tuple[int, ...]
) -> None:
    assert r"\mathbf" not in table_tex(*make_up(tiny(), SCORES, baseline, beats=beats))


def test_a_single_correlation_has_its_score_beside_it(tiny: Tiny, make_up: MakeUp) -> None:
    tex = table_tex(*make_up(tiny(train_on=["sts"]), SCORES, 0, beats={3}))
    check(tex)
    assert rows(tex)[""][0] == ["", "sts", "score"]
    assert rows(tex)["dev"][0][2].startswith(r"$\mathbf")
    assert "sts: Pearson's $r$; score: $(r + 1)/2$. Bold: the best score of a block" in caption(tex)
    assert "norm" not in caption(tex)


def test_what_an_objective_weighs_is_told_and_has_a_column(tiny: Tiny, make_up: MakeUp) -> None:
    config = tiny(objective={"weights": {"sst": 1, "sts": 3}})
    tex = table_tex(*make_up(config, SCORES, 0, beats={3}))
    check(tex)
    assert rows(tex)[""][0][-1] == "score"
    assert rows(tex)["dev"][0][-1] == r"$\mathbf{.8100}_{\pm.0141}$"
    assert "norm and mean are over sst, sts;" in caption(tex)
    assert "score: the mean of 1 sst + 3 sts" in caption(tex)


def test_without_labels_there_is_no_test_block_and_half_of_them_leave_dashes(tiny: Tiny, make_up: MakeUp) -> None:
    selection, results = make_up(tiny(), SCORES, 0, beats={3})
    for of in results.configurations.values():
        del of["test"]["para"], of["test"]["norm"], of["test"]["mean"], of["test"]["score"]
    tex = table_tex(selection, results)
    check(tex)
    assert [cell == "--" for cell in rows(tex)["test"][0][1:]] == [False, True, False, True, True]
    for of in results.configurations.values():
        of["test"] = {}
    assert set(rows(table_tex(selection, results))) == {"", "dev"}


def test_what_a_user_wrote_is_escaped(tiny: Tiny, make_up: MakeUp) -> None:
    params = {n: {"together/a_step": f"50%_of & #{n} ~^<|> {{$x\\y}}", "b/" + "a_long_knob+" * 5: n} for n in (3, 0)}
    selection, results = make_up(tiny(), SCORES, 0, params=params)
    tex = table_tex(replace(selection, search=replace(selection.search, folder=selection.search.folder / "one_more")), results)
    check(tex)
    assert r"a\_step=50\%\_of \& \#3 " in tex
    assert r"a\_\allowbreak long\_\allowbreak knob+\allowbreak a\_" in tex  # else it would reach into the numbers
    assert r"Search one\_more:" in caption(tex)
    assert escape(r"\{_") == r"\textbackslash{}\{\_"


def test_a_row_names_what_the_others_do_not_share_and_the_caption_the_rest(tiny: Tiny, make_up: MakeUp) -> None:
    tex = table_tex(*make_up(tiny(), SCORES, 0))
    assert rows(tex)["test"][0][0] == r"\raggedright 003 lr=4e-05"
    assert rows(tex)["test"][1][0] == r"\raggedright 000 (baseline) lr=1e-05"
    assert rows(tex)["dev"][1][0] == r"\raggedright 000 (baseline)"  # told once
    assert "All: pooling=mean." in caption(tex)


def test_a_configuration_alone_is_named_by_all_its_parameters(tiny: Tiny, make_up: MakeUp) -> None:
    tex = table_tex(*make_up(tiny(), {3: SCORES[3]}))
    assert rows(tex)["test"][0][0] == r"\raggedright 003 lr=4e-05 pooling=mean"
    assert "All:" not in caption(tex)


def test_the_caption_says_what_was_tried_and_how_many_seeds_there_are(tiny: Tiny, make_up: MakeUp) -> None:
    selection, results = make_up(tiny(), {**SCORES, 5: {"dev": [0.7], "test": [0.7]}}, 0)
    said = caption(table_tex(selection, results))
    assert said.startswith(r"\caption{Search small: chosen on dev among 3 configurations by: best evaluation by dev score")
    assert "over 2 fresh seeds (the others failed; 005: 1)." in said
    assert r"if it beats the baseline: $p \leq .05$ of the difference, rows paired" in said


def test_one_seed_has_no_deviation_and_nothing_in_bold(tiny: Tiny, make_up: MakeUp) -> None:
    selection, results = make_up(tiny(), {3: {"dev": [0.8]}, 0: {"dev": [0.7]}}, 0)
    tex = table_tex(selection, results)
    check(tex)
    assert r"\pm" not in tex
    assert "One fresh seed each." in caption(tex)
    assert "Bold" not in caption(tex)
    assert "One seed: the weights that the search kept." in caption(table_tex(replace(selection, seeds=[]), results))


def test_a_task_of_ones_own_has_its_column_and_its_metric(make_up: MakeUp) -> None:
    declared = {"kind": "classification", "files": {"train": "t.csv"}, "text": "text", "label": "kind"}
    config = load_config(
        {"train_on": ["sst", "my_mood"], "own_tasks": {"my_mood": declared | {"labels": ["a", "b"], "metric": "macro_f1"}}}
    )
    tex = table_tex(*make_up(config, SCORES, 0))
    check(tex)
    assert rows(tex)[""][0] == ["", "sst", r"my\_mood", "norm", "mean"]
    assert r"sst: accuracy, my\_mood: macro F1; norm and mean are over sst, my\_mood;" in caption(tex)
