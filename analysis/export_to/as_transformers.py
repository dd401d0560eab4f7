"""One folder per task as transformers' BertForSequenceClassification, for `pipeline("text-classification")`.

    encoder/ + a linear head on [CLS] ─► config.json, model.safetensors, a tokenizer

The class reads W tanh(P h + c) + b from the last hidden state h of [CLS]. A head on the pooler is that. A head on [CLS] itself
becomes that with P = s I, c = 0 and the head's W / s: tanh(x) = x - x^3/3 + …, so with s = 2^-13 and |h| < 20 the relative
error is below 2e-6, and a power of two rounds nothing. `identity_pooler` in config.json marks such a pooler, since it is not
the encoder's: `load_encoder` draws a new one.

A binary task has two classes with logits 0 and z, whose softmax is the sigmoid of our single logit z.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from analysis.export_to.formats import Format
from analysis.export_to.source import Examples, Source, largest
from analysis.export_to.tokenizer import save_tokenizer
from minbert_core.checkpoints import IDENTITY_POOLER
from minbert_core.data.tasks import Task
from minbert_core.encoder_files import WEIGHTS
from minbert_core.methods.features import Cls
from minbert_core.methods.heads import Linear
from minbert_core.tensor_files import save_tensors

SCALE = 2.0**-13


def why_not(source: Source, task: str) -> str:
    """Explain in a sentence why the class cannot hold a task; "" if it can."""
    plan = source.plan(task)
    reads = f"{task} is left out: BertForSequenceClassification"
    if plan.vectors == 2:
        return f"{reads} reads a pair as one sequence, and this task's pair_encoding is `{plan.pair_encoding.kind}`."
    if not (plan.pooling.uses_pooler or isinstance(plan.pooling, Cls)):
        return f"{reads} reads [CLS] (pooling `pooler` or `cls`), and this task's pooling is `{plan.pooling.kind}`."
    if task in source.model.adapters:
        return f"{reads} is a plain BERT, and this task has its own `{source.config.adapter.kind}` layers inside."
    if source.config.shared_layer.serves(plan.task.is_pair):
        return f"{reads} has nothing between pooler and head, and this task has the `shared_layer`."
    if not isinstance(plan.head, Linear):
        return f"{reads} has one linear layer (head `linear`), and this task's head is `{plan.head.kind}`."
    if plan.outputs != plan.task.outputs:
        return f"{reads} gives a value as one output, and this task's loss `{plan.loss.kind}` has {plan.outputs} classes."
    return ""


def write(source: Source, tasks: Sequence[str], folder: Path) -> None:
    """Write the folder of one task."""
    [name] = tasks
    task = source.tasks[name]
    save_tokenizer(source.predictor.tokenizer, task, source.config.max_length, folder)
    weights = {f"bert.{key}": tensor for key, tensor in source.encoder_weights().items()}
    head: Any = source.model.heads[name]
    [layer] = head.layers
    weight_KD, bias_K = layer.weight.detach(), layer.bias.detach()
    is_direct = isinstance(source.plan(name).pooling, Cls)
    if is_direct:
        weights |= {"bert.pooler.dense.weight": SCALE * torch.eye(weight_KD.shape[1])}
        weights |= {"bert.pooler.dense.bias": torch.zeros(weight_KD.shape[1])}
        weight_KD = weight_KD / SCALE
    if task.kind == "binary":
        weight_KD = torch.cat([torch.zeros_like(weight_KD), weight_KD])
        bias_K = torch.cat([torch.zeros_like(bias_K), bias_K])
    weights |= {"classifier.weight": weight_KD.contiguous(), "classifier.bias": bias_K.contiguous()}
    save_tensors(weights, folder / WEIGHTS, metadata={"format": "pt"})
    config = _config(source, task) | ({IDENTITY_POOLER: True} if is_direct else {})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _config(source: Source, task: Task) -> dict[str, Any]:
    """Build the config.json of a task: the encoder's own, and what the class reads."""
    encoder: dict[str, Any] = json.loads((source.folder / "encoder" / "config.json").read_text(encoding="utf-8"))
    names = list(task.classes) or [task.label_column]
    about: dict[str, Any] = {
        "architectures": ["BertForSequenceClassification"],
        "problem_type": "regression" if task.kind == "regression" else "single_label_classification",
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "classifier_dropout": getattr(source.plan(task.name).head, "dropout", None),
    }
    if task.kind == "regression":  # else sentence-transformers' CrossEncoder puts a sigmoid on a single score
        about["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity"}
    return encoder | asdict(source.model.encoder.shape) | about


def compare(source: Source, tasks: Sequence[str], folder: Path) -> dict[str, float]:
    """Compare the pipeline's logits and its probabilities with the model's."""
    [name] = tasks
    examples = source.examples(name)
    ours_BK = class_logits(source.readout(name, examples), source.tasks[name])
    difference = largest(ours_BK, _ask(folder, examples, "none"))
    if source.tasks[name].kind != "regression":
        difference = max(difference, largest(ours_BK.softmax(dim=1), _ask(folder, examples)))
    return {name: difference}


def class_logits(readout_BK: Tensor, task: Task) -> Tensor:
    """Return a logit per class, (B, C), of which a binary task has two; the values of a regression as they are."""
    return torch.cat([torch.zeros_like(readout_BK), readout_BK], dim=1) if task.kind == "binary" else readout_BK


def _ask(folder: Path, examples: Examples, apply: str | None = None) -> Tensor:
    """Ask transformers' pipeline; return (B, classes), in the order of the classes."""
    from transformers import pipeline

    ask = pipeline("text-classification", model=str(folder), device="cpu", function_to_apply=apply)
    order = list(ask.model.config.label2id or ())
    inputs: list[Any] = [texts[0] if len(texts) == 1 else {"text": texts[0], "text_pair": texts[1]} for texts in examples]
    rows = []
    for item in inputs:
        scores = {answer["label"]: answer["score"] for answer in ask(item, top_k=None, truncation=True)}
        rows.append([scores[label] for label in order])
    return torch.tensor(rows)


def usage(source: Source, tasks: Sequence[str], path: str) -> str:
    """Return code that asks the pipeline about an example."""
    [name] = tasks
    task = source.tasks[name]
    example = '{"text": "Is it far?", "text_pair": "How far is it?"}' if task.is_pair else '"A moving film."'
    return (
        "from transformers import pipeline\n\n"
        f'ask = pipeline("text-classification", model="{path}")\n'
        f"print(ask({example}, top_k=None, truncation=True))\n"
    )


FORMAT = Format(
    name="transformers",
    packages=("transformers",),
    is_per_task=True,
    tolerance=1e-5,
    compared="logits and probabilities of the pipeline",
    why_not=why_not,
    write=write,
    compare=compare,
    library="transformers",
    usage=usage,
)
