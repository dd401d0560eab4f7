"""Adapters: a few weights trained inside the encoder, in addition to its own or instead of them.

    encoder -> adapter.adapt (once, before training)  -> the encoder with the parameters that all tasks share
    encoder.shape -> adapter.build (once per task)    -> the task's own module, handed to the encoder in each of its passes

Legend: N packed tokens, D hidden size, R tokens of which a layer's result is read, r rank, s the size of a PAL.

Before training, an adapted model answers exactly as the plain one, because the last matrix of an adapter starts at zero. A
stage that does not train the encoder does not train adapters.

Parameters that `adapt` puts into the encoder get merged gradients and the encoder's learning rate. They are added to its
weights wherever it is saved (`plain_weights`). The module that `build` returns gets the gradient of its task and the heads'
rate, and is saved with the head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal, get_args

import torch
from pydantic import Field, PositiveFloat, PositiveInt, field_validator
from torch import Tensor, nn

from minbert_core.encoder import Dropout, Encoder, EncoderShape, Query, attend, make_linear
from minbert_core.settings.models import BARE_NAME, Variant

Groups = dict[str, list[nn.Parameter]]
SeedOf = Callable[[str], int]  # name -> the trial's seed for the parameters of that name

Matrix = Literal["query", "key", "value", "attention_output", "intermediate", "output"]


# ----------------------------------------------------------------------------------------------------------------- LoRA


class LoraLinear(nn.Linear):
    """x W^T + b, plus scale * x A^T B^T on the outputs of each adapted matrix; W and b keep their names.

    A layer may hold several matrices, stacked (key and value): `outputs` maps each to its rows.
    A is (r, inputs); B is (outputs, r) and starts at zero.
    """

    def __init__(self, linear: nn.Linear, outputs: dict[str, slice], rank: int, scale: float, seed_of: SeedOf) -> None:
        nn.Module.__init__(self)  # nn.Linear's would create new weights
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.outputs, self.scale = outputs, scale
        self.a = nn.ParameterDict({name: torch.empty(rank, self.in_features) for name in outputs})
        self.b = nn.ParameterDict({name: torch.zeros(rows.stop - rows.start, rank) for name, rows in outputs.items()})
        for name, a in self.a.items():  # as in the authors' released code, which starts A as torch starts a linear layer
            nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=torch.Generator().manual_seed(seed_of(name)))

    def forward(self, x_NI: Tensor) -> Tensor:
        y_NO = super().forward(x_NI)
        for name, rows in self.outputs.items():
            y_NO[:, rows] += self.scale * (x_NI @ self.a[name].T @ self.b[name].T)
        return y_NO

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """Return W + scale * B A, the weights of a plain layer with the same outputs."""
        weight = self.weight.clone()
        for name, rows in self.outputs.items():
            weight[rows] += self.scale * (self.b[name] @ self.a[name])
        return weight


def plain_weights(encoder: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of `encoder` in the plain layout, with the updates of an adapter added to its matrices."""
    state: dict[str, Tensor] = encoder.state_dict()
    for path, module in encoder.named_modules():
        if isinstance(module, LoraLinear):
            state[f"{path}.weight"] = module.merged_weight()
            state = {name: tensor for name, tensor in state.items() if not name.startswith((f"{path}.a.", f"{path}.b."))}
    return state


def place_of(matrix: Matrix, hidden_size: int) -> tuple[str, slice | None]:
    """Return the name of the linear layer that holds a matrix, and its rows there (None: all)."""
    if matrix in ("key", "value"):
        start = hidden_size * (matrix == "value")
        return "key_value", slice(start, start + hidden_size)
    return matrix, None


# ----------------------------------------------------------------------------------------------------------------- PALs


class ProjectedAttentionLayers(nn.Module):
    """The PALs of one task, one parallel to each layer of the encoder: a `ParallelLayers`.

    TS(h) = V_D MHA(V_E h). All layers share V_E and V_D; there is no matrix between the attention and V_D.
    """

    def __init__(self, shape: EncoderShape, size: int) -> None:
        super().__init__()
        self.num_heads = shape.num_attention_heads
        self.encode, self.decode = make_linear(shape.hidden_size, size), make_linear(size, shape.hidden_size)
        nn.init.zeros_(self.decode.weight)
        self.queries = nn.ModuleList(make_linear(size, size) for _ in range(shape.num_hidden_layers))
        self.key_values = nn.ModuleList(make_linear(size, 2 * size) for _ in range(shape.num_hidden_layers))

    def forward(self, index: int, hidden_ND: Tensor, query: Query, attention_drop: Dropout) -> Tensor:
        """Return TS(h) of layer `index` for the tokens that attend, (R, D)."""
        encoded_Ns = self.encode(hidden_ND)
        q_Rs = self.queries[index](query.select(encoded_Ns))
        kv_N2s = self.key_values[index](encoded_Ns)
        with torch.autocast(q_Rs.device.type, enabled=False):  # as in the encoder's own
            context_Rs = attend(q_Rs, kv_N2s, query, self.num_heads, attention_drop)
        added_RD: Tensor = self.decode(context_Rs)
        return added_RD


# ------------------------------------------------------------------------------------------------------------- variants


