"""Further pretraining: the stages on texts without labels, each trained once and kept, for every trial that begins with it.

    config, inputs -> find -> a Pretraining a stage, chained -> make: trained where it is not kept yet, or waited for
    texts -> batches -> encoder -> the objective's head -> AdamW -> cache/pretrained/KEY, in Hugging Face layout

KEY is a hash of all that the weights follow from: encoder, tokenizer, texts, the stage's settings, what came before, and the
machine's device, precision and parts of a batch. Threads and the route of the matrix products are not in it: they change last
digits only. The seed is the stage's own, so that trials and retrainings over seeds share one pretraining. A process that makes
one holds KEY.lock, which a crash frees; others wait, then load. KEY.state is where it resumes after a crash or a stop; at the
end it is gone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minbert_core.checkpoints import load_head, save_encoder
from minbert_core.clock import now_ms
from minbert_core.config import TINY, Machine, TrialConfig, pretraining_texts
from minbert_core.data.tables import bytes_of
from minbert_core.data.texts import REMEDY, Texts, joined, pack_texts, read_text_file, texts_of
from minbert_core.data.tokens import PackedBatch, Tokenizer, cuts, tokenise_split
from minbert_core.encoder import Encoder, Masks
from minbert_core.encoder_files import weight_files
from minbert_core.evaluate import NotFiniteError
from minbert_core.files import cache_folder, lock, replaced
from minbert_core.inputs import Inputs, build_encoder
from minbert_core.machine import in_precision, prepare, resolve_device, resolve_precision
from minbert_core.methods.objectives import Integers, Vocabulary
from minbert_core.methods.optimizer import Optimizer
from minbert_core.methods.stages import Pretraining
from minbert_core.methods.task_schedules import example_rows
from minbert_core.model import TOKENIZER_FILES
from minbert_core.seeds import seed_of
from minbert_core.tensor_files import load_state, save_state
from minbert_core.words import duration

FORMAT = "2"  # the meaning of a key; raise it when the same settings would make other weights
RATE = 5e-5  # where a stage has no optimizer: Sun et al. 2019 (arXiv 1905.05583), section 5.1
LOGS = 100  # of a pretraining
SAVE_EVERY_SECONDS = 300
HELD_OUT_ROWS = 2000  # evaluated at most: the loss to about 2 %; assumed, not measured (2026-11)
FIGURES = "pretraining.json"  # in the folder of what was made
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

Record = dict[str, Any]


@dataclass(frozen=True)
class Pretrained:
    """One stage on texts, and where its result is kept; `before` is the folder that it starts from."""

    place: int  # among the stages on texts
    stage: Pretraining
    key: str
    before: Path
    folder: Path

    @property
    def name(self) -> str:
        """`mlm 3f2a9c01`."""
        return f"{self.stage.kind} {self.key[:8]}"

    @property
    def seed(self) -> int:
        """The seed of order and masks. A later stage with the same knob `seed` draws others than the first one."""
        return seed_of(self.stage.seed, "stage", self.place)

    @property
    def is_made(self) -> bool:
        return (self.folder / FIGURES).exists()

    def describe(self, config: TrialConfig, when: str = "made once, for all trials") -> str:
        """`mlm 3f2a9c01: 20 epochs of sst, para; made already, in 5 min`. when: what is printed where it is not made yet."""
        texts = ", ".join(pretraining_texts(config, self.stage))
        how = f"made already, in {duration(self.figures()['seconds'])}" if self.is_made else when
        epochs = f"{self.stage.epochs:g} epoch{'s' * (self.stage.epochs != 1)}"
        return f"{self.name}: {epochs} of {texts}{' in equal parts' * self.stage.balance}; {how}"

    def figures(self) -> Record:
        """What was measured when it was made."""
        found: Record = json.loads((self.folder / FIGURES).read_text(encoding="utf-8"))
        return found


def find(config: TrialConfig, inputs: Inputs) -> list[Pretrained]:
    """The pretrainings that a trial begins with, in their order; nothing is trained.  Raises CorpusError."""
    found: list[Pretrained] = []
    folder, before = inputs.encoder_folder, _origin(config, inputs)
    for place, stage in enumerate(config.pretraining):
        parts = {
            "format": FORMAT,
            "before": before,
            "stage": stage.model_dump(mode="json"),
            "optimizer": _optimizer(stage).model_dump(mode="json"),  # a default's values, which may change
            "texts": [_fingerprint(name, config, inputs) for name in pretraining_texts(config, stage)],
            "tokenizer": inputs.tokenizer.fingerprint,
            "max_length": config.max_length,
            "dropout": [config.encoder.hidden_dropout, config.encoder.attention_dropout],
            "machine": _computed_by(config.machine),
        }
        before = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
        made = cache_folder() / "pretrained" / before
        found.append(Pretrained(place, stage, before, folder, made))
        folder = made
    return found


def never() -> bool:
    return False


def make(
    pretrainings: list[Pretrained], config: TrialConfig, inputs: Inputs, is_stopped: Callable[[], bool] = never
) -> Iterator[Record]:
    """Make what is not kept yet, one after the other; records as that goes on.

    The last of each pretraining says how long it took, what it came to, and whether this process made it.
    is_stopped: asked after each step; once it is true, the state is saved and nothing further is made.
    Raises CorpusError, ValueError (texts or a tokenizer that do not do), NotFiniteError.
    """
    count = 0
    for one in pretrainings:
        one.folder.parent.mkdir(parents=True, exist_ok=True)
        path = one.folder.with_suffix(".lock")
        with path.open("w") as file:
            if not one.is_made and not lock(file, path):
                yield _record(one, count, {"waits": True})
                lock(file, path, wait=True)
            is_made_here = not one.is_made
            if is_made_here:
                yield from Maker(config, inputs, one, count).run(is_stopped)
        if not one.is_made:
            return
        figures = one.figures()
        count += int(figures["examples"])
        held_out = {f"pretrain/{one.stage.kind}_{name}": value for name, value in figures["held_out"].items()}
        about = {"made": is_made_here, "notes": figures["notes"], "pretrain/seconds": figures["seconds"], "pretrain/share": 1.0}
        yield _record(one, count, held_out | about)


def _record(one: Pretrained, examples: int, figures: Record) -> Record:
    """A record of a trial that has not begun itself: no step, no example and no second of its own budget has passed.

    `pretrain/examples` are the texts shown so far, over all its pretrainings.
    """
    own = {"kind": "pretrain", "step": 0, "examples": 0, "passes": 0, "time_ms": now_ms(), "seconds": 0.0}
    return own | {"stage": one.stage.kind, "key": one.key, "pretrain/examples": examples, **figures}


# ------------------------------------------------------------------------------------------------------- what it follows from


def _computed_by(machine: Machine) -> dict[str, Any]:
    """The settings of a machine that change the weights beyond their last digits.

    A GPU draws other dropout masks than a CPU; each part of a batch draws its own.
    """
    device = torch.device(resolve_device(machine.device))
    precision = resolve_precision(machine.precision, device)
    return {"device": device.type, "precision": precision, "micro_batch_tokens": machine.micro_batch_tokens}


def _optimizer(stage: Pretraining) -> Optimizer:
    return stage.optimizer or Optimizer(lr=RATE)


def _origin(config: TrialConfig, inputs: Inputs) -> str:
    """What the first pretraining starts from: the checkpoint's content; of `tiny` the stage's seed, from which it is drawn."""
    if config.encoder.checkpoint == TINY:
        return f"{TINY} {config.pretraining[0].seed}" if config.pretraining else TINY
    if not config.pretraining:
        return ""
    folder = inputs.encoder_folder
    return _content(folder, max(path.stat().st_mtime_ns for path in weight_files(folder)))


@lru_cache
def _content(folder: Path, changed_at: int) -> str:
    """sha256 of an encoder's shape and weights: half a second for BERT-base, so of each folder once."""
    whole = hashlib.sha256()
    for path in (folder / "config.json", *weight_files(folder)):
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def _fingerprint(name: str, config: TrialConfig, inputs: Inputs) -> list[str]:
    """Of the texts that `name` stands for: those of its token files, or of the text file's bytes."""
    if name in config.known_tasks:
        return [split.path.stem for split in _splits(name, config, inputs)]
    return [hashlib.sha256(bytes_of(inputs.text_file(name), REMEDY)).hexdigest()]


