"""Shares of stages, and what a stage overrides."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from minbert_core.methods.gradients import PCGrad
from minbert_core.methods.smoothness import NoSmoothness
from minbert_core.methods.stages import Multitask, Stage, shares


def stages(*given: float | None) -> list[Multitask]:
    return [Multitask(share=share) for share in given]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([None], [1.0]),
        ([None, None], [0.5, 0.5]),
        ([0.2, None], [0.2, 0.8]),
        ([None, 0.5, None], [0.25, 0.5, 0.25]),
        ([0.3, 0.7], [0.3, 0.7]),
        ([1.0], [1.0]),
    ],
)
def test_absent_shares_split_the_rest(given: list[float | None], expected: list[float]) -> None:
    assert shares(stages(*given)) == pytest.approx(expected)


def test_ten_tenths_are_a_whole() -> None:
    assert sum(shares(stages(*[0.1] * 10))) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([0.7, 0.7], r"must sum to 1\. They sum to 1\.4: more than the whole"),
        ([0.2, 0.3], r"must sum to 1\. They sum to 0\.5: less than the whole"),
        ([0.5, 0.5, None], r"sum to 1 and leave nothing for the 1 without one"),
        ([0.9, 0.9, None], r"sum to 1\.8 and leave nothing"),
        ([], r"at least one stage"),
    ],
)
def test_shares_that_do_not_make_a_whole_are_refused(given: list[float | None], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        shares(stages(*given))


@pytest.mark.parametrize("share", [0, 1.5, -0.1])
def test_a_share_lies_between_zero_and_one(share: float) -> None:
    with pytest.raises(ValidationError, match=r"greater than 0|less than or equal to 1"):
        Multitask(share=share)


def test_what_a_stage_does_not_name_it_inherits() -> None:
    stage = Multitask()
    assert (stage.optimizer, stage.task_schedule, stage.gradient, stage.smoothness) == (None, None, None, None)


def test_a_stage_overrides_by_bare_name_or_map() -> None:
    stage = TypeAdapter(Stage).validate_python({"kind": "multitask", "gradient": "pcgrad", "smoothness": {"kind": "none"}})
    assert stage == Multitask(gradient=PCGrad(), smoothness=NoSmoothness())
