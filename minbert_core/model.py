"""MultitaskBert: one encoder, and one pooling, pair encoding and head per task. It can be saved, loaded, and queried.

    PackedBatch -> encoder -> hidden_ND -> pooling -> (S, D) -> pair encoding -> features_BF -> head -> logits_BK
    if configured: adapters parallel to the encoder's layers, and after the pooling a layer that the tasks share

    load("runs/smart/best").predict(["A moving film.", ("Is it far?", "How far is it?")])  -> one Answer per input and task

B examples, S sequences (B, or 2B for a pair under a bi-encoder), N packed tokens, D hidden size, F features, K outputs.
A saved model is a folder: encoder/ (Hugging Face layout, tokenizer included), heads.safetensors, config.yaml, README.md.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from minbert_core.checkpoints import load_encoder, save_encoder
from minbert_core.config import FORMAT, TaskPlan, TrialConfig
from minbert_core.config_checks import read_config
from minbert_core.data.packed import PackedBatch, Span
from minbert_core.data.tables import has_lone_surrogate
from minbert_core.data.tasks import Task
from minbert_core.data.tokens import TokenisedTexts, Tokenizer, load_tokenizer, pack, tokenise_texts
from minbert_core.encoder import Encoder, Masks
from minbert_core.encoder_fit import check_encoder
from minbert_core.files import replaced, user_path
from minbert_core.machine import choose_attention_kernel, in_precision, resolve_device, resolve_precision, tokens_per_pass
from minbert_core.memory import DoesNotFitError, is_out_of_memory, reason_of, release
from minbert_core.methods.adapters import Adapter
from minbert_core.methods.shared_layers import SharedLayer
from minbert_core.plugins import write_copies
from minbert_core.seeds import seed_of
from minbert_core.settings.paths import as_written
from minbert_core.settings.yaml import dump_yaml
from minbert_core.tensor_files import load_metadata, load_tensors, save_tensors

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")
HEADS = "heads.safetensors"
README = """\
A multitask BERT: encoder/ (Hugging Face layout, tokenizer included), heads.safetensors (one head per task), config.yaml.

    python -m minbert_core.predict FOLDER "a sentence"               # or two sentences, for tasks on pairs
    minbert_core.model.load(FOLDER).predict(["a sentence", ("one", "another")])

