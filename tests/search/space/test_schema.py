"""The schema of a space's file: it is current, it takes what the loader takes, and it sees typos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
from jsonschema import Draft202012Validator

from minbert_core.settings.models import Variant
from minbert_core.settings.yaml import parse_yaml, read_yaml
from search.shipped import SCHEMA
from search.space import schema
from search.space.examples import example
from search.space.listing import config_places
from search.space.schema import schema_line, schema_text, space_schema, write_schema
from search.space.space import make_space

SPACES = sorted(SCHEMA.parent.rglob("*.yaml"))
VALIDATOR = Draft202012Validator(space_schema())


def faults(document: Any) -> list[str]:
    return [error.message for error in VALIDATOR.iter_errors(document)]


def config(text: str) -> Any:
    """A space with this config, in YAML flow style."""
    return {"config": parse_yaml("{" + text + "}", "test")[0]}


def test_the_shipped_schema_is_the_models_own() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == schema_text(), "out of date: run `python -m search.space --schema`"


def test_a_variant_without_a_docstring_has_a_schema() -> None:
    """The battery tells it of the docstring: it must get as far as that."""

    class Mute(Variant):
        kind: Literal["mute"] = "mute"

    family = schema._Written({"Mute": Mute.model_json_schema()})._family(["Mute"])
    assert family["anyOf"][0] == {"enum": ["mute"], "enumDescriptions": [""]}


def test_it_is_a_schema_and_its_file_holds_all_of_it() -> None:
    Draft202012Validator.check_schema(space_schema())
    assert json.loads(schema_text()) == space_schema()


def test_every_reference_leads_somewhere() -> None:
    whole = space_schema()
    for pointer in {piece.split('"')[0] for piece in schema_text().split('"$ref": "#/')[1:]}:
        node: Any = whole
        for part in pointer.split("/"):
            node = node[int(part)] if isinstance(node, list) else node[part]
        assert node, f"{pointer} is empty"


@pytest.mark.parametrize("file", SPACES, ids=lambda file: file.stem)
def test_a_shipped_space_names_the_schema_and_is_sound_by_it(file: Path) -> None:
    up = "../" * (len(file.relative_to(SCHEMA.parent).parts) - 1)
    line = schema_line(SCHEMA).replace("=", f"={up}")
    assert file.read_text(encoding="utf-8").splitlines()[0] == line
    assert faults(read_yaml(file)[0]) == []


@pytest.mark.parametrize("place", config_places(), ids=lambda place: place.path)
def test_what_the_loader_takes_at_a_place_the_schema_takes(place: Any) -> None:
    for as_domain in (False, True):
        assert faults({"config": example(place.path, place.knob, as_domain)}) == []


@pytest.mark.parametrize(
    "text",
    [
        "encoder: tiny, data: toy",
        "encoder: {choice: [bert-base-uncased, some/folder]}",
        "tasks: {all: {head: {kind: mlp, hidden: [768]}}, sts: {loss: mse}}",
        "optimizer: {clip: {choice: [null, 1, {log_uniform: [0.1, 10]}]}}",
        "tasks: {all: {head: {choice: [{name: wide, kind: mlp, hidden: [768]}, {name: deep, kind: mlp, hidden: [64, 64]}]}}}",
        "smoothness: {choice: [none, {kind: smart, radius: {log_uniform: [1e-3, 1e-1]}}]}",
        "train_on: {choice: [[sst, para, sts], [sst, sts]]}",
        "stages: [{kind: linear_probe, share: {uniform: [0.05, 0.3]}}, {kind: multitask, gradient: {choice: [sum, pcgrad]}}]",
        "own_tasks: {mine: {kind: classification, files: {train: a.csv}, text: review, labels: [1, 2, 3]}}",
        "budget: {examples: 400_000}",
    ],
)
def test_what_the_grammar_has_the_schema_has(text: str) -> None:
    make_space("test", config(text))  # the loader agrees
    assert faults(config(text)) == []


def test_a_number_with_underscores_which_an_editor_takes_for_a_word_passes() -> None:
    assert faults({"config": {"budget": {"examples": "400_000"}}}) == []
    assert faults({"config": {"budget": {"examples": "many"}}})


@pytest.mark.parametrize(
    "laid",
    [
        "{optimizer/lr: 2e-5, smoothness: {kind: smart, weight: 1}}",
        "{optimizer.lr: 2e-5}",
        "{together: {step: surgery}}",
        "{tasks/sts/loss: mse, tasks/pairs: {pair_encoding: bi, head: sbert}}",
        "{tasks: {pairs/head: sbert}}",
        "{smoothness/smart/radius: 0.01}",
        "{stages/0/linear_probe/lr: 1e-3, stages/1/multitask/optimizer/lr: 1e-5}",
        "{loss_weights/static/weights/para: 0.3}",
        "{smoothness: {weight: 2}}",
    ],
)
def test_what_is_laid_over_a_config_may_be_named_by_paths(laid: str) -> None:
    document = parse_yaml(laid, "test")[0]
    assert faults({"baselines": [document]}) == []
    if "together" not in document:
        assert faults({"together": {"step": [{"name": "a", "set": document}, {"name": "b"}]}}) == []


@pytest.mark.parametrize(
    "text",
    [
        "optimiser: {lr: 1e-5}",
        "optimizer: {lrr: 1e-5}",
        "optimizer: {lr: 2}",
        "optimizer: {lr: fast}",
        "optimizer: {lr: {log_unifrom: [1e-6, 1e-4]}}",
        "optimizer: {lr: {log_uniform: [1e-6, 1e-4], uniform: [1e-6, 1]}}",
        "optimizer: {lr: {log_uniform: [1e-6]}}",
        "optimizer: {lr: {log_uniform: [1e-6, 5]}}",
        "optimizer: {lr_schedule: {uniform: [0, 1]}}",
        "max_length: {uniform: [64, 128]}",
        "gradient: gradvak",
        "gradient: {kind: gradvak}",
        "gradient: {kind: gradvac, betta: 0.1}",
        "gradient: {choice: [sum, gradvak]}",
        "gradient: {choice: [sum]}",
        "stages: [linear_prob, multitask]",
        "tasks: {all: {head: {kind: linear, hidden: [8]}}}",
        "own_tasks: {mine: {kind: clasification}}",
        "objective: norm",
        "budget: {points: [1, 3]}",
        "optimizer/lr: 1e-5",
    ],
)
def test_a_typo_is_seen(text: str) -> None:
    assert faults(config(text)), "the schema takes it"


@pytest.mark.parametrize(
    "document",
    [
        {"trails": 3},
        {"trials": 0},
        {"sampler": "tpee"},
        {"trial_scheduler": {"kind": "asha", "k": 3}},
        {"baselines": [{"optimizer/lrr": 1e-5}]},
        {"baselines": [{"gradient": "gradvak"}]},
        {"baselines": {"gradient": "sum"}},
        {"together": {"step": [{"set": {"gradient": "sum"}}, {"name": "b"}]}},
        {"together": {"step": [{"name": "a", "sets": {}}, {"name": "b"}]}},
        {"extends": 3},
    ],
)
def test_a_typo_beside_the_config_is_seen(document: Any) -> None:
    assert faults(document), "the schema takes it"


def test_an_editor_completes_kinds_and_shows_what_each_is() -> None:
    family = space_schema()["$defs"]["Sum-family"]["anyOf"][0]
    assert family["enum"][:3] == ["sum", "pcgrad", "gradvac"]
    assert "Yu et al. 2020" in family["enumDescriptions"][1]


def test_an_editor_shows_what_a_knob_is_with_its_unit() -> None:
    knob = space_schema()["$defs"]["TrialConfig.max_length"]
    assert knob["description"].endswith("[tokens]")
    assert knob["default"] == 128


def test_the_schema_is_written_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_schema(tmp_path / "mine.json")
    assert (tmp_path / "mine.json").read_text(encoding="utf-8") == schema_text()
    assert schema_line(tmp_path / "mine.json").endswith(f"$schema={tmp_path / 'mine.json'}")
    write_schema(Path("-"))
    assert capsys.readouterr().out == schema_text()
    monkeypatch.setattr(schema, "SCHEMA", tmp_path / "none")
    with pytest.raises(OSError, match="No such"):
        write_schema(tmp_path / "none" / "mine.json")
