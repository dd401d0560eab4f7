"""The losses of a stage's tasks: the forward passes over parts of their batches, and the terms computed from them.

    Pass -> clean passes, one per view -> task_loss, proximal_terms, smoothness_terms -> step.py sums them and goes backward

A batch that is too large for one pass comes in parts, whose gradients add up to that of the whole batch: exactly without
dropout; with it each pass draws its own masks, so it is another sample of the same distribution. The noise of a smoothness is
drawn for the whole batch of a task. A loss that is defined over the batch as a whole (a correlation) takes one more pass: its
gradient at the logits or features is computed first.

B examples of a part, N packed tokens of a pass, D hidden size, K outputs, V views, T parts of a pass, one per task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from minbert_core.encoder import Masks
from minbert_core.machine import in_precision
from minbert_core.methods.losses import divergence
from minbert_core.methods.proximal import Teacher
from minbert_core.methods.smoothness import Clean
from minbert_core.methods.stages import StagePlan
from minbert_core.model import MultitaskBert, Output
from minbert_core.seeds import seed_of
from minbert_core.train.passes import Part, Pass

Divergence = Callable[[Tensor, Tensor], Tensor]  # of two predictions (B, K) of a task -> scalar
Outputs = list[Output]  # one per part of a pass


@dataclass
class StepReport:
    """The results of one step: losses and penalties (0-d tensors, not yet waited for), gradient figures, passes of examples.

    `cosines` holds those of the tasks' shared gradients, "sst_para" -> cosine, if the gradient method computes them;
    `group_cosines` those of each parameter group, "sst_para/layer.3".
    """

    losses: dict[str, Tensor] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    cosines: dict[str, float] = field(default_factory=dict)
    group_cosines: dict[str, float] = field(default_factory=dict)
    passes: int = 0

    def add_loss(self, name: str, loss: Tensor) -> None:
        """Add a part's loss, already weighted by the part's share."""
        self.losses[name] = self.losses[name] + loss.detach() if name in self.losses else loss.detach()


def numbers_of(losses: dict[str, Tensor], tasks: Iterable[str]) -> dict[str, float]:
    """Convert the losses of `tasks` to numbers. The host waits for them, once."""
    return dict(zip(tasks, torch.stack([losses[task] for task in tasks]).tolist(), strict=True))


class Views(NamedTuple):
    """The clean passes over the parts of a pass, one per view, and the masks of the first view, which later passes replay."""

    values_VT: list[list[Tensor]]  # what the losses read: logits (B, K) or features
    answers_VT: list[list[Tensor]]  # what the metrics read, and the penalties compare, (B, K)
    masks: Masks


class TaskLosses:
    """The losses and penalties of one stage's tasks. Keeps no state between steps."""

    def __init__(self, model: MultitaskBert, stage: StagePlan, seed: int, precision: str) -> None:
        self.model, self.stage, self.seed = model, stage, seed
        self.clean_precision = "float32" if stage.smoothness.needs_float32 else precision
        # masks that are not stored differ between precisions, by the kernels that draw them: then no pass may differ in it
        is_stored = next(model.parameters()).device.type == "cpu"
        self.noisy_precision = precision if is_stored else self.clean_precision

    # ------------------------------------------------------------------------------------------------ the terms of the loss

    def clean(self, one: Pass, report: StepReport) -> Views:
        """Run the clean passes, one per view."""
        masks_V = [self._masks(one, view) for view in range(self.stage.smoothness.views)]
        outputs_V = [self._forward(one, masks, report) for masks in masks_V]
        values_VT = [self._read(one, outputs) for outputs in outputs_V]
        return Views(values_VT, [self._answers(one, outputs) for outputs in outputs_V], masks_V[0])

    def task_loss(self, part: Part, labels_B: Tensor, values_V: list[Tensor], report: StepReport) -> Tensor:
        """Compute the part's share of the task's loss, a scalar: the mean over the views."""
        plan = self.model.plans[part.task]
        losses_V = [plan.loss(values, labels_B, plan.task.label_range) for values in values_V]
        loss: Tensor = part.share * sum(losses_V[1:], losses_V[0]) / len(losses_V)
        report.add_loss(part.task, loss)
        return loss

    def loss_with_gradient(self, values_V: list[Tensor], gradient_V: list[Tensor]) -> Tensor:
        """Compute a scalar whose gradient at what the loss reads, per view, is the one given."""
        pairs = zip(values_V, gradient_V, strict=True)
        return torch.stack([(values * gradient).sum() for values, gradient in pairs]).sum()

    def proximal_terms(self, one: Pass, views: Views, teacher: Teacher, report: StepReport) -> list[Tensor]:
        """Compute each part's share of the divergence from the teacher, a scalar, without its weight."""
        assert isinstance(teacher.model, MultitaskBert), "a teacher is a copy of the student"
        with torch.no_grad():
            taught = self._answers(one, self._forward(one, views.masks, report, model=teacher.model))
        pairs = zip(one.parts, views.answers_VT[0], taught, strict=True)
        divergences = [self._divergence(part.task)(answers_BK, taught_BK) for part, answers_BK, taught_BK in pairs]
        return self._shares(one, divergences, "proximal", report)

    def smoothness_terms(self, one: Pass, views: Views, report: StepReport) -> list[Tensor] | None:
        """Compute each part's share of the smoothness penalty, a scalar, without its weight; None if there is no penalty."""

        def noisy(noise_ND: Tensor, in_float32: bool) -> Tensor:
            precision = "float32" if in_float32 else self.noisy_precision
            return _in_one(self._answers(one, self._forward(one, views.masks, report, noise_ND, precision=precision)))

        shapes = [answers_BK.shape for answers_BK in views.answers_VT[0]]
        clean = Clean(
            logits_VBK=[_in_one(answers) for answers in views.answers_VT],
            forward=noisy,
            divergence=partial(_divergences, [self._divergence(part.task) for part in one.parts], shapes),
            example_N=one.packed.example_N,
            num_examples=one.packed.num_examples,
            random_noise=partial(self._noise, one),
        )
        penalty_T = self.stage.smoothness.penalty(clean)
        return None if penalty_T is None else self._shares(one, list(penalty_T.unbind()), "smoothness", report)

    def _shares(self, one: Pass, terms: list[Tensor], name: str, report: StepReport) -> list[Tensor]:
        """Weigh each part's term by its share of the batch, and report it."""
        shares = [part.share * term for part, term in zip(one.parts, terms, strict=True)]
        for part, share in zip(one.parts, shares, strict=True):
            report.add_loss(f"{part.task}_{name}", share)
        return shares

    def _noise(self, one: Pass) -> Tensor:
        """Draw standard normal noise, (N, D): for each part its rows of the noise of its task's whole batch."""
        noises, device = [], one.packed.device
        for part in one.parts:
            generator = torch.Generator(device).manual_seed(seed_of(self.seed, "noise", one.step, part.task, 0))
            shape = part.place.num_tokens, self.model.encoder.shape.hidden_size
            whole_ND = torch.randn(shape, generator=generator, device=device)
            noises += [whole_ND[start:end] for start, end in part.place.ranges]
        shape = one.packed.num_padding, self.model.encoder.shape.hidden_size
        return torch.cat([*noises, torch.zeros(shape, device=device)])

    # ------------------------------------------------------------------------------------------- the loss of a whole batch

    def gradients_of_whole(self, passes: list[Pass], report: StepReport) -> list[list[Tensor]]:
        """Compute the gradient of a loss of a whole batch at what it reads: one list per pass, one tensor per view.

        `passes` are those of one task, which share none with another. Takes one more pass over the batch, without a graph.
        """
        gradients = []
        for view in range(self.stage.smoothness.views):
            values = self._values(passes, view, report)
            whole = torch.cat(values).requires_grad_()
            loss = self._whole_loss(passes, whole) / self.stage.smoothness.views
            report.add_loss(passes[0].parts[0].task, loss)
            (gradient,) = torch.autograd.grad(loss, [whole])
            gradients.append(gradient.split([len(value) for value in values]))
        return [list(of_pass) for of_pass in zip(*gradients, strict=True)]

    @torch.no_grad()
    def losses_again(self, passes: list[Pass], report: StepReport) -> dict[str, float]:
        """Compute the tasks' losses on the step's own batches, under its masks, with the parameters as they are now.

        No two tasks may share a pass.
        """
        by_task: dict[str, list[Pass]] = {}
        for one in passes:
            by_task.setdefault(one.parts[0].task, []).append(one)
        losses = {}
        for task, of_task in by_task.items():
            values_V = [torch.cat(self._values(of_task, view, report)) for view in range(self.stage.smoothness.views)]
            losses[task] = torch.stack([self._whole_loss(of_task, values) for values in values_V]).mean()
        return numbers_of(losses, by_task)

    @torch.no_grad()
    def _values(self, passes: list[Pass], view: int, report: StepReport) -> list[Tensor]:
        """Compute what a task's loss reads of each of its passes, without a graph."""
        return [self._read(one, self._forward(one, self._masks(one, view), report))[0] for one in passes]

    def _whole_loss(self, passes: list[Pass], values: Tensor) -> Tensor:
        """Compute the loss of a task's whole batch, given what it reads of all passes."""
        plan = self.model.plans[passes[0].parts[0].task]
        return plan.loss(values, torch.cat([one.packed.labels_B for one in passes]), plan.task.label_range)

    # ------------------------------------------------------------------------------------------------------------ one pass

    def _forward(
        self,
        one: Pass,
        masks: Masks,
        report: StepReport,
        noise_ND: Tensor | None = None,
        model: MultitaskBert | None = None,
        precision: str = "",
    ) -> Outputs:
        """Run one pass, by the student or by `model` (the teacher).

        `precision` is that of a noisy pass. All others have that of the clean pass, so that they do not differ by rounding.
        """
        packed = one.packed
        report.passes += packed.num_examples
        with in_precision(precision or self.clean_precision, packed.device):
            outputs = (model or self.model).together(one.sequences, packed, masks.rewind(), noise_ND, self.stage.trains_encoder)
        return list(outputs.values())

    def _masks(self, one: Pass, view: int) -> Masks:
        """Create the masks of a pass under a view, which all repetitions of it in a step replay."""
        tasks, of_view = "+".join(one.sequences), (view,) if view else ()
        return Masks(seed_of(self.seed, "masks", one.step, tasks, one.parts[0].index, *of_view), one.packed.device)

    def _read(self, one: Pass, outputs: Outputs) -> list[Tensor]:
        """Return what each task's loss reads of a pass: logits or features."""
        pairs = zip(one.parts, outputs, strict=True)
        return [o.features_BF if self.model.plans[part.task].loss.reads_features else o.logits_BK for part, o in pairs]

    def _answers(self, one: Pass, outputs: Outputs) -> list[Tensor]:
        """Return what each task's metric reads of a pass, which the penalties compare."""
        return [self.model.readout(part.task, output.logits_BK) for part, output in zip(one.parts, outputs, strict=True)]

    def _divergence(self, task: str) -> Divergence:
        """Return the divergence of two predictions of a task."""
        plan = self.model.plans[task]
        return divergence(plan.task.kind, plan.loss.error_unit(plan.task.label_range))


def _in_one(answers_T: list[Tensor]) -> Tensor:
    """Put the answers of all parts, (B, K) each, into one vector."""
    return torch.cat([answers_BK.flatten() for answers_BK in answers_T])


def _divergences(divergences: list[Divergence], shapes: list[torch.Size], p: Tensor, q: Tensor) -> Tensor:
    """Compute the divergence of each part, (T,), from two vectors of all parts' answers, whose shapes are given."""
    sizes = [shape.numel() for shape in shapes]
    parts = zip(divergences, shapes, p.split(sizes), q.split(sizes), strict=True)
    return torch.stack([diverge(of_p.view(shape), of_q.view(shape)) for diverge, shape, of_p, of_q in parts])
