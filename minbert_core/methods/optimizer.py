"""The optimiser: AdamW's parameter groups, and the learning rate as a pure function of the progress of a stage.

Flow: merged gradient -> clip (global norm, heads included) -> rate of each group = base_lr * lr_factor(progress) -> AdamW,
torch's or the course's.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterable
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from minbert_core.settings.models import Settings

NamedParameters = Iterable[tuple[str, nn.Parameter]]

LAYER = re.compile(r"layers\.(\d+)\.")  # as the encoder names what is in its layers


def warmed_and_left(progress: float, warmup: float) -> tuple[float, float]:
    """Return the share of the warm-up that is done and the share of the rest that is left, both in [0, 1]."""
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        return progress / warmup, 1.0
    return 1.0, (1 - progress) / (1 - warmup) if warmup < 1 else 1.0


def linear_schedule(progress: float, warmup: float) -> float:
    """Return the factor of the learning rate, in [0, 1]: linearly up until `warmup`, then linearly down to 0 at progress 1.

    Source: Devlin et al. 2019 (arXiv 1810.04805), appendix A.2.
    """
    warmed, left = warmed_and_left(progress, warmup)
    return warmed * left


def cosine_schedule(progress: float, warmup: float) -> float:
    """Return the factor of the learning rate, in [0, 1]: linearly up until `warmup`, then down to 0 along half a cosine.

    Source: Loshchilov & Hutter 2017 (arXiv 1608.03983), eq. 5 with one period and a minimum of 0; the warm-up is BERT's.
    """
    warmed, left = warmed_and_left(progress, warmup)
    return warmed * (1 - math.cos(math.pi * left)) / 2


def constant_schedule(progress: float, warmup: float) -> float:
    """Return the factor of the learning rate, in [0, 1]: linearly up until `warmup`, then 1, as in the course's training."""
    warmed, _ = warmed_and_left(progress, warmup)
    return warmed


LR_SCHEDULES = {"linear": linear_schedule, "cosine": cosine_schedule, "constant": constant_schedule}


def num_layers_of(encoder_names: Iterable[str]) -> int:
    """Return L, the number of transformer layers, given the names of the encoder's parameters."""
    return 1 + max((int(match[1]) for name in encoder_names if (match := LAYER.match(name))), default=-1)


def layer_of(name: str, num_layers: int) -> int:
    """Return the layer of an encoder's parameter: 0 for the embeddings, 1 to L for the layers, L also for the pooler."""
    if match := LAYER.match(name):
        return int(match[1]) + 1
    if name.startswith("pooler."):
        return num_layers
    assert "embedding" in name, f"a parameter of the encoder is of the embeddings, a layer or the pooler, not '{name}'"
    return 0


class AdamW(torch.optim.AdamW):
    """torch's AdamW without the wrappers that keep it out of torch.compile, which we do not use.

    The wrapped methods are unchanged. Their wrappers import the compiler at the first call, in every trial of a search: 0.9 s
    on an idle core, 8 to 11 s with all cores busy (torch 2.13, 2 cores). torch offers no documented way around the import:
    Optimizer.add_param_group, which the constructor calls, is wrapped, too.
    """

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))

    def allocate(self) -> None:
        """Create the moments of all parameters now, as torch does at each one's first update.

        Then an update allocates nothing: memory runs out before it or not at all, and no update is left half done.
        """
        for parameter in (parameter for group in self.param_groups for parameter in group["params"]):
            if not self.state[parameter]:
                self.state[parameter] |= self._first_state(parameter)

    def _first_state(self, parameter: Tensor) -> dict[str, Any]:
        """Return the state before the first update; the count of steps is where torch's fused update reads it."""
        moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        return {"step": torch.zeros((), dtype=torch.float32, device=parameter.device), **moments}


class CourseAdamW(AdamW):
    """The AdamW of the course's projects: Kingma & Ba 2015, end of section 2, with the decay after the step.

    m and v are the usual moments. p -= lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps), then p -= lr weight_decay p
    with the moved p. So eps is added to the uncorrected v: without decay it is torch's AdamW with eps / sqrt(1 - beta2^t), a
    larger eps at first. Departure: vectors do not decay, here and under torch's rule; the course has no decay by default.
    """

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_age: dict[int, list[Tensor]] = {}  # the head of one task may have taken fewer steps than another
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_age.setdefault(self._age(parameter), []).append(parameter)
            for age, parameters in by_age.items():
                self._step_of(parameters, age, group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore; torch has turned the counts of steps into tensors, for which a GPU would have to be waited for."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state["step"] = int(state["step"])

    def _age(self, parameter: Tensor) -> int:
        """Count the step that a parameter is about to take, from 1, and return it; create its moments at the first."""
        if not self.state[parameter]:
            self.state[parameter] |= self._first_state(parameter)
        self.state[parameter]["step"] += 1
        return int(self.state[parameter]["step"])

    def _first_state(self, parameter: Tensor) -> dict[str, Any]:
        return super()._first_state(parameter) | {"step": 0}

    def _step_of(self, parameters: list[Tensor], age: int, group: dict[str, Any]) -> None:
        """Update parameters of one age."""
        (beta1, beta2), lr = group["betas"], group["lr"]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]  # all: `step` selected them
        means = [self.state[parameter]["exp_avg"] for parameter in parameters]
        squares = [self.state[parameter]["exp_avg_sq"] for parameter in parameters]
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_addcdiv_(parameters, means, roots, -lr * math.sqrt(1 - beta2**age) / (1 - beta1**age))
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])


