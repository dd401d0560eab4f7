"""The flat buffer of the shared parameters' task gradients, and the Gramian of its rows.

Each task's backward pass writes its own row, because every parameter's `.grad` is a view into that row while the task is at
work. The Gramian is all that a gradient method sees. The merged gradient replaces row 0, where clip and optimiser read it.
A plain sum has no rows: autograd creates each `.grad`, which saves zeroing a buffer, and adding to it parameter by parameter.

T tasks in the step, P shared parameters, G parameter groups, M blocks of C columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from minbert_core.machine import exact_products

BLOCK = 512  # columns; over (3, 22.7M) 256, 512 and 4,096 take 28, 25 and 22 ms, and cosines err by 2e-9, 3e-9 and 1e-8


class SharedGradients:
    """The (T, P) buffer, contiguous by group; P is 0 where all shared parameters are frozen, T is 0 for a plain sum.

    sparse: parameters whose gradient is sparse, which keep a dense `.grad` to which it is added.
    """

    def __init__(
        self,
        groups: dict[str, list[nn.Parameter]],
        num_rows: int,
        device: torch.device,
        sparse: Sequence[nn.Parameter] = (),
    ) -> None:
        self.parameters = [parameter for group in groups.values() for parameter in group]
        sizes = [sum(parameter.numel() for parameter in group) for group in groups.values()]
        ends = np.cumsum(sizes)
        self.slices = {name: slice(int(end - size), int(end)) for name, end, size in zip(groups, ends, sizes, strict=True)}
        self.rows_TP = torch.zeros(num_rows, sum(sizes), device=device, dtype=torch.float32)
        trained = set(map(id, self.parameters))
        self.dense = [(one, torch.zeros_like(one)) for one in sparse if id(one) in trained and not num_rows]
        self.views = [self._views(row_P) for row_P in self.rows_TP]  # built once: MiniLM's 91 take .4 ms, the binding .02

    def _views(self, row_P: Tensor) -> list[Tensor]:
        """Create views into a row, one per parameter, in its shape."""
        pieces = row_P.split([parameter.numel() for parameter in self.parameters])
        return [piece.view_as(parameter) for piece, parameter in zip(pieces, self.parameters, strict=True)]

    def use_row(self, row: int, fresh: bool = True) -> None:
        """Point every parameter's gradient into a row, zeroed if `fresh`."""
        if fresh:
            self.rows_TP[row].zero_()
        for parameter, view in zip(self.parameters, self.views[row], strict=True):
            parameter.grad = view

    def clear(self) -> None:
        """Let autograd create the gradients of a plain sum."""
        for parameter in self.parameters:
            parameter.grad = None
        for parameter, dense in self.dense:
            parameter.grad = dense.zero_()

    def gramian(self, num_tasks: int) -> Tensor:
        """Compute the inner products of the task gradients, group by group, shape (G, T, T), float64."""
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
    """Compute the inner products of the rows, shape (T, T), float64: float32 products of M blocks, summed in float64.

    One float32 product over millions of columns errs by 1e-3 of the norms. Of two nearly opposed gradients that is more than
    the square of their sum. In blocks the error is 4e-8, and the product takes two thirds of the time.
    """
    num_rows, num_blocks = len(rows_TP), rows_TP.shape[1] // BLOCK
    whole_TP, rest_TP = rows_TP.tensor_split([num_blocks * BLOCK], dim=1)
    blocks_MTC = whole_TP.view(num_rows, num_blocks, BLOCK).transpose(0, 1)
    return (blocks_MTC @ blocks_MTC.mT).sum(dim=0, dtype=torch.float64) + (rest_TP @ rest_TP.T).double()
