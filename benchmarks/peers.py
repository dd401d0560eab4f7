"""The public peers: scripts with Hugging Face's transformers that do the same work.

Texts come from our reader of the course's files, so that both sides see the same; everything else is the peer's own. Its
libraries are imported where they are used: no module here needs them to be imported, and start_up.py times their import.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minbert_core.data.tasks import SplitName

MAX_LENGTH = 128  # tokens, as TrialConfig has it
Input = str | tuple[str, str]  # a sentence or a pair


def texts(data: Path, task: str, split: SplitName) -> tuple[list[tuple[str, ...]], list[float]]:
    """Read the examples of a task and their labels."""
    from minbert_core.data.corpus import read_split
    from minbert_core.data.tasks import TASKS

    found = read_split(data, TASKS[task], split)
    assert found.labels is not None, "train and dev have labels"
    return found.texts, found.labels


def transformers() -> Any:
    """Import the library, offline and silent."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    library: Any = importlib.import_module("transformers")
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
    return library


def tokenise(tokenizer: Any, examples: Sequence[tuple[str, ...]], **options: Any) -> Any:
    """Tokenise sentences, or pairs as `[CLS] a [SEP] b [SEP]`, with the tokenizer's own call."""
    columns = [list(column) for column in zip(*examples, strict=True)]
    return tokenizer(*columns, truncation=True, max_length=MAX_LENGTH, **options)


class BertAnswers:
    """BertModel (sdpa) and a linear head on its pooler. A call returns the probabilities of one batch."""

    def __init__(self, encoder: Path, outputs: int) -> None:
        import torch

        library = transformers()
        self.tokenizer = library.AutoTokenizer.from_pretrained(encoder)
        self.model = library.BertModel.from_pretrained(encoder, attn_implementation="sdpa").eval()
        self.head = torch.nn.Linear(self.model.config.hidden_size, outputs)

    def __call__(self, inputs: Sequence[Input]) -> list[list[float]]:
        import torch

        examples = [(item,) if isinstance(item, str) else item for item in inputs]
        batch = tokenise(self.tokenizer, examples, padding=True, return_tensors="pt")
        with torch.inference_mode():
            logits_BK = self.head(self.model(**batch).pooler_output)
            shares_BK = logits_BK.softmax(-1) if logits_BK.shape[1] > 1 else logits_BK.sigmoid()
            answers: list[list[float]] = shares_BK.tolist()
        return answers


# -------------------------------------------------------------------------------------------------------------- training


class PaddedBatches:
    """A task's train examples as a peer sees them: tokenised once, padded to the longest of each batch.

    A pair under a bi-encoder is two batches. There are `ours.NUM_BATCHES`, to be taken in turn: the same random rows as ours,
    or for a bucketed run batches of neighbours in length, evenly over all lengths.
    """

    def __init__(self, data: Path, encoder: Path, task: str, encoding: str, batch: int, bucketed: bool) -> None:
        import numpy as np
        import torch

        from benchmarks.ours import NUM_BATCHES, even_rows
        from minbert_core.data.tasks import TASKS

        tokenizer = transformers().AutoTokenizer.from_pretrained(encoder)
        examples, labels = texts(data, task, "train")
        sides = [[(text,) for text in column] for column in zip(*examples, strict=True)] if encoding == "bi" else [examples]
        ids = [tokenise(tokenizer, side) for side in sides]
        lengths = np.sum([[len(row) for row in side["input_ids"]] for side in ids], axis=0)
        rows = even_rows(lengths, batch)
        if bucketed:
            order = np.argsort(lengths, kind="stable")
            first = (np.arange(NUM_BATCHES) + 0.5) / NUM_BATCHES * (len(order) - batch)
            rows = [order[int(start) :][:batch] for start in first]
        self.outputs = TASKS[task].outputs
        self.kind = TASKS[task].kind
        self._padded = [
            [tokenizer.pad({key: [side[key][i] for i in some] for key in side}, return_tensors="pt") for side in ids]
            for some in rows
        ]
        self._labels = [torch.tensor([labels[i] for i in some]) for some in rows]

    def move(self, device: str) -> None:
        """Move all batches to a device, once: a step then waits for no copy, which is more than a training script can do."""
        self._padded = [[side.to(device) for side in sides] for sides in self._padded]
        self._labels = [labels.to(device) for labels in self._labels]

    def __getitem__(self, number: int) -> tuple[list[Any], Any]:
        place = number % len(self._labels)
        return self._padded[place], self._labels[place]


