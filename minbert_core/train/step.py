"""One optimisation step: forward and backward of each task into a flat buffer, the merge, the clip, the update.

T tasks in the step, P shared parameters, G parameter groups, B examples, N packed tokens, D hidden size, K outputs.

Shared gradients lie in one (T, P) buffer: each task's backward writes its own row, because every parameter's `.grad` is a view
into that row while the task is at work. The Gramian of the rows is all a gradient method sees; the merged gradient replaces
row 0, from where clip and optimiser read it. One graph is alive at a time. Heads take their own gradient. Loss weights that
are of the step's own losses come after the backward passes: they weigh rows, Gramian and heads.

A batch that is too large for one pass comes in parts, whose gradients add up to that of the whole batch: exactly without
dropout; with it each part draws masks of its own, so that it is another sample of the same law.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minbert_core.data.tokens import PackedBatch
from minbert_core.encoder import Masks
from minbert_core.machine import exact_products, in_precision
from minbert_core.methods.gradients import merging_weights
from minbert_core.methods.loss_weights import LossWeights
from minbert_core.methods.losses import divergence
from minbert_core.methods.optimizer import AdamW
from minbert_core.methods.smoothness import Clean
from minbert_core.methods.stages import StagePlan
from minbert_core.model import MultitaskBert, Output
from minbert_core.seeds import seed_of

Parts = list[PackedBatch]  # a batch, whole or in parts
TOGETHER = "all"  # who the one optimiser of all tasks serves; no task is called so
BLOCK = 512  # columns; over (3, 22.7M) 256, 512 and 4,096 take 28, 25 and 22 ms, and cosines err by 2e-9, 3e-9 and 1e-8


class SharedGradients:
    """The flat (T, P) buffer of the shared parameters' task gradients, contiguous by group; P is 0 where all are frozen."""

    def __init__(self, groups: dict[str, list[nn.Parameter]], num_rows: int, device: torch.device) -> None:
        self.parameters = [parameter for group in groups.values() for parameter in group]
        sizes = [sum(parameter.numel() for parameter in group) for group in groups.values()]
        ends = np.cumsum(sizes)
        self.slices = {name: slice(int(end - size), int(end)) for name, end, size in zip(groups, ends, sizes, strict=True)}
        self.rows_TP = torch.zeros(num_rows, sum(sizes), device=device, dtype=torch.float32)
        self.views = [self._views(row_P) for row_P in self.rows_TP]  # built once: MiniLM's 91 take .4 ms, the binding .02

    def _views(self, row_P: Tensor) -> list[Tensor]:
        """Views into a row, one per parameter, in its shape."""
        pieces = row_P.split([parameter.numel() for parameter in self.parameters])
        return [piece.view_as(parameter) for piece, parameter in zip(pieces, self.parameters, strict=True)]

    def use_row(self, row: int, fresh: bool = True) -> None:
        """Point every parameter's gradient into a row, zeroed if `fresh`."""
        if fresh:
            self.rows_TP[row].zero_()
        for parameter, view in zip(self.parameters, self.views[row], strict=True):
            parameter.grad = view

    def gramian(self, num_tasks: int) -> Tensor:
        """Inner products of the task gradients, group by group, shape (G, T, T), float64."""
        with exact_products():
            return torch.stack([gramian_of(self.rows_TP[:num_tasks, part]) for part in self.slices.values()])

    def merge(self, weights_GT: Tensor) -> None:
        """Replace row 0 by the weighted sum of the rows, group by group."""
        for part, weights_T in zip(self.slices.values(), weights_GT.tolist(), strict=True):
            merged = self.rows_TP[0, part].mul_(weights_T[0])
            for task, weight in enumerate(weights_T[1:], start=1):
                merged.add_(self.rows_TP[task, part], alpha=weight)
        self.use_row(0, fresh=False)


