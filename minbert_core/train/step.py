"""One optimisation step: forward and backward of each task into a flat buffer, the merge, the clip, the update.

    batches -> passes.py -> task_losses.py, per pass -> backward -> clip -> AdamW -> teacher and loss weights follow
        per task, into its row (shared_gradients.py) -> Gramian -> gradient method -> merged row 0 -> clip -> …

Where the gradient is a plain sum, one pass serves all tasks of the step; on a CPU a few do, where a smoothness keeps the graphs
of two and the batches are large. A gradient method, or loss weights that depend on the step's own losses, need each task's
gradient: then each task has its own passes and its own row. With adapters per task it has its own passes.

Until the update no state changes, so a step that runs out of memory can be repeated in smaller parts (micro_batches.py). The
update itself is in place: the optimiser's moments are allocated when a stage starts. If it fails anyway, the trial ends.

Only one pass's graph exists at a time. The parameters that only one task trains (its head, pooling and adapter) keep that
task's gradient. Loss weights that depend on the step's own losses come after the backward passes: they weight rows, Gramian
and heads.

T tasks in the step, G parameter groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minbert_core.machine import Arriving
from minbert_core.memory import indivisible
from minbert_core.methods.gradients import merging_weights
from minbert_core.methods.loss_weights import LossWeights
from minbert_core.methods.optimizer import AdamW
from minbert_core.methods.stages import StagePlan
from minbert_core.model import MultitaskBert
from minbert_core.seeds import seed_of
from minbert_core.train.loop import step_at_rate
from minbert_core.train.passes import Batch, Pass, passes_of
from minbert_core.train.shared_gradients import SharedGradients
from minbert_core.train.task_losses import StepReport, TaskLosses, Views, numbers_of

TOGETHER = "all"  # the name of the one optimiser of all tasks; no task is called so
# of a pass of several tasks on a CPU, where a smoothness keeps the graphs of two: with more it takes no less time, but as much
# memory again (LOG.md, November 28th). A GPU, bound by launches, has them in one pass, which is divided if it does not fit
SHARED_TOKENS = 1_400


class Stepper:
    """The state that the steps of one stage share: buffer, optimisers, state of the gradient method, teacher.

    One is built at the start of each stage.
    """

    def __init__(self, model: MultitaskBert, stage: StagePlan, loss_weights: LossWeights, seed: int, precision: str) -> None:
        self.model, self.stage, self.loss_weights, self.seed = model, stage, loss_weights, seed
        shared = model.shared_groups(stage.trains_encoder)
        self.groups = {name: group for name, group in shared.items() if any(model.reads(task, name) for task in stage.tasks)}
        named = {task: list(model.own_parameters(task, stage.trains_encoder)) for task in stage.tasks}
        self.own = {task: [parameter for _, parameter in parameters] for task, parameters in named.items()}
        self.head_parameters = [parameter for parameters in self.own.values() for parameter in parameters]
        self._mark_trained()
        self.kinds = {task: model.plans[task].task.kind for task in stage.tasks}
        self.weighs_gradients = loss_weights.reads_losses and len(stage.tasks) > 1  # a stage's only task weighs 1
        self.merges = stage.gradient.needs_several_tasks or self.weighs_gradients
        num_rows = stage.task_schedule.tasks_per_step(len(stage.tasks)) if self.merges else 0
        sparse = model.encoder.sparsely_trained()
        self.shared = SharedGradients(self.groups, num_rows, next(model.parameters()).device, sparse)
        self.optimizers = self._build_optimizers(named)
        self.gradient_state: dict[str, Tensor] = {}
        self.loss_state: dict[str, Tensor] = {}
        self.unread: Unread | None = None
        self.teacher = stage.proximal.start(model)
        self.precision, self.losses = precision, TaskLosses(model, stage, seed, precision)

    def _mark_trained(self) -> None:
        """Freeze all parameters but those that the stage trains, so that no graph is built for the others."""
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        for parameter in (*self.head_parameters, *(parameter for group in self.groups.values() for parameter in group)):
            parameter.requires_grad_(True)

    def _build_optimizers(self, named: dict[str, list[tuple[str, nn.Parameter]]]) -> dict[str, AdamW]:
        """Build one optimiser for all tasks, or one per task. `named` are each task's own parameters."""
        encoder = [(name, parameter) for name, parameter in self.model.encoder.named_parameters() if parameter.requires_grad]
        shared_layer = [("shared_layer", parameter) for parameter in self.groups.get("shared_layer", [])]
        if not self.stage.optimizer.per_task:
            named = {TOGETHER: [parameter for parameters in named.values() for parameter in parameters]}
        optimizers = {
            name: self.stage.optimizer.build(encoder, [*parameters, *shared_layer]) for name, parameters in named.items()
        }
        for optimizer in optimizers.values():
            optimizer.allocate()
        return optimizers

    def state(self) -> dict[str, Any]:
        """Return the state that a snapshot needs in addition to the model."""
        teacher = self.teacher.state() if self.teacher else {}
        return {
            "optimizer": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "gradient": self.gradient_state,
            "loss_weights": self.loss_state | (self.unread.state() if self.unread else {}),
            "teacher": teacher,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state` returned."""
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizer"][name])
        self.gradient_state, self.loss_state = dict(state["gradient"]), dict(state["loss_weights"])
        self.unread = Unread.of_state(self.loss_state)
        if self.teacher:
            self.teacher.restore(state["teacher"])

    def passes(self, number: int, batches: dict[str, Batch], limit: int | None = None) -> list[Pass]:
        """Divide one batch of each task, the step's tasks in order, into the passes of step `number`, ready on the device.

        limit: the most tokens of a pass, unless one part of a batch has more; None: any number.
        """
        together, device = self.model.shares_passes and not self.merges, next(self.model.parameters()).device
        if self.stage.smoothness.extra_passes and device.type == "cpu":
            limit = min(limit or SHARED_TOKENS, SHARED_TOKENS)
        return passes_of(number, batches, self.model, together, limit, self.precision)

    def step(self, number: int, passes: list[Pass], progress: float, measure: bool, measure_penalty: bool = True) -> StepReport:
        """Train on `passes`, those of step `number`. `progress` is the stage's, in [0, 1].

        `measure` also reports the gradient's norm and, with `measure_penalty`, |grad R_s|, which costs as much as a step.
        An out-of-memory error has changed no state.  Raises DoesNotFitError: the update itself ran out of memory.
        """
        report = StepReport()
        tasks = tuple(dict.fromkeys(part.task for one in passes for part in one.parts))
        early_weights = self._backward(passes, report, measure and measure_penalty)
        losses = numbers_of(report.losses, tasks) if self.loss_weights.reads_losses else {}
        late_weights = self._loss_weights(losses) if self.weighs_gradients else dict.fromkeys(tasks, 1.0)
        if measure and self.loss_weights.follows_losses:
            report.figures |= {f"{task}_weight": early_weights[task] * late_weights[task] for task in tasks}
        if self.weighs_gradients:
            self._weigh_heads(late_weights)
        gradient_state = dict(self.gradient_state)
        if self.merges and self.shared.slices:
            self._merge(number, late_weights, gradient_state, report)
        self._drop_unread(tasks)
        self._clip(report, measure)
        with indivisible(f"The update of step {number}"):
            self.gradient_state = gradient_state
            self._update(tasks, progress)
            self._follow(passes, tasks, losses, progress, report)
        return report

    def _loss_weights(self, losses: dict[str, float]) -> dict[str, float]:
        return self.loss_weights.of(self.kinds, losses, self.loss_state)

    # ------------------------------------------------------------------------------------------------------- backward

    def _backward(self, passes: list[Pass], report: StepReport, measure_penalty: bool) -> dict[str, float]:
        """Go backward through every task's losses, each into its row; return the weights that the losses had."""
        for parameter in self.head_parameters:
            parameter.grad = None
        tasks = list(dict.fromkeys(part.task for one in passes for part in one.parts))
        weights = dict.fromkeys(tasks, 1.0) if self.loss_weights.reads_losses else self._loss_weights({})
        rows = [[one for one in passes if task in one.sequences] for task in tasks] if self.merges else [passes]
        if not self.merges:
            self.shared.clear()
        for row, of_row in enumerate(rows):
            if self.merges:
                self.shared.use_row(row)
            gradients = self._gradients_of_whole(of_row, report)
            for one in of_row:
                self._backward_pass(one, weights, gradients.get(id(one)), report, measure_penalty)
        return weights

    def _gradients_of_whole(self, passes: list[Pass], report: StepReport) -> dict[int, list[Tensor]]:
        """Compute the gradients at what a loss reads, per view, where it is of a cut batch as a whole; by the id of a pass."""
        by_task: dict[str, list[Pass]] = {}
        for one in passes:
            part = one.parts[0]
            if part.count > 1 and not self.model.plans[part.task].loss.is_mean:
                by_task.setdefault(part.task, []).append(one)
        whole = [(of_task, self.losses.gradients_of_whole(of_task, report)) for of_task in by_task.values()]
        return {id(one): of_pass for of_task, grads in whole for one, of_pass in zip(of_task, grads, strict=True)}

    def _backward_pass(
        self,
        one: Pass,
        weights: dict[str, float],
        gradient_V: list[Tensor] | None,
        report: StepReport,
        measure_penalty: bool,
    ) -> None:
        """Build the graph of the task losses, proximal and smoothness terms of a pass, and go backward through their sum.

        gradient_V is the gradient of the pass's only loss at what it reads, per view, if it was computed over the whole batch.
        """
        views = self.losses.clean(one, report)
        losses = task_losses = self._task_losses(one, views, gradient_V, report)
        if self.teacher:
            proximal = self.losses.proximal_terms(one, views, self.teacher, report)
            losses = [loss + self.stage.proximal.weight * term for loss, term in zip(losses, proximal, strict=True)]
        losses = [weights[part.task] * loss for part, loss in zip(one.parts, losses, strict=True)]
        smoothness = self.losses.smoothness_terms(one, views, report)
        if smoothness is not None:
            factor = self.stage.smoothness.weight
            penalties = [weights[part.task] * factor * term for part, term in zip(one.parts, smoothness, strict=True)]
            for part, loss, penalty in zip(one.parts, task_losses, penalties, strict=True):
                if measure_penalty and part.index == 0:
                    self._measure_penalty(part.task, weights[part.task] * loss, penalty, report)
            losses += penalties
        total = sum(losses[1:], losses[0])
        if total.requires_grad:  # not if the encoder is frozen and the losses read features
            total.backward()

    def _task_losses(self, one: Pass, views: Views, gradient_V: list[Tensor] | None, report: StepReport) -> list[Tensor]:
        """Compute the task loss of each part."""
        values_TV = [list(values_V) for values_V in zip(*views.values_VT, strict=True)]
        if gradient_V is not None:
            return [self.losses.loss_with_gradient(values_TV[0], gradient_V)]
        labels_T = one.packed.labels_B.split([part.num_examples for part in one.parts])
        parts = zip(one.parts, labels_T, values_TV, strict=True)
        return [self.losses.task_loss(part, labels_B, values_V, report) for part, labels_B, values_V in parts]

    def _measure_penalty(self, task: str, loss: Tensor, penalty: Tensor, report: StepReport) -> None:
        """Report |grad R_s| / |grad task|, so that a smoothness without effect is seen."""
        shared = [parameter for parameter in self.shared.parameters if parameter.requires_grad]
        parameters = shared or self.head_parameters  # all shared ones are frozen with PALs and a frozen encoder
        of_penalty = torch.autograd.grad(penalty, parameters, retain_graph=True, allow_unused=True)
        of_loss = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        dense = [[g.to_dense() if g.is_sparse else g for g in grads if g is not None] for grads in (of_penalty, of_loss)]
        norms = [float(nn.utils.get_total_norm(grads)) for grads in dense]
        report.figures[f"{task}_smoothness_gradient_ratio"] = norms[0] / max(norms[1], 1e-12)

    # ---------------------------------------------------------------------------------------------- merge, clip, update

    def _weigh_heads(self, weights: dict[str, float]) -> None:
        """Scale the gradients of the parameters that only one task trains. The shared ones are weighted in the merge."""
        for task, weight in weights.items():
            for parameter in self.own[task]:
                if parameter.grad is not None:
                    parameter.grad.mul_(weight)

    def _merge(self, number: int, weights: dict[str, float], gradient_state: dict[str, Tensor], report: StepReport) -> None:
        """Merge the rows, each times its task's weight, into one gradient; `gradient_state` moves."""
        tasks, task_weights_T = tuple(weights), torch.tensor(list(weights.values()), dtype=torch.float64)
        gramian_GTT = self.shared.gramian(len(tasks)).cpu() * task_weights_T[:, None] * task_weights_T
        generator = np.random.default_rng(seed_of(self.seed, "orders", number))
        weights_GT = merging_weights(self.stage.gradient, gramian_GTT, tasks, generator, gradient_state)
        self.shared.merge(weights_GT * task_weights_T)
        report.cosines, *of_groups = _cosines(torch.cat([gramian_GTT.sum(0, keepdim=True), gramian_GTT]), tasks)
        for name, cosines in zip(self.shared.slices, of_groups, strict=True):
            report.group_cosines |= {f"{pair}/{name}": cosine for pair, cosine in cosines.items()}

    def _drop_unread(self, tasks: tuple[str, ...]) -> None:
        """Remove the gradient of groups that no task of the step reads: a zero gradient would still decay their moments."""
        for name, group in self.groups.items():
            if not any(self.model.reads(task, name) for task in tasks):
                for parameter in group:
                    parameter.grad = None

    def _clip(self, report: StepReport, measure: bool) -> None:
        """Scale all gradients, heads included, so that their common norm is at most `optimizer/clip`."""
        limit = self.stage.optimizer.clip
        if limit is None and not measure:
            return
        parameters = [*self.shared.parameters, *self.head_parameters]
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        if limit is not None:
            nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        if measure:
            report.figures["gradient_norm"] = float(norm)

    def _update(self, tasks: tuple[str, ...], progress: float) -> None:
        """Step the optimiser of all tasks, or that of the step's only task, at the rate of this progress."""
        optimizer = self.optimizers[tasks[0] if self.stage.optimizer.per_task else TOGETHER]
        step_at_rate(optimizer, self.stage.optimizer.lr_factor(progress))

    def _follow(
        self, passes: list[Pass], tasks: tuple[str, ...], losses: dict[str, float], progress: float, report: StepReport
    ) -> None:
        """Let the loss weights and the teacher follow the step just taken; `losses` are its losses if they were read."""
        if losses:
            looks_again = self.loss_weights.looks_again and self.weighs_gradients
            losses_after = self.losses.losses_again(passes, report) if looks_again else losses
            self.loss_weights.follow(self.kinds, losses, losses_after, progress, self.loss_state)
        elif self.loss_weights.follows_losses:
            if self.unread:
                before = self.unread.losses()
                self.loss_weights.follow(self.kinds, before, before, self.unread.progress, self.loss_state)
            self.unread = Unread(tasks, Arriving(torch.stack([report.losses[task] for task in tasks])), progress)
        if self.teacher:
            self.teacher.follow(progress)


@dataclass(frozen=True)
class Unread:
    """The losses of the last step, which the loss weights follow at the end of the next: the host waits for neither."""

    tasks: tuple[str, ...]
    arriving: Arriving
    progress: float

    def losses(self) -> dict[str, float]:
        return dict(zip(self.tasks, self.arriving.read(), strict=True))

    def state(self) -> dict[str, Tensor]:
        """Return the entries of a snapshot, next to those of the loss weights."""
        losses = {f"/unread/{task}": torch.tensor([loss], dtype=torch.float64) for task, loss in self.losses().items()}
        return losses | {"/unread": torch.tensor([self.progress], dtype=torch.float64)}

    @staticmethod
    def of_state(state: dict[str, Tensor]) -> Unread | None:
        """Take these entries out of a state, if it has them: a state of an earlier version does not."""
        if "/unread" not in state:
            return None
        progress = float(state.pop("/unread"))
        losses = {name: state.pop(name) for name in [name for name in state if name.startswith("/unread/")]}
        tasks = tuple(name.removeprefix("/unread/") for name in losses)
        return Unread(tasks, Arriving(torch.cat(list(losses.values()))), progress)


def _cosines(gramians_MTT: Tensor, tasks: tuple[str, ...]) -> list[dict[str, float]]:
    """Return for each of M Gramians the cosine of each pair of gradients of which neither is zero, "sst_para" -> cosine."""
    norms_MT = gramians_MTT.diagonal(dim1=1, dim2=2).sqrt()
    cosines_MTT = (gramians_MTT / (norms_MT[:, :, None] * norms_MT[:, None])).tolist()
    pairs = [(i, j) for i in range(len(tasks)) for j in range(i)]
    return [
        {f"{tasks[j]}_{tasks[i]}": cosines_TT[i][j] for i, j in pairs if math.isfinite(cosines_TT[i][j])}
        for cosines_TT in cosines_MTT
    ]
