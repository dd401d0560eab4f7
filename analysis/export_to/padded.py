"""A task of a model on padded batches, as the torch exporter needs it: no packing, and no shape that depends on a text.

    ids, mask (, segments) ─► transformers' BertModel ─► pooling ─► shared layer ─► [u; v] of a bi-encoder ─► head ─► readout

Legend: B examples, L tokens of the longest sequence, D hidden size, K outputs of the task.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from analysis.export_to.source import Source
from minbert_core.methods.features import Attention, Cls, Max, Mean, Pooler, PoolingVariant

Layer = Callable[[Tensor], Tensor]


def _cls(hidden_BLD: Tensor, mask_BL1: Tensor, layer: Layer) -> Tensor:
    return hidden_BLD[:, 0]


def _pooler(hidden_BLD: Tensor, mask_BL1: Tensor, layer: Layer) -> Tensor:
    return layer(hidden_BLD[:, 0])


def _mean(hidden_BLD: Tensor, mask_BL1: Tensor, layer: Layer) -> Tensor:
    return (hidden_BLD * mask_BL1).sum(dim=1) / mask_BL1.sum(dim=1)


def _max(hidden_BLD: Tensor, mask_BL1: Tensor, layer: Layer) -> Tensor:
    return hidden_BLD.masked_fill(mask_BL1 == 0, torch.finfo(hidden_BLD.dtype).min).amax(dim=1)


def _attention(hidden_BLD: Tensor, mask_BL1: Tensor, layer: Layer) -> Tensor:
    scores_BL1 = layer(hidden_BLD).masked_fill(mask_BL1 == 0, torch.finfo(hidden_BLD.dtype).min)
    return (hidden_BLD * scores_BL1.softmax(dim=1)).sum(dim=1)


POOLINGS: dict[type[PoolingVariant], Callable[[Tensor, Tensor, Layer], Tensor]] = {
    Cls: _cls,
    Pooler: _pooler,
    Mean: _mean,
    Max: _max,
    Attention: _attention,
}


class PaddedTask(nn.Module):
    """A task: `forward` gives what its answer is read from, (B, K), in float32."""

    def __init__(self, source: Source, task: str, bert: Any) -> None:
        """bert: transformers' BertModel with the encoder's weights, which tasks may share."""
        super().__init__()
        model, plan = source.model, source.plan(task)
        self.bert, self.head, self.plan = bert, model.heads[task], plan
        self.layer = model.poolings[task] if task in model.poolings else model.encoder.pooler  # noqa: SIM401
        self.shared_layer = model.shared_layer if source.config.shared_layer.serves(plan.task.is_pair) else None
        self.pool = POOLINGS[type(plan.pooling)]

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *more: Tensor) -> Tensor:
        """more: the segments of a single sequence, or ids and mask of the second sentence of a bi-encoder."""
        if self.plan.vectors == 2:
            second_ids, second_mask = more
            vectors = [self._vector(input_ids, attention_mask), self._vector(second_ids, second_mask)]
            features_BF = torch.cat(vectors, dim=1)  # [u; v]: stacked and split again, the batch would not stay free
        else:
            features_BF = self._vector(input_ids, attention_mask, *more)
        return self.plan.loss.readout(self.head(features_BF, _undropped), self.plan.task.label_range)

    def _vector(self, ids_BL: Tensor, mask_BL: Tensor, segments_BL: Tensor | None = None) -> Tensor:
        """Encode and pool one sequence per example, (B, D)."""
        output = self.bert(input_ids=ids_BL, attention_mask=mask_BL, token_type_ids=segments_BL)
        pooled_BD = self.pool(output.last_hidden_state, mask_BL[:, :, None].float(), self.layer)
        return pooled_BD if self.shared_layer is None else self.shared_layer(pooled_BD, _undropped)


def _undropped(values: Tensor, rate: float) -> Tensor:
    return values