def gramian_of(rows_TP: Tensor) -> Tensor:
    """Inner products of the rows, shape (T, T), float64: float32 products of M blocks of C columns, summed in float64.

    One float32 product over millions of columns errs by 1e-3 of the norms. Of two nearly opposed gradients that is more than
    the square of their sum. In blocks the error is 4e-8, and the product takes two thirds of the time.
    """
    num_rows, num_blocks = len(rows_TP), rows_TP.shape[1] // BLOCK
    whole_TP, rest_TP = rows_TP.tensor_split([num_blocks * BLOCK], dim=1)
    blocks_MTC = whole_TP.view(num_rows, num_blocks, BLOCK).transpose(0, 1)
    return (blocks_MTC @ blocks_MTC.mT).sum(dim=0, dtype=torch.float64) + (rest_TP @ rest_TP.T).double()


def numbers_of(losses: dict[str, Tensor], tasks: Iterable[str]) -> dict[str, float]:
    """The losses of `tasks` as numbers, which the host waits for, once."""
    return dict(zip(tasks, torch.stack([losses[task] for task in tasks]).tolist(), strict=True))


@dataclass
class StepReport:
    """What one step did: losses and penalties (0-d tensors, not yet waited for), gradient figures, passes over examples.

    `cosines`: of the tasks' shared gradients, "sst_para" -> cosine, where a method has them computed.
    """

    losses: dict[str, Tensor] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    cosines: dict[str, float] = field(default_factory=dict)
    passes: int = 0

    def add_loss(self, name: str, loss: Tensor) -> None:
        """A part's loss, weighed by the part's size already."""
        self.losses[name] = self.losses[name] + loss.detach() if name in self.losses else loss.detach()


