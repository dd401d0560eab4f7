"""Smoothness regularisers: a penalty on how much the prediction moves when the input moves a little.

Flow: clean logits -> penalty (more passes of the same batch, with noise on the word embeddings) -> added to its task's loss.
Legend: B examples of the batch, N packed tokens, D hidden size, K outputs, V views.

A view is a clean pass with its own dropout masks. The task's loss is the mean over the views; most variants have one.

The noise is added to the word embeddings, before position, segment and LayerNorm; packed batches have no padding. The unit is
an example: u and v of a pair are one example, perturbed together. The noisy passes must replay the clean pass's dropout masks,
else the penalty would measure the masks and not the noise: `Clean.forward` does so. Noisy passes, and a teacher's, belong to
the first view.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from minbert_core.settings.models import BARE_NAME, Variant

Forward = Callable[[Tensor, bool], Tensor]  # (noise_ND, whether in float32 rather than the trial's precision) -> logits_BK
Divergence = Callable[[Tensor, Tensor], Tensor]  # (logits_p_BK, logits_q_BK) -> scalar, or (T,), one per task

UNIT_SIGMA, UNIT_STEP, UNIT_EPS = 1e-5, 1e-3, 1e-6  # from smart-pytorch's SMARTLoss and mt-dnn's SmartPerturbation
SMALLEST_IN_BFLOAT16 = 1e-2  # radius, in embedding units: from here on bfloat16 computes the change of the logits to 1 %
STEP_PER_RADIUS = 100.0  # eta / eps of Jiang et al. 2020, section 4.1: 1e-3 / 1e-5; their sigma equals their eps


@dataclass(frozen=True)
class Clean:
    """The clean pass of one step over B examples, and the means to repeat it with noise.

    Each example is perturbed on its own: `example_N` maps the N tokens to their examples. These may belong to T tasks: then a
    prediction is the logits of all tasks in one vector, which `divergence` knows to divide.
    """

    logits_VBK: Sequence[Tensor]  # one prediction per view
    forward: Forward  # another pass of the first view, under its dropout masks
    divergence: Divergence
    example_N: Tensor
    num_examples: int  # B
    random_noise: Callable[[], Tensor]  # standard normal, (N, D): the same at each call


def max_norms(values_ND: Tensor, example_N: Tensor, num_examples: int) -> Tensor:
    """Compute the largest absolute entry of each example's rows, shape (B,); 0 for an example without rows."""
    largest_N = values_ND.abs().amax(dim=1)
    return largest_N.new_zeros(num_examples).scatter_reduce(0, example_N, largest_N, reduce="amax")


def ascend(noise_ND: Tensor, gradient_ND: Tensor, example_N: Tensor, num_examples: int, radius: float) -> Tensor:
    """Take one step of projected ascent: Project(noise + eta * g / |g|_inf), with one norm per example.

    Clamps to [-radius, radius], the max-norm ball. An example without gradient (a saturated prediction) does not move.
    """
    norms_B = max_norms(gradient_ND, example_N, num_examples)
    direction_ND = gradient_ND / torch.where(norms_B > 0, norms_B, 1)[example_N, None]
    return (noise_ND + STEP_PER_RADIUS * radius * direction_ND).clamp(-radius, radius)


def scale_to_radius(noise_ND: Tensor, gradient_ND: Tensor, radius: float) -> Tensor:
    """Take one step as in the released code: radius * s / (|s|_inf + 1e-6), s = noise + 1e-3 * g, with one norm per token."""
    stepped_ND = noise_ND + UNIT_STEP * gradient_ND
    return radius * stepped_ND / (stepped_ND.abs().amax(dim=1, keepdim=True) + UNIT_EPS)


class NoSmoothness(Variant):
    """No smoothness regularisation: the plain loss."""

    kind: Literal["none"] = "none"
    views: ClassVar[int] = 1

    @property
    def extra_passes(self) -> int:
        return 0

    @property
    def needs_float32(self) -> bool:
        return False

    @property
    def weight(self) -> float:
        return 0.0

    def penalty(self, clean: Clean) -> Tensor | None:
        """Return None: nothing is added to the loss, and there is no extra pass."""
        return None


