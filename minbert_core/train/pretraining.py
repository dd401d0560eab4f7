"""Further pretraining: one stage on texts, trained once and kept in the cache for every trial that begins with it.

    find (pretrained.py) -> run_pretraining: each is trained if the cache lacks it, or waited for
    texts -> batches -> encoder -> the objective's head -> AdamW -> cache/pretrained/KEY, in Hugging Face layout

A process that trains one holds KEY.lock, which a crash frees. Others wait, then load the result. KEY.state is the snapshot from
which it resumes after a crash or a stop, and is removed at the end.

A step that runs out of memory is repeated in smaller passes (micro_batches.py). Each pass draws its own masks, so the result is
then another sample of the same distribution, under the same KEY; pretraining.json records the size of the passes.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minbert_core.checkpoints import load_head, save_encoder
from minbert_core.clock import now_ms
from minbert_core.config import TrialConfig, pretraining_texts
from minbert_core.data.packed import PackedBatch, Span, moved
from minbert_core.data.texts import Texts, joined, pack_texts, read_text_file, texts_of
from minbert_core.data.tokens import Tokenizer, cuts
from minbert_core.encoder import Encoder, Masks
from minbert_core.encoder_files import weight_files
from minbert_core.evaluate import NotFiniteError
from minbert_core.files import lock, replaced
from minbert_core.inputs import Inputs, build_encoder
from minbert_core.machine import in_precision, prepare, resolve_precision
from minbert_core.memory import indivisible
from minbert_core.methods.objectives import Integers, Vocabulary
from minbert_core.methods.stages import Pretraining
from minbert_core.methods.task_schedules import example_rows
from minbert_core.model import TOKENIZER_FILES
from minbert_core.seeds import seed_of
from minbert_core.tensor_files import load_state, save_state
from minbert_core.train.ahead import Ahead
from minbert_core.train.loop import Meter, SaveTimer, is_log_due, step_at_rate
from minbert_core.train.micro_batches import Sizes, fitted, sizes_of
from minbert_core.train.pretrained import FIGURES, Pretrained, Record, optimizer_of, splits_of

HELD_OUT_ROWS = 2000  # evaluated at most: the loss to about 2 %; assumed, not measured (2026-11)
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


WAIT_SECONDS = 0.2  # between two tries for the lock of a pretraining


def never() -> bool:
    return False


def run_pretraining(
    pretrainings: list[Pretrained], config: TrialConfig, inputs: Inputs, is_stopped: Callable[[], bool] = never
) -> Iterator[Record]:
    """Train the pretrainings that the cache lacks, one after the other, and yield records.

    The last record of each has its duration, its held-out figures, and whether this process trained it (`made`).
    is_stopped is called after each step, and while another process trains. Once it returns True, the state is saved and
    training ends.
    Raises CorpusError, ValueError (unusable texts or tokenizer), NotFiniteError, DoesNotFitError.
    """
    count = 0
    for one in pretrainings:
        one.folder.parent.mkdir(parents=True, exist_ok=True)
        path = one.folder.with_suffix(".lock")
        with path.open("w") as file:
            if not one.is_cached and not lock(file, path):
                yield _record(one, count, {"waits": True})
                while not lock(file, path):
                    if is_stopped():
                        return
                    time.sleep(WAIT_SECONDS)
            is_trained_here = not one.is_cached
            if is_trained_here:
                yield from PretrainingRun(config, inputs, one, count).run(is_stopped)
        if not one.is_cached:
            return
        figures = one.figures()
        count += int(figures["examples"])
        held_out = {f"pretrain/{one.stage.kind}_{name}": value for name, value in figures["held_out"].items()}
        about = {
            "made": is_trained_here,
            "notes": figures["notes"],
            "pretrain/seconds": figures["seconds"],
            "pretrain/share": 1.0,
        }
        yield _record(one, count, held_out | about)


def _record(one: Pretrained, examples: int, figures: Record) -> Record:
    """Create a record before the trial's first step: none of its steps, examples and seconds has passed.

    `pretrain/examples` are the texts shown so far, over all its pretrainings.
    """
    start = {"kind": "pretrain", "step": 0, "examples": 0, "passes": 0, "time_ms": now_ms(), "seconds": 0.0}
    return start | {"stage": one.stage.kind, "key": one.key, "pretrain/examples": examples, **figures}


def read_texts(stage: Pretraining, config: TrialConfig, inputs: Inputs) -> tuple[Texts, Texts]:
    """Read the texts on which a stage trains, balanced if it asks for that, and those held out."""
    learned, held_out = [], []
    for name in pretraining_texts(config, stage):
        if name in config.known_tasks:
            train, dev = (texts_of(split, stage.pair_encoding) for split in splits_of(name, config, inputs))
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
    """Extract from a tokenizer what masking needs.  Raises ValueError if it has no [MASK]."""
    if tokenizer.mask_id is None:
        raise ValueError("Further pretraining hides words behind [MASK], which the encoder's tokenizer does not have.")
    pieces = tokenizer.vocabulary()
    is_special_V = np.array([piece in SPECIALS for piece in pieces])
    continues_V = np.array([piece.startswith("##") for piece in pieces])
    return Vocabulary(tokenizer.mask_id, np.flatnonzero(~is_special_V), is_special_V, continues_V)


# --------------------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Question:
    """A packed batch, the rows of the tokens that are predicted, (M,), and the right answers, (M,)."""

    batch: PackedBatch
    at_M: Tensor
    answers_M: Tensor


class _Draw(NamedTuple):
    """All that a step's questions depend on: the texts shown before it, and the most tokens of a pass."""

    shown: int
    limit: int | None