class Stepper:
    """Everything a stage's steps share: buffer, optimiser, the method's state, teacher. One is built at each stage's start.

    What the stage does not train (a frozen encoder, a pooler that no task reads) is marked so that no graph is built for it.
    """

    def __init__(self, model: MultitaskBert, stage: StagePlan, loss_weights: LossWeights, seed: int, precision: str) -> None:
        self.model, self.stage, self.loss_weights, self.seed = model, stage, loss_weights, seed
        self.precision = precision
        self.clean_precision = "float32" if stage.smoothness.needs_float32 else precision
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        shared = model.shared_groups(stage.trains_encoder)
        groups = {name: group for name, group in shared.items() if any(model.reads(task, name) for task in stage.tasks)}
        own = {name: list(model.own_parameters(name, stage.trains_encoder)) for name in stage.tasks}
        self.own = {name: [parameter for _, parameter in items] for name, items in own.items()}
        self.head_parameters = [parameter for parameters in self.own.values() for parameter in parameters]
        for parameter in (*self.head_parameters, *(parameter for group in groups.values() for parameter in group)):
            parameter.requires_grad_(True)
        self.kinds = {name: model.plans[name].task.kind for name in stage.tasks}
        self.weighs_gradients = loss_weights.reads_losses and len(stage.tasks) > 1  # the only task there is weighs 1
        self.merges = stage.gradient.needs_several_tasks or self.weighs_gradients
        num_rows = stage.task_schedule.tasks_per_step(len(stage.tasks)) if self.merges else 1
        self.shared = SharedGradients(groups, num_rows, next(model.parameters()).device)
        self.groups = groups
        trained = [(name, parameter) for name, parameter in model.encoder.named_parameters() if parameter.requires_grad]
        shared_layer = [("shared_layer", parameter) for parameter in groups.get("shared_layer", [])]
        served = own if stage.optimizer.per_task else {TOGETHER: [item for items in own.values() for item in items]}
        self.optimizers: dict[str, AdamW] = {
            name: stage.optimizer.build(trained, [*heads, *shared_layer]) for name, heads in served.items()
        }
        self.gradient_state: dict[str, Tensor] = {}
        self.loss_state: dict[str, Tensor] = {}
        self.teacher = stage.proximal.start(model)

    def state(self) -> dict[str, Any]:
        """All that a snapshot needs beside the model."""
        teacher = self.teacher.state() if self.teacher else {}
        return {
            "optimizer": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "gradient": self.gradient_state,
            "loss_weights": self.loss_state,
            "teacher": teacher,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizer"][name])
        self.gradient_state, self.loss_state = dict(state["gradient"]), dict(state["loss_weights"])
        if self.teacher:
            self.teacher.restore(state["teacher"])

    def step(
        self, number: int, batches: dict[str, Parts], progress: float, measure: bool, measure_penalty: bool = True
    ) -> StepReport:
        """Train on one batch of each task in `batches` (the step's tasks, in order); progress: of the stage, in [0, 1].

        `measure` also reports the gradient's norm and, with `measure_penalty`, |grad R_s|, which costs as much as a step.
        """
        report = StepReport()
        for parameter in self.head_parameters:
            parameter.grad = None
        ones = dict.fromkeys(batches, 1.0)
        weights = ones if self.loss_weights.reads_losses else self._loss_weights({})
        if not self.merges:
            self.shared.use_row(0)  # which all tasks add to
        for row, (task, parts) in enumerate(batches.items()):
            if self.merges:
                self.shared.use_row(row)
            self._backward(number, task, parts, weights[task], report, measure and measure_penalty)
        losses = numbers_of(report.losses, batches) if self.loss_weights.follows_losses else {}
        late_weights = self._loss_weights(losses) if self.weighs_gradients else ones
        if measure and self.loss_weights.follows_losses:
            report.figures |= {f"{task}_weight": weights[task] * late_weights[task] for task in batches}
        if self.weighs_gradients:
            self._weigh_heads(late_weights)
        if self.merges and self.shared.slices:
            self._merge(number, late_weights, report)
        for name, group in self.groups.items():
            if not any(self.model.reads(task, name) for task in batches):
                for parameter in group:  # untouched in this step: a zero gradient would still decay its moments
                    parameter.grad = None
        self._clip(report, measure)
        self._update(tuple(batches), progress)
        if losses:
            again = self.loss_weights.looks_again and self.weighs_gradients
            losses_after = self._losses_again(number, batches, report) if again else losses
            self.loss_weights.follow(self.kinds, losses, losses_after, progress, self.loss_state)
        if self.teacher:
            self.teacher.follow(progress)
        return report

    def _loss_weights(self, losses: dict[str, float]) -> dict[str, float]:
        return self.loss_weights.of(self.kinds, losses, self.loss_state)

    def _weigh_heads(self, weights: dict[str, float]) -> None:
        """Scale the gradients of what each task alone trains; what is shared is weighed as it is merged."""
        for task, weight in weights.items():
            for parameter in self.own[task]:
                if parameter.grad is not None:
                    parameter.grad.mul_(weight)

    def _update(self, tasks: tuple[str, ...], progress: float) -> None:
        """The optimiser's step, at the rate of this progress: of the one for all tasks, or of that of the step's only task."""
        optimizer = self.optimizers[tasks[0] if self.stage.optimizer.per_task else TOGETHER]
        lr_factor = self.stage.optimizer.lr_factor(progress)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * lr_factor
        optimizer.step()

    def _backward(self, number: int, task: str, parts: Parts, weight: float, report: StepReport, measure: bool) -> None:
        """Loss and penalties of one task's batch, a graph a part, backward into the current row."""
        total = sum(batch.num_examples for batch in parts)
        whole = len(parts) == 1 or self.model.plans[task].loss.is_mean
        upstream = None if whole else self._gradient_of_values(number, task, parts, report)
        for part, batch in enumerate(parts):
            share = batch.num_examples / total
            known = upstream[part] if upstream else None
            self._backward_part(number, task, part, batch, share, known, weight, report, measure)

    def _gradient_of_values(self, number: int, task: str, parts: Parts, report: StepReport) -> list[list[Tensor]]:
        """d loss / d what the loss reads, a part and view each: of a loss that is of the batch as a whole, in one more pass."""
        gradients = []
        for view in range(self.stage.smoothness.views):
            values = self._values(number, task, parts, view, report)
            whole = torch.cat(values).requires_grad_()
            loss = self._loss_of(task, whole, parts) / self.stage.smoothness.views
            report.add_loss(task, loss)
            (gradient,) = torch.autograd.grad(loss, [whole])
            gradients.append(gradient.split([len(value) for value in values]))
        return [list(of_part) for of_part in zip(*gradients, strict=True)]

    @torch.no_grad()
    def _losses_again(self, number: int, batches: dict[str, Parts], report: StepReport) -> dict[str, float]:
        """The tasks' losses on the step's own batches, under its masks, with the parameters as they are now."""
        views = range(self.stage.smoothness.views)
        losses = {}
        for task, parts in batches.items():
            values_V = [torch.cat(self._values(number, task, parts, view, report)) for view in views]
            losses[task] = torch.stack([self._loss_of(task, values, parts) for values in values_V]).mean()
        return numbers_of(losses, batches)

    @torch.no_grad()
    def _values(self, number: int, task: str, parts: Parts, view: int, report: StepReport) -> list[Tensor]:
        """What the task's loss reads of each part, without a graph."""
        masks = [self._masks(number, task, part, batch, view) for part, batch in enumerate(parts)]
        return [self._read(task, self._forward(task, *pair, report)) for pair in zip(parts, masks, strict=True)]

    def _loss_of(self, task: str, values: Tensor, parts: Parts) -> Tensor:
        """The task's loss of a whole batch."""
        plan = self.model.plans[task]
        return plan.loss(values, torch.cat([batch.labels_B for batch in parts]), plan.task.label_range)

    def _read(self, task: str, output: Output) -> Tensor:
        """What the task's loss reads of a pass."""
        return output.features_BF if self.model.plans[task].loss.reads_features else output.logits_BK

    def _masks(self, number: int, task: str, part: int, batch: PackedBatch, view: int = 0) -> Masks:
        """The one set of masks of a part under a view, which all its passes in a step replay."""
        further = (view,) if view else ()
        return Masks(seed_of(self.seed, "masks", number, task, part, *further), batch.token_ids_N.device)

    def _forward(
        self,
        task: str,
        batch: PackedBatch,
        masks: Masks,
        report: StepReport,
        noise_ND: Tensor | None = None,
        model: nn.Module | None = None,
        precision: str = "",
    ) -> Output:
        """A pass of one part, by the student or by `model` (the teacher).

        precision: of a noisy pass. All others have that of the clean pass, so that rounding does not set them apart.
        """
        report.passes += batch.num_examples
        with in_precision(precision or self.clean_precision, batch.token_ids_N.device):
            output: Output = (model or self.model)(task, batch, masks.rewind(), noise_ND, self.stage.trains_encoder)
        return output

    def _backward_part(
        self,
        number: int,
        task: str,
        part: int,
        batch: PackedBatch,
        share: float,
        upstream: list[Tensor] | None,
        weight: float,
        report: StepReport,
        measure: bool,
    ) -> None:
        """One graph: the part's share of loss, smoothness and proximal term, backward.

        upstream: the loss's gradient at what it reads, a view each, where the loss is known already.
        """
        plan, stage, readout = self.model.plans[task], self.stage, partial(self.model.readout, task)
        distance = divergence(plan.task.kind, plan.loss.error_unit(plan.task.label_range))
        masks, *others = (self._masks(number, task, part, batch, view) for view in range(stage.smoothness.views))
        outputs = [self._forward(task, batch, one, report) for one in (masks, *others)]
        values_V, answers_VBK = [self._read(task, one) for one in outputs], [readout(one.logits_BK) for one in outputs]
        if upstream is None:
            losses_V = [plan.loss(values, batch.labels_B, plan.task.label_range) for values in values_V]
            loss = share * sum(losses_V[1:], losses_V[0]) / len(losses_V)
            report.add_loss(task, loss)
        else:
            loss = torch.stack([(values * given).sum() for values, given in zip(values_V, upstream, strict=True)]).sum()
        if self.teacher:
            with torch.no_grad():
                taught = self._forward(task, batch, masks, report, model=self.teacher.model)
            proximal = share * distance(answers_VBK[0], readout(taught.logits_BK))
            report.add_loss(f"{task}_proximal", proximal)
            loss = loss + stage.proximal.weight * proximal

        def noisy(noise_ND: Tensor, in_float32: bool) -> Tensor:
            precision = "float32" if in_float32 else self.precision
            return readout(self._forward(task, batch, masks, report, noise_ND, precision=precision).logits_BK)

        clean = Clean(
            logits_VBK=answers_VBK,
            forward=noisy,
            divergence=distance,
            example_N=batch.example_N,
            num_examples=batch.num_examples,
            hidden_size=self.model.encoder.shape.hidden_size,
            generator=torch.Generator(loss.device).manual_seed(seed_of(self.seed, "noise", number, task, part)),
        )
        smoothness = stage.smoothness.penalty(clean)
        if smoothness is None:
            if loss.requires_grad:  # not where the encoder is frozen and the loss reads features
                (weight * loss).backward()
            return
        smoothness = share * smoothness
        report.add_loss(f"{task}_smoothness", smoothness)
        penalty = weight * stage.smoothness.weight * smoothness
        if measure and part == 0:  # |grad R_s| / |grad task|, so that a smoothness that does nothing is seen
            self._measured_backward(task, weight * loss, penalty, report)
        else:
            (weight * loss + penalty).backward()

    def _measured_backward(self, task: str, loss: Tensor, penalty: Tensor, report: StepReport) -> None:
        shared = [parameter for parameter in self.shared.parameters if parameter.requires_grad]
        parameters = shared or self.head_parameters  # where all that is shared is frozen: PALs beside a frozen encoder
        of_penalty = torch.autograd.grad(penalty, parameters, retain_graph=True, allow_unused=True)
        of_loss = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        dense = [[g.to_dense() if g.is_sparse else g for g in grads if g is not None] for grads in (of_penalty, of_loss)]
        norms = [float(nn.utils.get_total_norm(grads)) for grads in dense]
        report.figures[f"{task}_smoothness_gradient_ratio"] = norms[0] / max(norms[1], 1e-12)
        (loss + penalty).backward()

    def _merge(self, number: int, weights: dict[str, float], report: StepReport) -> None:
        """Make one gradient of the rows, each times its task's weight."""
        tasks, task_weights_T = tuple(weights), torch.tensor(list(weights.values()), dtype=torch.float64)
        gramian_GTT = self.shared.gramian(len(tasks)).cpu() * task_weights_T[:, None] * task_weights_T
        generator = np.random.default_rng(seed_of(self.seed, "orders", number))
        weights_GT = merging_weights(self.stage.gradient, gramian_GTT, tasks, generator, self.gradient_state)
        self.shared.merge(weights_GT * task_weights_T)
        whole_TT = gramian_GTT.sum(0)
        norms_T = whole_TT.diagonal().sqrt()
        cosines_TT = (whole_TT / (norms_T[:, None] * norms_T)).tolist()  # nan where a task's gradient is zero
        for i, task in enumerate(tasks):
            for j in range(i):
                if math.isfinite(cosines_TT[i][j]):
                    report.cosines[f"{tasks[j]}_{task}"] = cosines_TT[i][j]

    def _clip(self, report: StepReport, measure: bool) -> None:
        """Scale all gradients, heads included, so that their common norm is at most `optimizer/clip`."""
        limit = self.stage.optimizer.clip
        if limit is None and not measure:
            return
        parameters = [*self.shared.parameters, *self.head_parameters]
        gradients = [self.shared.rows_TP[0], *(p.grad for p in self.head_parameters if p.grad is not None)]
        norm = nn.utils.get_total_norm(gradients)
        if limit is not None:
            nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        if measure:
            report.figures["gradient_norm"] = float(norm)
