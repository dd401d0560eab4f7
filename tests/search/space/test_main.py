"""The command that explains knobs: its list holds every knob with its words, a path is found however written, examples load."""

from __future__ import annotations

import inspect
import io
import json
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from rich.console import Console

from minbert_core.config import TrialConfig
from minbert_core.settings.knobs import Knob, knob_at, schema_of
from minbert_core.settings.yaml import parse_yaml
from search.space.__main__ import NEEDS, STRUCTURE_EXAMPLE, explain, find, main, yaml_of
from search.space.domains import DOMAINS
from search.space.examples import example, searched_in
from search.space.file import SPACE_KEYS, STRUCTURE, SpaceSettings
from search.space.listing import (
    DOMAIN_ABOUT,
    FROM_SPACE,
    STRUCTURE_ABOUT,
    about_of,
    config_places,
    file_of,
    papers,
    plain,
    row_of,
    sections,
    show,
    space_places,
)
from search.space.space import make_space
from search.space.table import methods_table, write_table

ROOT = Path(__file__).resolve().parents[3]
PLACES = config_places()
ROWS = {row.path: row for section in sections() for row in section.rows}
every_place = pytest.mark.parametrize("place", PLACES, ids=lambda place: place.path)


def printed(width: int = 0) -> str:
    """The list on a terminal of this width; in a pipe at 0."""
    console = Console(file=io.StringIO(), width=width or None, force_terminal=bool(width), color_system=None, highlight=False)
    show(sections(), console)
    return typing.cast(io.StringIO, console.file).getvalue()


