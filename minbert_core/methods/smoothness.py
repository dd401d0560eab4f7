"""Smoothness regularisers: a penalty on how much the prediction moves when the input moves a little.

Flow: clean logits -> penalty (more passes of the same batch, with noise on the word embeddings) -> added to its task's loss.
Legend: B examples of the batch, N packed tokens, D hidden size, K outputs.

The noise goes on the word-embedding rows, before position, segment and LayerNorm; packed batches hold no padding. An example is
the unit: u and v of a pair are one example, perturbed together. The noisy passes replay the clean pass's dropout masks, else
the penalty would measure two masks and not the noise: that is the duty of `forward`, which is handed in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from minbert_core.settings import BARE_NAME, Variant

Forward = Callable[[Tensor], Tensor]  # noise_ND -> logits_BK, with the dropout masks of the clean pass
Divergence = Callable[[Tensor, Tensor], Tensor]  # (logits_p_BK, logits_q_BK) -> scalar

STEP_PER_RADIUS = 100.0  # eta / eps of Jiang et al. 2020, section 4.1: 1e-3 / 1e-5; their sigma equals their eps


def max_norms(values_ND: Tensor, example_N: Tensor, num_examples: int) -> Tensor:
    """The largest absolute entry of each example's rows, shape (B,); 0 for an example without rows."""
    largest_N = values_ND.abs().amax(dim=1)
    return largest_N.new_zeros(num_examples).scatter_reduce(0, example_N, largest_N, reduce="amax")


def ascend(noise_ND: Tensor, gradient_ND: Tensor, example_N: Tensor, num_examples: int, radius: float) -> Tensor:
    """One step of projected ascent: Project(noise + eta * g / |g|_inf), with the norm of each example by itself.

    Clamps to [-radius, radius], the max-norm ball. An example without gradient (a saturated prediction) takes no step.
    """
    norms_B = max_norms(gradient_ND, example_N, num_examples)
    direction_ND = gradient_ND / torch.where(norms_B > 0, norms_B, 1)[example_N, None]
    return (noise_ND + STEP_PER_RADIUS * radius * direction_ND).clamp(-radius, radius)


def smart_penalty(
    forward: Forward,
    clean_logits_BK: Tensor,
    divergence: Divergence,
    example_N: Tensor,
    num_examples: int,
    shape_ND: tuple[int, int],
    generator: torch.Generator,
    radius: float,
    steps: int,
) -> Tensor:
    """R_s of SMART, a scalar: the divergence between the clean prediction and the worst one found within `radius`.

    Costs `steps` forward-backward passes towards the noise alone, and one forward that the caller's backward goes through.
    Source: Jiang et al. 2020 (arXiv 1911.03437), eq. 2 and Algorithm 1, with S = 1.
    """
    target_BK = clean_logits_BK.detach()
    noise_ND = radius * torch.randn(shape_ND, generator=generator, device=example_N.device)
    for _ in range(steps):
        noise_ND.requires_grad_()
        # with respect to the noise only: no parameter's gradient is touched
        (gradient_ND,) = torch.autograd.grad(divergence(target_BK, forward(noise_ND)), [noise_ND])
        noise_ND = ascend(noise_ND.detach(), gradient_ND, example_N, num_examples, radius)
    return divergence(clean_logits_BK, forward(noise_ND))


class NoSmoothness(Variant):
    """No smoothness regularisation: the plain loss."""

    kind: Literal["none"] = "none"

    @property
    def extra_passes(self) -> int:
        return 0

    @property
    def needs_float32(self) -> bool:
        return False

    @property
    def weight(self) -> float:
        return 0.0

    def penalty(
        self,
        forward: Forward,
        clean_logits_BK: Tensor,
        divergence: Divergence,
        example_N: Tensor,
        num_examples: int,
        shape_ND: tuple[int, int],
        generator: torch.Generator,
    ) -> Tensor | None:
        """None: nothing is added to the loss, and no further pass is made. The arguments are those of `Smart.penalty`."""
        return None


class Smart(Variant):
    """Smoothness-inducing adversarial regularisation (SMART), R_s of Jiang et al. 2020 (arXiv 1911.03437), Algorithm 1.

    One knob for the scale: sigma of the starting noise is the radius and the step is 100 times the radius, the paper's own
    ratios (eps = sigma = 1e-5, eta = 1e-3). They are tied because with a step of fixed length a radius above it changes
    nothing. The paper's radius is a no-op on embeddings of size 0.05; 1e-3 to 1e-1 is worth searching.
    """

    kind: Literal["smart"] = "smart"
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
        description="K: ascent steps towards the worst noise, each one more forward and backward pass",
    )

    @property
    def extra_passes(self) -> int:
        """Forward passes beyond the clean one."""
        return self.steps + 1

    @property
    def needs_float32(self) -> bool:
        """Whether noise this small vanishes in bf16: at 1e-3 the logits' change is 30 % wrong, at 1e-2 1 %."""
        return self.radius < 1e-2

    def penalty(
        self,
        forward: Forward,
        clean_logits_BK: Tensor,
        divergence: Divergence,
        example_N: Tensor,
        num_examples: int,
        shape_ND: tuple[int, int],
        generator: torch.Generator,
    ) -> Tensor | None:
        """R_s without `weight`, a scalar; forward(noise_ND) must replay the clean pass's dropout masks."""
        return smart_penalty(
            forward, clean_logits_BK, divergence, example_N, num_examples, shape_ND, generator, self.radius, self.steps
        )


Smoothness = Annotated[NoSmoothness | Smart, Field(discriminator="kind"), BARE_NAME]
