"""Loss weights: the factor of each task's loss, applied before its backward pass, and so before its gradient is merged."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from minbert_core.settings import BARE_NAME, Variant


class Static(Variant):
    """A constant factor for each task; 1 where none is given.  With none at all, the plain sum of Caruana 1997."""

    kind: Literal["static"] = "static"
    weights: dict[str, PositiveFloat] = Field(
        {}, json_schema_extra={"unit": "times the loss"}, description="task name -> factor; 1 where absent"
    )

    def weight(self, task: str) -> float:
        return self.weights.get(task, 1.0)


LossWeights = Annotated[Static, BARE_NAME]
