"""Further pretraining: made once and kept, exact to transformers, to the digit after a crash, waited for, and named."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from minbert_core.checkpoints import load_encoder, load_head
from minbert_core.config import TrialConfig
from minbert_core.config_checks import load_config
from minbert_core.data import packed
from minbert_core.data.tables import CorpusError
from minbert_core.inputs import Inputs, build_encoder, open_inputs
from minbert_core.settings.faults import SettingsError
from minbert_core.train import pretrained, pretraining
from minbert_core.train.bench import model_to_train
from minbert_core.train.pretrained import Pretrained, find
from minbert_core.train.pretraining import PretrainingRun, read_texts, run_pretraining
from minbert_core.train.trial import Progress, train

Tiny = Callable[..., TrialConfig]
FAST = {"lr": 3e-3}
MLM = {"kind": "mlm", "epochs": 0.2, "optimizer": FAST}
NSP = {"kind": "nsp", "epochs": 0.2, "optimizer": FAST}


@pytest.fixture(autouse=True)
def own_cache(tiny: Tiny, small_toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds the small toy corpus and nothing that was pretrained."""
    cache = tmp_path / "cache"
    shutil.copytree(small_toy_cache, cache, ignore=shutil.ignore_patterns("pretrained"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return cache / "minbert" / "pretrained"


def trial(tiny: Tiny, *stages: Any, **changes: Any) -> TrialConfig:
    """A trial of two steps after `stages`."""
    return tiny(**{"stages": [*stages, "multitask"], "budget": {"examples": 48, "points": [1]}, **changes})


def found(config: TrialConfig) -> tuple[Inputs, list[Pretrained]]:
    inputs = open_inputs(config)
    return inputs, find(config, inputs)


def maker(config: TrialConfig) -> PretrainingRun:
    inputs, [one] = found(config)
    return PretrainingRun(config, inputs, one, 0)


def made(config: TrialConfig) -> list[dict[str, Any]]:
    """The records of what comes before a trial, which is made."""
    inputs, ones = found(config)
    return list(run_pretraining(ones, config, inputs))


def bytes_of(config: TrialConfig) -> bytes:
    return (found(config)[1][-1].folder / "model.safetensors").read_bytes()


# -------------------------------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize("stage", [MLM, NSP], ids=["mlm", "nsp"])
def test_it_learns_one_batch_by_heart(tiny: Tiny, stage: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    one = maker(trial(tiny, {**stage, "optimizer": {"lr": 3e-3, "lr_schedule": "constant", "warmup": 0}}))
    asked = one.questions(one.texts, np.arange(16), np.random.default_rng(0))
    monkeypatch.setattr(one, "questions", lambda *_: asked)
    losses = []
    for _ in range(40):
        one.shown = 0
        losses.append(float(one.step()))
    assert losses[-1] < losses[0] / 2


def test_a_batchs_questions_go_to_the_device_in_one_copy_with_their_layout(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    one, num_copies, copied = maker(trial(tiny, MLM)), [], packed.copied
    monkeypatch.setattr(packed, "copied", lambda tensors, device: num_copies.append(len(tensors)) or copied(tensors, device))
    one.device = torch.device("meta")
    questions = one.questions(one.texts, np.arange(16), np.random.default_rng(0), limit=100)
    assert len(questions) > 1
    assert len(num_copies) == 1
    for question in questions:
        [reading] = question.batch.readings.values()
        for tensor in (question.at_M, question.answers_M, question.batch.token_ids_N, reading.of_all.layout.slot_N):
            assert tensor.device == one.device


def test_tokens_that_round_a_batch_up_for_onednn_change_no_loss(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    one, losses = maker(trial(tiny, MLM)), []
    for grid in (packed.EXACT, packed.ONEDNN):
        monkeypatch.setattr(packed, "grid_for", lambda *_, grid=grid: grid)
        [question] = one.questions(one.texts, np.arange(16), np.random.default_rng(0))
        assert bool(question.batch.num_padding) == (grid == packed.ONEDNN)
        losses.append(F.cross_entropy(one.forward(question, None), question.answers_M))
    torch.testing.assert_close(*losses)


def test_masked_words_are_learned_for_texts_that_were_held_out(tiny: Tiny) -> None:
    last = made(trial(tiny, {**MLM, "epochs": 3}))[-1]
    assert last["pretrain/mlm_held_out_loss"] < last["pretrain/mlm_held_out_loss_before"] - 1
    assert last["pretrain/mlm_held_out_accuracy"] > 0.2


@pytest.mark.parametrize(("stage", "like"), [(MLM, "BertForMaskedLM"), (NSP, "BertForNextSentencePrediction")])
def test_loss_and_gradient_equal_those_of_transformers(
    tiny: Tiny, transformers: ModuleType, stage: dict[str, Any], like: str
) -> None:
    still = {"encoder": {"hidden_dropout": 0.0, "attention_dropout": 0.0}}
    one = maker(trial(tiny, {**stage, "texts": ["para", "sts"]}, **still))
    [question] = one.questions(one.texts, np.arange(8), np.random.default_rng(0))
    loss = F.cross_entropy(one.forward(question, None), question.answers_M)
    loss.backward()

    folder = one.one.folder
    one._keep({})
    config = transformers.BertConfig.from_pretrained(folder)
    oracle = getattr(transformers, like)(config).eval()
    stored = pretraining.load_head(folder, one.stage.stored)
    weights = {one.stage.stored[name]: tensor for name, tensor in stored.items()}
    encoder = transformers.BertModel.from_pretrained(folder)
    oracle.bert.load_state_dict({n: t for n, t in encoder.state_dict().items() if n in oracle.bert.state_dict()})
    assert not oracle.load_state_dict(weights, strict=False).unexpected_keys
    oracle.tie_weights()
    batch = question.batch
    rows, columns = batch.example_N, batch.position_ids_N
    padded = {name: torch.zeros(8, max(batch.lengths), dtype=torch.int64) for name in ("ids", "segments", "mask")}
    padded["ids"][rows, columns] = batch.token_ids_N
    padded["segments"][rows, columns] = batch.segment_ids_N
    padded["mask"][rows, columns] = 1
    if like == "BertForMaskedLM":
        labels = torch.full_like(padded["ids"], -100)
        labels[rows[question.at_M], columns[question.at_M]] = question.answers_M
    else:
        labels = question.answers_M
    expected = oracle(padded["ids"], padded["mask"], padded["segments"], labels=labels).loss
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    theirs = oracle.bert.embeddings.word_embeddings.weight.grad
    assert torch.allclose(one.encoder.word_embeddings.weight.grad, theirs, atol=1e-6)


def test_a_second_stage_of_the_same_seed_draws_its_own_order_and_masks(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[tuple[list[int], int]]] = []

    def note(
        self: PretrainingRun, texts: Any, rows: np.ndarray, random: np.random.Generator, limit: int | None = None
    ) -> list[Any]:
        asked[-1].append((rows.tolist(), int(random.integers(2**32))))
        return []

    config = trial(tiny, MLM, MLM)
    inputs, ones = found(config)
    makers = [PretrainingRun(config, inputs, pretraining.replace(one, before=ones[0].before), 0) for one in ones]
    monkeypatch.setattr(PretrainingRun, "questions", note)
    for one in makers:
        asked.append([])
        for _ in range(3):
            one.step()
    assert all(first[0] != second[0] and first[1] != second[1] for first, second in zip(*asked, strict=True))


def test_parts_of_a_batch_add_up_to_it(tiny: Tiny) -> None:
    """Next sentences: whole or in parts they are asked the same, and without dropout the loss is the same, too."""
    still = {"encoder": {"hidden_dropout": 0.0, "attention_dropout": 0.0}}
    losses = []
    for machine in ({}, {"micro_batch_tokens": 100}):
        one = maker(trial(tiny, NSP, **still, machine=machine))
        losses.append(float(one.step()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_its_rate_and_steps_are_those_of_its_epochs_and_optimizer(tiny: Tiny) -> None:
    one = maker(trial(tiny, {**MLM, "texts": ["sst"], "epochs": 1, "batch_size": 50, "optimizer": {"lr": 0.01, "warmup": 0.5}}))
    rates = []
    while one.shown < one.total:
        one.step()
        rates.append(one.optimizer.param_groups[0]["lr"])
    assert one.total == 120
    # of 50, 50 and 20 texts, each at its middle: 25, 75 and 110 of 120
    assert rates == pytest.approx([0.01 * 25 / 60, 0.01 * 45 / 60, 0.01 * 10 / 60])


def test_balance_takes_as_many_of_each_source_as_the_smallest_has(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("\n".join(f"a film {number}" for number in range(40)))
    config = trial(tiny, {**MLM, "texts": ["sst", "para", str(tmp_path / "few.txt")], "balance": True})
    texts, held_out = read_texts(config.pretraining[0], config, open_inputs(config))
    assert len(texts) == 3 * 38
    assert len(held_out) == 40 + 40 + 2
    whole = trial(tiny, {**MLM, "texts": ["sst", "para", str(tmp_path / "few.txt")]})
    assert len(read_texts(whole.pretraining[0], whole, open_inputs(whole))[0]) == 120 + 120 + 38


# ------------------------------------------------------------------------------------------------------- made once, kept


def test_a_trial_begins_with_what_was_made_and_its_budget_is_untouched(tiny: Tiny) -> None:
    config = trial(tiny, MLM)
    progress = list(train(config, open_inputs(config)))
    records = [one.record for one in progress]
    kinds = [record["kind"] for record in records]
    assert kinds == sorted(kinds, key=["pretrain", "train", "dev"].index)
    assert all(record["examples"] == 0 == record["seconds"] for record in records if record["kind"] == "pretrain")
    assert [one.rung for one in progress if one.rung is not None] == [1]
    assert records[-1]["examples"] == 48
    assert records[-1]["seconds"] < sum(record.get("pretrain/seconds", 0) for record in records) + 60

    inputs, [one] = found(config)
    kept = load_encoder(one.folder, 0.1, 0.1)
    begun = model_to_train(config, pretraining.replace(inputs, encoder_folder=one.folder)).encoder
    assert torch.equal(begun.all_word_embeddings(), kept.word_embeddings.weight)
    drawn = build_encoder(config, inputs)
    assert not torch.equal(drawn.layers[0].query.weight, kept.layers[0].query.weight)


def test_who_comes_later_trains_nothing_also_with_another_seed_and_other_methods(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made(trial(tiny, MLM))
    assert first[-1]["made"]
    monkeypatch.setattr(pretraining, "PretrainingRun", None)
    later = trial(tiny, MLM, seed=7, gradient="pcgrad", optimizer={"lr": 1e-2}, tasks={"all": {"batch_size": 4}})
    [record] = made(later)
    assert not record["made"]
    assert record["key"] == first[-1]["key"]
    same = ("pretrain/seconds", "pretrain/examples", "pretrain/mlm_held_out_loss", "notes")
    assert [record[name] for name in same] == [first[-1][name] for name in same]


@pytest.mark.parametrize(
    "changes",
    [
        {"max_length": 32},
        {"encoder": {"hidden_dropout": 0.0}},
        {"train_on": ["sst", "sts"]},
        {"machine": {"precision": "bfloat16"}},
        {"machine": {"micro_batch_tokens": 100}},
    ],
)
def test_what_the_weights_follow_from_is_in_the_key(tiny: Tiny, changes: dict[str, Any]) -> None:
    def key(stage: dict[str, Any], **changes: Any) -> str:
        return found(trial(tiny, stage, **changes))[1][0].key

    assert key(MLM) != key(MLM, **changes)
    others = [{"seed": 1}, {"epochs": 0.3}, {"mask_share": 0.2}, {"texts": ["sst"]}, {"whole_word": True}, {"balance": True}]
    assert len({key({**MLM, **other}) for other in [{}, *others]}) == 7


def test_a_gpu_s_dropout_masks_are_others_and_so_is_its_key(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu = found(trial(tiny, MLM))[1][0].key
    monkeypatch.setattr(pretrained, "resolve_device", lambda _: "cuda")
    assert found(trial(tiny, MLM))[1][0].key != on_cpu


def test_what_rounds_or_is_left_to_the_machine_is_in_the_key_as_it_is_resolved(tiny: Tiny) -> None:
    """Threads and the route of the products change last digits only; `auto` is float32 here."""
    same = [{}, {"threads": 2, "matmul": "onednn", "gpu_share": 0.5}, {"device": "auto", "precision": "auto"}]
    assert len({found(trial(tiny, MLM, machine=machine))[1][0].key for machine in same}) == 1


def test_a_default_optimizer_is_in_the_key_by_its_values(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    config = trial(tiny, {"kind": "mlm", "epochs": 0.2})
    before = found(config)[1][0].key
    monkeypatch.setattr(pretrained, "RATE", 1e-4)
    assert found(config)[1][0].key != before


def test_a_text_file_s_content_is_in_the_key_and_its_place_is_not(tiny: Tiny, tmp_path: Path) -> None:
    keys = []
    for text in ("one\ntwo\n", "one\ntwo\n", "one\nthree\n"):
        (tmp_path / "texts.txt").write_text(text)
        keys.append(found(trial(tiny, {**MLM, "texts": [str(tmp_path / "texts.txt")]}))[1][0].key)
    assert keys[0] == keys[1] != keys[2]


def test_a_head_that_the_checkpoint_has_is_taken_up_and_a_fresh_one_is_told_of(tiny: Tiny) -> None:
    config = trial(tiny, MLM, NSP, {**MLM, "seed": 3})
    records = [record for record in made(config) if "made" in record]
    assert [record["stage"] for record in records] == ["mlm", "nsp", "mlm"]
    assert records[0]["notes"] == ["The checkpoint has no head over masked words (cls.predictions): a fresh one was drawn."]
    assert "cls.seq_relationship" in records[1]["notes"][0]
    inputs, [first, second, third] = found(config)
    assert (second.before, third.before) == (first.folder, second.folder)
    assert set(load_head(first.folder, first.stage.stored)) == {
        "dense.weight",
        "dense.bias",
        "norm.weight",
        "norm.bias",
        "bias",
    }
    again = find(trial(tiny, MLM, MLM), inputs)
    assert again[0].key == first.key != again[1].key
    assert PretrainingRun(config, inputs, again[1] if again[1].is_cached else pretraining.replace(again[1]), 0).notes == []
    examples = [record["pretrain/examples"] for record in records]
    assert examples == sorted(examples)


def digits(records: Iterator[dict[str, Any]]) -> dict[int, float]:
    return {record["pretrain/examples"]: record["pretrain/mlm_loss"] for record in records if "pretrain/mlm_loss" in record}


def test_a_killed_one_goes_on_to_the_digit(tiny: Tiny, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = trial(tiny, {**MLM, "epochs": 1})
    inputs, [one] = found(config)
    records = run_pretraining([one], config, inputs)
    whole = digits(records)
    expected = bytes_of(config)
    shutil.rmtree(own_cache)

    monkeypatch.setattr("minbert_core.train.loop.SAVE_EVERY_SECONDS", -1)
    killed = run_pretraining([one], config, inputs)
    for _ in range(5):
        next(killed)
    killed.close()
    assert (own_cache / f"{one.key}.state").exists()
    assert not one.is_cached
    after = digits(run_pretraining([one], config, inputs))
    assert after
    assert after == {at: loss for at, loss in whole.items() if at in after}
    assert min(after) > min(whole)
    assert bytes_of(config) == expected
    assert sorted(path.name for path in own_cache.iterdir()) == sorted([one.key, f"{one.key}.lock"])


def test_a_stopped_one_saves_its_state_at_once_and_resumes_to_the_digit(tiny: Tiny, own_cache: Path) -> None:
    config = trial(tiny, MLM, NSP)
    inputs, ones = found(config)
    made(config)
    expected = bytes_of(config)
    shutil.rmtree(own_cache)
    steps = iter([False, True])
    assert not any("made" in record for record in run_pretraining(ones, config, inputs, lambda: next(steps)))
    assert torch.load(own_cache / f"{ones[0].key}.state", weights_only=True)["shown"] == 2 * 32
    assert not any(one.is_cached for one in ones)
    made(config)
    assert bytes_of(config) == expected


def test_progress_has_a_time_left_that_ends_at_none(tiny: Tiny) -> None:
    records = [record for record in made(trial(tiny, {**MLM, "epochs": 1})) if "made" not in record]
    for record in records:
        rows = (1 - record["pretrain/share"]) * 360
        assert record["seconds_left"] == pytest.approx(rows / record["pretrain/examples_per_second"], abs=1e-6)


def test_of_two_at_once_one_makes_it_and_the_other_waits_then_takes_it(tiny: Tiny) -> None:
    config = trial(tiny, MLM)
    inputs, ones = found(config)
    first, second = run_pretraining(ones, config, inputs), run_pretraining(ones, config, inputs)
    next(first)
    assert next(second)["waits"]
    assert list(first)[-1]["made"]
    [record] = second
    assert not record["made"]


def test_who_dies_lets_the_next_one_make_it(tiny: Tiny) -> None:
    config = trial(tiny, MLM)
    inputs, ones = found(config)
    first, second = run_pretraining(ones, config, inputs), run_pretraining(ones, config, inputs)
    next(first)
    assert next(second)["waits"]
    first.close()
    assert list(second)[-1]["made"]


def test_a_trial_that_goes_on_finds_its_pretraining_in_silence_and_repeats_to_the_digit(tiny: Tiny) -> None:
    config = trial(tiny, MLM, budget={"examples": 96, "points": [1, 2]})

    def weights(progress: Progress) -> dict[str, torch.Tensor]:
        assert progress.model is not None
        return {name: tensor.clone() for name, tensor in progress.model.state_dict().items()}

    middle = None
    for progress in train(config, open_inputs(config)):
        if progress.record["kind"] == "pretrain":
            assert progress.snapshot() == {}  # a trial that has not begun begins
        elif middle is None:
            middle = copy.deepcopy(progress.snapshot())
    whole = weights(progress)
    resumed = list(train(config, open_inputs(config), middle))
    assert {later.record["kind"] for later in resumed} == {"train", "dev"}
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights(resumed[-1]).items())


# --------------------------------------------------------------------------------------------------- recipes of the papers

SFT = [{"kind": "single_task", "task": name, "epochs": 0.15} for name in ("sst", "para", "sts")]
HEADS = {"kind": "heads_only", "epochs": 0.1, "fresh": True}
MULTITASK = {"kind": "multitask", "epochs": 0.1}
APPROACHES = {  # of Liu & Maniku 2023
    "heads only": [HEADS],
    "MLM, heads": [MLM, HEADS],
    "MT, heads": [MULTITASK, HEADS],
    "MLM, MT, heads": [MLM, MULTITASK, HEADS],
    "SFT": [*SFT, HEADS],
}


@pytest.mark.parametrize("stages", APPROACHES.values(), ids=APPROACHES)
def test_every_approach_of_the_first_paper_trains(tiny: Tiny, stages: list[dict[str, Any]]) -> None:
    config = tiny(stages=stages, budget={"examples": None, "points": [1]})
    *_, last = train(config, open_inputs(config))
    assert last.done
    assert last.record["step"] >= len(config.labelled)


# ----------------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        (
            ["multitask", "mlm"],
            r"`stages/1` kind 'mlm' learns from texts without labels, and must come before 'multitask', which",
        ),
        (["mlm"], r"`stages` has only stages on texts without labels\. Add a stage that learns labels: multitask"),
        (
            [{"kind": "mlm", "texts": ["stst"]}, "multitask"],
            r"`stages/0/mlm/texts` 'stst' is neither a task nor a text file, .*'sts'",
        ),
        (
            [{"kind": "nsp", "texts": ["sst"]}, "multitask"],
            r"`stages/0/nsp/texts` 'sst' has one sentence per row, so there is no",
        ),
        ([{"kind": "mlm", "optimizer": {"per_task": True}}, "multitask"], r"`stages/0/mlm/optimizer/per_task` keeps moments"),
        ([{"kind": "mlm", "share": 0.1}, "multitask"], r"Unknown key `stages/0/mlm/share`"),
    ],
)
def test_a_stage_on_texts_that_cannot_be_is_refused(stages: list[Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        load_config({"stages": stages})


def test_next_sentences_want_pairs_to_read() -> None:
    with pytest.raises(SettingsError, match=r"`stages/0/nsp/texts` is empty, and train_on \['sst'\] has no pairs"):
        load_config({"train_on": ["sst"], "stages": ["nsp", "multitask"]})
    assert load_config({"stages": ["nsp", "multitask"]}).recipe == "nsp+multitask"


def test_a_missing_text_file_is_told_before_anything_is_trained(tiny: Tiny) -> None:
    with pytest.raises(CorpusError, match=r"The folder .* has no file gone\.txt\. `texts` of a stage names it"):
        found(trial(tiny, {**MLM, "texts": ["gone.txt"]}))
