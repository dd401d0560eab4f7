"""One optimisation step: forward and backward of each task into a flat buffer, the merge, the clip, the update.

T tasks in the step, P shared parameters, G parameter groups, B examples, N packed tokens, D hidden size, K outputs.

Shared gradients lie in one (T, P) buffer: each task's backward writes its own row, because every parameter's `.grad` is a view
into that row while the task is at work. The Gramian of the rows is all a gradient method sees; the merged gradient replaces
row 0, from where clip and optimiser read it. One graph is alive at a time. Heads take their own gradient.

A batch that is too large for one pass comes in parts, whose gradients add up to that of the whole batch: exactly without
dropout; with it each part draws masks of its own, so that it is another sample of the same law.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minbert_core.config import seed_of
from minbert_core.data.tokens import PackedBatch
from minbert_core.encoder import Masks
from minbert_core.methods.gradients import random_orders
from minbert_core.methods.losses import divergence
from minbert_core.methods.stages import StagePlan
from minbert_core.model import MultitaskBert, Output

Parts = list[PackedBatch]  # a batch, whole or in parts


class SharedGradients:
    """The flat (T, P) buffer of the shared parameters' task gradients, contiguous by group; P is 0 where all are frozen."""

    def __init__(self, groups: dict[str, list[nn.Parameter]], num_rows: int, device: torch.device) -> None:
        self.parameters = [parameter for group in groups.values() for parameter in group]
        sizes = [sum(parameter.numel() for parameter in group) for group in groups.values()]
        ends = np.cumsum(sizes)
        self.slices = {name: slice(int(end - size), int(end)) for name, end, size in zip(groups, ends, sizes, strict=True)}
        self.rows_TP = torch.zeros(num_rows, sum(sizes), device=device, dtype=torch.float32)

    def use_row(self, row: int, fresh: bool = True) -> None:
        """Point every parameter's gradient into a row, zeroed if `fresh`."""
        if fresh:
            self.rows_TP[row].zero_()
        start = 0
        for parameter in self.parameters:
            end = start + parameter.numel()
            parameter.grad = self.rows_TP[row, start:end].view_as(parameter)
            start = end

    def gramian(self, num_tasks: int) -> Tensor:
        """Inner products of the task gradients, group by group, shape (G, T, T)."""
        return torch.stack([rows @ rows.T for rows in (self.rows_TP[:num_tasks, part] for part in self.slices.values())])

    def merge(self, weights_GT: Tensor) -> None:
        """Replace row 0 by the weighted sum of the rows, group by group."""
        for part, weights_T in zip(self.slices.values(), weights_GT.tolist(), strict=True):
            merged = self.rows_TP[0, part].mul_(weights_T[0])
            for task, weight in enumerate(weights_T[1:], start=1):
                merged.add_(self.rows_TP[task, part], alpha=weight)
        self.use_row(0, fresh=False)


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

    def __init__(
        self, model: MultitaskBert, stage: StagePlan, task_weights: Callable[[str], float], seed: int, precision: str
    ) -> None:
        self.model, self.stage, self.task_weights, self.seed = model, stage, task_weights, seed
        self.bfloat16 = precision == "bfloat16"
        self.uses_pooler = {name: model.plans[name].pooling.uses_pooler for name in stage.tasks}
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        groups = model.shared_groups(stage.trains_encoder)
        if not any(self.uses_pooler.values()):
            groups.pop("pooler", None)
        heads = [item for name in stage.tasks for item in model.own_parameters(name)]
        self.head_parameters = [parameter for _, parameter in heads]
        for parameter in (*self.head_parameters, *(parameter for group in groups.values() for parameter in group)):
            parameter.requires_grad_(True)
        self.merges = stage.gradient.needs_several_tasks
        num_rows = stage.task_schedule.tasks_per_step(len(stage.tasks)) if self.merges else 1
        self.shared = SharedGradients(groups, num_rows, next(model.parameters()).device)
        self.pooler = set(map(id, groups.get("pooler", [])))
        trained = [(name, parameter) for name, parameter in model.encoder.named_parameters() if parameter.requires_grad]
        self.optimizer = stage.optimizer.build(trained, heads)
        self.gradient_state: dict[str, Tensor] = {}
        self.teacher = stage.proximal.start(model)

    def state(self) -> dict[str, Any]:
        """All that a snapshot needs beside the model."""
        teacher = self.teacher.state() if self.teacher else {}
        return {"optimizer": self.optimizer.state_dict(), "gradient": self.gradient_state, "teacher": teacher}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.gradient_state = dict(state["gradient"])
        if self.teacher:
            self.teacher.restore(state["teacher"])

    def step(self, number: int, batches: dict[str, Parts], progress: float, measure: bool) -> StepReport:
        """Train on one batch of each task in `batches` (the step's tasks, in order); progress: of the stage, in [0, 1].

        `measure` also reports figures that cost something (gradient norms, |grad R_s|).
        """
        report = StepReport()
        for parameter in self.head_parameters:
            parameter.grad = None
        for row, (task, parts) in enumerate(batches.items()):
            self.shared.use_row(row if self.merges else 0, fresh=self.merges or row == 0)
            self._backward(number, task, parts, report, measure)
        if self.merges:
            self._merge(number, tuple(batches), report)
        if self.pooler and not any(self.uses_pooler[task] for task in batches):
            for parameter in self.shared.parameters:  # untouched in this step: a zero gradient would still decay its moments
                if id(parameter) in self.pooler:
                    parameter.grad = None
        self._clip(report, measure)
        lr_factor = self.stage.optimizer.lr_factor(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * lr_factor
        self.optimizer.step()
        if self.teacher:
            self.teacher.follow(progress)
        return report

    def _backward(self, number: int, task: str, parts: Parts, report: StepReport, measure: bool) -> None:
        """Loss and penalties of one task's batch, a graph a part, backward into the current row."""
        total = sum(batch.num_examples for batch in parts)
        whole = len(parts) == 1 or self.model.plans[task].loss.is_mean
        upstream = None if whole else self._gradient_of_values(number, task, parts, report)
        for part, batch in enumerate(parts):
            share = batch.num_examples / total
            self._backward_part(number, task, part, batch, share, upstream[part] if upstream else None, report, measure)

    def _gradient_of_values(self, number: int, task: str, parts: Parts, report: StepReport) -> list[Tensor]:
        """d loss / d what the loss reads, for each part: of a loss that is of the batch as a whole, in one more pass."""
        plan = self.model.plans[task]
        with torch.no_grad():
            masks = [self._masks(number, task, part, batch) for part, batch in enumerate(parts)]
            values = [self._read(task, self._forward(task, *pair, report)) for pair in zip(parts, masks, strict=True)]
        whole = torch.cat(values).requires_grad_()
        loss = plan.loss(whole, torch.cat([batch.labels_B for batch in parts]), plan.task.label_range)
        report.add_loss(task, loss)
        (gradient,) = torch.autograd.grad(loss, [whole])
        return list(gradient.split([len(value) for value in values]))

    def _read(self, task: str, output: Output) -> Tensor:
        """What the task's loss reads of a pass."""
        return output.features_BF if self.model.plans[task].loss.reads_features else output.logits_BK

    def _masks(self, number: int, task: str, part: int, batch: PackedBatch) -> Masks:
        """The one set of masks of a part, which all its passes in a step replay."""
        return Masks(seed_of(self.seed, "masks", number, task, part), batch.token_ids_N.device)

    def _forward(
        self,
        task: str,
        batch: PackedBatch,
        masks: Masks,
        report: StepReport,
        noise_ND: Tensor | None = None,
        model: nn.Module | None = None,
    ) -> Output:
        """A pass of one part, by the student or by `model` (the teacher)."""
        report.passes += batch.num_examples
        bfloat16 = self.bfloat16 and not self.stage.smoothness.needs_float32
        with torch.autocast(batch.token_ids_N.device.type, dtype=torch.bfloat16, enabled=bfloat16):
            output: Output = (model or self.model)(task, batch, masks.rewind(), noise_ND, self.stage.trains_encoder)
        return output

    def _backward_part(
        self,
        number: int,
        task: str,
        part: int,
        batch: PackedBatch,
        share: float,
        upstream: Tensor | None,
        report: StepReport,
        measure: bool,
    ) -> None:
        """One graph: the part's share of loss, smoothness and proximal term, backward.

        upstream: the loss's gradient at what it reads, where the loss is known already.
        """
        plan, stage = self.model.plans[task], self.stage
        weight, readout = self.task_weights(task), partial(self.model.readout, task)
        distance = divergence(plan.task.kind)
        masks = self._masks(number, task, part, batch)
        output = self._forward(task, batch, masks, report)
        values, answers_BK = self._read(task, output), readout(output.logits_BK)
        if upstream is None:
            loss = share * plan.loss(values, batch.labels_B, plan.task.label_range)
            report.add_loss(task, loss)
        else:
            loss = (values * upstream).sum()
        if self.teacher:
            with torch.no_grad():
                taught = self._forward(task, batch, masks, report, model=self.teacher.model)
            proximal = share * distance(answers_BK, readout(taught.logits_BK))
            report.add_loss(f"{task}_proximal", proximal)
            loss = loss + stage.proximal.weight * proximal
        smoothness = stage.smoothness.penalty(
            lambda noise_ND: readout(self._forward(task, batch, masks, report, noise_ND).logits_BK),
            answers_BK,
            distance,
            batch.example_N,
            batch.num_examples,
            (len(batch.token_ids_N), self.model.encoder.shape.hidden_size),
            torch.Generator(answers_BK.device).manual_seed(seed_of(self.seed, "noise", number, task, part)),
        )
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
        parameters = [parameter for parameter in self.shared.parameters if parameter.requires_grad]
        of_penalty = torch.autograd.grad(penalty, parameters, retain_graph=True, allow_unused=True)
        of_loss = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        dense = [[g.to_dense() if g.is_sparse else g for g in grads if g is not None] for grads in (of_penalty, of_loss)]
        norms = [float(nn.utils.get_total_norm(grads)) for grads in dense]
        report.figures[f"{task}_smoothness_gradient_ratio"] = norms[0] / max(norms[1], 1e-12)
        (loss + penalty).backward()

    def _merge(self, number: int, tasks: tuple[str, ...], report: StepReport) -> None:
        gramian_GTT = self.shared.gramian(len(tasks)).cpu()
        orders = random_orders(len(tasks), np.random.default_rng(seed_of(self.seed, "orders", number)))
        self.shared.merge(self.stage.gradient.weights(gramian_GTT, tasks, orders, self.gradient_state))
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
