"""One ONNX graph per task, encoder and head, for onnxruntime; their weights are in one file, which the graphs share.

    PaddedTask ─► torch.onnx.export ─► TASK.onnx, with weights.bin and a tokenizer next to it

A graph reads input_ids, attention_mask and token_type_ids, each (batch, tokens) of int64; a bi-encoder's reads second_input_ids
and second_attention_mask instead of the latter. It gives `logits`, (batch, outputs): of several classes, the logit of a binary
task, or the value of a regression. Batch and tokens are free.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from analysis.export_to.formats import Format
from analysis.export_to.padded import POOLINGS, PaddedTask
from analysis.export_to.source import Examples, Source, largest
from analysis.export_to.tokenizer import save_tokenizer
from minbert_core.data.tasks import Task

WEIGHTS = "weights.bin"
SINGLE = ("input_ids", "attention_mask", "token_type_ids")
BI = ("input_ids", "attention_mask", "second_input_ids", "second_attention_mask")
SMALL = 1024  # bytes; smaller tensors stay in the graph, as shapes must


def why_not(source: Source, task: str) -> str:
    """Explain in a sentence why a task has no graph; "" if it has one."""
    if task in source.model.adapters:
        return f"{task} is left out: its own `{source.config.adapter.kind}` layers inside the encoder fit no BertModel."
    if type(source.plan(task).pooling) not in POOLINGS:
        return f"{task} is left out: its pooling, `{source.plan(task).pooling.kind}`, has no form for padded batches."
    return ""


def write(source: Source, tasks: Sequence[str], folder: Path) -> None:
    """Write the graphs, their weights and their tokenizers."""
    from transformers import BertModel

    folder.mkdir(parents=True, exist_ok=True)
    bert = BertModel.from_pretrained(source.folder / "encoder", attn_implementation="eager").eval()
    written: dict[str, int] = {}  # sha256 of a tensor's bytes -> its place in the file
    with (folder / WEIGHTS).open("wb") as weights:
        for name in tasks:
            program = _export(PaddedTask(source, name, bert).eval(), source.plan(name).vectors)
            (folder / f"{name}.onnx").write_bytes(_shared(program, weights, written).SerializeToString())
            save_tokenizer(
                source.predictor.tokenizer, source.tasks[name], source.config.max_length, folder / f"{name}-tokenizer"
            )


def _export(module: PaddedTask, vectors: int) -> Any:
    """Export a task with torch's exporter; batch and tokens stay free."""
    names = BI if vectors == 2 else SINGLE
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    second = torch.export.Dim("second_tokens")
    shapes = [{0: batch, 1: second if name.startswith("second") else tokens} for name in names]
    examples = tuple(torch.ones(2, 9 if name.startswith("second") else 7, dtype=torch.int64) for name in names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        with torch.inference_mode():
            program = torch.onnx.export(
                module,
                examples,
                dynamo=True,
                dynamic_shapes=(shapes[0], shapes[1], tuple(shapes[2:])),
                input_names=list(names),
                output_names=["logits"],
                verbose=False,
            )
    assert program is not None, "the exporter returns the program"
    return program.model_proto


def _shared(graph: Any, weights: BinaryIO, written: dict[str, int]) -> Any:
    """Move a graph's large tensors to the file of weights, those that it has already only by their place; return the graph."""
    for node in graph.graph.node:
        node.ClearField("metadata_props")  # where in the code each node is from, which is most of a graph
        node.ClearField("doc_string")
    for tensor in graph.graph.initializer:
        content = tensor.raw_data
        if len(content) < SMALL:
            continue
        key = hashlib.sha256(content).hexdigest()
        if key not in written:
            weights.write(bytes(-weights.tell() % 4096))  # on a page, so that it can be mapped into memory
            written[key] = weights.tell()
            weights.write(content)
        tensor.ClearField("raw_data")
        tensor.data_location = tensor.EXTERNAL
        for field, value in (("location", WEIGHTS), ("offset", written[key]), ("length", len(content))):
            tensor.external_data.add(key=field, value=str(value))
    return graph


def compare(source: Source, tasks: Sequence[str], folder: Path) -> dict[str, float]:
    """Compare onnxruntime's logits with the model's."""
    return {name: largest(source.readout(name, source.examples(name)), _ask(source, name, folder)) for name in tasks}


def _ask(source: Source, name: str, folder: Path) -> Tensor:
    """Run the examples of a task in batches of two, so that their lengths differ; return the logits, (B, K)."""
    from onnxruntime import InferenceSession

    session = InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
    examples, is_bi = source.examples(name), source.plan(name).vectors == 2
    answers = []
    for first in range(0, len(examples), 2):
        inputs = _inputs(folder / f"{name}-tokenizer", examples[first : first + 2], is_bi)
        answers.append(torch.from_numpy(session.run(None, inputs)[0]))
    return torch.cat(answers)


def _inputs(tokenizer: Path, examples: Examples, is_bi: bool) -> dict[str, Any]:
    """Tokenise examples as the card's code does."""
    from transformers import AutoTokenizer

    load = AutoTokenizer.from_pretrained(tokenizer)
    columns = [list(column) for column in zip(*examples, strict=True)]
    groups = [[column] for column in columns] if is_bi else [columns]
    encoded = [load(*group, padding=True, truncation=True, return_tensors="np") for group in groups]
    if not is_bi:
        return {key: np.asarray(encoded[0][key]) for key in SINGLE}
    parts = zip(("", "second_"), encoded, strict=True)
    return {prefix + key: np.asarray(of[key]) for prefix, of in parts for key in SINGLE[:2]}


def usage(source: Source, tasks: Sequence[str], path: str) -> str:
    """Return code that runs the graph of a task."""
    name = next((name for name in tasks if source.plan(name).vectors == 1), tasks[0])
    task, is_bi = source.tasks[name], source.plan(name).vectors == 2
    lines = [
        "from onnxruntime import InferenceSession",
        "from transformers import AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{path}/{name}-tokenizer")',
        f'session = InferenceSession("{path}/{name}.onnx")',
    ]
    return "\n".join([*lines, *_calls(task, is_bi)]) + "\n"


def _calls(task: Task, is_bi: bool) -> list[str]:
    texts = ['["Is it far?"]', '["How far is it?"]'] if task.is_pair else ['["A moving film."]']
    options = 'padding=True, truncation=True, return_tensors="np"'
    run = 'print(session.run(["logits"], inputs))'
    if not is_bi:
        return [f"inputs = dict(tokenizer({', '.join(texts)}, {options}))", run]
    keys = json.dumps(SINGLE[:2])[1:-1]
    return [
        f"first = tokenizer({texts[0]}, {options})",
        f"second = tokenizer({texts[1]}, {options})",
        f'inputs = {{p + k: dict(of)[k] for p, of in (("", first), ("second_", second)) for k in ({keys})}}',
        run,
    ]


FORMAT = Format(
    name="onnx",
    packages=("onnx", "onnxscript", "onnxruntime", "transformers"),
    is_per_task=False,
    tolerance=1e-4,
    compared="logits in onnxruntime",
    why_not=why_not,
    write=write,
    compare=compare,
    library="onnx",
    usage=usage,
)
