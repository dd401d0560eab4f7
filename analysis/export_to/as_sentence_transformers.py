"""One folder per task of pairs for sentence-transformers: a bi-encoder as SentenceTransformer, a cross-encoder as CrossEncoder.

    encoder/ ─► Transformer ─► Pooling ─► Dense per linear layer: the pooler, the shared layer, and a cross-encoder's head

A SentenceTransformer holds no head: its cosine is that of the vectors u and v which the head reads. A CrossEncoder answers with
the probability of a binary task, the value of a regression, or the logits of several classes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from analysis.export_to.formats import Format
from analysis.export_to.source import Source, largest
from analysis.export_to.tokenizer import save_tokenizer
from minbert_core.checkpoints import save_encoder
from minbert_core.methods.heads import Layers

ACTIVATIONS = {torch.relu: nn.ReLU, functional.leaky_relu: nn.LeakyReLU}  # of our heads -> as a module
POOLINGS = ("cls", "mean", "max")  # that the library knows by our names; the pooler is its "cls" and a Dense layer


def why_not(source: Source, task: str) -> str:
    """Explain in a sentence why the library cannot hold a task; "" if it can."""
    plan, model = source.plan(task), source.model
    if not plan.task.is_pair:
        return f"{task} is left out: sentence-transformers compares two sentences, and this task reads one."
    if task in model.adapters:
        return f"{task} is left out: its own `{source.config.adapter.kind}` layers inside the encoder fit no BertModel."
    if not (plan.pooling.uses_pooler or plan.pooling.kind in POOLINGS):
        return f"{task} is left out: sentence-transformers has no pooling `{plan.pooling.kind}`."
    if plan.vectors == 2:
        return ""
    if type(model.heads[task]) is not Layers or model.heads[task].activation not in ACTIVATIONS:
        return f"{task} is left out: a CrossEncoder has no head `{plan.head.kind}`."
    if plan.outputs != plan.task.outputs:
        classes = f"{plan.outputs} classes of the loss `{plan.loss.kind}`"
        return f"{task} is left out: a CrossEncoder cannot read a value from the {classes}."
    return ""


def write(source: Source, tasks: Sequence[str], folder: Path) -> None:
    """Write the folder of one task."""
    from sentence_transformers import CrossEncoder, SentenceTransformer
    from sentence_transformers.base.modules import Transformer

    [name] = tasks
    plan = source.plan(name)
    with tempfile.TemporaryDirectory() as scratch:  # the library builds its first module from files
        save_encoder(source.model.encoder, Path(scratch))
        save_tokenizer(source.predictor.tokenizer, plan.task, source.config.max_length, Path(scratch))
        modules = [Transformer(scratch, max_seq_length=source.config.max_length), *_modules(source, name)]
    if plan.vectors == 2:
        found = SentenceTransformer(modules=modules, device="cpu", similarity_fn_name="cosine")
    else:
        found = CrossEncoder(modules=modules, device="cpu", activation_fn=_activation(plan.task.kind))
    found.save_pretrained(str(folder), create_model_card=False)
    for path in folder.rglob("*.safetensors"):  # which safetensors writes for the owner only
        path.chmod((folder / "modules.json").stat().st_mode)


def _modules(source: Source, name: str) -> Iterator[nn.Module]:
    """Yield the modules after the encoder: pooling, the pooler's layer, the shared layer, and the layers of a cross-encoder."""
    from sentence_transformers.sentence_transformer.modules import Pooling

    plan, model = source.plan(name), source.model
    yield Pooling(model.encoder.shape.hidden_size, "cls" if plan.pooling.uses_pooler else plan.pooling.kind)
    if plan.pooling.uses_pooler:
        yield _dense(model.encoder.pooler[0], nn.Tanh())
    if source.config.shared_layer.serves(plan.task.is_pair):
        shared: Any = model.shared_layer
        yield _dense(shared.linear, nn.LeakyReLU())
    if plan.vectors == 1:
        head: Any = model.heads[name]
        *hidden, last = head.layers
        yield from (_dense(layer, ACTIVATIONS[head.activation]()) for layer in hidden)
        yield _dense(last, nn.Identity(), "scores")


def _dense(linear: Any, activation: nn.Module, output: str | None = None) -> nn.Module:
    from sentence_transformers.base.modules import Dense

    weight, bias = linear.weight.detach().clone(), linear.bias.detach().clone()
    sizes = linear.in_features, linear.out_features
    dense: nn.Module = Dense(
        *sizes, activation_function=activation, init_weight=weight, init_bias=bias, module_output_name=output
    )
    return dense


def _activation(kind: str) -> nn.Module:
    return nn.Sigmoid() if kind == "binary" else nn.Identity()


def compare(source: Source, tasks: Sequence[str], folder: Path) -> dict[str, float]:
    """Compare the cosines of a bi-encoder, or the scores of a cross-encoder, with the model's."""
    from sentence_transformers import CrossEncoder, SentenceTransformer

    [name] = tasks
    examples, plan = source.examples(name), source.plan(name)
    if plan.vectors == 2:
        u_BD, v_BD = source.features(name, examples).chunk(2, dim=1)
        encode = SentenceTransformer(str(folder), device="cpu").encode
        theirs = [encode([texts[i] for texts in examples], convert_to_tensor=True) for i in (0, 1)]
        return {name: largest(functional.cosine_similarity(u_BD, v_BD), functional.cosine_similarity(theirs[0], theirs[1]))}
    scores: Tensor = CrossEncoder(str(folder), device="cpu").predict(list(examples), convert_to_tensor=True)
    ours_BK = source.readout(name, examples)
    if plan.task.kind == "binary":
        ours_BK = ours_BK.sigmoid()
    return {name: largest(ours_BK, scores.reshape(ours_BK.shape))}


def usage(source: Source, tasks: Sequence[str], path: str) -> str:
    """Return code that compares two sentences."""
    [name] = tasks
    if source.plan(name).vectors == 2:
        return (
            "from sentence_transformers import SentenceTransformer\n\n"
            f'model = SentenceTransformer("{path}")\n'
            'u, v = model.encode(["Is it far?", "How far is it?"])\n'
            "print(model.similarity(u, v))  # the cosine\n"
        )
    return (
        "from sentence_transformers import CrossEncoder\n\n"
        f'model = CrossEncoder("{path}")\n'
        'print(model.predict([("Is it far?", "How far is it?")]))\n'
    )


FORMAT = Format(
    name="sentence-transformers",
    packages=("sentence_transformers",),
    is_per_task=True,
    tolerance=1e-5,
    compared="cosines, or scores of a cross-encoder",
    why_not=why_not,
    write=write,
    compare=compare,
    library="sentence-transformers",
    usage=usage,
)