@contextlib.contextmanager
def on_a_gpu(device: str) -> Iterator[None]:
    """Compute in bfloat16 on a GPU, with the kernels that torch chooses itself, among which our side leaves one out."""
    import torch

    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(False)


class BertTask:
    """BertModel (dropout .1) shared by tasks, with a linear head each, as a training script has it."""

    def __init__(self, encoder: Path, batches: dict[str, PaddedBatches], device: str = "cpu", attention: str = "sdpa") -> None:
        import torch

        torch.manual_seed(0)
        dtype = {"dtype": torch.bfloat16} if attention.startswith("flash") else {}  # flash attention reads no float32
        model = transformers().BertModel.from_pretrained(encoder, attn_implementation=attention, **dtype)
        self.model = model.train().to(device)
        for some in batches.values():
            some.move(device)
        self.batches = batches
        self.drop = torch.nn.Dropout(0.1)
        hidden = self.model.config.hidden_size
        sides = {name: len(some[0][0]) for name, some in batches.items()}
        heads = {name: torch.nn.Linear(hidden * sides[name], some.outputs) for name, some in batches.items()}
        self.heads = torch.nn.ModuleDict(heads).to(device)

    def features(self, name: str, number: int, words: Any = None) -> Any:
        """Return the pooler's output of [CLS], (B, D), or of both sentences, joined. words: embeddings instead of token ids."""
        import torch

        sides, _ = self.batches[name][number]
        pooled = []
        for i, side in enumerate(sides):
            inputs = dict(side)
            if words is not None:
                del inputs["input_ids"]
                inputs["inputs_embeds"] = words[i]
            pooled.append(self.model(**inputs).pooler_output)
        return torch.cat(pooled, dim=1)

    def loss(self, name: str, number: int, features: Any) -> Any:
        """Compute the task's loss on a batch."""
        from torch.nn import functional as F

        some, labels = self.batches[name], self.batches[name][number][1]
        logits = self.heads[name](self.drop(features)).float()
        if some.kind == "classification":
            return F.cross_entropy(logits, labels.long())
        one = logits[:, 0]
        return F.binary_cross_entropy_with_logits(one, labels) if some.kind == "binary" else F.mse_loss(one, labels)

    def parameters(self) -> list[Any]:
        """Return the parameters of the encoder and the heads."""
        return [*self.model.parameters(), *self.heads.parameters()]


def training_step(
    data: Path,
    encoder: Path,
    task: str,
    encoding: str,
    batch: int,
    threads: int,
    careful: bool,
    device: str = "cpu",
    attention: str = "sdpa",
) -> Any:
    """Build a step of BertModel on padded random batches, with fused AdamW (the Trainer's own) and clipping; bfloat16 on a GPU.

    careful: batches bucketed by length, and products through oneDNN.  attention: the kernel, as transformers calls it.
    On a GPU the host does not wait for the step's end.
    """
    import torch

    torch.set_num_threads(threads)
    if careful:
        torch.set_float32_matmul_precision("medium")
    work = BertTask(encoder, {task: PaddedBatches(data, encoder, task, encoding, batch, bucketed=careful)}, device, attention)
    optimizer = torch.optim.AdamW(work.parameters(), lr=2e-5, fused=True)
    number = 0

    def step() -> None:
        nonlocal number
        with on_a_gpu(device):
            loss = work.loss(task, number, work.features(task, number))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(work.parameters(), 1.0)
        optimizer.step()
        number += 1

    return step


