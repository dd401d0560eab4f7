"""MultitaskBert: every permitted combination gives logits, heads come from (seed, task), a saved model is the same model."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from minbert_core.checkpoints import load_encoder
from minbert_core.config import TrialConfig
from minbert_core.data.corpus import read_split
from minbert_core.data.tasks import TASKS
from minbert_core.data.tokens import PackedBatch, pack
from minbert_core.encoder import Encoder, Masks
from minbert_core.evaluate import metric
from minbert_core.inputs import Inputs, build_encoder, open_inputs
from minbert_core.model import MultitaskBert, _token_budget, build_model, load, load_model, predict_logits, save_model
from minbert_core.settings.faults import SettingsError
from minbert_core.tensor_files import load_tensors, save_tensors

Tiny = Callable[..., TrialConfig]


def built(config: TrialConfig) -> tuple[MultitaskBert, Inputs]:
    inputs = open_inputs(config)
    return build_model(config, build_encoder(config, inputs)), inputs


def batch_of(model: MultitaskBert, inputs: Inputs, task: str, rows: list[int] | None = None) -> PackedBatch:
    """The given rows of a task's dev split, as the model's pair encoding has them."""
    rows_B = np.array(rows if rows is not None else [0, 1, 2, 3, 4])
    return pack(inputs.dev[task], rows_B, model.plans[task].pair_encoding.kind, 64, inputs.specials)


@pytest.mark.parametrize("pooling", ["cls", "pooler", "mean"])
@pytest.mark.parametrize("encoding", ["cross", "bi"])
@pytest.mark.parametrize("head", ["linear", {"kind": "mlp", "hidden": [8, 4]}, "sbert", "cosine"], ids=str)
def test_every_permitted_combination_gives_logits_of_every_task(tiny: Tiny, pooling: str, encoding: str, head: object) -> None:
    tasks = {"all": {"pooling": pooling}, "pairs": {"pair_encoding": encoding, "head": head}}
    if encoding == "cross" and head in ("sbert", "cosine"):
        with pytest.raises(SettingsError, match="compares two vectors per pair"):
            tiny(tasks=tasks)
        return
    model, inputs = built(tiny(tasks=tasks))
    for task, outputs in (("sst", 5), ("para", 1), ("sts", 1)):
        for masks in (None, Masks(0)):
            logits_BK = model(task, batch_of(model, inputs, task), masks).logits_BK
            assert logits_BK.shape == (5, outputs)
            assert logits_BK.dtype == torch.float32
            assert logits_BK.isfinite().all()
        logits_BK.sum().backward()


def test_logits_are_float32_under_autocast(tiny: Tiny) -> None:
    model, inputs = built(tiny())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits_BK = model("sst", batch_of(model, inputs, "sst")).logits_BK
    assert logits_BK.dtype == torch.float32
    assert not torch.equal(logits_BK, logits_BK.bfloat16().float())  # not rounded on the way: heads compute in float32


def test_heads_depend_on_the_seed_and_the_task_alone(tiny: Tiny) -> None:
    one, _ = built(tiny())
    other, _ = built(
        tiny(
            train_on=["sts", "sst"],
            gradient="pcgrad",
            smoothness="smart",
            encoder={"hidden_dropout": 0.3},
            tasks={"sst": {"pooling": "mean"}},
        )
    )
    torch.manual_seed(99)
    again, _ = built(tiny())
    seeded, _ = built(tiny(seed=1))
    for task in ("sst", "sts"):
        weight = one.heads[task].state_dict()["layers.0.weight"]
        assert torch.equal(weight, other.heads[task].state_dict()["layers.0.weight"])
        assert torch.equal(weight, again.heads[task].state_dict()["layers.0.weight"])
        assert not torch.equal(weight, seeded.heads[task].state_dict()["layers.0.weight"])
    assert not torch.equal(*(one.heads[task].state_dict()["layers.0.weight"] for task in ("para", "sts")))


def test_a_fresh_regression_head_answers_the_middle_of_the_label_range(tiny: Tiny) -> None:
    model, inputs = built(tiny())
    for task, middle in (("sts", 2.5), ("para", 0.0)):
        assert float(model(task, batch_of(model, inputs, task)).logits_BK.detach().mean()) == pytest.approx(middle, abs=0.5)


def test_u_is_the_first_sentence_and_v_the_second(tiny: Tiny) -> None:
    """A head that reads one half of [u; v] sees the sentence of that column, encoded by itself."""
    config = tiny(tasks={"all": {"pooling": "cls"}, "pairs": {"pair_encoding": "bi"}})
    model, inputs = built(config)
    texts = read_split(inputs.data_folder, TASKS["sts"], "dev").texts
    direction_D = torch.randn(64)
    layer = model.heads["sts"].layers[0]
    rows = [3, 7, 11]
    for column in (0, 1):
        with torch.no_grad():
            layer.bias.zero_()
            layer.weight.zero_()
            layer.weight[0, 64 * column : 64 * (column + 1)] = direction_D
        logits_BK = model("sts", batch_of(model, inputs, "sts", rows)).logits_BK.detach()
        for row, logit_K in zip(rows, logits_BK, strict=True):
            (pieces,) = inputs.tokenizer.encode([texts[row][column]])
            sentence = [inputs.specials[0], *pieces, inputs.specials[1]]
            hidden_ND = model.encoder(one_sequence(sentence)).detach()
            assert float(logit_K) == pytest.approx(float(hidden_ND[0] @ direction_D), abs=1e-4)


def one_sequence(tokens: list[int]) -> PackedBatch:
    size = len(tokens)
    return PackedBatch(
        token_ids_N=torch.tensor(tokens),
        position_ids_N=torch.arange(size),
        segment_ids_N=torch.zeros(size, dtype=torch.int64),
        starts_S1=torch.tensor([0, size]),
        lengths=(size,),
        example_N=torch.zeros(size, dtype=torch.int64),
        labels_B=torch.zeros(1),
        num_examples=1,
    )


def test_a_cross_encoded_pair_has_both_sentences_in_one_sequence_with_segments(tiny: Tiny) -> None:
    """Against a pair joined after padding, or without segment ids."""
    model, inputs = built(tiny())
    batch = batch_of(model, inputs, "sts", [4])
    first, second = inputs.tokenizer.encode(list(read_split(inputs.data_folder, TASKS["sts"], "dev").texts[4]))
    cls_id, sep_id = inputs.specials
    assert batch.token_ids_N.tolist() == [cls_id, *first, sep_id, *second, sep_id]
    assert batch.segment_ids_N.tolist() == [0] * (len(first) + 2) + [1] * (len(second) + 1)
    assert batch.position_ids_N.tolist() == list(range(len(first) + len(second) + 3))


def test_masks_reach_encoder_and_head(tiny: Tiny) -> None:
    config = tiny(tasks={"all": {"head": {"kind": "linear", "dropout": 0.5}}})
    model, inputs = built(config)
    batch = batch_of(model, inputs, "sst")
    plain_BK, dropped_BK = model("sst", batch).logits_BK, model("sst", batch, Masks(1)).logits_BK
    assert torch.equal(dropped_BK, model("sst", batch, Masks(1)).logits_BK)
    assert not torch.allclose(plain_BK, dropped_BK, atol=1e-4)
    model.encoder.hidden_dropout = model.encoder.attention_dropout = 0.0
    assert not torch.allclose(plain_BK, model("sst", batch, Masks(1)).logits_BK, atol=1e-4)  # the head's own


def test_without_encoder_drops_the_masks_reach_the_head_alone(tiny: Tiny) -> None:
    """How a stage reads an encoder that it does not train: as evaluation does."""
    config = tiny(tasks={"all": {"head": {"kind": "linear", "dropout": 0.5}}}, encoder={"hidden_dropout": 0.5})
    model, inputs = built(config)
    batch = batch_of(model, inputs, "sst")
    plain, dropped = model("sst", batch), model("sst", batch, Masks(1), encoder_drops=False)
    assert torch.equal(plain.features_BF, dropped.features_BF)
    assert not torch.allclose(plain.logits_BK, dropped.logits_BK, atol=1e-4)
    assert not torch.allclose(plain.features_BF, model("sst", batch, Masks(1)).features_BF, atol=1e-4)


@pytest.mark.parametrize(("encoding", "dim"), [("cross", 64), ("bi", 128)])
def test_the_features_are_what_the_head_reads(tiny: Tiny, encoding: str, dim: int) -> None:
    model, inputs = built(tiny(tasks={"pairs": {"pair_encoding": encoding}}))
    logits_BK, features_BF = model("sts", batch_of(model, inputs, "sts"))
    assert features_BF.shape == (5, dim)
    layer = model.heads["sts"].layers[0]
    assert torch.allclose(logits_BK, features_BF @ layer.weight.T + layer.bias, atol=1e-5)


def test_a_loss_with_classes_widens_the_head_and_is_read_out_in_label_units(tiny: Tiny) -> None:
    """Six logits a pair, of which the metric, and so evaluation, sees the expected label."""
    model, inputs = built(tiny(tasks={"sts": {"loss": "classes"}}))
    batch = batch_of(model, inputs, "sts")
    with torch.no_grad():
        model.heads["sts"].layers[0].weight.normal_(0, 0.5)
        logits_BK = model("sts", batch).logits_BK
    assert logits_BK.shape == (5, 6)
    answers_B1 = model.readout("sts", logits_BK)
    wanted_B = [sum(k * p for k, p in enumerate(row)) for row in logits_BK.softmax(1).tolist()]
    assert answers_B1[:, 0].tolist() == pytest.approx(wanted_B, rel=1e-5)
    predicted = predict_logits(model, "sts", inputs.dev["sts"], 64, inputs.specials)
    assert predicted.shape == (len(inputs.dev["sts"]), 1)
    assert predicted[:5, 0].tolist() == pytest.approx(wanted_B, abs=1e-4)
    assert inputs.dev["sts"].labels is not None
    assert -1 <= metric(TASKS["sts"], predicted, inputs.dev["sts"].labels) <= 1


def test_a_fresh_head_of_classes_answers_the_middle_of_the_label_range(tiny: Tiny) -> None:
    """A softmax of equal logits is there already: the biases begin at 0."""
    model, inputs = built(tiny(tasks={"sts": {"loss": "classes"}}))
    assert not model.heads["sts"].layers[0].bias.any()
    answers_B1 = model.readout("sts", model("sts", batch_of(model, inputs, "sts")).logits_BK)
    assert float(answers_B1.detach().mean()) == pytest.approx(2.5, abs=0.5)


@pytest.mark.parametrize("tasks", [{}, {"pairs": {"pair_encoding": "bi"}, "sts": {"loss": "pearson"}}], ids=["own", "pearson"])
def test_other_losses_are_read_out_as_they_are(tiny: Tiny, tasks: dict[str, object]) -> None:
    model, inputs = built(tiny(tasks=tasks))
    for task in ("sst", "para", "sts"):
        logits_BK = model(task, batch_of(model, inputs, task)).logits_BK
        assert torch.equal(model.readout(task, logits_BK), logits_BK)


def test_a_renewed_head_is_another_drawn_in_place_and_the_others_stay(tiny: Tiny) -> None:
    """In place: optimiser and gradient buffer hold the parameters themselves. The same seed draws the same."""
    model, _ = built(tiny())
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    parameters = {name: id(parameter) for name, parameter in model.named_parameters()}
    model.renew_head("sts", 5)
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {"heads.sts.layers.0.weight"}  # its bias is the middle of the labels again
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == parameters
    fresh = model.heads["sts"].layers[0].weight.detach().clone()
    with torch.no_grad():
        model.heads["sts"].layers[0].bias.fill_(9)
    for seed, same in ((5, True), (6, False)):
        model.renew_head("sts", seed)
        assert torch.equal(model.heads["sts"].layers[0].weight, fresh) is same
        assert float(model.heads["sts"].layers[0].bias.detach()) == 2.5


# -------------------------------------------------------------------------------------------------------- logits of a split


@pytest.fixture(params=["cross", "bi"])
def model_and_inputs(request: pytest.FixtureRequest, tiny: Tiny) -> tuple[MultitaskBert, Inputs]:
    """Weights ten times as large as at the start, so that predictions differ."""
    config = tiny(tasks={"pairs": {"pair_encoding": request.param}})
    inputs = open_inputs(config)
    model = build_model(config, build_encoder(config, inputs))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10 if parameter.dim() > 1 else 1)
    return model, inputs


@pytest.mark.parametrize("task", ["sst", "para", "sts"])
def test_predictions_keep_the_file_s_order_and_do_not_depend_on_the_batch(
    model_and_inputs: tuple[MultitaskBert, Inputs], monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    """Whatever the token budget: each row's logits are those of the row alone."""
    model, inputs = model_and_inputs
    split = inputs.dev[task]
    encoding = model.plans[task].pair_encoding.kind
    assert split.ids == read_split(inputs.data_folder, TASKS[task], "dev").ids
    with torch.no_grad():
        alone = [model(task, pack(split, np.array([r]), encoding, 64, inputs.specials)).logits_BK for r in range(len(split))]
    alone_BK = torch.cat(alone).numpy()
    assert np.ptp(alone_BK[:, 0]) > 0.1
    for budget in (1, 100, 4096):
        monkeypatch.setattr("minbert_core.machine.TOKENS_PER_PASS", budget)
        assert np.allclose(predict_logits(model, task, split, 64, inputs.specials), alone_BK, atol=1e-4)


