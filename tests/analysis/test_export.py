"""Exports: each is loaded by its own library, which answers as the model does; what a format cannot hold, it says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pytest
import tokenizers
import torch
from huggingface_hub import ModelCard

from analysis import export
from analysis.export_to import as_mlflow, as_onnx, as_sentence_transformers, as_transformers
from analysis.export_to.card import Card, Wishes, write_card
from analysis.export_to.formats import Format
from analysis.export_to.origin import Origin, find_origin
from analysis.export_to.padded import POOLINGS
from analysis.export_to.register import register
from analysis.export_to.source import PAIRS, SENTENCES, Source, open_source
from analysis.export_to.tokenizer import save_tokenizer
from analysis.options import EXPORTS
from minbert_core.config import TrialConfig
from minbert_core.data.corpus import prepare
from minbert_core.data.tasks import TASKS
from minbert_core.data.tokens import load_tokenizer, pack, tokenise_texts
from minbert_core.inputs import build_encoder, open_inputs
from minbert_core.methods.features import Pooling
from minbert_core.model import build_model, save_model
from search.tracking.store import store_uri

Tiny = Callable[..., TrialConfig]
Make = Callable[..., Source]
Capture = pytest.CaptureFixture[str]
FORMATS = {each.name: each for each in export.FORMATS}
BI = {"pair_encoding": "bi"}


@pytest.fixture
def make(tiny: Tiny, tmp_path: Path) -> Make:
    """make(tasks=…): a saved model with random weights, large enough that every difference shows."""

    def made(**changes: Any) -> Source:
        config = tiny(**changes)
        inputs = open_inputs(config)
        model = build_model(config, build_encoder(config, inputs))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        save_model(model, config, tmp_path / "model" / "best", inputs.encoder_folder)
        return open_source(tmp_path / "model" / "best")

    return made


def skip_without(each: Format) -> None:
    if missing := each.missing():
        pytest.skip(f"{', '.join(missing)} is not installed (the extra `export`)")


def exported(each: Format, source: Source, tasks: list[str], folder: Path) -> dict[str, float]:
    """The largest differences of a format that was written, and loaded again by its library."""
    skip_without(each)
    assert not any(each.why_not(source, task) for task in tasks)
    found = {}
    for place, part in each.parts(tasks).items():
        each.write(source, part, folder / place)
        found |= each.compare(source, part, folder / place)
    return found


def assert_equal(each: Format, found: dict[str, float], tasks: list[str]) -> None:
    assert found.keys() == {*tasks}
    assert max(found.values()) <= each.tolerance / 10


# ------------------------------------------------------------------------------------------------------------ the formats


def test_the_pipeline_of_transformers_answers_as_the_model_from_the_pooler_and_from_cls(
    make: Make, tmp_path: Path, transformers: ModuleType
) -> None:
    source = make(tasks={"sst": {"pooling": "cls"}})
    found = exported(as_transformers.FORMAT, source, ["sst", "para", "sts"], tmp_path)
    assert_equal(as_transformers.FORMAT, found, ["sst", "para", "sts"])
    config = json.loads((tmp_path / "para" / "config.json").read_text())
    assert (config["problem_type"], config["id2label"]["1"]) == ("single_label_classification", "paraphrase")
    ask = transformers.pipeline("text-classification", model=str(tmp_path / "sts"), device="cpu")
    [answer] = ask([{"text": "Is it far?", "text_pair": "How far is it?"}])
    assert answer["score"] == pytest.approx(source.readout("sts", [PAIRS[0]]).item(), abs=1e-5)  # label units, not a share


def test_an_exported_transformers_folder_is_an_encoder_whose_head_is_ignored(make: Make, tiny: Tiny, tmp_path: Path) -> None:
    source = make(tasks={"sst": {"pooling": "cls"}})
    for task in ("para", "sst"):
        as_transformers.write(source, [task], tmp_path / task)
        config = tiny(encoder={"checkpoint": str(tmp_path / task)})
        inputs = open_inputs(config)
        encoder = build_encoder(config, inputs)
        assert "classifier.bias, classifier.weight" in encoder.notes[-1]
        ours, theirs = source.model.encoder.state_dict(), encoder.state_dict()
        changed = {name for name in ours if not torch.equal(ours[name], theirs[name])}
        # the pooler of a head on [CLS] only hands it on: it is not the encoder's, so a new one is drawn
        assert changed == ({"pooler.0.weight", "pooler.0.bias"} if task == "sst" else set())
        assert encoder.pooler[0].weight.diagonal().unique().numel() > 1
        rows = open_inputs(tiny()).dev[task].pieces[0]
        assert (inputs.dev[task].pieces[0] == rows).all()


@pytest.mark.filterwarnings("ignore::UserWarning")  # of the library, at import
def test_sentence_transformers_gives_the_cosine_of_a_bi_encoder_and_the_score_of_a_cross_encoder(
    make: Make, tmp_path: Path
) -> None:
    tasks = {"para": {"pooling": "mean", "head": "mlp"}, "sts": {**BI, "head": "cosine", "pooling": "pooler"}}
    source = make(tasks=tasks, shared_layer={"kind": "leaky", "size": 20})
    found = exported(as_sentence_transformers.FORMAT, source, ["para", "sts"], tmp_path)
    assert_equal(as_sentence_transformers.FORMAT, found, ["para", "sts"])


@pytest.mark.filterwarnings("ignore")  # of torch's exporter, about itself
def test_onnxruntime_answers_as_the_model_for_any_batch_and_length(make: Make, tmp_path: Path) -> None:
    source = make(tasks={"sts": {**BI, "head": "hadamard", "pooling": "attention"}})
    assert_equal(as_onnx.FORMAT, exported(as_onnx.FORMAT, source, ["sts"], tmp_path), ["sts"])


def test_graphs_share_the_weights_that_they_have_in_common(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")
    shared, own = np.ones((30, 30), np.float32), np.zeros((30, 30), np.float32)
    written: dict[str, int] = {}
    with (tmp_path / "weights.bin").open("wb") as weights:
        for name, tensors in (("a", [shared]), ("b", [own, shared])):
            initializers = [onnx.numpy_helper.from_array(tensor, f"t{i}") for i, tensor in enumerate(tensors)]
            graph = onnx.helper.make_model(onnx.helper.make_graph([], name, [], [], initializers))
            (tmp_path / f"{name}.onnx").write_bytes(as_onnx._shared(graph, weights, written).SerializeToString())
    assert (tmp_path / "weights.bin").stat().st_size == 4096 + 3600  # two tensors, the second on a new page
    for name, tensors in (("a", [shared]), ("b", [own, shared])):
        read = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / f"{name}.onnx").graph.initializer]
        assert all((one == other).all() for one, other in zip(read, tensors, strict=True))


def served(folder: Path, rows: list[dict[str, Any]]) -> Any:
    """The answer of MLflow's server to a request, without its network."""
    from mlflow.pyfunc import load_model, scoring_server

    model = load_model(str(folder))
    body = json.dumps({"dataframe_records": rows})
    found = scoring_server.invocations(body, "application/json", model, model.metadata.get_input_schema())
    return json.loads(found.response)["predictions"]


