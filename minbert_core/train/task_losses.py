"""The losses of a stage's tasks: the forward passes over a part of a batch, and the terms computed from them.

    Part -> clean passes, one per view -> task_loss, proximal_term, smoothness_term -> step.py sums them and goes backward

A batch that is too large for one pass comes in parts, whose gradients add up to that of the whole batch: exactly without
dropout; with it each part draws its own masks, so it is another sample of the same distribution. The noise of a smoothness is
drawn for the whole batch. A loss that is defined over
the batch as a whole (a correlation) takes one more pass: its gradient at the logits or features is computed first.

B examples of a part, N packed tokens, D hidden size, K outputs, V views.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minbert_core.data.tokens import PackedBatch
from minbert_core.encoder import Masks
from minbert_core.machine import in_precision
from minbert_core.methods.losses import divergence
from minbert_core.methods.proximal import Teacher
from minbert_core.methods.smoothness import Clean, Divergence, Place
from minbert_core.methods.stages import StagePlan
from minbert_core.model import MultitaskBert, Output
from minbert_core.seeds import seed_of

Batch = list[PackedBatch]  # of one task, whole or in parts


@dataclass(frozen=True)
class Part:
    """One part of a task's batch in a step: all of it, or as much as one pass may hold."""

    task: str
    step: int
    index: int
    packed: PackedBatch
    share: float  # of the batch's examples
    weight: float = 1.0  # of the task's loss in the step
    place: Place | None = None  # of its tokens in the batch; None: the part is the batch


def parts_of(task: str, step: int, batch: Batch, weight: float = 1.0) -> list[Part]:
    """Number the parts of a task's batch, each with its share of the examples."""
    total = sum(packed.num_examples for packed in batch)
    shares, places = [packed.num_examples / total for packed in batch], places_of(batch)
    return [Part(task, step, i, packed, shares[i], weight, places[i]) for i, packed in enumerate(batch)]


