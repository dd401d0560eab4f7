"""One optimisation step: a forward and backward a task into a flat buffer, the merge, the clip, the update.

T tasks in the step, P shared parameters, G parameter groups, B examples, N packed tokens, D hidden size, K outputs.

Shared gradients lie in one (T, P) buffer: each task's backward writes its own row, because every parameter's `.grad` is a view
into that row while the task is at work. The Gramian of the rows is all a gradient method sees; the merged gradient replaces
row 0, from where clip and optimiser read it. One graph is alive at a time. Heads take their own gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from minbert_core.config import StagePlan, seed_of
from minbert_core.data.tokens import PackedBatch
from minbert_core.encoder import Masks
from minbert_core.methods.gradients import random_orders
from minbert_core.methods.losses import divergence
from minbert_core.model import MultitaskBert


class SharedGradients:
    """The flat (T, P) buffer of the shared parameters' task gradients, contiguous by group."""

    def __init__(self, groups: dict[str, list[nn.Parameter]], num_rows: int) -> None:
        self.parameters = [parameter for group in groups.values() for parameter in group]
        sizes = [sum(parameter.numel() for parameter in group) for group in groups.values()]
        ends = np.cumsum(sizes)
        self.slices = {name: slice(int(end - size), int(end)) for name, end, size in zip(groups, ends, sizes, strict=True)}
        first = self.parameters[0]
        self.rows_TP = torch.zeros(num_rows, int(ends[-1]), device=first.device, dtype=torch.float32)

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
    """What one step did: losses and penalties (0-d tensors, not yet waited for), gradient figures, passes over examples."""

    losses: dict[str, Tensor] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    passes: int = 0


class Stepper:
    """Everything a stage's steps share: the buffer, the optimiser, the method's state. One is built at each stage's start."""

    def __init__(
        self, model: MultitaskBert, stage: StagePlan, task_weights: Callable[[str], float], seed: int, precision: str
    ) -> None:
        self.model, self.stage, self.task_weights, self.seed = model, stage, task_weights, seed
        self.bfloat16 = precision == "bfloat16"
        self.uses_pooler = {name: plan.pooling.uses_pooler for name, plan in model.plans.items()}
        groups = model.encoder.parameter_groups()
        if not any(self.uses_pooler.values()):
            for parameter in groups.pop("pooler"):
                parameter.requires_grad_(False)
        num_tasks = stage.task_schedule.tasks_per_step(len(model.plans))
        self.merges = stage.gradient.needs_several_tasks
        self.shared = SharedGradients(groups, num_tasks if self.merges else 1)
        self.pooler = set(map(id, groups.get("pooler", [])))
        trainable = [(name, parameter) for name, parameter in model.encoder.named_parameters() if parameter.requires_grad]
        self.head_parameters = list(model.heads.parameters())
        self.optimizer = stage.optimizer.build(trainable, list(model.heads.named_parameters()))
        self.gradient_state: dict[str, Tensor] = {}

    def step(self, number: int, batches: dict[str, PackedBatch], lr_factor: float, measure: bool) -> StepReport:
        """Train on one batch of each task in `batches` (the step's tasks, in order).

        lr_factor scales every group's rate; `measure` also reports figures that cost something (gradient norms, |grad R_s|).
        """
        report = StepReport()
        for parameter in self.head_parameters:
            parameter.grad = None
        for row, (task, batch) in enumerate(batches.items()):
            self.shared.use_row(row if self.merges else 0, fresh=self.merges or row == 0)
            self._backward(number, task, batch, report, measure)
        if self.merges:
            self._merge(number, tuple(batches), report, measure)
        if self.pooler and not any(self.uses_pooler[task] for task in batches):
            for parameter in self.shared.parameters:  # untouched in this step: a zero gradient would still decay its moments
                if id(parameter) in self.pooler:
                    parameter.grad = None
        self._clip(report, measure)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * lr_factor
        self.optimizer.step()
        return report

    def _backward(self, number: int, task: str, batch: PackedBatch, report: StepReport, measure: bool) -> None:
        """Loss and smoothness of one task, one graph, backward into the current row. Every pass replays one set of masks."""
        plan, smoothness = self.model.plans[task], self.stage.smoothness
        device = batch.token_ids_N.device
        bfloat16 = self.bfloat16 and not smoothness.needs_float32

        def forward(noise_ND: Tensor | None = None) -> Tensor:
            masks = Masks(seed_of(self.seed, "masks", number, task), device)
            report.passes += batch.num_examples
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16):
                logits_BK: Tensor = self.model(task, batch, masks, noise_ND)
            return logits_BK

        logits_BK = forward()
        loss = plan.loss(logits_BK, batch.labels_B)
        report.losses[task] = loss.detach()
        generator = torch.Generator(device=device).manual_seed(seed_of(self.seed, "noise", number, task))
        shape = (len(batch.token_ids_N), self.model.encoder.shape.hidden_size)
        penalty = smoothness.penalty(
            forward, logits_BK, divergence(plan.task.kind), batch.example_N, batch.num_examples, shape, generator
        )
        weight = self.task_weights(task)
        if penalty is None:
            (weight * loss).backward()
            return
        report.losses[f"{task}_smoothness"] = penalty.detach()
        if measure:  # |grad R_s| / |grad task|, so that a smoothness that does nothing is seen
            self._measured_backward(task, weight * loss, weight * smoothness.weight * penalty, report)
        else:
            (weight * (loss + smoothness.weight * penalty)).backward()

    def _measured_backward(self, task: str, loss: Tensor, penalty: Tensor, report: StepReport) -> None:
        parameters = [parameter for parameter in self.shared.parameters if parameter.requires_grad]
        of_penalty = torch.autograd.grad(penalty, parameters, retain_graph=True, allow_unused=True)
        of_loss = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        norms = [float(nn.utils.get_total_norm([g for g in grads if g is not None])) for grads in (of_penalty, of_loss)]
        report.figures[f"{task}_smoothness_gradient_ratio"] = norms[0] / max(norms[1], 1e-12)
        (loss + penalty).backward()

    def _merge(self, number: int, tasks: tuple[str, ...], report: StepReport, measure: bool) -> None:
        gramian_GTT = self.shared.gramian(len(tasks)).cpu()
        orders = random_orders(len(tasks), np.random.default_rng(seed_of(self.seed, "orders", number)))
        self.shared.merge(self.stage.gradient.weights(gramian_GTT, tasks, orders, self.gradient_state))
        if measure:
            whole_TT = gramian_GTT.sum(0)
            norms_T = whole_TT.diagonal().clamp_min(1e-30).sqrt()
            cosines_TT = whole_TT / (norms_T[:, None] * norms_T)
            for i, task in enumerate(tasks):
                for j in range(i):
                    report.figures[f"cosine_{tasks[j]}_{task}"] = float(cosines_TT[i, j])

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
