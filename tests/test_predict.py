"""A saved model answers sentences and pairs: as evaluation does, by name and probability, from Python and the command line."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minbert_core.config import TrialConfig
from minbert_core.inputs import Inputs, build_encoder, open_inputs
from minbert_core.model import Answer, MultitaskBert, Predictor, build_model, load, predict_logits, predictions, save_model
from minbert_core.predict import main
from minbert_core.settings.yaml import dump_yaml, read_yaml

Tiny = Callable[..., TrialConfig]
ROOT = Path(__file__).resolve().parents[1]


def saved(config: TrialConfig, inputs: Inputs, folder: Path, scale: float = 1.0) -> MultitaskBert:
    """A fresh model in `folder`, its weights `scale` times as large as drawn."""
    model = build_model(config, build_encoder(config, inputs))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale if parameter.dim() > 1 else 1)
    save_model(model, config, folder, inputs.encoder_folder)
    return model


def with_logits(config: TrialConfig, inputs: Inputs, folder: Path, **logits: list[float]) -> Predictor:
    """A model with linear heads that answers every input alike, by these logits of a task."""
    model = build_model(config, build_encoder(config, inputs))
    with torch.no_grad():
        for name, values in logits.items():
            model.heads[name].layers[0].weight.zero_()
            model.heads[name].layers[0].bias.copy_(torch.tensor(values))
    save_model(model, config, folder, inputs.encoder_folder)
    return load(folder, "cpu")


@pytest.fixture
def known(tiny: Tiny, tmp_path: Path) -> Predictor:
    """sst is neutral, para no (a probability of 1/4), sts 1.5; saved in trials/007/best of a search, its best."""
    config = tiny()
    logits = {"sst": [0.0, 1.0, 2.0, 1.0, 0.0], "para": [-math.log(3)], "sts": [1.5]}
    (tmp_path / "smart" / "trials" / "007").mkdir(parents=True)
    (tmp_path / "smart" / "best").symlink_to("trials/007/best")
    return with_logits(config, open_inputs(config), tmp_path / "smart" / "trials" / "007" / "best", **logits)


def dev_texts(inputs: Inputs, task: str, columns: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The texts of a dev file as they stand in it."""
    files = {"sst": "ids-sst-dev.csv", "para": "quora-dev.csv", "sts": "sts-dev.csv"}
    with (inputs.data_folder / files[task]).open(encoding="utf-8", newline="") as file:
        return [tuple(row[column] for column in columns) for row in csv.DictReader(file, delimiter="\t")]


# --------------------------------------------------------------------------------------------------------------- in Python


@pytest.mark.parametrize(
    "pairs",
    [{}, {"pair_encoding": "bi", "head": "cosine", "pooling": "mean"}, {"loss": "classes"}],
    ids=["cross", "cosine", "classes"],
)
def test_answers_are_what_evaluation_reads_of_the_same_texts(tiny: Tiny, tmp_path: Path, pairs: dict[str, Any]) -> None:
    config = tiny(tasks={"sts" if "loss" in pairs else "pairs": pairs})
    inputs = open_inputs(config)
    model = saved(config, inputs, tmp_path / "best", scale=5)
    predictor = load(tmp_path / "best", "cpu")
    for name, columns in (("sst", ("sentence",)), ("para", ("sentence1", "sentence2")), ("sts", ("sentence1", "sentence2"))):
        logits_BK = predict_logits(model, name, inputs.dev[name], config.max_length, inputs.specials)
        texts = dev_texts(inputs, name, columns)
        found = [
            answers[name] for answers in predictor.predict([row[0] if len(row) == 1 else (row[0], row[1]) for row in texts])
        ]
        assert np.ptp(logits_BK[:, 0]) > 0.05
        assert [answer.value for answer in found] == pytest.approx(predictions(inputs.dev[name].task, logits_BK), abs=1e-6)
        for answer, logits_K in zip(found, logits_BK.astype(float), strict=True):
            if name == "sst":
                want = np.exp(logits_K) / np.exp(logits_K).sum()
                assert list(answer.probabilities.values()) == pytest.approx(want, abs=1e-6)
            elif name == "para":
                assert answer.probabilities["paraphrase"] == pytest.approx(1 / (1 + math.exp(-logits_K[0])), abs=1e-6)