class Smart(Variant):
    """Smoothness-inducing adversarial regularisation (SMART), R_s of Jiang et al. 2020 (arXiv 1911.03437), Algorithm 1.

    One knob sets the scale: sigma of the starting noise is the radius, and the step is 100 times the radius, as in the paper
    (eps = sigma = 1e-5, eta = 1e-3). They are tied because with a step of fixed length, a larger radius changes nothing. The
    paper's radius has no effect on embeddings of size 0.05. At 1e-3 the penalty's gradient is still a thousandth of the loss's
    or less (MiniLM, after 3 to 12 steps); 1e-2 to 1e-1 is worth searching.

    `projection: unit` is the released code of smart-pytorch and mt-dnn: sigma 1e-5, a step of 1e-3 times the raw gradient, and
    then every token's noise is scaled up to `radius` (theirs is 1), not clamped. The gradient of a divergence at noise this
    small is even smaller, so the noise stays mostly random. The two are different regularisers: a radius or weight that suits
    one says nothing about the other.
    """

    kind: Literal["smart"] = "smart"
    views: ClassVar[int] = 1
    radius: float = Field(
        1e-2,
        gt=0,
        le=10,
        json_schema_extra={"unit": "embedding units"},
        description="largest change of any entry of a word embedding; BERT's are about 0.05",
    )
    weight: float = Field(
        1.0, ge=0, json_schema_extra={"unit": "times the task's loss"}, description="lambda_s: factor of the penalty"
    )
    steps: int = Field(
        1,
        ge=1,
        le=10,
        json_schema_extra={"unit": "steps"},
        description="K: ascent steps towards the worst noise; each costs a forward and a backward pass",
    )
    projection: Literal["clamp", "unit"] = Field(
        "clamp",
        description="clamp: noise clipped to the radius (the paper); unit: each token's noise scaled to it (released code)",
    )

    @property
    def extra_passes(self) -> int:
        """Forward passes beyond the clean one."""
        return self.steps + 1

    @property
    def needs_float32(self) -> bool:
        """True if the clean pass needs float32, because the noise that it is compared with would vanish in bfloat16."""
        return self.ascends_in_float32 or self.ends_in_float32

    @property
    def ends_in_float32(self) -> bool:
        """True if the last noisy pass needs float32: at 1e-3 the logits' change is 30 % wrong in bfloat16, at 1e-2 1 %."""
        return self.radius < SMALLEST_IN_BFLOAT16

    @property
    def ascends_in_float32(self) -> bool:
        """True if the passes that search for the noise need float32. Clamped noise does not: only the gradient's signs count.

        Rounding then acts like another random start: the noise found differs, but is as strong (from radius 1e-5 on within
        4 %, where random signs reach a thousandth; MiniLM on 16 SST sentences, 2026-11). `unit` adds the raw gradient to noise
        of 1e-5, so rounding would determine the direction.
        """
        return self.projection == "unit"

    def penalty(self, clean: Clean) -> Tensor | None:
        """Compute R_s without `weight`, per task: the divergence from the prediction under the worst noise found.

        Costs `steps` forward-backward passes to find the noise, whose backward reaches only the noise, and one forward pass,
        through which the caller trains.
        Source: Jiang et al. 2020 (arXiv 1911.03437), eq. 2 and Algorithm 1, with S = 1.
        """
        (logits_BK,) = clean.logits_VBK
        noise_ND = self._worst_noise(clean, logits_BK.detach())
        return clean.divergence(logits_BK, clean.forward(noise_ND, self.ends_in_float32))

    def _worst_noise(self, clean: Clean, target_BK: Tensor) -> Tensor:
        """Search for the noise, (N, D), that moves the prediction away from `target_BK`, from random noise on."""
        sigma = UNIT_SIGMA if self.projection == "unit" else self.radius
        noise_ND = sigma * clean.random_noise()
        for _ in range(self.steps):
            noise_ND.requires_grad_()
            divergence = clean.divergence(target_BK, clean.forward(noise_ND, self.ascends_in_float32))
            # of the noise only: parameters keep their gradients; no task's noise has a part in another's divergence
            (gradient_ND,) = torch.autograd.grad(divergence.sum(), [noise_ND])
            noise_ND = self._moved(noise_ND.detach(), gradient_ND, clean)
        return noise_ND

    def _moved(self, noise_ND: Tensor, gradient_ND: Tensor, clean: Clean) -> Tensor:
        """Move the noise one step further, (N, D)."""
        if self.projection == "unit":
            return scale_to_radius(noise_ND, gradient_ND, self.radius)
        return ascend(noise_ND, gradient_ND, clean.example_N, clean.num_examples, self.radius)


class RDrop(Variant):
    """R-Drop (Liang et al. 2021, arXiv 2106.14448), Algorithm 1: two passes under different dropout masks must agree.

    Departures: the task's loss is the mean over the two passes, theirs is the sum. So `weight` is a quarter of their alpha:
    L1 + L2 + alpha / 2 (KL + KL) is twice (L1 + L2) / 2 + alpha / 4 (KL + KL), and Adam ignores the factor 2. Their alpha was
    1 or less on GLUE. A binary task's divergence is that of its Bernoulli, a regression's the square, as in the paper. For a
    regression their code adds 1.0 times the square, once, to L1 + L2: there `weight` is half of theirs, not a quarter.
    """

    kind: Literal["r_drop"] = "r_drop"
    weight: float = Field(
        0.25,
        ge=0,
        json_schema_extra={"unit": "times the task's loss"},
        description="factor of KL(p1||p2) + KL(p2||p1): a quarter of the paper's alpha, which is 1 by default here",
    )
    views: ClassVar[int] = 2

    @property
    def extra_passes(self) -> int:
        """One, for the second view."""
        return 1

    @property
    def needs_float32(self) -> bool:
        return False

    def penalty(self, clean: Clean) -> Tensor | None:
        """Compute the divergence between the two views without `weight`, per task. There is no extra pass."""
        first_BK, second_BK = clean.logits_VBK
        return clean.divergence(first_BK, second_BK)


Smoothness = Annotated[NoSmoothness | Smart | RDrop, Field(discriminator="kind"), BARE_NAME]
