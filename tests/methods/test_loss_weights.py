"""Static loss weights."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from minbert_core.methods.loss_weights import Static


def test_a_task_without_a_weight_has_one() -> None:
    weights = Static(weights={"para": 0.5})
    assert [weights.weight(task) for task in ("para", "sst")] == [0.5, 1.0]


@pytest.mark.parametrize("factor", [0, -1.0, float("nan")])
def test_a_weight_must_be_a_positive_number(factor: float) -> None:
    with pytest.raises(ValidationError, match=r"greater than 0|finite"):
        Static(weights={"para": factor})