@pytest.mark.filterwarnings("ignore")  # of MLflow, about type hints
def test_mlflow_serves_one_or_two_sentences_refuses_bad_rows_and_registers_under_an_alias(make: Make, tmp_path: Path) -> None:
    from mlflow.exceptions import MlflowException

    source = make()
    folder = tmp_path / "mlflow"
    found = exported(as_mlflow.FORMAT, source, ["sst", "para", "sts"], folder)
    assert_equal(as_mlflow.FORMAT, found, ["sst", "para", "sts"])
    alone, pair = served(folder, [{"sentence": "A moving film."}, {"sentence": "Is it far?", "sentence2": "How far is it?"}])
    assert (set(alone), set(pair)) == ({"sst"}, {"sst", "para", "sts"})
    with pytest.raises(MlflowException, match=r"Input 0 must be a sentence or a pair of sentences, none empty\.") as fault:
        served(folder, [{"sentence": " "}])
    assert fault.value.get_http_status_code() == 400
    requirements = (folder / "requirements.txt").read_text()
    assert "torch==" in requirements
    assert not {"ray", "optuna"} & {line.partition("==")[0] for line in requirements.splitlines()}
    uri = store_uri(tmp_path / "runs")
    lines = register(folder, uri, Origin(dev={"sst": 0.5}), list(source.tasks), "sentiment", "champion")
    assert lines[0] == "sentiment, version 1: models:/sentiment@champion"
    import mlflow
    from mlflow.tracking._tracking_service.utils import _use_tracking_uri

    assert mlflow.MlflowClient(uri, uri).get_model_version_by_alias("sentiment", "champion").tags["dev/sst"] == "0.500000"
    with _use_tracking_uri(uri):
        registered = mlflow.pyfunc.load_model("models:/sentiment@champion")
    [answer] = registered.predict([{"sentence": "A moving film."}])
    assert answer["sst"]["label"] == alone["sst"]["label"]