TASKS = ("sst", "para", "sts")
METHODS = ("sum", "pcgrad", "gradvac", "smart")


def method_step(data: Path, encoder: Path, batch: int, method: str) -> Any:
    """Build a step on a batch of each of three tasks: summed losses; PCGrad or GradVac by torchjd; SMART by smart-pytorch."""
    import torch

    torch.set_num_threads(1)
    padded = {name: PaddedBatches(data, encoder, name, "single" if name == "sst" else "cross", batch, False) for name in TASKS}
    work = BertTask(encoder, padded)
    optimizer = torch.optim.AdamW(work.parameters(), lr=2e-5, fused=True)
    merge, smooth = _merge(method), _smoothness(work) if method == "smart" else None
    number = 0

    def step() -> None:
        nonlocal number
        optimizer.zero_grad()
        features = [work.features(name, number) for name in TASKS]
        losses = [work.loss(name, number, one) for name, one in zip(TASKS, features, strict=True)]
        if smooth is not None:
            losses += [smooth(name, number, one) for name, one in zip(TASKS, features, strict=True)]
        if merge is None:
            sum(losses).backward()
        else:
            merge(work, features, losses)
        torch.nn.utils.clip_grad_norm_(work.parameters(), 1.0)
        optimizer.step()
        number += 1

    return step


def _merge(method: str) -> Any:
    """Build torchjd's `mtl_backward` with the named aggregator; None for a plain sum of the losses."""
    if method not in ("pcgrad", "gradvac"):
        return None
    from torchjd import aggregation, autojac

    aggregator = aggregation.PCGrad() if method == "pcgrad" else aggregation.GradVac()

    def backward(work: BertTask, features: list[Any], losses: list[Any]) -> None:
        autojac.mtl_backward(losses, features=features, retain_graph=False)
        autojac.jac_to_grad(list(work.model.parameters()), aggregator)

    return backward


def _smoothness(work: BertTask) -> Any:
    """Build smart-pytorch's loss on the word embeddings of a batch, as its README uses it in a training step."""
    from smart_pytorch import SMARTLoss, kl_loss, sym_kl_loss
    from torch.nn import functional as F

    def penalty(name: str, number: int, features: Any) -> Any:
        [side], _ = work.batches[name][number]

        def logits(words: Any) -> Any:
            return work.heads[name](work.features(name, number, [words]))

        last = sym_kl_loss if work.batches[name].kind == "classification" else F.mse_loss
        first = kl_loss if work.batches[name].kind == "classification" else F.mse_loss
        words = work.model.embeddings.word_embeddings(side["input_ids"])
        return SMARTLoss(eval_fn=logits, loss_fn=first, loss_last_fn=last)(words, work.heads[name](features))

    return penalty


# ---------------------------------------------------------------------------------------------------------- evaluation


def evaluation(data: Path, encoder: Path, device: str = "cpu", batch: int = 32) -> Any:
    """Build an evaluation of the dev splits of three tasks in file order, in padded batches, tokenised before."""
    import torch

    torch.set_num_threads(1)
    library = transformers()
    tokenizer = library.AutoTokenizer.from_pretrained(encoder)
    model = library.BertModel.from_pretrained(encoder, attn_implementation="sdpa").eval().to(device)
    head = torch.nn.Linear(model.config.hidden_size, 5).to(device)
    splits = [tokenise(tokenizer, texts(data, task, "dev")[0]) for task in TASKS]

    def step() -> None:
        with torch.inference_mode(), on_a_gpu(device):
            for ids in splits:
                for start in range(0, len(ids["input_ids"]), batch):
                    some = {key: ids[key][start : start + batch] for key in ids}
                    head(model(**tokenizer.pad(some, return_tensors="pt").to(device)).pooler_output).argmax(1).tolist()

    return step