def told(path: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([path]) == 0
    return capsys.readouterr().out


def models_of(model: type[BaseModel]) -> set[type[BaseModel]]:
    """Every model that a model can hold, by its annotations alone."""

    def inside(annotation: Any) -> set[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return {annotation} | models_of(annotation)
        return set().union(*map(inside, typing.get_args(annotation)))

    return set().union(*(inside(field.annotation) for field in model.model_fields.values()))


# -------------------------------------------------------------------------------------------------------------- the list


def test_the_list_holds_every_field_of_every_model_of_a_space() -> None:
    listed = {place.knob.field for place in (*PLACES, *space_places())}
    for top in (TrialConfig, SpaceSettings):
        for model in {top} | models_of(top):
            for name in set(model.model_fields) - {"kind"}:
                above = next((path for path, key in FROM_SPACE.items() if path.endswith(name)), "")
                is_elsewhere = above and (model, name) in {knob_at(TrialConfig, path).field for path in FROM_SPACE}  # type: ignore[union-attr]
                assert (model, name) in listed or is_elsewhere, f"{model.__name__}.{name} is not in the list"


def test_the_list_holds_every_key_of_a_space_and_every_domain() -> None:
    assert {*SPACE_KEYS, *DOMAINS} <= set(ROWS)
    assert set(STRUCTURE_ABOUT) == set(STRUCTURE_EXAMPLE) == set(STRUCTURE)
    assert set(DOMAIN_ABOUT) == set(DOMAINS)


def test_a_path_stands_in_the_list_once() -> None:
    paths = [row.path for section in sections() for row in section.rows]
    assert len(paths) == len(set(paths))


@every_place
def test_a_listed_path_is_a_path_of_the_config(place: Any) -> None:
    assert knob_at(TrialConfig, place.path) == place.knob


@every_place
def test_every_knob_says_what_it_is(place: Any) -> None:
    assert about_of(place.knob) if not place.knob.kind else inspect.getdoc(place.knob.models[0])
    assert (ROOT / file_of(place.knob)).is_file()


@pytest.mark.parametrize(
    ("path", "kind", "default", "law"),
    [
        ("optimizer/lr", "number", "5e-5", "(0, 1] per step"),
        ("gradient/gradvac/beta", "number", "0.01", "[0, 1] per step"),
        ("max_length", "whole number", "128", "[8, 512] tokens"),
        ("smoothness/smart/steps", "whole number", "1", "[1, 10] steps"),
        ("tasks/all/batch_size", "whole number", "16", ">= 1 examples or null"),
        ("tasks/all/head/mlp/hidden", "list", "[768]", "1 or more, each >= 1 units"),
        ("optimizer/lr_schedule", "one of", "linear", "linear, cosine, constant"),
        ("optimizer/clip", "number", "1", "> 0 gradient norm or null"),
        ("gradient", "family", "sum", ", ".join(knob_at(TrialConfig, "gradient").kinds)),
        ("gradient/gradvac", "kind", "", "Wang et al. 2021 (arXiv 2010.05874)"),
        ("stages", "list", "[multitask]", ", ".join(knob_at(TrialConfig, "stages/0").kinds)),
        ("stages/0/multitask/optimizer", "map", "null", "as optimizer or null"),
        ("stages/0/heads_only/fresh", "true or false", "false", ""),
        ("stages/0/single_task/task", "name", "(required)", ""),
        ("loss_weights/static/weights", "map", "{}", "each > 0 times the loss"),
        ("data", "name", "data", ""),
        ("trials", "whole number", "32", ">= 1"),
        ("objective", "name or map", "norm", ""),
    ],
)
def test_a_line_says_what_the_model_says(path: str, kind: str, default: str, law: str) -> None:
    row = ROWS[path]
    assert (row.kind, row.default, row.law) == (kind, default, law)


def test_the_bounds_that_are_told_are_those_that_are_kept() -> None:
    checked = 0
    for place in PLACES:
        schema, _ = schema_of(place.knob)
        if schema.get("type") in ("number", "integer") and place.knob.field and not place.path.startswith("own_tasks"):
            for end in ("minimum", "maximum"):
                beyond = schema.get(end, schema.get(f"exclusive{end.title()}"))
                if beyond is not None:
                    value = beyond - 1 if end == "minimum" else beyond + 1
                    model, name = place.knob.field
                    with pytest.raises(ValueError, match=name):
                        model.model_validate({name: value})
                    checked += 1
    assert checked > 40


def test_in_a_pipe_a_knob_is_a_whole_line() -> None:
    found = [line for line in printed().splitlines() if line.strip().startswith("optimizer/head_lr_factor")]
    assert len(found) == 1
    assert {"number", "1", "> 0 times the encoder's", "the heads' learning rate"} <= {
        cell.strip() for cell in found[0].split("  ") if cell
    }


@pytest.mark.parametrize("width", [80, 120])
def test_on_a_terminal_the_list_fits_and_cuts_no_path(width: int) -> None:
    text = printed(width)
    assert max(map(len, text.splitlines())) <= width
    assert all(path in text for path in ROWS)


def test_each_family_has_a_heading_and_an_empty_line_before_it() -> None:
    lines = printed().splitlines()
    for i, line in enumerate(lines):
        if line.startswith("gradient:"):
            assert lines[i - 1] == ""
            assert "minbert_core/methods/gradients.py" in line
            return
    raise AssertionError("the gradient methods have no heading")


# ---------------------------------------------------------------------------------------------------------------- papers


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("PCGrad (Yu et al. 2020, arXiv 2001.06782), Algorithm 1.", ["Yu et al. 2020 (arXiv 2001.06782)"]),
        ("R_s of Jiang et al. 2020 (arXiv 1911.03437).", ["Jiang et al. 2020 (arXiv 1911.03437)"]),
        ("The heads of Kehoe & Ravella 2024; then Li &\n    Tang 2023.", ["Kehoe & Ravella 2024", "Li & Tang 2023"]),
        ("Joint training (Caruana 1997)", ["Caruana 1997"]),
        ("Cross-entropy of the softmax.", []),
        ("", []),
    ],
)
def test_papers_are_read_off_a_docstring(docstring: str, expected: list[str]) -> None:
    assert papers(docstring) == expected


@every_place
def test_no_arxiv_number_of_a_variant_is_lost(place: Any) -> None:
    if place.knob.kind:
        text = inspect.getdoc(place.knob.models[0]) or ""
        assert text.count("arXiv") == sum("arXiv" in paper for paper in papers(text))


# ------------------------------------------------------------------------------------------------------------- examples


@every_place
def test_the_examples_of_a_place_are_sound_and_are_read_as_they_are_printed(place: Any) -> None:
    constant = example(place.path, place.knob)
    assert constant, "there is none"
    for config in (constant, example(place.path, place.knob, as_domain=True)):
        if config:
            make_space("test", {"config": config})
            read, _ = parse_yaml(yaml_of(config), "test")
            assert plain(read["config"]) == plain(config)
            make_space("test", read)


