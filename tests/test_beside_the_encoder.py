"""What a model can have beside its encoder and its heads (adapters, a shared layer, poolings that learn): in each stage what
is trained and what stays, what is saved, what a snapshot holds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from minbert_core.config import TrialConfig
from minbert_core.data.packed import PackedBatch, Span
from minbert_core.data.tokens import pack
from minbert_core.encoder import Masks
from minbert_core.inputs import Inputs, build_encoder, open_inputs
from minbert_core.methods.adapters import LoraLinear
from minbert_core.model import MultitaskBert, build_model, load_model, save_model
from minbert_core.settings.faults import SettingsError
from minbert_core.train.bench import model_to_train
from minbert_core.train.overfit import few_of, overfit_config, unreached
from minbert_core.train.step import Stepper
from minbert_core.train.trial import train

Tiny = Callable[..., TrialConfig]

LORA = {"adapter": {"kind": "lora", "matrices": ["query", "key", "value", "attention_output", "intermediate", "output"]}}
PAL = {"adapter": {"kind": "pal", "size": 8}}
FROZEN = {"adapter": {"kind": "pal", "size": 8, "freeze_encoder": True}}
SHARED = {"shared_layer": {"kind": "leaky", "size": 16, "dropout": 0.3}}
ATTENTION = {"tasks": {"all": {"pooling": "attention"}}}
RELATIONAL = {  # the last system of Hollister et al. 2023
    "shared_layer": {"kind": "leaky", "size": 16, "of": "pairs"},
    "tasks": {"all": {"pooling": "mean"}, "pairs": {"pair_encoding": "bi", "head": "sbert"}, "sts": {"head": "hadamard"}},
}
SYSTEMS = {"lora": LORA, "pal": PAL, "frozen": FROZEN, "shared": SHARED, "attention": ATTENTION, "relational": RELATIONAL}
systems = pytest.mark.parametrize("changes", SYSTEMS.values(), ids=SYSTEMS.keys())


OPENED: dict[tuple[str, ...], Inputs] = {}


def opened(config: TrialConfig) -> Inputs:
    """The toy corpus, opened once for all these tests: it hangs on the tasks alone."""
    if config.train_on not in OPENED:
        OPENED[config.train_on] = open_inputs(config)
    return OPENED[config.train_on]


def built(config: TrialConfig) -> tuple[MultitaskBert, Inputs]:
    inputs = opened(config)
    return build_model(config, build_encoder(config, inputs)), inputs


def batch_of(model: MultitaskBert, inputs: Inputs, task: str) -> PackedBatch:
    return pack(inputs.dev[task], np.arange(5), model.plans[task].pair_encoding.kind, 64, inputs.specials)


def trained(config: TrialConfig) -> tuple[MultitaskBert, set[str]]:
    """The model at the end of its trial, and the names of the parameters that are not what they were."""
    inputs = opened(config)
    before = model_to_train(config, inputs).state_dict()
    *_, last = train(config, inputs)
    after = last.model.state_dict()
    return last.model, {name for name in after if not torch.equal(after[name], before[name])}


def is_lora(name: str) -> bool:
    return ".a." in name or ".b." in name


def kinds(names: set[str]) -> set[str]:
    """`encoder` for a weight of the encoder's own, else what it belongs to."""
    return {"lora" if is_lora(name) else "pooler" if "pooler" in name else name.partition(".")[0] for name in names}