@pytest.mark.parametrize("budget", [1, 50, 300, 10_000])
def test_token_budget_takes_each_row_once_and_short_ones_first(budget: int) -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 100)
    groups = _token_budget(np.argsort(lengths, kind="stable"), lengths, budget)
    order = np.concatenate(groups)
    assert sorted(order.tolist()) == list(range(100))
    assert (np.diff(lengths[order]) >= 0).all()
    assert all(0 < lengths[rows].sum() < budget + lengths[rows].max() for rows in groups)


def test_predicting_draws_no_dropout_and_leaves_no_graph(model_and_inputs: tuple[MultitaskBert, Inputs]) -> None:
    model, inputs = model_and_inputs
    once, again = (predict_logits(model, "sst", inputs.dev["sst"], 64, inputs.specials) for _ in range(2))
    assert np.array_equal(once, again)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_predictions_in_bfloat16_are_near_those_in_float32(model_and_inputs: tuple[MultitaskBert, Inputs]) -> None:
    model, inputs = model_and_inputs
    exact, mixed = (
        predict_logits(model, "para", inputs.dev["para"], 64, inputs.specials, precision)
        for precision in ("float32", "bfloat16")
    )
    assert mixed.dtype == np.float32
    assert 0 < np.linalg.norm(mixed - exact) < 0.1 * np.linalg.norm(exact)