def _splits(name: str, config: TrialConfig, inputs: Inputs) -> list[Any]:
    """A task's train and dev split, also where the trial does not train on it."""
    if name in inputs.train:
        return [inputs.train[name], inputs.dev[name]]
    task, tokens = config.known_tasks[name], cache_folder() / "tokens"
    return [tokenise_split(inputs.data_folder, task, split, inputs.tokenizer, tokens) for split in ("train", "dev")]


def read_texts(stage: Pretraining, config: TrialConfig, inputs: Inputs) -> tuple[Texts, Texts]:
    """The rows that a stage learns from, balanced where it says so, and those held out."""
    learned, held_out = [], []
    for name in pretraining_texts(config, stage):
        if name in config.known_tasks:
            train, dev = (texts_of(split, stage.pair_encoding) for split in _splits(name, config, inputs))
        else:
            train, dev = read_text_file(inputs.text_file(name), inputs.tokenizer, in_pairs=not stage.reads_single)
        learned.append(train)
        held_out.append(dev)
    if stage.balance:
        smallest = min(map(len, learned))
        seeds = [seed_of(stage.seed, "balance", i) for i in range(len(learned))]
        learned = [texts.only(example_rows(seed, len(texts), 0, smallest)) for seed, texts in zip(seeds, learned, strict=True)]
    return joined(learned), joined(held_out)


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """What masking asks of a tokenizer.  Raises ValueError where it has no [MASK]."""
    if tokenizer.mask_id is None:
        raise ValueError("Further pretraining hides words behind [MASK], which the encoder's tokenizer does not have.")
    pieces = tokenizer.vocabulary()
    is_special_V = np.array([piece in SPECIALS for piece in pieces])
    continues_V = np.array([piece.startswith("##") for piece in pieces])
    return Vocabulary(tokenizer.mask_id, np.flatnonzero(~is_special_V), is_special_V, continues_V)