@every_place
def test_what_can_be_searched_has_an_example_with_a_domain(place: Any) -> None:
    found = example(place.path, place.knob, as_domain=True)
    of_course_alone = {"tasks/all/loss/cross_entropy", "tasks/all/loss/bce", "stages/0/single_task/task"}  # nothing else fits
    lists_of_lists = {f"gradient/{kind}/groups" for kind in ("pcgrad", "gradvac", "cagrad", "torchjd")}  # which are no branches
    fixed = place.path.split("/")[0] in ("data", "own_tasks", "plugins", "rows", "budget", "seed", "machine")
    assert bool(found) == (not fixed and place.path not in of_course_alone | lists_of_lists)
    assert not found or make_space("test", {"config": found}).domains()


@pytest.mark.parametrize(
    ("path", "config"),
    [
        ("optimizer/lr", {"optimizer": {"lr": {"log_uniform": [1e-5, 3e-4]}}}),
        ("optimizer/warmup", {"optimizer": {"warmup": {"uniform": [0.05, 0.2]}}}),
        ("max_length", {"max_length": {"int": [64, 256]}}),
        ("gradient/gradvac/per", {"gradient": {"kind": "gradvac", "per": {"choice": ["layer", "model"]}}}),
        ("gradient/pcgrad", {"gradient": {"choice": ["sum", "pcgrad"]}}),
    ],
)
def test_a_rate_is_searched_on_a_log_scale_a_share_evenly_a_count_in_whole_numbers(path: str, config: Any) -> None:
    knob = knob_at(TrialConfig, path)
    assert knob is not None
    assert example(path, knob, as_domain=True) == config


def test_an_example_holds_what_a_variant_needs_beside_it() -> None:
    knob = knob_at(TrialConfig, "tasks/all/head/sbert")
    assert knob is not None
    assert example("tasks/all/head/sbert", knob) == {"tasks": {"pairs": {"pair_encoding": "bi", "head": "sbert"}}}


@pytest.mark.parametrize("text", STRUCTURE_EXAMPLE.values(), ids=STRUCTURE_EXAMPLE)
def test_the_examples_of_a_space_s_own_keys_load(text: str) -> None:
    document, _ = parse_yaml(text, "test")
    document.pop("extends", None)
    make_space("test", document)


@pytest.mark.parametrize(
    ("path", "spaces"),
    [
        ("gradient/gradvac/beta", ["full", "gradvac"]),
        ("gradient/gradvac", ["full", "gradvac"]),
        ("gradient/gradvac/per", []),
        ("stages/0/heads_only", ["full", "stages"]),
        ("loss_weights/static/weights", ["schedules"]),
        ("tasks/all/loss/mse_pearson/mse_share", ["heads"]),
    ],
)
def test_the_spaces_that_search_a_knob_are_found(path: str, spaces: list[str]) -> None:
    knob = knob_at(TrialConfig, path)
    assert knob is not None
    assert searched_in(path, knob) == spaces


# --------------------------------------------------------------------------------------------------------------- finding


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("gradient/gradvac", "gradient/gradvac"),
        ("gradient.gradvac.beta", "gradient/gradvac/beta"),
        ("config/optimizer/lr", "optimizer/lr"),
        ("gradvac", "gradient/gradvac"),
        ("tasks/all/head", "tasks/all/head"),
        ("tasks/sts/head/mlp", "tasks/sts/head/mlp"),
        ("stages/2/linear_probe/lr", "stages/2/linear_probe/lr"),
        ("own_tasks/mine/binary/labels", "own_tasks/mine/binary/labels"),
        ("loss_weights/static/weights/para", "loss_weights/static/weights"),
        ("trials", "trials"),
        ("repeat_every", "sampler/random/repeat_every"),
        ("log_uniform", "log_uniform"),
        ("together", "together"),
        ("config", "config"),
    ],
)
def test_a_path_is_found_whole_with_dots_or_by_its_end(written: str, path: str) -> None:
    assert [found.path for found in find(written)] == [path]


