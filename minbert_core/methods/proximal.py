"""Proximal regularisers: a penalty on how far the predictions have moved from those of a slower copy of the model.

Flow: clean logits, and the teacher's logits of the same batch under the same dropout masks -> divergence -> added to the task's
loss; after each step the teacher follows the student.
The teacher is state: a snapshot holds it, and each stage begins with a new one.
"""

from __future__ import annotations

import copy
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from minbert_core.settings.models import BARE_NAME, Variant

EARLY = 0.1  # share of the steps in which beta holds before late_beta does: Jiang et al. 2020, section 4.1


class Teacher:
    """A copy of the model whose trained parameters are the running means of the student's, in the student's float32.

    Frozen parameters are shared with the student, not copied. The teacher has no gradient.
    """

    def __init__(self, student: nn.Module, beta: float, late_beta: float | None) -> None:
        self.beta, self.late_beta = beta, beta if late_beta is None else late_beta
        self.students = {name: parameter for name, parameter in student.named_parameters() if parameter.requires_grad}
        frozen = {id(parameter): parameter for parameter in student.parameters() if not parameter.requires_grad}
        self.model = copy.deepcopy(student, frozen).requires_grad_(False)
        parameters = dict(self.model.named_parameters())
        self.means: dict[str, Tensor] = {name: parameters[name] for name in self.students}

    @torch.no_grad()
    def follow(self, progress: float) -> None:
        """Update after a step: mean <- beta * mean + (1 - beta) * student. `progress` is the stage's, in [0, 1]."""
        beta = self.beta if progress < EARLY else self.late_beta
        get_ema_multi_avg_fn(beta)(list(self.means.values()), list(self.students.values()), 1)

    def state(self) -> dict[str, Tensor]:
        """Return the means by parameter name, for a snapshot."""
        return {name: mean.detach() for name, mean in self.means.items()}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore the means of a snapshot."""
        assert state.keys() == self.means.keys(), "the snapshot is of a stage that trains other parameters"
        for name, mean in self.means.items():
            mean.copy_(state[name])


class NoProximal(Variant):
    """No proximal regularisation: the plain loss."""

    kind: Literal["none"] = "none"

    @property
    def weight(self) -> float:
        return 0.0

    def start(self, student: nn.Module) -> Teacher | None:
        """Return None: there is no teacher."""
        return None


class Bregman(Variant):
    """Momentum Bregman proximal point (MBPP), Jiang et al. 2020 (arXiv 1911.03437), section 3.2, eq. 4 and 5.

    D = mean over the batch of l_s(f(x; theta), f(x; teacher)), l_s being the symmetric divergence that smoothness uses, and
    teacher_t = (1 - beta) theta_t + beta teacher_(t-1): with the KL loss it is Mean Teacher (Tarvainen & Valpola 2017). The
    teacher starts as the student, so the first step's penalty is 0, and its pass replays the student's dropout masks.
    """

    kind: Literal["bregman"] = "bregman"
    weight: float = Field(
        1.0, ge=0, json_schema_extra={"unit": "times the task's loss"}, description="mu: factor of the penalty"
    )
    beta: float = Field(
        0.99,
        gt=0,
        lt=1,
        json_schema_extra={"unit": "per step"},
        description="EMA rate of the teacher; at 0 it would equal the student, and the penalty would be 0",
    )
    late_beta: float | None = Field(
        0.999,
        gt=0,
        lt=1,
        json_schema_extra={"unit": "per step"},
        description="beta after the first tenth of the stage, as in the paper; null keeps beta",
    )

    def start(self, student: nn.Module) -> Teacher | None:
        """Create a teacher that equals `student`, whose frozen parameters must already be marked."""
        return Teacher(student, self.beta, self.late_beta)


Proximal = Annotated[NoProximal | Bregman, Field(discriminator="kind"), BARE_NAME]