# --------------------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Question:
    """A packed batch, which of its tokens are read, (M,), and what is right there, (M,)."""

    batch: PackedBatch
    at_M: Tensor
    answers_M: Tensor

    def to(self, device: torch.device) -> Question:
        return Question(self.batch.to(device), self.at_M.to(device), self.answers_M.to(device))


class Maker:
    """One pretraining, from its start or from where a killed process left it, to its folder in the cache."""

    def __init__(self, config: TrialConfig, inputs: Inputs, one: Pretrained, shown_before: int) -> None:
        self.config, self.inputs, self.one, self.shown_before = config, inputs, one, shown_before
        self.stage = stage = one.stage
        self.device = prepare(config.machine)
        self.precision = resolve_precision(config.machine.precision, self.device)
        self.vocabulary = vocabulary_of(inputs.tokenizer)
        self.texts, self.held_out = read_texts(stage, config, inputs)
        seeded = config.model_copy(update={"seed": stage.seed})  # from which a tiny encoder is drawn
        self.encoder = build_encoder(seeded, replace(inputs, encoder_folder=one.before))
        self.head, self.notes = _head(stage, one.before, self.encoder)
        self.encoder.to(self.device)
        self.head.to(self.device)
        self.parameters = [*self.encoder.parameters(), *self.head.parameters()]
        self.settings = _optimizer(stage)
        self.optimizer = self.settings.build(self.encoder.named_parameters(), self.head.named_parameters())
        self.total = max(1, round(stage.epochs * len(self.texts)))
        self.shown = 0  # rows
        self.seconds = 0.0
        self.before: Record = {}

    def run(self, is_stopped: Callable[[], bool] = never) -> Iterator[Record]:
        """Train to the end, yielding about a hundred records; then the folder is there. Stopped, it saves its state instead."""
        state, began = self.one.folder.with_suffix(".state"), time.monotonic()
        if state.exists():
            self._restore(state)
            began -= self.seconds
        else:
            self.before = self.evaluate()
        since = saved_at = time.monotonic()
        num_summed = 0
        loss_sum, shown_at = torch.zeros((), device=self.device), self.shown
        while self.shown < self.total:
            before = self.shown
            loss_sum += self.step()
            num_summed += 1
            if is_stopped():
                self.seconds = time.monotonic() - began
                self._save(state)
                return
            if before * LOGS // self.total == self.shown * LOGS // self.total:
                continue
            loss, self.seconds = float(loss_sum) / num_summed, time.monotonic() - began
            if not math.isfinite(loss):
                raise NotFiniteError(f"The loss of {self.one.name} became {loss} after {self.shown} texts.")
            speed = (self.shown - shown_at) / max(time.monotonic() - since, 1e-9)
            yield self._progress({"loss": loss}, speed)
            if time.monotonic() - saved_at > SAVE_EVERY_SECONDS:
                self._save(state)
                saved_at = time.monotonic()
            since, num_summed, shown_at = time.monotonic(), 0, self.shown
            loss_sum.zero_()
        after = self.evaluate()
        self.seconds = time.monotonic() - began
        self._keep(after)
        state.unlink(missing_ok=True)

    def step(self) -> Tensor:
        """One update on the next batch; its mean loss over what is read, not yet waited for."""
        stage, seed, number = self.stage, self.one.seed, self.shown // self.stage.batch_size
        count = min(stage.batch_size, self.total - self.shown)
        rows = example_rows(seed_of(seed, "rows"), len(self.texts), self.shown, count)
        # the rate belongs to the step's middle, as in train.py
        factor = self.settings.lr_factor((self.shown + count / 2) / self.total)
        self.shown += count
        questions = self.questions(self.texts, rows, np.random.default_rng(seed_of(seed, "masks", number)))
        num_read = sum(len(question.at_M) for question in questions)
        loss = torch.zeros((), device=self.device)
        for part, question in enumerate(questions):
            masks = Masks(seed_of(seed, "dropout", number, part), self.device)
            logits_MK = self.forward(question, masks)
            part_loss = F.cross_entropy(logits_MK, question.answers_M, reduction="sum") / max(1, num_read)
            part_loss.backward()
            loss += part_loss.detach()
        if self.settings.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def questions(self, texts: Texts, rows: Integers, random: np.random.Generator) -> list[Question]:
        """A batch as it is asked; in parts where it is more tokens than one pass may hold."""
        seconds = self.stage.follow(rows, len(texts), random)
        batch = pack_texts(texts, rows, seconds, self.config.max_length, self.inputs.specials)
        limit, parts = self.config.machine.micro_batch_tokens, [(rows, seconds)]
        if limit is not None and sum(batch.lengths) > limit:
            at = cuts(list(batch.lengths), limit)
            parts = list(zip(np.split(rows, at), np.split(seconds, at), strict=True))
        return [self._question(texts, *part, random).to(self.device) for part in parts]

    def _question(self, texts: Texts, rows: Integers, seconds: Integers, random: np.random.Generator) -> Question:
        batch = pack_texts(texts, rows, seconds, self.config.max_length, self.inputs.specials)
        firsts_B, token_ids_N = batch.starts_S1[:-1].numpy(), batch.token_ids_N.numpy()
        asked_N, at_M, answers_M = self.stage.ask(token_ids_N, firsts_B, seconds != rows, self.vocabulary, random)
        asked = replace(batch, token_ids_N=torch.from_numpy(asked_N))
        return Question(asked, torch.from_numpy(at_M), torch.from_numpy(answers_M))

    def forward(self, question: Question, masks: Masks | None) -> Tensor:
        """The logits of what is read, (M, K), float32: the only ones that are computed."""
        with in_precision(self.precision, self.device):
            hidden_ND = self.encoder(question.batch, masks)
            logits_MK: Tensor = self.head(hidden_ND[question.at_M], self.encoder)
        return logits_MK.float()

    @torch.no_grad()
    def evaluate(self) -> Record:
        """Mean loss and share of right answers over what is read of held-out rows, asked the same each time."""
        seed, held_out = seed_of(self.stage.seed, "held out"), self.held_out
        rows = example_rows(seed, len(held_out), 0, min(len(held_out), HELD_OUT_ROWS))
        random, loss, right, num_read = np.random.default_rng(seed), 0.0, 0, 0
        for start in range(0, len(rows), self.stage.batch_size):
            for question in self.questions(held_out, rows[start : start + self.stage.batch_size], random):
                logits_MK = self.forward(question, None)
                loss += float(F.cross_entropy(logits_MK, question.answers_M, reduction="sum"))
                right += int((logits_MK.argmax(1) == question.answers_M).sum())
                num_read += len(question.at_M)
        return {"loss": loss / max(1, num_read), "accuracy": right / max(1, num_read)}

    def _progress(self, figures: Record, speed: float) -> Record:
        named = {f"pretrain/{self.stage.kind}_{name}": value for name, value in figures.items()}
        done = {"pretrain/share": self.shown / self.total, "pretrain/examples_per_second": speed}
        left = {"seconds_left": (self.total - self.shown) / max(speed, 1e-9)}
        return _record(self.one, self.shown_before + self.shown, named | done | left)

    def _save(self, path: Path) -> None:
        """What a killed pretraining goes on from; replaced atomically."""
        state = {"encoder": self.encoder.state_dict(), "head": self.head.state_dict(), "optimizer": self.optimizer.state_dict()}
        save_state({**state, "shown": self.shown, "seconds": self.seconds, "before": self.before}, path)

    def _restore(self, path: Path) -> None:
        state = load_state(path)
        self.encoder.load_state_dict(state["encoder"])
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.shown, self.seconds, self.before = state["shown"], state["seconds"], state["before"]

    def _keep(self, after: Record) -> None:
        """Write encoder, head, tokenizer and figures as a folder, renamed into place when it is whole."""
        figures = {f"held_out_{name}": value for name, value in after.items()}
        figures |= {f"held_out_{name}_before": value for name, value in self.before.items()}
        head = self.head.state_dict()
        about = {"stage": self.stage.model_dump(mode="json"), "texts": len(self.texts), "examples": self.total}
        about |= {"seconds": round(self.seconds, 3), "notes": self.notes, "held_out": figures}
        with replaced(self.one.folder) as draft:
            save_encoder(self.encoder, draft, {there: head[name] for name, there in self.stage.stored.items()})
            for name in TOKENIZER_FILES:
                with contextlib.suppress(FileNotFoundError):
                    shutil.copyfile(self.one.before / name, draft / name)
            with (draft / FIGURES).open("w", encoding="utf-8") as file:
                json.dump(about, file, indent=2)
                file.flush()
                os.fsync(file.fileno())


def _head(stage: Pretraining, folder: Path, encoder: Encoder) -> tuple[nn.Module, list[str]]:
    """The objective's head, of the checkpoint where that has one, else fresh, which a note tells."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(stage.seed, "head"))
        head = stage.build(encoder.shape)
    stored = load_head(folder, stage.stored) if weight_files(folder) else {}
    if not stored:
        return head, [f"The checkpoint has no {stage.head_name}: a fresh one was drawn."]
    head.load_state_dict(stored)
    return head, []