class PretrainingRun:
    """One pretraining, from its start or from the state of a killed process, to its folder in the cache."""

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
        self.settings = optimizer_of(stage)
        self.optimizer = self.settings.build(self.encoder.named_parameters(), self.head.named_parameters())
        self.optimizer.allocate()
        self.limit = config.machine.micro_batch_tokens  # the most tokens of a pass, lowered if memory does not suffice
        self.total = max(1, round(stage.epochs * len(self.texts)))
        self.shown = 0  # rows
        self.seconds = 0.0
        self.before: Record = {}
        self.ahead = Ahead(self._asked, self.device)

    def run(self, is_stopped: Callable[[], bool] = never) -> Iterator[Record]:
        """Train to the end, yielding about a hundred records, and write the folder. If stopped, save the state instead."""
        try:
            yield from self._train(is_stopped)
        finally:
            self.ahead.close()

    def _train(self, is_stopped: Callable[[], bool]) -> Iterator[Record]:
        state, began = self.one.folder.with_suffix(".state"), time.monotonic()
        if state.exists():
            self._restore(state)
            began -= self.seconds
        else:
            self.before = self.evaluate()
        meter, save_timer = Meter(self.shown), SaveTimer()
        while self.shown < self.total:
            before = self.shown
            meter.add({"loss": self.step()})
            if is_stopped():
                self.seconds = time.monotonic() - began
                self._save(state)
                return
            if not is_log_due(before, self.shown, self.total):
                continue
            losses, speed = meter.flush(self.shown)
            self.seconds = time.monotonic() - began
            if not math.isfinite(losses["loss"]):
                raise NotFiniteError(f"The loss of {self.one.name} became {losses['loss']} after {self.shown} texts.")
            yield self._progress(losses, speed)
            if save_timer.is_due():
                self._save(state)
                save_timer.restart()
            meter.restart()
        after = self.evaluate()
        self.seconds = time.monotonic() - began
        self._keep(after)
        state.unlink(missing_ok=True)

    def step(self) -> Tensor:
        """Update on the next batch; return the mean loss over the predicted tokens, not yet waited for."""
        shown, number = self.shown, self.shown // self.stage.batch_size
        self.shown = min(self.shown + self.stage.batch_size, self.total)
        factor = self.settings.lr_factor((shown + self.shown) / 2 / self.total)  # of the step's middle, as in trial.py
        what = f"step {number + 1} of {self.one.name}"
        loss, self.limit = fitted(partial(self._backward, shown, number), self.limit, self.device, what)
        with indivisible(f"The update of {what}"):
            step_at_rate(self.optimizer, factor)
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def _backward(self, shown: int, number: int, limit: int | None, sizes: Sizes) -> Tensor:
        """Compute the clipped gradient of a batch in passes of at most `limit` tokens; return the mean loss."""
        self.optimizer.zero_grad(set_to_none=True)  # left by an attempt that did not fit
        seed, questions = self.one.seed, self.ahead.take(_Draw(shown, limit))
        if self.shown < self.total:
            self.ahead.begin(_Draw(self.shown, limit))
        sizes += sizes_of(question.batch for question in questions)
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
        return loss

    def _asked(self, draw: _Draw) -> list[Question]:
        """Turn the next texts to be shown into questions."""
        number, count = draw.shown // self.stage.batch_size, min(self.stage.batch_size, self.total - draw.shown)
        rows = example_rows(seed_of(self.one.seed, "rows"), len(self.texts), draw.shown, count)
        return self.questions(self.texts, rows, np.random.default_rng(seed_of(self.one.seed, "masks", number)), draw.limit)

    def questions(self, texts: Texts, rows: Integers, random: np.random.Generator, limit: int | None = None) -> list[Question]:
        """Turn a batch into questions, in parts if it has more than `limit` tokens."""
        seconds = self.stage.follow(rows, len(texts), random)
        batch = pack_texts(texts, rows, seconds, self.config.max_length, self.inputs.specials)
        parts = [(rows, seconds)]
        if limit is not None and sum(batch.lengths) > limit:
            at = cuts(list(batch.lengths), limit)
            parts = list(zip(np.split(rows, at), np.split(seconds, at), strict=True))
        questions: list[Question] = moved([self._question(texts, *part, random) for part in parts], self.device)
        return questions

    def _question(self, texts: Texts, rows: Integers, seconds: Integers, random: np.random.Generator) -> Question:
        batch = pack_texts(texts, rows, seconds, self.config.max_length, self.inputs.specials)
        firsts_B, token_ids_N = batch.starts_S1[:-1].numpy(), batch.token_ids_N.numpy()
        asked_N, at_M, answers_M = self.stage.ask(token_ids_N, firsts_B, seconds != rows, self.vocabulary, random)
        asked = replace(batch, token_ids_N=torch.from_numpy(asked_N))
        asked = asked.laid_out((Span(len(batch.lengths), False),), self.device, self.precision == "bfloat16")
        return Question(asked, torch.from_numpy(at_M), torch.from_numpy(answers_M))

    def forward(self, question: Question, masks: Masks | None) -> Tensor:
        """Compute the logits of the predicted tokens only, (M, K), float32."""
        with in_precision(self.precision, self.device):
            hidden_ND = self.encoder(question.batch, masks)
            logits_MK: Tensor = self.head(hidden_ND[question.at_M], self.encoder)
        return logits_MK.float()

    @torch.no_grad()
    def evaluate(self) -> Record:
        """Compute mean loss and accuracy over predicted tokens of held-out rows, with the same questions each time."""
        seed, held_out = seed_of(self.stage.seed, "held out"), self.held_out
        rows = example_rows(seed, len(held_out), 0, min(len(held_out), HELD_OUT_ROWS))
        random, loss, right, num_read = np.random.default_rng(seed), 0.0, 0, 0
        for start in range(0, len(rows), self.stage.batch_size):
            asked = partial(self._answers, rows[start : start + self.stage.batch_size], random)
            what = f"the evaluation of {self.one.name}"
            (answers, random), self.limit = fitted(asked, self.limit, self.device, what)
            for losses, hits, count in answers:
                loss, right, num_read = loss + losses, right + hits, num_read + count
        return {"loss": loss / max(1, num_read), "accuracy": right / max(1, num_read)}

    def _answers(
        self, rows: Integers, random: np.random.Generator, limit: int | None, sizes: Sizes
    ) -> tuple[list[tuple[float, int, int]], np.random.Generator]:
        """Return each pass's sum of losses, right answers and questions, over held-out rows; and the generator."""
        random, answers = copy.deepcopy(random), []
        questions = self.questions(self.held_out, rows, random, limit)
        sizes += sizes_of(question.batch for question in questions)
        for question in questions:
            logits_MK = self.forward(question, None)
            loss = float(F.cross_entropy(logits_MK, question.answers_M, reduction="sum"))
            answers.append((loss, int((logits_MK.argmax(1) == question.answers_M).sum()), len(question.at_M)))
        return answers, random

    def _progress(self, figures: Record, speed: float) -> Record:
        named = {f"pretrain/{self.stage.kind}_{name}": value for name, value in figures.items()}
        done = {"pretrain/share": self.shown / self.total, "pretrain/examples_per_second": speed}
        left = {"seconds_left": (self.total - self.shown) / max(speed, 1e-9)}
        return _record(self.one, self.shown_before + self.shown, named | done | left)

    def _save(self, path: Path) -> None:
        """Write the state from which a killed pretraining resumes; replaced atomically."""
        state = {"encoder": self.encoder.state_dict(), "head": self.head.state_dict(), "optimizer": self.optimizer.state_dict()}
        counters = {"shown": self.shown, "seconds": self.seconds, "before": self.before, "limit": self.limit}
        save_state({**state, **counters}, path)

    def _restore(self, path: Path) -> None:
        state = load_state(path)
        self.encoder.load_state_dict(state["encoder"])
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.shown, self.seconds, self.before = state["shown"], state["seconds"], state["before"]
        self.limit = state.get("limit", self.limit)  # an earlier version did not write it

    def _keep(self, after: Record) -> None:
        """Write encoder, head, tokenizer and figures as a folder, durable, renamed into place when it is complete."""
        figures = {f"held_out_{name}": value for name, value in after.items()}
        figures |= {f"held_out_{name}_before": value for name, value in self.before.items()}
        head = self.head.state_dict()
        about = {"stage": self.stage.model_dump(mode="json"), "texts": len(self.texts), "examples": self.total}
        about |= {"seconds": round(self.seconds, 3), "notes": self.notes, "held_out": figures}
        if self.limit != self.config.machine.micro_batch_tokens:
            about |= {"micro_batch_tokens": self.limit}
        with replaced(self.one.folder, durable=True) as draft:
            save_encoder(self.encoder, draft, {there: head[name] for name, there in self.stage.stored.items()})
            for name in TOKENIZER_FILES:
                with contextlib.suppress(FileNotFoundError):
                    shutil.copyfile(self.one.before / name, draft / name)
            (draft / FIGURES).write_text(json.dumps(about, indent=2), encoding="utf-8")


def _head(stage: Pretraining, folder: Path, encoder: Encoder) -> tuple[nn.Module, list[str]]:
    """Load the objective's head from the checkpoint, or create a fresh one, with a note, if there is none."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(stage.seed, "head"))
        head = stage.build(encoder.shape)
    stored = load_head(folder, stage.stored) if weight_files(folder) else {}
    if not stored:
        return head, [f"The checkpoint has no {stage.head_name}: a fresh one was drawn."]
    head.load_state_dict(stored)
    return head, []