SHORT: dict[str, Any] = {"budget": {"examples": 72, "points": [1]}}  # three steps: a LoRA's A moves from the second on
TRAINED_IN_ALL = {
    "lora": {"lora", "pooler", "heads"},
    "pal": {"encoder", "pooler", "adapters", "heads"},
    "frozen": {"pooler", "adapters", "heads"},
    "shared": {"encoder", "pooler", "shared_layer", "heads"},
    "attention": {"encoder", "poolings", "heads"},
    "relational": {"encoder", "shared_layer", "heads"},
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_stage_of_all_trains_what_the_adapter_leaves_and_one_of_heads_what_follows_the_encoder(tiny: Tiny, name: str) -> None:
    config = tiny(**SYSTEMS[name], stages=["multitask", "heads_only"])
    model, _ = built(config)
    found = []
    for stage in config.stage_plans():
        Stepper(model, stage, config.loss_weights, 0, "float32")
        found.append(kinds({name for name, parameter in model.named_parameters() if parameter.requires_grad}))
    assert found == [TRAINED_IN_ALL[name], TRAINED_IN_ALL[name] & {"heads", "poolings", "shared_layer"}]


@pytest.mark.parametrize("adapter", [LORA, PAL])
def test_all_that_a_trial_trains_moves_and_nothing_else(tiny: Tiny, adapter: dict[str, Any]) -> None:
    model, moved = trained(tiny(**SHORT, **adapter, **SHARED, **ATTENTION))
    encoder = "lora" if adapter is LORA else "encoder"
    assert kinds(moved) - {"adapters"} == {encoder, "heads", "poolings", "shared_layer"}
    added = {name for name in model.state_dict() if is_lora(name) or name.startswith("adapters.")}
    assert added <= moved


@systems
def test_the_gradient_of_one_task_reaches_nothing_of_another_s_own(tiny: Tiny, changes: dict[str, Any]) -> None:
    model, inputs = built(tiny(**changes))
    model("sts", batch_of(model, inputs, "sts")).logits_BK.sum().backward()
    for other in ("sst", "para"):
        assert all(parameter.grad is None for _, parameter in model.own_parameters(other, with_encoder=True))
    assert all(parameter.grad is not None for _, parameter in model.own_parameters("sts", with_encoder=True))


@systems
def test_every_parameter_is_shared_or_one_task_s_own(tiny: Tiny, changes: dict[str, Any]) -> None:
    """But for what an adapter freezes."""
    model, _ = built(tiny(**changes))
    shared = [id(parameter) for group in model.shared_groups(with_encoder=True).values() for parameter in group]
    own = [id(parameter) for task in model.plans for _, parameter in model.own_parameters(task, with_encoder=True)]
    assert len({*shared, *own}) == len(shared) + len(own)
    left = [name for name, parameter in model.named_parameters() if id(parameter) not in {*shared, *own}]
    assert all(name.startswith("encoder.") for name in left)
    assert bool(left) is ("adapter" in changes and changes is not PAL)


@pytest.mark.parametrize("changes", [LORA, PAL, FROZEN])
def test_an_adapted_model_begins_with_the_answers_of_the_plain_one(tiny: Tiny, changes: dict[str, Any]) -> None:
    (plain, inputs), (adapted, _) = built(tiny()), built(tiny(**changes))
    for task in plain.plans:
        batch = batch_of(plain, inputs, task)
        assert torch.equal(adapted(task, batch).logits_BK, plain(task, batch).logits_BK)


def test_a_model_with_attention_begins_with_the_answers_of_the_mean(tiny: Tiny) -> None:
    (mean, inputs), (attention, _) = built(tiny(tasks={"all": {"pooling": "mean"}})), built(tiny(**ATTENTION))
    batch = batch_of(mean, inputs, "sst")
    assert torch.allclose(attention("sst", batch).logits_BK, mean("sst", batch).logits_BK, atol=1e-6)


@torch.no_grad()
def moved(model: MultitaskBert) -> MultitaskBert:
    """Every parameter away from where it begins."""
    for i, parameter in enumerate(model.parameters()):
        parameter.add_(torch.empty_like(parameter).normal_(0, 0.1, generator=torch.Generator().manual_seed(i)))
    return model


@systems
def test_a_saved_model_gives_the_same_and_its_encoder_is_a_plain_one(
    tiny: Tiny, tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = tiny(**changes)
    inputs = opened(config)
    model = moved(model_to_train(config, inputs))
    save_model(model, config, tmp_path / "best", inputs.encoder_folder)
    loaded, again = load_model(tmp_path / "best")
    assert again == config
    assert not any(isinstance(module, LoraLinear) for module in loaded.modules())
    for task in model.plans:
        batch = batch_of(model, inputs, task)
        expected, found = model(task, batch).logits_BK, loaded(task, batch).logits_BK
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
        assert changes is LORA or torch.equal(found, expected)


@pytest.mark.parametrize(
    ("changes", "others"),
    [
        ({}, set()),
        (LORA, set()),
        (PAL, {"adapters/sst.decode.bias"}),
        (SHARED, {"shared_layer/linear.weight"}),
        (ATTENTION, {"poolings/sts.score"}),
    ],
)
def test_heads_keep_their_names_in_the_file_whatever_stands_beside_them(
    tiny: Tiny, tmp_path: Path, changes: dict[str, Any], others: set[str]
) -> None:
    """Models of earlier versions hold these, and load."""
    config = tiny(**changes)
    model, inputs = built(config)
    save_model(model, config, tmp_path / "best", inputs.encoder_folder)
    with safe_open(tmp_path / "best" / "heads.safetensors", "pt") as file:
        names = set(file.keys())
    heads = {f"{task}.layers.0.{what}" for task in ("sst", "para", "sts") for what in ("weight", "bias")}
    assert {name for name in names if "/" not in name} == heads
    assert others <= names
    assert bool(names - heads) is bool(others)


def test_a_part_that_the_config_does_not_name_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    config, shared = tiny(), tiny(**SHARED)
    model, inputs = built(config)
    save_model(model, config, tmp_path / "plain", inputs.encoder_folder)
    save_model(built(shared)[0], shared, tmp_path / "shared", inputs.encoder_folder)
    (tmp_path / "shared" / "heads.safetensors").replace(tmp_path / "plain" / "heads.safetensors")
    with pytest.raises(ValueError, match=r"heads\.safetensors does not fit its config\.yaml \(it holds shared_layer/\)"):
        load_model(tmp_path / "plain")


def weights_of(config: TrialConfig, snapshot: dict[str, Any] | None = None) -> dict[str, Tensor]:
    *_, last = train(config, opened(config), snapshot)
    return {name: tensor.clone() for name, tensor in last.model.state_dict().items()}


ALL_AT_ONCE = {"gradient": {"kind": "gradvac", "beta": 0.3}, "proximal": "bregman", **SHARED, **ATTENTION}


@pytest.mark.parametrize("changes", [ALL_AT_ONCE | LORA, ALL_AT_ONCE | PAL], ids=["lora", "pal"])
def test_a_trial_goes_on_from_a_snapshot_to_the_digit(tiny: Tiny, changes: dict[str, Any]) -> None:
    config = tiny(**changes, budget={"examples": 96, "points": [1, 2]})
    trial = train(config, opened(config))
    snapshot = next(progress.snapshot() for progress in trial if progress.rung == 1)
    snapshot = torch.utils._pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, snapshot)
    *_, last = trial
    whole = {name: tensor.clone() for name, tensor in last.model.state_dict().items()}
    found = weights_of(config, snapshot)
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)