def test_neither_order_nor_neighbours_of_the_inputs_matter(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny()
    inputs = open_inputs(config)
    saved(config, inputs, tmp_path / "best", scale=5)
    predictor = load(tmp_path / "best", "cpu")
    texts: list[Any] = [row[0] for row in dev_texts(inputs, "sst", ("sentence",))[:10]]
    texts += [(a, b) for a, b in dev_texts(inputs, "para", ("sentence1", "sentence2"))[:10]]
    alone = [predictor.predict([text])[0] for text in texts]
    assert len({answers["sst"].value for answers in alone[:10]} | {answers["sts"].value for answers in alone[10:]}) > 10
    order = np.random.default_rng(0).permutation(len(texts))
    monkeypatch.setattr("minbert_core.machine.TOKENS_PER_PASS", 60)  # several passes
    for i, answers in zip(order, predictor.predict([texts[i] for i in order]), strict=True):
        assert list(answers) == list(alone[i])
        for name, answer in answers.items():
            assert answer.value == pytest.approx(alone[i][name].value, abs=1e-4)
            assert answer.probabilities == pytest.approx(alone[i][name].probabilities, abs=1e-4)


def test_a_sentence_is_answered_by_the_tasks_of_sentences_and_a_pair_by_those_of_pairs(known: Predictor) -> None:
    one, two, listed = known.predict(["a film", ("one film", "another film"), ["one film", "another film"]])  # type: ignore[list-item]
    assert list(one) == ["sst"]
    assert list(two) == list(listed) == ["para", "sts"]
    assert known.predict([]) == []


def test_an_answer_has_the_name_the_number_and_the_probabilities_of_classes(known: Predictor) -> None:
    sst = known.predict(["a film"])[0]["sst"]
    total = 2 + 2 * math.e + math.e**2
    assert (sst.value, sst.label) == (2, "neutral")
    assert sst.probabilities == pytest.approx(
        {
            "very negative": 1 / total,
            "negative": math.e / total,
            "neutral": math.e**2 / total,
            "positive": math.e / total,
            "very positive": 1 / total,
        }
    )
    two = known.predict([("one film", "another film")])[0]
    assert (two["para"].value, two["para"].label) == (0, "no paraphrase")
    assert two["para"].probabilities == pytest.approx({"no paraphrase": 0.75, "paraphrase": 0.25})
    assert two["sts"] == Answer(1.5, "", {}, is_cut=False)
    assert [str(answer) for answer in (sst, *two.values())] == ["neutral (50%)", "no paraphrase (75%)", "1.50"]
    assert json.loads(json.dumps(asdict(sst)))["label"] == "neutral"


@pytest.mark.parametrize(("logit", "value"), [(1e-3, 1), (0.0, 0), (-1e-3, 0)])
def test_yes_is_a_logit_above_zero_as_in_the_metric(tiny: Tiny, tmp_path: Path, logit: float, value: int) -> None:
    config = tiny()
    predictor = with_logits(config, open_inputs(config), tmp_path / "best", para=[logit])
    answer = predictor.predict([("one film", "another film")])[0]["para"]
    assert answer.value == value
    assert answer.label == ("no paraphrase", "paraphrase")[value]


def test_a_similarity_is_not_clipped_to_the_labels(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny()
    predictor = with_logits(config, open_inputs(config), tmp_path / "best", sts=[7.25])
    assert predictor.predict([("one film", "another film")])[0]["sts"].value == 7.25


def test_own_tasks_answer_by_the_names_of_their_labels(tiny: Tiny, tmp_path: Path) -> None:
    """Without their files: a model is asked where no corpus lies."""
    file = {"files": {"train": "nowhere.csv"}}
    own = {
        "reviews": {"kind": "classification", "text": "review", "labels": ["bad", "fair", "good"], **file},
        "spam": {"kind": "binary", "text": "mail", "labels": ["ham", "spam"], **file},
        "match": {"kind": "regression", "text": ["question", "answer"], "range": [0, 100], **file},
    }
    config = tiny(own_tasks=own, train_on=["reviews", "spam", "match"])
    logits = {"reviews": [0.0, 0.0, 1.0], "spam": [2.0], "match": [64.0]}
    predictor = with_logits(config, open_inputs(tiny()), tmp_path / "best", **logits)
    one, two = predictor.predict(["a film", ("one film", "another film")])
    assert {name: answer.label for name, answer in one.items()} == {"reviews": "good", "spam": "spam"}
    assert one["spam"].probabilities == pytest.approx({"ham": 1 / (1 + math.exp(2)), "spam": 1 / (1 + math.exp(-2))})
    assert {name: answer.value for name, answer in two.items()} == {"match": 64}


def test_an_input_longer_than_max_length_is_cut_and_says_so(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(max_length=8)  # six pieces of a sentence, five of a pair
    inputs = open_inputs(config)
    saved(config, inputs, tmp_path / "best", scale=5)
    words = " ".join(dev_texts(inputs, "sst", ("sentence",))[i][0] for i in range(3)).split()
    fits, longer, other = (" ".join(words[:n]) for n in (6, 7, 12))
    predictor = load(tmp_path / "best", "cpu")
    assert len(inputs.tokenizer.encode([fits])[0]) == 6
    short, long, longest = (answers["sst"] for answers in predictor.predict([fits, longer, other]))
    assert (short.is_cut, long.is_cut, longest.is_cut) == (False, True, True)
    assert long.probabilities == pytest.approx(short.probabilities, abs=1e-6)
    pair = predictor.predict([(words[0], words[1]), (fits, words[1])])
    assert [answers["para"].is_cut for answers in pair] == [False, True]


def test_a_model_of_a_gpu_answers_on_the_cpu_and_where_its_corpus_is_not(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(machine={"device": "cuda", "precision": "bfloat16", "threads": 64})
    inputs = open_inputs(config)
    saved(config, inputs, tmp_path / "gpu", scale=5)
    saved(tiny(), inputs, tmp_path / "cpu", scale=5)
    document, _ = read_yaml(tmp_path / "gpu" / "config.yaml")
    document |= {"data": "/gone", "encoder": {"checkpoint": "/gone/too"}}
    (tmp_path / "gpu" / "config.yaml").write_text(dump_yaml(document))
    threads = torch.get_num_threads()
    there, here = (load(tmp_path / name, "cpu").predict(["a film"]) for name in ("gpu", "cpu"))
    assert there == here  # both in float32
    assert torch.get_num_threads() == threads  # the trial's own setting, not its reader's


def test_inputs_that_are_none_are_refused(known: Predictor, tiny: Tiny, tmp_path: Path) -> None:
    for inputs, sentence in (
        ("a film", r"`predict` takes a list of sentences and pairs\. Got one text: write \['a film'\]\."),
        (["a film", None], r"Input 1 must be a sentence or a pair of sentences, none empty\. Got None\."),
        (["a film", " "], r"Input 1 must be a sentence or a pair of sentences, none empty\. Got ' '\."),
        ([("a", "b", "c")], r"Input 0 must be a sentence or a pair of sentences, none empty\. Got \('a', 'b', 'c'\)\."),
        ([("a film", None)], r"Input 0 must be a sentence or a pair of sentences, none empty\."),
        (["a film", "\ud83d"], r"Input 1 must be Unicode text\. Got half a character \(a lone surrogate\) in '\\ud83d'\."),
        (
            [("a", "b\udce9")],
            r"Input 0 must be Unicode text\. Got half a character \(a lone surrogate\) in \('a', 'b\\udce9'\)\.",
        ),
    ):
        with pytest.raises(ValueError, match=sentence):
            known.predict(inputs)  # type: ignore[arg-type]
    config = tiny(train_on=["sst"])
    with pytest.raises(ValueError, match=r"Input 1 is a pair of sentences\. This model's tasks take single sentences: sst\."):
        with_logits(config, open_inputs(config), tmp_path / "one").predict(["a film", ("one", "another")])
    config = tiny(train_on=["para", "sts"])
    with pytest.raises(ValueError, match=r"Input 0 is a sentence\. This model's tasks take pairs: para, sts\."):
        with_logits(config, open_inputs(config), tmp_path / "two").predict(["a film"])


# ------------------------------------------------------------------------------------------------------------- the command


def test_one_sentence_on_the_command_line(
    known: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["smart", "A moving film."]) == 0
    assert capsys.readouterr().out == (
        "model  smart/best\n"
        "\n"
        "A moving film.\n"
        "  sst  neutral        49.8 %  ##########\n"
        "       negative       18.3 %  ####\n"
        "       positive       18.3 %  ####\n"
        "       very negative   6.7 %  #\n"
        "       very positive   6.7 %  #\n"
    )


def test_two_sentences_are_a_pair_and_each_its_own(
    known: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["smart/trials/007/best", "Is it far?", "How far is it?"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(
        "model  smart/trials/007/best\n"
        "\n"
        "Is it far?\n"
        "How far is it?\n"
        "  para  no paraphrase   75.0 %  ###############\n"
        "        paraphrase      25.0 %  #####\n"
        "  sts   1.50 of 0 to 5          ######\n"
        "\n"
        "Is it far?\n"
        "  sst  neutral        49.8 %"
    )
    assert out.count("\nHow far is it?\n  sst  neutral") == 1


def test_json_is_what_predict_gives(known: Predictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "smart" / "best"), "Is it far?", "Où?", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    inputs: list[Any] = [("Is it far?", "Où?"), "Is it far?", "Où?"]
    assert [row["input"] for row in rows] == [["Is it far?", "Où?"], "Is it far?", "Où?"]
    for row, answers in zip(rows, known.predict(inputs), strict=True):
        assert row["answers"] == {name: asdict(answer) for name, answer in answers.items()}


def test_a_value_beyond_its_range_many_classes_and_a_cut_input_are_said(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = [f"class {i}" for i in range(8)]
    own = {"topic": {"kind": "classification", "text": "review", "labels": labels, "files": {"train": "nowhere.csv"}}}
    config = tiny(own_tasks=own, train_on=["topic", "sts"], max_length=8)
    with_logits(config, open_inputs(tiny()), tmp_path / "best", topic=[0.0] * 7 + [3.0], sts=[-0.5])
    assert main([str(tmp_path), "a " * 20, "b"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    cut = ["(truncated:", "only", "the", "first", "8", "tokens", "were", "read)"]
    assert lines[4][:6] == ["sts", "-0.50", "of", "0", "to", "5"]
    assert lines[4][6] == "(outside"
    assert lines[5] == cut
    assert lines[8:14] == [
        ["topic", "class", "7", "74.2", "%", "#" * 15],
        *(["class", str(i), "3.7", "%", "#"] for i in range(4)),
        ["…", "and", "3", "more"],
    ]
    assert lines[14] == cut
    assert lines.count(cut) == 2  # not of the second sentence


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["smart", "a", "b", "c"], 2, "A task takes one sentence or two, each in quotes. Got 3: ['a', 'b', 'c'].\n"),
        (["smart", ""], 2, "A sentence must not be empty. Got [''].\n"),
        (["smart", "caf\udce9"], 2, "A sentence must be UTF-8 text. Got ['caf\\udce9']. Check the terminal's encoding.\n"),
        (["nowhere", "a"], 2, "There is no folder {0}/nowhere.\n"),
        (["bare", "a"], 2, "{0}/bare is not a saved model: it lacks heads.safetensors, config.yaml, encoder.\n"),
        (["pairs", "a"], 2, "pairs/best has only tasks of sentence pairs (para, sts). Got one sentence. Add a second.\n"),
        (
            ["new", "a"],
            3,
            "new has no model. A trial saves one at its first evaluation, and a search keeps only those of its best trials",
        ),
        (["new/trials/000", "a"], 3, "new/trials/000 has no model. A trial saves one at its first evaluation,"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    known: Predictor,
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bare").mkdir()
    (tmp_path / "new" / "trials" / "000").mkdir(parents=True)
    (tmp_path / "new" / "trials" / "000" / "metrics.jsonl").touch()
    config = tiny(train_on=["para", "sts"])
    saved(config, open_inputs(config), tmp_path / "pairs" / "best")
    assert main(arguments) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(sentence.format(tmp_path))
    assert printed.err.count("\n") == 1


def test_the_command_answers_in_a_process_of_its_own_and_says_nothing_else(known: Predictor, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "minbert_core.predict", "smart", "A moving film."]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "A moving film.\n  sst  neutral        49.8 %" in done.stdout


def test_the_help_fits_a_screen_and_shows_two_examples(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert sum("python -m minbert_core.predict runs" in line for line in lines) == 2