def places_of(batch: Batch) -> list[Place | None]:
    """Find each part's tokens among those of the whole batch, in which all first sentences precede the second ones."""
    if len(batch) == 1:
        return [None]
    num_tokens = sum(sum(packed.lengths) for packed in batch)
    rows: list[list[Tensor]] = [[] for _ in batch]
    end = 0
    for half in range(max(len(packed.lengths) // packed.num_examples for packed in batch)):
        for packed, of_part in zip(batch, rows, strict=True):
            lengths = packed.lengths[half * packed.num_examples :][: packed.num_examples]
            start, end = end, end + sum(lengths)
            of_part.append(torch.arange(start, end, device=packed.token_ids_N.device))
    return [Place(num_tokens, torch.cat(of_part)) for of_part in rows]


@dataclass
class StepReport:
    """The results of one step: losses and penalties (0-d tensors, not yet waited for), gradient figures, passes of examples.

    `cosines` holds those of the tasks' shared gradients, "sst_para" -> cosine, if the gradient method computes them.
    """

    losses: dict[str, Tensor] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    cosines: dict[str, float] = field(default_factory=dict)
    passes: int = 0

    def add_loss(self, name: str, loss: Tensor) -> None:
        """Add a part's loss, already weighted by the part's share."""
        self.losses[name] = self.losses[name] + loss.detach() if name in self.losses else loss.detach()


def numbers_of(losses: dict[str, Tensor], tasks: Iterable[str]) -> dict[str, float]:
    """Convert the losses of `tasks` to numbers. The host waits for them, once."""
    return dict(zip(tasks, torch.stack([losses[task] for task in tasks]).tolist(), strict=True))


class Views(NamedTuple):
    """The clean passes over a part, one per view, and the masks of the first view, which later passes replay."""

    values_V: list[Tensor]  # what the loss reads: logits (B, K) or features
    answers_VBK: list[Tensor]  # what the metric reads, and the penalties compare
    masks: Masks


class TaskLosses:
    """The losses and penalties of one stage's tasks. Keeps no state between steps."""

    def __init__(self, model: MultitaskBert, stage: StagePlan, seed: int, precision: str) -> None:
        self.model, self.stage, self.seed, self.precision = model, stage, seed, precision
        self.clean_precision = "float32" if stage.smoothness.needs_float32 else precision

    # ------------------------------------------------------------------------------------------------ the terms of the loss

    def clean(self, part: Part, report: StepReport) -> Views:
        """Run the clean passes over a part, one per view."""
        masks_V = [self._masks(part, view) for view in range(self.stage.smoothness.views)]
        outputs = [self._forward(part, masks, report) for masks in masks_V]
        values_V = [self._read(part.task, output) for output in outputs]
        return Views(values_V, [self._answer(part.task, output) for output in outputs], masks_V[0])

    def task_loss(self, part: Part, views: Views, report: StepReport) -> Tensor:
        """Compute the part's share of the task's loss, a scalar: the mean over the views."""
        plan = self.model.plans[part.task]
        losses_V = [plan.loss(values, part.packed.labels_B, plan.task.label_range) for values in views.values_V]
        loss: Tensor = part.share * sum(losses_V[1:], losses_V[0]) / len(losses_V)
        report.add_loss(part.task, loss)
        return loss

    def loss_with_gradient(self, views: Views, gradient_V: list[Tensor]) -> Tensor:
        """Compute a scalar whose gradient at what the loss reads, per view, is the one given."""
        pairs = zip(views.values_V, gradient_V, strict=True)
        return torch.stack([(values * gradient).sum() for values, gradient in pairs]).sum()

    def proximal_term(self, part: Part, views: Views, teacher: Teacher, report: StepReport) -> Tensor:
        """Compute the part's share of the divergence from the teacher, a scalar, without its weight."""
        with torch.no_grad():
            taught = self._forward(part, views.masks, report, model=teacher.model)
        proximal = part.share * self._divergence(part.task)(views.answers_VBK[0], self._answer(part.task, taught))
        report.add_loss(f"{part.task}_proximal", proximal)
        return proximal

    def smoothness_term(self, part: Part, views: Views, report: StepReport) -> Tensor | None:
        """Compute the part's share of the smoothness penalty, a scalar, without its weight; None if there is no penalty."""

        def noisy(noise_ND: Tensor, in_float32: bool) -> Tensor:
            precision = "float32" if in_float32 else self.precision
            return self._answer(part.task, self._forward(part, views.masks, report, noise_ND, precision=precision))

        packed = part.packed
        noise_seed = seed_of(self.seed, "noise", part.step, part.task, 0)
        clean = Clean(
            logits_VBK=views.answers_VBK,
            forward=noisy,
            divergence=self._divergence(part.task),
            example_N=packed.example_N,
            num_examples=packed.num_examples,
            hidden_size=self.model.encoder.shape.hidden_size,
            generator=torch.Generator(packed.token_ids_N.device).manual_seed(noise_seed),
            place=part.place,
        )
        penalty = self.stage.smoothness.penalty(clean)
        if penalty is None:
            return None
        smoothness = part.share * penalty
        report.add_loss(f"{part.task}_smoothness", smoothness)
        return smoothness

    # ------------------------------------------------------------------------------------------- the loss of a whole batch

    def gradients_of_whole(self, parts: list[Part], report: StepReport) -> list[list[Tensor]]:
        """Compute the gradient of a loss of the whole batch at what it reads: one list per part, one tensor per view.

        Takes one more pass over the batch, without a graph.
        """
        gradients = []
        for view in range(self.stage.smoothness.views):
            values = self._values(parts, view, report)
            whole = torch.cat(values).requires_grad_()
            loss = self._whole_loss(parts, whole) / self.stage.smoothness.views
            report.add_loss(parts[0].task, loss)
            (gradient,) = torch.autograd.grad(loss, [whole])
            gradients.append(gradient.split([len(value) for value in values]))
        return [list(of_part) for of_part in zip(*gradients, strict=True)]

    @torch.no_grad()
    def losses_again(self, step: int, batches: dict[str, Batch], report: StepReport) -> dict[str, float]:
        """Compute the tasks' losses on the step's own batches, under its masks, with the parameters as they are now."""
        losses = {}
        for task, batch in batches.items():
            parts = parts_of(task, step, batch)
            values_V = [torch.cat(self._values(parts, view, report)) for view in range(self.stage.smoothness.views)]
            losses[task] = torch.stack([self._whole_loss(parts, values) for values in values_V]).mean()
        return numbers_of(losses, batches)

    @torch.no_grad()
    def _values(self, parts: list[Part], view: int, report: StepReport) -> list[Tensor]:
        """Compute what the task's loss reads of each part, without a graph."""
        return [self._read(part.task, self._forward(part, self._masks(part, view), report)) for part in parts]

    def _whole_loss(self, parts: list[Part], values: Tensor) -> Tensor:
        """Compute the task's loss of a whole batch, given what it reads of all parts."""
        plan = self.model.plans[parts[0].task]
        return plan.loss(values, torch.cat([part.packed.labels_B for part in parts]), plan.task.label_range)

    # ------------------------------------------------------------------------------------------------------------ one pass

    def _forward(
        self,
        part: Part,
        masks: Masks,
        report: StepReport,
        noise_ND: Tensor | None = None,
        model: nn.Module | None = None,
        precision: str = "",
    ) -> Output:
        """Run one pass over a part, by the student or by `model` (the teacher).

        `precision` is that of a noisy pass. All others have that of the clean pass, so that they do not differ by rounding.
        """
        packed = part.packed
        report.passes += packed.num_examples
        with in_precision(precision or self.clean_precision, packed.token_ids_N.device):
            output: Output = (model or self.model)(part.task, packed, masks.rewind(), noise_ND, self.stage.trains_encoder)
        return output

    def _masks(self, part: Part, view: int) -> Masks:
        """Create the masks of a part under a view, which all its passes in a step replay."""
        of_view = (view,) if view else ()
        seed = seed_of(self.seed, "masks", part.step, part.task, part.index, *of_view)
        return Masks(seed, part.packed.token_ids_N.device)

    def _read(self, task: str, output: Output) -> Tensor:
        """Return what the task's loss reads of a pass: logits or features."""
        return output.features_BF if self.model.plans[task].loss.reads_features else output.logits_BK

    def _answer(self, task: str, output: Output) -> Tensor:
        """Return what the task's metric reads of a pass, which the penalties compare."""
        return self.model.readout(task, output.logits_BK)

    def _divergence(self, task: str) -> Divergence:
        """Return the divergence of two predictions of a task."""
        plan = self.model.plans[task]
        return divergence(plan.task.kind, plan.loss.error_unit(plan.task.label_range))