FOLDER is the folder of this file. Its encoder/ loads in transformers' AutoModel, but without the heads it answers no task.
"""


Drop = Callable[[Tensor, float], Tensor]  # (x, rate) -> x with dropout
Numbers = NDArray[np.float64]


class Output(NamedTuple):
    """The result of a pass, in float32: logits (B, K) of the head, and the features (B, F) that it read."""

    logits_BK: Tensor
    features_BF: Tensor


class MultitaskBert(nn.Module):
    """One shared encoder and one head per task. Dropout is drawn from `masks`, so there is no train or eval mode to forget."""

    def __init__(
        self, encoder: Encoder, plans: Mapping[str, TaskPlan], seed: int, adapter: Adapter, shared_layer: SharedLayer
    ) -> None:
        """Draw everything new from (seed, what, task) only: the same for every encoder, method and order of tasks.

        Raises ValueError if the adapter does not fit the encoder.
        """
        super().__init__()
        self.encoder = encoder
        self.plans = dict(plans)
        self.adapter, self.sharing = adapter, shared_layer
        with _seeded(seed, "shared_layer"):
            self.shared_layer = shared_layer.build(encoder.shape.hidden_size)
        self.heads, self.poolings, self.adapters = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for task in self.plans:
            self.heads[task] = self._new_head(task, seed)
            if pooling := self._new_pooling(task, seed):
                self.poolings[task] = pooling
            with _seeded(seed, "adapter", task):
                if parallel := adapter.build(encoder.shape):
                    self.adapters[task] = parallel

    def _new_head(self, task: str, seed: int) -> nn.Module:
        plan = self.plans[task]
        # a logit in label units begins in the middle of the labels; the logits of classes begin equal
        middle = sum(plan.task.label_range) / 2 if plan.task.kind == "regression" and plan.outputs == 1 else 0.0
        width = self.sharing.size if self.sharing.serves(plan.task.is_pair) else self.encoder.shape.hidden_size
        with _seeded(seed, "head", task):
            return plan.head.build(plan.vectors * width, plan.outputs, middle)

    def _new_pooling(self, task: str, seed: int) -> nn.Module | None:
        with _seeded(seed, "pooling", task):
            return self.plans[task].pooling.build(self.encoder.shape.hidden_size)

    def shared_groups(self, with_encoder: bool) -> dict[str, list[nn.Parameter]]:
        """Return the parameters whose task gradients are merged, by group: the encoder's trained ones if the stage trains the
        encoder, and the shared layer in every stage."""
        groups = self.adapter.groups(self.encoder) if with_encoder else {}
        return groups | ({"shared_layer": list(self.shared_layer.parameters())} if self.shared_layer else {})

    @property
    def shares_passes(self) -> bool:
        """Whether several tasks may go through the encoder together: none has its own module in there."""
        return not self.adapters

    def reads(self, task: str, group: str) -> bool:
        """Return whether `task` has a gradient in a group of `shared_groups`: some do not read the pooler or shared layer."""
        plan = self.plans[task]
        exceptions = {"pooler": plan.pooling.uses_pooler, "shared_layer": self.sharing.serves(plan.task.is_pair)}
        return exceptions.get(group, True)

    def own_parameters(self, task: str, with_encoder: bool) -> list[tuple[str, nn.Parameter]]:
        """Return the parameters that only `task` trains, by name: its head, its pooling, and its adapter with the encoder.

        If the task's loss reads features, its head stays as it was built, even where a penalty would move it.
        """
        parameters = [] if self.plans[task].loss.reads_features else list(self.heads[task].named_parameters(task))
        if task in self.poolings:
            parameters += self.poolings[task].named_parameters(f"{task}.pooling")
        if task in self.adapters and with_encoder:
            parameters += self.adapters[task].named_parameters(f"{task}.adapter")
        return parameters

    @torch.no_grad()
    def renew_head(self, task: str, seed: int) -> None:
        """Draw the head of `task` and the parameters of its pooling again, in place."""
        pairs = [(self.heads[task], self._new_head(task, seed))]
        if pooling := self._new_pooling(task, seed):
            pairs.append((self.poolings[task], pooling))
        for old, new in pairs:
            for parameter, values in zip(old.parameters(), new.parameters(), strict=True):
                parameter.copy_(values)

    def modules_by_prefix(self) -> dict[str, nn.Module]:
        """Return all modules but the encoder, by the prefix of their tensors' names in heads.safetensors."""
        parts = {"": self.heads, "poolings/": self.poolings, "adapters/": self.adapters}
        return parts | ({"shared_layer/": self.shared_layer} if self.shared_layer else {})

    def readout(self, task: str, logits_BK: Tensor) -> Tensor:
        """Compute what the task's metric reads, (B, outputs of the task): the logits, or the answer of a loss with classes."""
        plan = self.plans[task]
        return plan.loss.readout(logits_BK, plan.task.label_range)

    def forward(
        self,
        task: str,
        batch: PackedBatch,
        masks: Masks | None = None,
        noise_ND: Tensor | None = None,
        encoder_drops: bool = True,
    ) -> Output:
        """Run a pass over a batch of one task.

        `masks` draws the dropout (None: no dropout), with encoder_drops False only in the head. noise_ND is added to the
        word embeddings, before position and LayerNorm.
        """
        return self.together({task: len(batch.lengths)}, batch, masks, noise_ND, encoder_drops)[task]

    def together(
        self,
        sequences: Mapping[str, int],
        batch: PackedBatch,
        masks: Masks | None = None,
        noise_ND: Tensor | None = None,
        encoder_drops: bool = True,
    ) -> dict[str, Output]:
        """Run one pass over a batch whose sequences belong to several tasks: task -> their number, in the batch's order.

        A task with its own module parallel to the encoder's layers must be the only one.
        """
        spans = self.spans(sequences)
        tasks_with_adapters = [task for task in sequences if task in self.adapters]
        assert not tasks_with_adapters or len(sequences) == 1, "tasks that have their own adapters cannot share a pass"
        parallel = self.adapters[tasks_with_adapters[0]] if tasks_with_adapters else None
        hidden_RD = self.encoder(batch, masks if encoder_drops else None, noise_ND, parallel=parallel, spans=spans)
        reading = batch.reading(spans)
        of_tasks = [hidden_RD] if len(reading.rows) == 1 else hidden_RD.split(reading.rows)
        drop = masks if masks is not None else _no_dropout
        parts = zip(sequences, of_tasks, reading.starts_S1, strict=False)  # padding, if any, comes last
        return {task: self._answer(task, hidden, starts_S1, drop) for task, hidden, starts_S1 in parts}

    def spans(self, sequences: Mapping[str, int]) -> tuple[Span, ...]:
        """Return how the sequences of tasks are read: task -> their number."""
        return tuple(Span(number, self.plans[task].pooling.reads_only_first) for task, number in sequences.items())

    def _answer(self, task: str, hidden_RD: Tensor, starts_S1: Tensor, drop: Drop) -> Output:
        """Answer a task from the last hidden states that its pooling reads."""
        plan = self.plans[task]
        pooling = self.poolings[task] if task in self.poolings else self.encoder.pooler  # noqa: SIM401  a ModuleDict has no `get`
        pooled_SD = plan.pooling.pool(hidden_RD, starts_S1, pooling)
        # heads are small, so they stay in float32 under autocast: bfloat16 would round a similarity of 4.5 to steps of 1/32
        with torch.autocast(pooled_SD.device.type, enabled=False):
            pooled_SD = pooled_SD.float()
            if self.shared_layer and self.sharing.serves(plan.task.is_pair):
                pooled_SD = self.shared_layer(pooled_SD, drop)
            features_BF = plan.pair_encoding.features(pooled_SD) if plan.vectors == 2 else pooled_SD
            logits_BK: Tensor = self.heads[task](features_BF, drop)
        return Output(logits_BK, features_BF)