# --------------------------------------------------------------------------------------------------------- what must agree


@pytest.mark.parametrize("pooling", get_args(get_args(Pooling)[0]), ids=lambda kind: kind.__name__)
def test_every_pooling_gives_the_same_vector_padded_and_packed(pooling: Any) -> None:
    variant = pooling()
    lengths, dim = [3, 1, 5], 4
    hidden_ND = torch.randn(sum(lengths), dim)
    layer = variant.build(dim) or torch.nn.Linear(dim, dim)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter))
        packed = variant.pool(hidden_ND, torch.tensor([0, 3, 4, 9]), layer)
        hidden_BLD = torch.nn.utils.rnn.pad_sequence(list(hidden_ND.split(lengths)), batch_first=True, padding_value=7.0)
        mask_BL1 = (torch.arange(5) < torch.tensor(lengths)[:, None]).float()[:, :, None]
        torch.testing.assert_close(POOLINGS[pooling](hidden_BLD, mask_BL1, layer), packed)


@pytest.mark.parametrize("is_cased", [False, True])
@pytest.mark.parametrize("name", ["sst", "para"])
def test_the_tokenizer_of_an_export_gives_the_tokens_and_segments_that_the_model_reads(
    name: str, is_cased: bool, tiny: Tiny, tmp_path: Path
) -> None:
    task, folder = TASKS[name], tmp_path / "own"
    shutil.copytree(open_inputs(tiny()).encoder_folder, folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": not is_cased}))
    with (folder / "vocab.txt").open("a") as file:
        file.write("".join(f"{mark}\n" for mark in (*"abcdefghijklmnopqrstuvwxyz.,?';", *(f"##{c}" for c in "abcdefghijkl"))))
    tokenizer = load_tokenizer(folder)
    save_tokenizer(tokenizer, task, 40, tmp_path / "export")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "export" / "tokenizer.json"))
    theirs.enable_truncation(40)
    for texts in [("Nobody'S HERE, is anybody?", "A b, c. "), *PAIRS] if task.is_pair else SENTENCES:
        batch = pack(
            tokenise_texts([texts], task, tokenizer),
            torch.tensor([0]).numpy(),
            "cross",
            40,
            (tokenizer.cls_id, tokenizer.sep_id),
        )
        encoding = theirs.encode(*texts)
        assert encoding.ids == batch.token_ids_N.tolist()
        assert encoding.type_ids == batch.segment_ids_N.tolist()
    assert prepare("It's", TASKS["para"]) == "it 's"  # what the normaliser of a cased tokenizer has to repeat


def test_the_option_names_every_format_in_the_order_of_the_list() -> None:
    assert tuple(FORMATS) == EXPORTS


