"""A trial's config: every fault a user can write, what crosses the families, resolution a task, paths and their inverse."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest

from minbert_core.config import TASK_DEFAULTS, TrialConfig, default_at
from minbert_core.config_checks import load_config, read_config
from minbert_core.methods.features import Bi, Cross, Mean
from minbert_core.methods.gradients import PCGrad, Sum
from minbert_core.methods.heads import Linear, Mlp
from minbert_core.methods.losses import Bce, CrossEntropy, Mse, Pearson
from minbert_core.methods.proximal import Bregman, NoProximal
from minbert_core.overrides import Override, parse_set
from minbert_core.seeds import seed_of
from minbert_core.settings.faults import SettingsError
from minbert_core.settings.knobs import NO_DEFAULT, elsewhere, knob_at
from minbert_core.settings.paths import as_written, flatten, lay_over, unflatten
from minbert_core.settings.yaml import dump_yaml, parse_yaml
from search.space.domains import Choice, Domain
from search.space.space import Space, read_space

SPACES = sorted((Path(__file__).parents[1] / "spaces").rglob("*.yaml"))


def faults(tmp_path: Path, text: str) -> list[str]:
    """What reading `text` as a config complains of: `line: sentence`, one a fault."""
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=r".") as caught:
        read_config(path)
    return [line.removeprefix(f"{path}:") for line in str(caught.value).splitlines()]


# ---------------------------------------------------------------------------------------------- one fault, one sentence


def known(path: str) -> str:
    """The end of a sentence on an unknown kind at `path`; a family may grow."""
    knob = knob_at(TrialConfig, path)
    assert knob is not None, path
    return f"Known: {', '.join(sorted(knob.kinds))}."


KINDS = known("gradient")
HEADS = known("tasks/all/head")
STAGES = known("stages/0")
LOSS_WEIGHTS = known("loss_weights")
WANTS_KIND = "must be a kind's name, or a map with its `kind`."
NAME_OR_WEIGHTS = "`objective` must be a name, or a map of weights."

ONE_FAULT = {
    # wrong type
    "optimizer: {lr: fast}": "`optimizer/lr` must be a number. Got 'fast'.",
    "optimizer: {lr: [1]}": "`optimizer/lr` must be a number. Got [1].",
    "optimizer: {lr: {a: 1}}": "`optimizer/lr` must be a number. Got {a: 1}.",
    "tasks: {all: {batch_size: 16.5}}": "`tasks/all/batch_size` must be a whole number. Got 16.5.",
    "max_length: abc": "`max_length` must be a whole number. Got 'abc'.",
    "seed: 1.5": "`seed` must be a whole number. Got 1.5.",
    "data: 5": "`data` must be a name. Got 5.",
    "encoder: {checkpoint: [a]}": "`encoder/checkpoint` must be a name. Got ['a'].",
    "train_on: sst": "`train_on` must be a list. Got 'sst'.",
    "train_on: [sst, 5]": "`train_on/1` must be a name. Got 5.",
    "objective: 5": f"{NAME_OR_WEIGHTS} Got 5.",
    "objective: [sst]": f"{NAME_OR_WEIGHTS} Got ['sst'].",
    # a list for a map, a map for a scalar or list, a scalar for a map
    "tasks: [all]": "`tasks` must be a map. Got ['all'].",
    "optimizer: [1]": "`optimizer` must be a map. Got [1].",
    "budget: 5": "`budget` must be a map. Got 5.",
    "machine: fast": "`machine` must be a map. Got 'fast'.",
    "encoder: 5": "`encoder` must be a map. Got 5.",
    "tasks: {sts: mean}": "`tasks/sts` must be a map. Got 'mean'.",
    "data: {folder: x}": "`data` must be a name. Got {folder: 'x'}.",
    "stages: {kind: multitask}": "`stages` must be a list. Got {kind: 'multitask'}.",
    "tasks: {all: {head: {kind: mlp, hidden: 768}}}": "`tasks/all/head/mlp/hidden` must be a list. Got 768.",
    "loss_weights: {kind: static, weights: [1]}": "`loss_weights/static/weights` must be a map. Got [1].",
    # null where it is not allowed
    "optimizer: {lr: null}": "`optimizer/lr` must be a number. Got null.",
    "optimizer:": "`optimizer` must be a map. Got null.",
    "data:": "`data` must be a name. Got null.",
    "tasks:": "`tasks` must be a map. Got null.",
    "train_on:": "`train_on` must be a list. Got null.",
    "gradient:": f"`gradient` {WANTS_KIND} Got null. {KINDS}",
    "objective:": f"{NAME_OR_WEIGHTS} Got null.",
    # out of range, not finite, empty
    "optimizer: {lr: 5}": "`optimizer/lr` must be <= 1. Got 5.",
    "optimizer: {lr: 0}": "`optimizer/lr` must be > 0. Got 0.",
    "optimizer: {warmup: 100}": "`optimizer/warmup` must be in [0, 1]. Got 100. It is a share of the steps, not a count.",
    "encoder: {hidden_dropout: 1}": "`encoder/hidden_dropout` must be < 1. Got 1.",
    "max_length: 4": "`max_length` must be >= 8. Got 4.",
    "max_length: 99999999999999999999999999": "`max_length` must be <= 512. Got 99999999999999999999999999.",
    "budget: {examples: 0}": "`budget/examples` must be > 0. Got 0.",
    "optimizer: {lr: nan}": "`optimizer/lr` must be a finite number. Got 'nan'.",
    "optimizer: {lr: .inf}": "`optimizer/lr` must be a number. Got '.inf'.",
    "optimizer: {lr: 1e999}": "`optimizer/lr` must be a finite number. Got inf.",
    "max_length: 1e999": "`max_length` must be a finite number. Got inf.",
    "stages: []": "`stages` must have 1 or more entries. Got [].",
    "train_on: []": "`train_on` must have 1 or more entries. Got [].",
    "budget: {points: []}": "`budget/points` must have 1 or more entries. Got [].",
    "objective: {weights: {}}": "`objective/weights` must have 1 or more entries. Got {}.",
    "tasks: {all: {head: {kind: mlp, hidden: []}}}": "`tasks/all/head/mlp/hidden` must have 1 or more entries. Got [].",
    "budget: {points: [3, 1]}": "`budget/points` must increase. Got [3, 1].",
    "budget: {examples: 1, epochs: 2}": "`budget` takes examples or epochs, not both.",
    # a fault inside a list or a variant comes alone: the list is not said to be short as well
    "stages: [{kind: multitask, share: 2}]": "`stages/0/multitask/share` must be <= 1. Got 2.",
    "stages: [{kind: multitask, optimizer: {lr: 5}}]": "`stages/0/multitask/optimizer/lr` must be <= 1. Got 5.",
    "budget: {points: [x]}": "`budget/points/0` must be a whole number. Got 'x'.",
    "objective: {weights: {sst: x}}": "`objective/weights/sst` must be a number. Got 'x'.",
    "loss_weights: {kind: static, weights: {sst: -1}}": "`loss_weights/static/weights/sst` must be > 0. Got -1.",
    # unknown keys, at every level
    "optimiser: {}": "Unknown key `optimiser`; did you mean 'optimizer'? Known: adapter, budget, data, encoder, "
    "gradient, loss_weights, machine, max_length, objective, optimizer, own_tasks, plugins, proximal, rows, seed, "
    "shared_layer, smoothness, stages, task_schedule, tasks, train_on.",
    "optimizer: {lrr: 1}": "Unknown key `optimizer/lrr`; did you mean 'lr'? Known: clip, eps, head_lr_factor, layer_decay, lr, "
    "lr_schedule, per_task, rule, warmup, weight_decay.",
    "tasks: {sts: {looss: mse}}": "Unknown key `tasks/sts/looss`; did you mean 'loss'? "
    "Known: batch_size, head, loss, pair_encoding, pooling.",
    "tasks: {all: {head: {kind: mlp, hiden: [1]}}}": "Unknown key `tasks/all/head/mlp/hiden`; did you mean 'hidden'? "
    "Known: dropout, hidden, start.",
    "tasks: {al: {}}": "Unknown `tasks/al`; did you mean 'all'? Known: all, cfimdb, pairs, para, sst, sts.",
    "gradient: {kind: gradvac, betta: 1}": "Unknown key `gradient/gradvac/betta`; did you mean 'beta'? Known: beta, groups, "
    "per.",
    "gradient: {kind: sum, beta: 1}": f"Unknown key `gradient/sum/beta`.{elsewhere(TrialConfig, 'beta')}",
    "optimizer: {pooling: mean}": "Unknown key `optimizer/pooling`. Known: clip, eps, head_lr_factor, layer_decay, lr, "
    "lr_schedule, per_task, rule, warmup, weight_decay. There is `tasks/all/pooling`.",
    "stages: [{kind: multitask, shar: 1}]": "Unknown key `stages/0/multitask/shar`; did you mean 'share'? "
    "Known: epochs, gradient, optimizer, proximal, share, smoothness, task_schedule.",
    "machine: {gpu: 1}": "Unknown key `machine/gpu`. Known: device, gpu_share, matmul, micro_batch_tokens, precision, threads.",
    # stages, proximal terms and machine
    "stages: [single_task]": "`stages/0/single_task/task` is missing.",
    "stages: [{kind: single_task, task: 5}]": "`stages/0/single_task/task` must be a name. Got 5.",
    "stages: [{kind: linear_probe, lr: 2}, multitask]": "`stages/0/linear_probe/lr` must be <= 1. Got 2.",
    "stages: [multitask, {kind: heads_only, fresh: maybe}]": "`stages/1/heads_only/fresh` must be true or false. Got 'maybe'.",
    "stages: [{kind: linear_probe, gradient: pcgrad}, multitask]": "Unknown key `stages/0/linear_probe/gradient`. "
    "Known: epochs, lr, share, task_schedule. There is `gradient`.",
    "stages: [{kind: multitask, proximal: bregmann}]": "Unknown `stages/0/multitask/proximal` kind 'bregmann'; did you mean "
    "'bregman'? Known: bregman, none.",
    "proximal: {kind: bregman, beta: 1}": "`proximal/bregman/beta` must be < 1. Got 1.",
    "proximal: {kind: bregman, late_beta: -0.5}": "`proximal/bregman/late_beta` must be > 0. Got -0.5.",
    "proximal: {kind: bregman, weight: -1}": "`proximal/bregman/weight` must be >= 0. Got -1.",
    "machine: {micro_batch_tokens: 0}": "`machine/micro_batch_tokens` must be > 0. Got 0.",
    "machine: {micro_batch_tokens: 10.5}": "`machine/micro_batch_tokens` must be a whole number. Got 10.5.",
    "machine: {gpu_share: 0}": "`machine/gpu_share` must be > 0. Got 0.",
    "machine: {gpu_share: 2}": "`machine/gpu_share` must be <= 1. Got 2.",
    "machine: {gpu_share: null}": "`machine/gpu_share` must be a number. Got null.",
    # unknown kinds, and none
    "gradient: pcgard": f"Unknown `gradient` kind 'pcgard'; did you mean 'pcgrad'? {KINDS}",
    "gradient: {kind: pcgard}": f"Unknown `gradient` kind 'pcgard'; did you mean 'pcgrad'? {KINDS}",
    "gradient: {kind: [sum]}": f"Unknown `gradient` kind ['sum']; did you mean 'sum'? {KINDS}",
    "gradient: {kind: null}": f"Unknown `gradient` kind null. {KINDS}",
    "tasks: {all: {head: liner}}": f"Unknown `tasks/all/head` kind 'liner'; did you mean 'linear'? {HEADS}",
    "stages: [multitaks]": "Unknown `stages/0` kind 'multitaks'; did you mean 'multitask'? " + STAGES,
    "loss_weights: famous": f"Unknown `loss_weights` kind 'famous'; did you mean 'famo'? {LOSS_WEIGHTS}",
    "gradient: {beta: 0.1}": f"`gradient` {WANTS_KIND} Got {{beta: 0.1}}. {KINDS}",
    "stages: [{share: 1}]": f"`stages/0` {WANTS_KIND} Got {{share: 1}}. {STAGES}",
    "loss_weights: {weights: {sst: 1}}": f"`loss_weights` {WANTS_KIND} Got {{weights: {{sst: 1}}}}. {LOSS_WEIGHTS}",
    "gradient: [sum]": f"`gradient` {WANTS_KIND} Got ['sum']. {KINDS}",
    "stages: [5]": f"`stages/0` {WANTS_KIND} Got 5. {STAGES}",
    "gradient: {kind: gradvac, per: leyer}": "Unknown `gradient/gradvac/per` 'leyer'; did you mean 'layer'? Known: "
    "layer, model.",
    "gradient: {kind: pcgrad, groups: [sst]}": "`gradient/pcgrad/groups/0` must be a list. Got 'sst'.",
    "gradient: {kind: pcgrad, groups: [[]]}": "`gradient/pcgrad/groups/0` must have 1 or more entries. Got [].",
    "gradient: {kind: cagrad, c: 1}": "`gradient/cagrad/c` must be < 1. Got 1.",
    "gradient: {kind: gradvac, per: 5}": "Unknown `gradient/gradvac/per` 5. Known: layer, model.",
    "machine: {device: gpu}": "Unknown `machine/device` 'gpu'; did you mean 'cpu'? Known: auto, cpu, cuda.",
    # `off` where a name is meant is a word like another; a boolean is neither number nor name
    "gradient: off": f"Unknown `gradient` kind 'off'. {KINDS}",
    "optimizer: {lr: true}": "`optimizer/lr` must be a number. Got true.",
    "optimizer: {warmup: true}": "`optimizer/warmup` must be a number. Got true.",
    "tasks: {all: {batch_size: true}}": "`tasks/all/batch_size` must be a whole number. Got true.",
    "tasks: {all: true}": "`tasks/all` must be a map. Got true.",
    "tasks: {all: {head: {kind: mlp, hidden: [true]}}}": "`tasks/all/head/mlp/hidden/0` must be a whole number. Got true.",
    "gradient: true": f"`gradient` {WANTS_KIND} Got true. {KINDS}",
    "gradient: {kind: true}": f"Unknown `gradient` kind true. {KINDS}",
    "gradient: {kind: gradvac, beta: true}": "`gradient/gradvac/beta` must be a number. Got true.",
    "gradient: {kind: gradvac, per: true}": "Unknown `gradient/gradvac/per` true. Known: layer, model.",
    "stages: [true]": f"`stages/0` {WANTS_KIND} Got true. {STAGES}",
    "stages: [{kind: multitask, share: true}]": "`stages/0/multitask/share` must be a number. Got true.",
    "objective: true": f"{NAME_OR_WEIGHTS} Got true.",
    "objective: {weights: {sst: true}}": "`objective/weights/sst` must be a number. Got true.",
    "loss_weights: {kind: static, weights: {sst: true}}": "`loss_weights/static/weights/sst` must be a number. Got true.",
    "data: false": "`data` must be a name. Got false.",
    "encoder: true": "`encoder` must be a map. Got true.",
    "budget: {points: [true, 3]}": "`budget/points/0` must be a whole number. Got true.",
    "train_on: [sst, true]": "`train_on/1` must be a name. Got true.",
    "machine: {device: true}": "Unknown `machine/device` true. Known: auto, cpu, cuda.",
}


@pytest.mark.parametrize("text", ONE_FAULT)
def test_a_fault_is_one_sentence_of_ours_with_its_line(text: str, tmp_path: Path) -> None:
    assert faults(tmp_path, f"# a comment\n{text}\n") == [f"2: {ONE_FAULT[text]}"]


def test_the_line_of_a_fault_is_that_of_the_value_not_of_its_group(tmp_path: Path) -> None:
    text = "seed: 1\ngradient:\n  kind: gradvac\n  beta: 7\ntasks:\n  sts:\n    head: {kind: mlp,\n      hidden: [8,\n  0]}\n"
    assert faults(tmp_path, text) == [
        "4: `gradient/gradvac/beta` must be <= 1. Got 7.",
        "9: `tasks/sts/head/mlp/hidden/1` must be > 0. Got 0.",
    ]


def test_all_faults_of_a_document_are_told_at_once_in_order(tmp_path: Path) -> None:
    text = "data: 5\noptimizer: {lr: true, wamup: 1}\ngradient: pcgard\nstages: [multitask, 5]\nmax_length: 4\n"
    lines = [fault.partition(":")[0] for fault in faults(tmp_path, text)]
    assert lines == ["1", "2", "2", "3", "4", "5"]


def test_all_faults_between_settings_are_told_at_once(tmp_path: Path) -> None:
    text = "train_on: [sst]\nobjective: sts\ngradient: pcgrad\nencoder: tiny\ntasks:\n  all:\n    head: cosine\n"
    lines = [fault.partition(":")[0] for fault in faults(tmp_path, text)]
    assert lines == ["2", "3", "4", "7", "7"]


def test_a_config_that_is_no_map_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"^1: A config is a map of settings\. Got \[1, 2\]\.$"):
        load_config([1, 2])


def test_null_inherits_as_if_it_were_not_written() -> None:
    config = load_config({"tasks": {"all": {"head": "mlp", "batch_size": 4}, "sst": {"head": None, "batch_size": None}}})
    assert (config.task("sst").head.kind, config.task("sst").batch_size) == ("mlp", 4)


def test_a_knob_of_a_stage_that_is_there_by_default_can_be_set() -> None:
    document: dict[str, Any] = {}
    for text in ("stages/0/multitask/optimizer/lr=1e-4", "stages/0/multitask/gradient=pcgrad"):
        parts, value, source = parse_set(text)
        Override(value, source).put(document, parts)
    [stage] = load_config(document).stages
    assert (stage.kind, stage.gradient.kind) == ("multitask", "pcgrad")


def test_an_empty_config_is_all_defaults() -> None:
    assert load_config(None) == load_config({}) == TrialConfig()


JUNK: list[Any] = [
    None,
    True,
    "junk",
    -1,
    0.5,
    1e30,
    float("nan"),
    float("inf"),
    [],
    ["junk"],
    [[]],
    {},
    {"junk": 1},
    {"kind": "junk"},
    {"kind": 5},
]


def test_no_value_anywhere_makes_pydantic_speak_for_itself() -> None:
    """Each knob of a config with every variant in it is given each sort of junk; what is refused is refused in our words."""
    whole: dict[str, Any] = {
        "data": "d", "encoder": {"checkpoint": "x", "hidden_dropout": 0.1}, "train_on": ["sst", "sts"],
        "tasks": {"all": {"pooling": "mean", "batch_size": 4},
                  "sts": {"pair_encoding": "bi", "head": {"kind": "cosine", "scale": 2.0}, "loss": "pearson"},
                  "sst": {"head": {"kind": "mlp", "hidden": [4], "dropout": 0.1}}},
        "budget": {"examples": 10, "points": [1, 3]}, "objective": {"weights": {"sst": 1.0}},
        "task_schedule": {"kind": "proportional", "alpha": 0.5, "alpha_end": 0.1},
        "loss_weights": {"kind": "static", "weights": {"sst": 2.0}}, "gradient": "sum",
        "smoothness": {"kind": "smart", "radius": 0.1, "weight": 1.0, "steps": 1}, "optimizer": {"lr": 0.1, "clip": None},
        "stages": [{"kind": "multitask", "share": 0.5, "optimizer": {"warmup": 0.1},
                    "gradient": {"kind": "gradvac", "beta": 0.1, "per": "model"}, "task_schedule": "mix"}, "multitask",
                   {"kind": "linear_probe", "share": 0.1, "lr": 0.1}, {"kind": "single_task", "task": "sst", "share": 0.1},
                   {"kind": "heads_only", "fresh": True, "task_schedule": {"kind": "sequential", "rounds": 5}}],
        "proximal": {"kind": "bregman", "weight": 1.0, "beta": 0.9, "late_beta": None},
        "max_length": 64, "seed": 1,
        "machine": {"device": "cpu", "threads": 1, "micro_batch_tokens": 512, "gpu_share": 0.5},
    }  # fmt: skip
    load_config(whole)

    def places(node: Any, location: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        return [location, *(place for key, child in items for place in places(child, (*location, key)))]

    def put(node: Any, location: tuple[Any, ...], value: Any) -> Any:
        if not location:
            return value
        copy = dict(node) if isinstance(node, dict) else list(node)
        copy[location[0]] = put(node[location[0]], location[1:], value)
        return copy

    raw = (
        "Input should",
        "input_",
        "pydantic",
        "valid ",
        "Extra inputs",
        "Unable to",
        "Value error",
        "Field required",
        "<",
        "something else",
        "tuple",
    )
    refused = 0
    for location in places(whole)[1:]:
        for value in [*JUNK, {**whole, "extra": 1}]:
            try:
                load_config(put(whole, location, value))
            except SettingsError as error:
                refused += 1
                for fault in error.faults:
                    words = fault.sentence.replace("must be <", "").replace("`<", "")
                    assert not any(word in words for word in raw), (location, value, fault.sentence)
                    assert fault.sentence.endswith((".", "?")), fault.sentence
                    assert "`" in fault.sentence, fault.sentence
    assert refused > 500


# ------------------------------------------------------------------------------------------------ what crosses families


CROSS = {
    "tasks: {sts: {head: cosine}}": "`tasks/sts/head` kind 'cosine' compares two vectors per pair, but "
    "`tasks/sts/pair_encoding` is cross. "
    "Use pair_encoding: bi.",
    "tasks: {pairs: {head: sbert}, all: {pair_encoding: cross}}": "`tasks/pairs/head` kind 'sbert' compares two "
    "vectors per pair, but "
    "`tasks/all/pair_encoding` is cross. Use pair_encoding: bi.",
    "tasks: {sst: {head: sbert}}": "`tasks/sst/head` kind 'sbert' compares two vectors per pair, but task sst has one "
    "sentence. Set it for `pairs`, not for all.",
    "tasks: {all: {batch_size: 2}, sts: {loss: pearson}}": "`tasks/all/batch_size` must be >= 3 for a gradient of loss "
    "kind 'pearson'. Got 2. Use larger batches of sts, or another loss.",
    "tasks: {sts: {loss: cross_entropy}}": "`tasks/sts/loss` kind 'cross_entropy' does not fit task sts, which is "
    "regression; it fits: "
    "classification. Set it for the task it is meant for.",
    "{gradient: pcgrad, task_schedule: proportional}": "`gradient` kind 'pcgrad' needs several tasks per step, but "
    "task_schedule kind "
    "'proportional' over 3 tasks gives one. Use gradient: sum, or a schedule that gives several.",
    "{gradient: gradvac, train_on: [sst]}": "`gradient` kind 'gradvac' needs several tasks per step, but task_schedule kind "
    "'round_robin' over 1 task gives one. Use gradient: sum, or a schedule that gives several.",
    "stages: [{kind: multitask, gradient: pcgrad, task_schedule: proportional}]": "`stages/0/multitask/gradient` kind "
    "'pcgrad' needs several "
    "tasks per step, but task_schedule kind 'proportional' over 3 tasks gives one. Use gradient: sum, or a schedule "
    "that gives several.",
    "{gradient: pcgrad, stages: [{kind: single_task, task: para}, {kind: multitask, task_schedule: drop}]}": "`gradient` kind "
    "'pcgrad' needs several tasks per step, but task_schedule kind 'drop' over 3 tasks gives one. Use gradient: sum, or a "
    "schedule that gives several.",
    "stages: [{kind: single_task, task: par}, multitask]": "`stages/0/single_task/task` 'par' is not in train_on; did you mean "
    "'para'? Known: para, sst, sts.",
    "{train_on: [sst, sts], stages: [multitask, {kind: single_task, task: para}]}": "`stages/1/single_task/task` 'para' is not "
    "in train_on. Known: sst, sts.",
    "tasks: {sts: {head: cosine, pair_encoding: bi, loss: classes}}": "`tasks/sts/head` kind 'cosine' has one output, but task "
    "sts has 6 classes under loss kind 'classes'.",
    "tasks: {sts: {pair_encoding: bi, loss: cosine_embedding}}": "`tasks/sts/loss` kind 'cosine_embedding' trains only the "
    "encoder, but `tasks/sts/head` kind 'linear' needs training. Use head: cosine.",
    "{tasks: {all: {head: mlp}, pairs: {pair_encoding: bi}, para: {loss: cosine_embedding}}}": "`tasks/para/loss` kind "
    "'cosine_embedding' trains only the encoder, but `tasks/all/head` kind 'mlp' needs training. Use head: cosine.",
    "{train_on: [para], objective: para, tasks: {all: {pair_encoding: bi, head: cosine, loss: cosine_embedding}}}": "`tasks/"
    "all/head` kind 'cosine' separates the classes of para at cosine 0, which must be between the loss's margin 0 and 1. Set "
    "its offset to -2.5.",
    "tasks: {sst: {loss: cosine_embedding}}": "`tasks/sst/loss` kind 'cosine_embedding' does not fit task sst, which is "
    "classification; it fits: regression, binary. Set it for the task it is meant for.",
    "{train_on: [para, sts], "
    "tasks: {pairs: {pair_encoding: bi, head: {kind: cosine, offset: -2.5}, loss: cosine_embedding}}, "
    "stages: [linear_probe, multitask]}": "`stages/0` kind 'linear_probe' trains only heads, but the losses of para, sts "
    "train only the encoder. Use another loss, or remove this stage.",
    "encoder: tiny": "`encoder` tiny knows the toy corpus's words only, but `data` is 'data'. Use data: toy, or a "
    "pretrained encoder.",
    "train_on: [sst, stz]": "Unknown task in `train_on` 'stz'; did you mean 'sts'? Known: cfimdb, para, sst, sts.",
    "train_on: [sst, sst]": "`train_on` names a task twice. Got ['sst', 'sst'].",
    "{train_on: [sst, para], objective: sts}": "Unknown `objective` 'sts'; did you mean 'sst'? Known: mean, norm, para, sst.",
    "{train_on: [sst], objective: {weights: {sts: 1}}}": "`objective/weights/sts` weighs a task that is not in "
    "train_on ['sst'].",
    "{train_on: [sst], loss_weights: {kind: static, weights: {sts: 1}}}": "`loss_weights/static/weights/sts` weighs a "
    "task that is not in "
    "train_on ['sst'].",
    "{loss_weights: famo, task_schedule: alternate}": "`loss_weights` kind 'famo' needs several tasks per step, but "
    "task_schedule kind 'alternate' gives one. Use another, or a schedule that gives several.",
    "optimizer: {per_task: true}": "`optimizer/per_task` needs one task per step, but task_schedule kind 'round_robin' gives "
    "3. Use per_task: false, or a schedule that gives one, such as alternate.",
    "stages: [{kind: multitask, optimizer: {per_task: true}}]": "`stages/0/multitask/optimizer/per_task` needs one task per "
    "step, but task_schedule kind 'round_robin' gives 3. Use per_task: false, or a schedule that gives one, such as alternate.",
    "gradient: {kind: pcgrad, groups: [[sst, stz]]}": "`gradient/pcgrad/groups` holds 'stz', which is not in train_on; did "
    "you mean 'sts'? Known: para, sst, sts.",
    "stages: [{kind: multitask, gradient: {kind: cagrad, groups: [[sst], [para, sst]]}}]": "`stages/0/multitask/gradient/"
    "cagrad/groups` holds sst twice; a task's gradient is in one sum.",
    "gradient: {kind: pcgrad, groups: [[sst, sts, para]]}": "`gradient/pcgrad/groups` sums the gradients of all tasks of the "
    "stage, sst, para, sts, which leaves nothing to merge. Leave one out of the group, or use gradient: sum.",
    "stages: [{kind: multitask, gradient: {kind: gradvac, groups: [[sst, sts, para]]}}]": "`stages/0/multitask/gradient/"
    "gradvac/groups` sums the gradients of all tasks of the stage, sst, para, sts, which leaves nothing to merge. Leave one "
    "out of the group, or use gradient: sum.",
    "{smoothness: r_drop, encoder: {hidden_dropout: 0, attention_dropout: 0}, "
    "tasks: {sts: {head: {kind: linear, dropout: 0}}}}": "`smoothness` kind 'r_drop' compares passes under different dropout "
    "masks, but sts has no dropout. Use a dropout above 0, or smoothness: none.",
    "stages: [{kind: multitask, share: 0.5}]": "The shares in `stages` must sum to 1. They sum to 0.5: less than the "
    "whole, and every "
    "stage has one.",
    "stages: [{kind: multitask, share: 0.7}, {kind: multitask, share: 0.6}, multitask]": "The shares in `stages` sum "
    "to 1.3 and leave "
    "nothing for the 1 without one.",
}


@pytest.mark.parametrize("text", CROSS)
def test_settings_that_cannot_go_together_are_refused(text: str, tmp_path: Path) -> None:
    assert faults(tmp_path, text) == [f"1: {CROSS[text]}"]


def test_cosine_is_refused_for_a_task_with_classes(tmp_path: Path) -> None:
    found = faults(tmp_path, "tasks: {sst: {head: cosine}}")
    assert "1: `tasks/sst/head` kind 'cosine' has one output, but task sst has 5 classes." in found


def test_a_loss_that_compares_vectors_is_refused_where_a_pair_is_one_sequence() -> None:
    with pytest.raises(SettingsError) as caught:
        load_config({"tasks": {"pairs": {"pair_encoding": "cross"}, "sts": {"loss": "cosine_embedding"}}})
    assert [fault.sentence for fault in caught.value.faults] == [
        "`tasks/sts/loss` kind 'cosine_embedding' compares two vectors per pair, but `tasks/pairs/pair_encoding` is cross. "
        "Use pair_encoding: bi.",
        "`tasks/sts/loss` kind 'cosine_embedding' trains only the encoder, but `tasks/sts/head` kind 'linear' needs "
        "training. Use head: cosine.",
    ]
    pairs = {"pair_encoding": "bi", "head": {"kind": "cosine", "offset": -2.5}, "loss": "cosine_embedding"}
    assert load_config({"tasks": {"pairs": pairs}, "stages": ["linear_probe", "multitask"]}).recipe == "linear_probe+multitask"


def test_what_all_names_and_a_task_cannot_do_is_an_error_at_all(tmp_path: Path) -> None:
    found = faults(tmp_path, "tasks:\n  all:\n    loss: mse\n")
    assert [fault.partition(" kind")[0] for fault in found] == ["3: `tasks/all/loss`"] * 2
    assert "does not fit task para" in found[0]
    assert "does not fit task sst" in found[1]


def test_a_task_that_is_not_trained_is_not_checked() -> None:
    assert load_config({"train_on": ["sst"], "objective": "sst", "tasks": {"sts": {"head": "cosine"}}})


# ---------------------------------------------------------------------------------------------------------- resolution


def test_without_settings_a_task_has_the_defaults_and_the_loss_of_its_kind() -> None:
    plans = {name: TrialConfig().task(name) for name in ("sst", "para", "sts")}
    assert {name: plan.loss for name, plan in plans.items()} == {"sst": CrossEntropy(), "para": Bce(), "sts": Mse()}
    for plan in plans.values():
        assert (plan.pair_encoding, plan.pooling, plan.head, plan.batch_size) == (Cross(), Mean(), Linear(), 16)


def test_a_task_is_resolved_field_by_field_task_over_pairs_over_all_over_default() -> None:
    config = load_config(
        {
            "tasks": {
                "all": {"pooling": "mean", "batch_size": 4, "head": {"kind": "mlp", "hidden": [8], "dropout": 0.3}},
                "pairs": {"pair_encoding": "bi", "batch_size": 8},
                "sts": {"batch_size": 32, "loss": "pearson", "head": {"kind": "mlp", "hidden": [9]}},
            }
        }
    )
    sst, para, sts = (config.task(name) for name in ("sst", "para", "sts"))
    assert (sst.batch_size, para.batch_size, sts.batch_size) == (4, 8, 32)
    assert (sst.pair_encoding, para.pair_encoding, sts.pair_encoding) == (Cross(), Bi(), Bi())
    assert sst.pooling == para.pooling == sts.pooling == Mean()
    assert para.head == Mlp(hidden=(8,), dropout=0.3)
    assert sts.head == Mlp(hidden=(9,), dropout=0.3)  # the same kind: knob by knob
    assert (para.loss, sts.loss) == (Bce(), Pearson())
    assert (sst.vectors, para.vectors) == (1, 2)


def test_another_kind_replaces_the_whole_value() -> None:
    tasks = {"all": {"head": {"kind": "mlp", "hidden": [8], "dropout": 0.3}}, "sts": {"head": {"kind": "linear"}}}
    assert load_config({"tasks": tasks}).task("sts").head == Linear(dropout=0.1)


def test_the_bare_name_of_the_same_kind_changes_nothing() -> None:
    tasks = {"all": {"head": {"kind": "mlp", "hidden": [8]}}, "sts": {"head": "mlp"}}
    assert load_config({"tasks": tasks}).task("sts").head == Mlp(hidden=(8,))


def test_a_stage_inherits_what_it_does_not_override() -> None:
    config = load_config({"gradient": "pcgrad", "optimizer": {"lr": 1e-4},
                          "stages": [{"kind": "multitask", "share": 0.25, "gradient": "sum"}, "multitask"]})  # fmt: skip
    first, second = config.stage_plans()
    assert (first.gradient, second.gradient) == (Sum(), PCGrad())
    assert first.optimizer == second.optimizer == config.optimizer
    assert config.stage_examples({}) == [100_000, 300_000]
    assert config.recipe == "multitask+multitask"


@pytest.mark.parametrize(
    ("stages", "recipe"),
    [
        (["multitask"], "multitask"),
        (["linear_probe", "multitask"], "linear_probe+multitask"),
        ([{"kind": "single_task", "task": "para", "share": 0.3}, "multitask"], "single_task-para+multitask"),
        (["multitask", {"kind": "heads_only", "fresh": True, "lr": 1e-2}], "multitask+heads_only"),
        ([{"kind": "multitask", "task_schedule": {"kind": "sequential", "rounds": 2}}], "multitask-sequential"),
        (["linear_probe", {"kind": "multitask", "task_schedule": "alternate"}], "linear_probe+multitask"),
    ],
)
def test_a_recipe_names_the_stages_their_tasks_and_long_turns_and_nothing_else(stages: list[Any], recipe: str) -> None:
    assert load_config({"stages": stages}).recipe == recipe


def test_the_identity_is_that_of_the_settings_and_not_of_their_order() -> None:
    one, same, other = (
        load_config(settings)
        for settings in ({"seed": 1, "gradient": "pcgrad"}, {"gradient": "pcgrad", "seed": 1}, {"seed": 2})
    )
    assert one.identity == same.identity != other.identity
    assert re.fullmatch("[0-9a-f]{16}", one.identity)


def test_turns_shorter_than_a_batch_are_refused() -> None:
    """In 2,000 examples and 36 rounds STS has turns of 2 examples, which a step of another task could pass over"""
    sizes = {"sst": 8_544, "para": 141_498, "sts": 6_040}
    config = load_config({"budget": {"examples": 2_000}, "task_schedule": {"kind": "sequential", "rounds": 36}})
    sentence = (
        r"`task_schedule/sequential/rounds` must give each task turns of at least a batch, 16 examples\. "
        r"Got 36: 2\.15 examples for sts\. Use 4 or fewer\."
    )
    with pytest.raises(ValueError, match=sentence):
        config.check_turns(sizes)
    load_config({"budget": {"examples": 2_000}, "task_schedule": {"kind": "sequential", "rounds": 4}}).check_turns(sizes)
    single = {"kind": "sequential", "rounds": 99}
    load_config({"train_on": ["sts"], "budget": {"examples": 99}, "task_schedule": single}).check_turns(sizes)  # no turns


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        (  # its own step
            {"budget": {"examples": 480}, "stages": ["multitask", {"kind": "heads_only", "share": 0.0999}]},
            r"`stages/1` kind 'heads_only' must be at least as long as one of its steps, 48 examples\. Got 47\. "
            r"Use a larger share, or a larger budget\.",
        ),
        (  # the stage before ends with a step of 48 examples, which could pass over it
            {"budget": {"examples": 480}, "stages": ["multitask", {"kind": "single_task", "task": "sts", "share": 0.09}]},
            r"`stages/1` kind 'single_task' must be at least as long as a step of the stage before, 48 examples\. Got 43\.",
        ),
        (
            {"stages": ["mlm", {"kind": "linear_probe", "epochs": 1e-9}, {"kind": "multitask", "epochs": 1}]},
            r"`stages/1` kind 'linear_probe' must be .*, 48 examples\. Got 1\. Use more epochs\.",
        ),
        (
            {
                "budget": {"examples": 29},
                "task_schedule": "drop",
                "stages": [{"kind": "linear_probe", "share": 0.5}, "multitask"],
            },
            r"`stages/0` kind 'linear_probe' must be at least as long as one of its steps, 16 examples\. Got 15\.",
        ),
    ],
)
def test_a_stage_that_a_step_could_pass_over_is_refused(document: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        load_config(document).check_turns({"sst": 8_544, "para": 141_498, "sts": 6_040})


def test_a_stage_of_one_step_is_enough_and_the_only_stage_may_be_shorter() -> None:
    sizes, last = {"sst": 8_544, "para": 141_498, "sts": 6_040}, {"kind": "heads_only", "share": 0.1}
    load_config({"budget": {"examples": 480}, "stages": ["multitask", last]}).check_turns(sizes)
    load_config({"budget": {"examples": 1}}).check_turns(sizes)


def test_a_merge_is_asked_only_of_the_stages_that_use_it() -> None:
    """One task alone has no gradients to merge, and a stage of the heads merges none."""
    stages = [{"kind": "single_task", "task": "para"}, {"kind": "linear_probe", "task_schedule": "drop"}, "multitask"]
    plans = load_config({"gradient": "pcgrad", "stages": stages}).stage_plans()
    assert [plan.gradient for plan in plans] == [Sum(), Sum(), PCGrad()]
    assert load_config({"gradient": "gradvac", "stages": [{"kind": "single_task", "task": "sts"}]})


def test_a_stage_has_proximal_terms_and_a_rate_of_its_own() -> None:
    config = load_config({"proximal": {"kind": "bregman", "weight": 0.2}, "optimizer": {"lr": 1e-5, "head_lr_factor": 5},
                          "stages": [{"kind": "linear_probe", "share": 0.1, "lr": 1e-2},
                                     {"kind": "single_task", "task": "para", "proximal": "none"}, "multitask"]})  # fmt: skip
    probe, para, rest = config.stage_plans()
    assert [plan.proximal for plan in (probe, para, rest)] == [NoProximal(), NoProximal(), Bregman(weight=0.2)]
    assert [(plan.optimizer.lr, plan.optimizer.head_lr_factor) for plan in (probe, para, rest)] == [
        (1e-2, 1),
        (1e-5, 5),
        (1e-5, 5),
    ]
    assert config.stage_examples({}) == pytest.approx([40_000, 180_000, 180_000])
    assert [plan.tasks for plan in (probe, para, rest)] == [config.train_on, ("para",), config.train_on]


def test_the_budget_is_examples_or_epochs_of_the_schedule() -> None:
    sizes = {"sst": 160, "para": 1600, "sts": 320}
    assert TrialConfig().num_examples(sizes) == 400_000
    assert load_config({"budget": {"examples": 77}}).num_examples(sizes) == 77
    assert load_config({"budget": {"epochs": 2}}).num_examples(sizes) == 2 * 10 * 3 * 16  # ten batches of the smallest task
    assert load_config({"budget": {"epochs": 0.5}, "task_schedule": "proportional"}).num_examples(sizes) == 1040


def test_stages_may_say_their_own_epochs_each_over_its_tasks_and_by_its_schedule() -> None:
    stages = [
        {"kind": "single_task", "task": "para", "epochs": 1.5},
        {"kind": "multitask", "epochs": 2, "task_schedule": "proportional"},
        {"kind": "heads_only", "epochs": 1},
    ]
    config, sizes = load_config({"stages": stages}), {"sst": 160, "para": 1600, "sts": 320}
    # a pass and a half over para; all rows twice; ten batches of each task, as round_robin has them
    assert config.stage_examples(sizes) == [2400, 2 * 2080, 480]
    assert config.num_examples(sizes) == 7040


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        (
            {"stages": [{"kind": "multitask", "epochs": 2}, "heads_only"]},
            "set for every stage or for none. heads_only has none.",
        ),
        ({"stages": [{"kind": "multitask", "epochs": 2, "share": 0.5}]}, "not both. multitask has both."),
        (
            {"budget": {"examples": 100}, "stages": [{"kind": "multitask", "epochs": 2}]},
            "`budget/examples` is the sum of the stages' own `epochs`. Remove it",
        ),
        ({"budget": {"epochs": 3}, "stages": [{"kind": "multitask", "epochs": 2}]}, "`budget/epochs` is the sum"),
    ],
)
def test_epochs_of_stages_that_do_not_make_a_budget_are_refused(document: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(sentence)):
        load_config(document)


# --------------------------------------------------------------------------------------------------- paths, inverse, YAML


NESTED: list[dict[str, Any]] = [
    {},
    {"gradient": "gradvac"},
    {"gradient": {"kind": "gradvac", "beta": 0.02}, "objective": "sts"},
    {"objective": {"weights": {"sst": 1, "sts": 2.5}}, "loss_weights": {"kind": "static", "weights": {"sst": 2}}},
    {"tasks": {"all": {"head": {"kind": "mlp", "hidden": [768, 256], "dropout": 0.2}},
               "sts": {"loss": "mse", "head": {"kind": "mlp", "hidden": [8]}}}},
    {"tasks": {"pairs": {"pair_encoding": "bi", "head": "sbert"}, "sts": {"head": {"kind": "cosine", "scale": 2.5}}}},
    {"stages": ["multitask", {"kind": "multitask", "share": 0.5}]},
    {"stages": [{"kind": "multitask", "share": 0.2, "optimizer": {"lr": 1e-3, "clip": None}, "smoothness": "none"},
                {"kind": "multitask", "gradient": {"kind": "gradvac", "per": "model"}, "task_schedule": {"kind": "mix"}},
                *["multitask"] * 10]},
    {"proximal": {"kind": "bregman", "late_beta": None}, "machine": {"micro_batch_tokens": 512, "gpu_share": 0.5},
     "optimizer": {"lr_schedule": "cosine", "layer_decay": 0.9}},
    {"stages": ["linear_probe", {"kind": "single_task", "task": "para", "share": 0.3, "proximal": "bregman"},
                {"kind": "heads_only", "fresh": True, "lr": 1e-2, "task_schedule": {"kind": "sequential", "rounds": 5}}]},
    {"tasks": {"pairs": {"pair_encoding": "bi", "head": {"kind": "cosine", "offset": -3},
                         "loss": {"kind": "cosine_embedding", "margin": 0.2}},
               "sts": {"head": "linear", "loss": {"kind": "classes", "classes": 11}}}},
    {"train_on": ["sts"], "optimizer": {"clip": None}, "encoder": {"checkpoint": "x/y", "hidden_dropout": 0.0}},
    {"task_schedule": {"kind": "proportional", "alpha": 1, "alpha_end": None}, "budget": {"epochs": 1.5, "points": [1, 3]}},
]  # fmt: skip


@pytest.mark.parametrize("document", NESTED)
def test_unflatten_is_the_inverse_of_flatten(document: dict[str, Any]) -> None:
    config = load_config(document)
    assert load_config(unflatten(flatten(as_written(config)))) == config
    assert load_config(unflatten(flatten(document))) == config  # bare names and all


@pytest.mark.parametrize("document", NESTED)
def test_the_order_of_paths_does_not_matter_to_unflatten(document: dict[str, Any]) -> None:
    flat = flatten(as_written(load_config(document)))
    assert load_config(unflatten(dict(reversed(flat.items())))) == load_config(document)


@pytest.mark.parametrize("document", NESTED)
def test_a_config_reloads_from_its_own_yaml_to_the_same(document: dict[str, Any], tmp_path: Path) -> None:
    config = load_config(document)
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(as_written(config)))
    again = read_config(path)
    assert again == config
    assert as_written(again) == as_written(config)


def random_choice(generator: random.Random) -> Any:
    def choose(name: str, domain: Domain) -> Any:
        if isinstance(domain, Choice):
            return generator.choice(domain.labels)
        value = generator.uniform(domain.low, domain.high)
        return round(value) if domain.kind == "int" else value

    return choose


def points(space: Space) -> list[TrialConfig]:
    generator = random.Random(0)
    baselines = [space.baseline(i) for i in range(len(space.baselines))]
    return [sample.config() for sample in (*baselines, *(space.sample(random_choice(generator)) for _ in range(20)))]


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_every_point_of_every_space_survives_its_paths_and_its_yaml(path: Path) -> None:
    for config in points(read_space(path)):
        assert load_config(unflatten(flatten(as_written(config)))) == config
        assert load_config(parse_yaml(dump_yaml(as_written(config)))[0]) == config


def test_a_path_names_the_kind_it_passes_through() -> None:
    document = {
        "gradient": {"kind": "gradvac", "beta": 0.02},
        "stages": [{"kind": "multitask", "optimizer": {"lr": 1e-3}}],
        "train_on": ["sst"],
    }
    assert flatten(document) == {
        "gradient": "gradvac",
        "gradient/gradvac/beta": 0.02,
        "stages/0": "multitask",
        "stages/0/multitask/optimizer/lr": 1e-3,
        "train_on": ["sst"],
    }


def test_what_nobody_set_is_left_out_and_what_was_set_stays_though_it_is_the_default() -> None:
    config = load_config({"optimizer": {"lr": 2e-5}, "gradient": "sum", "tasks": {"all": {"head": "mlp"}}})
    assert as_written(config) == {
        "tasks": {"all": {"head": {"kind": "mlp"}}},
        "gradient": {"kind": "sum"},
        "optimizer": {"lr": 2e-5},
    }


def test_maps_merge_and_lists_scalars_and_other_kinds_replace() -> None:
    base = {"a": {"x": 1, "y": [1, 2]}, "b": {"kind": "mlp", "hidden": [1], "dropout": 0.5}, "c": "sum"}
    assert lay_over(base, {"a": {"y": [3]}}) == {**base, "a": {"x": 1, "y": [3]}}
    assert lay_over(base, {"b": {"kind": "mlp", "hidden": [2]}})["b"] == {"kind": "mlp", "hidden": [2], "dropout": 0.5}
    assert lay_over(base, {"b": {"dropout": 0.1}})["b"] == {"kind": "mlp", "hidden": [1], "dropout": 0.1}
    assert lay_over(base, {"b": {"kind": "linear"}})["b"] == {"kind": "linear"}
    assert lay_over(base, {"b": "linear"})["b"] == "linear"
    assert lay_over(base, {"b": "mlp"}) == base
    assert lay_over(base, {"c": {"kind": "sum", "z": 1}})["c"] == {"kind": "sum", "z": 1}


def test_numbered_keys_over_a_list_change_its_entries_and_leave_the_others() -> None:
    base = ["linear_probe", {"kind": "multitask", "share": 0.5}, {"kind": "heads_only", "lr": 1e-3}]
    assert lay_over(base, {"0": {"kind": "linear_probe", "lr": 1e-2}, "2": {"lr": 1e-4}}) == [
        {"kind": "linear_probe", "lr": 1e-2},
        {"kind": "multitask", "share": 0.5},
        {"kind": "heads_only", "lr": 1e-4},
    ]
    assert lay_over(base, {"1": {"kind": "single_task", "task": "sts"}})[1] == {"kind": "single_task", "task": "sts"}
    assert lay_over([16, 8], {"1": 4}) == [16, 4]
    assert base[2] == {"kind": "heads_only", "lr": 1e-3}  # as it was


@pytest.mark.parametrize("top", [{"3": {"lr": 1.0}}, {"0": {"lr": 1.0}, "7": "multitask"}, {"-1": {"lr": 1.0}}, {"0x": 1}, {}])
def test_keys_that_number_no_entry_of_a_list_are_not_taken_for_entries(top: dict[str, Any]) -> None:
    """They replace the list, and what reads the config says that there must be one."""
    laid = lay_over({"stages": ["linear_probe", "multitask", "heads_only"]}, {"stages": top})
    assert laid == {"stages": top}
    with pytest.raises(SettingsError, match=r"`stages` must be a list\. Got \{"):
        load_config(laid)


# ------------------------------------------------------------------------------------------------------ knobs, defaults


@pytest.mark.parametrize(
    ("path", "default"),
    [
        ("optimizer/lr", 5e-5),
        ("gradient", "sum"),
        ("gradient/gradvac/beta", 0.01),
        ("task_schedule/proportional/alpha_end", None),
        ("tasks/all/head", "linear"),
        ("tasks/sts/head/mlp/hidden", [768]),
        ("tasks/pairs/batch_size", 16),
        ("tasks/sts/loss", "mse"),
        ("stages/1/multitask/share", None),
        ("stages/0/linear_probe/lr", 1e-3),
        ("stages/2/heads_only/fresh", False),
        ("stages/0/single_task/task", NO_DEFAULT),
        ("proximal", "none"),
        ("proximal/bregman/late_beta", 0.999),
        ("machine/micro_batch_tokens", None),
        ("train_on", ["sst", "para", "sts"]),
        ("stages", ["multitask"]),
    ],
)
def test_the_default_at_a_path_is_what_a_config_has_there(path: str, default: object) -> None:
    assert default_at(path) == default


@pytest.mark.parametrize(
    "path", ["tasks/all/loss", "tasks/all/foo", "gradient/foo/beta", "gradient/beta", "foo", "together/step"]
)
def test_where_nothing_stands_or_it_depends_there_is_no_default(path: str) -> None:
    assert default_at(path) is NO_DEFAULT


def test_the_walk_knows_kinds_keys_and_what_is_not_there() -> None:
    def at(path: str) -> Any:
        return knob_at(TrialConfig, path)

    assert list(at("gradient").kinds)[:3] == ["sum", "pcgrad", "gradvac"]
    assert at("gradient/gradvac").keys == ["beta", "per", "groups"]
    assert at("stages").holds_many
    assert {"multitask", "single_task", "linear_probe", "heads_only"} <= set(at("stages/0").kinds)
    assert at("stages/0/linear_probe").keys == ["share", "epochs", "lr", "task_schedule"]
    assert list(at("stages/1/multitask/proximal").kinds)[:2] == ["none", "bregman"]
    assert {"linear", "mlp", "sbert", "cosine"} <= set(at("tasks/mine/head").kinds)
    assert set(at("tasks/mine").keys) == {*TASK_DEFAULTS, "loss"}
    assert at("gradient/gradvac/beta/x") is None
    assert at("optimizer/gradvac") is None


# ---------------------------------------------------------------------------------------------------------------- seeds


def test_a_seed_is_a_pure_function_of_its_parts_for_ever() -> None:
    assert seed_of(0, "heads") == 9137769045169395682
    assert seed_of(0, "heads") != seed_of(0, "masks") != seed_of(1, "masks")
    assert seed_of(1, 23) != seed_of(12, 3)
    assert 0 <= seed_of("x") < 2**63


def test_a_copy_with_other_settings_resolves_its_tasks_again() -> None:
    config = load_config({"tasks": {"all": {"batch_size": 4}}})
    assert config.task("sst").batch_size == 4
    other = config.model_copy(update={"tasks": load_config({"tasks": {"all": {"batch_size": 2}}}).tasks})
    assert other.task("sst").batch_size == 2
    assert config.task("sst").batch_size == 4