def _no_dropout(x: Tensor, p: float) -> Tensor:
    return x


@contextlib.contextmanager
def _seeded(seed: int, *purpose: str) -> Iterator[None]:
    """Seed torch's generator for one purpose, and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, *purpose))
        yield


def build_model(config: TrialConfig, encoder: Encoder) -> MultitaskBert:
    """Build a fresh model for `config` around `encoder`, which is adapted in place.

    Raises ValueError if the adapter does not fit the encoder.
    """
    config.adapter.adapt(encoder, partial(seed_of, config.seed, "adapter"))
    return _model_around(encoder, config)


def _model_around(encoder: Encoder, config: TrialConfig) -> MultitaskBert:
    plans = {name: config.task(name) for name in config.train_on}
    return MultitaskBert(encoder, plans, config.seed, config.adapter, config.shared_layer)


def save_model(model: MultitaskBert, config: TrialConfig, folder: Path, tokenizer_folder: Path) -> None:
    """Write the model as a folder that `load_model` reads, durable. A half-written model never has the final name.

    There must be one writer per folder. Drafts that a killed writer left behind are removed.
    """
    with replaced(folder, durable=True) as draft:
        save_encoder(model.encoder, draft / "encoder")
        for name in TOKENIZER_FILES:
            if (tokenizer_folder / name).exists():
                shutil.copyfile(tokenizer_folder / name, draft / "encoder" / name)
        parts = {prefix: part.state_dict() for prefix, part in model.modules_by_prefix().items()}
        heads = {prefix + name: part[name].contiguous() for prefix, part in parts.items() for name in part}
        save_tensors(heads, draft / HEADS, metadata={"format": str(FORMAT)})
        write_copies(config.plugins, draft)
        (draft / "README.md").write_text(README, encoding="utf-8")
        (draft / "config.yaml").write_text(dump_yaml(as_written(config)), encoding="utf-8")


def load_model(folder: Path) -> tuple[MultitaskBert, TrialConfig]:
    """Read the model and config that `save_model` wrote.  Raises ValueError if the folder is not such a model.

    The encoder is a plain one: the changes of an adapter are merged into its weights.
    """
    if reason := _no_model(folder):
        raise ValueError(reason)
    folder = folder.resolve()  # `best` of an older search is a link that may lead to another model at any time: follow it once
    inode = folder.stat().st_ino
    _check_format(folder)
    config = read_config(folder / "config.yaml")
    dropout = config.encoder.hidden_dropout, config.encoder.attention_dropout
    model = _model_around(load_encoder(folder / "encoder", *dropout), config)
    try:
        _load_modules(model, load_tensors(folder / HEADS))
    except RuntimeError as error:  # torch's, for a key or a shape that does not fit
        raise ValueError(f"{folder / HEADS} does not fit its config.yaml ({str(error).splitlines()[0]}).") from None
    if folder.stat().st_ino != inode:  # the trial has just saved a better model: these heads may fit another encoder
        return load_model(folder)
    return model, config


def _check_format(folder: Path) -> None:
    """Raise ValueError if another version saved the model: its config.yaml may not mean the same here."""
    saved_format = load_metadata(folder / HEADS).get("format", "1")
    if saved_format != str(FORMAT):
        raise ValueError(
            f"{folder} is a model of format {saved_format}, whose config has other defaults. This version loads format "
            f"{FORMAT}. Load it with the version that saved it, or train it again."
        )


def _load_modules(model: MultitaskBert, stored: dict[str, Tensor]) -> None:
    """Load everything in heads.safetensors into the model.  Raises torch's RuntimeError if it does not fit."""
    parts: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in model.modules_by_prefix()}
    for name, tensor in stored.items():  # a task's name holds no slash
        part, slash, rest = name.rpartition("/")
        parts.setdefault(part + slash, {})[rest] = tensor
    if foreign := parts.keys() - model.modules_by_prefix().keys():
        raise RuntimeError(f"it holds {', '.join(sorted(foreign))}")
    for prefix, module in model.modules_by_prefix().items():
        module.load_state_dict(parts[prefix])