RULES = {"torch": AdamW, "course": CourseAdamW}


class Optimizer(Settings):
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) with linear warm-up, then decay, as BERT is fine-tuned."""

    lr: float = Field(5e-5, gt=0, le=1, json_schema_extra={"unit": "per step"}, description="peak learning rate of the encoder")
    head_lr_factor: float = Field(
        1.0, gt=0, json_schema_extra={"unit": "times the encoder's"}, description="the heads' learning rate"
    )
    warmup: float = Field(
        0.1,
        ge=0,
        le=1,
        json_schema_extra={"unit": "of the stage's steps"},
        description="warm-up, during which the rate rises from 0",
    )
    lr_schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="the rate after the warm-up: down to 0 along a line or half a cosine, or constant"
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, json_schema_extra={"unit": "times the layer above"}, description="learning rate of each encoder layer"
    )
    weight_decay: float = Field(
        0.01,
        ge=0,
        json_schema_extra={"unit": "per step, times the rate"},
        description="decoupled weight decay; none on biases, LayerNorm and scalars",
    )
    clip: float | None = Field(
        1.0,
        gt=0,
        json_schema_extra={"unit": "gradient norm"},
        description="largest global norm, heads included; null turns clipping off",
    )

    rule: Literal["torch", "course"] = Field(
        "torch", description="the update: torch's AdamW, or the course's (eps added to the uncorrected v, decay after the step)"
    )
    eps: float = Field(
        1e-8,
        gt=0,
        json_schema_extra={"unit": "gradient"},
        description="term added to the root of v; torch uses 1e-8, the course 1e-6",
    )
    per_task: bool = Field(
        False,
        description="true: separate moments and step counts per task, as with one optimiser per task (Li & Tang 2023); each "
        "takes twice the memory of the trained parameters; needs one task per step",
    )

    @field_validator("warmup", mode="before")
    @classmethod
    def _is_a_share(cls, value: object) -> object:
        if isinstance(value, int | float) and not 0 <= value <= 1:
            raise ValueError(f"must be in [0, 1]. Got {value!r}. It is a share of the steps, not a count.")
        return value

    def lr_factor(self, progress: float) -> float:
        """Return the factor of every group's rate, in [0, 1], at a progress of the stage in [0, 1]."""
        return LR_SCHEDULES[self.lr_schedule](progress, self.warmup)

    def build(self, encoder_named_parameters: NamedParameters, head_named_parameters: NamedParameters) -> AdamW:
        """Build AdamW with two groups per rate, with and without weight decay; a group may be empty. The heads' two come last.

        The whole encoder has one rate if `layer_decay` is 1. Otherwise layer l of L has lr * layer_decay^(L - l) (xi of Sun et
        al. 2019, arXiv 1905.05583, section 5.4.3, after Howard & Ruder 2018, arXiv 1801.06146). The embeddings are layer 0; the
        pooler belongs to layer L. Parameters that need no gradient are omitted. Each group has a `base_lr`, the rate at the
        schedule's peak, and starts with it. Matrices decay; vectors (biases, LayerNorm, a cosine head's scalars) do not.
        """
        groups = []
        for parameters, lr in [
            *self._encoder_parts(list(encoder_named_parameters)),
            ([parameter for _, parameter in head_named_parameters], self.lr * self.head_lr_factor),
        ]:
            trained = [parameter for parameter in parameters if parameter.requires_grad]
            matrices = [parameter for parameter in trained if parameter.dim() >= 2]
            vectors = [parameter for parameter in trained if parameter.dim() < 2]
            groups.append({"params": matrices, "lr": lr, "base_lr": lr, "weight_decay": self.weight_decay})
            groups.append({"params": vectors, "lr": lr, "base_lr": lr, "weight_decay": 0.0})
        return RULES[self.rule](groups, betas=(0.9, 0.999), eps=self.eps, fused=True)

    def _encoder_parts(self, named: list[tuple[str, nn.Parameter]]) -> list[tuple[list[nn.Parameter], float]]:
        """Return the encoder's parameters by rate, from the embeddings up; one part unless rates decay."""
        if self.layer_decay == 1:  # one pair of groups: a fused step launches one kernel per group
            return [([parameter for _, parameter in named], self.lr)]
        num_layers = num_layers_of(name for name, _ in named)
        layers: list[list[nn.Parameter]] = [[] for _ in range(num_layers + 1)]
        for name, parameter in named:
            layers[layer_of(name, num_layers)].append(parameter)
        return [(layer, self.lr * self.layer_decay ** (num_layers - i)) for i, layer in enumerate(layers)]