class AdapterVariant(Variant):
    """The defaults of an adapter: it adds parameters, and the encoder is trained as without it."""

    adds: ClassVar[bool] = True  # it has its own parameters to train

    @property
    def shares(self) -> bool:
        """Whether more of the encoder than its pooler is trained, so that the tasks share what is trained."""
        return True

    def adapt(self, encoder: Encoder, seed_of: SeedOf) -> None:
        """Put what all tasks share into the encoder, once, before training; by default nothing."""

    def build(self, shape: EncoderShape) -> nn.Module | None:
        """Build what one task has next to the encoder's layers; by default nothing."""
        return None

    def groups(self, encoder: Encoder) -> Groups:
        """Return the parameters of the encoder that are trained, by group; by default all."""
        return encoder.parameter_groups()


class NoAdapter(AdapterVariant):
    """No adapter: the encoder's own weights are trained, all of them."""

    kind: Literal["none"] = "none"
    adds: ClassVar[bool] = False


class Lora(AdapterVariant):
    """Low-rank adaptation: W + (alpha / r) B A, Hu et al. 2021 (arXiv 2106.09685), eq. 3; A and B are trained, W is not.

    All weights of the encoder are frozen, except its pooler if a task reads it: as in the authors' released code, layers on top
    of the body are trained like a head. A starts as torch starts a linear layer, also as released; the paper writes Gaussian.
    The key and value matrices, one layer here, have separate updates. Departure: no dropout before A, which theirs can have.
    """

    kind: Literal["lora"] = "lora"
    rank: PositiveInt = Field(8, json_schema_extra={"unit": "dimensions"}, description="r: the largest rank of each update")
    alpha: PositiveFloat = Field(16.0, json_schema_extra={"unit": "times 1 / rank"}, description="alpha: factor of the updates")
    matrices: tuple[Matrix, ...] = Field(
        ("query", "value"),
        min_length=1,
        description="which matrices of each layer are adapted; the default is the paper's choice",
    )

    @field_validator("matrices")
    @classmethod
    def _once_each(cls, matrices: tuple[Matrix, ...]) -> tuple[Matrix, ...]:
        if len(set(matrices)) < len(matrices):
            raise ValueError(f"must name each matrix once. Got {', '.join(matrices)}.")
        return matrices

    def adapt(self, encoder: Encoder, seed_of: SeedOf) -> None:
        """Add an update, zero at first, to each of `matrices` in every layer."""
        for index, layer in enumerate(encoder.layers):
            held: dict[str, dict[str, slice]] = {}
            for matrix in (name for name in get_args(Matrix) if name in self.matrices):
                name, rows = place_of(matrix, encoder.shape.hidden_size)
                held.setdefault(name, {})[matrix] = rows or slice(0, getattr(layer, name).out_features)
            for name, outputs in held.items():
                seeds = {matrix: seed_of(f"layers.{index}.{matrix}") for matrix in outputs}
                linear = LoraLinear(getattr(layer, name), outputs, self.rank, self.alpha / self.rank, seeds.__getitem__)
                setattr(layer, name, linear)

    def groups(self, encoder: Encoder) -> Groups:
        adapted = [module for module in encoder.modules() if isinstance(module, LoraLinear)]
        added = [part for module in adapted for part in (module.a, module.b)]
        trained = {id(parameter) for part in (*added, encoder.pooler) for parameter in part.parameters()}
        groups = {
            name: [parameter for parameter in group if id(parameter) in trained]
            for name, group in encoder.parameter_groups().items()
        }
        return {name: group for name, group in groups.items() if group}


class Pal(AdapterVariant):
    """Projected attention layers, Stickland & Murray 2019 (arXiv 1902.02671), section 3: a small attention per task and layer.

    A layer with input h and attention result m returns LN(m + FFN(m) + TS(h)), TS(h) = V_D MHA(V_E h). Each task has its V_E
    and V_D, the same for all layers. The attention is a small copy of the encoder's: its dropout, as many heads, no matrix
    after it. Departures: V_D starts at zero, so that training starts from the checkpoint; theirs starts at N(0, 0.02²). The
    released code has a GELU after V_D, which the paper does not have, and 6 heads where the paper has 12. With `freeze_encoder`
    that code also trains the LayerNorms, but not the pooler; here LayerNorms are frozen, and the pooler is trained if a task
    reads it.
    """

    kind: Literal["pal"] = "pal"
    size: PositiveInt = Field(
        204, json_schema_extra={"unit": "units"}, description="width of the small attention; a multiple of the encoder's heads"
    )
    freeze_encoder: bool = Field(False, description="true: only the PALs are trained, not the encoder's own weights")

    @property
    def shares(self) -> bool:
        return not self.freeze_encoder

    def build(self, shape: EncoderShape) -> nn.Module | None:
        heads = shape.num_attention_heads
        if self.size % heads:
            law = f"must be a multiple of the encoder's {heads} attention heads"
            raise ValueError(f"`adapter/pal/size` {law}. Got {self.size}; {max(1, round(self.size / heads)) * heads} is one.")
        return ProjectedAttentionLayers(shape, self.size)

    def groups(self, encoder: Encoder) -> Groups:
        groups = encoder.parameter_groups()
        return {"pooler": groups["pooler"]} if self.freeze_encoder else groups


Adapter = Annotated[NoAdapter | Lora | Pal, Field(discriminator="kind"), BARE_NAME]