def test_a_name_in_several_places_shows_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    text = told("lr", capsys)
    assert text.startswith("lr matches 5 knobs.")
    assert "stages/0/linear_probe/lr" in text


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ("gradvak", "Unknown knob `gradvak`; did you mean 'gradvac'?"),
        ("gradient/gradvak", "did you mean 'gradient/gradvac'? Known in `gradient`: "),
        ("optimizer/lrr", "did you mean 'optimizer/lr'?"),
        ("stages/linear_probe/lr", "did you mean 'stages/0/linear_probe/lr'?"),
        ("zzz", "Unknown knob `zzz`. Known: about, adapter, baselines"),
        ("", "Unknown knob ``. Known: about"),
    ],
)
def test_a_wrong_path_is_one_sentence_and_exit_2(written: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([written]) == 2
    output = capsys.readouterr()
    assert sentence in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""


# ------------------------------------------------------------------------------------------------------------ explaining


def test_a_variant_is_explained_whole(capsys: pytest.CaptureFixture[str]) -> None:
    text = told("gradvac", capsys)
    for part in (
        "gradient/gradvac  (gradvac)",
        "If the cosine of two tasks' gradients is below its running mean",  # its docstring to the end
        "gradient/gradvac/beta    number",
        "several tasks per step",
        "Wang et al. 2021 (arXiv 2010.05874)",
        "minbert_core/methods/gradients.py",
        "spaces/full.yaml, spaces/gradvac.yaml",
        "gradient: gradvac",
        "gradient: {choice: [sum, {kind: gradvac, beta: {log_uniform: [0.002, 0.05]}}]}",
    ):
        assert part in text, part


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("task_schedule/drop", "refused by   loss_weights/famo, gradient/pcgrad, gradient/gradvac, gradient/cagrad, "),
        ("bi", "needed by    tasks/all/head/sbert"),
        ("top_k", "needs        2 `rungs` or more"),
        ("bce", "fits         tasks that are binary"),
        ("budget/points", "follows from its `rungs`"),
        ("tasks", "A task's settings override those of pairs, which override all."),
        ("seed", "Usually the same for all trials"),
        ("sampler/tpe/startup", "sampler: {kind: tpe, startup: 8}"),
    ],
)
def test_what_needs_or_refuses_a_place_and_whence_it_comes_is_told(
    path: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert line in told(path, capsys)


def test_everything_in_the_list_is_explained_on_a_narrow_terminal() -> None:
    for path in ROWS:
        console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None, highlight=False)
        (found,) = find(path)
        explain(found, path, console)
        assert len(typing.cast(io.StringIO, console.file).getvalue().splitlines()) > 3, path


def test_whatever_a_variant_says_it_needs_has_words() -> None:
    said = {name for place in PLACES if place.knob.kind for name in vars(place.knob.models[0]) if name.startswith("needs_")}
    assert said - {"needs_float32"} <= set(NEEDS)


# ---------------------------------------------------------------------------------------------------------- the command


def test_the_help_fits_a_screen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80


def test_the_module_run_by_name_is_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "search.space", "--schema", str(tmp_path / "s.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"$schema={tmp_path / 's.json'}" in done.stdout
    assert json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))["title"] == "A search space"


def test_a_schema_goes_with_no_path_and_into_a_folder_that_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gradient", "--schema", str(tmp_path / "s.json")]) == 2
    assert main(["--schema", str(tmp_path / "none" / "s.json")]) == 3
    assert "Cannot write" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_table_of_methods_names_every_variant_with_its_file() -> None:
    rows = {line.split("`")[1]: line for line in methods_table()[2:]}
    for place in PLACES:
        file = Path(file_of(place.knob)).name
        if place.knob.kind and place.knob.kind != "none" and file in rows:
            assert f"`{place.knob.kind}`" in rows[file]
    assert "`cls` `pooler` (Devlin et al. 2019), `mean`" in rows["features.py"]


def test_the_table_replaces_the_one_in_the_readme_and_nothing_else(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"# A\n\n| other |\n\n{methods_table()[0]}\n|---|---|\n| old |\n\nafter\n", encoding="utf-8")
    write_table(readme)
    assert readme.read_text(encoding="utf-8") == "\n".join(["# A", "", "| other |", "", *methods_table(), "", "after", ""])
    readme.write_text("# A\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"has no table of methods\. Its first line is: \| file in"):
        write_table(readme)


def test_a_place_that_is_no_field_has_no_schema() -> None:
    assert schema_of(Knob(())) == ({}, False)
    assert row_of(PLACES[0]).path == PLACES[0].path