@pytest.mark.parametrize("changes", [PAL | SHARED, RELATIONAL | LORA])
def test_the_teacher_s_first_penalty_is_exactly_zero(tiny: Tiny, changes: dict[str, Any]) -> None:
    """It replays the student's masks: those of the shared layer and of PALs, too."""
    config = tiny(**changes, proximal="bregman", budget={"examples": 24, "points": [1]})
    record = next(train(config, opened(config))).record
    assert [record[f"train/{task}_proximal_loss"] for task in config.train_on] == [0, 0, 0]


@pytest.mark.parametrize("changes", [FROZEN | {"tasks": {"all": {"pooling": "mean"}}}, RELATIONAL | LORA])
def test_smart_finds_something_to_smooth(tiny: Tiny, changes: dict[str, Any]) -> None:
    """Also where all that tasks share is frozen, and only their own weights learn."""
    config = tiny(**changes, smoothness={"kind": "smart", "radius": 0.1}, budget={"examples": 240, "points": [1]})
    records = [progress.record for progress in train(config, opened(config))]
    [measured] = [record for record in records if "train/sst_smoothness_gradient_ratio" in record]
    assert all(measured[f"train/{task}_smoothness_gradient_ratio"] > 0 for task in config.train_on)


# --------------------------------------------------------------------------------------------------------- the shared layer