def _no_model(folder: Path) -> str:
    """Explain in a sentence why a folder is not a saved model and what it is instead; empty if it is one."""
    absent = [name for name in (HEADS, "config.yaml", "encoder") if not (folder / name).exists()]
    if not absent:
        return ""
    if not folder.is_dir():
        return f"There is no folder {folder}."
    if (folder / "best" / HEADS).exists():
        return f"{folder} is not a model, but contains one. Use {folder / 'best'}."
    if (folder / "config.json").exists() and (folder.parent / HEADS).exists():
        return f"{folder} is the encoder of a model, without the heads. Use the model: {folder.parent}."
    if (folder / "config.json").exists():
        return f"{folder} is a Hugging Face checkpoint, without heads for our tasks. Train them: `encoder: {folder}`."
    return f"{folder} is not a saved model: it lacks {', '.join(absent)}."


# ---------------------------------------------------------------------------------------------------------------- answers


def predict_logits(
    model: MultitaskBert,
    task: str,
    texts: TokenisedTexts,
    max_length: int,
    specials: tuple[int, int],
    precision: str = "float32",
    poll: Callable[[], None] | None = None,
) -> NDArray[np.float32]:
    """Compute what the metric reads of every row, shape (rows, K), in the order of `texts`: the logits, or their readout.

    K is the task's number of outputs; `precision` is that of the matrix products. A pass that does not fit into memory is
    repeated with half as many tokens. `poll` is called after each pass.  Raises DoesNotFitError if a single row does not fit.
    """
    plan = model.plans[task]
    device = next(model.parameters()).device
    encoding = plan.pair_encoding.kind
    lengths = texts.lengths(encoding, max_length)
    logits = np.zeros((len(texts), plan.task.outputs), dtype=np.float32)

    def answer(rows: NDArray[np.int64]) -> None:
        packed = pack(texts, rows, encoding, max_length, specials)
        batch = packed.prepared(model.spans({task: len(packed.lengths)}), device, precision == "bfloat16")
        with in_precision(precision, device):
            logits_BK = model(task, batch).logits_BK
        logits[rows] = model.readout(task, logits_BK).cpu().numpy()
        if poll is not None:
            poll()

    with torch.inference_mode():
        _in_passes(answer, np.argsort(lengths, kind="stable"), lengths, device)
    return logits