# ------------------------------------------------------------------------------------------------------------ save and load


@pytest.mark.parametrize("pairs", [{}, {"pair_encoding": "bi", "head": "sbert", "pooling": "mean"}], ids=["cross", "bi"])
def test_a_saved_model_answers_bit_for_bit_the_same(tiny: Tiny, tmp_path: Path, pairs: dict[str, str]) -> None:
    config = tiny(tasks={"pairs": pairs}, encoder={"hidden_dropout": 0.2}, seed=5)
    model, inputs = built(config)
    save_model(model, config, tmp_path / "best", inputs.encoder_folder)
    loaded, loaded_config = load_model(tmp_path / "best")
    assert loaded_config == config
    for task in ("sst", "para", "sts"):
        batch = batch_of(model, inputs, task)
        assert torch.equal(model(task, batch).logits_BK, loaded(task, batch).logits_BK)
        assert torch.equal(model(task, batch, Masks(3)).logits_BK, loaded(task, batch, Masks(3)).logits_BK)


def test_saving_again_replaces_the_model_and_leaves_nothing_beside_it(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny()
    model, inputs = built(config)
    (tmp_path / "best.tmp" / "encoder").mkdir(parents=True)  # what a killed process left behind
    (tmp_path / "best.old").mkdir()
    save_model(model, config, tmp_path / "best", inputs.encoder_folder)
    with torch.no_grad():
        model.heads["sst"].layers[0].bias.fill_(7)
    save_model(model, config, tmp_path / "best", inputs.encoder_folder)
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert float(load_model(tmp_path / "best")[0].heads["sst"].layers[0].bias.detach()[0]) == 7


@pytest.mark.parametrize("what", ["save_encoder", "save_tensors", "dump_yaml"])
def test_a_half_written_model_never_stands_under_the_final_name(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    config = tiny()
    model, inputs = built(config)

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(f"minbert_core.model.{what}", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(model, config, tmp_path / "best", inputs.encoder_folder)
    assert not (tmp_path / "best").exists()


def test_a_failed_save_leaves_the_former_model_whole(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny()
    model, inputs = built(config)
    save_model(model, config, tmp_path / "best", inputs.encoder_folder)
    monkeypatch.setattr("minbert_core.model.dump_yaml", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_model(model, config, tmp_path / "best", inputs.encoder_folder)
    assert load_model(tmp_path / "best")[1] == config


@pytest.mark.parametrize("absent", ["heads.safetensors", "config.yaml", "encoder"])
def test_a_folder_that_is_no_model_is_refused(tiny: Tiny, tmp_path: Path, absent: str) -> None:
    config = tiny()
    model, inputs = built(config)
    save_model(model, config, tmp_path / "best", inputs.encoder_folder)
    (tmp_path / "best" / absent).rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=rf"best is not a saved model: it lacks {absent}\."):
        load_model(tmp_path / "best")


def test_a_folder_that_is_something_else_is_refused_by_what_it_is(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny()
    model, inputs = built(config)
    folder = tmp_path / "trial" / "best"
    save_model(model, config, folder, inputs.encoder_folder)
    shutil.copytree(folder / "encoder", tmp_path / "bert")
    for other, sentence in (
        (tmp_path / "nowhere", r"There is no folder \S+nowhere\.$"),
        (folder / "config.yaml", r"There is no folder \S+config\.yaml\.$"),
        (folder.parent, r"trial is not a model, but contains one\. Use \S+best\."),
        (folder / "encoder", r"encoder is the encoder of a model, without the heads\. Use the model: \S+best\."),
        (
            tmp_path / "bert",
            r"bert is a Hugging Face checkpoint, without heads for our tasks\. Train them: `encoder: \S+bert`\.",
        ),
    ):
        with pytest.raises(ValueError, match=sentence):
            load_model(other)


def test_a_model_that_is_replaced_while_it_is_read_is_read_again(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the encoder would be of one evaluation and the heads of the next."""
    config = tiny()
    (old, inputs), (new, _) = built(config), built(tiny(seed=1))
    save_model(old, config, tmp_path / "best", inputs.encoder_folder)
    real, calls = load_encoder, []

    def read_while_the_trial_saves(*arguments: Any) -> Encoder:
        calls.append(arguments)
        encoder = real(*arguments)
        if len(calls) == 1:
            save_model(new, config, tmp_path / "best", inputs.encoder_folder)
        return encoder

    monkeypatch.setattr("minbert_core.model.load_encoder", read_while_the_trial_saves)
    loaded, _ = load_model(tmp_path / "best")
    assert len(calls) == 2
    assert all(torch.equal(value, new.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_a_link_that_is_turned_to_another_model_while_it_is_read_gives_the_first_whole(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the `best` of a search that runs: two trials, two encoders, two tokenizers."""
    config = tiny()
    (one, inputs), (two, _) = built(config), built(tiny(seed=1))
    save_model(one, config, tmp_path / "one", inputs.encoder_folder)
    save_model(two, config, tmp_path / "two", inputs.encoder_folder)
    (tmp_path / "two" / "encoder" / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\n")
    link, draft = tmp_path / "best", tmp_path / "draft"
    link.symlink_to("one")
    draft.symlink_to("two")
    real = load_encoder

    def read_while_the_link_turns(*arguments: Any) -> Encoder:
        draft.replace(link)
        return real(*arguments)

    monkeypatch.setattr("minbert_core.model.load_encoder", read_while_the_link_turns)
    predictor = load(link, "cpu")
    assert link.resolve() == tmp_path / "two"
    assert predictor.tokenizer.vocab_size == inputs.tokenizer.vocab_size
    assert all(torch.equal(value, one.state_dict()[name]) for name, value in predictor.model.state_dict().items())


def test_truncated_or_foreign_heads_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny()
    model, inputs = built(config)
    save_model(model, config, tmp_path / "best", inputs.encoder_folder)
    path = tmp_path / "best" / "heads.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"Cannot read .*heads\.safetensors: .*\. It may be truncated\. Copy it again\."):
        load_model(tmp_path / "best")
    other = tiny(train_on=["sst"])
    save_model(built(other)[0], other, tmp_path / "other", inputs.encoder_folder)
    (tmp_path / "other" / "heads.safetensors").replace(path)
    with pytest.raises(ValueError, match=r"heads\.safetensors does not fit its config\.yaml \("):
        load_model(tmp_path / "best")


@pytest.mark.parametrize(("written", "version"), [({}, 1), ({"format": "3"}, 3)])
def test_a_model_of_an_earlier_or_a_newer_format_is_refused_and_not_read_with_other_defaults(
    written: dict[str, str], version: int, tiny: Tiny, tmp_path: Path
) -> None:
    config = tiny()
    model, inputs = built(config)
    save_model(model, config, tmp_path / "best", inputs.encoder_folder)
    heads = tmp_path / "best" / "heads.safetensors"
    save_tensors(load_tensors(heads), heads, metadata=written)
    with pytest.raises(ValueError, match=rf"best is a model of format {version}, whose config has other defaults\."):
        load_model(tmp_path / "best")


def test_a_saved_model_does_not_pose_as_a_hugging_face_model_but_its_encoder_is_one(
    tiny: Tiny, tmp_path: Path, transformers: ModuleType
) -> None:
    config = tiny()
    model, inputs = built(config)
    save_model(model, config, tmp_path / "best", inputs.encoder_folder)
    files = sorted(str(path.relative_to(tmp_path / "best")) for path in (tmp_path / "best").rglob("*") if path.is_file())
    assert files == [
        "README.md",
        "config.yaml",
        "encoder/config.json",
        "encoder/model.safetensors",
        "encoder/vocab.txt",
        "heads.safetensors",
    ]
    assert len({(tmp_path / "best" / name).stat().st_mode for name in files}) == 1  # whoever may read one may read all
    for auto in ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification", "AutoTokenizer"):
        with pytest.raises(ValueError, match=r"Unrecognized model|instantiate"):  # and not fresh heads, or none, in silence
            getattr(transformers, auto).from_pretrained(tmp_path / "best")
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "best" / "encoder").eval()
    assert isinstance(theirs, transformers.BertModel)
    tokens = [inputs.specials[0], 50, 60, 70, inputs.specials[1]]
    want_ND = theirs(input_ids=torch.tensor([tokens])).last_hidden_state[0]
    assert torch.allclose(model.encoder(one_sequence(tokens)), want_ND, atol=1e-5)


def test_no_two_tasks_share_a_parameter_outside_the_encoder(tiny: Tiny) -> None:
    model, _ = built(tiny())
    for one, other in itertools.combinations(model.heads.values(), 2):
        assert not {id(p) for p in one.parameters()} & {id(p) for p in other.parameters()}