def test_the_shared_layer_stands_between_pooling_and_head(tiny: Tiny) -> None:
    model, inputs = built(tiny(**SHARED))
    batch = batch_of(model, inputs, "sst")
    hidden_SD = model.encoder(batch, spans=(Span(len(batch.lengths), True),))
    linear, head = model.shared_layer.linear, model.heads["sst"].layers[0]
    features_BF = torch.nn.functional.leaky_relu(model.encoder.pooler(hidden_SD) @ linear.weight.T + linear.bias)
    output = model("sst", batch)
    assert torch.allclose(output.features_BF, features_BF, atol=1e-6)
    assert torch.allclose(output.logits_BK, features_BF @ head.weight.T + head.bias, atol=1e-6)


def test_each_sentence_of_a_pair_goes_through_the_layer_by_itself(tiny: Tiny) -> None:
    model, inputs = built(tiny(**RELATIONAL))
    assert model("sts", batch_of(model, inputs, "sts")).features_BF.shape == (5, 2 * 16)
    assert model.heads["sts"].layers[0].weight.shape == (1, 16)


def test_a_layer_of_the_pairs_has_no_part_in_the_other_tasks(tiny: Tiny) -> None:
    """Nor do its moments decay in their steps."""
    model, inputs = built(tiny(**RELATIONAL))
    assert [model.reads(task, "shared_layer") for task in ("sst", "para", "sts")] == [False, True, True]
    assert model("sst", batch_of(model, inputs, "sst")).features_BF.shape == (5, 64)
    _, moved = trained(tiny(**SHORT | RELATIONAL, stages=[{"kind": "single_task", "task": "sst"}]))
    assert kinds(moved) == {"encoder", "heads"}


def test_a_step_without_pairs_leaves_their_layer_alone(tiny: Tiny) -> None:
    """A gradient of zero would still move it, by AdamW's moments of the step before."""
    config = tiny(**RELATIONAL)
    model, inputs = built(config)
    stepper = Stepper(model, config.stage_plans()[0], config.loss_weights, 0, "float32")
    weights = []
    for number, task in enumerate(("sts", "sst")):
        weights.append(model.shared_layer.linear.weight.detach().clone())
        stepper.step(number, stepper.passes(number, {task: [batch_of(model, inputs, task)]}), 0.5, measure=False)
    assert not torch.equal(*weights)
    assert torch.equal(weights[1], model.shared_layer.linear.weight)


def test_the_shared_layer_has_a_group_of_its_own_also_beside_a_frozen_encoder(tiny: Tiny) -> None:
    model, _ = built(tiny(**SHARED))
    assert list(model.shared_groups(with_encoder=False)) == ["shared_layer"]
    assert list(model.shared_groups(with_encoder=True))[-2:] == ["pooler", "shared_layer"]


def test_the_shared_layer_is_drawn_from_the_seed_alone_and_not_renewed_with_heads(tiny: Tiny) -> None:
    one, other, seeded = (built(tiny(**SHARED, **changes))[0] for changes in ({}, {"train_on": ["sts"]}, {"seed": 1}))
    weight = one.shared_layer.linear.weight.detach().clone()
    assert torch.equal(weight, other.shared_layer.linear.weight)
    assert not torch.equal(weight, seeded.shared_layer.linear.weight)
    one.renew_head("sst", 5)
    assert torch.equal(weight, one.shared_layer.linear.weight)


