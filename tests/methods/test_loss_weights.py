"""Loss weights by hand, in their limits, and against autograd."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from minbert_core.data.tasks import TaskKind
from minbert_core.methods.loss_weights import Dwa, Famo, Static, Uncertainty

KINDS: dict[str, TaskKind] = {"sst": "classification", "para": "binary", "sts": "regression"}
LOSSES = {"sst": 1.5, "para": 0.5, "sts": 2.0}


# -------------------------------------------------------------------------------------------------------------- static


def test_a_task_without_a_weight_has_one() -> None:
    assert Static(weights={"para": 0.5}).of(KINDS, {}, {}) == {"sst": 1.0, "para": 0.5, "sts": 1.0}


@pytest.mark.parametrize("factor", [0, -1.0, float("nan")])
def test_a_weight_must_be_a_positive_number(factor: float) -> None:
    with pytest.raises(ValidationError, match=r"greater than 0|finite"):
        Static(weights={"para": factor})


# --------------------------------------------------------------------------------------------------------- uncertainty


def test_at_a_variance_of_one_a_regression_counts_half() -> None:
    assert Uncertainty().of(KINDS, {}, {}) == {"sst": 1.0, "para": 1.0, "sts": 0.5}


def test_log_variances_follow_autograd_through_kendall_s_total() -> None:
    """Adam over s as torch has it, on sum of factor e^-s L + s/2, over steps of which one lacks a task."""
    s = {task: torch.zeros((), dtype=torch.float64, requires_grad=True) for task in KINDS}
    oracle = torch.optim.Adam(s.values(), lr=0.05)
    weights, state = Uncertainty(lr=0.05), dict[str, Tensor]()
    for step in range(5):
        losses = {task: loss / (1 + step) for task, loss in LOSSES.items() if (task, step) != ("para", 2)}
        oracle.zero_grad()
        factor = {"sst": 1.0, "para": 1.0, "sts": 0.5}
        sum(factor[task] * (-s[task]).exp() * loss + s[task] / 2 for task, loss in losses.items()).backward()
        oracle.step()
        weights.follow(KINDS, losses, losses, 0.5, state)
        for task in KINDS:
            assert weights.of(KINDS, {}, state)[task] == pytest.approx(factor[task] * math.exp(-s[task].item()))


def test_log_variances_come_to_rest_where_the_variance_is_twice_the_loss() -> None:
    """d/ds of e^-s L + s/2 is zero at e^s = 2 L; of a regression, whose L counts half, at e^s = L."""
    weights, state = Uncertainty(lr=0.05), dict[str, Tensor]()
    for _ in range(500):
        weights.follow(KINDS, LOSSES, LOSSES, 0.5, state)
    found = weights.of(KINDS, {}, state)
    assert found == pytest.approx({"sst": 1 / 3, "para": 1.0, "sts": 0.25}, rel=1e-3)


# ----------------------------------------------------------------------------------------------------------------- dwa


def dwa_after(weights: Dwa, periods: list[dict[str, float]]) -> dict[str, float]:
    """The weights once a step of a further period has been seen; each period has two steps, at 0.9 and 1.1 of its mean."""
    state: dict[str, Tensor] = {}
    for number, losses in enumerate([*periods, LOSSES]):
        for half, factor in enumerate((0.9, 1.1)):
            of_step = {task: factor * loss for task, loss in losses.items()}
            weights.follow(KINDS, of_step, of_step, weights.period * (number + half / 2), state)
    return weights.of(KINDS, {}, state)


def test_dwa_weighs_by_how_slowly_losses_fell() -> None:
    """w = 1.5/2, 0.5/0.5 and 2/1; K softmax(w / T)."""
    found = dwa_after(Dwa(), [{"sst": 2.0, "para": 0.5, "sts": 1.0}, {"sst": 1.5, "para": 0.5, "sts": 2.0}])
    powers = {"sst": math.exp(0.75 / 2), "para": math.exp(1 / 2), "sts": math.exp(2 / 2)}
    assert found == pytest.approx({task: 3 * power / sum(powers.values()) for task, power in powers.items()})


def test_dwa_compares_the_last_two_periods_alone() -> None:
    last = [{"sst": 2.0, "para": 0.5, "sts": 1.0}, {"sst": 1.5, "para": 0.5, "sts": 2.0}]
    assert dwa_after(Dwa(), [{"sst": 9.0, "para": 9.0, "sts": 9.0}, *last]) == pytest.approx(dwa_after(Dwa(), last))


@pytest.mark.parametrize("periods", [[], [LOSSES]])
def test_in_its_first_two_periods_dwa_is_the_sum(periods: list[dict[str, float]]) -> None:
    assert dwa_after(Dwa(), periods) == pytest.approx(dict.fromkeys(KINDS, 1.0))


def test_at_a_high_temperature_dwa_is_the_sum() -> None:
    found = dwa_after(Dwa(temperature=1e6), [LOSSES, {"sst": 0.1, "para": 3.0, "sts": 1.0}])
    assert found == pytest.approx(dict.fromkeys(KINDS, 1.0), abs=1e-4)


def test_dwa_weighs_a_task_that_a_period_did_not_show_as_if_its_loss_had_stayed() -> None:
    weights, state = Dwa(period=0.25), dict[str, Tensor]()
    for progress, losses in ((0.1, LOSSES), (0.3, {"sst": 0.75, "sts": 4.0}), (0.6, LOSSES)):
        weights.follow(KINDS, losses, losses, progress, state)
    powers = {"sst": math.exp(0.25), "para": math.exp(0.5), "sts": math.exp(1.0)}
    assert weights.of(KINDS, {}, state) == pytest.approx({t: 3 * p / sum(powers.values()) for t, p in powers.items()})


# ---------------------------------------------------------------------------------------------------------------- famo


def test_famo_begins_as_the_gradient_of_the_logarithms_scaled_to_the_number_of_tasks() -> None:
    """1/L: 2/3, 2 and 1/2, which sum to 19/6."""
    assert Famo().of(KINDS, LOSSES, {}) == pytest.approx({"sst": 3 * 4 / 19, "para": 3 * 12 / 19, "sts": 3 * 3 / 19})


def test_of_equal_losses_famo_begins_as_the_sum() -> None:
    assert Famo().of(KINDS, dict.fromkeys(KINDS, 0.7), {}) == pytest.approx(dict.fromkeys(KINDS, 1.0))


def test_famo_moves_as_the_released_code_does() -> None:
    """Its update, written out: Adam with L2 decay over xi, on the gradient of softmax(xi) . delta."""
    xi = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    oracle = torch.optim.Adam([xi], lr=0.025, weight_decay=0.01)
    weights, state = Famo(), dict[str, Tensor]()
    for step in range(6):
        losses = {task: loss / (1 + step) for task, loss in LOSSES.items()}
        after = {"sst": 0.9 * losses["sst"], "para": 1.1 * losses["para"], "sts": 0.5 * losses["sts"]}
        before_T, after_T = (torch.tensor(list(one.values()), dtype=torch.float64) + 1e-8 for one in (losses, after))
        (xi.grad,) = torch.autograd.grad(xi.softmax(0), xi, before_T.log() - after_T.log())
        oracle.step()
        weights.follow(KINDS, losses, after, 0.5, state)
        rates_T = xi.detach().softmax(0) / before_T
        assert list(weights.of(KINDS, losses, state).values()) == pytest.approx((3 * rates_T / rates_T.sum()).tolist())


def test_famo_gives_weight_to_the_task_that_fell_least() -> None:
    weights, state = Famo(), dict[str, Tensor]()
    for _ in range(20):
        weights.follow(KINDS, LOSSES, LOSSES | {"sst": 1.0}, 0.5, state)
    found, at_first = weights.of(KINDS, LOSSES, state), weights.of(KINDS, LOSSES, {})
    assert found["sst"] < at_first["sst"]
    assert found["para"] > at_first["para"]
    assert found["sts"] > at_first["sts"]


@pytest.mark.parametrize("zero", [0.0, 1e-9, -1e-7], ids=["zero", "below the smallest loss", "below zero by rounding"])
def test_a_task_without_a_loss_takes_no_weight_from_the_others_in_famo(zero: float) -> None:
    """A correlation over constant labels, a cosine within its margin: 1 / (0 + 1e-8) would leave 1e-8 for all others."""
    state = {"sst": torch.tensor([0.5, 0.0, 0.0, 5.0])}
    pair = {"sst": LOSSES["sst"], "para": LOSSES["para"]}
    assert Famo().of(KINDS, {**pair, "sts": zero}, state) == {**Famo().of(KINDS, pair, state), "sts": 1.0}
    assert Famo().of(KINDS, dict.fromkeys(KINDS, zero), state) == dict.fromkeys(KINDS, 1.0)


@pytest.mark.parametrize(("before", "after"), [(0.0, 2.0), (2.0, 0.0), (0.0, 0.0)])
def test_famo_learns_nothing_from_a_loss_of_zero_which_has_no_logarithm(before: float, after: float) -> None:
    """A fall from 2 to 1e-8 would be one of 19, where ordinary ones are of hundredths, and stay in Adam's second moment."""
    wanted, found = dict[str, Tensor](), dict[str, Tensor]()
    pair = {"sst": 1.5, "para": 0.5}
    fallen = {"sst": 1.4, "para": 0.5}
    Famo().follow(KINDS, pair, fallen, 0.5, wanted)
    Famo().follow(KINDS, {**pair, "sts": before}, {**fallen, "sts": after}, 0.5, found)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[task], entry) for task, entry in wanted.items())


def test_the_only_task_of_a_step_has_famo_s_weight_of_one() -> None:
    state = {"sst": torch.tensor([3.0, 0.0, 0.0, 5.0])}
    assert Famo().of(KINDS, {"sst": 0.2}, state) == {"sst": 1.0}