def test_a_format_says_in_a_sentence_which_task_it_cannot_hold_and_why(make: Make) -> None:
    tasks = {"sst": {"pooling": "mean"}, "para": {**BI, "head": "sbert", "pooling": "attention"}, "sts": {"loss": "classes"}}
    source = make(tasks=tasks)
    assert [as_transformers.why_not(source, task).partition(" is left out: ")[2] for task in ("sst", "para", "sts")] == [
        "BertForSequenceClassification reads [CLS] (pooling `pooler` or `cls`), and this task's pooling is `mean`.",
        "BertForSequenceClassification reads a pair as one sequence, and this task's pair_encoding is `bi`.",
        "BertForSequenceClassification gives a value as one output, and this task's loss `classes` has 6 classes.",
    ]
    assert [
        as_sentence_transformers.why_not(source, task).partition(" is left out: ")[2] for task in ("sst", "para", "sts")
    ] == [
        "sentence-transformers compares two sentences, and this task reads one.",
        "sentence-transformers has no pooling `attention`.",
        "a CrossEncoder cannot read a value from the 6 classes of the loss `classes`.",
    ]
    adapted = make(adapter={"kind": "pal"}, tasks={"all": {"head": "mlp"}})
    for each in (as_transformers, as_sentence_transformers, as_onnx):
        assert "`pal` layers inside" in each.why_not(adapted, "para")
    assert not as_mlflow.why_not(adapted, "para")


# ------------------------------------------------------------------------------------------------------------ the command


def test_an_export_that_answers_otherwise_is_not_kept(make: Make, tmp_path: Path, transformers: ModuleType) -> None:
    source = make()
    strict = replace(as_transformers.FORMAT, tolerance=-1.0)
    with pytest.raises(export._Different, match=r"transformers: the export answers otherwise than the model \(sst by .*kept\."):
        export._export(strict, ["sst"], source, Origin(), Wishes(), tmp_path / "to")
    assert [*(tmp_path / "to").iterdir()] == []


def test_the_command_exports_again_but_replaces_no_folder_of_others(
    make: Make, tmp_path: Path, transformers: ModuleType, capsys: Capture
) -> None:
    make(tasks={"sst": {"pooling": "mean"}, "para": {"pooling": "max"}})
    arguments = [str(tmp_path / "model"), "--as", "transformers"]
    for _ in range(2):
        assert export.main(arguments) == 0
    out = capsys.readouterr().out
    assert "pooling is `mean`" in out.replace("\n            ", " ")
    assert "exported  transformers/sts" in out
    folder = tmp_path / "model" / "exported" / "transformers"
    assert sorted(path.name for path in folder.iterdir()) == ["export.json", "sts"]
    (folder / "export.json").unlink()
    assert export.main(arguments) == 3
    assert f"{folder} exists, and export.py has not written it" in capsys.readouterr().err
    assert (folder / "sts" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--as", "onnx", "--register", "x"], "--register registers the MLflow export. Got --as onnx. Add mlflow."),
        (["--alias", "champion"], "--alias belongs to --register NAME, which is missing."),
        ([], "There is no folder nothing."),
    ],
)
def test_a_mistake_is_a_sentence_before_anything_is_loaded(arguments: list[str], sentence: str, capsys: Capture) -> None:
    assert export.main(["nothing", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_a_card_is_valid_and_has_the_scores_of_dev_and_of_test_with_their_interval(toy_runs: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(toy_runs, runs)
    best = runs / "small" / "best"
    origin = find_origin(best)
    assert origin.trial is not None
    measured = {"mean": 0.61, "interval": [0.52, 0.7], "values": [0.6, 0.62], "deviation": 0.01}
    results = {"models": {}, "seeds": [1, 2], "configurations": [{"trial": origin.trial.number, "test": {"sst": measured}}]}
    (runs / "small" / "test").mkdir(exist_ok=True)
    (runs / "small" / "test" / "results.json").write_text(json.dumps(results))
    origin = find_origin(best)
    source = open_source(best)
    card = Card(source, origin, as_mlflow.FORMAT, list(source.tasks), "exported/mlflow", Wishes(language="en"))
    write_card(card, tmp_path)
    loaded = ModelCard.load(tmp_path / "README.md")
    found = {(of.dataset_type, of.dataset_split): of.metric_value for of in loaded.data.eval_results}
    assert found["sst", "test"] == 0.61
    assert found["sst", "dev"] == pytest.approx(origin.trial.best["dev/sst"], abs=1e-4)
    assert "mean 0.6100 [0.5200, 0.7000]" in loaded.text
    assert "optimizer/lr" in loaded.text
    assert "more information needed" not in loaded.text.lower()
    assert str(tmp_path) not in loaded.text
    assert (loaded.data.license, loaded.data.language, loaded.data.pipeline_tag) == ("other", "en", "text-classification")