def test_masks_reach_the_shared_layer_also_where_the_encoder_does_not_drop(tiny: Tiny) -> None:
    model, inputs = built(tiny(**SHARED))
    batch = batch_of(model, inputs, "sst")
    dropped = model("sst", batch, Masks(1), encoder_drops=False).features_BF
    assert not torch.allclose(dropped, model("sst", batch).features_BF, atol=1e-4)


def test_pcgrad_acts_on_the_shared_layer_where_it_is_all_that_is_shared(tiny: Tiny) -> None:
    shared = FROZEN | SHARED | {"tasks": {"all": {"pooling": "mean"}}, "gradient": "pcgrad"}
    _, moved = trained(tiny(**SHORT | shared))
    assert kinds(moved) == {"adapters", "heads", "shared_layer"}


# ---------------------------------------------------------------------------------------------------- poolings that learn


def test_what_a_pooling_learns_is_drawn_by_task_and_renewed_with_its_head(tiny: Tiny) -> None:
    model, _ = built(tiny(**ATTENTION))
    weights = {task: model.poolings[task].layer.weight.detach().clone() for task in model.plans}
    assert not torch.equal(weights["para"], weights["sts"])
    with torch.no_grad():
        model.poolings["sts"].score.fill_(1)
    model.renew_head("sts", 5)
    assert not model.poolings["sts"].score.any()
    assert not torch.equal(model.poolings["sts"].layer.weight, weights["sts"])
    assert torch.equal(model.poolings["sst"].layer.weight, weights["sst"])


def test_a_loss_of_features_trains_what_makes_them_and_leaves_the_head(tiny: Tiny) -> None:
    sts = {"pair_encoding": "bi", "pooling": "attention", "head": "cosine", "loss": "cosine_embedding"}
    model, _ = built(tiny(tasks={"sts": sts}, **PAL))
    names = [name for name, _ in model.own_parameters("sts", with_encoder=True)]
    assert names[:3] == ["sts.pooling.score", "sts.pooling.layer.weight", "sts.pooling.layer.bias"]
    assert all(name.startswith(("sts.pooling.", "sts.adapter.")) for name in names)


# ------------------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (LORA | {"stages": ["linear_probe"]}, "`adapter` kind 'lora' is trained with the encoder, but every stage"),
        (
            FROZEN | {"gradient": "pcgrad", "tasks": {"all": {"pooling": "mean"}}},
            "`gradient` kind 'pcgrad' merges gradients of what tasks share, but adapter kind 'pal' leaves nothing of it",
        ),
        (
            {"shared_layer": {"kind": "leaky", "of": "pairs"}, "train_on": ["sst"]},
            r"`shared_layer` kind 'leaky' serves only tasks of pairs, but `train_on` \['sst'\] has none",
        ),
        ({"adapter": {"kind": "lora", "matrices": ["query", "keys"]}}, "adapter/lora/matrices"),
    ],
)
def test_what_cannot_be_trained_is_refused(tiny: Tiny, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        tiny(**changes)


def test_pals_that_do_not_fit_the_encoder_s_heads_are_refused(tiny: Tiny) -> None:
    config = tiny(adapter={"kind": "pal", "size": 9})
    with pytest.raises(ValueError, match=r"`adapter/pal/size` must be a multiple of the encoder's 2 attention heads\. Got 9"):
        built(config)


# ------------------------------------------------------------------------------------------------------------ the overfit check


def test_the_overfit_check_keeps_the_shared_layer_without_its_dropout_and_leaves_the_adapter(tiny: Tiny) -> None:
    config = overfit_config(tiny(**RELATIONAL, **LORA), 8)
    assert config.shared_layer.model_dump() == {"kind": "leaky", "size": 16, "dropout": 0.0, "of": "pairs"}
    assert config.adapter.kind == "none"
    assert unreached(config, few_of(config, opened(config), 8)) == {}