def _in_passes(
    answer: Callable[[NDArray[np.int64]], None], rows: NDArray[np.int64], lengths: NDArray[np.int64], device: torch.device
) -> None:
    """Answer `rows` in passes of as many tokens as suit the device, or of half as many for as long as a pass does not fit."""
    budget = tokens_per_pass(device)
    waiting = _token_budget(rows, lengths, budget)
    while waiting:
        try:
            answer(waiting[0])
            del waiting[0]
            continue
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = reason_of(error)
        release(device)
        tokens = int(lengths[waiting[0]].sum())
        if len(waiting[0]) == 1:
            raise DoesNotFitError(
                f"An evaluation does not fit, even with one example of {tokens:,} tokens per pass ({reason})."
            )
        budget = max(1, min(budget, tokens) // 2)
        waiting = _token_budget(np.concatenate(waiting), lengths, budget)


def _token_budget(rows: NDArray[np.int64], lengths: NDArray[np.int64], budget: int) -> list[NDArray[np.int64]]:
    """Cut `rows`, in their order, into groups of about `budget` tokens, at most one row more, never empty."""
    group = np.cumsum(lengths[rows]) // budget
    return np.split(rows, np.flatnonzero(np.diff(group)) + 1) if len(rows) else []


def predictions(task: Task, logits_BK: NDArray[np.float32]) -> NDArray[np.float64]:
    """Convert logits to a task's answers, shape (B,): the class, 0.0 or 1.0, or the score in label units."""
    if task.kind == "classification":
        classes_B: NDArray[np.float64] = logits_BK.argmax(axis=1).astype(np.float64)
        return classes_B
    if task.kind == "binary":
        return (logits_BK[:, 0] > 0).astype(np.float64)  # a probability of exactly one half rounds to even: 0
    return logits_BK[:, 0].astype(np.float64)


@dataclass(frozen=True)
class Answer:
    """A model's answer to one input for one task; `dataclasses.asdict` turns it into plain data.

    `value` is what the metric and the prediction files read: the number of the class (0 or 1 in a binary task). A regression
    gives label units, not clipped to the label range: under a loss without a scale (pearson), clipping would lose answers.
    `label` is the class's name, `probabilities` are those of all classes by name; a regression has neither.
    `is_cut`: the input had more than the model's `max_length` tokens, so its end was not read.
    """

    value: float
    label: str
    probabilities: dict[str, float]
    is_cut: bool

    def __str__(self) -> str:
        return f"{self.label} ({self.probabilities[self.label]:.0%})" if self.label else f"{self.value:.2f}"


@dataclass(frozen=True)
class Predictor:
    """A saved model, ready to answer: on a GPU in the precision of its evaluation, on the CPU in float32."""

    model: MultitaskBert
    config: TrialConfig
    tokenizer: Tokenizer

    @property
    def tasks(self) -> dict[str, Task]:
        """The model's tasks: one with a single text column takes a sentence, one with two takes a pair."""
        return {name: plan.task for name, plan in self.model.plans.items()}

    @property
    def remark(self) -> str:
        """What to print after the name of a model that was trained on its dev rows; empty for all others."""
        return " (trained on train+dev: no dev score can be shown)" if self.config.rows != "train" else ""

    def predict(self, inputs: Sequence[str | tuple[str, str]]) -> list[dict[str, Answer]]:
        """Answer each input, a sentence or a pair of two, for each task that takes it: one {task: Answer} per input.

        Texts are prepared and cut as in training. The order of the inputs and their neighbours have no influence.
        Raises ValueError for an input that is neither, or empty, or that no task of the model takes.
        """
        examples = _examples(inputs, self.tasks)
        answers: list[dict[str, Answer]] = [{} for _ in examples]
        for name, task in self.tasks.items():
            rows = [i for i, texts in enumerate(examples) if len(texts) == len(task.text_columns)]
            for i, answer in zip(rows, self._answers(name, [examples[i] for i in rows]), strict=True):
                answers[i][name] = answer
        return answers

    def _answers(self, name: str, examples: list[tuple[str, ...]]) -> list[Answer]:
        """Answer examples for one task."""
        values, shares_BC, are_cut = (array.tolist() for array in self.numbers(name, examples))
        classes = self.tasks[name].classes
        if not classes:
            return [Answer(value, "", {}, is_cut) for value, is_cut in zip(values, are_cut, strict=True)]
        return [
            Answer(int(value), classes[int(value)], dict(zip(classes, shares, strict=True)), is_cut)
            for value, shares, is_cut in zip(values, shares_BC, are_cut, strict=True)
        ]

    def numbers(self, name: str, examples: Sequence[tuple[str, ...]]) -> tuple[Numbers, Numbers, NDArray[np.bool_]]:
        """Answer examples for one task, as arrays: values (B,), the classes' probabilities (B, C), is_cut (B,), as in `Answer`.

        Probabilities are the softmax of classes, or the sigmoid of a single logit; a regression has no columns of them.
        """
        plan, max_length = self.model.plans[name], self.config.max_length
        device = next(self.model.parameters()).device
        precision = resolve_precision(self.config.machine.precision, device) if device.type == "cuda" else "float32"
        tokens = tokenise_texts(examples, plan.task, self.tokenizer)
        specials = self.tokenizer.cls_id, self.tokenizer.sep_id
        logits_BK = predict_logits(self.model, name, tokens, max_length, specials, precision)
        are_cut = tokens.are_longer(plan.pair_encoding.kind, max_length)
        values_B = predictions(plan.task, logits_BK)
        if not plan.task.classes:
            return values_B, np.zeros((len(examples), 0)), are_cut
        logits = torch.from_numpy(logits_BK).double()
        shares_BC = (
            logits.softmax(dim=1) if plan.task.kind == "classification" else torch.cat([-logits, logits], dim=1).sigmoid()
        )
        return values_B, shares_BC.numpy(), are_cut


def _examples(inputs: Sequence[str | tuple[str, str]], tasks: Mapping[str, Task]) -> list[tuple[str, ...]]:
    """Convert each input to a tuple of one text or two.  Raises ValueError."""
    if isinstance(inputs, str):
        raise ValueError(f"`predict` takes a list of sentences and pairs. Got one text: write [{inputs!r}].")
    examples = [tuple(item) if isinstance(item, (tuple, list)) else (item,) for item in inputs]
    for i, texts in enumerate(examples):
        if len(texts) not in (1, 2) or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(f"Input {i} must be a sentence or a pair of sentences, none empty. Got {inputs[i]!r}.")
        if any(map(has_lone_surrogate, texts)):
            raise ValueError(f"Input {i} must be Unicode text. Got half a character (a lone surrogate) in {inputs[i]!r}.")
        if all(len(task.text_columns) != len(texts) for task in tasks.values()):
            what = "a sentence" if len(texts) == 1 else "a pair of sentences"
            takes = "pairs" if len(texts) == 1 else "single sentences"
            raise ValueError(f"Input {i} is {what}. This model's tasks take {takes}: {', '.join(tasks)}.")
    return examples


def load(folder: str | Path, device: str = "auto") -> Predictor:
    """Load the model in a folder (runs/NAME/best, trials/007/best) to `device`: auto, cpu, cuda.

    Raises ValueError if the folder is not a saved model; the message says what it is.
    """
    folder = user_path(folder).resolve()  # once, for the weights and the tokenizer
    model, config = load_model(folder)
    tokenizer = load_tokenizer(folder / "encoder")
    check_encoder(config, model.encoder.shape, tokenizer)
    model.to(device := resolve_device(device))
    if torch.device(device).type == "cuda":
        choose_attention_kernel()
    return Predictor(model, config, tokenizer)
